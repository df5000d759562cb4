"""A notebook may be run in any order: each section, and each cell, again by itself."""

from pathlib import Path

import pytest
from kernel import Kernel, sections

from handgrad import GradientMismatch

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_section_and_a_cell_may_be_run_again(path, monkeypatch):
    kernel = Kernel(monkeypatch, path.parent)
    preamble, *rest = sections(path)
    cells = [cell for section in (preamble, *rest) for cell in section]
    first = [kernel.run(cell) for cell in cells]
    restore = kernel.saved()
    for section in rest:
        restore()
        for cell in section:
            kernel.run(cell)
    for cell, blamed in zip(cells, first, strict=True):
        restore()
        try:
            again = kernel.run(cell)
        except GradientMismatch as mistake:
            pytest.fail(f"{mistake}\ncalled wrong when this cell is run again:\n{cell}")
        except Exception:  # a cell that needs its section fails, but it must not accuse
            continue
        assert again == blamed, f"another verdict when this cell is run again:\n{cell}"
