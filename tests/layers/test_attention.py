"""Attention: what is special to the topic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad as hg

# of exercise 16.4, up to the sum over the heads of a group
EACH = """q, k, v, P = residuals
m, g = len(q), len(k)
P = np.reshape(P, (m, -1, P.shape[-1]))
dK, dV = [], []
for i in range(m):
    dP = dO[i] @ v[i * g // m].T
    dZ = P[i] * (dP - (P[i] * dP).sum(axis=1, keepdims=True))
    dK.append(dZ.T @ q[i] / np.sqrt(q.shape[-1]))
    dV.append(P[i].T @ dO[i])
"""

RIGHT = {
    "16.1": [
        "p, v = np.array([2, 1, 1, 0]) / 4, np.array([8, 0, 4, 100])\n"
        "k = np.array([[1, 0, 2, 0], [0, 2, 0, 0], [2, 0, 0, 4], [7] * 4])\n"
        "dz = p * 2 * (v - 5)\nreturn np.array([5.0]), 2 * p, dz, dz @ k / 2",
        "return 5.0, (1, 1 / 2, 1 / 2, 0), (3, -5 / 2, -1 / 2, 0), [[1, -5 / 2, 3, -1]]",
    ],
    "16.2": [
        "r = range(T + S - 1)\nreturn (jnp.array([jnp.trace(dB, offset=S - 1 - i) for i in r]),)",
        "places = (np.arange(T)[:, None] - np.arange(S) + S - 1).ravel()\n"
        "return (jax.ops.segment_sum(dB.ravel(), places, T + S - 1),)",
        "db = [0.0] * (T + S - 1)\nfor t in range(T):\n    for s in range(S):\n"
        "        db[t - s + S - 1] += dB[t, s]\nreturn (jnp.stack(db),)",
        "db = np.zeros(T + S - 1)\nnp.add.at(db, np.subtract.outer(np.arange(T), np.arange(S)) "
        "+ S - 1, dB)\nreturn (db,)",
    ],
    "16.3": [
        "apart = K - Q[:, None]\n"
        "dQ = jnp.einsum('ts,tsd->td', dZ, apart)\ndK = -jnp.einsum('ts,tsd->sd', dZ, apart)\n"
        "return dQ, dK",
        "dQ, dK = [], []\nfor t in range(len(Q)):\n    dQ.append(dZ[t] @ (K - Q[t]))\n"
        "for s in range(len(K)):\n    dK.append(dZ[:, s] @ (Q - K[s]))\n"
        "return jnp.stack(dQ), jnp.stack(dK)",
    ],
    "16.4": [
        EACH + "def add_up(d):\n    m, *rest = np.shape(d)\n"
        "    return jnp.einsum('gisd->gsd', np.reshape(d, (g, m // g, *rest)))\n"
        "return add_up(dK), add_up(dV)",
        EACH + "return [jnp.stack([sum(of) for of in np.split(np.stack(d), g)]) for d in (dK, dV)]",
        EACH + "share = m // g\n"
        "return [sum(np.stack(d)[i::share] for i in range(share)) for d in (dK, dV)]",
    ],
    "16.5": [
        "dZ, = hg.softmax_bwd(P, dP)\nrow = (P * dP).sum(axis=-1)\n"
        "return dZ, (row * P.sum(axis=-1) - row).sum()",
        "rest = 1 - P.sum(axis=1, keepdims=True)\n"
        "all_p = jnp.concatenate([P, rest], axis=1)\n"
        "all_d = jnp.concatenate([dP, jnp.zeros_like(rest)], axis=1)\n"
        "d = all_p * (all_d - (all_p * all_d).sum(axis=1, keepdims=True))\n"
        "return d[:, :-1], d[:, -1].sum()",
    ],
}

WRONG = {
    "16.1": [
        "return 5, [1, 0.5, 0.5, 0], [8, 0, 2, 0], [1, -2.5, 3, -1]",
        "return 5, [1, 0.5, 0.5, 0], [3, -2.5, -0.5, 0], [2, -5, 6, -2]",
        "return 28, [2, 2, 2, 0], [3, -2.5, -0.5, 0], [1, -2.5, 3, -1]",
    ],
    "16.2": [
        "places = np.arange(T)[:, None] - np.arange(S) + S - 1\n"
        "return (jnp.zeros(T + S - 1, dB.dtype).at[places].set(dB),)",
        "places = np.arange(S) - np.arange(T)[:, None] + T - 1\n"
        "return (jnp.zeros(T + S - 1, dB.dtype).at[places].add(dB),)",
        "return (jnp.array([jnp.diagonal(dB, S - 1 - i).mean() for i in range(T + S - 1)]),)",
    ],
    "16.3": [
        "return dZ @ K, dZ.T @ Q",
        "return dZ @ K, dZ.T @ Q - dZ.sum(axis=0)[:, None] * K",
        "dQ = dZ.sum(axis=1)[:, None] * Q - dZ @ K\n"
        "return dQ, dZ.sum(axis=0)[:, None] * K - dZ.T @ Q",
    ],
    "16.4": [
        EACH + "return [np.reshape(d, (m // g, g, *d[0].shape)).sum(axis=0) for d in (dK, dV)]",
        EACH + "return [np.reshape(d, (g, m // g, *d[0].shape)).mean(axis=1) for d in (dK, dV)]",
        EACH + "return [np.stack(d[:: m // g]) for d in (dK, dV)]",
    ],
    "16.5": [
        "dZ, = hg.softmax_bwd(P, dP)\nreturn dZ, (P * dP).sum()",
        "dZ, = hg.softmax_bwd(P, dP)\nreturn dZ, jnp.zeros(())",
        "dZ, = hg.softmax_bwd(P, dP)\nreturn dZ, dZ.sum()",
        "delta = (P * dP).sum(axis=1, keepdims=True) / P.sum(axis=1, keepdims=True)\n"
        "return P * (dP - delta), -((1 - P.sum(axis=1, keepdims=True)) * delta).sum()",
    ],
}


def draw(*shape):
    return np.random.default_rng(shape).normal(size=shape)


def sequence(T=5, S=5, d=4, e=3, batch=()):
    return draw(*batch, T, d), draw(*batch, S, d), draw(*batch, S, e)


def back(name, *args, **hyper):
    """The output, a random cotangent of it, and the rule's cotangents."""
    o, residuals = getattr(hg, name + "_fwd")(*args, **hyper)
    do = jnp.asarray(draw(*o.shape), o.dtype)
    return o, do, getattr(hg, name + "_bwd")(residuals, do, **hyper)


@pytest.mark.parametrize(
    ("heads_of_keys", "causal", "window"),
    [(4, False, None), (4, True, None), (4, False, 2), (4, True, 3), (2, True, None)],
)
def test_attention_is_that_of_jax_nn(heads_of_keys, causal, window):
    q, k = draw(3, 4, 6, 5), draw(3, heads_of_keys, 7, 5)
    v = draw(1, *k.shape)[0]
    # theirs is (B, T, heads, d), its window has two sides, and its softmax is float32
    theirs = jax.nn.dot_product_attention(
        *(jnp.swapaxes(a, 1, 2) for a in (q, k, v)),
        is_causal=causal,
        local_window_size=window and window - 1,
    )
    if window:
        ours = hg.attention(q, k, v, causal=causal, window=window)
    else:
        ours = hg.grouped_query_attention(q, k, v, causal=causal)
    np.testing.assert_allclose(jnp.swapaxes(ours, 1, 2), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_rows_of_the_scores_cotangent_sum_to_zero_so_equal_keys_get_none(softcap):
    # and a key moved in the direction of no query, or all keys by the same amount, changes nothing
    q, k, v = sequence(T=1)
    _, _, (_, dk, _) = back("attention", q, k, v)
    np.testing.assert_allclose(dk.sum(axis=0), 0, atol=1e-15)
    _, _, (dq, _, _) = back("attention", q, np.tile(k[:1], (5, 1)), v, softcap=softcap)
    np.testing.assert_allclose(dq, 0, atol=1e-15)


def test_a_query_that_sees_no_key_gives_zeros_and_disturbs_no_other():
    q, k, v = sequence(T=7, S=4)
    o, do, (dq, dk, dv) = back("attention", q, k, v, causal=True, window=3)
    assert not o[6].any() and not dq[6].any()
    seeing, residuals = hg.attention_fwd(q[:6], k, v, causal=True, window=3)
    others = hg.attention_bwd(residuals, do[:6], causal=True, window=3)
    np.testing.assert_allclose(o[:6], seeing, rtol=1e-12)
    for mine, other in zip((dq[:6], dk, dv), others, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-15)
    plain = jax.grad(lambda *a: hg.attention(*a, causal=True, window=3).sum(), (0, 1, 2))
    assert all(np.isfinite(d).all() for d in plain(q, k, v))


@pytest.mark.parametrize("name", ["attention", "grouped_query_attention", "alibi_attention"])
@pytest.mark.parametrize(("T", "S"), [(5, 0), (0, 5), (0, 0)])
def test_no_keys_give_zeros_and_no_queries_give_nothing(name, T, S):
    hyper = {"slope": 0.5} if name == "alibi_attention" else {}
    q, k, v = sequence(T, S, batch=(2,))
    o, _, cotangents = back(name, q, k, v, **hyper)
    assert o.shape == (2, T, 3) and not o.any()
    for d, arg in zip(cotangents, (q, k, v), strict=True):
        assert d.shape == arg.shape and not d.any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_hidden_keys_may_hold_the_largest_scores(dtype):
    q, k, v = (jnp.asarray(a, dtype) for a in sequence())
    k = k.at[4].set(60 * q[0])  # in sight of the last query alone
    o, _, cotangents = back("attention", q, k, v, causal=True)
    assert all(jnp.isfinite(d).all() and d.dtype == dtype for d in (o, *cotangents))
    np.testing.assert_array_equal(o[0], v[0])


def test_one_key_in_sight_is_copied_and_its_score_has_no_gradient():
    q, k, v = sequence()
    o, do, (dq, dk, dv) = back("attention", q, k, v, window=1)
    np.testing.assert_array_equal(o, v)
    np.testing.assert_array_equal(dv, do)
    assert not dq.any() and not dk.any()


def test_a_window_that_reaches_all_keys_and_a_high_cap_change_nothing():
    q, k, v = sequence()
    for hyper in ({"window": 5}, {"softcap": 1e8}):
        for mine, other in zip(
            back("attention", q, k, v, **hyper)[2], back("attention", q, k, v)[2], strict=True
        ):
            np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-12)


def test_a_head_of_keys_gets_the_sum_over_the_heads_that_read_it():
    q, k, v = draw(6, 5, 4), draw(3, 7, 4), draw(3, 7, 8)
    _, do, (dq, dk, dv) = back("grouped_query_attention", q, k, v)
    _, residuals = hg.attention_fwd(q, k.repeat(2, 0), v.repeat(2, 0))
    each = hg.attention_bwd(residuals, do)
    np.testing.assert_allclose(dq, each[0], rtol=1e-12)
    for mine, of_heads in zip((dk, dv), each[1:], strict=True):
        np.testing.assert_allclose(mine, of_heads[::2] + of_heads[1::2], rtol=1e-11)


def test_as_many_heads_of_keys_as_of_queries_is_attention():
    q, k, v = sequence(batch=(3,))
    grouped = back("grouped_query_attention", q, k, v, causal=True)
    for mine, other in zip(
        (grouped[0], *grouped[2]),
        (lambda o, _, d: (o, *d))(*back("attention", q, k, v, causal=True)),
        strict=True,
    ):
        np.testing.assert_allclose(mine, other, rtol=1e-12)


def test_rotary_keeps_lengths_and_depends_on_distances_alone():
    x = draw(7, 6)
    z, dz, (dx,) = back("rotary", x)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), np.linalg.norm(x, axis=1), rtol=1e-14)
    np.testing.assert_allclose(hg.rotary(dx), dz, rtol=1e-12)  # the adjoint is the inverse
    same = hg.rotary(np.tile(x[:1], (7, 1)))
    products = np.asarray(same @ same.T)
    for distance in range(7):
        np.testing.assert_allclose(np.diag(products, distance), products[0, distance], rtol=1e-11)


def test_rotary_knows_far_places_in_float32():
    far = np.zeros((100_001, 2), np.float32)
    far[-1] = 1, 0
    np.testing.assert_allclose(hg.rotary(far)[-1], [np.cos(1e5), np.sin(1e5)], rtol=1e-6)


def test_slopes_are_one_for_each_head():
    q, k, v = sequence(batch=(2,))
    slopes = (0.5, 0.125)
    together = back("alibi_attention", q, k, v, slope=slopes)
    for i, slope in enumerate(slopes):
        o, residuals = hg.alibi_attention_fwd(q[i], k[i], v[i], slope=slope)
        np.testing.assert_allclose(together[0][i], o, rtol=1e-12)
        alone = hg.alibi_attention_bwd(residuals, together[1][i], slope=slope)
        for mine, other in zip(together[2], alone, strict=True):
            np.testing.assert_allclose(mine[i], other, rtol=1e-12, atol=1e-15)


def test_no_slope_is_causal_attention():
    q, k, v = sequence()
    o = hg.alibi_attention(q, k, v, slope=0)
    np.testing.assert_allclose(o, hg.attention(q, k, v, causal=True), rtol=1e-12)


def heads_of(x, **changed):
    d = x.shape[-1]
    weights = {"Wqkv": draw(3 * d, d), "bqkv": draw(3 * d), "Wo": draw(d, d), "bo": draw(d)}
    return x, *(weights | changed).values()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, k, v: hg.attention(q, k, v, window=0), "window: expected at least 1.*got 0"),
        (lambda q, k, v: hg.attention(q, k, v, window=-2), "window: expected at least 1.*got -2"),
        (lambda q, k, v: hg.attention(q, k, v, softcap=0), "softcap: expected a positive number"),
        (lambda q, k, v: hg.attention(q, k, v, softcap=float("inf")), "softcap: .*got inf"),
        (lambda q, k, v: hg.attention(q[:, :0], k[:, :0], v), "q: expected at least one feature"),
        (
            lambda q, k, v: hg.alibi_attention(q, k, v, slope=(0.5, 0.25)),
            "slope: expected one for each head.*got 2",
        ),
        (
            lambda q, k, v: hg.alibi_attention(*(a[None] for a in (q, k, v)), slope=(0.5, 0.25)),
            "slope: expected one for each head.*got 2",
        ),
        (
            lambda q, k, v: hg.grouped_query_attention(
                *(np.stack(a) for a in ([q] * 5, [k] * 2, [v] * 2))
            ),
            "q: expected a multiple of k's 2 heads; got 5",
        ),
        (
            lambda q, k, v: hg.grouped_query_attention(
                *(np.stack([a, a])[:n] for a, n in ((q, 2), (k, 0), (v, 0)))
            ),
            "q: expected a multiple of k's 0 heads; got 2",
        ),
        (lambda q, k, v: hg.rotary(q[:, :3]), "x: expected an even number of features"),
        (lambda q, k, v: hg.rotary(q, base=0), "base: expected a positive number; got 0"),
        (lambda q, k, v: hg.rotary(q, base=float("nan")), "base: expected a positive number"),
        (
            lambda q, k, v: hg.multi_head_attention(*heads_of(q), heads=3),
            "heads: expected a divisor of the 4 features; got 3",
        ),
        (
            lambda q, k, v: hg.multi_head_attention(*heads_of(q), heads=0),
            "heads: expected a divisor of the 4 features; got 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*sequence())


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda q, k, v: hg.attention(q[:, 1:], k, v), "'k'"),
        (lambda q, k, v: hg.attention(q, k, v[1:]), "'v'"),
        (lambda q, k, v: hg.attention(np.stack([q, q]), k, v), "'k'"),
        (lambda q, k, v: hg.attention(q[0], k, v), "'q'"),
        (lambda q, k, v: hg.attention(q, k, v, window=2.5), "window"),
        (lambda q, k, v: hg.attention(q.astype(int), k, v), "'q'"),
        (lambda q, k, v: hg.grouped_query_attention(q, k, v), "'q'"),
        (lambda q, k, v: hg.grouped_query_attention(q[None], k[None], v[None, 1:]), "'v'"),
        (lambda q, k, v: hg.rotary(q[0]), "'x'"),
        (
            lambda q, k, v: hg.multi_head_attention(*heads_of(q, Wqkv=draw(8, 4)), heads=2),
            "'Wqkv'",
        ),
        (
            lambda q, k, v: hg.multi_head_attention(*heads_of(q, bqkv=draw(4)), heads=2),
            "'bqkv'",
        ),
        (lambda q, k, v: hg.multi_head_attention(*heads_of(q, Wo=draw(4, 5)), heads=2), "'Wo'"),
        (lambda q, k, v: hg.attention_bwd(hg.attention_fwd(q, k, v)[1], v[1:]), "'do'"),
    ],
)
def test_shapes_that_differ_are_refused_by_name(call, argument):
    with pytest.raises(TypeError, match=argument):
        call(*sequence())


def test_the_weights_are_all_that_is_kept_beside_inputs_and_what_the_softcap_needs():
    q, k, v = sequence(T=6, S=7)
    _, (*inputs, P, slope) = hg.attention_fwd(q, k, v)
    assert all(a is b for a, b in zip(inputs, (q, k, v), strict=True))
    assert P.shape == (6, 7) and slope is None
    np.testing.assert_allclose(P.sum(axis=1), 1, rtol=1e-14)
    assert hg.attention_fwd(q, k, v, softcap=3.0)[1][4].shape == (6, 7)
    assert hg.rotary_fwd(q)[1] == ()
