"""Judge an array against the true one.    Derivation: notebooks/32_checker.ipynb"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path, tree_leaves

from handgrad.check.arrays import is_float
from handgrad.check.naming.explain import Finding
from handgrad.check.report import RIGHT, UNJUDGED, WRONG, Verdict

# Relative to an entry itself, where a mistake makes more; and to the largest entry, for the arrays
# that mistakes would give, which only name one.
DIGITS = {"float64": 1e-12, "float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
LOOSE = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}


class Judge(NamedTuple):
    """What the comparison of one gradient needs besides the two arrays.

    agree is what to say of a right one; place that of its first leaf, and findings the list that
    gathers what is to be explained; born(which) the operation that made a NaN or an infinity, in
    "hand" or in "JAX"; rounding(leaf) how far roundings move each entry of the true one, measured;
    fragile(leaf, measure) whether they move it as far as it is long, measured or only guessed; and
    reason why nothing can be judged here.
    """

    agree: str
    place: int = 0
    findings: list | None = None
    born: Callable = lambda which: None
    rounding: Callable = lambda leaf: 0.0
    fragile: Callable = lambda leaf, measure: False
    reason: str = ""


def compare(name, mine, theirs, judge):
    """The Verdicts of a gradient, one a leaf; the leaves of a tree are named by their path."""
    leaves, _ = tree_flatten_with_path(theirs)
    shape = leaves[0][1].shape if len(leaves) == 1 else ()
    if judge.reason:
        return [unjudged(name, shape, judge.reason)]
    if mine is None:
        return [Verdict(name, shape, WRONG, "None; expected a gradient", ("missing",))]
    if len(leaves) == 1 and not leaves[0][0]:
        return [compare_leaf(name, mine, theirs, judge)]
    given, _ = tree_flatten_with_path(mine)
    given = {keystr(path): leaf for path, leaf in given}
    verdicts = []
    for leaf, (path, true) in enumerate(leaves):
        path = keystr(path)
        if path in given:
            verdicts.append(compare_leaf(name + path, given.pop(path), true, judge, leaf))
        else:
            words = "missing; expected a gradient of this name"
            verdicts.append(Verdict(name + path, true.shape, WRONG, words, ("structure",)))
    known = {keystr(path) for path, _ in leaves}
    for path, leaf in given.items():
        if path not in known and is_float(leaf):
            words = "no such gradient is expected"
            verdicts.append(Verdict(name + path, np.shape(leaf), WRONG, words, ("structure",)))
    return verdicts


def unjudged(name, shape, reason):
    """The Verdict where nothing can be said, and why."""
    return Verdict(name, shape, UNJUDGED, f"cannot be judged here: {reason}")


def compare_leaf(name, mine, theirs, judge, leaf=0):
    """The Verdict of one array."""
    kind = np.asarray(theirs).dtype
    theirs = np.asarray(theirs).astype("float64")
    try:
        mine = np.asarray(mine)
        if np.iscomplexobj(mine):
            raise TypeError
        mine = mine.astype("float64")
    except (TypeError, ValueError):
        words = f"expected an array of real numbers; got {_kind(mine)}"
        return Verdict(name, theirs.shape, WRONG, words, ("dtype",))
    wrong = partial(Verdict, name, mine.shape, WRONG)
    if not np.isfinite(theirs).all():
        where = _first(~np.isfinite(theirs))
        words = f"JAX's own gradient is {theirs[where]}{_at(where)}{_born(judge, 'JAX')}"
        return unjudged(name, mine.shape, words)
    if not np.isfinite(mine).all():
        where = _first(~np.isfinite(mine))
        value, what = mine[where], "NaN" if np.isnan(mine[where]) else "inf"
        expected = f"; expected {theirs[where]:.4g}" if mine.shape == theirs.shape else ""
        return wrong(f"{value}{_at(where)}{_born(judge, 'hand')}{expected}", (what,))

    tolerance = _Tolerance(mine, theirs, kind, partial(judge.rounding, leaf))
    differs = tolerance.off(mine, theirs)
    if not differs.any():
        if judge.fragile(leaf, tolerance.near is not None):
            return unjudged(name, mine.shape, "roundings move the gradient as far as it is long")
        digits = "" if str(kind) == "float64" else f", to the digits of {kind}"
        finding = Finding(name, judge.place + leaf, mine, theirs, tolerance.off, False)
        if judge.findings is not None:
            judge.findings.append(finding)
        return Verdict(name, mine.shape, RIGHT, judge.agree + digits)
    if judge.findings is not None:
        finding = Finding(name, judge.place + leaf, mine, theirs, tolerance.off, True)
        judge.findings.append(finding)
    if mine.shape != theirs.shape:
        return wrong(f"expected shape {theirs.shape}", ("shape",))
    where = np.unravel_index(np.where(differs, np.abs(mine - theirs), 0).argmax(), mine.shape)
    digits = next(d for d in (4, 8, 12, 17) if _digits(mine[where], theirs[where], d))
    words = f"no known mistake; the largest error sits{_at(where)}: "
    return wrong(f"{words}{mine[where]:.{digits}g}, expected {theirs[where]:.{digits}g}")


class _Tolerance:
    """Which entries differ, by what roundings may do to each of them."""

    def __init__(self, mine, theirs, kind, measure):
        self.mine, self.theirs, self.kind, self.measure = mine, theirs, kind, measure
        self.digits = DIGITS[str(kind)] * np.abs(theirs) + float(jnp.finfo(kind).tiny)
        self.near = None  # not measured before it is needed

    def off(self, a, b):
        """A mask of the entries of a that differ from b."""
        if a.shape != b.shape:
            return np.ones(a.shape or (1,), bool)
        if b is self.theirs:
            differs = np.abs(a - b) > self.digits
            if differs.any():
                differs = np.abs(a - b) > self.within()
            return differs if differs.any() else self.together(a)
        # A wrong array is named by one that mistakes give: it must explain each of its errors.
        differs = np.abs(a - b) > LOOSE[str(self.kind)] * np.abs(b).max(initial=0.0)
        if a is self.mine and a.shape == self.theirs.shape:
            errors = np.abs(a - self.theirs)
            left = np.abs(a - b) > 0.01 * errors + self.within()
            differs |= left & (errors > self.within())
        return differs

    def together(self, a):
        """All entries, where they differ in the same way; roundings of half precision do not."""
        eps, square = float(jnp.finfo(self.kind).eps), (self.theirs**2).sum()
        if eps < 1e-4 or not square:
            return np.zeros(a.shape, bool)
        factor = (a * self.theirs).sum() / square - 1
        by_chance = np.sqrt(((self.within() * self.theirs) ** 2).sum()) / square
        return np.full(a.shape, abs(factor) > max(8 * eps, by_chance))

    def within(self):
        """The tolerance of each entry."""
        if self.near is None:
            self.near = self.digits + np.broadcast_to(self.measure(), self.theirs.shape)
        return self.near


def right(*operands):
    """Whether compare(*operands) finds no fault."""
    return all(verdict.right for verdict in compare(*operands))


def size(arg):
    """The root mean square of an argument's entries; 1 where there is none but zeros."""
    leaves = [leaf for leaf in tree_leaves(arg) if is_float(leaf)]
    squares = sum((leaf.astype(float) ** 2).sum() for leaf in leaves)
    square = squares / max(sum(leaf.size for leaf in leaves), 1)
    return (square + (square == 0)) ** 0.5


def _digits(a, b, digits):
    # whether that many digits tell two different numbers apart
    return digits == 17 or f"{a:.{digits}g}" != f"{b:.{digits}g}"


def _kind(mine):
    return f"dtype {mine.dtype}" if isinstance(mine, np.ndarray) else f"a {type(mine).__name__}"


def _first(mask):
    return tuple(map(int, np.argwhere(mask)[0]))


def _at(where):
    return f" at {list(map(int, where))}" if where else ""


_OPERATIONS = {
    "div": "a division",
    "log": "a logarithm",
    "exp": "an exponential",
    "mul": "a product, 0 times infinity",
    "sub": "a difference, infinity less infinity",
    "sqrt": "a square root",
    "rsqrt": "a square root",
    "pow": "a power",
    "integer_pow": "a power",
    "dot_general": "a matrix product",
}


def _born(judge, who):
    try:
        operation = judge.born(who)
    except Exception:  # a rule that cannot be traced has a NaN all the same
        return ""
    return born_in(operation)


def born_in(operation):
    """The words that say which operation made a NaN or an infinity; none where none did."""
    return f", born in {_OPERATIONS.get(operation, operation)}" if operation else ""
