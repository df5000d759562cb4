"""The notebooks, and the parts of one."""

import functools
import re
from pathlib import Path

import nbformat

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
REGION = re.compile(r"(?sm)^( *)### BEGIN SOLUTION\n.*?### END SOLUTION")


@functools.cache
def prose(path):
    """The text of a notebook's cells in Markdown, read once."""
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def sections(path, heading=r"(?m)^## "):
    """The code cells from each such heading to the next; first, those before the first heading."""
    found = [[]]
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown" and re.search(heading, cell.source):
            found.append([])
        elif cell.cell_type == "code":
            found[-1].append(cell)
    return found
