"""Explain the wrong gradients of one check, all of them together.

A check judges every gradient first. What was done to the wrong ones is looked for here, where all
of them are in sight, right ones included. Derivation: notebooks/32_checker.ipynb
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from handgrad.check.mistakes import Evidence, diagnose


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


def explain(findings, suspects):
    """What was done to the wrong ones of all the findings of a check, whose Suspects these are.

    Returns {place: (names, sentence)}. Where nothing fits there is no entry, or one without names,
    whose sentence says what was not tried. Raises nothing, whatever is met in the reader's code.
    """
    said = {}
    for finding in findings:
        if finding.wrong:
            try:
                evidence, untried = suspects.evidence(finding.place), ()
            except Exception:  # the program can't be looked into: the two arrays are left
                evidence, untried = {}, ("other programs",)
            evidence = Evidence(finding.off, **evidence)
            diagnosis = diagnose(finding.name, finding.hand, finding.true, evidence)
            untried += diagnosis.untried
            if diagnosis.names:
                said[finding.place] = diagnosis.names, diagnosis.words
            elif untried:
                said[finding.place] = (), f"not tried: {', '.join(untried)}"
    return said
