"""GPT-2 in reverse, and low-rank adapters.    Derivation: notebooks/19_gpt.ipynb

The model is rules of other modules, one after the other, and its way back is the same rules in
reverse order. Two sums are new: the stream of a residual connection has two readers, (19.7), and
so has the table of tokens, which is read at both ends, (19.5).

Its parameters are a tree of arrays: tokens (v, d), positions (m, d), blocks, each with its norm1,
attention, norm2, up and down, and norm at the end. Blocks are compiled one by one outside of jit,
so that the program of the first serves all of them.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Integer

from handgrad.layers.activations import gelu_tanh, gelu_tanh_bwd, gelu_tanh_fwd
from handgrad.layers.attention import (
    multi_head_attention,
    multi_head_attention_bwd,
    multi_head_attention_fwd,
)
from handgrad.layers.linear import linear, linear_bwd, linear_fwd
from handgrad.layers.normalization import layer_norm, layer_norm_bwd, layer_norm_fwd
from handgrad.layers.shapes import embedding, embedding_bwd, embedding_fwd
from handgrad.layers.softmax_cross_entropy import (
    softmax_cross_entropy,
    softmax_cross_entropy_bwd,
    softmax_cross_entropy_fwd,
)


def gpt_parameters(rng, *, vocabulary: int, positions: int, d: int, blocks: int, std: float = 0.02):
    """Random parameters of GPT-2, drawn with NumPy's rng: weights of this standard deviation.

    Those that write to the residual stream are smaller by the root of their number. Scales of norms
    begin at 1, shifts and biases at 0. Radford and others 2019, section 2.3.
    """

    def weights(*shape, count=1):
        return rng.normal(scale=std / math.sqrt(count), size=shape)

    def constants(*values):
        return tuple(np.full(n, float(value)) for n, value in values)

    def layer(h, n, count=1):
        return weights(h, n, count=count), *constants((h, 0))

    def block():
        return {
            "norm1": constants((d, 1), (d, 0)),
            "attention": (*layer(3 * d, d), *layer(d, d, 2 * blocks)),
            "norm2": constants((d, 1), (d, 0)),
            "up": layer(4 * d, d),
            "down": layer(d, 4 * d, 2 * blocks),
        }

    return {
        "tokens": weights(vocabulary, d),
        "positions": weights(positions, d),
        "blocks": [block() for _ in range(blocks)],
        "norm": constants((d, 1), (d, 0)),
    }


def gpt_block(
    x: Float[ArrayLike, "*batch T d"], p: dict, *, heads: int
) -> Float[ArrayLike, "*batch T d"]:
    """One block with its parameters p, (19.2): attention and then two layers, each added to x.

    Raises:
        ValueError: heads does not divide d.

    """
    n = layer_norm(x, *p["norm1"])
    u = x + multi_head_attention(n, *p["attention"], heads=heads, causal=True)
    a = gelu_tanh(linear(layer_norm(u, *p["norm2"]), *p["up"]))
    return u + linear(a, *p["down"])


def gpt(
    parameters: dict, ids: Integer[ArrayLike, "*batch T"], *, heads: int
) -> Float[ArrayLike, "*batch T v"]:
    """The logits of the token that comes next, (19.3), at each of T places: ids (*batch, T).

    An id out of range makes all logits of its sequence NaN. Radford and others 2019, section 2.3.

    Raises:
        ValueError: there are more ids than positions, or heads does not divide d.

    """
    x = embedding(ids, parameters["tokens"]) + _first(parameters["positions"], ids)
    for block in parameters["blocks"]:
        x = gpt_block(x, block, heads=heads)
    return layer_norm(x, *parameters["norm"]) @ parameters["tokens"].T


def gpt_loss(
    parameters: dict,
    ids: Integer[ArrayLike, "*batch T"],
    y: Integer[ArrayLike, "*batch T"],
    *,
    heads: int,
) -> Float[ArrayLike, ""]:
    """The mean cross-entropy of the tokens y that come next, (19.4): ids and y (*batch, T).

    With an id or a label out of range it is NaN.

    Raises:
        ValueError: there are more ids than positions, or heads does not divide d.

    """
    return softmax_cross_entropy(gpt(parameters, ids, heads=heads), y).mean()


def gpt_gradients(
    parameters: dict,
    ids: Integer[ArrayLike, "*batch T"],
    y: Integer[ArrayLike, "*batch T"],
    *,
    heads: int,
) -> tuple[Float[ArrayLike, ""], dict]:
    """gpt_loss, and its gradient by hand, a tree as the parameters are: the rules in reverse.

    Raises:
        ValueError: there are more ids than positions, or heads does not divide d.

    """
    tokens, positions = parameters["tokens"], parameters["positions"]
    x, of_ids = embedding_fwd(ids, tokens)
    x, of_blocks = x + _first(positions, ids), []
    for block in parameters["blocks"]:
        x, kept = _block_fwd(x, block, heads)
        of_blocks.append(kept)
    n, of_norm = layer_norm_fwd(x, *parameters["norm"])
    losses, of_losses = softmax_cross_entropy_fwd(n @ tokens.T, y)

    dlosses = jnp.full(losses.shape, 1 / max(losses.size, 1), losses.dtype)
    dlogits, _ = softmax_cross_entropy_bwd(of_losses, dlosses)
    dn = dlogits @ tokens  # (19.6)
    dx, *dnorm = layer_norm_bwd(of_norm, dn)
    dblocks = []
    for kept in reversed(of_blocks):
        dx, dblock = _block_bwd(kept, dx, heads)
        dblocks.insert(0, dblock)
    batch, T = tuple(range(y.ndim - 1)), y.shape[-1]
    dpositions = jnp.zeros_like(positions).at[:T].set(dx.sum(axis=batch))  # (19.9)
    _, at_input = embedding_bwd(of_ids, dx)
    dtokens = jnp.einsum("...v,...d->vd", dlogits, n) + at_input  # (19.5)
    return losses.mean(), {
        "tokens": dtokens,
        "positions": dpositions,
        "blocks": dblocks,
        "norm": tuple(dnorm),
    }


def lora(
    x: Float[ArrayLike, "*batch d"],
    W: Float[ArrayLike, "h d"],
    A: Float[ArrayLike, "r d"],
    B: Float[ArrayLike, "h r"],
    *,
    scale: float | int,
) -> Float[ArrayLike, "*batch h"]:
    """z = W x + scale B (A x), (19.11): x (*batch, d) -> z (*batch, h), by way of r numbers.

    W is a layer that was trained before, and A, B are trained in its place. Hu and others 2022,
    section 4.1, with scale = alpha / r.

    Raises:
        TypeError: an argument is not a float array, or the sizes d, h, r don't fit.
        ValueError: scale is not a finite number.

    """
    return x @ W.T + _compressed(x, A, scale) @ B.T


def lora_fwd(x, W, A, B, *, scale):
    """z, and the residuals (x, W, A, B, c): the r numbers c = scale A x are all that is new."""
    c = _compressed(x, A, scale)
    return x @ W.T + c @ B.T, (x, W, A, B, c)


def lora_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch d"],
        Float[ArrayLike, "h d"],
        Float[ArrayLike, "r d"],
        Float[ArrayLike, "h r"],
        Float[ArrayLike, "*batch r"],
    ],
    dz: Float[ArrayLike, "*batch h"],
    *,
    scale,
):
    """(dx, dW, dA, dB). Whoever freezes W leaves dW aside; under jit it is not computed then."""
    x, W, A, B, c = residuals
    da = scale * (dz @ B)  # (19.12)
    dx = dz @ W + da @ A  # (19.13)
    dW = jnp.einsum("...h,...d->hd", dz, x)  # (19.16)
    dA = jnp.einsum("...r,...d->rd", da, x)  # (19.14)
    dB = jnp.einsum("...h,...r->hr", dz, c)  # (19.15)
    return dx, dW, dA, dB


def _compressed(x, A, scale):
    if not math.isfinite(scale):
        raise ValueError(f"scale: expected a finite number; got {scale}")
    return scale * (x @ A.T)


@partial(jax.jit, static_argnums=2)
def _block_fwd(x, p, heads):
    n, of_norm1 = layer_norm_fwd(x, *p["norm1"])
    o, of_attention = multi_head_attention_fwd(n, *p["attention"], heads=heads, causal=True)
    u = x + o
    n, of_norm2 = layer_norm_fwd(u, *p["norm2"])
    v, of_up = linear_fwd(n, *p["up"])
    a, of_gelu = gelu_tanh_fwd(v)
    z, of_down = linear_fwd(a, *p["down"])
    return u + z, (of_norm1, of_attention, of_norm2, of_up, of_gelu, of_down)


@partial(jax.jit, static_argnums=2)
def _block_bwd(kept, dz, heads):
    of_norm1, of_attention, of_norm2, of_up, of_gelu, of_down = kept
    da, *ddown = linear_bwd(of_down, dz)
    (dv,) = gelu_tanh_bwd(of_gelu, da)
    dn, *dup = linear_bwd(of_up, dv)
    du, *dnorm2 = layer_norm_bwd(of_norm2, dn)
    du = du + dz  # (19.7)
    dn, *dattention = multi_head_attention_bwd(of_attention, du, heads=heads, causal=True)
    dx, *dnorm1 = layer_norm_bwd(of_norm1, dn)
    dx = dx + du  # (19.8)
    names = "norm1", "attention", "norm2", "up", "down"
    gradients = dnorm1, dattention, dnorm2, dup, ddown
    return dx, dict(zip(names, map(tuple, gradients), strict=True))


def _first(positions, ids):
    m, T = len(positions), ids.shape[-1]
    if m < T:
        raise ValueError(f"ids: expected at most {m}, one for each position; got {T} in a row")
    return positions[:T]
