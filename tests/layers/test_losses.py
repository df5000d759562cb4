"""Losses: what is special to the topic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import handgrad as hg
from handgrad.catalog.losses import ROWS

# Answers to the exercises of notebooks/10_losses.ipynb, judged in tests/test_answers.py.
RIGHT = {
    "10.1": [
        "return -3, 8, (1, -1, 0), (7, -7, 0)",
        """
        o, do = jnp.array([0.7, 0.3, 0]), jnp.array([3.0, 1, 7])
        dz, = hg.sparsemax_bwd(o, do)
        return (0.5 - 1) * 6, (5 - 3) * 4, dz, 10 * (o - jnp.eye(3)[1])
        """,
    ],
    "10.2": [
        "p = (o * e_y).sum(-1, keepdims=True)\n"
        "return (o - e_y) * (1 + epsilon * p) * dl[..., None], None",
        "dz, = hg.softmax_bwd(o, -epsilon * e_y)\nreturn (dz + o - e_y) * dl[..., None], None",
    ],
    "10.3": [
        """
        lead = z + (jnp.arange(k) != y[..., None])
        best = jnp.argmax(lead, axis=-1)
        return (jax.nn.one_hot(best, k) - jax.nn.one_hot(y, k)) * dl[..., None], None
        """,
        """
        lead = z + 1 - jnp.eye(k)[y]
        top = lead == lead.max(axis=-1, keepdims=True)
        return dl[..., None] * top - dl[..., None] * jnp.eye(k)[y], None
        """,
    ],
    "10.4": ["dl = m / np.sum(m)", "dl = np.where(m > 0, 1 / (m > 0).sum(), 0)"],
    "10.5": [
        """
        dn, dg = -dl / g, n / g**2 * dl
        return (2 * t * dn[..., None] + dg[..., None]), (2 * p * dn[..., None] + dg[..., None])
        """,
        """
        score = 1 - (1 - n / g)
        share = lambda other: (score[..., None] - 2 * other) / g[..., None] * dl[..., None]
        return share(t), share(p)
        """,
    ],
}

WRONG = {
    "10.1": [
        "return 3.0, 8.0, [1.0, -1.0, 0.0], [7.0, -7.0, 0.0]",
        "return -3.0, 8.0, [-0.7, -2.7, 3.3], [7.0, -7.0, 0.0]",
        "return -3.0, 2.0, [1.0, -1.0, 0.0], [7.0, -7.0, 0.0]",
        "return -3.0, 8.0, [1.0, -1.0, 0.0], [7.0, 3.0, 0.0]",
    ],
    "10.2": [
        "return (1 + epsilon) * (o - e_y) * dl[..., None], None",
        "o_y = (o * e_y).sum(-1, keepdims=True)\n"
        "return (1 - epsilon * o_y) * (o - e_y) * dl[..., None], None",
        "return (o - e_y - epsilon * e_y) * dl[..., None], None",
    ],
    "10.3": [
        "best = jnp.argmax(z, axis=-1)\n"
        "return (jnp.eye(k)[best] - jnp.eye(k)[y]) * dl[..., None], None",
        "best = jnp.argmax(z + 1 - jnp.eye(k)[y], axis=-1)\n"
        "return jnp.eye(k)[best] * dl[..., None], None",
        "return (hg.softmax(z) - jnp.eye(k)[y]) * dl[..., None], None",
    ],
    "10.4": [
        "dl = m / m.sum(axis=1, keepdims=True)",
        "dl = m / m.size",
        "dl = np.ones_like(m) / m.sum()",
    ],
    "10.5": [
        "return -2 * t / g[..., None] * dl[..., None], -2 * p / g[..., None] * dl[..., None]",
        "return (p - t) * dl[..., None], (t - p) * dl[..., None]",
        "score, scale = (n / g)[..., None], (dl / g)[..., None]\n"
        "return (2 * score - 2 * t) * scale, (2 * score - 2 * p) * scale",
    ],
}

rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
LOGITS = np.array([1e4, -1e4, 90.0, -90.0, 0.0])


def both(f, residuals_of, back, *args, **hyper):
    """The value and the cotangents of a rule, for a cotangent of ones."""
    value, residuals = residuals_of(*args, **hyper)
    assert np.array_equal(value, f(*args, **hyper), equal_nan=True)
    return value, back(residuals, jnp.ones_like(value), **hyper)


def run(name, *args, **hyper):
    return both(*(getattr(hg, name + suffix) for suffix in ("", "_fwd", "_bwd")), *args, **hyper)


@pytest.mark.parametrize(
    ("name", "args", "true"),
    [
        ("sigmoid_cross_entropy", (LOGITS, 0 * LOGITS), [1e4, 0, 90, 0, np.log(2)]),
        ("sigmoid_cross_entropy", (LOGITS, np.ones(5, int)), [0, 1e4, 0, 90, np.log(2)]),
        ("focal", (LOGITS, np.zeros(5, int)), [1e4, 0, 90, 0, np.log(2) / 4]),
        ("hinge", (LOGITS, np.ones(5)), [0, 10001, 0, 91, 1]),
        ("poisson_nll", (np.array([-1e4, -1e4]), np.array([0.0, 2])), [0, 2e4 + np.log(2)]),
        ("log_cosh", (LOGITS, 0 * LOGITS), np.maximum(np.abs(LOGITS) - np.log(2), 0)),
        ("multiclass_sparsemax_loss", (LOGITS, np.array(0)), 0),
        ("multiclass_sparsemax_loss", (LOGITS, np.array(1)), 2e4),
        ("gaussian_nll", (np.zeros(1), np.array([1e4]), np.ones(1)), [5e3 + np.log(2 * np.pi) / 2]),
    ],
)
def test_far_logits_give_the_loss_that_they_should_in_float32(name, args, true):
    args = [a.astype("float32") if a.dtype.kind == "f" else a for a in args]
    value, cotangents = run(name, *args)
    assert value.dtype == "float32"
    np.testing.assert_allclose(value, true, rtol=1e-6, atol=1e-6)
    assert all(d is None or np.isfinite(d).all() for d in cotangents)


@pytest.mark.parametrize(
    ("name", "right", "wrong", "labels"),
    [
        ("sigmoid_cross_entropy", [0, 1], [-1, 2, 255], "int32"),
        ("focal", [0, 1], [-1, 2, 255], "int32"),
        ("hinge", [-1, 1], [0, 2, -7], "int8"),
        ("hinge", [1, 1], [0, 255], "uint8"),
        ("poisson_nll", [0, 7], [-1, -100], "int32"),
    ],
)
def test_an_integer_that_is_no_label_gives_nan_and_any_integer_no_gradient(
    name, right, wrong, labels
):
    y = np.array(right + wrong, labels)
    value, (dz, dy) = run(name, np.linspace(-1, 1, len(y)), y)
    assert dy is None
    expected = [False] * len(right) + [True] * len(wrong)
    assert np.array_equal(np.isnan(value), expected) and np.array_equal(np.isnan(dz), expected)


@pytest.mark.parametrize("name", ["sigmoid_cross_entropy", "hinge", "poisson_nll"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_label_counts_the_same_as_an_integer_and_as_a_float(name, dtype):
    z, y = jnp.asarray([0.3, -1.2], dtype), np.array([1, 1])
    whole, (of_whole, _) = run(name, z, y)
    soft, (of_soft, dy) = run(name, z, jnp.asarray(y, dtype))
    assert whole.dtype == of_whole.dtype == dy.dtype == dtype
    assert np.array_equal(whole, soft) and np.array_equal(of_whole, of_soft)


def test_a_sparsemax_label_that_names_no_class_gives_nan():
    z, y = np.ones((3, 4)), np.array([0, 4, -1])
    value, (dz, none) = run("multiclass_sparsemax_loss", z, y)
    assert none is None
    assert np.array_equal(np.isnan(value), [False, True, True])
    assert np.array_equal(np.isnan(dz).all(axis=1), [False, True, True])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda o: hg.huber(o, o, delta=0), "delta: expected a positive number; got 0"),
        (lambda o: hg.huber_fwd(o, o, delta=-1.0), "delta: expected a positive number"),
        (lambda o: hg.quantile(o, o, q=1.0), "q: expected a number between 0 and 1; got 1.0"),
        (lambda o: hg.quantile_fwd(o, o, q=float("nan")), "q: expected a number between"),
        (lambda o: hg.hinge(o, o, margin=-1), "margin: expected a number that is not negative"),
        (lambda o: hg.focal(o, o.astype(int), gamma=-2), "gamma: expected a number that is not"),
        (lambda o: hg.triplet(o, o, o, margin=-1), "margin: expected a number that is not"),
        (lambda o: hg.multiclass_sparsemax_loss(o, 1), "y: expected one label for each"),
    ],
)
def test_a_hyperparameter_out_of_range_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(np.ones((3, 4)))


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: hg.log_cosh(np.ones(3), np.ones(4)), "'t'"),
        (lambda: hg.focal(np.ones(3), np.ones(3)), "'y'"),
        (lambda: hg.kl_divergence(np.ones((3, 4)), np.ones(4)), "'p'"),
        (lambda: hg.triplet(np.ones((3, 4)), np.ones((3, 4)), np.ones((3, 5))), "'negative'"),
        (lambda: hg.sparsemax(np.float64(1.0)), "'z'"),
    ],
)
def test_a_wrong_shape_or_dtype_names_the_argument(call, argument):
    with pytest.raises(TypeError, match=argument):
        call()


@rows
def test_the_defaults_of_the_three_functions_agree(row):
    (args, hyper), *_ = row.examples(np.random.default_rng(0)).values()
    given = {name: value for name, value in hyper.items() if name == "q"}
    value, cotangents = run(row.name, *args, **given)
    defaults = {"delta": 1.0, "margin": 1.0, "gamma": 2.0}
    spelled = given | {name: defaults[name] for name in hyper if name in defaults}
    for one, other in zip(
        jax.tree.leaves((value, cotangents)),
        jax.tree.leaves(run(row.name, *args, **spelled)),
        strict=True,
    ):
        assert np.array_equal(one, other)


@rows
def test_second_derivatives_are_finite_at_the_extremes(row):
    layer = hg.as_layer(row.f, row.f_fwd, row.f_bwd)
    for name, (args, hyper) in row.examples(np.random.default_rng(0)).items():
        if name.startswith("extreme"):
            first, *others = map(jnp.asarray, args)
            curve = jax.grad(
                lambda x, r=others, h=hyper: jax.grad(lambda x: layer(x, *r, **h).sum())(x).sum()
            )
            assert np.isfinite(curve(first)).all(), name


def test_a_class_without_a_share_costs_nothing():
    log_q, p = jnp.array([0.0, -np.inf]), jnp.array([1.0, 0.0])
    for name in ("kl_divergence", "generalized_kl_divergence"):
        value, (dlog_q, _) = run(name, log_q, p)
        assert value == 0 and np.isfinite(dlog_q).all()
    for name in ("kl_divergence_with_log_targets", "js_divergence"):
        value, cotangents = run(name, log_q, log_q)
        assert value == 0 and all(np.isfinite(d).all() for d in cotangents)
    assert run("kl_divergence", log_q, p[::-1])[0] == np.inf
    assert run("js_divergence", log_q, log_q[::-1])[0] == pytest.approx(np.log(2))


def test_a_negative_probability_gives_nan_and_one_that_is_0_no_gradient():
    value, (_, dp) = run("kl_divergence", np.log([0.5, 0.5]), np.array([-0.5, 1.5]))
    assert np.isnan(value) and np.isnan(dp[0])
    _, (_, dp) = run("kl_divergence", np.log([0.5, 0.5]), np.array([0.0, 1.0]))
    np.testing.assert_allclose(dp, [0, 1 + np.log(2)])


def test_the_zero_vector_has_no_direction():
    value, (da, _) = run("cosine_distance", np.zeros(3), np.ones(3))
    assert np.isnan(value) and np.isnan(da).all()


def test_a_sparsemax_row_with_nan_is_nan():
    assert np.isnan(hg.sparsemax(np.array([0.0, np.nan, 1.0]))).all()


def test_sparsemax_is_optax_s_projection_and_its_loss_optax_s():
    z, y = np.random.default_rng(0).normal(size=(3, 4)), np.array([2, 0, 3])
    project = jax.jit(jax.vmap(optax.projections.projection_simplex))
    np.testing.assert_allclose(hg.sparsemax(z), project(z), atol=1e-14)
    loss = jax.jit(optax.losses.multiclass_sparsemax_loss)
    np.testing.assert_allclose(hg.multiclass_sparsemax_loss(z, y), loss(z, y), rtol=1e-12)


def test_hinge_is_optax_s_and_its_perceptron_s():
    z, y = np.random.default_rng(0).normal(size=7), np.array([1, -1, -1, 1, 1, -1, 1])
    np.testing.assert_array_equal(hg.hinge(z, y), optax.losses.hinge_loss(z, y))
    np.testing.assert_array_equal(hg.hinge(z, y, margin=0), optax.losses.perceptron_loss(z, y))


def test_what_is_said_in_place_of_rules_for_the_rest_of_optax():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=6), rng.integers(2, size=6)
    pair = np.stack([0 * z, z], axis=-1)
    binary = jax.jit(optax.losses.sparsemax_loss)(z, y)
    np.testing.assert_allclose(hg.multiclass_sparsemax_loss(pair, y), binary, atol=1e-14)
    np.testing.assert_allclose(hg.focal(z, y, gamma=0), hg.sigmoid_cross_entropy(z, y))
    half = optax.losses.l2_loss(z, 1.0 * y)
    np.testing.assert_allclose(half, hg.squared_error(z, 1.0 * y) / 2)
