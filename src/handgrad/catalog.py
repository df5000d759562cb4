"""One row a layer. The proof, the command line, the tests and the README's table read this list."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import handgrad as hg


class Layer(NamedTuple):
    """A layer: its triple, its notebook, its formula in LaTeX, and example inputs.

    For the cheat sheet, all in LaTeX: gradients has an equation for each argument that has a
    gradient; kept names the residuals, in order, and how many entries each has; cost is how many
    products the way forward takes, and the way back, as words with LaTeX between dollars; where
    explains, in such words too, what else stands in a gradient. The letters are n for the entries
    of any shape, N for the examples, and those of the signature.

    examples(rng) draws a list of (arguments, hyperparameters), in float64; from one draw to the
    next the shapes are the same, so a compiled check serves them all.
    """

    f: Callable
    f_fwd: Callable
    f_bwd: Callable
    notebook: str
    formula: str
    gradients: dict
    kept: dict
    cost: tuple
    examples: Callable
    where: str = ""

    @property
    def name(self):
        """The function's own name."""
        return self.f.__name__

    @property
    def module(self):
        """The module's name within the package."""
        return self.f.__module__.removeprefix("handgrad.layers.")


def _elementwise(rng):
    return [((rng.normal(size=shape),), {}) for shape in ((), (7,), (4, 2, 5))]


def _logits(rng):
    return [((3 * rng.normal(size=shape),), {}) for shape in ((5,), (3, 4), (2, 5, 3))]


def _labelled(rng):
    for (z,), _ in _logits(rng):
        yield z, rng.integers(z.shape[-1], size=z.shape[:-1])


def _probabilities(z, y):
    # one of them 0, though never the label's: its cotangent is 0 too, and not 0 / 0
    k = z.shape[-1]
    return np.where(np.arange(k) == (y[..., None] + 1) % k, 0, hg.softmax(z / 3))


LAYERS = (
    Layer(
        *(hg.squared_error, hg.squared_error_fwd, hg.squared_error_bwd),
        "01_gradient",
        r"l = (p - t)^2",
        gradients={"prediction": r"dp = 2 (p - t) \odot dl", "target": r"dt = -2 (p - t) \odot dl"},
        kept={"p - t": "n"},
        cost=("$n$", "$4 n$"),
        examples=lambda rng: [
            ((rng.normal(size=shape), rng.normal(size=shape)), {})
            for shape in ((), (5,), (2, 4, 3))
        ],
    ),
    Layer(
        *(hg.linear, hg.linear_fwd, hg.linear_bwd),
        "04_linear",
        r"z = W x + b",
        gradients={
            "x": r"dx_n = W^\top dz_n",
            "W": r"dW = \sum_n dz_n\,x_n^\top",
            "b": r"db = \sum_n dz_n",
        },
        kept={"x": "N d", "W": "h d"},
        cost=("$N h d$", "$2 N h d$"),
        examples=lambda rng: [
            ((rng.normal(size=(*batch, 4)), rng.normal(size=(5, 4)), rng.normal(size=5)), {})
            for batch in ((), (3,), (2, 3))
        ],
    ),
    Layer(
        *(hg.relu, hg.relu_fwd, hg.relu_bwd),
        "05_activations",
        r"a = \max(0, x)",
        gradients={"x": r"dx_i = \begin{cases} da_i & a_i > 0 \\ 0 & a_i = 0 \end{cases}"},
        kept={"a": "n"},
        cost=("$n$ selections", "$n$ selections"),
        examples=_elementwise,
    ),
    Layer(
        *(hg.sigmoid, hg.sigmoid_fwd, hg.sigmoid_bwd),
        "05_activations",
        r"a = 1 / (1 + e^{-x})",
        gradients={"x": r"dx = da \odot a \odot (1 - a)"},
        kept={"a": "n"},
        cost=("$n$ exp", "$2 n$"),
        examples=_elementwise,
    ),
    Layer(
        *(hg.tanh, hg.tanh_fwd, hg.tanh_bwd),
        "05_activations",
        r"a = \tanh x",
        gradients={"x": r"dx = da \odot (1 - a^2)"},
        kept={"a": "n"},
        cost=("$n$ exp", "$2 n$"),
        examples=_elementwise,
    ),
    Layer(
        *(hg.softmax, hg.softmax_fwd, hg.softmax_bwd),
        "06_softmax_cross_entropy",
        r"o_i = e^{z_i} / \sum_j e^{z_j}",
        gradients={"z": r"dz = o \odot (do - \langle o, do \rangle)"},
        kept={"o": "N k"},
        cost=("$N k$ + $N k$ exp", "$2 N k$"),
        examples=_logits,
    ),
    Layer(
        *(hg.logsumexp, hg.logsumexp_fwd, hg.logsumexp_bwd),
        "06_softmax_cross_entropy",
        r"s = \log \sum_j e^{z_j}",
        gradients={"z": r"dz = e^{z - s}\,ds"},
        kept={"z": "N k", "s": "N"},
        cost=("$N k$ exp", "$N k$ + $N k$ exp"),
        examples=_logits,
    ),
    Layer(
        *(hg.log_softmax, hg.log_softmax_fwd, hg.log_softmax_bwd),
        "06_softmax_cross_entropy",
        r"r_i = z_i - \log \sum_j e^{z_j}",
        gradients={"z": r"dz = dr - e^{r} \sum_i dr_i"},
        kept={"r": "N k"},
        cost=("$N k$ exp", "$N k$ + $N k$ exp"),
        examples=_logits,
    ),
    Layer(
        *(hg.cross_entropy, hg.cross_entropy_fwd, hg.cross_entropy_bwd),
        "06_softmax_cross_entropy",
        r"l = -\log o_y",
        gradients={"o": r"do = -\frac{e_y}{o}\,dl"},
        kept={"o": "N k", "y": "N"},
        cost=("$N k$ + $N k$ log", "$2 N k$"),
        examples=lambda rng: [((_probabilities(z, y), y), {}) for z, y in _labelled(rng)],
        where=r"$e_y$ is 1 at place $y$ and 0 elsewhere; $0 / 0$ counts as 0",
    ),
    Layer(
        *(hg.softmax_cross_entropy, hg.softmax_cross_entropy_fwd, hg.softmax_cross_entropy_bwd),
        "06_softmax_cross_entropy",
        r"l = -\log \mathrm{softmax}(z)_y",
        gradients={"z": r"dz = (\operatorname{softmax}(z) - t)\,dl"},
        kept={"o": "N k", "y": "N"},
        cost=("$N k$ + $N k$ exp", "$N k$"),
        examples=lambda rng: [
            ((z, y), {"label_smoothing": smoothing})
            for smoothing in (0.0, 0.1)
            for z, y in _labelled(rng)
        ],
        where=r"$o = \mathrm{softmax}(z)$; $t = e_y$, or smoothed, "
        r"with $l = -\langle t, \log o \rangle$: "
        r"$t = (1 - \epsilon)\,e_y + \frac{\epsilon}{k}\,\mathbf{1}$",
    ),
)


def table():
    """The README's table of layers, in Markdown."""
    rows = ["| layer | forward | module | derivation |", "| --- | --- | --- | --- |"]
    for layer in LAYERS:
        module = f"[`{layer.module}`](src/handgrad/layers/{layer.module}.py)"
        notebook = f"[{layer.notebook}](notebooks/{layer.notebook}.ipynb)"
        rows.append(f"| `{layer.name}` | ${layer.formula}$ | {module} | {notebook} |")
    return "\n".join(rows)
