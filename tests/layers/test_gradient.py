"""The gradient: what is special to it."""

RIGHT = {
    "1.1": ["return 5, 2", "return np.array([5, 2])", "return jnp.array([5.0, 2.0])"],
    "1.2": [
        "return np.array([2.0, -3.0, 6.0]) / 7",
        "v = jnp.array([2, -3, 6])\nreturn v / jnp.linalg.norm(v)",
        "return [c / (4 + 9 + 36) ** 0.5 for c in (2, -3, 6)]",
    ],
    "1.3": [
        "return B @ v + v @ B",
        "return jnp.dot(B, v) + jnp.dot(B.T, v)",
        "return np.einsum('ij,j->i', B, v) + np.einsum('ji,j->i', B, v)",
        "return [sum((B[i, j] + B[j, i]) * v[j] for j in range(len(v))) for i in range(len(v))]",
    ],
    "1.4": [
        "h = np.linalg.inv(A) @ g\nreturn h / np.sqrt(h @ A @ h)",
        "C = np.linalg.cholesky(A)\nk = np.linalg.solve(C, g)\n"
        "return np.linalg.solve(C.T, k / np.linalg.norm(k))",
        "h = jnp.linalg.solve(A, g)\nreturn h / jnp.sqrt(jnp.einsum('i,ij,j', h, A, h))",
        "h = np.linalg.solve(A, g)\nreturn (h / float(h @ A @ h) ** 0.5).tolist()",
    ],
    "1.5": [
        "return 2 * (v - t) - 10 * np.diff(np.diff(v), prepend=0, append=0)",
        "dv = 2 * (v - t)\nfor i in range(1, len(v)):\n"
        "    dv[i] += 10 * (v[i] - v[i - 1])\n    dv[i - 1] += 10 * (v[i - 1] - v[i])\nreturn dv",
        "D = np.diff(np.eye(len(v)), axis=0)\nreturn 2 * (v - t) + 10 * D.T @ (D @ v)",
        "d = jnp.diff(v)\ndv = 2 * (jnp.asarray(v) - t)\n"
        "return dv.at[1:].add(10 * d).at[:-1].add(-10 * d)",
    ],
    "1.6": [
        "return np.linalg.inv(M) @ G @ np.linalg.inv(N)",
        "return np.linalg.solve(N, np.linalg.solve(M, G).T).T",
        "flat = np.linalg.solve(np.kron(M, N), G.reshape(-1))\nreturn flat.reshape(G.shape)",
        "return jnp.einsum('ij,jk,kl->il', jnp.linalg.inv(M), G, jnp.linalg.inv(N))",
    ],
}

WRONG = {
    "1.1": ["return 2.0, 5.0", "return [5.0, 2.0, 0.0]", "return 10.0"],
    "1.2": ["return [2, -3, 6]", "return [2 / 7, 3 / 7, 6 / 7]", "return [4, -6, 12]"],
    "1.3": ["return 2 * B @ v", "return 2 * B.T @ v", "return B @ v", "return (B + B.T) @ v / 2"],
    "1.4": [
        "return np.linalg.solve(A, g)",
        "return g / np.sqrt(g @ A @ g)",
        "return g / np.linalg.norm(g)",
        "h = np.linalg.solve(A, g)\nreturn h / np.linalg.norm(h)",
        "h = np.linalg.solve(A, g)\nreturn -h / np.sqrt(h @ A @ h)",
    ],
    "1.5": [
        "return roughness_gradient(v, t)",
        "dv = 2 * (v - t)\ndv[1:] += 20 * (v[1:] - v[:-1])\nreturn dv",
        "dv = roughness_gradient(v, t)\ndv[:-1] += 10 * (v[1:] - v[:-1])\nreturn dv",
        "return 2 * (v - t) + 10 * (2 * v - np.roll(v, 1) - np.roll(v, -1))",
    ],
    "1.6": [
        "return G",
        "return np.linalg.solve(M, G)",
        "return G @ np.linalg.inv(N)",
        "return M @ G @ N",
        "return np.linalg.inv(N) @ G.T @ np.linalg.inv(M)",
    ],
}
