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
        return {"silu": None, "sine": None, "exp": np.array, "cube": cube}
        """,
        "cube = lambda a: 3 * (a * a) ** (1 / 3)\n"
        "return dict(exp=lambda a: 1 * a, cube=cube, sine=None, silu=None)",
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
        s = 1 / (1 + jnp.exp(-beta * x))
        slope = beta * x * s * (1 - s)
        return da * s + da * slope, (da * x * slope).sum() / beta
        """,
        """
        s = hg.sigmoid(beta * x)
        ds = s * hg.sigmoid(-beta * x)
        return da * (s + beta * x * ds), jnp.vdot(da, x * x * ds)
        """,
        """
        a = x * jax.nn.sigmoid(beta * x)
        s = jax.nn.sigmoid(beta * x)
        return da * (s + beta * a * (1 - s)), jnp.einsum("ij,ij->", da * a, x - a)
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
        "return dict(exp=lambda a: a, cube=lambda a: 3 * a ** (2 / 3), sine=None, silu=None)",
        'return {"exp": lambda a: a, "cube": None, "sine": None, "silu": None}',
        "return dict(exp=jnp.exp, cube=lambda a: 3 * jnp.cbrt(a) ** 2, sine=None, silu=None)",
        'return {"exp": lambda a: a, "sine": None, "silu": None}',
        """
        cube, sine = lambda a: 3 * jnp.cbrt(a) ** 2, lambda a: jnp.sqrt(1 - a * a)
        return {"exp": lambda a: a, "cube": cube, "sine": sine, "silu": None}
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
        s = jax.nn.sigmoid(beta * x)
        return da * (s + beta * x * s * (1 - s)), da * x**2 * s * (1 - s)
        """,
        """
        s = jax.nn.sigmoid(beta * x)
        return da * (s + x * s * (1 - s)), jnp.sum(da * x**2 * s * (1 - s))
        """,
        """
        s = jax.nn.sigmoid(beta * x)
        return da * (s + beta * x * s * (1 - s)), jnp.sum(da * x * s * (1 - s))
        """,
        """
        s = jax.nn.sigmoid(beta * x)
        return da * s, jnp.sum(da * x**2 * s * (1 - s))
        """,
    ],
}


def lost(name, dtype):
    """Past which x the slope may be 10 % off, and from which on it is 0."""
    x = np.arange(0, 45, 2.0**-7)
    true = {"sigmoid": lambda: 1 / (2 + 2 * np.cosh(x)), "tanh": lambda: 1 / np.cosh(x) ** 2}
    f_fwd, f_bwd = getattr(hg, name + "_fwd"), getattr(hg, name + "_bwd")
    a, kept = f_fwd(jnp.asarray(x, dtype))
    slope = np.asarray(f_bwd(kept, jnp.ones_like(a))[0], "float64")
    zero = np.argmax(slope == 0)
    assert not slope[zero:].any(), "and 0 from there on"
    off = np.argmax(np.abs(slope / true[name]() - 1) > 0.1)
    return np.floor(x[off]), np.ceil(x[zero])


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_the_docstring_says_where_the_slope_loses_its_digits(name):
    words = " ".join(getattr(hg, name).__doc__.split("\n\n")[1].split())
    pattern = r"past \|?x\|? = (\d+) in float64, (\d+) in float32, (\d+) in bfloat16"
    rough = re.search(pattern, words).groups()
    gone = re.search(r"and is 0 from (\d+), (\d+), (\d+) on", words).groups()
    for dtype, *said in zip(("float64", "float32", "bfloat16"), rough, gone, strict=True):
        assert [f"{x:.0f}" for x in lost(name, dtype)] == said, dtype


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_on_the_left_sigmoid_s_slope_keeps_its_digits(dtype):
    x = np.arange(-80, 0, 0.5)
    a, kept = hg.sigmoid_fwd(jnp.asarray(x, dtype))
    slope = np.asarray(hg.sigmoid_bwd(kept, jnp.ones_like(a))[0], "float64")
    np.testing.assert_allclose(slope, 1 / (2 + 2 * np.cosh(x)), rtol=1e-5)


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
