"""Hand notebooks out: an edition of each, on paper, as a page, or as a notebook."""

import re

from handgrad.classroom.editions import edition, import_anew
from handgrad.notebooks import needs, read

FORMS = ("pdf", "html", "ipynb")
PAPERS = ("a4", "letter")


def handout(paths, kind, form, folder, paper="a4", force=False, plain=False):
    """Write that edition of each notebook into the folder: 03_chain_rule.student.pdf, and so on.

    A plain name is 03_chain_rule.pdf. All handouts are made before the first file is written, and
    a file is written whole or not at all. The same call writes the same bytes again. Returns the
    paths of the files.

    Raises:
        FileExistsError: a file is there already, with other content, and `force` is not set; or it
            is one of the notebooks.
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
        stems = [path.stem for path in paths]
        twice = ", ".join(str(path) for path in paths if stems.count(path.stem) > 1)
        raise ValueError(f"expected notebooks of different names; got {twice}")
    suffix = f".{form}" if plain else f".{kind}.{form}"
    files = {}
    for path in tqdm(paths, disable=None, unit="handout"):
        out = folder / f"{path.stem}{suffix}"
        if out.exists() and out.samefile(path):
            raise FileExistsError(f"{out}: is a notebook to hand out, and not overwritten")
        try:
            files[out] = _rendered(editions[path.stem], kind, form, paper, editions, suffix)
        except ValueError as problem:
            raise ValueError(f"{path.name}: {problem}") from None
    write(files, force)
    return list(files)


def _edition(path, kind):
    notebook = read(path)
    try:
        return edition(notebook, kind)
    except ValueError as problem:
        raise ValueError(f"{path.name}: {problem}") from None


def _rendered(notebook, kind, form, paper, stems, suffix):
    if form == "pdf":
        from handgrad.classroom.paper import pdf

        return pdf(notebook, kind, paper)
    if form == "html":
        from handgrad.classroom.page import html

        return html(notebook, kind).encode()
    nbformat = needs("nbformat")
    if kind == "instructor":  # by which work that comes back is graded
        import_anew(notebook)
    for cell in notebook.cells:  # links lead to the other handouts
        if cell.cell_type == "markdown":
            cell.source = re.sub(
                r"\]\((\w+)\.ipynb\b",
                lambda link: f"]({link[1]}{suffix}" if link[1] in stems else link[0],
                cell.source,
            )
    nbformat.validate(notebook)
    return (nbformat.writes(notebook) + "\n").encode()


def write(files, force=False):
    """Write the bytes of each path, whole or not at all; a folder is made where it must be.

    Raises:
        FileExistsError: paths hold something else, and `force` is not set; names them all, and
            nothing is written.
        IsADirectoryError: a path is a folder; nothing is written.
        OSError: a path cannot be written; names it.

    """
    changed = {path: content for path, content in files.items() if not holds(path, content)}
    if not force and (taken := [str(path) for path in changed if path.is_file()]):
        raise FileExistsError(f"not overwritten without --force: {', '.join(taken)}")
    for path in changed:
        if path.is_dir():
            raise IsADirectoryError(f"{path}: expected the name of a file; got a folder")
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
