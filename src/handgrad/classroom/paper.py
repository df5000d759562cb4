"""A notebook on paper: through pandoc to typst, which sets it."""

import tempfile
from pathlib import Path

from handgrad.classroom import manuscript
from handgrad.notebooks import needs

PAPERS = {"a4": "a4", "letter": "us-letter"}
HERE = Path(__file__).parent


def pdf(notebook, edition, paper="a4"):
    """The notebook, which is in that edition already, as the bytes of a PDF; the same every time.

    Raises:
        ImportError: pandoc or typst is not installed; says which extra has them.
        ValueError: edition or paper is unknown, or the notebook holds something that has no place
            on paper; names it.

    """
    if edition not in manuscript.EDITIONS:
        raise ValueError(f"edition: expected student or instructor; got {edition}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = manuscript.markdown(notebook, folder, paper=True)
        body = manuscript.pandoc(text, "typst-smart", "--syntax-highlighting=none", "--wrap=none")
        return compiled(
            "handout.typ",
            body,
            folder,
            paper,
            ["a-2a", "ua-1"],
            title=manuscript.title(notebook),
            edition=manuscript.EDITIONS[edition],
            names="yes" if edition == "student" else "",
        )


def compiled(template, body, folder, paper, standards="a-2u", **inputs):
    """The body in that template, both typst, as the bytes of a PDF; folder holds its figures.

    A character that no font has is against all of the standards, and a drawing or a formula
    without words against "ua-1".

    Raises:
        ImportError: typst is not installed; says which extra has it.
        ValueError: paper is unknown, or typst refuses what the body holds; quotes it.

    """
    if paper not in PAPERS:
        raise ValueError(f"paper: expected a4 or letter; got {paper}")
    typst = needs("typst")
    parts = [(HERE / name).read_text("utf-8") for name in ("house.typ", template)]
    main = folder / "main.typ"
    main.write_text("".join([*parts, body]), "utf-8")
    try:
        return typst.compile(
            main,
            root=folder,
            ignore_system_fonts=True,
            sys_inputs={"paper": PAPERS[paper], **inputs},
            timestamp=0,
            pdf_standards=standards,
        )
    except typst.TypstError as failure:
        reason = failure.message.removeprefix("panicked with: ").strip('"')
        raise ValueError(reason) from None
