"""`handgrad grade`: what it says of files that are right, wrong, broken, or meant to do harm."""

import contextlib
import csv
import io
import multiprocessing
import os
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest

from handgrad import cli
from handgrad.classroom import grade, sitting
from handgrad.classroom.editions import edition

GIVEN = """\
import jax
import jax.numpy as jnp
import numpy as np
from handgrad import check_gradient

jax.config.update("jax_enable_x64", True)
data = np.array([2.0, 3.0, 7.0])


def misfit(v):
    return jnp.sum((v - data) ** 2)"""
SLOPE = 'def slope(v):\n    """The gradient of misfit."""\n    {}'
TWICE = 'def twice(n):\n    """Twice n."""\n    {}'
NEXT = "def given(n):\n    return n\n\n\ndef following(n):\n    {}"
CHECKS = {
    "1.1": "check_gradient(slope(data + 1), misfit, data + 1)",
    "1.2": 'assert twice(3) == 6, "twice 3 is 6"',
    "1.4": "assert following(given(1)) == 2",
}
REGION = "### BEGIN SOLUTION\n    return {}\n    ### END SOLUTION"


def the_key():
    code, prose = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    cells = [
        prose("# 1. Three small exercises, and one in words, for a test"),
        code(GIVEN),
        prose("## Exercises"),
        prose("### Exercise 1.1 (derive and code) · easy, 5 minutes"),
        code(SLOPE.format(REGION.format("2 * (v - data)"))),
        code(CHECKS["1.1"]),
        prose("### Exercise 1.2 (derive and code) · easy, 5 minutes"),
        code(TWICE.format(REGION.format("2 * n"))),
        code(CHECKS["1.2"]),
        prose("### Exercise 1.3 (by hand) · easy, 5 minutes"),
        prose("Because.", metadata={"tags": ["solution"]}),
        prose("### Exercise 1.4 (derive and code) · easy, 5 minutes"),
        code(NEXT.format(REGION.format("given(n) + 1"))),
        code(CHECKS["1.4"]),
    ]
    for count, cell in enumerate((c for c in cells if c.cell_type == "code"), 1):
        cell.execution_count = count
    return nbformat.v4.new_notebook(cells=cells)


RIGHT = {"1.1": "return 2 * (v - data)", "1.2": "return 2 * n", "1.4": "return given(n) + 1"}
STUBS = {"1.1": SLOPE, "1.2": TWICE, "1.4": NEXT}
FOREVER = "while True:\n        print('x' * 1000)"
LEFT = f"handgrad-left-{os.getpid()}"  # an argument by which a process is found again

# name: (the bodies of answers by exercise, code of a cell added in front of 1.1, the results)
FILES = {
    "all right": (RIGHT, "", {"1.1": "right", "1.2": "right", "1.4": "right"}),
    "=1+1": ({}, "", {"1.1": "empty", "1.2": "empty", "1.4": "empty"}),
    "-ü b/all right": (
        {"1.1": "return -2 * (v - data)", "1.2": "return n"},
        "",
        {
            "1.1": "wrong: dv (3,) WRONG: its sign is flipped",
            "1.2": "wrong: twice 3 is 6",
            "1.4": "empty",
        },
    ),
    "loops": (
        {"1.2": FOREVER, "1.4": RIGHT["1.4"]},
        "",
        {"1.1": "empty", "1.2": "error: took more than 1.5 s", "1.4": "right"},
    ),
    "added loop": ({"1.2": RIGHT["1.2"]}, "while True: pass", {"1.2": "right"}),
    "ends": (
        {
            "1.1": "import os\n    os._exit(0)",
            "1.2": "raise SystemExit",
            "1.4": "raise KeyboardInterrupt",
        },
        "",
        {
            "1.1": "error: ended the process with status 0",
            "1.2": "error: SystemExit, at line 3 of the cell: raise SystemExit",
            "1.4": "error: KeyboardInterrupt, at line 6 of the cell: raise KeyboardInterrupt",
        },
    ),
    "crashes": (
        {"1.2": "import ctypes\n    ctypes.string_at(0)", "1.4": RIGHT["1.4"]},
        "",
        {"1.2": "error: was killed by signal 11", "1.4": "right"},
    ),
    "waits": (
        {"1.2": "import time\n    time.sleep(10**6)", "1.4": "return input()"},
        "",
        {"1.2": "error: waited for more than 1.5 s", "1.4": "error: EOFError"},
    ),
    "hogs": (
        {
            "1.2": "hoard = []\n    while True: hoard.append(b'x' * 10**7)",
            "1.4": "import mmap\n    m = mmap.mmap(-1, 2**31)\n"
            "    while True: m.write(b'x' * 10**7)",
        },
        "",
        {"1.2": "error: MemoryError", "1.4": "error: took more than 0.75 GiB of memory"},
    ),
    "leaves": (
        {"1.2": RIGHT["1.2"]},
        "import os, subprocess, sys, time\n"
        f"call = [sys.executable, '-c', 'import time; time.sleep(600)', {LEFT!r}]\n"
        "subprocess.Popen(call, start_new_session=True)\n"
        "time.sleep(1)\n"  # such a one is known as long as its parent lives
        "if os.fork() == 0:\n"
        "    if os.fork(): os._exit(0)\n"  # and nobody knows whose the other one is
        "    os.execv(sys.executable, call)",
        {"1.2": "right"},
    ),
    "redefines": (
        {"1.1": "return 2 * v", "1.2": RIGHT["1.2"]},
        "import builtins, sys, types, handgrad, handgrad.check\n"
        "from handgrad.check import gradient, report\n"
        "data[:] = 0\n"
        "check_gradient = misfit = lambda *a, **k: None\n"
        "handgrad.check_gradient = gradient.check_gradient = check_gradient\n"
        "report.GradientMismatch.__init__ = report.Report.conclude = lambda self, *a: self\n"
        "gradient.compare.__code__ = (lambda *a: []).__code__\n"
        "np.allclose = np.asarray = jax.grad = builtins.all = lambda *a, **k: True\n"
        "sys.modules['handgrad'] = sys.modules['handgrad.check'] = types.ModuleType('h')",
        {"1.1": "wrong: dv (3,) WRONG", "1.2": "right"},
    ),
    "redefines late": (
        {
            "1.1": "from handgrad.check.report import Report\n"
            "    Report.conclude = lambda self, note='': self\n    return v"
        },
        "",
        {"1.1": "error: while it is checked, it replaces handgrad.check.report.Report"},
    ),
    "looks around": (
        {
            "1.2": "import os, pathlib\n    assert 'SECRET' not in os.environ\n"
            "    pathlib.Path('grades.csv').write_text('')\n"
            "    pathlib.Path.home().joinpath('mine').write_text('')\n    return 2 * n"
        },
        "",
        {"1.2": "right"},
    ),
    "says": (
        {"1.1": "raise ValueError('<b>\\x1b[31m')", "1.2": "assert 0, '=1+1'", "1.4": "return ("},
        "",
        {"1.1": "error: ValueError: <b> [31m", "1.2": "wrong: '=1+1", "1.4": "error: SyntaxError"},
    ),
}


def student(key, bodies=(), added=""):
    """The student's edition with these answers, and a cell that she has added."""
    made = edition(key, "student")
    for number in bodies:
        the(made, number, "answer").source = STUBS[number].format(bodies[number])
    if added:
        made.cells.insert(2, nbformat.v4.new_code_cell(added))
    return made


def the(notebook, number, part):
    """The one cell that is that part of that exercise."""
    name = f"exercise-{number.replace('.', '-')}-{part}"
    (cell,) = (c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") == name)
    return cell


def cheated(key):
    """A check that is gone, one that is edited, wrong answers, and another task."""
    made = student(key, {"1.2": "return n", "1.4": "return n"})
    easier = the(made, "1.4", "answer")
    easier.source = easier.source.replace("return n", "return n + 1", 1)
    made.cells.remove(the(made, "1.2", "check"))
    the(made, "1.4", "check").source = "pass"
    return made


def misplaced(key):
    """An answer in a cell of its own, one in the place of its check; and a check that imports."""
    made = student(key)
    check = the(made, "1.1", "check")
    check.source = f"from handgrad import check_gradient\n{check.source}"
    place = made.cells.index(the(made, "1.2", "answer")) + 1
    made.cells.insert(place, nbformat.v4.new_code_cell(TWICE.format(RIGHT["1.2"])))
    the(made, "1.4", "check").source = NEXT.format(RIGHT["1.4"])
    the(made, "1.1", "answer").source = "# later"
    return made


def bare(key):
    """What is left by a program that keeps nothing but the cells."""
    made = student(key, RIGHT | {"1.2": "return n"})
    for number, cell in enumerate(made.cells):
        cell.metadata, cell.id = {}, f"other-{number}"
    made.nbformat_minor = 4
    return made


OTHERS = {
    cheated: {
        "1.1": "empty",
        "1.2": "wrong: twice 3 is 6",
        "1.4": "wrong: it fails at: assert f",
    },
    misplaced: {"1.1": "empty", "1.2": "right", "1.4": "empty"},
    bare: {"1.1": "right", "1.2": "wrong: twice 3 is 6", "1.4": "right"},
}
NONE = {
    "corrupt": '{"cells": [',
    "nothing": "",
    "a list": "[1, 2]",
    "deep": "[" * 10**5,
    "text": "My answer is 42.",
    "latin": "caf\xe9".encode("latin-1"),
    "foreign": nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])),
}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """The folder where the command has run once, over all of them; and what it printed."""
    place = tmp_path_factory.mktemp("grade")
    key, back = the_key(), place / "back"
    nbformat.write(key, place / "key.ipynb")
    made = {name: student(key, bodies, added) for name, (bodies, added, _) in FILES.items()}
    made |= {make.__name__: make(key) for make in OTHERS}
    texts = {name: nbformat.writes(notebook) for name, notebook in made.items()} | NONE
    for name, text in texts.items():
        path = back / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (back / "essay.docx").write_text("")
    (back / ".ipynb_checkpoints").mkdir()
    (back / ".ipynb_checkpoints" / "all right-checkpoint.ipynb").write_text("")
    before = {path: path.read_bytes() for path in back.rglob("*") if path.is_file()}
    printed = io.StringIO()
    call = ["grade", str(back), "--key", str(place / "key.ipynb"), "--csv", str(place / "g.csv")]
    call += ["-o", str(place / "feedback"), "--seconds", "1.5", "--memory", "0.75"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("SECRET", "the teacher's")
        patch.chdir(place)
        status = cli.main(call)
    assert {path: path.read_bytes() for path in back.rglob("*") if path.is_file()} == before
    assert {path.name for path in place.iterdir()} == {"back", "feedback", "g.csv", "key.ipynb"}
    return SimpleNamespace(place=place, status=status, printed=printed.getvalue())


@pytest.fixture(scope="module")
def rows(graded):
    """{file: {exercise: result, and its words}} of the table."""
    text = (graded.place / "g.csv").read_text("utf-8")
    assert text.startswith("file,exercise,result,words\n")
    found = {}
    for row in csv.DictReader(text.splitlines()):
        said = f"{row['result']}: {row['words']}" if row["words"] else row["result"]
        found.setdefault(row["file"], {})[row["exercise"]] = said
    return found


EXPECTED = {name: results for name, (_, _, results) in FILES.items()}
EXPECTED |= {make.__name__: results for make, results in OTHERS.items()}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_exercise_is_judged_whatever_the_others_do(rows, name):
    found = rows[f"./{name}.ipynb" if name[0] in "=-" else f"{name}.ipynb"]
    assert list(found) == ["1.1", "1.2", "1.4"]
    said = {number: found[number][: len(start)] for number, start in EXPECTED[name].items()}
    assert said == EXPECTED[name], found


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_notebook_of_ours_costs_that_file_alone(rows, graded, name):
    (said,) = rows[f"{name}.ipynb"].items()
    assert said[0] == "" and said[1].startswith("error: the ")
    assert said[1].partition(": ")[2] in graded.printed
    assert graded.status == 1


def test_what_was_done_to_the_checks_is_said(graded):
    remarks = {}
    for line in graded.printed.splitlines():
        if not line.startswith("    "):
            file = line[:22].strip()
        elif file.removesuffix(".ipynb") not in NONE:
            remarks.setdefault(file.removesuffix(".ipynb"), []).append(line.strip())
    (replaced,) = remarks.pop("redefines")
    for name in (" handgrad.check, ", "builtins.all", "numpy.allclose", "jax.grad", "Report"):
        assert name in replaced
    late = "replaces handgrad.check.report.Report, which was put back before the next check"
    assert remarks == {
        "added loop": ["a cell that was added took more than 1.5 s; it was left out"],
        "redefines late": [late],
        "cheated": [
            "the check of Exercise 1.2 is deleted; it was restored",
            "the check of Exercise 1.4 is altered; it was restored",
        ],
        "misplaced": ["the check of Exercise 1.4 is altered; it was restored"],
    }


def test_no_process_is_left(graded):
    left = [p for p in psutil.process_iter(["cmdline"]) if LEFT in (p.info["cmdline"] or ())]
    assert left == []


def test_the_table_on_the_terminal_counts(graded):
    head, *lines = graded.printed.splitlines()
    assert head.split() == ["file", "right", "wrong", "empty", "error"]
    counts = {line[:22].strip(): line[22:].split() for line in lines}
    assert counts["./-ü b/all right.ipynb"] == ["0", "2", "1", "0"]
    assert counts["foreign.ipynb"] == ["0", "0", "0", "1"]
    assert "essay.docx" in lines[-1] and "checkpoint" not in graded.printed


def test_each_student_has_a_page(graded):
    pages = {path.relative_to(graded.place / "feedback") for path in graded.place.rglob("*.html")}
    names = [*FILES, *(make.__name__ for make in OTHERS), *NONE]
    assert pages == {Path(f"{name}.html") for name in names}
    page = (graded.place / "feedback" / "says.html").read_text("utf-8")
    assert "<h2>Exercise 1.2: ✗ wrong</h2>" in page and "ValueError: &lt;b&gt; [31m" in page
    assert "Answers in words are for your teacher to read: Exercises 1.3." in page
    assert not re.search(r"<b>|https?:|src=|url\(|<script", page)
    used, defined = (set(re.findall(p, page)) for p in (r"var\((--\w+)", r"(--\w+):"))
    assert used and used <= defined
    assert "BEGIN SOLUTION" not in page and "2 * (v - data)" not in page


@pytest.fixture
def never(monkeypatch):
    """Nothing is graded."""
    monkeypatch.setattr(grade, "judged", None)


@pytest.mark.usefixtures("never")
def test_what_cannot_be_done_is_refused_before_anything_is_graded(tmp_path, graded, capsys):
    back = graded.place / "back"
    others = tmp_path / "others"
    others.mkdir()
    (others / "essay.docx").write_text("")
    some = str(back / "loops.ipynb")
    refusals = {
        ("grade", str(tmp_path / "nowhere")): "nowhere: expected a folder with the notebooks",
        ("grade", str(others)): "others: expected files that end in .ipynb; there is none",
        ("grade", str(back), "--csv", some): "loops.ipynb: expected a new file for the table",
        ("grade", str(back), "-o", str(graded.place / "feedback")): "without --force: ",
        ("grade", str(back), "--key", str(tmp_path / "k.ipynb")): "k.ipynb: no such notebook",
        ("grade", str(back), "--key", str(back / "text.ipynb")): "text.ipynb: the file is no note",
    }
    for call, refusal in refusals.items():
        assert cli.main(list(call)) == 2
        said = capsys.readouterr()
        assert refusal in said.err and said.err.count("\n") == 1 and said.out == ""
    with pytest.raises(SystemExit):
        cli.main(["grade", str(back), "--seconds", "0"])
    assert (
        "argument --seconds: expected a number above 0 and below 1e6; got '0'"
        in capsys.readouterr().err
    )


def test_a_key_whose_own_answer_is_wrong_grades_nobody(tmp_path, capsys):
    key = the_key()
    key.cells[7].source = key.cells[7].source.replace("2 * n", "3 * n")
    nbformat.write(key, tmp_path / "key.ipynb")
    back = tmp_path / "back"
    back.mkdir()
    nbformat.write(student(key), back / "a.ipynb")
    pages = ["-o", str(tmp_path / "feedback")]
    assert cli.main(["grade", str(back), "--key", str(tmp_path / "key.ipynb"), *pages]) == 2
    why = "its own answer to Exercise 1.2 comes out as wrong: twice 3 is 6"
    assert f"key.ipynb: nothing is graded, since {why}" in capsys.readouterr().err
    assert not (tmp_path / "feedback").exists()


def test_interrupted_it_ends_what_it_has_started(tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(InterruptedError):
        forever = [sitting.Step("own", "while True: pass")]
        sitting.judged(forever, sitting.Limits(), tmp_path / "compiled", stop)
    assert multiprocessing.active_children() == []
