"""The collection holds together: notebooks, modules, catalog and README agree with one another."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import nbformat
import numpy as np
import pytest
from jax.test_util import check_grads
from reading import prose

import handgrad
from handgrad import notebooks
from handgrad.catalog import ROWS, table
from handgrad.classroom import facts

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = sorted((ROOT / "src" / "handgrad").rglob("*.py"))
EQUATION = re.compile(r"\((\d+\.\d+)\)")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@functools.cache
def tags():
    return {tag for path in NOTEBOOKS for tag in re.findall(r"\\tag\{(\d+\.\d+)\}", prose(path))}


@each_notebook
def test_a_notebook_is_executed_stored_and_tidy(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any(cell.outputs for cell in code)
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
        assert cell.source.strip(), "an empty cell"
    for cell in code:
        assert len(cell.source.splitlines()) <= 30
        assert max(map(len, cell.source.splitlines())) <= 88, "a line too long for paper"
        marked = "raises-exception" in cell.metadata.get("tags", [])
        for output in cell.outputs:
            assert output.output_type != "error" or marked
            assert output.get("name") != "stderr"
            assert not re.search(r"at 0x|/home|/tmp|/usr|/root", str(output.get("text", "")))
            shown = output.get("data", {})
            assert not re.search(r"at 0x", shown.get("text/plain", ""))
            if "image/svg+xml" in shown:
                words = shown["text/plain"].split()
                assert len(words) > 7, "a figure without words for whoever can't see it"


@each_notebook
def test_a_notebook_has_its_parts(path):
    text = prose(path)
    for part in ("**You will be able to**", "**You need**", "**Takeaway.**", "## Further reading"):
        assert part in text, part
    if path.stem[:2] != "00":
        assert re.search(rf"^# {int(path.stem[:2])}\. ", text, re.M)
    headings = re.findall(r"(?m)^### Exercise.*$", text)
    form = r"### Exercise \d+\.\d+ \((.*)\) · (?:easy|medium|hard), \d+ minutes"
    kinds = [re.fullmatch(form, heading)[1] for heading in headings]
    needed = {"by hand", "derive and code", "find the bug", "transfer"}
    assert needed <= {*kinds, *(["transfer"] if path.stem == "00_contents" else [])}
    cells = nbformat.read(path, as_version=4).cells
    solved = sum("solution" in c.metadata.get("tags", []) for c in cells)
    begun = sum(c.source.count("### BEGIN SOLUTION") for c in cells)
    assert begun == sum(c.source.count("### END SOLUTION") for c in cells)
    assert begun + solved >= len(kinds) >= 3


@pytest.mark.parametrize(
    "path",
    [*NOTEBOOKS, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "TEACHING.md"))],
    ids=lambda path: path.name,
)
def test_every_link_and_image_leads_somewhere(path):
    text = prose(path) if path.suffix == ".ipynb" else path.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?s)```.*?```|\$[^$\n]+\$", "", text)):
        if not target.startswith(("http", "#")):
            assert (path.parent / target.partition("#")[0]).exists(), target


@each_notebook
def test_equation_numbers_are_unique_in_order_and_resolve(path):
    text = prose(path)
    own = re.findall(r"\\tag\{(\d+\.\d+)\}", text)
    chapter = str(int(path.stem[:2]))
    assert own == [f"{chapter}.{i}" for i in range(1, len(own) + 1)]
    without_headings = re.sub(r"(?m)^#.*$", "", text)
    assert set(EQUATION.findall(without_headings)) <= tags()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_an_equation_cited_in_a_module_is_derived_in_its_notebook(path):
    source = path.read_text("utf-8")
    cited = set(EQUATION.findall(source))
    assert cited <= tags()
    chapters = {int(n) for n in re.findall(r"notebooks/(\d\d)_\w+\.ipynb", source.split('"""')[1])}
    assert {int(number.split(".")[0]) for number in cited} <= chapters
    for name in re.findall(r"notebooks/\w+\.ipynb", source):
        assert (ROOT / name).exists()


def test_a_topic_has_one_stem_in_all_four_places():
    stems = {
        place: {path.stem for path in (ROOT / place).glob("*.py")} - {"__init__"}
        for place in ("src/handgrad/layers", "src/handgrad/catalog", "tests/layers")
    }
    layers, catalog, tests = stems.values()
    topics = {path.stem[3:] for path in NOTEBOOKS}
    assert layers == catalog <= topics, "a module of layers/, its rows, and its notebook"
    tests = {stem.removeprefix("test_") for stem in tests}
    assert layers <= tests <= topics, "what is special to a topic, in tests/layers"


def test_every_rule_has_its_row_and_its_notebook_proves_it():
    triples = {name.removesuffix("_bwd") for name in dir(handgrad) if name.endswith("_bwd")}
    assert triples == {row.name for row in ROWS}
    for row in ROWS:
        for function, suffix in ((row.f, ""), (row.f_fwd, "_fwd"), (row.f_bwd, "_bwd")):
            assert function is getattr(handgrad, row.name + suffix)
            assert function.__name__ == row.name + suffix
        assert row.notebook[3:] == row.topic
        path = ROOT / "notebooks" / f"{row.notebook}.ipynb"
        code = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        triple = r",\s*".join(rf"hg\.{row.name}{suffix}" for suffix in ("", "_fwd", "_bwd"))
        assert any(re.search(rf"check_rule\(\s*{triple}", source) for source in code), row.name


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_gradient_of_a_rule_has_its_equation(row):
    assert set(facts.equations(row)) == set(row.gradients)


def test_the_notebooks_lead_to_each_other():
    for path, text in notebooks.connected().items():
        assert path.read_text("utf-8") == text, path.name


def test_the_readme_s_table_is_the_catalog():
    assert table() in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_line_of_a_formula_begins_a_list(path):
    # Markdown would end the paragraph there, and print the formula's two halves as they are
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for formula in re.findall(r"(?<!\$)\$([^$]+)\$(?!\$)", cell.source):
                assert not re.search(r"(?m)\n *([-+*]|\d+[.)]) ", formula), formula


def test_the_readme_s_examples_run(capsys):
    blocks = re.findall(r"(?s)```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"))
    names = {}
    for block in blocks:
        promised = re.search(r"# GradientMismatch: (.*)", block)
        if promised:
            with pytest.raises(handgrad.GradientMismatch, match=re.escape(promised[1])):
                exec(block, names)
        else:
            exec(block, names)
    names["test_scale"]()
    printed = capsys.readouterr().out
    assert "dW  (3, 2)  right" in printed
    assert re.search(r"ds +\(3,\) +matches", printed)


def test_what_the_readme_says_of_check_grads():
    sin = jax.custom_jvp(jnp.sin)
    sin.defjvp(lambda primals, tangents: (jnp.sin(*primals), 0 * tangents[0]))

    def passes(f, n, dtype):
        x = jnp.asarray(np.random.default_rng(0).normal(size=n), dtype)
        try:
            check_grads(f, (x,), order=1, modes=["fwd"])
        except AssertionError:
            return False
        return True

    assert not passes(sin, 100, "float32") and passes(sin, 500, "float32")
    assert not passes(jnp.sin, 10, "bfloat16") and passes(jnp.sin, 100, "bfloat16")


def test_the_gate_runs_the_readme_s_test_command():
    commands = re.findall(
        r"(?m)^python -m pip install .*$", (ROOT / "README.md").read_text("utf-8")
    )
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text("utf-8")


def test_the_checker_knows_no_layer():
    for path in (ROOT / "src" / "handgrad" / "check").glob("*.py"):
        imports = re.findall(r"(?m)^ *(?:from|import) (handgrad\S*)", path.read_text("utf-8"))
        assert all(name.startswith("handgrad.check") for name in imports), path.name


def test_sources_and_notebooks_are_formatted_and_linted():
    for command in (["check"], ["format", "--check"]):
        run = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stdout + run.stderr
