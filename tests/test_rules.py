"""Every rule of the catalog: proved, in its arguments' dtype, differentiable, finite, and picky."""

import ast
import copy
import inspect
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad as hg
from handgrad.catalog import LAYERS
from handgrad.check import GradientMismatch, prove
from handgrad.check.arrays import once

layers = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)


def examples(layer, seed=0):
    return list(layer.examples(np.random.default_rng(seed)))


@layers
def test_the_rule_is_proved(layer):
    for args, hyper in examples(layer, seed=7):
        hg.check_rule(layer.f, layer.f_fwd, layer.f_bwd, *args, **hyper)


@layers
def test_the_axes_of_the_examples_all_differ(layer):
    for args, _ in examples(layer):
        for arg in args:
            assert len(set(np.shape(arg))) == np.ndim(arg), "a square shape hides a transpose"


@layers
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cotangent_has_its_argument_s_shape_and_dtype(layer, dtype):
    for args, hyper in examples(layer):
        args = [a if np.asarray(a).dtype.kind == "i" else jnp.asarray(a, dtype) for a in args]

        def both(*args, hyper=hyper):
            z, residuals = layer.f_fwd(*args, **hyper)
            return z, layer.f_bwd(residuals, jnp.ones_like(z), **hyper)

        z, cotangents = jax.eval_shape(both, *args)
        assert z.dtype == dtype
        for arg, d in zip(args, cotangents, strict=True):
            if arg.dtype == dtype:
                assert (d.shape, d.dtype) == (arg.shape, arg.dtype)
            else:
                assert d is None


@layers
def test_numpy_arrays_are_as_welcome_as_jax_s(layer):
    args, hyper = examples(layer)[1]
    _, residuals = layer.f_fwd(*args, **hyper)
    z = np.asarray(layer.f(*args, **hyper))
    ours = layer.f_bwd(jax.tree.map(np.asarray, residuals), np.ones_like(z), **hyper)
    theirs = layer.f_bwd(residuals, jnp.ones_like(z), **hyper)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine is other is None or np.array_equal(mine, other)


@layers
def test_a_layer_serves_grad_jit_vmap_and_second_order(layer):
    f = hg.as_layer(layer.f, layer.f_fwd, layer.f_bwd)
    args, hyper = examples(layer)[1]

    def loss(f):
        return lambda x: (f(x, *args[1:], **hyper) ** 2).sum()

    x = jnp.asarray(args[0])
    stacked = jnp.stack([x, 2 * x])

    def all_of_them(g):
        return jax.grad(loss(g))(x), jax.hessian(loss(g))(x), jax.vmap(jax.grad(loss(g)))(stacked)

    ours, theirs = (jax.jit(lambda g=g: all_of_them(g))() for g in (f, layer.f))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-12)
    np.testing.assert_allclose(jax.grad(loss(f))(x), theirs[0], atol=1e-12)  # without jit


@layers
def test_the_residuals_are_no_more_than_jax_keeps(layer):
    args, hyper = examples(layer)[-1]
    z, residuals = layer.f_fwd(*args, **hyper)
    floats = [i for i, a in enumerate(args) if np.asarray(a).dtype.kind == "f"]

    def plain(*xs):
        full = list(args)
        for i, x in zip(floats, xs, strict=True):
            full[i] = x
        return layer.f(*full, **hyper)

    _, pull = once(lambda *xs: jax.vjp(plain, *xs))(*(args[i] for i in floats))
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


def mutants(f):
    """The function f with one term broken, for every term of its body."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(f)))
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
        function = mutant.body[0]
        function.args.kw_defaults = [
            default and ast.Constant(0.0) for default in function.args.kw_defaults
        ]
        for argument in (*function.args.args, *function.args.kwonlyargs):
            argument.annotation = None
        ast.fix_missing_locations(mutant)
        names = dict(inspect.unwrap(f).__globals__)
        exec(compile(mutant, f.__name__, "exec"), names)
        yield ast.unparse(function), names[f.__name__]


@layers
def test_breaking_any_one_term_of_a_rule_is_noticed(layer, monkeypatch):
    # that it is noticed is enough here; to name the mistake takes longer
    monkeypatch.setattr("handgrad.check.compare.diagnose", lambda *operands: ((), ""))
    rounds = examples(layer)
    found = list(mutants(layer.f_bwd))
    assert found, "nothing to break?"
    for source, mutant in found:
        with pytest.raises((GradientMismatch, TypeError, ValueError, IndexError, AttributeError)):
            for args, hyper in rounds:
                prove_or_raise(layer, mutant, args, hyper)
            pytest.fail(f"not noticed:\n{source}")


def prove_or_raise(layer, f_bwd, args, hyper):
    for verdict in prove(layer.f, layer.f_fwd, f_bwd, [args], **hyper):
        if not verdict.right:
            raise GradientMismatch(verdict.words)


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
