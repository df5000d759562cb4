"""Losses, one value per example.

Derivation: notebooks/06_softmax_cross_entropy.ipynb; squared_error in notebooks/01_gradient.ipynb
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float, Integer

from handgrad.softmax import log_softmax, softmax


def cross_entropy(
    o: Float[ArrayLike, "*batch k"], y: Integer[ArrayLike, "*batch"]
) -> Float[ArrayLike, "*batch"]:
    """l = -log o_y, (6.3): probabilities o (*batch, k), labels y (*batch) in 0..k-1 -> l (*batch).

    A label out of range gives NaN.

    Raises:
        TypeError: o is not a float array, or y not an integer one.
        ValueError: y has not one label for each row of o.

    """
    e_y = _one_hot(y, o)
    return -(e_y * jnp.log(jnp.where(e_y == 0, 1, o))).sum(axis=-1)  # 0 log 0 = 0


def cross_entropy_fwd(o, y):
    """l, and the residuals (o, y)."""
    return cross_entropy(o, y), (o, y)


def cross_entropy_bwd(
    residuals: tuple[Float[ArrayLike, "*batch k"], Integer[ArrayLike, "*batch"]],
    dl: Float[ArrayLike, "*batch"],
):
    """(do, None): only the label's entry is not 0, even where another probability is 0."""
    o, y = residuals
    e_y = _one_hot(y, o)
    do = jnp.where(e_y == 0, 0, -e_y / o) * dl[..., None]  # (6.4)
    return do, None


def softmax_cross_entropy(
    z: Float[ArrayLike, "*batch k"],
    y: Integer[ArrayLike, "*batch"],
    *,
    label_smoothing: float | int = 0.0,
) -> Float[ArrayLike, "*batch"]:
    """l = -sum_i t_i log softmax(z)_i, (6.13): logits z (*batch, k), labels y (*batch) -> l.

    The target t is (1 - label_smoothing) e_y + label_smoothing / k (Szegedy et al. 2016, sec. 7).
    A label out of range gives NaN.

    Raises:
        TypeError: z is not a float array, or y not an integer one.
        ValueError: y has not one label for each row of z, or label_smoothing is not in [0, 1].

    """
    t = _target(y, z, label_smoothing)
    return -(t * jnp.where(t == 0, 0, log_softmax(z))).sum(axis=-1)  # 0 log 0 = 0


def softmax_cross_entropy_fwd(z, y, *, label_smoothing=0.0):
    """l, and the residuals (softmax(z), y)."""
    return softmax_cross_entropy(z, y, label_smoothing=label_smoothing), (softmax(z), y)


def softmax_cross_entropy_bwd(
    residuals: tuple[Float[ArrayLike, "*batch k"], Integer[ArrayLike, "*batch"]],
    dl: Float[ArrayLike, "*batch"],
    *,
    label_smoothing=0.0,
):
    """(dz, None): what the network says less what it should say."""
    o, y = residuals
    dz = (o - _target(y, o, label_smoothing)) * dl[..., None]  # (6.14)
    return dz, None


def squared_error(
    prediction: Float[ArrayLike, "*shape"], target: Float[ArrayLike, "*shape"]
) -> Float[ArrayLike, "*shape"]:
    """l = (prediction - target)^2, (1.8), element by element.

    Raises:
        TypeError: an argument is not a float array, or the shapes differ.

    """
    return (prediction - target) ** 2


def squared_error_fwd(prediction, target):
    """l, and the difference: one array in place of two."""
    return squared_error(prediction, target), prediction - target


def squared_error_bwd(difference: Float[ArrayLike, "*shape"], dl: Float[ArrayLike, "*shape"]):
    """(dprediction, dtarget), each the other's negative."""
    dprediction = 2 * difference * dl  # (1.9)
    dtarget = -2 * difference * dl  # (1.10)
    return dprediction, dtarget


def _one_hot(y, like):
    # e_y in the shape and dtype of `like`; all NaN where no class bears the label's number,
    # which then reaches the loss and its gradient instead of a neighbour's value.
    y, k = jnp.asarray(y), like.shape[-1]
    if y.shape != like.shape[:-1]:
        raise ValueError(f"y: expected one label for each row, {like.shape[:-1]}; got {y.shape}")
    exists = (y >= 0) & (y < k)
    e_y = (y[..., None] == jnp.arange(k)).astype(like.dtype)
    return jnp.where(exists[..., None], e_y, jnp.nan)


def _target(y, like, label_smoothing):
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1]; got {label_smoothing}")
    return (1 - label_smoothing) * _one_hot(y, like) + label_smoothing / like.shape[-1]
