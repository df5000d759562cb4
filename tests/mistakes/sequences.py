"""Recurrences, attention and embeddings, differentiated by hand, with the mistakes people make.

Every layer is three functions: the forward, its backward pass with the mistakes switched inline,
and the draw of its arguments. B counts sequences, T and S positions, D, E and F features, H hidden
units.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import Layer, Mistake


def normal(rng, *shape, fan_in=1):
    """A normal array of a shape, over the square root of fan_in."""
    return jnp.asarray(rng.standard_normal(shape) / np.sqrt(fan_in))


def sigmoid(x):
    """The logistic function."""
    return 1 / (1 + jnp.exp(-x))


def softmax(s):
    """The softmax over the last axis."""
    e = jnp.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# A vanilla RNN: h_t = tanh(x_t W + h_{t-1} U + b), all states returned


def rnn(x, W, U, b, h0):
    """The states (B, T, H) of x (B, T, D)."""
    hs, h = [], h0
    for t in range(x.shape[1]):
        h = jnp.tanh(x[:, t] @ W + h @ U + b)
        hs.append(h)
    return jnp.stack(hs, axis=1)


def rnn_backward(args, dz, wrong):
    """Backpropagation through time, one step after the other."""
    x, W, U, b, h0 = args
    T = x.shape[1]
    h = {-1: h0}
    for t in range(T):
        h[t] = jnp.tanh(x[:, t] @ W + h[t - 1] @ U + b)
    dx = jnp.zeros_like(x)
    dW, dU, db = jnp.zeros_like(W), jnp.zeros_like(U), jnp.zeros_like(b)
    dh_next = jnp.zeros_like(h0)
    for t in reversed(range(T)):
        dh = dz[:, t] + dh_next
        if wrong == "the gradient of the next state is not added":
            dh = dz[:, t]
        slope = 1 - h[t] ** 2
        if wrong == "tanh's slope upside down":
            slope = 1 / slope
        da = dh * slope
        before = h[t] if wrong == "dU from the state after the step" else h[t - 1]
        if wrong == "the weights' gradients are those of the last step visited":
            dW, dU, db = jnp.zeros_like(W), jnp.zeros_like(U), jnp.zeros_like(b)
        dW += x[:, t].T @ da
        dU += before.T @ da
        db += da.sum(axis=0)
        dx = dx.at[:, t].set(da @ W.T)
        dh_next = da @ (U if wrong == "U not transposed on the way back" else U.T)
    dh0 = dh_next
    if wrong == "dh0 keeps its zeros":
        dh0 = jnp.zeros_like(h0)
    return dx, dW, dU, db, dh0


def draw_rnn(rng, size):
    """x, W, U, b, h0."""
    B, T, D, H = (3, 5, 4, 6) if size == "small" else (32, 16, 64, 96)
    return (
        normal(rng, B, T, D),
        normal(rng, D, H, fan_in=D),
        normal(rng, H, H, fan_in=H),
        normal(rng, H, fan_in=4),
        normal(rng, B, H),
    )


RNN_MISTAKES = (
    Mistake(
        "the gradient of the next state is not added",
        ("carry", "branch"),
        source="https://community.deeplearning.ai/t/c5-w1a1-optional-rnn-back-propagation/48297",
    ),
    Mistake(
        "tanh's slope upside down",
        ("slope", "local factor"),
        r"tanh|slope",
        source="https://github.com/oreilly-japan/deep-learning-from-scratch-2/issues/26",
    ),
    Mistake(
        "dU from the state after the step",
        ("shifted", "operand", "output", "residual"),
        source="https://github.com/VikParuchuri/zero_to_gpt/issues/9",
    ),
    Mistake(
        "the weights' gradients are those of the last step visited",
        ("overwritten",),
        source="https://github.com/mratsim/Arraymancer/pull/237",
    ),
    Mistake("U not transposed on the way back", ("transposed",)),
    Mistake(
        "dh0 keeps its zeros",
        ("zeros", "carry"),
        source="https://community.deeplearning.ai/t/c5-w1a1-optional-rnn-back-propagation/48297",
    ),
)


# A character model: embedding, RNN, softmax cross-entropy; the text is closed over

_text = np.random.default_rng(26)
TEXT = {7: _text.integers(7, size=(3, 6)), 40: _text.integers(40, size=(32, 17))}


def char_rnn(E, U, W, bh, V, bv, h0):
    """The mean cross-entropy of each next character in the text that goes with len(E)."""
    text = TEXT[len(E)]
    inputs, targets = text[:, :-1], text[:, 1:]
    loss, h = 0.0, h0
    for t in range(inputs.shape[1]):
        h = jnp.tanh(E[inputs[:, t]] @ U + h @ W + bh)
        logp = jax.nn.log_softmax(h @ V + bv)
        loss -= logp[jnp.arange(len(logp)), targets[:, t]].sum()
    return loss / targets.size


def char_rnn_backward(args, dz, wrong):
    """The loss function of a character model, as in a script of a hundred lines."""
    E, U, W, bh, V, bv, h0 = args
    text = TEXT[len(E)]
    inputs, targets = text[:, :-1], text[:, 1:]
    B, T = inputs.shape
    rows = jnp.arange(B)
    xs, hs, ps = {}, {-1: h0}, {}
    for t in range(T):
        xs[t] = E[inputs[:, t]]
        hs[t] = jnp.tanh(xs[t] @ U + hs[t - 1] @ W + bh)
        ps[t] = softmax(hs[t] @ V + bv)
    N = B * T
    if wrong == "the mean's 1/N forgotten":
        N = 1
    if wrong == "divided by the batch and not by the steps":
        N = B
    dloss = 1.0 if wrong == "the cotangent of the loss ignored" else dz
    dE, dU, dW, dbh, dV, dbv = (jnp.zeros_like(a) for a in (E, U, W, bh, V, bv))
    dh_next = jnp.zeros_like(h0)
    for t in reversed(range(T)):
        labels = inputs[:, t] if wrong == "the inputs taken for the labels" else targets[:, t]
        dy = ps[t].at[rows, labels].add(-1.0) * dloss / N
        dV += hs[t].T @ dy
        dbv += dy.sum(axis=0)
        dh = dy @ V.T + dh_next
        dh_raw = (1 - hs[t] ** 2) * dh
        if wrong == "the next state's gradient added after tanh's slope":
            dh_raw = (1 - hs[t] ** 2) * (dy @ V.T) + dh_next
        dU += xs[t].T @ dh_raw
        dW += hs[t - 1].T @ dh_raw
        dbh += dh_raw.sum(axis=0)
        dx = dh_raw @ U.T
        if wrong == "an embedding's row is overwritten by its next use":
            dE = dE.at[inputs[:, t]].set(dx)
        else:
            dE = dE.at[inputs[:, t]].add(dx)
        dh_next = dh_raw @ W.T
    return dE, dU, dW, dbh, dV, dbv, dh_next


def draw_char_rnn(rng, size):
    """E, U, W, bh, V, bv, h0."""
    words, B, D, H = (7, 3, 4, 6) if size == "small" else (40, 32, 24, 64)
    return (
        normal(rng, words, D),
        normal(rng, D, H, fan_in=D),
        normal(rng, H, H, fan_in=H),
        normal(rng, H, fan_in=4),
        normal(rng, H, words, fan_in=H),
        normal(rng, words, fan_in=4),
        normal(rng, B, H),
    )


CHAR_RNN_MISTAKES = (
    Mistake("the mean's 1/N forgotten", ("factor",), r"N|mean|\d"),
    Mistake(
        "divided by the batch and not by the steps",
        ("factor",),
        source="https://github.com/paiml/aprender/pull/2182",
    ),
    Mistake(
        "the cotangent of the loss ignored",
        ("upstream", "factor"),
        source="https://github.com/NVIDIA/TransformerEngine/pull/2139",
    ),
    Mistake("the inputs taken for the labels", ("label", "shifted")),
    Mistake(
        "the next state's gradient added after tanh's slope",
        ("local factor", "slope", "carry"),
    ),
    Mistake(
        "an embedding's row is overwritten by its next use",
        ("overwritten", "duplicates"),
        source="https://github.com/imguru-mooc/deep_learning_nlp",
    ),
)


# One step of an LSTM, whose four gates share a matrix in the order i, f, o, g


def lstm_cell(x, h, c, W, b):
    """The new h and c (B, H) from x (B, D), h and c."""
    i, f, o, g = jnp.split(jnp.concatenate([x, h], axis=1) @ W + b, 4, axis=1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def lstm_cell_backward(args, dz, wrong):
    """The step back, from the cotangents of both outputs."""
    x, h, c_prev, W, b = args
    dh, dc_next = dz
    xh = jnp.concatenate([x, h], axis=1)
    ai, af, ao, ag = jnp.split(xh @ W + b, 4, axis=1)
    i, f, o, g = sigmoid(ai), sigmoid(af), sigmoid(ao), jnp.tanh(ag)
    c = f * c_prev + i * g
    tanh_c = jnp.tanh(c)
    do = dh * (c if wrong == "the output gate sees c and not tanh(c)" else tanh_c)
    slope = 1 - tanh_c**2
    if wrong == "tanh's slope taken at tanh(c)":
        slope = 1 - jnp.tanh(tanh_c) ** 2
    dc = dh * o * slope + dc_next
    if wrong == "the cotangent of the new cell state not added":
        dc = dh * o * slope
    di, df, dg = dc * g, dc * c_prev, dc * i
    dc_prev = dc * f
    dai = di * i * (1 - i)
    daf = df * f * (1 - f)
    if wrong == "the forget gate multiplied in place of its slope":
        daf = df * f
    dao = do * o * (1 - o)
    dag = dg * (1 - g**2)
    if wrong == "the candidate's tanh given a sigmoid's slope":
        dag = dg * g * (1 - g)
    gates = [dai, daf, dao, dag]
    if wrong == "the gates put together in another order":
        gates = [dai, daf, dag, dao]
    da = jnp.concatenate(gates, axis=1)
    dW, db = xh.T @ da, da.sum(axis=0)
    dxh = da @ W.T
    return dxh[:, : x.shape[1]], dxh[:, x.shape[1] :], dc_prev, dW, db


def draw_lstm_cell(rng, size):
    """x, h, c, W, b."""
    B, D, H = (3, 4, 5) if size == "small" else (32, 64, 96)
    return (
        normal(rng, B, D),
        normal(rng, B, H),
        normal(rng, B, H),
        normal(rng, D + H, 4 * H, fan_in=D + H),
        normal(rng, 4 * H, fan_in=4),
    )


LSTM_CELL_MISTAKES = (
    Mistake(
        "the output gate sees c and not tanh(c)",
        ("operand", "output", "forward", "residual", "local factor"),
        source="https://github.com/nicodjimenez/lstm/pull/30",
    ),
    Mistake(
        "tanh's slope taken at tanh(c)",
        ("output", "slope", "residual", "operand"),
        r"tanh",
        source="https://github.com/nicklashansen/rnn_lstm_from_scratch/issues/1",
    ),
    Mistake(
        "the cotangent of the new cell state not added",
        ("branch", "carry", "upstream"),
        source="https://github.com/deeplearning4j/deeplearning4j/issues/8838",
    ),
    Mistake(
        "the forget gate multiplied in place of its slope",
        ("value", "slope", "local factor"),
        source="https://github.com/CaptainE/RNN-LSTM-in-numpy/issues/1",
    ),
    Mistake(
        "the candidate's tanh given a sigmoid's slope",
        ("slope",),
        r"1 - ",
    ),
    Mistake(
        "the gates put together in another order",
        ("exchanged", "permuted", "operand"),
        source="https://github.com/ooples/AiDotNet.Tensors/pull/907",
    ),
)


# An LSTM over time


def lstm(x, W, U, b, h0, c0):
    """The states (T, B, H) of x (T, B, D)."""

    def step(carry, x):
        h, c = carry
        i, f, o, g = jnp.split(x @ W + h @ U + b, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    return lax.scan(step, (h0, c0), x)[1]


def lstm_backward(args, dz, wrong):
    """Backpropagation through time of both states."""
    x, W, U, b, h0, c0 = args
    T = len(x)
    h, c, gates = {-1: h0}, {-1: c0}, {}
    for t in range(T):
        ai, af, ao, ag = jnp.split(x[t] @ W + h[t - 1] @ U + b, 4, axis=1)
        gates[t] = sigmoid(ai), sigmoid(af), sigmoid(ao), jnp.tanh(ag)
        i, f, o, g = gates[t]
        c[t] = f * c[t - 1] + i * g
        h[t] = o * jnp.tanh(c[t])
    dW, dU, db = jnp.zeros_like(W), jnp.zeros_like(U), jnp.zeros_like(b)
    dh_next, dc_next = jnp.zeros_like(h0), jnp.zeros_like(c0)
    dx = [None] * T
    for t in reversed(range(T)):
        i, f, o, g = gates[t]
        if wrong == "neither state's gradient is handed to the step before":
            dh_next, dc_next = jnp.zeros_like(h0), jnp.zeros_like(c0)
        if wrong == "the cell's gradient overwritten by that of its output":
            dc_next = jnp.zeros_like(c0)
        if wrong == "gradients cut off every three steps" and t % 3 == 2:
            dh_next, dc_next = jnp.zeros_like(h0), jnp.zeros_like(c0)
        dh = dz[t] + dh_next
        tanh_c = jnp.tanh(c[t])
        slope = 1.0 if wrong == "the slope of tanh(c) forgotten" else 1 - tanh_c**2
        dc = dc_next + dh * o * slope
        dai = dc * g * i * (1 - i)
        before = c[t] if wrong == "the forget gate reads the new cell state" else c[t - 1]
        daf = dc * before * f * (1 - f)
        dao = dh * tanh_c * o * (1 - o)
        dag = dc * i * (1 - g**2)
        da = jnp.concatenate([dai, daf, dao, dag], axis=1)
        if wrong == "the input weights' gradient is not summed over time":
            dW = x[t].T @ da
        else:
            dW += x[t].T @ da
        dU += h[t - 1].T @ da
        db += da.sum(axis=0)
        dx[t] = da @ W.T
        dh_next, dc_next = da @ U.T, dc * f
    return jnp.stack(dx), dW, dU, db, dh_next, dc_next


def draw_lstm(rng, size):
    """x, W, U, b, h0, c0."""
    T, B, D, H = (5, 3, 4, 6) if size == "small" else (16, 32, 64, 72)
    return (
        normal(rng, T, B, D),
        normal(rng, D, 4 * H, fan_in=D),
        normal(rng, H, 4 * H, fan_in=H),
        normal(rng, 4 * H, fan_in=4),
        normal(rng, B, H),
        normal(rng, B, H),
    )


LSTM_MISTAKES = (
    Mistake(
        "neither state's gradient is handed to the step before",
        ("carry",),
        source="https://github.com/CaptainE/RNN-LSTM-in-numpy/issues/1",
    ),
    Mistake(
        "the cell's gradient overwritten by that of its output",
        ("carry", "branch"),
        source="https://github.com/arunmallya/arunmallya.github.io/issues/3",
    ),
    Mistake(
        "gradients cut off every three steps",
        ("carry",),
        source="https://github.com/rsokl/MyGrad/pull/4",
    ),
    Mistake("the slope of tanh(c) forgotten", ("local factor", "slope"), r"tanh"),
    Mistake(
        "the forget gate reads the new cell state",
        ("operand", "shifted", "output", "residual"),
    ),
    Mistake(
        "the input weights' gradient is not summed over time",
        ("overwritten",),
        source="https://github.com/hanbt/learn_dl/issues/30",
    ),
)


# A GRU, whose reset gate acts on the state before the product


def gru(x, Wz, Uz, Wr, Ur, Wn, Un, bn, h0):
    """The states (T, B, H) of x (T, B, D)."""

    def step(h, x):
        z = jax.nn.sigmoid(x @ Wz + h @ Uz)
        r = jax.nn.sigmoid(x @ Wr + h @ Ur)
        n = jnp.tanh(x @ Wn + (r * h) @ Un + bn)
        h = (1 - z) * n + z * h
        return h, h

    return lax.scan(step, h0, x)[1]


def gru_backward(args, dz, wrong):
    """Backpropagation through time, gate by gate."""
    x, Wz, Uz, Wr, Ur, Wn, Un, bn, h0 = args
    T = len(x)
    h, gates = {-1: h0}, {}
    for t in range(T):
        z = sigmoid(x[t] @ Wz + h[t - 1] @ Uz)
        r = sigmoid(x[t] @ Wr + h[t - 1] @ Ur)
        n = jnp.tanh(x[t] @ Wn + (r * h[t - 1]) @ Un + bn)
        gates[t] = z, r, n
        h[t] = (1 - z) * n + z * h[t - 1]
    dWz, dUz, dWr, dUr, dWn, dUn, dbn = (jnp.zeros_like(a) for a in (Wz, Uz, Wr, Ur, Wn, Un, bn))
    dx, dh_next = [None] * T, jnp.zeros_like(h0)
    for t in reversed(range(T)):
        z, r, n = gates[t]
        prev = h[t - 1]
        dh = dz[t] + dh_next
        dn, leak = dh * (1 - z), dh * z
        if wrong == "the update gate used the other way round":
            dn, leak = dh * z, dh * (1 - z)
        if wrong == "the state's direct path through the update gate forgotten":
            leak = 0.0
        dgate = dh * (prev - n)
        if wrong == "the update gate's gradient with the sign of 1 - z":
            dgate = dh * (n - prev)
        dan = dn * (1 - n**2)
        daz = dgate * z * (1 - z)
        drh = dan @ Un.T
        dar = drh * prev * r * (1 - r)
        if wrong == "the reset gate's slope forgotten":
            dar = drh * prev
        dprev = leak + daz @ Uz.T + dar @ Ur.T
        if wrong == "the candidate's path back to the state lacks the reset gate":
            dprev += drh
        else:
            dprev += drh * r
        dWz += x[t].T @ daz
        dUz += prev.T @ daz
        if wrong == "the reset gate's and the candidate's gradients exchanged":
            dar, dan = dan, dar
        dWr += x[t].T @ dar
        dUr += prev.T @ dar
        dWn += x[t].T @ dan
        dUn += (r * prev).T @ dan
        dbn += dan.sum(axis=0)
        if wrong == "the reset gate's and the candidate's gradients exchanged":
            dar, dan = dan, dar
        dx[t] = daz @ Wz.T + dar @ Wr.T + dan @ Wn.T
        dh_next = dprev
    return jnp.stack(dx), dWz, dUz, dWr, dUr, dWn, dUn, dbn, dh_next


def draw_gru(rng, size):
    """x, then W and U of the update gate, of the reset gate and of the candidate, bn, h0."""
    T, B, D, H = (5, 3, 4, 6) if size == "small" else (16, 32, 64, 80)
    gates = [normal(rng, n, H, fan_in=n) for _ in range(3) for n in (D, H)]
    return normal(rng, T, B, D), *gates, normal(rng, H, fan_in=4), normal(rng, B, H)


GRU_MISTAKES = (
    Mistake(
        "the update gate used the other way round",
        ("forward", "exchanged", "operand", "slope"),
        source="https://github.com/salesforce/pytorch-qrnn/issues/22",
    ),
    Mistake(
        "the state's direct path through the update gate forgotten",
        ("branch", "carry"),
    ),
    Mistake(
        "the update gate's gradient with the sign of 1 - z",
        ("sign",),
        source="http://cran.r-project.org/web/packages/rnn/vignettes/GRU_units.html",
    ),
    Mistake("the reset gate's slope forgotten", ("local factor", "slope")),
    Mistake(
        "the candidate's path back to the state lacks the reset gate",
        ("local factor", "slope", "operand", "forward"),
        source="https://github.com/ROCm/MIOpen/issues/716",
    ),
    Mistake(
        "the reset gate's and the candidate's gradients exchanged",
        ("exchanged", "operand"),
        source="http://cran.r-project.org/web/packages/rnn/vignettes/GRU_units.html",
    ),
)


# Scaled dot-product attention


def attention(q, k, v):
    """softmax(q k^T / sqrt(d)) v, for q (B, T, d), k (B, S, d), v (B, S, e)."""
    s = q @ k.swapaxes(1, 2) / jnp.sqrt(q.shape[-1])
    return jax.nn.softmax(s) @ v


def attention_backward(args, dz, wrong):
    """The weights, then dv, ds, dq and dk."""
    q, k, v = args
    d = q.shape[-1]
    scale = 1 / np.sqrt(d)
    s = q @ k.swapaxes(1, 2) * scale
    p = softmax(s)
    left = s if wrong == "dv from the scores before the softmax" else p
    dv = left.swapaxes(1, 2) @ dz
    dp = dz @ v.swapaxes(1, 2)
    ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True))
    if wrong == "the softmax's slope is p (1 - p), entry by entry":
        ds = dp * p * (1 - p)
    if wrong == "the sum in the softmax's rule forgotten":
        ds = dp * p
    if wrong == "the softmax's rule over the queries":
        ds = p * (dp - (dp * p).sum(axis=1, keepdims=True))
    if wrong == "the scale forgotten in the gradients":
        scale = 1.0
    if wrong == "the scale of the padded width":
        scale = 1 / np.sqrt(-(-d // 8) * 8)
    dq = ds @ k * scale
    dk = ds.swapaxes(1, 2) @ q * scale
    return dq, dk, dv


def draw_attention(rng, size):
    """q, k, v."""
    B, T, S, d, e = (2, 4, 6, 5, 3) if size == "small" else (16, 24, 32, 60, 64)
    return normal(rng, B, T, d), normal(rng, B, S, d), normal(rng, B, S, e)


ATTENTION_MISTAKES = (
    Mistake(
        "dv from the scores before the softmax",
        ("operand", "output", "value", "residual", "forward", "local factor"),
        r"softmax|scores|weights|exp",
    ),
    Mistake(
        "the softmax's slope is p (1 - p), entry by entry",
        ("diagonal", "slope"),
        source="https://github.com/deeplearning4j/libnd4j/issues/440",
    ),
    Mistake(
        "the sum in the softmax's rule forgotten",
        ("branch", "diagonal", "slope", "local factor", "value"),
        source="https://github.com/HomericIntelligence/Odyssey/issues/2134",
    ),
    Mistake(
        "the softmax's rule over the queries",
        ("axis",),
        source="https://github.com/nerdai/llms-from-scratch-rs/pull/30",
    ),
    Mistake("the scale forgotten in the gradients", ("factor",), r"sqrt|√|scale"),
    Mistake(
        "the scale of the padded width",
        ("factor", "forward"),
        source="https://github.com/tile-ai/tilelang-ascend/pull/1670",
    ),
)


# Causal self-attention with several heads and its projections

HEADS = {8: 2, 64: 4}


def split_heads(y):
    """(B, T, D) as (B, heads, T, D / heads)."""
    B, T, D = y.shape
    return y.reshape(B, T, HEADS[D], -1).transpose(0, 2, 1, 3)


def merge_heads(y):
    """(B, heads, T, d) as (B, T, heads * d)."""
    B, n, T, d = y.shape
    return y.transpose(0, 2, 1, 3).reshape(B, T, n * d)


def causal_attention(x, Wq, Wk, Wv, Wo, bo):
    """Self-attention of x (B, T, D) over the positions up to each one, all matrices (D, D)."""
    T, D = x.shape[1:]
    q, k, v = (split_heads(x @ W) for W in (Wq, Wk, Wv))
    s = q @ k.swapaxes(-1, -2) / jnp.sqrt(D // HEADS[D])
    s = jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -jnp.inf)
    return merge_heads(jax.nn.softmax(s) @ v) @ Wo + bo


def causal_attention_backward(args, dz, wrong):
    """Through the output projection, the heads, and the three projections of x."""
    x, Wq, Wk, Wv, Wo, _ = args
    T, D = x.shape[1:]
    scale = 1 / np.sqrt(D // HEADS[D])
    q, k, v = (split_heads(x @ W) for W in (Wq, Wk, Wv))
    s = jnp.where(jnp.tril(jnp.ones((T, T), bool)), q @ k.swapaxes(-1, -2) * scale, -jnp.inf)
    p = softmax(s)
    o = merge_heads(p @ v)
    dWo = jnp.einsum("btd,bte->de", o, dz)
    dbo = dz.sum(axis=(0, 1))
    if wrong == "the bias's gradient summed over the sequences alone":
        dbo = dz.sum(axis=0)
    do = split_heads(dz @ (Wo if wrong == "Wo not transposed" else Wo.T))
    dv = p.swapaxes(-1, -2) @ do
    dp = do @ v.swapaxes(-1, -2)
    ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True))
    if wrong == "the scale of the model's width, not of the head's":
        scale = 1 / np.sqrt(D)
    dq = ds @ k * scale
    dk = ds.swapaxes(-1, -2) @ q * scale
    if wrong == "dk from the scores' gradient not transposed":
        dk = ds @ q * scale
    if wrong == "the heads merged without moving their axis back":
        dq, dk, dv = (a.reshape(x.shape) for a in (dq, dk, dv))
    else:
        dq, dk, dv = merge_heads(dq), merge_heads(dk), merge_heads(dv)
    dWq, dWk, dWv = (jnp.einsum("btd,bte->de", x, a) for a in (dq, dk, dv))
    if wrong == "the gradients of Wq and Wk exchanged":
        dWq, dWk = dWk, dWq
    dx = dq @ Wq.T + dk @ Wk.T + dv @ Wv.T
    if wrong == "dx keeps the last projection's gradient":
        dx = dv @ Wv.T
    return dx, dWq, dWk, dWv, dWo, dbo


def draw_causal_attention(rng, size):
    """x, Wq, Wk, Wv, Wo, bo."""
    B, T, D = (3, 5, 8) if size == "small" else (16, 24, 64)
    return (
        normal(rng, B, T, D),
        *(normal(rng, D, D, fan_in=D) for _ in range(4)),
        normal(rng, D, fan_in=4),
    )


CAUSAL_ATTENTION_MISTAKES = (
    Mistake(
        "the bias's gradient summed over the sequences alone",
        ("broadcast", "shape", "axis", "batch"),
        source="https://github.com/ByteDance-Seed/VeOmni/pull/1080",
    ),
    Mistake("Wo not transposed", ("transposed",)),
    Mistake(
        "the scale of the model's width, not of the head's",
        ("factor", "forward"),
        source="https://github.com/chelsea0x3b/dfdx/issues/171",
    ),
    Mistake(
        "dk from the scores' gradient not transposed",
        ("transposed", "operand"),
        source="https://github.com/Dao-AILab/flash-attention/issues/373",
    ),
    Mistake(
        "the heads merged without moving their axis back",
        ("permuted", "column-major", "transposed"),
        source="https://github.com/jsbaan/transformer-from-scratch/pull/6",
    ),
    Mistake(
        "the gradients of Wq and Wk exchanged",
        ("exchanged",),
        source="https://github.com/ooples/AiDotNet.Tensors/issues/49",
    ),
    Mistake("dx keeps the last projection's gradient", ("branch", "overwritten")),
)

LAYERS = [
    Layer("vanilla RNN", rnn, rnn_backward, draw_rnn, RNN_MISTAKES),
    Layer("character RNN's loss", char_rnn, char_rnn_backward, draw_char_rnn, CHAR_RNN_MISTAKES),
    Layer("LSTM cell", lstm_cell, lstm_cell_backward, draw_lstm_cell, LSTM_CELL_MISTAKES),
    Layer("LSTM", lstm, lstm_backward, draw_lstm, LSTM_MISTAKES),
    Layer("GRU", gru, gru_backward, draw_gru, GRU_MISTAKES),
    Layer("attention", attention, attention_backward, draw_attention, ATTENTION_MISTAKES),
    Layer(
        "causal multi-head attention",
        causal_attention,
        causal_attention_backward,
        draw_causal_attention,
        CAUSAL_ATTENTION_MISTAKES,
    ),
]
