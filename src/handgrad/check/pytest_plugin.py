"""For pytest: the fixture check_vjp, its seed, and the table of verdicts under a failure.

Installing handgrad is enough, since pytest finds this module by its entry point. JAX is imported by
the first test that asks for the fixture. How to use it: notebooks/33_kernels.ipynb
"""

import shlex
import sys
from functools import partial

import pytest


def pytest_addoption(parser):
    """Add the option for the seed."""
    parser.getgroup("handgrad").addoption(
        "--handgrad-seed",
        type=int,
        default=0,
        metavar="N",
        help="the seed of check_vjp's cotangents and of its second point (default: 0)",
    )


@pytest.fixture
def check_vjp(request):
    """handgrad.check.check_vjp with the seed of this run, --handgrad-seed."""
    from handgrad.check import check_vjp

    return partial(check_vjp, seed=request.config.getoption("--handgrad-seed"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Put the verdicts under a failure, and the command that draws the same numbers again."""
    report = yield
    known = sys.modules.get("handgrad.check.report")
    if call.excinfo and known and isinstance(call.excinfo.value, known.GradientMismatch):
        seed = item.config.getoption("--handgrad-seed")
        again = f"pytest {shlex.quote(item.nodeid)} --handgrad-seed={seed}"
        report.sections.append(("gradients", f"{call.excinfo.value}\n\nRun again: {again}"))
    return report
