"""The checker sees what is wrong, blames the right step, and refuses bad input clearly."""

import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from confusion import mean, norm, norm_fwd

import handgrad as hg
from handgrad.check import (
    GradientMismatch,
    check_gradient,
    check_rule,
    check_steps,
    tap,
)

rng = np.random.default_rng(3)
X, W, B = rng.normal(size=(2, 3, 4)), rng.normal(size=(5, 4)), rng.normal(size=5)


def planted(change):
    def bwd(residuals, dz):
        return change(*hg.linear_bwd(residuals, dz))

    return bwd


WRONG = {
    "transposed": (lambda dx, dW, db: (dx, dW.T, db), r"dW .*shape \(5, 4\); transposed"),
    "scaled": (lambda dx, dW, db: (dx, dW, db / 6), "db .*WRONG: off by the constant factor 1/6"),
    "sign": (lambda dx, dW, db: (-dx, dW, db), "dx .*WRONG: its sign is flipped"),
    "one entry": (lambda dx, dW, db: (dx, dW.at[2, 1].add(1e-9), db), r"no known .*at \[2, 1\]"),
    "nan": (
        lambda dx, dW, db: ((dx - dx) / (dx - dx), dW, db),
        "dx .*nan at .* a division; expected",
    ),
    "none": (lambda dx, dW, db: (None, dW, db), "dx .*None; expected a gradient"),
    "too few": (lambda dx, dW, db: (dx, dW), r"3 cotangents \(dx, dW, db\); got 2: db is missing"),
    "no tuple": (lambda dx, dW, db: dx, "expected a tuple of 3 cotangents"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_refused_and_the_gradient_named(name):
    change, message = WRONG[name]
    with pytest.raises(GradientMismatch, match=message):
        check_rule(hg.linear, hg.linear_fwd, planted(change), X, W, B)


def test_a_right_rule_prints_one_line_a_gradient_and_returns_them(capsys):
    report = check_rule(hg.linear, hg.linear_fwd, hg.linear_bwd, X, W, B)
    assert capsys.readouterr().out == f"{report}\n"
    assert [verdict.name for verdict in report] == ["dx", "dW", "db"]
    assert all(verdict.right for verdict in report)


def test_the_value_of_fwd_is_checked_too():
    with pytest.raises(GradientMismatch, match="f_fwd returns another value than f"):
        check_rule(hg.relu, lambda x: (2 * hg.relu(x),) * 2, hg.relu_bwd, X)


def test_an_integer_argument_wants_none():
    with pytest.raises(GradientMismatch, match=r"dy .*expected None: y is not differentiable"):
        check_rule(
            hg.cross_entropy,
            hg.cross_entropy_fwd,
            lambda residuals, dl: (hg.cross_entropy_bwd(residuals, dl)[0], dl),
            hg.softmax(X),
            np.zeros((2, 3), int),
        )


def test_the_random_cotangent_is_not_what_the_reader_drew():
    def factors_swapped(residuals, dz):
        x, W = residuals
        return dz @ W, x.T @ dz, dz.sum(axis=0)  # x.T @ x is symmetric, were dz the same as x

    for seed in range(3):
        draw = np.random.default_rng(seed).normal
        x, W, b = draw(size=(3, 4)), draw(size=(4, 4)), draw(size=4)
        with pytest.raises(GradientMismatch, match=r"dW .*WRONG"):
            check_rule(hg.linear, hg.linear_fwd, factors_swapped, x, W, b)


def test_jax_itself_is_caught_by_the_differences():
    @jax.custom_jvp
    def cube(x):
        return x**3

    cube.defjvp(lambda primals, tangents: (cube(*primals), 2 * primals[0] ** 2 * tangents[0]))
    with pytest.raises(GradientMismatch, match="yet not differences"):
        check_rule(cube, lambda x: (cube(x), x), lambda x, dz: (2 * x**2 * dz,), X)


def test_a_kink_is_said_and_blamed_on_nobody(capsys):
    check_rule(hg.relu, hg.relu_fwd, hg.relu_bwd, np.array([0.0, 1.0, -1.0]))
    assert "at a kink, where the slope is a choice" in capsys.readouterr().out


def test_where_jax_gives_nan_it_is_not_the_judge():
    def naive(z):
        return jnp.log(jnp.exp(z).sum())

    with pytest.raises(GradientMismatch, match="here: a value of f is inf, born in an exponential"):
        check_rule(naive, hg.logsumexp_fwd, hg.logsumexp_bwd, np.array([1.0, 1000.0]))


def test_a_cotangent_in_another_dtype_is_refused():
    x = jnp.asarray(X, "float32")
    with pytest.raises(GradientMismatch, match="wrong dtype: float64, expected float32"):
        check_rule(hg.relu, hg.relu_fwd, lambda a, da: (hg.relu_bwd(a, da)[0].astype(float),), x)


def test_a_formula_that_was_given_the_wrong_residual_is_recognised():
    def slope(residual, da):
        return (da * residual * (1 - residual),)

    with pytest.raises(GradientMismatch, match="this formula wants the output of the layer"):
        check_rule(hg.sigmoid, lambda x: (hg.sigmoid(x), x), slope, X)


def test_a_redefined_helper_is_seen():
    scale = [1.0]

    def bwd(a, da):
        return (scale[0] * hg.relu_bwd(a, da)[0],)

    check_rule(hg.relu, hg.relu_fwd, bwd, X)
    scale[0] = 2.0
    with pytest.raises(GradientMismatch):
        check_rule(hg.relu, hg.relu_fwd, bwd, X)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_coarser_dtype_is_judged_by_its_own_digits_and_says_so(dtype, capsys):
    check_rule(hg.tanh, hg.tanh_fwd, hg.tanh_bwd, jnp.asarray(X, dtype))
    assert f"to the digits of {dtype}" in capsys.readouterr().out
    with pytest.raises(GradientMismatch):
        check_rule(hg.tanh, hg.tanh_fwd, lambda a, da: (da * (1 - a),), jnp.asarray(X, dtype))


def test_float32_digits_do_not_pass_in_float64():
    def bwd(a, da):
        return (hg.tanh_bwd(a, da)[0].astype("float32").astype("float64"),)

    with pytest.raises(GradientMismatch):
        check_rule(hg.tanh, hg.tanh_fwd, bwd, X)


def test_a_proof_needs_64_bits():
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(RuntimeError, match=r"jax_enable_x64.*True"):
            check_rule(hg.relu, hg.relu_fwd, hg.relu_bwd, X)
        check_gradient(2 * X, lambda x: (x**2).sum(), X)
    finally:
        jax.config.update("jax_enable_x64", True)


def test_anybody_s_numbers(capsys):
    check_gradient([2.0, 4.0], lambda x: (x**2).sum(), [1.0, 2.0])
    check_gradient([2 * X], lambda x: (x**2).sum(), X)
    check_gradient([2.0], lambda x: (x**2).sum(), [1.0])
    check_gradient(([2.0, 4.0], 1.0), lambda x, c: (x**2).sum() + c, [1.0, 2.0], 5.0)
    check_gradient({"w": 2 * X}, lambda p: (p["w"] ** 2).sum(), {"w": X})
    check_gradient(np.ones(3), lambda z, y: z.sum() * y, np.ones(3), 1)
    assert "dp['w']" in capsys.readouterr().out
    with pytest.raises(GradientMismatch, match=r"dx .*sits at \[1\]: 5, expected 4"):
        check_gradient([2.0, 5.0], lambda x: (x**2).sum(), [1.0, 2.0])
    with pytest.raises(GradientMismatch, match="expected shape"):
        check_gradient([[2.0, 4.0]], lambda x: (x**2).sum(), [1.0, 2.0])
    with pytest.raises(GradientMismatch, match="expected an array of real numbers; got dtype <U3"):
        check_gradient("2 x", lambda x: (x**2).sum(), [1.0, 2.0])


def test_a_large_loss_in_float32_does_not_hide_a_wrong_gradient():
    x = jnp.asarray(rng.normal(size=(300, 400)), "float32")
    check_gradient(2 * x, lambda x: (x**2).sum(), x)
    for wrong in (0 * x, 2.001 * x, 2 * x + 1e-3):
        with pytest.raises(GradientMismatch):
            check_gradient(wrong, lambda x: (x**2).sum(), x)


@pytest.mark.parametrize(
    ("f", "args"),
    [
        (lambda x: (jax.nn.softmax(x / x.sum()) ** 2).sum(), (X[0].astype("float32"),)),
        (lambda x, k: (x * jax.random.normal(k, x.shape)).sum(), (X, jax.random.key(0))),
        (lambda x, b: (x[b["i"]] ** 2).sum(), (X, {"i": np.array([0, 1])})),
        (lambda x, i: (x[i] ** 2).sum() + (x**2).sum(), (X, np.zeros(0, int))),
        (lambda x, act: act(x).sum(), (X, jnp.tanh)),
        (lambda x, how: getattr(jnp, how)(x**2), (X, "mean")),
    ],
    ids=["float32", "key", "tree of ids", "no ids", "function", "word"],
)
def test_a_diagnosis_never_takes_the_place_of_the_verdict(f, args):
    right = jax.grad(f)(jnp.asarray(args[0]), *args[1:])
    check_gradient(right, f, *args)
    with pytest.raises(GradientMismatch, match="WRONG"):
        check_gradient(right + 1, f, *args)


def test_a_rule_with_several_outputs_or_odd_residuals_is_judged():
    def two(x):
        return x**2, x.sum(0)

    with pytest.raises(GradientMismatch, match=r"dx .*WRONG"):
        check_rule(two, lambda x: (two(x), x), lambda x, dz: (2 * x * dz[0],), X)

    def first(x):
        return x.mean(0)

    def undefined(shape, d):
        return (jnp.broadcast_to(jnp.log(-1.0) * d, shape),)

    with pytest.raises(GradientMismatch, match=r"dx .*WRONG: nan"):
        check_rule(first, lambda x: (first(x), x.shape), undefined, X)
    with pytest.raises(GradientMismatch, match=r"f_fwd: expected \(value, residuals\)"):
        check_rule(first, first, undefined, X)


@pytest.mark.parametrize(
    ("of_mean", "of_variance", "said"),
    [
        (0, 1, "the mean path is left out"),
        (5, 1, "the mean path counts 5 times"),
        (1, 0, "the variance path is left out"),
        (1, 0.5, "the variance path counts 0.5 times"),
        (1, 5 / 4, r"n - 1 stands for n = 5 in the variance path \(Bessel's"),
        (2, 3, "the mean path counts 2 times; and the variance path counts 3 times"),
    ],
)
def test_what_was_done_to_a_norm_s_paths_is_said(of_mean, of_variance, said):
    def bwd(residuals, dz):
        u, scale, gamma = residuals
        du = dz * gamma
        paths = of_mean * mean(du) + of_variance * u * mean(du * u)
        return scale * (du - paths), (dz * u).sum(0), dz.sum(0)

    args = rng.normal(size=(3, 5)), 1 + rng.random(size=5), rng.normal(size=5)
    with pytest.raises(GradientMismatch, match=rf"dx .*WRONG: {said}"):
        check_rule(norm, norm_fwd, bwd, *args)


@pytest.mark.parametrize(("factor", "said"), [(2, "doubled"), (1 / 2, "halved")])
def test_entries_of_a_symmetric_matrix_that_were_counted_together_are_recognised(factor, said):
    draw = np.random.default_rng(9).normal
    a, S = draw(size=4), draw(size=(4, 4))
    hand = np.outer(a, a) * np.where(np.eye(4) == 1, 1, factor)
    with pytest.raises(GradientMismatch, match=f"the off-diagonal entries are {said}: each entry"):
        check_gradient(hand, lambda S: a @ S @ a, S + S.T)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_rule_in_numpy_is_judged_as_one_in_jax(sign):
    def fwd(x):
        if np.asarray(x).max() > 100:
            raise OverflowError
        out = np.tanh(np.asarray(x))
        return out, out

    def bwd(out, dz):
        return (sign * np.multiply(dz, 1 - out**2),)

    if sign == 1:
        check_rule(jnp.tanh, fwd, bwd, X)
    else:
        with pytest.raises(GradientMismatch, match="its sign is flipped"):
            check_rule(jnp.tanh, fwd, bwd, X)


def confident(z, y):
    """The loss of logits that leave almost no doubt, and its gradient by hand."""
    picked = jnp.arange(len(y)), y
    z = z.at[picked].add(14)
    dz = (jax.nn.softmax(z) - jax.nn.one_hot(y, z.shape[1], dtype=z.dtype)) / len(y)
    return lambda b: -jax.nn.log_softmax(z + b)[picked].mean(), dz


def test_what_roundings_alone_may_do_is_allowed_for():
    z, y = jnp.asarray(rng.normal(size=(30, 6)), "float32"), rng.integers(6, size=30)
    loss, dz = confident(z, y)  # the difference of 1/30 and almost 1/30
    check_gradient(dz, loss, jnp.zeros_like(z))
    check_steps(lambda b: loss(tap("c", b + 0)), at=(jnp.zeros_like(z),), dc=dz, db=dz)
    for wrong in (-5 * dz, 1 / 30 + dz):
        with pytest.raises(GradientMismatch):
            check_gradient(wrong, loss, jnp.zeros_like(z))


@pytest.mark.parametrize(("left", "said"), [(1.0, "WRONG"), (1e-3, "cannot be judged here")])
def test_a_sum_that_cancels_may_be_added_up_in_another_order(left, said):
    x, a = rng.choice([-1.0, 1.0], size=4000), rng.normal(size=4000)
    a[0] -= x[0] * (x @ a - left)  # what some thousands leave
    x, a = (jnp.asarray(v, "float32") for v in (x, a))
    hand = 2 * (np.float64(x) @ np.float64(a)) * a
    if said == "WRONG":
        check_gradient(hand, lambda x: (x @ a) ** 2, x)
    with pytest.raises(GradientMismatch, match=said):
        check_gradient(-hand, lambda x: (x @ a) ** 2, x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hand", [[1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [-4.0, 5.0, 0.0]])
def test_a_tie_is_no_rounding(dtype, hand):
    x = jnp.asarray([2.0, 2.0, 1.0], dtype)
    check_gradient([0.5, 0.5, 0.0], jnp.max, x)
    with pytest.raises(GradientMismatch, match=r"kink or a tie, \[0\], \[1\]"):
        check_gradient(hand, jnp.max, x)
    ones = jnp.ones_like(x)
    with pytest.raises(GradientMismatch, match=r"db .*WRONG"):
        check_gradient((0 * ones, ones), lambda a, b: jnp.maximum(a, b).sum(), x, x)
    with pytest.raises(GradientMismatch, match=r"db .*WRONG"):
        check_gradient((0 * ones, ones), lambda a, b: ((a - b) * jnp.sign(a - b)).sum(), x, x)


def test_a_small_argument_does_not_hide_a_wrong_gradient():
    h, y = rng.normal(size=(16, 8)), rng.integers(8, size=16)
    scale = jnp.full(8, 1e-6, "float32")

    def loss(scale):
        logits = jax.nn.log_softmax(scale * h.astype("float32"))
        return -jnp.take_along_axis(logits, y[:, None], 1).mean()

    check_gradient(jax.grad(loss)(scale), loss, scale)
    with pytest.raises(GradientMismatch, match="its sign is flipped"):
        check_gradient(-jax.grad(loss)(scale), loss, scale)
    with pytest.raises(GradientMismatch):
        check_gradient(-3.0, lambda s: 1e3 + 3 * s, 1e-12)


def test_a_gradient_that_cancels_to_0_is_right():
    x = np.random.default_rng(0).normal(size=(7, 4))

    def normalised(x):
        return (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5)

    check_gradient(np.zeros((7, 4)), lambda x: normalised(x).mean(), x)
    check_gradient(np.zeros((7, 4)), lambda x: jax.nn.standardize(x).sum(), x)


def test_steps_take_lists_masks_and_say_what_cannot_be_judged():
    W, x = rng.normal(size=(4, 4)), rng.normal(size=(7, 4))
    dz = 2 * x @ W

    def square(W):
        return (tap("z", x @ W) ** 2).sum()

    with pytest.raises(GradientMismatch, match="right given your dz"):
        check_steps(square, at=(W,), dz=(-dz).tolist(), dW=-x.T @ dz)
    with pytest.raises(
        GradientMismatch, match=r"dW .*cannot be judged here: your dz is not finite"
    ):
        check_steps(square, at=(W,), dz=dz * np.nan, dW=x.T @ (dz * np.nan))
    check_steps(
        lambda x: (tap("a", x * tap("mask", x > 0)) ** 2).sum(),
        at=(x,),
        da=2 * x * (x > 0),
        dx=2 * x * (x > 0),
    )


def test_many_branches_and_large_arrays_are_no_trouble():
    def long(x):
        for _ in range(40):
            x = x * jnp.tanh(x)
        return x.sum()

    x = 3 + rng.random(size=3)
    with pytest.raises(GradientMismatch, match="its sign is flipped"):
        check_gradient(-jax.grad(long)(x), long, x)
    x = jnp.ones((300, 1000))
    with pytest.raises(GradientMismatch, match="its sign is flipped"):
        check_gradient(-2 * x, lambda x: (x**2).sum(), x)
    with pytest.raises(GradientMismatch, match="no known mistake"):
        check_gradient(2 * x + np.linspace(0, 1, 1000) ** 2, lambda x: (x**2).sum(), x)


def test_a_plain_int_may_be_a_size():
    with pytest.raises(GradientMismatch, match="its sign is flipped"):
        check_gradient(-2 * X, lambda x, n: (x.reshape(n, -1) ** 2).sum(), X, 4)
    check_steps(lambda x, n: tap("y", x[:n] ** 2).sum(), at=(X, 2), dy=np.ones_like(X), dx=2 * X)


def test_a_complex_gradient_is_refused():
    with pytest.raises(GradientMismatch, match="real numbers; got dtype complex128"):
        check_gradient(2 * X + 0j, lambda x: (x**2).sum(), X)


def test_a_gradient_of_zero_is_not_asked_for_more_digits_than_there_are():
    z = jnp.asarray(rng.normal(size=7))
    check_gradient(np.zeros(7), lambda z: hg.softmax(z).sum(), z)
    with pytest.raises(GradientMismatch):
        check_gradient(np.full(7, 1e-12), lambda z: hg.softmax(z).sum(), z)


@pytest.mark.parametrize(
    ("call", "problem", "message"),
    [
        (lambda: check_gradient([2], lambda x: x.sum(), [1, 2]), TypeError, "x is int64"),
        (lambda: check_gradient([2.0], lambda x: x, X), TypeError, "expected a scalar loss"),
        (lambda: check_gradient(X, lambda x: (x.sum(), x), X), TypeError, "scalar loss; got tuple"),
        (lambda: check_gradient(X, lambda x, y: (x * y).sum(), X, X), ValueError, "dx, dy"),
        (lambda: check_steps(lambda x: x.sum(), at=X, dx=X), TypeError, "at: expected a tuple"),
        (lambda: check_rule(hg.relu, hg.relu_fwd, hg.relu_bwd, X.astype(int)), TypeError, "int64"),
    ],
)
def test_bad_input_is_named(call, problem, message):
    with pytest.raises(problem, match=message):
        call()


# The two-layer network of notebook 07, step by step.
SIZES = {"W1": (5, 4), "b1": (5,), "W2": (3, 5), "b2": (3,), "x": (4,)}
AT = tuple(rng.normal(size=shape) for shape in SIZES.values())
ORDER = ("do", "dz2", "dW2", "db2", "da1", "dz1", "dW1", "db1")


def loss(W1, b1, W2, b2, x):
    z1 = tap("z1", W1 @ x + b1)
    a1 = tap("a1", hg.relu(z1))
    z2 = tap("z2", W2 @ a1 + b2)
    o = tap("o", hg.softmax(z2))
    return -jnp.log(o[1])


def steps(*planted):
    W1, b1, W2, b2, x = AT
    d = {}

    def step(name, value):
        d[name] = value + 0.5 if name in planted else value
        return d[name]

    z1 = W1 @ x + b1
    a1 = np.maximum(z1, 0)
    o = np.asarray(hg.softmax(W2 @ a1 + b2))
    do = step("do", -np.eye(3)[1] / o)
    dz2 = step("dz2", (np.diag(o) - np.outer(o, o)) @ do)
    step("dW2", np.outer(dz2, a1))
    step("db2", dz2)
    da1 = step("da1", W2.T @ dz2)
    dz1 = step("dz1", (z1 > 0) * da1)
    step("dW1", np.outer(dz1, x))
    step("db1", dz1)
    return d


NAMED = {
    "dz2": ("diagonal", lambda z1, da1, do, o: o * (1 - o) * do),
    "dz1": ("local factor", lambda z1, da1, do, o: da1),
    "dW2": ("transposed", lambda z1, da1, do, o: steps()["dW2"].T),
    "da1": ("sign", lambda z1, da1, do, o: -da1),
    "dW1": ("factor", lambda z1, da1, do, o: 2 * steps()["dW1"]),
}


@pytest.mark.parametrize("step", NAMED)
def test_the_mistake_in_a_step_is_named(step):
    W1, b1, W2, b2, x = AT
    z1 = W1 @ x + b1
    o = np.asarray(hg.softmax(W2 @ np.maximum(z1, 0) + b2))
    mistake, wrong = NAMED[step]
    d = steps()
    with pytest.raises(GradientMismatch) as mismatch:
        check_steps(loss, at=AT, **d | {step: wrong(z1, d["da1"], d["do"], o)})
    verdicts = {verdict.name: verdict for verdict in mismatch.value.report}
    assert mistake in verdicts[step].mistakes


def test_the_step_to_mend_first_is_the_one_that_no_other_reaches():
    d = steps("dz1", "dz2")
    backwards = {name: d[name] for name in reversed(d)}
    with pytest.raises(GradientMismatch, match="Mend dz2 first"):
        check_steps(loss, at=AT, **backwards)


def test_right_steps_are_right(capsys):
    check_steps(loss, at=AT, **steps())
    assert capsys.readouterr().out.count("right\n") == len(ORDER)
    assert float(loss(*AT)) > 0, "outside a check, tap is the identity"


PAIRS = [*zip(ORDER, ORDER, strict=True), *zip(ORDER, ORDER[3:], strict=False)]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_only_the_wrong_steps_are_blamed_and_the_first_is_named(first, second, monkeypatch):
    # which are blamed is enough here; to find out why takes longer
    monkeypatch.setattr("handgrad.check.naming.explain.explain", lambda *operands: {})
    with pytest.raises(GradientMismatch) as mismatch:
        check_steps(loss, at=AT, **steps(first, second))
    *lines, mend = str(mismatch.value).splitlines()
    blamed = {line.split()[0] for line in lines if "WRONG" in line}
    assert blamed == {first, second}
    assert mend == f"Mend {min(first, second, key=ORDER.index)} first."
    for line in lines[: min(map(ORDER.index, (first, second)))]:
        assert line.endswith("right")


def test_a_later_step_is_right_given_the_reader_s_own():
    with pytest.raises(GradientMismatch, match=r"(?s)dz2 .*WRONG.*dW1 .*right given your dz2"):
        check_steps(loss, at=AT, **steps("dz2"))


def test_steps_left_out_fan_out_trees_and_a_jitted_loss():
    d = steps()
    check_steps(loss, at=AT, dz1=d["dz1"], dW2=d["dW2"])

    @jax.jit
    def twice(p):
        s = tap("s", p["w"] * p["v"])
        return (s * s + jnp.sin(s)).sum()

    w, v = rng.normal(size=3), rng.normal(size=3)
    twice({"w": w, "v": v})  # traced before it is checked
    ds = 2 * w * v + np.cos(w * v)
    check_steps(twice, at=({"w": w, "v": v},), ds=ds, dp={"w": ds * v, "v": ds * w})
    with pytest.raises(GradientMismatch, match=r"ds .*WRONG"):  # one branch overwrites the other
        check_steps(twice, at=({"w": w, "v": v},), ds=np.cos(w * v))


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: tap("a", tap("a", x)).sum(), "tap 'a': used twice"),
        (lambda x: tap("x", x).sum(), "tap 'x': the name of an argument"),
        (lambda x: tap("b", x).sum(), "da: no such step; loss has db, dx"),
        (lambda x: jax.vmap(lambda t: tap("a", t) ** 2)(x).sum(), "stands inside vmap, scan"),
        (
            lambda x: jax.lax.scan(lambda c, t: (c + tap("a", t), None), 0.0, x)[0],
            "stands inside vmap, scan",
        ),
    ],
)
def test_taps_are_checked(f, message):
    with pytest.raises(ValueError, match=message):
        check_steps(f, at=(np.ones(3),), da=np.ones(3))
    hg.check_gradient(np.ones(3), lambda x: tap("a", x).sum(), np.ones(3))  # nothing stays behind


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_colours_unless_it_is_asked_not_to(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    check_gradient(2 * X, lambda x: (x**2).sum(), X)
    assert "\x1b[32mmatches jax.grad\x1b[0m" in terminal.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    check_gradient(2 * X, lambda x: (x**2).sum(), X)
    assert "\x1b" not in terminal.getvalue()


def test_a_notebook_shows_the_same_as_a_table():
    from IPython.core.formatters import DisplayFormatter

    with pytest.raises(GradientMismatch) as mismatch:
        check_steps(loss, at=AT, **steps("dz2"))
    shown, _ = DisplayFormatter().format(mismatch.value)
    assert shown["text/plain"] == str(mismatch.value)
    assert mismatch.value._render_traceback_()[1:] == str(mismatch.value).splitlines()
    table = shown["text/html"]
    assert table.count("<tr>") == len(ORDER) + 1 and "Mend dz2 first." in table
    assert table.count("✗") == table.count("<b>WRONG:</b>") == 1
    assert table.count("✓") == len(ORDER) - 1
    assert "&lt;" in hg.check.Report([hg.check.Verdict("d<x>", (), "right", "")]).html()


def test_a_kernel_shows_the_table_and_prints_nothing(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr("handgrad.check.report._in_a_notebook", lambda: True)
    monkeypatch.setattr("handgrad.check.report._display", shown.append)
    report = check_gradient(2 * X, lambda x: (x**2).sum(), X)
    assert shown == [{"text/plain": str(report), "text/html": report.html()}]
    assert capsys.readouterr().out == ""


def test_two_numbers_that_differ_are_not_shown_alike():
    v = np.array([2.0, -3.0, 6.0])
    with pytest.raises(GradientMismatch, match="no known mistake") as mistake:
        check_gradient(np.round(v / 7, 4), lambda v: jnp.sqrt((v**2).sum()), v)
    found, expected = re.search(r": (\S+), expected (\S+)$", str(mistake.value)).groups()
    assert found != expected


def test_two_wrong_neighbours_are_no_label():
    x, da = np.array([-1.0, 0.5, 2.0, 3.0]), jnp.array([3.0, 5.0, 7.0, -4.0])
    hand = np.array([0.0, 5.0, 14.0, -12.0])  # right, but for two
    with pytest.raises(GradientMismatch) as mistake:
        check_gradient(hand, lambda x: (da * jnp.maximum(x, 0)).sum(), x)
    assert "label" not in str(mistake.value)


def test_a_list_of_numpy_s_numbers_is_an_array_and_takes_part_in_the_exchange():
    def loss(x):
        return (tap("z", 3 * x) ** 2).sum()

    x = np.array([1.0, -2.0, 0.5])
    dz = list(6 * x + np.array([0.0, 1.0, 0.0]))  # its second entry is wrong
    with pytest.raises(GradientMismatch, match="right given your dz"):
        check_steps(loss, at=(x,), dz=dz, dx=list(3 * np.array(dz)))


def test_a_length_has_no_variance():
    def unit(x):
        return x / jnp.sqrt((x * x).sum(-1, keepdims=True))

    def forgotten(residuals, du):
        return (du / residuals,)

    x = np.random.default_rng(0).normal(size=(3, 5))
    length = np.sqrt((x * x).sum(-1, keepdims=True))
    with pytest.raises(GradientMismatch, match="the length path is left out"):
        check_rule(unit, lambda x: (unit(x), length), forgotten, x)


def test_a_rule_may_send_back_a_list_of_rows():
    def bwd(x, dz):
        return ([*(2 * x * dz)],)

    check_rule(lambda x: x * x, lambda x: (x * x, x), bwd, np.arange(6.0).reshape(2, 3))
