"""Handouts: nothing of a notebook is lost, and what is unknown is an error."""

import ctypes
import functools
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pypdfium2 as pdfium
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from handgrad import figures
from handgrad.classroom.editions import STUB, edition
from handgrad.classroom.page import html
from handgrad.classroom.paper import pdf

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PRINTED = NOTEBOOKS[::3]  # to set one takes two seconds; a third of them stand for all
FORMULA = re.compile(r"(?s)\$\$.*?\$\$|\$[^$]+\$")
PATH, IMAGE, TEXT = (getattr(pdfium.raw, f"FPDF_PAGEOBJ_{k}") for k in ("PATH", "IMAGE", "TEXT"))
COMMAND = re.compile(r"\\[A-Za-z]+")

each_printed = pytest.mark.parametrize("path", PRINTED, ids=lambda path: path.stem)


def opened(document):
    return pdfium.PdfDocument(document)


def pages(document):
    """The text of each page; a soft hyphen and a new line stand where a word is broken."""
    read = (page.get_textpage().get_text_bounded() for page in opened(document))
    return [text.replace("\r\n", "\n").replace("\x02", "\xad\n") for text in read]


def drawn(document, kind):
    """The objects of that kind on the first page: paths, images, or runs of text."""
    page = opened(document)[0]
    return list(page.get_objects([kind], textpage=page.get_textpage()))


def bare(text):
    """The text without white space, hyphens, marks of broken lines and double quotes."""
    text = re.sub(r"[\s\xad\u200b\N{RIGHTWARDS ARROW WITH HOOK}“”\"-]", "", text)
    return text.translate(str.maketrans("’‘", "''"))


def printed_by(cell):
    """What a code cell prints, on paper."""
    for out in cell.outputs:
        data = out.get("data", {})
        yield out.get("text", "") + data.get("text/plain", "") * ("image/svg+xml" not in data)


def small(*cells, title="# 1. Small"):
    return new_notebook(cells=[new_markdown_cell(title), *cells])


def output(kind="display_data", **data):
    return new_output(kind, data={name.replace("_", "/"): value for name, value in data.items()})


@functools.cache
def document(path, kind):
    """The bytes of a notebook's handout, set once."""
    return pdf(edition(nbformat.read(path, as_version=4), kind), kind)


@pytest.fixture(scope="module")
def printed():
    """Every notebook with its text on paper."""
    notebooks = {path: nbformat.read(path, as_version=4) for path in PRINTED}
    return {path: (book, pages(document(path, "instructor"))) for path, book in notebooks.items()}


@each_printed
def test_paper_holds_the_whole_notebook(printed, path):
    notebook, text = printed[path]
    head = r"(?m)^.* Instructor edition$|^\d+ / \d+$"
    text = bare("".join(re.sub(head, "", page) for page in text))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            lines = [line for line in lines if not re.search("(BEGIN|END) SOLUTION", line)]
            wanted = [*lines, *printed_by(cell)]
        else:
            source = cell.source[max(cell.source.find("\n# "), 0) :]  # without the navigation line
            source = re.sub(r"(?m)^```\w*$", "", source)
            source = re.sub(r"<[^>]*>|\]\([^)]*\)|`[^`]*`", " ", FORMULA.sub(" ", source))
            wanted = re.findall(r"[A-Za-z']{2,}", source)
        for words in wanted:
            assert bare(words) in text, words


@each_printed
def test_paper_shows_no_tex_and_no_object(printed, path):
    notebook, text = printed[path]
    text = "\n".join(text)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code = "".join(cell.source + "".join(printed_by(cell)) for cell in cells)
    assert set(COMMAND.findall(text)) <= set(COMMAND.findall(code))
    assert text.count("$") == code.count("$")
    assert "<IPython" not in text and "<Figure" not in text and "at 0x" not in text


@each_printed
def test_paper_adds_no_word(printed, path):
    # Such as the name of a symbol, or of a function, that should have drawn something.
    notebook, text = printed[path]
    text = re.sub(r"[\xad-]\n", "", "\n".join(text))
    own = ["handgrad Instructor edition notebook Figure", *(cell.source for cell in notebook.cells)]
    own += [out for c in notebook.cells if c.cell_type == "code" for out in printed_by(c)]
    own = bare(" ".join(own))
    assert [word for word in re.findall("[A-Za-z]{3,}", text) if word not in own] == []


@each_printed
def test_every_equation_has_its_number_and_every_page_its_own(printed, path):
    notebook, text = printed[path]
    for cell in notebook.cells:
        for number in re.findall(r"\\tag\{(.*?)\}", cell.source):
            assert re.search(rf"\({re.escape(number)}\)$", "\n".join(text), re.M), number
    for i, page in enumerate(text, 1):
        assert f"{i} / {len(text)}" in page
        assert "Instructor edition" in page


def solutions(notebook):
    """Each line of each solution that has enough words to be known again."""
    for cell in notebook.cells:
        for region in re.findall(r"(?s)### BEGIN SOLUTION\n(.*?)### END SOLUTION", cell.source):
            yield from region.splitlines()
        if "solution" in cell.metadata.get("tags", []):
            yield from re.split(r"[.:;]\s|\*+|`", FORMULA.sub("*", cell.source))


def hidden(notebook):
    """The bare lines of the solutions that stand nowhere else in the notebook."""
    elsewhere = ""
    for cell in notebook.cells:
        if "solution" not in cell.metadata.get("tags", []):
            elsewhere += bare(re.sub(r"(?s)### BEGIN.*?### END", "", cell.source))
            elsewhere += bare("".join(printed_by(cell) if cell.cell_type == "code" else ""))
    lines = {bare(line) for line in solutions(notebook) if len(bare(line)) > 12}
    return {line for line in lines if line not in elsewhere}


@pytest.mark.parametrize("path", PRINTED[::2], ids=lambda path: path.stem)
def test_no_solution_is_in_a_student_s_handout(printed, path):
    # some stand for all, since a test of the editions reads every student's notebook
    notebook, full = printed[path]
    paper = bare("".join(pages(document(path, "student"))))
    full = bare("".join(full))
    lines = hidden(notebook)
    assert len(lines) >= 3 and sum(line in full for line in lines) > 0.8 * len(lines)
    assert not [line for line in lines if line in paper]


def test_two_runs_give_the_same_bytes():
    notebook = nbformat.read(ROOT / "notebooks" / "00_contents.ipynb", as_version=4)
    assert pdf(notebook, "student") == pdf(notebook, "student")
    assert html(notebook, "student") == html(notebook, "student")


@pytest.mark.parametrize(("paper", "size"), [("a4", (595, 842)), ("letter", (612, 792))])
def test_the_sizes_of_paper(paper, size):
    document = opened(pdf(small(), "student", paper))
    assert tuple(map(round, document[0].get_size())) == size
    assert document.get_metadata_value("Title") == "1. Small"


def test_the_student_s_first_page_has_room_for_a_name():
    cells = [new_markdown_cell("word " * 900)]
    first, *others = pages(pdf(small(*cells), "student"))
    assert "Name" in first and "Student edition" in first
    assert others and not any("Name" in page for page in others)
    assert "Name" not in "".join(pages(pdf(small(*cells), "instructor")))


def test_an_answer_cell_is_ruled():
    def lines(tags):
        cell = new_markdown_cell("Write here.", metadata={"tags": tags})
        assert "Write here." in html(small(cell), "student")
        return len(drawn(pdf(small(cell), "student"), PATH))

    assert lines(["answer"]) >= lines([]) + 7


def test_a_figure_is_a_vector():
    def segments(cell):
        document = pdf(small(cell), "student")
        assert not drawn(document, IMAGE)
        return sum(pdfium.raw.FPDFPath_CountSegments(path) for path in drawn(document, PATH))

    cells = nbformat.read(ROOT / "notebooks" / "03_chain_rule.ipynb", as_version=4).cells
    cell = next(cell for cell in cells if "image/svg+xml" in str(cell.get("outputs")))
    shown = segments(cell)
    cell.outputs = []
    assert shown > segments(cell) + 50


# How a page is filled and where it ends ----------------------------------------------------------


BOTH = [(path, "instructor") for path in PRINTED] + [(path, "student") for path in PRINTED[::2]]
each_document = pytest.mark.parametrize(
    ("path", "kind"), BOTH, ids=lambda part: getattr(part, "stem", part)
)


def largest_hole(page):
    """The height of the largest white band between header and footer, as a share of the page."""
    shown = page.render(scale=0.25, grayscale=True).to_numpy()
    height = len(shown)
    ink = (shown.reshape(height, -1) < 252).any(axis=1)[height * 24 // 297 : height * 272 // 297]
    return np.diff(np.flatnonzero([True, *ink, True])).max() / height


@each_document
def test_no_page_has_a_large_hole(path, kind):
    *full, _ = opened(document(path, kind))
    assert [i for i, page in enumerate(full, 1) if largest_hole(page) > 0.2] == []


@each_document
def test_nothing_that_leads_on_ends_a_page(path, kind):
    # a paragraph or a line of code that ends in a colon; a colon within a paragraph may
    sources = "\n\n".join(c.source for c in nbformat.read(path, as_version=4).cells)
    ends = {bare(line)[-12:] for line in re.findall(r"(?m)^.*:$(?=\n\n|\n +|\Z)", sources)}
    assert len(ends) > 3
    for text in pages(document(path, kind))[:-1]:
        *_, last, _ = re.sub(r"(?m)^\d+ ?https?:.*\n", "", text).splitlines()  # without footnotes
        assert bare(last)[-12:] not in ends, last


def test_a_long_derivation_is_broken_between_its_lines():
    lines = " \\\\ ".join("x &= y && \\text{so}" for _ in range(14))
    tex = f"$$ \\begin{{aligned}} {lines} \\end{{aligned}} \\tag{{1.1}} $$"
    document = pdf(small(new_markdown_cell("filler " * 480 + "\n\n" + tex)), "student")
    first, second = pages(document)
    assert first.count("=") >= 2 and second.count("=") >= 2 and "(1.1)" in second


@pytest.mark.parametrize("words", [300, 500])
def test_no_row_of_a_table_is_alone(words):
    rows = "\n".join(f"| row {i} | x |" for i in range(22))
    table = "filler " * words + f"\n\n| a | b |\n|---|---|\n{rows}"
    found = [
        len(re.findall("row ", text)) for text in pages(pdf(small(markdown(table)), "student"))
    ]
    assert sum(found) == 22 and not {1, 2} & set(found)


def marks(page):
    """(what, y from the top) of the words and the full ruled lines of a page, as they come."""
    height = page.get_height()
    for item in page.get_objects([PATH, TEXT], textpage=page.get_textpage()):
        left, bottom, right, _ = item.get_bounds()
        if item.type == TEXT:
            yield item.extract(), height - bottom
        elif right - left > 400 and height - bottom > 80:  # below the header's line
            yield "ruled", height - bottom


def test_a_question_stands_above_room_for_its_answer():
    cells = []
    for i in range(24):
        cells += [
            new_markdown_cell("filler " * (13 * i % 300 + 1)),
            new_markdown_cell(f"## Exercise 1.{i} (by hand)\n\nFirst.\n\nAsked{i}? Write it."),
            new_markdown_cell("", metadata={"tags": ["answer"]}),
        ]
    document = opened(pdf(small(*cells), "student"))
    assert len(document) > 3
    asked = 0
    for page in document:
        found = sorted(marks(page), key=lambda mark: mark[1])
        assert max(y for what, y in found if what == "ruled") < 770, "in the margin"
        for i, (what, y) in enumerate(found):
            if "Asked" in what:
                asked += 1
                assert [what for what, _ in found[:i] if "Exercise" in what]
                rules = [below for what, below in found[i:] if what == "ruled"][:2]
                assert len(rules) == 2 and rules[1] - y < 90
    assert asked == 24


def test_a_stub_is_room_to_write_code():
    source = f'def f(x):\n    """Half of x."""\n    {STUB}\n    raise NotImplementedError("1")'
    (page,) = opened(pdf(small(new_code_cell(source)), "student"))
    text = page.get_textpage().get_text_bounded()
    assert "Half of x." in text and "NotImplemented" not in text and "Write" not in text
    assert sum(what == "ruled" for what, _ in marks(page)) >= 5


def test_code_is_broken_between_statements():
    function = (
        "def f{}():\n    for i in range(3):\n        g(\n            i\n        )\n    return"
    )
    code = "\n\n\n".join(function.format(i) for i in range(40))
    first, *_, last = pages(pdf(small(new_code_cell(code)), "student"))
    *_, line, _ = first.splitlines()
    assert "return" in line and "f39" in last


def test_a_formula_in_a_line_is_not_broken_after_a_relation():
    text = "so " * 9 + " ".join("we have $a = b$ and" + " so" * (i % 7) for i in range(60))
    (page,) = pages(pdf(small(new_markdown_cell(text)), "student"))
    assert page.count("=") == 60 and not re.search(r"=\s*$", page, re.M)


# What a reader hears, and where she can click -----------------------------------------------------


def said(document):
    """(kind, words) of each part of a document, as a screen reader has it."""
    raw = pdfium.raw

    def text(read, part):
        buffer = ctypes.create_string_buffer(read(part, None, 0))
        read(part, buffer, len(buffer))
        return buffer.raw.decode("utf-16le").rstrip("\0")

    def walk(part):
        ways = (raw.FPDF_StructElement_GetType, raw.FPDF_StructElement_GetAltText)
        yield tuple(text(read, part) for read in ways)
        for i in range(raw.FPDF_StructElement_CountChildren(part)):
            if child := raw.FPDF_StructElement_GetChildAtIndex(part, i):
                yield from walk(child)

    for page in opened(document):
        tree = raw.FPDF_StructTree_GetForPage(page)
        for i in range(raw.FPDF_StructTree_CountChildren(tree)):
            yield from walk(raw.FPDF_StructTree_GetChildAtIndex(tree, i))
        raw.FPDF_StructTree_Close(tree)


def test_every_figure_and_formula_has_words(printed):
    path = PRINTED[1]
    notebook, _ = printed[path]
    found = set(said(document(path, "instructor")))
    shown = [out.data["text/plain"] for out in figures_of(notebook)]
    assert shown and {("Figure", words) for words in shown} <= found
    assert len([words for kind, words in found if kind == "Formula" and words]) > 50
    assert not [kind for kind, words in found if kind in ("Figure", "Formula") and not words]
    assert b"<pdfuaid:part>1" in document(path, "instructor")


def figures_of(notebook):
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return [out for out in outputs if "image/svg+xml" in out.get("data", {})]


@pytest.mark.parametrize(
    ("tex", "words"),
    {
        r"W^\top x_n^2": "W transposed x sub n to the 2",
        r"\frac{\partial l}{\partial v}": "(∂ l) over (∂ v)",
        r"\hat x = \sqrt{y}": "x hat = root of (y)",
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}": "matrix of rows 1 2; 3 4",
    }.items(),
)
def test_a_formula_says_how_its_symbols_stand(tex, words):
    assert ("Formula", words) in set(said(pdf(small(new_markdown_cell(f"${tex}$")), "student")))


def test_a_caption_says_what_a_figure_shows_and_the_code_does_not_say_it_again():
    svg = "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><path d='M0 0h9'/></svg>"
    shown = new_output("display_data", {"image/svg+xml": svg, "text/plain": "A line of 9."})
    code = 'plot()\nfigures.show(\n    "A line "\n    "of 9."\n)'
    notebook = small(new_code_cell(code, outputs=[shown]))
    (text,) = pages(pdf(notebook, "student"))
    assert re.findall("Figure.1.1: A line of 9.", text) and text.count("A line") == 1
    assert "plot()\nfigures.show(...)" in text
    assert "of 9.&quot;" in html(notebook, "student")


def test_a_number_leads_to_its_equation_and_another_notebook_s_is_text():
    text = "$$ x = y \\tag{1.2} $$\n\nBy (1.2) and (2.2)."
    document = opened(pdf(small(new_markdown_cell(text)), "student"))
    start, link = ctypes.c_int(0), pdfium.raw.FPDF_LINK()
    found = 0
    while pdfium.raw.FPDFLink_Enumerate(document[0], start, link):
        found += 1
        assert pdfium.raw.FPDFLink_GetDest(document, link) or pdfium.raw.FPDFLink_GetAction(link)
    assert found == 1


def test_printed_source_is_highlighted_as_code_is():
    def colours(text):
        cell = new_code_cell("1", outputs=[new_output("stream", text=text)])
        return {colour(run) for run in drawn(pdf(small(cell), "student"), TEXT)}

    keyword = colours("def f(x):\n    return " + "x + " * 30 + "x") - colours("f(x) returns x")
    assert len(keyword) == 1


def colour(run):
    parts = [ctypes.c_uint() for _ in "rgba"]
    pdfium.raw.FPDFPageObj_GetFillColor(run, *parts)
    return "#" + "".join(f"{part.value:02X}" for part in parts[:3])


def test_a_wrong_line_is_bold_and_red_and_the_right_ones_are_not():
    told = "WRONG: off by the constant 2, since" + " that which follows" * 7
    text = f"dx  (3,)  matches jax.grad\ndb  (5,)  {told}\ndc  (5,)  matches jax.grad"
    document = pdf(
        small(new_code_cell("check()", outputs=[new_output("stream", text=text)])), "student"
    )
    runs = drawn(document, TEXT)
    wrong = [run for run in runs if re.search("WRONG|follows", run.extract())]
    assert len({run.get_bounds()[1] for run in wrong}) > 1, "on several lines"
    right = [run for run in runs if "matches" in run.extract()]
    assert wrong and all("Bold" in run.get_font().get_base_name() for run in wrong)
    assert right and not any("Bold" in run.get_font().get_base_name() for run in right)
    assert {colour(run) for run in wrong} == {figures.MISTAKE}
    assert figures.MISTAKE not in {colour(run) for run in right}
    assert f"<strong>db  (5,)  {told}</strong>" in html(
        small(new_code_cell("check()", outputs=[new_output("stream", text=text)])), "student"
    )


def test_long_lines_are_broken_on_paper_and_whole_on_a_page():
    line = "x = " + "+".join("abcdefghi" for _ in range(40))
    notebook = small(new_code_cell(line, outputs=[new_output("stream", text="y" * 300)]))
    text = "".join(pages(pdf(notebook, "student")))
    assert max(map(len, text.splitlines())) <= 96
    assert bare(line) in bare(text.replace("\N{RIGHTWARDS ARROW WITH HOOK}", ""))
    assert "y" * 300 in html(notebook, "student")


def test_a_check_shows_its_text_on_paper_and_its_table_on_a_page():
    table = '<table class="handgrad-check"><tr><td>dx</td></tr></table>'
    shown = output(text_plain="dx  (3,)  right", text_html=table)
    notebook = small(new_code_cell("check()", outputs=[shown]))
    assert "right" in "".join(pages(pdf(notebook, "student")))
    assert table in html(notebook, "student")


def test_an_image_beside_the_notebook_is_shown():
    notebook = small(new_markdown_cell("![a verdict](../assets/verdict.svg)"))
    assert len(pdf(notebook, "student")) > len(pdf(small(), "student")) + 1000
    assert [s[:18] for s in Resources(html(notebook, "student")).found] == ["data:image/svg+xml"]


def test_links_to_sibling_notebooks_make_sense_on_paper():
    text = (
        "[00](00_contents.ipynb)\n\n# 1. Small\n\nAs in [03](03_chain_rule.ipynb) and notebook "
        "[4](04_linear.ipynb), [Flatten](02_flattening.ipynb), [there](https://example.org/there)."
    )
    notebook = new_notebook(cells=[new_markdown_cell(text)])
    words = " ".join("".join(pages(pdf(notebook, "student"))).split())
    assert "As in notebook 3 and notebook 4, Flatten (notebook 2), there" in words
    assert "https://example.org/there" in words
    assert "00" not in words.partition("1. Small")[0]
    assert ".ipynb" not in html(notebook, "student")


def test_solutions_are_marked_without_their_markers():
    code = "def f():\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION"
    notebook = small(new_code_cell(code))
    for text in ("".join(pages(pdf(notebook, "instructor"))), html(notebook, "instructor")):
        assert "SOLUTION" not in text and "return" in text
    assert "#cb1-2 { background" in html(notebook, "instructor")


def test_dollars_are_read_as_jupyter_reads_them():
    text = "Take $f = $ a sum, `$x$` as code, and\n$$ y\n= z $$\nfor \\$5."
    (page,) = pages(pdf(small(new_markdown_cell(text)), "student"))
    assert "Take 𝑓 = a sum, $x$ as code, and" in page and "for $5." in page
    page = html(small(new_markdown_cell(text)), "student")
    assert r"\(f =\)" in page and r"{}= z\)" in page and "<code>$x$</code>" in page


def test_formulas_come_out_as_tex_has_them():
    text = r"""$\mathbf{x}$, $\boldsymbol{x}$, $\texttt{x}$, $\mathbb{R}$, $\operatorname{diag}(x)$,
        $\log \operatorname{softmax}(z)$, $a \odot b \cap c$, $\lVert x \rVert$,
        $\|x\|$, $\big\|x\big\|$, $\text{if }x$, $\left.x\right|_0$"""
    (page,) = pages(pdf(small(new_markdown_cell(text)), "student"))
    wanted = "𝐱, 𝒙, 𝚡, ℝ, diag(𝑥), log softmax(𝑧), 𝑎 ⊙ 𝑏 ∩ 𝑐, ‖𝑥‖, ‖𝑥‖, ‖𝑥‖, if 𝑥, 𝑥|0"
    assert bare(wanted) in bare(page)


def markdown(text):
    return new_markdown_cell(text)


UNKNOWN = {
    "<details>": markdown("<details>\n\nhidden\n\n</details>"),
    "<b>": markdown("a <b>bold</b> word"),
    "alert-info": markdown('<div class="alert alert-info">\n\nwords\n\n</div>'),
    "\\unheard": markdown(r"$\unheard{x}$"),
    "\\color": markdown(r"$\color{red}{x}$"),
    "\\begin{align}": markdown("\\begin{align}\nx\n\\end{align}"),
    "aligned within": markdown(r"$$ f = \begin{aligned} a &= b \end{aligned} $$"),
    "\\right without": markdown(r"$x \right)$"),
    "two numbers": markdown(r"$$ x \tag{1.1} \tag{1.2} $$"),
    "too wide": markdown("$$ " + " + ".join(["xyz"] * 60) + " $$"),
    "https://example.org/x.png": markdown("![x](https://example.org/x.png)"),
    "https://example.org/y.png": markdown("![x][y]\n\n[y]: https://example.org/y.png"),
    "nowhere.png": markdown("![x](nowhere.png)"),
    "attachment:x.png": markdown("![x](attachment:x.png)"),
    "raw": nbformat.v4.new_raw_cell("raw"),
    "application/pdf": new_code_cell("1", outputs=[output(application_pdf="x", text_plain="y")]),
    "text/html": new_code_cell("1", outputs=[output(text_html="<b>x</b>")]),
    "<IPython": new_code_cell(
        "1", outputs=[output(text_plain="<IPython.core.display.HTML object>")]
    ),
    "🙂": markdown("a smile 🙂"),
}
ONLY_ON_PAPER = {"too wide", "text/html", "🙂"}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_construct_is_an_error_that_names_it(name):
    with pytest.raises(ValueError, match=re.escape(name)) as error:
        pdf(small(UNKNOWN[name]), "student")
    assert "\n" not in str(error.value) and "/tmp" not in str(error.value)
    if name not in ONLY_ON_PAPER:
        with pytest.raises(ValueError, match=re.escape(name)):
            html(small(UNKNOWN[name]), "student")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((small(), "pupil"), "edition: expected student or instructor; got pupil"),
        ((small(), "student", "a5"), "paper: expected a4 or letter; got a5"),
        ((new_notebook(), "student"), "no title"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        pdf(*arguments)


@pytest.mark.parametrize(("module", "make"), [("typst", pdf), ("pypandoc", pdf), ("mathjax", html)])
def test_a_missing_package_says_what_to_install(monkeypatch, module, make):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module} is not installed: .*\[classroom\]"):
        make(small(), "student")


class Resources(HTMLParser):
    """What a browser would fetch: every source and reference that is not a reader's link."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "srcset", "data", "poster") or (name == "href" and tag != "a"):
                self.found.append(value)


@pytest.mark.parametrize("path", NOTEBOOKS[1::3], ids=lambda path: path.stem)
def test_a_page_fetches_nothing_and_holds_the_mathematics(path):
    # of those that are not set on paper here
    notebook = nbformat.read(path, as_version=4)
    page = html(notebook, "instructor")
    found = Resources(page).found
    assert len(found) == sum("image/svg+xml" in str(c.get("outputs")) for c in notebook.cells)
    assert all(source.startswith("data:image/svg+xml") for source in found)
    style = "".join(re.findall(r"(?s)<style>.*?</style>", page))
    assert "url(" not in style and "@import" not in style
    assert "MathJax" in page and len(page) < 3.5e6
    figures = re.findall(r'<img[^>]*alt="[^"]{20,}"[^>]*>\s*<figcaption', page)
    assert len(figures) == page.count("<img") == len(found)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    contents = re.search(r'(?s)<nav aria-label="Contents">(.*?)</nav>', page)[1]
    assert contents.count('<a href="#') == len(re.findall(r"(?m)^## ", text))
    for number in re.findall(r"\\tag\{(.*?)\}", text):
        assert f'id="eq-{number}">' in page and f'href="#eq-{number}">({number})</a>' in page
