"""The catalog on two pages, to pin to a wall."""

import inspect
import re
import tempfile
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
    rows = [_row(layer) for layer in layers]
    typst = iter(_typeset([text for row in rows for text in row["texts"]]))
    body = "".join(_call(row, [next(typst) for _ in row["texts"]]) for row in rows)
    with tempfile.TemporaryDirectory() as folder:
        sheet = compiled("cheatsheet.typ", f"#sheet((\n{body}))\n", Path(folder), paper)
    write(path, sheet)
    return path


def _row(layer):
    # What the sheet says of a layer; its texts, in Markdown, are still to be set.
    parameters = inspect.signature(layer.f).parameters.values()
    arguments = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    hyper = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    source = inspect.getsource(layer.f_bwd)
    numbers = {a: re.findall(EQUATION.format(a), source) for a in arguments}
    differentiable = [a for a in arguments if numbers[a]]
    if set(layer.gradients) != set(differentiable):
        wrong = ", ".join(sorted(set(layer.gradients) ^ set(differentiable)))
        raise ValueError(
            f"{layer.name}: gradients: expected a formula for each argument with an equation in "
            f"{layer.name}_bwd, {', '.join(differentiable)}; wrong or missing: {wrong}"
        )
    formulas = {"formula": [layer.formula]}
    formulas |= {f"gradients of {a}": [layer.gradients[a]] for a in differentiable}
    formulas |= {"kept": [text for pair in layer.kept.items() for text in pair]}
    for field, texts in formulas.items():
        if not texts or not all(text.strip() for text in texts) or "$" in "".join(texts):
            raise ValueError(f"{layer.name}: {field}: expected LaTeX; got {texts}")
    if len(layer.cost) != 2 or not all(layer.cost):
        raise ValueError(f"{layer.name}: cost: expected (forward, back); got {layer.cost}")
    texts = [f"${text}$" for texts in formulas.values() for text in texts] + list(layer.cost)
    return {
        "name": layer.name,
        "arguments": ", ".join(arguments) + ("; " + ", ".join(hyper) if hyper else ""),
        "notebook": str(int(layer.notebook.partition("_")[0])),
        "numbers": [numbers[a][0] for a in differentiable],
        "texts": texts + [layer.where] * bool(layer.where),
        "where": bool(layer.where),
    }


def _typeset(texts):
    # All in one call of pandoc, a paragraph each, and with a color to mark the cotangents.
    marked = [re.sub(r"\$[^$]+\$", lambda found: _marked(found[0]), text) for text in texts]
    text = manuscript.formulas("\n\n".join(marked))
    typst = manuscript.pandoc(text, "typst-smart", "--wrap=none").strip().split("\n\n")
    if len(typst) != len(texts):
        raise ValueError("a text of the catalog is more than one paragraph")
    return typst


def _marked(formula):
    # The filter makes functions of these names.
    name = r"\operatorname{%scotangent}"
    return COTANGENT.sub(lambda d: f"{name % 'open'} {d[0]} {name % 'shut'} ", formula)


def _call(row, texts):
    # The row as a dictionary of typst.
    content = [f"[{text}]" for text in texts]
    where = content.pop() if row["where"] else "none"
    forward, *content, forth, back = content
    count = len(row["numbers"])
    gradients, kept = content[:count], content[count:]
    fields = {
        **{field: f'"{row[field]}"' for field in ("name", "arguments", "notebook")},
        **{"forward": forward, "where": where, "forth": forth, "back": back},
        "gradients": _array(gradients, [f'"{number}"' for number in row["numbers"]]),
        "kept": _array(kept[::2], kept[1::2]),
    }
    return "(" + ", ".join(f"{field}: {value}" for field, value in fields.items()) + "),\n"


def _array(firsts, seconds):
    return "(" + "".join(f"({a}, {b}), " for a, b in zip(firsts, seconds, strict=True)) + ")"
