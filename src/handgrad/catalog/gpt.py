"""The rows of layers/gpt.py: the adapter. The model itself is made of other rows' rules."""

import numpy as np

from handgrad.catalog import Row
from handgrad.layers.gpt import lora


def _adapted(rng):
    def example(*batch, size=1.0):
        x, W, A, B = (rng.normal(size=shape) for shape in ((*batch, 4), (6, 4), (3, 4), (6, 3)))
        return (size * x, W, size * A, B), {"scale": 0.7}

    return {
        "typical": example(5),
        "edge: one example, no batch axis": example(),
        "edge: more batch axes": example(2, 3),
        "extreme: up to 1e4 times 1e4": example(5, size=1e4),
    }


ROWS = (
    Row(
        lora,
        r"z_i = W x_i + B c_i, \quad c_i = s A x_i",
        {
            "x": r"dx_i = W^\top dz_i + A^\top da_i",
            "W": r"dW = \sum_i dz_i\,x_i^\top",
            "A": r"dA = \sum_i da_i\,x_i^\top",
            "B": r"dB = \sum_i dz_i\,c_i^\top",
        },
        _adapted,
        same_as=lambda x, W, A, B, *, scale: x @ np.transpose(W + scale * (B @ A)),
        where=r"scale $s$, $a_i = A x_i$, $da_i = s B^\top dz_i$; a frozen $W$ needs no $dW$",
    ),
)
