"""What a student sees before she has answered gives nothing away."""

import ast
import re
import textwrap

import nbformat
import pytest
from reading import NOTEBOOKS, REGION

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def given(path):
    """(exercise, cell type, source, outputs) of all that a student is given and shown."""
    number, answered = None, False
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown" and (opened := OPENING.search(cell.source)):
            number, answered = opened[1], False
        answered = answered or bool(REGION.search(cell.source))
        if "solution" not in cell.metadata.get("tags", []):
            outputs = [] if answered else cell.get("outputs", [])
            shown = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs]
            yield number, cell.cell_type, REGION.sub("", cell.source), shown


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
    shown = [numbers(text) for *_, outputs in given(path) for text in outputs]
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
    for number, *_, outputs in given(path):
        for text in outputs if number in bugs else ():
            assert not re.search(r"WRONG|GradientMismatch|right given", text), number


@each_notebook
def test_the_mend_of_a_bug_stands_nowhere_else(path):
    for number, kind, body in solved(path):
        # the code with the bug is given, and most of it is right: that is not the mend
        own, rest = [], []
        for n, cell_type, source, shown in given(path):
            (own if n == number and cell_type == "code" else rest).append(squeezed(source))
            rest += map(squeezed, shown)
        for node in ast.walk(ast.parse(f"def f():\n{textwrap.indent(body, '    ')}")):
            if kind == "find the bug" and isinstance(node, ast.Assign | ast.Return):
                mend = squeezed(ast.unparse(node.value))
                new = not mend.isidentifier() and not any(mend in text for text in own)
                elsewhere = new and any(mend in text for text in rest)
                assert not elsewhere, f"Exercise {number}: {ast.unparse(node)}"
