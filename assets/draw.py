"""Draw the figure of this folder again, from a real run: python assets/draw.py."""

import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from handgrad import GradientMismatch, check_steps, figures, softmax, tap


def verdict():
    """What the checker says of a two-layer network whose softmax Jacobian is only its diagonal."""
    rng = np.random.default_rng(0)
    x, W1, W2 = rng.normal(size=4), rng.normal(size=(5, 4)), rng.normal(size=(6, 5))

    def loss(W1, W2):
        a1 = tap("a1", jnp.tanh(tap("z1", W1 @ x)))
        o = tap("o", softmax(tap("z2", W2 @ a1)))
        return -jnp.log(o)[1]

    a1 = jnp.tanh(W1 @ x)
    o = softmax(W2 @ a1)
    do = -np.eye(6)[1] / o
    dz2 = o * (1 - o) * do
    da1 = W2.T @ dz2
    dz1 = (1 - a1**2) * da1
    steps = {
        "do": do,
        "dz2": dz2,
        "dW2": np.outer(dz2, a1),
        "da1": da1,
        "dz1": dz1,
        "dW1": np.outer(dz1, x),
    }
    try:
        check_steps(loss, at=(W1, W2), **steps)
    except GradientMismatch as mistake:
        return mistake
    raise AssertionError("expected a mistake")


def draw(mistake, path):
    """The lines as a terminal shows them, a wrong one in red."""
    lines = str(mistake).splitlines()
    code = "check_steps(loss, at=(W1, W2), do=do, dz2=dz2, dW2=dW2, da1=da1, dz1=dz1, dW1=dW1)"
    lines = [f">>> {code}", "", "GradientMismatch:", *lines]
    folded = [(line, part) for line in lines for part in _folded(line)]
    figure, ax = plt.subplots(figsize=(8.2, 0.24 * len(folded) + 0.3), facecolor="#F7F8F9")
    for i, (line, part) in enumerate(folded):
        wrong = "WRONG" in line or line.startswith("Grad")
        color = figures.MISTAKE if wrong else "#00664B" if "right" in line else "#1B1F24"
        style = {"family": "monospace", "size": 9, "color": color}
        ax.text(0.2, -i, part, weight="bold" if wrong else "normal", va="center", **style)
    ax.set(xlim=(0, 80), ylim=(-len(folded) + 0.3, 0.7))
    ax.axis("off")
    figure.savefig(path, metadata={"Date": None})


def _folded(line):
    # a line as a narrow terminal would show it, the rest below the words of the verdict
    return textwrap.wrap(line, 96, subsequent_indent=13 * " ", break_long_words=False) or [""]


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    plt.switch_backend("svg")
    figures.use_house_style()
    draw(verdict(), Path(__file__).with_name("verdict.svg"))
