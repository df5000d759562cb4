"""Count how often a right rule is blamed at the sizes that people use.

python tests/blame.py [draws [rule ...]] proves these rules, or all of the catalog, in float64 and
in float32, at that many draws of their typical examples with longer axes, and prints how many were
called wrong, how many could not be judged, and what was said of the first of each.
"""

import sys
from collections import Counter
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from handgrad.catalog import ROWS
from handgrad.check import GradientMismatch, prove

DTYPES = "float64", "float32"
# How long the axes of an example become: of these the first that make no more than LIMIT numbers.
LENGTHS = (
    {2: 8, 3: 32, 4: 1000, 5: 64},
    {2: 8, 3: 32, 4: 128, 5: 64},
    {2: 4, 3: 8, 4: 32, 5: 64},
)
LIMIT = 2**16
AT_ONCE = 2**22  # numbers in the draws that are proved by one compilation


class Longer:
    """A generator of random numbers whose axes are longer than those that it is asked for."""

    def __init__(self, rng, lengths):
        self.rng, self.lengths = rng, lengths

    def __getattr__(self, distribution):
        draw = getattr(self.rng, distribution)

        def drawn(*parameters, size=None, **named):
            axes = size if size is None or np.ndim(size) else (size,)
            longer = axes and tuple(self.lengths.get(n, n) for n in axes)
            return draw(*parameters, size=longer, **named)

        return drawn


def typical(row, seed):
    """The arguments of a row's typical example, with longer axes, and its hyperparameters."""
    rng, lengths = np.random.default_rng(seed), lengths_of(row.name)
    return row.examples(Longer(rng, lengths) if lengths else rng)["typical"]


@cache
def lengths_of(name):
    """The first of LENGTHS that a rule can take, none where it can take no longer axes."""
    (row,) = (row for row in ROWS if row.name == name)
    for lengths in LENGTHS:
        try:
            args, hyper = row.examples(Longer(np.random.default_rng(0), lengths))["typical"]
            jax.eval_shape(partial(row.f, **hyper), *args)
        except (TypeError, ValueError):  # neither the example nor the rule need take such axes
            continue
        if numbers(args) <= LIMIT:
            return lengths
    return None


def numbers(args):
    """How many numbers the arguments hold."""
    return sum(map(np.size, args))


def cast(args, dtype):
    """The arguments with their floats in the dtype."""
    return [jnp.asarray(a, dtype) if np.asarray(a).dtype.kind == "f" else a for a in args]


class Count(NamedTuple):
    """What was found of one rule in one dtype: {outcome: draws}, and what was said of a blame."""

    outcomes: Counter
    said: dict


def outcome(row, draws, hyper):
    """(the worst outcome of all gradients over these draws, what was said of it)."""
    try:
        verdicts = prove(row.f, row.f_fwd, row.f_bwd, draws, **hyper)
    except GradientMismatch as mismatch:
        return "wrong", str(mismatch)
    found = {verdict.outcome: f"{verdict.name}: {verdict.words}" for verdict in verdicts}
    worst = next(kind for kind in ("wrong", "unjudged", "right") if kind in found)
    return worst, found[worst]


def blamed(row, dtype, draws):
    """The Count of a rule over that many draws."""
    args, hyper = typical(row, 0)
    at_once = max(AT_ONCE // (1 + numbers(args)), 1)
    count = Count(Counter(), {})
    for start in range(0, draws, at_once):
        seeds = range(start, min(start + at_once, draws))
        several = [cast(typical(row, seed)[0], dtype) for seed in seeds]
        if outcome(row, several, hyper)[0] == "right":
            count.outcomes["right"] += len(several)
            continue
        for args in several:  # one by one only where there is blame
            kind, words = outcome(row, [args], hyper)
            count.outcomes[kind] += 1
            if kind != "right":
                count.said.setdefault(kind, words)
    return count


HEAD = f"{'rule':32}{'dtype':9}{'draws':>6}{'wrong':>7}{'unjudged':>10}"


def text(name, dtype, count):
    """A line of the table, with what was said below it where there is blame."""
    outcomes, said = count
    wrong, unjudged = outcomes["wrong"], outcomes["unjudged"]
    line = f"{name:32}{dtype:9}{outcomes.total():6}{wrong:7}{unjudged:10}"
    return "\n".join([line, *(f"    {words}" for words in said.values())])


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    rows = [row for row in ROWS if row.name in sys.argv[2:] or not sys.argv[2:]]
    print(HEAD)
    for row in rows:
        for kind in DTYPES:
            print(text(row.name, kind, blamed(row, kind, draws)), flush=True)
