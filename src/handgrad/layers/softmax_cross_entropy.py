"""Softmax and cross-entropy.    Derivation: notebooks/06_softmax_cross_entropy.ipynb

All work over the last axis. The softmax and its logarithm subtract the largest logit first: by
(6.2) it changes no value, and no exp overflows. Losses return one value per example.

logsumexp and log_softmax keep their input alone. The way back writes the exponentials and their sum
as the way forward does, and a compiler that sees both computes them once: under jit it takes as
many exponentials as jax.grad, without jit twice as many. exp(z - s) and exp(r), from the outputs,
are the same numbers to it only on paper, and it would compute them again.
"""

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Float, Integer


def softmax(z: Float[ArrayLike, "*batch k"]) -> Float[ArrayLike, "*batch k"]:
    """o_i = exp(z_i) / sum_j exp(z_j), (6.1): logits z (*batch, k) -> probabilities o."""
    w = jnp.exp(z - _largest(z))
    return w / w.sum(axis=-1, keepdims=True)


def softmax_fwd(z):
    """o, the only residual."""
    o = softmax(z)
    return o, o


def softmax_bwd(o: Float[ArrayLike, "*batch k"], do: Float[ArrayLike, "*batch k"]):
    """(dz,): do minus its mean under o, times o. No k x k Jacobian is built."""
    dz = o * (do - (o * do).sum(axis=-1, keepdims=True))  # (6.9)
    return (dz,)


def logsumexp(z: Float[ArrayLike, "*batch k"]) -> Float[ArrayLike, "*batch"]:
    """s = log sum_j exp(z_j), (6.13): logits z (*batch, k) -> s (*batch)."""
    m = _largest(z)
    return jnp.log(jnp.exp(z - m).sum(axis=-1)) + m[..., 0]


def logsumexp_fwd(z):
    """s, and z, the only residual."""
    return logsumexp(z), z


def logsumexp_bwd(z: Float[ArrayLike, "*batch k"], ds: Float[ArrayLike, "*batch"]):
    """(dz,): the gradient is softmax."""
    w = jnp.exp(z - _largest(z))
    dz = w * (ds / w.sum(axis=-1))[..., None]  # (6.14)
    return (dz,)


def log_softmax(z: Float[ArrayLike, "*batch k"]) -> Float[ArrayLike, "*batch k"]:
    """r = z - logsumexp(z), (6.16): logits z (*batch, k) -> log-probabilities r (*batch, k)."""
    z = z - _largest(z)  # before the sum, so that large logits lose no digits
    return z - jnp.log(jnp.exp(z).sum(axis=-1, keepdims=True))


def log_softmax_fwd(z):
    """r, and z, the only residual."""
    return log_softmax(z), z


def log_softmax_bwd(z: Float[ArrayLike, "*batch k"], dr: Float[ArrayLike, "*batch k"]):
    """(dz,): dr, less its sum times the probabilities."""
    w = jnp.exp(z - _largest(z))
    dz = dr - w * (dr.sum(axis=-1, keepdims=True) / w.sum(axis=-1, keepdims=True))  # (6.17)
    return (dz,)


def cross_entropy(
    o: Float[ArrayLike, "*batch k"], y: Integer[ArrayLike, "*batch"]
) -> Float[ArrayLike, "*batch"]:
    """l = -log o_y, (6.3): probabilities o (*batch, k), labels y (*batch) in 0..k-1 -> l (*batch).

    A label out of range gives NaN.

    Raises:
        TypeError: o is not a float array, or y not an integer one.
        ValueError: y has not one label for each row of o.

    """
    return -jnp.log(_at(y, o))


def cross_entropy_fwd(o, y):
    """l, and the residuals (o, y)."""
    return cross_entropy(o, y), (o, y)


def cross_entropy_bwd(
    residuals: tuple[Float[ArrayLike, "*batch k"], Integer[ArrayLike, "*batch"]],
    dl: Float[ArrayLike, "*batch"],
):
    """(do, None): only the label's entry is not 0, even where another probability is 0."""
    o, y = residuals
    do = jnp.where(_one_hot(y, o) == 0, 0, (-dl / _at(y, o))[..., None])  # (6.4)
    return do, None


def softmax_cross_entropy(
    z: Float[ArrayLike, "*batch k"],
    y: Integer[ArrayLike, "*batch"],
    *,
    label_smoothing: float | int = 0.0,
) -> Float[ArrayLike, "*batch"]:
    """l = -sum_i t_i log softmax(z)_i, (6.19): logits z (*batch, k), labels y (*batch) -> l.

    The target t is (1 - label_smoothing) e_y + label_smoothing / k (Szegedy et al. 2016, sec. 7).
    A label out of range gives NaN.

    Raises:
        TypeError: z is not a float array, or y not an integer one.
        ValueError: y has not one label for each row of z, or label_smoothing is not in [0, 1].

    """
    t, r = _target(y, z, label_smoothing), log_softmax(z)
    return -(t * r).sum(axis=-1) if label_smoothing else -_at(y, r)  # no 0 log 0 in either


def softmax_cross_entropy_fwd(z, y, *, label_smoothing=0.0):
    """l, and the residuals (softmax(z), y)."""
    return softmax_cross_entropy(z, y, label_smoothing=label_smoothing), (softmax(z), y)


def softmax_cross_entropy_bwd(
    residuals: tuple[Float[ArrayLike, "*batch k"], Integer[ArrayLike, "*batch"]],
    dl: Float[ArrayLike, "*batch"],
    *,
    label_smoothing=0.0,
):
    """(dz, None): what the network says minus what it should have said."""
    o, y = residuals
    dz = (o - _target(y, o, label_smoothing)) * dl[..., None]  # (6.20)
    return dz, None


def _largest(z):
    # No value depends on the shift, so no cotangent flows through it.
    return lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))


def _labels(y, like):
    # y, and whether a class bears its number, for each row. Where none does, the loss and its
    # gradient are NaN; an index out of range would bring a neighbour's value.
    y, k = jnp.asarray(y), like.shape[-1]
    if y.shape != like.shape[:-1]:
        raise ValueError(f"y: expected one label for each row, {like.shape[:-1]}; got {y.shape}")
    return y[..., None], ((y >= 0) & (y < k))[..., None]


def _at(y, v):
    # v_y, the label's entry of each row
    y, exists = _labels(y, v)
    v_y = jnp.take_along_axis(jnp.asarray(v), y, axis=-1, mode="clip")
    return (v_y * jnp.where(exists, 1, jnp.nan))[..., 0]  # times NaN: so is its gradient


def _one_hot(y, like):
    # e_y in the shape and dtype of `like`
    y, exists = _labels(y, like)
    return jnp.where(exists, y == jnp.arange(like.shape[-1]), jnp.nan).astype(like.dtype)


def _target(y, like, label_smoothing):
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1]; got {label_smoothing}")
    return (1 - label_smoothing) * _one_hot(y, like) + label_smoothing / like.shape[-1]
