"""Linear recurrences: what is special to the topic."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad as hg

RIGHT = {
    "15.1": [
        "return (-2.25, -49, 19.5), (-1.5, -7, 3), -6.0",
        "db = [3.0, -1 - 2 * 3.0]\ndb.append(2 + 0.5 * db[1])\ndb = np.array(db[::-1])\n"
        "return db * np.array([1.5, 7, 6.5]), db, 4 * db[0]",
    ],
    "15.2": [
        "dk = hg.linear_attention(v[::-1], dy[::-1], q[::-1])\n"
        "dv = hg.linear_attention(k[::-1], q[::-1], dy[::-1])\n"
        "return hg.linear_attention(dy, v, k), dk[::-1], dv[::-1]",
        "S, R = jnp.zeros((3, 4)), jnp.zeros((3, 4))\ndq, dk, dv = [], [], []\n"
        "for t in range(len(q)):\n    S = S + jnp.outer(k[t], v[t])\n    dq.append(S @ dy[t])\n"
        "for t in reversed(range(len(q))):\n    R = R + jnp.outer(q[t], dy[t])\n"
        "    dk.insert(0, R @ v[t])\n    dv.insert(0, R.T @ k[t])\n"
        "return jnp.stack(dq), jnp.stack(dk), jnp.stack(dv)",
    ],
    "15.3": [
        "s, total = 0.0, []\n"
        "for t in reversed(range(len(a))):\n"
        "    s = dh[t] + (a[t + 1] * s if t + 1 < len(a) else 0)\n    total.insert(0, s)\n"
        "total = np.array(total)\n"
        "return (1 - a) * total, (np.concatenate([[0], h[:-1]]) - x) * total",
        "da, db, _ = hg.linear_recurrence_bwd((a, np.array(0.0), h), dh)\n"
        "return (1 - a) * db, da - x * db",
    ],
    "15.4": [
        "c = np.cumsum(np.flip(q * dq - k * dk, axis=0), axis=0)\nreturn np.flip(c, axis=0) / g",
        "c, dg = 0, np.zeros(g.shape)\n"
        "for t in reversed(range(len(g))):\n    c = c + q[t] * dq[t] - k[t] * dk[t]\n"
        "    dg[t] = c / g[t]\nreturn dg",
    ],
    "15.5": [
        "s, states = jnp.zeros_like(h0), []\n"
        "for d in dh[::-1]:\n    s = d + A.T @ s\n    states.append(s)\n"
        "dx = jnp.stack(states[::-1])\n"
        "return dx, dx.T @ jnp.concatenate([h0[None], h[:-1]]), dx[0] @ A",
        "def step(s, d):\n    s = d + A.T @ s\n    return s, s\n"
        "s, dx = jax.lax.scan(step, jnp.zeros_like(h0), dh, reverse=True)\n"
        "before = jnp.concatenate([h0[None], h])[:-1]\n"
        "return dx, jnp.einsum('ti,tj->ij', dx, before), A.T @ s",
    ],
}

WRONG = {
    "15.1": [
        # factors not moved up; h_t for h_{t-1}; h0 gets db_1 as it is
        "return [3, -24.5, -39], [2, -3.5, -6], 8",
        "return [-10.5, -45.5, -33], [-1.5, -7, 3], -6",
        "return [-2.25, -49, 19.5], [-1.5, -7, 3], -1.5",
        "return [-2.25, -49, 19.5], [2, -1, 3], -6",
    ],
    "15.2": [
        "return tuple(hg.linear_attention(*x) for x in ((dy, v, k), (v, dy, q), (k, q, dy)))",
        "dq = hg.linear_attention(dy, v, k)\n"
        "dk = hg.linear_attention(v[::-1], dy[::-1], q[::-1])\n"
        "dv = hg.linear_attention(k[::-1], q[::-1], dy[::-1])[::-1]\nreturn dq, dk, dv",
        "dq = hg.linear_attention(dy, v, k)\n"
        "dk = hg.linear_attention(v[::-1], dy[::-1], k[::-1])[::-1]\n"
        "dv = hg.linear_attention(q[::-1], k[::-1], dy[::-1])[::-1]\nreturn dq, dk, dv",
    ],
    "15.3": [
        "return average_bwd_buggy(x, a, h, dh)",
        "da, db, _ = hg.linear_recurrence_bwd((a, np.array(0.0), h), dh)\nreturn db, da - x * db",
        "da, db, _ = hg.linear_recurrence_bwd((a, np.array(0.0), h), dh)\nreturn (1 - a) * db, da",
        "total = hg.linear_recurrence(np.roll(a[::-1], -1), dh[::-1], jnp.zeros(()))[::-1]\n"
        "return (1 - a) * total, (jnp.append(0.0, h[:-1]) - x) * total",
    ],
    "15.4": [
        "return jnp.cumsum((q * dq - k * dk)[::-1], axis=0)[::-1]",
        "return jnp.cumsum(q * dq - k * dk, axis=0) / g",
        "return jnp.cumsum((k * dk - q * dq)[::-1], axis=0)[::-1] / g",
        "return (q * dq - k * dk) / g",
    ],
    "15.5": [
        "s, dx = jnp.zeros_like(h0), []\n"
        "for d in dh[::-1]:\n    s = d + A @ s\n    dx.insert(0, s)\n"
        "dx = jnp.stack(dx)\n"
        "return dx, dx.T @ jnp.concatenate([h0[None], h[:-1]]), A @ dx[0]",
        "s, dx = jnp.zeros_like(h0), []\n"
        "for d in dh[::-1]:\n    s = d + A.T @ s\n    dx.insert(0, s)\n"
        "dx = jnp.stack(dx)\nreturn dx, dx.T @ h, A.T @ dx[0]",
        "s, dx = jnp.zeros_like(h0), []\n"
        "for d in dh[::-1]:\n    s = d + A.T @ s\n    dx.insert(0, s)\n"
        "dx = jnp.stack(dx)\n"
        "return dx, dx.T @ jnp.concatenate([h0[None], h[:-1]]), dx[0]",
    ],
}

NAMES = [
    "linear_recurrence",
    "linear_attention",
    "gated_linear_attention",
    "selective_scan",
    "delta_rule",
]


def layer(name):
    return hg.as_layer(*(getattr(hg, name + suffix) for suffix in ("", "_fwd", "_bwd")))


def drawn(name, T, d=3, e=4, seed=0):
    rng = np.random.default_rng(seed)
    if name == "linear_recurrence":
        return rng.uniform(-1, 1, size=(T, d)), rng.normal(size=(T, d)), rng.normal(size=d)
    if name == "selective_scan":
        x, dt = rng.normal(size=(T, d)), rng.uniform(0.1, 1, size=(T, d))
        B, C = rng.normal(size=(2, T, e))
        return x, dt, -rng.uniform(0.2, 2, size=(d, e)), B, C, rng.normal(size=d)
    q, k = rng.normal(size=(2, T, d)) / np.sqrt(d)
    v = rng.normal(size=(T, e))
    last = {"gated_linear_attention": (T, d), "delta_rule": (T,)}.get(name)
    return (q, k, v) if last is None else (q, k, v, rng.uniform(0, 1, size=last))


def in_a_loop(name, args):
    """The outputs, a step at a time."""
    if name == "linear_recurrence":
        *arrays, S = args
    else:
        S = jnp.zeros((args[1].shape[-1], args[2].shape[-1]))
        arrays = args
    if name == "selective_scan":
        x, dt, A, B, C, D = args
        S, arrays = jnp.zeros(A.shape), (x, dt, B, C)

    def step(S, at):
        if name == "linear_recurrence":
            S = at[0] * S + at[1]
            return S, S
        if name == "selective_scan":
            x, dt, B, C = at
            S = jnp.exp(dt[:, None] * A) * S + jnp.outer(dt * x, B)
            return S, S @ C + D * x
        q, k, v, *last = at
        if name == "gated_linear_attention":
            S = last[0][:, None] * S
        if name == "delta_rule":
            S = (jnp.eye(len(S)) - last[0] * jnp.outer(k, k)) @ S
        S = S + (last[0] if name == "delta_rule" else 1) * jnp.outer(k, v)
        return S, S.T @ q

    return jax.lax.scan(step, S, arrays)[1]


@pytest.mark.parametrize("T", [1, 6])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_those_of_a_loop(name, T):
    args = drawn(name, T)

    @jax.jit
    def both(*args):
        y, residuals = getattr(hg, name + "_fwd")(*args)
        out, pull = jax.vjp(lambda *args: in_a_loop(name, args), *args)
        dy = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
        return (y, getattr(hg, name + "_bwd")(residuals, dy)), (out, pull(dy))

    ours, loops = both(*args)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(loops), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_no_step_gives_no_output_and_gradients_of_zero(name):
    args = drawn(name, 0)
    y, residuals = getattr(hg, name + "_fwd")(*args)
    assert y.shape == getattr(hg, name)(*args).shape and y.shape[0] == 0
    for d, arg in zip(getattr(hg, name + "_bwd")(residuals, y), args, strict=True):
        assert d.shape == arg.shape and not d.any()


@pytest.mark.parametrize("name", NAMES)
def test_a_long_sequence_in_few_digits(name):
    args = [jnp.asarray(a, "bfloat16") for a in drawn(name, 40)]
    f, dy = layer(name), jnp.asarray(np.cos(np.arange(160)).reshape(40, 4), "bfloat16")
    dy = dy[:, : jax.eval_shape(f, *args).shape[1]]

    @jax.jit
    def gradients(*args):
        y, pull = jax.vjp(f, *args)
        return y, *pull(dy)

    @jax.jit
    def exact(*args):
        y, pull = jax.vjp(lambda *args: in_a_loop(name, args), *args)
        return y, *pull(dy.astype("float64"))

    wide = [jnp.asarray(a, "float64") for a in args]
    for narrow, true in zip(gradients(*args), exact(*wide), strict=True):
        assert narrow.dtype == "bfloat16"
        error = np.abs(np.asarray(narrow, "float64") - true).max()
        assert error < 4 * float(jnp.finfo("bfloat16").eps) * np.abs(true).max()


def test_factors_above_1_are_right_as_long_as_their_products_are_finite():
    a, b = np.full((200, 3), 10.0), np.random.default_rng(0).normal(size=(200, 3))
    h, residuals = hg.linear_recurrence_fwd(a, b, np.ones(3))
    loop = in_a_loop("linear_recurrence", (a, b, np.ones(3)))
    np.testing.assert_allclose(h, loop, rtol=1e-12)
    dh = np.zeros((200, 3))
    dh[-1] = 1
    _, db, dh0 = hg.linear_recurrence_bwd(residuals, dh)
    np.testing.assert_allclose(db, 10.0 ** np.arange(199, -1, -1)[:, None] * np.ones(3), rtol=1e-12)
    np.testing.assert_allclose(dh0, np.full(3, 1e200), rtol=1e-12)


def test_products_that_overflow_are_told_by_nan_or_inf_and_are_never_a_wrong_number():
    a, b = np.full((1100, 1), 10.0), np.zeros((1100, 1))
    h = np.asarray(hg.linear_recurrence(a, b, np.zeros(1)))
    assert np.isnan(h).any() and not h[np.isfinite(h)].any()  # a loop has zeros throughout
    h = np.asarray(hg.linear_recurrence(a, b, np.ones(1)))[:, 0]
    np.testing.assert_allclose(h[:308], 10.0 ** np.arange(1, 309), rtol=1e-12)
    assert not np.isfinite(h[308:]).any()


def test_the_first_factor_meets_h0_alone():
    a, b, _ = drawn("linear_recurrence", 5)
    a[0] = np.nan
    h, residuals = hg.linear_recurrence_fwd(a, b, np.zeros(3))
    assert np.isnan(h[0]).all()
    _, db, dh0 = hg.linear_recurrence_bwd(residuals, np.ones((5, 3)))
    assert np.isfinite(db).all() and np.isnan(dh0).all()


def test_linear_attention_is_attention_without_its_softmax():
    q, k, v = drawn("linear_attention", 6)
    np.testing.assert_allclose(hg.linear_attention(q, k, v), np.tril(q @ k.T) @ v, atol=1e-13)


def test_open_gates_forget_nothing_and_closed_ones_everything():
    q, k, v = drawn("linear_attention", 6)
    opened, closed = np.ones_like(k), np.zeros_like(k)
    plain = hg.linear_attention(q, k, v)
    np.testing.assert_allclose(hg.gated_linear_attention(q, k, v, opened), plain, atol=1e-13)
    only_now = (q * k).sum(axis=1, keepdims=True) * v
    np.testing.assert_allclose(hg.gated_linear_attention(q, k, v, closed), only_now, atol=1e-13)
    _, residuals = hg.gated_linear_attention_fwd(q, k, v, closed)
    *_, dg = hg.gated_linear_attention_bwd(residuals, v)
    assert np.isfinite(dg).all() and dg.any()


def test_the_delta_rule_stores_and_replaces_what_a_key_reads():
    k = np.eye(3)[[0, 1, 0, 2]]
    v = np.random.default_rng(0).normal(size=(4, 5))
    y = hg.delta_rule(k, k, v, np.ones(4))
    np.testing.assert_allclose(y, v, atol=1e-15)  # each step reads what it has just written
    late = hg.delta_rule(np.eye(3)[[0, 0, 0, 0]], k, v, np.ones(4))
    np.testing.assert_allclose(late, v[[0, 0, 2, 2]], atol=1e-15)


def test_the_factors_of_the_delta_rule_are_reflections_for_beta_2():
    k = np.random.default_rng(0).normal(size=(5, 3))
    k[1:] /= np.linalg.norm(k[1:], axis=1, keepdims=True)
    v = np.zeros((5, 4))
    v[0] = np.arange(1.0, 5)
    beta = np.array([1.0, 2, 2, 2, 2])
    # without new values the state is turned and reflected, and its length stays
    _, (*_, S) = hg.delta_rule_fwd(k, k, v, beta)
    np.testing.assert_allclose(
        np.linalg.norm(S), np.linalg.norm(k[0]) * np.linalg.norm(v[0]), rtol=1e-13
    )


def test_undoing_steps_loses_digits_where_the_state_has_been_large():
    # what the docstring says: a state that grows to some 1e9 and is then wiped out
    q, k, v, beta = drawn("delta_rule", 34, d=1)
    k, beta = np.ones_like(k), np.full(34, 3.0)
    beta[-2:] = 1.0
    _, residuals = hg.delta_rule_fwd(q, k, v, beta)
    (dq, *_), pull = hg.delta_rule_bwd(residuals, v), jax.vjp(hg.delta_rule, q, k, v, beta)[1]
    true = pull(v)[0]
    np.testing.assert_allclose(dq, true, rtol=1e-6, atol=1e-5)


def test_undoing_the_steps_of_the_delta_rule_saves_memory():
    args = [jnp.asarray(a, "float32") for a in drawn("delta_rule", 64, d=8, e=6)]

    def temporaries(f):
        y = jax.eval_shape(f, *args)
        back = jax.jit(lambda dy, *args: jax.vjp(f, *args)[1](dy)).lower(y, *args).compile()
        return back.memory_analysis().temp_size_in_bytes

    assert temporaries(layer("delta_rule")) < temporaries(hg.delta_rule) / 2


@pytest.mark.parametrize(
    ("name", "argument", "shape"),
    [
        ("linear_recurrence", "b", (4, 3)),
        ("linear_recurrence", "b", (5, 2)),
        ("linear_recurrence", "h0", (5, 3)),
        ("linear_attention", "k", (5, 2)),
        ("linear_attention", "k", (4, 3)),
        ("linear_attention", "v", (4, 4)),
        ("gated_linear_attention", "g", (5,)),
        ("gated_linear_attention", "g", (5, 4)),
        ("selective_scan", "dt", (5, 1)),
        ("selective_scan", "A", (4, 3)),
        ("selective_scan", "C", (5, 3)),
        ("selective_scan", "B", (4, 4)),
        ("selective_scan", "D", ()),
        ("delta_rule", "beta", (5, 1)),
        ("delta_rule", "beta", (4,)),
    ],
)
def test_shapes_that_do_not_fit_name_the_argument(name, argument, shape):
    f, args = getattr(hg, name), drawn(name, 5)
    arguments = dict(zip(inspect.signature(f).parameters, args, strict=True))
    for wrong in (np.zeros(shape), arguments[argument].astype(int)):
        with pytest.raises(TypeError, match=rf"parameter '{argument}'"):
            f(**arguments | {argument: wrong})
