"""Recurrent layers: what is special to the topic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad as hg

RIGHT = {
    "14.1": [
        "return (20.0, 5.0, 2.0), 38.0, 11.0",
        "w, dh = 3, [2]\nfor dy_t in (-1, 5):\n    dh.insert(0, dy_t + w * dh[0])\n"
        "states = np.array([1, 2, 4])\n"
        "return np.array(dh), np.dot(dh, states), np.dot([5, -1, 2], states)",
    ],
    "14.2": [
        "dh, dps = 0, []\n"
        "for dy_t, a_t in zip(dy[::-1], a[::-1]):\n"
        "    dh = dy_t + dh\n    dp_t = dh * (1 - a_t * a_t) * 0.3\n    dps.append(dp_t)\n"
        "    dh = dp_t @ Wh + 0.7 * dh\n"
        "dps = jnp.stack(dps[::-1])\nread = jnp.concatenate([h0[None], y[:-1]])\n"
        "return (dps @ Wx, dh, jnp.einsum('tnh,tnd->hd', dps, x),\n"
        "        jnp.einsum('tnh,tnk->hk', dps, read), jnp.einsum('tnh->h', dps))",
        "def back(dh, now):\n"
        "    dy_t, a_t = now\n    dh = dh + dy_t\n    dp_t = 0.3 * dh * (1 - a_t**2)\n"
        "    return 0.7 * dh + dp_t @ Wh, dp_t\n"
        "dh0, dp = lax.scan(back, jnp.zeros_like(h0), (dy, a), reverse=True)\n"
        "rows = dp.reshape(-1, dp.shape[-1])\n"
        "read = np.vstack([h0, y[:-1].reshape(-1, y.shape[-1])])\n"
        "return dp @ Wx, dh0, rows.T @ x.reshape(-1, x.shape[-1]), rows.T @ read, rows.sum(0)",
    ],
    "14.3": [
        "k = old.shape[1]\nWr, Wz, Wn = Wh[:k], Wh[k : 2 * k], Wh[2 * k :]\n"
        "dn, dz = dnew * (1 - z), dnew * (old - n)\n"
        "dpn, dpz = dn * (1 - n**2), dz * z * (1 - z)\n"
        "ds = jnp.einsum('ni,ij->nj', dpn, Wn)\ndpr = ds * old * r * (1 - r)\n"
        "dold = z * dnew + jnp.hstack([dpr, dpz]) @ Wh[: 2 * k] + r * ds\n"
        "dWh = np.vstack([dpr.T @ old, dpz.T @ old, dpn.T @ (r * old)])\n"
        "return np.hstack([dpr, dpz, dpn]), dold, dWh",
    ],
    "14.4": [
        "read = np.stack([h0, *y[:-1]])\nrows = dp.reshape(-1, dp.shape[-1])\n"
        "dWh = rows.T @ read.reshape(rows.shape)\n"
        "return rows.T @ x.reshape(-1, x.shape[-1]), dWh, rows.sum(0)",
        "dWx, dWh, db = parameters_buggy(x, h0, y, dp)\n"
        "dWh = np.einsum('tni,tnj->ij', dp[1:], y[:-1]) + dp[0].T @ h0\nreturn dWx, dWh, db",
    ],
    "14.5": [
        "before = np.vstack([w0, path[:-1]])\ndws = [dw]\n"
        "for _ in range(len(path) - 1):\n    dws.append(dws[-1] - eta * A.T @ dws[-1])\n"
        "dws = np.array(dws[::-1])\n"
        "deta = -np.sum(dws * (before @ A.T - b))\n"
        "return dws[0] - eta * dws[0] @ A, deta, -eta * dws.T @ before, eta * dws.sum(axis=0)",
        "def back(dw, w):\n    return dw - eta * A.T @ dw, dw\n"
        "before = jnp.concatenate([w0[None], path[:-1]])\n"
        "dw0, dws = lax.scan(back, jnp.asarray(dw), before, reverse=True)\n"
        "deta = -jnp.einsum('ti,ti', dws, before @ A.T - b)\n"
        "return dw0, deta, -eta * jnp.einsum('ti,tj->ij', dws, before), eta * dws.sum(0)",
    ],
}

WRONG = {
    "14.1": [
        # forward in time; truncated everywhere; the state made, not read; dw not truncated
        "return [5, 14, 44], 38, 11",
        "return [5, -1, 2], 38, 11",
        "return [20, 5, 2], 66, 11",
        "return [20, 5, 2], 38, 38",
    ],
    "14.2": [
        # the slope from the state; the share forgotten; the leak forgotten; dy added afterwards
        "dh, dp = np.zeros_like(h0), np.zeros_like(dy)\n"
        "for t in reversed(range(len(x))):\n    dh = dh + dy[t]\n"
        "    dp[t] = 0.3 * dh * (1 - y[t] ** 2)\n    dh = 0.7 * dh + dp[t] @ Wh\n"
        "read = np.array([h0, *y[:-1]])\n"
        "dWx, dWh = (np.tensordot(dp, v, ((0, 1), (0, 1))) for v in (x, read))\n"
        "return dp @ Wx, dh, dWx, dWh, dp.sum(axis=(0, 1))",
        "dh, dp = np.zeros_like(h0), np.zeros_like(dy)\n"
        "for t in reversed(range(len(x))):\n    dh = dh + dy[t]\n"
        "    dp[t] = dh * (1 - a[t] ** 2)\n    dh = 0.7 * dh + dp[t] @ Wh\n"
        "read = np.array([h0, *y[:-1]])\n"
        "dWx, dWh = (np.tensordot(dp, v, ((0, 1), (0, 1))) for v in (x, read))\n"
        "return dp @ Wx, dh, dWx, dWh, dp.sum(axis=(0, 1))",
        "dh, dp = np.zeros_like(h0), np.zeros_like(dy)\n"
        "for t in reversed(range(len(x))):\n    dh = dh + dy[t]\n"
        "    dp[t] = 0.3 * dh * (1 - a[t] ** 2)\n    dh = dp[t] @ Wh\n"
        "read = np.array([h0, *y[:-1]])\n"
        "dWx, dWh = (np.tensordot(dp, v, ((0, 1), (0, 1))) for v in (x, read))\n"
        "return dp @ Wx, dh, dWx, dWh, dp.sum(axis=(0, 1))",
        "dh, dp = np.zeros_like(h0), np.zeros_like(dy)\n"
        "for t in reversed(range(len(x))):\n    dh = dh + dy[t]\n"
        "    dp[t] = 0.3 * dh * (1 - a[t] ** 2)\n    dh = 0.7 * dh + dp[t] @ Wh.T\n"
        "read = np.array([h0, *y[:-1]])\n"
        "dWx, dWh = (np.tensordot(dp, v, ((0, 1), (0, 1))) for v in (x, read))\n"
        "return dp @ Wx, dh, dWx, dWh, dp.sum(axis=(0, 1))",
    ],
    "14.3": [
        # the way back of the other network; a reader forgotten; the weights' state without r
        "_, _, Wn = jnp.split(Wh, 3)\ndpn = dnew * (1 - z) * (1 - n**2)\n"
        "dpz = dnew * (old - n) * z * (1 - z)\ndpr = dpn * (old @ Wn.T) * r * (1 - r)\n"
        "dq = jnp.concatenate([dpr, dpz, dpn * r], axis=1)\n"
        "return jnp.concatenate([dpr, dpz, dpn], axis=1), dnew * z + dq @ Wh, dq.T @ old",
        "Wr, Wz, Wn = jnp.split(Wh, 3)\ndpn = dnew * (1 - z) * (1 - n**2)\n"
        "dpz = dnew * (old - n) * z * (1 - z)\nds = dpn @ Wn\ndpr = ds * old * r * (1 - r)\n"
        "dold = dpr @ Wr + dpz @ Wz + ds * r\n"
        "dWh = jnp.concatenate([dpr.T @ old, dpz.T @ old, dpn.T @ (r * old)])\n"
        "return jnp.concatenate([dpr, dpz, dpn], axis=1), dold, dWh",
        "Wr, Wz, Wn = jnp.split(Wh, 3)\ndpn = dnew * (1 - z) * (1 - n**2)\n"
        "dpz = dnew * (old - n) * z * (1 - z)\nds = dpn @ Wn\ndpr = ds * old * r * (1 - r)\n"
        "dold = dnew * z + dpr @ Wr + dpz @ Wz + ds * r\n"
        "dp = jnp.concatenate([dpr, dpz, dpn], axis=1)\nreturn dp, dold, dp.T @ old",
    ],
    "14.4": [
        "return parameters_buggy(x, h0, y, dp)",
        "dWx, dWh, db = parameters_buggy(x, h0, y, dp)\n"
        "return dWx, np.einsum('tni,tnj->ij', dp[1:], y[:-1]), db",
        "dWx, dWh, db = parameters_buggy(x, h0, y, dp)\n"
        "dWh = np.einsum('tni,tnj->ij', dp[:-1], y[1:]) + dp[-1].T @ h0\nreturn dWx, dWh, db",
    ],
    "14.5": [
        # A not transposed; the weights after the step; the last step alone; a sign
        "deta, dA, db = 0.0, np.zeros_like(A), np.zeros_like(b)\n"
        "for w in [*path[-2::-1], w0]:\n    deta -= dw @ (A @ w - b)\n"
        "    dA -= eta * np.outer(dw, w)\n    db += eta * dw\n    dw = dw - eta * A @ dw\n"
        "return dw, deta, dA, db",
        "deta, dA, db = 0.0, np.zeros_like(A), np.zeros_like(b)\n"
        "for w in path[::-1]:\n    deta -= dw @ (A @ w - b)\n"
        "    dA -= eta * np.outer(dw, w)\n    db += eta * dw\n    dw = dw - eta * A.T @ dw\n"
        "return dw, deta, dA, db",
        "return dw, -dw @ (A @ path[-2] - b), -eta * np.outer(dw, path[-2]), eta * dw",
        "deta, dA, db = 0.0, np.zeros_like(A), np.zeros_like(b)\n"
        "for w in [*path[-2::-1], w0]:\n    deta += dw @ (A @ w - b)\n"
        "    dA -= eta * np.outer(dw, w)\n    db += eta * dw\n    dw = dw - eta * A.T @ dw\n"
        "return dw, deta, dA, db",
    ],
}

KINDS = {"rnn": (1, 1, 1), "lstm": (4, 2, 1), "gru": (3, 1, 2)}  # gates, first states, biases
each_kind = pytest.mark.parametrize("name", KINDS)


def arguments(name, T=5, N=3, d=6, h=4):
    rng, (gates, states, biases) = np.random.default_rng(14), KINDS[name]
    shapes = [(T, N, d), *[(N, h)] * states, (gates * h, d), (gates * h, h), *[gates * h] * biases]
    return [rng.normal(size=shape) for shape in shapes]


def triple(name):
    return [getattr(hg, name + suffix) for suffix in ("", "_fwd", "_bwd")]


@each_kind
@pytest.mark.parametrize(("T", "N"), [(0, 3), (5, 0), (0, 0)])
def test_without_steps_or_examples_every_gradient_is_0(name, T, N):
    (f, f_fwd, f_bwd), args = triple(name), arguments(name, T, N)
    y, residuals = f_fwd(*args)
    assert y.shape == f(*args).shape == (T, N, 4)
    for gradient, arg in zip(f_bwd(residuals, jnp.ones_like(y)), args, strict=True):
        assert gradient.shape == arg.shape and not gradient.any()


@pytest.mark.parametrize(
    ("name", "at", "shape", "parameter"),
    [
        ("rnn", 0, (5, 6), "x"),
        ("rnn", 1, (4,), "h0"),
        ("rnn", 1, (2, 4), "h0"),
        ("rnn", 2, (4, 5), "Wx"),
        ("rnn", 3, (4, 5), "Wh"),
        ("rnn", 4, (5,), "b"),
        ("lstm", 2, (3, 5), "c0"),
        ("lstm", 3, (12, 6), "Wx"),
        ("lstm", 4, (4, 16), "Wh"),
        ("gru", 2, (16, 6), "Wx"),
        ("gru", 3, (12, 3), "Wh"),
        ("gru", 5, (4,), "bh"),
    ],
)
def test_sizes_that_do_not_fit_name_the_argument(name, at, shape, parameter):
    args = arguments(name)
    args[at] = np.ones(shape)
    for call in (getattr(hg, name), jax.jit(getattr(hg, name))):
        with pytest.raises(TypeError, match=rf"parameter '{parameter}'"):
            call(*args)


def test_whole_numbers_are_refused():
    x, *rest = arguments("rnn")
    with pytest.raises(TypeError, match=r"parameter 'x'"):
        hg.rnn(x.astype(int), *rest)


@pytest.mark.parametrize("name", ["rnn", "gru"])
def test_two_pieces_make_the_whole_when_the_cotangent_of_the_state_is_handed_back(name):
    (_, f_fwd, f_bwd), (x, h0, *rest) = triple(name), arguments(name, T=10)
    y, residuals = f_fwd(x, h0, *rest)
    dy = np.random.default_rng(3).normal(size=y.shape)
    whole = f_bwd(residuals, dy)
    y1, kept1 = f_fwd(x[:5], h0, *rest)
    y2, kept2 = f_fwd(x[5:], y1[-1], *rest)
    np.testing.assert_allclose(jnp.concatenate([y1, y2]), y, rtol=1e-12)
    late = f_bwd(kept2, dy[5:])
    early = f_bwd(kept1, np.concatenate([dy[:4], dy[4:5] + late[1]]))
    np.testing.assert_allclose(jnp.concatenate([early[0], late[0]]), whole[0], rtol=1e-9)
    np.testing.assert_allclose(early[1], whole[1], rtol=1e-9)
    for a, b, both in zip(early[2:], late[2:], whole[2:], strict=True):
        np.testing.assert_allclose(a + b, both, rtol=1e-9, atol=1e-12)


def test_what_arrives_through_k_steps_is_at_most_the_kth_power_of_the_largest_singular_value():
    args = arguments("rnn")
    args[3] = args[3] / np.linalg.norm(args[3], 2) / 2
    y, residuals = hg.rnn_fwd(*args)
    last = np.random.default_rng(3).normal(size=y.shape[1:])
    dy = np.concatenate([np.zeros((len(y) - 1, *last.shape)), last[None]])
    _, dh0, *_ = hg.rnn_bwd(residuals, dy)
    assert (np.linalg.norm(dh0, axis=1) <= np.linalg.norm(last, axis=1) / 2**5).all()


def test_an_open_forget_gate_hands_the_cell_s_cotangent_on_as_it_is():
    x, h0, c0, Wx, Wh, _ = arguments("lstm")
    b = np.repeat([-60.0, 60.0, 0.0, 60.0], 4)  # writes nothing, keeps and shows everything
    y, residuals = hg.lstm_fwd(x, h0, c0, 0 * Wx, 0 * Wh, b)
    dy = np.random.default_rng(3).normal(size=y.shape)
    _, _, dc0, *_ = hg.lstm_bwd(residuals, dy)
    np.testing.assert_allclose(y, np.broadcast_to(np.tanh(c0), y.shape), rtol=1e-12)
    np.testing.assert_allclose(dc0, dy.sum(axis=0) * (1 - np.tanh(c0) ** 2), rtol=1e-12)


def test_a_gru_that_keeps_its_state_sends_the_sum_of_all_cotangents_to_the_first_one():
    x, h0, Wx, Wh, _, _ = arguments("gru")
    bias = np.repeat([0.0, 60.0, 0.0], 4)
    y, residuals = hg.gru_fwd(x, h0, 0 * Wx, 0 * Wh, bias, 0 * bias)
    dy = np.random.default_rng(3).normal(size=y.shape)
    np.testing.assert_allclose(y, np.broadcast_to(h0, y.shape), rtol=1e-12)
    np.testing.assert_allclose(hg.gru_bwd(residuals, dy)[1], dy.sum(axis=0), rtol=1e-12)


@pytest.mark.parametrize(("name", "count"), [("rnn", 0), ("lstm", 5), ("gru", 4)])
def test_what_is_kept_beyond_inputs_and_output(name, count):
    args = arguments(name)
    y, residuals = triple(name)[1](*args)
    free = [*args, y]
    new = [v for v in residuals if not any(np.array_equal(v, known) for known in free)]
    assert sum(v.size for v in new) == count * y.size


def products_in_loops(jaxpr, inside=False):
    count = 0
    for step in jaxpr.eqns:
        count += inside and step.primitive.name == "dot_general"
        for value in step.params.values():
            body = getattr(value, "jaxpr", value)
            if hasattr(body, "eqns"):
                count += products_in_loops(body, inside or step.primitive.name == "scan")
    return count


@each_kind
def test_the_gradients_of_the_parameters_are_no_part_of_the_loop(name):
    (f, f_fwd, f_bwd), args = triple(name), arguments(name)
    dy = np.ones((5, 3, 4))
    ours = jax.make_jaxpr(lambda dy, *args: f_bwd(f_fwd(*args)[1], dy))(dy, *args)
    theirs = jax.make_jaxpr(lambda dy, *args: jax.vjp(f, *args)[1](dy))(dy, *args)
    assert (products_in_loops(ours.jaxpr), products_in_loops(theirs.jaxpr)) == (2, 3)
