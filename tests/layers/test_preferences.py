"""Preferences: what is special to the topic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import handgrad as hg

RIGHT = {
    "20.1": [
        "rho, A = np.array([1.1, 1.4, 1.4, 0.7, 0.7]), np.array([3, 2, -2, 1, -1])\n"
        "free = np.array([1, 0, 1, 1, 0])\n"
        "return -A * np.where(A > 0, np.minimum(rho, 1.2), np.maximum(rho, 0.8)), -A * rho * free",
        "l = []\ndlog_p = []\n"
        "for rho, A in ((1.1, 3), (1.4, 2), (1.4, -2), (0.7, 1), (0.7, -1)):\n"
        "    held = min(rho, 1.2) if A > 0 else max(rho, 0.8)\n"
        "    l.append(-A * held)\n    dlog_p.append(-A * rho if held == rho else 0)\n"
        "return l, dlog_p",
    ],
    "20.2": [
        "return jnp.vdot(dS, S)",
        "dt = 0\nfor row, drow in zip(S, dS):\n    dt += row @ drow\nreturn dt",
        "return np.trace(dS.T @ S)",
    ],
    "20.3": [
        "dm = dl * (2 * m - 1 / beta)\nreturn [dm, -dm, -dm, dm]",
        "up = 2 * dl * (m - 0.5 / beta)\nreturn up, -1 * up, -1 * up, up",
    ],
    "20.4": [
        "o = 1 / (1 + jnp.exp(-beta * m))\nreturn (beta * (o - 1 + eps) * dl,)",
        "o = jax.nn.sigmoid(beta * m)\n"
        "return (((1 - eps) * -(1 - o) * beta + eps * o * beta) * dl,)",
    ],
    "20.5": [
        "dS = dl[:, None] * (P - jax.nn.one_hot(y, len(x)))\n"
        "return dS @ x / temperature + dS.T @ x / temperature, None",
        "dS = (P * dl[:, None]).at[jnp.arange(len(x)), y].add(-dl) / temperature\n"
        "return jnp.einsum('ij,jd->id', dS, x) + jnp.einsum('ij,id->jd', dS, x), None",
    ],
}

WRONG = {
    "20.1": [
        "return [-3.3, -2.4, 2.4, -0.8, 0.8], [-3.3, 0, 0, 0, 0]",
        "return [-3.3, -2.4, 2.8, -0.7, 0.8], [-3.3, -2.4, 2.8, -0.7, 0.8]",
        "return [-3.3, -2.4, 2.8, -0.7, 0.8], [-3.3, 0, 0, 0, 0]",
        "return [3.3, 2.4, -2.8, 0.7, -0.8], [3.3, 0, -2.8, 0.7, 0]",
    ],
    "20.2": [
        "return dS.sum()",
        "return (S * dS).mean()",
        "return -(S * dS).sum()",
        "return jnp.trace(S @ dS)",
    ],
    "20.3": [
        "dm = 2 * (m - 1 / (2 * beta)) * dl\nreturn dm, -dm, dm, -dm",
        "dm = (m - 1 / (2 * beta)) * dl\nreturn dm, -dm, -dm, dm",
        "dm = 2 * (m - 1 / (2 * beta)) * dl\nreturn dm, -dm, 0 * dm, 0 * dm",
        "dm = 2 * m * dl\nreturn dm, -dm, -dm, dm",
    ],
    "20.4": [
        "return ((jax.nn.sigmoid(beta * m) - (1 - eps)) * dl,)",
        "return (beta * (jax.nn.sigmoid(beta * m) - eps) * dl,)",
        "return (-beta * (jax.nn.sigmoid(-beta * m) - (1 - eps)) * dl,)",
    ],
    "20.5": [
        "dS = (P - jnp.eye(len(x))[y]) * dl[:, None]\nreturn dS @ x / temperature, None",
        "dS = (P - jnp.eye(len(x))[y]) * dl[:, None]\nreturn 2 * dS @ x / temperature, None",
        "dS = (P - jnp.eye(len(x))[y]) * dl[:, None]\nreturn (dS + dS.T) @ x, None",
        "dS = (P - jnp.eye(len(x))) * dl[:, None]\nreturn (dS + dS.T) @ x / temperature, None",
    ],
}

TOKENS = {"ppo_clip": (3, {}), "grpo": (4, {"beta": 0.4})}
ENTRYWISE = {"dpo": (4, {"beta": 0.3})} | TOKENS


def draw(*shape):
    return np.random.default_rng(shape).normal(size=shape)


def gradients(name, *args, dl=None, **hyper):
    """The loss, and the rule's cotangents."""
    loss, residuals = getattr(hg, name + "_fwd")(*args, **hyper)
    dl = np.ones(loss.shape) if dl is None else dl
    return loss, getattr(hg, name + "_bwd")(residuals, dl, **hyper)


def test_two_candidates_are_a_choice_between_two():
    a, b = draw(1, 3)[0], draw(2, 3)
    S = b @ a / 0.5
    # row 0 of a batch of two, and the choice by log-ratios with beta = 1, are one loss
    rows = np.logaddexp(*S) - S[0]
    np.testing.assert_allclose(hg.dpo(S[0], S[1], 0.0 * S[0], 0.0 * S[1], beta=1), rows, rtol=1e-13)


def test_both_directions_are_softmax_cross_entropies_and_so_are_their_gradients():
    a, b, dl = draw(5, 3), draw(3, 5).T, draw(5)
    S, y = a @ b.T / 0.7, np.arange(5)
    halves = [hg.softmax_cross_entropy_fwd(scores, y) for scores in (S, S.T)]
    loss, (da, db) = gradients("info_nce", a, b, dl=dl, temperature=0.7)
    np.testing.assert_allclose(loss, (halves[0][0] + halves[1][0]) / 2, rtol=1e-12)
    rows, columns = (hg.softmax_cross_entropy_bwd(kept, dl)[0] / 2 for _, kept in halves)
    np.testing.assert_allclose(da, (rows + columns.T) @ b / 0.7, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(db, (rows + columns.T).T @ a / 0.7, rtol=1e-10, atol=1e-13)


def test_ntxent_is_this_loss_and_what_one_s_own_side_adds():
    a, b = (hg.l2_normalize(x) for x in (draw(5, 4), draw(6, 4)[:5]))
    y = np.arange(5)
    theirs = optax.losses.ntxent(jnp.concatenate([a, b]), np.concatenate([y, y]), 0.5)
    S, more = a @ b.T / 0.5, []
    for own, across in ((a, S), (b, S.T)):
        other = jnp.where(np.eye(5, dtype=bool), -jnp.inf, own @ own.T / 0.5)
        more.append(
            jax.nn.softplus(jax.nn.logsumexp(other, axis=1) - jax.nn.logsumexp(across, axis=1))
        )
    ours = hg.info_nce(a, b, temperature=0.5) + (more[0] + more[1]) / 2
    np.testing.assert_allclose(ours.mean(), theirs, rtol=1e-12)


def test_no_pair_and_one_pair():
    for N in (0, 1):
        loss, (da, db) = gradients("info_nce", np.ones((N, 3)), np.ones((N, 3)), temperature=1)
        np.testing.assert_array_equal(loss, np.zeros(N))
        np.testing.assert_array_equal(da, np.zeros((N, 3)))
        np.testing.assert_array_equal(db, np.zeros((N, 3)))


@pytest.mark.parametrize("name", ENTRYWISE)
def test_nothing_in_nothing_out(name):
    count, hyper = ENTRYWISE[name]
    loss, cotangents = gradients(name, *np.ones((count, 0, 3)), **hyper)
    assert loss.shape == (0, 3) and all(d.shape == (0, 3) for d in cotangents)


@pytest.mark.parametrize("value", [0, 0.0, -0.5, float("nan"), float("inf")])
def test_a_temperature_or_a_beta_that_divides_nothing_is_refused(value):
    for call in (hg.info_nce, hg.info_nce_fwd):
        with pytest.raises(ValueError, match="temperature: expected a positive number; got"):
            call(draw(4, 3), draw(4, 3), temperature=value)
    for call in (hg.dpo, hg.dpo_fwd):
        with pytest.raises(ValueError, match="beta: expected a positive number; got"):
            call(*draw(4, 3), beta=value)


@pytest.mark.parametrize("value", [-0.2, float("nan")])
def test_a_negative_clip_is_refused(value):
    tokens, message = draw(4, 3), "clip: expected a number that is not negative; got"
    for call in (hg.ppo_clip, hg.ppo_clip_fwd):
        with pytest.raises(ValueError, match=message):
            call(*tokens[:3], clip=value)
    for call in (hg.grpo, hg.grpo_fwd):
        with pytest.raises(ValueError, match=message):
            call(*tokens, clip=value, beta=0.1)


@pytest.mark.parametrize("value", [-0.2, float("nan"), float("inf")])
def test_a_penalty_that_is_negative_or_infinite_is_refused(value):
    for call in (hg.grpo, hg.grpo_fwd):
        with pytest.raises(ValueError, match="beta: expected a finite number that is not negative"):
            call(*draw(4, 3), beta=value)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: hg.info_nce(draw(4, 3), draw(5, 3), temperature=1), "'b'"),
        (lambda: hg.info_nce(draw(4, 3), draw(4, 5), temperature=1), "'b'"),
        (lambda: hg.info_nce(draw(3), draw(3), temperature=1), "'a'"),
        (lambda: hg.info_nce(np.ones((4, 3), int), draw(4, 3), temperature=1), "'a'"),
        (lambda: hg.dpo(draw(3), draw(3), draw(3), draw(4), beta=1), "'reference_rejected'"),
        (lambda: hg.ppo_clip(draw(4, 3), draw(4, 3), draw(4)), "'advantage'"),
        (lambda: hg.grpo(draw(3), draw(3), draw(1), draw(3), beta=1), "'log_p_reference'"),
    ],
)
def test_shapes_that_differ_are_refused_by_name(call, argument):
    with pytest.raises(TypeError, match=argument):
        call()


@pytest.mark.parametrize("name", ENTRYWISE)
def test_the_two_ends_of_a_log_ratio_get_opposite_cotangents(name):
    count, hyper = ENTRYWISE[name]
    args = draw(count, 5)
    _, cotangents = gradients(name, *args, **hyper)
    ends = cotangents if name == "dpo" else cotangents[:-1]  # all but the advantage
    np.testing.assert_allclose(sum(ends), 0, atol=1e-14)
    # so a reference that is the policy itself, with its gradient not stopped, has none

    def careless(log_p):
        rest = [-log_p, log_p, -log_p] if name == "dpo" else [log_p] * (count - 2) + [args[-1]]
        return getattr(hg, name)(log_p, *rest, **hyper).sum()

    np.testing.assert_allclose(jax.grad(careless)(args[0]), 0, atol=1e-14)


@pytest.mark.parametrize("m", [-1e4, -30.0, -1.0, 0.0, 1e-6, 1.0, 30.0, 80.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_loss_is_enough_to_go_back_without_loss_of_digits(m, dtype):
    m = jnp.asarray(m, dtype)
    zero = jnp.zeros((), dtype)
    loss, (dchosen, *_) = gradients("dpo", m, zero, zero, zero, dl=jnp.ones((), dtype), beta=1)
    assert loss.dtype == dchosen.dtype == dtype
    exact = -1 / (1 + np.exp(np.float64(m)))
    np.testing.assert_allclose(np.float64(dchosen), exact, rtol=4 * float(jnp.finfo(dtype).eps))


def test_the_four_corners_of_the_clip():
    ratio, A = np.array([1.5, 1.5, 0.5, 0.5, 1.1, 1.1]), np.array([3.0, -3, 3, -3, 3, -3])
    loss, (dlog_p, dlog_p_old, dA) = gradients("ppo_clip", np.log(ratio), 0 * ratio, A)
    np.testing.assert_allclose(loss, [-3.6, 4.5, -1.5, 2.4, -3.3, 3.3])
    np.testing.assert_allclose(dlog_p, [0, 4.5, -1.5, 0, -3.3, 3.3], atol=1e-15)
    np.testing.assert_allclose(dlog_p_old, -dlog_p)
    np.testing.assert_allclose(dA, [-1.2, -1.5, -0.5, -0.8, -1.1, -1.1])


@pytest.mark.parametrize("name", TOKENS)
def test_a_kink_gets_half_as_from_jax_and_no_advantage_gets_nothing(name):
    count, _ = TOKENS[name]
    hyper = {} if name == "ppo_clip" else {"beta": 0.0}
    # a ratio of 1 is at the kink with clip = 0, and inside with any other
    A = np.array([2.0, -3.0, 0.0])
    zeros = [np.zeros(3)] * (count - 1)
    for clip, share in ((0.0, 0.5), (0.2, 1.0)):
        _, (dlog_p, *_) = gradients(name, *zeros, A, clip=clip, **hyper)
        np.testing.assert_array_equal(dlog_p, -share * A)

        def total(log_p, clip=clip):
            return getattr(hg, name)(log_p, *zeros[1:], A, clip=clip, **hyper).sum()

        np.testing.assert_array_equal(jax.grad(total)(zeros[0]), dlog_p)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_ratio_that_overflows_is_held_and_its_gradient_is_0(dtype):
    u = jnp.asarray([1e4, 1e4, -1e4], dtype)
    A = jnp.asarray([2.0, 0.0, -1.0], dtype)
    for name, (count, hyper) in TOKENS.items():
        rest = [0 * u] if name == "ppo_clip" else [0 * u, u]
        loss, cotangents = gradients(name, u, *rest, A, dl=jnp.ones(3, dtype), **hyper)
        np.testing.assert_allclose(np.float64(loss), [-2.4, 0, 0.8], rtol=1e-2)
        assert len(cotangents) == count and not np.asarray(cotangents[0], float).any()
        assert all(d.dtype == dtype and jnp.isfinite(d).all() for d in cotangents)


def test_without_a_penalty_the_reference_may_be_anywhere():
    log_p, old, A = draw(3, 4)
    far = np.array([1e4, -1e4, np.inf, 0.0])
    loss, (*ours, last) = gradients("grpo", log_p, old, far, A, beta=0)
    plain, (dlog_p, dlog_p_old, dA) = gradients("ppo_clip", log_p, old, A)
    np.testing.assert_array_equal(loss, plain)
    for mine, other in zip((*ours, last), (dlog_p, dlog_p_old, 0 * A, dA), strict=True):
        np.testing.assert_array_equal(mine, other)
