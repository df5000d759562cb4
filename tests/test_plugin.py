"""The plugin of pytest: its fixture, its seed, and what it shows under a failure."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

import handgrad.check.vjp  # noqa: F401  what a run inside this one imports, it would forget

pytest_plugins = "pytester"

ROOT = Path(__file__).parents[1]
PLUGIN = "handgrad.check.pytest_plugin"
TESTS = """
import jax
import jax.numpy as jnp

x = jnp.asarray([0.3, -1.2, 0.7], "float32")


def sine(slope):
    f = jax.custom_vjp(jnp.sin)
    f.defvjp(lambda x: (jnp.sin(x), x), lambda x, dz: (slope(x) * dz,))
    return f


def test_right(check_vjp):
    check_vjp(sine(jnp.cos), x)


def test_wrong(check_vjp):
    check_vjp(sine(lambda x: -jnp.cos(x)), x)


def test_other(check_vjp):
    assert check_vjp.keywords["seed"] == 0
"""


@pytest.fixture
def run(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(test_sine=TESTS)
    return lambda *options: pytester.runpytest_inprocess("-p", PLUGIN, *options)


def test_a_failure_shows_its_verdicts_and_how_to_run_it_again(run):
    result = run("--handgrad-seed=7")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            ">       check_vjp(sine(lambda x: -jnp.cos(x)), x)",
            "test_sine.py:*: GradientMismatch",
            "*- gradients -*",
            "value  (3,)  matches the plain program *",
            "dx     (3,)  WRONG: its sign is flipped",
            "Drawn with seed=7.",
            "Run again: pytest test_sine.py::test_wrong --handgrad-seed=7",
        ],
        consecutive=False,
    )
    shown = result.stdout.str()
    assert shown.count("- gradients -") == 1, "under a failure of another kind there is no table"
    assert "vjp.py:" not in shown, "the traceback ends at the test"


def test_the_seed_is_0_unless_another_is_asked_for(run):
    run("-k", "right or other").assert_outcomes(passed=2, deselected=1)


def test_the_plugin_starts_without_jax():
    code = f"import sys, {PLUGIN}; print({{'jax', 'numpy', 'jaxtyping'}} & {{*sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_pytest_finds_the_plugin_by_its_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["entry-points"]["pytest11"] == {"handgrad": PLUGIN}


def test_the_recipe_of_the_notebook_does_what_it_says(pytester, monkeypatch):
    cells = nbformat.read(ROOT / "notebooks" / "33_kernels.ipynb", as_version=4).cells
    kernel = next(c.source for c in cells if "\ndef rms_norm(" in c.source)
    blocks = dict(re.findall(r"(?s)```(python|text)\n(.*?)```", "\n".join(c.source for c in cells)))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(my_kernels=f"import jax\n{kernel}", test_kernels=blocks["python"].strip())
    monkeypatch.syspath_prepend(pytester.path)
    monkeypatch.delitem(sys.modules, "test_kernels", raising=False)  # tests/layers has one too
    result = pytester.runpytest_inprocess("-p", PLUGIN, "-k", "shape1 and float32")
    result.assert_outcomes(failed=1, deselected=5)
    told = [line.replace("[", "[[]").replace("...", "*") for line in blocks["text"].splitlines()]
    result.stdout.fnmatch_lines(["*- gradients -*", *told[1:]], consecutive=True)
