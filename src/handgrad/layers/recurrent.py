"""Recurrent layers.    Derivation: notebooks/14_recurrent.ipynb

A sequence is (T, N, d): T steps of N examples. The output y is (T, N, h), the states h_1, ..., h_T.
On the way back one scan, from the last step to the first, carries the cotangent of the state. From
what it leaves behind at every step, the gradients of all parameters are made after it: one product
for each matrix and one sum for each bias, (14.8). With no steps, T = 0, every gradient is 0.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Float


def rnn(
    x: Float[ArrayLike, "T N d"],
    h0: Float[ArrayLike, "N h"],
    Wx: Float[ArrayLike, "h d"],
    Wh: Float[ArrayLike, "h h"],
    b: Float[ArrayLike, " h"],
) -> Float[ArrayLike, "T N h"]:
    """y_t = h_t = tanh(Wx x_t + Wh h_{t-1} + b), (14.1), from the first state h0.

    Elman 1990, there with values between 0 and 1. All that is kept is the output: the slope loses
    digits as |y| nears 1, as that of tanh does.

    Raises:
        TypeError: an argument is not a float array, or a shape does not fit the signature.

    """
    return _rnn_steps(x, h0, Wx, Wh, b)


def rnn_fwd(x, h0, Wx, Wh, b):
    """y, and the residuals (x, h0, Wx, Wh, y): nothing but inputs and output."""
    y = rnn(x, h0, Wx, Wh, b)
    return y, (x, h0, Wx, Wh, y)


def rnn_bwd(
    residuals: tuple[
        Float[ArrayLike, "T N d"],
        Float[ArrayLike, "N h"],
        Float[ArrayLike, "h d"],
        Float[ArrayLike, "h h"],
        Float[ArrayLike, "T N h"],
    ],
    dy: Float[ArrayLike, "T N h"],
):
    """(dx, dh0, dWx, dWh, db): h_t is read by y_t and by the next step, and the two add up."""
    x, h0, Wx, Wh, y = residuals
    dh, dp = _rnn_back(Wh, y, dy)
    dx = dp @ Wx  # (14.7)
    dh0 = dh  # (14.6)
    dWx = _rows(dp).T @ _rows(x)  # (14.8)
    dWh = _rows(dp).T @ _rows(_before(h0, y))  # (14.8)
    db = _rows(dp).sum(axis=0)  # (14.8)
    return dx, dh0, dWx, dWh, db


def lstm(
    x: Float[ArrayLike, "T N d"],
    h0: Float[ArrayLike, "N h"],
    c0: Float[ArrayLike, "N h"],
    Wx: Float[ArrayLike, "4*h d"],
    Wh: Float[ArrayLike, "4*h h"],
    b: Float[ArrayLike, " 4*h"],
) -> Float[ArrayLike, "T N h"]:
    """y_t = h_t = o tanh(c_t) with the cell c_t = f c_{t-1} + i g, (14.12).

    Wx, Wh and b hold the rows of the gates i, f, g, o, in this order. Hochreiter and Schmidhuber
    1997; the forget gate f is that of Gers, Schmidhuber and Cummins 2000.

    Raises:
        TypeError: an argument is not a float array, or a shape does not fit the signature.

    """
    return _lstm_steps(x, h0, c0, Wx, Wh, b)[0]


def lstm_fwd(x, h0, c0, Wx, Wh, b):
    """y, and the residuals (x, h0, c0, Wx, Wh, y, c, i, f, g, o): those after y are new."""
    y, *new = _lstm_steps(x, h0, c0, Wx, Wh, b)
    return y, (x, h0, c0, Wx, Wh, y, *new)


def lstm_bwd(
    residuals: tuple[
        Float[ArrayLike, "T N d"],
        Float[ArrayLike, "N h"],
        Float[ArrayLike, "N h"],
        Float[ArrayLike, "4*h d"],
        Float[ArrayLike, "4*h h"],
        Float[ArrayLike, "T N h"],
        Float[ArrayLike, "T N h"],
        Float[ArrayLike, "T N h"],
        Float[ArrayLike, "T N h"],
        Float[ArrayLike, "T N h"],
        Float[ArrayLike, "T N h"],
    ],
    dy: Float[ArrayLike, "T N h"],
):
    """(dx, dh0, dc0, dWx, dWh, db): the scan carries two cotangents, that of h and that of c."""
    x, h0, c0, Wx, Wh, y, c, i, f, g, o = residuals
    (dh, dc), dp = _lstm_back(Wh, c, _before(c0, c), (i, f, g, o), dy)
    dx = dp @ Wx  # (14.7)
    dh0 = dh  # (14.16)
    dc0 = dc  # (14.16)
    dWx = _rows(dp).T @ _rows(x)  # (14.8)
    dWh = _rows(dp).T @ _rows(_before(h0, y))  # (14.8)
    db = _rows(dp).sum(axis=0)  # (14.8)
    return dx, dh0, dc0, dWx, dWh, db


def gru(
    x: Float[ArrayLike, "T N d"],
    h0: Float[ArrayLike, "N h"],
    Wx: Float[ArrayLike, "3*h d"],
    Wh: Float[ArrayLike, "3*h h"],
    bx: Float[ArrayLike, " 3*h"],
    bh: Float[ArrayLike, " 3*h"],
) -> Float[ArrayLike, "T N h"]:
    """y_t = h_t = (1 - z) n + z h_{t-1}, (14.18).

    Wx, Wh, bx and bh hold the rows of the gates r, z, n, in this order. The reset gate r acts after
    the product with Wh, as in PyTorch; in Cho and others 2014 it acts before.

    Raises:
        TypeError: an argument is not a float array, or a shape does not fit the signature.

    """
    return _gru_steps(x, h0, Wx, Wh, bx, bh)[0]


def gru_fwd(x, h0, Wx, Wh, bx, bh):
    """y, and the residuals (x, h0, Wx, Wh, y, r, z, n, q); q is that of n, (14.18)."""
    y, *new = _gru_steps(x, h0, Wx, Wh, bx, bh)
    return y, (x, h0, Wx, Wh, y, *new)


def gru_bwd(
    residuals: tuple[
        Float[ArrayLike, "T N d"],
        Float[ArrayLike, "N h"],
        Float[ArrayLike, "3*h d"],
        Float[ArrayLike, "3*h h"],
        Float[ArrayLike, "T N h"],
        Float[ArrayLike, "T N h"],
        Float[ArrayLike, "T N h"],
        Float[ArrayLike, "T N h"],
        Float[ArrayLike, "T N h"],
    ],
    dy: Float[ArrayLike, "T N h"],
):
    """(dx, dh0, dWx, dWh, dbx, dbh): a part of dh goes past the gates, times z."""
    x, h0, Wx, Wh, y, r, z, n, q = residuals
    before = _before(h0, y)
    dh, (dp, dq) = _gru_back(Wh, before, (r, z, n, q), dy)
    dx = dp @ Wx  # (14.7)
    dh0 = dh  # (14.21)
    dWx = _rows(dp).T @ _rows(x)  # (14.22)
    dWh = _rows(dq).T @ _rows(before)  # (14.22)
    dbx = _rows(dp).sum(axis=0)  # (14.22)
    dbh = _rows(dq).sum(axis=0)  # (14.22)
    return dx, dh0, dWx, dWh, dbx, dbh


# The scans. Each is compiled once for all calls with the same shapes.


@jax.jit
def _rnn_steps(x, h0, Wx, Wh, b):
    # y, of all steps
    def step(h, p):
        h = jnp.tanh(p + h @ Wh.T)
        return h, h

    return lax.scan(step, _first(h0, x, Wx, Wh, b), x @ Wx.T + b)[1]


@jax.jit
def _rnn_back(Wh, y, dy):
    # (dh_0, dp), from the last step to the first
    def back(dh, now):
        h, dy = now
        dp = (dy + dh) * (1 - h * h)  # (14.5)
        return dp @ Wh, dp  # (14.4)

    return lax.scan(back, jnp.zeros(dy.shape[1:], dy.dtype), (y, dy), reverse=True)


@jax.jit
def _lstm_steps(x, h0, c0, Wx, Wh, b):
    # (y, c, i, f, g, o), of all steps
    def step(before, p):
        h, c = before
        i, f, g, o = jnp.split(p + h @ Wh.T, 4, axis=1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        c = f * c + i * g
        h = o * jnp.tanh(c)
        return (h, c), (h, c, i, f, g, o)

    first = tuple(_first(state, x, h0, c0, Wx, Wh, b) for state in (h0, c0))
    return lax.scan(step, first, x @ Wx.T + b)[1]


@jax.jit
def _lstm_back(Wh, c, c_before, gates, dy):
    # ((dh_0, dc_0), dp), from the last step to the first; the slopes of all steps come before it
    (i, f, g, o), tanh_c = gates, jnp.tanh(c)
    h_by_c = o * (1 - tanh_c * tanh_c)
    c_by_i, c_by_f, c_by_g = g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g)
    by_p = jnp.concatenate([c_by_i, c_by_f, c_by_g, tanh_c * o * (1 - o)], axis=2)

    def back(later, now):
        (dh, dc), (f, h_by_c, by_p, dy) = later, now
        dh = dy + dh  # (14.14)
        dc = dc + dh * h_by_c  # (14.14)
        dp = jnp.concatenate([dc, dc, dc, dh], axis=1) * by_p  # (14.15)
        return (dp @ Wh, dc * f), dp  # (14.16)

    zeros = jnp.zeros(dy.shape[1:], dy.dtype)
    return lax.scan(back, (zeros, zeros), (f, h_by_c, by_p, dy), reverse=True)


@jax.jit
def _gru_steps(x, h0, Wx, Wh, bx, bh):
    # (y, r, z, n, q), of all steps
    def step(h, p):
        (pr, pz, pn), (qr, qz, q) = (jnp.split(v, 3, axis=1) for v in (p, h @ Wh.T + bh))
        r, z = jax.nn.sigmoid(pr + qr), jax.nn.sigmoid(pz + qz)
        n = jnp.tanh(pn + r * q)
        h = (1 - z) * n + z * h
        return h, (h, r, z, n, q)

    return lax.scan(step, _first(h0, x, Wx, Wh, bx, bh), x @ Wx.T + bx)[1]


@jax.jit
def _gru_back(Wh, before, kept, dy):
    # (dh_0, (dp, dq)), from the last step to the first; the slopes of all steps come before it
    r, z, n, q = kept
    by_n, by_z = (1 - z) * (1 - n * n), (before - n) * z * (1 - z)
    by_r = by_n * q * r * (1 - r)

    def back(dh, now):
        by_r, by_z, by_n, r, z, dy = now
        dh = dy + dh  # (14.19)
        dpr, dpz, dpn = dh * by_r, dh * by_z, dh * by_n  # (14.20)
        dq = jnp.concatenate([dpr, dpz, dpn * r], axis=1)  # (14.20)
        return dh * z + dq @ Wh, (dpn, dq)  # (14.21)

    zeros = jnp.zeros(dy.shape[1:], dy.dtype)
    dh, (dpn, dq) = lax.scan(back, zeros, (by_r, by_z, by_n, r, z, dy), reverse=True)
    dpr_dpz = dq[..., : 2 * dpn.shape[2]]  # the same in dp and dq, (14.20)
    dp = jnp.concatenate([dpr_dpz, dpn], axis=2)
    return dh, (dp, dq)


def _first(state, *others):
    # the first state, in the dtype that the later ones have
    return jnp.asarray(state, jnp.result_type(state, *others))


def _before(first, states):
    # the state before each step
    return jnp.concatenate([first[None], states])[:-1]


def _rows(v):
    return v.reshape(-1, v.shape[-1])
