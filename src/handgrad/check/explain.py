"""Explain the wrong gradients of one check, all of them together.

A check judges every gradient first. What was done to the wrong ones is looked for here, where all
of them are in sight, right ones included. Derivation: notebooks/32_checker.ipynb
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from handgrad.check.formulas import hypotheses, ties
from handgrad.check.match import readings
from handgrad.check.mistakes import Alternative, Diagnosis, Hypothesis, Wrong, diagnose

READINGS = 3  # that are told of one gradient


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
    """One explanation of some gradients: the names, a sentence, and their places."""

    names: tuple
    words: str
    places: tuple


def explain(findings, suspects):
    """What was done to the wrong ones of all the findings of a check, whose Suspects these are.

    Returns {place: (names, sentence)}. Where nothing fits there is no entry, or one without names,
    whose sentence says what was not tried. Raises nothing, whatever is met in the reader's code.
    """
    wrong = [f for f in findings if f.wrong]
    diagnoses = {f.place: _diagnosis(f, findings, suspects) for f in wrong}
    told = _together(diagnoses)
    untried = {place: diagnosis.untried for place, diagnosis in diagnoses.items()}
    explained_by_one = any(len(t.places) == len(wrong) for t in told)
    if not explained_by_one and (suspects.joint or not all(d.made for d in diagnoses.values())):
        try:
            read = readings(suspects.total, suspects.at, findings)
        except Exception:
            read = ()
            untried = {place: (*what, "another local rule") for place, what in untried.items()}
        told += [Told(*reading[:3]) for reading in read]
    told.sort(key=lambda t: -len(t.places))  # what explains more of the gradients is the likelier
    said = {}
    for f in wrong:
        shown = {t.words: t.names for t in told if f.place in t.places}
        shown = dict(itertools.islice(shown.items(), READINGS))
        names = dict.fromkeys(itertools.chain.from_iterable(shown.values()))
        if shown:
            said[f.place] = tuple(names), ". Or: ".join(shown)
        elif untried[f.place]:
            said[f.place] = (), f"not tried: {', '.join(untried[f.place])}"
    return said


def _together(diagnoses):
    # one explanation of several gradients where their sentences are the same
    found = {}
    for place, diagnosis in diagnoses.items():
        for mistakes in diagnosis.made:
            names = tuple(m.name for m in mistakes)
            words = "; and ".join(m.words for m in mistakes)
            found.setdefault((names, words), []).append(place)
    return [Told(names, words, tuple(places)) for (names, words), places in found.items()]


def _diagnosis(finding, findings, suspects):
    wrong = Wrong(*finding[:1], *finding[2:5], peers=_peers(finding, findings))
    try:
        wrong = wrong._replace(**suspects.evidence(finding.place))
        arrays = partial(_arrays, findings, suspects)
        wrong, untried = wrong._replace(arrays=arrays), ()
    except Exception:  # the program can't be looked into: the two arrays are left
        untried = ("what else the program holds",)
    mended = Hypothesis("other residuals", lambda: _mended(wrong, suspects, finding.place))
    tried = diagnose(wrong, [*hypotheses(wrong), *suspects.hypotheses(finding.place), mended])
    if not tried.made:
        last = diagnose(wrong, [Hypothesis("ties", lambda: ties(wrong))])
        tried = Diagnosis(last.made, tried.untried + last.untried)
    return tried._replace(untried=untried + tried.untried)


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
