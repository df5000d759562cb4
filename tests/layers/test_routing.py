"""Mixture of experts and its load: what is special to the topic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad as hg

# Answers to the exercises of notebooks/18_routing.ipynb, judged in its kernel (tests/again.py).
RIGHT = {
    "18.1": [
        "return (7.5, 0, -7.5, 0), (0, 0, 0, 0), (0.09375, -0.09375)",
        """
        p, out = np.array([3, 1]) / 4, np.array([-3, 7])
        first = np.zeros(4)
        first[[2, 0]] = 4 * p * (out - p @ out)
        o, q = np.array([1, 3]) / 4, np.array([3, 1]) / 4
        return first, np.zeros(4), o * (q - o @ q)
        """,
    ],
    "18.2": [
        """
        n = np.arange(len(s))
        do = jnp.zeros_like(o).at[n, s].set(b[n, s] * dy)
        db = jnp.zeros_like(o).at[n, s].set(o[n, s] * dy)
        return o * (do - (o * do).sum(axis=1, keepdims=True)), db
        """,
        """
        n = jnp.arange(s.shape[0])
        push = o[n, s] * b[n, s] * dy
        dz = (-push[:, None] * o).at[n, s].add(push)
        return dz, jnp.where(jnp.arange(o.shape[1]) == s[:, None], o * dy[:, None], 0)
        """,
    ],
    "18.3": [
        """
        dp = jnp.take_along_axis(dw, s, axis=1)
        dv = p * (dp - (p * dp).sum(axis=1, keepdims=True))
        return (jnp.put_along_axis(jnp.zeros_like(dw), s, dv, axis=1, inplace=False),)
        """,
        """
        n = jnp.arange(len(s))[:, None]
        dp = dw[n, s]
        dv = p * dp - p * jnp.einsum("nj,nj->n", p, dp)[:, None]
        return (jnp.zeros(dw.shape).at[n, s].add(dv),)
        """,
    ],
    "18.4": [
        "return (jnp.einsum('n,ne->ne', 2 * t * dl / t.shape[0], o),)",
        "dt = 2 * t / t.size * dl\nreturn (dt[:, None] * o,)",
    ],
    "18.5": [
        """
        chosen = w > 0
        total = jnp.where(chosen, t, 0).sum(axis=1, keepdims=True)
        dt = (dw - jnp.einsum("ne,ne->n", w, dw)[:, None]) / total
        return jnp.where(chosen, dt * t * (1 - t), 0), np.zeros(w.shape[1])
        """,
        "dz = jnp.einsum('ne,ne,ne->ne', w, 1 - t, dw - (w * dw).sum(1, keepdims=True))\n"
        "return dz, 0 * t[0]",
    ],
}
WRONG = {
    "18.1": [
        "return (0, 7.5, -7.5, 0), (0, 0, 0, 0), (3 / 32, -3 / 32)",
        "return (1.875, 0, -1.875, 0), (0, 0, 0, 0), (3 / 32, -3 / 32)",
        "return (7.5, 0, -7.5, 0), (0, 0, -12, 0), (3 / 32, -3 / 32)",
        "return (7.5, 0, -7.5, 0), (0, 0, 0, 0), (3 / 64, -3 / 64)",
        "return (7.5, 0, -7.5, 0), (0, 0, 0, 0), (-3 / 32, 3 / 32)",
    ],
    "18.2": [
        "hit = jax.nn.one_hot(s, o.shape[1])\n"
        "return hit * o * (1 - o) * b * dy[:, None], hit * o * dy[:, None]",
        "hit = jax.nn.one_hot(s, o.shape[1])\n"
        "push = (hit * o * b).sum(axis=1, keepdims=True) * dy[:, None]\n"
        "return push * (hit - o), o * dy[:, None]",
        "hit = jax.nn.one_hot(s, o.shape[1])\n"
        "push = (hit * o).sum(axis=1, keepdims=True) * dy[:, None]\n"
        "return push * (hit - o), hit * o * dy[:, None]",
    ],
    "18.3": [
        "return gate_bwd_buggy(residuals, dw, k=k)",
        """
        dp = dw[:, :k]
        dv = p * (dp - (p * dp).sum(axis=1, keepdims=True))
        return (jnp.put_along_axis(jnp.zeros_like(dw), s, dv, axis=1, inplace=False),)
        """,
        "dp = jnp.take_along_axis(dw, s, axis=1)\n"
        "return (jnp.put_along_axis(jnp.zeros_like(dw), s, p * dp, axis=1, inplace=False),)",
    ],
    "18.4": [
        "return (2 * dl * t[:, None] * o,)",
        "return (2 * dl / len(t) * o,)",
        "return (dl / len(t) * t[:, None] * o,)",
        "return (2 * dl / o.size * t[:, None] * o,)",
    ],
    "18.5": [
        "return w * (dw - (w * dw).sum(axis=1, keepdims=True)), jnp.zeros(t.shape[1])",
        "dz = w * (1 - t) * dw\nreturn dz, jnp.zeros(t.shape[1])",
        "dz = w * (1 - t) * (dw - (w * dw).sum(axis=1, keepdims=True))\nreturn dz, dz.sum(axis=0)",
        "dz = t * (1 - t) * (dw - (w * dw).sum(axis=1, keepdims=True))\n"
        "return dz, jnp.zeros(t.shape[1])",
    ],
}

rng = np.random.default_rng(18)
x, Wg = rng.normal(size=(7, 3)), rng.normal(size=(4, 3))
W1, W2 = rng.normal(size=(4, 5, 3)), rng.normal(size=(4, 6, 5))
dy = rng.normal(size=(7, 6))


def back(x, Wg, W1, W2, dy, k):
    _, residuals = hg.mixture_of_experts_fwd(x, Wg, W1, W2, k=k)
    return hg.mixture_of_experts_bwd(residuals, dy, k=k)


def test_of_equal_logits_the_first_are_chosen_as_by_lax_top_k():
    tied = np.array([[1.0, 2.0, 2.0, 2.0], [5.0, 5.0, 5.0, 5.0], [0.0, 3.0, -1.0, 0.0]])
    *_, s, _, _ = hg.mixture_of_experts_fwd(tied, np.eye(4), W1[..., [0] * 4], W2, k=2)[1]
    assert np.array_equal(s, [[1, 2], [0, 1], [1, 0]])
    assert np.array_equal(s, jax.lax.top_k(tied, 2)[1])
    _, (_, q) = hg.load_balance_fwd(tied, k=2)
    np.testing.assert_array_equal(q, np.array([2, 3, 1, 0]) / 6)


def test_with_one_expert_a_token_the_router_gets_no_gradient():
    _, dWg, dW1, _ = back(x, Wg, W1, W2, dy, 1)
    assert not np.any(dWg) and np.any(dW1)


def test_with_all_experts_it_is_a_sum_weighted_by_softmax():
    def dense(x, Wg, W1, W2):
        a = jnp.maximum(jnp.einsum("ehd,nd->neh", W1, x), 0)
        return jnp.einsum("ne,ech,neh->nc", hg.softmax(x @ Wg.T), W2, a)

    y, pull = jax.vjp(dense, x, Wg, W1, W2)
    np.testing.assert_allclose(hg.mixture_of_experts(x, Wg, W1, W2, k=4), y, rtol=1e-12)
    for ours, theirs in zip(back(x, Wg, W1, W2, dy, 4), pull(dy), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-13)


def test_an_expert_that_nobody_chose_gets_no_gradient_and_may_be_anything():
    shy = Wg.copy()
    shy[2] = -100 * np.sign(x[0])
    first, second = W1.copy(), W2.copy()
    first[2], second[2] = np.nan, np.inf
    y, residuals = hg.mixture_of_experts_fwd(x[:1], shy, first, second, k=3)
    dx, dWg, dW1, dW2 = hg.mixture_of_experts_bwd(residuals, dy[:1], k=3)
    for finite in (y, dx, dWg, dW1, dW2):
        assert np.isfinite(finite).all()
    assert not (np.any(dWg[2]) or np.any(dW1[2]) or np.any(dW2[2]))


def test_an_even_load_is_left_alone_and_costs_1():
    z = np.stack([np.roll([3.0, 1.0, 0.5, -1.0], shift) for shift in range(4)])
    z += np.array([[0.4], [1.0], [-2.0], [0.1]]) * (z == 3)  # and no two tokens are alike
    loss, (o, q) = hg.load_balance_fwd(z, k=1)
    assert np.array_equal(q, [0.25] * 4) and not np.allclose(o.mean(axis=0), 0.25)
    np.testing.assert_allclose(loss, 1, rtol=1e-14)
    np.testing.assert_allclose(hg.load_balance_bwd((o, q), 1.0, k=1)[0], 0, atol=1e-16)


def test_the_loss_of_a_load_that_is_not_even_may_be_below_1():
    z = np.log([[0.51, 0.49], [0.51, 0.49], [0.51, 0.49], [0.01, 0.99]])
    np.testing.assert_allclose(hg.load_balance(z, k=1), 2 * (0.75 * 0.385 + 0.25 * 0.615))


def test_without_a_token():
    none = x[:0]
    assert hg.mixture_of_experts(none, Wg, W1, W2, k=2).shape == (0, 6)
    assert not any(np.any(d) for d in back(none, Wg, W1, W2, dy[:0], 2))
    assert np.isnan(hg.load_balance(none, k=2))


@pytest.mark.parametrize("k", [0, -1, 5])
def test_k_is_a_number_from_1_to_that_of_the_experts(k):
    with pytest.raises(ValueError, match=rf"^k: expected a number from 1 to 4, .* got {k}"):
        hg.mixture_of_experts(x, Wg, W1, W2, k=k)
    with pytest.raises(ValueError, match=rf"^k: expected a number from 1 to 4, .* got {k}"):
        hg.load_balance(rng.normal(size=(7, 4)), k=k)


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ((x, Wg[:, :2], W1, W2), "'Wg'"),
        ((x, Wg, W1[:3], W2), "'W1'"),
        ((x, Wg, W1[..., :2], W2), "'W1'"),
        ((x, Wg, W1, W2[:3]), "'W2'"),
        ((x, Wg, W1, W2[..., :4]), "'W2'"),
        ((x, Wg, W1[0], W2), "'W1'"),
        ((x.astype(int), Wg, W1, W2), "'x'"),
    ],
)
def test_a_shape_that_does_not_fit_names_the_argument(args, name):
    with pytest.raises(TypeError, match=name):
        hg.mixture_of_experts(*args, k=2)


def test_k_is_no_float():
    with pytest.raises(TypeError, match="'k'"):
        hg.load_balance(rng.normal(size=(7, 4)), k=2.0)


def test_in_bfloat16_the_load_is_still_counted_right():
    z = jnp.zeros((4096, 4), "bfloat16").at[1000:, 3].set(2)
    loss, (o, q) = hg.load_balance_fwd(z, k=1)
    assert loss.dtype == q.dtype == o.dtype == "bfloat16"
    np.testing.assert_allclose(q.astype(float), np.array([1000, 0, 0, 3096]) / 4096, rtol=1e-2)
