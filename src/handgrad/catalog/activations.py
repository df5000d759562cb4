"""The rows of layers/activations.py."""

import numpy as np

from handgrad.catalog import Row
from handgrad.layers.activations import relu, sigmoid, tanh


def _points(rng):
    return {
        "typical": ((rng.normal(size=(4, 3, 5)),), {}),
        "edge: a number": ((rng.normal(size=()),), {}),
        "edge: no entry": ((np.zeros((3, 0)),), {}),
        "extreme: at 0, and up to 1e4": ((np.array([0.0, -0.0, 1e4, -1e4, 90.0, -90.0]),), {}),
    }


ROWS = (
    Row(
        relu,
        r"a = \max(0, x)",
        {"x": r"dx_i = \begin{cases} da_i & a_i > 0 \\ 0 & a_i = 0 \end{cases}"},
        _points,
        same_as="jax.nn.relu",
    ),
    Row(
        sigmoid,
        r"a = 1 / (1 + e^{-x})",
        {"x": r"dx = da \odot a \odot (1 - a)"},
        _points,
        same_as="jax.scipy.special.expit",
    ),
    Row(
        tanh,
        r"a = \tanh x",
        {"x": r"dx = da \odot (1 - a^2)"},
        _points,
        same_as="numpy.tanh",
    ),
)
