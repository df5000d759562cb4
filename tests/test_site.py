"""The site: what becomes of a notebook on it, and what it refuses."""

import os
import re
import subprocess
import sys

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
    new_markdown_cell("**Solution.** Add them.", metadata={"tags": ["solution"]}),
    new_code_cell(
        "def f(x):\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION", execution_count=1
    ),
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
    html = body(build(project, tmp_path / "site").parent / "notebooks" / "02_after.html")
    assert "Contents" not in html, "the notebook's own navigation"
    assert r"\[ \begin{aligned} a &amp;= b" in html, "an equation as it stands"
    assert html.count('id="equation-2.1"') == 1
    assert '<a class="reference internal" href="#equation-2.1">(2.1)</a>' in html
    assert 'href="../src/rule.html"' in html and 'href="../index.html"' in html
    assert html.count('<details class="solution">') == html.count("</details>") == 2
    assert "BEGIN" not in html and "return" in html


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
    assert cli.main(["site", "-o", str(project / "01_before.ipynb")]) == 2
    monkeypatch.setitem(sys.modules, "furo", None)
    assert cli.main(["site", "-o", str(tmp_path / "other")]) == 2
    *_, last = lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert last == 'handgrad: furo is not installed: python -m pip install "handgrad[classroom]"'
    assert not (tmp_path / "other").exists()
