"""What a check says: its verdicts as a table, in text and in HTML, and the error that holds it."""

import html
import json
import os
import sys
from functools import cached_property
from typing import NamedTuple

import numpy as np

RIGHT, WRONG, UNJUDGED = "right", "wrong", "unjudged"


class Verdict(NamedTuple):
    """What was found of one gradient: its name, its shape, the outcome, and why.

    outcome is "right", "wrong", or "unjudged" where nothing can be told, which is not a pass.
    mistakes holds the names of the mistakes that were recognised, none where nothing fits.
    """

    name: str
    shape: tuple
    outcome: str
    words: str
    mistakes: tuple = ()

    @property
    def right(self):
        """Whether the gradient was found to be right."""
        return self.outcome == RIGHT

    @property
    def line(self):
        """The words, with what is to be seen first in front."""
        return f"WRONG: {self.words}" if self.outcome == WRONG else self.words


class Power(NamedTuple):
    """What a check would have caught in a gradient that it found to be right.

    factor is the smallest that it would have caught, 1 + a power of ten; entry the smallest error
    of a single entry, wherever it sits, as a power of ten of the largest one; inf where it would
    have caught none.
    """

    factor: float
    entry: float


class Report(tuple):
    """The verdicts of one check, in the order of the gradients, one aligned line each."""

    def __new__(cls, verdicts=(), findings=()):
        """Keep the findings, which tell what the check would have caught."""
        report = super().__new__(cls, verdicts)
        report.findings = findings
        return report

    @cached_property
    def power(self):
        """The Power of the check, by the names of the right gradients: mistakes are tried."""
        right = {verdict.name for verdict in self if verdict.right}
        found = {}
        for finding in self.findings:
            if finding.name in right and not finding.wrong:
                power, before = _power(finding), found.get(finding.name, Power(np.inf, np.inf))
                found[finding.name] = Power(*map(min, power, before))
        return found

    def with_power(self):
        """The report, and in its words what it would have caught."""

        def told(verdict):
            if verdict.name not in self.power:
                return verdict
            factor, entry = self.power[verdict.name]
            caught = f"a factor of 1 + {factor - 1:.0e}, and one entry off by {entry:.0e}"
            words = f"{verdict.words}; it would have caught {caught} of the largest"
            return verdict._replace(words=words)

        return Report(map(told, self), self.findings)

    def __str__(self):
        return self.text(lambda words, right: words)

    def text(self, paint):
        """The lines; paint(words, right) may colour what is said of each gradient."""
        columns = [(v.name, str(v.shape)) for v in self]
        name, shape = (max((len(row[i]) for row in columns), default=0) for i in (0, 1))
        words = [paint(v.line, v.right) for v in self]
        rows = zip(columns, words, strict=True)
        return "\n".join(f"{n:{name}}  {s:{shape}}  {said}" for (n, s), said in rows)

    def json(self):
        """The verdicts as JSON: a list of objects with name, shape, outcome, words and mistakes."""
        return json.dumps([verdict._asdict() for verdict in self], ensure_ascii=False)

    def html(self, note=""):
        """The table for a notebook: a mark and a word tell right from wrong, beside the colour."""
        rows = "".join(_row(verdict) for verdict in self)
        if note:
            rows += f'<tr><td></td><td colspan="3" {_CELL}>{html.escape(note)}</td></tr>'
        return f'<table class="handgrad-check" style="border-collapse:collapse">{rows}</table>'

    def _ipython_display_(self):
        """Show nothing more: the check has shown it."""

    def conclude(self, note=""):
        """Show the table and return the report, or raise it when not all gradients are right."""
        __tracebackhide__ = True  # pytest ends its traceback at the test
        text = f"{self}\n{note}".rstrip()
        if not all(verdict.right for verdict in self):
            raise GradientMismatch(text, self, note)
        if _in_a_notebook():
            _display({"text/plain": text, "text/html": self.html(note)})
        else:
            print(f"{self.text(painted)}\n{note}".rstrip())
        return self


def _power(finding):
    # the smallest mistakes of each kind that are caught, by trying
    true = finding.true
    sizes = [10.0**-k for k in range(17)]
    factors = [1 + t for t in sizes if finding.off(true * (1 + t), true).any()]
    largest = np.abs(true).max(initial=0.0) or 1.0
    entries = [t for t in sizes if finding.off(true + t * largest, true).all()]
    return Power(min(factors, default=np.inf), min(entries, default=np.inf))


class GradientMismatch(AssertionError):
    """A gradient is wrong, or cannot be judged. The message is the whole table and its reasons."""

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
    color, mark, head = {  # each stands out from white and from black
        RIGHT: ("#009E73", "✓", ""),
        WRONG: ("#D7263D", "✗", "<b>WRONG:</b> "),
        UNJUDGED: ("#B57B00", "?", ""),
    }[verdict.outcome]
    words = head + html.escape(verdict.words)
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
