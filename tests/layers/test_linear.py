"""The linear layer: what is special to it."""

import jax.numpy as jnp
import numpy as np
import pytest

import handgrad as hg

# Answers to the exercises of notebooks/04_linear.ipynb, judged in tests/test_answers.py.
RIGHT = {
    "4.1": [
        "return np.array([5, 13, -9.0]), np.outer([5.0, -3], [4.0, -1, 2]), np.array([5.0, -3.0])",
        "return [(5.0, 13.0, -9.0), [[20.0, -5, 10], [-12, 3, -6.0]], (5.0, -3.0)]",
        """
        W = jnp.array([[1.0, 2, 0], [0, -1, 3]])
        dz = jnp.array([5.0, -3])
        return dz @ W, dz[:, None] * jnp.array([4.0, -1, 2]), dz
        """,
    ],
    "4.2": [
        'return jnp.einsum("nh,dh->nd", dz, V), jnp.einsum("nd,nh->dh", x, dz), jnp.sum(dz, 0)',
        "return (V @ dz.T).T, (dz.T @ x).T, sum(dz)",
        """
        dz, x, V = np.asarray(dz), np.asarray(x), np.asarray(V)
        dV = sum(np.outer(x[n], dz[n]) for n in range(len(x)))
        return np.stack([V @ row for row in dz]), dV, np.ones(len(dz)) @ dz
        """,
        "dx, dW, dc = hg.linear_bwd((x, V.T), dz)\nreturn dx, dW.T, dc",
    ],
    "4.3": [
        "return N * d * h**2, d * h * N",
        "outputs, weights = N * h, h * d\nreturn outputs * weights, float(outputs * d)",
        "return np.prod([N, h, h, d]), np.prod([N, h, d])",
    ],
    "4.4": [
        """
        rows = dz.reshape(-1, dz.shape[-1])
        return dz @ W, rows.T @ x.reshape(-1, x.shape[-1]), jnp.einsum("tnh->th", dz)
        """,
        """
        dW = sum(dz[t].T @ x[t] for t in range(len(x)))
        return jnp.stack([dz[t] @ W for t in range(len(x))]), dW, np.sum(dz, axis=1)
        """,
        "dx, dW, _ = hg.linear_bwd((x, W), dz)\nreturn dx, dW, sum(dz[:, n] for n in range(6))",
    ],
    "4.5": [
        """
        dx = sum(dz[:, i, None] * (y @ A[i].T) for i in range(len(A)))
        dy = sum(dz[:, i, None] * (x @ A[i]) for i in range(len(A)))
        return dx, jnp.stack([(x * dz[:, i, None]).T @ y for i in range(len(A))]), dy
        """,
        """
        M = jnp.tensordot(dz, A, axes=1)
        dA = (dz[:, :, None, None] * x[:, None, :, None] * y[:, None, None, :]).sum(0)
        return (M @ y[..., None])[..., 0], dA, (x[:, None, :] @ M)[:, 0]
        """,
        """
        _, pull = jax.vjp(lambda x, A, y: jnp.einsum("nj,ijk,nk->ni", x, A, y), x, A, y)
        return pull(dz)
        """,
    ],
}
WRONG = {
    "4.1": [
        "return [5.0, 13.0, -9.0], [[20.0, -12], [-5, 3], [10, -6]], [5.0, -3.0]",
        "return [5.0, 7.0, -9.0], [[20.0, -5, 10], [-12, 3, -6]], [5.0, -3.0]",
        "return [[20.0, -5, 10], [-12, 3, -6]], [5.0, -3.0], [5.0, 13.0, -9.0]",
        "return [5.0, 13.0, -9.0], [[20.0, -5, 10], [-12, 3, -6]], [1.0, 1.0]",
    ],
    "4.2": [
        "return dz @ V, dz.T @ x, dz.sum(axis=0)",
        "return dz @ V.T, dz.T @ x, dz.sum(axis=0)",
        "return dz @ V.T, x.T @ dz, dz",
        "return dz @ V.T, x.T @ dz / len(x), dz.mean(axis=0)",
    ],
    "4.3": [
        "return N * h * d, N * h * d",
        "return h * h * d, h * d",
        "return N * h * h * d, h * d",
    ],
    "4.4": [
        "return hg.linear_bwd((x, W), dz)",
        "return dz @ W, jnp.einsum('tni,tnj->ij', dz, x), dz.sum(axis=0)",
        "return dz @ W, jnp.einsum('tni,tnj->ij', dz, x), dz.mean(axis=1)",
        "return dz @ W, dz[0].T @ x[0], dz.sum(axis=1)",
    ],
    "4.5": [
        """
        dx, dA = jnp.einsum("ni,ijk,nk->nj", dz, A, y), jnp.einsum("ni,nj,nk->nijk", dz, x, y)
        return dx, dA, jnp.einsum("ni,ijk,nj->nk", dz, A, x)
        """,
        """
        dx, dA = jnp.einsum("ni,ijk,nk->nj", dz, A, y), jnp.einsum("ni,nj,mk->ijk", dz, x, y)
        return dx, dA, jnp.einsum("ni,ijk,nj->nk", dz, A, x)
        """,
        """
        dx, dA = jnp.einsum("ijk,nk->nj", A, y), jnp.einsum("ni,nj,nk->ijk", dz, x, y)
        return dx, dA, jnp.einsum("ijk,nj->nk", A, x)
        """,
    ],
}


def test_a_factor_of_a_mean_comes_with_dz_and_examples_add_up():
    rng = np.random.default_rng(1)
    x, W, dz = rng.normal(size=(6, 3)), rng.normal(size=(5, 3)), rng.normal(size=(6, 5))
    once = hg.linear_bwd((x, W), dz)
    twice = hg.linear_bwd((np.tile(x, (2, 1)), W), np.tile(dz, (2, 1)) / 2)
    np.testing.assert_allclose(twice[1], once[1])
    np.testing.assert_allclose(twice[2], once[2])


@pytest.mark.parametrize("batch", [(0,), (0, 3), (4, 0)])
def test_no_example_at_all_gives_gradients_of_zero(batch):
    W, b = np.ones((5, 3)), np.ones(5)
    z, residuals = hg.linear_fwd(jnp.ones((*batch, 3)), W, b)
    dx, dW, db = hg.linear_bwd(residuals, z)
    assert z.shape == (*batch, 5) and dx.shape == (*batch, 3)
    assert dW.shape == W.shape and db.shape == b.shape and not dW.any() and not db.any()
