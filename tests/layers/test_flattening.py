"""The flattening: the answers to its exercises."""

RIGHT = {
    "2.1": [
        "return np.linalg.inv(np.array([[3, -4], [-4, 7]]))",
        "return ((7 / 5, 4 / 5), (4 / 5, 3 / 5))",
        "a, c, b = np.array([7 / 5, 8 / 5, 3 / 5]) / np.array([1, 2, 1])\n"
        "return jnp.array([[a, c], [c, b]])",
    ],
    "2.2": [
        "return np.dot(dZ, np.dot(B, X).T) + np.dot(np.dot(X, B).T, dZ)",
        "return jnp.einsum('ij,kj,lk->il', dZ, X, B) + jnp.einsum('ji,kj,kl->il', B, X, dZ)",
        "return (B.T @ X.T @ dZ + dZ @ X.T @ B.T).tolist()",
        "dX = np.zeros_like(X)\nfor place in np.ndindex(X.shape):\n"
        "    H = np.zeros_like(X)\n    H[place] = 1\n"
        "    dX[place] = np.trace((H @ B @ X + X @ B @ H) @ dZ.T)\nreturn dX",
    ],
    "2.3": [
        "return T @ dz @ y, np.multiply.outer(np.outer(x, y), dz), x @ (T @ dz)",
        "M = jnp.tensordot(T, dz, axes=1)\n"
        "return [M @ y, x[:, None, None] * y[:, None] * dz, jnp.dot(M.T, x)]",
        "dx, dT, dy = np.zeros(x.shape), np.zeros(T.shape), np.zeros(y.shape)\n"
        "for i, j, k in np.ndindex(T.shape):\n"
        "    dx[i] += T[i, j, k] * y[j] * dz[k]\n"
        "    dT[i, j, k] = x[i] * y[j] * dz[k]\n"
        "    dy[j] += float(x[i] * T[i, j, k]) * dz[k]\n"
        "return dx, dT, dy.tolist()",
    ],
    "2.4": [
        "return X @ dZ + X @ dZ.T",
        "return 2 * X @ ((dZ + dZ.T) / 2)",
        "return np.einsum('ij,jk->ik', X, dZ) + np.einsum('ij,kj->ik', X, dZ)",
        "return jnp.dot(dZ + dZ.T, X.T).T",
    ],
    "2.5": [
        "r = float(np.linalg.norm(X))\nZ = X / r\nreturn (dZ - np.sum(dZ * Z) * Z) / r",
        "x, d = np.ravel(X), np.ravel(dZ)\nr = np.sqrt(np.dot(x, x))\n"
        "return (d / r - np.dot(d, x) / r**3 * x).reshape(X.shape)",
        "along = jnp.vdot(dZ, X) / jnp.vdot(X, X)\n"
        "return (dZ - along * X) / jnp.sqrt(jnp.vdot(X, X))",
        "x, d = np.ravel(X), np.ravel(dZ)\nr = np.sqrt(x @ x)\n"
        "P = np.eye(x.size) - np.outer(x, x) / r**2\nreturn (P @ d / r).reshape(X.shape).tolist()",
    ],
    "2.6": [
        "m, n = dT.shape\ndx = [0.0] * (m + n - 1)\nfor i in range(m):\n    for j in range(n):\n"
        "        dx[i - j + n - 1] += float(dT[i, j])\nreturn dx",
        "m, n = dT.shape\np = np.subtract.outer(np.arange(m), np.arange(n)) + n - 1\n"
        "return np.bincount(p.ravel(), weights=dT.ravel())",
        "m, n = dT.shape\np = np.arange(m)[:, None] - np.arange(n) + n - 1\n"
        "return jnp.zeros(m + n - 1).at[p].add(dT)",
        "m, n = dT.shape\nreturn [np.sum(np.diag(dT, k)) for k in range(n - 1, -m, -1)]",
        "m, n = dT.shape\np = np.arange(m)[:, None] - np.arange(n) + n - 1\n"
        "return np.einsum('ij,ijp->p', dT, np.eye(m + n - 1)[p])",
    ],
}

WRONG = {
    "2.1": [
        "return [[1.4, 1.6], [1.6, 0.6]]",
        "return [1.4, 1.6, 0.6]",
        "return [[1.4, 1.6], [0.0, 0.6]]",
        "return [[0.6, 0.8], [0.8, 1.4]]",
        "return [[1.4, -0.8], [-0.8, 0.6]]",
    ],
    "2.2": [
        "return dZ @ X.T @ B.T",
        "return dZ @ (B @ X) + (X @ B) @ dZ",
        "return 2 * dZ @ X.T @ B.T",
        "return (B.T @ X.T @ dZ + dZ @ X.T @ B.T) / 2",
    ],
    "2.3": [
        "return T @ dz @ y, np.multiply.outer(np.outer(y, x), dz), x @ (T @ dz)",
        "return T @ dz @ y, T * dz, x @ (T @ dz)",
        "return T @ dz @ y, np.multiply.outer(np.outer(x, y), dz)",
        "return T.sum(axis=2) @ y, np.multiply.outer(np.outer(x, y), dz), x @ T.sum(axis=2)",
    ],
    "2.4": [
        "return points_bwd(X, dZ)",
        "return X @ dZ",
        "return 2 * X @ dZ.T",
        "return X @ (dZ + dZ.T) / 2",
        "return X @ (dZ - dZ.T)",
    ],
    "2.5": [
        "return dZ / np.linalg.norm(X)",
        "return dZ - np.sum(dZ * X) * X / np.sum(X * X)",
        "return (dZ - np.sum(dZ * X) * X) / np.linalg.norm(X)",
        "return (dZ - dZ * X * X / np.sum(X * X)) / np.linalg.norm(X)",
        "r = np.linalg.norm(X, axis=-1, keepdims=True)\n"
        "return (dZ - np.sum(dZ * X, axis=-1, keepdims=True) * X / r**2) / r",
    ],
    "2.6": [
        "m, n = dT.shape\nreturn [np.trace(dT, offset=k) for k in range(1 - m, n)]",
        "m, n = dT.shape\nreturn [np.diag(dT, k).mean() for k in range(n - 1, -m, -1)]",
        "return np.concatenate([dT[0, ::-1], dT[1:, 0]])",
        "return dT.sum(axis=0)",
    ],
}
