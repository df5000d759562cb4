"""The local rules of a program's operations: what each computes, and what it sends back.

In NumPy and in float64, where the operation is common, since nothing has to be compiled then and
any number of cotangents goes through at once; all others are left to JAX.

Derivation: notebooks/32_checker.ipynb
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 8  # cotangents that an operation left to JAX takes at a time


class Part(NamedTuple):
    """A cotangent that is zero but at an index; rows come before it."""

    index: tuple
    value: np.ndarray

    def within(self, rows, shape):
        """The whole array."""
        whole = np.zeros((rows, *shape))
        whole[(slice(None), *self.index)] = self.value
        return whole


def plain(x):
    """A value as the tape holds it: floats in float64, random keys as they are."""
    dtype = jnp.result_type(x)
    if not isinstance(dtype, np.dtype):
        return x
    x = np.asarray(x)
    return x.astype("float64") if jnp.issubdtype(dtype, jnp.floating) else x


def forward(op, operands):
    """The results of an operation, a list."""
    if op.name in _FORWARD:
        return [np.asarray(_FORWARD[op.name](op.params, *operands))]
    return list(map(plain, _bind(op, operands)))


def slopes(op, operands, results):
    """The slope by each operand, or None where the operation is not element by element."""
    if op.name in SLOPES:
        return SLOPES[op.name](op.params, results[0], *operands)
    if op.name in _ELEMENTWISE:
        ones = [np.ones((1, *np.shape(results[0])))]
        return [None if d is None else d[0] for d in _pull_by_jax(op, operands, ones)]
    return None


def pull(op, operands, results, ds):
    """The cotangents of the operands, given those of the results.

    ds holds an array of rows for each result, or None for one that nothing was sent back to; what
    comes out is an array of rows or a Part for each operand, or None.
    """
    if op.name in _PULL:
        return _PULL[op.name](op.params, ds[0], results[0], *operands)
    by_slope = slopes(op, operands, results)
    if by_slope is not None:
        return [
            None if s is None else summed_to(ds[0] * s, np.shape(x))
            for s, x in zip(by_slope, operands, strict=True)
        ]
    return _pull_by_jax(op, operands, ds)


def summed_to(rows, shape):
    """Rows of an operand's shape: an axis along which it was repeated is summed."""
    if rows.shape[1:] == shape:
        return rows
    gone = rows.ndim - 1 - len(shape)
    axes = [i for i in range(rows.ndim - 1) if i < gone or shape[i - gone] == 1]
    return rows.sum(axis=tuple(i + 1 for i in axes)).reshape(len(rows), *shape)


def contract(a, of_a, b, of_b, out):
    """The sum over the letters that a and b share and `out` lacks, as in einsum, by one matmul."""
    shared = [x for x in of_a if x in of_b]
    batch, inner = [x for x in shared if x in out], [x for x in shared if x not in out]
    left, right = [x for x in of_a if x not in of_b], [x for x in of_b if x not in of_a]
    size = dict(zip((*of_a, *of_b), (*a.shape, *b.shape), strict=True))

    def laid(array, letters, *groups):
        array = array.transpose([letters.index(x) for group in groups for x in group])
        return array.reshape([int(np.prod([size[x] for x in group])) for group in groups])

    product = laid(a, of_a, batch, left, inner) @ laid(b, of_b, batch, inner, right)
    letters = [*batch, *left, *right]
    return product.reshape([size[x] for x in letters]).transpose([letters.index(x) for x in out])


def letters_of(params, left, right):
    """The letters of a matrix product's operands and of its result."""
    (inner_l, inner_r), (batch_l, batch_r) = params["dimension_numbers"]
    of_l = [f"l{i}" for i in range(left)]
    of_r = [f"r{i}" for i in range(right)]
    for i, j in zip((*inner_l, *batch_l), (*inner_r, *batch_r), strict=True):
        of_r[j] = of_l[i]
    free = [x for i, x in enumerate(of_l) if i not in (*inner_l, *batch_l)]
    free += [x for j, x in enumerate(of_r) if j not in (*inner_r, *batch_r)]
    return tuple(of_l), tuple(of_r), (*(of_l[i] for i in batch_l), *free)


def product_pull(params, d, operands, side, places=None):
    """The cotangent of one operand of a matrix product, from the other one; d has rows.

    Where places are given, only these along the operand's first axis.
    """
    left, right, out = letters_of(params, *map(np.ndim, operands))
    of, other = (left, right) if side == 0 else (right, left)
    out, x = ("row", *out), operands[1 - side]
    if places is not None:
        d = np.take(d, places, out.index(of[0])) if of[0] in out else d
        x = np.take(x, places, other.index(of[0])) if of[0] in other else x
    return contract(d, out, x, other, ("row", *of))


def _product(params, x, y):
    left, right, out = letters_of(params, np.ndim(x), np.ndim(y))
    return contract(x, left, y, right, out)


def _broadcast(p, x, *sizes):
    axes = [slice(None) if i in p["broadcast_dimensions"] else None for i in range(len(p["shape"]))]
    return np.broadcast_to(x[tuple(axes)], p["shape"])


def _unbroadcast(p, d, o, x):
    kept = p["broadcast_dimensions"]
    gone = [i for i in range(len(p["shape"])) if i not in kept]
    gone += [i for i, n in zip(kept, x.shape, strict=True) if n == 1 != p["shape"][i]]
    return [d.sum(axis=tuple(i + 1 for i in gone)).reshape(len(d), *x.shape)]


def _sum_back(p, d, o, x):
    d = np.expand_dims(d, tuple(a + 1 for a in p["axes"]))
    return [np.broadcast_to(d, (len(d), *x.shape))]


def _extreme_back(p, d, o, x):
    where = x == np.expand_dims(o, p["axes"])
    d = np.expand_dims(d, tuple(a + 1 for a in p["axes"]))
    return [np.where(where, d / where.sum(axis=p["axes"], keepdims=True), 0.0)]


def _slices(p):
    strides = p["strides"] or (1,) * len(p["start_indices"])
    return tuple(map(slice, p["start_indices"], p["limit_indices"], strides))


def _split_up(p, d, o, *xs):
    ends = np.cumsum([x.shape[p["dimension"]] for x in xs])[:-1]
    return np.split(d, ends, axis=p["dimension"] + 1)


def _reshaped(p, d, o, x, *sizes):
    return [d.reshape(len(d), *x.shape)]


def _clamped(p, o, low, x, high):
    return None, (x >= low) & (x <= high), None


def _greater(p, o, x, y):
    return (x > y) + 0.5 * (x == y), (y > x) + 0.5 * (x == y)


_SAME = ("copy", "convert_element_type", "reduce_precision", "copy_p", "optimization_barrier")

_FORWARD = {
    "add": lambda p, x, y: x + y,
    "add_any": lambda p, x, y: x + y,
    "sub": lambda p, x, y: x - y,
    "mul": lambda p, x, y: x * y,
    "neg": lambda p, x: -x,
    "exp": lambda p, x, **_: np.exp(x),
    "log": lambda p, x: np.log(x),
    "tanh": lambda p, x: np.tanh(x),
    "sqrt": lambda p, x: np.sqrt(x),
    "square": lambda p, x: x * x,
    "integer_pow": lambda p, x: x ** float(p["y"]) if p["y"] < 0 else x ** p["y"],
    "max": lambda p, x, y: np.maximum(x, y),
    "relu": lambda p, x, y: np.maximum(x, y),
    "min": lambda p, x, y: np.minimum(x, y),
    "abs": lambda p, x: np.abs(x),
    "stop_gradient": lambda p, x: x,
    "reshape": lambda p, x, *_: x.reshape(p["new_sizes"]),
    "squeeze": lambda p, x: np.squeeze(x, p["dimensions"]),
    "expand_dims": lambda p, x: np.expand_dims(x, p["dimensions"]),
    "transpose": lambda p, x: x.transpose(p["permutation"]),
    "broadcast_in_dim": _broadcast,
    "reduce_sum": lambda p, x: x.sum(axis=p["axes"]),
    "reduce_max": lambda p, x: x.max(axis=p["axes"]),
    "reduce_min": lambda p, x: x.min(axis=p["axes"]),
    "concatenate": lambda p, *xs: np.concatenate(xs, p["dimension"]),
    "slice": lambda p, x: x[_slices(p)],
    "rev": lambda p, x: np.flip(x, p["dimensions"]),
    "dot_general": _product,
    "take": lambda p, x: x[p["t"]],
    "stack": lambda p, *xs: np.stack(xs, p["axis"]),
    "tap": lambda p, taken, value, slot, own: value + slot,
}

# by name: (parameters, result, operands) -> the slope by each operand
SLOPES = {
    "add": lambda p, o, x, y: (1.0, 1.0),
    "add_any": lambda p, o, x, y: (1.0, 1.0),
    "sub": lambda p, o, x, y: (1.0, -1.0),
    "mul": lambda p, o, x, y: (y, x),
    "div": lambda p, o, x, y: (1 / y, -o / y),
    "neg": lambda p, o, x: (-1.0,),
    "exp": lambda p, o, x: (o,),
    "log": lambda p, o, x: (1 / x,),
    "tanh": lambda p, o, x: (1 - o * o,),
    "logistic": lambda p, o, x: (o * (1 - o),),
    "sqrt": lambda p, o, x: (0.5 / o,),
    "rsqrt": lambda p, o, x: (-0.5 * o / x,),
    "square": lambda p, o, x: (2 * x,),
    "integer_pow": lambda p, o, x: (p["y"] * x ** float(p["y"] - 1),),
    "max": _greater,
    "relu": lambda p, o, x, y: (1.0 * (x > y), 1.0 * (y > x)),
    "min": lambda p, o, x, y: _greater(p, o, y, x),
    "abs": lambda p, o, x: (np.sign(x),),
    "sin": lambda p, o, x: (np.cos(x),),
    "cos": lambda p, o, x: (-np.sin(x),),
    "log1p": lambda p, o, x: (1 / (1 + x),),
    "expm1": lambda p, o, x: (o + 1,),
    "erf": lambda p, o, x: (2 / np.sqrt(np.pi) * np.exp(-x * x),),
    "clamp": _clamped,
    "select_n": lambda p, o, w, *xs: (None, *(np.equal(w, i) * 1.0 for i in range(len(xs)))),
    **{name: lambda p, o, x: (1.0,) for name in _SAME},
}

# element by element too, with slopes that JAX knows
_ELEMENTWISE = {
    *("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "cosh", "digamma"),
    *("erf_inv", "erfc", "exp2", "lgamma", "log2", "nextafter", "pow", "rem", "sinh", "tan"),
}

_PULL = {
    "reshape": _reshaped,
    "squeeze": _reshaped,
    "expand_dims": _reshaped,
    "transpose": lambda p, d, o, x: [
        d.transpose(0, *(int(a) + 1 for a in np.argsort(p["permutation"])))
    ],
    "broadcast_in_dim": _unbroadcast,
    "reduce_sum": _sum_back,
    "reduce_max": _extreme_back,
    "reduce_min": _extreme_back,
    "concatenate": _split_up,
    "slice": lambda p, d, o, x: [Part(_slices(p), d)],
    "rev": lambda p, d, o, x: [np.flip(d, tuple(a + 1 for a in p["dimensions"]))],
    "dot_general": lambda p, d, o, *xs: [product_pull(p, d, xs, side) for side in (0, 1)],
    "take": lambda p, d, o, x: [Part((p["t"],), d)],
    "stack": lambda p, d, o, *xs: list(np.moveaxis(d, p["axis"] + 1, 0)),
    "stop_gradient": lambda p, d, o, x: [None],
    "tap": lambda p, d, o, taken, value, slot, own: [None, None if taken else d, d, None],
}


def _bind(op, operands):
    eqn = op.eqn
    operands = [
        jnp.asarray(x, v.aval.dtype) if isinstance(v.aval.dtype, np.dtype) else x
        for x, v in zip(operands, eqn.invars, strict=True)
    ]
    results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return results if eqn.primitive.multiple_results else [results]


def _pull_by_jax(op, operands, ds):
    # In blocks of rows of one size, so that each operation is compiled once.
    floats = [i for i, v in enumerate(op.eqn.invars) if jnp.issubdtype(v.aval.dtype, jnp.floating)]
    rows = next(len(d) for d in ds if d is not None)
    ds = [
        np.zeros((rows, *v.aval.shape)) if d is None else d
        for d, v in zip(ds, op.eqn.outvars, strict=True)
    ]
    if op.key not in op.cache:

        def back(operands, ds):
            def of(*xs):
                full = list(operands)
                for i, x in zip(floats, xs, strict=True):
                    full[i] = x
                return _bind(op, full)

            results, f = jax.vjp(of, *(operands[i] for i in floats))
            ds = [
                d.astype(r.dtype)
                if jnp.issubdtype(r.dtype, jnp.floating)
                else np.zeros(r.shape, jax.dtypes.float0)
                for d, r in zip(ds, results, strict=True)
            ]
            return f(ds)

        op.cache[op.key] = jax.jit(jax.vmap(back, in_axes=(None, 0)))
    operands = [
        jnp.asarray(x, v.aval.dtype) if isinstance(v.aval.dtype, np.dtype) else x
        for x, v in zip(operands, op.eqn.invars, strict=True)
    ]
    parts = []
    size = 1 if rows == 1 else BLOCK
    for start in range(0, rows, size):
        block = [d[start : start + size] for d in ds]
        short = size - len(block[0])
        block = [np.pad(d, [(0, short)] + [(0, 0)] * (d.ndim - 1)) for d in block]
        parts.append([np.asarray(c, "float64") for c in op.cache[op.key](operands, block)])
    whole = [None] * len(operands)
    for i, *blocks in zip(floats, *parts, strict=True):
        whole[i] = np.concatenate(blocks)[:rows]
    return whole
