"""The rows of layers/softmax_cross_entropy.py."""

import jax
import numpy as np

from handgrad.catalog import Row
from handgrad.layers.softmax_cross_entropy import (
    cross_entropy,
    log_softmax,
    logsumexp,
    softmax,
    softmax_cross_entropy,
)


def _logits(rng):
    return {
        "typical": ((3 * rng.normal(size=(3, 4)),), {}),
        "edge: one example, no batch axis": ((3 * rng.normal(size=5),), {}),
        "edge: more batch axes": ((3 * rng.normal(size=(2, 5, 3)),), {}),
        "edge: constant rows": ((np.full((3, 4), 0.7),), {}),
        "edge: one class": ((rng.normal(size=(3, 1)),), {}),
        "extreme: 1e4": ((np.array([[1e4, -1e4, 0.0], [-50.0, 50.0, 0.0]]),), {}),
        "extreme: one logit of -inf": ((np.array([0.0, -np.inf, 1.0]),), {}),
    }


def _labelled(rng):
    for name, ((z,), _) in _logits(rng).items():
        yield name, z, rng.integers(z.shape[-1], size=z.shape[:-1])


def _probabilities(rng):
    # not so small that a difference steps below 0
    examples = {n: ((softmax(z / 3), y), {}) for n, z, y in _labelled(rng) if n[:2] != "ex"}
    o, y = np.array([[0.5, 0.0, 0.5], [0.0, 0.25, 0.75]]), np.array([0, 2])
    return examples | {"extreme: probability 0, not the label's": ((o, y), {})}


def _smoothed(rng):
    examples = {name: ((z, y), {}) for name, z, y in _labelled(rng)}
    smoothing = {"label_smoothing": 0.1}
    return examples | {
        "edge: smoothed": (examples["typical"][0], smoothing),
        "extreme: 1e4, smoothed": (examples["extreme: 1e4"][0], smoothing),
    }


def _of_the_label(o, y):
    return -np.log(np.take_along_axis(np.asarray(o), np.asarray(y)[..., None], axis=-1))[..., 0]


def _with_targets(z, y, label_smoothing=0.0):
    import optax

    targets = optax.smooth_labels(np.eye(z.shape[-1])[y], label_smoothing)
    return optax.softmax_cross_entropy(z, targets)


ROWS = (
    Row(
        softmax,
        r"o_i = e^{z_i} / \sum_j e^{z_j}",
        {"z": r"dz = o \odot (do - \langle o, do \rangle\,\mathbf{1})"},
        _logits,
        same_as="jax.nn.softmax",
    ),
    Row(
        logsumexp,
        r"s = \log \sum_j e^{z_j}",
        {"z": r"dz = \operatorname{softmax}(z)\,ds"},
        _logits,
        same_as=lambda z: jax.nn.logsumexp(z, axis=-1),
    ),
    Row(
        log_softmax,
        r"r_i = z_i - \log \sum_j e^{z_j}",
        {"z": r"dz = dr - \operatorname{softmax}(z) \sum_i dr_i"},
        _logits,
        same_as="jax.nn.log_softmax",
    ),
    Row(
        cross_entropy,
        r"l = -\log o_y",
        {"o": r"do = -\frac{dl}{o_y}\,e_y"},
        _probabilities,
        same_as=_of_the_label,
        where=r"$e_y$ is 1 at place $y$ and 0 elsewhere",
    ),
    Row(
        softmax_cross_entropy,
        r"l = -\log \mathrm{softmax}(z)_y",
        {"z": r"dz = (\operatorname{softmax}(z) - t)\,dl"},
        _smoothed,
        same_as=_with_targets,
        where=r"$o = \mathrm{softmax}(z)$; $t = e_y$, or smoothed, "
        r"with $l = -\langle t, \log o \rangle$: "
        r"$t = (1 - \epsilon)\,e_y + \frac{\epsilon}{k}\,\mathbf{1}$",
    ),
)
