"""Checking a gradient: answers to the exercises."""

RIGHT = {
    "8.1": [
        "return (-16.0, 10.0, (5, 0, 9))",
        """
        import numpy
        J = numpy.array([[3, 1, 0], [0, 2, 3], [2, 0, 0]])
        dz, claim, h = numpy.array([1, -1, 4]), numpy.array([2, 10, 2]), numpy.array([1, -2, 1])
        return claim @ h, dz @ J @ h, numpy.cross(claim - J.T @ dz, [0, 0, 1])
        """,
        "return [-16, 10, np.array([-1.0, 1.0, -4.0])]",
    ],
    "8.2": [
        """
        z, kept = f_fwd(x)
        dz = rng.uniform(-1, 1, z.shape)
        h = rng.standard_normal(x.shape)
        dx = f_bwd(kept, dz)[0]
        terms = np.concatenate([np.ravel(dx * h), -np.ravel(dz * jax.jvp(f, [x], [h])[1])])
        return abs(terms.sum()) < 1e-10 * np.linalg.norm(terms)
        """,
        """
        z, kept = f_fwd(x)
        dz, h = jnp.asarray(rng.normal(size=z.shape)), jnp.asarray(rng.normal(size=x.shape))
        left = jnp.vdot(f_bwd(kept, dz)[0], h)
        products = dz * jax.jvp(f, (jnp.asarray(x),), (h,))[1]
        return jnp.abs(left - products.sum()) <= 1e-10 * jnp.abs(products).sum()
        """,
    ],
    "8.3": [
        "return np.allclose(hand, true, rtol=1e-9, atol=0)",
        "return bool(np.isclose(hand, true, rtol=1e-9, atol=0.0).all())",
        """
        try:
            np.testing.assert_allclose(hand, true, rtol=1e-9)
        except AssertionError:
            return False
        return True
        """,
        """
        pairs = zip(np.ravel(hand), np.ravel(true))
        return all(abs(h - t) <= 1e-9 * abs(t) for h, t in pairs)
        """,
    ],
    "8.4": [
        """
        x, da = np.array([0.3, -1.2, 2.0]), np.array([1.5, -0.7, 0.4])
        return bool(np.allclose(bwd(np.tanh(x), da)[0], (1 - np.tanh(x) ** 2) * da))
        """,
        """
        try:
            check_rule(hg.tanh, hg.tanh_fwd, bwd, draw(5, 3, 4))
        except GradientMismatch:
            return False
        return True
        """,
        """
        generator = np.random.default_rng()
        x, da, h = generator.normal(size=(3, 50))
        return np.isclose(bwd(np.tanh(x), da)[0] @ h, da @ jax.jvp(hg.tanh, (x,), (h,))[1])
        """,
    ],
    "8.5": [
        "return jnp.flip(jnp.cumsum(jnp.flip(dz, -1), -1), -1)",
        "return dz.sum(axis=-1, keepdims=True) - dz.cumsum(axis=-1) + dz",
        "return dz @ np.tril(np.ones((dz.shape[-1],) * 2))",
        """
        dx, total = np.zeros(dz.shape), np.zeros(dz.shape[:-1])
        for k in reversed(range(dz.shape[-1])):
            total = total + dz[..., k]
            dx[..., k] = total
        return dx
        """,
    ],
}

WRONG = {
    "8.1": [
        "return 10, -16, [11, 9, 0]",
        "return -16, 10, [0, 0, 0]",
        "return -16, 10, [1, -2, 1]",
    ],
    "8.2": [
        "return True",
        """
        z, kept = f_fwd(x)
        dz, h = rng.normal(size=z.shape), rng.normal(size=x.shape)
        (dx,) = f_bwd(kept, dz)
        return bool(np.isclose(np.sum(dx * h), np.sum(dz * jax.jvp(f, (x,), (h,))[1])))
        """,
        """
        z, kept = f_fwd(x)
        dz, h = jnp.ones(z.shape), rng.normal(size=x.shape)
        left, right = np.sum(f_bwd(kept, dz)[0] * h), np.sum(dz * jax.jvp(f, (x,), (h,))[1])
        return bool(abs(left - right) <= 1e-10 * abs(right))
        """,
        """
        z, kept = f_fwd(x)
        dz, h = rng.normal(size=z.shape), rng.normal(size=x.shape)
        left, right = np.sum(f_bwd(kept, dz)[0] * h), np.sum(dz * jax.jvp(f, (x,), (h,))[1])
        return bool(abs(left - right) <= 1e-3 * abs(right))
        """,
    ],
    "8.3": [
        "return np.allclose(hand, true, rtol=1e-9)",
        "return np.allclose(hand, true, rtol=0, atol=1e-18)",
        "return bool(np.array_equal(hand, true))",
        "return bool(np.max(np.abs(hand - true)) <= 1e-9)",
    ],
    "8.4": [
        "return weak_test(bwd)",
        """
        x, da = draw(1, 4), np.ones(4)
        return bool(np.allclose(bwd(np.tanh(x), da)[0], 1 - np.tanh(x) ** 2))
        """,
        """
        x, da = np.zeros(4), draw(1, 4)
        return bool(np.allclose(bwd(np.tanh(x), da)[0], da))
        """,
        "return bwd is hg.tanh_bwd or bwd is second_bwd",
    ],
    "8.5": [
        "return dz.cumsum(axis=-1)",
        "return dz[..., ::-1].cumsum(axis=-1)",
        "return dz[::-1].cumsum(axis=0)[::-1]",
    ],
}
