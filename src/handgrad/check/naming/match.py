"""Match what a hand computed with what a mistake would have given.

Every wrong gradient is compared with every variant of the backward pass. What is found has to
explain it to the digits, by more numbers than were free to choose, and a reading that fits all
gradients of a check at once, the right ones included, is worth more than one that fits one alone.

Derivation: notebooks/32_checker.ipynb
"""

import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from handgrad.check.naming.edits import edits, gradients
from handgrad.check.naming.loops import loops
from handgrad.check.naming.others import crossed, elsewhere, moved, rerouted, skipped
from handgrad.check.naming.replacements import (
    of_axes,
    of_operation,
    of_path,
    of_sites,
    over_more_axes,
)
from handgrad.check.naming.slopes import bypassed, of_regions, of_slope, once_more
from handgrad.check.naming.tape import Tape, numbers
from handgrad.check.naming.uses import overlapping, overwritten, permuted
from handgrad.check.naming.walk import backward, differences, most_at_once
from handgrad.check.naming.words import INNER, sentence

MEMORY = 2**22  # numbers that the cotangents of a chunk of variants may hold
ROWS = 64  # variants in a chunk
WORK = 7e8  # numbers that may be computed in all; a step of the interpreter counts as some
STEP = 4000
LARGE = 2**13  # of a larger gradient a few rows are compared before the rest
SAMPLE = 24  # numbers of a gradient that pairs are found by
PAIRS = 24  # pairs that are tried


def _operations(tape, right):
    yield from of_sites(tape, right, of_path, of_slope, of_operation)


def _of_axes(tape, right):
    yield from of_sites(tape, right, of_axes)


# Each family is tried if those before don't explain all. Of two readings that explain as much that
# of the earlier part is told first; but the many variants of single operations are tried last, so
# that a large program leaves some of the work for the few of whole stretches.
FAMILIES = (
    (_operations, loops, bypassed, of_regions, overwritten, permuted),
    (elsewhere,),
    (_of_axes, over_more_axes, once_more, crossed, skipped, overlapping, moved),
    (rerouted,),
)
LAST = _operations, _of_axes


class Reading(NamedTuple):
    """What may have been done, and the gradients (places of Findings) that it explains.

    names are those of the mistake, and words its sentence. The likeliest have the lowest rank, and
    a reading is whole where every gradient that it would change is as it says.
    """

    names: tuple
    words: str
    places: tuple
    rank: int
    whole: bool


class Search(NamedTuple):
    """The Readings, best first, and whether all variants were tried."""

    readings: list
    exhaustive: bool


def readings(total, at, findings):
    """The Readings of the wrong ones among the findings, best first; empty where nothing fits."""
    return search(total, at, findings).readings


def search(total, at, findings):
    """The Search for the mistakes behind the wrong ones among the findings. It never raises.

    total(at) is the scalar loss at its variants.Operands, and a finding's place the number of its
    leaf among those of (at.floats, at.slots).
    """
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
        self.names = {v: f.name[1:] for v, f in zip(self.leaves, findings, strict=True)}
        kinds = [jnp.result_type(leaf) for leaf in jax.tree.leaves(at.floats)]
        eps = max(float(jnp.finfo(kind).eps) for kind in kinds)
        self.judge = _Judge(self.tape, self.leaves, findings, eps)
        self.thin = _thinned(self.tape, self.right, self.leaves)
        self.size = numbers(self.tape)
        self.left, self.exhaustive = WORK, True
        self.found, self.atoms = [], []

    def run(self):
        if self.judge.wrong:
            for family in FAMILIES:
                self.family(family)
                if self.judge.settled(self.found):
                    break
            else:
                self.edit(edits(self.tape, self.right))
                if not self.judge.settled(self.found):
                    self.pair()
        best = _best(self.found)
        if best and best[0].whole and best[0].rank == 0 and best[0].names[0].endswith(" path"):
            # A path with a name of its own that is left out, or has the wrong sign, is likelier by
            # far than what would come to the same.
            best = [r for r in best if r.rank == 0 or {*r.places} - {*best[0].places}]
        best = [r._replace(words=sentence(self.tape, r.words, self.names)) for r in best]
        return Search([r for r in best if INNER not in r.words], self.exhaustive)

    def family(self, parts):
        # in the order in which they are tried; what is found stands in the order of the parts
        before, of = (self.found, self.atoms), {}
        for part in sorted(parts, key=lambda part: part in LAST):
            self.found, self.atoms = [], []
            self.walk(part(self.tape, self.right))
            of[part] = self.found, self.atoms
        self.found, self.atoms = (
            list(itertools.chain(old, *(of[part][k] for part in parts)))
            for k, old in enumerate(before)
        )

    def afford(self, work):
        # counted, so that a program is searched as far on every machine; with what it has cost to
        # see what can be tried
        self.left -= work + self.tape.tried
        self.tape.tried = 0
        self.exhaustive &= self.left > 0
        return self.left > 0

    def walk(self, variants):
        # All of them in chunks; of large gradients a few rows, and the rest where these fit. A walk
        # goes from the last node that is met to the first, whatever comes after it.
        below = np.cumsum([sum(self.sent(v) for v in n.operands) for n in self.tape.nodes])
        most = most_at_once(self.tape, self.right, self.thin)
        rows = int(np.clip(MEMORY // max(most, 1), 1, ROWS))
        while self.left > 0 and (chunk := list(itertools.islice(variants, rows))):
            hits = sum(len(variant.hits) + len(variant.blocks) for variant in chunk)
            starts = [max((*v.hits, *v.blocks), default=0) for v in chunk]
            steps = 1 + max(starts) + 4 * hits
            if not self.afford(sum(below[n] for n in starts) + steps * STEP):
                return
            moved = differences(self.tape, self.right, chunk, self.leaves, self.thin)
            for row, variant in enumerate(chunk):
                mine = [None if m is None else m[row] for m in moved]
                sample = self.judge.sample(mine, self.thin)
                if np.isfinite(sample).all() and sample.any():
                    self.atoms.append((variant, sample))
                if self.judge.fits(variant, mine, self.thin):
                    self.found += self.judged(variant) if self.thin else self.read(variant, mine)

    def sent(self, v):
        # how many numbers a walk sends back to a value
        return 0 if self.right[v] is None or v in self.thin else self.right[v].size

    def judged(self, variant):
        moved = differences(self.tape, self.right, [variant], self.leaves)
        return self.read(variant, [None if m is None else m[0] for m in moved])

    def read(self, variant, moved):
        reading = self.judge.reading(variant, moved)
        return [reading] if reading else []

    def edit(self, variants):
        for variant in variants:
            if not self.afford(2 * (self.size + len(self.tape.nodes) * STEP)):
                return
            try:
                changed = gradients(self.tape, variant)
            except Exception:  # a program that can't run so is no reading
                continue
            pairs = [(changed[v], self.right[v]) for v in self.leaves]
            self.found += self.read(
                variant, [None if a is None or b is None else a - b for a, b in pairs]
            )

    def pair(self):
        # Two variants at once, such as add up to the error in a sample of its entries.
        choices, rows = [], []
        for variant, sample in self.atoms:
            for c in _KNOWN[:3] if variant.free == "path" else _KNOWN[:1]:
                choices.append((variant, c))
                rows.append(c * sample)
        error = self.judge.sample(self.judge.errors, self.thin, cut=True)
        tried = _adding_up(np.array(rows), error, self.judge.slack) if len(rows) > 1 else []
        tried.sort(key=lambda pair: sum(choices[k][0].rank for k in pair))
        for i, j in tried[:PAIRS]:
            both = _both(choices[i], choices[j])
            if both and self.afford(self.size + len(self.tape.nodes) * STEP):
                self.found += self.judged(both)


def _adding_up(rows, error, slack):
    # The pairs of rows whose sum is the error: by the sorted sums of all entries, weighted.
    if not np.isfinite(error).all():
        return []
    weights = np.cos(1.7 * np.arange(rows.shape[1]) + 0.3)
    sums, wanted = rows @ weights, error @ weights
    order = np.argsort(sums, kind="stable")
    margin = slack * (np.abs(error) @ np.abs(weights) + np.abs(sums))
    low = np.searchsorted(sums[order], wanted - sums - margin)
    high = np.searchsorted(sums[order], wanted - sums + margin)
    near = [(i, j) for i in np.flatnonzero(high > low) for j in order[low[i] : high[i]] if i < j]
    limit = 10 * slack * np.abs(error).max()
    return [(i, j) for i, j in near if np.abs(rows[i] + rows[j] - error).max() <= limit]


def _thinned(tape, right, leaves):
    # {leaf: the places along its first axis that are compared}, for large leaves that only meet
    # matrix products, where a part of the gradient costs a part
    thin = {}
    for v in leaves:
        x = tape.values[v]
        ops = {tape.nodes[n].op.name for n, _ in tape.uses.get(v, ())}
        if np.size(x) > LARGE and ops == {"dot_general"} and right[v] is not None:
            thin[v] = np.unique(np.linspace(0, len(x) - 1, 5).astype(int))
    return thin


class _Judge:
    """What the hand did to each gradient, and whether a variant does the same.

    The arrays of a variant are in the order of the findings, None for a gradient that it leaves.
    """

    def __init__(self, tape, leaves, findings, eps):
        self.tape, self.leaves, self.findings = tape, leaves, findings
        self.errors = [f.hand - f.true if _comparable(f) else None for f in findings]
        self.wrong = [k for k, f in enumerate(findings) if f.wrong and self.errors[k] is not None]
        self.wrong.sort(key=lambda k: -self.errors[k].size)
        self.tolerance = eps**0.65
        self.slack = 10 * self.tolerance
        self.counts = sorted({n for f in findings for n in (*f.true.shape, f.true.size) if n > 1})

    def sample(self, arrays, thin, cut=False):
        """Some numbers of each gradient; arrays that hold all of it are cut as thin says."""
        parts = []
        for v, f, x in zip(self.leaves, self.findings, arrays, strict=True):
            places = thin.get(v, ...)
            size = f.true[places].size
            at = np.unique(np.linspace(0, size - 1, min(SAMPLE, size)).astype(int))
            x = np.zeros(size) if x is None else np.ravel(x[places] if cut else x)
            parts.append(x[at] if x.size == size else np.full(len(at), np.nan))
        return np.concatenate(parts)

    def fits(self, variant, moved, thin):
        """Whether a variant may explain a gradient, as far as it was computed."""
        c = self._times(variant, moved, thin)
        return c is not None and any(self._explains(k, c, moved[k], thin) for k in self.wrong)

    def reading(self, variant, moved):
        """The Reading of a variant, or None where it explains nothing."""
        c = self._times(variant, moved, {})
        if c is None:
            return None
        explained = [k for k in self.wrong if self._explains(k, c, moved[k], {})]
        if not explained or not self._telling(variant, [moved[k] for k in explained], c):
            return None
        others = [k for k, f in enumerate(self.findings) if k not in explained]
        whole = not any(self._changes(self.findings[k], c, moved[k]) for k in others)
        names, words, rank = variant.names, variant.words, variant.rank
        if variant.free == "path":
            names, words, more = self._counted(names, words, explained, c)
            rank += more
            if any(_decays(self.tape.values[self.leaves[k]], moved[k]) for k in explained):
                names = ("decay", *names)
        words = words if isinstance(words, tuple) else ((variant.site, words),)
        places = tuple(sorted(self.findings[k].place for k in explained))
        return Reading(names, words, places, rank + 2 * (not whole), whole)

    def _changes(self, f, c, moved):
        return moved is not None and bool(f.off(f.true + c * moved, f.true).any())

    def _times(self, variant, moved, thin):
        # How often the variant's difference is the error: for a free one, as the first gradient
        # says of which it is a multiple.
        if not variant.free:
            return 1.0
        for k in self.wrong:
            if moved[k] is None:
                continue
            error = self.errors[k][thin.get(self.leaves[k], ...)]
            square = (moved[k] * moved[k]).sum()
            c = (moved[k] * error).sum() / square if square > 0 else 0.0
            rest = error - c * moved[k]
            if abs(c) > 1e-9 and (rest * rest).sum() <= 1e-6 * (error * error).sum():
                return next((known for known in _KNOWN if abs(c - known) < self.slack), c)
        return None

    def _explains(self, k, c, moved, thin):
        if moved is None or not moved.any() or not np.isfinite(moved).all():
            return False
        f, places = self.findings[k], thin.get(self.leaves[k], ...)
        hand, value = f.hand[places], f.true[places] + c * moved
        rest = np.abs(hand - value).max()
        if rest > 1e-3 * np.abs(self.errors[k][places]).max():
            return False
        most = max(np.abs(hand).max(), np.abs(value).max())
        return bool(rest <= self.tolerance * most or thin or not f.off(value, hand).any())

    def _telling(self, variant, moved, c):
        # The digits that agree must be more than could in so many variants by chance, and than
        # were free to choose. Entries of one size are one number.
        sizes = np.concatenate([np.abs(m).ravel() for m in moved])
        entries = len(np.unique(np.round(sizes[sizes > 0] / sizes.max(), 4)))
        digits = -np.log10(self.tolerance)
        fitted = variant.free and c not in _KNOWN
        return entries * digits >= (14 if isinstance(variant.words, tuple) else 8) + (
            4 * digits if fitted else 0
        )

    def _counted(self, names, words, explained, c):
        # What is said of a path that counts 1 - c times.
        if c == 1:
            zeros = not any(self.findings[k].hand.any() for k in explained)
            return (("zeros", *names) if zeros else names), f"{words} is left out", 0
        if c == 2:
            return ("sign", *names), f"{words} has the wrong sign", 0
        times = 1 - c
        for n in self.counts:
            if n > 2 and abs(times - n / (n - 1)) < self.slack:
                return ("Bessel", "factor"), f"{words} counts n / (n - 1) times, n = {n}", 1
        paths = tuple(name for name in names if "path" in name)
        for n in self.counts:
            for power, number in ((1, f"{n}"), (-1, f"1/{n}"), (0.5, f"sqrt({n})")):
                if abs(times / n**power - 1) < self.slack:
                    return ("factor", *paths), f"{words} counts {number} times", 1
        return ("factor", *paths), f"{words} counts {times:.4g} times", 1 if c in _KNOWN else 2

    def settled(self, found):
        """Whether the readings that contradict no gradient explain all that is wrong."""
        return len({place for r in found if r.whole for place in r.places}) == len(self.wrong)


_KNOWN = (1.0, 2.0, -1.0, 0.5)  # a path is left out, has the wrong sign, counts twice, or half


def _best(found, most=8):
    # what explains more comes first, and each sentence once
    found = sorted(found, key=lambda r: (-len(r.places), r.rank))
    return list({(r.words, r.places): r for r in reversed(found)}.values())[::-1][:most]


def _both(*choices):
    # Two variants made at once; each with how often its change counts.
    hits, blocks, names, words = {}, {}, [], []
    for variant, c in choices:
        for n, change in variant.hits.items():
            hits.setdefault(n, []).append((change, c))
        if blocks.keys() & variant.blocks.keys():
            return None
        blocks |= variant.blocks
        names += ("sign",) if c == 2 else variant.names
        what = _PATHS[c] if variant.free == "path" else ""
        words.append((variant.site, variant.words + what))
    hits = {n: partial(_all_of, changes) for n, changes in hits.items()}
    rank = 3 + sum(variant.rank for variant, _ in choices)
    first, names = choices[0][0], tuple(dict.fromkeys(names))
    return first._replace(
        names=names, words=tuple(words), hits=hits, blocks=blocks, free="", rank=rank
    )


_PATHS = {1.0: " is left out", 2.0: " has the wrong sign", -1.0: " counts 2 times"}


def _all_of(changes, met):
    total = list(met.back)
    for change, c in changes:
        for i, (new, old) in enumerate(zip(change(met), met.back, strict=True)):
            if new is not old:
                moved = c * ((0 if new is None else new) - (0 if old is None else old))
                total[i] = (0 if total[i] is None else total[i]) + moved
    return total


def _comparable(f):
    return f.hand.shape == f.true.shape and np.isfinite(f.hand).all() and np.isfinite(f.true).all()


def _decays(x, error):
    # whether an error is a multiple of the parameter
    if x.size < 2 or not x.any() or x.shape != error.shape:
        return False
    c = (x * error).sum() / (x * x).sum()
    return bool(np.abs(error - c * x).max() <= 1e-6 * np.abs(error).max())
