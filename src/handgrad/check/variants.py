"""The backward pass again with one thing changed: what a classic mistake would have computed.

A variant runs on other operands: another upstream, another label, a value in another's place, a
branch of a fan-out shut. Each kind of variant is tried by itself, and all share a compilation.

Derivation: notebooks/32_checker.ipynb
"""

import itertools
from collections import Counter
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from handgrad.check.arrays import once
from handgrad.check.formulas import LABEL
from handgrad.check.jaxpr import gated
from handgrad.check.mistakes import Alternative, Hypothesis, Mistake
from handgrad.check.program import Program, dependence

LIMIT = 64  # a Jacobian with more rows is not built, nor are more variants of one kind tried
MEMORY = 2**24  # numbers that the variants of one run may hold together
WORK = 2**28  # numbers that all variants of a check may compute together


class Operands(NamedTuple):
    """What a backward pass depends on."""

    floats: list  # the differentiable arguments
    others: list  # the other arguments
    slots: dict  # by tap: what is added to its value, zeros
    own: dict  # by tap: the reader's own cotangent
    taken: dict  # by tap: whether it hands on the reader's cotangent in place of the true one


def exchanged(value, at, tap):
    """The value of a tap plus its slot, which on the way back receives the cotangent that arrives.

    The value's own producers receive the reader's cotangent instead, where it is taken, (32.6).
    """
    exchange = partial(_exchange, at.taken[tap])
    return jax.tree.map(exchange, value, at.slots[tap], at.own[tap])


@jax.custom_vjp
def _exchange(taken, value, slot, own):
    return value + slot


_exchange.defvjp(
    lambda taken, value, slot, own: (value + slot, (taken, own)),
    lambda residuals, d: (None, jnp.where(*residuals, d), d, jnp.zeros_like(d)),
)


class TooMuch(Exception):
    """More work than a check may take; what it was for is left untried."""


class Target(NamedTuple):
    """A value whose gradient is judged: a leaf of the arguments, or a tap."""

    tap: str | None
    place: int  # the leaf's number among those of (floats, slots)
    value: np.ndarray


class Suspects:
    """The alternatives of all gradients of one check, computed when the first of them is asked for.

    A gradient goes by its place: its leaf's number among those of (at.floats, at.slots).
    """

    def __init__(self, total, at, values, mended=tuple):
        """total(at) is the scalar loss, at its Operands, and values(at) what the taps see there.

        mended() is what the reader's own rule gives without a mistake: pairs of a Mistake and the
        arrays by their places.
        """
        self.at, self.values, self.seen = at, values, once(values)
        self.mended = cache(lambda: list(mended()))
        self.program = cache(lambda: Program(total, at))
        self.again = cache(self._again)
        self.targets = cache(lambda: _targets(at, self.seen(at) if at.slots else {}))
        self.after = cache(self._after)
        self._tried = cache(self._try)

    def of_argument(self, j):
        """The place of the first leaf of the j-th differentiable argument."""
        return len(jax.tree.leaves(self.at.floats[:j]))

    def of_tap(self, name):
        """The place of the first leaf of the tap of that name."""
        before = [self.at.slots[tap] for tap in sorted(self.at.slots) if tap < name]
        return len(jax.tree.leaves((self.at.floats, before)))

    def hypotheses(self, place):
        """The Hypotheses on the gradient at a place, one for each kind of variants."""
        return [Hypothesis(kind.what, partial(self._of_kind, kind, place)) for kind in KINDS]

    def evidence(self, place):
        """What is known of the gradient at a place, as keywords of Wrong."""
        evidence = {
            "counts": self.program().sizes(),
            "constants": frozenset(self.program().constants()),
            "ids": tuple(map(np.asarray, _ids(self.again().at.others))),
        }
        target = next((t for t in self.targets() if t.place == place), None)
        if target is not None:
            evidence["value"] = target.value
            evidence["at_a_kink"] = lambda places: kinked(self.again(), target, places)
            evidence["downstream"] = tuple(
                (np.asarray(self.at.own[tap]), partial(self._forward, target, tap))
                for tap in self.after()[place]
                if np.shape(self.at.own[tap]) == target.value.shape
            )
        return evidence

    def _again(self):
        # What it closes over can be changed as its other arguments can.
        ids, given = self.program().ids(), len(self.at.others)
        at = self.at._replace(others=[*self.at.others, *ids.values()])

        def total(at):
            mine, closed_over = at.others[:given], at.others[given:]
            others = dict(zip(ids, closed_over, strict=True))
            return self.program().run(at._replace(others=mine), others)

        return Again(total, at, self.program().numbers())

    def _after(self):
        # by place: the taps that come after it in the forward pass and hand on the reader's own
        def seen(floats, slots):
            return self.values(self.at._replace(floats=floats, slots=slots))

        taps = [tap for tap in sorted(self.at.slots) for _ in jax.tree.leaves(self.at.slots[tap])]
        reached = dict.fromkeys(range(len(jax.tree.leaves(self.at.floats)) + len(taps)), ())
        own = {t.place: t.tap for t in self.targets()}
        needs = dependence(seen, self.at.floats, self.at.slots)
        for tap, places in zip(taps, needs, strict=True):
            for place in places:
                after = self.at.taken[tap] and own.get(place) != tap
                if after and tap not in reached[place]:
                    reached[place] = (*reached[place], tap)
        return reached

    def _of_kind(self, kind, place):
        found, problem = self._tried(kind)
        yield from (alternative for where, alternative in found if where == place)
        if problem:  # it is met again by every gradient that asks
            raise problem

    def _try(self, kind):
        found = []
        try:
            found.extend(kind.alternatives(self))
        except Exception as problem:
            return found, problem
        return found, None

    def _forward(self, target, tap, x):
        return np.asarray(self.seen(_put(self.at, target, x))[tap])


class Again:
    """The loss and its backward pass at many operands, a bounded number of times.

    The rows of a run are stacked, a few at a time, and all runs share one compilation.
    """

    def __init__(self, total, at, numbers):
        """numbers is how many of them total(at) computes."""
        self.total, self.at = total, at
        self.rows = max(1, min(LIMIT, MEMORY // (1 + 4 * numbers)))
        self.left = WORK // (1 + 4 * numbers)
        self.gated = cache(lambda: gated(total, at))
        self._losses = cache(lambda: self._compiled(total))
        self._backward = cache(lambda: self._compiled(self._gradients))

    def losses(self, rows):
        """The loss at each of the operands, or TooMuch."""
        return [row[0] for row in self._run(self._losses(), [(at,) for at in rows])]

    def gradients(self, rows, gates=None):
        """The gradients at each of the operands, by their places; or TooMuch.

        gates are the weights of the uses of values that are used several times, (32.8).
        """
        open_ = np.ones(len(self.gated()[1]))
        gates = [open_ for _ in rows] if gates is None else gates
        return self._run(self._backward(), list(zip(gates, rows, strict=True)))

    def _gradients(self, gates, operands):
        def of(floats, slots):
            return self.gated()[0](gates, operands._replace(floats=floats, slots=slots))

        return jax.tree.leaves(jax.grad(of, argnums=(0, 1))(operands.floats, operands.slots))

    def _compiled(self, f):
        return once(jax.vmap(f) if self.rows > 1 else f)

    def _run(self, f, rows):
        if len(rows) > self.left:
            raise TooMuch
        self.left -= len(rows)
        results = []
        for start in range(0, len(rows), self.rows):
            some = rows[start : start + self.rows]
            if self.rows == 1:
                results.append(jax.tree.leaves(jax.device_get(f(*some[0]))))
                continue
            padded = [*some, *[some[-1]] * (self.rows - len(some))]
            arrays = jax.tree.leaves(jax.device_get(f(*_stacked(padded))))
            results += [[array[k] for array in arrays] for k in range(len(some))]
        return results


def kinked(again, target, places):
    """Whether the loss has two slopes at every one of these entries of the target."""
    eps = float(jnp.finfo(target.value.dtype).eps)
    step = eps**0.5 * max(np.abs(target.value).max(initial=0.0), 1e-3)
    sides = [again.at]
    for place in places:
        for t in (step, -step):
            moved = np.array(target.value)
            moved[place] += t
            sides.append(_put(again.at, target, moved))
    here, *values = map(float, again.losses(sides))
    up, down = (np.array(values[0::2]) - here) / step, (here - np.array(values[1::2])) / step
    rounding = 16 * eps * abs(here) / step
    return bool((np.abs(up - down) > 0.02 * np.maximum(np.abs(up), np.abs(down)) + rounding).all())


def _stacked(rows):
    # NumPy's way needs no compilation; what it can't hold, such as random keys, JAX stacks
    def stack(*leaves):
        known = all(isinstance(jnp.result_type(leaf), np.dtype) for leaf in leaves)
        return (np if known else jnp).stack(leaves)

    return jax.tree.map(stack, *rows)


def _targets(at, values):
    # the leaves of the arguments, and the taps that are one array
    targets = [Target(None, i, np.asarray(x)) for i, x in enumerate(jax.tree.leaves(at.floats))]
    place = len(targets)
    for tap in sorted(at.slots):  # as JAX orders the leaves of a dict
        if hasattr(values[tap], "shape"):
            targets.append(Target(tap, place, np.asarray(values[tap])))
        place += len(jax.tree.leaves(at.slots[tap]))
    return targets


def _ids(others):
    return [y for y in jax.tree.leaves(others) if jnp.issubdtype(jnp.result_type(y), jnp.integer)]


def _put(at, target, value):
    # The target's value replaced; everything after it follows.
    if target.tap is not None:
        return at._replace(slots=at.slots | {target.tap: value - target.value})
    leaves, tree = jax.tree.flatten(at.floats)
    leaves[target.place] = value
    return at._replace(floats=jax.tree.unflatten(tree, leaves))


class Kind(NamedTuple):
    """A kind of variants: what is tried, and a function of the Suspects that tries it.

    It yields pairs of a place and an Alternative for the gradient there.
    """

    what: str
    alternatives: object


KINDS = []


def _kind(what):
    def register(f):
        KINDS.append(Kind(what, f))
        return f

    return register


def _everywhere(again, pairs):
    # one Mistake each, which all gradients may show
    mistakes, rows = zip(*pairs, strict=True) if pairs else ((), ())
    for mistake, arrays in zip(mistakes, again.gradients(rows), strict=True):
        for place, value in enumerate(arrays):
            yield place, Alternative((mistake,), value)


def _single(suspects):
    # the taps that are one array and hand on the reader's own cotangent: their targets by name
    targets = [t for t in suspects.targets() if t.tap is not None]
    return {t.tap: t for t in targets if suspects.at.taken[t.tap]}


@_kind("the upstream left out")
def _without_upstream(suspects):
    again = suspects.again()
    taken = [tap for tap in again.at.own if again.at.taken[tap]]
    yours = " and ".join("d" + tap for tap in taken)
    words = f"the upstream {yours} is missing: this is the local derivative only"
    ones = again.at._replace(own=jax.tree.map(np.ones_like, again.at.own))
    yield from _everywhere(again, [(Mistake("upstream", words), ones)] if taken else [])


@_kind("what comes after it, passed on")
def _of_upstream(suspects):
    # What a step from the target to a tap would give with a part of its local factor missing.
    taps = {t.tap: t for t in suspects.targets()}
    for target in suspects.targets():
        for tap in suspects.after()[target.place]:
            d, x = np.asarray(suspects.at.own[tap]), target.value
            if tap not in taps or d.shape != x.shape:
                continue
            z = taps[tap].value
            words = f"the local factor is missing: this is the upstream d{tap}, passed through"
            yield target.place, Alternative((Mistake("local factor", words),), d)
            words = "multiplied by the value instead of the slope"
            for value in (x, z):
                yield target.place, Alternative((Mistake("value", words),), d * value)
            for axis in (*range(x.ndim - 1), None) if x.ndim else ():
                # if this step is a softmax, or its logarithm: other axes
                over = "all axes" if axis is None else f"axis {axis}"
                words = f"summed over the wrong axis: over {over}, not the last"
                for value in (
                    z * (d - (z * d).sum(axis, keepdims=True)),
                    d - np.exp(z) * d.sum(axis, keepdims=True),
                ):
                    yield target.place, Alternative((Mistake("axis", words),), value)


@_kind("other labels")
def _other_labels(suspects):
    again = suspects.again()
    pairs = []
    for i, y in enumerate(again.at.others):
        if jnp.issubdtype(jnp.result_type(y), jnp.integer):
            y = np.asarray(y)
            for other in (y + 1, y - 1, np.minimum(y + 1, y.max()), np.maximum(y - 1, 0)):
                others = [*again.at.others[:i], other, *again.at.others[i + 1 :]]
                pairs.append((LABEL, again.at._replace(others=others)))
    yield from _everywhere(again, pairs)


@_kind("factors transposed")
def _transposed(suspects):
    again = suspects.again()
    words = "a factor is transposed: the square matrix that it is multiplied by"
    square = [
        t
        for t in suspects.targets()
        if t.tap is None and t.value.ndim == 2 and len(set(t.value.shape)) == 1
    ]
    mistake = Mistake("transposed", words)
    yield from _everywhere(again, [(mistake, _put(again.at, t, t.value.T)) for t in square])


@_kind("values of other taps")
def _at_another_value(suspects):
    again = suspects.again()
    pairs = [
        (target, other)
        for target in suspects.targets()
        for other in _single(suspects).values()
        if other.tap != target.tap and other.value.shape == target.value.shape
    ]
    pairs.sort(key=lambda pair: pair[1].tap not in suspects.after()[pair[0].place])
    pairs = pairs[:LIMIT]
    rows = again.gradients([_put(again.at, target, other.value) for target, other in pairs])
    for (target, other), arrays in zip(pairs, rows, strict=True):
        words = f"taken at another value, {other.tap}, instead of its own"
        yield target.place, Alternative((Mistake("output", words),), arrays[target.place])


@_kind("one example alone")
def _of_examples(suspects):
    again = suspects.again()
    batch = _batch(again.at)
    n = int(np.prod(batch, dtype=int))
    if n < 2:
        return
    number = np.arange(n).reshape(batch)
    masks = [(f"example {k}", number == k) for k in range(n)] if n <= LIMIT else []
    if len(batch) > 1 or not masks:
        for axis, size in enumerate(batch):
            along = np.arange(size).reshape([-1 if a == axis else 1 for a in range(len(batch))])
            for k in range(size) if axis == 0 and size <= LIMIT // 2 else (0, size - 1):
                where = f"example {k}" if axis == 0 else f"place {k} along axis {axis}"
                masks.append((where, np.broadcast_to(along == k, batch)))
    own = again.at.own
    rows = [again.at._replace(own=jax.tree.map(partial(_masked, mask), own)) for _, mask in masks]
    results = again.gradients(rows)
    for (where, _), arrays in zip(masks, results, strict=True):
        words = f"{where} alone: the cotangents of all examples add"
        for place, value in enumerate(arrays):
            yield place, Alternative((Mistake("batch", words),), value)
    words = "summed over the wrong axis: sum over the batch, axis 0"
    for place, value in enumerate(results[0]) if n <= LIMIT else ():
        every = np.stack([arrays[place] for arrays in results[:n]])
        for axis in range(1, value.ndim + 1):
            yield place, Alternative((Mistake("axis", words),), every.sum(axis=axis))


def _batch(at):
    # The leading axes that most cotangents share; the last one is of features where there are more.
    shapes = [d.shape for tap in at.own if at.taken[tap] for d in jax.tree.leaves(at.own[tap])]
    leading = [shape[:-1] if len(shape) > 1 else shape for shape in shapes]
    first = Counter(shape[0] for shape in leading if shape and shape[0] > 1).most_common(1)
    leading = [shape for shape in leading if shape and shape[0] == first[0][0]] if first else []
    shared = itertools.takewhile(lambda sizes: len(set(sizes)) == 1, zip(*leading, strict=False))
    return tuple(sizes[0] for sizes in shared)


def _masked(mask, d):
    if np.shape(d)[: mask.ndim] != mask.shape:
        return np.asarray(d)  # it is not of examples
    return np.where(mask.reshape(*mask.shape, *[1] * (d.ndim - mask.ndim)), d, np.zeros_like(d))


DUPLICATES = Mistake(
    "duplicates", "equal ids overwrite each other: add up the cotangents of the same row"
)


@_kind("equal ids")
def _overwritten(suspects):
    # Where equal ids pick the same row, the last or the first cotangent stands in place of the sum.
    every = map(np.asarray, _ids(suspects.again().at.others))
    for target, ids, z in itertools.product(suspects.targets(), every, _single(suspects).values()):
        if ids.ndim and z.value.shape == ids.shape + target.value.shape[1:]:
            cotangents = np.asarray(suspects.at.own[z.tap]).reshape(ids.size, -1)
            for order in (slice(None), slice(None, None, -1)):
                rows = np.zeros((len(target.value), cotangents.shape[1]))
                if ids.size and ids.min() >= 0 and ids.max() < len(rows):
                    rows[ids.ravel()[order]] = cotangents[order]
                    rows = rows.reshape(target.value.shape)
                    yield target.place, Alternative((DUPLICATES,), rows)


@_kind("the diagonal alone")
def _diagonal(suspects):
    again = suspects.again()
    for tap, z in _single(suspects).items():
        size = z.value.size
        targets = [
            t
            for t in suspects.targets()
            if tap in suspects.after()[t.place] and t.value.shape == z.value.shape
        ]
        if not targets or not 1 < size <= LIMIT:
            continue
        units = np.eye(size + 1, size).reshape(size + 1, *z.value.shape)  # and one of zeros
        units = units.astype(np.asarray(again.at.own[tap]).dtype)
        rows = [again.at._replace(own=again.at.own | {tap: unit}) for unit in units]
        *results, blank = again.gradients(rows)
        for target in targets:
            x, place = target.value, target.place
            slopes = [arrays[place] - blank[place] for arrays in results]
            diagonal = np.diag(np.reshape(slopes, (size, size))).reshape(x.shape)
            words = "only the diagonal of the Jacobian: the entries off it count too"
            value = diagonal * np.asarray(again.at.own[tap]) + blank[place]
            yield place, Alternative((Mistake("diagonal", words),), value)


BRANCH = Mistake(
    "branch",
    "one branch of a fan-out only: a value is used more than once, and its cotangents add",
)


@_kind("branches of a fan-out")
def _branches(suspects):
    again = suspects.again()
    gates = list(_shut(again.gated()[1]))
    for arrays in again.gradients([again.at] * len(gates), gates):
        for place, value in enumerate(arrays):
            yield place, Alternative((BRANCH,), value)


def _shut(uses):
    # every use shut alone and, where there are more than two, every use open alone
    uses = np.asarray(uses)
    this = np.eye(len(uses), dtype=bool)
    for k, value in enumerate(uses[:LIMIT]):
        yield np.where(this[k], 0.0, 1.0)
        if (uses == value).sum() > 2:
            yield np.where((uses == value) & ~this[k], 0.0, 1.0)
