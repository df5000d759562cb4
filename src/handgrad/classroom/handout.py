"""Hand notebooks out: an edition of each, on paper, as a page, or as a notebook."""

import re

from handgrad.classroom.editions import edition
from handgrad.notebooks import needs

FORMS = ("pdf", "html", "ipynb")
PAPERS = ("a4", "letter")


def handout(paths, kind, form, folder, paper="a4", force=False):
    """Write that edition of each notebook into the folder: 03_chain_rule.student.pdf, and so on.

    All handouts are made before the first file is written, and a file is written whole or not at
    all. The same call writes the same bytes again. Returns the paths of the files.

    Raises:
        FileExistsError: a file is there already, with other content, and `force` is not set.
        FileNotFoundError: a path names no notebook.
        ImportError: what the form needs is not installed; names the extra that installs it.
        OSError: the folder cannot be written.
        ValueError: there is no such kind, form or paper, or a notebook is malformed.

    """
    for name, value, known in (("form", form, FORMS), ("paper", paper, PAPERS)):
        if value not in known:
            raise ValueError(f"{name}: expected {' or '.join(known)}; got {value!r}")
    from tqdm import tqdm

    editions = {path.stem: _edition(path, kind) for path in paths}
    if len(editions) < len(paths):
        raise ValueError("two of the notebooks have the same name")
    files = {}
    for stem in tqdm(editions, disable=None, unit="handout"):
        path = folder / f"{stem}.{kind}.{form}"
        files[path] = _rendered(editions[stem], kind, form, paper, editions)
    write(files, force)
    return list(files)


def _edition(path, kind):
    nbformat = needs("nbformat")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such notebook")
    try:
        notebook = nbformat.convert(nbformat.reader.reads(path.read_text("utf-8")), 4)
        nbformat.validate(notebook)
    except Exception as problem:  # nbformat has half a dozen types of error for a malformed file
        reason = str(problem).partition("\n")[0]
        raise ValueError(f"{path.name}: not a valid notebook: {reason}") from None
    try:
        return edition(notebook, kind)
    except ValueError as problem:
        raise ValueError(f"{path.name}: {problem}") from None


def _rendered(notebook, kind, form, paper, stems):
    if form == "pdf":
        from handgrad.classroom.paper import pdf

        return pdf(notebook, kind, paper)
    if form == "html":
        from handgrad.classroom.page import html

        return html(notebook, kind).encode()
    import nbformat

    for cell in notebook.cells:  # links lead to the other handouts
        if cell.cell_type == "markdown":
            cell.source = re.sub(
                r"\]\((\w+)\.ipynb\b",
                lambda link: f"]({link[1]}.{kind}.ipynb" if link[1] in stems else link[0],
                cell.source,
            )
    nbformat.validate(notebook)
    return (nbformat.writes(notebook) + "\n").encode()


def write(files, force=False):
    """Write the bytes of each path, whole or not at all; a folder is made where it must be.

    Raises:
        FileExistsError: paths hold something else, and `force` is not set; names them all, and
            nothing is written.
        OSError: a path cannot be written; names it.

    """
    changed = {path: content for path, content in files.items() if not holds(path, content)}
    if not force and (taken := [str(path) for path in changed if path.is_file()]):
        raise FileExistsError(f"not overwritten without --force: {', '.join(taken)}")
    for path, content in changed.items():
        _write(path, content)


def holds(path, content):
    """Whether the path is a file of these bytes."""
    return path.is_file() and path.read_bytes() == content


def _write(path, content):
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(content)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except FileExistsError:
        raise OSError(f"{path.parent}: not a folder") from None
    except OSError as problem:
        raise OSError(f"{path}: cannot be written: {problem.strerror}") from None
