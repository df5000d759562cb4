"""Experts that are chosen, and their load.    Derivation: notebooks/18_routing.ipynb

Which experts a token is sent to is a list of integers, and has no gradient. The weights that their
outputs get are a softmax of the logits of the chosen, and have one. Of equal logits the first comes
first, as in jax.lax.top_k (which puts 0.0 before -0.0). There the choice jumps, and in general so
does the output.

Each token gathers the matrices of its experts, and on the way back each expert adds up what its
tokens send. So the mathematics is easy to see, and tokens times k matrices stand in memory for a
moment. Kernels for many tokens sort the tokens by expert first; the notebook shows how.
"""

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Float, Integer

from handgrad.layers.activations import relu
from handgrad.layers.softmax_cross_entropy import softmax


def mixture_of_experts(
    x: Float[ArrayLike, "*batch d"],
    Wg: Float[ArrayLike, "E d"],
    W1: Float[ArrayLike, "E h d"],
    W2: Float[ArrayLike, "E c h"],
    *,
    k: int,
) -> Float[ArrayLike, "*batch c"]:
    """y = sum_j p_j W2_s relu(W1_s x) with s = s_j, (18.3): tokens x (*batch, d) -> y (*batch, c).

    The router has the logits z = Wg x, s_j is the expert with the j-th largest, and the weights p
    are the softmax of these k logits. With k = 1 the weight is 1, and Wg gets no gradient. The
    slope of relu at 0 is taken to be 0. Shazeer and others 2017, section 2.1, without noise; Jiang
    and others 2024, section 2.1.

    Raises:
        TypeError: an argument is not a float array, or the sizes E, d, h don't fit.
        ValueError: k is not a number from 1 to the number of experts E.

    """
    return _routed(x, Wg, W1, W2, k)[0]


def mixture_of_experts_fwd(x, Wg, W1, W2, *, k):
    """y, and besides the arguments (s, p, a): s and p (*batch, k), and a (*batch, k, h)."""
    y, *chosen = _routed(x, Wg, W1, W2, k)
    return y, (x, Wg, W1, W2, *chosen)


def mixture_of_experts_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch d"],
        Float[ArrayLike, "E d"],
        Float[ArrayLike, "E h d"],
        Float[ArrayLike, "E c h"],
        Integer[ArrayLike, "*batch k"],
        Float[ArrayLike, "*batch k"],
        Float[ArrayLike, "*batch k h"],
    ],
    dy: Float[ArrayLike, "*batch c"],
    *,
    k: int,
):
    """(dx, dWg, dW1, dW2). The outputs of the experts are not needed, (18.7)."""
    x, Wg, W1, W2, s, p, a = residuals
    # W2[s] and W1[s] stand second, and j is summed last: so no copy of them is transposed
    dm = p[..., None] * dy[..., None, :]  # (18.6)
    da = jnp.einsum("...jc,...jch->...jh", dm, _of(s, W2))  # (18.6)
    g = (da * a).sum(axis=-1)  # (18.7)
    dv = g - p * g.sum(axis=-1, keepdims=True)  # (18.8)
    dz = _put(s, dv, len(Wg))  # (18.9)
    dr = jnp.where(a > 0, da, 0)  # (18.10)
    dx = jnp.einsum("...jh,...jhd->...jd", dr, _of(s, W1)).sum(axis=-2) + dz @ Wg  # (18.11)
    dWg = _rows(dz).T @ _rows(x)  # (18.12)
    dW1 = _back(s, jnp.einsum("...jh,...d->...jhd", dr, x), len(W1))  # (18.13)
    dW2 = _back(s, jnp.einsum("...jc,...jh->...jch", dm, a), len(W2))  # (18.14)
    return dx, dWg, dW1, dW2


def load_balance(z: Float[ArrayLike, "*batch E"], *, k: int) -> Float[ArrayLike, ""]:
    """l = E <q, mean of softmax(z)>, (18.16): the router's logits z (*batch, E) -> one number l.

    q_e is the load, the share of all choices that fell on expert e. It is counted, and held
    constant on the way back. All leading axes count tokens, and without any token l is NaN. An even
    load gives l = 1. Fedus, Zoph and Shazeer 2022, section 2.2, for k = 1; there is no factor alpha
    here, and with k > 1 the load is divided by k.

    Raises:
        TypeError: z is not a float array.
        ValueError: k is not a number from 1 to the number of experts E.

    """
    return z.shape[-1] * (_load(z, k) * _rows(softmax(z)).mean(axis=0)).sum()


def load_balance_fwd(z, *, k):
    """l, and the residuals (o, q): the probabilities (*batch, E), and the load (E,)."""
    o, q = softmax(z), _load(z, k)
    return z.shape[-1] * (q * _rows(o).mean(axis=0)).sum(), (o, q)


def load_balance_bwd(
    residuals: tuple[Float[ArrayLike, "*batch E"], Float[ArrayLike, " E"]],
    dl: Float[ArrayLike, ""],
    *,
    k: int,
):
    """(dz,): o times the load less its mean under o. With an even load it is 0, (18.19)."""
    o, q = residuals
    dz = dl * len(q) / len(_rows(o)) * o * (q - (o * q).sum(axis=-1, keepdims=True))  # (18.18)
    return (dz,)


def _routed(x, Wg, W1, W2, k):
    # the output y, the places s of the chosen, their weights p, and the activations a
    z = x @ jnp.asarray(Wg).T
    s = _choice(z, k)
    p = softmax(jnp.take_along_axis(z, s, axis=-1))
    a = relu(jnp.einsum("...jhd,...d->...jh", _of(s, W1), x))  # the slope at 0 is 0, as in bwd
    y = jnp.einsum("...j,...jch,...jh->...c", p, _of(s, W2), a)
    return y, s, p, a


def _choice(z, k):
    # where the k largest logits stand: integers, and no gradient passes through them
    E = z.shape[-1]
    if not 1 <= k <= E:
        raise ValueError(f"k: expected a number from 1 to {E}, that of the experts; got {k}")
    return lax.top_k(z, k)[1]


def _load(z, k):
    s = _choice(z, k)
    return (jnp.bincount(s.reshape(-1), length=z.shape[-1]) / s.size).astype(z.dtype)


def _of(s, W):
    # each token's own matrices, (*batch, k, ...)
    return jnp.asarray(W)[s]


def _back(s, d, count):
    # the adjoint of _of: what a token sends to an expert's matrix adds up there
    return jnp.zeros((count, *d.shape[s.ndim :]), d.dtype).at[s].add(d)


def _put(s, d, count):
    # k numbers to their places among `count`, 0 elsewhere
    zeros = jnp.zeros((*s.shape[:-1], count), d.dtype)
    return jnp.put_along_axis(zeros, s, d, axis=-1, inplace=False)


def _rows(u):
    return u.reshape(-1, u.shape[-1])
