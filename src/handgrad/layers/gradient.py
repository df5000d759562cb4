"""The squared error.    Derivation: notebooks/01_gradient.ipynb"""

from jax.typing import ArrayLike
from jaxtyping import Float


def squared_error(
    prediction: Float[ArrayLike, "*shape"], target: Float[ArrayLike, "*shape"]
) -> Float[ArrayLike, "*shape"]:
    """l = (prediction - target)^2, (1.17): an array, one squared error for each entry.

    Raises:
        TypeError: an argument is not a float array, or the shapes differ.

    """
    return (prediction - target) ** 2


def squared_error_fwd(prediction, target):
    """l, and the difference: all that the gradients need of prediction and target."""
    return squared_error(prediction, target), prediction - target


def squared_error_bwd(difference: Float[ArrayLike, "*shape"], dl: Float[ArrayLike, "*shape"]):
    """(dprediction, dtarget), given the cotangent dl; each is the other's negative."""
    dprediction = 2 * difference * dl  # (1.20)
    dtarget = -2 * difference * dl  # (1.21)
    return dprediction, dtarget
