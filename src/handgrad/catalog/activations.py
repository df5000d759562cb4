"""The rows of layers/activations.py."""

from decimal import Decimal, localcontext

import jax
import numpy as np

from handgrad.catalog import Row
from handgrad.layers.activations import (
    celu,
    elu,
    geglu,
    gelu,
    gelu_tanh,
    glu,
    hard_sigmoid,
    hard_silu,
    hard_tanh,
    leaky_relu,
    log_sigmoid,
    mish,
    prelu,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    soft_sign,
    softcap,
    softplus,
    sparse_plus,
    sparse_sigmoid,
    squareplus,
    swiglu,
    tanh,
)

# every kink that one of them has, and far out
FAR = np.array([0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 6.0, 1e4, -1e4, 90.0, -90.0])


def _points(**hyper):
    return lambda rng: {
        "typical": ((2 * rng.normal(size=(4, 3, 5)),), hyper),
        "edge: a number": ((rng.normal(size=()),), hyper),
        "extreme: at the kinks, and up to 1e4": ((FAR,), hyper),
    }


def _and_no_entry(rng):
    return _points()(rng) | {"edge: no entry": ((np.zeros((3, 0)),), {})}


def _channels(rng):
    def of(*batch):
        return (rng.normal(size=(*batch, 5)), rng.normal(size=5)), {}

    return {
        "typical": of(4, 3),
        "edge: one example, no batch axis": of(),
        "extreme: at the kink, and up to 1e4": ((FAR, 0.1 * np.arange(11) - 0.5), {}),
    }


def _halved(rng):
    return {
        "typical": ((rng.normal(size=(4, 3, 6)),), {}),
        "edge: one example, no batch axis": ((rng.normal(size=6),), {}),
        "extreme: up to 1e4": ((np.concatenate([FAR, FAR[::-1]]),), {}),
    }


def _gated(rng):
    def of(*shape):
        return (rng.normal(size=shape), rng.normal(size=shape)), {}

    return {
        "typical": of(4, 3, 5),
        "edge: numbers": of(),
        "extreme: up to 1e4": ((FAR, FAR[::-1]), {}),
    }


@np.vectorize
def _to_fifty_digits(x, b=4):
    with localcontext(prec=50):
        return float((Decimal(x) + (Decimal(x) ** 2 + Decimal(float(b))).sqrt()) / 2)


@np.vectorize
def _one_by_one(x, slope):
    return x if x >= 0 else slope * x


ROWS = (
    Row(
        relu,
        r"a = \max(0, x)",
        {"x": r"dx_i = \begin{cases} da_i & a_i > 0 \\ 0 & a_i = 0 \end{cases}"},
        _and_no_entry,
        same_as="jax.nn.relu",
    ),
    Row(
        sigmoid,
        r"a = 1 / (1 + e^{-x})",
        {"x": r"dx = da \odot a \odot (1 - a)"},
        _points(),
        same_as="jax.scipy.special.expit",
    ),
    Row(
        tanh,
        r"a = \tanh x",
        {"x": r"dx = da \odot (1 - a^2)"},
        _points(),
        same_as="numpy.tanh",
    ),
    Row(
        relu6,
        r"a = \min(\max(x, 0), 6)",
        {"x": r"dx = da \odot [0 < a < 6]"},
        _points(),
        same_as="jax.nn.relu6",
        where=r"$[\dots]$ is 1 where it holds, else 0",
    ),
    Row(
        hard_sigmoid,
        r"a = \operatorname{relu6}(x + 3) / 6",
        {"x": r"dx = da \odot \frac{1}{6}\,[-3 < x < 3]"},
        _points(),
        same_as="jax.nn.hard_sigmoid",
    ),
    Row(
        leaky_relu,
        r"a = x\ (x \ge 0), \ \rho x\ (x < 0)",
        {"x": r"dx = da \odot ([x \ge 0] + \rho\,[x < 0])"},
        _points(slope=0.3),
        same_as=lambda x, slope: jax.nn.leaky_relu(x, slope),
        where=r"$\rho$ is the slope on the left",
    ),
    Row(
        hard_tanh,
        r"a = \min(\max(x, -1), 1)",
        {"x": r"dx = da \odot [-1 \le x \le 1]"},
        _points(),
        same_as="jax.nn.hard_tanh",
    ),
    Row(
        hard_silu,
        r"a = x \odot \operatorname{relu6}(x + 3) / 6",
        {"x": r"dx = da \odot (\frac{1}{6}\,(2 x + 3) \odot [-3 < x < 3] + [x \ge 3])"},
        _points(),
        same_as="jax.nn.hard_silu",
    ),
    Row(
        sparse_plus,
        r"a = 0\ (x \le -1), \ \frac{1}{4} (x + 1)^2, \ x\ (x \ge 1)",
        {"x": r"dx = da \odot \min(\max(\frac{1}{2} (x + 1), 0), 1)"},
        _points(),
        same_as="jax.nn.sparse_plus",
    ),
    Row(
        sparse_sigmoid,
        r"a = \min(\max(\frac{1}{2} (x + 1), 0), 1)",
        {"x": r"dx = da \odot (\frac{1}{2}\,[-1 < x < 1] + \frac{1}{4}\,[x = \pm 1])"},
        _points(),
        same_as="jax.nn.sparse_sigmoid",
    ),
    Row(
        elu,
        r"a = x\ (x > 0), \ \alpha (e^x - 1)\ (x \le 0)",
        {"x": r"dx = da \odot ([a > 0] + (a + \alpha) \odot [a \le 0])"},
        _points(alpha=0.5),
        same_as="jax.nn.elu",
    ),
    Row(
        celu,
        r"a = x\ (x > 0), \ \alpha (e^{x / \alpha} - 1)\ (x \le 0)",
        {"x": r"dx = da \odot ([a > 0] + (a / \alpha + 1) \odot [a \le 0])"},
        _points(alpha=0.5),
        same_as="jax.nn.celu",
    ),
    Row(
        selu,
        r"a = \lambda x\ (x > 0), \ \lambda \alpha (e^x - 1)\ (x \le 0)",
        {"x": r"dx = da \odot (\lambda\,[a > 0] + (a + \lambda \alpha) \odot [a \le 0])"},
        _points(),
        same_as="jax.nn.selu",
        where=r"$\lambda = 1.0507\ldots$, $\alpha = 1.6732\ldots$",
    ),
    Row(
        softplus,
        r"a = \log(1 + e^x)",
        {"x": r"dx = da \odot \sigma(x)"},
        _points(),
        same_as="jax.nn.softplus",
    ),
    Row(
        log_sigmoid,
        r"a = -\log(1 + e^{-x})",
        {"x": r"dx = da \odot \sigma(-x)"},
        _points(),
        same_as="jax.nn.log_sigmoid",
    ),
    Row(
        squareplus,
        r"a = \frac{1}{2} (x + \sqrt{x^2 + \beta})",
        {"x": r"dx = da \odot \frac{a^2}{a^2 + \beta / 4}"},
        _points(b=3),
        same_as=_to_fifty_digits,
    ),
    Row(
        softcap,
        r"a = c \tanh(x / c)",
        {"x": r"dx = da \odot (1 - (a / c)^2)"},
        _points(cap=2),
        same_as=lambda x, cap: cap * np.tanh(x / cap),
    ),
    Row(
        soft_sign,
        r"a = x / (1 + \lvert x \rvert)",
        {"x": r"dx = da \odot \frac{1}{(1 + \lvert x \rvert)^2}"},
        _points(),
        same_as="jax.nn.soft_sign",
    ),
    Row(
        silu,
        r"a = x \odot \sigma(x)",
        {"x": r"dx = da \odot \sigma(x) \odot (1 + x \odot (1 - \sigma(x)))"},
        _points(),
        same_as="jax.nn.silu",
    ),
    Row(
        gelu,
        r"a = x \odot \Phi(x)",
        {"x": r"dx = da \odot (\Phi(x) + x \odot \varphi(x))"},
        _points(),
        same_as=lambda x: jax.nn.gelu(x, approximate=False),
        where=r"$\Phi$ is the normal distribution function and $\varphi$ its density",
    ),
    Row(
        gelu_tanh,
        r"a = x \odot \sigma(v)",
        {"x": r"dx = da \odot \sigma(v) \odot (1 + x \odot (1 - \sigma(v)) \odot v')"},
        _points(),
        same_as="jax.nn.gelu",
        where=r"$v = \sqrt{8 / \pi}\,(x + 0.044715\,x^3)$",
    ),
    Row(
        mish,
        r"a = x \odot \tanh s",
        {"x": r"dx = da \odot (\tanh s + x \odot \sigma(x) \odot (1 - \tanh^2 s))"},
        _points(),
        same_as="jax.nn.mish",
        where=r"$s = \operatorname{softplus}(x)$",
    ),
    Row(
        prelu,
        r"a = x\ (x \ge 0), \ \rho \odot x\ (x < 0)",
        {
            "x": r"dx = da \odot ([x \ge 0] + \rho \odot [x < 0])",
            "slope": r"d\rho = \sum_n da_n \odot x_n \odot [x_n < 0]",
        },
        _channels,
        same_as=_one_by_one,
        where=r"$\rho$ has an entry for each channel",
    ),
    Row(
        swiglu,
        r"a = f(g) \odot u, \ f = \operatorname{silu}",
        {"gate": r"dg = da \odot u \odot f'(g)", "up": r"du = da \odot f(g)"},
        _gated,
        same_as=lambda gate, up: jax.nn.silu(gate) * up,
    ),
    Row(
        geglu,
        r"a = f(g) \odot u, \ f = \operatorname{gelu}",
        {"gate": r"dg = da \odot u \odot f'(g)", "up": r"du = da \odot f(g)"},
        _gated,
        same_as=lambda gate, up: jax.nn.gelu(gate, approximate=False) * up,
    ),
    Row(
        glu,
        r"a = u \odot \sigma(g)",
        {"x": r"dx = (da \odot \sigma(g), \ da \odot u \odot \sigma(g) \odot \sigma(-g))"},
        _halved,
        same_as="jax.nn.glu",
        where=r"$x = (u, g)$, two halves of its last axis",
    ),
)
