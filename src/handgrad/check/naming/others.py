"""A local rule reads another array of the program, or sends another cotangent back.

Derivation: notebooks/32_checker.ipynb
"""

import itertools
from functools import partial

import numpy as np

from handgrad.check.naming.local import forward
from handgrad.check.naming.replacements import Variant, at_all, is_live, paths, replacing, sites

NEAR = 30  # arrays that may stand for one, the nearest
PEERS = 10  # operations that may read each other's array
_LINEAR = {"mul", "dot_general", "select_n", "conv_general_dilated"}
_READING = _LINEAR | {
    *("div", "tanh", "logistic", "exp", "log", "sqrt", "rsqrt", "square", "integer_pow", "pow"),
    *("max", "relu", "min", "abs", "sin", "cos", "erf", "log1p", "gather", "clamp", "reduce_max"),
}
_OF_VALUE = {"tanh", "logistic", "exp", "sqrt", "rsqrt", "div", "reduce_max"}


def elsewhere(tape, right):
    """A local rule reads another array, or an argument after its update."""
    known = _by_shape(tape, tape.values)
    names = ("operand", "residual")
    for site, nodes in sites(tape, right):
        node = tape.nodes[nodes[0]]
        for j in range(len(node.operands)) if node.op.name in _READING else ():
            others = [v for k, v in enumerate(node.operands) if k != j]
            if not any(
                tape.active[v] for v in (others if node.op.name in _LINEAR else node.operands)
            ):
                continue
            present = [tape.nodes[n].operands[j] for n in nodes]
            for other, words in _choices(tape.values, nodes, present, known):
                hits = {n: partial(_reading, j=j, u=tape.values[u]) for n, u in other.items()}
                yield Variant(names, f"reads {words}", site, hits, rank=3)
            turns = [tape.nodes[tape.maker[v]] for v in present if v in tape.maker]
            if len(turns) == len(nodes) and {turn.op.name for turn in turns} == {"transpose"}:
                order = turns[0].op.params["permutation"]
                behind = [turn.operands[0] for turn in turns]
                for other, words in _choices(tape.values, nodes, behind, known):
                    turned = {n: tape.values[u].transpose(order) for n, u in other.items()}
                    hits = {n: partial(_reading, j=j, u=u) for n, u in turned.items()}
                    yield Variant(names, f"reads {words}", site, hits, rank=3)
            v = present[-1]
            if v in tape.inputs and right[v] is not None:
                hits = at_all(nodes, partial(_updated, j=j, u=right[v]))
                words = f"reads {{{v}}} after its update"
                yield Variant(names, words, site, hits, free="size", rank=3)
        if node.op.name in _OF_VALUE:
            present = [tape.nodes[n].results[0] for n in nodes]
            for other, words in _choices(tape.values, nodes, present, known):
                hits = {n: partial(_of_value, u=tape.values[u]) for n, u in other.items()}
                yield Variant(names[::-1], f"its slope is that of {words}", site, hits, rank=3)


def skipped(tape, right):
    """A slope inside is forgotten, so that what follows is taken at what comes before."""
    names, words = ("forward", "local factor"), "left out, here and in the slope of what reads it"
    for site, nodes in sites(tape, right):
        node = tape.nodes[nodes[0]]
        if node.op.name not in ("mul", "div", "sqrt", "square"):
            continue
        for k in paths(tape, nodes):
            if any(v not in tape.literals for i, v in enumerate(node.operands) if i != k):
                continue
            through = replacing(k, lambda met: met.ds[0])
            hits, fits = at_all(nodes, through), True
            for n in nodes:
                u, o = tape.nodes[n].operands[k], tape.nodes[n].results[0]
                fits &= np.shape(tape.values[u]) == np.shape(tape.values[o])
                for m, j in tape.uses.get(o, ()):
                    if tape.nodes[m].op.name in _READING:
                        hits[m] = partial(_reading, j=j, u=tape.values[u])
            if fits and len(hits) > len(nodes):
                yield Variant(names, words, site, hits, rank=3)


def moved(tape, right):
    """A factor is applied at the other end of the way back, where an argument is read, not here."""
    names = ("scale", "local factor", "operand")
    for site, nodes in sites(tape, right):
        node = tape.nodes[nodes[0]]
        live = paths(tape, nodes)
        if node.op.name not in ("mul", "div") or len(live) != 1 or len(nodes) > 1:
            continue
        (k,), u = live, node.operands[1 - live[0]]
        factor = tape.values[u]
        if u in tape.literals or np.size(factor) < 2 or (node.op.name == "div" and k):
            continue
        factor = factor if node.op.name == "mul" else 1 / factor
        for v in tape.inputs:
            if right[v] is None or not _fits(factor, right[v]):
                continue
            hits = {
                n: partial(_scaled, i=i, factor=factor)
                for n, i in tape.uses.get(v, ())
                if is_live(tape, right, n)
            }
            if nodes[0] in hits:
                continue
            hits[nodes[0]] = replacing(k, lambda met: met.ds[0])
            words = f"the factor is applied at the end of the way back, to d{{{v}}}, not here"
            yield Variant(names, words, site, hits, rank=3)


def _fits(factor, x):
    # whether it may multiply an array without making it larger
    try:
        return np.broadcast_shapes(np.shape(factor), x.shape) == x.shape
    except ValueError:
        return False


def _scaled(met, i, factor):
    return [b * factor if k == i else b for k, b in enumerate(met.back)]


def crossed(tape, right):
    """Two operations of one kind read each other's array."""
    alike = {}
    for site, nodes in sites(tape, right):
        node = tape.nodes[nodes[0]]
        for j in range(2) if node.op.name in ("mul", "dot_general") else ():
            if tape.active[node.operands[1 - j]]:
                kind = node.op.name, np.shape(tape.values[node.operands[j]]), len(nodes)
                alike.setdefault(kind, []).append((site, nodes, j))
    for several in alike.values():
        for (site, nodes, j), (other, its, k) in itertools.combinations(several[:PEERS], 2):
            mine = [tape.nodes[n].operands[j] for n in nodes]
            theirs = [tape.nodes[n].operands[k] for n in its]
            if site != other and mine != theirs:
                hits = {}
                for n, m, u, v in zip(nodes, its, mine, theirs, strict=True):
                    hits[n] = partial(_reading, j=j, u=tape.values[v])
                    hits[m] = partial(_reading, j=k, u=tape.values[u])
                words = f"{{{mine[-1]}}} and {{{theirs[-1]}}} are exchanged, here and there"
                yield Variant(("exchanged", "operand", "residual"), words, site, hits, rank=4)


def rerouted(tape, right):
    """The cotangent of another value is sent back through an operation, or along one path."""
    known = _by_shape(tape, right)
    for site, nodes in sites(tape, right):
        node = tape.nodes[nodes[0]]
        if node.op.name == "tap" or len(node.results) > 1:
            continue
        live = paths(tape, nodes)
        present = [tape.nodes[n].results[0] for n in nodes]
        for other, words in _choices(right, nodes, present, known):
            for i in [None, *(live if len(live) > 1 else ())]:
                hits = {n: partial(_sending, d=right[u], i=i) for n, u in other.items()}
                names = ("exchanged", "upstream", "local factor")
                words_ = f"sends back the cotangent of {words}"
                yield Variant(names, words_, site, hits, rank=4)


def _reading(met, j, u):
    operands = met.operands
    operands[j] = u
    return met.again(operands=operands, result=forward(met.node.op, operands)[0])


def _of_value(met, u):
    return met.again(result=u)


def _updated(met, j, u):
    # what is sent back, and what its gradient adds to that: the step's size is free
    operands = met.operands
    operands[j] = u
    moved = met.again(operands=operands)
    return [
        b if k == j or b is None else b + m
        for k, (b, m) in enumerate(zip(met.back, moved, strict=True))
    ]


def _sending(met, d, i):
    other = met.again([d[None]])
    return [
        o if i in (None, k) else b for k, (o, b) in enumerate(zip(other, met.back, strict=True))
    ]


def _by_shape(tape, arrays):
    # shape -> the series of values: an argument, or what a site makes, round after round
    series = [[v] for v in tape.inputs]
    for nodes in tape.of_site.values():
        results = [tape.nodes[n].results for n in nodes]
        series += map(list, zip(*results, strict=True))
    known, seen = {}, set()
    for values in series:
        x = arrays[values[-1]]
        if isinstance(x, np.ndarray) and x.dtype.kind == "f":
            mark = tuple(_mark(arrays[v]) for v in values)
            if mark not in seen:
                seen.add(mark)
                known.setdefault(x.shape, []).append(values)
    return known


def _mark(x):
    # tells arrays apart at little cost
    if x is None:
        return None
    x = np.asarray(x).ravel()
    return x.size, x.sum(), x[:: max(x.size // 7, 1)].tobytes()


def _choices(arrays, nodes, present, known):
    # ({node: value}, words) for each series that may stand in the present one's place, or its
    # neighbour a round before or after
    x = arrays[present[-1]]
    if x is None:
        return
    marks = {n: _mark(arrays[v]) for n, v in zip(nodes, present, strict=True)}
    near = sorted(known.get(np.shape(x), ()), key=lambda series: abs(series[-1] - present[-1]))
    for values in near[:NEAR]:
        if len(values) == 1:
            values, shifts = values * len(nodes), {0: ""}
        else:
            shifts = {0: "", 1: ", a step later", -1: ", a step earlier"}
        if abs(len(values) - len(nodes)) > 1:
            continue
        for shift, step in shifts.items():
            here = [
                (n, values[t + shift]) for t, n in enumerate(nodes) if 0 <= t + shift < len(values)
            ]
            here = {n: v for n, v in here if np.shape(arrays[v]) == np.shape(x)}
            if any(_mark(arrays[v]) != marks[n] for n, v in here.items()):
                yield here, f"{{{values[-1]}}}{step}, not {{{present[-1]}}}"
