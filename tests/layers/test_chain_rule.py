"""The chain rule: what is special to it."""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import pytest

from handgrad import figures, tap


def straight(x, W, b):
    p = jnp.dot(W, x)
    q = jnp.add(p, b)
    return q


def forked(x, W):
    p = tap("p", W @ x)
    q = tap("q", jnp.tanh(p))
    r = tap("r", p**2)
    s = tap("s", q * r)
    return s


@pytest.mark.parametrize(("forward", "pluses"), [(straight, 0), (forked, 1)])
def test_cotangents_meet_in_a_plus_where_a_value_has_several_readers(forward, pluses):
    plt.switch_backend("agg")
    figure, ax = plt.subplots()
    figures.execution_trace(ax, forward, parameters=("W", "b"))
    assert [text.get_text() for text in ax.texts].count("+") == pluses
    plt.close(figure)


def test_what_is_no_straight_program_is_not_drawn():
    def looped(x):
        for _ in range(3):
            x = jnp.tanh(x)
        return x

    with pytest.raises(ValueError, match="expected value = function"):
        figures.execution_trace(None, looped)


RIGHT = {
    "3.1": [
        "return (7.0, 6.0, -10.0), (14.0, 27.0, 16.0, -50.0)",
        """
        J = np.array([[2, 3, 0, 0], [0, 1, 1, 0], [0, 0, -1, 5]])
        dz = np.array([7, 6, -10])
        return dz, J.T @ dz
        """,
    ],
    "3.2": [
        # einsum, and the second fork in two steps
        """
        dr = np.multiply(ds, q)
        dp = dr * r
        dp = dp + dq * (1 - np.tanh(p) ** 2)
        dA = np.einsum("i,j->ij", dp, x)
        dB = np.einsum("i,j->ij", dt, s)
        dx = np.einsum("ij,i->j", A, dp)
        """,
        # columns and rows, jnp
        """
        dr = jnp.asarray(ds) * q
        dp = dq / jnp.cosh(p) ** 2 + jnp.exp(p) * dr
        dx = dp @ A
        dA = dp[:, None] * x[None, :]
        dB = dt[:, None] @ s[None, :]
        """,
        # loops and lists of floats
        """
        dr = [float(q[i] * ds[i]) for i in range(3)]
        dp = [float((1 - q[i] ** 2) * dq[i] + r[i] * dr[i]) for i in range(3)]
        dx = [sum(float(A[i, j]) * dp[i] for i in range(3)) for j in range(4)]
        dA = [[dp[i] * float(x[j]) for j in range(4)] for i in range(3)]
        dB = [[float(dt[i] * s[j]) for j in range(3)] for i in range(5)]
        """,
    ],
    "3.3": [
        "return 132000.0, 134400.0, 22200.0",
        """
        forward = 3 * 40 * 50 + 40 * 3 * 50 + 60 * 40 * 50
        reverse = 60 * 40 * 3 + 60 * 3 * 40 + 60 * 40 * 50
        return [forward, reverse, 60 * 40 * 3 + 3 * 40 * 50 + 60 * 3 * 50]
        """,
    ],
    "3.4": [
        # the slope by the addition theorem, with NumPy's functions where they serve
        """
        x, A, B, q = residuals
        p = jnp.einsum("ij,j->i", A, x)
        dp = jnp.sin(p + jnp.pi / 2) * jnp.einsum("ij,i->j", B, dz)
        return dz + dp @ A, dp[:, None] * x, dz[:, None] * q
        """,
        """
        x, A, B, q = residuals
        slopes = jnp.diag(jnp.cos(A @ x))
        dp = slopes.T @ B.T @ dz
        return A.T @ dp + dz, jnp.outer(x, dp).T, jnp.einsum("i,j->ij", dz, q)
        """,
        """
        x, A, B, q = map(np.asarray, residuals)
        dp = np.cos(A @ x) * (B.T @ np.asarray(dz))
        return dz + A.T @ dp, np.outer(dp, x), np.outer(dz, q)
        """,
    ],
    "3.5": [
        # pairs from the end, a sum of outer products at the end
        """
        u, W = residuals
        terms, du = [], dz
        for before, after in reversed(list(zip(u[:-1], u[1:]))):
            dp = du - du * after * after
            terms.append(jnp.einsum("i,j->ij", dp, before))
            du = dp @ W
        return du, sum(terms)
        """,
        # one matrix product for all steps, recomputing what was kept
        """
        u, W = residuals
        ps = []
        for k in reversed(range(steps)):
            ps.insert(0, dz / jnp.cosh(W @ u[k]) ** 2)
            dz = W.T @ ps[0]
        return dz, jnp.stack(ps).T @ jnp.stack(u[:-1])
        """,
    ],
}

WRONG = {
    "3.1": [
        "return [7, 6, -10], [14, 6, -10, -50]",  # one reader each
        "return [6, 7, -10], [12, 25, 17, -50]",  # z for its gradient
        "return [7, 6, 10], [14, 27, -4, 50]",
    ],
    "3.2": [
        # one branch at the fork
        """
        dr = q * ds
        dp = r * dr
        dx, dA, dB = A.T @ dp, np.outer(dp, x), np.outer(dt, s)
        """,
        # the slope of tanh at its output
        """
        dr = q * ds
        dp = (1 - np.tanh(q) ** 2) * dq + r * dr
        dx, dA, dB = A.T @ dp, np.outer(dp, x), np.outer(dt, s)
        """,
        # the exponential passes its cotangent on as it is
        """
        dr = q * ds
        dp = (1 - q**2) * dq + dr
        dx, dA, dB = A.T @ dp, np.outer(dp, x), np.outer(dt, s)
        """,
        # the outer products the other way round
        """
        dr = q * ds
        dp = (1 - q**2) * dq + r * dr
        dx, dA, dB = A.T @ dp, np.outer(x, dp), np.outer(s, dt)
        """,
    ],
    "3.3": [
        "return 134_400, 132_000, 22_200",
        "return 132_000, 134_400, 132_000",
        "return 132_000, 134_400, 13_200",
    ],
    "3.4": [
        # as it was
        """
        x, A, B, q = residuals
        dp = jnp.cos(q) * (B.T @ dz)
        return dz + A.T @ dp, jnp.outer(dp, x), jnp.outer(dz, q)
        """,
        # the size of the slope, without its sign
        """
        x, A, B, q = residuals
        dp = jnp.sqrt(1 - q**2) * (B.T @ dz)
        return dz + A.T @ dp, jnp.outer(dp, x), jnp.outer(dz, q)
        """,
        # the direct path is lost
        """
        x, A, B, q = residuals
        dp = jnp.cos(A @ x) * (B.T @ dz)
        return A.T @ dp, jnp.outer(dp, x), jnp.outer(dz, q)
        """,
    ],
    "3.5": [
        # only the first step's term
        """
        u, W = residuals
        for k in range(steps, 0, -1):
            dp = (1 - u[k] ** 2) * dz
            dW = jnp.outer(dp, u[k - 1])
            dz = W.T @ dp
        return dz, dW
        """,
        # the matrix is not transposed
        """
        u, W = residuals
        dW = 0
        for k in range(steps, 0, -1):
            dp = (1 - u[k] ** 2) * dz
            dW += jnp.outer(dp, u[k - 1])
            dz = W @ dp
        return dz, dW
        """,
        # in the order of the way forward
        """
        u, W = residuals
        dW = 0
        for k in range(1, steps + 1):
            dp = (1 - u[k] ** 2) * dz
            dW += jnp.outer(dp, u[k - 1])
            dz = W.T @ dp
        return dz, dW
        """,
        # the outer product with the step's output
        """
        u, W = residuals
        dW = 0
        for k in range(steps, 0, -1):
            dp = (1 - u[k] ** 2) * dz
            dW += jnp.outer(dp, u[k])
            dz = W.T @ dp
        return dz, dW
        """,
    ],
}
