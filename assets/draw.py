"""Draw the figures of this folder again, byte for byte: python assets/draw.py."""

from pathlib import Path

import matplotlib.pyplot as plt

from handgrad import cross_entropy, figures, linear, relu, softmax


def network(x, W1, b1, W2, b2, y):
    """The two-layer network of notebooks/07_two_layer_network.ipynb."""
    z1 = linear(x, W1, b1)
    a1 = relu(z1)
    z2 = linear(a1, W2, b2)
    o = softmax(z2)
    l = cross_entropy(o, y)  # noqa: E741
    return l


if __name__ == "__main__":
    plt.switch_backend("svg")
    figures.use_house_style()
    _, ax = plt.subplots(figsize=(8, 2.5))
    figures.execution_trace(ax, network, parameters=("W1", "b1", "W2", "b2"))
    plt.savefig(Path(__file__).with_name("trace.svg"), metadata={"Date": None})
