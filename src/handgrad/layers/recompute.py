"""Recompute, don't keep: no large intermediate.    Derivation: notebooks/17_recompute.ipynb

The scores of attention, and the logits over a vocabulary, are made a tile at a time and forgotten.
On the way back they are made again, and L, the log-sum-exp of each row, turns them into weights,
(17.9). A last tile that would stick out is moved back until it fits, and what an earlier tile has
met already is masked.

Sums over tiles are taken in float32 at least, whatever the dtype of the arguments. But O is kept in
their dtype, and delta, (17.13), is made from it: in bfloat16 or float16 dq and dk lose digits where
the values are much alike. L is rounded, so weights made from it have an error of |L| eps.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Float, Integer


def flash_attention(
    q: Float[ArrayLike, "*batch T d"],
    k: Float[ArrayLike, "*batch S d"],
    v: Float[ArrayLike, "*batch S e"],
    *,
    causal: bool = False,
    block: int = 128,
) -> Float[ArrayLike, "*batch T e"]:
    """O = softmax(Q K^T / sqrt(d)) V row by row, (17.4), in tiles of block queries and keys.

    The same as attention, which writes all T x S weights. If causal, query t sees the keys s <= t,
    and tiles in which nothing is seen are left out. Without any key the output is 0.

    Dao and others 2022, section 3.1; the running maximum is Milakov and Gimelshein's, 2018.

    Raises:
        TypeError: an argument is not a float array, or the shapes don't fit.
        ValueError: d is 0, or block is below 1.

    """
    o, _ = _attended(q, k, v, causal, block)
    return o


def flash_attention_fwd(q, k, v, *, causal=False, block=128):
    """O, and the residuals (q, k, v, O, L): beside inputs and output one number for each query."""
    o, L = _attended(q, k, v, causal, block)
    return o, (q, k, v, o, L)


@partial(jax.jit, static_argnames=("causal", "block"))
def flash_attention_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch T d"],
        Float[ArrayLike, "*batch S d"],
        Float[ArrayLike, "*batch S e"],
        Float[ArrayLike, "*batch T e"],
        Float[ArrayLike, "*batch T 1"],
    ],
    do: Float[ArrayLike, "*batch T e"],
    *,
    causal=False,
    block=128,
):
    """(dq, dk, dv), from weights that are made again tile by tile."""
    q, k, v, o, L = residuals
    delta = (_wide(do) * o).sum(axis=-1, keepdims=True)  # (17.13)

    def tile(sums, corner):
        dq, dk, dv = sums
        qt, dot, Lt, dt = (_cut(a, corner[0], block) for a in (q, do, L, delta))
        ks, vs = (_cut(a, corner[1], block) for a in (k, v))
        P = jnp.exp(_scores(q, k, corner, causal, block) - Lt)  # (17.9)
        dP = jnp.einsum("...te,...se->...ts", dot, vs)  # (17.11)
        dZ = P * (dP - dt) * _scale(q)  # (17.12), with the factor of (17.14) and (17.15)
        dq = _add(dq, corner[0], jnp.einsum("...ts,...sd->...td", dZ, ks))  # (17.14)
        dk = _add(dk, corner[1], jnp.einsum("...ts,...td->...sd", dZ, qt))  # (17.15)
        dv = _add(dv, corner[1], jnp.einsum("...ts,...te->...se", P, dot))  # (17.10)
        return (dq, dk, dv), None

    zeros = [jnp.zeros_like(_wide(a)) for a in (q, k, v)]
    sums, _ = lax.scan(tile, tuple(zeros), _corners(q, k, causal, block))
    return tuple(d.astype(a.dtype) for d, a in zip(sums, (q, k, v), strict=True))


def linear_cross_entropy(
    x: Float[ArrayLike, "*batch d"],
    W: Float[ArrayLike, "k d"],
    y: Integer[ArrayLike, "*batch"],
    *,
    chunk: int = 256,
) -> Float[ArrayLike, "*batch"]:
    """l = -log softmax(W x)_y, (17.16): x (*batch, d), W (k, d), labels y (*batch) -> l (*batch).

    The k logits are made in chunks and never written as a whole. A label out of range gives NaN.

    Raises:
        TypeError: x or W is not a float array, y not an integer one, or the shapes don't fit.
        ValueError: y has not one label for each example, or chunk is below 1.

    """
    loss, *_ = _surprised(x, W, W[:, :1], y, chunk)  # no mean is asked for: one column will do
    return loss


def linear_cross_entropy_fwd(x, W, y, *, chunk=256):
    """l, and the residuals (x, W, y, L, g); g is the gradient of l in x."""
    loss, L, mean = _surprised(x, W, W, y, chunk)
    g = mean - _wide(jnp.take(W, y, axis=0, mode="clip"))  # (17.17)
    return loss, (x, W, y, L, g)


@partial(jax.jit, static_argnames="chunk")
def linear_cross_entropy_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch d"],
        Float[ArrayLike, "k d"],
        Integer[ArrayLike, "*batch"],
        Float[ArrayLike, "*batch 1"],
        Float[ArrayLike, "*batch d"],
    ],
    dl: Float[ArrayLike, "*batch"],
    *,
    chunk=256,
):
    """(dx, dW, None): dx was made on the way forward, dW takes the logits once more."""
    x, W, y, L, g = residuals
    dx = (dl[..., None] * g).astype(x.dtype)  # (17.18)

    def part(dW, first):
        z, is_label = _logits(x, W, y, first, chunk)
        dz = (jnp.exp(z - L) - is_label) * dl[..., None]  # (17.19)
        dW = _add(dW, first, jnp.einsum("...k,...d->kd", dz, _wide(x)))  # (17.20)
        return dW, None

    dW, _ = lax.scan(part, jnp.zeros_like(_wide(W)), _firsts(len(W), chunk, "chunk"))
    return dx, dW.astype(W.dtype), None


@partial(jax.jit, static_argnames=("causal", "block"))
def _attended(q, k, v, causal, block):
    # O and L
    def tile(state, corner):
        z = _scores(q, k, corner, causal, block)
        known = [_cut(a, corner[0], block) for a in state]
        known = _joined(*known, z, _cut(v, corner[1], block))
        pairs = zip(state, known, strict=True)
        return [_paste(a, corner[0], rows) for a, rows in pairs], None

    state, _ = lax.scan(tile, _nothing(q, k, v), _corners(q, k, causal, block))
    L, o = _finished(*state)
    return o.astype(jnp.result_type(q, k, v)), L


@partial(jax.jit, static_argnames="chunk")
def _surprised(x, W, V, y, chunk):
    # l, L, and the mean of the rows of V under softmax(W x)
    if y.shape != x.shape[:-1]:
        raise ValueError(f"y: expected one label for each example, {x.shape[:-1]}; got {y.shape}")
    if len(W) == 0:
        raise ValueError(f"W: expected at least one class; got the shape {W.shape}")

    def part(state, first):
        *state, z_y = state
        z, is_label = _logits(x, W, y, first, chunk)
        z_y = z_y + jnp.where(is_label, z, 0).sum(axis=-1, keepdims=True)
        return [*_joined(*state, z, _cut(V, first, chunk)), z_y], None

    state = _nothing(x, W, V)
    state, _ = lax.scan(part, [*state, jnp.zeros_like(state[1])], _firsts(len(W), chunk, "chunk"))
    m, n, a, z_y = state
    exists = (y >= 0) & (y < len(W))
    n = n * jnp.where(exists, 1, jnp.nan)[..., None]  # and so is all that is made of it
    L, mean = _finished(m, n, a)
    loss = jnp.log(n) + (m - z_y)  # the difference first, so that large logits lose no digits
    return loss[..., 0].astype(jnp.result_type(x, W)), L, mean


def _nothing(q, k, v):
    # m, n and a of (17.5), of no keys
    dtype = jnp.result_type(q, k, v, jnp.float32)
    rows = q.shape[:-1]
    m = jnp.full((*rows, 1), jnp.finfo(dtype).min, dtype)  # finite: -inf minus -inf would be NaN
    return [m, jnp.zeros_like(m), jnp.zeros((*rows, v.shape[-1]), dtype)]


def _joined(m, n, a, z, v):
    # the same with more keys, whose scores are z and whose values v, (17.8)
    top = jnp.maximum(m, z.max(axis=-1, keepdims=True, initial=-jnp.inf))
    top = lax.stop_gradient(top)  # no value depends on it
    w, c = jnp.exp(z - top), jnp.exp(m - top)
    return [top, c * n + w.sum(axis=-1, keepdims=True), c * a + w @ v]


def _finished(m, n, a):
    # L and the mean of the values, (17.6); without any key the mean is 0
    n = jnp.where(n == 0, 1, n)
    return m + jnp.log(n), a / n


def _scores(q, k, corner, causal, block):
    # of one tile; -inf where a key is not seen, or both query and key met before
    t, s = corner
    rows, keys = _places(q.shape[-2], t, block)[:, None], _places(k.shape[-2], s, block)
    seen = (rows >= t) & (keys >= s)
    seen = seen & (keys <= rows) if causal else seen
    z = jnp.einsum("...td,...sd->...ts", _cut(q, t, block) * _scale(q), _cut(k, s, block))
    return jnp.where(seen, z, -jnp.inf)


def _logits(x, W, y, first, chunk):
    # of one chunk of classes, likewise; and for each whether it is the label's
    classes = _places(len(W), first, chunk)
    z = jnp.einsum("...d,kd->...k", _wide(x), _cut(W, first, chunk))
    new = classes >= first
    return jnp.where(new, z, -jnp.inf), (classes == y[..., None]) & new


def _corners(q, k, causal, block):
    # the first query and the first key of every tile in which something is seen
    t, s = (_firsts(a.shape[-2], block, "block") for a in (q, k))
    rows, columns = np.nonzero((s <= t[:, None]) | (not causal))
    return t[rows], s[columns]


def _firsts(length, size, name):
    if size < 1:
        raise ValueError(f"{name}: expected at least 1; got {size}")
    return np.arange(0, length, size)


def _cut(a, first, size):
    # `size` rows of a from `first` on; the last ones if there are fewer, or all
    size = min(size, a.shape[-2])
    return _wide(lax.dynamic_slice_in_dim(a, first, size, axis=-2))


def _places(length, first, size):
    # of the rows that are cut
    return lax.dynamic_slice_in_dim(np.arange(length), first, min(size, length))


def _paste(a, first, rows):
    return lax.dynamic_update_slice_in_dim(a, rows.astype(a.dtype), first, axis=-2)


def _add(a, first, rows):
    return _paste(a, first, _cut(a, first, rows.shape[-2]) + rows)


def _wide(a):
    return jnp.asarray(a, jnp.result_type(a, jnp.float32))


def _scale(q):
    if not q.shape[-1]:
        raise ValueError(f"q: expected at least one feature; got the shape {q.shape}")
    return 1 / math.sqrt(q.shape[-1])
