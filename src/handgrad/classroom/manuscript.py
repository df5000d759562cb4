"""A notebook as one Markdown text, and that text through pandoc: what paper and page share."""

import ast
import base64
import re
import shutil
import textwrap
from pathlib import Path

from handgrad.classroom.editions import STUB
from handgrad.notebooks import FOLDER, needs

EDITIONS = {"student": "Student edition", "instructor": "Instructor edition"}
LINE = 92  # characters of code that fit on paper
FILTER = Path(__file__).with_name("handout.lua")
ALERT = re.compile(r'(?ms)^<div class="alert alert-(success|danger)">\n(.*?)^</div>$')
# code, which stays as it is, or a formula between dollars, as Jupyter reads them
FORMULA = re.compile(
    r"(?s)(?P<code>(`+).*?\2)|(?<!\\)(?:\$\$(?P<shown>.+?)\$\$|\$(?P<inline>(?:[^$\n]|\n(?!\s*\n))+)\$)"
)
IMAGE = re.compile(r"!\[(.*?)\]\(([^)\s]+)\)")
NAMES = {"success": "takeaway", "danger": "mistake"}
FIGURES = {"image/svg+xml": "svg", "image/png": "png", "image/jpeg": "jpg"}


def title(notebook):
    """The notebook's first heading as plain text.

    Raises:
        ValueError: the first cell holds no heading of the first level.

    """
    first = notebook.cells[0] if notebook.cells else None
    heading = first and first.cell_type == "markdown" and re.search(r"(?m)^# (.+)$", first.source)
    if not heading:
        raise ValueError("the notebook's first cell has no title: expected a line '# N. Title'")
    return re.sub(r"[`*$]", "", heading[1]).strip()


def markdown(notebook, folder, paper):
    """The cells as Markdown with fenced divs; the figures are written to folder.

    The navigation line is dropped: it stands before the title. Lines too long for paper are broken
    there, with a mark where they go on; of a check's two outputs paper shows the text.

    Raises:
        ValueError: a cell or an output is of a kind that has no place in a handout.

    """
    title(notebook)
    parts = []
    for number, cell in enumerate(notebook.cells):
        source = cell.source
        if cell.cell_type == "markdown":
            part = source if number else source[re.search(r"(?m)^# ", source).start() :]
            part = ALERT.sub(lambda found: _div(NAMES[found[1]], found[2]), part)
            part = formulas(part)
            part = IMAGE.sub(lambda found: _copied(*found.groups(), folder), part)
        elif cell.cell_type == "code":
            part = _code(source, paper, bool(cell.outputs))
            for order, output in enumerate(cell.outputs):
                shown = _output(output, folder / f"figure-{number}-{order}", paper)
                part += "\n\n" + shown if shown else ""
            part = _div("cell", part)
        else:
            raise ValueError(f"cell {number}: a cell of type {cell.cell_type} has no place here")
        for kind in {"solution", "answer"} & set(cell.metadata.get("tags", [])):
            part = _div(kind, part)
        parts.append(part)
    return "\n\n".join(parts)


def pandoc(text, to, *arguments):
    """The Markdown text in another format; what pandoc or the filter doesn't know is an error.

    Raises:
        ImportError: pandoc is not installed; says which extra has it.
        ValueError: a construct is unknown; names it.

    """
    pypandoc = needs("pypandoc")
    options = ["--fail-if-warnings", f"--lua-filter={FILTER}", *arguments]
    try:
        return pypandoc.convert_text(
            text, to, "commonmark_x-tex_math_dollars", options, verify_format=False
        )
    except RuntimeError as failure:
        reason = re.search(r"handout: (.*)|\[WARNING\] ([^\n]*)", str(failure))
        reason = reason[1] or reason[2] if reason else str(failure)
        raise ValueError(reason) from None


def formulas(text):
    """The Markdown text with its formulas as code of a class of its own, as the filter has it.

    Raises:
        ValueError: a formula holds a backtick.

    """
    return FORMULA.sub(_formula, text)


def _formula(found):
    if found["code"]:
        return found["code"]
    tex = " ".join((found["shown"] or found["inline"]).split())
    if "`" in tex:
        raise ValueError(f"a backtick in the formula {tex}")
    return f"`{tex}`{{.{'shown' if found['shown'] else 'inline'}}}"


def _copied(words, target, folder):
    image = FOLDER / target
    if ":" in target or not image.is_file():
        raise ValueError(f"the image {target} is not a file beside the notebook")
    shutil.copy(image, folder)
    return f"![{words}]({image.name})"


def _div(name, text):
    colons = ":" * max((len(run) + 1 for run in re.findall(r"(?m)^:{3,}", text)), default=3)
    return f"{colons} {{.{name}}}\n{text}\n{colons}"


def _fenced(text, attributes):
    ticks = "`" * max((len(run) + 1 for run in re.findall(r"`{3,}", text)), default=3)
    return f"{ticks} {{{attributes}}}\n{text}\n{ticks}"


def _code(source, paper, prints):
    # The markers go, and the lines between them are marked instead. On paper a stub is room to
    # write in, and what a figure shows stands below it, not in the code too.
    lines, solved, within, room = [], [], False, ""
    for line in _without_words(source).splitlines() if paper else source.splitlines():
        if "BEGIN SOLUTION" in line or "END SOLUTION" in line:
            within = "BEGIN" in line
            continue
        if paper and line.lstrip() == STUB:
            room = f' room="{len(lines)},{len(line) - len(line.lstrip())}"'
            continue
        if paper and room and line.lstrip().startswith("raise NotImplementedError("):
            continue
        pieces = _broken(line) if paper else [line]
        lines += pieces
        solved += [within] * len(pieces)
    numbers = ",".join(str(i) for i, inside in enumerate(solved, 1) if inside)
    marks = ".python" + (f' solved="{numbers}"' if numbers else "") + room
    marks += ' prints="yes"' if paper and prints else ""
    return _fenced("\n".join(lines), marks)


def _without_words(source):
    # figures.show("what it shows, in words") as figures.show(...)
    lines = source.splitlines()
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    for call in calls:
        if ast.unparse(call.func) == "figures.show":
            first, last = call.lineno - 1, call.end_lineno - 1
            end = lines[last].encode()[call.end_col_offset :].decode()
            lines[first] = lines[first][: call.col_offset] + "figures.show(...)" + end
            del lines[first + 1 : last + 1]
    return "\n".join(lines)


def _broken(line):
    return textwrap.wrap(
        line,
        LINE,
        subsequent_indent="  \N{RIGHTWARDS ARROW WITH HOOK} ",
        drop_whitespace=False,
        replace_whitespace=False,
        break_on_hyphens=False,
    ) or [""]


def _output(output, path, paper):
    if output.output_type == "stream":
        return _printed(output.text, paper)
    if output.output_type == "error":
        return _printed(f"{output.ename}: {output.evalue}", paper)
    data = output.data
    for mime, suffix in FIGURES.items():
        if mime in data:
            binary = suffix != "svg"
            content = base64.b64decode(data[mime]) if binary else data[mime].encode("utf-8")
            path.with_suffix("." + suffix).write_bytes(content)
            words = "Figure" if _is_a_name(data) else data["text/plain"]
            words = re.sub(r"([^\w\s])", r"\\\1", words)
            return f"![{words}]({path.name}.{suffix})"
    if "text/html" in data and not (paper and "text/plain" in data):
        if paper:
            raise ValueError("an output of type text/html alone cannot be printed on paper")
        return _fenced(data["text/html"], ".html")
    if "text/latex" in data or "text/markdown" in data:
        return data.get("text/markdown", data.get("text/latex"))
    if set(data) - {"text/plain", "text/html"}:
        raise ValueError(f"an output of type {min(data)} is unknown")
    if _is_a_name(data):
        raise ValueError(f"an output shows an object's name, {data['text/plain']}, and no content")
    return _printed(data["text/plain"], paper)


def _is_a_name(data):
    # what a figure's text says that was not shown with words of its own
    return bool(re.match(r"<(IPython|Figure)", data.get("text/plain", "<Figure")))


def _printed(text, paper):
    text = re.sub(r"\x1b\[[\d;]*m", "", text).rstrip()
    classes = ".output .python" if _is_source(text) else ".output"
    if paper:
        text = "\n".join(piece for line in text.splitlines() for piece in _broken(line))
    return text and _fenced(text, classes)


def _is_source(text):
    # what inspect.getsource printed
    try:
        return any(isinstance(node, ast.FunctionDef) for node in ast.parse(text).body)
    except SyntaxError:
        return False
