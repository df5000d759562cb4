"""A new topic is four files: one is dropped into a copy of the tree, and everything finds it.

The wheel is made of that copy, so test_wheel.py sees it on the cheat sheet and on the site.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
LAYER = '''"""The cube, a throw-away.    Derivation: notebooks/99_cube.ipynb"""

from jax.typing import ArrayLike
from jaxtyping import Float


def cube(x: Float[ArrayLike, "*shape"]) -> Float[ArrayLike, "*shape"]:
    """a = x^3, (99.1)."""
    return x**3


def cube_fwd(x):
    """a, and the residual x."""
    return cube(x), x


def cube_bwd(x: Float[ArrayLike, "*shape"], da: Float[ArrayLike, "*shape"]):
    """(dx,)."""
    dx = da * 3 * x**2  # (99.2)
    return (dx,)
'''
ROW = '''"""The row of layers/cube.py."""

from handgrad.catalog import Row
from handgrad.layers.cube import cube


def _points(rng):
    x = rng.normal(size=(4, 3))
    return {"typical": ((x,), {}), "extreme: 1e4": ((1e4 * x,), {})}


GRADIENTS = {"x": r"dx = 3 x^2 \\odot da"}
ROWS = (Row(cube, r"a = x^3", GRADIENTS, _points, same_as=lambda x: x * x * x),)
'''
TEST = '''"""The cube: what is special to the topic."""

from handgrad import cube

RIGHT = {"99.2": ["return 6 * x * x"]}
WRONG = {"99.2": ["return 6 * x"]}


def test_the_cube_is_odd():
    assert cube(-2.0) == -8
'''
OPENING = """# 99. Throw a cube away

**You will be able to** cube. **You need** [the linear layer](04_linear.ipynb).

$$ a = x^3 \\tag{99.1} $$

$$ dx = 3 x^2 \\odot da \\tag{99.2} $$

Its [module](../src/handgrad/layers/cube.py).

**Takeaway.** By (99.2), it is three times the square."""
CODE = """import handgrad as hg
import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)
x = np.array([1.0, 5.0, 7.0])
hg.check_rule(hg.cube, hg.cube_fwd, hg.cube_bwd, x)"""
KINDS = {"99.1": "by hand", "99.2": "derive and code", "99.3": "find the bug", "99.4": "transfer"}
ANSWER = """def answer_{0}(x):
    ### BEGIN SOLUTION
    return {1}
    ### END SOLUTION"""
CHECK = "hg.check_gradient(answer_{0}(x), lambda x: jnp.sum({1} * x**3), x)"


def notebook():
    """A notebook with all its parts, as short as can be."""
    markdown, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    cells = [markdown(OPENING), code(CODE), markdown("## Exercises")]
    for k, (number, kind) in enumerate(KINDS.items(), 1):
        cells += [
            markdown(
                f"### Exercise {number} ({kind}) · easy, 5 minutes\n\nThe gradient of {k} cubes."
            ),
            code(ANSWER.format(k, f"{3 * k} * x**2")),
            code(CHECK.format(k, k)),
        ]
    return nbformat.v4.new_notebook(cells=[*cells, markdown("## Further reading\n\nNone.")])


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the tree with one more topic, a function that runs Python there, and the README."""
    tree = tmp_path_factory.mktemp("throw-away") / "handgrad"
    hidden = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "site", "build", "dist")
    shutil.copytree(ROOT, tree, ignore=hidden)
    (tree / "src/handgrad/layers/cube.py").write_text(LAYER)
    (tree / "src/handgrad/catalog/cube.py").write_text(ROW)
    (tree / "tests/layers/test_cube.py").write_text(TEST)
    nbformat.write(notebook(), tree / "notebooks/99_cube.ipynb")

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree / "src")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("-m", "handgrad", "accept", "notebooks/99_cube.ipynb")
    return tree, run


def test_it_is_in_the_readme_s_table_proved_and_tested(copy):
    tree, run = copy
    assert "| `cube` | $a = x^3$ | [`cube`](src/handgrad/layers/cube.py)" in (
        tree / "README.md"
    ).read_text("utf-8")
    assert re.search(r"cube +dx +matches", run("-m", "handgrad", "verify", "cube"))
    options = [
        "-q",
        "-rp",
        "-k",
        "cube and not paper",
        "--ignore=tests/test_topic.py",
        "-o",
        "addopts=--nbval --nbval-current-env",
    ]
    passed = run("-m", "pytest", *options, "tests", "notebooks/99_cube.ipynb")
    for test in (
        "tests/test_rules.py::test_the_rule_is_proved[cube]",
        "tests/test_rules.py::test_breaking_any_one_term_of_a_rule_is_noticed[cube]",
        "tests/test_rules.py::test_the_forward_pass_is_what_others_compute[cube]",
        "tests/test_collection.py::test_each_gradient_of_a_rule_has_its_equation[cube]",
        "notebooks/99_cube.ipynb::right_answers_are_accepted_and_wrong_ones_refused",
        "tests/layers/test_cube.py::test_the_cube_is_odd",
    ):
        assert f"PASSED {test}" in passed, passed


def test_the_notebook_before_leads_to_it_and_the_contents_list_it(copy):
    tree, _ = copy
    before = nbformat.read(sorted((tree / "notebooks").glob("*.ipynb"))[-2], as_version=4)
    assert "[Throw a cube away →](99_cube.ipynb)" in before.cells[0].source
    contents = nbformat.read(tree / "notebooks" / "00_contents.ipynb", as_version=4)
    assert any("[99. Throw a cube away](99_cube.ipynb)" in cell.source for cell in contents.cells)
