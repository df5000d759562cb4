"""The contents: the answers to its exercises."""

RIGHT = {
    "0.1": ["return 8, 3", "return np.array([8, 3])", "return jnp.array([8.0, 3.0])"],
    "0.2": [
        "return 3 * jnp.square(v)",
        "return [3 * float(c) ** 2 for c in v]",
        "return np.multiply(3, np.power(v, 2))",
    ],
    "0.3": [
        "return parabola_gradient(v, x, t) / len(x)",
        "X = np.stack([np.ones_like(x), x, x**2], axis=1)\nreturn 2 * X.T @ (X @ v - t) / x.size",
        "e = jnp.polyval(v[::-1], x) - t\n"
        "return jnp.stack([2 * jnp.mean(e * x**k) for k in range(3)])",
        "e = v[0] + v[1] * x + v[2] * x**2 - t\n"
        "return [float(2 * np.dot(e, x**k) / len(t)) for k in range(3)]",
    ],
}

WRONG = {
    "0.1": ["return 3, 8", "return [2.0, 3.0]", "return 8.0"],
    "0.2": ["return 3 * v", "return v**2", "return 3 * np.sum(v**2)"],
    "0.3": [
        "return parabola_gradient(v, x, t)",
        "return parabola_gradient(v, x, t) / 7",
        "return parabola_gradient(v, x, t) / 70",
        "return parabola_gradient(v, x, t) / 2 / len(x)",
    ],
}
