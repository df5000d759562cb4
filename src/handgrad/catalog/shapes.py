"""The rows of layers/shapes.py."""

import numpy as np

from handgrad.catalog import Row
from handgrad.layers import shapes


def _of(*shape, **hyper):
    """Examples of one array: typical, along another axis or none, and large numbers."""

    def examples(rng):
        x = rng.normal(size=shape)
        return {"typical": ((x,), hyper), "extreme: 1e4": ((1e4 * x,), hyper)}

    return examples


def _and(examples, **others):
    # more examples by name: the shape of x, and the hyperparameters
    def more(rng):
        found = examples(rng)
        for name, (shape, hyper) in others.items():
            found["edge: " + name.replace("_", " ")] = ((rng.normal(size=shape),), hyper)
        return found

    return more


def _concatenated(rng):
    a, b, c = rng.normal(size=(4, 3, 5)), rng.normal(size=(4, 6, 5)), rng.normal(size=3)
    return {
        "typical": ((a, b), {"axis": 1}),
        "edge: one axis": ((c, rng.normal(size=4)), {"axis": -1}),
        "edge: nothing to add": ((c, np.zeros(0)), {"axis": -1}),
        "extreme: 1e4": ((1e4 * a, b), {"axis": 1}),
    }


def _taken(rng):
    x, ids = rng.normal(size=(4, 3)), np.array([[2, 0, 2, 2, 1], [0, 3, 0, 0, 2], [2, 1, 0, 2, 2]])
    return {
        "typical": ((x, ids), {}),
        "edge: one id": ((x, np.array(3)), {}),
        "edge: no id": ((x, np.zeros(0, int)), {}),
        "extreme: 1e4": ((1e4 * x, ids), {}),
    }


def _looked_up(rng):
    return {name: (args[::-1], hyper) for name, (args, hyper) in _taken(rng).items()}


def _in_segments(rng):
    x, ids, count = rng.normal(size=(6, 3)), np.array([3, 0, 3, 1, 0, 3]), {"count": 5}
    return {
        "typical": ((x, ids), count),
        "edge: ids out of range": ((x, np.array([3, -1, 5, 1, 0, 3])), count),
        "edge: numbers": ((x[:, 0], ids), count),
        "extreme: 1e4": ((1e4 * x, ids), count),
    }


def _chosen(rng):
    a, b = rng.normal(size=(2, 4, 3))
    mask = np.arange(12).reshape(4, 3) % 3 % 2 == 0
    inf = np.where(mask, a, np.inf)
    return {
        "typical": ((mask, a, b), {}),
        "edge: numbers": ((np.array(True), rng.normal(), rng.normal()), {}),
        "extreme: inf where it is not chosen": ((mask, inf, np.where(mask, np.inf, b)), {}),
    }


def _dropped(rng):
    x, keep = rng.normal(size=(4, 3)), rng.random((4, 3)) < 0.7
    rate = {"rate": 0.3}
    return {
        "typical": ((x, keep), rate),
        "edge: a number": ((x[0, 0], keep[0, 0]), rate),
        "edge: rate 0": ((x, keep), {"rate": 0}),
        "extreme: inf where it is dropped": ((np.where(keep, 1e4 * x, np.inf), keep), rate),
    }


def _operands(rng):
    def of(subscripts, *sizes):
        return tuple(rng.normal(size=size) for size in sizes), {"subscripts": subscripts}

    (a, b), product = of("kj,kij->ki", (5, 4), (5, 3, 4))
    return {
        "typical": ((a, b), product),
        "edge: an outer product": of("i,j->ji", 3, 4),
        "edge: a number": of("ij,ij->", (3, 4), (3, 4)),
        "extreme: 1e4": ((1e4 * a, 1e4 * b), product),
    }


def _factors(rng):
    x, hyper = rng.normal(size=(5, 3, 4)), {"axis": 1}
    zeros, few = x.copy(), 1 + x / 100
    zeros[1, 2] = 0
    zeros[2, :2] = 0
    return {
        "typical": ((x,), hyper),
        "edge: no zero, one, and two": ((zeros,), hyper),
        "extreme: 1e4": ((1e4 * few,), hyper),
        "extreme: the product is too small, and no factor is": ((few * 1e-15,), hyper),
    }


def _with_ties(rng):
    x, last = rng.permutation(60).reshape(3, 5, 4), {"axis": -1}
    return {
        "typical": ((x / 10,), last),
        "edge: ties": ((np.round(x / 20),), {"axis": 1}),
        "edge: one axis": ((x[0, :, 0] / 10,), {"axis": 0}),
        "extreme: 1e4, and -inf": ((np.where(x > 30, 1e4, -np.inf),), last),
    }


def _ranked(rng):
    x, hyper = rng.permutation(18).reshape(3, 6) / 4, {"k": 4}
    tied = rng.permuted(np.tile([0.0, 1, 1, 2, 3, 3], (3, 1)), axis=1)
    return {
        "typical": ((x,), hyper),
        "edge: ties": ((tied,), hyper),
        "edge: one row": ((x[0],), hyper),
        "edge: more batch axes, all of them": ((x.reshape(3, 2, 3),), {"k": 3}),
        "extreme: 1e4": ((1e4 * tied,), hyper),
    }


def _segments(x, ids, count):
    z = np.zeros((count, *np.shape(x)[1:]))
    for row, i in zip(x, ids, strict=True):
        if 0 <= i < count:
            z[i] += row
    return z


def _largest(x, k):
    return -np.sort(-x, axis=-1)[..., :k]


ROWS = (
    Row(
        shapes.broadcast_to,
        r"z_k = x",
        {"x": r"dx = \sum_k dz_k"},
        _and(
            _of(3, 5, shape=(4, 3, 5)),
            an_axis_of_length_1=((4, 1, 5), {"shape": (3, 4, 6, 5)}),
            a_number=((), {"shape": (3,)}),
        ),
        same_as="numpy.broadcast_to",
        where="$k$ counts the copies",
    ),
    Row(
        shapes.sum,
        r"z = \sum_k x_k",
        {"x": r"dx_k = dz"},
        _and(_of(4, 3, 5, axis=1), two_axes=((4, 3, 5), {"axis": (0, -1)})),
        same_as="numpy.sum",
    ),
    Row(
        shapes.mean,
        r"z = \frac{1}{n} \sum_k x_k",
        {"x": r"dx_k = \frac{dz}{n}"},
        _and(_of(4, 3, 5, axis=-1), two_axes=((4, 3, 5), {"axis": (0, -1)})),
        same_as="numpy.mean",
    ),
    Row(
        shapes.cumsum,
        r"z_i = \sum_{j \le i} x_j",
        {"x": r"dx_j = \sum_{i \ge j} dz_i"},
        _and(_of(4, 3, 5, axis=1), one_axis=((4,), {"axis": -1})),
        same_as="numpy.cumsum",
    ),
    Row(
        shapes.transpose,
        r"z = P x",
        {"x": r"dx = P^{-1} dz"},
        _and(_of(4, 3, 5, axes=(1, 2, 0)), counted_from_the_end=((4, 3, 5), {"axes": (-1, 0, 1)})),
        same_as="numpy.transpose",
        where="$P$ permutes the axes",
    ),
    Row(
        shapes.reshape,
        r"z = \mathrm{reshape}(x)",
        {"x": r"dx = \mathrm{reshape}(dz)"},
        _and(_of(4, 3, 5, shape=(5, 12)), the_rest=((4, 3, 5), {"shape": (-1, 6)})),
        same_as="numpy.reshape",
        where="each time to the other's shape",
    ),
    Row(
        shapes.pad,
        r"z_{l + i} = x_i",
        {"x": r"dx_i = dz_{l + i}"},
        _and(_of(4, 3, widths=((1, 2), (3, 0))), nothing_to_pad=((4,), {"widths": ((0, 0),)})),
        same_as=lambda x, widths: np.pad(x, widths),
        where="$l$ zeros stand before $x$",
    ),
    Row(
        shapes.concatenate,
        r"z = (a, b)",
        {"a": r"da_i = dz_i", "b": r"db_i = dz_{n + i}"},
        _concatenated,
        same_as=lambda a, b, axis: np.concatenate([a, b], axis),
        where="$a$ has the length $n$",
    ),
    Row(
        shapes.take,
        r"z_k = x_{s_k}",
        {"x": r"dx_j = \sum_{k:\, s_k = j} dz_k"},
        _taken,
        same_as=lambda x, ids: np.take(x, ids, axis=0),
        where="$s_k$ is id $k$",
    ),
    Row(
        shapes.embedding,
        r"z_k = E_{s_k}",
        {"table": r"dE_j = \sum_{k:\, s_k = j} dz_k"},
        _looked_up,
        same_as=lambda ids, table: np.eye(len(table))[ids] @ table,
        where="$s_k$ is id $k$, $E$ the table",
    ),
    Row(
        shapes.segment_sum,
        r"z_j = \sum_{k:\, s_k = j} x_k",
        {"x": r"dx_k = dz_{s_k}"},
        _in_segments,
        same_as=_segments,
        where="$s_k$ is id $k$",
    ),
    Row(
        shapes.where,
        r"z_i = m_i\,a_i + (1 - m_i)\,b_i",
        {"a": r"da_i = m_i\,dz_i", "b": r"db_i = (1 - m_i)\,dz_i"},
        _chosen,
        same_as="numpy.where",
        where="$m_i$ is 1 or 0, and what is times 0 is not looked at",
    ),
    Row(
        shapes.dropout,
        r"z_i = \frac{m_i}{1 - r}\,x_i",
        {"x": r"dx_i = \frac{m_i}{1 - r}\,dz_i"},
        _dropped,
        same_as=lambda x, keep, rate: np.where(keep, x, 0) / (1 - rate),
        where="$m_i$ is 1 where an entry is kept, $r$ the rate",
    ),
    Row(
        shapes.einsum,
        r"z = \operatorname{einsum}_{\alpha,\, \beta \to \zeta}(a, b)",
        {
            "a": r"da = \operatorname{einsum}_{\zeta,\, \beta \to \alpha}(dz, b)",
            "b": r"db = \operatorname{einsum}_{\alpha,\, \zeta \to \beta}(a, dz)",
        },
        _operands,
        same_as=lambda a, b, subscripts: np.einsum(subscripts, a, b),
    ),
    Row(
        shapes.prod,
        r"z = \prod_i x_i",
        {"x": r"dx_i = dz \prod_{j \ne i} x_j"},
        _factors,
        same_as="numpy.prod",
    ),
    Row(
        shapes.max,
        r"z = \max_i x_i = x_s",
        {"x": r"dx = dz\,e_s"},
        _with_ties,
        same_as="jax.numpy.max",
        where="$s$ is the first place of the maximum, $e_s$ is 1 there and 0 elsewhere",
    ),
    Row(
        shapes.top_k,
        r"z_j = x_{s_j}, \quad z_0 \ge z_1 \ge \dots",
        {"x": r"dx = \sum_j dz_j\,e_{s_j}"},
        _ranked,
        same_as=_largest,
        where="$s_j$ is where the entry stands that comes $j$-th, of equals the first",
    ),
)
