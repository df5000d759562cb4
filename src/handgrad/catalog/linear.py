"""The row of layers/linear.py."""

import numpy as np

from handgrad.catalog import Row
from handgrad.layers.linear import linear


def _batches(rng):
    def of(*batch, scale=1):
        W, b = rng.normal(size=(5, 4)), rng.normal(size=5)
        return (scale * rng.normal(size=(*batch, 4)), W, b), {}

    return {
        "typical": of(3),
        "edge: one example, no batch axis": of(),
        "edge: more batch axes": of(2, 3),
        "edge: no example": of(0),
        "extreme: 1e4": of(7, scale=1e4),
    }


def _loops(x, W, b):
    rows = [[b[i] + sum(W[i] * row) for i in range(len(W))] for row in x.reshape(-1, x.shape[-1])]
    return np.reshape(rows, (*x.shape[:-1], len(W)))


ROWS = (
    Row(
        linear,
        r"z = W x + b",
        {
            "x": r"dx_n = W^\top dz_n",
            "W": r"dW = \sum_n dz_n\,x_n^\top",
            "b": r"db = \sum_n dz_n",
        },
        _batches,
        same_as=_loops,
    ),
)
