"""Normalisations.    Derivation: notebooks/11_normalization.ipynb

Numbers that are normalised together lose their mean, their length, or both; channels come last. On
the way back the cotangent loses the same: what points along 1 and along xhat, (11.12).

xhat is the normalised input, and r the inverse deviation, one for all numbers that share it. eps
is added below the root and counts in every gradient. Numbers that are all equal have no deviation:
xhat is 0, or a rounding error of the mean times r; with eps = 0 it is NaN, or one rounding error
divided by another.

Squares are taken in the dtype of x. Where they overflow (above some 1e19 in float32, 255 in
float16) r is 0, and so is xhat; where they underflow and eps = 0, r is inf.
"""

import math

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float


def layer_norm(
    x: Float[ArrayLike, "*batch d"],
    gamma: Float[ArrayLike, " d"],
    beta: Float[ArrayLike, " d"],
    *,
    eps: float | int = 1e-5,
) -> Float[ArrayLike, "*batch d"]:
    """z = gamma xhat + beta, (11.2): x (*batch, d), each example normalised over its d channels.

    Ba, Kiros and Hinton 2016, section 3.

    Raises:
        TypeError: an argument is not a float array, or gamma or beta has not d entries.
        ValueError: d < 2, so that nothing is left once the mean is subtracted; or eps < 0.

    """
    xhat, _ = _standardized(x, (-1,), eps)
    return gamma * xhat + beta


def layer_norm_fwd(x, gamma, beta, *, eps=1e-5):
    """z, and the residuals (xhat, r, gamma); r has the shape (*batch, 1)."""
    xhat, r = _standardized(x, (-1,), eps)
    return gamma * xhat + beta, (xhat, r, gamma)


def layer_norm_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch d"], Float[ArrayLike, "*batch 1"], Float[ArrayLike, " d"]
    ],
    dz: Float[ArrayLike, "*batch d"],
    *,
    eps=1e-5,
):
    """(dx, dgamma, dbeta): what points along 1 and along xhat is taken away, the rest times r."""
    xhat, r, gamma = residuals
    dxhat = gamma * dz  # (11.6)
    dx = r * (dxhat - _mean(dxhat, -1) - xhat * _mean(xhat * dxhat, -1))  # (11.12)
    dgamma = _over_examples(dz * xhat)  # (11.5)
    dbeta = _over_examples(dz)  # (11.4)
    return dx, dgamma, dbeta


def rms_norm(
    x: Float[ArrayLike, "*batch d"], gamma: Float[ArrayLike, " d"], *, eps: float | int = 1e-5
) -> Float[ArrayLike, "*batch d"]:
    """z = gamma x / sqrt(mean(x^2) + eps), (11.16): x (*batch, d), gamma (d,).

    With eps = 0 the vector 0 gives NaN. Zhang and Sennrich 2019, section 4.

    Raises:
        TypeError: an argument is not a float array, or gamma has not d entries.
        ValueError: eps < 0.

    """
    xhat, _ = _scaled(x, eps, jnp.mean)
    return gamma * xhat


def rms_norm_fwd(x, gamma, *, eps=1e-5):
    """z, and the residuals (xhat, r, gamma); r has the shape (*batch, 1)."""
    xhat, r = _scaled(x, eps, jnp.mean)
    return gamma * xhat, (xhat, r, gamma)


def rms_norm_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch d"], Float[ArrayLike, "*batch 1"], Float[ArrayLike, " d"]
    ],
    dz: Float[ArrayLike, "*batch d"],
    *,
    eps=1e-5,
):
    """(dx, dgamma): no mean was subtracted, so none is subtracted on the way back."""
    xhat, r, gamma = residuals
    dxhat = gamma * dz  # (11.6)
    dx = r * (dxhat - xhat * _mean(xhat * dxhat, -1))  # (11.17)
    dgamma = _over_examples(dz * xhat)  # (11.5)
    return dx, dgamma


def batch_norm(
    x: Float[ArrayLike, "*batch d"],
    gamma: Float[ArrayLike, " d"],
    beta: Float[ArrayLike, " d"],
    *,
    eps: float | int = 1e-5,
) -> Float[ArrayLike, "*batch d"]:
    """z = gamma xhat + beta, (11.2): x (*batch, d), each channel normalised over all examples.

    This is how it is trained, with the variance of the batch at hand, biased (divided by the number
    of examples). Ioffe and Szegedy 2015, algorithm 1.

    Raises:
        TypeError: an argument is not a float array, or gamma or beta has not d entries.
        ValueError: there are fewer than two examples, or eps < 0.

    """
    xhat, _ = _standardized(x, _batch_axes(x), eps)
    return gamma * xhat + beta


def batch_norm_fwd(x, gamma, beta, *, eps=1e-5):
    """z, and the residuals (xhat, r, gamma); r has the shape (1, ..., 1, d)."""
    xhat, r = _standardized(x, _batch_axes(x), eps)
    return gamma * xhat + beta, (xhat, r, gamma)


def batch_norm_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch d"], Float[ArrayLike, "*ones d"], Float[ArrayLike, " d"]
    ],
    dz: Float[ArrayLike, "*batch d"],
    *,
    eps=1e-5,
):
    """(dx, dgamma, dbeta): as in layer norm, channel by channel. Examples depend on each other."""
    xhat, r, gamma = residuals
    axes = _batch_axes(dz)
    dxhat = gamma * dz  # (11.6)
    dx = r * (dxhat - _mean(dxhat, axes) - xhat * _mean(xhat * dxhat, axes))  # (11.12)
    dgamma = _over_examples(dz * xhat)  # (11.5)
    dbeta = _over_examples(dz)  # (11.4)
    return dx, dgamma, dbeta


def batch_norm_inference(
    x: Float[ArrayLike, "*batch d"],
    mean: Float[ArrayLike, " d"],
    variance: Float[ArrayLike, " d"],
    gamma: Float[ArrayLike, " d"],
    beta: Float[ArrayLike, " d"],
    *,
    eps: float | int = 1e-5,
) -> Float[ArrayLike, "*batch d"]:
    """z = gamma (x - mean) / sqrt(variance + eps) + beta, (11.24): mean and variance are given.

    Where variance + eps is negative, z is NaN. Ioffe and Szegedy 2015, algorithm 2.

    Raises:
        TypeError: an argument is not a float array, or a parameter has not d entries.
        ValueError: eps < 0.

    """
    return gamma * (x - mean) * _inverse_root(variance, eps) + beta


def batch_norm_inference_fwd(x, mean, variance, gamma, beta, *, eps=1e-5):
    """z, and the residuals (x, mean, r, gamma): r is the one new array, and it has d entries."""
    z = batch_norm_inference(x, mean, variance, gamma, beta, eps=eps)
    return z, (x, mean, _inverse_root(variance, eps), gamma)


def batch_norm_inference_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch d"],
        Float[ArrayLike, " d"],
        Float[ArrayLike, " d"],
        Float[ArrayLike, " d"],
    ],
    dz: Float[ArrayLike, "*batch d"],
    *,
    eps=1e-5,
):
    """(dx, dmean, dvariance, dgamma, dbeta): with constants for statistics nothing is projected."""
    x, mean, r, gamma = residuals
    dx = gamma * r * dz  # (11.25)
    dgamma = _over_examples(dz * (x - mean) * r)  # (11.5)
    dbeta = _over_examples(dz)  # (11.4)
    dmean = -gamma * r * dbeta  # (11.26)
    dvariance = -gamma * r**2 * dgamma / 2  # (11.27)
    return dx, dmean, dvariance, dgamma, dbeta


def group_norm(
    x: Float[ArrayLike, "N *space d"],
    gamma: Float[ArrayLike, " d"],
    beta: Float[ArrayLike, " d"],
    *,
    groups: int,
    eps: float | int = 1e-5,
) -> Float[ArrayLike, "N *space d"]:
    """z = gamma xhat + beta, (11.2): each example's channels in groups of neighbours, (11.23).

    x (N, *space, d) has N examples; the mean of a group is over its channels and over all places in
    space. One group is layer norm over space and channels, d groups are instance norm. Wu and He
    2018, section 3.

    Raises:
        TypeError: an argument is not a float array, or gamma or beta has not d entries.
        ValueError: groups does not divide d, a group has fewer than two numbers, or eps < 0.

    """
    xhat, _ = _standardized(_grouped(x, groups), (1, 3), eps)
    return gamma * xhat.reshape(x.shape) + beta


def group_norm_fwd(x, gamma, beta, *, groups, eps=1e-5):
    """z, and the residuals (xhat, r, gamma); xhat has the shape (N, places, groups, d / groups)."""
    xhat, r = _standardized(_grouped(x, groups), (1, 3), eps)
    return gamma * xhat.reshape(x.shape) + beta, (xhat, r, gamma)


def group_norm_bwd(
    residuals: tuple[
        Float[ArrayLike, "N places groups share"],
        Float[ArrayLike, "N 1 groups 1"],
        Float[ArrayLike, " d"],
    ],
    dz: Float[ArrayLike, "N *space d"],
    *,
    groups,
    eps=1e-5,
):
    """(dx, dgamma, dbeta): as in layer norm, group by group; gamma counts channels, not groups."""
    xhat, r, gamma = residuals
    shape, dz = dz.shape, _grouped(dz, groups)
    dxhat = gamma.reshape(groups, -1) * dz  # (11.6)
    dx = r * (dxhat - _mean(dxhat, (1, 3)) - xhat * _mean(xhat * dxhat, (1, 3)))  # (11.12)
    dgamma = (dz * xhat).sum(axis=(0, 1))  # (11.5)
    dbeta = dz.sum(axis=(0, 1))  # (11.4)
    return dx.reshape(shape), dgamma.reshape(gamma.shape), dbeta.reshape(gamma.shape)


def l2_normalize(
    x: Float[ArrayLike, "*batch d"], *, eps: float | int = 0.0
) -> Float[ArrayLike, "*batch d"]:
    """z = x / sqrt(|x|^2 + eps), (11.18): x (*batch, d), each example of length 1.

    With eps = 0 the vector 0 has no direction, and gives NaN.

    Raises:
        TypeError: x is not a float array.
        ValueError: eps < 0.

    """
    z, _ = _scaled(x, eps, jnp.sum)
    return z


def l2_normalize_fwd(x, *, eps=0.0):
    """z, and the residuals (z, r); r has the shape (*batch, 1)."""
    z, r = _scaled(x, eps, jnp.sum)
    return z, (z, r)


def l2_normalize_bwd(
    residuals: tuple[Float[ArrayLike, "*batch d"], Float[ArrayLike, "*batch 1"]],
    dz: Float[ArrayLike, "*batch d"],
    *,
    eps=0.0,
):
    """(dx,): what points along z is taken away, the rest divided by the length of x."""
    z, r = residuals
    dx = r * dz - z * (r * (z * dz).sum(axis=-1, keepdims=True))  # (11.19)
    return (dx,)


def weight_norm(v: Float[ArrayLike, "h d"], g: Float[ArrayLike, " h"]) -> Float[ArrayLike, "h d"]:
    """W_i = g_i v_i / |v_i|, (11.20): v (h, d) gives each row its direction, g (h,) its length.

    A row of v that is 0 has no direction, and gives NaN. Salimans and Kingma 2016, section 2.

    Raises:
        TypeError: an argument is not a float array, or g has not h entries.

    """
    vhat, _ = _scaled(v, 0, jnp.sum)
    return g[:, None] * vhat


def weight_norm_fwd(v, g):
    """W, and the residuals (v, g, r): r (h, 1) is the one new array."""
    vhat, r = _scaled(v, 0, jnp.sum)
    return g[:, None] * vhat, (v, g, r)


def weight_norm_bwd(
    residuals: tuple[Float[ArrayLike, "h d"], Float[ArrayLike, " h"], Float[ArrayLike, "h 1"]],
    dW: Float[ArrayLike, "h d"],
):
    """(dv, dg): the part of dW along v is for the length, the rest for the direction."""
    v, g, r = residuals
    vhat = v * r
    dg = (vhat * dW).sum(axis=1)  # (11.21)
    dv = g[:, None] * r * (dW - vhat * dg[:, None])  # (11.22)
    return dv, dg


def dynamic_tanh(
    x: Float[ArrayLike, "*batch d"],
    alpha: Float[ArrayLike, ""],
    gamma: Float[ArrayLike, " d"],
    beta: Float[ArrayLike, " d"],
) -> Float[ArrayLike, "*batch d"]:
    """z = gamma tanh(alpha x) + beta, (11.28): x (*batch, d), and one number alpha for all.

    No norm: each output depends on one input. Where |alpha x| is large, the slope is read off the
    output, and loses digits as that of handgrad.tanh does. Zhu and others 2025, section 4.

    Raises:
        TypeError: an argument is not a float array, alpha not one number, or gamma or beta has
            not d entries.

    """
    return gamma * jnp.tanh(alpha * x) + beta


def dynamic_tanh_fwd(x, alpha, gamma, beta):
    """z, and the residuals (x, t, alpha, gamma), with t = tanh(alpha x)."""
    t = jnp.tanh(alpha * x)
    return gamma * t + beta, (x, t, alpha, gamma)


def dynamic_tanh_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch d"],
        Float[ArrayLike, "*batch d"],
        Float[ArrayLike, ""],
        Float[ArrayLike, " d"],
    ],
    dz: Float[ArrayLike, "*batch d"],
):
    """(dx, dalpha, dgamma, dbeta): alpha is read by every entry of every example."""
    x, t, alpha, gamma = residuals
    du = gamma * dz * (1 - t * t)  # (11.30)
    dx = alpha * du  # (11.31)
    dalpha = (x * du).sum()  # (11.32)
    dgamma = _over_examples(dz * t)  # (11.29)
    dbeta = _over_examples(dz)  # (11.4)
    return dx, dalpha, dgamma, dbeta


def _standardized(x, axes, eps):
    # xhat and r, with the mean and the variance along the axes
    count = math.prod(x.shape[axis] for axis in axes)
    if count < 2:
        raise ValueError(
            f"x: expected at least 2 numbers to share a mean; got {count}, in the shape {x.shape}"
        )
    c = x - _mean(x, axes)
    r = _inverse_root(_mean(c * c, axes), eps)
    return c * r, r


def _scaled(x, eps, total):
    # xhat and r, without a mean; total is the sum or the mean of the squares
    r = _inverse_root(total(x * x, axis=-1, keepdims=True), eps)
    return x * r, r


def _inverse_root(variance, eps):
    if not eps >= 0:
        raise ValueError(f"eps: expected a number that is not negative; got {eps}")
    return 1 / jnp.sqrt(variance + eps)


def _mean(u, axes):
    return jnp.mean(u, axis=axes, keepdims=True)


def _over_examples(u):
    # all examples (and places) read a channel's parameter, so their cotangents add up
    return jnp.sum(u, axis=_batch_axes(u))


def _batch_axes(u):
    return tuple(range(u.ndim - 1))


def _grouped(x, groups):
    # (N, *space, d) -> (N, places, groups, d / groups)
    N, *space, d = x.shape
    if groups < 1 or d % groups:
        raise ValueError(f"groups: expected a divisor of the {d} channels; got {groups}")
    return x.reshape(N, math.prod(space), groups, d // groups)
