"""The checker is never silently wrong: wrong gradients made to pass, right ones made to be blamed.

Where neither can be told, it says so, and does not pass.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad as hg
from handgrad.check import GradientMismatch, check_gradient, check_rule, check_steps, prove, tap

rng = np.random.default_rng(11)
normal = rng.normal


@pytest.fixture(autouse=True)
def the_same_numbers_whatever_ran_before():
    rng.bit_generator.state = np.random.default_rng(12).bit_generator.state


@pytest.fixture
def unexplained(monkeypatch):
    """That something is wrong is enough; to find out what takes longer."""
    monkeypatch.setattr("handgrad.check.naming.explain.explain", lambda *operands: {})


def outcomes(check, *args, **more):
    """The outcome of each gradient of a check, whether it passes or not."""
    return {verdict.name: verdict.outcome for verdict in told(check, *args, **more)}


def told(check, *args, **more):
    """The report of a check, whether it passes or not."""
    try:
        return check(*args, **more)
    except GradientMismatch as mismatch:
        return mismatch.report


def assert_unjudged(check, *args, **more):
    """It does not pass, calls nothing wrong, and says why it cannot judge."""
    with pytest.raises(GradientMismatch) as mismatch:
        check(*args, **more)
    for verdict in mismatch.value.report:
        assert (verdict.outcome, verdict.right) == ("unjudged", False), verdict
        assert verdict.words.startswith("cannot be judged here: "), verdict
        assert not verdict.mistakes, verdict


def single(x):
    return np.asarray(x, "float32")


# A loss that is no number, though its gradient is one: nothing is known of the loss's digits.

TARGETS = np.array([0.5, 0.0, 0.5])
ENDLESS = {
    "log of a negative": (lambda x: jnp.log(x).sum(), [-1.0, 2.0, 3.0]),
    "an overflow": (lambda x: (x**2).sum(), single([1e20, 2e20, 3e20])),
    "0 log 0": (
        lambda x: (TARGETS * (jnp.log(TARGETS) - jax.nn.log_softmax(x))).sum(),
        normal(size=3),
    ),
    "a masked score": (lambda x: (x + jnp.array([0.0, -jnp.inf, 0.0])).sum(), normal(size=3)),
    "a constant of NaN": (lambda x: (x**2).sum() + np.nan, normal(size=3)),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_loss_that_is_no_number_judges_nothing(name):
    f, x = ENDLESS[name]
    assert np.isfinite(jax.grad(f)(jnp.asarray(x))).all()
    assert not np.isfinite(f(jnp.asarray(x)))
    assert_unjudged(check_gradient, [7.0, 7.0, 7.0], f, x)


def test_a_step_of_a_loss_that_is_no_number_is_not_judged():
    def loss(x):
        return jnp.log(tap("z", 2 * x)).sum()

    x = np.array([-1.0, 2.0, 3.0])
    assert_unjudged(check_steps, loss, at=(x,), dz=7 * x, dx=7 * x)


def test_a_rule_s_value_that_is_no_number_is_not_judged():
    def log(x):
        return jnp.log(x)

    def bwd(x, dz):
        return (7 * dz,)

    found = outcomes(check_rule, log, lambda x: (log(x), x), bwd, np.array([-1.0, 2.0, 3.0]))
    assert found["dx"] == "unjudged"


def test_a_gradient_that_jax_has_none_of_is_not_judged():
    def naive(x):
        return jnp.log(jnp.exp(x).sum())

    assert_unjudged(check_gradient, [0.0, 1.0], naive, [1.0, 1000.0])


# Randomness, and chaos: the second run of f gives another value, or a rounding does.


def noise():
    """NumPy's randomness inside f is drawn again whenever JAX traces f."""
    draw = np.random.default_rng(5)
    return lambda x: (x * draw.normal(size=x.shape)).sum()


def called_back():
    """The same, where the program is the same at every call, and no two runs of it are."""
    draw = np.random.default_rng(5)

    def f(x):
        like = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return (x * jax.pure_callback(lambda: draw.normal(size=3), like)).sum()

    return f


def warm_up():
    """A schedule that counts its calls."""
    steps = []

    def f(x):
        steps.append(0)
        return len(steps) * (x**2).sum()

    return f


def logistic(x, times):
    """The logistic map with r = 3.9: a rounding grows by half in every step."""
    return jax.lax.scan(lambda x, _: (3.9 * x * (1 - x), None), x, None, times)[0].sum()


@pytest.mark.parametrize("f", [noise, called_back, warm_up])
def test_an_f_that_gives_another_value_the_second_time_is_not_judged(f):
    for hand in (np.zeros(3), np.array([0.1, -0.2, 0.3])):
        assert_unjudged(check_gradient, hand, f(), np.array([1.0, 2.0, 3.0]))


def test_a_rule_of_an_f_that_gives_another_value_the_second_time_is_not_judged():
    draw = np.random.default_rng(5)

    def dropped(x):
        return x * (draw.random(x.shape) < 0.5)

    found = outcomes(
        check_rule, dropped, lambda x: (dropped(x), x), lambda x, dz: (dz,), normal(size=9)
    )
    assert found["dx"] == "unjudged"


def test_steps_of_an_f_that_gives_another_value_the_second_time_are_not_judged():
    loss = noise()
    x = np.array([1.0, 2.0, 3.0])
    assert_unjudged(check_steps, lambda x: loss(tap("z", 2 * x)), at=(x,), dz=0 * x, dx=0 * x)


SOME = np.array([0.3, 0.51, 0.7])
CHAOS = {
    "a chaotic map": (partial(logistic, times=200), SOME),
    "a phase of 1e17 turns": (lambda x: jnp.sin(1e17 * x).sum(), SOME),
    "small entries of chaos beside a large one": (
        lambda x: 1e20 * x[0] ** 2 + jnp.sin(1e17 * x[1:]).sum(),
        SOME,
    ),
    "a sum that swallows its argument": (lambda x: jnp.sin((x + 1e16) - 1e16).sum(), SOME),
    "a clock in float32": (
        lambda x: jnp.tanh((np.float32(1.7e9) + x) - np.float32(1.7e9)).sum(),
        single(SOME),
    ),
}


@pytest.mark.parametrize("name", CHAOS)
def test_where_roundings_are_as_large_as_the_gradient_nothing_is_judged(name):
    f, x = CHAOS[name]
    true = jax.grad(f)(x)
    large = np.abs(true) > 1e19  # one that is large enough to be known
    for hand in (np.where(large, true, -true), np.where(large, true, 0)):
        assert_unjudged(check_gradient, hand, f, x)


def test_a_map_that_is_not_yet_chaotic_is_judged(unexplained):
    f, x = partial(logistic, times=8), SOME
    true = jax.grad(f)(x)
    check_gradient(true, f, x)
    for hand in (-true, 0 * true, 1.001 * true):
        with pytest.raises(GradientMismatch, match="WRONG"):
            check_gradient(hand, f, x)


# Wrong gradients that hide among others: each must be seen in its own entry. The right one, in
# float64 from the same numbers, passes.

WORDS = 128_256
TABLE, COUNTS = single(normal(size=(200, 3))), single(1e6 / np.arange(1, 201)[:, None] ** 2.5)
COLUMNS = single([1e6, 1, 1e-3])
FEATURES, PRICES = single(COLUMNS * normal(size=(64, 3))), single(normal(size=64))
LONG = single(normal(size=(100_000, 2)))
LOGITS = normal(size=1000) / 50


def cross_entropy(z):
    return jax.nn.logsumexp(z) - z[7]


def softmax_forgotten(d):
    return -np.eye(1, d.size, 7)[0]


def only(place, factor):
    """The gradient with one entry, or one part, times a factor."""

    def wrong(d):
        d = np.array(d)
        d[place] *= factor
        return d

    return wrong


def mean_of(rows):
    """A mean over very many rows."""
    return lambda w: jax.nn.sigmoid(rows @ w).mean()


HIDDEN = {
    "a large vocabulary, softmax forgotten": (
        cross_entropy,
        single(normal(size=WORDS) / 50),
        softmax_forgotten,
    ),
    "rows of rare words never written": (
        lambda E: (COUNTS * jnp.tanh(E)).sum(),
        TABLE,
        only(slice(150, None), 0),
    ),
    "the sign of a small column's weight": (
        lambda w: ((FEATURES @ w - PRICES) ** 2).mean(),
        single([1e-6, 1, 1]),
        only(2, -1),
    ),
    "softmax forgotten, in bfloat16": (
        cross_entropy,
        LOGITS,
        lambda d: jnp.asarray(softmax_forgotten(d), "bfloat16"),
    ),
    "softmax forgotten, in float16": (
        cross_entropy,
        LOGITS,
        lambda d: softmax_forgotten(d).astype("float16"),
    ),
    "the digits of bfloat16 for a float64": (
        cross_entropy,
        LOGITS,
        lambda d: jnp.asarray(d, "bfloat16"),
    ),
    "the digits of float32 for a float64": (cross_entropy, LOGITS, single),
    "a bias 40 % off, with targets of 1e5": (
        lambda b: ((b - single(1e5 * PRICES)) ** 2).mean(),
        single(0.0),
        lambda d: 1.4 * d,
    ),
    "a bias 40 % off, with targets of 1e9": (
        lambda b: ((b - 1 - 1e9 * np.sign(LOGITS)) ** 2).mean(),
        0.0,
        lambda d: 1.4 * d,
    ),
    "a loss that is nearly constant": (
        lambda x: 1e8 + (x**2).sum(),
        single(normal(size=3)),
        lambda d: -d,
    ),
    "an entry of 1e-15 beside 1": (lambda x: jnp.exp(x).sum(), np.array([0, -34.0]), only(1, 0)),
    "a tenth too much, in bfloat16": (
        lambda x: (jnp.tanh(x) ** 2).sum(),
        jnp.asarray(normal(size=64), "bfloat16"),
        lambda d: 1.1 * d,
    ),
    "the sign of the smallest power": (
        lambda x: (x**8).sum(),
        np.array([1e-2, 1, 1e2]),
        only(0, -1),
    ),
    "the smallest of many curvatures": (
        lambda x: (np.logspace(-14, 0, 8) * x**2).sum(),
        normal(size=8),
        only(0, 2),
    ),
    "a saturated classifier, zeros": (
        lambda z: cross_entropy(z) / 2,
        np.where(np.arange(9) == 7, 25.0, 0.0),
        lambda d: 0 * d,
    ),
    "a saturated classifier, the other classes": (
        cross_entropy,
        single(np.where(np.arange(9) == 7, 14.0, 0.0)),
        lambda d: np.where(np.arange(9) == 7, d, 0),
    ),
    "a long sum, one per mille off": (
        lambda b: ((LONG + b) ** 2).mean(0).sum(),
        single([3, -2]),
        lambda d: 1.001 * d,
    ),
    "a long sum, its last rows forgotten": (
        mean_of(LONG),
        single([1, 0.5]),
        lambda d: 0.99 * jax.grad(mean_of(LONG[:-1000]))(jnp.array([1, 0.5])),
    ),
    "a mean of many, one entry doubled": (
        lambda x: (x**2).mean(),
        single(normal(size=(64, 256))),
        only((3, 100), 1 + 1e-4),
    ),
    "one entry in the noise of the others": (
        lambda x: (COUNTS * x**2).sum(),
        TABLE,
        only((199, 2), 1.3),
    ),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_wrong_gradient_is_seen_in_its_own_entry(name, unexplained):
    f, x, wrong = HIDDEN[name]
    right = np.asarray(jax.grad(f)(jnp.asarray(x, "float64")))
    assert outcomes(check_gradient, right, f, x) == {"d" + f.__code__.co_varnames[0]: "right"}
    with pytest.raises(GradientMismatch) as mismatch:
        check_gradient(wrong(right), f, x)
    assert [verdict.outcome for verdict in mismatch.value.report] == ["wrong"]


def test_a_large_loss_does_not_hide_a_wrong_step(unexplained):
    y = single(1e5 * PRICES)

    def loss(b):
        return (tap("r", b - y) ** 2).mean()

    r = 2 * np.float64(-y) / y.size
    check_steps(loss, at=(single(0.0),), dr=r, db=r.sum())
    for step in ({"dr": r, "db": 1.4 * r.sum()}, {"dr": only(5, 1.01)(r)}):
        with pytest.raises(GradientMismatch, match="WRONG"):
            check_steps(loss, at=(single(0.0),), **step)


# Arguments that hide a mistake: what a layer is initialised with, or tried on first. The rule is
# proved at a second, generic point too. wrong is the part of the right rule that is left out.


def centred(x):
    return x - x.mean(-1, keepdims=True)


def normed(x, gamma):
    return gamma * centred(x) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)


def normed_bwd(residuals, dz, wrong):
    x, gamma = residuals
    scale = 1 / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    u = centred(x) * scale
    du = dz if wrong else dz * gamma
    dx = scale * (centred(du) - u * (du * u).mean(-1, keepdims=True))
    return dx, (dz * u).sum(0)


def product(x, W):
    return x @ W


def product_bwd(residuals, dz, wrong):
    x, W = residuals
    return dz @ (W if wrong else W.T), x.T @ dz


def adapted(x, W, A, B):
    """A frozen matrix and its low-rank correction, whose second factor begins at 0."""
    return x @ W + x @ A @ B


def adapted_bwd(residuals, dz, wrong):
    x, W, A, B = residuals
    dA = 0 * A if wrong else x.T @ dz @ B.T
    return dz @ (W + A @ B).T, x.T @ dz, dA, (x @ A).T @ dz


def masked(x, mask):
    return x * mask


def masked_bwd(residuals, dz, wrong):
    x, mask = residuals
    return dz if wrong else dz * mask, dz * x


def kept(x, keep):
    return jnp.where(keep, x, 0.0)


def kept_bwd(residuals, dz, wrong):
    return dz if wrong else jnp.where(residuals[1], dz, 0.0), None


def recurrent(h, x, U):
    return jnp.tanh(h @ U + x)


def recurrent_bwd(residuals, dz, wrong):
    h, x, U = residuals
    dx = dz * (1 - recurrent(h, x, U) ** 2)
    return dx @ U.T, dx, 0 * U if wrong else h.T @ dx


def rectified(x):
    return jnp.maximum(x, 0)


def rectified_bwd(residuals, dz, wrong):
    return (dz if wrong else dz * (residuals[0] > 0),)


def residual(x, alpha):
    """A branch whose weight begins at 0."""
    return x + alpha * jnp.tanh(x)


def residual_bwd(residuals, dz, wrong):
    x, alpha = residuals
    slope = 1 if wrong else 1 + alpha * (1 - jnp.tanh(x) ** 2)
    return dz * slope, (dz * jnp.tanh(x)).sum()


def shifted(x, b):
    return jnp.maximum(x + b, 0)


def shifted_bwd(residuals, dz, wrong):
    x, b = residuals
    d = dz * (x + (0 if wrong else b) > 0)
    return d, d.sum(0)


def tempered(z, T):
    return jax.nn.softmax(z / T)


def tempered_bwd(residuals, dz, wrong):
    z, T = residuals
    o = tempered(z, T)
    d = o * (dz - (o * dz).sum(-1, keepdims=True))
    return d if wrong else d / T, -(d * z).sum() / T**2


def uniform(z):
    return jax.nn.softmax(z)


def uniform_bwd(residuals, dz, wrong):
    (z,) = residuals
    o = jnp.full(z.shape, 1 / z.shape[-1]) if wrong else jax.nn.softmax(z)
    return (o * (dz - (o * dz).sum(-1, keepdims=True)),)


def labelled(z, y):
    return jax.nn.logsumexp(z, axis=-1) - jnp.take_along_axis(z, y[:, None], 1)[:, 0]


def labelled_bwd(residuals, dl, wrong):
    z, y = residuals
    y = y[:1] if wrong else y
    return dl[:, None] * (jax.nn.softmax(z) - jax.nn.one_hot(y, z.shape[1], dtype=z.dtype)), None


def looked_up(E, ids):
    return E[ids]


def looked_up_bwd(residuals, dz, wrong):
    E, ids = residuals
    rows = jnp.zeros_like(E).at[ids]
    return rows.set(dz) if wrong else rows.add(dz), None


def quadratic(x, A):
    return ((x @ A) * x).sum(-1)


def quadratic_bwd(residuals, dl, wrong):
    x, A = residuals
    return dl[:, None] * (2 * x @ A if wrong else x @ (A + A.T)), (dl[:, None] * x).T @ x


def absolute(x):
    return jnp.abs(x)


def absolute_bwd(residuals, dz, wrong):
    return (dz if wrong else dz * jnp.sign(residuals[0]),)


def scored(q, k):
    return q @ k.T


def scored_bwd(residuals, ds, wrong):
    q, k = residuals
    return ds @ (q if wrong else k), ds.T @ (k if wrong else q)


S = normal(size=(4, 4))
SPECIAL = {
    "gamma = 1": (normed, normed_bwd, (normal(size=(3, 5)), np.ones(5))),
    "W = I": (product, product_bwd, (normal(size=(3, 4)), np.eye(4))),
    "a symmetric W": (product, product_bwd, (normal(size=(3, 4)), S + S.T)),
    "W = 0": (product, product_bwd, (normal(size=(3, 4)), np.zeros((4, 4)))),
    "B = 0": (
        adapted,
        adapted_bwd,
        (normal(size=(3, 4)), normal(size=(4, 5)), normal(size=(4, 2)), np.zeros((2, 5))),
    ),
    "a mask of ones": (masked, masked_bwd, (normal(size=(3, 5)), np.ones((3, 5)))),
    "a mask of True": (kept, kept_bwd, (normal(size=(3, 5)), np.ones((3, 5), bool))),
    "h0 = 0": (recurrent, recurrent_bwd, (np.zeros((3, 4)), normal(size=(3, 4)), S)),
    "all x > 0": (rectified, rectified_bwd, (1 + rng.random((3, 5)),)),
    "all x > 0, absolute": (absolute, absolute_bwd, (1 + rng.random((3, 5)),)),
    "alpha = 0": (residual, residual_bwd, (normal(size=(3, 5)), 0.0)),
    "b = 0": (shifted, shifted_bwd, (normal(size=(3, 5)), np.zeros(5))),
    "T = 1": (tempered, tempered_bwd, (normal(size=(3, 5)), 1.0)),
    "logits of 0": (uniform, uniform_bwd, (np.zeros((3, 5)),)),
    "one label for all": (labelled, labelled_bwd, (normal(size=(4, 5)), np.full(4, 2))),
    "ids that all differ": (
        *(looked_up, looked_up_bwd),
        (normal(size=(9, 3)), np.array([4, 0, 7, 2, 8])),
    ),
    "A = I": (quadratic, quadratic_bwd, (normal(size=(3, 4)), np.eye(4))),
    "q = k": (scored, scored_bwd, (S, S)),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_what_special_arguments_hide_is_seen_at_another_point(name, unexplained):
    f, bwd, args = SPECIAL[name]
    fwd = lambda *args: (f(*args), args)  # noqa: E731
    check_rule(f, fwd, partial(bwd, wrong=False), *args)
    with pytest.raises(GradientMismatch, match="at another point") as mismatch:
        check_rule(f, fwd, partial(bwd, wrong=True), *args)
    assert "wrong" in {verdict.outcome for verdict in mismatch.value.report}


def test_the_other_point_stays_where_the_layer_is_defined():
    def logarithm(x):
        return jnp.log(x) * jnp.sqrt(x - 1)

    def bwd(x, dz):
        return (dz * (jnp.sqrt(x - 1) / x + jnp.log(x) / (2 * jnp.sqrt(x - 1))),)

    check_rule(logarithm, lambda x: (logarithm(x), x), bwd, 1.5 + rng.random((3, 5)))


def test_the_other_point_keeps_what_the_arguments_are():
    """Probabilities stay probabilities, and a permutation of the rows stays one."""

    def loss(z, t):
        return -(t * jax.nn.log_softmax(z)).sum(-1)

    def loss_bwd(residuals, dl):
        z, t = residuals
        return dl[:, None] * (jax.nn.softmax(z) - t), -dl[:, None] * jax.nn.log_softmax(z)

    def permuted_bwd(residuals, dz):
        return dz[jnp.argsort(residuals[1])], None

    one_hot = np.eye(5)[rng.integers(5, size=4)]
    check_rule(loss, lambda *args: (loss(*args), args), loss_bwd, normal(size=(4, 5)), one_hot)
    rows = normal(size=(6, 3)), rng.permutation(6)
    check_rule(looked_up, lambda *args: (looked_up(*args), args), permuted_bwd, *rows)


def test_one_example_proves_no_sum_over_examples_and_it_is_said(capsys):
    def linear(x, b):
        return x + b

    def first(residuals, dz):
        return dz, dz[0]

    x, b = normal(size=(1, 4)), normal(size=4)
    check_rule(linear, lambda x, b: (x + b, None), first, x, b)
    assert "does not show whether a sum over examples is missing" in capsys.readouterr().out
    with pytest.raises(GradientMismatch):
        check_rule(linear, lambda x, b: (x + b, None), first, np.repeat(x, 2, axis=0), b)


def test_what_is_said_is_the_same_from_run_to_run():
    def said():
        with pytest.raises(GradientMismatch) as mismatch:
            check_rule(normed, keeping(normed), partial(normed_bwd, wrong=True), *args)
        return str(mismatch.value)

    args = single(normal(size=(3, 5))), single(np.ones(5))
    assert said() == said()


# Right rules, never blamed, at the sizes that people use.


def pooled(x):
    n, h, w = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2).max((2, 4))


def pooled_bwd(x, dz):
    over = lambda a: a.repeat(2, 1).repeat(2, 2)  # noqa: E731
    return ((x == over(pooled(x))) * over(dz),)


def hinge(z, y):
    return jnp.maximum(0, 1 - y * z)


def hinge_bwd(residuals, dl):
    z, y = residuals
    d = jnp.where(y * z < 1, -dl, 0.0)
    return d * y, d * z


def perceptron(x, W):
    return jnp.maximum(x @ W, 0)


def perceptron_bwd(residuals, da):
    x, W = residuals
    dz = da * (x @ W > 0)
    return dz @ W.T, x.T @ dz


def entropy(p):
    return -(p * jnp.log(p)).sum(-1)


def entropy_bwd(p, ds):
    return (-ds[:, None] * (jnp.log(p) + 1),)


def logarithm_bwd(x, dz):
    return (dz / x,)


def keeping(f):
    """The f_fwd that keeps its arguments."""
    return lambda *x: (f(*x), x[0] if len(x) == 1 else x)


def at_probabilities(draw):
    return (np.asarray(jax.nn.softmax(3 * draw.normal(size=(32, 100)))),)


def confident(draw, dtype="float64"):
    """Logits of +14 at the label."""
    y = draw.integers(10, size=32)
    return jnp.asarray(draw.normal(size=(32, 10)) + 14 * np.eye(10)[y], dtype), y


RIGHT = {
    "relu": (
        *(hg.relu, hg.relu_fwd, hg.relu_bwd),
        lambda draw: (draw.normal(size=(64, 256)),),
    ),
    "max pool": (
        *(pooled, keeping(pooled), pooled_bwd),
        lambda draw: (draw.normal(size=(32, 28, 28)),),
    ),
    "hinge": (
        *(hinge, keeping(hinge), hinge_bwd),
        lambda draw: (draw.normal(size=(256, 10)), draw.choice([-1.0, 1.0], size=(256, 10))),
    ),
    "log": (jnp.log, keeping(jnp.log), logarithm_bwd, at_probabilities),
    "entropy": (entropy, keeping(entropy), entropy_bwd, at_probabilities),
    "logits of +14": (
        *(hg.softmax_cross_entropy, hg.softmax_cross_entropy_fwd, hg.softmax_cross_entropy_bwd),
        confident,
    ),
    "logits of +14, float32": (
        *(hg.softmax_cross_entropy, hg.softmax_cross_entropy_fwd, hg.softmax_cross_entropy_bwd),
        partial(confident, dtype="float32"),
    ),
    "softmax, float32": (
        *(hg.softmax, hg.softmax_fwd, hg.softmax_bwd),
        lambda draw: (single(5 * draw.normal(size=(32, 100))),),
    ),
    "softmax, bfloat16": (
        *(hg.softmax, hg.softmax_fwd, hg.softmax_bwd),
        lambda draw: (jnp.asarray(draw.normal(size=(8, 100)), "bfloat16"),),
    ),
    "relu of a product, bfloat16": (
        *(perceptron, keeping(perceptron), perceptron_bwd),
        lambda draw: tuple(
            jnp.asarray(draw.normal(size=s), "bfloat16") for s in ((64, 32), (32, 128))
        ),
    ),
    "linear, float32": (
        *(hg.linear, hg.linear_fwd, hg.linear_bwd),
        lambda draw: tuple(single(draw.normal(size=s)) for s in ((512, 64), (32, 64), (32,))),
    ),
    "squared error, of every size": (
        *(hg.squared_error, hg.squared_error_fwd, hg.squared_error_bwd),
        lambda draw: (np.logspace(-6, 6, 50) * draw.normal(size=50), draw.normal(size=50)),
    ),
    "squared error, of every size, float32": (
        *(hg.squared_error, hg.squared_error_fwd, hg.squared_error_bwd),
        lambda draw: (single(np.logspace(-6, 6, 50) * draw.normal(size=50)), single(np.ones(50))),
    ),
    "tanh, of every size": (
        *(hg.tanh, hg.tanh_fwd, hg.tanh_bwd),
        lambda draw: (np.logspace(-6, 1, 50) * draw.normal(size=50),),
    ),
    "Poisson's loss where the log of t! is 0, float32": (
        *(hg.poisson_nll, hg.poisson_nll_fwd, hg.poisson_nll_bwd),
        lambda draw: (single(draw.uniform(-6, 2, 4000)), single(np.zeros(4000))),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_rule_is_not_blamed(name):
    f, f_fwd, f_bwd, arguments = RIGHT[name]
    draws = [arguments(np.random.default_rng([3, k])) for k in range(4)]
    assert {
        verdict.words for verdict in prove(f, f_fwd, f_bwd, draws) if not verdict.right
    } == set()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_saturated_classifier_is_not_blamed(dtype):
    z, y = confident(np.random.default_rng(1), dtype)
    z = z + 6 * np.eye(10, dtype=dtype)[y]

    def loss(z):
        return hg.softmax_cross_entropy(tap("s", z), y).mean()

    o = np.array(jax.nn.softmax(np.float64(z)))
    o[np.arange(32), y] = -np.where(np.arange(10) == y[:, None], 0, o).sum(1)
    check_gradient(o / 32, lambda z: hg.softmax_cross_entropy(z, y).mean(), z)
    check_steps(loss, at=(z,), ds=o / 32, dz=o / 32)


def erf_of(x):
    return jax.lax.erf(x / np.sqrt(2).astype(x.dtype))


def by_logarithms(z):
    """The loss of two classes, written so that no logit is too large for it."""
    return -jnp.where(CLASS, jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)).mean()


def by_probabilities(z):
    return (1 / (1 + np.exp(-z)) - CLASS) / z.dtype.type(len(z))


def gelu(x):
    return jax.nn.gelu(x, approximate=False).sum()


def gelu_slope(x):
    half, root = x.dtype.type(0.5), np.sqrt(2 * np.pi).astype(x.dtype)
    return half * (1 + np.asarray(erf_of(x))) + x * np.exp(-half * x * x) / root


def standardized(x):
    u = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return (WEIGHTS.astype(x.dtype) * u).sum()


def by_mean_square(x):
    """A norm's gradient with the variance as the mean square less the square of the mean."""
    of = partial(np.mean, axis=-1, keepdims=True)
    scale, du = 1 / np.sqrt(of(x * x) - of(x) ** 2 + x.dtype.type(1e-5)), WEIGHTS.astype(x.dtype)
    u = (x - of(x)) * scale
    return scale * (du - of(du) - u * of(du * u))


def attended(s):
    """The loss of a softmax's output."""
    return (WEIGHTS.astype(s.dtype) * jax.nn.softmax(s)).sum()


def attended_by_hand(s):
    do = WEIGHTS.astype(s.dtype)
    o = np.exp(s - s.max(-1, keepdims=True))
    o /= o.sum(-1, keepdims=True)
    return o * (do - (o * do).sum(-1, keepdims=True))


CLASS, WEIGHTS = rng.random(200) < 0.5, normal(size=(16, 64))
OTHERWISE = {
    "p - y, of a stable loss": (
        by_logarithms,
        by_probabilities,
        np.clip(4 * normal(size=200), -8, 8),
    ),
    "gelu, by 1 + erf": (gelu, gelu_slope, normal(size=200)),
    "a norm, by the mean square": (standardized, by_mean_square, 3 + normal(size=(16, 64))),
    "softmax, of scores up to 30": (attended, attended_by_hand, 10 * normal(size=(16, 64))),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OTHERWISE)
def test_a_right_gradient_that_rounds_otherwise_than_jax_is_not_blamed(name, dtype, unexplained):
    f, by_hand, x = OTHERWISE[name]
    x = x.astype(dtype)
    hand = np.asarray(by_hand(x))
    assert hand.dtype == dtype
    check_gradient(hand, f, x)
    with pytest.raises(GradientMismatch, match="WRONG"):
        check_gradient(1.01 * hand, f, x)


def test_a_long_sum_may_be_added_up_in_any_order(unexplained):
    x, y = single(rng.random((100_000, 3))), single(rng.random(100_000) - 1.5)

    def loss(w, b):
        return (tap("r", x @ w + b - y) ** 2).mean()

    w, b = single([0.5, -0.25, 1]), single(0.1)
    dr = single(2) * (x @ w + b - y) / single(len(y))
    one_by_one = np.cumsum(dr[:, None] * x, axis=0)[-1], np.cumsum(dr)[-1]
    exact = dr.astype(float) @ x, dr.astype(float).sum()
    for dw, db in (one_by_one, exact):
        check_steps(loss, at=(w, b), dr=dr, dw=dw, db=db)
        check_gradient((dw, db), loss, w, b)
    for wrong in ((1.01 * exact[0], exact[1]), (exact[0], 1.01 * exact[1])):
        with pytest.raises(GradientMismatch, match="WRONG"):
            check_gradient(wrong, loss, w, b)


def test_where_differences_see_too_little_a_right_rule_is_not_called_wrong():
    def wave(x):
        return jnp.sin(1e6 * x)

    def bwd(x, dz):
        return (dz * 1e6 * jnp.cos(1e6 * x),)

    verdicts = prove(wave, keeping(wave), bwd, [(normal(size=7),) for _ in range(6)])
    assert "wrong" not in {verdict.outcome for verdict in verdicts}


# Whatever the reader's code does to the search for the mistake, what was found stays found.


def negated(bwd):
    """The rule with the sign of its first cotangent flipped."""

    def wrong(residuals, dz):
        first, *rest = bwd(residuals, dz)
        return -first, *rest

    return wrong


def dropout(x, key):
    return x * jax.random.bernoulli(key, 0.5, x.shape)


def dropout_bwd(residuals, dz):
    x, key = residuals
    return dz * jax.random.bernoulli(key, 0.5, x.shape), None


UNSEARCHABLE = {
    "more examples than are tried, over two axes": (
        hg.linear,
        hg.linear_bwd,
        (normal(size=(9, 8, 4)), normal(size=(5, 4)), normal(size=5)),
    ),
    "integer labels of the losses' shape": (
        hg.cross_entropy,
        hg.cross_entropy_bwd,
        (hg.softmax(normal(size=(6, 4))), rng.integers(4, size=6)),
    ),
    "integer labels of the losses' shape, fused": (
        hg.softmax_cross_entropy,
        hg.softmax_cross_entropy_bwd,
        (normal(size=(6, 4)), rng.integers(4, size=6)),
    ),
    "a random key": (dropout, dropout_bwd, (normal(size=(4, 5)), jax.random.key(3))),
}


@pytest.mark.parametrize("name", UNSEARCHABLE)
def test_one_hypothesis_that_fails_costs_no_other_its_answer(name):
    f, bwd, args = UNSEARCHABLE[name]
    ours = getattr(hg, f.__name__, None) is f
    fwd = getattr(hg, f"{f.__name__}_fwd") if ours else keeping(f)
    first = told(check_rule, f, fwd, negated(bwd), *args)[0]
    assert (first.outcome, first.mistakes) == ("wrong", ("sign",)), first


def picky(x, y):
    """A loss that cannot be traced in its labels."""
    if np.asarray(y).max() > 3:
        raise ValueError("no such class")
    return (x[np.arange(len(y)), np.asarray(y)] ** 2).sum()


def test_a_loss_that_can_be_traced_in_its_floats_alone_is_explained():
    x, y = normal(size=(5, 4)), np.array([0, 3, 1, 1, 2])
    true = jax.grad(picky)(jnp.asarray(x), y)
    check_gradient(true, picky, x, y)
    with pytest.raises(GradientMismatch, match="its sign is flipped"):
        check_gradient(-true, picky, x, y)


# What comes earlier in the forward pass explains nothing of what comes later.


def test_a_reader_s_later_step_is_no_cause_of_an_earlier_one():
    x, b, c = (normal(size=4) for _ in range(3))

    def loss(x):
        z = tap("z", x + b)
        a = tap("a", z + c)
        return jnp.sin(a).sum()

    wrong = np.cos(x + b + c) + normal(size=4)
    report = told(check_steps, loss, at=(x,), da=wrong, dz=wrong, dx=wrong)
    outcome = {verdict.name: verdict.outcome for verdict in report}
    assert outcome == {"da": "wrong", "dz": "right", "dx": "right"}
    assert not report[0].mistakes
    assert "dz" not in report[0].words and "dx" not in report[0].words


# A step that is right is not blamed for another.


def classified():
    X, W = normal(size=(6, 4)), normal(size=(4, 3))
    Y = np.eye(3)[rng.integers(3, size=6)]
    p = np.asarray(jax.nn.softmax(X @ W))

    def loss(W):
        return -(Y * jax.nn.log_softmax(tap("z", X @ W))).sum(1).mean()

    return X, W, p - Y, loss


def test_a_step_that_is_the_true_gradient_is_not_blamed():
    X, W, error, loss = classified()
    report = told(check_steps, loss, at=(W,), dz=error, dW=X.T @ error / 6)
    assert [verdict.outcome for verdict in report] == ["wrong", "right"]
    assert "1/N of a mean is missing, N = 6" in report[0].words
    assert report[1].words == "is the true gradient, though not from your dz"


def test_a_step_that_is_right_given_the_reader_s_own_is_not_blamed():
    X, W, error, loss = classified()
    report = told(check_steps, loss, at=(W,), dz=error, dW=X.T @ error)
    assert [verdict.outcome for verdict in report] == ["wrong", "right"]
    assert report[1].words == "right given your dz"
    neither = told(check_steps, loss, at=(W,), dz=error, dW=2 * X.T @ error)
    assert [verdict.outcome for verdict in neither] == ["wrong", "wrong"]


# NumPy that writes in place, the order of other courses, and forms that are nearly right.

x = normal(size=(3, 4))


def in_place(dout, x):
    dx = dout
    dx[x < 0] = 0
    return (dx,)


def in_place_fwd(x):
    out = x
    out[out < 0] = 0
    return out, out


def test_numpy_that_writes_in_place_simply_works():
    before = x.copy()
    check_rule(hg.relu, hg.relu_fwd, lambda a, dout: in_place(dout, a - 1e-300), x)
    check_rule(hg.relu, in_place_fwd, lambda a, dout: in_place(dout, np.where(a > 0, 1, -1)), x)

    def added(x, dz):
        dx = np.zeros_like(x)
        for i, row in enumerate(dz):
            dx[i] += row * (x[i] > 0)
        return (dx,)

    check_rule(hg.relu, keeping(hg.relu), added, x)
    np.testing.assert_array_equal(x, before)


def test_numpy_that_writes_in_place_is_judged():
    with pytest.raises(GradientMismatch, match=r"dx .*WRONG"):
        check_rule(hg.relu, keeping(hg.relu), lambda x, dout: in_place(dout, -x), x)
    # the input was overwritten before it was kept, and a layer that is its own residual forgets it
    fwd = lambda x: (in_place_fwd(x)[0], x)  # noqa: E731
    with pytest.raises(GradientMismatch, match=r"dx .*WRONG"):
        check_rule(hg.relu, fwd, lambda x, dout: in_place(dout, x), x)

    def doubled(x, dz):
        dz *= 2
        return (dz * (x > 0),)

    with pytest.raises(GradientMismatch, match="constant factor 2"):
        check_rule(hg.relu, keeping(hg.relu), doubled, x)


def unpacked(dout, cache):
    x, W, _ = cache
    return dout @ W, dout.T @ x, dout.sum(0)


def one_array(dout, cache):
    return (dout * (cache > 0),)


def mapping(dout, cache):
    return (dout * (cache["x"] > 0),)


linear = x, normal(size=(5, 4)), normal(size=5)


@pytest.mark.parametrize(
    ("f", "fwd", "bwd", "args"),
    [
        (hg.linear, keeping(hg.linear), unpacked, linear),
        (hg.relu, keeping(hg.relu), one_array, (x,)),
        (hg.relu, lambda x: (hg.relu(x), {"x": x}), mapping, (x,)),
    ],
    ids=["a tuple", "an array", "a dict"],
)
def test_the_other_order_of_f_bwd_s_arguments_is_recognised(f, fwd, bwd, args):
    message = rf"{bwd.__name__}: .*expected \(residuals, dz\), in this order"
    with pytest.raises((GradientMismatch, TypeError), match=message):
        check_rule(f, fwd, bwd, *args)


@pytest.mark.parametrize("missing", [("dx",), ("dW",), ("db",), ("dx", "dW"), ("dW", "db")])
def test_cotangents_that_are_missing_are_said(missing):
    def bwd(residuals, dz):
        right = zip(("dx", "dW", "db"), hg.linear_bwd(residuals, dz), strict=True)
        return tuple(d for name, d in right if name not in missing)

    message = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    with pytest.raises(GradientMismatch, match=message):
        check_rule(hg.linear, hg.linear_fwd, bwd, *linear)


@pytest.mark.parametrize("places", [(1, 0, 2), (0, 2, 1), (2, 1, 0)], ids=str)
def test_cotangents_that_are_exchanged_are_said(places):
    def bwd(residuals, dz):
        right = hg.linear_bwd(residuals, dz)
        return tuple(right[place] for place in places)

    report = told(check_rule, hg.linear, hg.linear_fwd, bwd, *linear)
    for here, (place, verdict) in enumerate(zip(places, report, strict=True)):
        assert verdict.outcome == ("right" if here == place else "wrong")
        assert ("exchanged" in verdict.mistakes) == (here != place), verdict


def test_a_none_that_is_missing_is_said():
    z, y = normal(size=(4, 3)), np.array([0, 2, 1, 1])

    def bwd(residuals, dl):
        return hg.softmax_cross_entropy_bwd(residuals, dl)[:1]

    with pytest.raises(GradientMismatch, match="None for y is missing"):
        check_rule(hg.softmax_cross_entropy, hg.softmax_cross_entropy_fwd, bwd, z, y)


def weighted(p):
    return ((p["W"] * p["layers"][1]) ** 2).sum() + p["b"]


p = {"W": x, "layers": [x, 2 * x], "b": 0.5}
dp = {"W": 8 * x**3, "layers": [0 * x, 4 * x**3], "b": 1.0}


def test_a_missing_key_of_a_tree_is_named_alone():
    check_gradient(dp, weighted, p)
    for key in p:
        given = {k: d for k, d in dp.items() if k != key}
        report = told(check_gradient, given, weighted, p)
        wrong = [verdict for verdict in report if verdict.outcome == "wrong"]
        assert wrong and all(v.name.startswith(f"dp['{key}']") for v in wrong)
        assert all("missing" in v.words and "PyTreeDef" not in v.words for v in wrong)
        assert len(report) == 4
    report = told(check_gradient, dp | {"gamma": x}, weighted, p)
    assert [v.name for v in report if v.outcome == "wrong"] == ["dp['gamma']"]


def test_leaves_that_have_no_gradient_are_no_trouble():
    def f(p):
        return (p["act"](p["W"][: p["n"]]) ** 2).sum() * {"double": 2}[p["how"]]

    p = {"W": x, "n": 2, "act": jnp.tanh, "how": "double", "ids": np.array([0, 1])}
    t = np.tanh(x) * (np.arange(3) < 2)[:, None]
    dW = 4 * t * (1 - t**2)
    nothing = dict.fromkeys(("n", "act", "how", "ids"))
    for d in ({"W": dW}, {"W": dW} | nothing):
        check_gradient(d, f, p)
        check_steps(lambda p: tap("l", f(p)), at=(p,), dl=1.0, dp=d)
    with pytest.raises(GradientMismatch, match=r"dp\['W'\] .*WRONG: its sign is flipped"):
        check_gradient({"W": -dW}, f, p)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: np.sum(np.tanh(np.asarray(x)) ** 2), "jax.numpy"),
        (lambda x: (x**2).sum() if x[0] > 0 else x.sum(), "jnp.where"),
        (lambda x: float((x**2).sum()), r"float|a value"),
        (lambda x: jnp.asarray(sum(x[i] for i in range(int(x[0])))), "int"),
    ],
    ids=["NumPy", "if", "float", "int"],
)
@pytest.mark.parametrize("check", ["gradient", "steps"])
def test_a_loss_that_jax_cannot_differentiate_is_refused_in_one_line(f, message, check):
    v = np.array([2.0, 1.0])
    with pytest.raises(TypeError, match=message) as problem:
        if check == "gradient":
            check_gradient(2 * v, f, v)
        else:
            check_steps(lambda v: f(tap("z", 2 * v)), at=(v,), dv=v)
    assert "\n" not in str(problem.value)
    assert "Tracer" not in str(problem.value)


def test_steps_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"expected .*step.* dz, dx"):
        check_steps(lambda x: tap("z", 2 * x).sum(), at=(x,))


def test_a_complex_tap_is_called_complex():
    def loss(x):
        return jnp.abs(tap("z", jnp.exp(1j * x) + x)).sum()

    with pytest.raises(ValueError, match=r"tap 'z': .*complex"):
        check_steps(loss, at=(x,), dz=x)


def test_a_tap_that_the_loss_does_not_use_is_called_unused():
    def loss(x):
        tap("z", 2 * x)
        return (x**2).sum()

    check_steps(loss, at=(x,), dz=0 * x, dx=2 * x)
    with pytest.raises(GradientMismatch, match=r"dz .*WRONG: the loss does not use z"):
        check_steps(loss, at=(x,), dz=x, dx=2 * x)


@pytest.mark.parametrize("error", [1e-3, 1e-6, 1e-9, 1e-11])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_near_miss_shows_by_how_much_it_missed(dtype, error):
    v = np.asarray([2.0, -3.0, 6.0], dtype)
    hand = 2 * v.astype(float) + [0, 12 * error, 0]
    if dtype == "float64" or error > 1e-6:
        with pytest.raises(GradientMismatch, match="no known mistake") as mismatch:
            check_gradient(hand, lambda v: (v**2).sum(), v)
        numbers = re.findall(r"-?\d[\d.]*(?:e-?\d+)?", str(mismatch.value).partition("at [1]")[2])
        assert len(set(numbers)) == len(numbers) >= 2


# The search for a mistake that is none of the known ones ends, however large the program.


class Passes(list):
    """How many numbers each cotangent held that came back through the mark `here`.

    Where several backward passes run at once, they count together.
    """

    def __init__(self):
        self.here = jax.custom_vjp(lambda x: x)
        self.here.defvjp(lambda x: (x, None), self._back)

    def _back(self, _, d):
        def count(d):
            self.append(np.size(d))
            return np.asarray(d)

        like = jax.ShapeDtypeStruct(d.shape, d.dtype)
        return (jax.pure_callback(count, like, d, vmap_method="expand_dims"),)


def test_the_search_holds_no_more_numbers_at_once_than_fit():
    passes = Passes()
    q, k, v, do = (normal(size=(n, 2)) for n in (60, 2560, 2560, 60))

    def loss(q, k, v):
        scores = passes.here(q @ k.T)
        return (do * tap("o", jax.nn.softmax(scores) @ v)).sum()

    dq, dk, dv = map(np.asarray, jax.grad(loss, argnums=(0, 1, 2))(q, k, v))
    wrong = dq + np.linspace(0, 1, 60)[:, None] ** 2
    with pytest.raises(GradientMismatch, match=r"dq .*WRONG: no known mistake"):
        check_steps(loss, at=(q, k, v), do=do, dq=wrong, dk=dk, dv=dv)
    assert max(passes) <= 2**23  # in float64, and some ten such arrays a pass, 0.7 GB


def backward_passes_of_a_search(times):
    passes = Passes()
    x, U = normal(size=(times, 3)), normal(size=(3, 3)) / 2

    def loss(U):
        h = jnp.zeros(3)
        for i in range(times):
            h = tap(f"h{i}", passes.here(jnp.tanh(U @ h + x[i])))
        return (h**2).sum()

    h = [np.zeros(3)]
    for row in x:
        h.append(np.tanh(U @ h[-1] + row))
    steps, dh, dU = {}, 2 * h[-1], np.zeros((3, 3))
    for i in reversed(range(times)):
        steps[f"dh{i}"] = dh = dh + (i == 1) * np.array([0.3, -0.1, 0.2])
        dz = dh * (1 - h[i + 1] ** 2)
        dh, dU = U.T @ dz, dU + np.outer(dz, h[i])
    with pytest.raises(GradientMismatch, match=r"(?s)dh1 .*WRONG: no known mistake.*Mend dh1"):
        check_steps(loss, at=(U,), **steps, dU=dU)
    return sum(passes) / (3 * times)


def test_the_search_grows_no_faster_than_the_program():
    few, many = map(backward_passes_of_a_search, (2, 6))
    assert many <= 3.2 * few


TIES = {
    "maxima of windows": (
        lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3), (1, 3), "VALID"),
        np.array([[2.0, 2.0, 2.0, 1.0, 5.0, 0.0], [3.0, 1.0, 3.0, 4.0, 4.0, 4.0]]),
    ),
    "the two largest": (
        lambda x: jax.lax.top_k(x, 2)[0],
        np.array([[2.0, 5.0, 5.0, 5.0, 1.0], [1.0, 0.0, 3.0, 3.0, 3.0]]),
    ),
}


@pytest.mark.parametrize("name", TIES)
def test_where_three_are_equal_the_right_rule_is_right_and_a_wrong_one_is_wrong(name):
    f, x = TIES[name]

    def bwd(x, dz, *, times):
        return (times * jax.vjp(f, x)[1](dz)[0],)

    report = check_rule(f, lambda x: (f(x), x), partial(bwd, times=1), x)
    assert "at a kink, where the slope is a choice" in report[0].words
    with pytest.raises(GradientMismatch) as mismatch:
        check_rule(f, lambda x: (f(x), x), partial(bwd, times=2), x)
    assert mismatch.value.report[0].mistakes == ("factor",)


def test_a_derivative_of_its_own_is_seen_where_entries_are_equal():
    @jax.custom_jvp
    def largest(x):
        return jax.lax.top_k(x, 2)[0]

    @largest.defjvp
    def jvp(primals, tangents):
        z, dz = jax.jvp(lambda x: jax.lax.top_k(x, 2)[0], primals, tangents)
        return z, 3 * dz

    def bwd(x, dz):
        return jax.vjp(largest, x)[1](dz)

    with pytest.raises(GradientMismatch, match="has a part of f a derivative of its own"):
        check_rule(largest, lambda x: (largest(x), x), bwd, TIES["the two largest"][1])
