"""The rows of layers/matrix.py."""

import jax.numpy as jnp
import numpy as np

from handgrad.catalog import Row
from handgrad.layers.matrix import (
    cholesky,
    determinant,
    frobenius_norm,
    inverse,
    log_determinant,
    quadratic_form,
    solve,
    trace,
)

SHAPES = {
    "typical": (3, 4, 4),
    "edge: one matrix, no batch axis": (5, 5),
    "edge: more batch axes": (2, 3, 3, 3),
}


def _invertible(rng, shape):
    # far enough from singular that differences can judge
    return rng.normal(size=shape) + 3 * np.eye(shape[-1])


def _squares(rng):
    examples = {name: ((_invertible(rng, shape),), {}) for name, shape in SHAPES.items()}
    return examples | {"extreme: 1e4": ((1e4 * examples["typical"][0][0],), {})}


def _rectangles(rng):
    A = rng.normal(size=(6, 3, 4))
    return {
        "typical": ((A,), {}),
        "edge: one matrix, no batch axis": ((A[0],), {}),
        "extreme: 1e4": ((1e4 * A,), {}),
    }


def _some_singular(rng):
    A = np.array([[2.0, 1, 0, 3], [0, 1, 4, 1], [5, 0, 1, 2], [1, 3, 2, 1]])
    rank_3, rank_2 = A.copy(), A.copy()
    rank_3[:, 3] = rank_3[:, 0]
    rank_2[:, 2:] = 0
    return _squares(rng) | {
        "edge: one row": ((rng.normal(size=(3, 1, 1)),), {}),
        "extreme: rank 3 of 4": ((rank_3,), {}),
        "extreme: rank 2 of 4": ((rank_2,), {}),
        "extreme: zero": ((np.zeros((4, 4)),), {}),
    }


def _vectors(rng):
    def of(*batch):
        return (rng.normal(size=(*batch, 4)), rng.normal(size=(4, 4))), {}

    return {
        "typical": of(3),
        "edge: one example, no batch axis": of(),
        "edge: more batch axes": of(2, 3),
        "edge: no example": of(0),
        "extreme: 1e4": ((1e4 * rng.random(4), rng.random((4, 4))), {}),
    }


def _right_hand_sides(rng):
    examples = {
        name: ((A, rng.normal(size=(*A.shape[:-1], 5))), {})
        for name, ((A,), _) in _squares(rng).items()
    }
    A, b = examples["edge: one matrix, no batch axis"][0]
    return examples | {"edge: one vector": ((A, b[:, 0]), {})}


def _positive_definite(rng):
    return {
        name: ((A @ A.swapaxes(-2, -1) / len(A[0]),), {})
        for name, ((A,), _) in _squares(rng).items()
    }


def _sum_of_diagonals(A):
    return sum(A[..., i, i] for i in range(A.shape[-1]))


def _double_sum(x, A):
    return sum(x[..., i] * A[i, j] * x[..., j] for i in range(len(A)) for j in range(len(A)))


ROWS = (
    Row(
        trace,
        r"t = \operatorname{Tr} A",
        {"A": r"dA = dt\,I"},
        _squares,
        same_as=_sum_of_diagonals,
    ),
    Row(
        quadratic_form,
        r"q = x^\top A\,x",
        {"x": r"dx = dq\,(A + A^\top)\,x", "A": r"dA = \sum_i dq_i\,x_i\,x_i^\top"},
        _vectors,
        same_as=_double_sum,
    ),
    Row(
        frobenius_norm,
        r"r = \lVert A \rVert",
        {"A": r"dA = \frac{dr}{r}\,A"},
        _rectangles,
        same_as=lambda A: np.linalg.norm(A, axis=(-2, -1)),
        where=r"$A \ne 0$",
    ),
    Row(
        determinant,
        r"d = \det A",
        {"A": r"dA = dd\;C"},
        _some_singular,
        same_as="numpy.linalg.det",
        where=r"$C$ is the matrix of cofactors, $\det(A)\,A^{-\top}$ if $A$ has an inverse",
    ),
    Row(
        log_determinant,
        r"l = \log \lvert \det A \rvert",
        {"A": r"dA = dl\;A^{-\top}"},
        _squares,
        same_as=lambda A: np.linalg.slogdet(A)[1],
    ),
    Row(
        inverse,
        r"B = A^{-1}",
        {"A": r"dA = -B^\top dB\,B^\top"},
        _squares,
        same_as="jax.scipy.linalg.inv",
    ),
    Row(
        solve,
        r"x = A^{-1} b",
        {"A": r"dA = -db\;x^\top", "b": r"db = A^{-\top} dx"},
        _right_hand_sides,
        same_as="jax.scipy.linalg.solve",
    ),
    Row(
        cholesky,
        r"L = \operatorname{chol} A, \quad L L^\top = A",
        {"A": r"dA = \tfrac12 (M + M^\top)"},
        _positive_definite,
        same_as=lambda A: jnp.linalg.cholesky(A),
        where=r"$M = L^{-\top}\,\Phi(L^\top dL)\,L^{-1}$, and $\Phi$ takes the lower triangle "
        r"with half of the diagonal",
    ),
)
