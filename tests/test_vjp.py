"""check_vjp: rules that are right pass, wrong ones are named, and f never judges itself."""

import functools
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

import handgrad as hg
from handgrad.check import GradientMismatch, check_vjp
from handgrad.check.call import generic
from handgrad.check.plain import plain, rules


def draw(*shape, dtype="float32", seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def with_rule(f, f_bwd, **options):
    """f with a rule that keeps its arguments."""
    f = jax.custom_vjp(f, **options)
    f.defvjp(lambda *args: (f.fun(*args), args), f_bwd)
    return f


def scaled_norm(x, gamma):
    return gamma * x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def norm_bwd(args, dz, slip=lambda dx, dgamma, *_: (dx, dgamma)):
    x, gamma = args
    s = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    u, du = x * s, dz * gamma
    dx, dgamma = s * (du - u * (du * u).mean(-1, keepdims=True)), (dz * u).sum(0)
    return slip(dx, dgamma, s, u, dz)


def norm(slip=lambda dx, dgamma, *_: (dx, dgamma)):
    return with_rule(scaled_norm, functools.partial(norm_bwd, slip=slip))


X, GAMMA = draw(4, 6), jnp.ones(6, "float32")


class Module:
    """What a library of modules has: parameters inside, and a method."""

    def __init__(self, gamma):
        self.gamma = gamma

    def __call__(self, x):
        return norm()(x, self.gamma)


@pytest.fixture(name="unnamed")
def no_search(monkeypatch):
    monkeypatch.setattr("handgrad.check.vjp.explained", lambda verdicts, *_: verdicts)


unnamed = pytest.mark.usefixtures("unnamed")  # where it is enough that something is wrong

CARRIERS = {
    "custom_vjp": (norm(), (X, GAMMA)),
    "jit": (jax.jit(norm()), (X, GAMMA)),
    "vmap": (jax.vmap(norm(), (0, None)), (draw(2, 4, 6), GAMMA)),
    "partial": (functools.partial(norm(), gamma=GAMMA), (X,)),
    "method": (Module(draw(6)).__call__, (X,)),
    "object": (Module(draw(6)), (X,)),
    "checkpoint": (jax.checkpoint(norm()), (X, GAMMA)),
    "scan": (lambda x, g: jax.lax.scan(lambda h, x: (norm()(h, g) + x,) * 2, x[0:1], x)[1], None),
    "cond": (lambda x, g: jax.lax.cond(x.sum() > 99, lambda: x, lambda: norm()(x, g)), None),
    "as_layer": (hg.as_layer(hg.linear, hg.linear_fwd, hg.linear_bwd), (X, draw(5, 6), draw(5))),
    "custom_jvp": (jax.nn.relu, (X,)),
}


@pytest.mark.parametrize("name", CARRIERS)
def test_a_right_rule_passes_wherever_it_stands(name):
    f, args = CARRIERS[name]
    assert all(verdict.right for verdict in check_vjp(f, *(args or (X, GAMMA))))


@unnamed
@pytest.mark.parametrize("name", ["jit", "vmap", "scan", "checkpoint"])
def test_a_wrong_rule_is_found_wherever_it_stands(name, monkeypatch):
    monkeypatch.setitem(globals(), "norm", lambda: with_rule(scaled_norm, lambda *a: twice(*a)))

    def twice(args, dz):
        dx, dgamma = norm_bwd(args, dz)
        return 2 * dx, dgamma

    f = {
        "jit": lambda: jax.jit(norm()),
        "vmap": lambda: jax.vmap(norm(), (0, None)),
        "scan": lambda: CARRIERS["scan"][0],
        "checkpoint": lambda: jax.checkpoint(norm()),
    }[name]()
    with pytest.raises(GradientMismatch, match="WRONG"):
        check_vjp(f, *(CARRIERS[name][1] or (X, GAMMA)))


SLIPS = {
    "sign": (lambda dx, dg, *_: (-dx, dg), r"dx  .*WRONG: its sign is flipped"),
    "factor": (lambda dx, dg, *_: (dx, 2 * dg), r"dgamma  .*WRONG: off by the constant factor 2"),
    "one entry": (lambda dx, dg, *_: (dx.at[2, 1].mul(1.001), dg), r"dx .* at \[2, 1\]"),
    "nan": (lambda dx, dg, *_: (dx, dg / 0), r"dgamma .*WRONG: inf at|dgamma .*WRONG: -inf at"),
    "gamma forgotten": (
        lambda dx, dg, s, u, dz: (s * (dz - u * (dz * u).mean(-1, keepdims=True)), dg),
        r"dx .*WRONG: at another point: ",
    ),
}


@pytest.mark.parametrize("name", SLIPS)
def test_a_wrong_rule_is_named(name):
    slip, words = SLIPS[name]
    with pytest.raises(GradientMismatch, match=words):
        check_vjp(norm(slip), X, GAMMA)


def test_what_was_done_is_said_with_the_line_of_the_plain_program():
    def layer(x, W):
        return jnp.exp(jnp.tanh(x @ W))

    def layer_bwd(args, dz):
        x, W = args
        h = jnp.tanh(x @ W)
        du = dz * jnp.exp(h) * (1 - h)
        return du @ W.T, x.T @ du

    with pytest.raises(GradientMismatch) as caught:
        check_vjp(with_rule(layer, layer_bwd), X, draw(6, 5, seed=1))
    line = layer.__code__.co_firstlineno + 1
    for verdict in caught.value.report[1:]:
        assert verdict.words.startswith(f"at `jnp.tanh(x @ W)` (line {line}): 1 - o stands for")
        assert verdict.mistakes == ("slope",)


@unnamed
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_each_dtype_is_judged_by_its_own_rounding(dtype):
    args = X.astype(dtype), GAMMA.astype(dtype)
    report = check_vjp(norm(), *args)
    in_what = "" if dtype == "float64" else f" in float64, to the digits of {dtype}"
    assert {v.words for v in report} == {f"matches the plain program{in_what}"}
    with pytest.raises(GradientMismatch, match=r"dgamma .*WRONG"):
        check_vjp(norm(lambda dx, dg, *_: (dx, 1.25 * dg)), *args)


def test_float32_mode_is_judged_in_float64_all_the_same():
    jax.config.update("jax_enable_x64", False)
    try:
        report = check_vjp(norm(), X, GAMMA)
        assert "in float64, to the digits of float32" in report[0].words
        with pytest.raises(GradientMismatch, match=r"dx .*WRONG: off by the constant factor 1.001"):
            check_vjp(norm(lambda dx, dg, *_: (1.001 * dx, dg)), X, GAMMA)
        assert not jax.config.jax_enable_x64
    finally:
        jax.config.update("jax_enable_x64", True)


def test_the_power_of_a_check_is_told():
    powers = {}
    for dtype in ("float32", "bfloat16"):
        report = check_vjp(norm(), X.astype(dtype), GAMMA.astype(dtype), power=True)
        assert "it would have caught a factor of 1 + 1e" in report[1].words
        powers[dtype] = report.power["dx"]
    assert powers["float32"].factor <= 1 + 1e-4 and powers["float32"].entry <= 1e-4
    assert 1 + 1e-2 < powers["bfloat16"].factor <= 2


@unnamed
def test_a_small_entry_beside_large_ones_is_seen():
    scale = jnp.asarray([1.0, 1e-7, 1e4], "float32")

    def bwd(slip, args, dz):
        return (dz * scale * slip,)

    check_vjp(with_rule(lambda x: scale * x, functools.partial(bwd, 1.0)), draw(3))
    with pytest.raises(GradientMismatch, match=r"dx .*WRONG"):
        slip = jnp.asarray([1.0, -1.0, 1.0], "float32")
        check_vjp(with_rule(lambda x: scale * x, functools.partial(bwd, slip)), draw(3))


@unnamed
def test_a_rule_that_was_made_for_a_function_of_jax_is_no_rule_of_jax():
    for slope in (jnp.cos, jnp.zeros_like):
        sin = jax.custom_jvp(jnp.sin)
        sin.defjvp(lambda x, dx, slope=slope: (jnp.sin(*x), slope(*x) * dx[0]))
        if slope is jnp.cos:
            check_vjp(sin, draw(500))
        else:
            with pytest.raises(GradientMismatch, match=r"dx .*WRONG"):
                check_vjp(sin, draw(500))
    assert rules(sin, X) == {"sin": False}
    assert rules(jax.nn.relu, X) == {"relu": True}
    relu = jax.custom_jvp(jax.nn.relu)
    relu.defjvp(lambda x, dx: (jax.nn.relu(*x), *dx))
    with pytest.raises(GradientMismatch, match=r"dx .*WRONG"):
        check_vjp(lambda x: relu(x), X)


def test_the_plain_program_keeps_the_rules_of_jax():
    f = with_rule(lambda x: jax.nn.relu(x) ** 2, lambda args, dz: (2 * jax.nn.relu(*args) * dz,))
    assert rules(plain(f), X) == {"relu": True}
    assert rules(plain(f, of_jax=True), X) == {}
    check_vjp(f, X)


def test_a_function_is_not_compared_with_itself():
    cube = with_rule(lambda x: x**3, lambda args, dz: (3 * args[0] ** 2 * dz,))

    def tanh(x):
        return jnp.tanh(x)

    for f, reference, words in (
        (tanh, None, "tanh would be compared with itself: there is no custom_vjp or custom_jvp"),
        (lambda x: jax.nn.relu(x) ** 2, None, "in it but JAX's own, relu; expected one, or a ref"),
        (tanh, tanh, "the reference is the same program"),
        (tanh, jax.jit(tanh), "tanh would be compared with itself: the reference is the same"),
        (cube, cube, "the reference is the same program"),
    ):
        with pytest.raises(ValueError, match=words):
            check_vjp(f, X, reference=reference)
    check_vjp(tanh, X, reference=lambda x: 1 - 2 / (1 + jnp.exp(2 * x)))
    check_vjp(cube, X, reference=lambda x: x * x * x)


@unnamed
def test_the_value_is_compared_too():
    f = jax.custom_vjp(lambda x: x**2)
    f.defvjp(lambda x: (x**2 + 1, x), lambda x, dz: (2 * x * dz,))
    with pytest.raises(GradientMismatch, match=r"value .*WRONG: .*\ndx .* matches"):
        check_vjp(f, X)
    f.defvjp(lambda x: (x**2, x), lambda x, dz: (2 * x * dz,))
    with pytest.raises(GradientMismatch, match=r"value .*WRONG(.|\n)*dx .*of another function"):
        check_vjp(f, X, reference=lambda x: 3 * x**2)
    with pytest.raises(GradientMismatch, match=r"value\[0\] .*WRONG: not what the reference comp"):
        check_vjp(lambda x: (x.argmax(), x), X, reference=lambda x: (x.argmin(), x))
    with pytest.raises(GradientMismatch, match=r"WRONG: expected shape \(3, 6\), as the reference"):
        check_vjp(f, X, reference=lambda x: x[:3] ** 2)
    with pytest.raises(GradientMismatch, match=r"expected .*\[\(4, 6\), \(4, 6\)\], as the refer"):
        check_vjp(f, X, reference=lambda x: (x, x))


def test_every_kind_of_argument():
    def f(tree, ids, x, power, mode, scale=1.0):
        assert mode == "sum" and isinstance(power, int)
        return {"a": (tree["w"][0][ids] * x).sum(-1) ** power * scale, "ids": ids + 1}

    def f_bwd(power, mode, residuals, dz):
        (tree, ids, x), scale = residuals
        rows = tree["w"][0][ids]
        d = (power * (rows * x).sum(-1) ** (power - 1) * dz["a"] * scale)[:, None]
        dscale = ((rows * x).sum(-1) ** power * dz["a"]).sum()
        dw = jnp.zeros_like(tree["w"][0]).at[ids].add(d * x)
        return {"w": [dw], "b": None}, None, d * rows, dscale

    def f_fwd(tree, ids, x, power, mode, scale):
        return f(tree, ids, x, power, mode, scale), ((tree, ids, x), scale)

    ruled = jax.custom_vjp(f, nondiff_argnums=(3, 4))
    ruled.defvjp(f_fwd, f_bwd)
    tree = {"w": [draw(5, 3)], "b": np.arange(2)}
    args = tree, np.array([0, 3, 3, 1]), draw(4, 3), 2, "sum"
    report = check_vjp(ruled, *args, scale=jnp.float32(2))
    assert [v.name for v in report] == [
        "value['ids']",
        "value['a']",
        "dtree['w'][0]",
        "dx",
        "dscale",
    ]
    assert len(check_vjp(ruled, *args, scale=2.0)) == 4  # a Python number by keyword is a setting
    assert len(check_vjp(jax.jit(ruled, static_argnums=(3, 4)), *args, scale=2.0)) == 4
    with pytest.raises(TypeError, match="expected a float array to differentiate by; x is int32"):
        check_vjp(with_rule(lambda x: x, lambda args, dz: (dz,)), jnp.arange(3, dtype="int32"))
    with pytest.raises(TypeError, match=r"expected a float in its value; got shape \(4, 6\)"):
        check_vjp(lambda x: x.astype(int), X, reference=lambda x: x.astype(int) + 1)


@unnamed
def test_a_number_by_position_is_differentiated_unless_f_declares_it_static():
    power = with_rule(lambda x, c: c * x**2, lambda args, dz: (2 * args[1] * args[0] * dz, None))
    with pytest.raises(GradientMismatch, match=r"dc .*WRONG"):
        check_vjp(power, X, 1.5)
    held = jax.custom_vjp(power.fun, nondiff_argnums=(1,))
    held.defvjp(lambda x, c: (held.fun(x, c), x), lambda c, x, dz: (2 * c * x * dz,))
    for f in (held, functools.partial(held), jax.jit(held, static_argnums=1)):
        assert [v.name for v in check_vjp(f, X, 1.5)] == ["value", "dx"]
    with pytest.raises(TypeError, match="to differentiate by; c is float"):
        check_vjp(functools.partial(held, X), 1.5)


def test_a_list_of_numbers_is_an_array():
    square = with_rule(lambda x: x**2, lambda args, dz: (2 * args[0] * dz,))
    assert check_vjp(square, [0.5, -1.0])[1].shape == (2,)


def test_a_number_has_no_dtype_that_spreads():
    seen = set()

    def bwd(args, dz):
        seen.add(str(dz.dtype))
        return args[1] * dz, (args[0] * dz).sum()

    check_vjp(with_rule(lambda x, c: c * x, bwd), X, 1.5)
    assert seen == {"float32"}


@unnamed
def test_a_classifier_without_doubt_is_not_blamed_for_its_digits(monkeypatch):
    # what the plain program loses in float32 is seen without looking into its operations
    monkeypatch.setattr("handgrad.check.vjp.Rounding.within", lambda self, place: 0.0)
    labels = jnp.arange(6) % 4

    def loss(z):
        return -jax.nn.log_softmax(z)[jnp.arange(6), labels]

    def loss_bwd(args, dz, sign=1):
        o = jax.nn.softmax(*args)
        return ((o - sign * jax.nn.one_hot(labels, 4, dtype=o.dtype)) * dz[:, None],)

    z = 14 * jax.nn.one_hot(labels, 4, dtype="float32") + draw(6, 4)
    check_vjp(with_rule(loss, loss_bwd), z)
    with pytest.raises(GradientMismatch, match=r"dz .*WRONG"):
        check_vjp(with_rule(loss, functools.partial(loss_bwd, sign=0.9)), z)


@unnamed
def test_who_stands_a_digit_beside_a_kink_may_take_either_slope():
    def hinge_bwd(args, dz):
        return (dz * (args[0] > 1 + 2e-7),)

    hinge = with_rule(lambda x: jnp.maximum(x - 1, 0), hinge_bwd)
    beside = jnp.full(100, np.nextafter(np.float32(1), np.float32(2)))
    check_vjp(hinge, jnp.concatenate([beside, draw(400)]))
    with pytest.raises(GradientMismatch, match=r"dx .*WRONG"):
        check_vjp(with_rule(hinge.fun, lambda args, dz: (dz * (args[0] > 1.01),)), 1 + X / 99)


def test_who_sits_near_a_kink_is_not_blamed():
    def layer(x, W):
        return jnp.maximum(x @ W, 0)

    def layer_bwd(args, dz):
        x, W = args
        products = sum(x[:, k, None] * W[k] for k in range(x.shape[1]))  # rounds otherwise
        dz = jnp.where(products > 0, dz, 0)
        return dz @ W.T, x.T @ dz

    for seed in range(2):
        args = draw(40, 16, dtype="bfloat16", seed=seed), draw(16, 30, dtype="bfloat16", seed=9)
        check_vjp(with_rule(layer, layer_bwd), *args)


def test_at_a_kink_nothing_can_be_judged_and_at_a_tie_either_is_right():
    relu = with_rule(lambda x: jnp.maximum(x, 0), lambda args, dz: (dz * (args[0] > 0),))
    check_vjp(relu, X)
    with pytest.raises(GradientMismatch) as caught:
        check_vjp(relu, X.at[1, 2].set(0).at[3, 3].set(0))
    verdict = caught.value.report[1]
    assert verdict.outcome == "unjudged"
    assert verdict.words.startswith("cannot be judged here: a kink or a tie at [1, 2], [3, 3]")

    def first(args, dz):
        return (dz * (jnp.arange(3) == args[0].argmax()),)

    tied = jnp.asarray([2.0, 2.0, 1.0], "float32")
    check_vjp(with_rule(lambda x: x.max(), first), tied)
    with pytest.raises(GradientMismatch, match=r"dx .* a kink or a tie at \[0\]"):
        check_vjp(with_rule(lambda x: x.max(), lambda args, dz: (3 * first(args, dz)[0],)), tied)


@unnamed
def test_a_long_sum_may_be_added_up_one_by_one():
    def one_by_one(x):
        return jax.lax.scan(lambda c, x: (c + x,) * 2, jnp.zeros_like(x[0]), x)[1]

    f = jax.custom_vjp(lambda x: jnp.cumsum(x, axis=0))
    f.defvjp(lambda x: (one_by_one(x), None), lambda _, dz: (one_by_one(dz[::-1])[::-1],))
    check_vjp(f, draw(20_000, 1))


@unnamed
def test_a_gradient_that_is_truly_0_is_right_and_one_that_rounding_buries_is_not_judged():
    def shifted(z, c):
        return jax.nn.softmax(z + c[:, None])

    def shifted_bwd(args, do):
        o = shifted(*args)
        dz = o * (do - (o * do).sum(-1, keepdims=True))
        return dz, dz.sum(-1)  # a softmax does not move with c

    check_vjp(with_rule(shifted, shifted_bwd), X, draw(4))
    with pytest.raises(GradientMismatch, match=r"dc .*WRONG"):
        wrong = with_rule(shifted, lambda args, do: (shifted_bwd(args, do)[0], 1e-3 * do[:, 0]))
        check_vjp(wrong, X, draw(4))

    def chaos(x):
        return jax.lax.fori_loop(0, 60, lambda _, x: 3.9 * x * (1 - x), x)

    f = with_rule(chaos, lambda args, dz: (jax.jvp(chaos, args, (dz,))[1],))
    with pytest.raises(GradientMismatch, match=r"dx .* cannot be judged here: roundings move"):
        check_vjp(f, jax.nn.sigmoid(draw(20)))


def test_where_the_plain_program_is_not_finite_nothing_is_judged():
    log = with_rule(jnp.log, lambda args, dz: (dz / args[0],))
    with pytest.raises(GradientMismatch, match=r"cannot be judged here: the plain program gives -"):
        check_vjp(log, jnp.zeros(3))
    root = with_rule(
        lambda x: jnp.where(x < 5, jnp.nan, x), lambda args, dz: (jnp.where(args[0] < 5, 0, dz),)
    )
    with pytest.raises(GradientMismatch, match=r"value .* cannot be judged here: .*not finite"):
        check_vjp(root, jnp.ones(3))
    near_1 = with_rule(lambda x: jnp.where(abs(x - 1) < 1e-3, x, jnp.nan), lambda args, dz: (dz,))
    assert check_vjp(near_1, jnp.ones(3, "float32"))[0].words.endswith(
        "; at another point the plain program is not finite"
    )


def test_a_function_that_draws_anew_cannot_be_judged():
    rng = np.random.default_rng(0)
    f = with_rule(lambda x: x * rng.normal(), lambda args, dz: (dz,))
    with pytest.raises(GradientMismatch, match="f is another function at every call"):
        check_vjp(f, X)


@unnamed
def test_a_rule_in_numpy_is_judged_as_one_in_jax():
    def bwd(slope, args, dz):
        return (jnp.asarray(slope(np.asarray(args[0])) * np.asarray(dz)),)

    check_vjp(with_rule(jnp.sin, functools.partial(bwd, np.cos)), X)
    with pytest.raises(GradientMismatch, match=r"dx .*WRONG"):
        check_vjp(with_rule(jnp.sin, functools.partial(bwd, np.sin)), X)


def kernel_of(slip):
    """A scaled norm in Pallas, without its scale: one row a program, both ways."""

    def call(kernel, out, *operands):
        blocks = [pl.BlockSpec((1, a.shape[1]), lambda i: (i, 0)) for a in (*operands, *out)]
        return pl.pallas_call(
            kernel,
            grid=(len(operands[0]),),
            in_specs=blocks[: len(operands)],
            out_specs=blocks[len(operands) :],
            out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in out],
            interpret=True,
        )(*operands)

    def forwards(x, u, s):
        s[...] = jax.lax.rsqrt((x[...] ** 2).mean(-1, keepdims=True) + 1e-6)
        u[...] = x[...] * s[...]

    def backwards(u, s, dz, dx):
        path = (u[...] * dz[...]).mean(-1, keepdims=True)
        dx[...] = s[...] * (dz[...] - slip * u[...] * path)

    def norm_fwd(x):
        u, s = call(forwards, (x, x[:, :1]), x)
        return u, (u, s)

    normed = jax.custom_vjp(lambda x: norm_fwd(x)[0])
    normed.defvjp(norm_fwd, lambda residuals, dz: tuple(call(backwards, (dz,), *residuals, dz)))
    return normed


def test_a_pallas_kernel_needs_a_reference():
    def reference(x):
        return scaled_norm(x, 1.0)

    report = check_vjp(kernel_of(1.0), X, reference=reference, vmap=True, residuals=True)
    assert report[-1].words.startswith("16 bytes beyond arguments and value; the reference keeps ")
    with pytest.raises(GradientMismatch, match=r"dx .*WRONG: the length path is left out"):
        check_vjp(kernel_of(0.0), X, reference=reference)
    with pytest.raises(ValueError, match="a Pallas kernel holds no plain program: expected ref"):
        check_vjp(kernel_of(1.0), X)
    with pytest.raises(GradientMismatch, match="does not run when differentiated again: "):
        check_vjp(kernel_of(1.0), X, reference=reference, order=2)


def test_a_reference_is_handed_the_keywords_that_it_has():
    def reference(x, *, power):
        return x**power

    f = with_rule(
        lambda x, power, block: x**power,
        lambda power, block, args, dz: (power * args[0] ** (power - 1) * dz,),
        nondiff_argnums=(1, 2),
    )
    f.defvjp(
        lambda x, power, block: (x**power, (x,)),
        lambda power, block, args, dz: (power * args[0] ** (power - 1) * dz,),
    )
    check_vjp(f, X, reference=reference, power=3, block=128)
    with pytest.raises(
        TypeError, match=r"JAX cannot differentiate the reference: .*expected anoth"
    ):
        check_vjp(f, X, reference=lambda x: _without_a_derivative(x), power=3, block=128)


def _without_a_derivative(x):
    return jax.pure_callback(lambda x: np.asarray(x) ** 3, x, x)


@unnamed
def test_what_holds_for_one_example_may_not_hold_under_vmap():
    @jax.custom_batching.custom_vmap
    def product(x, w):
        return x @ w

    @product.def_vmap
    def of_many(size, mapped, x, w):
        return jnp.einsum("bij,jk->bik", x, w[0] if mapped[1] else w), True

    f = jax.custom_vjp(product)
    f.defvjp(lambda *args: (product(*args), args), lambda r, dz: (dz @ r[1].T, r[0].T @ dz))
    args = X, draw(6, 3)
    reference = jnp.matmul
    check_vjp(f, *args, reference=reference)
    with pytest.raises(GradientMismatch, match=r"value under vmap .*WRONG"):
        check_vjp(f, *args, reference=reference, vmap=True)

    @product.def_vmap
    def of_many_if_all_are_mapped(size, mapped, x, w):
        return (x @ w if mapped[1] else x @ w.T.reshape(w.shape)), True

    with pytest.raises(GradientMismatch, match=r"value under vmap .*: with in_axes=None for w"):
        check_vjp(f, *args, reference=reference, vmap=True)

    @product.def_vmap
    def of_many_or_one(size, mapped, x, w):
        return jax.vmap(jnp.matmul)(x, w), True

    with pytest.raises(GradientMismatch, match="does not run under vmap: "):
        check_vjp(f, *args, reference=reference, vmap=True)


@unnamed
def test_a_rule_that_cannot_be_differentiated_again_is_seen_at_order_2():
    def cube(held):
        return with_rule(lambda x: x**3, lambda args, dz: (3 * held(args[0]) ** 2 * dz,))

    assert check_vjp(cube(lambda x: x), X, order=2)[-1].name == "dx, order 2"
    check_vjp(cube(jax.lax.stop_gradient), X)
    with pytest.raises(GradientMismatch, match=r"dx, order 2 .*WRONG"):
        check_vjp(cube(jax.lax.stop_gradient), X, order=2)
    with pytest.raises(ValueError, match="order: expected 1 or 2; got 3"):
        check_vjp(cube(jnp.asarray), X, order=3)


def test_a_rule_that_keeps_more_than_the_plain_program_is_told_so():
    f = jax.custom_vjp(jnp.tanh)
    f.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda a, dz: ((1 - a**2) * dz,))
    assert "0 bytes beyond arguments" in check_vjp(f, X, residuals=True)[-1].words
    f.defvjp(lambda x: (jnp.tanh(x), jnp.cosh(jnp.stack([x] * 9))), lambda c, d: (d / c[0] ** 2,))
    check_vjp(f, X)
    with pytest.raises(GradientMismatch, match=r"residuals .*WRONG: 864 bytes beyond arguments"):
        check_vjp(f, X, residuals=True)


@unnamed
def test_a_seed_draws_the_same_again_and_another_one_does_not():
    seen = []
    f = jax.custom_vjp(jnp.sin)
    f.defvjp(lambda x: (jnp.sin(x), x), lambda x, dz: (jax.debug.callback(seen.append, dz), dz)[1:])
    said = []
    for seed in (5, 5, 6):
        with pytest.raises(GradientMismatch, match=f"Drawn with seed={seed}") as caught:
            check_vjp(f, X, seed=seed)
        said.append(str(caught.value))
    first, second, third = np.array_split(np.array(seen), 3)
    assert said[0] == said[1]
    assert np.array_equal(first, second) and not np.array_equal(first, third)


def test_the_second_point_is_generic_and_keeps_what_a_function_may_rely_on():
    rng = np.random.default_rng(0)
    values = {
        "ones": jnp.ones((3, 4)),
        "zeros": jnp.zeros(5),
        "identity": jnp.eye(4),
        "positive": 7 + draw(50) ** 2,
        "negative": -1 - draw(50) ** 2,
        "share": jax.nn.sigmoid(draw(50)),
        "rows": jax.nn.softmax(draw(6, 9)),
        "mask": jnp.asarray([0.0, 1.0, 1.0], "bfloat16"),
    }
    far, near = (dict(zip(values, drawn, strict=True)) for drawn in generic(values.values(), rng))
    for name, value in values.items():
        assert far[name].shape == near[name].shape == value.shape
        assert far[name].dtype == near[name].dtype == value.dtype
    for name in ("ones", "zeros", "identity"):
        assert len(np.unique(far[name])) == far[name].size
    assert (far["ones"] < 0).any() and (far["positive"] > 0).all() and (far["negative"] < 0).all()
    assert ((far["share"] > 0) & (far["share"] < 1)).all()
    np.testing.assert_allclose(far["rows"].sum(-1), 1, rtol=1e-5)
    assert np.array_equal(far["mask"], values["mask"])
    assert (np.abs(near["positive"] / values["positive"] - 1) < 0.6).all()


def test_a_report_is_json_and_html():
    with pytest.raises(GradientMismatch) as caught:
        check_vjp(norm(SLIPS["sign"][0]), X, GAMMA)
    report = caught.value.report
    rows = json.loads(report.json())
    assert [list(row) for row in rows] == [["name", "shape", "outcome", "words", "mistakes"]] * 3
    assert [row["outcome"] for row in rows] == ["right", "wrong", "right"]
    assert rows[1] == {
        "name": "dx",
        "shape": [4, 6],
        "outcome": "wrong",
        "words": "its sign is flipped",
        "mistakes": ["sign"],
    }
    assert re.search(r"dx.*WRONG:</b> its sign is flipped", report.html())


def test_the_checker_needs_jax_and_numpy_alone():
    code = """if True:
        import sys, jax, numpy
        before = set(sys.modules)
        from handgrad.check import check_gradient, check_rule, check_steps, check_vjp
        print(*{name.partition(".")[0] for name in set(sys.modules) - before})
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) <= {"handgrad", "jax", "numpy", *sys.stdlib_module_names}
