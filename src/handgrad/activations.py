"""Activations, applied element by element.    Derivation: notebooks/05_activations.ipynb

Every Jacobian here is diagonal, so a cotangent is multiplied by the slope, entry by entry, (5.3).
Each rule keeps the layer's output and nothing else: the next layer keeps that array anyway.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float


def relu(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = x where x > 0, else 0, (5.4). At 0 the slope is taken to be 0; NaN stays NaN."""
    return jnp.where(x <= 0, 0, x)


def relu_fwd(x):
    """a, which is positive exactly where x is."""
    a = relu(x)
    return a, a


def relu_bwd(a: Float[ArrayLike, "*shape"], da: Float[ArrayLike, "*shape"]):
    """(dx,): the cotangent passes where the unit was active."""
    dx = jnp.where(a > 0, da, 0)  # (5.5)
    return (dx,)


def sigmoid(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = 1 / (1 + exp(-x)), (5.6), computed so that exp never overflows."""
    return jax.nn.sigmoid(x)


def sigmoid_fwd(x):
    """a, from which the slope follows."""
    a = sigmoid(x)
    return a, a


def sigmoid_bwd(a: Float[ArrayLike, "*shape"], da: Float[ArrayLike, "*shape"]):
    """(dx,): the slope is a (1 - a)."""
    dx = da * a * (1 - a)  # (5.7)
    return (dx,)


def tanh(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = (exp(x) - exp(-x)) / (exp(x) + exp(-x)), (5.8)."""
    return jnp.tanh(x)


def tanh_fwd(x):
    """a, from which the slope follows."""
    a = tanh(x)
    return a, a


def tanh_bwd(a: Float[ArrayLike, "*shape"], da: Float[ArrayLike, "*shape"]):
    """(dx,): the slope is 1 - a^2."""
    dx = da * (1 - a * a)  # (5.9)
    return (dx,)
