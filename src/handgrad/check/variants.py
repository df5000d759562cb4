"""The backward pass again with one thing changed: what a classic mistake would have computed.

A variant runs on other operands: another upstream, another label, a value in another's place, a
branch of a fan-out shut. All variants of a backward pass run in one compilation.

Derivation: notebooks/32_checker.ipynb
"""

import itertools
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from handgrad.check.arrays import once
from handgrad.check.jaxpr import gated
from handgrad.check.mistakes import LABEL, Alternative, Mistake

LIMIT = 64  # a Jacobian with more rows is not built, nor are more branches or examples tried
MEMORY = 2**24  # numbers that the operands of one kind of variants may hold together


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
        self.total, self.at, self.values = total, at, values
        self.mended = cache(lambda: list(mended()))
        self.here = cache(lambda: values(at))
        self.alternatives = cache(lambda: alternatives(total, at, self.here()))
        self.totals = once(jax.vmap(total))

    def of_argument(self, j):
        """The place of the first leaf of the j-th differentiable argument."""
        return len(jax.tree.leaves(self.at.floats[:j]))

    def of_tap(self, name):
        """The place of the first leaf of the tap of that name."""
        before = [self.at.slots[tap] for tap in sorted(self.at.slots) if tap < name]
        return len(jax.tree.leaves((self.at.floats, before)))

    def evidence(self, place):
        """What is known of the gradient at a place, as keywords of Evidence."""
        targets = {t.place: t for t in _targets(self.at, self.here())}
        sizes = [x.shape for x in jax.tree.leaves((self.at.floats, self.here()))]
        counts = {int(n) for s in sizes for n in (*s, np.prod(s[:-1]), np.prod(s))}
        evidence = {
            "counts": tuple(sorted(counts - {0, 1})),
            "alternatives": lambda: self.alternatives()[place],
            "mended": lambda: [(mistake, arrays[place]) for mistake, arrays in self.mended()],
        }
        if place in targets:
            target = targets[place]
            evidence["at_a_kink"] = lambda places: kinked(self.totals, self.at, target, places)
            for above in (t.tap for t in targets.values() if t.tap not in (None, target.tap)):
                dz = np.asarray(self.at.own[above])
                if self.at.taken[above] and dz.shape == target.value.shape:
                    evidence["argument"], evidence["upstream"] = target.value, dz
                    evidence["forward"] = lambda x, above=above: self._forward(target, x, above)
        return evidence

    def _forward(self, target, x, above):
        return np.asarray(self.values(_put(self.at, target, x))[above])


def kinked(totals, at, target, places):
    """Whether the loss has two slopes at every one of these entries of the target.

    totals is the loss of many operands at once.
    """
    places = places[: max(_room(at) // 2, 1)]
    eps = float(jnp.finfo(target.value.dtype).eps)
    step = eps**0.5 * max(np.abs(target.value).max(initial=0.0), 1e-3)
    sides = [at]
    for place in places:
        for t in (step, -step):
            moved = np.array(target.value)
            moved[place] += t
            sides.append(_put(at, target, moved))
    rows = 2 ** len(sides).bit_length()  # few numbers of rows, so that few are compiled
    here, *values = np.asarray(totals(_stacked(sides + [at] * (rows - len(sides)))))[: len(sides)]
    up, down = (np.array(values[0::2]) - here) / step, (here - np.array(values[1::2])) / step
    rounding = 16 * eps * abs(here) / step
    return bool((np.abs(up - down) > 0.02 * np.maximum(np.abs(up), np.abs(down)) + rounding).all())


def alternatives(total, at, values):
    """What classic mistakes would have computed, a list of Alternatives for each judged gradient.

    total(at) is the scalar loss, at its Operands, and values what the taps saw. The lists stand in
    the order of the leaves of (at.floats, at.slots).
    """
    f, uses = gated(total, at)
    targets = _targets(at, values)
    single = {t.tap: t.value for t in targets if t.tap is not None and at.taken[t.tap]}

    def backward(gates, operands):
        def of(floats, slots):
            return f(gates, operands._replace(floats=floats, slots=slots))

        return jax.tree.leaves(jax.grad(of, argnums=(0, 1))(operands.floats, operands.slots))

    room, batch = _room(at), _batch(at)
    open_ = np.ones(len(uses))
    plan = [(("all", BRANCH), gates, at) for gates in _shut(uses, room)]
    plan += [(key, open_, operands) for key, operands in _changed(at, targets, single, batch)]
    plan = plan if room else []
    found = [[] for _ in range(len(jax.tree.leaves((at.floats, at.slots))))]
    if plan:
        stacked = _stacked([row[1:] for row in plan])
        results = jax.device_get(once(jax.vmap(backward))(*stacked))
        for place, result in enumerate(results):
            for (key, *_), value in zip(plan, result, strict=True):
                if key[0] == "all" or key[:2] == ("only", place):
                    found[place].append(Alternative((key[-1],), value))
            examples = [v for (key, *_), v in zip(plan, result, strict=True) if key[0] == "example"]
            found[place] += _of_examples(examples, batch)
        for target in targets:
            found[target.place] += _overwritten(target, at, single)
            rows = {key: v for (key, *_), v in zip(plan, results[target.place], strict=True)}
            for tap in single:
                if tap != target.tap:
                    found[target.place] += _of_upstream(target, tap, at.own, single, rows)
    return found


def _stacked(rows):
    # NumPy's way needs no compilation; what it can't hold, such as random keys, JAX stacks
    def stack(*leaves):
        known = all(isinstance(jnp.result_type(leaf), np.dtype) for leaf in leaves)
        return (np if known else jnp).stack(leaves)

    return jax.tree.map(stack, *rows)


def _room(at):
    # how many rows, branches or examples may be tried
    return min(LIMIT, MEMORY // (1 + sum(np.size(leaf) for leaf in jax.tree.leaves(at))))


def _targets(at, values):
    # the leaves of the arguments, and the taps that are one array
    targets = [Target(None, i, np.asarray(x)) for i, x in enumerate(jax.tree.leaves(at.floats))]
    place = len(targets)
    for tap in sorted(at.slots):  # as JAX orders the leaves of a dict
        if hasattr(values[tap], "shape"):
            targets.append(Target(tap, place, np.asarray(values[tap])))
        place += len(jax.tree.leaves(at.slots[tap]))
    return targets


BRANCH = Mistake(
    "branch",
    "one branch of a fan-out only: a value is used more than once, and its cotangents add",
)


DUPLICATES = Mistake(
    "duplicates", "equal ids overwrite each other: add up the cotangents of the same row"
)


def _shut(uses, room):
    # every use shut alone and, where there are more than two, every use open alone
    uses = np.asarray(uses)
    this = np.eye(len(uses), dtype=bool)
    for k, value in enumerate(uses[:room]):
        yield np.where(this[k], 0.0, 1.0)
        if (uses == value).sum() > 2:
            yield np.where((uses == value) & ~this[k], 0.0, 1.0)


def _changed(at, targets, single, batch):
    # (key, operands): a key says which mistake, and whose gradient shows it
    taken = [tap for tap in at.own if at.taken[tap]]
    if taken:
        yours = " and ".join("d" + tap for tap in taken)
        missing = Mistake(
            "upstream", f"the upstream {yours} is missing: this is the local derivative only"
        )
        yield ("all", missing), at._replace(own=jax.tree.map(np.ones_like, at.own))
    for i, y in enumerate(at.others):
        if jnp.issubdtype(jnp.result_type(y), jnp.integer):
            y = np.asarray(y)
            for other in (y + 1, y - 1, np.minimum(y + 1, y.max()), np.maximum(y - 1, 0)):
                others = [*at.others[:i], other, *at.others[i + 1 :]]
                yield ("all", LABEL), at._replace(others=others)
    for target in targets:
        x = target.value
        if target.tap is None and x.ndim == 2 and x.shape[0] == x.shape[1]:
            words = "a factor is transposed: the square matrix that it is multiplied by"
            yield ("all", Mistake("transposed", words)), _put(at, target, x.T)
        for tap, value in single.items():
            if tap != target.tap and value.shape == x.shape:
                words = f"taken at another value, {tap}, instead of its own"
                mistake = Mistake("output", words)
                yield ("only", target.place, mistake), _put(at, target, value)
    if 1 < (n := int(np.prod(batch, dtype=int))) <= _room(at):
        for k in range(n):
            mask = np.reshape(np.arange(n) == k, batch)
            own = jax.tree.map(partial(_masked, mask), {tap: at.own[tap] for tap in taken})
            yield ("example", k), at._replace(own=at.own | own)
    for tap, value in single.items():
        others = [t for t in targets if t.tap != tap and t.value.shape == value.shape]
        if others and 1 < value.size <= _room(at):
            blank = np.zeros_like(at.own[tap])
            yield ("blank", tap), at._replace(own=at.own | {tap: blank})
            for k in range(value.size):
                row = (np.arange(value.size) == k).reshape(value.shape).astype(blank.dtype)
                yield ("row", tap, k), at._replace(own=at.own | {tap: row})


def _put(at, target, value):
    # The target's value replaced; everything after it follows.
    if target.tap is not None:
        return at._replace(slots=at.slots | {target.tap: value - target.value})
    leaves, tree = jax.tree.flatten(at.floats)
    leaves[target.place] = value
    return at._replace(floats=jax.tree.unflatten(tree, leaves))


def _batch(at):
    # The leading axes that all cotangents share; the last one is of features where there are more.
    shapes = [d.shape for tap in at.own if at.taken[tap] for d in jax.tree.leaves(at.own[tap])]
    leading = [shape[:-1] if len(shape) > 1 else shape for shape in shapes]
    shared = itertools.takewhile(lambda sizes: len(set(sizes)) == 1, zip(*leading, strict=False))
    return tuple(sizes[0] for sizes in shared)


def _masked(mask, d):
    return np.where(mask.reshape(*mask.shape, *[1] * (d.ndim - mask.ndim)), d, np.zeros_like(d))


def _of_examples(examples, batch):
    along = np.reshape(examples, (*batch, -1)).sum(axis=tuple(range(1, len(batch))))
    slices = along.reshape(len(along), *np.shape(examples)[1:]) if len(batch) > 1 else []
    for k, value in [*enumerate(examples), *enumerate(slices)]:
        words = f"example {k} alone: the cotangents of all examples add"
        yield Alternative((Mistake("batch", words),), value)
    if examples:
        every = np.stack(examples)
        for axis in range(1, every.ndim):
            words = "summed over the wrong axis: sum over the batch, axis 0"
            yield Alternative((Mistake("axis", words),), every.sum(axis=axis))


def _overwritten(target, at, single):
    # Where equal ids pick the same row, the last or the first cotangent stands in place of the sum.
    for ids, (tap, z) in itertools.product(map(np.asarray, at.others), single.items()):
        if ids.dtype.kind == "i" and ids.ndim and z.shape == ids.shape + target.value.shape[1:]:
            cotangents = np.asarray(at.own[tap]).reshape(ids.size, -1)
            for order in (slice(None), slice(None, None, -1)):
                rows = np.zeros((len(target.value), cotangents.shape[1]))
                if ids.size and ids.min() >= 0 and ids.max() < len(rows):
                    rows[ids.ravel()[order]] = cotangents[order]
                    yield Alternative((DUPLICATES,), rows.reshape(target.value.shape))


def _of_upstream(target, tap, own, single, rows):
    # What a step from the target to the tap would give with a part of its local factor missing.
    d, x, z = np.asarray(own[tap]), target.value, single[tap]
    if d.shape != x.shape:
        return
    words = f"the local factor is missing: this is the upstream d{tap}, passed through"
    yield Alternative((Mistake("local factor", words),), d)
    words = "multiplied by the value instead of the slope"
    for value in (x, z):
        yield Alternative((Mistake("value", words),), d * value)
    if ("blank", tap) in rows:
        slopes = [rows["row", tap, k] - rows["blank", tap] for k in range(x.size)]
        diagonal = np.diag(np.reshape(slopes, (x.size, x.size))).reshape(x.shape)
        words = "only the diagonal of the Jacobian: the entries off it count too"
        yield Alternative((Mistake("diagonal", words),), diagonal * d + rows["blank", tap])
    if x.ndim:
        # if this step is a softmax, or its logarithm: other axes
        for axis in (*range(x.ndim - 1), None):
            over = "all axes" if axis is None else f"axis {axis}"
            words = f"summed over the wrong axis: over {over}, not the last"
            for value in (
                z * (d - (z * d).sum(axis, keepdims=True)),
                d - np.exp(z) * d.sum(axis, keepdims=True),
            ):
                yield Alternative((Mistake("axis", words),), value)
