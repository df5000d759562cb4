"""How far roundings may move a result, entry by entry, found by rounding otherwise.

Derivation: notebooks/32_checker.ipynb
"""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from handgrad.check.arrays import is_float, once
from handgrad.check.jaxpr import INNER, bind, evaluate, flat, parts_of_scan

DRAWS = 8
MARGIN = 8  # times the rounding measured: a hand may round more often than JAX does
_LONGEST = 2**20  # of the noise; larger arrays repeat it


def rounding(f, here, *args):
    """How far roundings move each entry of here = f(*args), as a Measure finds it."""
    return Measure(lambda args, exact: f(*args))(here, args, ())


class Measure:
    """How far roundings move each entry of f(args, exact): the farthest of eight draws.

    In a draw every number in args, or that an operation has to round, moves by a random half to two
    of its last digits, as in Monte Carlo arithmetic (Parker 1997); what is exact does not. A sum of
    n numbers rounds n times on the way, and what it rounds is at most the sum of their sizes: it
    moves by sqrt(n)/8 digits of that (errors of random sign add up to sqrt(n); Higham and Mary
    2019). What jumps, such as a sign or the outcome of a comparison, stays as it was, so that no
    other branch is taken. All measurements at the same shapes share one compilation.
    """

    def __init__(self, f):
        """Nothing runs yet."""
        self.f, self.compiled = f, {}

    def __call__(self, here, args, exact):
        """A tree like here = f(args, exact), of float64 arrays."""
        shapes = str(jax.tree.map(jax.typeof, (args, exact)))
        if shapes not in self.compiled:
            self.compiled[shapes] = self._compile(args, exact)
        run, longest, places = self.compiled[shapes]
        rng = np.random.default_rng(8)
        far = [np.zeros(np.shape(leaf)) for leaf in jax.tree.leaves(here)]
        for _ in range(DRAWS):
            noise = rng.uniform(0.5, 2, longest + places)
            noise *= rng.choice([-1.0, 1.0], longest + places)
            moved = jax.device_get(run(noise, jax.tree.leaves(args), jax.tree.leaves(exact)))
            for k, (was, other) in enumerate(zip(jax.tree.leaves(here), moved, strict=True)):
                move = np.abs(np.asarray(other, "float64") - np.asarray(was, "float64"))
                far[k] = np.maximum(far[k], np.where(np.isfinite(move), move, 0.0))
        return jax.tree.unflatten(jax.tree.structure(here), far)

    def _compile(self, args, exact):
        closed = flat(self.f, args, exact)
        leaves = jax.tree.leaves(args)
        longest = max((v.aval.size for e in closed.jaxpr.eqns for v in e.outvars), default=1)
        longest = min(max(longest, *(np.size(leaf) for leaf in leaves), 1), _LONGEST)
        places = len(leaves) + sum(len(eqn.outvars) for eqn in closed.jaxpr.eqns)

        def otherwise(noise, leaves, exact):
            return [moved for _, moved in _Otherwise(noise, longest).run(closed, leaves, exact)]

        return once(otherwise), longest, places


class Rounding:
    """How far roundings move the gradients of one check; nothing is measured before it is asked.

    again(*args) is the compiled gradient and here its value; f(one, *args, *exact) is the same, not
    compiled, times one, the cotangent of the loss.
    """

    def __init__(self, again, f, here, *args, exact=(), measure=None):
        """Keep what a measurement needs; measure is measure_of(f), where several share it."""
        self.again, self.here, self.args = again, jax.tree.leaves(here), args
        one = np.ones((), np.result_type(*self.here))
        measure = measure or measure_of(f)
        self.measured = cache(lambda: jax.tree.leaves(measure(here, args, (one, *exact))))
        self.moved = cache(self._nudged)
        self.largest = cache(lambda: largest(lambda one, *args: f(one, *args, *exact), one, *args))

    def from_(self, place):
        """(rounding, fragile) of a Judge whose first leaf has that place."""
        return (lambda leaf: self.within(place + leaf)), partial(self.fragile, place)

    def within(self, place):
        """How far roundings may move each entry of the leaf of that place."""
        return MARGIN * self.measured()[place]

    def fragile(self, place, leaf, measure):
        """Whether roundings move an entry of a gradient as far as it is long.

        One that is truly 0 does not count: where large cotangents cancel, what is left may be all
        rounding, and is small beside them.
        """
        few = np.abs(np.asarray(self.here[place + leaf], "float64")) / 10
        # Where nothing has to be measured, the last digits of the arguments tell, in one more run.
        if not measure and (np.abs(self.moved()[place + leaf]) * MARGIN <= few).all():
            return False
        near = self.within(place + leaf)
        eps = float(jnp.finfo(self.here[place + leaf].dtype).eps)
        lost = near > few
        return bool(lost.any() and near[lost].max() > max(eps**0.5, 64 * eps) * self.largest())

    def _nudged(self):
        rng = np.random.default_rng(8)

        def nudge(leaf):
            if not is_float(leaf):
                return leaf
            eps = float(jnp.finfo(leaf.dtype).eps)
            digits = rng.uniform(0.5, 2, np.shape(leaf)) * rng.choice([-1, 1], np.shape(leaf))
            return (leaf * (1 + eps * digits)).astype(leaf.dtype)

        moved = jax.tree.leaves(self.again(*jax.tree.map(nudge, self.args)))
        pairs = zip(moved, self.here, strict=True)
        return [np.nan_to_num(np.subtract(a, b, dtype="float64")) for a, b in pairs]


def measure_of(f):
    """The Measure of f(one, *args, *exact)."""
    return Measure(lambda args, exact: f(exact[0], *args, *exact[1:]))


def largest(f, one, *args):
    """The largest number in the program f(one, *args) that depends on one: a cotangent."""
    sizes = [0.0]

    def watched(eqn, operands):
        # what depends on one goes as a pair, of itself and of nothing
        results = bind(eqn, _side(operands, 0))
        if not any(isinstance(value, tuple) for value in operands):
            return results
        for value in results:
            if _rounds(value) and np.size(value):
                finite = np.abs(np.asarray(value, "float64"))
                sizes.append(finite.max(initial=0.0, where=np.isfinite(finite)))
        return [(value, None) for value in results]

    evaluate(flat(f, one, *args), [(one, None), *jax.tree.leaves(args)], do=watched)
    return max(sizes)


# Operations that hand floats on as they are, or change no more than their sign.
EXACT = {
    *("abs", "broadcast_in_dim", "clamp", "concatenate", "copy", "dynamic_slice", "expand_dims"),
    *("dynamic_update_slice", "gather", "max", "min", "neg", "optimization_barrier", "pad"),
    *("reduce_max", "reduce_min", "reshape", "rev", "select_n", "slice", "sort", "split"),
    *("squeeze", "stop_gradient", "transpose"),
}
JUMPS = {"ceil", "floor", "rem", "round", "sign"}

# Operations that send each number where the largest entry of another operand stands: that operand,
# which stays as it was, since otherwise a tie would go to another entry.
CHOOSING = {"select_and_scatter_add": 1, "select_and_gather_add": 1}

# Functions whose values add up with others to 1 or to 0: a hand may write p - 1 for -(1 - p), and
# so has the last digits of 1 where JAX has those of a small number.
SATURATING = {"erf", "erfc", "exp", "exp2", "expm1", "logistic", "tanh"}

# Functions that are made from larger numbers, and near their zeros have the last digits of those.
CANCELLING = {"digamma", "lgamma"}

# How many terms each operation adds up, where it is more than two.
_TERMS = {
    "conv_general_dilated": lambda eqn: (
        _size(eqn, 1) // eqn.invars[1].aval.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
    ),
    "cumsum": lambda eqn: eqn.invars[0].aval.shape[eqn.params["axis"]],
    "dot_general": lambda eqn: math.prod(
        eqn.invars[0].aval.shape[axis] for axis in eqn.params["dimension_numbers"][0][0]
    ),
    "reduce_sum": lambda eqn: _size(eqn, 0) // max(eqn.outvars[0].aval.size, 1),
    "reduce_window_sum": lambda eqn: math.prod(eqn.params["window_dimensions"]),
    "scatter-add": lambda eqn: 1 + _size(eqn, 2) // max(_size(eqn, 0), 1),
}


def _size(eqn, k):
    return eqn.invars[k].aval.size


class _Otherwise:
    """A program run twice at once, on pairs: a value as it was, and as other roundings leave it."""

    def __init__(self, noise, longest):
        self.noise, self.longest, self.place = noise, longest, 0

    def run(self, closed, leaves, exact):
        pairs = [
            self.moved((leaf, leaf), jnp.abs(leaf) if _rounds(leaf) else leaf) for leaf in leaves
        ]
        return self.go_through(closed, [*pairs, *exact])

    def go_through(self, closed, pairs):
        # literals, constants and all that is exact are no pairs
        results = evaluate(closed, pairs, do=self.bind)
        return [v if isinstance(v, tuple) else (v, v) for v in results]

    def moved(self, pair, size, times=1.0):
        # the second of the pair moved by that many digits of size
        was, moved = map(jnp.asarray, pair)
        if not _rounds(moved):
            return was, was
        self.place += 1
        start = self.place % max(self.noise.shape[0] - self.longest, 1)
        ring = jax.lax.slice(self.noise, (start,), (start + min(moved.size, self.longest),))
        if moved.size > self.longest:
            rows = -(-moved.size // self.longest)
            ring = jnp.broadcast_to(ring, (rows, self.longest)).ravel()[: moved.size]
        digits = times * float(jnp.finfo(moved.dtype).eps)
        # written in lax, since each function of jnp would be traced by itself
        nothing = jax.lax.full_like(size, 0)  # an infinity has no digits to move
        size = jax.lax.select(jax.lax.is_finite(size), size, nothing)
        wide = jnp.result_type(ring, size)
        move = jax.lax.reshape(ring, moved.shape).astype(wide) * size.astype(wide) * digits
        return was, moved + move.astype(moved.dtype)

    def bind(self, eqn, operands):
        name = eqn.primitive.name
        if name in CHOOSING:
            k = CHOOSING[name]
            operands = [*operands[:k], *_side(operands[k : k + 1], 0), *operands[k + 1 :]]
        sides = [_side(operands, k) for k in (0, 1)]
        if name == "scan":
            return self.scan(eqn, operands)
        if name in INNER:
            return self.go_through(INNER[name](eqn), operands)
        was, moved = (bind(eqn, side) for side in sides)
        if name in JUMPS:
            return [(w, w) for w in was]
        if name in EXACT:
            return [(w, m) if _rounds(w) else (w, w) for w, m in zip(was, moved, strict=True)]
        sizes, times = [jnp.abs(w) if _rounds(w) else w for w in was], 1.0
        if name in SATURATING:
            sizes = [jnp.maximum(size, 1 / MARGIN) for size in sizes]
        if name in CANCELLING:
            sizes = [jnp.maximum(size, 1) for size in sizes]
        if name in _TERMS and not any(map(_half, was)):
            sizes = bind(eqn, [jnp.abs(a) if _rounds(a) else a for a in sides[0]])
            times = max(math.sqrt(_TERMS[name](eqn)) / 8, 1.0)
        return [
            self.moved(pair, size, times) for *pair, size in zip(was, moved, sizes, strict=True)
        ]

    def scan(self, eqn, operands):
        pairs = [v if isinstance(v, tuple) else (v, v) for v in operands]
        fixed, carried = parts_of_scan(eqn)
        consts, carry, xs = pairs[:fixed], pairs[fixed : fixed + carried], pairs[fixed + carried :]

        def body(carry, xs):
            results = self.go_through(eqn.params["jaxpr"], [*consts, *carry, *xs])
            return results[:carried], results[carried:]

        options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
        carry, ys = jax.lax.scan(body, carry, xs, **options)
        return [*carry, *ys]


def _side(operands, k):
    return [value[k] if isinstance(value, tuple) else value for value in operands]


def _half(value):
    # sums of bfloat16 and float16 are made in float32, and rounded once
    return _rounds(value) and jnp.finfo(jnp.result_type(value)).eps > 1e-4


def _rounds(value):
    return jnp.issubdtype(jnp.result_type(value), jnp.floating)
