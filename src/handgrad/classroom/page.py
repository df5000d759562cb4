"""A notebook as one HTML file that needs nothing else, mathematics included."""

import re
import tempfile
from html import unescape
from importlib import resources
from pathlib import Path

from handgrad.classroom import manuscript
from handgrad.classroom.screen import TAG, anchor, equation
from handgrad.notebooks import needs

HERE = Path(__file__).parent
MATHJAX = "static/mathjax/es5/tex-svg-full.js"


def html(notebook, edition):
    """The notebook, which is in that edition already, as the text of one HTML file.

    Raises:
        ImportError: pandoc or MathJax is not installed; says which extra has them.
        ValueError: edition is unknown, or the notebook holds something that has no place in a
            handout; names it.

    """
    if edition not in manuscript.EDITIONS:
        raise ValueError(f"edition: expected student or instructor; got {edition}")
    mathjax = resources.files(needs("mathjax")).joinpath(MATHJAX)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = manuscript.markdown(notebook, folder, paper=False)
        page = manuscript.pandoc(
            text,
            "html5",
            "--standalone",
            "--embed-resources",
            f"--resource-path={folder}:{HERE}",
            f"--lua-filter={HERE / 'page.lua'}",
            f"--template={HERE / 'page.html'}",
            "--toc",
            "--toc-depth=2",
            f"--mathjax={mathjax}",
            f"--metadata=pagetitle:{manuscript.title(notebook)}",
            f"--metadata=edition:{manuscript.EDITIONS[edition]}",
        )
    page = re.sub(r'<a href="#cb[\d-]+"[^>]*></a>', "", page)
    page = re.sub(r"<th[^>]*></th>", "<td></td>", page)  # nothing is no heading
    return _marked(_laid_out(page))


def _laid_out(page):
    # The displayed formulas, as screen.css has them.
    numbers = set(TAG.findall(page))

    def laid_out(display):
        return equation(unescape(display[1]), lambda n: n in numbers and f"#{anchor(n)}")

    return re.sub(r'(?s)<span\s+class="math display">\\\[(.*?)\\\]</span>', laid_out, page)


def _marked(page):
    # The lines of a solution, by the numbers that the filter left on their block.
    blocks = re.findall(r'id="(cb\d+)"[^>]* data-solved="([\d,]+)"', page)
    lines = [f"#{block}-{number}" for block, numbers in blocks for number in numbers.split(",")]
    rule = ", ".join(lines) + " { background: var(--green-wash); }\n" if lines else ""
    return page.replace("</style>", rule + "</style>", 1)
