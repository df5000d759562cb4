"""The exercises: checks accept every right answer and refuse wrong ones; nothing gives one away.

A topic lists answers in tests/layers/test_<topic>.py: RIGHT and WRONG hold, by exercise, the bodies
that might stand between the marks of its solution.
"""

import ast
import importlib
import re
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest
from kernel import Kernel, prose, sections

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "layers"))
TOPICS = {
    path.stem: importlib.import_module(f"test_{path.stem[3:]}")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    if (ROOT / "tests" / "layers" / f"test_{path.stem[3:]}.py").exists()
}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
REGION = re.compile(r"(?sm)^( *)### BEGIN SOLUTION\n.*?### END SOLUTION")


def exercises(path):
    """The code cells of each exercise, by number."""
    heading = r"(?m)^### Exercise (\d+\.\d+)"
    before, *found = sections(path, heading)
    return before, dict(zip(re.findall(heading, prose(path)), found, strict=True))


def answered(cell, body):
    """The cell with another body between the marks."""
    return REGION.sub(
        lambda found: textwrap.indent(textwrap.dedent(body).strip("\n"), found[1]), cell, 1
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("topic", TOPICS)
def test_right_answers_are_accepted_and_wrong_ones_refused(topic, monkeypatch):
    module, path = TOPICS[topic], ROOT / "notebooks" / f"{topic}.ipynb"
    before, found = exercises(path)
    kernel = Kernel(monkeypatch, path.parent)
    for cell in before:
        kernel.run(cell)
    restore = kernel.saved()

    def judge(number, body):
        restore()
        answer = next(i for i, cell in enumerate(found[number]) if REGION.search(cell))
        for i, cell in enumerate(found[number]):
            kernel.run(answered(cell, body) if i == answer else cell)

    for number, bodies in getattr(module, "RIGHT", {}).items():
        for body in bodies:
            judge(number, body)
    for number, bodies in getattr(module, "WRONG", {}).items():
        for body in bodies:
            with pytest.raises(Exception):  # noqa: B017  whatever its check raises
                judge(number, body)
                pytest.fail(f"Exercise {number} accepts\n{body}", pytrace=False)


# What a student sees before she has answered ----------------------------------------------------


def given(path):
    """(exercise, source, outputs) of all that a student is given, and that she is shown."""
    number, answered = None, False
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown" and (opened := OPENING.search(cell.source)):
            number, answered = opened[1], False
        answered = answered or bool(REGION.search(cell.source))
        if "solution" not in cell.metadata.get("tags", []):
            outputs = [] if answered else cell.get("outputs", [])
            shown = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs]
            yield number, REGION.sub("", cell.source), shown


def solved(path):
    """(exercise, kind, body) of each solution in code."""
    opened = None
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            opened = OPENING.search(cell.source) or opened
        for region in REGION.finditer(cell.source):
            body = textwrap.dedent("\n".join(region[0].splitlines()[1:-1]))
            yield opened[1], opened[2], body


OPENING = re.compile(r"(?m)^##+ (?:Exercise (\d+\.\d+) \((.*?)\))?")


def numbers(text):
    text = re.sub(r"\((\d+, )*\d*,?\)", "", text).replace("\N{MINUS SIGN}", "-")  # no shapes
    return [float(n) for n in re.findall(r"(?<![\w.])-?\d+\.?\d*(?:e-?\d+)?", text)]


def squeezed(code):
    """Code without what does not matter: np or jnp, and how it is spaced."""
    return re.sub(r"\s|\bj?np\.", "", code)


@each_notebook
def test_no_stored_output_holds_the_numbers_of_an_answer(path):
    shown = [numbers(text) for _, _, outputs in given(path) for text in outputs]
    for number, _, body in solved(path):
        for node in ast.walk(ast.parse(f"def f():\n{textwrap.indent(body, '    ')}")):
            if isinstance(node, ast.List | ast.Tuple) and len(node.elts) > 1:
                wanted = numbers(ast.unparse(node)[1:-1])
                for found in shown if len(wanted) > 1 else ():
                    starts = range(len(found) - len(wanted) + 1)
                    alike = any(found[i : i + len(wanted)] == wanted for i in starts)
                    assert not alike, f"Exercise {number}: {wanted}"


@each_notebook
def test_find_the_bug_shows_a_symptom_and_no_verdict(path):
    bugs = {number for number, kind, _ in solved(path) if kind == "find the bug"}
    for number, _, outputs in given(path):
        for text in outputs if number in bugs else ():
            assert not re.search(r"WRONG|GradientMismatch|right given", text), number


@each_notebook
def test_the_mend_of_a_bug_stands_nowhere_else(path):
    told = [squeezed(text) for _, source, outputs in given(path) for text in (source, *outputs)]
    for number, kind, body in solved(path):
        for node in ast.walk(ast.parse(f"def f():\n{textwrap.indent(body, '    ')}")):
            if kind == "find the bug" and isinstance(node, ast.Assign | ast.Return):
                mend = squeezed(ast.unparse(node.value))
                elsewhere = not mend.isidentifier() and any(mend in text for text in told)
                assert not elsewhere, f"Exercise {number}: {ast.unparse(node)}"
