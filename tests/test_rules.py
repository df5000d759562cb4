"""Every rule of the catalog: proved, in its arguments' dtype, differentiable, finite, and picky."""

import ast
import copy
import functools
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad as hg
from handgrad.catalog import ROWS
from handgrad.check import Report
from handgrad.check.arrays import once, put
from handgrad.check.rule import consult, judged
from handgrad.classroom.facts import axes, statement

rules = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@functools.cache
def examples(row):
    """The row's examples by name, drawn once for all tests."""
    return row.examples(np.random.default_rng(7))


@functools.cache
def consulted(row):
    """What the oracles say at the examples that can be proved: (hyperparameters, draws) pairs."""
    groups = {}
    for args, hyper in row.proved(np.random.default_rng(7)).values():
        groups.setdefault(tuple(hyper.items()), []).append(args)
    return [(dict(h), consult(row.f, draws, **dict(h))) for h, draws in groups.items()]


def floats(args):
    return [i for i, arg in enumerate(args) if np.asarray(arg).dtype.kind == "f"]


def cast(args, dtype):
    return [jnp.asarray(a, dtype) if np.asarray(a).dtype.kind == "f" else a for a in args]


@rules
def test_the_rule_is_proved(row):
    for hyper, draws in consulted(row):
        verdicts = judged(row.f, row.f_fwd, row.f_bwd, draws, **hyper)
        assert all(v.right for v in verdicts), Report(verdicts)


@rules
def test_the_forward_pass_is_what_others_compute(row):
    other = pkgutil.resolve_name(row.same_as) if isinstance(row.same_as, str) else row.same_as
    for name, (args, hyper) in examples(row).items():
        ours, theirs = row.f(*args, **hyper), other(*args, **hyper)
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14, err_msg=name)


def assert_right_at_extremes(row, f_bwd, dtype):
    """Where differences can't judge, its gradients are finite, and JAX's where JAX's are."""
    extremes = {n: e for n, e in examples(row).items() if n.startswith("extreme")}
    assert extremes, "expected an example of an extreme"
    for name, (args, hyper) in extremes.items():
        args, which = cast(args, dtype), floats(args)
        shape = jax.eval_shape(lambda *a, h=hyper: row.f(*a, **h), *args).shape
        dz = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)

        @once
        def both(dz, *args, hyper=hyper, which=which):
            plain = lambda *xs: row.f(*put(args, which, xs), **hyper)  # noqa: E731
            _, residuals = row.f_fwd(*args, **hyper)
            _, pull = jax.vjp(plain, *(args[i] for i in which))
            return f_bwd(residuals, dz, **hyper), pull(dz)

        ours, theirs = both(dz, *args)
        for i, true in zip(which, theirs, strict=True):
            mine, true = np.asarray(ours[i]), np.asarray(true)
            assert np.isfinite(mine).all(), name
            judge = np.isfinite(true)
            eps = 64 * np.finfo(dtype).eps
            np.testing.assert_allclose(mine[judge], true[judge], eps, eps, err_msg=name)


@rules
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_rule_is_right_at_extremes(row, dtype):
    assert_right_at_extremes(row, row.f_bwd, dtype)


@rules
def test_the_axes_of_the_typical_example_all_differ(row):
    args, _ = examples(row)["typical"]
    for arg, names in zip(args, axes(row), strict=True):
        square = len(names) - len(set(names))  # "n n" can't be anything else
        assert len(set(np.shape(arg))) == np.ndim(arg) - square, "a square shape hides a transpose"
        assert not {1, 2} & set(np.shape(arg)[1:]), "an axis of length 1 hides a sum"


@rules
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cotangent_has_its_argument_s_shape_and_dtype(row, dtype):
    for args, hyper in examples(row).values():
        args = cast(args, dtype)

        def both(*args, hyper=hyper):
            z, residuals = row.f_fwd(*args, **hyper)
            return z, row.f_bwd(residuals, jnp.ones_like(z), **hyper)

        z, cotangents = jax.eval_shape(both, *args)
        assert z.dtype == dtype
        for arg, d in zip(args, cotangents, strict=True):
            if arg.dtype == dtype:
                assert (d.shape, d.dtype) == (arg.shape, arg.dtype)
            else:
                assert d is None


@rules
def test_numpy_arrays_are_as_welcome_as_jax_s(row):
    args, hyper = examples(row)["typical"]
    _, residuals = row.f_fwd(*args, **hyper)
    z = np.asarray(row.f(*args, **hyper))
    ours = row.f_bwd(jax.tree.map(np.asarray, residuals), np.ones_like(z), **hyper)
    theirs = row.f_bwd(residuals, jnp.ones_like(z), **hyper)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine is other is None or np.array_equal(mine, other)


@rules
def test_a_layer_serves_grad_jit_vmap_and_second_order(row):
    f = hg.as_layer(row.f, row.f_fwd, row.f_bwd)
    args, hyper = examples(row)["typical"]
    first = floats(args)[:1]

    def loss(f):
        return lambda x: (f(*put(args, first, [x]), **hyper) ** 2).sum()

    x = jnp.asarray(args[first[0]])
    stacked = jnp.stack([x, 2 * x])
    h = jnp.asarray(np.random.default_rng(0).normal(size=x.shape))

    def all_of_them(g):
        bent = jax.vjp(jax.grad(loss(g)), x)[1](h)  # a product with the Hessian
        return jax.grad(loss(g))(x), bent, jax.vmap(jax.grad(loss(g)))(stacked)

    ours, theirs = once(lambda: (all_of_them(f), all_of_them(row.f)))()
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-10, atol=1e-12)


@rules
def test_the_residuals_are_no_more_than_jax_keeps(row):
    args, hyper = examples(row)["typical"]
    z, residuals = row.f_fwd(*args, **hyper)
    which = floats(args)
    plain = lambda *xs: row.f(*put(args, which, xs), **hyper)  # noqa: E731
    _, pull = once(lambda *xs: jax.vjp(plain, *xs))(*(args[i] for i in which))
    free = [np.asarray(a) for a in (*args, z)]  # the inputs and the output cost nothing more

    def kept(leaves):
        leaves = [np.asarray(leaf) for leaf in leaves]
        known = lambda leaf: any(np.array_equal(leaf, a, equal_nan=True) for a in free)  # noqa: E731
        return sum(leaf.nbytes for leaf in leaves if not known(leaf))

    assert kept(jax.tree.leaves(residuals)) <= kept(jax.tree.leaves(pull))


def broken(node):
    """Everything that can be put in a node's place to break the one term it stands for."""
    if isinstance(node, ast.BinOp):
        yield from (node.left, node.right)
        opposite = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Div: ast.Mult, ast.Mult: ast.Div}
        if type(node.op) in opposite:
            yield ast.BinOp(node.left, opposite[type(node.op)](), node.right)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Attribute) and node.attr == "T":
        yield node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr == "where":
            yield from node.args[1:]
        elif node.func.attr == "sum":
            yield node.func.value
        else:
            yield from node.args
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield ast.Constant(node.value + 1)


def mutants(row):
    """The rule's f_bwd with one term broken, for every term of the statement that makes it."""
    tree = ast.parse(statement(row))
    for argument in [node for node in ast.walk(tree) if isinstance(node, ast.arg)]:
        argument.annotation = None  # an `X | None` is no term
    paths = [
        (index, field, i, replacement)
        for index, node in enumerate(ast.walk(tree))
        if index and not isinstance(node, ast.arg | ast.arguments)
        for field, value in ast.iter_fields(node)
        if field not in ("args", "annotation", "returns", "decorator_list")
        or isinstance(node, ast.Call)
        for i, child in enumerate(value if isinstance(value, list) else [value])
        if isinstance(child, ast.AST)
        for replacement in broken(child)
    ]
    for index, field, i, replacement in paths:
        mutant = copy.deepcopy(tree)
        node = list(ast.walk(mutant))[index]
        if isinstance(getattr(node, field), list):
            getattr(node, field)[i] = replacement
        else:
            setattr(node, field, replacement)
        ast.fix_missing_locations(mutant)
        names = dict(vars(inspect.getmodule(inspect.unwrap(row.f))))
        yield ast.unparse(mutant), names


@rules
def test_breaking_any_one_term_of_a_rule_is_noticed(row, monkeypatch):
    # that it is noticed is enough here; to name the mistake takes longer, and to compile it too
    monkeypatch.setattr("handgrad.check.naming.explain.explain", lambda *operands: {})
    monkeypatch.setattr("handgrad.check.rule.once", lambda f: f)
    monkeypatch.setattr("handgrad.check.rule._other_order", lambda rule, draw: False)
    found = list(mutants(row))
    assert found, "nothing to break?"
    for source, names in found:
        with pytest.raises((AssertionError, TypeError, ValueError, IndexError, AttributeError)):
            exec(source, names)
            mutant = names[f"{row.name}_bwd"]
            for hyper, draws in consulted(row):
                for draw in draws:  # one at a time: the first that notices it will do
                    verdicts = judged(row.f, row.f_fwd, mutant, [draw], **hyper)
                    assert all(verdict.right for verdict in verdicts)
            assert_right_at_extremes(row, mutant, "float64")
            pytest.fail(f"not noticed:\n{source}")


@pytest.mark.parametrize("y", [-1, -5, 4, 1000])
def test_a_label_out_of_range_gives_nan_and_not_a_neighbour_s_loss(y):
    z, labels = np.random.default_rng(0).normal(size=(3, 4)), np.array([1, y, 2])
    for f, f_fwd, f_bwd, x in (
        (hg.cross_entropy, hg.cross_entropy_fwd, hg.cross_entropy_bwd, hg.softmax(z)),
        (
            hg.softmax_cross_entropy,
            hg.softmax_cross_entropy_fwd,
            hg.softmax_cross_entropy_bwd,
            z,
        ),
    ):
        loss, residuals = f_fwd(x, labels)
        assert np.array_equal(np.isnan(loss), [False, True, False])
        assert np.array_equal(np.isnan(f(x, labels)), [False, True, False])
        d, none = f_bwd(residuals, np.ones(3))
        assert none is None
        assert np.array_equal(np.isnan(d).all(axis=-1), [False, True, False])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_logits_give_finite_losses_and_gradients(dtype):
    z = np.array([[1e4, -1e4, 0.0], [-50.0, 50.0, 0.0], [0.0, -np.inf, 1.0]], dtype)
    y = np.array([1, 0, 2])
    loss, residuals = hg.softmax_cross_entropy_fwd(z, y)
    dz, _ = hg.softmax_cross_entropy_bwd(residuals, np.ones(3, dtype))
    assert np.isfinite(loss).all() and np.isfinite(dz).all()
    np.testing.assert_allclose(dz[0], [1, -1, 0])
    for f_fwd, f_bwd in ((hg.softmax_fwd, hg.softmax_bwd), (hg.logsumexp_fwd, hg.logsumexp_bwd)):
        out, residuals = f_fwd(z)
        assert np.isfinite(f_bwd(residuals, np.ones_like(out))[0]).all()
    for f_fwd, f_bwd in ((hg.sigmoid_fwd, hg.sigmoid_bwd), (hg.tanh_fwd, hg.tanh_bwd)):
        out, residuals = f_fwd(np.array([-1e4, 1e4], dtype))
        assert np.array_equal(f_bwd(residuals, np.ones(2, dtype))[0], [0, 0])


def test_relu_has_slope_0_at_0_and_hands_on_nan():
    x = np.array([-1.0, 0.0, 2.0, np.nan])
    a, residuals = hg.relu_fwd(x)
    np.testing.assert_array_equal(a, [0, 0, 2, np.nan])
    np.testing.assert_array_equal(hg.relu_bwd(residuals, np.ones(4))[0][:3], [0, 0, 1])


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: hg.linear(np.ones((2, 3)), np.ones((3, 4)), np.ones(4)), ["'W'", "[3,4]"]),
        (lambda: hg.linear(np.ones((2, 3)), np.ones((4, 3)), np.ones(3)), ["'b'", "[3]"]),
        (lambda: hg.linear(np.ones((2, 3), int), np.ones((4, 3)), np.ones(4)), ["'x'", "i64[2,3]"]),
        (lambda: hg.linear_bwd((np.ones(3), np.ones((4, 3))), np.ones(3)), ["'dz'", "[3]"]),
        (lambda: hg.cross_entropy(np.ones((2, 3)), np.ones(2)), ["'y'", "f64[2]"]),
        (lambda: hg.squared_error(np.ones((2, 3)), np.ones(3)), ["'target'", "[3]"]),
        (lambda: hg.relu([1, 2]), ["'x'"]),
        (lambda: hg.tanh_bwd(np.ones(3), np.ones(4)), ["activations.tanh_bwd", "'da'", "[4]"]),
    ],
)
def test_a_wrong_shape_or_dtype_names_the_argument(call, names):
    with pytest.raises(TypeError) as problem:
        call()
    assert all(name in str(problem.value) for name in names)


@pytest.mark.parametrize("smoothing", [-0.1, 1.5, float("nan")])
def test_a_label_smoothing_out_of_range_is_refused(smoothing):
    with pytest.raises(ValueError, match="label_smoothing: expected a number in"):
        hg.softmax_cross_entropy(np.ones((2, 3)), np.array([0, 1]), label_smoothing=smoothing)


def test_labels_need_one_for_each_row():
    with pytest.raises(ValueError, match="y: expected one label for each row"):
        hg.softmax_cross_entropy(np.ones((2, 3)), 1)
