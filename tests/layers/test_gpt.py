"""GPT-2 and LoRA: what is special to the topic."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

import handgrad as hg
from handgrad.check.arrays import once

RIGHT = {
    "19.1": [
        "E = np.array([[2, 1], [4, -3], [3, 2]])\ndz = np.array([1, -2, 3])\n"
        "dE = np.outer(dz, E[1])\ndE[1] += E.T @ dz\nreturn dE",
        "return ((4, -3), (-8 + 3, 6 + 13), (12, -9))",
    ],
    "19.2": [
        "dx, dgamma = hg.rms_norm_bwd(of_norm, dz @ (F + G))\ndF = jnp.einsum('ni,nj->ij', dz, n)\n"
        "return dz + dx, dgamma, dF, dF",
        "one, dgamma = hg.rms_norm_bwd(of_norm, dz @ F)\n"
        "two, more = hg.rms_norm_bwd(of_norm, dz @ G)\n"
        "dF = sum(np.outer(a, b) for a, b in zip(dz, n))\n"
        "return dz + one + two, dgamma + more, dF, dF",
    ],
    "19.3": [
        "at_outer = (1 - outer * outer) * dz\nthrough = at_outer @ V\nthrough = through + dz\n"
        "at_inner = (1 - inner * inner) * through\n"
        "return at_inner @ W + through, at_inner.T @ x, at_outer.T @ u",
        "da, = hg.tanh_bwd(outer, dz)\nback, dV, _ = hg.linear_bwd((u, V), da)\nback += dz\n"
        "da, = hg.tanh_bwd(inner, back)\ndx, dW, _ = hg.linear_bwd((x, W), da)\n"
        "return dx + back, dW, dV",
    ],
    "19.4": [
        "a = jnp.einsum('rd,nd->nr', A, x)\nb = jnp.einsum('hr,nr->nh', B, p * a)\n"
        "e = jnp.einsum('hr,nh->nr', B, q * dz)\n"
        "return dz @ W + (e * p) @ A, jnp.einsum('nr,nr->r', a, e), jnp.einsum('nh,nh->h', b, dz)",
        "dq = jnp.zeros(6)\ndp = jnp.zeros(3)\ndx = []\nfor one, d in zip(x, dz):\n"
        "    dq += B @ (p * (A @ one)) * d\n    dp += A @ one * (B.T @ (q * d))\n"
        "    dx.append(W.T @ d + A.T @ (p * (B.T @ (q * d))))\nreturn jnp.stack(dx), dp, dq",
    ],
}

WRONG = {
    "19.1": [
        "return [[4, -3], [-8, 6], [12, -9]]",
        "return [[0, 0], [3, 13], [0, 0]]",
        "return [[4, -3], [3, 13], [12, -9]]",
        "return [[7, 10], [-8, 6], [12, -9]]",
    ],
    "19.2": [
        "dx, dgamma = hg.rms_norm_bwd(of_norm, dz @ F)\nreturn dx + dz, dgamma, dz.T @ n, dz.T @ n",
        "dx, dgamma = hg.rms_norm_bwd(of_norm, dz @ F + dz @ G)\n"
        "return dx, dgamma, dz.T @ n, dz.T @ n",
        "dx, dgamma = hg.rms_norm_bwd(of_norm, dz @ F + dz @ G)\n"
        "return dx + 2 * dz, dgamma, dz.T @ n, dz.T @ n",
        "dx, dgamma = hg.rms_norm_bwd(of_norm, dz @ F + dz @ G)\n"
        "return dx + dz, dgamma, n.T @ dz, n.T @ dz",
    ],
    "19.3": [
        "at_outer = dz * (1 - outer**2)\ndu = at_outer @ V + dz\nat_inner = du * (1 - inner**2)\n"
        "return at_inner @ W + dz, at_inner.T @ x, at_outer.T @ u",
        "at_outer = dz * (1 - outer**2)\ndu = at_outer @ V\nat_inner = du * (1 - inner**2)\n"
        "return at_inner @ W + du, at_inner.T @ x, at_outer.T @ u",
        "at_outer = dz * (1 - outer**2)\ndu = at_outer @ V + dz\nat_inner = du * (1 - inner**2)\n"
        "return at_inner @ W + du + dz, at_inner.T @ x, at_outer.T @ u",
    ],
    "19.4": [
        "a = x @ A.T\ne = dz @ B\ndq = (((p * a) @ B.T) * dz).sum(axis=0)\n"
        "return dz @ W + (p * e) @ A, (a * e).sum(axis=0), dq",
        "a = x @ A.T\ne = (q * dz) @ B\ndq = (((p * a) @ B.T) * dz).sum(axis=0)\n"
        "return dz @ W + e @ A, (a * e).sum(axis=0), dq",
        "a = x @ A.T\ne = (q * dz) @ B\ndq = ((a @ B.T) * dz).sum(axis=0)\n"
        "return dz @ W + (p * e) @ A, (a * e).sum(axis=0), dq",
        "a = x @ A.T\ne = (q * dz) @ B\ndq = (((p * a) @ B.T) * dz).mean(axis=0)\n"
        "return dz @ W + (p * e) @ A, (a * e).mean(axis=0), dq",
    ],
}


def draw(*shape):
    return np.random.default_rng(shape).normal(size=shape)


def model(blocks=1, dtype="float64"):
    """A small GPT whose norms and biases, too, are random."""
    rng = np.random.default_rng(5)
    parameters = hg.gpt_parameters(rng, vocabulary=7, positions=6, d=4, blocks=blocks, std=0.4)
    return jax.tree.map(
        lambda a: jnp.asarray(a + 0.2 * rng.normal(size=a.shape), dtype), parameters
    )


def tokens(*shape):
    return np.random.default_rng(shape).integers(0, 7, size=(2, *shape))


def by_numpy(parameters, ids, heads):
    """The logits of one sequence, a head and a place at a time."""

    def norm(x, gamma, beta):
        c = x - x.mean(axis=-1, keepdims=True)
        return gamma * c / np.sqrt((c * c).mean(axis=-1, keepdims=True) + 1e-5) + beta

    x = np.array([parameters["tokens"][i] for i in ids]) + parameters["positions"][: len(ids)]
    for block in parameters["blocks"]:
        Wqkv, bqkv, Wo, bo = block["attention"]
        q, k, v = np.split(norm(x, *block["norm1"]) @ Wqkv.T + bqkv, 3, axis=1)
        o, c = np.empty(x.shape), x.shape[1] // heads
        for i in range(heads):
            head = slice(i * c, (i + 1) * c)
            for t in range(len(ids)):
                p = softmax(k[: t + 1, head] @ q[t, head] / np.sqrt(c))
                o[t, head] = p @ v[: t + 1, head]
        x = x + o @ Wo.T + bo
        (W, b), (W2, b2) = block["up"], block["down"]
        u = norm(x, *block["norm2"]) @ W.T + b
        u = u / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
        x = x + u @ W2.T + b2
    return norm(x, *parameters["norm"]) @ parameters["tokens"].T


def test_the_model_is_the_one_that_numpy_computes_place_by_place():
    parameters, (ids, y) = model(blocks=2), tokens(5)
    logits = by_numpy(jax.tree.map(np.asarray, parameters), ids, heads=2)
    np.testing.assert_allclose(hg.gpt(parameters, ids, heads=2), logits, rtol=1e-11)
    loss = np.mean([-np.log(softmax(row)[label]) for row, label in zip(logits, y, strict=True)])
    np.testing.assert_allclose(hg.gpt_loss(parameters, ids, y, heads=2), loss, rtol=1e-12)


def test_every_gradient_of_the_model_is_jax_s_and_a_batch_has_the_mean():
    parameters, (ids, y) = model(blocks=2), tokens(3, 4)
    plain = jax.value_and_grad(partial(hg.gpt_loss, heads=2))
    by_hand = partial(hg.gpt_gradients, heads=2)

    @once
    def all_of_them(parameters, ids, y):
        of_each = jax.vmap(by_hand, (None, 0, 0))(parameters, ids, y)
        return (
            plain(parameters, ids, y),
            by_hand(parameters, ids, y),
            by_hand(parameters, ids[None], y[None]),
            jax.tree.map(lambda d: d.mean(axis=0), of_each),
        )

    true, *ours = all_of_them(parameters, ids, y)
    assert len(jax.tree.leaves(true)) == 1 + 28
    for hand in ours:
        assert jax.tree.structure(hand) == jax.tree.structure(true)
        for mine, its in zip(jax.tree.leaves(hand), jax.tree.leaves(true), strict=True):
            np.testing.assert_allclose(mine, its, rtol=0, atol=1e-13 * np.abs(its).max())


def test_gpt_2_has_148_tensors():
    parameters = hg.gpt_parameters(
        np.random.default_rng(0), vocabulary=7, positions=6, d=4, blocks=12
    )
    assert len(jax.tree.leaves(parameters)) == 148
    written = parameters["blocks"][0]["down"][0]
    assert written.shape == (4, 16) and np.std(written) < 0.01 < np.std(parameters["tokens"])


def test_a_row_that_nobody_reads_at_the_input_has_a_gradient_from_the_output():
    parameters, (ids, y) = model(), tokens(5)
    _, gradients = hg.gpt_gradients(parameters, np.where(ids == 6, 0, ids), y, heads=2)
    assert gradients["tokens"].all()
    assert not gradients["positions"][5:].any()  # a place that no sequence reaches


def test_no_place_sees_what_comes_after_it():
    parameters, (ids, _) = model(blocks=2), tokens(5)
    later = ids.copy()
    later[3] = (later[3] + 1) % 7
    ours, changed = (hg.gpt(parameters, a, heads=2) for a in (ids, later))
    np.testing.assert_array_equal(ours[:3], changed[:3])
    assert np.abs(ours[3:] - changed[3:]).min(axis=1).max() > 0


def test_a_model_that_knows_nothing_has_the_logarithm_of_the_vocabulary_for_its_loss():
    parameters = jax.tree.map(jnp.zeros_like, model())
    loss, _ = hg.gpt_gradients(parameters, *tokens(5), heads=2)
    np.testing.assert_allclose(loss, np.log(7), rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_keeps_its_dtype(dtype):
    parameters, (ids, y) = model(dtype=dtype), tokens(5)
    shapes = jax.eval_shape(lambda p: hg.gpt_gradients(p, ids, y, heads=2), parameters)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("wrong", [-1, 7])
def test_an_id_or_a_label_out_of_range_gives_nan(wrong):
    parameters, (ids, y) = model(), tokens(5)
    ids[3] = wrong
    logits = hg.gpt(parameters, ids, heads=2)
    assert np.isnan(logits).all()
    ids[3], y[2] = 0, wrong
    assert np.isnan(hg.gpt_gradients(parameters, ids, y, heads=2)[0])


def test_what_does_not_fit_the_model_is_refused():
    parameters, (ids, y) = model(), tokens(8)
    with pytest.raises(ValueError, match="ids: expected at most 6, one for each position; got 8"):
        hg.gpt(parameters, ids, heads=2)
    with pytest.raises(ValueError, match="ids: expected at most 6"):
        hg.gpt_gradients(parameters, ids, y, heads=2)
    with pytest.raises(ValueError, match="heads: expected a divisor of the 4 features; got 3"):
        hg.gpt_gradients(parameters, ids[:5], y[:5], heads=3)
    with pytest.raises(TypeError, match="'y'"):
        hg.gpt_loss(parameters, ids[:5], y[:4], heads=2)
    with pytest.raises(TypeError, match="'ids'"):
        hg.gpt(parameters, ids[:5].astype(float), heads=2)


def adapter(r=3, batch=(5,)):
    return draw(*batch, 4), draw(6, 4), draw(r, 4), draw(6, r)


def test_an_adapter_can_be_merged_and_begins_as_nothing():
    x, W, A, B = adapter()
    z, residuals = hg.lora_fwd(x, W, A, 0 * B, scale=0.7)
    np.testing.assert_array_equal(z, x @ W.T)
    dz = draw(5, 6)
    dx, _, dA, dB = hg.lora_bwd(residuals, dz, scale=0.7)
    assert not dA.any() and dB.all()
    np.testing.assert_allclose(dx, dz @ W, rtol=1e-13)


def test_the_gradient_of_the_merged_matrix_leads_to_the_same():
    x, W, A, B = adapter(batch=(2, 5))
    _, residuals = hg.lora_fwd(x, W, A, B, scale=0.7)
    _, dW, dA, dB = hg.lora_bwd(residuals, draw(2, 5, 6), scale=0.7)
    np.testing.assert_allclose(dB, 0.7 * dW @ A.T, rtol=1e-12)
    np.testing.assert_allclose(dA, 0.7 * B.T @ dW, rtol=1e-12)


def test_a_rank_of_0_leaves_the_frozen_layer():
    x, W, A, B = adapter(r=0)
    z, residuals = hg.lora_fwd(x, W, A, B, scale=0.7)
    np.testing.assert_array_equal(z, x @ W.T)
    dx, _, dA, dB = hg.lora_bwd(residuals, draw(5, 6), scale=0.7)
    np.testing.assert_allclose(dx, draw(5, 6) @ W, rtol=1e-13)
    assert dA.shape == (0, 4) and dB.shape == (6, 0)


def flops(f, *args):
    return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]


def test_the_gradient_of_what_is_frozen_is_not_computed():
    # neither by whoever leaves it aside, nor behind jax.grad; nor is the product B A ever made
    N, d, h, r = 96, 64, 80, 4
    x, W, A, B = (jnp.ones(shape) for shape in ((N, d), (h, d), (r, d), (h, r)))
    residuals, dz = (x, W, A, B, jnp.ones((N, r))), jnp.ones((N, h))
    whole = flops(lambda *of: hg.lora_bwd(*of, scale=0.7), residuals, dz)
    needed = flops(lambda *of: hg.lora_bwd(*of, scale=0.7)[::2], residuals, dz)
    assert whole - needed > 2 * N * d * h
    layer = hg.as_layer(hg.lora, hg.lora_fwd, hg.lora_bwd)
    step = jax.grad(lambda A, B, x: (dz * layer(x, W, A, B, scale=0.7)).sum(), (0, 1))
    assert flops(step, A, B, x) < 2 * N * d * h


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(scale):
    with pytest.raises(ValueError, match="scale: expected a finite number; got"):
        hg.lora(*adapter(), scale=scale)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        (lambda x, W, A, B: (x[:, 1:], W, A, B), "'W'"),
        (lambda x, W, A, B: (x, W, A.T, B), "'A'"),
        (lambda x, W, A, B: (x, W, A[1:], B), "'B'"),
        (lambda x, W, A, B: (x, W, A, B[1:]), "'B'"),
        (lambda x, W, A, B: (x.astype(int), W, A, B), "'x'"),
    ],
)
def test_sizes_of_an_adapter_that_differ_are_refused_by_name(change, argument):
    with pytest.raises(TypeError, match=argument):
        hg.lora(*change(*adapter()), scale=0.7)


def test_the_compressed_input_is_all_that_is_kept_beside_the_arguments():
    args = adapter()
    _, (*inputs, c) = hg.lora_fwd(*args, scale=0.7)
    assert all(a is b for a, b in zip(inputs, args, strict=True))
    assert c.shape == (5, 3)
