"""Kernels: answers to the exercises."""

RIGHT = {
    "33.1": ["return 10_000, 40_000", "return 1 / 1e-4, 4 / 1e-4"],
    "33.2": [
        """
        f = jax.custom_vjp(lambda x, c: c * jnp.maximum(x, 0) ** 2)
        f.defvjp(
            lambda x, c: (f.fun(x, c), (x, c)),
            lambda kept, dz: (
                jnp.where(kept[0] > 0, 2 * kept[1] * kept[0] * dz, 0),
                (jnp.maximum(kept[0], 0) ** 2 * dz).sum(),
            ),
        )
        return f
        """,
        """
        @jax.custom_jvp
        def f(x, c):
            return c * jnp.maximum(x, 0) ** 2

        @f.defjvp
        def f_jvp(primals, tangents):
            (x, c), (dx, dc) = primals, tangents
            r = jnp.maximum(x, 0)
            return c * r**2, 2 * c * r * dx + r**2 * dc

        return f
        """,
    ],
    "33.3": [
        """
        x, scale = residuals
        blocks = [slice(first, first + 4) for first in range(0, len(x), 4)]
        dx = jnp.concatenate([dz[block] * scale for block in blocks])
        return dx, sum((dz[block] * x[block]).sum(axis=0) for block in blocks)
        """,
        """
        x, scale = residuals
        return dz * scale, jnp.einsum("nd,nd->d", dz, x)
        """,
    ],
    "33.4": [
        """
        f = jax.custom_jvp(newton)
        f.defjvp(lambda x, dx: (f(*x), dx[0] / (3 * f(*x) ** 2)))
        return f, lambda x: jnp.exp(jnp.log(x) / 3)
        """,
        """
        f = jax.custom_vjp(newton)
        f.defvjp(lambda x: (newton(x), x), lambda x, dz: (dz * jnp.cbrt(x) / (3 * x),))
        return f, lambda x: x ** (1 / 3)
        """,
    ],
}

WRONG = {
    "33.1": ["return 10_000, 50_000", "return 1_000, 4_000", "return 9_999, 40_000"],
    "33.2": [
        "return lambda x, c: c * jnp.maximum(x, 0) ** 2",
        """
        f = jax.custom_vjp(lambda x, c: c * jnp.maximum(x, 0) ** 2)
        f.defvjp(
            lambda x, c: (f.fun(x, c), (x, c)),
            lambda kept, dz: (
                kept[1] * jnp.maximum(kept[0], 0) * dz,
                (jnp.maximum(kept[0], 0) ** 2 * dz).sum(),
            ),
        )
        return f
        """,
        """
        f = jax.custom_vjp(lambda x, c: c * jnp.maximum(x, 0) ** 2)
        f.defvjp(
            lambda x, c: (f.fun(x, c), (x, c)),
            lambda kept, dz: (2 * kept[1] * kept[0] * dz, (kept[0] ** 2 * dz).sum()),
        )
        return f
        """,
        """
        f = jax.custom_vjp(lambda x, c: c * jnp.maximum(x, 0) ** 2)
        f.defvjp(
            lambda x, c: (f.fun(x, c), (x, c)),
            lambda kept, dz: (
                2 * kept[1] * jnp.maximum(kept[0], 0) * dz,
                (jnp.maximum(kept[0], 0) ** 2 * dz).sum(0),
            ),
        )
        return f
        """,
    ],
    "33.3": [
        "return blocks_bwd(residuals, dz)",
        """
        x, scale = residuals
        dscale = sum((dz[i : i + 4] * x[i : i + 4]).sum(axis=0) for i in range(0, len(x) - 3, 4))
        return dz * scale, dscale
        """,
        """
        x, scale = residuals
        return dz * scale, (dz * x).mean(axis=0)
        """,
    ],
    "33.4": [
        "return newton, jnp.cbrt",
        """
        f = jax.custom_vjp(newton)
        f.defvjp(lambda x: (newton(x), x), lambda x, dz: (dz / (3 * x**2),))
        return f, jnp.cbrt
        """,
        """
        f = jax.custom_vjp(newton)
        f.defvjp(lambda x: (newton(x), newton(x)), lambda z, dz: (3 * z**2 * dz,))
        return f, jnp.cbrt
        """,
        """
        f = jax.custom_vjp(newton)
        f.defvjp(lambda x: (newton(x), newton(x)), lambda z, dz: (dz / (3 * z**2),))
        return f, jnp.sqrt
        """,
    ],
}
