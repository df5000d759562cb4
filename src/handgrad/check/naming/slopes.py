"""Another slope stands for the right one: of an operation, or of many that are one to the reader.

Derivation: notebooks/32_checker.ipynb
"""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from handgrad.check.naming.local import forward, slopes, summed_to
from handgrad.check.naming.regions import below, regions, slope_between
from handgrad.check.naming.replacements import Variant, at_all, axes_of, is_live, replacing, without

SMALL = 2**14  # numbers in what is sent back, of which those of all slopes are compared


class Point(NamedTuple):
    """Where a slope is taken: from x to o, with the slope s; d is the cotangent that arrives."""

    x: np.ndarray
    o: np.ndarray
    s: np.ndarray | None
    d: np.ndarray
    at: object = None  # the slope at another x


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _sigmoid_slope(x):
    return _sigmoid(x) * _sigmoid(-x)


def _tanh_slope(x):
    return 1 - np.tanh(x) ** 2


def _tanh_form(x):
    u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    inner = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return 0.5 * (1 + np.tanh(u)) + 0.5 * x * _tanh_slope(u) * inner


def _exact_form(x):
    density = np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    return np.asarray(jax.scipy.stats.norm.cdf(x), "float64") + x * density


# The names, what stands for the slope, and its value at a Point: of any operation ...
OF_ANY = [
    (("local factor",), "the slope is left out", lambda p: 1.0),
    (("slope", "local factor"), "the slope is taken twice", lambda p: p.s * p.s),
    (("slope",), "1 / slope stands for the slope", lambda p: 1 / p.s),
    (("value",), "the value stands for the slope", lambda p: p.o),
    (("slope",), "the sign of the cotangent stands for the slope", lambda p: p.d > 0),
    (("slope",), "1 - slope stands for the slope", lambda p: 1 - p.s),
]
# ... of one that reads one array, x, to make o ...
OF_ONE = [
    (("slope",), "1 - o stands for the slope", lambda p: 1 - p.o),
    (("slope",), "1 + o stands for the slope", lambda p: 1 + p.o),
    (("slope",), "o - (1 - o) stands for o (1 - o)", lambda p: 2 * p.o - 1),
    (("slope",), "o (1 - o) stands for the slope", lambda p: p.o * (1 - p.o)),
    (("slope",), "1 - o^2 stands for the slope", lambda p: 1 - p.o * p.o),
    (("slope", "sign"), "1 + o^2 stands for the slope", lambda p: 1 + p.o * p.o),
    (("slope", "residual"), "x (1 - x) stands for o (1 - o)", lambda p: p.x * (1 - p.x)),
    (("slope", "residual"), "1 - x^2 stands for 1 - o^2", lambda p: 1 - p.x * p.x),
    (("slope", "residual"), "x stands for the slope", lambda p: p.x),
    (("output", "slope"), "the slope is taken at the output", lambda p: p.at(p.o)),
    (("slope", "operand"), "the slope is taken at the cotangent", lambda p: p.at(p.d)),
    (("slope", "upstream"), "the slope at the cotangent stands alone", lambda p: p.at(p.d) / p.d),
    (("upstream",), "what arrives is left out: the slope stands alone", lambda p: p.s / p.d),
    (("slope",), "the sign of x stands for the slope", lambda p: p.x > 0),
    (("slope", "local factor"), "its root stands for the slope", lambda p: np.sqrt(p.s)),
    (("slope", "forward"), "sigmoid's slope stands for its own", lambda p: _sigmoid_slope(p.x)),
    (("slope", "forward"), "tanh's slope stands for its own", lambda p: _tanh_slope(p.x)),
    (("slope", "forward"), "sigmoid stands for its slope", lambda p: _sigmoid(p.x)),
    (
        ("slope", "forward"),
        "the slope of GELU's tanh form stands for its own",
        lambda p: _tanh_form(p.x),
    ),
    (
        ("slope", "forward"),
        "the slope of GELU's exact form stands for its own",
        lambda p: _exact_form(p.x),
    ),
]
# ... and of one whose slope has the factors o, 1 / o, x or 1 / x
FACTORS = [
    (("local factor",), "the slope lacks its factor o, the value", lambda p: p.s / p.o),
    (("local factor",), "the slope lacks its factor 1 / o, o the value", lambda p: p.s * p.o),
    (("local factor",), "the slope lacks its factor x, the operand", lambda p: p.s / p.x),
    (("local factor",), "the slope lacks its factor 1 / x, x the operand", lambda p: p.s * p.x),
]
_TRIVIAL = {
    *("add", "add_any", "sub", "neg", "copy", "convert_element_type", "reduce_precision", "real"),
    *("optimization_barrier", "tap"),
}


def of_slope(tape, right, site, nodes):
    """Another slope stands for the right one of an operation that goes element by element."""
    node = tape.nodes[nodes[0]]
    known = slopes(node.op, tape.operands(node), tape.results(node))
    if node.op.name in _TRIVIAL or known is None:
        return
    live = [i for i, v in enumerate(node.operands) if tape.active[v]]
    of_one = len(live) == 1 and node.op.name not in ("mul", "select_n")
    choices = (
        OF_ANY + (OF_ONE if of_one else []) + (FACTORS if of_one or node.op.name == "div" else [])
    )
    for i in live:
        point = _point(tape, node, i, right[node.results[0]])
        by_number = any(v in tape.literals for k, v in enumerate(node.operands) if k != i)
        tells = _teller(tape, point)
        for names, words, slope in choices:
            if tells(slope):
                if by_number and names == ("local factor",):
                    names = ("factor", *names)
                new = replacing(i, partial(_sloped, i=i, slope=slope))
                yield Variant(names, words, site, at_all(nodes, new))


def _sloped(met, i, slope):
    d = met.ds[0] * slope(_point(met.tape, met.node, i, met.ds[0][0]))
    return summed_to(d, np.shape(met.operands[i]))


def _point(tape, node, i, d):
    operands, results = tape.operands(node), tape.results(node)

    def at(u):
        other = [u if k == i else x for k, x in enumerate(operands)]
        return slopes(node.op, other, forward(node.op, other))[i]

    return Point(operands[i], results[0], slopes(node.op, operands, results)[i], d, at)


def _teller(tape, point):
    # tells(slope) says whether it can be taken here, and sends back what nothing simpler does: what
    # is right, the same with the other sign, nothing (for such a path has a name), or what a slope
    # before it has sent
    shape = np.shape(point.x)
    known = [0.0]
    if point.s is not None:
        true = summed_to((point.d * point.s)[None], shape)
        known += [true, -true]

    def tells(slope):
        tape.tried += 2 * np.size(point.d)
        try:
            terms = (point.d * slope(point))[None]
            mine = summed_to(terms, shape)
        except (TypeError, ValueError, IndexError, NotImplementedError):
            return False
        if not np.isfinite(mine).all():
            return False
        near = 1e-13 * max(np.abs(terms).sum() / max(mine.size, 1), np.abs(mine).max(initial=0.0))
        if any(np.abs(mine - other).max(initial=0.0) <= near for other in known):
            return False
        if mine.size <= SMALL:
            known.append(mine)
        return True

    return tells


def of_regions(tape, right):
    """Another slope stands for that of all that lies between two values."""
    for pairs in regions(tape, right):
        x, o = pairs[-1]
        value = tape.values[o]
        slope = slope_between(tape, x, o)
        # what has no slope here has none at another value either
        at = None if slope is None else partial(slope_between, tape, x, o)
        point = Point(tape.values[x], value, slope, right[o], at)
        choices = OF_ANY + OF_ONE if slope is not None else OF_ANY + OF_ONE[:14]
        of_shares = list(_of_shares(value))
        if of_shares:
            choices = of_shares + OF_ANY
        tells = _teller(tape, point)
        for names, words, other in choices:
            if tells(lambda p, other=other: other(p) * np.ones_like(p.d)):
                change = partial(_bridged, tape, other, slope is not None)
                blocks = {tape.maker[end]: (start, end, change, False) for start, end in pairs}
                words = f"{words}, from {{{x}}} to here"
                yield Variant(names, words, tape.nodes[tape.maker[o]].site, {}, blocks)


def _bridged(tape, other, by_slope, d, x, o):
    s, at = None, None
    if by_slope:
        s, at = slope_between(tape, x, o), partial(slope_between, tape, x, o)
    return d * other(Point(tape.values[x], tape.values[o], s, d, at))


def bypassed(tape, right):
    """All that an argument goes through is left out, up to where its paths have met again."""
    nearest = below(tape, right)
    for v in tape.inputs:
        o = nearest.get(v)
        drops = {}
        for n, i in tape.uses.get(v, ()):
            drops.setdefault(n, set()).add(i)
        hits = {n: without(which) for n, which in drops.items()}
        for _ in range(12):
            o = nearest.get(o)
            if o is None:
                break
            if np.shape(tape.values[o]) == np.shape(tape.values[v]):
                n = tape.maker[o]
                blocks = {n: (v, o, lambda d, x, o: d, True)}
                words = f"the slope of all from {{{v}}} to here is left out"
                yield Variant(("local factor",), words, tape.nodes[n].site, hits, blocks)


def once_more(tape, right):
    """A slope is applied where none belongs: the activation's, in a loss that has it built in."""
    for v, uses in tape.uses.items():
        reads = {}
        for n, i in uses:
            if is_live(tape, right, n):
                reads.setdefault(n, set()).add(i)
        if reads and tape.active[v] and (v in tape.inputs or _joins(tape, tape.maker[v])):
            for name, slope in (("sigmoid", _sigmoid_slope), ("tanh", _tanh_slope)):
                s = slope(tape.values[v])
                hits = {n: partial(_times, which=which, s=s) for n, which in reads.items()}
                words = f"{name}'s slope is applied to {{{v}}} once more"
                site = tape.nodes[uses[0][0]].site
                yield Variant(("slope", "local factor"), words, site, hits, rank=2)


def _joins(tape, n):
    node = tape.nodes[n]
    both = sum(tape.active[v] for v in node.operands) > 1
    return node.op.name == "dot_general" or (node.op.name == "add" and both)


def _times(met, which, s):
    return [b * s if k in which and b is not None else b for k, b in enumerate(met.back)]


def shares(o):
    """(axis, whether o holds logarithms) for each axis along which shares add up to 1."""
    for axis in range(np.ndim(o)):
        for log in (False, True):
            parts = np.exp(np.minimum(o, 1.0)) if log else o
            total = parts.sum(axis=axis)
            if o.shape[axis] > 1 and (parts >= 0).all() and np.abs(total - 1).max() < 1e-9:
                yield axis, log


def softmax_rule(o, d, axes, log):
    """What a softmax, or its logarithm, sends back where its sum runs over these axes."""
    if log:
        return d - np.exp(o) * d.sum(axis=axes, keepdims=True)
    return o * (d - (d * o).sum(axis=axes, keepdims=True))


def _of_shares(o):
    for axis, log in shares(o):
        diagonal = (lambda p: 1 - np.exp(p.o)) if log else (lambda p: p.o * (1 - p.o))
        yield ("diagonal", "slope"), "softmax's Jacobian has its diagonal alone", diagonal
        if log:
            for number in (-1, 1):
                rule = partial(_per_cotangent, lambda o, d, number=number: d - np.exp(o) * number)
                words = f"the sum of what arrives is taken for {number}"
                yield ("upstream", "operand"), words, rule
            rule = partial(_per_cotangent, partial(softmax_rule, axes=axis, log=False))
            yield ("slope", "value"), "softmax's rule stands for that of its logarithm", rule
        else:
            rule = partial(_per_cotangent, partial(_unweighted, axis=axis))
            yield ("local factor", "operand"), "softmax's sum lacks the weights", rule
        others = [(a,) for a in range(o.ndim) if a != axis] + [tuple(range(o.ndim))]
        for axes in others if o.ndim > 1 else ():
            rule = partial(_per_cotangent, partial(softmax_rule, axes=axes, log=log))
            words = f"softmax's sum runs over {axes_of(axes)}, not over axis {axis}"
            yield ("axis",), words, rule


def _unweighted(o, d, axis):
    return o * (d - d.sum(axis=axis, keepdims=True))


def _per_cotangent(rule, p):
    new = rule(p.o, p.d)
    return np.divide(new, p.d, out=np.zeros_like(new), where=p.d != 0)
