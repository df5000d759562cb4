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
        source="the vignette on GRU units of the R package rnn",
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
        source="the vignette on GRU units of the R package rnn",
    ),
)


# A linear recurrence: h_t = a_t h_{t-1} + x_t


def linear_recurrence(a, x, h0):
    """The states (B, T, D) of the factors a and the inputs x (B, T, D)."""

    def step(h, ax):
        h = ax[0] * h + ax[1]
        return h, h

    return lax.scan(step, h0, (a.swapaxes(0, 1), x.swapaxes(0, 1)))[1].swapaxes(0, 1)


def linear_recurrence_backward(args, dz, wrong):
    """The recurrence from the end: g_t = dz_t + a_{t+1} g_{t+1}."""
    a, x, h0 = args
    T = x.shape[1]
    h = {-1: h0}
    for t in range(T):
        h[t] = a[:, t] * h[t - 1] + x[:, t]
    da, dx = [None] * T, [None] * T
    carry = jnp.zeros_like(h0)
    for t in reversed(range(T)):
        g = dz[:, t] + carry
        if wrong == "the carry between blocks weighs the wrong term" and t % 4 == 3 and t < T - 1:
            g = dz[:, t] * a[:, t + 1] + dx[t + 1]
        dx[t] = g
        da[t] = g * (h[t] if wrong == "da from the state after the step" else h[t - 1])
        carry = g * a[:, t]
        if wrong == "the carry multiplied by the factor of the step it goes to" and t:
            carry = g * a[:, t - 1]
    if wrong == "the first factor's gradient left at zero":
        da[0] = jnp.zeros_like(h0)
    dh0 = carry
    if wrong == "dh0 is the gradient of the first state":
        dh0 = dx[0]
    da, dx = jnp.stack(da, axis=1), jnp.stack(dx, axis=1)
    if wrong == "the gradients left in the order of the loop":
        da, dx = da[:, ::-1], dx[:, ::-1]
    return da, dx, dh0


def draw_linear_recurrence(rng, size):
    """a, x, h0; the factors lie between 0 and 1."""
    B, T, D = (3, 6, 4) if size == "small" else (32, 24, 64)
    return jnp.asarray(rng.uniform(0.3, 0.95, (B, T, D))), normal(rng, B, T, D), normal(rng, B, D)


LINEAR_RECURRENCE_MISTAKES = (
    Mistake(
        "the carry between blocks weighs the wrong term",
        ("carry", "operand", "exchanged", "local factor"),
        source="https://github.com/proger/accelerated-scan/pull/15",
    ),
    Mistake(
        "da from the state after the step",
        ("operand", "shifted", "output", "residual"),
    ),
    Mistake(
        "the carry multiplied by the factor of the step it goes to",
        ("shifted", "operand", "carry"),
        source="https://github.com/pymc-devs/pytensor/pull/2217",
    ),
    Mistake(
        "the first factor's gradient left at zero",
        ("zeros", "branch", "masked", "operand", "carry"),
    ),
    Mistake(
        "dh0 is the gradient of the first state",
        ("local factor", "shifted", "carry", "operand"),
    ),
    Mistake("the gradients left in the order of the loop", ("reversed",)),
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


# Attention that leaves out the padding after each sequence's length


def masked_attention(q, k, v, lengths):
    """Attention of q (B, T, d) to the first lengths[b] of k (B, S, d) and v (B, S, e)."""
    s = q @ k.swapaxes(1, 2) / jnp.sqrt(q.shape[-1])
    mask = jnp.arange(k.shape[1]) < lengths[:, None, None]
    return jax.nn.softmax(jnp.where(mask, s, -1e30)) @ v


def masked_attention_backward(args, dz, wrong):
    """The weights are computed again from q, k and the lengths, as a fused kernel does."""
    q, k, v, lengths = args
    scale = 1 / np.sqrt(q.shape[-1])
    s = q @ k.swapaxes(1, 2) * scale
    positions = jnp.arange(k.shape[1])
    mask = positions < lengths[:, None, None]
    if wrong == "the mask reaches one position too far":
        mask = positions <= lengths[:, None, None]
    if wrong == "the first sequence's length for all":
        mask = positions < lengths[0]
    s = jnp.where(mask, s, -1e30)
    if wrong == "the weights computed again without the mask":
        s = q @ k.swapaxes(1, 2) * scale
    if wrong == "the scores multiplied by the mask":
        s = q @ k.swapaxes(1, 2) * scale * mask
    p = softmax(s)
    dv = p.swapaxes(1, 2) @ dz
    dp = dz @ v.swapaxes(1, 2)
    delta = (dp * p).sum(axis=-1, keepdims=True)
    if wrong == "the row sums of the weights' gradient not weighted":
        delta = dp.sum(axis=-1, keepdims=True)
    ds = p * (dp - delta)
    dq = ds @ k * scale
    dk = ds.swapaxes(1, 2) @ q
    if wrong != "dk without the scale that dq has":
        dk = dk * scale
    return dq, dk, dv, None


def draw_masked_attention(rng, size):
    """q, k, v, lengths."""
    B, T, S, d, e = (3, 4, 7, 5, 6) if size == "small" else (16, 20, 24, 64, 80)
    lengths = jnp.asarray(2 + rng.permutation(S - 2)[:B])
    return normal(rng, B, T, d), normal(rng, B, S, d), normal(rng, B, S, e), lengths


MASKED_ATTENTION_MISTAKES = (
    Mistake(
        "the mask reaches one position too far",
        ("masked", "shifted", "forward"),
    ),
    Mistake(
        "the first sequence's length for all",
        ("masked", "batch", "operand", "forward"),
    ),
    Mistake(
        "the weights computed again without the mask",
        ("masked", "forward"),
        r"mask|where|select",
        source="https://github.com/XPU-Forces/mojo_opset/pull/386",
    ),
    Mistake(
        "the scores multiplied by the mask",
        ("masked", "forward"),
        r"mask|where|select",
        source="https://github.com/georg-wolflein/good-features/pull/1",
    ),
    Mistake(
        "the row sums of the weights' gradient not weighted",
        ("operand", "local factor", "slope"),
    ),
    Mistake("dk without the scale that dq has", ("factor",), r"sqrt|√|scale"),
)


# Attention whose keys and values serve several heads of queries each


def grouped_attention(q, k, v):
    """Attention of q (B, G * R, T, d) to k and v (B, G, T, d): R heads of queries share one."""
    R = q.shape[1] // k.shape[1]
    k, v = jnp.repeat(k, R, axis=1), jnp.repeat(v, R, axis=1)
    return jax.nn.softmax(q @ k.swapaxes(-1, -2) / jnp.sqrt(q.shape[-1])) @ v


def grouped_attention_backward(args, dz, wrong):
    """As for one head each, then the heads that share a key are summed."""
    q, k, v = args
    B, G, T, d = k.shape
    R = q.shape[1] // G
    if wrong == "the heads dealt out in turn":
        k_all, v_all = jnp.tile(k, (1, R, 1, 1)), jnp.tile(v, (1, R, 1, 1))
    else:
        k_all, v_all = jnp.repeat(k, R, axis=1), jnp.repeat(v, R, axis=1)
    scale = 1 / np.sqrt(d)
    p = softmax(q @ k_all.swapaxes(-1, -2) * scale)
    dv_all = p.swapaxes(-1, -2) @ dz
    dp = dz @ v_all.swapaxes(-1, -2)
    ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True)) * scale
    dq = ds @ k_all
    dk_all = ds.swapaxes(-1, -2) @ q
    dk_all, dv_all = (a.reshape(B, G, R, T, d) for a in (dk_all, dv_all))
    if wrong == "the shared keys' gradient averaged over the heads":
        dk, dv = dk_all.mean(axis=2), dv_all.mean(axis=2)
    elif wrong == "the last head of each group overwrites the others":
        dk, dv = dk_all[:, :, -1], dv_all[:, :, -1]
    elif wrong == "the gradients of the heads not summed":
        dk, dv = dk_all.reshape(B, G * R, T, d), dv_all.reshape(B, G * R, T, d)
    else:
        dk, dv = dk_all.sum(axis=2), dv_all.sum(axis=2)
    return dq, dk, dv


def draw_grouped_attention(rng, size):
    """q, k, v."""
    B, G, R, T, d = (4, 2, 3, 5, 7) if size == "small" else (8, 2, 4, 24, 32)
    return normal(rng, B, G * R, T, d), normal(rng, B, G, T, d), normal(rng, B, G, T, d)


GROUPED_ATTENTION_MISTAKES = (
    Mistake(
        "the heads dealt out in turn",
        ("permuted", "forward", "operand", "exchanged"),
        source="https://github.com/XunhaoLai/native-sparse-attention-triton/issues/27",
    ),
    Mistake("the shared keys' gradient averaged over the heads", ("factor",), r"mean|\d"),
    Mistake(
        "the last head of each group overwrites the others",
        ("overwritten", "broadcast", "branch"),
    ),
    Mistake(
        "the gradients of the heads not summed",
        ("broadcast", "shape"),
        source="https://github.com/marin-community/levanter/pull/449",
    ),
)


# Cross-attention: queries from x, keys and values from another sequence


def cross_attention(x, memory, Wq, Wk, Wv, Wo):
    """x (B, T, D) plus what it reads from memory (B, S, E), by one head of width d."""
    q, k, v = x @ Wq, memory @ Wk, memory @ Wv
    p = jax.nn.softmax(jnp.einsum("btd,bsd->bts", q, k) / jnp.sqrt(Wq.shape[1]))
    return x + jnp.einsum("bts,bsd->btd", p, v) @ Wo


def cross_attention_backward(args, dz, wrong):
    """Two inputs, one residual connection, four projections."""
    x, memory, Wq, Wk, Wv, Wo = args
    scale = 1 / np.sqrt(Wq.shape[1])
    q, k, v = x @ Wq, memory @ Wk, memory @ Wv
    p = softmax(jnp.einsum("btd,bsd->bts", q, k) * scale)
    o = jnp.einsum("bts,bsd->btd", p, v)
    dWo = jnp.einsum("btd,bte->de", o, dz)
    do = dz @ Wo.T
    dp = jnp.einsum("btd,bsd->bts", do, v)
    dv = jnp.einsum("bts,btd->bsd", p, do)
    if wrong == "the softmax's gradient handed through":
        ds = dp * scale
    else:
        ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True)) * scale
    dq = jnp.einsum("bts,bsd->btd", ds, k)
    dk = jnp.einsum("bts,btd->bsd", ds, q)
    dWq = jnp.einsum("btd,bte->de", x, dq)
    dWk = jnp.einsum("bsd,bse->de", memory, dk)
    dWv = jnp.einsum("bsd,bse->de", memory, dv)
    if wrong == "the gradients of the projections keep the batch":
        dWk, dWv = memory.swapaxes(1, 2) @ dk, memory.swapaxes(1, 2) @ dv
    if wrong == "the gradients of Wk and Wv exchanged":
        dWk, dWv = dWv, dWk
    dx = dq @ Wq.T
    if wrong != "the residual connection's gradient forgotten":
        dx += dz
    dmemory = dk @ Wk.T + dv @ Wv.T
    if wrong == "the memory's gradient through the values alone":
        dmemory = dv @ Wv.T
    if wrong == "no gradient handed to the memory":
        dmemory = jnp.zeros_like(memory)
    return dx, dmemory, dWq, dWk, dWv, dWo


def draw_cross_attention(rng, size):
    """x, memory, Wq, Wk, Wv, Wo."""
    B, T, S, D, E, d = (2, 4, 5, 6, 7, 3) if size == "small" else (16, 20, 24, 64, 80, 48)
    return (
        normal(rng, B, T, D),
        normal(rng, B, S, E),
        normal(rng, D, d, fan_in=D),
        normal(rng, E, d, fan_in=E),
        normal(rng, E, d, fan_in=E),
        normal(rng, d, D, fan_in=d),
    )


CROSS_ATTENTION_MISTAKES = (
    Mistake(
        "the softmax's gradient handed through",
        ("local factor", "slope"),
        r"softmax|exp",
        source="https://github.com/pjreddie/darknet/pull/96",
    ),
    Mistake(
        "the gradients of the projections keep the batch",
        ("batch", "shape", "broadcast"),
        source="https://github.com/ByteDance-Seed/VeOmni/pull/1080",
    ),
    Mistake("the gradients of Wk and Wv exchanged", ("exchanged",)),
    Mistake("the residual connection's gradient forgotten", ("branch",)),
    Mistake("the memory's gradient through the values alone", ("branch", "overwritten")),
    Mistake(
        "no gradient handed to the memory",
        ("zeros",),
        source="https://github.com/rsarxiv/seq2seq-attention/issues/7",
    ),
)


# The MLP block of a transformer, GELU in its tanh form

GELU_SCALE = np.sqrt(2 / np.pi)
GELU_CUBE = 0.044715


def mlp_block(x, W1, b1, W2, b2):
    """x + gelu(x W1 + b1) W2 + b2, for x (B, T, D)."""
    return x + jax.nn.gelu(x @ W1 + b1, approximate=True) @ W2 + b2


def mlp_block_backward(args, dz, wrong):
    """Second linear layer, GELU, first linear layer, residual connection."""
    x, W1, b1, W2, _ = args
    a = x @ W1 + b1
    tanh = jnp.tanh(GELU_SCALE * (a + GELU_CUBE * a**3))
    hidden = 0.5 * a * (1 + tanh)
    dW2 = jnp.einsum("btf,btd->fd", hidden, dz)
    db2 = dz.sum(axis=(0, 1))
    dhidden = dz @ W2.T
    if wrong == "GELU's slope taken at its output":
        a = hidden
        tanh = jnp.tanh(GELU_SCALE * (a + GELU_CUBE * a**3))
    inner = GELU_SCALE * (1 + 3 * GELU_CUBE * a**2)
    if wrong == "the 3 of the cube's derivative forgotten":
        inner = GELU_SCALE * (1 + GELU_CUBE * a**2)
    slope = 0.5 * (1 + tanh) + 0.5 * a * (1 - tanh**2) * inner
    if wrong == "GELU's second term forgotten":
        slope = 0.5 * (1 + tanh)
    if wrong == "the slope of the GELU with erf":
        density = jnp.exp(-(a**2) / 2) / np.sqrt(2 * np.pi)
        slope = 0.5 * (1 + lax.erf(a / np.sqrt(2))) + a * density
    da = dhidden * slope
    dW1 = jnp.einsum("btd,btf->df", x, da)
    db1 = da.sum(axis=(0, 1))
    if wrong == "the biases' gradients are means":
        db1, db2 = da.mean(axis=(0, 1)), dz.mean(axis=(0, 1))
    dx = da @ W1.T
    if wrong != "the residual connection's gradient forgotten":
        dx += dz
    return dx, dW1, db1, dW2, db2


def draw_mlp_block(rng, size):
    """x, W1, b1, W2, b2."""
    B, T, D, F = (2, 3, 4, 7) if size == "small" else (8, 16, 64, 256)
    return (
        normal(rng, B, T, D),
        normal(rng, D, F, fan_in=D),
        normal(rng, F, fan_in=4),
        normal(rng, F, D, fan_in=F),
        normal(rng, D, fan_in=4),
    )


MLP_BLOCK_MISTAKES = (
    Mistake(
        "GELU's slope taken at its output",
        ("output", "residual", "operand", "slope"),
        r"(?i)output|value|gelu|tanh",
    ),
    Mistake(
        "the 3 of the cube's derivative forgotten",
        ("slope", "factor", "forward", "local factor"),
    ),
    Mistake(
        "GELU's second term forgotten",
        ("branch", "slope", "local factor"),
    ),
    Mistake(
        "the slope of the GELU with erf",
        ("forward", "slope"),
        r"(?i)gelu|erf|tanh",
        source="https://github.com/kulinseth/pytorch/pull/284",
    ),
    Mistake(
        "the biases' gradients are means",
        ("factor",),
        r"mean|N|\d",
        source="https://github.com/kvfrans/notes/issues/5",
    ),
    Mistake("the residual connection's gradient forgotten", ("branch",)),
)


# A gated MLP: SwiGLU


def swiglu(x, W, V, W2):
    """(silu(x W) * x V) W2, for x (B, T, D)."""
    return (jax.nn.silu(x @ W) * (x @ V)) @ W2


def swiglu_backward(args, dz, wrong):
    """The product's two factors, and the two paths to x."""
    x, W, V, W2 = args
    g, u = x @ W, x @ V
    s = sigmoid(g)
    silu = g * s
    a = silu * u
    if wrong == "W2's gradient from the gate alone":
        a = silu
    dW2 = jnp.einsum("btf,btd->fd", a, dz)
    da = dz @ W2.T
    du = da * silu
    if wrong == "the gate's silu left out of the other factor's gradient":
        du = da * g
    slope = s * (1 + g * (1 - s))
    if wrong == "silu's slope is its sigmoid":
        slope = s
    if wrong == "silu's slope lacks a pair of brackets":
        e = jnp.exp(-g)
        slope = 1 + e + g * e / (1 + e) ** 2
    if wrong == "the formula in the output read with the input":
        slope = g + s * (1 - g)
    dg = da * u * slope
    if wrong == "the gradients of the two factors exchanged":
        dg, du = du, dg
    dW = jnp.einsum("btd,btf->df", x, dg)
    dV = jnp.einsum("btd,btf->df", x, du)
    dx = dg @ W.T + du @ V.T
    if wrong == "dx from the gate alone":
        dx = dg @ W.T
    return dx, dW, dV, dW2


def draw_swiglu(rng, size):
    """x, W, V, W2."""
    B, T, D, F = (2, 3, 4, 5) if size == "small" else (16, 16, 64, 172)
    return (
        normal(rng, B, T, D),
        normal(rng, D, F, fan_in=D),
        normal(rng, D, F, fan_in=D),
        normal(rng, F, D, fan_in=F),
    )


SWIGLU_MISTAKES = (
    Mistake(
        "W2's gradient from the gate alone", ("operand", "residual", "forward", "local factor")
    ),
    Mistake(
        "the gate's silu left out of the other factor's gradient",
        ("operand", "output", "forward", "residual", "local factor"),
    ),
    Mistake(
        "silu's slope is its sigmoid", ("slope", "branch", "local factor"), r"silu|sigmoid|logistic"
    ),
    Mistake(
        "silu's slope lacks a pair of brackets",
        ("slope", "local factor"),
        r"silu|sigmoid|logistic",
        source="https://github.com/chelsea0x3b/dfdx/pull/915",
    ),
    Mistake(
        "the formula in the output read with the input",
        ("slope", "output", "operand", "residual"),
        source="https://github.com/pjreddie/darknet/pull/252",
    ),
    Mistake(
        "the gradients of the two factors exchanged",
        ("exchanged",),
        source="https://github.com/unslothai/unsloth/issues/3314",
    ),
    Mistake("dx from the gate alone", ("branch", "overwritten")),
)


# Rotary embeddings, and the scores of what they turn


def angles(T, d, first=1, shift=0):
    """The cosines and sines (T, d / 2) of the positions from first on."""
    speed = 10000.0 ** (-2 * (jnp.arange(d // 2) - shift) / d)
    angle = (jnp.arange(T) + first)[:, None] * speed
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x, cos, sin):
    """Turns each pair (x_i, x_{i + d/2}) by the angle of its position."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def rotary_scores(q, k):
    """The scores (B, T, T) of turned queries and keys (B, T, d)."""
    cos, sin = angles(*q.shape[1:])
    return rotate(q, cos, sin) @ rotate(k, cos, sin).swapaxes(1, 2) / jnp.sqrt(q.shape[-1])


def rotary_scores_backward(args, dz, wrong):
    """The product's rule, then both turned back."""
    q, k = args
    T, d = q.shape[1:]
    cos, sin = angles(T, d)
    q_turned, k_turned = rotate(q, cos, sin), rotate(k, cos, sin)
    ds = dz / np.sqrt(d)
    dq = ds @ k_turned
    if wrong == "the keys read before they were turned":
        dq = ds @ k
    dk = ds.swapaxes(1, 2) @ q_turned
    if wrong == "the gradient of the keys not turned back":
        return rotate(dq, cos, -sin), dk
    if wrong == "turned forwards once more":
        return rotate(dq, cos, sin), rotate(dk, cos, sin)
    if wrong == "turned back by the next position's angle":
        cos, sin = angles(T, d, first=2)
    if wrong == "turned back with the speed of the pair before":
        cos, sin = angles(T, d, shift=1)
    if wrong == "neighbours turned as pairs":

        def back(g):
            a, b = g[..., 0::2], g[..., 1::2]
            return jnp.stack([a * cos + b * sin, b * cos - a * sin], axis=-1).reshape(g.shape)

        return back(dq), back(dk)
    return rotate(dq, cos, -sin), rotate(dk, cos, -sin)


def draw_rotary_scores(rng, size):
    """q, k."""
    B, T, d = (3, 5, 6) if size == "small" else (16, 24, 64)
    return normal(rng, B, T, d), normal(rng, B, T, d)


ROTARY_SCORES_MISTAKES = (
    Mistake(
        "the keys read before they were turned",
        ("operand", "residual", "forward"),
    ),
    Mistake(
        "the gradient of the keys not turned back",
        ("local factor", "forward", "branch", "operand"),
    ),
    Mistake(
        "turned forwards once more",
        ("sign", "transposed", "forward"),
        r"(?i)sin|transpos|forward|turn|rotat",
        source="https://github.com/karpathy/nanochat/pull/489",
    ),
    Mistake("turned back by the next position's angle", ("shifted", "forward", "operand")),
    Mistake(
        "turned back with the speed of the pair before",
        ("shifted", "forward", "operand"),
        source="https://github.com/bkitano/llama-from-scratch/issues/8",
    ),
    Mistake(
        "neighbours turned as pairs",
        ("permuted", "forward", "exchanged", "operand"),
        source="https://github.com/EleutherAI/gpt-neox/issues/834",
    ),
)


# An embedding, whose ids are an argument and repeat


def embedding(table, ids):
    """The rows of table (V, D) at ids (B, T), times sqrt(D)."""
    return table[ids] * jnp.sqrt(table.shape[1])


def embedding_backward(args, dz, wrong):
    """The gradient of a row is the sum over the places that read it."""
    table, ids = args
    rows = dz.reshape(-1, dz.shape[-1])
    if wrong != "the factor sqrt(D) forgotten":
        rows = rows * np.sqrt(table.shape[1])
    ids = ids.reshape(-1)
    if wrong == "the last place dropped":
        rows, ids = rows[:-1], ids[:-1]
    if wrong == "ids counted from 1":
        ids = ids - 1
    dtable = jnp.zeros_like(table)
    if wrong == "the last use of a row overwrites the others":
        return dtable.at[ids].set(rows), None
    dtable = dtable.at[ids].add(rows)
    if wrong == "each row divided by the number of its uses":
        uses = jnp.zeros(len(table)).at[ids].add(1.0)
        dtable = dtable / jnp.maximum(uses, 1)[:, None]
    if wrong == "the first row taken for padding":
        dtable = dtable.at[0].set(0.0)
    return dtable, None


def draw_embedding(rng, size):
    """table, ids."""
    V, D, B, T = (7, 6, 3, 5) if size == "small" else (300, 64, 32, 16)
    ids = rng.integers(V, size=(B, T))
    ids[0, 0] = 0
    return normal(rng, V, D), jnp.asarray(ids)


EMBEDDING_MISTAKES = (
    Mistake("the factor sqrt(D) forgotten", ("factor",), r"sqrt|√|\d"),
    Mistake(
        "the last place dropped",
        ("branch", "duplicates", "masked", "missing", "overwritten"),
        source="https://github.com/pytorch/pytorch/pull/27731",
    ),
    Mistake("ids counted from 1", ("shifted", "permuted")),
    Mistake(
        "the last use of a row overwrites the others",
        ("duplicates", "overwritten"),
        source="https://github.com/HIPS/autograd/issues/39",
    ),
    Mistake(
        "each row divided by the number of its uses",
        ("duplicates", "factor"),
        r"mean|number|count|times|uses|often",
    ),
    Mistake(
        "the first row taken for padding",
        ("masked", "zeros"),
        source="https://github.com/ibalazevic/TuckER/issues/17",
    ),
)


# Token and position embeddings; the tokens are closed over, the positions go to every sequence

_tokens = np.random.default_rng(41)
TOKENS = {7: _tokens.integers(7, size=(3, 5)), 120: _tokens.integers(120, size=(32, 16))}


def token_and_position(E, P):
    """E's rows at the tokens that go with len(E), times sqrt(D), plus the first T rows of P."""
    tokens = TOKENS[len(E)]
    return E[tokens] * jnp.sqrt(E.shape[1]) + P[: tokens.shape[1]]


def token_and_position_backward(args, dz, wrong):
    """A sum over the uses of each token, and over the sequences."""
    E, P = args
    tokens = TOKENS[len(E)]
    T, scale = tokens.shape[1], np.sqrt(E.shape[1])
    dE = jnp.zeros_like(E)
    for sequence, d in zip(tokens, dz * scale, strict=True):
        if wrong == "a sequence's own repetitions overwrite one another":
            dE += jnp.zeros_like(E).at[sequence].set(d)
        else:
            dE = dE.at[sequence].add(d)
    dp = dz.sum(axis=0)
    if wrong == "the positions' gradient is a mean over the sequences":
        dp = dz.mean(axis=0)
    if wrong == "the positions' gradient is the first sequence's":
        dp = dz[0]
    if wrong == "the tokens' factor in the positions' gradient too":
        dp = dp * scale
    if wrong == "the positions' gradient keeps the batch":
        return dE, jnp.zeros((len(dz), *P.shape)).at[:, :T].set(dz)
    if wrong == "the positions counted from the end":
        return dE, jnp.zeros_like(P).at[-T:].set(dp)
    return dE, jnp.zeros_like(P).at[:T].set(dp)


def draw_token_and_position(rng, size):
    """E, P."""
    V, D, longest = (7, 6, 8) if size == "small" else (120, 64, 48)
    return normal(rng, V, D), normal(rng, longest, D)


TOKEN_AND_POSITION_MISTAKES = (
    Mistake(
        "a sequence's own repetitions overwrite one another",
        ("duplicates", "overwritten"),
        source="https://github.com/pymc-devs/pytensor/pull/2242",
    ),
    Mistake(
        "the positions' gradient is a mean over the sequences",
        ("factor",),
        r"mean|N|\d",
    ),
    Mistake(
        "the positions' gradient is the first sequence's",
        ("batch", "broadcast"),
        source="https://github.com/meta-pytorch/opacus/issues/841",
    ),
    Mistake("the tokens' factor in the positions' gradient too", ("factor", "forward", "operand")),
    Mistake("the positions' gradient keeps the batch", ("broadcast", "shape", "batch")),
    Mistake("the positions counted from the end", ("shifted",)),
)


LAYERS = [
    Layer("vanilla RNN", rnn, rnn_backward, draw_rnn, RNN_MISTAKES),
    Layer("character RNN's loss", char_rnn, char_rnn_backward, draw_char_rnn, CHAR_RNN_MISTAKES),
    Layer("LSTM cell", lstm_cell, lstm_cell_backward, draw_lstm_cell, LSTM_CELL_MISTAKES),
    Layer("LSTM", lstm, lstm_backward, draw_lstm, LSTM_MISTAKES),
    Layer("GRU", gru, gru_backward, draw_gru, GRU_MISTAKES),
    Layer(
        "linear recurrence",
        linear_recurrence,
        linear_recurrence_backward,
        draw_linear_recurrence,
        LINEAR_RECURRENCE_MISTAKES,
    ),
    Layer("attention", attention, attention_backward, draw_attention, ATTENTION_MISTAKES),
    Layer(
        "causal multi-head attention",
        causal_attention,
        causal_attention_backward,
        draw_causal_attention,
        CAUSAL_ATTENTION_MISTAKES,
    ),
    Layer(
        "masked attention",
        masked_attention,
        masked_attention_backward,
        draw_masked_attention,
        MASKED_ATTENTION_MISTAKES,
    ),
    Layer(
        "grouped-query attention",
        grouped_attention,
        grouped_attention_backward,
        draw_grouped_attention,
        GROUPED_ATTENTION_MISTAKES,
    ),
    Layer(
        "cross-attention",
        cross_attention,
        cross_attention_backward,
        draw_cross_attention,
        CROSS_ATTENTION_MISTAKES,
    ),
    Layer("MLP block", mlp_block, mlp_block_backward, draw_mlp_block, MLP_BLOCK_MISTAKES),
    Layer("SwiGLU", swiglu, swiglu_backward, draw_swiglu, SWIGLU_MISTAKES),
    Layer(
        "rotary scores",
        rotary_scores,
        rotary_scores_backward,
        draw_rotary_scores,
        ROTARY_SCORES_MISTAKES,
    ),
    Layer("embedding", embedding, embedding_backward, draw_embedding, EMBEDDING_MISTAKES),
    Layer(
        "token and position embeddings",
        token_and_position,
        token_and_position_backward,
        draw_token_and_position,
        TOKEN_AND_POSITION_MISTAKES,
    ),
]
