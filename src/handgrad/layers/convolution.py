"""Convolution, pooling, upsampling.    Derivation: notebooks/13_convolution.ipynb

Images are (*batch, H, W, C), sequences (*batch, T, C), kernels (kh, kw, C, F) and (K, C, F). As in
every library for networks, the kernel is not flipped on the way forward: (13.2) is a
cross-correlation. A hyperparameter is one whole number for all axes of space, or a tuple with one
for each.
"""

import itertools
import math

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Float

Sizes = int | tuple[int, ...]


def conv1d(
    x: Float[ArrayLike, "*batch T C"],
    W: Float[ArrayLike, "K C F"],
    b: Float[ArrayLike, " F"],
    *,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
) -> Float[ArrayLike, "*batch P F"]:
    """z_i = b + sum_k W_k^T x_{si + dk - p}, (13.2): x (*batch, T, C) -> z (*batch, P, F).

    The input is 0 beyond its ends. P = floor((T + 2 p - d (K - 1) - 1) / s) + 1, (13.3), with
    the stride s, the padding p and the dilation d.

    Raises:
        TypeError: an argument is not a float array, or a shape does not fit the signature.
        ValueError: stride or dilation below 1, padding below 0, W larger than the padded input.

    """
    return _forward(x, W, *_geometry("W", x, W.shape[:1], stride, padding, dilation)) + b


def conv1d_fwd(x, W, b, *, stride=1, padding=0, dilation=1):
    """z, and the residuals (x, W)."""
    return conv1d(x, W, b, stride=stride, padding=padding, dilation=dilation), (x, W)


def conv1d_bwd(
    residuals: tuple[Float[ArrayLike, "*batch T C"], Float[ArrayLike, "K C F"]],
    dz: Float[ArrayLike, "*batch P F"],
    *,
    stride=1,
    padding=0,
    dilation=1,
):
    """(dx, dW, db) from dz (*batch, P, F): two convolutions and a sum."""
    x, W = residuals
    geometry = _geometry("W", x, W.shape[:1], stride, padding, dilation)
    dx = _to_input(dz, W, *geometry)  # (13.11)
    dW = _to_kernel(x, dz, W, *geometry)  # (13.13)
    db = dz.sum(axis=tuple(range(dz.ndim - 1)))  # (13.14)
    return dx, dW, db


def conv2d(
    x: Float[ArrayLike, "*batch H W C"],
    W: Float[ArrayLike, "kh kw C F"],
    b: Float[ArrayLike, " F"],
    *,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
) -> Float[ArrayLike, "*batch P Q F"]:
    """conv1d along two axes, (13.15): x (*batch, H, W, C) -> z (*batch, P, Q, F).

    Raises:
        TypeError: an argument is not a float array, or a shape does not fit the signature.
        ValueError: stride or dilation below 1, padding below 0, W larger than the padded input.

    """
    return _forward(x, W, *_geometry("W", x, W.shape[:2], stride, padding, dilation)) + b


def conv2d_fwd(x, W, b, *, stride=1, padding=0, dilation=1):
    """z, and the residuals (x, W)."""
    return conv2d(x, W, b, stride=stride, padding=padding, dilation=dilation), (x, W)


def conv2d_bwd(
    residuals: tuple[Float[ArrayLike, "*batch H W C"], Float[ArrayLike, "kh kw C F"]],
    dz: Float[ArrayLike, "*batch P Q F"],
    *,
    stride=1,
    padding=0,
    dilation=1,
):
    """(dx, dW, db) from dz (*batch, P, Q, F): two convolutions and a sum."""
    x, W = residuals
    geometry = _geometry("W", x, W.shape[:2], stride, padding, dilation)
    dx = _to_input(dz, W, *geometry)  # (13.11)
    dW = _to_kernel(x, dz, W, *geometry)  # (13.13)
    db = dz.sum(axis=tuple(range(dz.ndim - 1)))  # (13.14)
    return dx, dW, db


def depthwise_conv2d(
    x: Float[ArrayLike, "*batch H W C"],
    W: Float[ArrayLike, "kh kw C"],
    b: Float[ArrayLike, " C"],
    *,
    stride: Sizes = 1,
    padding: Sizes = 0,
) -> Float[ArrayLike, "*batch P Q C"]:
    """conv2d with a kernel of its own for each channel, (13.16): x (*batch, H, W, C) -> z.

    Raises:
        TypeError: an argument is not a float array, or a shape does not fit the signature.
        ValueError: stride below 1, padding below 0, W larger than the padded input.

    """
    geometry = _geometry("W", x, W.shape[:2], stride, padding)
    return _forward(x, W[:, :, None], *geometry, groups=W.shape[2]) + b


def depthwise_conv2d_fwd(x, W, b, *, stride=1, padding=0):
    """z, and the residuals (x, W)."""
    return depthwise_conv2d(x, W, b, stride=stride, padding=padding), (x, W)


def depthwise_conv2d_bwd(
    residuals: tuple[Float[ArrayLike, "*batch H W C"], Float[ArrayLike, "kh kw C"]],
    dz: Float[ArrayLike, "*batch P Q C"],
    *,
    stride=1,
    padding=0,
):
    """(dx, dW, db) from dz (*batch, P, Q, C), channel by channel."""
    x, W = residuals
    geometry, groups = _geometry("W", x, W.shape[:2], stride, padding), W.shape[2]
    dx = _to_input(dz, W[:, :, None], *geometry, groups=groups)  # (13.17)
    dW = _to_kernel(x, dz, W[:, :, None], *geometry, groups=groups).squeeze(2)  # (13.17)
    db = dz.sum(axis=tuple(range(dz.ndim - 1)))  # (13.14)
    return dx, dW, db


def conv2d_transpose(
    x: Float[ArrayLike, "*batch P Q F"],
    W: Float[ArrayLike, "kh kw C F"],
    b: Float[ArrayLike, " C"],
    *,
    stride: Sizes = 1,
    padding: Sizes = 0,
) -> Float[ArrayLike, "*batch H W C"]:
    """The adjoint of conv2d with the same W, (13.18): x (*batch, P, Q, F) -> z (*batch, H, W, C).

    H = s (P - 1) + kh - 2 p, the smallest size from which conv2d makes P.

    Raises:
        TypeError: an argument is not a float array, or a shape does not fit the signature.
        ValueError: stride below 1, padding below 0, or so large that no output is left; x or W
            without an entry along an axis of space.

    """
    return _to_input(x, W, *_adjoint_geometry(x, W.shape[:2], stride, padding)) + b


def conv2d_transpose_fwd(x, W, b, *, stride=1, padding=0):
    """z, and the residuals (x, W)."""
    return conv2d_transpose(x, W, b, stride=stride, padding=padding), (x, W)


def conv2d_transpose_bwd(
    residuals: tuple[Float[ArrayLike, "*batch P Q F"], Float[ArrayLike, "kh kw C F"]],
    dz: Float[ArrayLike, "*batch H W C"],
    *,
    stride=1,
    padding=0,
):
    """(dx, dW, db) from dz (*batch, H, W, C): dz stands where the input of conv2d stood."""
    x, W = residuals
    geometry = _adjoint_geometry(x, W.shape[:2], stride, padding)
    dx = _forward(dz, W, *geometry)  # (13.19)
    dW = _to_kernel(dz, x, W, *geometry)  # (13.19)
    db = dz.sum(axis=tuple(range(dz.ndim - 1)))  # (13.14)
    return dx, dW, db


def max_pool(
    x: Float[ArrayLike, "*batch H W C"], *, window: Sizes, stride: Sizes
) -> Float[ArrayLike, "*batch P Q C"]:
    """z = the largest entry of each window, (13.20): x (*batch, H, W, C) -> z (*batch, P, Q, C).

    Of several largest ones the first, row by row, gets the cotangent, as in JAX's derivative of
    reduce_window. A NaN makes its window's z NaN, and the window's cotangent then goes nowhere.

    Raises:
        TypeError: x is not a float array with the axes H, W and C.
        ValueError: window or stride below 1, window larger than the input.

    """
    return lax.reduce_window(x, -jnp.inf, lax.max, **_pooled(x, window, stride))


def max_pool_fwd(x, *, window, stride):
    """z, and the residuals (x, z): the input and the output, nothing more."""
    z = max_pool(x, window=window, stride=stride)
    return z, (x, z)


def max_pool_bwd(
    residuals: tuple[Float[ArrayLike, "*batch H W C"], Float[ArrayLike, "*batch P Q C"]],
    dz: Float[ArrayLike, "*batch P Q C"],
    *,
    window,
    stride,
):
    """(dx,): every window sends its cotangent to its maximum; what arrives at one entry adds up."""
    x, z = residuals
    dx, waits = jnp.zeros_like(x), jnp.ones_like(z, bool)
    for place in _places(x, window, stride):
        here = waits & (_at(x, place) == z)  # the first maximum of its window
        dx = dx + _put(jnp.where(here, dz, 0), place)  # (13.22)
        waits = waits & ~here
    return (dx,)


def average_pool(
    x: Float[ArrayLike, "*batch H W C"], *, window: Sizes, stride: Sizes
) -> Float[ArrayLike, "*batch P Q C"]:
    """z = the mean of each window, (13.23): x (*batch, H, W, C) -> z (*batch, P, Q, C).

    Raises:
        TypeError: x is not a float array with the axes H, W and C.
        ValueError: window or stride below 1, window larger than the input.

    """
    size = math.prod(_each("window", window, 2))
    return lax.reduce_window(x, 0.0, lax.add, **_pooled(x, window, stride)) / size


def average_pool_fwd(x, *, window, stride):
    """z, and no number: what is kept has no entries, and tells the size of x."""
    return average_pool(x, window=window, stride=stride), x[..., :0]


def average_pool_bwd(
    like: Float[ArrayLike, "*batch H W 0"], dz: Float[ArrayLike, "*batch P Q C"], *, window, stride
):
    """(dx,): every entry of a window gets the same share of its cotangent; windows add up."""
    stride, padding, _, reach, tail = _geometry("window", like, _each("window", window, 2), stride)
    _fits(dz, like, stride, padding, reach, tail)
    places = list(_places(like, window, stride))
    dx = sum(_put(dz, place) for place in places) / len(places)  # (13.24)
    return (dx,)


def upsample(
    x: Float[ArrayLike, "*batch P Q C"], *, factor: Sizes
) -> Float[ArrayLike, "*batch H W C"]:
    """z_i = x_{floor(i / factor)} along both axes, (13.25): each pixel is repeated in a block.

    Raises:
        TypeError: x is not a float array with the axes P, Q and C.
        ValueError: factor below 1.

    """
    tall, wide = _each("factor", factor, 2)
    return jnp.repeat(jnp.repeat(x, tall, axis=-3), wide, axis=-2)


def upsample_fwd(x, *, factor):
    """z. Nothing is kept."""
    return upsample(x, factor=factor), ()


def upsample_bwd(_: tuple[()], dz: Float[ArrayLike, "*batch H W C"], *, factor):
    """(dx,): the cotangents of a block add up in the pixel that all of it was read from."""
    tall, wide = _each("factor", factor, 2)
    *batch, height, width, channels = dz.shape
    blocks = (*batch, height // tall, tall, width // wide, wide, channels)
    dx = dz.reshape(blocks).sum(axis=(-4, -2))  # (13.26)
    return (dx,)


def _each(name, value, axes, least=1):
    # A hyperparameter as a tuple with one number for each axis of space.
    values = (value,) * axes if isinstance(value, int) else value
    if len(values) != axes or min(values) < least:
        wanted = f"a whole number of at least {least}, or {axes} of them"
        raise ValueError(f"{name}: expected {wanted}; got {value}")
    return values


def _geometry(name, x, size, stride, padding=0, dilation=1):
    # (stride, padding, dilation, reach, tail), each with one number for each axis of space. A
    # window's last entry lies reach behind its first; no window reads the tail, (13.4).
    axes = len(size)
    stride, dilation = _each("stride", stride, axes), _each("dilation", dilation, axes)
    padding = _each("padding", padding, axes, least=0)
    padded = [n + 2 * p for n, p in zip(x.shape[-axes - 1 : -1], padding, strict=True)]
    reach = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
    room = [n - r - 1 for n, r in zip(padded, reach, strict=True)]
    if min(size) < 1 or min(room) < 0:
        reaches = ", dilated to " + str(tuple(r + 1 for r in reach)) if max(dilation) > 1 else ""
        raise ValueError(
            f"{name}: expected at least 1 entry along each axis of space, and no more than the "
            f"padded input has, {tuple(padded)}; got {tuple(size)}{reaches}"
        )
    tail = [n % s for n, s in zip(room, stride, strict=True)]
    return stride, padding, dilation, reach, tail


def _adjoint_geometry(x, size, stride, padding):
    # That of the smallest input from which conv2d makes x's size, (13.18): it has no tail.
    axes = len(size)
    stride, padding = _each("stride", stride, axes), _each("padding", padding, axes, least=0)
    given = x.shape[-axes - 1 : -1]
    for name, sizes in ("x", given), ("W", size):
        if min(sizes) < 1:
            wanted = "at least 1 entry along each axis of space"
            raise ValueError(f"{name}: expected {wanted}; got {tuple(sizes)}")
    reach, none = [k - 1 for k in size], [0] * axes
    sides = zip(given, stride, padding, reach, strict=True)
    made = tuple(s * (n - 1) + r + 1 - 2 * p for n, s, p, r in sides)
    if min(made) < 1:
        raise ValueError(f"padding: expected one that leaves an output; {padding} leaves {made}")
    return stride, padding, (1,) * axes, reach, none


def _forward(x, W, stride, padding, dilation, reach, tail, groups=1):
    # (13.2)
    pads = [(p, p) for p in padding]
    grouped = {"feature_group_count": groups}
    z = _correlate(_flat(x, W), W, "N.C .IO N.C", stride, pads, 1, dilation, grouped)
    return z.reshape(*x.shape[: 1 - W.ndim], *z.shape[1:])


def _to_input(dz, W, stride, padding, dilation, reach, tail, groups=1):
    # (13.11): the kernel is flipped, and what was the stride dilates the cotangent.
    pads = [(r - p, r - p + t) for r, p, t in zip(reach, padding, tail, strict=True)]
    turned, grouped = ".OI" if groups == 1 else ".IO", {"feature_group_count": groups}
    flipped, layout = jnp.flip(W, range(len(stride))), f"N.C {turned} N.C"
    dx = _correlate(_flat(dz, W), flipped, layout, 1, pads, stride, dilation, grouped)
    return dx.reshape(*dz.shape[: 1 - W.ndim], *dx.shape[1:])


def _to_kernel(x, dz, W, stride, padding, dilation, reach, tail, groups=1):
    # (13.13): the cotangent is the kernel, and stride and dilation change places. The examples
    # stand where channels do: they are what is summed over.
    _fits(dz, x, stride, padding, reach, tail)
    pads = [(p, p - t) for p, t in zip(padding, tail, strict=True)]
    grouped = {"batch_group_count": groups}
    x, dz = _flat(x, W), _flat(dz, W)
    return _correlate(x, dz, "C.N I.O .NC", dilation, pads, 1, stride, grouped)


def _fits(dz, x, stride, padding, reach, tail):
    # Each place in dz is that of a window in x. For conv2d_transpose the two change places here.
    axes = len(stride)
    small, large = dz.shape[-axes - 1 : -1], x.shape[-axes - 1 : -1]
    sides = zip(small, stride, padding, reach, tail, strict=True)
    read = tuple(s * (n - 1) + r + 1 + t - 2 * p for n, s, p, r, t in sides)
    if read != large:
        raise ValueError(f"dz: does not fit x: {small} windows read {read} entries, not {large}")


def _correlate(x, W, layout, stride, pads, input_dilation, dilation, groups):
    space = "HW"[: x.ndim - 2]
    ones = (1,) * len(space)
    return lax.conv_general_dilated(
        *(x, W, ones if stride == 1 else stride, pads),
        lhs_dilation=ones if input_dilation == 1 else input_dilation,
        rhs_dilation=dilation,
        dimension_numbers=tuple(layout.replace(".", space).split()),
        **groups,
    )


def _flat(x, W):
    # one batch axis in place of any number
    return x.reshape(math.prod(x.shape[: 1 - W.ndim]), *x.shape[1 - W.ndim :])


def _pooled(x, window, stride):
    # lax.reduce_window's arguments
    window = _each("window", window, 2)
    stride, *_ = _geometry("window", x, window, stride)
    ones = (1,) * (x.ndim - 3)
    return {
        "window_dimensions": (*ones, *window, 1),
        "window_strides": (*ones, *stride, 1),
        "padding": "VALID",
    }


def _places(x, window, stride):
    # For each entry of a window, row by row: along each axis, how many entries of x come before the
    # first one that stands there, after the last, and between two.
    window = _each("window", window, 2)
    stride, _, _, reach, tail = _geometry("window", x, window, stride)
    for entry in itertools.product(*map(range, window)):
        yield [(i, r - i + t, s - 1) for i, r, t, s in zip(entry, reach, tail, stride, strict=True)]


def _at(x, place):
    # what stands at one place of all windows, (*batch, P, Q, C)
    height, width = (
        slice(before, size - after, between + 1)
        for size, (before, after, between) in zip(x.shape[-3:-1], place, strict=True)
    )
    return x[..., height, width, :]


def _put(dz, place):
    # the adjoint of _at: back to where it stood, and 0 elsewhere
    none = (0, 0, 0)
    return lax.pad(dz, jnp.zeros((), dz.dtype), [none] * (dz.ndim - 3) + [*place, none])
