"""Functions of a square matrix, and the solve.    Derivation: notebooks/12_matrix.ipynb

Leading axes are batch axes: a batch of matrices has the shape (*batch, n, n). A matrix that is not
square, and sizes that don't fit, are a TypeError that names the argument. A pivot that is
exactly 0 gives what JAX and LAPACK give, inf or NaN, and no error (but see determinant); so does
an indefinite matrix in cholesky. A singular matrix whose pivot of 0 is rounded to some 1e-16 gives
finite numbers that mean nothing. JAX has no factorisation in bfloat16, so it is made in float32.
"""

import jax.numpy as jnp
from jax.lax.linalg import lu as lu_of
from jax.lax.linalg import triangular_solve
from jax.scipy.linalg import lu_factor, lu_solve
from jax.typing import ArrayLike
from jaxtyping import Float, Integer

# k columns for each matrix; or one vector, for a single matrix
_Columns = Float[ArrayLike, "*batch n k"] | Float[ArrayLike, " n"]


def trace(A: Float[ArrayLike, "*batch n n"]) -> Float[ArrayLike, "*batch"]:
    """t = sum_i A_ii: A (*batch, n, n) -> t (*batch)."""
    return jnp.trace(jnp.asarray(A), axis1=-2, axis2=-1)


def trace_fwd(A):
    """t, and an array without entries, which has as many rows as A."""
    return trace(A), jnp.asarray(A)[..., :0]


def trace_bwd(rows: Float[ArrayLike, "*batch n 0"], dt: Float[ArrayLike, "*batch"]):
    """(dA,): dt on the diagonal."""
    dA = dt[..., None, None] * jnp.eye(rows.shape[-2], dtype=rows.dtype)  # (12.2)
    return (dA,)


def quadratic_form(
    x: Float[ArrayLike, "*batch n"], A: Float[ArrayLike, "n n"]
) -> Float[ArrayLike, "*batch"]:
    """q = x^T A x for every example x: x (*batch, n), A (n, n) -> q (*batch)."""
    return ((x @ A) * x).sum(axis=-1)


def quadratic_form_fwd(x, A):
    """q, and the residuals (x, A), its inputs."""
    return quadratic_form(x, A), (x, A)


def quadratic_form_bwd(
    residuals: tuple[Float[ArrayLike, "*batch n"], Float[ArrayLike, "n n"]],
    dq: Float[ArrayLike, "*batch"],
):
    """(dx, dA). Only the symmetric part of A counts for dx; all examples read A."""
    x, A = map(jnp.asarray, residuals)
    dq_x = dq[..., None] * x
    dx = dq_x @ (A + A.T)  # (12.3)
    dA = _rows(dq_x).T @ _rows(x)  # (12.4)
    return dx, dA


def frobenius_norm(A: Float[ArrayLike, "*batch m n"]) -> Float[ArrayLike, "*batch"]:
    """r = sqrt(sum_ij A_ij^2): A (*batch, m, n) -> r (*batch).

    At A = 0 there is no gradient, and the rule gives NaN, as JAX does.
    """
    return jnp.linalg.norm(A, axis=(-2, -1))


def frobenius_norm_fwd(A):
    """r, and the residuals (A, r): the input and the output, nothing more."""
    r = frobenius_norm(A)
    return r, (A, r)


def frobenius_norm_bwd(
    residuals: tuple[Float[ArrayLike, "*batch m n"], Float[ArrayLike, "*batch"]],
    dr: Float[ArrayLike, "*batch"],
):
    """(dA,): the direction of A, times dr."""
    A, r = map(jnp.asarray, residuals)
    dA = dr[..., None, None] * (A / r[..., None, None])  # (12.5)
    return (dA,)


def determinant(A: Float[ArrayLike, "*batch n n"]) -> Float[ArrayLike, "*batch"]:
    """d = det A: A (*batch, n, n) -> d (*batch).

    Its gradient is right at a singular matrix too, whatever the rank, up to rounding errors of A's
    largest entry. With more than three rows it can be wrong or NaN where there are more than 19
    pivots of 0 (in float32, five) or det A leaves the range of floats otherwise, and the second
    derivatives need an A that has an inverse.
    """
    return jnp.linalg.det(_wide(A)).astype(A.dtype)


def determinant_fwd(A):
    """d, and A, its input. (Under jit the two ways share one factorisation.)"""
    return determinant(A), A


def determinant_bwd(A: Float[ArrayLike, "*batch n n"], dd: Float[ArrayLike, "*batch"]):
    """(dA,): the matrix of cofactors, which is det(A) A^{-T} where A has an inverse."""
    dA = dd[..., None, None] * _cofactors(A)  # (12.7)
    return (dA,)


def log_determinant(A: Float[ArrayLike, "*batch n n"]) -> Float[ArrayLike, "*batch"]:
    """l = log |det A|: A (*batch, n, n) -> l (*batch).

    A matrix with a pivot of exactly 0 has l = -inf, and a gradient that is inf or NaN.
    """
    return jnp.linalg.slogdet(_wide(A))[1].astype(A.dtype)


def log_determinant_fwd(A):
    """l, and the residuals (lu, order), the factors and the order of the rows of P A = L U."""
    lu, _, order = lu_of(_wide(A))
    return jnp.log(jnp.abs(_diagonal(lu))).sum(axis=-1).astype(A.dtype), (lu, order)


def log_determinant_bwd(
    residuals: tuple[Float[ArrayLike, "*batch n n"], Integer[ArrayLike, "*batch n"]],
    dl: Float[ArrayLike, "*batch"],
):
    """(dA,): the inverse, transposed. Here the inverse itself is the answer."""
    lu, order = residuals
    dA = dl[..., None, None] * _inverse_transposed(lu, order, dl)  # (12.9)
    return (dA,)


def inverse(A: Float[ArrayLike, "*batch n n"]) -> Float[ArrayLike, "*batch n n"]:
    """B = A^{-1}: A (*batch, n, n) -> B (*batch, n, n); inf or NaN at a pivot of 0."""
    return jnp.linalg.inv(_wide(A)).astype(A.dtype)


def inverse_fwd(A):
    """B, the only residual."""
    B = inverse(A)
    return B, B


def inverse_bwd(B: Float[ArrayLike, "*batch n n"], dB: Float[ArrayLike, "*batch n n"]):
    """(dA,): like -1 / a^2 for a number, but the order of the factors matters."""
    dA = -_transposed(B) @ dB @ _transposed(B)  # (12.10)
    return (dA,)


def solve(
    A: Float[ArrayLike, "*batch n n"],
    b: _Columns,
) -> _Columns:
    """The x with A x = b: A (*batch, n, n), b (*batch, n, k) -> x (*batch, n, k).

    The k columns of b are right-hand sides of their own. For a single matrix b may be one vector,
    (n,), and so is x then. A pivot of exactly 0 gives inf or NaN.

    Raises:
        ValueError: b is one vector, and A a batch of matrices.

    """
    _check_right_hand_side(A, b)
    return jnp.linalg.solve(_wide(A), _wide(b)).astype(b.dtype)


def solve_fwd(A, b):
    """x, and the residuals (lu, pivots, x): the factors of A serve its transpose too."""
    _check_right_hand_side(A, b)
    lu, pivots = lu_factor(_wide(A))
    x = lu_solve((lu, pivots), _wide(b)).astype(b.dtype)
    return x, (lu, pivots, x)


def solve_bwd(
    residuals: tuple[
        Float[ArrayLike, "*batch n n"],
        Integer[ArrayLike, "*batch n"],
        _Columns,
    ],
    dx: _Columns,
):
    """(dA, db): one solve with the transpose, and an outer product."""
    lu, pivots, x = residuals
    db = _solve_transposed(lu, pivots, dx)  # (12.12)
    dA = -_columns(db, lu) @ _transposed(_columns(x, lu))  # (12.13)
    return dA, db


def cholesky(A: Float[ArrayLike, "*batch n n"]) -> Float[ArrayLike, "*batch n n"]:
    """The lower triangular L with L L^T = A, its diagonal positive: A, L (*batch, n, n).

    A is positive definite; what is not gives NaN. Of an A that is not symmetric, (A + A^T) / 2 is
    taken, as jax.numpy.linalg does (NumPy reads the lower triangle), so dA is symmetric.
    """
    return jnp.linalg.cholesky(_wide(A)).astype(A.dtype)


def cholesky_fwd(A):
    """L, the only residual."""
    L = cholesky(A)
    return L, L


def cholesky_bwd(L: Float[ArrayLike, "*batch n n"], dL: Float[ArrayLike, "*batch n n"]):
    """(dA,), symmetric: two triangular solves (Murray 2016)."""
    L, P = _wide(L), _wide(_phi(_transposed(L) @ dL))
    M = triangular_solve(L, P, left_side=True, lower=True, transpose_a=True)
    M = triangular_solve(L, M, left_side=False, lower=True)  # L^{-T} phi(L^T dL) L^{-1}
    dA = (M + _transposed(M)) / 2  # (12.17)
    return (dA.astype(dL.dtype),)


def _wide(A):
    return jnp.asarray(A, jnp.promote_types(A.dtype, jnp.float32))


def _transposed(A):
    return jnp.swapaxes(A, -2, -1)


def _diagonal(A):
    return jnp.diagonal(A, axis1=-2, axis2=-1)


def _identity(like):
    return jnp.broadcast_to(jnp.eye(like.shape[-1], dtype=like.dtype), like.shape)


def _rows(x):
    return x.reshape(-1, x.shape[-1])


def _inverse_transposed(lu, order, like):
    # A^{-1} = U^{-1} L^{-1} P, where P A = L U: (12.14)
    P = (order[..., None] == jnp.arange(lu.shape[-1])).astype(lu.dtype)
    B = triangular_solve(lu, P, left_side=True, lower=True, unit_diagonal=True)
    B = triangular_solve(lu, B, left_side=True, lower=False)
    return _transposed(B).astype(like.dtype)


def _solve_transposed(lu, pivots, b):
    # the y with A^T y = b, by the factors of A: (12.14)
    return lu_solve((lu, pivots), _wide(b), trans=1).astype(b.dtype)


def _columns(v, lu):
    # one vector as a matrix with one column
    return v[..., None] if v.ndim < lu.ndim else v


def _check_right_hand_side(A, b):
    if jnp.ndim(b) == 1 and jnp.ndim(A) > 2:
        axes = ", ".join(map(str, jnp.shape(A)[:-1]))
        raise ValueError(f"b: expected ({axes}, k), k columns a matrix; got {jnp.shape(b)}")


def _phi(A):
    # the lower triangle, with half of the diagonal: (12.15)
    return jnp.tril(A) - _identity(A) * A / 2


def _cofactors(A):
    n = A.shape[-1]
    if n <= 3:  # (A, 0; 0, I) has the same cofactors; with three rows they are cross products
        beside = [(0, 0)] * (A.ndim - 2) + [(0, 3 - n)] * 2
        rows = jnp.pad(A, beside) + jnp.diag(jnp.arange(3) >= n).astype(A.dtype)
        after, before = jnp.roll(rows, -1, axis=-2), jnp.roll(rows, 1, axis=-2)
        return jnp.cross(after, before)[..., :n, :n]
    # det(A) A^{-T}, (12.8). A pivot of exactly 0 becomes one of the size of a rounding error: a
    # cofactor is a polynomial in A, so it moves by a rounding error too.
    lu, pivots, order = lu_of(_wide(A))
    small = jnp.finfo(lu.dtype)
    least = jnp.maximum(small.eps * jnp.abs(A).max(axis=(-2, -1)), small.tiny)[..., None]
    u = jnp.where(_diagonal(lu) == 0, least, _diagonal(lu))
    lu = jnp.where(jnp.eye(n, dtype=bool), u[..., None], lu)
    det = jnp.where(pivots == jnp.arange(n), u, -u).prod(axis=-1)  # a swap of rows, a sign
    C = det[..., None, None] * _inverse_transposed(lu, order, lu)  # tiny times huge, then rounded
    return C.astype(A.dtype)
