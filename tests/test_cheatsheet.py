"""The cheat sheet: complete, on two pages, and every formula, residual and cost on it proved."""

import functools
import math
import re
import sys
from inspect import signature
from pathlib import Path
from typing import get_args

import jax
import nbformat
import numpy as np
import pypdfium2 as pdfium
import pytest
from jax.extend.core import jaxprs_in_params

from handgrad import cli
from handgrad.catalog import LAYERS
from handgrad.classroom.cheatsheet import cheatsheet

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "src" / "handgrad" / "classroom" / "cheatsheet.typ"

each_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)


def pages(path):
    read = (page.get_textpage().get_text_bounded() for page in pdfium.PdfDocument(path))
    return [text.replace("\r\n", "\n") for text in read]


def number(layer, argument):
    """The equation that the code cites beside the argument's gradient."""
    source = Path(sys.modules[layer.f.__module__].__file__).read_text("utf-8")
    rule = source[source.index(f"def {layer.name}_bwd") :]
    return re.search(rf"(?m)^ +d{argument} = .*# \((.*)\)$", rule)[1]


def bare(tex):
    """TeX without what only spaces and aligns it."""
    return re.sub(r"\s|\\,|&|\\left|\\right", "", tex)


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


@pytest.mark.parametrize("paper", ["a4", "letter"])
def test_every_layer_with_its_equations_is_on_two_pages(paper, tmp_path, capsys):
    out = tmp_path / "sheet.pdf"
    assert cli.main(["cheatsheet", "-o", str(out), "--paper", paper]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    _, second = pages(out)
    for layer in LAYERS:
        assert re.search(rf"(?<!\w){layer.name}(?!\w)", second), layer.name
    _, *numbers = re.findall(r"\((\d+\.\d+)\)", second)  # the first says how to read them
    assert numbers == [number(layer, name) for layer in LAYERS for name in layer.gradients]


def test_no_tex_and_nothing_but_words_is_printed(tmp_path):
    text = "".join(pages(cheatsheet(tmp_path / "sheet.pdf")))
    assert not re.search(r"[$\\]|operatorname|cotangent\(|frac|none|auto", text)


def test_two_runs_give_the_same_bytes(tmp_path):
    one, two = (cheatsheet(tmp_path / name).read_bytes() for name in ("one.pdf", "two.pdf"))
    assert one == two


def test_sixty_layers_fit_in_smaller_letters(tmp_path):
    sheet = cheatsheet(tmp_path / "sheet.pdf", "letter", LAYERS * 6)  # the shorter of the two
    assert len(pdfium.PdfDocument(sheet)) == 2


def test_more_layers_than_one_can_read_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"^the layers do not fit on two pages in letters of 6 pt$"
    ):
        cheatsheet(tmp_path / "sheet.pdf", layers=LAYERS * 9)
    assert list(tmp_path.iterdir()) == []


PLANTED = {
    "linear: gradients: .*missing: b$": {"gradients": {"x": "dx = x", "W": "dW = x"}},
    "linear: gradients: .*missing: c$": {"gradients": dict.fromkeys("xWbc", "dx = x")},
    "linear: gradients: expected LaTeX": {"gradients": dict.fromkeys("xWb", " ")},
    "linear: formula: expected LaTeX": {"formula": "$z = W x$"},
    "linear: kept: expected LaTeX": {"kept": {"x": ""}},
    "linear: cost: expected": {"cost": ("$N h d$", "")},
    "unheard": {"formula": r"z = \unheard{W}"},
    "linear: too wide": {"formula": "z = W x" + " + x" * 60},
}


@pytest.mark.parametrize("message", PLANTED)
def test_a_wrong_row_is_an_error_that_names_it(message, tmp_path):
    linear = next(layer for layer in LAYERS if layer.name == "linear")
    with pytest.raises(ValueError, match=message) as error:
        cheatsheet(tmp_path / "sheet.pdf", layers=[linear._replace(**PLANTED[message])])
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "sheet.pdf"):
        assert cli.main(["cheatsheet", "-o", str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"handgrad: {tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not list(tmp_path.parent.glob(".*.unfinished"))


@pytest.mark.parametrize("module", ["typst", "pypandoc"])
def test_a_missing_package_says_what_to_install(module, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["cheatsheet", "-o", str(tmp_path / "sheet.pdf")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"{module} is not installed: .*\[classroom\]", line)
    assert list(tmp_path.iterdir()) == []


# The rows of the catalog --------------------------------------------------------------------------


DRAWN = {}


def draw(layer):
    if layer.name not in DRAWN:
        DRAWN[layer.name] = list(layer.examples(np.random.default_rng(0)))
    return DRAWN[layer.name]


@each_layer
def test_each_differentiable_argument_has_one_gradient(layer):
    names = list(signature(layer.f).parameters)
    for args, _ in draw(layer):
        kinds = {n: np.asarray(a).dtype.kind for n, a in zip(names, args, strict=False)}
        assert set(layer.gradients) == {name for name, kind in kinds.items() if kind == "f"}


@each_layer
def test_a_gradient_is_what_the_notebook_derives_under_its_number(layer):
    for name, formula in layer.gradients.items():
        assert re.match(r"d[A-Za-z\\]+(_.)? = ", formula)
        left, _, right = bare(formula).partition("=")
        derived = equations()[number(layer, name)]
        assert left + "=" in derived, name
        assert re.search(re.escape("=" + right) + r"\\(\\|text|tag|qquad|end)", derived), name


IDEAS = {
    "3.6": r"dx = J_1^\top J_2^\top \cdots J_L^\top du_L",
    "3.7": r"da = da_1 + da_2",
    "4.5": r"D z(W) H = H x",
    "4.6": r"= \langle dz x^\top, H \rangle",
    "4.7": r"dW = \sum_n dz_n x_n^\top",
    "4.8": r"db = \sum_n dz_n",
    "5.3": r"dx = f'(x) \odot da",
    "8.2": r"\langle dx, h \rangle = \langle dz, D f(x) h \rangle",
}


def test_the_first_page_cites_what_the_notebooks_say():
    cited = set(re.findall(r'"(\d+\.\d+)"', TEMPLATE.read_text("utf-8")))
    assert cited == set(IDEAS)
    for number, formula in IDEAS.items():
        assert bare(formula) in equations()[number], number


def sizes(layer, args):
    """How large each letter is: the named axes of the signature, and what leads them."""
    letters = {}
    for parameter, arg in zip(signature(layer.f).parameters.values(), args, strict=False):
        (annotation, *_) = get_args(parameter.annotation) or [parameter.annotation]
        axes = annotation.dim_str.split()
        named = [axis for axis in axes if not axis.startswith("*")]
        split = np.ndim(arg) - len(named)
        letters |= dict(zip(named, np.shape(arg)[split:], strict=True))
        if len(named) < len(axes):
            letters["n" if "*shape" in axes else "N"] = math.prod(np.shape(arg)[:split])
    return letters


def count(tex, letters):
    """A product of numbers and letters, such as 2 N h d."""
    factors = re.findall(r"(\d+|[A-Za-z])(?:\^(\d))?", tex)
    value = lambda x: int(x) if x.isdigit() else letters[x]  # noqa: E731
    return math.prod(value(factor) ** int(power or 1) for factor, power in factors)


@each_layer
def test_a_layer_keeps_what_its_row_names_and_its_gradients_use(layer):
    used = " ".join([*layer.gradients.values(), *re.findall(r"\$([^$]+)\$", layer.where)])
    used = re.sub(r"\\[A-Za-z]+", " ", used)
    for args, hyper in draw(layer):
        z, residuals = layer.f_fwd(*args, **hyper)
        known = {re.match(r"\w", layer.formula)[0]: z}
        for name, arg in zip(signature(layer.f).parameters, args, strict=False):
            formula = layer.gradients.get(name, f"d{name} =")
            known[re.match(r"d([A-Za-z]+)", formula)[1]] = arg
        leaves = jax.tree.leaves(residuals)
        for (symbol, entries), leaf in zip(layer.kept.items(), leaves, strict=True):
            assert symbol in used
            assert leaf.size == count(entries, sizes(layer, args)), symbol
            if set(re.findall("[A-Za-z]+", symbol)) <= set(known):
                assert np.array_equal(leaf, eval(symbol, {}, known)), symbol


UNITS = {
    "": {"mul", "div", "dot_general", "integer_pow", "square"},
    "exp": {"exp", "tanh", "logistic"},
    "log": {"log"},
    "selections": {"select_n"},
}


def counted(jaxpr):
    """How many operations of each unit a traced function does."""
    total = dict.fromkeys(UNITS, 0)
    for equation in jaxpr.eqns:
        for inner in jaxprs_in_params(equation.params):
            total = {unit: total[unit] + more for unit, more in counted(inner).items()}
        size = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "dot_general":
            ((axes, _), _) = equation.params["dimension_numbers"]
            size *= math.prod(equation.invars[0].aval.shape[axis] for axis in axes)
        for unit, primitives in UNITS.items():
            total[unit] += size * (equation.primitive.name in primitives)
    return total


@each_layer
def test_a_layer_costs_what_its_row_says_up_to_what_is_cheaper(layer):
    args, hyper = draw(layer)[-1]
    z, residuals = layer.f_fwd(*args, **hyper)
    forward = jax.make_jaxpr(functools.partial(layer.f, **hyper))(*args)
    back = jax.make_jaxpr(functools.partial(layer.f_bwd, **hyper))(residuals, z)
    for cost, trace in zip(layer.cost, (forward, back), strict=True):
        claims = re.findall(r"\$([^$]+)\$(?: (\w+))?", cost)
        claims = {unit: count(tex, sizes(layer, args)) for tex, unit in claims}
        for unit, found in counted(trace.jaxpr).items():
            if unit in claims:
                assert claims[unit] / 2 <= found <= 2 * claims[unit], (cost, unit, found)
            elif unit != "selections":
                assert found < sum(claims.values()), (cost, unit, found)
