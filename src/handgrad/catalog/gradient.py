"""The rows of layers/gradient.py."""

import numpy as np

from handgrad.catalog import Row
from handgrad.layers.gradient import squared_error


def _pairs(rng):
    def pair(*shape):
        return (rng.normal(size=shape), rng.normal(size=shape)), {}

    return {
        "typical": pair(4, 3, 5),
        "edge: a number": pair(),
        "edge: no difference": ((np.zeros(6), np.zeros(6)), {}),
        "extreme: 1e4": ((1e4 * rng.normal(size=7), rng.normal(size=7)), {}),
    }


ROWS = (
    Row(
        squared_error,
        r"l = (p - t)^2",
        {"prediction": r"dp = 2 (p - t) \odot dl", "target": r"dt = -2 (p - t) \odot dl"},
        _pairs,
        same_as="optax.squared_error",
    ),
)
