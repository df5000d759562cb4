"""The rows of layers/preferences.py."""

import jax
import jax.numpy as jnp
import numpy as np

from handgrad.catalog import Row
from handgrad.layers.preferences import dpo, grpo, info_nce, ppo_clip

SHAPE = (4, 3)


def _pairs(rng):
    def example(scale=1.0):
        return (scale * rng.normal(size=(5, 3)), rng.normal(size=(5, 3))), {"temperature": 0.5}

    a = np.resize([100.0, 0.0, -100.0, 30.0], (5, 3))
    return {
        "typical": example(),
        "edge: hardly a preference": example(1e-2),
        "extreme: scores up to 1e4": ((a, a[::-1]), {"temperature": 0.5}),
        "extreme: all alike": ((0 * a, a), {"temperature": 0.5}),
    }


def _answers(rng):
    hyper = {"beta": 0.3}

    def example(shape):
        return tuple(-5 * rng.uniform(size=shape) for _ in range(4)), hyper

    far = np.resize([-1e4, 0.0, -300.0, 0.0, -1.0], SHAPE)
    zero = np.zeros(SHAPE)
    return {
        "typical": example(SHAPE),
        "edge: a number": example(()),
        "extreme: 1e4 apart": ((far, far[::-1], zero, zero), hyper),
    }


def _tokens(rng, hyper, far):
    # ratios are free and held, on both sides, for good tokens and for bad ones; none is at a kink
    def example(shape):
        u = np.resize([0.1, -0.1, 0.7, -0.7], shape) * rng.uniform(0.8, 1.2, size=shape)
        A = np.resize([1, 1, 1, 1, -1, -1, -1, -1], shape) * rng.uniform(0.5, 2, size=shape)
        old = -3 * rng.uniform(size=shape)
        return (old + u, old, A), hyper

    # a ratio that overflows is held where A > 0; with clip = 0 the kink is at a ratio of 1
    u = np.resize([1e4, -1e4, 0.0, -1e4, 0.0, -1.0], SHAPE)
    A = np.resize([1.0, 2.0, 1.0, -1.0, -0.5, 0.0], SHAPE)
    return {
        "typical": example(SHAPE),
        "edge: a number": example(()),
        "extreme: 1e4 apart, and at the kink": ((u, 0 * u, A), far),
    }


def _clipped(rng):
    return _tokens(rng, {}, {"clip": 0.0})


def _with_reference(rng):
    examples = {}
    for name, ((log_p, old, A), hyper) in _tokens(
        rng, {"beta": 0.4}, {"clip": 0.0, "beta": 0.0}
    ).items():
        examples[name] = ((log_p, old, log_p + rng.normal(size=log_p.shape), A), hyper)
    (u, zero, _, A), hyper = examples["extreme: 1e4 apart, and at the kink"]
    # with beta = 0 the reference may be anywhere
    examples["extreme: 1e4 apart, and at the kink"] = ((u, zero, -u, A), hyper)
    # from where the reference is it pulls by at most beta, to where it is with exp(r)
    r = np.resize([-1e4, 80.0, 0.0, 1e-3], SHAPE)
    examples["extreme: a reference that is far"] = (
        (zero, zero, r, np.ones(SHAPE)),
        {"beta": 0.4},
    )
    return examples


def _both_ways(a, b, *, temperature):
    S = a @ b.T / temperature
    ways = (jax.nn.log_softmax(S, axis=axis) for axis in (1, 0))
    return -sum(np.diagonal(way) for way in ways) / 2


def _least(log_p, log_p_old, advantage, *, clip=0.2):
    ratio = jnp.exp(log_p - log_p_old)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def _penalised(log_p, log_p_old, log_p_reference, advantage, *, clip=0.2, beta):
    loss = _least(log_p, log_p_old, advantage, clip=clip)
    r = log_p_reference - log_p
    return loss + (beta * (jnp.exp(r) - 1 - r) if beta else 0)


HELD = r"\hat\rho = \min(\rho, 1 + c) \text{ if } A \ge 0, \text{ else } \max(\rho, 1 - c)"

ROWS = (
    Row(
        info_nce,
        r"l_i = \tfrac12 \left(\log \textstyle\sum_j e^{S_{ij}} + \log \sum_j e^{S_{ji}}\right)"
        r" - S_{ii}",
        {
            "a": r"da = \tfrac1\tau\,dS\,b",
            "b": r"db = \tfrac1\tau\,dS^\top a",
        },
        _pairs,
        same_as=_both_ways,
        where=r"$S = a b^\top / \tau$; $dS = \tfrac12 (\mathrm{diag}(dl)\,P + Q\,\mathrm{diag}(dl))"
        r" - \mathrm{diag}(dl)$, with $P$ the softmax of the rows of $S$, and $Q$ of its columns",
    ),
    Row(
        dpo,
        r"l = \log(1 + e^{-\beta m})",
        {
            "chosen": r"d\log p_{\text{chosen}} = -\beta\,(1 - e^{-l})\,dl",
            "rejected": r"d\log p_{\text{rejected}} = -dm",
            "reference_chosen": r"d\log p_{\text{ref, chosen}} = -dm",
            "reference_rejected": r"d\log p_{\text{ref, rejected}} = dm",
        },
        _answers,
        same_as=lambda c, r, c0, r0, *, beta: np.logaddexp(0, -beta * (c - r - c0 + r0)),
        where=r"$m$ is the log-ratio $\log p - \log p_{\text{ref}}$ of what was chosen less that "
        r"of what was rejected, and $dm = -\beta\,(1 - e^{-l})\,dl$",
    ),
    Row(
        ppo_clip,
        r"l = -\min(\rho A, \mathrm{clip}(\rho, 1 - c, 1 + c)\,A)",
        {
            "log_p": r"d\log p = -A\,\hat\rho\,\varphi\,dl",
            "log_p_old": r"d\log p_{\text{old}} = A\,\hat\rho\,\varphi\,dl",
            "advantage": r"dA = -\hat\rho\,dl",
        },
        _clipped,
        same_as=_least,
        where=rf"$\rho = p / p_{{\text{{old}}}}$; ${HELD}$; $\varphi = 1$ where $\hat\rho = \rho$, "
        "else 0 (half at the kink)",
    ),
    Row(
        grpo,
        r"l = \mathrm{ppo} + \beta\,(e^r - 1 - r)",
        {
            "log_p": r"d\log p = -A\,\hat\rho\,\varphi\,dl - dr",
            "log_p_old": r"d\log p_{\text{old}} = A\,\hat\rho\,\varphi\,dl",
            "log_p_reference": r"d\log p_{\text{ref}} = \beta\,(e^r - 1)\,dl",
            "advantage": r"dA = -\hat\rho\,dl",
        },
        _with_reference,
        same_as=_penalised,
        where=rf"$\mathrm{{ppo}}$, $\rho$ and $\varphi$ are those of ppo\_clip; ${HELD}$; "
        r"$r = \log p_{\text{ref}} - \log p$, and $dr = \beta\,(e^r - 1)\,dl$",
    ),
)
