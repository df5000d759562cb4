"""What a check says: its verdicts as a table, in text and in HTML, and the error that holds it."""

import html
import os
import sys
from typing import NamedTuple


class Verdict(NamedTuple):
    """What was found of one gradient: its name, its shape, whether it is right, and why.

    mistakes holds the names of the mistakes that were recognised, none where nothing fits.
    """

    name: str
    shape: tuple
    right: bool
    words: str
    mistakes: tuple = ()


class Report(tuple):
    """The verdicts of one check, in the order of the gradients, one aligned line each."""

    def __str__(self):
        return self.text(lambda words, right: words)

    def text(self, paint):
        """The lines; paint(words, right) may colour what is said of each gradient."""
        columns = [(v.name, str(v.shape)) for v in self]
        name, shape = (max((len(row[i]) for row in columns), default=0) for i in (0, 1))
        words = [paint(v.words if v.right else f"WRONG: {v.words}", v.right) for v in self]
        rows = zip(columns, words, strict=True)
        return "\n".join(f"{n:{name}}  {s:{shape}}  {said}" for (n, s), said in rows)

    def html(self, note=""):
        """The table for a notebook: a mark and a word tell right from wrong, beside the colour."""
        rows = "".join(_row(verdict) for verdict in self)
        if note:
            rows += f'<tr><td></td><td colspan="3" {_CELL}>{html.escape(note)}</td></tr>'
        return f'<table class="handgrad-check" style="border-collapse:collapse">{rows}</table>'

    def _ipython_display_(self):
        """Show nothing more: the check has shown it."""

    def conclude(self, note=""):
        """Show the table and return the report, or raise it when a gradient is wrong."""
        if not all(verdict.right for verdict in self):
            raise GradientMismatch(f"{self}\n{note}".rstrip(), self, note)
        if _in_a_notebook():
            _display({"text/plain": str(self), "text/html": self.html()})
        else:
            print(self.text(painted))
        return self


class GradientMismatch(AssertionError):
    """A gradient is wrong. The message is the whole table, with the reason in each wrong line."""

    def __init__(self, message, report=Report(), note=""):  # noqa: B008  an empty tuple
        """Keep the report, so that a notebook can draw it."""
        super().__init__(message)
        self.report, self.note = report, note

    def _repr_pretty_(self, printer, cycle):
        for i, line in enumerate(str(self).splitlines()):
            printer.break_() if i else None
            printer.text(line)

    def _repr_html_(self):
        return self.report.html(self.note) if self.report else None

    def _render_traceback_(self):
        """In a notebook the table is all that a reader needs; JAX's frames say nothing more."""
        return [f"{type(self).__name__}:", *str(self).splitlines()]


def painted(words, right):
    """The words, in green or in bold red where the terminal shows colours."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb":
        return words
    return f"\x1b[32m{words}\x1b[0m" if right else f"\x1b[1;31m{words}\x1b[0m"


_CELL = 'style="text-align:left; padding:0.15em 0.9em 0.15em 0"'


def _row(verdict):
    color, mark = ("#009E73", "✓") if verdict.right else ("#D55E00", "✗")
    words = html.escape(verdict.words)
    if not verdict.right:
        words = f"<b>WRONG:</b> {words}"
    edge = f'style="text-align:left; padding:0.15em 0.7em; border-left:0.3em solid {color}"'
    code = f'<td {_CELL}><code style="background:none">'
    return (
        f"<tr><td {edge}><b>{mark}</b></td>{code}{html.escape(verdict.name)}</code></td>"
        f"{code}{verdict.shape}</code></td><td {_CELL}>{words}</td></tr>"
    )


def _in_a_notebook():
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")


def _display(bundle):
    from IPython.display import display

    display(bundle, raw=True)
