"""Linear recurrences.    Derivation: notebooks/15_linear_recurrence.ipynb

A state is multiplied, something is added, and so on for T steps; what multiplies does not depend on
the state. On the way back the cotangent of the state obeys such a recurrence too, from the last
step to the first, (15.4): the adjoint of a scan is a scan.

Steps are put together two by two, (15.2), in a number of rounds that grows as log(T). Products of
neighbouring factors are formed on the way. Where one of them overflows (|a| > 1 over many steps),
the states behind it may be inf or NaN, even if a loop, step by step, stays finite. With |a| <= 1
none can overflow. No step at all, T = 0, gives no output and gradients of 0.

No state is kept for the way back, unless it is the output. The delta rule, whose factors are
matrices, is a loop: it keeps its last state and undoes its steps one by one. The others make their
states again from their inputs.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Float


def linear_recurrence(
    a: Float[ArrayLike, " T *batch"],
    b: Float[ArrayLike, " T *batch"],
    h0: Float[ArrayLike, "*batch"],
) -> Float[ArrayLike, " T *batch"]:
    """h_t = a_t h_{t-1} + b_t, entry by entry, (15.1): a and b (T, *batch), h0 (*batch).

    Blelloch 1990, section 1.4.

    Raises:
        TypeError: an argument is not a float array, or the shapes do not fit.

    """
    return _scan(a, jnp.asarray(b).at[:1].add(a[:1] * h0), axis=0)


def linear_recurrence_fwd(a, b, h0):
    """h, and the residuals (a, h0, h): inputs and output."""
    h = linear_recurrence(a, b, h0)
    return h, (a, jnp.asarray(h0), h)


def linear_recurrence_bwd(
    residuals: tuple[
        Float[ArrayLike, " T *batch"], Float[ArrayLike, "*batch"], Float[ArrayLike, " T *batch"]
    ],
    dh: Float[ArrayLike, " T *batch"],
):
    """(da, db, dh0): db is the whole cotangent of h_t, from the outputs and from later steps."""
    a, h0, h = residuals
    db = _scan(jnp.roll(a, -1, axis=0), dh, axis=0, reverse=True)  # (15.4)
    da = db * jnp.concatenate([h0[None], h])[:-1]  # (15.5)
    dh0 = (a[:1] * db[:1]).sum(axis=0)  # (15.6)
    return da, db, dh0


def linear_attention(
    q: Float[ArrayLike, "*batch T d"],
    k: Float[ArrayLike, "*batch T d"],
    v: Float[ArrayLike, "*batch T e"],
) -> Float[ArrayLike, "*batch T e"]:
    """y_t = S_t^T q_t with the state S_t = S_{t-1} + k_t v_t^T, (15.8), so it is causal.

    Katharopoulos and others 2020, section 3.3, without their feature map and normaliser.

    Raises:
        TypeError: an argument is not a float array, or the shapes do not fit.

    """
    return _read(q, _summed(k, v))


def linear_attention_fwd(q, k, v):
    """y, and the residuals (q, k, v): inputs only."""
    return linear_attention(q, k, v), (q, k, v)


def linear_attention_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch T d"],
        Float[ArrayLike, "*batch T d"],
        Float[ArrayLike, "*batch T e"],
    ],
    dy: Float[ArrayLike, "*batch T e"],
):
    """(dq, dk, dv): R_t, the cotangent of the state, is the sum of q_s dy_s^T over s >= t."""
    q, k, v = residuals
    S, R = _summed(k, v), lax.cumsum(_outer(q, dy), axis=q.ndim - 2, reverse=True)
    dq = _times(S, dy)  # (15.10)
    dk = _times(R, v)  # (15.11)
    dv = _read(k, R)  # (15.11)
    return dq, dk, dv


def gated_linear_attention(
    q: Float[ArrayLike, "*batch T d"],
    k: Float[ArrayLike, "*batch T d"],
    v: Float[ArrayLike, "*batch T e"],
    g: Float[ArrayLike, "*batch T d"],
) -> Float[ArrayLike, "*batch T e"]:
    """y_t = S_t^T q_t with S_t = diag(g_t) S_{t-1} + k_t v_t^T, (15.12): g forgets, row by row.

    Yang and others 2023, section 4.1.

    Raises:
        TypeError: an argument is not a float array, or the shapes do not fit.

    """
    return _read(q, _gated(g, k, v))


def gated_linear_attention_fwd(q, k, v, g):
    """y, and the residuals (q, k, v, g): inputs only."""
    return gated_linear_attention(q, k, v, g), (q, k, v, g)


def gated_linear_attention_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch T d"],
        Float[ArrayLike, "*batch T d"],
        Float[ArrayLike, "*batch T e"],
        Float[ArrayLike, "*batch T d"],
    ],
    dy: Float[ArrayLike, "*batch T e"],
):
    """(dq, dk, dv, dg): as in linear attention, and R_t forgets on its way back as S_t does."""
    q, k, v, g = residuals
    S, R = _gated(g, k, v), _gated(jnp.roll(g, -1, axis=-2), q, dy, reverse=True)
    dq = _times(S, dy)  # (15.10)
    dk = _times(R, v)  # (15.11)
    dv = _read(k, R)  # (15.11)
    dg = (R * _before(S)).sum(axis=-1)  # (15.13)
    return dq, dk, dv, dg


def selective_scan(
    x: Float[ArrayLike, "*batch T d"],
    dt: Float[ArrayLike, "*batch T d"],
    A: Float[ArrayLike, "d n"],
    B: Float[ArrayLike, "*batch T n"],
    C: Float[ArrayLike, "*batch T n"],
    D: Float[ArrayLike, " d"],
) -> Float[ArrayLike, "*batch T d"]:
    """y_t = H_t C_t + D x_t, with H_t = exp(dt_t A) H_{t-1} + (dt_t x_t) B_t^T, (15.14).

    The states H_t are (d, n), and exp acts on each entry of dt_ti A_ij. A < 0 and dt > 0 keep its
    values below 1. Gu and Dao 2023, section 3.2, algorithm 2; the summand is that of their code,
    without the factor (exp(dt A) - 1) / (dt A) of their equation (4).

    Raises:
        TypeError: an argument is not a float array, or the shapes do not fit.

    """
    return _times(_selective(x, dt, A, B)[1], C) + D * x


def selective_scan_fwd(x, dt, A, B, C, D):
    """y, and the residuals (x, dt, A, B, C, D): inputs only."""
    return selective_scan(x, dt, A, B, C, D), (x, dt, A, B, C, D)


def selective_scan_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch T d"],
        Float[ArrayLike, "*batch T d"],
        Float[ArrayLike, "d n"],
        Float[ArrayLike, "*batch T n"],
        Float[ArrayLike, "*batch T n"],
        Float[ArrayLike, " d"],
    ],
    dy: Float[ArrayLike, "*batch T d"],
):
    """(dx, ddt, dA, dB, dC, dD): E is the cotangent of the exponent dt A: dA has a factor dt."""
    x, dt, A, B, C, D = residuals
    a, H = _selective(x, dt, A, B)
    G = _scan(jnp.roll(a, -1, axis=-3), _outer(dy, C), reverse=True)
    E = G * _before(H) * a
    dx = D * dy + dt * _times(G, B)  # (15.19)
    ddt = (E * A).sum(axis=-1) + x * _times(G, B)  # (15.18)
    dA = _over_steps(dt[..., None] * E, 2)  # (15.17)
    dB = _read(dt * x, G)  # (15.19)
    dC = _read(dy, H)  # (15.15)
    dD = _over_steps(dy * x, 1)  # (15.15)
    return dx, ddt, dA, dB, dC, dD


def delta_rule(
    q: Float[ArrayLike, "*batch T d"],
    k: Float[ArrayLike, "*batch T d"],
    v: Float[ArrayLike, "*batch T e"],
    beta: Float[ArrayLike, "*batch T"],
) -> Float[ArrayLike, "*batch T e"]:
    """y_t = S_t^T q_t with S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, (15.20).

    That is, S_t = S_{t-1} + beta_t k_t u_t^T with the error u_t = v_t - S_{t-1}^T k_t. Where
    beta_t |k_t|^2 is outside [0, 2] the state can grow at every step. The way back undoes the steps
    one by one, S_{t-1} = S_t - beta_t k_t u_t^T, (15.26): where a later state is much larger, an
    earlier small one loses digits, with beta_t |k_t|^2 in [0, 2] too, if later values are much
    larger. Yang and others 2024, section 2.2.

    Raises:
        TypeError: an argument is not a float array, or the shapes do not fit.

    """
    return _delta(q, k, v, beta)[0]


def delta_rule_fwd(q, k, v, beta):
    """y, and the residuals (q, k, beta, u, S): new are the errors u and the last state S (d, e)."""
    y, u, S = _delta(q, k, v, beta)
    return y, (q, k, beta, u, S)


def delta_rule_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch T d"],
        Float[ArrayLike, "*batch T d"],
        Float[ArrayLike, "*batch T"],
        Float[ArrayLike, "*batch T e"],
        Float[ArrayLike, "*batch d e"],
    ],
    dy: Float[ArrayLike, "*batch T e"],
):
    """(dq, dk, dv, dbeta): the factors I - beta k k^T are symmetric, and come in reverse order."""
    q, k, beta, u, S = residuals
    Sdy, Ru, Sw, w = _delta_back(q, k, beta, u, S, dy)
    dq = Sdy  # (15.22)
    dk = beta[..., None] * (Ru - Sw)  # (15.25)
    dv = beta[..., None] * w  # (15.23)
    dbeta = (w * u).sum(axis=-1)  # (15.24)
    return dq, dk, dv, dbeta


@partial(jax.jit, static_argnames=("axis", "reverse"))
def _scan(a, b, axis=-3, reverse=False):
    # h_t = a_t h_{t-1} + b_t from a state of zeros; reverse: from the last step to the first, where
    # the first factor meets those zeros, so it may be anything
    return lax.associative_scan(_then, (a, b), reverse=reverse, axis=axis % b.ndim)[1]


def _then(first, second):
    (a1, b1), (a2, b2) = first, second
    return a2 * a1, a2 * b1 + b2  # (15.2)


def _summed(k, v):
    # all states of linear attention
    return lax.cumsum(_outer(k, v), axis=k.ndim - 2)


def _gated(g, k, v, reverse=False):
    return _scan(jnp.asarray(g)[..., None], _outer(k, v), reverse=reverse)


def _selective(x, dt, A, B):
    # the factors exp(dt A), and all states
    a = jnp.exp(dt[..., None] * A)
    return a, _scan(a, _outer(dt * x, B))


def _delta(q, k, v, beta):
    # outputs, errors, and the last state; states are float32 at least, for their many small steps
    S = jnp.zeros((*k.shape[:-2], k.shape[-1], v.shape[-1]), jnp.promote_types(k.dtype, "float32"))
    S, (y, u) = _stepwise(_delta_step, S, (q, k, v, beta[..., None]))
    return y, u, S


def _delta_step(S, at):
    q, k, v, beta = at
    u = v - _read(k, S).astype(v.dtype)
    S = S + _outer(beta * k, u)
    return S, (_read(q, S).astype(v.dtype), u)


def _delta_back(q, k, beta, u, S, dy):
    # S_t dy_t, R_t u_t, S_{t-1} w_t and w_t = R_t^T k_t, from the last step to the first
    arrays = q, k, u, dy, beta[..., None]
    return _stepwise(_delta_step_back, (jnp.zeros_like(S), S), arrays, reverse=True)[1]


def _delta_step_back(states, at):
    (R, S), (q, k, u, dy, beta) = states, at
    R = R + _outer(q, dy)
    w = _read(k, R).astype(u.dtype)
    before = S - _outer(beta * k, u)  # (15.26)
    out = _times(S, dy), _times(R, u), _times(before, w), w
    return (R - _outer(beta * k, w), before), [o.astype(u.dtype) for o in out]  # (15.21)


def _stepwise(step, states, arrays, reverse=False):
    # a loop over the axis T of all arrays
    arrays = [jnp.moveaxis(a, -2, 0) for a in arrays]
    states, out = lax.scan(step, states, arrays, reverse=reverse)
    return states, [jnp.moveaxis(o, 0, -2) for o in out]


def _outer(k, v):
    return k[..., :, None] * v[..., None, :]


def _read(q, S):
    # S^T q
    return jnp.einsum("...d,...de->...e", q, S)


def _times(S, y):
    return jnp.einsum("...de,...e->...d", S, y)


def _before(S):
    # the state before each step: zeros, then all states but the last
    return jnp.concatenate([jnp.zeros_like(S[..., :1, :, :]), S], axis=-3)[..., :-1, :, :]


def _over_steps(u, axes):
    # all steps of all examples read a parameter with that many axes
    return u.sum(axis=tuple(range(u.ndim - axes)))
