"""Losses: one value an example.    Derivation: notebooks/10_losses.ipynb

In the order of the notebook: matched pairs of link and loss, whose gradient is prediction minus
target; functions of the difference p - t; margins; divergences and angles. squared_error stands in
gradient.py, softmax_cross_entropy in softmax_cross_entropy.py. The mean over examples is a step of
its own.

A target t or label y that is a float has a gradient, and is taken as it is; one that is an integer
has none, and where it is no label or no count, the loss is NaN. A wrong shape is a TypeError, a
hyperparameter out of range a ValueError; both name the argument.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import digamma, gammaln
from jax.typing import ArrayLike
from jaxtyping import Float, Integer, Real

from handgrad.layers.softmax_cross_entropy import _at, _one_hot


def sigmoid_cross_entropy(
    z: Float[ArrayLike, "*shape"], y: Real[ArrayLike, "*shape"]
) -> Float[ArrayLike, "*shape"]:
    """l = -y log sigmoid(z) - (1 - y) log sigmoid(-z), (10.1), a loss for each entry.

    y is 0, 1, or a float: a probability between them. An integer that is neither 0 nor 1 gives NaN.
    """
    y = _bit(y, z)
    return y * jax.nn.softplus(-z) + (1 - y) * jax.nn.softplus(z)


def sigmoid_cross_entropy_fwd(z, y):
    """l, and the residuals (z, y): the inputs, nothing more."""
    return sigmoid_cross_entropy(z, y), (z, y)


def sigmoid_cross_entropy_bwd(
    residuals: tuple[Float[ArrayLike, "*shape"], Real[ArrayLike, "*shape"]],
    dl: Float[ArrayLike, "*shape"],
):
    """(dz, dy): prediction minus target; and minus the logit, None for integers y."""
    z, y = residuals
    dz = (jax.nn.sigmoid(z) - _bit(y, z)) * dl  # (10.3)
    dy = -z * dl  # (10.4)
    return dz, _if_float(y, dy)


def poisson_nll(
    log_rate: Float[ArrayLike, "*shape"], t: Real[ArrayLike, "*shape"]
) -> Float[ArrayLike, "*shape"]:
    """l = exp(log_rate) - t log_rate + log t!, (10.9), for each entry.

    The count t is an integer or a float. A negative integer gives NaN.
    """
    t = _count(t, log_rate)
    return jnp.exp(log_rate) - t * log_rate + gammaln(t + 1)


def poisson_nll_fwd(log_rate, t):
    """l, and the residuals (log_rate, t)."""
    return poisson_nll(log_rate, t), (log_rate, t)


def poisson_nll_bwd(
    residuals: tuple[Float[ArrayLike, "*shape"], Real[ArrayLike, "*shape"]],
    dl: Float[ArrayLike, "*shape"],
):
    """(dlog_rate, dt): prediction minus target; dt is None for integers t."""
    log_rate, t = residuals
    count = _count(t, log_rate)
    dlog_rate = (jnp.exp(log_rate) - count) * dl  # (10.10)
    dt = (digamma(count + 1) - log_rate) * dl  # (10.11)
    return dlog_rate, _if_float(t, dt)


def gaussian_nll(
    mean: Float[ArrayLike, "*shape"],
    log_variance: Float[ArrayLike, "*shape"],
    t: Float[ArrayLike, "*shape"],
) -> Float[ArrayLike, "*shape"]:
    """l = (r^2 + log_variance + log 2 pi) / 2, (10.12), with r = (t - mean) / deviation.

    Where the inverse deviation overflows (log_variance below -177 in float32), l is inf, or NaN if
    t is the mean itself.
    """
    r = (t - mean) * jnp.exp(-log_variance / 2)
    return (r * r + log_variance + math.log(2 * math.pi)) / 2


def gaussian_nll_fwd(mean, log_variance, t):
    """l, and the residuals: r, and the inverse deviation."""
    inverse = jnp.exp(-log_variance / 2)
    return gaussian_nll(mean, log_variance, t), ((t - mean) * inverse, inverse)


def gaussian_nll_bwd(
    residuals: tuple[Float[ArrayLike, "*shape"], Float[ArrayLike, "*shape"]],
    dl: Float[ArrayLike, "*shape"],
):
    """(dmean, dlog_variance, dt)."""
    r, inverse = residuals
    half = dl / 2  # as in (10.12)
    dmean = -2 * r * half * inverse  # (10.13)
    dlog_variance = (1 - r * r) * half  # (10.14)
    dt = -dmean  # (10.15)
    return dmean, dlog_variance, dt


def sparsemax(z: Float[ArrayLike, "*batch k"]) -> Float[ArrayLike, "*batch k"]:
    """o, the distribution that is nearest to z, (10.19): o_i = max(0, z_i - tau), (10.20).

    Martins and Astudillo 2016, algorithm 1. A logit of -inf gets the probability 0.
    """
    z = z - lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))  # changes no value; saves digits
    order = jnp.argsort(-z, axis=-1)  # XLA sorts with places no slower, in newer versions faster
    ordered = jnp.take_along_axis(z, order, axis=-1)
    excess = jnp.cumsum(ordered, axis=-1) - 1
    inside = jnp.arange(1, z.shape[-1] + 1) * ordered > excess
    size = inside.sum(axis=-1, keepdims=True)
    tau = jnp.take_along_axis(excess, size - 1, axis=-1) / size
    return jnp.where(z <= tau, 0, z - tau)


def sparsemax_fwd(z):
    """o, the only residual: it shows its support."""
    o = sparsemax(z)
    return o, o


def sparsemax_bwd(o: Float[ArrayLike, "*batch k"], do: Float[ArrayLike, "*batch k"]):
    """(dz,): on the support do less its mean there, 0 elsewhere."""
    mean = jnp.mean(do, axis=-1, keepdims=True, where=o > 0)
    dz = jnp.where(o > 0, do - mean, 0)  # (10.21)
    return (dz,)


def multiclass_sparsemax_loss(
    z: Float[ArrayLike, "*batch k"], y: Integer[ArrayLike, "*batch"]
) -> Float[ArrayLike, "*batch"]:
    """l = <o, z> - z_y + (1 - |o|^2) / 2 with o = sparsemax(z), (10.22).

    It is 0 as soon as z_y leads by 1. A label out of range gives NaN.
    """
    o = sparsemax(z)
    z = z - lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
    return _times(o, z).sum(axis=-1) - _at(y, z) + (1 - (o * o).sum(axis=-1)) / 2


def multiclass_sparsemax_loss_fwd(z, y):
    """l, and the residuals (sparsemax(z), y)."""
    return multiclass_sparsemax_loss(z, y), (sparsemax(z), y)


def multiclass_sparsemax_loss_bwd(
    residuals: tuple[Float[ArrayLike, "*batch k"], Integer[ArrayLike, "*batch"]],
    dl: Float[ArrayLike, "*batch"],
):
    """(dz, None): prediction minus target."""
    o, y = residuals
    dz = (o - _one_hot(y, o)) * dl[..., None]  # (10.23)
    return dz, None


def absolute_error(
    p: Float[ArrayLike, "*shape"], t: Float[ArrayLike, "*shape"]
) -> Float[ArrayLike, "*shape"]:
    """l = |p - t|, (10.25), for each entry. At 0 the slope is taken to be 0."""
    return jnp.maximum(p - t, t - p)  # jnp.abs would have the slope 1 at 0


def absolute_error_fwd(p, t):
    """l, and the difference."""
    return absolute_error(p, t), p - t


def absolute_error_bwd(u: Float[ArrayLike, "*shape"], dl: Float[ArrayLike, "*shape"]):
    """(dp, dt), given u = p - t: the sign."""
    dp = jnp.sign(u) * dl  # (10.25)
    dt = -dp  # (10.24)
    return dp, dt


def huber(
    p: Float[ArrayLike, "*shape"], t: Float[ArrayLike, "*shape"], *, delta: float | int = 1.0
) -> Float[ArrayLike, "*shape"]:
    """l = u^2 / 2 while |u| <= delta, then a straight line, (10.26); u = p - t (Huber 1964).

    Raises:
        ValueError: delta is not positive.

    """
    _require("delta", delta, "a positive number", 0 < delta < math.inf)
    size = jnp.abs(p - t)
    near = jnp.minimum(size, delta)
    return near * near / 2 + delta * (size - near)


def huber_fwd(p, t, *, delta=1.0):
    """l, and the difference."""
    return huber(p, t, delta=delta), p - t


def huber_bwd(u: Float[ArrayLike, "*shape"], dl: Float[ArrayLike, "*shape"], *, delta=1.0):
    """(dp, dt), given u = p - t: the difference, clipped."""
    dp = jnp.clip(u, -delta, delta) * dl  # (10.26)
    dt = -dp  # (10.24)
    return dp, dt


def log_cosh(
    p: Float[ArrayLike, "*shape"], t: Float[ArrayLike, "*shape"]
) -> Float[ArrayLike, "*shape"]:
    """l = log cosh(p - t), (10.27): about u^2 / 2 for small u = p - t, |u| - log 2 for large.

    log 2 is taken away in the end: in float32 l is 0 for |u| < 3e-4, and the gradient is not.
    """
    return jnp.logaddexp(p - t, t - p) - math.log(2)


def log_cosh_fwd(p, t):
    """l, and the difference."""
    return log_cosh(p, t), p - t


def log_cosh_bwd(u: Float[ArrayLike, "*shape"], dl: Float[ArrayLike, "*shape"]):
    """(dp, dt), given u = p - t."""
    dp = jnp.tanh(u) * dl  # (10.27)
    dt = -dp  # (10.24)
    return dp, dt


def quantile(
    p: Float[ArrayLike, "*shape"], t: Float[ArrayLike, "*shape"], *, q: float
) -> Float[ArrayLike, "*shape"]:
    """l = (1 - q)(p - t) if p > t, q (t - p) if p < t, (10.28) (Koenker and Bassett 1978).

    Raises:
        ValueError: q is not between 0 and 1.

    """
    _require("q", q, "a number between 0 and 1", 0 < q < 1)
    return jnp.maximum((1 - q) * (p - t), q * (t - p))


def quantile_fwd(p, t, *, q):
    """l, and the difference."""
    return quantile(p, t, q=q), p - t


def quantile_bwd(u: Float[ArrayLike, "*shape"], dl: Float[ArrayLike, "*shape"], *, q):
    """(dp, dt), given u = p - t: whether p is above t (1, 0, or 1/2 at a tie), minus q."""
    dp = (jnp.heaviside(u, 0.5) - q) * dl  # (10.28)
    dt = -dp  # (10.24)
    return dp, dt


def hinge(
    z: Float[ArrayLike, "*shape"], y: Real[ArrayLike, "*shape"], *, margin: float | int = 1.0
) -> Float[ArrayLike, "*shape"]:
    """l = max(0, margin - y z), (10.29), for each entry; with margin = 0 the perceptron's loss.

    y is -1 or 1. Any other integer gives NaN.

    Raises:
        ValueError: margin is negative.

    """
    _require("margin", margin, "a number that is not negative", margin >= 0)
    return jnp.maximum(margin - _sign(y, z) * z, 0)


def hinge_fwd(z, y, *, margin=1.0):
    """l, and the residuals (z, y)."""
    return hinge(z, y, margin=margin), (z, y)


def hinge_bwd(
    residuals: tuple[Float[ArrayLike, "*shape"], Real[ArrayLike, "*shape"]],
    dl: Float[ArrayLike, "*shape"],
    *,
    margin=1.0,
):
    """(dz, dy): active is 1 inside the margin, 0 beyond, 1/2 on it. dy is None for integers y."""
    z, y = residuals
    label = _sign(y, z)
    active = jnp.heaviside(margin - label * z, 0.5)
    dz = -label * active * dl  # (10.30)
    dy = -z * active * dl  # (10.31)
    return dz, _if_float(y, dy)


def focal(
    z: Float[ArrayLike, "*shape"], y: Integer[ArrayLike, "*shape"], *, gamma: float | int = 2.0
) -> Float[ArrayLike, "*shape"]:
    """l = -(1 - o)^gamma log o, (10.32); o is the probability given to y (Lin et al. 2017).

    o = sigmoid(z) for y = 1, sigmoid(-z) for y = 0; any other y gives NaN. With gamma = 0 it is
    sigmoid_cross_entropy.

    Raises:
        ValueError: gamma is negative.

    """
    _require("gamma", gamma, "a number that is not negative", gamma >= 0)
    s = (2 * _bit(y, z) - 1) * z
    return jnp.exp(-gamma * jax.nn.softplus(s)) * jax.nn.softplus(-s)


def focal_fwd(z, y, *, gamma=2.0):
    """l, and the residuals (z, y)."""
    return focal(z, y, gamma=gamma), (z, y)


def focal_bwd(
    residuals: tuple[Float[ArrayLike, "*shape"], Integer[ArrayLike, "*shape"]],
    dl: Float[ArrayLike, "*shape"],
    *,
    gamma=2.0,
):
    """(dz, None): one part from the logarithm, one from the factor before it."""
    z, y = residuals
    sign = 2 * _bit(y, z) - 1
    s = sign * z
    rest, surprise = jax.nn.softplus(s), jax.nn.softplus(-s)  # -log(1 - o) and -log o
    slope = -jnp.exp(-gamma * rest) * (jnp.exp(-rest) + gamma * jnp.exp(-surprise) * surprise)
    dz = sign * slope * dl  # (10.33)
    return dz, None


def triplet(
    anchor: Float[ArrayLike, "*batch d"],
    positive: Float[ArrayLike, "*batch d"],
    negative: Float[ArrayLike, "*batch d"],
    *,
    margin: float | int = 1.0,
) -> Float[ArrayLike, "*batch"]:
    """l = max(0, D(anchor, positive) - D(anchor, negative) + margin), (10.34).

    D(a, b) = sqrt(|a - b|^2 + 1e-6), as in optax: differentiable where a = b, too.

    Raises:
        ValueError: margin is negative.

    """
    _require("margin", margin, "a number that is not negative", margin >= 0)
    gap = _distance(anchor, positive) - _distance(anchor, negative) + margin
    return jnp.maximum(gap, 0)


def triplet_fwd(anchor, positive, negative, *, margin=1.0):
    """l, and the residuals: the three inputs."""
    return triplet(anchor, positive, negative, margin=margin), (anchor, positive, negative)


def triplet_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch d"], Float[ArrayLike, "*batch d"], Float[ArrayLike, "*batch d"]
    ],
    dl: Float[ArrayLike, "*batch"],
    *,
    margin=1.0,
):
    """(danchor, dpositive, dnegative): three arrays that add up to 0. At the margin, half."""
    anchor, positive, negative = residuals
    far, near = _distance(anchor, positive), _distance(anchor, negative)
    share = jnp.heaviside(far - near + margin, 0.5) * dl
    pull = (share / far)[..., None] * (anchor - positive)
    push = (share / near)[..., None] * (anchor - negative)
    danchor = pull - push  # (10.35)
    dpositive = -pull  # (10.36)
    dnegative = push  # (10.37)
    return danchor, dpositive, dnegative


def kl_divergence(
    log_q: Float[ArrayLike, "*batch k"], p: Float[ArrayLike, "*batch k"]
) -> Float[ArrayLike, "*batch"]:
    """l = sum_i p_i (log p_i - log q_i), (10.38), with 0 log 0 = 0; NaN where p is negative.

    p is not asked to add up to 1: then l is this sum, and may be negative.
    """
    return _times(p, _log(p) - log_q).sum(axis=-1)


def kl_divergence_fwd(log_q, p):
    """l, and the residuals (log_q, p)."""
    return kl_divergence(log_q, p), (log_q, p)


def kl_divergence_bwd(
    residuals: tuple[Float[ArrayLike, "*batch k"], Float[ArrayLike, "*batch k"]],
    dl: Float[ArrayLike, "*batch"],
):
    """(dlog_q, dp). Where p is 0 the slope in p is -inf, and 0 is sent in its place."""
    log_q, p = residuals
    dlog_q = -p * dl[..., None]  # (10.39)
    dp = jnp.where(p == 0, 0, _log(p) + 1 - log_q) * dl[..., None]  # (10.40)
    return dlog_q, dp


def generalized_kl_divergence(
    log_q: Float[ArrayLike, "*batch k"], p: Float[ArrayLike, "*batch k"]
) -> Float[ArrayLike, "*batch"]:
    """l = sum_i p_i (log p_i - log q_i) + q_i - p_i, (10.42), for any q > 0 and p >= 0."""
    return kl_divergence(log_q, p) + (jnp.exp(log_q) - p).sum(axis=-1)


def generalized_kl_divergence_fwd(log_q, p):
    """l, and the residuals (log_q, p)."""
    return generalized_kl_divergence(log_q, p), (log_q, p)


def generalized_kl_divergence_bwd(
    residuals: tuple[Float[ArrayLike, "*batch k"], Float[ArrayLike, "*batch k"]],
    dl: Float[ArrayLike, "*batch"],
):
    """(dlog_q, dp): prediction minus target; and kl_divergence's dp, less dl: -dl where p is 0."""
    log_q, p = residuals
    dlog_q = (jnp.exp(log_q) - p) * dl[..., None]  # (10.43)
    dp = (jnp.where(p == 0, 0, _log(p) + 1 - log_q) - 1) * dl[..., None]  # (10.44)
    return dlog_q, dp


def kl_divergence_with_log_targets(
    log_q: Float[ArrayLike, "*batch k"], log_p: Float[ArrayLike, "*batch k"]
) -> Float[ArrayLike, "*batch"]:
    """l = sum_i p_i (log p_i - log q_i), (10.38), from both logarithms.

    With the model's distribution in the second place it is the KL the other way round.
    """
    return _times(jnp.exp(log_p), log_p - log_q).sum(axis=-1)


def kl_divergence_with_log_targets_fwd(log_q, log_p):
    """l, and the residuals (log_q, log_p)."""
    return kl_divergence_with_log_targets(log_q, log_p), (log_q, log_p)


def kl_divergence_with_log_targets_bwd(
    residuals: tuple[Float[ArrayLike, "*batch k"], Float[ArrayLike, "*batch k"]],
    dl: Float[ArrayLike, "*batch"],
):
    """(dlog_q, dlog_p)."""
    log_q, log_p = residuals
    p = jnp.exp(log_p)
    dlog_q = -p * dl[..., None]  # (10.39)
    dlog_p = _times(p, log_p - log_q + 1) * dl[..., None]  # (10.45)
    return dlog_q, dlog_p


def js_divergence(
    log_q: Float[ArrayLike, "*batch k"], log_p: Float[ArrayLike, "*batch k"]
) -> Float[ArrayLike, "*batch"]:
    """l = (KL(p, m) + KL(q, m)) / 2 with m = (p + q) / 2, (10.46) (Lin 1991): at most log 2."""
    log_m = jnp.logaddexp(log_q, log_p) - math.log(2)
    of_q = _times(jnp.exp(log_q), log_q - log_m)
    of_p = _times(jnp.exp(log_p), log_p - log_m)
    return (of_q + of_p).sum(axis=-1) / 2


def js_divergence_fwd(log_q, log_p):
    """l, and the residuals (log_q, log_p)."""
    return js_divergence(log_q, log_p), (log_q, log_p)


def js_divergence_bwd(
    residuals: tuple[Float[ArrayLike, "*batch k"], Float[ArrayLike, "*batch k"]],
    dl: Float[ArrayLike, "*batch"],
):
    """(dlog_q, dlog_p): no + 1 as in (10.45), for m moves too and cancels it, (10.47)."""
    log_q, log_p = residuals
    log_m = jnp.logaddexp(log_q, log_p) - math.log(2)
    dlog_q = _times(jnp.exp(log_q), log_q - log_m) / 2 * dl[..., None]  # (10.47)
    dlog_p = _times(jnp.exp(log_p), log_p - log_m) / 2 * dl[..., None]  # (10.48)
    return dlog_q, dlog_p


def cosine_distance(
    a: Float[ArrayLike, "*batch d"], b: Float[ArrayLike, "*batch d"]
) -> Float[ArrayLike, "*batch"]:
    """l = 1 - <a, b> / (|a| |b|), (10.49). The zero vector has no direction, and gives NaN.

    The entries are squared: in float32 a and b are to be between 1e-17 and 1e18 long.
    """
    return 1 - (_unit(a)[0] * _unit(b)[0]).sum(axis=-1)


def cosine_distance_fwd(a, b):
    """l, and the residuals (a, b, l): the inputs and the output, nothing more."""
    distance = cosine_distance(a, b)
    return distance, (a, b, distance)


def cosine_distance_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch d"], Float[ArrayLike, "*batch d"], Float[ArrayLike, "*batch"]
    ],
    dl: Float[ArrayLike, "*batch"],
):
    """(da, db): minus the other's direction, without its part along one's own, over the length."""
    a, b, distance = residuals
    (u, length_a), (v, length_b) = _unit(a), _unit(b)
    cosine = 1 - distance[..., None]
    da = (cosine * u - v) / length_a * dl[..., None]  # (10.50)
    db = (cosine * v - u) / length_b * dl[..., None]  # (10.51)
    return da, db


def _bit(y, like):
    return _fitting(y, (y == 0) | (y == 1), like)


def _sign(y, like):
    return _fitting(y, jnp.abs(y) == 1, like)


def _count(t, like):
    return _fitting(t, t >= 0, like)


def _fitting(y, fits, like):
    # y in the dtype of `like`; an integer that does not fit is NaN. A float is taken as it is.
    if jnp.issubdtype(jnp.result_type(y), jnp.floating):
        return y
    return jnp.where(fits, y, jnp.nan).astype(jnp.result_type(like))


def _if_float(y, dy):
    return dy if jnp.issubdtype(jnp.result_type(y), jnp.floating) else None


def _times(p, x):
    # p x, and 0 where p is 0, even if x is infinite
    return jnp.where(p == 0, 0, p * x)


def _log(p):
    # log p, and 0 where p is 0: there its factor is 0, and 0 inf would be NaN
    return jnp.log(jnp.where(p == 0, 1, p))


def _distance(a, b):
    return jnp.sqrt(((a - b) ** 2).sum(axis=-1) + 1e-6)


def _unit(a):
    length = jnp.sqrt((a * a).sum(axis=-1, keepdims=True))
    return a / length, length


def _require(name, value, expected, holds):
    if not holds:
        raise ValueError(f"{name}: expected {expected}; got {value}")
