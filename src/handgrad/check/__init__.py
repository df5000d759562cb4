"""Compare hand-written gradients with JAX, and name the mistake in a wrong one.

check_rule proves a layer's rule, check_steps judges each step of a derivation by itself,
check_gradient takes anybody's numbers, and check_vjp a function that carries its own rule. Each
shows one line per gradient, returns a Report, and raises GradientMismatch when one is wrong.
How to use it: notebooks/08_checking.ipynb and notebooks/33_kernels.ipynb
How it works: notebooks/32_checker.ipynb

rule, gradient, steps and vjp hold the four. compare judges two arrays, by what rounding measures
and oracles know; naming finds out what was done to get a wrong one. jaxpr looks inside the program,
plain takes rules out of it, call sorts arguments; report shows what was found; pytest_plugin brings
check_vjp into test suites.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from handgrad.check.gradient import check_gradient
    from handgrad.check.report import GradientMismatch, Report, Verdict
    from handgrad.check.rule import check_rule, prove
    from handgrad.check.steps import check_steps, tap
    from handgrad.check.vjp import check_vjp

_HOMES = {
    **dict.fromkeys(("GradientMismatch", "Report", "Verdict"), "report"),
    "check_gradient": "gradient",
    **dict.fromkeys(("check_rule", "prove"), "rule"),
    **dict.fromkeys(("check_steps", "tap"), "steps"),
    "check_vjp": "vjp",
}


def __getattr__(name):
    """What is asked for is loaded then: the plugin of pytest starts without JAX."""
    if name in _HOMES:
        return getattr(import_module(f"handgrad.check.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_HOMES})
