"""The site: what becomes of a notebook on it, and what it refuses."""

import os
import re
import subprocess
import sys
from copy import deepcopy

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from handgrad import cli, notebooks
from handgrad.classroom.site import build

# the site's libraries call what the next Sphinx will rename
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:PendingDeprecationWarning")

CELLS = [
    new_markdown_cell("[← Before](01_before.ipynb) · [Contents](00_contents.ipynb)\n\n# 2. After"),
    new_markdown_cell(
        "$$ \\begin{aligned} a &= b \\\\ &= c \\end{aligned} \\tag{2.1} $$\n\nBy (2.1)."
    ),
    new_markdown_cell("See [the rule](../src/rule.py), [us](../README.md)."),
    new_markdown_cell("## Exercises\n\n### Exercise 2.1 (transfer)"),
    new_markdown_cell("**Solution.** Add them.", metadata={"tags": ["solution"]}),
    new_code_cell(
        "def f(x):\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION", execution_count=1
    ),
    new_code_cell("f(2)", execution_count=2),
]


@pytest.fixture
def project(tmp_path):
    """A small project: its README and three notebooks, the last with everything in it."""
    folder = tmp_path / "project" / "notebooks"
    folder.mkdir(parents=True)
    (folder.parent / "README.md").write_text("# A project\n")
    (folder.parent / "src").mkdir()
    (folder.parent / "src" / "rule.py").write_text("dx = dz @ W  # (2.1)\n")
    for name, *cells in (
        ("00_contents", new_markdown_cell("# 0. Contents")),
        ("01_before", new_markdown_cell("# 1. Before")),
        ("02_after", *CELLS),
    ):
        notebook = notebooks.normalised(new_notebook(cells=cells))
        nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder


def body(page):
    return re.search(r"(?s)<article.*</article>", page.read_text("utf-8"))[0]


def test_a_notebook_becomes_a_page(project, tmp_path):
    page = build(project, tmp_path / "site").parent / "notebooks" / "02_after.html"
    html = body(page)
    assert "Contents" not in html, "the notebook's own navigation"
    assert r'<span class="left">\(\displaystyle {}a\)</span>' in html, "an equation in its pieces"
    assert html.count('id="eq-2.1"') == 1
    assert html.count('href="#eq-2.1">(2.1)</a>') == 2, "beside the equation, and where it is cited"
    assert 'href="../src/rule.html"' in html and 'href="../index.html"' in html
    assert html.count('<details class="solution">') == html.count("</details>") == 2
    assert "BEGIN" not in html and "return" in html
    assert "<title>2. After - handgrad, with solutions</title>" in page.read_text("utf-8")


def test_a_student_s_site_holds_no_solution(project, tmp_path):
    page = build(project, tmp_path / "site", "student").parent / "notebooks" / "02_after.html"
    html = body(page)
    assert "Add them" not in html and "return" not in html and "<details" not in html
    assert "Exercise 2.1: write f, then check again" in html
    assert "<title>2. After - handgrad, student edition</title>" in page.read_text("utf-8")


def test_a_student_s_site_needs_exercises_that_are_well_formed(project, tmp_path):
    notebook = new_notebook(cells=deepcopy([CELLS[0], CELLS[4]]))
    nbformat.write(notebooks.normalised(notebook), project / "02_after.ipynb")
    with pytest.raises(ValueError, match=r"02_after.ipynb: cell 1.*belongs to no exercise"):
        build(project, tmp_path / "site", "student")
    with pytest.raises(ValueError, match="kind: expected instructor or student; got 'teacher'"):
        build(project, tmp_path / "site", "teacher")
    assert not (tmp_path / "site").exists()


def test_two_builds_have_the_same_bytes(project, tmp_path):
    call = "import sys; from handgrad.classroom.site import build; build(*sys.argv[1:])"
    command = [sys.executable, "-c", call, project, tmp_path / "another"]
    # in another process sets are walked in another order
    subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "1"}, check=True)
    build(project, tmp_path / "one")
    one, another = (
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for out in (tmp_path / "one", tmp_path / "another")
    )
    assert one == another


def test_a_warning_is_an_error_and_the_site_stays_as_it_was(project, tmp_path):
    front = build(project, tmp_path / "site")
    before = front.read_bytes()
    (project.parent / "README.md").write_text("# A project\n\n[nowhere](notebooks/09.ipynb)\n")
    with pytest.raises(RuntimeError, match=r"index.md:3: WARNING: .*notebooks/09"):
        build(project, tmp_path / "site")
    assert front.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["project", "site"]


def test_a_site_takes_the_place_of_an_older_one(project, tmp_path):
    front = build(project, tmp_path / "site")
    (project / "02_after.ipynb").unlink()
    assert build(project, tmp_path / "site") == front
    names = {path.name for path in (front.parent / "notebooks").iterdir()}
    assert names == {"00_contents.html", "01_before.html"}


def test_a_folder_of_something_else_is_left_alone(project, tmp_path):
    with pytest.raises(FileExistsError, match="expected a new or empty folder"):
        build(project, project.parent)
    assert len(list(project.glob("*.ipynb"))) == 3


@pytest.mark.parametrize("name", ["CNAME", "index.html"])
def test_a_site_that_somebody_has_changed_is_left_alone(project, tmp_path, name):
    front = build(project, tmp_path / "site")
    front.with_name(name).write_text("mine")
    with pytest.raises(FileExistsError, match="a site that nobody has changed; left as it is"):
        build(project, tmp_path / "site")
    assert front.with_name(name).read_text() == "mine"


def test_a_notebook_that_is_not_executed_is_refused(project, tmp_path):
    path = project / "01_before.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# 1"), new_code_cell("x")]), path)
    with pytest.raises(ValueError, match=r"01_before.ipynb: a cell is not executed"):
        build(project, tmp_path / "site")
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("gone", ["README.md", "notebooks"])
def test_a_missing_part_is_named(project, tmp_path, gone):
    for path in project.glob("*.ipynb") if gone == "notebooks" else [project.parent / gone]:
        path.unlink()
    with pytest.raises(FileNotFoundError, match=gone):
        build(project, tmp_path / "site")


def test_the_command_says_in_one_line_what_is_wrong(project, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "FOLDER", project)
    assert cli.main(["site", "-o", str(tmp_path / "site")]) == 0
    assert capsys.readouterr() == (f"{tmp_path / 'site' / 'index.html'}\n", "")
    assert cli.main(["site", "-o", str(project)]) == 2
    file = project / "01_before.ipynb"
    for place in (file, file / "in" / "it"):
        assert cli.main(["site", "-o", str(place)]) == 2
    monkeypatch.setitem(sys.modules, "furo", None)
    assert cli.main(["site", "-o", str(tmp_path / "other")]) == 2
    _, *files, last = capsys.readouterr().err.splitlines()
    assert files == [f"handgrad: {file}: not a folder"] * 2
    assert last == 'handgrad: furo is not installed: python -m pip install "handgrad[classroom]"'
    assert not (tmp_path / "other").exists()
