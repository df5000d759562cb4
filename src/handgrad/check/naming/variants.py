"""The backward pass again with one thing changed: what a classic mistake would have computed.

A variant runs on other operands: another upstream, another label, a value in another's place.
Each kind of variant is tried by itself, and all share a compilation.

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
from handgrad.check.naming.formulas import LABEL
from handgrad.check.naming.mistakes import Alternative, Hypothesis, Mistake
from handgrad.check.naming.program import Program, dependence, is_discrete

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
        self.total, self.at, self.values, self.seen = total, at, values, once(values)
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
            "ids": tuple(y for y, picks in filter(None, self.discrete()) if picks),
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
        within, given = self.program().discrete(), len(self.at.others)
        at = self.at._replace(others=[*self.at.others, *within.values()])

        def total(at):
            mine, closed_over = at.others[:given], at.others[given:]
            others = dict(zip(within, closed_over, strict=True))
            return self.program().run(at._replace(others=mine), others)

        return Again(total, at, self.program().numbers())

    def discrete(self):
        """The arrays of ids, labels and masks: pairs of one, and whether it picks entries.

        One that neither picks entries nor is compared, such as an array of counts, is none.

        They stand in the order of the leaves of again().at.others, None for what is neither.
        """
        jaxpr, before = self.program().closed.jaxpr, len(jax.tree.leaves(self.at.floats))
        given = len(jax.tree.leaves(self.at.others))
        variables = [
            *jaxpr.invars[before : before + given],
            *(jaxpr.constvars[k] for k in self.program().discrete()),
        ]
        leaves, program = jax.tree.leaves(self.again().at.others), self.program()
        return [
            (np.asarray(y), program.picks(v))
            if is_discrete(y) and (program.picks(v) or program.compares(v))
            else None
            for y, v in zip(leaves, variables, strict=True)
        ]

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
        values = self.values if isinstance(x, jax.core.Tracer) else self.seen
        return values(_put(self.at, target, x))[tap]


class Again:
    """The loss and its backward pass at many operands, a bounded number of times.

    The rows of a run are stacked, a few at a time, and all runs share one compilation.
    """

    def __init__(self, total, at, numbers):
        """numbers is how many of them total(at) computes."""
        self.total, self.at = total, at
        self.rows = max(1, min(LIMIT, MEMORY // (1 + 4 * numbers)))
        self.left = WORK // (1 + 4 * numbers)
        self._losses = cache(lambda: self._compiled(total))
        self._backward = cache(lambda: self._compiled(self._gradients))

    def losses(self, rows):
        """The loss at each of the operands, or TooMuch."""
        return [row[0] for row in self._run(self._losses(), [(at,) for at in rows])]

    def gradients(self, rows):
        """The gradients at each of the operands, by their places; or TooMuch."""
        return self._run(self._backward(), [(at,) for at in rows])

    def _gradients(self, operands):
        def of(floats, slots):
            return self.total(operands._replace(floats=floats, slots=slots))

        return jax.tree.leaves(jax.grad(of, argnums=(0, 1))(operands.floats, operands.slots))

    def _compiled(self, f):
        # one after another: side by side, a convolution with kernels of its own in every row takes
        # a hundred times as long
        in_turn = lambda *rows: jax.lax.map(lambda row: f(*row), rows)  # noqa: E731
        return once(in_turn if self.rows > 1 else f)

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


@_kind("other labels, ids and masks")
def _other_labels(suspects):
    again = suspects.again()
    leaves, tree = jax.tree.flatten(again.at.others)
    pairs = []
    for i, known in enumerate(suspects.discrete()):
        for mistake, other in _others(*known, suspects.program().sizes()) if known else ():
            others = jax.tree.unflatten(tree, [*leaves[:i], other, *leaves[i + 1 :]])
            pairs.append((mistake, again.at._replace(others=others)))
    yield from _everywhere(again, pairs[:LIMIT])


def _others(y, picks, sizes):
    # (mistake, another array in place of one of labels, ids, lengths, or truth values)
    if y.dtype.kind == "b":
        words = "the mask is left out: nothing flows back through what is masked"
        yield Mistake("masked", words), np.ones_like(y)
        yield Mistake("masked", "the mask is the wrong way round"), ~y
        return
    if y.dtype.kind not in "iu" or not y.size:
        return
    if not picks:
        words = "a mask reaches one place too far, or too short: it is compared with another number"
        yield from ((Mistake("masked", words), other) for other in (y + 1, y - 1))
        words = "the mask of the first stands for all of them"
        yield Mistake("masked", words), np.broadcast_to(y[:1], y.shape)
        words = "the mask is left out: nothing flows back through what is masked"
        yield from ((Mistake("masked", words), np.full_like(y, k)) for k in (max(sizes), 0))
        return
    words = "the label, or the id, of the first stands for all of them"
    yield Mistake("label", words), np.broadcast_to(y[:1], y.shape)
    top = int(y.max())
    for n in sorted({top + 1, *(n for n in sizes if n > top)})[:3]:
        yield from ((LABEL, np.mod(other, n)) for other in (y + 1, y - 1))
    for other in (y + 1, y - 1, np.minimum(y + 1, top), np.maximum(y - 1, 0)):
        yield LABEL, other


@_kind("factors transposed or reversed")
def _rearranged(suspects):
    again = suspects.again()
    pairs = []
    for target in suspects.targets():
        x = target.value
        axes = range(x.ndim) if target.tap is None else ()
        for i, j in itertools.combinations(axes, 2):
            if x.shape[i] == x.shape[j]:
                words = "a factor is transposed: the square matrix that it is multiplied by"
                other = np.swapaxes(x, i, j)
                pairs.append((Mistake("transposed", words), _put(again.at, target, other)))
        for some in ((0,), (1,), (0, 1)) if len(axes) > 2 else ():
            over = " and ".join(map(str, some))
            words = f"a factor, such as the kernel, is reversed along axis {over}"
            other = np.flip(x, some)
            pairs.append((Mistake("reversed", words), _put(again.at, target, other)))
    yield from _everywhere(again, pairs[:LIMIT])


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
    words = "every example has the first one's cotangent"
    pair = Mistake("batch", words), again.at._replace(own=jax.tree.map(partial(_first, batch), own))
    yield from _everywhere(again, [pair])
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


def _first(batch, d):
    return np.broadcast_to(d[:1], d.shape) if np.shape(d)[:1] == batch[:1] else np.asarray(d)


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
    every = [y for y, picks in filter(None, suspects.discrete()) if picks and y.dtype.kind in "iu"]
    for target, ids, z in itertools.product(suspects.targets(), every, _single(suspects).values()):
        if ids.ndim and z.value.shape == ids.shape + target.value.shape[1:]:
            cotangents = np.asarray(suspects.at.own[z.tap]).reshape(ids.size, -1)
            for order in (slice(None), slice(None, None, -1)):
                rows = np.zeros((len(target.value), cotangents.shape[1]))
                if ids.size and ids.min() >= 0 and ids.max() < len(rows):
                    rows[ids.ravel()[order]] = cotangents[order]
                    rows = rows.reshape(target.value.shape)
                    yield target.place, Alternative((DUPLICATES,), rows)
