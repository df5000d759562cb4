"""Notebooks run in any order, and the checks of their exercises know right answers from wrong ones.

A topic lists answers in tests/layers/test_<topic>.py: RIGHT and WRONG hold, by exercise, the bodies
that might stand between the marks of its solution.
"""

import re
import sys
import textwrap
from importlib import import_module

import jax
import jax.numpy as jnp
import pytest
from kernel import NOTEBOOKS, REGION, Kernel, prose, sections

from handgrad import GradientMismatch
from handgrad.check import oracles
from handgrad.check.arrays import put

TESTS = NOTEBOOKS[0].parents[1] / "tests" / "layers"
sys.path.insert(0, str(TESTS))
pytestmark = pytest.mark.filterwarnings("ignore")


def reverse_mode_alone(f, hyper, which, dz, precise, directions):
    """The truth on a rule as check_rule wants it, where all three oracles say what one does."""
    floats = [oracles._floats(precise[i]) for i in which]

    def plain(floats):
        return f(*put(precise, which, floats), **hyper)

    z, pull = jax.vjp(plain, floats)
    (reverse,) = pull(jax.tree.map(lambda c, o: jnp.asarray(c, o.dtype), dz, z))
    size = sum(jnp.abs(c * o).sum() for c, o in zip(*map(jax.tree.leaves, (dz, z)), strict=True))
    slopes = [oracles._inner(*pair) for pair in zip(reverse, directions, strict=True)]
    return oracles.Truth(z, reverse, slopes, slopes, [0.0] * len(slopes), size)


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def executed(request):
    """A notebook, the kernel in which all of it has run, and which gradients each cell blamed."""
    path = request.param
    with pytest.MonkeyPatch.context() as monkeypatch:
        # That a gradient is wrong is enough here: one oracle, not compiled, and no name for it.
        monkeypatch.setattr("handgrad.check.explain.explain", lambda *operands: {})
        monkeypatch.setattr("handgrad.check.oracles._oracles", reverse_mode_alone)
        for module in ("oracles", "rule"):
            monkeypatch.setattr(f"handgrad.check.{module}.once", lambda f: f)
        kernel = Kernel(monkeypatch, path.parent)
        blamed = [(cell, kernel.run(cell)) for part in sections(path) for cell in part]
        yield path, kernel, kernel.saved(), blamed


def test_a_section_may_be_run_again(executed):
    path, kernel, restore, _ = executed
    for section in sections(path)[1:]:
        restore()
        for cell in section:
            kernel.run(cell)


def test_a_cell_may_be_run_again_and_blames_no_other_gradient(executed):
    _, kernel, restore, first = executed
    for cell, blamed in first:
        if "check_" not in cell:  # nothing else accuses
            continue
        restore()
        try:
            again = kernel.run(cell)
        except GradientMismatch as mistake:
            pytest.fail(f"{mistake}\ncalled wrong when this cell is run again:\n{cell}")
        except Exception:  # a cell that needs its section fails, but it must not accuse
            continue
        assert again == blamed, f"another verdict when this cell is run again:\n{cell}"


def exercises(path):
    """The code cells of each exercise, by number."""
    heading = r"(?m)^### Exercise (\d+\.\d+)"
    _, *found = sections(path, heading)
    return dict(zip(re.findall(heading, prose(path)), found, strict=True))


def answered(cell, body):
    """The cell with another body between the marks."""
    return REGION.sub(
        lambda found: textwrap.indent(textwrap.dedent(body).strip("\n"), found[1]), cell, 1
    )


def test_right_answers_are_accepted_and_wrong_ones_refused(executed):
    path, kernel, restore, _ = executed
    if not (TESTS / f"test_{path.stem[3:]}.py").exists():
        pytest.skip("the topic lists no answers")
    module, found = import_module(f"test_{path.stem[3:]}"), exercises(path)

    def judge(number, body):
        restore()  # what stands before the answer has run
        answer = next(i for i, cell in enumerate(found[number]) if REGION.search(cell))
        kernel.run(answered(found[number][answer], body))
        for cell in found[number][answer + 1 :]:
            kernel.run(cell)

    for number, bodies in getattr(module, "RIGHT", {}).items():
        for body in bodies:
            judge(number, body)
    for number, bodies in getattr(module, "WRONG", {}).items():
        for body in bodies:
            with pytest.raises(Exception):  # noqa: B017  whatever its check raises
                judge(number, body)
                pytest.fail(f"Exercise {number} accepts\n{body}", pytrace=False)
