"""The rows of layers/convolution.py."""

import jax
import numpy as np

from handgrad.catalog import Row
from handgrad.layers.convolution import (
    average_pool,
    conv1d,
    conv2d,
    conv2d_transpose,
    depthwise_conv2d,
    max_pool,
    upsample,
)

# Few shapes and few hyperparameters: each is a compilation of its own. At an extreme no long sum
# cancels, since in float32 that would show in which order it was added up, and nothing else.


def _sequences(rng):
    def of(*batch, length, scale=1.0):
        W, b = rng.normal(size=(2, 4, 3)), rng.normal(size=3)
        return scale * rng.normal(size=(*batch, length, 4)), W, b

    return {
        "typical": (of(3, length=9), {"stride": 2, "padding": 1, "dilation": 2}),
        "edge: one sequence, as short as the kernel": (of(length=2), {}),
        "extreme: 1e4": (of(length=2, scale=1e4), {}),
    }


def _images(rng):
    def of(*batch, size, scale=1.0):
        W, b = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=5)
        return scale * rng.normal(size=(*batch, *size, 4)), W, b

    return {
        "typical": (of(3, size=(7, 6)), {"stride": (3, 1), "padding": 1, "dilation": (2, 1)}),
        "edge: two batch axes, as small as the kernel": (of(1, 2, size=(2, 3)), {}),
        "extreme: 1e4": (of(1, 1, size=(2, 3), scale=1e4), {}),
    }


def _one_kernel_a_channel(rng):
    def of(*batch, size, scale=1.0):
        W, b = rng.normal(size=(2, 3, 4)), rng.normal(size=4)
        return scale * rng.normal(size=(*batch, *size, 4)), W, b

    return {
        "typical": (of(3, size=(5, 6)), {"stride": 2, "padding": 1}),
        "edge: no batch axis, as small as the kernel": (of(size=(2, 3)), {}),
        "extreme: 1e4": (of(size=(2, 3), scale=1e4), {}),
    }


def _small_images(rng):
    def of(*batch, size, scale=1.0):
        W, b = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=4)
        return scale * rng.normal(size=(*batch, *size, 5)), W, b

    return {
        "typical": (of(2, size=(4, 3)), {"stride": (3, 2), "padding": 1}),
        "edge: one pixel, no batch axis": (of(size=(1, 1)), {}),
        "extreme: 1e4": (of(size=(1, 1), scale=1e4), {}),
    }


def _pooled(rng):
    overlapping, apart = {"window": (3, 2), "stride": (2, 1)}, {"window": 2, "stride": 3}
    ties = 1e4 * rng.integers(2, size=(3, 6, 5, 4)).astype(float)
    return {
        "typical": ((rng.normal(size=(3, 6, 5, 4)),), overlapping),
        "edge: gaps between windows, no batch axis": ((rng.normal(size=(6, 5, 4)),), apart),
        "extreme: ties, and up to 1e4": ((ties,), overlapping),
    }


def _blocks(rng):
    return {
        "typical": ((rng.normal(size=(2, 3, 5, 4)),), {"factor": (3, 2)}),
        "edge: no batch axis": ((rng.normal(size=(3, 5, 4)),), {"factor": (3, 2)}),
        "extreme: 1e4": ((1e4 * rng.normal(size=(3, 5, 4)),), {"factor": 1}),
    }


def _loops(x, W, b, *, stride=1, padding=0, dilation=1):
    # One output at a time, in NumPy.
    axes = W.ndim - 2
    stride, padding, dilation = (np.broadcast_to(v, axes) for v in (stride, padding, dilation))
    batch, size = x.shape[: -axes - 1], x.shape[-axes - 1 :]
    pads = [(0, 0), *((p, p) for p in padding), (0, 0)]
    x = np.pad(np.reshape(x, (-1, *size)), pads)
    reach = dilation * (np.array(W.shape[:axes]) - 1)
    out = (np.array(x.shape[1:-1]) - reach - 1) // stride + 1
    z = np.zeros((len(x), *out, W.shape[-1]))
    for place in np.ndindex(*out):
        for k in np.ndindex(*W.shape[:axes]):
            read = stride * place + dilation * k
            z[(slice(None), *place)] += x[(slice(None), *read)] @ W[k]
    return (z + b).reshape(*batch, *z.shape[1:])


def _channel_by_channel(x, W, b, **hyper):
    one = [_loops(x[..., [c]], W[:, :, [c], None], b[[c]], **hyper) for c in range(W.shape[-1])]
    return np.concatenate(one, axis=-1)


def _jax_s_transpose(x, W, b, *, stride=1, padding=0):
    stride, padding = (tuple(map(int, np.broadcast_to(v, 2))) for v in (stride, padding))
    pads = [(k - 1 - p, k - 1 - p) for k, p in zip(W.shape[:2], padding, strict=True)]
    z = jax.lax.conv_transpose(
        *(x.reshape(-1, *x.shape[-3:]), W, stride, pads),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        transpose_kernel=True,
    )
    return (z + b).reshape(*x.shape[:-3], *z.shape[1:])


def _over_windows(reduce):
    def pool(x, *, window, stride):
        window, stride = (np.broadcast_to(v, 2) for v in (window, stride))
        views = np.lib.stride_tricks.sliding_window_view(x, window, axis=(-3, -2))
        return reduce(views[..., :: stride[0], :: stride[1], :, :, :], axis=(-2, -1))

    return pool


def _blown_up(x, *, factor):
    return np.kron(x, np.ones((*np.broadcast_to(factor, 2), 1)))


CONVOLUTION = {
    "x": r"dx_t = \sum_k W_k\,u_{t + p - \delta k}",
    "W": r"dW_k = \sum_n \sum_i x_{n,\, \delta k + s i - p}\;dz_{ni}^\top",
    "b": r"db = \sum_n \sum_i dz_{ni}",
}
DILATED = r"$u_{s i} = dz_i$, and $u$ is 0 elsewhere"

ROWS = (
    Row(
        conv1d,
        r"z_i = b + \sum_k W_k^\top x_{s i + \delta k - p}",
        CONVOLUTION,
        _sequences,
        same_as=_loops,
        where=DILATED,
    ),
    Row(
        conv2d,
        r"z_i = b + \sum_k W_k^\top x_{s i + \delta k - p}",
        CONVOLUTION,
        _images,
        same_as=_loops,
        where=DILATED + r"; $i$, $k$ and $t$ are pairs",
    ),
    Row(
        depthwise_conv2d,
        r"z_i = b + \sum_k W_k \odot x_{s i + k - p}",
        {
            "x": r"dx_t = \sum_{s i + k - p = t} W_k \odot dz_i",
            "W": r"dW_k = \sum_n \sum_i x_{n,\, s i + k - p} \odot dz_{ni}",
            "b": r"db = \sum_n \sum_i dz_{ni}",
        },
        _one_kernel_a_channel,
        same_as=_channel_by_channel,
    ),
    Row(
        conv2d_transpose,
        r"z_t = b + \sum_{s i + k - p = t} W_k\,x_i",
        {
            "x": r"dx_i = \sum_k W_k^\top dz_{s i + k - p}",
            "W": r"dW_k = \sum_n \sum_i dz_{n,\, s i + k - p}\;x_{ni}^\top",
            "b": r"db = \sum_n \sum_i dz_{ni}",
        },
        _small_images,
        same_as=_jax_s_transpose,
    ),
    Row(
        max_pool,
        r"z_i = \max_k x_{s i + k}",
        {"x": r"dx_t = \sum_{i\,:\; m(i) = t} dz_i"},
        _pooled,
        same_as=_over_windows(np.max),
        where=r"$m(i)$ is the first place in window $i$ where $x_{m(i)} = z_i$",
    ),
    Row(
        average_pool,
        r"z_i = \frac{1}{n} \sum_k x_{s i + k}",
        {"x": r"dx_t = \frac{1}{n} \sum_{(i, k)\,:\; s i + k = t} dz_i"},
        _pooled,
        same_as=_over_windows(np.mean),
        where=r"$n$ is the size of a window",
    ),
    Row(
        upsample,
        r"z_t = x_{\lfloor t / f \rfloor}",
        {"x": r"dx_i = \sum_{t\,:\; \lfloor t / f \rfloor = i} dz_t"},
        _blocks,
        same_as=_blown_up,
        where=r"$f$ is the factor",
    ),
)
