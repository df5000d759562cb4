"""Preferences: losses of log-ratios.    Derivation: notebooks/20_preferences.ipynb

One value for each pair, or for each token. The mean is a step of its own, and there are several,
which weigh the tokens differently: see (20.25).

Each rule differentiates its function as it is written, in every argument: what a log-ratio sends to
one of its ends it takes from the other, (20.1). An old policy or a reference is data where these
losses come from, so its cotangent is thrown away there. A program that computes it with the
parameters at hand stops the gradient itself (jax.lax.stop_gradient); else the ends cancel.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float

from handgrad.layers.losses import _require


def info_nce(
    a: Float[ArrayLike, "N d"], b: Float[ArrayLike, "N d"], *, temperature: float | int
) -> Float[ArrayLike, " N"]:
    """l_i, (20.5): the mean of two surprises, that a_i finds its b_i and that b_i finds its a_i.

    Row i of a (N, d) and row i of b (N, d) belong together, and S = a b^T / temperature has their
    scores, (20.4). The rows are taken as they are: l2_normalize makes them directions, as in CLIP.
    In a single pair there is nothing to choose from: its loss is 0. No pairs give no losses.

    van den Oord, Li and Vinyals 2018, section 2.3; in both directions Radford and others 2021,
    figure 3. optax.losses.ntxent tells a_i from the other rows of a, too, (20.9).

    Raises:
        TypeError: an argument is not a float array of two axes, or b has not the shape of a.
        ValueError: temperature is not a positive number.

    """
    return _both_ways(_scores(a, b, temperature))


def info_nce_fwd(a, b, *, temperature):
    """l, and the residuals (a, b, S): S (N, N) has the scores of all pairs."""
    S = _scores(a, b, temperature)
    return _both_ways(S), (a, b, S)


def info_nce_bwd(
    residuals: tuple[Float[ArrayLike, "N d"], Float[ArrayLike, "N d"], Float[ArrayLike, "N N"]],
    dl: Float[ArrayLike, " N"],
    *,
    temperature,
):
    """(da, db): prediction minus target along the rows and along the columns, half of each."""
    a, b, S = residuals
    P, Q = jax.nn.softmax(S, axis=1), jax.nn.softmax(S, axis=0)
    dS = (dl[:, None] * P + Q * dl) / 2 - jnp.diag(dl)  # (20.6)
    da = dS @ b / temperature  # (20.7)
    db = dS.T @ a / temperature  # (20.8)
    return da, db


def dpo(
    chosen: Float[ArrayLike, "*shape"],
    rejected: Float[ArrayLike, "*shape"],
    reference_chosen: Float[ArrayLike, "*shape"],
    reference_rejected: Float[ArrayLike, "*shape"],
    *,
    beta: float | int,
) -> Float[ArrayLike, "*shape"]:
    """l = log(1 + exp(-beta m)), (20.10): m is by how much more the policy prefers what was chosen.

    m = (chosen - rejected) - (reference_chosen - reference_rejected), of the log-probabilities of
    whole answers, under the policy and under the reference. Rafailov and others 2023, section 4.

    Raises:
        TypeError: an argument is not a float array, or the shapes differ.
        ValueError: beta is not a positive number.

    """
    _positive("beta", beta)
    m = (chosen - reference_chosen) - (rejected - reference_rejected)
    return jax.nn.softplus(-beta * m)


def dpo_fwd(chosen, rejected, reference_chosen, reference_rejected, *, beta):
    """l, which is also the only residual: exp(-l) is the probability given to the choice."""
    loss = dpo(chosen, rejected, reference_chosen, reference_rejected, beta=beta)
    return loss, loss


def dpo_bwd(loss: Float[ArrayLike, "*shape"], dl: Float[ArrayLike, "*shape"], *, beta):
    """(dchosen, drejected, dreference_chosen, dreference_rejected): one number, and its sign."""
    dchosen = beta * jnp.expm1(-loss) * dl  # (20.11)
    drejected = -dchosen  # (20.12)
    dreference_chosen = -dchosen  # (20.13)
    dreference_rejected = dchosen  # (20.13)
    return dchosen, drejected, dreference_chosen, dreference_rejected


def ppo_clip(
    log_p: Float[ArrayLike, "*shape"],
    log_p_old: Float[ArrayLike, "*shape"],
    advantage: Float[ArrayLike, "*shape"],
    *,
    clip: float | int = 0.2,
) -> Float[ArrayLike, "*shape"]:
    """l = -min(rho A, clip(rho, 1 - clip, 1 + clip) A), (20.14), for the advantage A of each token.

    rho = exp(log_p - log_p_old). It is held from above where A >= 0, from below where A < 0; that
    is the same, (20.15), and an infinite rho times A = 0 is 0. Schulman and others 2017, section
    3, with the sign of a loss.

    Raises:
        TypeError: an argument is not a float array, or the shapes differ.
        ValueError: clip is negative.

    """
    held, _ = _held(log_p, log_p_old, advantage, clip)
    return -advantage * held


def ppo_clip_fwd(log_p, log_p_old, advantage, *, clip=0.2):
    """l, and the residuals: the inputs."""
    return ppo_clip(log_p, log_p_old, advantage, clip=clip), (log_p, log_p_old, advantage)


def ppo_clip_bwd(
    residuals: tuple[
        Float[ArrayLike, "*shape"], Float[ArrayLike, "*shape"], Float[ArrayLike, "*shape"]
    ],
    dl: Float[ArrayLike, "*shape"],
    *,
    clip=0.2,
):
    """(dlog_p, dlog_p_old, dadvantage): 0 where rho is held, half of it at the kink."""
    log_p, log_p_old, advantage = residuals
    held, free = _held(log_p, log_p_old, advantage, clip)
    dlog_p = -advantage * held * free * dl  # (20.16)
    dlog_p_old = -dlog_p  # (20.17)
    dadvantage = -held * dl  # (20.18)
    return dlog_p, dlog_p_old, dadvantage


def grpo(
    log_p: Float[ArrayLike, "*shape"],
    log_p_old: Float[ArrayLike, "*shape"],
    log_p_reference: Float[ArrayLike, "*shape"],
    advantage: Float[ArrayLike, "*shape"],
    *,
    clip: float | int = 0.2,
    beta: float | int,
) -> Float[ArrayLike, "*shape"]:
    """l = ppo_clip + beta (exp(r) - 1 - r), (20.20), with r = log_p_reference - log_p, per token.

    The second term is the k3 estimator of the divergence from the reference, (20.19). With beta = 0
    it is ppo_clip, whatever the reference. Shao and others 2024, section 4; the advantage comes
    from a group of answers, (20.24).

    Raises:
        TypeError: an argument is not a float array, or the shapes differ.
        ValueError: clip is negative, or beta is negative or infinite.

    """
    _require("beta", beta, "a finite number that is not negative", 0 <= beta < jnp.inf)
    loss = ppo_clip(log_p, log_p_old, advantage, clip=clip)
    r = log_p_reference - log_p
    return loss + beta * (jnp.expm1(r) - r) if beta else loss


def grpo_fwd(log_p, log_p_old, log_p_reference, advantage, *, clip=0.2, beta):
    """l, and the residuals: the inputs."""
    loss = grpo(log_p, log_p_old, log_p_reference, advantage, clip=clip, beta=beta)
    return loss, (log_p, log_p_old, log_p_reference, advantage)


def grpo_bwd(
    residuals: tuple[
        Float[ArrayLike, "*shape"],
        Float[ArrayLike, "*shape"],
        Float[ArrayLike, "*shape"],
        Float[ArrayLike, "*shape"],
    ],
    dl: Float[ArrayLike, "*shape"],
    *,
    clip=0.2,
    beta,
):
    """(dlog_p, dlog_p_old, dlog_p_reference, dadvantage): ppo_clip's, and the pull back home."""
    log_p, log_p_old, log_p_reference, advantage = residuals
    clipped = ppo_clip_bwd((log_p, log_p_old, advantage), dl, clip=clip)
    pull = beta * jnp.expm1(log_p_reference - log_p) * dl if beta else jnp.zeros_like(dl)
    dlog_p = clipped[0] - pull  # (20.21)
    dlog_p_old = clipped[1]  # (20.17)
    dlog_p_reference = pull  # (20.22)
    dadvantage = clipped[2]  # (20.18)
    return dlog_p, dlog_p_old, dlog_p_reference, dadvantage


def _scores(a, b, temperature):
    _positive("temperature", temperature)
    return a @ b.T / temperature


def _both_ways(S):
    return (_surprise(S, 1) + _surprise(S, 0)) / 2


def _surprise(S, axis):
    # Of each diagonal entry in its row or column. It exponentiates as jax.nn.softmax does on the
    # way back, so that a compiler does it once.
    z = S - jax.lax.stop_gradient(S.max(axis=axis, keepdims=True, initial=-jnp.inf))
    return jnp.log(jnp.exp(z).sum(axis=axis)) - jnp.diagonal(z)


def _held(log_p, log_p_old, advantage, clip):
    # the ratio within its one bound, and its slope there: 1, or 0 beyond the bound, or 1/2 on it
    _require("clip", clip, "a number that is not negative", clip >= 0)
    ratio = jnp.exp(log_p - log_p_old)
    low, high = 1 - clip, 1 + clip
    held = jnp.where(advantage < 0, jnp.maximum(ratio, low), jnp.minimum(ratio, high))
    room = jnp.where(advantage < 0, ratio - low, high - ratio)
    return held, jnp.heaviside(room, 0.5)


def _positive(name, value):
    _require(name, value, "a positive number", 0 < value < jnp.inf)
