"""Judge an array against the true one.    Derivation: notebooks/32_checker.ipynb"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path, tree_leaves, tree_structure

from handgrad.check.arrays import is_float
from handgrad.check.explain import Finding
from handgrad.check.report import Verdict

# Relative to the largest entry. Rounding leaves some hundred machine epsilons; a mistake, far more.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}


class Judge(NamedTuple):
    """What the comparison of one gradient needs besides the two arrays.

    noise is the floor (32.5); agree what to say of a right one; place that of its first leaf, and
    findings the list that gathers what is to be explained; born(which) the operation that made a
    NaN or an infinity, in "hand" or in "JAX"; rounding(leaf) how far roundings move the true one,
    by measurement.
    """

    noise: float
    agree: str
    place: int = 0
    findings: list | None = None
    born: object = lambda which: None
    rounding: object = lambda leaf: 0.0


def compare(name, mine, theirs, judge):
    """The Verdicts of a gradient, one a leaf; the leaves of a tree are named by their path."""
    leaves, tree = tree_flatten_with_path(theirs)
    shape = leaves[0][1].shape if len(leaves) == 1 else ()
    if mine is None:
        return [Verdict(name, shape, False, "None; expected a gradient", ("missing",))]
    if len(leaves) == 1 and not leaves[0][0]:
        return [compare_leaf(name, mine, theirs, judge)]
    if tree_structure(mine) != tree:
        words = f"expected the structure {tree}; got {tree_structure(mine)}"
        return [Verdict(name, (), False, words, ("structure",))]
    return [
        compare_leaf(name + keystr(path), m, t, judge, leaf)
        for leaf, (m, (path, t)) in enumerate(zip(tree_leaves(mine), leaves, strict=True))
    ]


def compare_leaf(name, mine, theirs, judge, leaf=0):
    """The Verdict of one array."""
    theirs = np.asarray(theirs)
    try:
        mine = np.asarray(mine)
        if np.iscomplexobj(mine):
            raise TypeError
        dtype = mine.dtype if str(mine.dtype) in TOLERANCE else np.dtype("float64")
        mine = mine.astype("float64")
    except (TypeError, ValueError):
        words = f"expected an array of real numbers; got {_kind(mine)}"
        return Verdict(name, theirs.shape, False, words, ("dtype",))
    kinds = [kind for kind in (str(dtype), str(theirs.dtype)) if kind in TOLERANCE]
    coarser = max(kinds, key=TOLERANCE.__getitem__)
    theirs = theirs.astype("float64")
    agree = judge.agree if coarser == "float64" else f"{judge.agree}, to the digits of {coarser}"
    wrong = partial(Verdict, name, mine.shape, False)
    if not np.isfinite(theirs).all():
        where = _first(~np.isfinite(theirs))
        words = f"JAX's own gradient is {theirs[where]}{_at(where)}{_born(judge, 'JAX')}"
        return wrong(f"{words}: it cannot judge here", ("JAX",))
    if not np.isfinite(mine).all():
        where = _first(~np.isfinite(mine))
        value, kind = mine[where], "NaN" if np.isnan(mine[where]) else "inf"
        expected = f"; expected {theirs[where]:.4g}" if mine.shape == theirs.shape else ""
        return wrong(f"{value}{_at(where)}{_born(judge, 'hand')}{expected}", (kind,))

    floor = judge.noise

    def off(a, b):
        return np.abs(a - b) > TOLERANCE[coarser] * np.abs(b).max(initial=0.0) + floor

    def differs():
        return mine.shape != theirs.shape or off(mine, theirs).any()

    if mine.shape == theirs.shape and differs():
        floor = max(floor, _measured(judge, leaf))
        agree += f"; roundings alone may move it by {floor:.0e}"
    finding = Finding(name, judge.place + leaf, mine, theirs, off, differs())
    if judge.findings is not None:
        judge.findings.append(finding)
    if not finding.wrong:
        return Verdict(name, mine.shape, True, agree)
    if mine.shape != theirs.shape:
        return wrong(f"expected shape {theirs.shape}", ("shape",))
    where = np.unravel_index(np.abs(mine - theirs).argmax(), mine.shape)
    digits = next(d for d in (4, 8, 12, 17) if _digits(mine[where], theirs[where], d))
    words = f"no known mistake; the largest error sits{_at(where)}: "
    return wrong(f"{words}{mine[where]:.{digits}g}, expected {theirs[where]:.{digits}g}")


def right(*operands):
    """Whether compare(*operands) finds no fault."""
    return all(verdict.right for verdict in compare(*operands))


def noise(value, arg):
    """The slope by which all entries together explain some roundings of the loss, (32.5)."""
    value, arg = (list(map(np.asarray, filter(is_float, tree_leaves(a)))) for a in (value, arg))
    eps = max((float(jnp.finfo(leaf.dtype).eps) for leaf in (*value, *arg)), default=0.0)
    entries = max(sum(leaf.size for leaf in arg), 1)
    # a small argument does not make a loss coarser
    return 32 * eps * abs(float(value[0])) / (entries * max(1.0, float(size(arg))))


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


def _measured(judge, leaf):
    try:
        return judge.rounding(leaf)
    except Exception:  # a program that cannot be run once more is judged by (32.5) alone
        return 0.0


def _born(judge, who):
    try:
        operation = judge.born(who)
    except Exception:  # a rule that cannot be traced has a NaN all the same
        return ""
    return f", born in {_OPERATIONS.get(operation, operation)}" if operation else ""
