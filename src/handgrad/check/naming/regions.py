"""Stretches of a program that are one operation to the reader, such as softmax or an activation.

Derivation: notebooks/32_checker.ipynb
"""

import numpy as np

from handgrad.check.naming.local import forward, slopes
from handgrad.check.naming.replacements import is_live

LONGEST = 60  # nodes
DEEPEST = 12  # values, one above the other, that a region may start with
_ONE_BY_ONE = {
    *("add", "sub", "mul", "div", "neg", "exp", "log", "tanh", "logistic", "sqrt", "rsqrt"),
    *("square", "integer_pow", "max", "relu", "min", "abs", "log1p", "expm1", "erf"),
}


def regions(tape, right):
    """Lists of pairs (x, o) of one shape, a pair for each round of a loop.

    o depends on x alone, and nothing between them is used elsewhere.
    """
    above, depth = {}, {}  # value -> the nearest value that all of its paths pass
    grouped = {}
    for node in tape.nodes:
        for o in node.results if tape.active[node.results[0]] else ():
            live = [v for v in node.operands if tape.active[v]]
            above[o] = _nearest(above, depth, live)
            depth[o] = depth.get(above[o], 0) + 1
    for o, x in above.items():
        if right[o] is None or len(tape.nodes[tape.maker[o]].results) > 1:
            continue
        for _ in range(DEEPEST):
            if x is None:
                break
            if np.shape(tape.values[x]) == np.shape(tape.values[o]) and _starts(tape, above, x):
                inner = between(tape, x, o)
                if inner is None:
                    break
                if len(inner) > 1:
                    grouped.setdefault((_series(tape, x), _series(tape, o)), []).append((x, o))
            x = above.get(x)
    return grouped.values()


def below(tape, right):
    """For each value the nearest that all of its paths lead to."""
    found, depth = {}, {}
    for v in reversed(range(len(tape.values))):
        if right[v] is not None and v != tape.output:
            live = [n for n, _ in tape.uses.get(v, ()) if is_live(tape, right, n)]
            found[v] = _nearest(found, depth, [tape.nodes[n].results[0] for n in live])
            depth[v] = depth.get(found[v], 0) + 1
    return found


def _nearest(above, depth, values):
    # the nearest value that lies above all of these, or is one of them
    common, *others = values or [None]
    for v in others:
        while common is not None and v is not None and common != v:
            if depth.get(common, 0) >= depth.get(v, 0):
                common = above.get(common)
            else:
                v = above.get(v)
        common = common if common == v else None
    return common


def _starts(tape, above, x):
    # whether the reader may well have a name for it: an argument, a product, or used twice
    if above.get(x) is None or len(tape.uses[x]) > 1:
        return True
    return tape.nodes[tape.maker[x]].op.name not in _ONE_BY_ONE


def _series(tape, v):
    # what the same value of another round of a loop has in common with it
    if v not in tape.maker:
        return "argument", v
    node = tape.nodes[tape.maker[v]]
    return node.site, node.results.index(v)


def between(tape, x, o):
    """The nodes from x to o; None where a value between them is used elsewhere, or many are."""
    inner, todo = set(), [o]
    while todo:
        n = tape.maker[todo.pop()]
        if n not in inner:
            inner.add(n)
            todo += [v for v in tape.nodes[n].operands if tape.active[v] and v != x]
        if len(inner) > LONGEST:
            return None
    made = [v for n in inner for v in tape.nodes[n].results if v != o]
    used = {n for v in made for n, _ in tape.uses.get(v, ())}
    return inner if used <= inner else None


def slope_between(tape, x, o, at=None):
    """The slope from x to o where all between them goes element by element, else None.

    It is that at another value of x where one is given.
    """
    values = list(tape.values)
    if at is not None:
        values[x] = at
        for node in (tape.nodes[n] for n in sorted(between(tape, x, o))):
            for v, value in zip(
                node.results, forward(node.op, tape.operands(node, values)), strict=True
            ):
                values[v] = value
    sent = {o: np.ones((1, *np.shape(tape.values[o])))}
    for n in sorted(between(tape, x, o) or (), reverse=True):
        node = tape.nodes[n]
        known = slopes(node.op, tape.operands(node, values), tape.results(node, values))
        if known is None or node.results[0] not in sent:
            return None
        for v, slope in zip(node.operands, known, strict=True):
            if tape.active[v]:
                if np.shape(tape.values[v]) != np.shape(tape.values[o]):
                    return None
                sent[v] = sent.get(v, 0) + sent[node.results[0]] * slope
    return sent[x][0] if x in sent else None
