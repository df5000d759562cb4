"""Activations, applied element by element.    Derivation: notebooks/05_activations.ipynb

Every Jacobian here is diagonal, so a rule is one line: the slope, by which (5.3) multiplies the
cotangent, entry by entry. Where the slope follows from the output, the rule keeps nothing else:
the next layer keeps that array anyway.
"""

import inspect

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float


def from_input(f, slope):
    """(f_fwd, f_bwd) of an element-wise f(x, **hyper) with that slope(x, **hyper); keeps x."""

    def forward(x, **hyper):
        return f(x, **hyper), x

    return _rule(f, slope, forward)


def from_output(f, slope):
    """(f_fwd, f_bwd) of an element-wise f whose slope(a, **hyper) follows from its output a."""

    def forward(x, **hyper):
        a = f(x, **hyper)
        return a, a

    return _rule(f, slope, forward)


def _rule(f, slope, forward):
    # the theorem on element-wise functions, once for all of them
    parameters = inspect.signature(f).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def backward(kept: Float[ArrayLike, "*shape"], da: Float[ArrayLike, "*shape"], **hyper):
        """(dx,): the cotangent times the slope, entry by entry."""
        return (da * slope(kept, **defaults | hyper),)  # (5.3)

    for rule, suffix in ((forward, "_fwd"), (backward, "_bwd")):
        rule.__name__ = rule.__qualname__ = f.__name__ + suffix
        rule.__module__ = f.__module__
    return forward, backward


def relu(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = x where x > 0, else 0, (5.4). At 0 the slope is taken to be 0; NaN stays NaN."""
    return jnp.where(x <= 0, 0, x)


relu_fwd, relu_bwd = from_output(relu, lambda a: a > 0)  # (5.5)


def sigmoid(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = 1 / (1 + exp(-x)), (5.6), computed so that exp never overflows."""
    return jax.nn.sigmoid(x)


sigmoid_fwd, sigmoid_bwd = from_output(sigmoid, lambda a: a * (1 - a))  # (5.7)


def tanh(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = (exp(x) - exp(-x)) / (exp(x) + exp(-x)), (5.8)."""
    return jnp.tanh(x)


tanh_fwd, tanh_bwd = from_output(tanh, lambda a: 1 - a * a)  # (5.9)
