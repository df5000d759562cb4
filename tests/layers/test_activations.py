"""Activations: what is special to them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad as hg

# Answers to the exercises of notebooks/05_activations.ipynb, judged in tests/test_answers.py.
RIGHT = {
    "5.1": [
        "return np.array([0, 0, 7, -4.0]), np.array([0, 2.5, 7, -4])",
        "return (0, 0, 7, -4), (0, 5 / 2, 7, -4)",
        """
        x, da = jnp.array([-1.0, 0, 2, 3]), jnp.array([3.0, 5, 7, -4])
        return jnp.where(x > 0, da, 0), da * jnp.heaviside(x, 0.5)
        """,
    ],
    "5.2": [
        """
        cube = lambda a: 3 * np.abs(a) ** (2 / 3)
        return {"bell": None, "sine": None, "exp": np.array, "cube": cube}
        """,
        "cube = lambda a: 3 * (a * a) ** (1 / 3)\n"
        "return dict(exp=lambda a: 1 * a, cube=cube, sine=None, bell=None)",
    ],
    "5.3": [
        "return -np.expm1(-a)",
        "e = jnp.expm1(a)\nreturn e / (1 + e)",
        "return jnp.expm1(a) * jnp.exp(-a)",
        "t = jnp.tanh(a / 2)\nreturn 2 * t / (1 + t)",
    ],
    "5.4": [
        "return (1 - np.abs(a)) ** 2",
        "return jnp.where(a > 0, (1 - a) ** 2, (1 + a) ** 2)",
        "return 1 - 2 * abs(a) + a * a",
        "x = a / (1 - jnp.abs(a))\nreturn 1 / (1 + jnp.abs(x)) ** 2",
    ],
    "5.5": [
        """
        w = omega * x
        slope = jnp.sin(2 * w)
        return da * (1 + slope), (da * (x * slope - jnp.sin(w) ** 2 / omega)).sum() / omega
        """,
        """
        s, c = jnp.sin(omega * x), jnp.cos(omega * x)
        domega = jnp.vdot(da, 2 * x * s * c / omega) - jnp.vdot(da, s * s) / omega**2
        return da * (s + c) ** 2, domega
        """,
        """
        a = snake(x, omega)
        dx = da + da * jnp.sin(2 * omega * x)
        return dx, jnp.einsum("ij,ij->", dx, x) / omega - jnp.einsum("ij,ij->", da, a) / omega
        """,
    ],
}
WRONG = {
    "5.1": [
        "return [0.0, 5.0, 7.0, -4.0], [0.0, 2.5, 7.0, -4.0]",
        "return [0.0, 0.0, 7.0, -4.0], [0.0, 0.5, 7.0, -4.0]",
        "return [0.0, 0.0, 1.0, 1.0], [0.0, 0.5, 1.0, 1.0]",
        "return [0.0, 2.5, 7.0, -4.0], [0.0, 0.0, 7.0, -4.0]",
    ],
    "5.2": [
        "return dict(exp=lambda a: a, cube=lambda a: 3 * a ** (2 / 3), sine=None, bell=None)",
        'return {"exp": lambda a: a, "cube": None, "sine": None, "bell": None}',
        "return dict(exp=jnp.exp, cube=lambda a: 3 * jnp.cbrt(a) ** 2, sine=None, bell=None)",
        'return {"exp": lambda a: a, "sine": None, "bell": None}',
        """
        cube, sine = lambda a: 3 * jnp.cbrt(a) ** 2, lambda a: jnp.sqrt(1 - a * a)
        return {"exp": lambda a: a, "cube": cube, "sine": sine, "bell": None}
        """,
    ],
    "5.3": [
        "return 1 - jnp.exp(-a)",
        "return jax.nn.sigmoid(a)",
        "return jnp.expm1(-a)",
        "return (jnp.exp(a) - 1) / jnp.exp(a)",
    ],
    "5.4": [
        "return (1 - a) ** 2",
        "return (1 + a) ** 2",
        "return 1 / (1 + jnp.abs(a)) ** 2",
        "return 1 - jnp.abs(a) ** 2",
    ],
    "5.5": [
        """
        w = omega * x
        dx = da * (1 + jnp.sin(2 * w))
        return dx, da * (x * jnp.sin(2 * w) / omega - jnp.sin(w) ** 2 / omega**2)
        """,
        """
        w = omega * x
        dx = da * (1 + jnp.sin(w))
        return dx, jnp.sum(da * (x * jnp.sin(2 * w) / omega - jnp.sin(w) ** 2 / omega**2))
        """,
        """
        w = omega * x
        return da * (1 + jnp.sin(2 * w)), jnp.sum(da * x * jnp.sin(2 * w)) / omega
        """,
        """
        w = omega * x
        dx = da * jnp.sin(2 * w)
        return dx, jnp.sum(da * (x * jnp.sin(2 * w) / omega - jnp.sin(w) ** 2 / omega**2))
        """,
    ],
}


def slopes(name, x, **hyper):
    """The rule's slope at each entry of x, in float64."""
    a, kept = getattr(hg, name + "_fwd")(x, **hyper)
    (dx,) = getattr(hg, name + "_bwd")(kept, jnp.ones_like(a), **hyper)
    return np.asarray(dx, "float64")


def lost(name, dtype):
    """Past which x the slope may be 10 % off, and from which on it is 0."""
    x = np.arange(0, 45, 2.0**-7)
    true = {
        "sigmoid": lambda: 1 / (2 + 2 * np.cosh(x)),
        "tanh": lambda: 1 / np.cosh(x) ** 2,
        "elu": lambda: np.exp(-x),
    }
    slope = slopes(name, jnp.asarray(-x if name == "elu" else x, dtype))
    zero = np.argmax(slope == 0)
    assert not slope[zero:].any(), "and 0 from there on"
    off = np.argmax(np.abs(slope / true[name]() - 1) > 0.1)
    return x[off], x[zero]


@pytest.fixture
def optimised():
    """What a user's JAX computes, to the last digit."""
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "elu"])
def test_the_docstring_says_where_the_slope_loses_its_digits(name):
    words = " ".join(getattr(hg, name).__doc__.split("\n\n")[1].split())
    pattern = r"off past \|?x\|? = (\d+) in float64, (\d+) in float32, (\d+) in bfloat16"
    rough = re.search(pattern, words).groups()
    gone = re.search(r"and is 0 from (\d+), (\d+), (\d+) on", words).groups()
    for dtype, *said in zip(("float64", "float32", "bfloat16"), rough, gone, strict=True):
        off, zero = lost(name, dtype)
        assert np.floor(off) == float(said[0]), dtype
        # the last bit of expm1 differs from one version of XLA to another
        assert 0 <= float(said[1]) - zero < (1.1 if name == "elu" else 1), dtype


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_on_the_left_sigmoid_s_slope_keeps_its_digits(dtype):
    x = np.arange(-80, 0, 0.5)
    true = 1 / (2 + 2 * np.cosh(x))
    np.testing.assert_allclose(slopes("sigmoid", jnp.asarray(x, dtype)), true, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_relu_s_slope_is_exact(dtype):
    x = jnp.asarray([-3e38, -1e-30, 0, 1e-30, 17, 3e38], dtype)
    _, kept = hg.relu_fwd(x)
    da = jnp.asarray([3, 5, 7, 11, 13, -2], dtype)
    assert np.array_equal(hg.relu_bwd(kept, da)[0], [0, 0, 0, 11, 13, -2])


def test_composed_choices_at_the_kink_need_not_be_a_subgradient():
    relu = hg.as_layer(hg.relu, hg.relu_fwd, hg.relu_bwd)
    for f in (relu, hg.relu, jax.nn.relu):
        assert jax.grad(lambda x, f=f: f(x) - f(-x))(0.0) == 0  # of x itself, whose slope is 1
        assert jax.grad(lambda x, f=f: f(f(x)) - f(x))(0.0) == 0


def scaled(x, *, by=3.0):
    return jnp.tanh(by * x)


@pytest.mark.parametrize(
    "rule",
    [
        hg.from_output(scaled, lambda a, *, by: by * (1 - a * a)),
        hg.from_input(scaled, lambda x, *, by: by / jnp.cosh(by * x) ** 2),
    ],
)
def test_a_hyperparameter_reaches_the_slope_and_has_its_default_there(rule):
    x = np.random.default_rng(2).normal(size=(4, 3))
    hg.check_rule(scaled, *rule, x)
    hg.check_rule(scaled, *rule, x, by=0.7)
    assert [f.__name__ for f in rule] == ["scaled_fwd", "scaled_bwd"]


def test_what_a_rule_keeps():
    x = jnp.asarray([0.3, -2.0, 1.1])
    a, kept = hg.from_output(scaled, lambda a, *, by: by * (1 - a * a))[0](x)
    assert kept is a
    a, kept = hg.from_input(scaled, lambda x, *, by: by)[0](x)
    assert kept is x


# What JAX chooses where there is no derivative: the slope at each kink of its own function.
KINKS = {
    "relu": {0: 0},
    "relu6": {0: 0, 6: 0},
    "hard_sigmoid": {-3: 0, 3: 0},
    "leaky_relu": {0: 1},
    "hard_tanh": {-1: 1, 1: 1},
    "hard_silu": {-3: 0, 3: 1},
    "sparse_sigmoid": {-1: 0.25, 1: 0.25},
    "selu": {0: 1.0507009873554805 * 1.6732632423543772},
}


@pytest.mark.parametrize("name", KINKS)
def test_at_a_kink_the_rule_and_its_plain_function_choose_as_jax_does(name):
    points = jnp.array([*KINKS[name]], float)
    chosen = np.array([*KINKS[name].values()])
    np.testing.assert_allclose(slopes(name, points), chosen, rtol=1e-15)
    for f in (getattr(jax.nn, name), getattr(hg, name)):
        np.testing.assert_allclose(jax.vmap(jax.grad(f))(points), chosen, rtol=1e-15)
    apart = np.abs(slopes(name, points + 1e-6) - slopes(name, points - 1e-6))
    assert (apart > 0.1).all(), "no kink"


def test_where_a_curve_is_flat_an_infinite_cotangent_is_stopped():
    flat = {"relu": -1.0, "relu6": 7.0, "hard_sigmoid": 4.0, "hard_tanh": -2.0, "sparse_plus": -2.0}
    for name, x in flat.items():
        layer = hg.as_layer(*(getattr(hg, name + end) for end in ("", "_fwd", "_bwd")))
        for f in (layer, getattr(hg, name)):
            level = f(x)
            assert jax.grad(lambda x, f=f, level=level: jnp.sqrt(f(x) - level))(x) == 0, name


def test_elu_has_its_kink_where_alpha_is_not_1():
    for alpha, f in ((1.0, jax.nn.elu), (0.5, lambda x: jax.nn.elu(x, 0.5))):
        assert slopes("elu", jnp.zeros(()), alpha=alpha) == alpha == jax.grad(f)(0.0)
    assert slopes("celu", jnp.zeros(()), alpha=0.5) == jax.grad(lambda x: jax.nn.celu(x, 0.5))(0.0)


def test_sparse_sigmoid_is_the_slope_of_sparse_plus():
    x = jnp.linspace(-2, 2, 65)
    np.testing.assert_array_equal(slopes("sparse_plus", x), hg.sparse_sigmoid(x))


def test_the_hyperparameters_defaults_are_those_of_jax():
    x = jnp.linspace(-2, 2, 9)
    for name in ("leaky_relu", "elu", "celu", "squareplus"):
        np.testing.assert_allclose(getattr(hg, name)(x), getattr(jax.nn, name)(x), rtol=1e-14)


# as a textbook has them: the value is NaN or infinite, or the gradient of JAX is
TEXTBOOK = {
    "sigmoid": lambda x: 1 / (1 + jnp.exp(-x)),
    "tanh": lambda x: (jnp.exp(x) - jnp.exp(-x)) / (jnp.exp(x) + jnp.exp(-x)),
    "softplus": lambda x: jnp.log(1 + jnp.exp(x)),
    "log_sigmoid": lambda x: jnp.log(1 / (1 + jnp.exp(-x))),
    "elu": lambda x: jnp.where(x > 0, x, jnp.exp(x) - 1),
    "silu": lambda x: x / (1 + jnp.exp(-x)),
    "mish": lambda x: x * jnp.tanh(jnp.log(1 + jnp.exp(x))),
}


@pytest.mark.parametrize("name", TEXTBOOK)
def test_the_rule_is_finite_where_the_textbook_form_gives_nan(name):
    x = jnp.array([-1e4, -90, 90, 1e4], "float32")
    assert jnp.isnan(jax.vmap(jax.grad(TEXTBOOK[name]))(x)).any()
    assert np.isfinite(getattr(hg, name)(x)).all()
    rises = slopes(name, x).round(6)
    np.testing.assert_array_equal(
        np.abs(rises), np.abs(jax.vmap(jax.grad(getattr(jax.nn, name)))(x))
    )
    near = jnp.array([-1.5, 0.5, 2.0])
    np.testing.assert_allclose(TEXTBOOK[name](near), getattr(hg, name)(near), rtol=1e-12)


@pytest.mark.parametrize(("forward", "backward"), [("gelu", "gelu_tanh"), ("gelu_tanh", "gelu")])
def test_the_forward_of_one_gelu_with_the_backward_of_the_other_is_named(forward, backward):
    rule = [getattr(hg, name) for name in (forward, forward + "_fwd", backward + "_bwd")]
    form = {"gelu": "exact", "gelu_tanh": "tanh"}[backward]
    with pytest.raises(hg.GradientMismatch, match=f"the slope of GELU's {form} form stands"):
        hg.check_rule(*rule, np.random.default_rng(7).normal(size=(4, 3, 5)))


def test_what_the_two_gelus_differ_by():
    x = jnp.linspace(-6, 6, 1201)
    assert 4.7e-4 < np.abs(hg.gelu(x) - hg.gelu_tanh(x)).max() < 5e-4
    assert 8.6e-4 < np.abs(slopes("gelu", x) - slopes("gelu_tanh", x)).max() < 9e-4


def test_squareplus_keeps_its_digits_on_the_left():
    x = jnp.array([-1e4, -8200, -30, -1], "float32")
    true = np.array([2 / (np.sqrt(t * t + 4) - t) for t in np.asarray(x, "float64")])
    np.testing.assert_allclose(hg.squareplus(x), true, rtol=1e-6)
    np.testing.assert_allclose(slopes("squareplus", x), true**2 / (true**2 + 1), rtol=1e-6)
    assert (jax.nn.squareplus(x)[:2] == 0).any()


def test_gelu_and_soft_sign_keep_their_digits_in_the_tails():
    x = np.array([-8.0, -5.0, 1e3, 1e4])
    found = slopes("soft_sign", jnp.asarray(x, "float32"))
    np.testing.assert_allclose(found, 1 / (1 + np.abs(x)) ** 2, rtol=1e-6)
    left = jnp.array([-8.0, -5.0], "float32")
    np.testing.assert_allclose(slopes("gelu", left), slopes("gelu", left.astype(float)), rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: hg.elu(x, alpha=0.0), "alpha: expected a positive number; got 0.0"),
        (lambda x: hg.celu(x, alpha=-1.0), "alpha: expected a positive number; got -1.0"),
        (lambda x: hg.squareplus(x, b=0), "b: expected a positive number; got 0"),
        (lambda x: hg.softcap(x, cap=np.nan), "cap: expected a positive number; got nan"),
        (lambda x: hg.softcap_fwd(x, cap=np.inf), "cap: expected a positive number; got inf"),
        (hg.glu, r"x: expected a last axis of two halves; got shape \(2, 3\)"),
    ],
)
def test_what_a_value_out_of_range_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((2, 3)))


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: hg.prelu(np.ones((4, 3)), np.ones(4)), ["'slope'", "[4]"]),
        (lambda: hg.prelu(np.ones(()), np.ones(4)), ["'x'"]),
        (lambda: hg.swiglu(np.ones((4, 3)), np.ones(3)), ["'up'", "[3]"]),
        (lambda: hg.geglu(np.ones((4, 3), int), np.ones((4, 3))), ["'gate'", "i64[4,3]"]),
        (lambda: hg.glu(np.ones(())), ["'x'"]),
        (lambda: hg.elu(np.ones(3), alpha=np.ones(3)), ["'alpha'"]),
    ],
)
def test_a_wrong_shape_names_the_argument(call, names):
    with pytest.raises(TypeError) as problem:
        call()
    assert all(name in str(problem.value) for name in names)


def test_prelu_s_slope_may_have_any_sign_and_all_examples_add_up():
    x, slope = jnp.array([[-2.0, 3.0], [-1.0, -4.0], [0.0, 5.0]]), jnp.array([0.5, -2.0])
    a, kept = hg.prelu_fwd(x, slope)
    np.testing.assert_array_equal(a, [[-1, 3], [-0.5, 8], [0, 5]])
    dx, dslope = hg.prelu_bwd(kept, jnp.array([[10.0, 1], [20, 2], [30, 3]]))
    np.testing.assert_array_equal(dx, [[5, 1], [10, -4], [30, 3]])
    np.testing.assert_array_equal(dslope, [-40, -8])
