"""What is known of a rule's cotangents from its plain forward alone: three oracles.

Derivation: notebooks/08_checking.ipynb, and notebooks/32_checker.ipynb for the differences.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten, tree_leaves, tree_map, tree_unflatten

from handgrad.check.arrays import (
    argument_names,
    as_arrays,
    as_float64,
    float_arguments,
    floats_of,
    is_float,
    once,
    put,
    traced,
)
from handgrad.check.compare import born_in, size
from handgrad.check.jaxpr import birth_of_nan, changes
from handgrad.check.rounding import Rounding, measure_of

STEP, TOLERANCE = 2.0**-13, 1e-8  # of the central differences
CLOSER = 2.0**-20, 2.0**-26  # where the first step crosses a kink, or the edge of a domain
ROWS = 32  # differences that are taken at once
NEARBY, APART = 16, 256  # points near a kink whose slopes count, and how many steps they are away


class Truth(NamedTuple):
    """What the oracles say; where there are several numbers, one for each float argument."""

    value: object
    reverse: list  # the cotangents
    forward: np.ndarray  # <dz, Df h>, (8.1)
    differences: np.ndarray  # the same by (32.3)
    doubts: np.ndarray  # how far that may be off
    scale: float  # <|dz|, |f|>


class Draw(NamedTuple):
    """One draw of a rule's arguments, and what the oracles say of it: they know f alone."""

    args: tuple
    precise: tuple  # the same, the floats among them in float64
    which: tuple  # the places of the floats
    dz: object
    directions: list
    truth: Truth
    reason: str  # why nothing can be judged at these arguments, or nothing
    agreement: Callable  # agreement(j, within) says what the other oracles say of reverse mode
    cotangents: list  # reverse mode's, in the arguments' dtypes and trees
    rounding: Rounding  # of the cotangents
    of_value: Rounding
    generic: bool = False  # whether this is not the caller's draw


def consult(f, draws, generic=False, **hyper):
    """The Draws of several arguments of the same shapes: any number of rules can be judged by them.

    With generic, each is followed by one of random arguments of the same shapes and dtypes, which
    hides nothing: no gamma is 1 there, no matrix symmetric, and numbers have both signs.

    Raises:
        RuntimeError: JAX's 64-bit mode is off.
        TypeError: no argument is differentiable, or f is not traceable.

    """
    if not jax.config.jax_enable_x64:
        raise RuntimeError(
            "a proof is in float64, and JAX is in 32-bit mode: expected "
            'jax.config.update("jax_enable_x64", True) before the first array'
        )
    draws = [_arrays(f, args) for args in draws]
    which = float_arguments(argument_names(f, draws[0]), draws[0])
    # Fresh functions at every call: a cached trace would not see a helper that was redefined.
    oracles = once(lambda *operands: _oracles(f, hyper, which, *operands))
    closer = cache(lambda j: once(partial(_closer, f, hyper, which, j)))

    def plain(_, floats, args):
        return f(*put(args, which, floats), **hyper)

    def reverse(one, floats, args, dz):
        z, pull = jax.vjp(lambda floats: plain(one, floats, args), floats)
        return pull(tree_map(lambda d, o: (one * d).astype(o.dtype), dz, z))[0]

    of_reverse, of_plain = measure_of(reverse), measure_of(plain)
    # A seed that no reader draws the arguments with: dz equal to x would hide a transpose.
    rng = np.random.default_rng([8, 20231120])
    found = []

    def ask(args):
        precise = tuple(as_float64(arg) if i in which else arg for i, arg in enumerate(args))
        z = jax.eval_shape(lambda *a: f(*a, **hyper), *args)
        dz = tree_map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), z)
        directions = [
            [rng.normal(size=np.shape(leaf)) for leaf in _floats(precise[i])] for i in which
        ]
        truth = jax.device_get(oracles(dz, precise, directions, True))
        reason = _no_judge(truth, lambda *a: f(*a, **hyper), precise)
        floats = [floats_of(args[i]) for i in which]

        def again(floats):
            moved = as_float64(tuple(put(args, which, floats)))
            return oracles(dz, moved, directions, False).reverse

        cotangents = list(map(_in_the_dtypes_of, floats, truth.reverse))
        draw = Draw(
            *(args, precise, which, dz, directions, truth, reason),
            agreement=lambda j, within: told(j, within),
            cotangents=cotangents,
            rounding=Rounding(
                *(again, reverse, cotangents, floats), exact=(args, dz), measure=of_reverse
            ),
            of_value=Rounding(*(None, plain, truth.value, floats), exact=(args,), measure=of_plain),
        )
        told = partial(_agreement, closer, draw)
        return draw

    with traced(getattr(f, "__name__", "f")):
        random = changes(lambda *args: f(*args, **hyper), *draws[0])
        for args in draws:
            draw = ask(args)
            if random:
                reason = "f is another function at every call: does it draw random numbers?"
                draw = draw._replace(reason=reason)
            found.append(draw)
            others = (ask(other) for other in generics(args, rng)) if generic else ()
            found += [o._replace(generic=True) for o in _first(o for o in others if not o.reason)]
    return found


def generics(args, rng):
    """Random arguments of the same shapes and dtypes, the most general first.

    Not every function is defined for those, so closer ones follow: floats that keep their signs,
    and floats near the given ones. What a rule may rely on is kept: probabilities add up to 1, a
    permutation stays one, sorted ids stay sorted, and all of them between the given ones.
    """

    def normal(a):
        if a.ndim and (a >= 0).all() and np.allclose(a.sum(axis=-1), 1):
            return rng.dirichlet(np.ones(a.shape[-1]), size=a.shape[:-1])
        return min(float(size([a])), 1.0) * rng.normal(size=a.shape)

    def signed(a):
        return np.where(a == 0, 0.3 * normal(a), a * np.exp(0.3 * rng.normal(size=a.shape)))

    def near(a):
        return a * (1 + 0.01 * rng.normal(size=a.shape))

    def drawn(draw, mixed, a):
        kind = jnp.result_type(a)
        if is_float(a):
            return jnp.asarray(draw(np.asarray(a, "float64")), kind)
        if not mixed or np.ndim(a) == 0 or not np.size(a) or not isinstance(kind, np.dtype):
            return a
        if kind == np.bool_:
            return jnp.asarray(rng.random(a.shape) < 0.7)
        flat = np.asarray(a).ravel()
        if (np.sort(flat) == np.arange(flat.size)).all():
            return jnp.asarray(rng.permutation(flat).reshape(a.shape), kind)
        low = flat.min() if len(set(flat)) > 1 else min(flat[0], 1)
        other = low + np.arange(flat.size) % (flat.max() - low + 1)
        other[-1] = other[0]  # one of them twice at least
        other = rng.permutation(other)
        in_order = len(set(flat)) > 1 and (np.diff(flat) >= 0).all()
        return jnp.asarray((np.sort(other) if in_order else other).reshape(a.shape), kind)

    for draw, mixed in ((normal, True), (normal, False), (signed, False), (near, False)):
        yield tree_map(partial(drawn, draw, mixed), args)


def _in_the_dtypes_of(arg, cotangent):
    leaves, tree = tree_flatten(arg)
    pairs = zip(cotangent, leaves, strict=True)
    return tree_unflatten(tree, [np.asarray(d).astype(leaf.dtype) for d, leaf in pairs])


def _first(items):
    # a list of the first of them, or of none
    return [item for item, _ in zip(items, range(1), strict=False)]


def _arrays(f, args):
    for name, arg in zip(argument_names(f, args), args, strict=True):
        for leaf in tree_leaves(arg):
            if isinstance(leaf, str) or callable(leaf):
                raise TypeError(
                    f"{name}: expected arrays; got {leaf!r}: hand it over as a keyword argument"
                )
    return tuple(tree_map(jnp.asarray, as_arrays(arg)) for arg in args)


def _floats(arg):
    return [leaf for leaf in tree_leaves(arg) if is_float(leaf)]


def _no_judge(truth, f, args):
    for value in tree_leaves(truth.value):
        if is_float(value) and not np.isfinite(value).all():
            bad = np.asarray(value)[~np.isfinite(value)]
            return f"a value of f is {bad.flat[0]}{born_in(birth_of_nan(f, *args))}"
    return ""


def _oracles(f, hyper, which, dz, precise, directions, every):
    # Everything that the verdicts need, in one compilation; zeros for what comes after reverse mode
    # unless every oracle is asked.
    floats = [_floats(precise[i]) for i in which]
    dz = as_float64(dz)

    def plain(floats):
        return f(*put(precise, which, floats), **hyper)

    def along(t, chosen):
        moves = zip(floats, chosen, directions, strict=True)
        moved = [tree_map(lambda x, d, c=c: x + t * c * d, x, h) for x, c, h in moves]
        return _inner(dz, plain(moved))

    def slope(chosen):
        return jax.jvp(partial(along, chosen=chosen), (0.0,), (1.0,))[1]

    z, pull = jax.vjp(plain, floats)
    (reverse,) = pull(tree_map(lambda c, o: c.astype(o.dtype), dz, z))
    scale = _inner(tree_map(jnp.abs, dz), tree_map(jnp.abs, z))
    # One argument at a time, in loops: the compiler meets f once for all arguments and steps.
    chosen = jnp.eye(len(which))
    steps = jnp.outer(STEP * jnp.stack([size(x) for x in floats]), jnp.array([1, -1, 0.5, -0.5]))

    def others():
        forward = jax.lax.map(slope, chosen)
        ends = jax.lax.map(lambda at: along(*at), (steps.ravel(), jnp.repeat(chosen, 4, axis=0)))
        return forward, *_richardson(ends.reshape(steps.shape), steps[:, 0], scale)

    nothing = jnp.zeros(len(which))
    return Truth(z, reverse, *jax.lax.cond(every, others, lambda: (nothing,) * 3), scale)


def _richardson(ends, steps, scale):
    # (the slopes by (32.3), how far they may be off) from the values at t, -t, t/2 and -t/2
    wide = (ends[:, 0] - ends[:, 1]) / (2 * steps)
    narrow = (ends[:, 2] - ends[:, 3]) / steps
    # what extrapolation took away is an estimate of what it left; a rounding of f weighs 1 / step
    doubts = jnp.abs(narrow - wide) + 16 * jnp.finfo("float64").eps * scale / (steps / 2)
    return (4 * narrow - wide) / 3, doubts


def _agreement(closer, draw, j, within):
    """What the other oracles say of reverse mode's cotangent of the j-th argument.

    "" where they agree, "forward mode" or "differences" where that one does not, "kink" where the
    differences meet two slopes, and "coarse" where they tell nothing. within() holds how far
    roundings may move each entry.
    """
    truth, directions = draw.truth, _flat(draw.directions[j])
    terms = _flat(draw.truth.reverse[j]) * directions
    total = np.abs(terms).sum()
    off = abs(truth.forward[j] - terms.sum())
    if not (
        off <= 1e-12 * total + 16 * np.finfo(float).eps * truth.scale
        or off <= (_flat(within()) * np.abs(directions)).sum()
    ):
        return "forward mode"
    doubt = truth.doubts[j]
    off = abs(truth.differences[j] - terms.sum())
    typical = size(_floats(draw.precise[draw.which[j]]))
    if off <= TOLERANCE * total + doubt and _fine(doubt * typical, total * typical, truth.scale):
        return ""
    return _Closer(closer(j), draw, j).agreement()


def _fine(doubts, total, scale):
    # whether differences tell something: of the slope or, where it is next to nothing, of f
    return doubts <= np.maximum(0.1 * total, 1e-6 * scale)


def _flat(tree):
    return np.concatenate([np.zeros(0), *(np.ravel(leaf) for leaf in tree_leaves(tree))])


def _closer(f, hyper, which, j, dz, precise, moves, steps, count):
    # phi at x + t moves, for the first rows of moves (flat over the argument's leaves), each its
    # own t: so many that one program serves any number, and none is computed that isn't asked for
    dz = as_float64(dz)
    floats = [_floats(precise[i]) for i in which]
    parts = np.cumsum([leaf.size for leaf in floats[j]])[:-1]

    def at(operands):
        move, t = operands
        pieces = jnp.split(move, parts)
        moved = [x + t * m.reshape(x.shape) for x, m in zip(floats[j], pieces, strict=True)]
        others = [moved if k == j else leaves for k, leaves in enumerate(floats)]
        return _inner(dz, f(*put(precise, which, others), **hyper))

    def around(operands):
        move, t = operands
        return jax.lax.map(at, (jnp.stack([move] * 5), t * jnp.array([1, -1, 0.5, -0.5, 0.0])))

    def row(k, ends):
        return ends.at[k].set(around((moves[k], steps[k])))

    return jax.lax.fori_loop(0, count, row, jnp.zeros((len(moves), 5)))


class _Closer:
    """Differences once more, where those along one direction told nothing.

    Along another direction and with a smaller step; then part by part, down to single entries,
    where a kink shows itself by two slopes.
    """

    def __init__(self, closer, draw, j):
        x, h = _flat(_floats(draw.precise[draw.which[j]])), _flat(draw.directions[j])
        typical = float(size([x]))
        # each entry in proportion to itself, so that a small one keeps its sign
        self.lengths = np.where(x == 0, typical, np.abs(x))
        self.ways = h * typical, h * self.lengths
        self.true, self.scale = _flat(draw.truth.reverse[j]), float(draw.truth.scale)
        self.closer = partial(closer, draw.dz, draw.precise)

    def agreement(self):
        trusted = None
        for way in self.ways:
            before, doubts_before = np.nan, 0.0
            for step in (STEP, *CLOSER):
                fine, agrees, slope, doubts = (a[0] for a in self.judged(way[None], step))
                if fine and agrees:
                    return ""
                near = 0.1 * max(abs(slope), abs(before)) + doubts + doubts_before
                if _fine(doubts, abs(slope), self.scale) and abs(slope - before) <= near:
                    trusted = way, step  # two steps say the same
                before, doubts_before = slope, doubts
        if trusted is None:
            return "coarse"
        entries = self.entries(*trusted)
        return "kink" if entries and self.kinks(entries) else "differences"

    def ends(self, moves, step):
        # the values around x along each move; always as many, so that one program serves
        rows = np.zeros((ROWS, self.true.size))
        rows[: len(moves)] = moves
        ends = self.closer(rows, np.full(ROWS, step), len(moves))
        return np.asarray(ends)[: len(moves)]

    def judged(self, moves, step):
        # along each move: whether the differences tell something, whether they agree, and they
        slopes, doubts = _richardson(self.ends(moves, step), np.full(len(moves), step), self.scale)
        terms = moves * self.true
        total = np.abs(terms).sum(axis=1)
        agrees = np.abs(slopes - terms.sum(axis=1)) <= 1e-6 * total + doubts
        fine = _fine(doubts, total, self.scale)
        return [np.asarray(a) for a in (fine, agrees, slopes, doubts)]

    def entries(self, way, step):
        # some of the entries in which the differences disagree
        groups = np.array_split(np.arange(way.size), min(ROWS, way.size))
        while True:
            moves = np.zeros((len(groups), way.size))
            for move, group in zip(moves, groups, strict=True):
                move[group] = way[group]
            agrees = self.judged(moves, step)[1]
            bad = [group for group, ok in zip(groups, agrees, strict=True) if not ok][: ROWS // 2]
            if all(len(group) == 1 for group in bad):
                return [int(group[0]) for group in bad]
            parts = ROWS // len(bad)
            groups = [p for g in bad for p in np.array_split(g, min(parts, len(g)))]

    def kinks(self, entries):
        # whether there are two slopes at each of the entries, and the true one lies between them
        step = CLOSER[0]
        moves = np.zeros((len(entries), self.true.size))
        moves[np.arange(len(entries)), entries] = self.lengths[entries]
        up, down, *_, here = self.ends(moves, step).T
        up, down = (up - here) / step, (here - down) / step
        true = (moves * self.true).sum(axis=1)
        steep = np.maximum(np.abs(up), np.abs(down))
        near = 1e-3 * steep + 32 * np.finfo(float).eps * self.scale / step
        if not (np.abs(up - down) > near).all():
            return False
        low, high = np.minimum(up, down), np.maximum(up, down)
        # Where several entries meet, such as equal ones that are sorted, a slope nearby may be
        # neither of the two here: those of some points where they have parted count as well.
        rng = np.random.default_rng(8)
        for _ in range(NEARBY):
            if ((low - near <= true) & (true <= high + near)).all():
                return True
            apart = rng.uniform(-APART, APART, self.true.size)
            away = apart * self.lengths
            here, *there = self.ends(np.concatenate([away[None], away + moves]), step)[:, 0]
            slopes = (np.array(there) - here) / step
            low, high = np.minimum(low, slopes), np.maximum(high, slopes)
        return False


def _inner(a, b):
    return sum((x * y).sum() for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))
