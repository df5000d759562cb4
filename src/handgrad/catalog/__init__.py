"""One row a rule. The proof, the command line, the tests, the cheat sheet and the site read ROWS.

A module a topic, with its rows in the order of its notebook; a new module is found, not listed.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from inspect import getmodule, unwrap

from handgrad.layers import RULES


@dataclass(frozen=True, eq=False)
class Row:
    """A rule: its plain forward, its formula and gradients in LaTeX, and example arguments.

    gradients has an equation for each argument that has a gradient. where explains, in words with
    LaTeX between dollars, what else stands in it.

    examples(rng) draws {name: (arguments, hyperparameters)}, in float64; from one draw to the next
    the shapes are the same, so a compiled check serves them all. A name says what is special:
    "typical", or "edge: ..." (a constant row, a probability of 0), which are proved; or "extreme:
    ..." (a kink, logits of 1e4), where differences can't judge, and gradients must be finite.

    same_as computes the same elsewhere: the name of a function of jax.nn, optax or jax.scipy, or
    a function, called as f is. The oracles can't see a wrong f; a comparison with another can.
    f_fwd and f_bwd are those of the module, unless others are put in their place.
    """

    f: Callable
    formula: str
    gradients: dict
    examples: Callable
    same_as: str | Callable
    where: str = ""
    f_fwd: Callable = None
    f_bwd: Callable = None

    def __post_init__(self):
        for part in ("f_fwd", "f_bwd"):
            if getattr(self, part) is None:
                object.__setattr__(self, part, RULES[self.name + part[1:]])

    @property
    def name(self):
        """The function's own name."""
        return self.f.__name__

    @property
    def topic(self):
        """The stem that its module shares with its notebook."""
        return self.f.__module__.rpartition(".")[2]

    @property
    def notebook(self):
        """The notebook that derives it, 04_linear: the first line of the module names it."""
        return re.search(r"notebooks/(\w+)\.ipynb", getmodule(unwrap(self.f)).__doc__)[1]

    def proved(self, rng):
        """The examples that the oracles can judge."""
        return {n: e for n, e in self.examples(rng).items() if not n.startswith("extreme")}


def table():
    """The README's table of rules, in Markdown, and how many they are."""
    topics = len({row.topic for row in ROWS})
    rows = [f"{len(ROWS)} rules in {topics} modules, in the order of their notebooks:", ""]
    rows += ["| layer | forward | module | derivation |", "| --- | --- | --- | --- |"]
    for row in ROWS:
        module = f"[`{row.topic}`](src/handgrad/layers/{row.topic}.py)"
        notebook = f"[{row.notebook}](notebooks/{row.notebook}.ipynb)"
        rows.append(f"| `{row.name}` | ${row.formula}$ | {module} | {notebook} |")
    return "\n".join(rows)


_topics = (importlib.import_module(f"{__name__}.{t.name}") for t in pkgutil.iter_modules(__path__))
ROWS = tuple(
    sorted((row for topic in _topics for row in topic.ROWS), key=lambda row: row.notebook[:2])
)
