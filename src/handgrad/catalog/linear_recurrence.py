"""The rows of layers/linear_recurrence.py."""

import numpy as np

from handgrad.catalog import Row
from handgrad.layers.linear_recurrence import (
    delta_rule,
    gated_linear_attention,
    linear_attention,
    linear_recurrence,
    selective_scan,
)


def _recurrences(rng):
    def of(*shape, factor=1.0, scale=1.0):
        a, b = rng.uniform(-factor, factor, size=shape), scale * rng.normal(size=shape)
        return (np.where(abs(a) < 0.1, 0, a), b, rng.normal(size=shape[1:])), {}

    return {
        "typical": of(5, 3),
        "edge: factors of 0, and above 1": of(5, 3, factor=3.0),
        "edge: numbers, no batch axis": of(5),
        "edge: more batch axes": of(3, 5, 4),
        "extreme: 1e4": of(5, 3, scale=1e4),
    }


def _attentions(*more):
    """Queries, keys and values, and what each of more makes of rng and the keys' shape."""

    def examples(rng):
        def of(*batch, scale=1.0):
            shape = (*batch, 3, 4)
            q, k = rng.normal(size=shape), rng.normal(size=shape) / 2
            v = scale * rng.normal(size=(*batch, 3, 5))
            return (q, k, v, *(make(rng, shape) for make in more)), {}

        (q, _, v, *rest), none = of(scale=1e4)
        return {
            "typical": of(),
            **({} if more else {"edge: examples": of(6)}),  # one rule will do: shapes cost time
            "edge: more batch axes": of(2, 3),
            "extreme: values of 1e4, a key each": ((q, np.eye(3, 4), v, *rest), none),
        }

    return examples


def _gates(rng, shape):
    return rng.uniform(0, 1, size=shape)


def _rates(rng, shape):
    return rng.uniform(0, 2, size=shape[:-1])


def _selections(rng):
    def of(*batch):
        x, dt = rng.normal(size=(*batch, 3, 4)), rng.uniform(0.1, 1, size=(*batch, 3, 4))
        B, C = rng.normal(size=(2, *batch, 3, 5))
        return (x, dt, -rng.uniform(0.2, 2, size=(4, 5)), B, C, rng.normal(size=4)), {}

    x, dt, *rest = of()[0]
    dt[1:] *= [1, 1e4, 1, 1e-4]
    return {
        "typical": of(),
        "edge: more batch axes": of(2, 3),
        "extreme: inputs of 1e4, steps of 1e4 that forget, and of 1e-4": ((1e4 * x, dt, *rest), {}),
    }


def _one_by_one(a, b, h0):
    h, y = h0, np.zeros(np.shape(b))
    for t in range(len(b)):
        h = y[t] = a[t] * h + b[t]
    return y


def _each(step, q, *rest):
    """The outputs, a step at a time, from a state of zeros; examples come one after another."""
    if q.ndim > 2:
        return np.stack([_each(step, *example) for example in zip(q, *rest, strict=True)])
    S, y = 0.0, []
    for at in zip(q, *rest, strict=True):
        out, S = step(S, *at)
        y.append(out)
    return np.stack(y)


def _attended(S, q, k, v, g=1.0):
    S = np.multiply(np.reshape(g, (-1, 1)), S) + np.outer(k, v)
    return S.T @ q, S


def _selected(x, dt, A, B, C, D):
    def step(H, x, dt, B, C):
        H = np.exp(dt[:, None] * A) * H + np.outer(dt * x, B)
        return H @ C + D * x, H

    return _each(step, x, dt, B, C)


def _corrected(S, q, k, v, beta):
    S = (np.eye(len(k)) - beta * np.outer(k, k)) @ (S + np.zeros((len(k), len(v))))
    S = S + beta * np.outer(k, v)
    return S.T @ q, S


QKV = {
    "q": r"dq_t = S_t\,dy_t",
    "k": r"dk_t = R_t\,v_t",
    "v": r"dv_t = R_t^\top k_t",
}

ROWS = (
    Row(
        linear_recurrence,
        r"h_t = a_t \odot h_{t-1} + b_t",
        {
            "a": r"da_t = db_t \odot h_{t-1}",
            "b": r"db_t = dh_t + a_{t+1} \odot db_{t+1}",
            "h0": r"dh_0 = a_1 \odot db_1",
        },
        _recurrences,
        same_as=_one_by_one,
    ),
    Row(
        linear_attention,
        r"y_t = S_t^\top q_t, \quad S_t = S_{t-1} + k_t\,v_t^\top",
        QKV,
        _attentions(),
        same_as=lambda *args: _each(_attended, *args),
        where=r"$R_t = R_{t+1} + q_t\,dy_t^\top$, from the last step to the first",
    ),
    Row(
        gated_linear_attention,
        r"y_t = S_t^\top q_t, \quad S_t = \operatorname{diag}(g_t)\,S_{t-1} + k_t\,v_t^\top",
        QKV | {"g": r"dg_t = (R_t \odot S_{t-1})\,\mathbf{1}"},
        _attentions(_gates),
        same_as=lambda *args: _each(_attended, *args),
        where=r"$R_t = \operatorname{diag}(g_{t+1})\,R_{t+1} + q_t\,dy_t^\top$, from the last step "
        r"to the first",
    ),
    Row(
        selective_scan,
        r"y_t = H_t\,C_t + D \odot x_t, \quad H_t = e^{\Delta_t A} \odot H_{t-1} + "
        r"(\Delta_t \odot x_t)\,B_t^\top",
        {
            "x": r"dx_t = D \odot dy_t + \Delta_t \odot G_t\,B_t",
            "dt": r"d\Delta_t = (E_t \odot A)\,\mathbf{1} + x_t \odot G_t\,B_t",
            "A": r"dA = \sum_t \operatorname{diag}(\Delta_t)\,E_t",
            "B": r"dB_t = G_t^\top (\Delta_t \odot x_t)",
            "C": r"dC_t = H_t^\top dy_t",
            "D": r"dD = \sum_t dy_t \odot x_t",
        },
        _selections,
        same_as=_selected,
        where=r"$\Delta$ is `dt`, $e^{\Delta_t A}$ has the entries $e^{\Delta_{ti} A_{ij}}$, "
        r"$G_t = e^{\Delta_{t+1} A} \odot G_{t+1} + dy_t\,C_t^\top$ comes from the last step to "
        r"the first, and $E_t = G_t \odot H_{t-1} \odot e^{\Delta_t A}$",
    ),
    Row(
        delta_rule,
        r"y_t = S_t^\top q_t, \quad S_t = S_{t-1} + \beta_t\,k_t\,u_t^\top, \quad "
        r"u_t = v_t - S_{t-1}^\top k_t",
        {
            "q": r"dq_t = S_t\,dy_t",
            "k": r"dk_t = \beta_t\,(R_t\,u_t - S_{t-1}\,w_t)",
            "v": r"dv_t = \beta_t\,w_t",
            "beta": r"d\beta_t = \langle w_t, u_t \rangle",
        },
        _attentions(_rates),
        same_as=lambda *args: _each(_corrected, *args),
        where=r"$R_t = (I - \beta_{t+1}\,k_{t+1}\,k_{t+1}^\top)\,R_{t+1} + q_t\,dy_t^\top$, from "
        r"the last step to the first, and $w_t = R_t^\top k_t$",
    ),
)
