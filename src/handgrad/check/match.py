"""Match what a hand computed with what a mistake would have given.

Every wrong gradient is compared with every variant of the backward pass. What is found has to
explain it to the digits, by more numbers than were free to choose, and a reading that fits all
gradients of a check at once, the right ones included, is worth more than one that fits one alone.

Derivation: notebooks/32_checker.ipynb
"""

import itertools
from typing import NamedTuple

import jax
import numpy as np

from handgrad.check import edits, replacements
from handgrad.check.tape import Tape, numbers
from handgrad.check.walk import backward, differences, merged, most_at_once
from handgrad.check.words import sentence

MEMORY = 2**22  # numbers that the cotangents of a chunk of variants may hold
ROWS = 64  # variants in a chunk
WORK = 1e9  # numbers that may be computed in all; a step of the interpreter counts as some
STEP = 4000
LARGE = 2**13  # of a larger gradient a few rows are compared before the rest
SAMPLE = 24  # numbers of a gradient that pairs are found by
PAIRS = 24  # pairs that are tried


FAMILIES = (
    replacements.simple,
    replacements.elsewhere,
    replacements.rarer,
    replacements.crossed,
    replacements.rerouted,
)


class Reading(NamedTuple):
    """What may have been done, and the gradients (places of Findings) that it explains.

    names are those of the mistake, and words its sentence. It is whole where every gradient that it
    would change is as it says, and simple where one thing is changed in one way.
    """

    names: tuple
    words: str
    places: tuple
    rank: int = 1
    whole: bool = True


class Search(NamedTuple):
    """The Readings, best first, and whether all variants were tried."""

    readings: list
    exhaustive: bool


def readings(total, at, findings):
    """The Readings of the wrong ones among the findings, best first; empty where nothing fits.

    total(at) is the scalar loss at its variants.Operands, and a finding's place the number of its
    leaf among those of (at.floats, at.slots).
    """
    return search(total, at, findings).readings


def search(total, at, findings):
    """The Search for the mistakes behind the wrong ones among the findings. It never raises."""
    try:
        with np.errstate(all="ignore"):
            return _Search(total, at, findings).run()
    except Exception:  # a program that can't be recorded is none that a mistake can be read from
        return Search([], False)


class _Search:
    def __init__(self, total, at, findings):
        counts = [len(jax.tree.leaves(part)) for part in at[:3]]
        leaves = [*range(counts[0]), *range(counts[0] + counts[1], sum(counts))]
        self.tape = Tape(total, at, set(leaves))
        self.right = backward(self.tape)
        self.leaves = [self.tape.inputs[leaves[f.place]] for f in findings]
        self.names = {self.tape.inputs[leaves[f.place]]: f.name[1:] for f in findings}
        self.judge = Judge(self.tape, self.right, self.leaves, findings)
        self.left, self.exhaustive = WORK, True
        self.size = numbers(self.tape)
        self.found, self.atoms = [], []

    def run(self):
        tape, right = self.tape, self.right
        if self.judge.wrong:
            for family in FAMILIES:
                self.walk(family(tape, right))
                if self.judge.settled(self.found):
                    break
            else:
                self.edit(edits.edits(tape, right))
                if not self.judge.settled(self.found):
                    self.pair()
        best = [
            reading._replace(words=sentence(tape, reading.words, self.names))
            for reading in self.judge.best(self.found)
        ]
        return Search(best, self.exhaustive)

    def afford(self, work):
        self.left -= work
        self.exhaustive &= self.left > 0
        return self.left > 0

    def walk(self, variants):
        thin = _thinned(self.tape, self.right, self.leaves)
        held = self.size - sum(np.size(self.tape.values[v]) for v in thin)
        most = most_at_once(self.tape, self.right, thin)
        rows = int(np.clip(MEMORY // max(most, 1), 1, ROWS))
        nodes = len(self.tape.nodes)
        while chunk := list(itertools.islice(variants, rows)):
            hits = sum(len(variant.hits) + len(variant.blocks) for variant in chunk)
            if not self.afford(len(chunk) * held + (nodes + 4 * hits) * STEP):
                return
            moved = differences(self.tape, self.right, chunk, self.leaves, thin)
            fitting = []
            for row, variant in enumerate(chunk):
                mine = [None if m is None else m[row] for m in moved]
                reading = self.judge.fit(variant, mine, thin)
                fitting += [variant] if reading else []
                self.found += [reading] if reading and not thin else []
                self.keep(variant, mine, thin)
            if thin and fitting:
                for variant in fitting:
                    moved = differences(self.tape, self.right, [variant], self.leaves)
                    mine = [None if m is None else m[0] for m in moved]
                    reading = self.judge.fit(variant, mine)
                    self.found += [reading] if reading else []

    def keep(self, variant, moved, thin):
        sample = self.judge.sample(moved, thin)
        if np.isfinite(sample).all() and sample.any():
            self.atoms.append((variant, sample))

    def edit(self, variants):
        for variant in variants:
            if not self.afford(2 * self.size + 2 * len(self.tape.nodes) * STEP):
                return
            try:
                changed = edits.gradients(self.tape, variant)
            except Exception:  # a program that can't run so is no reading
                continue
            moved = [
                None if self.right[v] is None or changed[v] is None else changed[v] - self.right[v]
                for v in self.leaves
            ]
            reading = self.judge.fit(variant, moved)
            self.found += [reading] if reading else []

    def pair(self):
        """Two variants at once: such as add up to the error in a sample of its entries."""
        thin = _thinned(self.tape, self.right, self.leaves)
        error = self.judge.sample(self.judge.errors, {}, thin)
        candidates, rows = [], []
        for variant, sample in self.atoms:
            for c in (1.0, 2.0, -1.0) if variant.free and not variant.any else (1.0,):
                candidates.append((variant, c))
                rows.append(c * sample)
        if len(rows) < 2 or not np.isfinite(error).all():
            return
        rows = np.array(rows)
        weights = np.cos(np.arange(rows.shape[1]) * 1.7 + 0.3)
        sums = rows @ weights
        order = np.argsort(sums, kind="stable")
        slack = 1e-9 * (np.abs(error) @ np.abs(weights) + np.abs(sums))
        wanted = error @ weights - sums
        low = np.searchsorted(sums[order], wanted - slack)
        high = np.searchsorted(sums[order], wanted + slack)
        pairs = []
        for i in np.flatnonzero(high > low):
            for j in order[low[i] : high[i]]:
                rest = np.abs(rows[i] + rows[j] - error)
                if i < j and rest.max() <= 1e-8 * np.abs(error).max():
                    rank = candidates[i][0].rank + candidates[j][0].rank
                    pairs.append((rank, i, j))
        pairs = sorted(pairs)[:PAIRS]
        for _, i, j in pairs:
            both = merged(candidates[i], candidates[j])
            if both is None or not self.afford(self.size + len(self.tape.nodes) * STEP):
                continue
            moved = differences(self.tape, self.right, [both], self.leaves)
            reading = self.judge.fit(both, [None if m is None else m[0] for m in moved])
            self.found += [reading] if reading else []


def _thinned(tape, right, leaves):
    # {leaf: the places along its first axis that are compared}, of large leaves that only meet
    # matrix products, of which a part of the gradient costs a part
    thin = {}
    for v in leaves:
        x = tape.values[v]
        ops = {tape.nodes[n].op.name for n, _ in tape.uses.get(v, ())}
        if np.size(x) > LARGE and ops == {"dot_general"} and right[v] is not None:
            thin[v] = np.unique(np.linspace(0, len(x) - 1, 5).astype(int))
    return thin


class Judge:
    """What the hand did to each gradient, and whether a variant does the same."""

    def __init__(self, tape, right, leaves, findings):
        """Take the findings, whose gradients are those of the values `leaves` of a tape."""
        self.tape, self.leaves, self.findings = tape, leaves, findings
        self.errors = [f.hand - f.true if _comparable(f) else None for f in findings]
        self.wrong = [k for k, f in enumerate(findings) if f.wrong and self.errors[k] is not None]
        self.wrong.sort(key=lambda k: -np.size(self.errors[k]))
        self.unread = sum(f.wrong for f in findings) - len(self.wrong)

    def sample(self, arrays, thin, more=None):
        """Some numbers of each gradient, by which pairs are found."""
        parts = []
        for v, f, x in zip(self.leaves, self.findings, arrays, strict=True):
            at = (more or {}).get(v)
            size = (
                np.size(f.true)
                if v not in {**thin, **(more or {})}
                else (np.size(f.true) // len(f.true) * len({**thin, **(more or {})}[v]))
            )
            places = np.unique(np.linspace(0, size - 1, min(SAMPLE, size)).astype(int))
            if x is None:
                parts.append(np.zeros(len(places)))
            else:
                parts.append(np.ravel(x if at is None else x[at])[places])
        return np.concatenate(parts)

    def fit(self, variant, moved, thin=()):
        """The Reading of a variant that moves the gradients by `moved`, or None."""
        c, explained, conflict = 1.0, [], False
        free = getattr(variant, "free", False)
        if free:
            c = self._times(moved, thin)
            if c is None:
                return None
        for k in self.wrong:
            f, v = self.findings[k], self.leaves[k]
            if moved[k] is None or not moved[k].any():
                continue
            hand, true = (a[thin[v]] if v in thin else a for a in (f.hand, f.true))
            if self._close(hand, true + c * moved[k], hand - true, None if v in thin else f.off):
                explained.append(k)
            else:
                conflict = True
        if not explained or not self._telling(moved, explained, c, free):
            return None
        if thin:
            return True
        for k, f in enumerate(self.findings):
            if not f.wrong and moved[k] is not None:
                conflict |= bool(f.off(f.true + c * moved[k], f.true).any())
        return self._reading(variant, moved, explained, conflict, c)

    def _times(self, moved, thin):
        # the constant by which the error is a multiple, in the first gradient where it is one
        for k in self.wrong:
            error, v = self.errors[k], self.leaves[k]
            error = error[thin[v]] if v in thin else error
            if moved[k] is None:
                continue
            square = (moved[k] * moved[k]).sum()
            if not square or not np.isfinite(square):
                continue
            c = (moved[k] * error).sum() / square
            rest = error - c * moved[k]
            if abs(c) > 1e-9 and (rest * rest).sum() <= 1e-6 * (error * error).sum():
                return next((known for known in _KNOWN if abs(c - known) < 1e-7), c)
        return None

    def _close(self, hand, value, error, off):
        rest = np.abs(hand - value)
        if not np.isfinite(value).all() or rest.max() > 1e-3 * np.abs(error).max():
            return False
        most = max(np.abs(hand).max(), np.abs(value).max())
        return rest.max() <= 1e-10 * most or off is None or not off(value, hand).any()

    def _telling(self, moved, explained, c, free):
        # A constant that fits must fit more numbers than it could by chance.
        if not free or c in _KNOWN:
            return True
        sizes = np.concatenate([np.abs(moved[k]).ravel() for k in explained])
        return len(np.unique(np.round(sizes / sizes.max(), 6))) > 4

    def _reading(self, variant, moved, explained, conflict, c):
        names, words, rank = variant.names, variant.words, variant.rank
        if variant.rank and getattr(variant, "free", False) and not variant.any:
            names, words, more = self._counted(names, words, explained, c)
            rank += more
            if any(_decays(self.tape.values[self.leaves[k]], moved[k]) for k in explained):
                names = ("decay", *names)
        places = tuple(sorted(self.findings[k].place for k in explained))
        words = words if isinstance(words, tuple) else (variant.site, words)
        return Reading(names, words, places, rank + 2 * conflict, not conflict)

    def _counted(self, names, words, explained, c):
        if c == 1:
            zero = all(not self.findings[k].hand.any() for k in explained)
            return (("zeros", *names) if zero else names), f"{words} is left out", 0
        if c == 2:
            return ("sign", *names[:-1]), f"{words} has the wrong sign", 0
        times = 1 - c
        sizes = {n for f in self.findings for n in (*np.shape(f.true), np.size(f.true))}
        why = [
            n for n in sorted(sizes) if n > 1 and min(abs(times * n - 1), abs(times / n - 1)) < 1e-7
        ]
        bessel = [n for n in sorted(sizes) if n > 2 and abs(times - n / (n - 1)) < 1e-7]
        if bessel:
            return ("Bessel", "factor"), f"{words} counts n / (n - 1) times, n = {bessel[0]}", 1
        plain = (
            f"1/{1 / times:.4g}"
            if 0 < times < 1 and abs(1 / times - round(1 / times)) < 1e-6
            else f"{times:.4g}"
        )
        words = f"{words} counts {plain} times" + (f", N = {why[0]}" if why else "")
        known = bool(why) or c in _KNOWN
        return ("factor", *(n for n in names if "path" in n)), words, 1 if known else 2

    def settled(self, found):
        """Whether the readings that contradict no gradient explain all that is wrong."""
        return len({p for r in found if r.whole for p in r.places}) == len(self.wrong)

    def best(self, found):
        """The readings that say most by least, best first; one for each sentence."""
        found = sorted(found, key=lambda r: (-len(r.places), r.rank))
        kept, seen = [], set()
        for reading in found:
            if (reading.words, reading.places) not in seen:
                seen.add((reading.words, reading.places))
                kept.append(reading)
        return kept[:8]


_KNOWN = (1.0, 2.0, -1.0, 0.5)


def _comparable(f):
    return f.hand.shape == f.true.shape and np.isfinite(f.hand).all() and np.isfinite(f.true).all()


def _decays(x, error):
    # whether an error is a multiple of the parameter
    if x.size < 2 or not x.any() or x.shape != error.shape:
        return False
    c = (x * error).sum() / (x * x).sum()
    return bool(np.abs(error - c * x).max() <= 1e-9 * np.abs(error).max())
