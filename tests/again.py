"""Run in a notebook's own kernel, when all of its cells have run there (conftest.py sees to that).

Notebooks run in any order, and the checks of their exercises know right answers from wrong ones.
A topic lists answers in tests/layers/test_<topic>.py: RIGHT and WRONG hold, by exercise, the bodies
that might stand between the marks of its solution.
"""

import linecache
import re
import sys
import textwrap
import warnings
from importlib import import_module

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from IPython import get_ipython
from IPython.utils.capture import capture_output
from reading import NOTEBOOKS, REGION, prose, sections

from handgrad import GradientMismatch, figures
from handgrad.check import oracles, rounding, rule
from handgrad.check.arrays import put
from handgrad.check.naming import explain

LAYERS = NOTEBOOKS[0].parents[1] / "tests" / "layers"


SHOW_ROUNDINGS = "08_checking", "32_checker"  # elsewhere they have been measured, and need not be


def a_section_may_be_run_again(path):
    if path.stem not in SHOW_ROUNDINGS:
        rounding.Measure.__call__ = some_digits
    for section in sections(path)[1:]:
        restore()
        for cell in section:
            run(cell.source)


def a_cell_may_be_run_again_and_blames_no_other_gradient(path):
    for cell in (cell for section in sections(path) for cell in section):
        if "check_" not in cell.source:  # nothing else accuses
            continue
        restore()
        try:
            again = blamed(run(cell.source))
        except GradientMismatch as mistake:
            pytest.fail(f"{mistake}\ncalled wrong when this cell is run again:\n{cell.source}")
        except Exception:  # a cell that needs its section fails, but it must not accuse
            continue
        first = blamed(cell.outputs)  # those of the first run, or its own test has failed
        assert again == first, f"another verdict when this cell is run again:\n{cell.source}"


def right_answers_are_accepted_and_wrong_ones_refused(path):
    topic = f"test_{path.stem[3:]}"
    if not (LAYERS / f"{topic}.py").exists():
        return
    sys.path.insert(0, str(LAYERS))
    module, found = import_module(topic), exercises(path)
    rounding.Measure.__call__ = some_digits

    def judge(number, body):
        restore()  # what stands before the answer has run
        cells = [cell.source for cell in found[number]]
        answer = next(i for i, source in enumerate(cells) if REGION.search(source))
        run(answered(cells[answer], body))
        for source in cells[answer + 1 :]:
            run(source)

    for number, bodies in getattr(module, "RIGHT", {}).items():
        for body in bodies:
            judge(number, body)
    for number, bodies in getattr(module, "WRONG", {}).items():
        for body in bodies:
            with pytest.raises(Exception):  # noqa: B017  whatever its check raises
                judge(number, body)
                pytest.fail(f"Exercise {number} accepts\n{body}", pytrace=False)


def exercises(path):
    """The code cells of each exercise, by number."""
    heading = r"(?m)^### Exercise (\d+\.\d+)"
    _, *found = sections(path, heading)
    return dict(zip(re.findall(heading, prose(path)), found, strict=True))


def answered(source, body):
    """The cell with another body between the marks."""
    return REGION.sub(
        lambda found: textwrap.indent(textwrap.dedent(body).strip("\n"), found[1]), source, 1
    )


def blamed(outputs):
    """The names of the gradients that a cell's outputs call wrong."""
    texts = [output.get("text") or output["data"].get("text/plain", "") for output in outputs]
    return {name for text in texts for name in re.findall(r"(?m)^(\S+) .*\bWRONG\b", text)}


def run(source):
    """Run a cell, with no figure drawn; returns its outputs."""
    name = f"<cell {hash(source)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)  # for inspect
    with capture_output() as captured, warnings.catch_warnings(action="ignore"):
        try:
            exec(compile(source, name, "exec"), names)
        finally:
            plt.close("all")
    return [{"text": captured.stdout}, *({"data": output.data} for output in captured.outputs)]


def restore():
    """Take every name back to what it meant when the notebook had run."""
    names.clear()
    names.update(executed)


def reverse_mode_alone(f, hyper, which, dz, precise, directions, every):
    """The truth on a rule as check_rule wants it, where all three oracles say what one does."""
    floats = [oracles._floats(precise[i]) for i in which]

    def plain(floats):
        return f(*put(precise, which, floats), **hyper)

    z, pull = jax.vjp(plain, floats)
    (reverse,) = pull(jax.tree.map(lambda c, o: jnp.asarray(c, o.dtype), dz, z))
    size = sum(jnp.abs(c * o).sum() for c, o in zip(*map(jax.tree.leaves, (dz, z)), strict=True))
    slopes = [oracles._inner(*pair) for pair in zip(reverse, directions, strict=True)]
    return oracles.Truth(z, reverse, slopes, slopes, [0.0] * len(slopes), size)


def some_digits(measure, here, args, exact):
    """In place of measured roundings: a thousand digits of the last place of the largest entry."""
    few = [1024 * float(jnp.finfo(a.dtype).eps) for a in map(jnp.asarray, jax.tree.leaves(here))]
    far = [
        np.full(np.shape(a), digits / rounding.MARGIN * np.abs(a).max(initial=0.0))
        for a, digits in zip(jax.tree.leaves(here), few, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(here), far)


names = get_ipython().user_ns
executed = dict(names)
# That a gradient is wrong is enough here: one oracle, not compiled, and no name for it.
explain.explain = lambda *operands: {}
oracles._oracles = reverse_mode_alone
oracles.once = rule.once = lambda f: f
plt.show = figures.show = lambda *alt: plt.close("all")
