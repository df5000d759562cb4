"""Activations, element by element or gated.    Derivation: notebooks/05_activations.ipynb

The Jacobian of an element-wise function is diagonal, so one theorem serves all of them, (5.3): the
cotangent times the slope, entry by entry. Such an activation is its plain function, and one line
that says what its slope is.

from_output keeps the output and nothing else, which the next layer keeps anyway. On an interval
that is possible for a monotone f and for no other, (5.13); from_input keeps the input. An output
near 1 is good to its last digit, but 1 - a is not, and a slope read off it loses digits, (5.14).
Where this matters stands beside each function. What a slope is at a kink is a choice: JAX's.
"""

import inspect
import math

import jax
import jax.numpy as jnp
from jax.scipy.special import erfc
from jax.typing import ArrayLike
from jaxtyping import Float


def from_input(f, slope):
    """(f_fwd, f_bwd) of an element-wise f; keeps x, its input, for slope(x, **hyper)."""

    def f_fwd(x, **hyper):
        return f(x, **hyper), x

    return _rule(f, f_fwd, slope)


def from_output(f, slope):
    """(f_fwd, f_bwd) of an element-wise f; keeps a, its output, for slope(a, **hyper)."""

    def f_fwd(x, **hyper):
        a = f(x, **hyper)
        return a, a

    return _rule(f, f_fwd, slope)


def _rule(f, f_fwd, slope):
    # The theorem, once for all of them. A hyperparameter's default is f's.
    parameters = inspect.signature(f).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def f_bwd(kept: Float[ArrayLike, "*shape"], da: Float[ArrayLike, "*shape"], **hyper):
        """(dx,): the cotangent times the slope, entry by entry; 0 where the slope is 0."""
        slopes = slope(kept, **defaults | hyper)
        dx = jnp.where(slopes == 0, 0, da * slopes)  # (5.3), even if da is infinite
        return (dx,)

    for rule, suffix in ((f_fwd, "_fwd"), (f_bwd, "_bwd")):
        for function in (rule, inspect.unwrap(rule)):  # an error about a shape names the inner one
            function.__name__ = function.__qualname__ = f.__name__ + suffix
            function.__module__ = f.__module__
    return f_fwd, f_bwd


def relu(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = x where x > 0, else 0, (5.4). At 0 the slope is taken to be 0; NaN stays NaN.

    Nothing is rounded, so its rule is exact in every dtype.
    """
    return jnp.where(x <= 0, 0, x)


relu_fwd, relu_bwd = from_output(relu, lambda a: a > 0)  # (5.5)


def sigmoid(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = 1 / (1 + exp(-x)), (5.6). For x far below 0, exp(-x) is inf and a is 0, as it should be.

    The slope that the rule reads off a loses digits as a nears 1: it may be 10 % off past x = 34 in
    float64, 14 in float32, 2 in bfloat16, and is 0 from 37, 17, 6 on. Negative x lose nothing.
    """
    return jax.nn.sigmoid(x)


sigmoid_fwd, sigmoid_bwd = from_output(sigmoid, lambda a: a * (1 - a))  # (5.7)


def tanh(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = (exp(x) - exp(-x)) / (exp(x) + exp(-x)), (5.8).

    The slope that the rule reads off a loses digits as |a| nears 1: it may be 10 % off past
    |x| = 17 in float64, 7 in float32, 2 in bfloat16, and is 0 from 20, 8, 4 on (on the CPU).
    """
    return jnp.tanh(x)


tanh_fwd, tanh_bwd = from_output(tanh, lambda a: 1 - a * a)  # (5.9)


def relu6(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = min(max(x, 0), 6), (5.15). At 0 and at 6 the slope is taken to be 0. Exact.

    A. Krizhevsky, Convolutional deep belief networks on CIFAR-10, 2010.
    """
    return jnp.where(x >= 6, 6, relu(x))


relu6_fwd, relu6_bwd = from_output(relu6, lambda a: (a > 0) & (a < 6))  # (5.15)


def hard_sigmoid(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = relu6(x + 3) / 6, (5.16). At -3 and at 3 the slope is taken to be 0.

    It keeps x, which is compared with the kinks as it is; the output would do, but is scaled first.
    A. Howard et al., Searching for MobileNetV3, 2019 (arXiv 1905.02244), section 5.2.
    """
    return relu6(x + 3) / 6


hard_sigmoid_fwd, hard_sigmoid_bwd = from_input(
    hard_sigmoid, lambda x: jnp.where(jnp.abs(x) < 3, 1 / 6, 0)
)  # (5.16)


def leaky_relu(
    x: Float[ArrayLike, "*shape"], *, slope: float | int = 0.01
) -> Float[ArrayLike, "*shape"]:
    """a = x where x >= 0, else slope x, (5.17). At 0 the slope is taken to be 1.

    It keeps x: for a slope of 0, or below it, the output's sign does not tell the input's.
    A. L. Maas et al., Rectifier nonlinearities improve neural network acoustic models, 2013.
    """
    return jnp.where(x >= 0, x, slope * x)


leaky_relu_fwd, leaky_relu_bwd = from_input(
    leaky_relu, lambda x, *, slope: jnp.where(x >= 0, 1, slope)
)  # (5.17)


def hard_tanh(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = min(max(x, -1), 1), (5.18). At -1 and at 1 the slope is taken to be 1.

    It keeps x: the output 1 may come from the kink or from beyond, where the slope is 0.
    R. Collobert et al., Natural language processing (almost) from scratch, 2011 (arXiv 1103.0398).
    """
    return jnp.where(x > 1, 1, jnp.where(x < -1, -1, x))


hard_tanh_fwd, hard_tanh_bwd = from_input(hard_tanh, lambda x: (x >= -1) & (x <= 1))  # (5.18)


def hard_silu(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = x hard_sigmoid(x), (5.19). At -3 the slope is taken to be 0, at 3 to be 1.

    It falls and rises, so it keeps x. A. Howard et al., Searching for MobileNetV3, 2019 (arXiv
    1905.02244), section 5.2, where it is called h-swish.
    """
    return x * hard_sigmoid(x)


hard_silu_fwd, hard_silu_bwd = from_input(
    hard_silu, lambda x: jnp.where(jnp.abs(x) < 3, (2 * x + 3) / 6, x >= 3)
)  # (5.19)


def sparse_plus(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = 0 up to x = -1, (x + 1)^2 / 4 up to x = 1, and x from there on, (5.20). It has no kink.

    M. Blondel et al., Learning with Fenchel-Young losses, 2019 (arXiv 1901.02324), section 6.2.
    """
    return jnp.where(x <= -1, 0, jnp.where(x >= 1, x, (x + 1) ** 2 / 4))


sparse_plus_fwd, sparse_plus_bwd = from_input(
    sparse_plus, lambda x: jnp.clip((x + 1) / 2, 0, 1)
)  # (5.20)


def sparse_sigmoid(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = min(max((x + 1) / 2, 0), 1), (5.21), the slope of sparse_plus.

    At -1 and at 1 the slope is taken to be 1/4, half of what it is between them, since JAX shares
    the slope of a maximum or a minimum between its arguments where they tie. So it keeps x, as
    hard_tanh does.
    M. Blondel et al., Learning with Fenchel-Young losses, 2019 (arXiv 1901.02324), section 6.2.
    """
    return jnp.clip(x + 1, 0, 2) / 2


sparse_sigmoid_fwd, sparse_sigmoid_bwd = from_input(
    sparse_sigmoid, lambda x: (jnp.sign(x + 1) - jnp.sign(x - 1)) / 4
)  # (5.21)


def elu(x: Float[ArrayLike, "*shape"], *, alpha: float | int = 1.0) -> Float[ArrayLike, "*shape"]:
    """a = x where x > 0, else alpha (exp(x) - 1), (5.22). At 0 the slope is taken to be alpha.

    The slope that the rule reads off a loses digits as a nears -alpha. For alpha = 1 it may be 10 %
    off past |x| = 35 in float64, 15 in float32, 4 in bfloat16, and is 0 from 38, 18, 7 on.
    D.-A. Clevert et al., Fast and accurate deep network learning by ELUs, 2015 (arXiv 1511.07289).

    Raises:
        ValueError: alpha is not a positive number.

    """
    _positive("alpha", alpha)
    return jnp.where(x > 0, x, alpha * jnp.expm1(jnp.where(x > 0, 0, x)))


elu_fwd, elu_bwd = from_output(elu, lambda a, *, alpha: jnp.where(a > 0, 1, a + alpha))  # (5.22)


def celu(x: Float[ArrayLike, "*shape"], *, alpha: float | int = 1.0) -> Float[ArrayLike, "*shape"]:
    """a = x where x > 0, else alpha (exp(x / alpha) - 1), (5.23). Its slope at 0 is 1: no kink.

    The slope loses digits as a nears -alpha, in x / alpha where elu does in x.
    J. T. Barron, Continuously differentiable exponential linear units, 2017 (arXiv 1704.07483).

    Raises:
        ValueError: alpha is not a positive number.

    """
    _positive("alpha", alpha)
    return jnp.where(x > 0, x, alpha * jnp.expm1(jnp.where(x > 0, 0, x) / alpha))


celu_fwd, celu_bwd = from_output(
    celu, lambda a, *, alpha: jnp.where(a > 0, 1, a / alpha + 1)
)  # (5.23)


def selu(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = lambda x where x > 0, else lambda alpha (exp(x) - 1), (5.24).

    lambda = 1.0507..., alpha = 1.6732...; at 0 the slope is taken to be lambda alpha. It loses
    digits as a nears -lambda alpha, about where elu's does.
    G. Klambauer et al., Self-normalizing neural networks, 2017 (arXiv 1706.02515), equation 2.
    """
    return _LAMBDA * elu(x, alpha=_ALPHA)


_ALPHA, _LAMBDA = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
selu_fwd, selu_bwd = from_output(
    selu, lambda a: jnp.where(a > 0, _LAMBDA, a + _LAMBDA * _ALPHA)
)  # (5.24)


def softplus(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = log(1 + exp(x)), (5.25). For large x, exp(x) may be inf, and a is x, as it should be.

    Its output is enough, and costs no digits, but takes an expm1, which is dearer than a sigmoid.
    C. Dugas et al., Incorporating second-order functional knowledge for better option pricing,
    NIPS 2000.
    """
    return jnp.logaddexp(x, 0)


softplus_fwd, softplus_bwd = from_input(softplus, lambda x: jax.nn.sigmoid(x))  # (5.25)


def log_sigmoid(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = log(sigmoid(x)) = -softplus(-x), (5.26)."""
    return -softplus(-x)


log_sigmoid_fwd, log_sigmoid_bwd = from_input(log_sigmoid, lambda x: jax.nn.sigmoid(-x))  # (5.26)


def squareplus(x: Float[ArrayLike, "*shape"], *, b: float | int = 4) -> Float[ArrayLike, "*shape"]:
    """a = (x + sqrt(x^2 + b)) / 2, (5.27).

    For x < 0 it is computed as (b / 2) / (sqrt(x^2 + b) - x), the same number: in float32 the first
    form, which is jax.nn's too, is 0 from about x = -8200 on for b = 4. J. T. Barron,
    Squareplus, 2021 (arXiv 2112.11687).

    Raises:
        ValueError: b is not a positive number.

    """
    _positive("b", b)
    r = jnp.sqrt(x * x + b) + jnp.where(x < 0, -x, x)  # |x| would have the slope 0 at 0
    return jnp.where(x < 0, b / 2 / r, r / 2)


squareplus_fwd, squareplus_bwd = from_output(
    squareplus, lambda a, *, b: a * a / (a * a + b / 4)
)  # (5.27)


def softcap(x: Float[ArrayLike, "*shape"], *, cap: float | int) -> Float[ArrayLike, "*shape"]:
    """a = cap tanh(x / cap), (5.28): about x near 0, and never beyond cap.

    The slope loses digits as |a| nears cap, in x / cap where tanh does in x.
    Gemma 2, 2024 (arXiv 2408.00118), section 2.

    Raises:
        ValueError: cap is not a positive number.

    """
    _positive("cap", cap)
    return cap * jnp.tanh(x / cap)


softcap_fwd, softcap_bwd = from_output(softcap, lambda a, *, cap: 1 - (a / cap) ** 2)  # (5.28)


def soft_sign(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = x / (1 + |x|), (5.29). Its tails are long, and it keeps x for the sake of their digits.

    X. Glorot and Y. Bengio, Understanding the difficulty of training deep feedforward neural
    networks, AISTATS 2010.
    """
    return x / (1 + jnp.abs(x))


soft_sign_fwd, soft_sign_bwd = from_input(soft_sign, lambda x: 1 / (1 + jnp.abs(x)) ** 2)  # (5.29)


def silu(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = x sigmoid(x), (5.31), also called swish.

    D. Hendrycks and K. Gimpel, Gaussian error linear units, 2016 (arXiv 1606.08415).
    """
    return x * sigmoid(x)


silu_fwd, silu_bwd = from_input(silu, lambda x: sigmoid(x) * (1 + x * (1 - sigmoid(x))))  # (5.31)


def gelu(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = x Phi(x), (5.32), with the normal distribution function Phi: jax.nn.gelu's exact form.

    D. Hendrycks and K. Gimpel, Gaussian error linear units, 2016 (arXiv 1606.08415).
    """
    return x * _distribution(x)


gelu_fwd, gelu_bwd = from_input(gelu, lambda x: _distribution(x) + x * _density(x))  # (5.32)


def _distribution(x):
    # Phi; erfc keeps the digits of the left tail, where 1 + erf loses them
    return erfc(-x * _HALF) / 2


def _density(x):
    # the slope of Phi, exp(-x^2 / 2) / sqrt(2 pi), with the exponential that erfc needs as well
    return jnp.exp(-((-x * _HALF) ** 2)) * _HALF / math.sqrt(math.pi)


_HALF = math.sqrt(1 / 2)


def gelu_tanh(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = x (1 + tanh(v / 2)) / 2 = x sigmoid(v), v = sqrt(8 / pi) (x + 0.044715 x^3), (5.33).

    It is jax.nn.gelu unless that is told approximate=False, and within 5e-4 of gelu.
    D. Hendrycks and K. Gimpel, Gaussian error linear units, 2016 (arXiv 1606.08415), section 2.
    """
    return x * sigmoid(_steepened(x))


gelu_tanh_fwd, gelu_tanh_bwd = from_input(
    gelu_tanh,
    lambda x: (
        sigmoid(_steepened(x))
        * (1 + x * (1 - sigmoid(_steepened(x))) * _STEEP * (1 + 3 * _CUBIC * x * x))
    ),
)  # (5.33)

_STEEP, _CUBIC = math.sqrt(8 / math.pi), 0.044715


def _steepened(x):
    return _STEEP * (x + _CUBIC * x**3)


def mish(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = x tanh(softplus(x)), (5.34).

    D. Misra, Mish: a self regularized non-monotonic activation function, 2019 (arXiv 1908.08681).
    """
    return x * jnp.tanh(softplus(x))


mish_fwd, mish_bwd = from_input(
    mish,
    lambda x: (
        jnp.tanh(softplus(x)) + x * jnp.exp(x - softplus(x)) * (1 - jnp.tanh(softplus(x)) ** 2)
    ),
)  # (5.34)


def prelu(
    x: Float[ArrayLike, "*batch c"], slope: Float[ArrayLike, " c"]
) -> Float[ArrayLike, "*batch c"]:
    """a = x where x >= 0, else slope x, (5.35), with a trained slope for each channel.

    x (*batch, c), slope (c) -> a (*batch, c). At 0 the slope is taken to be 1, as in leaky_relu.
    K. He et al., Delving deep into rectifiers, 2015 (arXiv 1502.01852), section 2.1.

    Raises:
        TypeError: the last axis of x is not as long as slope.

    """
    return jnp.where(x >= 0, x, slope * x)


def prelu_fwd(x, slope):
    """a, and the residuals (x, slope)."""
    return prelu(x, slope), (x, slope)


def prelu_bwd(
    residuals: tuple[Float[ArrayLike, "*batch c"], Float[ArrayLike, " c"]],
    da: Float[ArrayLike, "*batch c"],
):
    """(dx, dslope): the leaky ReLU's, and a sum over all examples, which share the slope."""
    x, slope = residuals
    dx = da * jnp.where(x >= 0, 1, slope)  # (5.36)
    dslope = jnp.where(x >= 0, 0, da * x).sum(axis=tuple(range(x.ndim - 1)))  # (5.37)
    return dx, dslope


def swiglu(
    gate: Float[ArrayLike, "*shape"], up: Float[ArrayLike, "*shape"]
) -> Float[ArrayLike, "*shape"]:
    """a = silu(gate) o up, (5.38).

    N. Shazeer, GLU variants improve transformer, 2020 (arXiv 2002.05202).
    """
    return silu(gate) * up


def swiglu_fwd(gate, up):
    """a, and the residuals (gate, up)."""
    return swiglu(gate, up), (gate, up)


def swiglu_bwd(
    residuals: tuple[Float[ArrayLike, "*shape"], Float[ArrayLike, "*shape"]],
    da: Float[ArrayLike, "*shape"],
):
    """(dgate, dup): silu's rule gives dgate, from da o up, the cotangent of silu(gate)."""
    gate, up = residuals
    dgate = silu_bwd(gate, da * up)[0]  # (5.39)
    dup = da * silu(gate)  # (5.40)
    return dgate, dup


def geglu(
    gate: Float[ArrayLike, "*shape"], up: Float[ArrayLike, "*shape"]
) -> Float[ArrayLike, "*shape"]:
    """a = gelu(gate) o up, (5.38).

    N. Shazeer, GLU variants improve transformer, 2020 (arXiv 2002.05202).
    """
    return gelu(gate) * up


def geglu_fwd(gate, up):
    """a, and the residuals (gate, up)."""
    return geglu(gate, up), (gate, up)


def geglu_bwd(
    residuals: tuple[Float[ArrayLike, "*shape"], Float[ArrayLike, "*shape"]],
    da: Float[ArrayLike, "*shape"],
):
    """(dgate, dup): gelu's rule gives dgate, from da o up, the cotangent of gelu(gate)."""
    gate, up = residuals
    dgate = gelu_bwd(gate, da * up)[0]  # (5.39)
    dup = da * gelu(gate)  # (5.40)
    return dgate, dup


def glu(x: Float[ArrayLike, "*batch two_k"]) -> Float[ArrayLike, "*batch k"]:
    """a = u o sigmoid(g), (5.38), with u and g the first and the second half of x's last axis.

    x (*batch, 2 k) -> a (*batch, k).
    Y. N. Dauphin et al., Language modeling with gated convolutional networks, 2016 (arXiv
    1612.08083).

    Raises:
        ValueError: the last axis of x has no two halves.

    """
    u, g = _halves(x)
    return u * sigmoid(g)


def glu_fwd(x):
    """a, and x, the only residual."""
    return glu(x), x


def glu_bwd(x: Float[ArrayLike, "*batch two_k"], da: Float[ArrayLike, "*batch k"]):
    """(dx,): the cotangents of u and of g, side by side as u and g are in x."""
    u, g = _halves(x)
    dx = jnp.stack([da * sigmoid(g), da * u * sigmoid(g) * sigmoid(-g)], axis=-2)  # (5.41)
    return (dx.reshape(x.shape),)


def _halves(x):
    if x.shape[-1] % 2:
        raise ValueError(f"x: expected a last axis of two halves; got shape {x.shape}")
    return x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]


def _positive(name, value):
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a positive number; got {value}")
