"""Match what a hand computed with what a mistake would have given.

Derivation: notebooks/32_checker.ipynb
"""

from typing import NamedTuple

import jax
import numpy as np

from handgrad.check import edits, replacements
from handgrad.check.tape import Tape, numbers
from handgrad.check.walk import backward, differences
from handgrad.check.words import where

MEMORY = 2**23  # numbers that a chunk of variants may hold
ROWS = 64  # variants in a chunk


class Reading(NamedTuple):
    """What may have been done: the names, a sentence, and the gradients that it explains."""

    names: tuple
    words: str
    places: tuple
    rank: int
    whole: bool  # whether all gradients are as it says


def readings(total, at, findings):
    """The Readings of the wrong ones among the findings, best first."""
    floats = len(jax.tree.leaves(at.floats))
    others = len(jax.tree.leaves(at.others))
    slots = len(jax.tree.leaves(at.slots))
    differentiable = {*range(floats), *range(floats + others, floats + others + slots)}
    tape = Tape(total, at, differentiable)
    inputs = sorted(differentiable)
    right = backward(tape)
    leaves = [tape.inputs[inputs[f.place]] for f in findings]
    judge = _Judge(tape, right, leaves, findings)
    if not judge.wrong:
        return []
    found = []
    for stage in (replacements.simple, replacements.elsewhere, replacements.rerouted):
        variants = list(stage(tape, right))
        rows = int(max(1, min(ROWS, MEMORY // max(numbers(tape), 1))))
        for start in range(0, len(variants), rows):
            chunk = variants[start : start + rows]
            with np.errstate(all="ignore"):
                moved = differences(tape, right, chunk, leaves)
            found += judge.fits(chunk, moved)
        if judge.settled(found):
            break
    else:
        for edit in edits.edits(tape, right):
            with np.errstate(all="ignore"):
                try:
                    changed = edits.gradients(tape, edit)
                except Exception:
                    continue
            moved = [
                None if right[v] is None or changed[v] is None else (changed[v] - right[v])[None]
                for v in leaves
            ]
            found += judge.fits([edit], moved)
    return judge.best(found)


class _Judge:
    """What the hand did to each gradient, and whether a variant does the same."""

    def __init__(self, tape, right, leaves, findings):
        self.findings, self.leaves, self.tape = findings, leaves, tape
        self.errors = [f.hand - f.true if f.hand.shape == f.true.shape else None for f in findings]
        self.wrong = {k for k, f in enumerate(findings) if f.wrong}
        self.sizes = [
            None if e is None or not np.isfinite(e).all() else (e * e).sum() for e in self.errors
        ]

    def fits(self, variants, moved):
        found = []
        for row, variant in enumerate(variants):
            reading = self._fit(variant, [None if m is None else m[row] for m in moved])
            if reading:
                found.append(reading)
        return found

    def _fit(self, variant, moved):
        c, explained, conflict = None, [], False
        for k in sorted(self.wrong, key=lambda k: -np.size(self.errors[k])):
            delta, error = moved[k], self.errors[k]
            if delta is None or self.sizes[k] is None:
                continue
            square = (delta * delta).sum()
            if not square or not np.isfinite(square):
                continue
            if c is None:
                c = (delta * error).sum() / square if getattr(variant, "free", False) else 1.0
                if abs(c - 1) < 1e-9:
                    c = 1.0
            rest = error - c * delta
            if (rest * rest).sum() > 1e-6 * self.sizes[k] or not np.isfinite(c):
                conflict = True
                if not explained:
                    c = None
                continue
            f = self.findings[k]
            most = max(np.abs(f.hand).max(), np.abs(f.true).max())
            if f.off(f.true + c * delta, f.hand).any() and np.abs(rest).max() > 1e-10 * most:
                conflict = True
                continue
            explained.append(k)
        if not explained:
            return None
        entries = sum(np.count_nonzero(moved[k]) for k in explained)
        famous = any(abs(c - k) < 1e-9 for k in (1, 2, -1, 0.5))
        if entries < (1 if famous else 4):
            return None
        if not famous:
            sizes = np.concatenate([np.abs(moved[k]).ravel() for k in explained])
            if len(np.unique(np.round(sizes / sizes.max(), 9))) < 5:
                return None
        for k, f in enumerate(self.findings):
            if k not in self.wrong and moved[k] is not None:
                conflict |= bool(f.off(f.true + c * moved[k], f.true).any())
        names, words = variant.names, variant.words
        free = getattr(variant, "free", False) and not variant.any
        if free and abs(c - 1) > 1e-9:
            names = ("sign",) if abs(c - 2) < 1e-9 else ("factor",)
            words += f" counts {1 - c:.4g} times"
        elif free:
            words += " is left out"
            if all(not self.findings[k].hand.any() for k in explained):
                names = ("zeros", *names)
        if getattr(variant, "free", False) and not variant.any:
            for k in explained:
                if decays(self.tape.values[self.leaves[k]], moved[k]):
                    names = ("decay", *names)
        if variant.site is not None:
            words = f"{where(self.tape, variant.site)}: {words}"
        places = tuple(self.findings[k].place for k in explained)
        rank = variant.rank + 2 * conflict + 2 * (free and abs(c - 1) > 1e-9 and abs(c - 2) > 1e-9)
        return Reading(names, words, places, rank, not conflict)

    def settled(self, found):
        return any(r.whole and len(r.places) == len(self.wrong) for r in found)

    def best(self, found):
        found = sorted(found, key=lambda r: (not r.whole, -len(r.places), r.rank))
        return found[:8]


def decays(x, error):
    """Whether an error is a multiple of the parameter."""
    if x.size < 2 or not x.any():
        return False
    c = (x * error).sum() / (x * x).sum()
    return bool(np.abs(error - c * x).max() <= 1e-9 * np.abs(error).max())
