"""handgrad: the gradients of the layers people train, derived by hand and proved against JAX.

Every layer is a triple of plain functions, f, f_fwd and f_bwd; see notebooks/00_contents.ipynb.
"""

from handgrad.check import GradientMismatch, check_gradient, check_rule, check_steps, tap
from handgrad.layer import as_layer


def __getattr__(name):
    """A rule of some layer, such as relu_bwd; the checker alone needs none of them loaded."""
    if not name.startswith("__"):
        from handgrad.layers import RULES

        if name in RULES:
            return RULES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    from handgrad.layers import RULES

    return sorted({*globals(), *RULES})
