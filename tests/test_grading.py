"""Grading: what TEACHING.md tells a teacher to type, with the real nbgrader and without it."""

import csv
import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import nbformat
import pytest
from test_editions import secrets, strings

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "01_gradient.ipynb"
# A sign in the answer to Exercise 1.5.
RIGHT = "dv[:-1] -= 10 * (v[1:] - v[:-1])"
MISTAKE = "dv[:-1] += 10 * (v[1:] - v[:-1])"


def follow(folder, heading):
    """Run, in that folder, the commands below those words of TEACHING.md; return their output."""
    text = (ROOT / "TEACHING.md").read_text("utf-8").partition(heading)[2]
    commands = re.search(r"(?s)```sh\n(.*?)```", text)[1]
    settings = {
        "HOME": folder,
        "IPYTHONDIR": folder / "ipython",
        "JUPYTER_CONFIG_DIR": folder / "config",
        "MPLCONFIGDIR": matplotlib.get_cachedir(),  # a new home would search for fonts again
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-c", f"set -e\n{commands}"],
        cwd=folder,
        env=os.environ | {name: str(value) for name, value in settings.items()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def filled(student, solved):
    """The student's notebook with the answers of the other."""
    solved = {cell.id: cell for cell in solved.cells}
    for cell in student.cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source = solved[cell.id].source
    return student


def the(notebook, text):
    """The one cell that holds that text."""
    (cell,) = (cell for cell in notebook.cells if text in cell.source)
    return cell


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture(scope="module")
def classroom(tmp_path_factory):
    """A folder where two students' work has come back: all right, and with one answer right."""
    folder = tmp_path_factory.mktemp("classroom")
    follow(folder, "## As files")
    follow(folder, "## With nbgrader")
    given = folder / "handouts" / f"{NOTEBOOK.stem}.student.ipynb"
    released = folder / "course" / "release" / "week1" / NOTEBOOK.name
    solved = read(folder / "course" / "source" / "week1" / NOTEBOOK.name)
    # One has used our edition, and one nbgrader's own.
    tried = filled(read(given), solved)
    the(tried, "def gradient_of_form").source = the(read(given), "def gradient_of_form").source
    the(tried, RIGHT).source = the(tried, RIGHT).source.replace(RIGHT, MISTAKE)
    (folder / "returned").mkdir()
    for name, notebook in {"solved": filled(read(released), solved), "tried": tried}.items():
        nbformat.write(notebook, folder / "returned" / f"{name}.ipynb")
    return folder


@pytest.fixture(scope="module")
def course(classroom):
    """The course, when nbgrader has graded the two."""
    for work in (classroom / "returned").iterdir():
        path = classroom / "course" / "submitted" / work.stem / "week1" / NOTEBOOK.name
        path.parent.mkdir(parents=True)
        notebook = read(work)
        if work.stem == "tried":
            # to no avail
            the(notebook, "mended_gradient(anywhere, data)").source = "pass"
            notebook.cells.insert(
                2, nbformat.v4.new_code_cell("check_gradient = lambda *a, **k: None")
            )
        nbformat.write(notebook, path)
    follow(classroom / "course", "Then, in `course`")
    return classroom / "course"


def feedback(course, student):
    page = course / "feedback" / student / "week1" / NOTEBOOK.with_suffix(".html").name
    return html.unescape(re.sub(r"(?s)<style.*?</style>|<[^>]*>", "", page.read_text("utf-8")))


def test_nbgrader_gives_a_point_for_each_right_answer(course):
    with open(course / "grades.csv", newline="") as table:
        grades = {
            row["student_id"]: (row["score"], row["max_score"]) for row in csv.DictReader(table)
        }
    assert grades == {"solved": ("6.0", "6.0"), "tried": ("4.0", "6.0")}


def test_the_feedback_holds_the_diagnosis(course):
    said = feedback(course, "tried")
    assert re.search(r"GradientMismatch:\s+dv +\(40,\) +WRONG: \w+", said)
    assert "GradientMismatch:" not in feedback(course, "solved")


def test_the_feedback_on_a_stub_says_what_to_do(course):
    said = feedback(course, "tried")
    assert "NotImplementedError: Exercise 1.3: write gradient_of_form, then check again" in said


def test_nbgrader_s_own_release_leaks_nothing(course):
    released = json.loads((course / "release" / "week1" / NOTEBOOK.name).read_text("utf-8"))
    text = "".join(strings(released))
    assert [line for line in secrets(read(NOTEBOOK)) if line in text] == []


def test_without_nbgrader_both_editions_are_graded(classroom):
    printed = follow(classroom, "## Files that come back")
    assert [line.split() for line in printed.splitlines()[1:]] == [
        ["solved.ipynb", "6", "0", "0", "0"],  # nbgrader's own edition
        ["tried.ipynb", "4", "1", "1", "0"],
    ]
    with open(classroom / "grades.csv", newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["result"] != "right"]
    assert [(row["exercise"], row["result"]) for row in rows] == [
        ("1.3", "empty"),
        ("1.5", "wrong"),
    ]
    page = (classroom / "feedback" / "tried.html").read_text("utf-8")
    assert html.escape(rows[1]["words"].partition("WRONG: ")[2]) in page
