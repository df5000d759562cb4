"""The wheel: without a clone, outside of every tree, the command does what it does in one.

It is made of a copy of the tree with one more topic, so that all it makes can be seen to hold it.
"""

import os
import re
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import nbformat
import pypdfium2 as pdfium
import pytest
from test_topic import copy  # noqa: F401

from handgrad.catalog import ROWS
from handgrad.classroom import facts


@pytest.fixture(scope="module")
def tree(copy):  # noqa: F811
    """The copy of the tree."""
    return copy[0]


@pytest.fixture(scope="module")
def books(tree):
    """The names of the notebooks in it."""
    return sorted(path.name for path in (tree / "notebooks").glob("*.ipynb"))


def files(tree, folder):
    """All that is under version control there, or will be."""
    found = {path.relative_to(tree) for path in (tree / folder).rglob("*.*") if path.is_file()}
    return {path for path in found if not any(p.startswith((".", "__")) for p in path.parts[:-1])}


def run(*command, cwd, **settings):
    """Run the command as a learner's shell would, who has no clone; what it printed."""
    env = os.environ | {"PYTHONPATH": "", "PYTHONUNBUFFERED": ""} | settings
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def sdist(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    build = run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=tree)
    assert build.returncode == 0, build.stderr
    (archive,) = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def bin(sdist, tmp_path_factory):
    """The scripts of a fresh environment, into which the source distribution's wheel was put.

    All else it takes from the environment of the tests, but for handgrad itself: a line in a .pth
    file leads there, and so the .pth file there, which leads to the clone, is not read.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/*/site-packages")
    shared = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "shared.pth").write_text("\n".join(shared))
    options = "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed"
    python = folder / "bin" / "python"
    pip = run(python, "-m", "pip", "install", *options, sdist, cwd=folder)
    assert pip.returncode == 0, pip.stdout + pip.stderr
    assert (packages / "handgrad" / "cli.py").is_file()
    return python.parent


@pytest.fixture(scope="module")
def handgrad(bin, tmp_path_factory):
    """The command, run in a folder of its own."""
    folder = tmp_path_factory.mktemp("desk")

    def command(*arguments, **settings):
        done = run(bin / "handgrad", *arguments, cwd=folder, **settings)
        return done.returncode, done.stdout, done.stderr

    command.folder = folder
    return command


def test_the_source_distribution_can_be_tested(sdist, tree):
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("assets", "notebooks", "src/handgrad", "tests"):
        assert {path.as_posix() for path in files(tree, folder)} <= packed


def test_the_package_is_whole_and_it_is_the_one_that_runs(bin, tree):
    where = "import handgrad; print(handgrad.__file__)"
    package = Path(run(bin / "python", "-c", where, cwd=bin).stdout.strip()).parent
    assert package.is_relative_to(bin.parent)
    assert Path("src/handgrad/py.typed") in files(tree, "src/handgrad")
    for path in files(tree, "src/handgrad"):
        there = package / path.relative_to("src/handgrad")
        assert there.read_bytes() == (tree / path).read_bytes()


def test_the_rules_are_proved(handgrad):
    status, printed, said = handgrad("verify", "linear")
    assert (status, said) == (0, "")
    assert "3 gradients of 1 rules proved" in printed and "handgrad lab" in printed


def test_notebooks_are_handed_out(handgrad, books):
    assert handgrad("handout", "--to", "ipynb")[0] == 0
    assert len(list((handgrad.folder / "handouts").iterdir())) == len(books)
    page = Path("pages", "01_gradient.student.html")
    printed = handgrad("handout", "01_gradient", "--to", "html", "-o", "pages")
    assert printed == (0, f"{page}\n", "")
    assert "Exercise 1.1" in (handgrad.folder / page).read_text("utf-8")


def test_the_site_has_a_page_for_each_notebook_and_for_what_they_link_to(handgrad, books):
    front = handgrad.folder / "site" / "index.html"
    assert handgrad("site") == (0, f"{front}\n", "")
    for name in books:
        assert (front.parent / "notebooks" / name).with_suffix(".html").is_file()
    for target in re.findall(r'href="([^"#:?]+)["#?]', front.read_text("utf-8")):
        assert (front.parent / target).is_file(), target
    cube = (front.parent / "notebooks/99_cube.html").read_text("utf-8")
    assert "../src/handgrad/layers/cube.html" in cube


def test_the_cheat_sheet_is_set(handgrad):
    assert handgrad("cheatsheet") == (0, "cheatsheet.pdf\n", "")
    read = pdfium.PdfDocument(handgrad.folder / "cheatsheet.pdf")
    first, *others = [page.get_textpage().get_text_bounded() for page in read]
    assert len(ROWS) + 1 == int(re.search(r"(\d+) layers", first)[1])
    layers = re.sub(r"_\s+", "_", "\n".join(others).replace("\r", "").replace("\u200b", ""))
    for name in (*(row.name for row in ROWS), "cube"):
        assert re.search(rf"(?<!\w){name}(?!\w)", layers), name
    _, *numbers = re.findall(r"\((\d+\.\d+)\)", layers)  # the first says how to read them
    assert numbers == [n for row in ROWS for n in facts.equations(row).values()] + ["99.2"]
    assert not re.search(r"[$\\]|operatorname|cotangent\(|frac|none|auto", layers), "it shows TeX"


def test_the_notebooks_are_copied_and_opened(handgrad, books, tmp_path):
    fake = tmp_path / "jupyter"
    fake.write_text('#!/bin/sh\nprintf "opened: %s, %s\\n" "$@"\n')
    fake.chmod(0o755)
    contents = Path("handgrad-notebooks", "00_contents.ipynb")
    opened = f"{contents}\nopened: lab, {contents}\n"
    assert handgrad("lab", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}") == (0, opened, "")
    copies = handgrad.folder / "handgrad-notebooks"
    assert sorted(path.name for path in copies.glob("*.ipynb")) == books
    for path in copies.glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                for target in re.findall(r"\]\(([^)\s#:]+)[)#]", cell.source):
                    assert (copies / target).is_file(), target


def test_accepting_is_for_a_clone(handgrad):
    refusal = "handgrad: accept: is for a clone of the collection, and this is an installed one\n"
    assert handgrad("accept") == (2, "", refusal)
