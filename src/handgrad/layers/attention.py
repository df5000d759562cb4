"""Attention: each query's mean of the values.    Derivation: notebooks/16_attention.ipynb

Every row of weights P is a softmax of its own, so the way back goes row by row, (16.10). Query t
and key s stand at the places t and s, both counted from 0. A query that sees no key has an empty
sum: its output is 0, and so are the gradients that come through it; no other row notices. Hidden
keys and values have to be finite all the same: they are multiplied by 0, and 0 times NaN is NaN.

All is computed in the dtype of the arguments, where jax.nn.dot_product_attention takes its softmax
in float32. The slope of a softcap loses digits as a score nears the cap, as it does in
handgrad.softcap.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Float

from handgrad.layers.linear import linear
from handgrad.layers.softmax_cross_entropy import softmax_bwd

_Slope = Float[ArrayLike, "*batch T S"] | None


def attention(
    q: Float[ArrayLike, "*batch T d"],
    k: Float[ArrayLike, "*batch S d"],
    v: Float[ArrayLike, "*batch S e"],
    *,
    causal: bool = False,
    window: int | None = None,
    softcap: float | int | None = None,
) -> Float[ArrayLike, "*batch T e"]:
    """O = P V with P = softmax(Q K^T / sqrt(d)) row by row, (16.2): T queries, S keys and values.

    If causal, query t sees the keys s <= t. With a window, it sees those with |t - s| < window:
    in a causal attention the last `window` keys, its own among them. With a softcap c the scores
    are c tanh(score / c), (16.15).

    Vaswani and others 2017, section 3.2.1; for the softcap Gemma 2, 2024 (arXiv 2408.00118).

    Raises:
        TypeError: an argument is not a float array, or the shapes don't fit.
        ValueError: d is 0, window is below 1, or softcap is not a positive finite number.

    """
    seen = _seen(_places(q), k, causal, window)
    z, _ = _capped(_scores(q, k), softcap)
    return _mean_of(_weights(z, seen), v)


def attention_fwd(q, k, v, *, causal=False, window=None, softcap=None):
    """O, and the residuals (q, k, v, P, slope). The slope is that of the softcap, or None."""
    seen = _seen(_places(q), k, causal, window)
    z, slope = _capped(_scores(q, k), softcap)
    P = _weights(z, seen)
    return _mean_of(P, v), (q, k, v, P, slope)


def attention_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch T d"],
        Float[ArrayLike, "*batch S d"],
        Float[ArrayLike, "*batch S e"],
        Float[ArrayLike, "*batch T S"],
        _Slope,
    ],
    do: Float[ArrayLike, "*batch T e"],
    *,
    causal=False,
    window=None,
    softcap=None,
):
    """(dq, dk, dv). Where a weight is 0, so is dZ: a mask needs no line of its own, (16.14)."""
    q, k, v, P, slope = residuals
    dv = jnp.einsum("...ts,...te->...se", P, do)  # (16.8)
    dP = jnp.einsum("...te,...se->...ts", do, v)  # (16.9)
    (dZ,) = softmax_bwd(P, dP)  # (16.10)
    dZ = dZ if softcap is None else slope * dZ  # (16.15)
    dq = jnp.einsum("...ts,...sd->...td", dZ, k) * _scale(q)  # (16.11)
    dk = jnp.einsum("...ts,...td->...sd", dZ, q) * _scale(q)  # (16.12)
    return dq, dk, dv


def alibi_attention(
    q: Float[ArrayLike, "*batch T d"],
    k: Float[ArrayLike, "*batch S d"],
    v: Float[ArrayLike, "*batch S e"],
    *,
    slope: float | int | tuple[float | int, ...],
) -> Float[ArrayLike, "*batch T e"]:
    """Causal attention whose scores fall with the distance: slope (t - s) is subtracted, (16.16).

    slope is one number, or a tuple with one for each head, along the axis before T.

    Press, Smith and Lewis 2022, section 3.

    Raises:
        TypeError: an argument is not a float array, or the shapes don't fit.
        ValueError: d is 0, or slope is not finite, or has another length than the axis of heads.

    """
    return _mean_of(_biased_weights(q, k, slope), v)


def alibi_attention_fwd(q, k, v, *, slope):
    """O, and the residuals (q, k, v, P)."""
    P = _biased_weights(q, k, slope)
    return _mean_of(P, v), (q, k, v, P)


def alibi_attention_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch T d"],
        Float[ArrayLike, "*batch S d"],
        Float[ArrayLike, "*batch S e"],
        Float[ArrayLike, "*batch T S"],
    ],
    do: Float[ArrayLike, "*batch T e"],
    *,
    slope,
):
    """(dq, dk, dv), as if no bias were there: it is a constant, and P already includes it."""
    q, k, v, P = residuals
    dv = jnp.einsum("...ts,...te->...se", P, do)  # (16.8)
    dP = jnp.einsum("...te,...se->...ts", do, v)  # (16.9)
    (dZ,) = softmax_bwd(P, dP)  # (16.10)
    dq = jnp.einsum("...ts,...sd->...td", dZ, k) * _scale(q)  # (16.11)
    dk = jnp.einsum("...ts,...td->...sd", dZ, q) * _scale(q)  # (16.12)
    return dq, dk, dv


def grouped_query_attention(
    q: Float[ArrayLike, "*batch m T d"],
    k: Float[ArrayLike, "*batch g S d"],
    v: Float[ArrayLike, "*batch g S e"],
    *,
    causal: bool = False,
) -> Float[ArrayLike, "*batch m T e"]:
    """Attention with m heads of queries for g heads of keys and values, (16.17).

    The first m / g heads of queries read head 0 of k and v, the next m / g head 1, and so on.
    With g = 1 it is multi-query attention (Shazeer 2019).

    Ainslie and others 2023, section 2.2.

    Raises:
        TypeError: an argument is not a float array, or the shapes don't fit.
        ValueError: m is not a multiple of g, or d is 0.

    """
    seen = _seen(_places(q, k), k, causal)
    o = _mean_of(_weights(_scores(_stacked(q, k), k), seen), v)
    return o.reshape(*q.shape[:-1], v.shape[-1])


def grouped_query_attention_fwd(q, k, v, *, causal=False):
    """O, and the residuals (q, k, v, P); P has the shape (*batch, g, T m / g, S)."""
    P = _weights(_scores(_stacked(q, k), k), _seen(_places(q, k), k, causal))
    return _mean_of(P, v).reshape(*q.shape[:-1], v.shape[-1]), (q, k, v, P)


def grouped_query_attention_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch m T d"],
        Float[ArrayLike, "*batch g S d"],
        Float[ArrayLike, "*batch g S e"],
        Float[ArrayLike, "*batch g rows S"],
    ],
    do: Float[ArrayLike, "*batch m T e"],
    *,
    causal=False,
):
    """(dq, dk, dv): dk and dv add over all rows of a group, and so over its heads of queries."""
    q, k, v, P = residuals
    do = _stacked(do, k)
    dv = jnp.einsum("...ts,...te->...se", P, do)  # (16.20)
    dP = jnp.einsum("...te,...se->...ts", do, v)  # (16.9)
    (dZ,) = softmax_bwd(P, dP)  # (16.10)
    dq = (jnp.einsum("...ts,...sd->...td", dZ, k) * _scale(q)).reshape(q.shape)  # (16.18)
    dk = jnp.einsum("...ts,...td->...sd", dZ, _stacked(q, k)) * _scale(q)  # (16.19)
    return dq, dk, dv


def rotary(
    x: Float[ArrayLike, "*batch T d"], *, base: float | int = 1e4
) -> Float[ArrayLike, "*batch T d"]:
    """Entries i and i + d/2 of row t, turned by the angle t base^(-2i/d), (16.21).

    The same in every batch. Su and others 2021 pair neighbours, 2i and 2i + 1; halves, as here,
    are common in code: the one is the other after a permutation of the entries.

    Raises:
        TypeError: x is not a float array of at least two axes.
        ValueError: d is odd, or base is not a positive finite number.

    """
    return _turned(x, base, 1)


def rotary_fwd(x, *, base=1e4):
    """z, and nothing else."""
    return rotary(x, base=base), ()


def rotary_bwd(residuals: tuple[()], dz: Float[ArrayLike, "*batch T d"], *, base=1e4):
    """(dx,): turned back, since the adjoint of a rotation is its inverse."""
    dx = _turned(dz, base, -1)  # (16.23)
    return (dx,)


def multi_head_attention(
    x: Float[ArrayLike, "*batch T d"],
    Wqkv: Float[ArrayLike, "3*d d"],
    bqkv: Float[ArrayLike, " 3*d"],
    Wo: Float[ArrayLike, "d d"],
    bo: Float[ArrayLike, " d"],
    *,
    heads: int,
    causal: bool = False,
) -> Float[ArrayLike, "*batch T d"]:
    """Self-attention with several heads, between two linear layers, (16.24).

    The rows of Wqkv (3 d, d) make the queries, then the keys, then the values, d of each; head i
    takes the i-th block of d / heads of them.

    Vaswani and others 2017, section 3.2.2.

    Raises:
        TypeError: an argument is not a float array, or the shapes don't fit.
        ValueError: heads does not divide d, or d is 0.

    """
    q, k, v = _queries_keys_values(linear(x, Wqkv, bqkv), heads)
    return linear(_merged(attention(q, k, v, causal=causal)), Wo, bo)


def multi_head_attention_fwd(x, Wqkv, bqkv, Wo, bo, *, heads, causal=False):
    """z, and the residuals: x, Wqkv, those of attention, its merged output a, and Wo."""
    q, k, v = _queries_keys_values(linear(x, Wqkv, bqkv), heads)
    o, of_heads = attention_fwd(q, k, v, causal=causal)
    a = _merged(o)
    return linear(a, Wo, bo), (x, Wqkv, of_heads, a, Wo)


def multi_head_attention_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch T d"],
        Float[ArrayLike, "3*d d"],
        tuple,
        Float[ArrayLike, "*batch T d"],
        Float[ArrayLike, "d d"],
    ],
    dz: Float[ArrayLike, "*batch T d"],
    *,
    heads,
    causal=False,
):
    """(dx, dWqkv, dbqkv, dWo, dbo): two linear layers, and attention with its heads between."""
    x, Wqkv, (q, k, v, P, slope), a, Wo = residuals
    examples = tuple(range(dz.ndim - 1))
    dWo = jnp.einsum("...i,...j->ij", dz, a)  # (16.25)
    dbo = dz.sum(axis=examples)  # (16.26)
    da = jnp.einsum("...i,ij->...j", dz, Wo)  # (16.27)
    dqkv = attention_bwd((q, k, v, P, slope), _heads(da, heads), causal=causal)
    du = jnp.concatenate([_merged(d) for d in dqkv], axis=-1)  # (16.28)
    dx = jnp.einsum("...i,ij->...j", du, Wqkv)  # (16.29)
    dWqkv = jnp.einsum("...i,...j->ij", du, x)  # (16.30)
    dbqkv = du.sum(axis=examples)  # (16.31)
    return dx, dWqkv, dbqkv, dWo, dbo


def _scale(q):
    if not q.shape[-1]:
        raise ValueError(f"q: expected at least one feature; got the shape {q.shape}")
    return 1 / math.sqrt(q.shape[-1])


def _scores(q, k):
    return jnp.einsum("...td,...sd->...ts", q * _scale(q), k)


def _mean_of(P, v):
    return jnp.einsum("...ts,...se->...te", P, v)


def _weights(z, seen):
    # softmax over the keys that are seen. The shift is a finite number even where there are none:
    # -inf minus -inf would be NaN, (16.13)
    m = jnp.max(z, axis=-1, keepdims=True, where=seen, initial=jnp.finfo(z.dtype).min)
    w = jnp.exp(jnp.where(seen, z - lax.stop_gradient(m), -jnp.inf))
    total = w.sum(axis=-1, keepdims=True)
    return w / jnp.where(total == 0, 1, total)


def _seen(t, k, causal, window=None):
    # which of the keys k the queries at the places t see
    if window is not None and window < 1:
        raise ValueError(f"window: expected at least 1, or None; got {window}")
    ahead = jnp.arange(k.shape[-2]) - t[:, None]
    seen = ahead <= 0 if causal else jnp.full(ahead.shape, True)
    return seen if window is None else seen & (abs(ahead) < window)


def _capped(z, softcap):
    # the scores after the cap, and the slope of the cap, (16.15)
    if softcap is None:
        return z, None
    if not 0 < softcap < math.inf:
        raise ValueError(f"softcap: expected a positive number, or None; got {softcap}")
    tanh = jnp.tanh(z / softcap)
    return softcap * tanh, 1 - tanh * tanh


def _biased_weights(q, k, slope):
    if not np.all(np.isfinite(slope)):
        raise ValueError(f"slope: expected finite numbers; got {slope}")
    if isinstance(slope, tuple):
        if q.shape[:-2][-1:] != (len(slope),):
            raise ValueError(
                f"slope: expected one for each head, the axis before T; got {len(slope)} for q of "
                f"the shape {q.shape}"
            )
        slope = np.reshape(slope, (-1, 1, 1))
    distance = _places(q)[:, None] - jnp.arange(k.shape[-2])
    z = _scores(q, k)
    bias = jnp.asarray(slope, z.dtype) * distance.astype(z.dtype)
    return _weights(z - bias, distance >= 0)


def _places(q, k=None):
    # of the queries; those of all heads in a group, if k has fewer heads, one after the other
    t = jnp.arange(q.shape[-2])
    return t if k is None else jnp.tile(t, _share(q, k))


def _share(q, k):
    m, g = q.shape[-3], k.shape[-3]
    if g == 0 or m % g:
        raise ValueError(f"q: expected a multiple of k's {g} heads; got {m}")
    return m // g


def _stacked(q, k):
    # (*batch, m, T, d) -> (*batch, g, T m / g, d): the heads of a group become rows of one
    *batch, _, T, d = q.shape
    return q.reshape(*batch, k.shape[-3], _share(q, k) * T, d)


def _turned(x, base, way):
    x = jnp.asarray(x)
    T, d = x.shape[-2:]
    if d % 2:
        raise ValueError(f"x: expected an even number of features; got the shape {x.shape}")
    if not 0 < base < math.inf:
        raise ValueError(f"base: expected a positive number; got {base}")
    angles = way * np.outer(np.arange(T), float(base) ** (-2 * np.arange(d // 2) / max(d, 1)))
    cos, sin = (jnp.asarray(f(angles), x.dtype) for f in (np.cos, np.sin))
    a, b = x[..., : d // 2], x[..., d // 2 :]
    # XLA adds two padded halves faster than it concatenates them
    rest = [(0, 0)] * (x.ndim - 1)
    first = jnp.pad(a * cos - b * sin, [*rest, (0, d // 2)])
    return first + jnp.pad(a * sin + b * cos, [*rest, (d // 2, 0)])


def _heads(a, heads):
    # (*batch, T, d) -> (*batch, heads, T, d / heads)
    d = a.shape[-1]
    if heads < 1 or d % heads:
        raise ValueError(f"heads: expected a divisor of the {d} features; got {heads}")
    return jnp.swapaxes(a.reshape(*a.shape[:-1], heads, d // heads), -3, -2)


def _merged(a):
    # and back
    *batch, heads, T, c = a.shape
    return jnp.swapaxes(a, -3, -2).reshape(*batch, T, heads * c)


def _queries_keys_values(u, heads):
    return [_heads(part, heads) for part in jnp.split(u, 3, axis=-1)]
