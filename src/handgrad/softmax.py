"""Softmax and its relatives.    Derivation: notebooks/06_softmax_cross_entropy.ipynb

All three work over the last axis and subtract the largest logit first: by (6.2) it changes
no value, and no exp overflows.
"""

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Float


def softmax(z: Float[ArrayLike, "*batch k"]) -> Float[ArrayLike, "*batch k"]:
    """o_i = exp(z_i) / sum_j exp(z_j), (6.1): logits z (*batch, k) -> probabilities o."""
    e = jnp.exp(z - _largest(z))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_fwd(z):
    """o, the only residual."""
    o = softmax(z)
    return o, o


def softmax_bwd(o: Float[ArrayLike, "*batch k"], do: Float[ArrayLike, "*batch k"]):
    """(dz,): do less its mean under o, times o. The k x k Jacobian is never built."""
    dz = o * (do - (o * do).sum(axis=-1, keepdims=True))  # (6.6)
    return (dz,)


def logsumexp(z: Float[ArrayLike, "*batch k"]) -> Float[ArrayLike, "*batch"]:
    """s = log sum_j exp(z_j), (6.9): logits z (*batch, k) -> s (*batch)."""
    m = _largest(z)
    return jnp.log(jnp.exp(z - m).sum(axis=-1)) + m[..., 0]


def logsumexp_fwd(z):
    """s, and the residuals (z, s): the input and the output, nothing more."""
    s = logsumexp(z)
    return s, (z, s)


def logsumexp_bwd(
    residuals: tuple[Float[ArrayLike, "*batch k"], Float[ArrayLike, "*batch"]],
    ds: Float[ArrayLike, "*batch"],
):
    """(dz,): the gradient of log-sum-exp is softmax, exp(z - s)."""
    z, s = residuals
    dz = ds[..., None] * jnp.exp(z - s[..., None])  # (6.10)
    return (dz,)


def log_softmax(z: Float[ArrayLike, "*batch k"]) -> Float[ArrayLike, "*batch k"]:
    """r = z - logsumexp(z), (6.11): logits z (*batch, k) -> log-probabilities r (*batch, k)."""
    return z - logsumexp(z)[..., None]


def log_softmax_fwd(z):
    """r, the only residual: exp(r) is the softmax."""
    r = log_softmax(z)
    return r, r


def log_softmax_bwd(r: Float[ArrayLike, "*batch k"], dr: Float[ArrayLike, "*batch k"]):
    """(dz,): dr less its sum, shared out by probability."""
    dz = dr - jnp.exp(r) * dr.sum(axis=-1, keepdims=True)  # (6.12)
    return (dz,)


def _largest(z):
    # No value depends on the shift, so no cotangent flows through it.
    return lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
