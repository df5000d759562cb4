"""Functions of a matrix: what is special to the topic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import handgrad as hg

RIGHT = {
    "12.1": [
        "return (3, 0.5), ((-3, 6), (-0.5, 1)), ((4, -2), (-1, 3))",
        "A, x = np.array([[3.0, 1], [2, 4]]), np.array([1.0, -2])\n"
        "db = np.linalg.solve(A.T, [10, 5])\n"
        "return db, -db[:, None] * x, 10 * np.linalg.inv(A).T",
    ],
    "12.2": [
        "x, y = residuals[2], np.linalg.inv(residuals[1]).T @ a\n"
        "return x * dm, -dm * y[:, None] * x, dm * y",
        "dA, dc = hg.solve_bwd(hg.solve_fwd(A, A @ x)[1], dm * a)\nreturn dm * x, dA, dc",
    ],
    "12.3": [
        "gamma = [np.prod([s[j] for j in range(len(s)) if j != i]) for i in range(len(s))]\n"
        "return np.linalg.det(U @ Vt) * U @ np.diag(gamma) @ Vt",
        "before = np.concatenate([[1], np.cumprod(s)[:-1]])\n"
        "after = np.concatenate([np.cumprod(s[::-1])[-2::-1], [1]])\n"
        "return np.linalg.det(U) * np.linalg.det(Vt) * np.einsum('ij,j,jk', U, before * after, Vt)",
    ],
    "12.4": [
        "drho = np.linalg.inv(np.eye(len(P)) - 0.9 * P).T @ dv\n"
        "return drho, 0.9 * drho[:, None] * v",
        "dA, drho = hg.solve_bwd(hg.solve_fwd(np.eye(4) - 0.9 * P, v - 0.9 * P @ v)[1], dv)\n"
        "return drho, -0.9 * dA",
        "drho = sum(0.9**t * np.linalg.matrix_power(P.T, t) @ dv for t in range(400))\n"
        "return drho, 0.9 * np.outer(drho, v)",
    ],
    "12.5": [
        "dQ = lyapunov(A.T, dX)\nreturn -dQ @ X.T - dQ.T @ X, dQ",
        "eye = jnp.eye(len(A))\n"
        "system = jnp.kron(A.T, eye) + jnp.kron(eye, A.T)\n"
        "dQ = jnp.linalg.solve(system, dX.ravel()).reshape(dX.shape)\n"
        "return -jnp.einsum('ij,kj->ik', dQ, X) - jnp.einsum('ji,jk->ik', dQ, X), dQ",
    ],
}

WRONG = {
    "12.1": [
        # a solve with A; the sign; the outer product transposed; the inverse, not transposed
        "return [3.5, -0.5], [[-3.5, 7], [0.5, -1]], [[4, -2], [-1, 3]]",
        "return [3, 0.5], [[3, -6], [0.5, -1]], [[4, -2], [-1, 3]]",
        "return [3, 0.5], [[-3, -0.5], [6, 1]], [[4, -2], [-1, 3]]",
        "return [3, 0.5], [[-3, 6], [-0.5, 1]], [[4, -1], [-2, 3]]",
    ],
    "12.2": [
        "dc = dm * jnp.linalg.solve(A, a)\nreturn dm * x, -jnp.outer(dc, x), dc",
        "dc = dm * jnp.linalg.solve(A.T, a)\nreturn dm * x, jnp.outer(dc, x), dc",
        "dc = dm * jnp.linalg.solve(A.T, a)\nreturn dm * x, -jnp.outer(x, dc), dc",
        "dc = jnp.linalg.solve(A.T, a)\nreturn x, -jnp.outer(dc, x), dc",
    ],
    "12.3": [
        "return np.linalg.det(A) * np.linalg.inv(A).T",
        "return np.linalg.det(U) * np.linalg.det(Vt) * (U * (np.prod(s) / s)) @ Vt",
        "gamma = np.array([np.prod(np.delete(s, i)) for i in range(len(s))])\n"
        "return (U * gamma) @ Vt",
        "gamma = np.array([np.prod(np.delete(s, i)) for i in range(len(s))])\n"
        "return np.linalg.det(U) * np.linalg.det(Vt) * ((U * gamma) @ Vt).T",
    ],
    "12.4": [
        "return values_bwd_buggy(P, v, dv)",
        "drho = np.linalg.solve(np.eye(4) - 0.9 * P.T, dv)\nreturn drho, -0.9 * np.outer(drho, v)",
        "drho = np.linalg.solve(np.eye(4) - 0.9 * P.T, dv)\nreturn drho, np.outer(drho, v)",
        "drho = values_bwd_buggy(P, v, dv)[0]\ndrho = drho * 10 / drho.sum()\n"
        "return drho, 0.9 * np.outer(drho, v)",
    ],
    "12.5": [
        "dQ = lyapunov(A, dX)\nreturn -(dQ @ X.T + dQ.T @ X), dQ",
        "dQ = lyapunov(A.T, dX)\nreturn -2 * dQ @ X.T, dQ",
        "dQ = lyapunov(A.T, dX)\nreturn dQ @ X.T + dQ.T @ X, dQ",
        "dQ = lyapunov(A.T, dX)\nreturn -(dQ @ X + dQ.T @ X.T), dQ",
    ],
}

SQUARE = ["trace", "determinant", "log_determinant", "inverse", "cholesky"]


def by_minors(A):
    n, C = len(A), np.empty(np.shape(A))
    for i, j in np.ndindex(n, n):
        minor = np.delete(np.delete(A, i, axis=0), j, axis=1)
        C[i, j] = (-1) ** (i + j) * np.linalg.det(minor)
    return C


def layer(name):
    return hg.as_layer(*(getattr(hg, name + suffix) for suffix in ("", "_fwd", "_bwd")))


A = np.array(
    [[2.0, 1, 0, 3, 1], [0, 1, 4, 1, 2], [5, 0, 1, 2, 0], [1, 3, 2, 1, 1], [2, 0, 1, 1, 3]]
)
SINGULAR = {
    "column 1 is twice column 0": A[:, [0, 0, 2, 3, 4]] * [1, 2, 1, 1, 1],
    "column 4 is twice column 0": A[:, [0, 1, 2, 3, 0]] * [1, 1, 1, 1, 2],
    "a row of zeros": A * (np.arange(5) != 1)[:, None],
    "the first column is zero": A * (np.arange(5) != 0),
    "every pivot is zero": np.eye(5, k=1),
    "rank 3": A * (np.arange(5) < 3),
    "rank 1": np.outer(A[0], A[1]),
    "zero": np.zeros((5, 5)),
    "tiny": 1e-3 * A * (np.arange(5) != 0),
    "three rows": np.outer(A[0, :3], A[1, :3]) + np.diag([1.0, 0, 0]),
    "two rows": np.ones((2, 2)),
    "one row": np.zeros((1, 1)),
}


@pytest.mark.parametrize(
    ("dtype", "digits"), [("bfloat16", 1), ("float16", 1), ("float32", 100), ("float64", 100)]
)
@pytest.mark.parametrize("matrix", SINGULAR.values(), ids=SINGULAR)
def test_a_singular_matrix_has_its_cofactors_for_a_gradient(matrix, dtype, digits):
    (dA,) = hg.determinant_bwd(jnp.asarray(matrix, dtype), jnp.ones((), dtype))
    matrix = np.asarray(jnp.asarray(matrix, dtype), "float64")
    C, size, eps = by_minors(matrix), np.abs(matrix).max(), digits * float(jnp.finfo(dtype).eps)
    assert dA.dtype == dtype
    atol = eps * max(size, 1e-3) ** (len(matrix) - 1)
    atol += float(jnp.finfo(dtype).tiny)  # smaller numbers lose digits, or are 0
    np.testing.assert_allclose(np.asarray(dA, "float64"), C, rtol=eps, atol=atol)


def test_jax_s_own_gradient_needs_the_zero_pivot_to_be_the_last():
    # what the notebook says of JAX, and why the catalog has no such example
    first = A[:4, :4] * (np.arange(4) != 0)
    assert not jax.grad(jnp.linalg.det)(first).any() and np.abs(by_minors(first)).max() > 1
    last = first[:, [1, 2, 3, 0]]
    np.testing.assert_allclose(jax.grad(jnp.linalg.det)(last), by_minors(last), atol=1e-12)


def test_the_second_derivatives_of_a_determinant():
    def triple_product(M):
        return jnp.vdot(M[0], jnp.cross(M[1], M[2]))

    for matrix, plain in (
        (A[:3, :3], triple_product),
        (np.ones((3, 3)), triple_product),
        (A[:4, :4], hg.determinant),
    ):
        ours, theirs = (jax.hessian(f)(matrix) for f in (layer("determinant"), plain))
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", SQUARE)
def test_a_matrix_that_is_not_square_is_refused(name):
    for call in (getattr(hg, name), jax.jit(getattr(hg, name))):
        with pytest.raises(TypeError, match=r"parameter 'A'"):
            call(np.ones((3, 4)))


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: hg.solve(np.ones((3, 4)), np.ones(3)), "A"),
        (lambda: hg.solve(np.eye(3), np.ones(4)), "b"),
        (lambda: hg.solve(np.eye(3), np.ones((4, 2))), "b"),
        (lambda: hg.solve(np.ones((5, 3, 3)), np.ones((4, 3, 2))), "b"),
        (lambda: hg.solve(np.ones((5, 3, 3)), np.ones((5, 3))), "b"),
        (lambda: hg.quadratic_form(np.ones(3), np.eye(4)), "A"),
        (lambda: hg.quadratic_form(np.ones(3), np.ones((3, 4))), "A"),
        (lambda: hg.frobenius_norm(np.ones(3)), "A"),
        (lambda: hg.inverse(np.eye(3, dtype=int)), "A"),
    ],
)
def test_sizes_that_do_not_fit_name_the_argument(call, argument):
    with pytest.raises(TypeError, match=f"parameter '{argument}'"):
        call()


def test_one_vector_for_a_batch_of_matrices_is_refused():
    for f in (hg.solve, hg.solve_fwd, jax.jit(hg.solve)):
        with pytest.raises(ValueError, match=r"b: expected \(5, 3, k\).*got \(3,\)"):
            f(np.ones((5, 3, 3)), np.ones(3))


def test_a_singular_matrix_gives_no_finite_solution_and_no_finite_gradient():
    ones = np.ones((3, 3))
    assert hg.log_determinant(ones) == -np.inf
    assert not np.isfinite(hg.inverse(ones)).any()
    assert not np.isfinite(hg.solve(ones, np.array([1.0, 2, 3]))).any()
    for name, args in (
        ("log_determinant", (ones,)),
        ("inverse", (ones,)),
        ("solve", (ones, np.array([1.0, 2, 3]))),
    ):
        f, f_fwd, f_bwd = (getattr(hg, name + suffix) for suffix in ("", "_fwd", "_bwd"))
        z, residuals = f_fwd(*args)
        np.testing.assert_array_equal(np.isfinite(z), np.isfinite(f(*args)))
        assert not np.isfinite(f_bwd(residuals, jnp.ones_like(z))[0]).all(), name


def test_an_indefinite_matrix_has_no_cholesky_factor():
    L, residual = hg.cholesky_fwd(np.diag([1.0, 1.0, -1.0]))
    assert np.isnan(L[2, 2]) and np.isnan(hg.cholesky_bwd(residual, jnp.ones((3, 3)))[0]).any()


def test_a_norm_of_zero_has_no_gradient():
    r, residuals = hg.frobenius_norm_fwd(np.zeros((2, 3)))
    assert r == 0 and np.isnan(hg.frobenius_norm_bwd(residuals, jnp.ones(()))[0]).all()
    assert np.isnan(jax.grad(hg.frobenius_norm)(np.zeros((2, 3)))).all()


def test_cholesky_reads_the_symmetric_part_and_its_gradient_is_symmetric():
    S = A @ A.T + np.eye(5)
    skew = np.triu(A) - np.triu(A).T
    np.testing.assert_allclose(hg.cholesky(S + skew), np.linalg.cholesky(S), rtol=1e-12)
    _, residual = hg.cholesky_fwd(S + skew)
    (dA,) = hg.cholesky_bwd(residual, jnp.asarray(A))
    np.testing.assert_array_equal(dA, dA.T)
    # what stands above the diagonal of dL is the cotangent of a constant 0
    np.testing.assert_allclose(hg.cholesky_bwd(residual, jnp.tril(A))[0], dA, rtol=1e-12)


def test_solve_keeps_factors_that_solve_with_the_transpose():
    b, dx = A[:, :3], A[:, 2:]
    x, residuals = hg.solve_fwd(A, b)
    dA, db = hg.solve_bwd(residuals, dx)
    np.testing.assert_allclose(A.T @ db, dx, atol=1e-12)
    np.testing.assert_allclose(dA, -db @ x.T, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 0), (0, 4, 4)])
def test_no_rows_and_no_matrices(shape):
    for name in (*SQUARE, "frobenius_norm"):
        z, residuals = getattr(hg, name + "_fwd")(np.zeros(shape))
        assert getattr(hg, name + "_bwd")(residuals, jnp.ones_like(z))[0].shape == shape
    x, residuals = hg.solve_fwd(np.zeros(shape), np.zeros((*shape[:-1], 3)))
    assert [d.shape for d in hg.solve_bwd(residuals, x)] == [shape, x.shape]
