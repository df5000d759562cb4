"""handgrad: the gradients of the layers people train, derived by hand and proved against JAX.

Every layer is a triple of plain functions, f, f_fwd and f_bwd; see notebooks/00_contents.ipynb.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from handgrad.check import (
        GradientMismatch,
        check_gradient,
        check_rule,
        check_steps,
        check_vjp,
        tap,
    )
    from handgrad.layer import as_layer

_CHECKS = ("GradientMismatch", "check_gradient", "check_rule", "check_steps", "check_vjp", "tap")


def __getattr__(name):
    """What is asked for is loaded then: pytest's plugin needs no JAX, the checker no layer."""
    if name in _CHECKS:
        return getattr(import_module("handgrad.check"), name)
    if name == "as_layer":
        return import_module("handgrad.layer").as_layer
    if name == "__version__":
        return import_module("importlib.metadata").version("handgrad")
    if not name.startswith("__"):
        from handgrad.layers import RULES

        if name in RULES:
            return RULES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    from handgrad.layers import RULES

    return sorted({*globals(), *_CHECKS, "__version__", "as_layer", *RULES})
