"""Explain the wrong gradients of one check, all of them together.

A check judges every gradient first. What was done to the wrong ones is looked for here, where all
of them are in sight, right ones included. Derivation: notebooks/32_checker.ipynb
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from handgrad.check.naming.formulas import hypotheses, ties
from handgrad.check.naming.match import search
from handgrad.check.naming.mistakes import SIGN, Alternative, Diagnosis, Hypothesis, Wrong, diagnose

READINGS = 3  # that are told of one gradient
PAIR = 5  # the rank of readings of two things that were done
SMALL = 2**15  # numbers in a program that is searched once more, behind a flipped sign


class Finding(NamedTuple):
    """One judged gradient: an array of a check.

    name is what the reader calls it; place the leaf's number among those of (at.floats, at.slots),
    for at the Operands of the check; hand and true are float64; off(a, b) says which entries of a
    differ from b beyond what roundings may do; wrong is the judgement.
    """

    name: str
    place: int
    hand: np.ndarray
    true: np.ndarray
    off: Callable
    wrong: bool


def explained(verdicts, findings, suspects):
    """The verdicts again, and in the wrong ones what was done.

    A verdict and its finding bear the same name; one without a finding stays as it is.
    """
    said = explain(findings, suspects) if any(f.wrong for f in findings) else {}
    told = {f.name: (f, *said[f.place]) for f in findings if f.wrong and f.place in said}
    return [_told(v, *told[v.name]) if v.name in told else v for v in verdicts]


def _told(verdict, finding, names, words):
    if not names:
        return verdict._replace(words=f"{verdict.words} ({words})")
    if finding.hand.shape != finding.true.shape:
        words = f"{verdict.words}; {words}"
    return verdict._replace(words=words, mistakes=names)


class Told(NamedTuple):
    """One explanation of some gradients: the names, a sentence, and their places.

    It is local where it says in which operation of the program the mistake was made.
    """

    names: tuple
    words: str
    places: tuple
    sure: bool = False
    local: bool = False


def explain(findings, suspects):
    """What was done to the wrong ones of all the findings of a check, whose Suspects these are.

    Returns {place: (names, sentence)}. Where nothing fits there is no entry, or one without names,
    whose sentence says what was not tried. Raises nothing, whatever is met in the reader's code.
    """
    wrong = [f for f in findings if f.wrong]
    diagnoses = {f.place: _diagnosis(f, findings, suspects) for f in wrong}
    told, untried = _together(diagnoses), ()
    if not {f.place for f in wrong} <= {place for t in told if t.sure for place in t.places}:
        try:
            local, exhaustive = _in_an_operation(findings, suspects, bool(told))
        except Exception:  # a program that can't be looked into
            local, exhaustive = [], False
        told += local
        untried = () if exhaustive else ("some of what may be done in an operation",)
    # what explains more of the gradients is the likelier, and one mistake likelier than two
    told.sort(key=lambda t: (-len(t.places), not t.sure, t.words.count("; and ")))
    said = {}
    for f in wrong:
        entries = _wrong_entries(f)
        here = [t for t in told if f.place in t.places]
        if entries == 1 < f.hand.size:  # a slip, not a mistake that was made in an operation
            here = [t for t in here if not t.local or len(t.places) > 1]
        names, words = _chosen(here)
        if names and entries <= 2 and not _is_plain(names) and f.hand.any():
            words += " (so few numbers may fit by accident)"
        untried_here = diagnoses[f.place].untried + untried
        if words:
            said[f.place] = names, words
        elif untried_here:
            said[f.place] = (), f"not tried: {', '.join(untried_here)}"
    return said


def _wrong_entries(finding):
    if finding.hand.shape != finding.true.shape:
        return finding.hand.size
    return int(np.count_nonzero(finding.off(finding.hand, finding.true)))


def _is_plain(names):
    # what no accident does to a number
    return set(names) <= {SIGN.name, "masked", "kink", "shape"}


def _in_an_operation(findings, suspects, explained):
    # what the walk finds and, where that is no single thing, what it finds behind a flipped sign
    found = search(suspects.total, suspects.at, findings)
    told = [Told(*reading[:3], local=True) for reading in found.readings]
    single = any(reading.rank < PAIR for reading in found.readings)
    if single or explained or suspects.program().numbers() > SMALL:
        return told, found.exhaustive
    flipped = [f._replace(hand=-f.hand) if f.wrong else f for f in findings]
    again = search(suspects.total, suspects.at, flipped)
    behind = [
        Told((SIGN.name, *reading.names), f"{SIGN.words}; and {reading.words}", reading.places)
        for reading in again.readings
        if reading.rank < PAIR
    ]
    told = [*(t._replace(local=True) for t in behind), *told]
    return told, found.exhaustive and again.exhaustive


def _chosen(told):
    # The names and a sentence of the first explanation, of the first that is local, and of those
    # that say something else.
    names, words = (), []
    local = False
    for t in told:
        if len(words) < READINGS and (set(t.names) - set(names) or (t.local and not local)):
            names, local = (*names, *t.names), local or t.local
            words.append(t.words)
    return tuple(dict.fromkeys(names)), ". Or: ".join(words)


def _together(diagnoses):
    # one explanation of several gradients where their sentences are the same
    found = {}
    for place, diagnosis in diagnoses.items():
        for mistakes in diagnosis.made:
            names = tuple(m.name for m in mistakes)
            words = "; and ".join(m.words for m in mistakes)
            found.setdefault((names, words, diagnosis.sure), []).append(place)
    return [Told(n, w, tuple(places), sure) for (n, w, sure), places in found.items()]


def _diagnosis(finding, findings, suspects):
    wrong = Wrong(*finding[:1], *finding[2:5], peers=_peers(finding, findings))
    try:
        wrong = wrong._replace(**suspects.evidence(finding.place))
        arrays = partial(_arrays, findings, suspects)
        wrong, untried = wrong._replace(arrays=arrays), ()
    except Exception:  # the program can't be looked into: the two arrays are left
        untried = ("what else the program holds",)
    mended = Hypothesis("other residuals", lambda: _mended(wrong, suspects, finding.place))
    plain, others = hypotheses(wrong)
    first = diagnose(wrong, plain)
    if first.made and all(m.sure for mistakes in first.made for m in mistakes):
        return first._replace(sure=True)
    then = diagnose(wrong, [*suspects.hypotheses(finding.place), mended, *others])
    made, untried = (*then.made, *first.made), untried + first.untried + then.untried
    if not made:
        last = diagnose(wrong, [Hypothesis("ties", lambda: ties(wrong))])
        made, untried = last.made, untried + last.untried
    return Diagnosis(made, untried)


def _peers(finding, findings):
    others = [f for f in findings if f.place != finding.place]
    return tuple((f.name, f.hand, f.true) for f in others if f.wrong)


def _arrays(findings, suspects):
    # the values of the arguments and of the taps, as the reader calls them
    names = {f.place: f.name.removeprefix("d") for f in findings}
    named = [(names.get(t.place, t.tap), t.value) for t in suspects.targets()]
    return {name: value for name, value in named if name}


def _mended(wrong, suspects, place):
    # what the reader's own rule gives right with another residual
    for mistake, arrays in suspects.mended():
        if wrong.close(arrays[place], wrong.true):
            yield Alternative((mistake,), wrong.hand)
