"""The executed notebooks as a static site that opens from a folder, without a network."""

import hashlib
import io
import re
import shutil
import tempfile
from copy import deepcopy
from html import escape
from pathlib import Path

from handgrad.classroom.editions import edition
from handgrad.classroom.screen import NUMBER, TAG, anchor, equation, linked
from handgrad.notebooks import needs

SEAL = ".handgrad"  # in a site: tells that the rest is as it was made
NEEDS = ("furo", "mathjax", "myst_nb", "nbformat", "sphinx")
LINKS = "color-brand-primary", "color-brand-content", "color-brand-visited"
DARK = "invert(92%) hue-rotate(180deg)"  # a figure's white becomes the page's, and blue stays blue
SETTINGS = {
    "project": "handgrad",
    "extensions": ["myst_nb", "handgrad.classroom.site"],
    "root_doc": "index",
    "nb_execution_mode": "off",
    "nb_render_markdown_format": "myst",
    "myst_enable_extensions": ["dollarmath", "amsmath"],
    "myst_dmath_double_inline": True,
    "myst_heading_anchors": 3,
    "mathjax_path": "mathjax.js",
    # its menu would look for more of MathJax than the one file; a shared outline costs more to
    # look up than to draw again
    "mathjax3_config": {"options": {"enableMenu": False}, "svg": {"fontCache": "none"}},
    "html_theme": "furo",
    "html_theme_options": {
        "light_css_variables": dict.fromkeys(LINKS, "#0072B2")
        | {"right": "#007A59", "wrong": "#B2182B", "tint": "7%", "figure": "none"},
        "dark_css_variables": dict.fromkeys(LINKS, "#6CB8E6")
        | {"right": "#3FC49C", "wrong": "#FF8A80", "tint": "13%", "figure": DARK},
    },
    "html_static_path": ["_static"],
    "html_css_files": ["screen.css", "site.css"],
    "html_js_files": ["screen.js"],
    "html_use_index": False,
    "html_copy_source": False,
    "html_show_copyright": False,
    # a page that was opened from a folder may not read another one to quote from it
    "html_show_search_summary": False,
}
TITLES = {"instructor": "handgrad, with solutions", "student": "handgrad, student edition"}
AMENDED = {  # what the theme leaves out for those who have the page read to them
    'role="heading">': 'role="heading" aria-level="2">',
    '<article role="main"': "<article",
    '<div class="article-container">': '<div class="article-container" role="main">',
    '<aside class="sidebar-drawer': '<aside aria-label="Site" class="sidebar-drawer',
    '<aside class="toc-drawer': '<aside aria-label="On this page" class="toc-drawer',
    '(?=<div id="search-results">)': "<h1>Search</h1>\n",
    r"<th[^>]*>(<p>)?\s*(</p>)?\s*</th>": "<td></td>",
}
UNFOLD = '<details class="solution"><summary>Show {}</summary>'


def build(notebooks, out, kind="instructor"):
    """Make the site of the folder `notebooks` in the folder `out`; return its front page.

    It holds the solutions, folded, and its title says so; of the kind "student" it holds none.

    The front page is the README beside `notebooks`, and whatever it and the notebooks link to
    comes along. `out` is replaced as a whole when all went well, or else stays as it was.

    Raises:
        FileExistsError: `out` holds something other than a site, or one that has been changed.
        FileNotFoundError: there is no notebook, or no README beside the folder.
        ImportError: a library is missing; says which extra installs it.
        NotADirectoryError: a file is where `out`, or a folder above it, would be.
        RuntimeError: Sphinx has warned; quotes it.
        ValueError: there is no such kind; or a notebook has not been executed, or is malformed.

    """
    if kind not in TITLES:
        raise ValueError(f"kind: expected {' or '.join(TITLES)}; got {kind!r}")
    for name in NEEDS:
        needs(name)
    notebooks, out = Path(notebooks).resolve(), Path(out).resolve()
    for path in (out, *out.parents):
        if path.is_file():
            raise NotADirectoryError(f"{path}: not a folder")
    if out.exists() and any(out.iterdir()) and not _sealed(out):
        expected = "expected a new or empty folder, or a site that nobody has changed"
        raise FileExistsError(f"{out}: {expected}; left as it is")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as work:
        source, html = Path(work, "source"), Path(work, "html")
        _write_sources(notebooks, source, kind)
        _run_sphinx(source, html, kind)
        (html / SEAL).write_text(_digest(html), "utf-8")
        if out.exists():
            out.rename(Path(work, "before"))
        html.rename(out)
    return out / "index.html"


def _sealed(out):
    return (out / SEAL).is_file() and (out / SEAL).read_text("utf-8") == _digest(out)


def _digest(folder):
    # Of the names of all files but the seal, and of what they hold.
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    digest = hashlib.sha256()
    for path in files:
        name = path.relative_to(folder).as_posix().encode()
        digest.update(hashlib.sha256(name).digest() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _write_sources(notebooks, source, kind):
    # What Sphinx reads lies as it does in the project, so that links between files hold.
    import mathjax

    root, pages = notebooks.parent, sorted(notebooks.glob("*.ipynb"))
    if not pages:
        raise FileNotFoundError(f"{notebooks}: no notebooks there")
    front = root / "README.md"
    pages.insert(0, front)
    for page in pages:  # which grows by what a page links to
        place = source / ("index.md" if page == front else page.relative_to(root))
        place.parent.mkdir(parents=True, exist_ok=True)
        text = _text(page, kind)
        if text is None:
            shutil.copyfile(page, place)
            continue
        if page.suffix == ".py":
            shutil.copyfile(page, place)
            place = place.with_suffix(".md")
        for target in re.findall(r"\]\(([^)\s#:]+)", text):
            linked = (page.parent / target).resolve()
            if linked.is_file() and linked.is_relative_to(root) and linked not in pages:
                pages.append(linked)
        text = re.sub(r"(\]\([^)\s:]*)\.py\)", r"\1.md)", text)
        text = re.sub(r"(\]\([^)\s:]*)README\.md", r"\1index.md", text)
        place.write_text(text, "utf-8")
    with (source / "index.md").open("a", encoding="utf-8") as index:
        for title, suffix in {"Notebooks": ".ipynb", "Modules": ".py", "More": ".md"}.items():
            kin = [p.relative_to(root) for p in pages if p.suffix == suffix and p != front]
            listed = "\n".join(path.with_suffix("").as_posix() for path in kin)
            index.write(f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{listed}\n```\n")
    static = source / "_static"
    static.mkdir()
    for name in ("screen.css", "site.css", "screen.js"):
        shutil.copyfile(Path(__file__).with_name(name), static / name)
    es5 = Path(mathjax.__file__).parent / "static" / "mathjax" / "es5"
    shutil.copyfile(es5 / "tex-svg-full.js", static / "mathjax.js")


def _text(page, kind):
    # A page of the site as Sphinx reads it; None for a file that is not a page.
    if page.suffix == ".ipynb":
        return _notebook(page, kind)
    if page.suffix == ".py":
        return f"# `{page.stem}`\n\n```{{literalinclude}} {page.name}\n```\n"
    return page.read_text("utf-8") if page.suffix == ".md" else None


def _notebook(path, kind):
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    first = notebook.cells[0]
    if re.match(r"\[.*(←|→).*\]\(", first.source):  # the theme has its own previous and next
        first.source = first.source.partition("\n")[2]
    if any(cell.get("execution_count", 1) is None for cell in notebook.cells):
        raise ValueError(f"{path}: a cell is not executed; run `handgrad accept {path}`")
    if kind == "student":
        try:
            notebook = edition(notebook, kind)
        except ValueError as problem:
            raise ValueError(f"{path.name}: {problem}") from None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for data in (output.get("data", {}) for output in cell.outputs):
                if "image/svg+xml" in data:  # its words stand beside it
                    cell.metadata["mystnb"] = {"image": {"alt": data["text/plain"]}}
            if "### BEGIN SOLUTION" in cell.source:
                cell.source = re.sub(r"(?m)^ *### (BEGIN|END) SOLUTION\n?", "", cell.source)
                cell.metadata["tags"] = [*cell.metadata.get("tags", []), "solution"]
        elif "solution" in cell.metadata.get("tags", []):
            cell.source = UNFOLD.format("the solution") + f"\n\n{cell.source}\n\n</details>"
    return nbformat.writes(notebook)


def _run_sphinx(source, html, kind):
    from sphinx.application import Sphinx
    from sphinx.util.console import strip_colors
    from sphinx.util.docutils import docutils_namespace, patch_docutils
    from tqdm import tqdm

    warnings = io.StringIO()
    pages = sum(path.suffix in (".ipynb", ".md") for path in source.rglob("*.*"))
    progress = tqdm(total=pages, disable=None, unit="page")
    with patch_docutils(), docutils_namespace(), progress:
        app = Sphinx(
            srcdir=source,
            confdir=None,
            outdir=html,
            doctreedir=html.with_name("doctrees"),
            buildername="html",
            confoverrides=deepcopy(SETTINGS)
            | {"html_title": TITLES[kind]},  # extensions write into it
            status=None,
            warning=warnings,
        )
        app.connect("source-read", lambda *_: progress.update())
        app.build()
    for page in html.rglob("*.html"):
        text = page.read_text("utf-8")
        for pattern, better in AMENDED.items():
            text = re.sub(pattern, better, text)
        page.write_text(text, "utf-8")
    if complaints := strip_colors(warnings.getvalue()).replace(f"{source}/", "").strip():
        raise RuntimeError(f"the site is not written, since Sphinx warns:\n{complaints}")


def setup(app):
    """What Sphinx is to do for us: fold solutions, and link an equation's number to it."""
    from docutils import nodes

    equations = {}

    def raw(html):
        return nodes.raw("", html, format="html")

    def fold(app, document):
        for cell in document.findall(nodes.container):
            if "solution" in cell.get("cell_metadata", {}).get("tags", []):
                cell.insert(0, raw(UNFOLD.format("the code")))
                cell.append(raw("</details>"))

    def number(app, document):
        for block in document.findall(nodes.math_block):
            for tag in TAG.findall(block.astext()):
                equations[tag] = app.env.docname

    def link(app, document, page):
        def address(number):
            there = equations.get(number)
            return there and f"{app.builder.get_relative_uri(page, there)}#{anchor(number)}"

        for block in list(document.findall(nodes.math_block)):
            html = equation(block.astext(), address)
            block.parent.replace(block, raw(f"<p>{html}</p>"))
        verbatim = nodes.FixedTextElement, nodes.literal, nodes.math, nodes.reference, nodes.title
        for text in list(document.findall(nodes.Text)):
            if not isinstance(text.parent, (*verbatim, nodes.raw)) and NUMBER.search(text):
                text.parent.replace(text, raw(linked(text, address)))

    def caption(app, document, page):
        for image in list(document.findall(nodes.image)):
            if "alt" in image and isinstance(image.parent, nodes.container):
                words = escape(image["alt"], quote=False)
                words = f'<figcaption aria-hidden="true">{words}</figcaption></figure>'
                place = image.parent.index(image)
                image.parent[place : place + 1] = [raw("<figure>"), image, raw(words)]

    app.connect("doctree-read", fold)
    app.connect("doctree-read", number)
    app.connect("doctree-resolved", link)
    app.connect("doctree-resolved", caption)
    return {"parallel_read_safe": False}
