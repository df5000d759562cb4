"""The cheat sheet: complete, and every formula, residual and cost on it proved."""

import functools
import re
import sys
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path

import jax
import jax.numpy as jnp
import nbformat
import numpy as np
import pypdfium2 as pdfium
import pytest

from handgrad import cli
from handgrad.catalog import ROWS
from handgrad.classroom import facts
from handgrad.classroom.cheatsheet import cheatsheet

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "src" / "handgrad" / "classroom" / "cheatsheet.typ"

each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def pages(path):
    read = (page.get_textpage().get_text_bounded() for page in pdfium.PdfDocument(path))
    return [text.replace("\r\n", "\n") for text in read]


def bare(tex):
    """TeX without what only spaces and aligns it."""
    return re.sub(r"\s|\\[,;]|&|\\left|\\right", "", tex.replace("&&", r"\qquad"))


@functools.cache
def equations():
    """What stands in each numbered equation of the notebooks."""
    found = {}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                for body in re.findall(r"(?s)\$\$(.+?)\$\$", cell.source):
                    for number in re.findall(r"\\tag\{(.*?)\}", body):
                        found[number] = bare(body)
    return found


def test_two_runs_give_the_same_bytes(tmp_path):
    paths = (tmp_path / name for name in ("one.pdf", "two.pdf"))
    one, two = (cheatsheet(path, rows=ROWS[:5]).read_bytes() for path in paths)
    assert one == two


def test_a_few_rules_are_on_two_pages(tmp_path):
    assert len(pages(cheatsheet(tmp_path / "sheet.pdf", "letter", ROWS[:12]))) == 2


def test_a_hundred_and_twenty_rules_stand_in_the_same_columns(tmp_path):
    rows = (ROWS * 2)[:120]
    _, *others = pdfium.PdfDocument(cheatsheet(tmp_path / "sheet.pdf", rows=rows))
    assert len(others) <= 5
    places = set()
    for page in others:
        text = page.get_textpage()
        columns = (text.search(word).get_next() for word in ("forward", "gradients", "kept"))
        places.add(tuple(round(text.get_charbox(start)[0]) for start, _ in columns))
    assert len(places) == 1
    for page in others:  # and fill them
        ink = page.render(scale=0.25, grayscale=True).to_numpy().min(axis=1).ravel() < 200
        assert ink[len(ink) * 6 // 10 : len(ink) * 9 // 10].sum() > 10


PLANTED = {
    "linear: gradients: .*missing: b$": {"gradients": {"x": "dx = x", "W": "dW = x"}},
    "linear: gradients: .*missing: c$": {"gradients": dict.fromkeys("xWbc", "dx = x")},
    "linear: expected a formula in LaTeX; got ' '": {"gradients": dict.fromkeys("xWb", " ")},
    "linear: expected a formula in LaTeX": {"formula": "$z = W x$"},
    "unheard": {"formula": r"z = \unheard{W}"},
    "linear: too wide": {"formula": "z = W x" + " + x" * 60},
}


@pytest.mark.parametrize("message", PLANTED)
def test_a_wrong_row_is_an_error_that_names_it(message, tmp_path):
    linear = next(row for row in ROWS if row.name == "linear")
    with pytest.raises(ValueError, match=message) as error:
        cheatsheet(tmp_path / "sheet.pdf", rows=[replace(linear, **PLANTED[message])])
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def few(monkeypatch):
    """A sheet of two rows, where it is not the rows that matter."""
    monkeypatch.setattr(
        "handgrad.classroom.cheatsheet.cheatsheet", partial(cheatsheet, rows=ROWS[:2])
    )


@pytest.mark.usefixtures("few")
def test_a_path_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "sheet.pdf"):
        assert cli.main(["cheatsheet", "-o", str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"handgrad: {tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not list(tmp_path.parent.glob(".*.unfinished"))


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("module", ["typst", "pypandoc"])
def test_a_missing_package_says_what_to_install(module, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["cheatsheet", "-o", str(tmp_path / "sheet.pdf")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"{module} is not installed: .*\[classroom\]", line)
    assert list(tmp_path.iterdir()) == []


# The rows of the catalog --------------------------------------------------------------------------


@each_row
def test_each_differentiable_argument_has_one_gradient(row):
    names = list(signature(row.f).parameters)
    for args, _ in row.examples(np.random.default_rng(0)).values():
        kinds = {n: np.asarray(a).dtype.kind for n, a in zip(names, args, strict=False)}
        assert set(row.gradients) == {name for name, kind in kinds.items() if kind == "f"}


@each_row
def test_a_gradient_is_what_the_notebook_derives_under_its_number(row):
    for name, formula in row.gradients.items():
        assert re.match(r"d[A-Za-z\\ ]+(_\w|_\{.*\})? = ", formula)
        left, _, right = bare(formula).partition("=")
        derived = equations()[facts.equations(row)[name]]
        assert left + "=" in derived, name
        assert re.search(re.escape("=" + right) + r",?\\(\\|text|tag|q?quad|end)", derived), name


IDEAS = {
    "3.7": r"dx = J_1^\top J_2^\top \cdots J_L^\top du_L",
    "3.8": r"da = da_1 + \dots + da_R",
    "4.5": r"D z(W) H = H x",
    "4.6": r"= \langle dz x^\top, H \rangle",
    "4.7": r"dW = \sum_n dz_n x_n^\top",
    "4.8": r"db = \sum_n dz_n",
    "5.3": r"dx = da \odot f'(x)",
    "8.1": r"= \langle dz, D f(x) h \rangle",
}


def test_the_first_page_cites_what_the_notebooks_say():
    cited = set(re.findall(r'"(\d+\.\d+)"', TEMPLATE.read_text("utf-8")))
    assert cited == set(IDEAS)
    for number, formula in IDEAS.items():
        assert bare(formula) in equations()[number], number


# Counted by hand, where the notebooks count: what is kept, and the products each way.
COUNTED = {
    "linear": ({"x": "N d", "W": "d h"}, ("$N d h$", "$2 N d h$")),
    "tanh": ({"a": "n"}, ("$n$ exp", "$2 n$")),
    "relu": ({"a": "n"}, ("$n$ selections", "$n$")),
    "softmax": ({"o": "N k"}, ("$N k$ + $N k$ exp", "$2 N k$")),
    "logsumexp": ({"z": "N k"}, ("$N k$ exp", "$N k$ + $N k$ exp")),
    # a size that must be even, one that must be a multiple, and a scan by halves
    "rotary": ({}, ("$2 N T d$", "$2 N T d$")),
    "grouped_query_attention": (
        {"Q": "N m T d", "K": "N d g S", "V": "N g S e", "P": "N m T S"},
        ("$N m T S (d + e)$", "$N S (2 m T e + 2 m T d + d g)$"),
    ),
    "linear_recurrence": ({"a": "N T", "h_0": "N", "h": "N T"}, ("$4 N T$", "$5 N T$")),
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_is_kept_and_what_it_costs_is_read_off_the_code(name):
    row = next(row for row in ROWS if row.name == name)
    assert (facts.kept(row), facts.cost(row)) == COUNTED[name]


def test_a_loop_counts_its_rounds_and_a_rule_that_keeps_more_says_so():
    def cumulated(x, W):
        return jax.lax.scan(lambda h, x: (W @ h + x, h), x[0], x)[1]

    jaxpr = jax.make_jaxpr(cumulated)(np.ones((11, 13)), np.ones((13, 13))).jaxpr
    assert facts.counted(jaxpr, {11: "T", 13: "d"}) == {("", ("T", "d", "d")): 1}
    tanh = next(row for row in ROWS if row.name == "tanh")
    wasteful = replace(tanh, f_fwd=lambda x: (a := jnp.tanh(x), (a, x, 2 * x)))
    assert facts.kept(wasteful) == {"a": "n", "x": "n", r"\mathrm{r2}": "n"}


@each_row
def test_every_symbol_that_is_kept_stands_in_a_gradient(row):
    used = " ".join([*row.gradients.values(), *re.findall(r"\$([^$]+)\$", row.where)])
    used = re.findall(r"(?<![\\A-Za-z])[A-Za-z]+", used)
    for symbol in facts.kept(row):
        assert symbol in used or len(symbol) > 1, symbol
