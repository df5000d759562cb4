"""Editions: a student's file holds no solution, and its checks say what is still to be done."""

import ast
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from handgrad import cli
from handgrad.classroom.editions import edition, import_anew
from handgrad.classroom.handout import handout

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
either = pytest.mark.parametrize("kind", ["student", "instructor"])


def read(path):
    return nbformat.read(path, as_version=4)


def part(cell):
    """The part a cell has in its exercise, "words", "answer" or "check"; or None."""
    marks = cell.metadata.get("nbgrader", {"grade_id": ""})
    found = re.fullmatch(r"exercise-\d+-\d+-([a-z]+)(-\d+)?", marks["grade_id"])
    return found and found[1]


def lines(text):
    return {line.strip() for line in text.splitlines()} - {""}


def solutions(notebook):
    """The lines of each solution; and all text of the notebook that belongs to none."""
    found, given = [], []
    for cell in notebook.cells:
        if "solution" in cell.metadata.get("tags", []):
            found.append(lines(cell.source))
            continue
        regions = r"(?s)### BEGIN SOLUTION\n(.*?)### END SOLUTION"
        found += [lines(region) for region in re.findall(regions, cell.source)]
        given.append(re.sub(regions, "", cell.source))
        given += strings(cell.get("outputs", []))
    return found, "\n".join(given)


def strings(tree):
    """Every string in a tree of JSON."""
    if isinstance(tree, str):
        return [tree]
    branches = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    return [text for branch in branches for text in strings(branch)]


def secrets(notebook):
    """The lines of the solutions that stand nowhere else in the notebook.

    A line such as `x, W, t = residuals` may stand in given code too, and gives nothing away. But
    every solution must have lines that do, or a search for them would be vain.
    """
    found, given = solutions(notebook)
    kept = [{line for line in solution if line not in given} for solution in found]
    assert kept and all(kept), "a solution that the notebook itself gives away"
    return set().union(*kept)


@pytest.fixture(scope="module", params=["student", "instructor"])
def handed_out(request, tmp_path_factory):
    """The kind, and all notebooks of that edition, as files."""
    folder = tmp_path_factory.mktemp(request.param)
    handout(NOTEBOOKS, request.param, "ipynb", folder)
    return request.param, folder


@each_notebook
def test_no_line_of_a_solution_is_in_a_student_s_file_and_all_are_in_the_instructor_s(
    path, handed_out
):
    kind, folder = handed_out
    text = (folder / f"{path.stem}.{kind}.ipynb").read_text("utf-8")
    text = "\n".join(strings(json.loads(text, object_hook=joined)))
    for line in secrets(read(path)):
        assert (line in text) == (kind == "instructor"), line


def joined(node):
    # A file holds a text as a list of its lines.
    return {
        key: "".join(value)
        if key in ("source", "text") or key.startswith(("text/", "image/"))
        else value
        for key, value in node.items()
    }


@either
@each_notebook
def test_an_edition_keeps_all_that_is_given_and_changes_nothing_else(path, kind):
    notebook = read(path)
    made = edition(notebook, kind)
    assert notebook == read(path), "the notebook that was handed in has changed"
    nbformat.validate(made)
    assert [cell.id for cell in made.cells] == [cell.id for cell in notebook.cells]
    for before, after in zip(notebook.cells, made.cells, strict=True):
        if kind == "instructor" or part(after) is None:
            assert after.source == before.source
            assert after.get("outputs") == before.get("outputs")
        elif part(after) == "check":
            assert after.source == before.source
            assert after.outputs == [] and after.execution_count is None
            assert "raises-exception" in after.metadata.tags
        elif part(after) == "answer":
            assert after.outputs == [] and after.execution_count is None
        else:
            assert after.cell_type == "markdown" and after.metadata.tags == ["answer"]
            assert "write your answer here" in after.source


@each_notebook
def test_a_stub_keeps_the_code_around_it_and_its_check_calls_it(path):
    notebook = read(path)
    asked = None
    for before, after in zip(notebook.cells, edition(notebook, "student").cells, strict=True):
        if part(after) == "answer":
            ast.parse(after.source)
            stub = r' +raise NotImplementedError\("Exercise (\d+\.\d+): write (\w+), .*"\)'
            exercise, asked = re.search(stub, after.source).groups()
            assert f"exercise-{exercise.replace('.', '-')}-" in after.metadata.nbgrader.grade_id
            kept = re.sub(r"(?s) *### BEGIN.*?### END SOLUTION", "", before.source)
            assert re.sub(rf" *# Write your answer.*\n{stub}", "", after.source) == kept
        elif part(after) == "check" and asked:
            assert re.search(rf"\b{asked}\b", after.source), f"no check calls {asked}"
            asked = None
    assert asked is None


@each_notebook
def test_no_cell_but_a_check_needs_an_answer(path):
    given, lacking = set(), set()
    for cell in edition(read(path), "student").cells:
        tree = ast.parse(cell.source if cell.cell_type == "code" else "")
        nodes = list(ast.walk(tree))
        bound = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        bound |= {n.name for n in nodes if isinstance(n, ast.FunctionDef)}
        bound |= {n.arg for n in nodes if isinstance(n, ast.arg)}
        used = {n.id for n in nodes if isinstance(n, ast.Name)} - bound
        if part(cell) == "check":
            lacking |= bound - given
            continue
        assert not used & lacking, f"{used & lacking} in\n{cell.source}"
        given |= bound
        lacking -= bound
        if part(cell) == "answer":
            lacking |= set(re.findall(r"write (\w+), then", cell.source))


@either
@each_notebook
def test_nbgrader_accepts_the_metadata(path, kind):
    from nbgrader.nbgraderformat import MetadataValidator

    made = edition(read(path), kind)
    MetadataValidator().validate_nb(made)
    marks = [cell.metadata.nbgrader for cell in made.cells if "nbgrader" in cell.metadata]
    other = edition(read(path), "student").cells
    assert marks == [cell.metadata.nbgrader for cell in other if "nbgrader" in cell.metadata]
    checks = [mark for mark in marks if mark.grade_id.endswith("check")]
    assert len(checks) >= 2
    assert all(mark.grade and mark.locked and mark.points == 1 for mark in checks)
    assert sum(mark.get("points", 0) for mark in marks) == len(checks)


def test_the_same_bytes_from_run_to_run(handed_out, tmp_path):
    kind, folder = handed_out
    again = handout(NOTEBOOKS, kind, "ipynb", tmp_path)
    assert [path.name for path in again] == [f"{path.stem}.{kind}.ipynb" for path in NOTEBOOKS]
    for path in again:
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_a_link_leads_to_the_other_handouts(handed_out):
    kind, folder = handed_out
    for path in folder.iterdir():
        text = "\n".join(cell.source for cell in read(path).cells)
        for target in re.findall(r"\]\(([^)#\s]+\.ipynb)", text):
            assert target.endswith(f".{kind}.ipynb") and (folder / target).exists(), target


# Small notebooks that are good or bad in one respect.

SOLVED = "def f(x):\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION"


def notebook(*sources, kind="derive and code", **changes):
    opening = nbformat.v4.new_markdown_cell(f"## Exercises\n\n### Exercise 9.1 ({kind})\n\nDo it.")
    code = [
        nbformat.v4.new_code_cell(source, execution_count=count)
        for count, source in enumerate(sources, 1)
    ]
    return nbformat.v4.new_notebook(cells=[opening, *code])


def student(*sources):
    return edition(notebook(*sources), "student").cells


def test_a_stub_names_the_innermost_function_and_is_indented_as_its_markers():
    source = """class Layer:
    def backward(
        self,
        dz,
    ):
        def factor(x):
            ### BEGIN SOLUTION
            return 17
            ### END SOLUTION

        if dz:
            ### BEGIN SOLUTION
            dx = 18
            ### END SOLUTION
        return dx"""
    stubbed = student(source, "f()")[1].source
    assert "17" not in stubbed and "18" not in stubbed and stubbed.endswith("return dx")
    indents = re.findall(r"(?m)^( *)# Write .*\n( *)raise NotImplementedError\(", stubbed)
    assert indents == [(" " * 12, " " * 12)] * 2
    assert re.findall(r"write (\w+)", stubbed) == ["factor", "backward"]
    ast.parse(stubbed)


def test_two_answers_of_one_exercise_have_two_names():
    ids = [
        c.metadata.nbgrader.grade_id for c in student(SOLVED, "f(1)", SOLVED, "f(2)", "f(3)")[1:]
    ]
    assert ids == [
        "exercise-9-1-answer",
        "exercise-9-1-check",
        "exercise-9-1-answer-2",
        "exercise-9-1-check-2",
        "exercise-9-1-check-3",
    ]


def test_an_exercise_ends_at_the_next_heading():
    made = notebook(SOLVED, "f(1)", "f(2)")
    made.cells.insert(3, nbformat.v4.new_markdown_cell("## Further reading"))
    cells = edition(made, "student").cells
    assert part(cells[2]) == "check" and "nbgrader" not in cells[4].metadata


def test_a_solution_in_a_code_cell_of_its_own_becomes_room_to_write():
    made = notebook("print('hidden')", kind="by hand")
    made.cells[1].metadata.tags = ["solution"]
    made.cells[1].outputs = [nbformat.v4.new_output("stream", text="hidden")]
    cell = edition(made, "student").cells[1]
    assert cell.cell_type == "markdown" and cell.metadata.tags == ["answer"]
    assert "hidden" not in str(cell)  # a word, since a cell's random id may hold any number
    assert "nbgrader" not in cell.metadata
    assert edition(made, "instructor").cells[1].metadata.nbgrader.solution


def test_a_check_imports_what_it_uses_anew():
    given = "import numpy as np, os.path\nfrom a.b import c, d as e, f\n%time\n"
    check = "from x import y\nf(c(np, e, g, y))"
    made = edition(notebook(given.replace("%time\n", ""), SOLVED, check, "%time c"), "instructor")
    import_anew(made)
    first, second = (cell.source.splitlines() for cell in made.cells if part(cell) == "check")
    # f is the student's own; a command of IPython's is left as it is
    imports = ["from a.b import c", "from a.b import d as e", "from x import y"]
    assert first == [*imports, "import numpy as np", *check.splitlines()]
    assert second == ["%time c"]
    made.cells[1].source = "%time\nimport numpy as np"
    import_anew(made)


def test_the_instructor_s_checks_hold_though_a_student_has_her_own_check_gradient(tmp_path):
    paths = [FOLDER / "01_gradient.ipynb"]
    for kind, imported in (("instructor", True), ("student", False)):
        (made,) = handout(paths, kind, "ipynb", tmp_path)
        (check,) = (cell.source for cell in read(made).cells if "dv_by_hand()," in cell.source)
        assert ("from handgrad import check_gradient\n" in check) == imported


def without(text):
    return SOLVED.replace(text, "")


BAD = {
    "no END": ([without("### END SOLUTION"), "f(1)"], "cell 1.* without its END"),
    "no BEGIN": ([without("### BEGIN SOLUTION"), "f(1)"], "cell 1.* line 4: stray"),
    "nested": (
        [SOLVED.replace("return", "### BEGIN SOLUTION\n    return"), "f(1)"],
        "line 3: nested",
    ),
    "not in a function": (
        ["### BEGIN SOLUTION\nx = 1\n### END SOLUTION", "x"],
        "outside of a func",
    ),
    "marker not indented": ([SOLVED.replace("    ###", "###"), "f(1)"], "outside of a function"),
    "not Python": ([SOLVED + "\n%time f(1)", "f(1)"], "cell 1.* not valid Python"),
    "no check": (["f(1)", SOLVED], "cell 0.*Exercise 9.1 has no check"),
    "no check of the last": ([SOLVED, "f(1)", SOLVED], "cell 0.*Exercise 9.1 has no check"),
    "no answer": (["f(1)"], "cell 0.*Exercise 9.1 has no check"),
}


@either
@pytest.mark.parametrize(("sources", "message"), BAD.values(), ids=BAD)
def test_a_malformed_exercise_is_refused(sources, message, kind):
    with pytest.raises(ValueError, match=message) as refusal:
        edition(notebook(*sources), kind)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("counts", [(None, None), (1, None), (2, 1), (2, 3), (1, 3)])
def test_a_notebook_that_is_not_executed_in_order_is_refused(counts):
    made = notebook(SOLVED, "f(1)")
    for cell, count in zip(made.cells[1:], counts, strict=True):
        cell.execution_count = count
    with pytest.raises(
        ValueError, match=r'cell [12], ".*not executed in order: expected'
    ) as refusal:
        edition(made, "student")
    assert "\n" not in str(refusal.value)


def test_a_solution_that_belongs_to_no_exercise_is_refused():
    for cell in (
        nbformat.v4.new_markdown_cell("It is 17.", metadata={"tags": ["solution"]}),
        nbformat.v4.new_code_cell(SOLVED, execution_count=1),
    ):
        with pytest.raises(ValueError, match=r"cell 0.*belongs to no exercise"):
            edition(nbformat.v4.new_notebook(cells=[cell]), "student")


def test_markers_in_prose_are_refused():
    made = notebook(SOLVED, "f(1)")
    made.cells.append(nbformat.v4.new_markdown_cell("### BEGIN SOLUTION\n17\n### END SOLUTION"))
    with pytest.raises(ValueError, match=r"cell 3.*outside of an answer cell"):
        edition(made, "student")


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind: expected student or instructor; got 'teacher'"):
        edition(notebook(SOLVED, "f(1)"), "teacher")


def command(capsys, *arguments):
    """The exit status, what was printed, and what was said on stderr."""
    try:
        status = cli.main(["handout", *map(str, arguments)])
    except SystemExit as exit:
        status = exit.code
    return status, *capsys.readouterr()


def test_the_command_prints_the_files_it_wrote(tmp_path, capsys):
    one = FOLDER / "03_chain_rule.ipynb"
    status, printed, said = command(capsys, one, "--to", "ipynb", "-o", tmp_path / "new" / "folder")
    (path,) = (tmp_path / "new" / "folder").iterdir()
    assert (status, printed, said) == (0, f"{path}\n", "")
    assert path.name == "03_chain_rule.student.ipynb"
    status, printed, _ = command(capsys, "--to", "ipynb", "--edition", "instructor", "-o", tmp_path)
    assert status == 0 and len(printed.splitlines()) == len(NOTEBOOKS)


def test_each_edition_has_a_folder_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for kind, folder in {"student": "handouts", "instructor": "solutions"}.items():
        call = ["03_chain_rule", "--to", "ipynb", "--edition", kind]
        assert command(capsys, *call) == (0, f"{folder}/03_chain_rule.{kind}.ipynb\n", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["handouts", "solutions"]


def test_a_folder_s_notebooks_are_handed_out_under_plain_names(tmp_path, capsys):
    own = tmp_path / "own"
    own.mkdir()
    for name in ("03_chain_rule.ipynb", "04_linear.ipynb"):
        shutil.copy(FOLDER / name, own)
    before = (own / "04_linear.ipynb").read_bytes()
    call = [own, "--to", "ipynb", "--plain", "-o"]
    made = [tmp_path / "new" / path.name for path in sorted(own.iterdir())]
    assert command(capsys, *call, tmp_path / "new") == (0, "".join(f"{p}\n" for p in made), "")
    assert "](04_linear.ipynb)" in read(made[0]).cells[0].source, "the links lead there"
    status, printed, said = command(capsys, *call, own, "--force")
    assert (status, printed) == (2, "") and "03_chain_rule.ipynb: is a notebook to hand" in said
    assert (own / "04_linear.ipynb").read_bytes() == before


def test_paper_and_page_are_given_the_edition(tmp_path, monkeypatch, capsys):
    def pdf(notebook, kind, paper):
        return f"{len(secrets(notebook))} {kind} {paper}".encode()

    def html(notebook, kind):
        return f"{len(notebook.cells)} α {kind}"

    monkeypatch.setitem(sys.modules, "handgrad.classroom.paper", SimpleNamespace(pdf=pdf))
    monkeypatch.setitem(sys.modules, "handgrad.classroom.page", SimpleNamespace(html=html))
    one = FOLDER / "03_chain_rule.ipynb"
    solved = ["--edition", "instructor", "--to", "pdf", "--paper", "letter"]
    assert command(capsys, one, *solved, "-o", tmp_path)[0] == 0
    written = (tmp_path / "03_chain_rule.instructor.pdf").read_text("utf-8")
    assert written == f"{len(secrets(read(one)))} instructor letter"
    assert command(capsys, one, "--to", "html", "-o", tmp_path)[0] == 0
    written = (tmp_path / "03_chain_rule.student.html").read_text("utf-8")
    assert written == f"{len(read(one).cells)} α student"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--edition", "teacher", "-o", "out"], "--edition: invalid choice: 'teacher'"),
        (["--to", "docx", "-o", "out"], "--to: invalid choice: 'docx'"),
        (["--paper", "a3", "-o", "out"], "--paper: invalid choice: 'a3'"),
        (["--to", "html", "--paper", "a4"], "--paper a4: is for --to pdf; got --to html"),
        (["nowhere.ipynb", "-o", "out"], "handgrad: nowhere.ipynb: no such notebook; expected a"),
        (["in/empty"], "handgrad: in/empty: no such notebook; expected a file, a folder"),
        (["good.ipynb", "in/good.ipynb"], "different names; got good.ipynb, in/good.ipynb"),
        (["good.ipynb"], "handgrad: good.ipynb: the notebook's first cell has no title"),
        (["--to", "ipynb", "-o", "a_file"], "handgrad: a_file: not a folder"),
        (["--to", "ipynb", "-o", "a_file/in_it"], "cannot be written: Not a directory"),
        (["--to", "ipynb", "-o", "out", "a_file"], "handgrad: a_file: not a valid notebook"),
        (["--to", "ipynb", "-o", "out", "later.ipynb"], "handgrad: later.ipynb: cell 1, "),
    ],
)
def test_bad_input_is_one_clear_line_and_no_file(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("a_file").write_text("[]", "utf-8")
    bad = notebook(without("### END SOLUTION"), "f(1)")
    nbformat.write(bad, "later.ipynb")
    Path("in/empty").mkdir(parents=True)
    for good in ("good.ipynb", "in/good.ipynb"):
        nbformat.write(notebook(SOLVED, "f(1)"), good)
    before = sorted(tmp_path.iterdir())
    if arguments[-1] == "later.ipynb":
        arguments = [
            *arguments[:-1],
            "good.ipynb",
            "later.ipynb",
        ]  # not even the good one is written
    status, printed, said = command(capsys, *arguments)
    assert (status, printed) == (2, "")
    assert message in said.splitlines()[-1]
    assert said.count("\n") == 1 or said.startswith("usage:")
    assert sorted(tmp_path.iterdir()) == before


def test_what_somebody_has_filled_in_is_overwritten_by_force_only(tmp_path, capsys):
    names = ["01_gradient", "03_chain_rule", "04_linear", "05_activations"]
    call = [*names, "--to", "ipynb", "-o", tmp_path]
    assert command(capsys, *call)[0] == 0
    filled, same, gone, also = (tmp_path / f"{name}.student.ipynb" for name in names)
    made = filled.read_bytes()
    for path in (filled, also):
        path.write_text("filled in", "utf-8")
    gone.unlink()
    written = same.stat().st_mtime_ns
    refusal = f"handgrad: not overwritten without --force: {filled}, {also}\n"
    assert command(capsys, *call) == (2, "", refusal)
    assert filled.read_text("utf-8") == also.read_text("utf-8") == "filled in"
    assert not gone.exists(), "something was written before all was known"
    assert command(capsys, *call, "--force")[0] == 0
    assert filled.read_bytes() == made and gone.exists()
    assert same.stat().st_mtime_ns == written, "what is the same is not written again"
    assert command(capsys, *call)[0] == 0


def test_a_missing_dependency_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nbformat", None)
    status, printed, said = command(capsys, "--to", "ipynb", "-o", tmp_path / "out")
    assert (status, printed, said.count("\n")) == (2, "", 1)
    assert "nbformat" in said and 'python -m pip install "handgrad[classroom]"' in said
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_leaves_the_file_of_before(tmp_path, monkeypatch, capsys):
    one = FOLDER / "03_chain_rule.ipynb"
    (path,) = handout([one], "student", "ipynb", tmp_path)
    path.write_text("of before", "utf-8")

    def full(self, content):
        self.write_text("half", "utf-8")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    status, _, said = command(capsys, one, "--to", "ipynb", "-o", tmp_path, "--force")
    assert status == 2 and said == f"handgrad: {path}: cannot be written: No space left on device\n"
    assert path.read_text("utf-8") == "of before" and list(tmp_path.iterdir()) == [path]
