"""What the site and the handouts show alike on a screen of any width, light or dark.

MathJax sets the pieces of a displayed formula, and screen.css lays them out: a derivation becomes
a grid, whose reasons are words that can be broken. Its number stands beside it, and is a link.
"""

import re
from html import escape

TAG = re.compile(r"\s*\\tag\{(.*?)\}")
ALIGNED = re.compile(r"\s*\\begin\{aligned\}(.*)\\end\{aligned\}\s*", re.S)
SKIP = re.compile(r"(\\\\)\[[^]]*\]")
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|.", re.S)
PAIRS = "{", "}", "(", ")", "[", "]"
QUADS = r"\quad", r"\qquad"
NUMBER = re.compile(r"\((\d+\.\d+)\)")


def anchor(number):
    """What an equation's permanent address ends in: eq-4.7 for number 4.7."""
    return f"eq-{number}"


def equation(tex, address):
    """The formula as HTML that may stand in a paragraph.

    `address` takes an equation's number, and returns the address that it links to or "".
    """
    number = TAG.search(tex)
    tex = TAG.sub("", tex).strip()
    if rows := _rows(tex):
        lines = (
            f'<span class="left">{_math(left)}</span>'
            f'<span class="right">{_pieces(right, address)}</span>'
            f'<span class="reason">{_reason(why, address)}</span>'
            for left, right, _, why in rows
        )
        shown = f'<span class="derivation">{"".join(lines)}</span>'
    else:
        shown = f'<span class="formula">{_pieces(tex, address)}</span>'
    if number is None:
        return f'<span class="equation mathjax_process">{shown}</span>'
    here = anchor(number[1])
    link = f'<a class="number" href="#{here}">({escape(number[1])})</a>'
    return f'<span class="equation mathjax_process" id="{here}">{shown}{link}</span>'


def linked(words, address):
    """The words as HTML, each equation that they mention a link to its address."""
    pieces = NUMBER.split(words)
    for i, piece in enumerate(pieces):
        there = address(piece) if i % 2 else ""
        shown = f"({piece})" if i % 2 else escape(piece, quote=False)
        pieces[i] = f'<a href="{there}">{shown}</a>' if there else shown
    return "".join(pieces)


def _rows(tex):
    # The rows of an aligned body, each of a left side, a right side, nothing, and a reason.
    body = ALIGNED.fullmatch(tex)
    if not body:
        return []
    rows = [_split(row, "&") for row in _split(SKIP.sub(r"\1", body[1]), r"\\")]
    rows = [row + [""] * (4 - len(row)) for row in rows if row != [""]]
    return rows if all(len(row) == 4 and not row[2] for row in rows) else []


def _split(tex, *separators, pairs=("{", "}")):
    # At the separators that no environment holds, and no pair of delimiters.
    pieces, depth = [""], 0
    for token in TOKEN.findall(tex):
        depth += token in (r"\begin", r"\left", *pairs[::2])
        depth -= token in (r"\end", r"\right", *pairs[1::2])
        if token in separators and not depth:
            pieces.append("")
        else:
            pieces[-1] += token
    return [piece.strip() for piece in pieces]


def _pieces(tex, address):
    # What stands beside each other may go below each other, and a line may end before a relation.
    # Words that come last are a reason, too.
    html, pieces = "", _split(tex, *QUADS, pairs=PAIRS)
    for i, piece in enumerate(pieces, 1):
        if piece.startswith(r"\text{") and 1 < i == len(pieces):
            html += f'<span class="reason">{_reason(piece, address)}</span>'
        elif piece:
            first, *others = _split(piece, "=", pairs=PAIRS)
            line = _math(first) + "".join(_math(f"= {other}") for other in others)
            html += f"<span>{line}</span>"
    return html


def _math(tex):
    # The empty group gives a relation that begins the piece its space.
    return rf"\(\displaystyle {{}}{escape(tex, quote=False)}\)" if tex else ""


def _reason(tex, address):
    html, formulas = "", re.split(r"\\text\{([^{}]*)\}", tex)
    if any(piece.count("{") != piece.count("}") for piece in formulas[::2]):
        return _math(tex)
    for i, piece in enumerate(formulas):
        if i % 2:
            piece = re.sub(r"\\([%#&_$ ])", r"\1", piece).replace("~", " ").replace("'", "’")
            html += linked(piece, address)
        elif piece.strip():
            html += rf"\({escape(piece.strip(), quote=False)}\)"
    return html
