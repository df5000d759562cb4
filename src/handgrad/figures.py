"""The drawings that several notebooks share, and the one legend of the collection.

Inputs are blue, parameters green, cotangents orange, mistakes red: four colours of Okabe and Ito's
palette, which colour-blind readers tell apart and which differ in grey print.
"""

import ast
import inspect
import io
import re
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib import patches
from matplotlib_inline.backend_inline import set_matplotlib_formats

from handgrad.notebooks import FOLDER, opening

INPUT, PARAMETER, COTANGENT, MISTAKE = "#0072B2", "#009E73", "#E69F00", "#B2182B"


def use_house_style():
    """Vector figures with the page's text size, the same bytes at every run."""
    plt.rcParams.update(
        {
            "svg.hashsalt": "handgrad",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=[INPUT, PARAMETER, COTANGENT, MISTAKE]),
            "axes.grid": False,
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
        }
    )
    set_matplotlib_formats("svg", metadata={"Date": None})


def show(alt):
    """Show the current figure, with words for whoever can't see it: what to notice in it."""
    figure, svg = plt.gcf(), io.StringIO()
    figure.savefig(svg, format="svg", bbox_inches="tight", metadata={"Date": None, "Title": alt})
    plt.close(figure)
    display({"image/svg+xml": svg.getvalue(), "text/plain": alt}, raw=True)


def matrix(ax, M, title="", color=INPUT):
    """Draw M (rows, columns), of numbers or strings, as cells; a zero stays pale.

    Raises:
        ValueError: M has not two axes.

    """
    M = np.asarray(M)
    if M.ndim != 2:
        raise ValueError(f"M: expected a matrix; got shape {M.shape}")
    rows, columns = M.shape
    for i, j in np.ndindex(rows, columns):
        value = M[i, j]
        text = value if isinstance(value, str) else f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
        zero = text in ("0", "\N{MINUS SIGN}0")
        fill = patches.Rectangle((j, i), 1, 1, fc=color, alpha=0.06 if zero else 0.3, ec="none")
        edge = patches.Rectangle((j, i), 1, 1, fill=False, ec="white", lw=2)
        ax.add_patch(fill)
        ax.add_patch(edge)
        ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", alpha=0.35 if zero else 1)
    ax.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal", title=title)
    ax.axis("off")


def collection_map(ax):
    """Draw the collection's notebooks, an arrow from each to those that build on it.

    Titles come from the notebooks' first headings, arrows from the links in "You need": all of them
    but those that a longer path of arrows implies.
    """
    titles, needs = {}, {}
    for path in sorted(FOLDER.glob("[0-9][0-9]_*.ipynb")):
        title, text = opening(path)
        if path.stem[:2] != "00":
            titles[path.stem[:2]] = title
            needed = text[text.index("**You need**") :]
            needs[path.stem[:2]] = set(re.findall(r"\]\((\d\d)_\w+\.ipynb\)", needed)) - {"00"}
    depth, behind = {}, {}
    for number in titles:  # in order, so what a notebook needs has been met before it
        depth[number] = 1 + max((depth[n] for n in needs[number]), default=0)
        behind[number] = needs[number].union(*(behind[n] for n in needs[number]))
    columns = [[n for n in titles if depth[n] == d] for d in sorted(set(depth.values()))]
    place = {
        number: (x, (len(column) - 1) / 2 - i)
        for x, column in enumerate(columns)
        for i, number in enumerate(column)
    }
    size = min(6.5, 48 / len(columns))  # so that no box reaches the next one
    style = {"boxstyle": "round,pad=0.3", "fc": "white", "ec": INPUT, "lw": 1.2}
    boxes = {}
    for number, title in titles.items():
        words = f"{number}\n" + "\n".join(textwrap.wrap(title, 13))
        kept = {"ha": "center", "va": "center", "fontsize": size, "bbox": style}
        # below the arrows, which end where this one ends, and above those that pass by
        for layer in (4, 2):
            box = ax.text(*place[number], words, zorder=layer, **kept)
        boxes[number] = box.get_bbox_patch()
    for number in titles:
        implied = set().union(*(behind[n] for n in needs[number]))
        for needed in needs[number] - implied:
            far = depth[number] - depth[needed] - 1
            arrow = {
                "arrowstyle": "-|>",
                "color": "0.4",
                "connectionstyle": f"arc3,rad={-0.25 * far}",  # around what stands between
                "patchA": boxes[needed],
                "patchB": boxes[number],
            }
            ax.annotate("", place[number], place[needed], arrowprops=arrow)
    tallest = max(map(len, columns)) / 2
    ax.set(xlim=(-0.6, len(columns) - 0.4), ylim=(-tallest, tallest))
    ax.axis("off")


def execution_trace(ax, forward, parameters=()):
    """Draw the execution trace of a forward pass, read from its source.

    Every statement is `value = expression`; a tap around the expression is left out. A value stands
    as far to the right as it takes steps to reach it, and what else its expression takes hangs off
    it, parameters in green. Dashed orange arrows carry the cotangents back; where several arrive
    at one value, they meet in a plus.

    Raises:
        ValueError: a statement is not of that form.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(forward))).body[0]
    inputs = [argument.arg for argument in tree.args.args]
    column, takes, labels = {}, {}, {}
    for statement in tree.body:
        if isinstance(statement, ast.Return) or isinstance(
            getattr(statement, "value", 0), ast.Constant
        ):
            continue
        named = isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        value, taken = (statement.targets[0].id, statement.value) if named else ("", statement)
        if isinstance(taken, ast.Call) and ast.unparse(taken.func).split(".")[-1] == "tap":
            taken = taken.args[1]
        names = [node.id for node in ast.walk(taken) if isinstance(node, ast.Name)]
        takes[value] = [n for n in dict.fromkeys(names) if n in inputs or n in column]
        first = [n for n in takes[value] if n not in parameters][:1]
        column = column or dict.fromkeys(first, 0)
        before = [column[n] for n in takes[value] if n in column]
        if not named or not before:
            raise ValueError(
                f"forward: expected value = function(...); got {ast.unparse(statement)}"
            )
        column[value] = 1 + max(before)
        plain = isinstance(taken, ast.Call) and all(isinstance(a, ast.Name) for a in taken.args)
        label = re.sub(r"\b[a-z]+\.", "", ast.unparse(taken.func if plain else taken))
        labels[value] = label.replace(" ** 2", "\N{SUPERSCRIPT TWO}")
    place = {}
    for name, step in column.items():
        beside = [n for n in column if column[n] == step]
        x, y = 1.7 * step, 1.8 * ((len(beside) - 1) / 2 - beside.index(name))
        place[name] = (x, y)
        hanging = [source for source in takes.get(name, ()) if source not in column]
        for i, source in enumerate(hanging):
            off = 0.8 * (i - (len(hanging) - 1) / 2)
            place[source] = (x + off, y + (1.3 if y > 0 else -1.3))
    circles = {}
    for name, (x, y) in place.items():
        color = PARAMETER if name in parameters else INPUT if name in inputs else "0.35"
        circles[name] = patches.Circle((x, y), 0.3, fc="white", ec=color, lw=1.6, zorder=2)
        ax.add_patch(circles[name])
        label = re.sub(r"^([A-Za-z]+)(\d+)$", r"$\1_\2$", name)
        label = label if label != name else f"${name}$"
        ax.text(x, y, label, ha="center", va="center", zorder=3)
    back = {"arrowstyle": "-|>", "color": COTANGENT, "ls": "--"}
    meet, meeting = dict(place), dict(circles)
    for name in column:
        if sum(name in taken for taken in takes.values()) > 1:
            meet[name] = (place[name][0] + 0.72, place[name][1])
            meeting[name] = patches.Circle(meet[name], 0.16, fc="white", ec=COTANGENT, zorder=2)
            ax.add_patch(meeting[name])
            ax.text(*meet[name], "+", color=COTANGENT, ha="center", va="center", zorder=3)
            ends = {"patchA": meeting[name], "patchB": circles[name]}
            ax.annotate("", place[name], meet[name], arrowprops=back | ends)
    for source, value in [(source, value) for value, taken in takes.items() for source in taken]:
        ends = {"patchA": circles[source], "patchB": circles[value]}
        forth = {"arrowstyle": "-|>", "color": "0.35", **ends}
        ax.annotate("", place[value], place[source], arrowprops=forth)
        (x0, y0), (x1, y1) = place[source], place[value]
        side, rise = (-1 if y0 + y1 < 0 else 1), abs(y1) - abs(y0)
        if source in column and value in labels:
            above = {"ha": "center" if not rise else "right" if rise > 0 else "left"}
            above["va"] = "bottom" if side > 0 else "top"
            at = ((x0 + x1) / 2, (y0 + y1) / 2 + 0.1 * side)
            ax.text(*at, labels.pop(value), fontsize=6.5, **above)
        if source in parameters or source in column:
            bend = -0.35 if source not in column else -0.2 if rise else 0.55
            curve = {"connectionstyle": f"arc3,rad={bend * side}"}
            ends = {"patchA": circles[value], "patchB": meeting[source]}
            ax.annotate("", meet[source], place[value], arrowprops=back | curve | ends)
    low, high = (end(y for _, y in place.values()) for end in (min, max))
    high = max(high + 0.4, 1.0 + max(place[name][1] for name in column))
    ax.set(xlim=(-0.5, 1.7 * max(column.values()) + 0.5), ylim=(low - 0.4, high), aspect="equal")
    ax.axis("off")
