"""Run a notebook's cells in this process: no kernel to start, nothing to draw."""

import linecache
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat

from handgrad import GradientMismatch, figures

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
REGION = re.compile(r"(?sm)^( *)### BEGIN SOLUTION\n.*?### END SOLUTION")


class Kernel:
    """One namespace for cells; it draws nothing, and remembers which gradients were blamed."""

    def __init__(self, monkeypatch, folder):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
        monkeypatch.setattr(figures, "show", lambda alt: plt.close("all"))
        plt.switch_backend("agg")
        self.names = {"__name__": "__main__", "display": self._display}

    def _display(self, *shown):
        for what in shown:
            if isinstance(what, GradientMismatch):
                self._blamed |= {verdict.name for verdict in what.report if not verdict.right}

    def run(self, source):
        """Run a cell; returns the names of the gradients that it showed to be wrong."""
        self._blamed = set()
        name = f"<cell {hash(source)}>"
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)  # for inspect
        exec(compile(source, name, "exec"), self.names)
        return self._blamed

    def saved(self):
        """A function that takes every name back to what it means now."""
        names = dict(self.names)

        def restore():
            self.names.clear()
            self.names.update(names)

        return restore


def prose(path):
    """The text of a notebook's cells in Markdown."""
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def sections(path, heading=r"(?m)^## "):
    """The code from each such heading to the next; what stands before the first comes first."""
    found = [[]]
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown" and re.search(heading, cell.source):
            found.append([])
        elif cell.cell_type == "code":
            found[-1].append(cell.source)
    return found
