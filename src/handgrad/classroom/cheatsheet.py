"""The catalog on two pages, to pin to a wall."""

import inspect
import re
import tempfile
from inspect import signature
from pathlib import Path

from handgrad.catalog import LAYERS
from handgrad.classroom import manuscript
from handgrad.classroom.handout import write
from handgrad.classroom.paper import compiled

EQUATION = r"(?m)^ +d{} = .*# \((\d+\.\d+)\)$"
# dz, d\gamma or dz_n, and not the d of \odot
COTANGENT = re.compile(r"(?<![\\A-Za-z])d(?:[A-Za-z]|\\[A-Za-z]+)(?![A-Za-z])(?:_(?:\w|{[^}]*}))?")


def cheatsheet(path, paper="a4", layers=LAYERS):
    """Write the sheet of these layers to the path, the same bytes at every call; returns the path.

    Raises:
        ImportError: pandoc or typst is not installed; says which extra has them.
        OSError: the path cannot be written.
        ValueError: paper is unknown, a row of the catalog lacks something, or the layers do not
            fit on two pages in letters that one can read.

    """
    numbers = [_numbers(layer) for layer in layers]
    typst = _typeset(dict.fromkeys(text for layer in layers for text in _texts(layer)))
    rows = [_row(*of, typst) for of in zip(layers, numbers, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        sheet = compiled("cheatsheet.typ", f"#sheet((\n{''.join(rows)}))\n", Path(folder), paper)
    write(path, sheet)
    return path


def _numbers(layer):
    # The equation of each gradient, in the order of the arguments: the code says them.
    source = inspect.getsource(layer.f_bwd)
    found = {
        name: re.search(EQUATION.format(name), source) for name in signature(layer.f).parameters
    }
    numbers = {name: match[1] for name, match in found.items() if match}
    if wrong := sorted(set(layer.gradients) ^ set(numbers)):
        raise ValueError(
            f"{layer.name}: gradients: expected a formula for each argument with an equation in "
            f"{layer.f_bwd.__name__}, {', '.join(numbers)}; wrong or missing: {', '.join(wrong)}"
        )
    return numbers


def _texts(layer):
    # All that pandoc has to set for a layer.
    formulas = {
        "formula": [layer.formula],
        "gradients": layer.gradients.values(),
        "kept": [*layer.kept, *layer.kept.values()],
    }
    for field, texts in formulas.items():
        for text in texts:
            if not text.strip() or "$" in text:
                raise ValueError(f"{layer.name}: {field}: expected LaTeX; got {text!r}")
            yield f"${text}$"
    if len(layer.cost) != 2 or not all(layer.cost):
        raise ValueError(f"{layer.name}: cost: expected (forward, back); got {layer.cost}")
    yield from layer.cost
    if layer.where:
        yield layer.where


def _typeset(texts):
    # One call of pandoc for all of them, a paragraph each.
    marked = "\n\n".join(re.sub(r"\$[^$]+\$", _marked, text) for text in texts)
    typst = manuscript.pandoc(manuscript.formulas(marked), "typst-smart", "--wrap=none")
    return dict(zip(texts, typst.strip().split("\n\n"), strict=True))


def _marked(formula):
    # The filter makes a function of this name, which the template defines.
    opened, shut = (rf"\operatorname{{{side}cotangent}}" for side in ("open", "shut"))
    return COTANGENT.sub(lambda found: f"{opened} {found[0]} {shut} ", formula[0])


def _row(layer, numbers, typst):
    # A layer as a dictionary of typst.
    def formula(tex):
        return f"[{typst[f'${tex}$']}]"

    parameters = signature(layer.f).parameters.values()
    arguments = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    hyper = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    fields = {
        "name": f'"{layer.name}"',
        "arguments": '"'
        + "; ".join(", ".join(group) for group in (arguments, hyper) if group)
        + '"',
        "notebook": f'"{int(layer.notebook[:2])}"',
        "forward": formula(layer.formula),
        "gradients": _array((formula(layer.gradients[d]), f'"{numbers[d]}"') for d in numbers),
        "kept": _array((formula(name), formula(entries)) for name, entries in layer.kept.items()),
        "forth": f"[{typst[layer.cost[0]]}]",
        "back": f"[{typst[layer.cost[1]]}]",
        "where": f"[{typst[layer.where]}]" if layer.where else "none",
    }
    return "(" + ", ".join(f"{name}: {value}" for name, value in fields.items()) + "),\n"


def _array(pairs):
    return "(" + "".join(f"({one}, {other}), " for one, other in pairs) + ")"
