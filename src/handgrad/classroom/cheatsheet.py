"""The catalog as a sheet of paper, to pin to a wall."""

import re
import tempfile
from functools import cache
from inspect import signature
from pathlib import Path
from typing import NamedTuple

from handgrad.catalog import ROWS
from handgrad.classroom import facts, manuscript
from handgrad.classroom.handout import write
from handgrad.classroom.paper import compiled

# dz, d\gamma, d\hat x or dz_n, and not the d of \odot
COTANGENT = re.compile(
    r"(?<![\\A-Za-z])d(?:\\hat )?(?:[A-Za-z]|\\[A-Za-z]+)(?![A-Za-z])(?:_(?:\w|{[^}]*}))?"
)


def cheatsheet(path, paper="a4", rows=ROWS, force=False):
    """Write the sheet of these rules to the path, the same bytes at every call; returns the path.

    The ideas fill the first page, and the rules as many more as they need, some 35 a page.

    Raises:
        FileExistsError: the path holds something else, and `force` is not set.
        ImportError: pandoc or typst is not installed; says which extra has them.
        OSError: the path cannot be written.
        ValueError: paper is unknown, or a row of the catalog lacks something or is too wide.

    """
    told = [_told(row) for row in rows]
    typst = _typeset(dict.fromkeys(text for one in told for text in one.texts()))
    cells = "".join(_row(one, typst) for one in told)
    with tempfile.TemporaryDirectory() as folder:
        sheet = compiled("cheatsheet.typ", f"#sheet((\n{cells}))\n", Path(folder), paper)
    write({path: sheet}, force)
    return path


class _Facts(NamedTuple):
    """A row of the catalog, and what the code tells of its rule."""

    row: object
    numbers: dict
    kept: dict
    cost: tuple

    def texts(self):
        """All that pandoc has to set."""
        formulas = (self.row.formula, *self.row.gradients.values(), *self.kept, *self.kept.values())
        yield from (f"${tex}$" for tex in formulas)
        yield from self.cost
        if self.row.where:
            yield self.row.where


@cache
def _told(row):
    for tex in (row.formula, *row.gradients.values()):
        if not tex.strip() or "$" in tex:
            raise ValueError(f"{row.name}: expected a formula in LaTeX; got {tex!r}")
    numbers = facts.equations(row)
    if wrong := sorted(set(row.gradients) ^ set(numbers)):
        raise ValueError(
            f"{row.name}: gradients: expected a formula for each argument with an equation in "
            f"{row.name}_bwd, {', '.join(numbers)}; wrong or missing: {', '.join(wrong)}"
        )
    return _Facts(row, numbers, facts.kept(row), facts.cost(row))


def _typeset(texts):
    # One call of pandoc for all of them, a paragraph each.
    marked = "\n\n".join(re.sub(r"\$[^$]+\$", _marked, text) for text in texts)
    typst = manuscript.pandoc(manuscript.formulas(marked), "typst-smart", "--wrap=none")
    return dict(zip(texts, typst.strip().split("\n\n"), strict=True))


def _marked(formula):
    # The filter makes a function of this name, which the template defines.
    opened, shut = (rf"\operatorname{{{side}cotangent}}" for side in ("open", "shut"))
    return COTANGENT.sub(lambda found: f"{opened} {found[0]} {shut} ", formula[0])


def _row(told, typst):
    # A rule as a dictionary of typst.
    def formula(tex):
        return f"[{typst[f'${tex}$']}]"

    row, numbers, kept, (forth, back) = told
    parameters = signature(row.f).parameters.values()
    arguments = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    hyper = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    fields = {
        "name": f'"{row.name}"',
        "arguments": '"'
        + "; ".join(", ".join(group) for group in (arguments, hyper) if group)
        + '"',
        "notebook": f'"{int(row.notebook[:2])}"',
        "forward": formula(row.formula),
        "gradients": _array((formula(row.gradients[d]), f'"{numbers[d]}"') for d in numbers),
        "kept": _array((formula(name), formula(entries)) for name, entries in kept.items()),
        "forth": f"[{typst[forth]}]",
        "back": f"[{typst[back]}]",
        "where": f"[{typst[row.where]}]" if row.where else "none",
    }
    return "(" + ", ".join(f"{name}: {value}" for name, value in fields.items()) + "),\n"


def _array(pairs):
    return "(" + "".join(f"({one}, {other}), " for one, other in pairs) + ")"
