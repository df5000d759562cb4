"""The rows of layers/losses.py."""

import functools

import jax
import numpy as np

from handgrad.catalog import Row
from handgrad.layers.losses import (
    absolute_error,
    cosine_distance,
    focal,
    gaussian_nll,
    generalized_kl_divergence,
    hinge,
    huber,
    js_divergence,
    kl_divergence,
    kl_divergence_with_log_targets,
    log_cosh,
    multiclass_sparsemax_loss,
    poisson_nll,
    quantile,
    sigmoid_cross_entropy,
    sparsemax,
    triplet,
)

SHAPE = (4, 3)  # of everything that works entry by entry
SHAPES = {
    "typical": (3, 4),
    "edge: one example, no batch axis": (5,),
    "edge: more batch axes": (2, 4, 3),
}
FAR = np.resize([1e4, -1e4, 90.0, -90.0, 0.0, -0.0, 0.3], SHAPE)  # logits and differences
APART = np.resize([1e4, -1e4, 0.0, 0.0, -50.0, 50.0, 0.0, 1.0], (3, 4))


def _differences(rng, **hyper):
    # u = p - t is neither near 0 nor near 0.7, where huber's examples turn
    def pair(shape):
        t, size = rng.normal(size=shape), rng.choice([0.35, 1.4], size=shape)
        return t + size * rng.uniform(0.7, 1.4, size=shape) * rng.choice([-1, 1], size=shape), t

    far = np.where(FAR == 0.3, 0.7, FAR)
    return {
        "typical": (pair(SHAPE), hyper),
        "edge: a number": (pair(()), hyper),
        "extreme: up to 1e4, no difference, and where huber turns": ((far, 0 * far), hyper),
    }


def _bits(rng):
    return {
        "typical": ((2 * rng.normal(size=SHAPE), rng.uniform(size=SHAPE)), {}),
        "edge: a number": ((rng.normal(size=()), rng.uniform(size=())), {}),
        "extreme: 1e4, label 0": ((FAR, np.zeros(SHAPE)), {}),
        "extreme: 1e4, label 1": ((FAR, np.ones(SHAPE)), {}),
    }


def _counts(rng):
    # whole numbers: jax.scipy knows no others
    log_rate = np.resize([-600.0, -90.0, 0.0, 80.0], SHAPE)
    count = np.resize([3.0, 0.0, 1e4, 7.0], SHAPE)
    return {
        "typical": ((rng.normal(size=SHAPE), 1.0 * rng.poisson(3, size=SHAPE)), {}),
        "edge: a number": ((rng.normal(size=()), 1.0 * rng.poisson(3)), {}),
        "extreme: from almost no rate to a huge one": ((log_rate, count), {}),
    }


def _normals(rng):
    log_variance = np.resize([600.0, 90.0, -60.0], SHAPE)
    t = np.resize([1e4, -1e4, 1e-3, 0.0], SHAPE)
    return {
        "typical": (tuple(rng.normal(size=SHAPE) for _ in range(3)), {}),
        "edge: a number": (tuple(rng.normal(size=()) for _ in range(3)), {}),
        "extreme: wide ones, and narrow ones": ((np.zeros(SHAPE), log_variance, t), {}),
    }


def _signs(rng):
    # y z is not near the margin, 0.6
    def pair(shape):
        y, gap = rng.choice([-1.0, 1.0], size=shape), rng.choice([-1, 1], size=shape)
        return y * (0.6 + gap * rng.uniform(0.2, 2, size=shape)), y

    hyper, far = {"margin": 0.6}, np.where(FAR == 0.3, 0.6, FAR)
    return {
        "typical": (pair(SHAPE), hyper),
        "edge: a number": (pair(()), hyper),
        "extreme: 1e4, and at the margin": ((far, np.ones(SHAPE)), hyper),
    }


def _labels(rng):
    z, y = 2 * rng.normal(size=SHAPE), rng.integers(2, size=SHAPE)
    examples = {
        "typical": (z, y),
        "edge: a number": (z[0, 0], y[0, 0]),
        "extreme: 1e4, label 0": (FAR, 0 * y),
        "extreme: 1e4, label 1": (FAR, 0 * y + 1),
    }
    return {n: (args, {"gamma": 1.5}) for n, args in examples.items()}


def _logits(rng):
    def away(shape):
        # The support is chosen, up to three entries a row, and scores that lead to it are made: so
        # none is near the threshold, 0.3, where the support would change.
        inside = rng.normal(size=shape).argsort(axis=-1) < 3
        apart = 0.05 + np.abs(rng.normal(size=shape))
        o = np.where(inside, apart, 0)
        o /= o.sum(axis=-1, keepdims=True)
        return 0.3 + np.where(inside, o, -apart)

    extremes = {
        "extreme: 1e4": APART,
        "extreme: a logit of -inf": np.resize([0.0, -np.inf, 0.3, 0.1], (3, 4)),
        "extreme: at the threshold, and all alike": np.resize(
            [0.0, -1.0, -3.0, -1.0] + 4 * [0.7], (3, 4)
        ),
    }
    return {n: ((away(s),), {}) for n, s in SHAPES.items()} | {
        n: ((z,), {}) for n, z in extremes.items()
    }


def _labelled(rng):
    return {
        n: ((z, rng.integers(z.shape[-1], size=z.shape[:-1])), {})
        for n, ((z,), _) in _logits(rng).items()
        if "inf" not in n
    }


def _logarithms(rng):
    def draw(shape):
        return np.asarray(jax.nn.log_softmax(rng.normal(size=shape)))

    far = np.asarray(jax.nn.log_softmax(APART))
    return {n: ((draw(s), draw(s)), {}) for n, s in SHAPES.items()} | {
        "extreme: log-probabilities of -1e4": ((far, far[::-1]), {})
    }


def _distributions(rng):
    return {n: ((log_q, np.exp(log_p)), {}) for n, ((log_q, log_p), _) in _logarithms(rng).items()}


def _vectors(rng, count):
    return {n: tuple(rng.normal(size=s) for _ in range(count)) for n, s in SHAPES.items()}


def _pairs(rng):
    a = np.resize([1e4, 3e3, 0.0, 2.0, 1e-4, 0.0, 2e-4, -1e-5], (3, 4))
    examples = _vectors(rng, 2) | {"extreme: long and short": (a, a[:, ::-1] + 1e-5)}
    return {n: (args, {}) for n, args in examples.items()}


def _triplets(rng):
    a = np.resize([1e4, 3e3, 0.0, 2.0, 1.0, 0.5, 2.0, -3.0], (3, 4))
    far = a, a + np.array([[1.0], [0.0], [0.0]]), -a
    examples = _vectors(rng, 3) | {"extreme: 1e4, and a positive on its anchor": far}
    return {n: (args, {"margin": 1.3}) for n, args in examples.items()} | {
        "extreme: at the margin": ((a, a + 0.5, a - 0.5), {"margin": 0.0})
    }


def _nearest(z):
    """Sparsemax by trying every size of the support."""

    def row(z):
        ordered = np.sort(z)[::-1]
        for size in range(len(z), 0, -1):
            tau = (ordered[:size].sum() - 1) / size
            if ordered[size - 1] > tau:
                return np.maximum(z - tau, 0)

    z = np.asarray(z)
    return np.apply_along_axis(row, -1, z - z.max(axis=-1, keepdims=True))


def _sparsemax_loss(z, y):
    o, z_y = _nearest(z), np.take_along_axis(z, y[..., None], axis=-1)
    return ((z - z_y) * o - o * o / 2).sum(axis=-1) + 0.5


def _pinball(p, t, q):
    return np.where(t > p, q * (t - p), (1 - q) * (p - t))


def _normal(mean, log_variance, t):
    return -jax.scipy.stats.norm.logpdf(t, mean, np.exp(log_variance / 2))


def _poisson(log_rate, t):
    return -jax.scipy.stats.poisson.logpmf(t, np.exp(log_rate))


def _js(log_q, log_p):
    log_m = np.logaddexp(log_q, log_p) - np.log(2)
    return sum((np.exp(r) * (r - log_m)).sum(axis=-1) for r in (log_q, log_p)) / 2


def _difference(f, formula, slope, same_as, where="", **hyper):
    gradients = {"p": rf"dp = {slope} \odot dl", "t": "dt = -dp"}
    examples = functools.partial(_differences, **hyper)
    return Row(f, formula, gradients, examples, same_as, where="$u = p - t$" + where)


MATCHED = (
    Row(
        sigmoid_cross_entropy,
        r"l = \log(1 + e^z) - y z",
        {"z": r"dz = (\sigma(z) - y)\,dl", "y": r"dy = -z\,dl"},
        _bits,
        same_as="optax.losses.sigmoid_binary_cross_entropy",
    ),
    Row(
        poisson_nll,
        r"l = e^z - t z + \log t!",
        {
            "log_rate": r"dz = (e^z - t)\,dl",
            "t": r"dt = (\psi(t + 1) - z)\,dl",
        },
        _counts,
        same_as=_poisson,
        where=r"$z$ is the logarithm of the rate, $\psi$ the derivative of $\log \Gamma$",
    ),
    Row(
        gaussian_nll,
        r"l = \frac{1}{2} (r^2 + v + \log 2 \pi)",
        {
            "mean": r"d\mu = -r\,e^{-v/2}\,dl",
            "log_variance": r"dv = \tfrac{1}{2} (1 - r^2)\,dl",
            "t": r"dt = r\,e^{-v/2}\,dl",
        },
        _normals,
        same_as=_normal,
        where=r"$v$ is the logarithm of the variance, $r = (t - \mu)\,e^{-v / 2}$",
    ),
    Row(
        sparsemax,
        r"o_i = \max(0, z_i - \tau)",
        {"z": r"dz = s \odot (do - \frac{\langle s, do \rangle}{\langle s, s \rangle} \mathbf{1})"},
        _logits,
        same_as=_nearest,
        where=r"$\tau$ makes $o$ add up to 1; $s_i$ is 1 where $o_i > 0$, else 0",
    ),
    Row(
        multiclass_sparsemax_loss,
        r"l = \langle o, z - z_y \mathbf{1} \rangle + \frac{1}{2} (1 - \lVert o \rVert^2)",
        {"z": r"dz = (o - e_y)\,dl"},
        _labelled,
        same_as=_sparsemax_loss,
        where=r"$o = \mathrm{sparsemax}(z)$",
    ),
)

DIFFERENCES = (
    _difference(
        absolute_error,
        r"l = \lvert u \rvert",
        r"\operatorname{sign}(u)",
        same_as=lambda p, t: np.abs(np.subtract(p, t)),
    ),
    _difference(
        huber,
        r"l = \min_w \frac{1}{2} (u - w)^2 + \delta \lvert w \rvert",
        r"\operatorname{clip}(u, -\delta, \delta)",
        same_as="optax.losses.huber_loss",
        delta=0.7,
    ),
    _difference(log_cosh, r"l = \log \cosh u", r"\tanh u", same_as="optax.losses.log_cosh"),
    _difference(
        quantile,
        r"l = \max((1 - q)\,u, -q u)",
        r"([u > 0] - q)",
        same_as=_pinball,
        where="; $[u > 0]$ is 1 where this holds, else 0",
        q=0.3,
    ),
)

MARGINS = (
    Row(
        hinge,
        r"l = \max(0, m - y z)",
        {"z": r"dz = -[y z < m]\,y\,dl", "y": r"dy = -[y z < m]\,z\,dl"},
        _signs,
        same_as=lambda z, y, margin: np.where(y * z < margin, margin - y * z, 0.0),
        where="$m$ is the margin; $[y z < m]$ is 1 where this holds, else 0",
    ),
    Row(
        focal,
        r"l = -(1 - o)^\gamma \log o",
        {"z": r"dz = \mp (1 - o)^\gamma (1 - o - \gamma\,o \log o)\,dl"},
        _labels,
        same_as="optax.losses.sigmoid_focal_loss",
        where=r"$o = \sigma(\pm z)$; the upper sign is for $y = 1$, the lower for $y = 0$",
    ),
    Row(
        triplet,
        r"l = \max(0, D(a, p) - D(a, n) + m)",
        {
            "anchor": r"da = (u_p - u_n)\,dl",
            "positive": r"dp = -u_p\,dl",
            "negative": r"dn = u_n\,dl",
        },
        _triplets,
        same_as="optax.losses.triplet_margin_loss",
        where=r"$D(a, b)^2 = |a - b|^2 + 10^{-6}$, $u_p = (a - p) / D(a, p)$, "
        r"$u_n = (a - n) / D(a, n)$; where $l = 0$ all three are 0",
    ),
)

DISTANCES = (
    Row(
        kl_divergence,
        r"l = \sum_i p_i (\log p_i - r_i)",
        {"log_q": r"dr = -p\,dl", "p": r"dp_i = (\log p_i + 1 - r_i)\,dl"},
        _distributions,
        same_as="optax.losses.kl_divergence",
        where=r"$r = \log q$",
    ),
    Row(
        generalized_kl_divergence,
        r"l = \sum_i p_i (\log p_i - r_i) + e^{r_i} - p_i",
        {"log_q": r"dr = (e^r - p)\,dl", "p": r"dp_i = (\log p_i - r_i)\,dl"},
        _distributions,
        same_as="optax.losses.generalized_kl_divergence",
        where=r"$r = \log q$",
    ),
    Row(
        kl_divergence_with_log_targets,
        r"l = \sum_i e^{s_i} (s_i - r_i)",
        {"log_q": r"dr = -p\,dl", "log_p": r"ds = e^s \odot (s - r + \mathbf{1})\,dl"},
        _logarithms,
        same_as="optax.losses.kl_divergence_with_log_targets",
        where=r"$r = \log q$, $s = \log p$, $p = e^s$",
    ),
    Row(
        js_divergence,
        r"l = \frac{1}{2} \sum_i q_i \log\frac{q_i}{m_i} + p_i \log\frac{p_i}{m_i}",
        {
            "log_q": r"dr = \tfrac{1}{2}\,q \odot (r - \log m)\,dl",
            "log_p": r"ds = \tfrac{1}{2}\,p \odot (s - \log m)\,dl",
        },
        _logarithms,
        same_as=_js,
        where=r"$r = \log q$, $s = \log p$, $m = \frac{1}{2} (p + q)$",
    ),
    Row(
        cosine_distance,
        r"l = 1 - \langle u, v \rangle",
        {
            "a": r"da = \frac{(1 - l)\,u - v}{\lVert a \rVert}\,dl",
            "b": r"db = \frac{(1 - l)\,v - u}{\lVert b \rVert}\,dl",
        },
        _pairs,
        same_as="optax.losses.cosine_distance",
        where=r"$u = a / \lVert a \rVert$, $v = b / \lVert b \rVert$",
    ),
)

ROWS = MATCHED + DIFFERENCES + MARGINS + DISTANCES
