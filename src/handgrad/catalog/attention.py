"""The rows of layers/attention.py."""

import numpy as np

from handgrad.catalog import Row
from handgrad.layers.attention import (
    alibi_attention,
    attention,
    grouped_query_attention,
    multi_head_attention,
    rotary,
)


def _draw(rng, batch=(), T=5, S=6, d=4, e=3, size=1.0):
    """q, k and v; the larger the size, the larger the scores."""
    q, k = size * rng.normal(size=(*batch, T, d)), size * rng.normal(size=(*batch, S, d))
    return q, k, rng.normal(size=(*batch, S, e))


def _sequences(rng):
    """The last of seven queries sees none of the four keys through a window of 3."""
    return {
        "typical": (_draw(rng, (3,), 4, 6, 5, 7), {}),
        "edge: one sequence, causal": (_draw(rng), {"causal": True}),
        "edge: more batch axes, a cap, a query that sees no key": (
            _draw(rng, (2, 3), T=7, S=4),
            {"causal": True, "window": 3, "softcap": 2.0},
        ),
        "extreme: scores of 1e4": (_draw(rng, size=100), {"causal": True}),
        "extreme: scores of 1e4, capped": (_draw(rng, size=100), {"softcap": 30.0}),
    }


def _biased(rng):
    return {
        "typical": (_draw(rng, (3,), 4, 6, 5, 7), {"slope": 0.5}),
        "edge: one sequence": (_draw(rng), {"slope": 0.25}),
        "edge: more batch axes, a slope for each head": (
            _draw(rng, (2, 3)),
            {"slope": (0.5, 0.25, 0.125)},
        ),
        "extreme: scores of 1e4": (_draw(rng, size=100), {"slope": 0.5}),
        "extreme: a slope of 1e4": (_draw(rng), {"slope": 1e4}),
    }


def _groups(rng):
    def example(*batch, heads=6, of_keys=3, size=1.0):
        q, _, _ = _draw(rng, (*batch, heads), 5, 7, 4, 8, size)
        _, k, v = _draw(rng, (*batch, of_keys), 5, 7, 4, 8, size)
        return q, k, v

    return {
        "typical": (example(), {}),
        "edge: more batch axes, causal, one head of keys": (
            example(2, 3, heads=4, of_keys=1),
            {"causal": True},
        ),
        "extreme: scores of 1e4": (example(size=100), {"causal": True}),
    }


def _positions(rng):
    return {
        "typical": ((rng.normal(size=(3, 5, 6)),), {}),
        "edge: one sequence, another base": ((rng.normal(size=(5, 6)),), {"base": 7.0}),
        "edge: more batch axes": ((rng.normal(size=(2, 3, 5, 6)),), {}),
        "extreme: 1e4": ((1e4 * rng.normal(size=(5, 6)),), {}),
    }


def _several_heads(rng):
    def example(*shape, size=1.0):
        d = shape[-1]
        weights = [rng.normal(size=of) / np.sqrt(d) for of in ((3 * d, d), 3 * d, (d, d), d)]
        return size * rng.normal(size=shape), *weights

    return {
        "typical": (example(3, 5, 4), {"heads": 2, "causal": True}),
        "edge: one sequence": (example(5, 4), {"heads": 2, "causal": True}),
        "extreme: scores of 1e4": (example(5, 4, size=100), {"heads": 2}),
    }


def _one_query(query, keys, values, bias, softcap):
    z = [sum(query * key) / len(query) ** 0.5 - b for key, b in zip(keys, bias, strict=True)]
    z = np.array([softcap * np.tanh(score / softcap) if softcap else score for score in z])
    w = np.exp(z - max(z, default=0))
    return sum(w[s] * value for s, value in enumerate(values)) / (sum(w) or 1)


def _query_by_query(q, k, v, *, causal=False, window=None, softcap=None, slope=0.0):
    if np.ndim(q) > 2:
        each = slope if np.ndim(q) == 3 and isinstance(slope, tuple) else [slope] * len(q)
        hyper = {"causal": causal, "window": window, "softcap": softcap}
        heads = zip(q, k, v, each, strict=True)
        return np.array([_query_by_query(*of, **hyper, slope=one) for *of, one in heads])
    o = np.zeros((len(q), v.shape[1]))
    for t, query in enumerate(q):
        s = np.arange(len(k))
        s = s[(s <= t) | (not causal)]
        s = s[abs(t - s) < (window or np.inf)]
        o[t] = _one_query(query, k[s], v[s], slope * (t - s), softcap)
    return o


def _biased_by_query(q, k, v, *, slope):
    return _query_by_query(q, k, v, causal=True, slope=slope)


def _head_by_head(q, k, v, *, causal=False):
    share = q.shape[-3] // k.shape[-3]
    return _query_by_query(q, k.repeat(share, -3), v.repeat(share, -3), causal=causal)


def _complex_turns(x, *, base=1e4):
    (T, d), half = x.shape[-2:], x.shape[-1] // 2
    turned = x[..., :half] + 1j * x[..., half:]
    for i in range(half):
        turned[..., i] *= np.exp(1j * base ** (-2 * i / d)) ** np.arange(T)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _block_by_block(x, Wqkv, bqkv, Wo, bo, *, heads, causal=False):
    a, c = np.empty(x.shape), x.shape[-1] // heads
    for i in range(heads):
        blocks = [slice(c * (part * heads + i), c * (part * heads + i + 1)) for part in range(3)]
        q, k, v = (x @ Wqkv[block].T + bqkv[block] for block in blocks)
        a[..., i * c : (i + 1) * c] = _query_by_query(q, k, v, causal=causal)
    return a @ Wo.T + bo


WEIGHED = r"O = P V, \quad P = \operatorname{softmax}(Z), \quad Z = \tfrac{1}{\sqrt d}\,Q K^\top"
ROW_BY_ROW = (
    r"softmax row by row; $dZ = P \odot (dP - \delta\,\mathbf{1}^\top)$ with $dP = dO\,V^\top$, "
    r"and $\delta$ the row sums of $P \odot dP$"
)
BACK = {
    "q": r"dQ = \tfrac{1}{\sqrt d}\,dZ\,K",
    "k": r"dK = \tfrac{1}{\sqrt d}\,dZ^\top Q",
    "v": r"dV = P^\top dO",
}

ROWS = (
    Row(
        attention,
        WEIGHED,
        BACK,
        _sequences,
        same_as=_query_by_query,
        where=ROW_BY_ROW,
    ),
    Row(
        alibi_attention,
        r"O = P V, \quad P_{ts} \propto e^{Z_{ts} - \rho\,(t - s)} \text{ for } s \le t",
        BACK,
        _biased,
        same_as=_biased_by_query,
        where=r"$Z$ as in attention, $\rho$ is the slope; " + ROW_BY_ROW,
    ),
    Row(
        grouped_query_attention,
        r"O_i = \operatorname{attention}(Q_i, K_j, V_j), \quad j = \lfloor i g / m \rfloor",
        {
            "q": r"dQ_i = \tfrac{1}{\sqrt d}\,dZ_i\,K_j",
            "k": r"dK_j = \tfrac{1}{\sqrt d} \sum_i dZ_i^\top Q_i",
            "v": r"dV_j = \sum_i P_i^\top dO_i",
        },
        _groups,
        same_as=_head_by_head,
        where=r"sums over the heads $i$ that read head $j$; $P_i$ and $dZ_i$ as in attention, with "
        r"$dP_i = dO_i\,V_j^\top$",
    ),
    Row(
        rotary,
        r"z_t = R_t\,x_t",
        {"x": r"dx_t = R_{-t}\,dz_t"},
        _positions,
        same_as=_complex_turns,
        where=r"$R_t$ turns the entries $i$ and $i + d/2$ by the angle $t\,\text{base}^{-2i/d}$",
    ),
    Row(
        multi_head_attention,
        r"z = W_o\,a + b_o, \quad a = \operatorname{attention}(u), \quad u = W x + b",
        {
            "x": r"dx_t = W^\top du_t",
            "Wqkv": r"dW = \sum_t du_t\,x_t^\top",
            "bqkv": r"db = \sum_t du_t",
            "Wo": r"dW_o = \sum_t dz_t\,a_t^\top",
            "bo": r"db_o = \sum_t dz_t",
        },
        _several_heads,
        same_as=_block_by_block,
        where=r"$u = (q, k, v)$ holds the queries, keys and values of all heads; "
        r"$du = (dq, dk, dv)$ from attention's rule, with its weights $P$, and $da = W_o^\top dz$",
    ),
)
