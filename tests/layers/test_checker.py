"""The checker: answers to the exercises."""

RIGHT = {
    "32.1": [
        "return [3.01, 3.0025, 3]",
        "return 3 + 0.1**2, 3 + 0.05**2, (4 * (3 + 0.05**2) - (3 + 0.1**2)) / 3",
        "return np.array([301, 300.25, 300]) / 100",
    ],
    "32.2": [
        """
        coarse, middle, fine = (central(phi, t / 2**k) for k in range(3))
        return (64 * fine - 20 * middle + coarse) / 45
        """,
        "return richardson(phi, t / 2) + (richardson(phi, t / 2) - richardson(phi, t)) / 15",
    ],
    "32.3": [
        "return -np.where(v.real < 0, -v * v, v * v).sum()",
        "return -np.sum(v**2 * np.sign(v.real))",
        "return -sum(w * w if w.real > 0 else -w * w for w in v)",
        "return -(v * np.sqrt(v * v)).sum()",
    ],
    "32.4": [
        """
        error = np.ravel(np.subtract(hand, true))
        w = np.ravel(argument)
        (c,), *_ = np.linalg.lstsq(w[:, None], error, rcond=None)
        return c if np.allclose(error, c * w, atol=1e-10) else None
        """,
        """
        c = np.vdot(argument, hand - true) / np.vdot(argument, argument)
        return c if np.allclose(true + c * argument, hand, rtol=1e-9) else None
        """,
    ],
    "32.5": [
        "return (12, 18), (10, 15), -1.0",
        """
        right, without = 17 * np.array([2.0, 3.0]), 5 * np.array([2.0, 3.0])
        return 6 * np.array([2, 3]), without, (58 - right[0]) / (without[0] - right[0])
        """,
    ],
}

WRONG = {
    "32.1": ["return 3.01, 3.0025, 3.001", "return 3.31, 3.1525, 2.995"],
    "32.2": [
        "return richardson(phi, t / 2)",
        "return (4 * richardson(phi, t / 2) - richardson(phi, t)) / 3",
        "return central(phi, 1e-5)",
        "return phi(1e-30j).imag / 1e-30",
    ],
    "32.3": [
        "return drag(v)",
        "return -(v * v).sum()",
        "return -(2 * v * np.abs(v)).sum()",
        "return -(np.abs(v) ** 2 * np.sign(v.real)).sum()",
    ],
    "32.4": [
        "return np.sum((hand - true) * argument) / np.sum(argument**2)",
        "return None",
        "return 0.01",
        """
        c = np.sum((hand - true) * argument) / np.sum(argument**2)
        return c if np.abs(hand - true - c * argument).max() < 0.1 else None
        """,
        """
        ratios = (hand - true) / argument
        return np.median(ratios) if np.ptp(ratios) < 1e-9 * np.abs(ratios).max() else None
        """,
        """
        c = float((hand - true).flat[0] / argument.flat[0])
        return c if np.allclose(true + c * argument, hand, rtol=1e-9) else None
        """,
    ],
    "32.5": [
        "return (34, 51), (10, 15), -1",
        "return (12, 18), (24, 36), -1",
        "return (12, 18), (10, 15), 2",
        "return (12, 18), (10, 15), 1",
    ],
}
