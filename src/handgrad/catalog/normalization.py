"""The rows of layers/normalization.py."""

import jax
import numpy as np

from handgrad.catalog import Row
from handgrad.layers.normalization import (
    batch_norm,
    batch_norm_inference,
    dynamic_tanh,
    group_norm,
    l2_normalize,
    layer_norm,
    rms_norm,
    weight_norm,
)

LARGE = np.array([[1e4, -1e4, 0.0], [1e-4, 3e-4, -1e-4], [0.5, 0.5, 0.5]])


def _parameters(rng, d, how_many):
    return [rng.normal(size=d) for _ in range(how_many)]


def _of_rows(rng, parameters):
    """Rows of numbers, each normalised by itself, and parameters with one entry a channel."""
    shapes = {
        "typical": (3, 4),
        "edge: one example, no batch axis": (4,),
        "edge: more batch axes": (5, 3, 4),
    }
    examples = {
        name: ((rng.normal(size=shape), *_parameters(rng, 4, parameters)), {})
        for name, shape in shapes.items()
    }
    large = (LARGE, *_parameters(rng, 3, parameters))
    return examples | {"extreme: up to 1e4, down to 1e-4, and all equal": (large, {})}


def _layer(rng):
    return _of_rows(rng, 2)


def _rms(rng):
    return _of_rows(rng, 1)


def _batch(rng):
    """Examples along all axes but the last."""
    large = (LARGE.T, *_parameters(rng, 3, 2))
    return {
        "typical": ((rng.normal(size=(5, 3)), *_parameters(rng, 3, 2)), {}),
        "edge: more batch axes": ((rng.normal(size=(5, 4, 3)), *_parameters(rng, 3, 2)), {}),
        "extreme: up to 1e4, down to 1e-4, and all equal": (large, {}),
    }


def _inference(rng):
    def example(*shape):
        x, (mean, gamma, beta) = rng.normal(size=shape), _parameters(rng, 3, 3)
        return (x, mean, rng.uniform(0.5, 2, size=3), gamma, beta), {}

    (_, *large), _ = example(3)
    large[1] = np.array([1e8, 1e-8, 0.0])
    return {
        "typical": example(5, 3),
        "edge: one example, no batch axis": example(3),
        "edge: more batch axes": example(5, 4, 3),
        "extreme: up to 1e4, and a variance of 0": ((LARGE, *large), {}),
    }


def _groups(rng):
    large = (np.concatenate([LARGE, LARGE[::-1]], axis=1), *_parameters(rng, 6, 2))
    return {
        "typical": ((rng.normal(size=(3, 4, 5, 6)), *_parameters(rng, 6, 2)), {"groups": 2}),
        "edge: no axis of space": (
            (rng.normal(size=(3, 6)), *_parameters(rng, 6, 2)),
            {"groups": 2},
        ),
        "extreme: up to 1e4, down to 1e-4, and all equal": (large, {"groups": 2}),
    }


def _vectors(rng):
    return {
        "typical": ((rng.normal(size=(3, 4)),), {}),
        "edge: one vector, no batch axis": ((rng.normal(size=4),), {}),
        "edge: more batch axes": ((rng.normal(size=(5, 3, 4)),), {}),
        "edge: eps": ((rng.normal(size=(3, 4)),), {"eps": 0.3}),
        "extreme: up to 1e4, down to 1e-4": ((LARGE,), {}),
    }


def _weights(rng):
    return {
        "typical": ((rng.normal(size=(4, 3)), rng.normal(size=4)), {}),
        "edge: a length of 0": ((rng.normal(size=(4, 3)), np.array([0.5, 0.0, -1.0, 2.0])), {}),
        "extreme: up to 1e4, down to 1e-4": ((LARGE, rng.normal(size=3)), {}),
    }


def _squashed(rng):
    examples = {
        name: ((args[0], rng.uniform(0.5, 1.5), *args[1:]), hyper)
        for name, (args, hyper) in _of_rows(rng, 2).items()
    }
    return {name.replace(", and all equal", ""): example for name, example in examples.items()}


def _standardized(x, axis, eps):
    return jax.nn.standardize(x, axis, epsilon=eps, algorithm="stable")


def _each_group(x, gamma, beta, *, groups, eps=1e-5):
    z = np.array(x)
    for example in z:
        for channels in np.split(np.arange(x.shape[-1]), groups):
            part = example[..., channels]
            example[..., channels] = (part - part.mean()) / np.sqrt(part.var() + eps)
    return gamma * z + beta


PROJECTED = (
    r"dx = r \left(d\hat x - \tfrac1n \langle \mathbf{1}, d\hat x \rangle\,\mathbf{1} "
    r"- \tfrac1n \langle \hat x, d\hat x \rangle\,\hat x\right)"
)
CHANNELS = {
    "gamma": r"d\gamma = \sum_i dz_i \odot \hat x_i",
    "beta": r"d\beta = \sum_i dz_i",
}
STANDARDIZED = r"z = \gamma \odot \hat x + \beta, \quad \hat x = r\,(x - \mu\,\mathbf{1})"
SHARED = (
    r": $\mu$ is the mean and $r = (q + \epsilon)^{-1/2}$, with $q$ the variance, of the $n$ "
    r"numbers of {}; $d\hat x = \gamma \odot dz$"
)

ROWS = (
    Row(
        layer_norm,
        STANDARDIZED,
        {"x": PROJECTED, **CHANNELS},
        _layer,
        same_as=lambda x, gamma, beta: gamma * _standardized(x, -1, 1e-5) + beta,
        where="each example by itself" + SHARED.replace("{}", "a row"),
    ),
    Row(
        rms_norm,
        r"z = \gamma \odot \hat x, \quad \hat x = r\,x",
        {
            "x": r"dx = r \left(d\hat x - \tfrac1n \langle \hat x, d\hat x \rangle\,"
            r"\hat x\right)",
            "gamma": CHANNELS["gamma"],
        },
        _rms,
        same_as=lambda x, gamma: gamma * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5),
        where=r"each example by itself: $r = (\tfrac1n \langle x, x \rangle + \epsilon)^{-1/2}$, "
        r"with $n$ numbers in a row; $d\hat x = \gamma \odot dz$",
    ),
    Row(
        batch_norm,
        STANDARDIZED,
        {"x": PROJECTED, **CHANNELS},
        _batch,
        same_as=lambda x, gamma, beta: (
            gamma * _standardized(x, tuple(range(x.ndim - 1)), 1e-5) + beta
        ),
        where="each channel by itself" + SHARED.replace("{}", "a column"),
    ),
    Row(
        batch_norm_inference,
        r"z = \gamma \odot r \odot (x - \mu) + \beta",
        {
            "x": r"dx = \gamma \odot r \odot dz",
            "mean": r"d\mu = -\gamma\,r\,d\beta",
            "variance": r"dq = -\tfrac12\,\gamma\,r^2\,d\gamma",
            **CHANNELS,
        },
        _inference,
        same_as=lambda x, mean, variance, gamma, beta: (
            gamma * jax.nn.standardize(x, mean=mean, variance=variance, epsilon=1e-5) + beta
        ),
        where=r"the mean $\mu$ and the variance $q$ are given; $r = (q + \epsilon)^{-1/2}$, and "
        r"$\hat x = r \odot (x - \mu)$",
    ),
    Row(
        group_norm,
        STANDARDIZED,
        {"x": PROJECTED, **CHANNELS},
        _groups,
        same_as=_each_group,
        where="each group by itself" + SHARED.replace("{}", "a group"),
    ),
    Row(
        l2_normalize,
        r"z = r\,x, \quad r = 1 / \lVert x \rVert",
        {"x": r"dx = r \left(dz - \langle z, dz \rangle\,z\right)"},
        _vectors,
        same_as=lambda x, eps=0.0: x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + eps),
        where=r"with $\epsilon$: $r = (\langle x, x \rangle + \epsilon)^{-1/2}$",
    ),
    Row(
        weight_norm,
        r"W_i = g_i\,\hat v_i, \quad \hat v_i = r_i\,v_i",
        {
            "v": r"dv_i = g_i\,r_i \left(dW_i - dg_i\,\hat v_i\right)",
            "g": r"dg_i = \langle \hat v_i, dW_i \rangle",
        },
        _weights,
        same_as=lambda v, g: np.array(
            [b * a / np.linalg.norm(a) for a, b in zip(v, g, strict=True)]
        ),
        where=r"row by row, with $r_i = 1 / \lVert v_i \rVert$",
    ),
    Row(
        dynamic_tanh,
        r"z = \gamma \odot t + \beta, \quad t = \tanh(\alpha\,x)",
        {
            "x": r"dx = \alpha\,du",
            "alpha": r"d\alpha = \langle x, du \rangle",
            "gamma": r"d\gamma = \sum_i dz_i \odot t_i",
            "beta": CHANNELS["beta"],
        },
        _squashed,
        same_as=lambda x, alpha, gamma, beta: gamma * np.tanh(alpha * x) + beta,
        where=r"$du = \gamma \odot dz \odot (1 - t^2)$",
    ),
)
