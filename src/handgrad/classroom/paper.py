"""A notebook on paper: through pandoc to typst, which sets it."""

import tempfile
from pathlib import Path

from handgrad.classroom import manuscript

PAPERS = {"a4": "a4", "letter": "us-letter"}
TEMPLATE = Path(__file__).with_name("handout.typ")


def pdf(notebook, edition, paper="a4"):
    """The notebook, which is in that edition already, as the bytes of a PDF; the same every time.

    Raises:
        ImportError: pandoc or typst is not installed; says which extra has them.
        ValueError: edition or paper is unknown, or the notebook holds something that has no place
            on paper; names it.

    """
    if edition not in manuscript.EDITIONS:
        raise ValueError(f"edition: expected student or instructor; got {edition}")
    if paper not in PAPERS:
        raise ValueError(f"paper: expected a4 or letter; got {paper}")
    typst = manuscript.needs("typst")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = manuscript.markdown(notebook, folder, paper=True)
        body = manuscript.pandoc(text, "typst-smart", "--syntax-highlighting=none")
        main = folder / "main.typ"
        main.write_text(TEMPLATE.read_text("utf-8") + body, "utf-8")
        inputs = {
            "title": manuscript.title(notebook),
            "edition": manuscript.EDITIONS[edition],
            "names": "yes" if edition == "student" else "",
            "paper": PAPERS[paper],
        }
        try:  # PDF/A, for which a character that no font has is an error
            return typst.compile(
                main,
                root=folder,
                ignore_system_fonts=True,
                sys_inputs=inputs,
                timestamp=0,
                pdf_standards="a-2u",
            )
        except typst.TypstError as failure:
            raise ValueError(failure.message.partition("\n")[0]) from None
