"""The rows of layers/recurrent.py."""

import numpy as np

from handgrad.catalog import Row
from handgrad.layers.recurrent import gru, lstm, rnn


def _examples(rng, gates, states, biases):
    # one shape for all of them, since each shape is compiled by itself
    def of(scale=1.0, start=1.0):
        firsts = [start * rng.normal(size=(3, 4)) for _ in range(states)]
        weights = [rng.normal(size=(gates * 4, size)) for size in (6, 4)]
        added = [rng.normal(size=gates * 4) for _ in range(biases)]
        return (scale * rng.normal(size=(5, 3, 6)), *firsts, *weights, *added), {}

    return {
        "typical": of(),
        "edge: a first state of zeros": of(start=0.0),
        "extreme: 1e4": of(scale=1e4),
    }


def _sigmoid(v):
    return (1 + np.tanh(v / 2)) / 2


def _one_by_one(x, h0, Wx, Wh, b):
    y = np.zeros((*x.shape[:2], len(Wh)))
    for example, h in enumerate(h0):
        for t in range(len(x)):
            h = np.tanh(Wx @ x[t, example] + Wh @ h + b)
            y[t, example] = h
    return y


def _gated_one_by_one(x, h0, c0, Wx, Wh, b):
    y, size = np.zeros((*x.shape[:2], h0.shape[1])), h0.shape[1]
    for example, (h, c) in enumerate(zip(h0, c0, strict=True)):
        for t in range(len(x)):
            p = (Wx @ x[t, example] + Wh @ h + b).reshape(4, size)
            c = _sigmoid(p[1]) * c + _sigmoid(p[0]) * np.tanh(p[2])
            h = _sigmoid(p[3]) * np.tanh(c)
            y[t, example] = h
    return y


def _reset_one_by_one(x, h0, Wx, Wh, bx, bh):
    y, size = np.zeros((*x.shape[:2], h0.shape[1])), h0.shape[1]
    for example, h in enumerate(h0):
        for t in range(len(x)):
            p, q = (Wx @ x[t, example] + bx).reshape(3, size), (Wh @ h + bh).reshape(3, size)
            z = _sigmoid(p[1] + q[1])
            h = z * h + (1 - z) * np.tanh(p[2] + _sigmoid(p[0] + q[0]) * q[2])
            y[t, example] = h
    return y


PRODUCTS = {
    "Wx": r"dW_x = \sum_t \sum_n dp_{tn}\,x_{tn}^\top",
    "Wh": r"dW_h = \sum_t \sum_n dp_{tn}\,h_{t-1,n}^\top",
}
PLAIN = {
    **{"x": r"dx_t = W_x^\top dp_t", "h0": r"dh_0 = W_h^\top dp_1"},
    **{**PRODUCTS, "b": r"db = \sum_t \sum_n dp_{tn}"},
}

ROWS = (
    Row(
        rnn,
        r"y_t = h_t = \tanh(W_x x_t + W_h h_{t-1} + b)",
        PLAIN,
        lambda rng: _examples(rng, gates=1, states=1, biases=1),
        same_as=_one_by_one,
        where=r"$dp_t = (dy_t + W_h^\top dp_{t+1}) \odot (1 - y_t \odot y_t)$, from the last step "
        r"to the first",
    ),
    Row(
        lstm,
        r"y_t = h_t = o_t \odot \tanh c_t, \quad c_t = f_t \odot c_{t-1} + i_t \odot g_t",
        PLAIN | {"c0": r"dc_0 = dc_1 \odot f_1"},
        lambda rng: _examples(rng, gates=4, states=2, biases=1),
        same_as=_gated_one_by_one,
        where=r"$p_t = W_x x_t + W_h h_{t-1} + b$ holds the arguments of the gates, and $dp_t$ and "
        r"$dc_t$ come from the last step to the first, made of $i, f, g, o$, $c_t$ and $y_t$",
    ),
    Row(
        gru,
        r"y_t = h_t = (1 - z_t) \odot n_t + z_t \odot h_{t-1}",
        {
            "x": PLAIN["x"],
            "h0": r"dh_0 = z_1 \odot dh_1 + W_h^\top dq_1",
            "Wx": PRODUCTS["Wx"],
            "Wh": PRODUCTS["Wh"].replace("dp", "dq"),
            "bx": r"db_x = \sum_t \sum_n dp_{tn}",
            "bh": r"db_h = \sum_t \sum_n dq_{tn}",
        },
        lambda rng: _examples(rng, gates=3, states=1, biases=2),
        same_as=_reset_one_by_one,
        where=r"$p_t = W_x x_t + b_x$ and $q_t = W_h h_{t-1} + b_h$ meet in the gates, and $dp_t$ "
        r"and $dq_t$ come from the last step to the first, made of $r, z, n$, $q_t$ and $y_t$",
    ),
)
