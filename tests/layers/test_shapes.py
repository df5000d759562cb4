"""Maps that move, repeat and add up: what is special to them."""

import builtins

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad as hg
from handgrad.layers import shapes

# Answers to the exercises of notebooks/09_shapes.ipynb, judged in its kernel (tests/again.py).
RIGHT = {
    "9.1": [
        "return (0.0, 7.0, 0.0, -5.0), (8, 5, 6, 2), (0, -60, 0, 0), (0, 4, 0, 0)",
        """
        dx = np.zeros(4)
        np.add.at(dx, [1, 3, 1, 1], [2, -5, 4, 1])
        ends = np.cumsum([2, 4, -1, 3])[::-1]
        return dx, ends, -2 * np.array([0, 30, 0, 0]), 4 * np.eye(4)[1]
        """,
    ],
    "9.2": [
        "return (-jnp.diff(jnp.pad(dz, ((0, 0), (1, 1)))),)",
        "return (jnp.pad(dz, ((0, 0), (1, 0))) - jnp.pad(dz, ((0, 0), (0, 1))),)",
        """
        dx = np.zeros((dz.shape[0], dz.shape[1] + 1))
        dx[:, 1:] += dz
        dx[:, :-1] -= dz
        return (dx,)
        """,
    ],
    "9.3": [
        "da = jnp.einsum('n,ni,nij->nij', dz, b, jnp.ones_like(a))\n"
        "return da, jnp.einsum('nij,n->ni', a, dz)",
        """
        summed = hg.sum(a, axis=2)
        dsummed, db = hg.einsum_bwd((summed, b), dz, subscripts="ni,ni->n")
        return jnp.repeat(dsummed[..., None], a.shape[2], axis=2), db
        """,
    ],
    "9.4": [
        "return (jax.ops.segment_sum((dz / incoming)[head], tail, num_segments=4),)",
        "M = np.zeros((4, 4))\nnp.add.at(M, (head, tail), 1)\nreturn ((M / incoming).T @ dz,)",
        """
        dx = jnp.zeros_like(dz)
        for a, b in zip(tail, head):
            dx = dx.at[a].add(dz[b] / incoming[b])
        return (dx,)
        """,
    ],
    "9.5": [
        "return (jnp.flip(jnp.cumsum(jnp.flip(dz * z, 1), 1), 1) / x,)",
        """
        r, columns = jnp.zeros(len(x)), []
        before = jnp.concatenate([jnp.ones((len(x), 1)), z[:, :-1]], axis=1)
        for j in reversed(range(x.shape[1])):
            r = dz[:, j] + (x[:, j + 1] * r if j + 1 < x.shape[1] else 0)
            columns.insert(0, before[:, j] * r)
        return (jnp.stack(columns, axis=1),)
        """,
        "n = x.shape[1]\nJ = z[:, :, None] / x[:, None, :] * jnp.tril(jnp.ones((n, n)))\n"
        "return (jnp.einsum('bi,bij->bj', dz, J),)",
    ],
}
WRONG = {
    "9.1": [
        "return [0, 1, 0, -5], [8, 5, 6, 2], [0, -60, 0, 0], [0, 4, 0, 0]",
        "return [0, 7, 0, -5], [3, 2, 6, 8], [0, -60, 0, 0], [0, 4, 0, 0]",
        "return [0, 7, 0, -5], [8, 5, 6, 2], [0, 0, 0, 0], [0, 4, 0, 0]",
        "return [0, 7, 0, -5], [8, 5, 6, 2], [0, -60, 0, 0], [0, 2, 0, 2]",
    ],
    "9.2": [
        "return (jnp.diff(jnp.pad(dz, ((0, 0), (1, 1)))),)",
        "return (jnp.pad(dz, ((0, 0), (1, 0))),)",
        "return (-jnp.diff(jnp.pad(dz, ((0, 0), (2, 0)))),)",
        "return (-jnp.diff(dz),)",
    ],
    "9.3": [
        "return jnp.broadcast_to(dz[:, None, None], a.shape), dz[:, None] * a.sum(axis=2)",
        "return jnp.einsum('n,ni->ni', dz, b), dz[:, None] * a.sum(axis=2)",
        "return jnp.broadcast_to((dz[:, None] * b)[:, :, None], a.shape), a.sum(axis=2)",
        "da = jnp.broadcast_to((dz[:, None] * b)[:, :, None] / a.shape[2], a.shape)\n"
        "return da, dz[:, None] * a.sum(axis=2)",
    ],
    "9.4": [
        "return average_bwd_buggy(_, dz)",
        "return (hg.segment_sum(hg.take(dz, head), tail, count=4),)",
        "return (hg.segment_sum(hg.take(dz / incoming, tail), head, count=4),)",
        "out = np.bincount(tail, minlength=4)[:, None]\n"
        "return (hg.segment_sum(hg.take(dz / out, head), tail, count=4),)",
    ],
    "9.5": [
        "return (jnp.cumsum(dz * z, axis=1) / x,)",
        "return (jnp.cumsum(dz[:, ::-1], axis=1)[:, ::-1] * z / x,)",
        "return (jnp.cumsum((dz * z)[:, ::-1], axis=1)[:, ::-1],)",
        "return (dz * z / x,)",
    ],
}

rng = np.random.default_rng(9)


def layer(name):
    return hg.as_layer(*(getattr(hg, name + suffix) for suffix in ("", "_fwd", "_bwd")))


LINEAR = {
    "broadcast_to": ((4, 1, 3), (), {"shape": (5, 4, 2, 3)}),
    "sum": ((4, 2, 3), (), {"axis": (0, -1)}),
    "mean": ((4, 2, 3), (), {"axis": -2}),
    "cumsum": ((4, 3), (), {"axis": -1}),
    "transpose": ((4, 2, 3), (), {"axes": (-1, 0, 1)}),
    "reshape": ((4, 3), (), {"shape": (2, -1)}),
    "pad": ((4, 3), (), {"widths": ((1, 0), (2, 3))}),
    "take": ((4, 3), (np.array([[1, 1], [3, -2]]),), {}),
    "segment_sum": ((4, 3), (np.array([1, 1, 7, 0]),), {"count": 3}),
    "dropout": ((4, 3), (np.arange(12).reshape(4, 3) % 3 > 0,), {"rate": 0.25}),
}


@pytest.mark.parametrize("name", LINEAR)
def test_it_is_the_adjoint_and_knows_no_value_of_x(name):
    shape, given, hyper = LINEAR[name]
    f, f_fwd, f_bwd = (getattr(hg, name + suffix) for suffix in ("", "_fwd", "_bwd"))
    x, h = rng.integers(-9, 10, size=(2, *shape)).astype(float)
    z, residuals = f_fwd(x, *given, **hyper)
    assert all(np.size(leaf) == 0 for leaf in residuals[:1]), "x is not kept"
    dz = rng.integers(-9, 10, size=z.shape).astype(float)
    dx, *rest = f_bwd(residuals, dz, **hyper)
    assert rest == [None] * len(given)
    moved = jnp.nan_to_num(f(h, *given, **hyper))  # an id out of range reads nothing
    np.testing.assert_allclose((dz * moved).sum(), (dx * h).sum(), rtol=1e-14)


@pytest.mark.parametrize("name", LINEAR)
def test_a_cotangent_of_another_shape_is_refused_and_not_broadcast(name):
    shape, given, hyper = LINEAR[name]
    _, residuals = getattr(hg, name + "_fwd")(np.ones(shape), *given, **hyper)
    for wrong in ((), (1,)):
        with pytest.raises(ValueError, match="dz: expected the output's shape"):
            getattr(hg, name + "_bwd")(residuals, np.ones(wrong), **hyper)
    with pytest.raises(ValueError, match="dz: expected the output's shape"):
        hg.prod_bwd(np.ones((3, 4)), np.ones(4), axis=1)


@pytest.mark.parametrize("ids", [np.array([-1, 1]), np.array([3, 1]), np.array([200, 1], "uint8")])
def test_an_id_out_of_range_gives_nan_and_sends_nothing_back(ids):
    x = np.arange(1.0, 7.0).reshape(3, 2)
    for f, args in (("take", (x, ids)), ("embedding", (ids, x))):
        z, residuals = getattr(hg, f + "_fwd")(*args)
        assert np.array_equal(np.isnan(z), [[True, True], [False, False]])
        dx = next(d for d in getattr(hg, f + "_bwd")(residuals, np.ones((2, 2))) if d is not None)
        assert np.array_equal(dx, [[0, 0], [1, 1], [0, 0]])
    z, residuals = hg.segment_sum_fwd(x[:2], ids, count=3)
    assert np.array_equal(z, [[0, 0], x[1], [0, 0]])
    dx, _ = hg.segment_sum_bwd(residuals, np.ones((3, 2)), count=3)
    assert np.array_equal(dx, [[0, 0], [1, 1]])


def test_ids_may_differ_from_one_example_to_the_next():
    x, ids = jnp.asarray(rng.normal(size=(3, 4, 2))), rng.integers(4, size=(3, 5))
    ours = jax.vmap(jax.grad(lambda x, ids: (layer("take")(x, ids) ** 2).sum()))(x, ids)
    theirs = jax.vmap(jax.grad(lambda x, ids: (x[ids] ** 2).sum()))(x, ids)
    np.testing.assert_allclose(ours, theirs)


@pytest.mark.parametrize("zeros", [(), (2,), (0, 3), (1, 2, 4)])
@pytest.mark.parametrize("n", [1, 2, 5, 8, 13])
def test_a_product_needs_no_division(n, zeros):
    x = rng.uniform(-2, 2, size=n)
    x[[i for i in zeros if i < n]] = 0
    (dx,) = hg.prod_bwd(x, np.float64(3), axis=0)
    np.testing.assert_allclose(dx, [3 * np.delete(x, i).prod() for i in range(n)], rtol=1e-13)


def test_a_product_with_zeros_has_second_derivatives():
    x, f = jnp.array([2.0, 0.0, -3.0, 0.0]), layer("prod")
    hessian = jax.jit(jax.hessian(lambda x: f(x, axis=0)))(x)
    expected = np.zeros((4, 4))
    expected[1, 3] = expected[3, 1] = -6
    np.testing.assert_array_equal(hessian, expected)


def test_at_a_tie_the_first_gets_all_and_jax_s_max_divides_evenly():
    x = jnp.array([2.0, 5.0, 5.0])
    assert np.array_equal(jax.grad(lambda x: layer("max")(x, axis=0))(x), [0, 1, 0])
    assert np.array_equal(jax.grad(jnp.max)(x), [0, 0.5, 0.5])
    for f in (layer("top_k"), lambda x, k: jax.lax.top_k(x, k)[0]):
        assert np.array_equal(jax.grad(lambda x, f=f: f(x, k=1)[0])(x), [0, 1, 0])
        assert np.array_equal(jax.grad(lambda x, f=f: f(x, k=2)[1])(x), [0, 0, 1])


def test_a_maximum_that_is_nan_is_seen():
    x = np.array([[1.0, np.nan, 3.0], [1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(hg.max(x, axis=1), [np.nan, 3])


def test_what_is_not_chosen_may_be_nan():
    mask, x = np.array([True, False]), np.array([1.0, np.nan])
    z, residuals = hg.where_fwd(mask, x, np.array([np.inf, 2.0]))
    np.testing.assert_array_equal(z, [1, 2])
    _, da, db = hg.where_bwd(residuals, np.array([3.0, 5.0]))
    assert np.array_equal(da, [3, 0]) and np.array_equal(db, [0, 5])
    np.testing.assert_array_equal(hg.dropout(x, mask, rate=0.5), [2, 0])


def test_the_mean_of_dropout_over_many_masks_is_its_input():
    keep = np.random.default_rng(0).random((4000, 3)) < 0.75
    x = np.broadcast_to(np.array([1.0, -2.0, 3.0]), keep.shape)
    np.testing.assert_allclose(hg.dropout(x, keep, rate=0.25).mean(axis=0), x[0], rtol=0.05)


def test_over_an_axis_of_length_0():
    x = np.ones((3, 0))
    assert np.array_equal(hg.sum(x, axis=1), np.zeros(3))
    assert np.array_equal(hg.prod(x, axis=1), np.ones(3))
    assert np.isnan(hg.mean(x, axis=1)).all()
    for name in ("sum", "mean", "prod"):
        _, residuals = getattr(hg, name + "_fwd")(x, axis=1)
        assert getattr(hg, name + "_bwd")(residuals, np.ones(3), axis=1)[0].shape == (3, 0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: hg.max(np.ones((3, 0)), axis=1), r"x: expected an entry at least along axis 1"),
        (lambda: hg.top_k(np.ones((2, 3)), k=4), r"^k .* got k=4"),
        (lambda: hg.top_k(np.ones((2, 3)), k=-1), r"^k .* got -1"),
        (lambda: hg.dropout(np.ones(2), np.ones(2, bool), rate=1.0), r"rate: expected .* got 1.0"),
        (lambda: hg.dropout(np.ones(2), np.ones(2, bool), rate=-0.1), r"rate: .* got -0.1"),
        (lambda: hg.pad(np.ones((2, 3)), widths=((1, 1),)), r"widths: expected two numbers"),
        (lambda: hg.pad(np.ones(2), widths=((1, -1),)), r"widths: .* got \(\(1, -1\),\)"),
        (lambda: hg.take(np.ones((0, 3)), np.array([0])), r"x: expected at least one row"),
        (lambda: hg.segment_sum(np.ones(2), np.array([0, 1]), count=-1), r"must be non-negative"),
        (lambda: hg.einsum(np.ones(2), np.ones(2), subscripts="i,i"), r"subscripts: .* 'i,i'"),
        (lambda: hg.einsum(np.ones(2), np.ones(2), subscripts="...,i->i"), r"subscripts: expected"),
        (lambda: hg.einsum(np.ones((2, 2)), np.ones(2), subscripts="ii,i->i"), r"i stands twice"),
        (lambda: hg.einsum(np.ones((2, 3)), np.ones(2), subscripts="ij,i->i"), r"j stands in one"),
        (lambda: hg.einsum(np.ones(2), np.ones(2), subscripts="i,i->ik"), r"k stands in one"),
        (lambda: hg.einsum(np.ones((2, 1)), np.ones((3, 2)), subscripts="ij,jk->ik"), r"^b: jk of"),
        (lambda: hg.einsum(np.ones(2), np.ones((3, 2)), subscripts="ij,jk->ik"), r"^a: ij of"),
        *(
            (lambda f=f: getattr(hg, f)(np.ones((2, 3)), axis=5), r"axis 5 is out of bounds")
            for f in ("sum", "mean", "cumsum", "prod", "max")
        ),
        (lambda: hg.broadcast_to(np.ones(3), shape=(4, 2)), r"\[3\].*\[4,2\]"),
        (lambda: hg.reshape(np.ones((2, 3)), shape=(4,)), r"cannot reshape .* into shape \(4,\)"),
        (lambda: hg.transpose(np.ones((2, 3)), axes=(0, 0)), r"permutation \(0, 0\)"),
        (
            lambda: hg.concatenate(np.ones((2, 3)), np.ones((3, 2)), axis=0),
            r"\(2, 3\), \(3, 2\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_named(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: hg.where(np.ones(2, bool), np.ones(2), np.ones(3)), "'b'"),
        (lambda: hg.where(np.ones(2), np.ones(2), np.ones(2)), "'mask'"),
        (lambda: hg.take(np.ones((2, 3)), np.ones(2)), "'ids'"),
        (lambda: hg.segment_sum(np.ones((2, 3)), np.zeros(3, int), count=2), "'ids'"),
        (lambda: hg.embedding(np.zeros(2, int), np.ones(3)), "'table'"),
        (lambda: hg.cumsum(np.ones(3), axis=(0,)), "'axis'"),
    ],
)
def test_a_wrong_shape_or_dtype_names_the_argument(call, name):
    with pytest.raises(TypeError, match=name):
        call()


def test_python_s_own_sum_and_max_are_hidden_from_nobody():
    names = {}
    exec("from handgrad import *", names)
    assert not {"sum", "max", "where", "take"} & set(names)
    assert hg.sum is shapes.sum is not builtins.sum


def test_in_bfloat16_values_keep_their_dtype():
    x = jnp.asarray(rng.normal(size=(4, 3)), "bfloat16")
    for name, (_, given, hyper) in {"sum": ((), (), {"axis": 1}), **LINEAR}.items():
        if name in ("broadcast_to", "transpose"):
            continue
        hyper = hyper | ({"axis": 1} if "axis" in hyper else {})
        z, residuals = getattr(hg, name + "_fwd")(x, *given, **hyper)
        dx = getattr(hg, name + "_bwd")(residuals, jnp.ones_like(z), **hyper)[0]
        assert z.dtype == dx.dtype == "bfloat16" and np.isfinite(dx).all()
