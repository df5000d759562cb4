"""Recomputation: what is special to the topic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import handgrad as hg

RIGHT = {
    "17.1": [
        "return [9 / 2, 16.0, 27 / 2, 11, 66]",
        "n, a = 4 * 2 / 8 + 1, 8 * 2 / 8 + 7\nreturn np.array([a / n, 8 * n, 3 * a / n, 11, 66])",
    ],
    "17.2": [
        "dL = dl * (1 + 2 * lam * L)\n"
        "dz = np.expand_dims(dL, 1) * p - np.expand_dims(dl, 1) * e_y\n"
        "return jnp.einsum('nk,kd->nd', dz, W), jnp.einsum('nk,nd->kd', dz, x), None",
        "g = p @ W - e_y @ W + 2 * lam * L[:, None] * (p @ W)\n"
        "dW = ((p - e_y) * dl[:, None]).T @ x + 2 * lam * (p * (L * dl)[:, None]).T @ x\n"
        "return dl[:, None] * g, dW, None",
    ],
    "17.3": [
        "draw = np.random.default_rng(seed).random\n"
        "masks = [draw(len(A)) < 1 / 2 for A in layers]\n"
        "while masks:\n"
        "    x, A = states[len(masks) - 1], layers[len(masks) - 1]\n"
        "    dz = 2 * (masks.pop() * dz / np.cosh(A @ x) ** 2) @ A\n"
        "return dz",
        "for i in reversed(range(len(layers))):\n"
        "    random, A = np.random.default_rng(seed), layers[i]\n"
        "    random.random(sum(len(B) for B in layers[:i]))\n"
        "    stays = random.random(len(A)) < 0.5\n"
        "    dz = A.T @ np.where(stays, 2 * (1 - np.tanh(A @ states[i]) ** 2) * dz, 0)\n"
        "return dz",
    ],
    "17.4": [
        "u = w - np.tanh(y @ B.T)\nx = y - np.tanh(u @ A.T)\n"
        "_, pull = jax.vjp(reversible, jnp.stack([x, u]), A, B)\nreturn pull(dyw)",
        "s = jnp.tanh(jnp.einsum('nj,ij->ni', y, B))\nu = w - s\n"
        "dB_in = dw * (1 - s * s)\ndx = dy + jnp.matmul(dB_in, B)\n"
        "dA_in = dx / jnp.cosh(u @ A.T) ** 2\n"
        "return (dx, dw + dA_in @ A), jnp.einsum('ni,nj->ij', dA_in, u), dB_in.T @ y",
    ],
}

WRONG = {
    "17.1": [
        "return 15 / 5, 10 * 5, 9.0, 11, 66",
        "return 4.5, 16, 13.5, 12, 66",
        "return 4.5, 16, 13.5, 11, 72",
        "return 4.5, 16, 4.5, 11, 66",
    ],
    "17.2": [
        "dz = dl[:, None] * (p - e_y)\nreturn dz @ W, dz.T @ x, None",
        "dz = (dl * (1 + 2 * lam * L))[:, None] * (p - e_y)\nreturn dz @ W, dz.T @ x, None",
        "dz = dl[:, None] * ((1 + lam * L)[:, None] * p - e_y)\nreturn dz @ W, dz.T @ x, None",
        "dz = (1 + 2 * lam * L)[:, None] * p - e_y\n"
        "return dl[:, None] * (dz @ W), dl[0] * dz.T @ x, None",
    ],
    "17.3": [
        "return noisy_bwd_buggy(residuals, dz)",
        "for x, A in zip(states[::-1], layers[::-1]):\n"
        "    dz = A.T @ ((1 - np.tanh(A @ x) ** 2) * dz)\n"
        "return dz",
        "for x, A in zip(states[::-1], layers[::-1]):\n"
        "    mask = 2 * (np.random.default_rng(seed).random(len(A)) < 0.5)\n"
        "    dz = A.T @ ((1 - np.tanh(A @ x) ** 2) * mask * dz)\n"
        "return dz",
        "random = np.random.default_rng(seed)\n"
        "masks = [random.random(len(A)) < 0.5 for A in layers]\n"
        "for x, A, mask in zip(states[::-1], layers[::-1], masks[::-1]):\n"
        "    dz = A.T @ ((1 - np.tanh(A @ x) ** 2) * mask * dz)\n"
        "return dz",
    ],
    "17.4": [
        "s, r = jnp.tanh(y @ B.T), jnp.tanh(w @ A.T)\nds = (1 - s**2) * dw\ndx = dy + ds @ B\n"
        "dr = (1 - r**2) * dx\nreturn jnp.stack([dx, dw + dr @ A]), dr.T @ w, ds.T @ y",
        "s = jnp.tanh(y @ B.T)\nu = w - s\nds, dr = (1 - s**2) * dw, dy / jnp.cosh(u @ A.T) ** 2\n"
        "return jnp.stack([dy + ds @ B, dw + dr @ A]), dr.T @ u, ds.T @ y",
        "s = jnp.tanh(y @ B.T)\nu = w - s\nds = (1 - s**2) * dw\ndx = dy + ds @ B\n"
        "dr = dx / jnp.cosh(u @ A.T) ** 2\n"
        "return jnp.stack([dx, dr @ A]), dr.T @ u, ds.T @ y",
    ],
}


def draw(*shape):
    return np.random.default_rng(shape).normal(size=shape)


def sequence(T=5, S=7, d=4, e=3, batch=()):
    return draw(*batch, T, d), draw(*batch, S, d), draw(*batch, S, e)


def back(q, k, v, **hyper):
    """The output, a random cotangent of it, and the rule's cotangents."""
    o, residuals = hg.flash_attention_fwd(q, k, v, **hyper)
    do = jnp.asarray(draw(*o.shape), o.dtype)
    return o, do, hg.flash_attention_bwd(residuals, do, **hyper)


def classes(N=3, d=4, k=11):
    return draw(N, d), draw(k, d), np.random.default_rng(k).integers(k, size=N), draw(N)


def of_loss(x, W, y, dl, **hyper):
    """The losses, and the rule's cotangents of x and W."""
    loss, residuals = hg.linear_cross_entropy_fwd(x, W, y, **hyper)
    dx, dW, none = hg.linear_cross_entropy_bwd(residuals, dl, **hyper)
    assert none is None
    return loss, dx, dW


@pytest.mark.parametrize(
    ("T", "S", "causal", "block"), [(7, 5, True, 3), (5, 7, False, 2), (65, 130, True, 64)]
)
def test_flash_attention_is_attention_with_its_gradients(T, S, causal, block):
    q, k, v = sequence(T, S, batch=(2,))
    o, do, cotangents = back(q, k, v, causal=causal, block=block)
    plain, residuals = hg.attention_fwd(q, k, v, causal=causal)
    others = hg.attention_bwd(residuals, do, causal=causal)
    for mine, other in zip((o, *cotangents), (plain, *others), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-14)


def test_linear_cross_entropy_is_linear_and_cross_entropy_with_their_gradients():
    x, W, y, dl = classes(k=50257)
    y[:2] = 50256, 50100  # the last chunk meets the second one again
    loss, dx, dW = of_loss(x, W, y, dl)
    o, _ = hg.softmax_fwd(x @ W.T)
    dz, _ = hg.softmax_cross_entropy_bwd((o, y), dl)
    others = hg.softmax_cross_entropy(x @ W.T, y), dz @ W, dz.T @ x
    for mine, other in zip((loss, dx, dW), others, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-15)


def largest(jaxpr):
    """The number of entries of the largest array that a program makes."""
    sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
    inner = [j for eqn in jaxpr.eqns for j in jaxprs_in_params(eqn.params)]
    return max([*sizes, *map(largest, inner)], default=0)


def test_no_array_of_all_scores_or_all_logits_is_ever_made():
    T, d, k, N = 4096, 64, 50257, 2048
    q = jax.ShapeDtypeStruct((T, d), "float32")
    program = jax.make_jaxpr(lambda q, k, v: back(q, k, v, causal=True))(q, q, q)
    assert largest(program.jaxpr) == T * d
    x, W = (jax.ShapeDtypeStruct((rows, d), "float32") for rows in (N, k))
    y, dl = (jax.ShapeDtypeStruct((N,), dtype) for dtype in ("int32", "float32"))
    assert largest(jax.make_jaxpr(of_loss)(x, W, y, dl).jaxpr) == k * d  # W, and its cotangent
    alone = jax.make_jaxpr(hg.linear_cross_entropy)(x, W, y)
    assert largest(alone.jaxpr) == N * 256


def test_tiles_in_which_nothing_is_seen_are_left_out():
    q = jax.ShapeDtypeStruct((12, 4), "float32")
    for causal, tiles in ((True, 10), (False, 16)):
        program = jax.make_jaxpr(lambda q, c=causal: hg.flash_attention(q, q, q, causal=c, block=3))
        (inner,) = program(q).jaxpr.eqns
        (scan,) = (e for e in inner.params["jaxpr"].eqns if e.primitive.name == "scan")
        assert scan.params["length"] == tiles


@pytest.mark.parametrize(("T", "S"), [(5, 0), (0, 5), (0, 0)])
def test_no_keys_give_zeros_and_no_queries_give_nothing(T, S):
    args = sequence(T, S, batch=(2,))
    o, _, cotangents = back(*args, block=3)
    assert o.shape == (2, T, 3) and not o.any()
    for d, arg in zip(cotangents, args, strict=True):
        assert d.shape == arg.shape and not d.any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_hidden_keys_may_hold_the_largest_scores(dtype):
    q, k, v = (jnp.asarray(a, dtype) for a in sequence(T=5, S=5))
    k = k.at[4].set(60 * q[0])  # in sight of the last query alone
    o, _, cotangents = back(q, k, v, causal=True, block=3)
    assert all(jnp.isfinite(d).all() and d.dtype == dtype for d in (o, *cotangents))
    np.testing.assert_array_equal(o[0], v[0])


def test_scores_may_all_lie_far_below_zero():
    q, k, v = sequence()
    o, L = hg.flash_attention_fwd(np.full_like(q, 1e3), np.full_like(k, -1e3), v, block=3)[1][3:]
    np.testing.assert_allclose(o, np.tile(v.mean(axis=0), (5, 1)), rtol=1e-12)
    np.testing.assert_allclose(L, -2e6 + np.log(7))


def test_sums_over_many_tiles_are_not_taken_in_bfloat16():
    T = 1000  # added up one by one in bfloat16, ones come to 256
    q, k, v = (jnp.ones((n, 1), "bfloat16") for n in (T, 1, 1))
    o, residuals = hg.flash_attention_fwd(q, k, v, block=1)
    _, _, dv = hg.flash_attention_bwd(residuals, jnp.ones_like(o), block=1)
    assert dv.dtype == "bfloat16" and dv == T


@pytest.mark.parametrize("label", [-1, 11, 1000])
def test_a_label_out_of_range_gives_nan_and_not_a_neighbour_s_loss(label):
    x, W, y, dl = classes()
    right, *_ = of_loss(x, W, y, dl, chunk=4)
    y[1] = label
    loss, dx, dW = of_loss(x, W, y, dl, chunk=4)
    missing = [False, True, False]
    assert np.array_equal(np.isnan(loss), missing)
    assert np.array_equal(np.isnan(hg.linear_cross_entropy(x, W, y, chunk=4)), missing)
    np.testing.assert_array_equal(loss[::2], right[::2])
    assert np.array_equal(np.isnan(dx).all(axis=1), missing) and np.isfinite(dx[::2]).all()
    assert np.isnan(dW).all()  # every class's row adds up over all examples


def test_a_sure_and_right_answer_has_no_loss_and_no_negative_one():
    W, x = np.eye(5, 4) * 1e4, np.eye(4)
    loss, residuals = hg.linear_cross_entropy_fwd(x, W, np.arange(4), chunk=3)
    assert not loss.any() and not residuals[-1].any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hg.flash_attention(*sequence(), block=0), "block: expected at least 1; got 0"),
        (lambda: hg.flash_attention(*sequence(d=0)), "q: expected at least one feature"),
        (lambda: hg.linear_cross_entropy(*classes()[:3], chunk=-4), "chunk: expected at least 1"),
        (lambda: hg.linear_cross_entropy(*classes(k=1)[:2], 0), "y: expected one label for each"),
        (lambda: hg.linear_cross_entropy(*no_class()), "W: expected at least one class"),
    ],
)
def test_a_bad_argument_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def no_class():
    return draw(3, 4), draw(0, 4), np.zeros(3, int)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda q, k, v: hg.flash_attention(q[:, 1:], k, v), "'k'"),
        (lambda q, k, v: hg.flash_attention(q, k, v[1:]), "'v'"),
        (lambda q, k, v: hg.flash_attention(q, k, v, block=2.5), "block"),
        (lambda q, k, v: hg.flash_attention_bwd(hg.flash_attention_fwd(q, k, v)[1], v), "'do'"),
        (lambda q, k, v: hg.linear_cross_entropy(q, v, np.zeros(5, int)), "'W'"),
        (lambda q, k, v: hg.linear_cross_entropy(q, k, np.zeros(4, int)), "'y'"),
        (lambda q, k, v: hg.linear_cross_entropy(q, k, np.zeros(5)), "'y'"),
    ],
)
def test_shapes_that_differ_are_refused_by_name(call, argument):
    with pytest.raises(TypeError, match=argument):
        call(*sequence())


def test_what_is_kept():
    q, k, v = sequence()
    _, (*inputs, _, L) = hg.flash_attention_fwd(q, k, v, block=3)
    assert all(a is b for a, b in zip(inputs, (q, k, v), strict=True))
    np.testing.assert_allclose(L[:, 0], hg.logsumexp(q @ k.T / 2), rtol=1e-13)
    x, W, y, _ = classes()
    _, (*inputs, L, g) = hg.linear_cross_entropy_fwd(x, W, y, chunk=4)
    assert all(a is b for a, b in zip(inputs, (x, W, y), strict=True))
    assert L.shape == (3, 1) and g.shape == x.shape
