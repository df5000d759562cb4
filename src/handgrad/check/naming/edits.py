"""The program with its forward pass changed: an operation left out, a number or an argument other.

A hand that recomputes a value, or derives a formula from the wrong one, goes back through another
program: wholly, or only where the rules read what the forward pass has kept.

Derivation: notebooks/32_checker.ipynb
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from handgrad.check.naming.local import SLOPES, Part, forward, pull
from handgrad.check.naming.regions import regions
from handgrad.check.naming.replacements import summed
from handgrad.check.naming.slopes import shares, softmax_rule
from handgrad.check.naming.walk import backward


class Edit(NamedTuple):
    """A changed program, and what is said of it, as of a Variant.

    forward and back give other results and rules of some nodes; start holds other values to begin
    with; where through is given, only nodes of these operations see what has changed, and where it
    is inert only constants change, so that the forward pass stays right; across takes a cotangent
    from a node to an earlier value, by a rule.
    """

    names: tuple
    words: str
    site: int | None
    forward: dict
    back: dict
    start: dict = {}  # noqa: RUF012
    through: tuple | None = None
    across: dict = {}  # noqa: RUF012
    free: str = ""
    rank: int = 3
    inert: bool = False


def gradients(tape, edit):
    """The cotangents of the changed program."""
    values, changed = list(tape.values), set(edit.start)
    for v, x in edit.start.items():
        values[v] = x
    for n, node in enumerate(tape.nodes):
        if n in edit.forward:
            results = [np.asarray(edit.forward[n](tape.operands(node, values)))]
        elif changed.intersection(node.operands) and (
            not (edit.inert and tape.active[node.results[0]])
            and (edit.through is None or node.op.name in edit.through)
        ):
            results = forward(node.op, tape.operands(node, values))
        else:
            continue
        for v, x in zip(node.results, results, strict=True):
            values[v] = x
            changed.add(v)
    return backward(tape, values, edit.back, edit.across)


def edits(tape, right):
    """The Edits of a program, the likeliest first."""
    matters = _matters(tape, right)
    for nodes in tape.of_site.values():
        if any(n in matters for n in nodes):
            yield from _skipped(tape, nodes)
            yield from _other_numbers(tape, nodes)
            yield from _other_comparisons(tape, nodes)
            yield from _other_integers(tape, right, nodes)
            yield from _other_ends(tape, nodes)
            yield from _other_ids(tape, nodes)
    yield from _other_softmax(tape, right)
    yield from _other_windows(tape, right)
    yield from _other_arguments(tape, right)
    for nodes in reversed(tape.of_site.values()):
        if any(n in matters for n in nodes):
            yield from _other_constants(tape, nodes)


def _matters(tape, right):
    # the nodes whose results the backward pass may read
    wanted, found = set(), set()
    for n in reversed(range(len(tape.nodes))):
        node = tape.nodes[n]
        if any(right[v] is not None or v in wanted for v in node.results):
            found.add(n)
            wanted.update(node.operands)
    return found


def _skipped(tape, nodes):
    node = tape.nodes[nodes[0]]
    o = tape.values[node.results[0]]
    chooses = node.op.name == "select_n"
    if node.op.name not in SLOPES or node.op.name in _PLAIN:
        return
    for k, v in enumerate(node.operands):
        x = tape.values[v]
        if v in tape.literals or np.shape(x) != o.shape or np.asarray(x).dtype != o.dtype:
            continue
        there = dict.fromkeys(nodes, partial(_operand, k=k))
        scales = node.op.name in ("mul", "div")
        names = ("scale", "local factor", "forward") if scales else ("forward",)
        names = ("masked", *names) if chooses else names
        words = f"left out, so that {{{v}}} stands for its value"
        if tape.active[node.results[0]]:
            yield Edit(names, words, node.site, there, dict.fromkeys(nodes, partial(_through, k=k)))
        names = (*names, "residual", "operand")
        yield Edit(names, f"{words}, in what the rules read", node.site, there, {})
    if chooses:
        there = dict.fromkeys(nodes, lambda operands: operands[2] * (operands[0] == 1))
        words = "0 stands for what is masked, in what the rules read"
        yield Edit(("forward", "masked"), words, node.site, there, {})


_PLAIN = {"copy", "convert_element_type", "reduce_precision", "stop_gradient", "add_any"}


def _operand(operands, k):
    return operands[k]


def _through(operands, results, ds, k):
    return [ds[0] if i == k else None for i in range(len(operands))]


def _other_numbers(tape, nodes):
    node = tape.nodes[nodes[0]]
    for j, v in enumerate(node.operands):
        number = tape.values[v]
        if v not in tape.literals or node.op.name not in ("mul", "div", "add", "sub"):
            continue
        if np.ndim(number) or np.asarray(number).dtype.kind != "f":
            continue
        for other in (2 * number, number / 2, -number):
            there = dict.fromkeys(nodes, partial(_with_operand, op=node.op, j=j, other=other))
            back = dict.fromkeys(nodes, partial(_with_operand, op=node.op, j=j, other=other))
            words = f"{other:g} stands for {number:g}"
            names = ("forward", "factor")
            yield Edit(names, words, node.site, there, back)
            yield Edit(names, f"{words}, in what the rules read", node.site, there, {})


def _with_operand(operands, *rest, op, j, other):
    # forward, or back where results and cotangents are given
    operands = [other if k == j else x for k, x in enumerate(operands)]
    return pull(op, operands, *rest) if rest else forward(op, operands)[0]


_COMPARISONS = {
    "lt": (np.less_equal, np.greater, np.greater_equal),
    "le": (np.less, np.greater, np.greater_equal),
    "gt": (np.greater_equal, np.less, np.less_equal),
    "ge": (np.greater, np.less, np.less_equal),
}


def _other_comparisons(tape, nodes):
    node = tape.nodes[nodes[0]]
    for other in _COMPARISONS.get(node.op.name, ()):
        there = dict.fromkeys(nodes, lambda operands, other=other: other(*operands))
        words = f"{other.__name__.replace('_', ' or ')} stands for {node.op.name}"
        yield Edit(("forward", "masked", "shifted"), words, node.site, there, {})


def _other_integers(tape, right, nodes):
    node, v = tape.nodes[nodes[0]], tape.nodes[nodes[0]].results[0]
    if np.ndim(tape.values[v]) and len(nodes) == 1 and node.op.name not in STRUCTURE:
        for names, words, other in _shifted(tape, v):
            there = {nodes[0]: lambda operands, other=other: other}
            yield Edit(names, words, node.site, there, _in_range(tape, right))


def _in_range(tape, right):
    # An index that is too large picks nothing, as in a one-hot row; and p - one_hot(y) has p all
    # the same: what log-softmax takes off, the sum and the maximum, is sent what is right.
    back = {}
    for n, node in enumerate(tape.nodes):
        if node.op.name == "gather":
            back[n] = partial(_of_gather, op=node.op)
            v = node.operands[0]
            while right[v] is not None and v in tape.maker:
                maker = tape.nodes[tape.maker[v]]
                if maker.op.name != "sub" or not summed(tape, maker, 1):
                    break
                back[tape.maker[v]] = partial(_of_difference, op=maker.op, d=right[v][None])
                v = maker.operands[0]
    return back


def _of_difference(operands, results, ds, op, d):
    return [pull(op, operands, results, ds)[0], pull(op, operands, results, [d])[1]]


def _of_gather(operands, results, ds, op):
    x, index = operands
    numbers = op.params["dimension_numbers"]
    last = [x.shape[a] - op.params["slice_sizes"][a] for a in numbers.start_index_map]
    inside = ((index >= 0) & (index <= last)).all(axis=-1)
    picked = np.expand_dims(inside, numbers.offset_dims)
    return pull(op, operands, results, [ds[0] * picked])


_PICKING = {"gather", "scatter-add"}


def _other_ids(tape, nodes):
    # other ids of the same shape, here alone
    node = tape.nodes[nodes[0]]
    if node.op.name not in _PICKING or len(nodes) > 1:
        return
    mine = tape.values[node.operands[1]]
    seen = [mine]
    for u, x in enumerate(tape.values):
        ids = isinstance(x, np.ndarray) and x.dtype == mine.dtype and x.shape == mine.shape
        if not ids or any(np.array_equal(x, known) for known in seen):
            continue
        seen.append(x)
        change = {nodes[0]: partial(_with_operand, op=node.op, j=1, other=x)}
        words = f"the ids {{{u}}} stand for {{{node.operands[1]}}}"
        names = ("operand", "residual")
        for there, back in (change, {}), ({}, change), (change, change):
            yield Edit(names, words, node.site, there, back)


def _shifted(tape, v):
    # labels and ids that may have been read otherwise
    x = tape.values[v]
    if isinstance(x, np.ndarray) and x.dtype.kind in "iu":
        yield ("label", "shifted"), f"{{{v}}} is read 1 too low", x - 1
        yield ("label", "shifted"), f"{{{v}}} is read 1 too high", x + 1
        if x.size > 1 and (x != x.ravel()[0]).any():
            first = np.full_like(x, x.ravel()[0])
            yield ("batch", "operand", "masked"), f"the first of {{{v}}} stands for all", first


def _other_softmax(tape, right):
    for x, o in (pair for pairs in regions(tape, right) for pair in pairs):
        n = tape.maker[o]
        for usual, log in shares(tape.values[o]):
            for axis in set(range(np.ndim(tape.values[o]))) - {usual}:
                there = {n: partial(_softmax, z=tape.values[x], axis=axis, log=log)}
                words = f"softmax runs over axis {axis}, not over axis {usual}"
                for axes in (axis, usual):
                    across = {n: (x, partial(softmax_rule, axes=axes + 1, log=log))}
                    site = tape.nodes[n].site
                    yield Edit(("axis", "forward"), words, site, there, {}, across=across)


def _softmax(operands, z, axis, log):
    z = z - z.max(axis=axis, keepdims=True)
    e = np.exp(z)
    total = e.sum(axis=axis, keepdims=True)
    return z - np.log(total) if log else e / total


def _other_windows(tape, right):
    # windows that start at their number, without the stride
    for v, uses in tape.uses.items():
        nodes = [n for n, _ in uses if tape.nodes[n].op.name == "slice"]
        starts = np.array([tape.nodes[n].op.params["start_indices"] for n in nodes])
        if len(nodes) < 3 or not tape.active[v] or np.gcd.reduce(starts, axis=0).max() < 2:
            continue
        starts //= np.maximum(np.gcd.reduce(starts, axis=0), 1)
        there, back = {}, {}
        for n, start in zip(nodes, starts, strict=True):
            at = _window(start, np.shape(tape.values[tape.nodes[n].results[0]]))
            there[n] = lambda operands, at=at: operands[0][at]
            back[n] = lambda operands, results, ds, at=at: [Part(at, ds[0])]
        words = f"the windows of {{{v}}} start at their number, without the stride"
        yield Edit(("shifted", "operand"), words, tape.nodes[nodes[0]].site, there, back)


def _window(start, shape):
    return tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))


def _other_constants(tape, nodes):
    # what the way back alone reads otherwise: the sines of a rotation, or positions
    node, v = tape.nodes[nodes[0]], tape.nodes[nodes[0]].results[0]
    if tape.active[v] or node.op.name in STRUCTURE or not np.size(tape.values[v]):
        return
    if np.asarray(tape.values[v]).dtype.kind == "f":
        changes = [(("sign", "operand"), f"{{{v}}} has the wrong sign", np.negative)]
    elif np.asarray(tape.values[v]).dtype.kind == "i":
        changes = [
            (("shifted", "operand"), f"{{{v}}} is 1 too {which}", partial(np.add, by))
            for which, by in (("low", -1), ("high", 1))
        ]
    else:
        return
    for names, words, change in changes:
        there = dict.fromkeys(nodes, partial(_then, op=node.op, change=change))
        yield Edit(names, f"{words}, on the way back alone", node.site, there, {}, inert=True)


def _then(operands, op, change):
    return change(forward(op, operands)[0])


def _other_ends(tape, nodes):
    node = tape.nodes[nodes[0]]
    if node.op.name == "slice":
        yield from _other_end(tape, node, nodes)
    low, high, inner = np.array(node.op.params.get("padding_config", [(0, 0, 1)])).T
    if node.op.name != "pad" or inner.any() or min(*low, *high) < 0:
        return
    for cut, end in ((0 * low, "far"), (low + high, "near")):
        if not np.array_equal(cut, low):
            words = f"the padding is cut from the {end} end alone"
            back = dict.fromkeys(nodes, partial(_cut, start=cut))
            yield Edit(("shifted",), words, node.site, {}, back)


def _other_end(tape, node, nodes):
    # what is taken from one end of an array, taken from the other
    v, part = node.operands[0], np.shape(tape.values[node.results[0]])
    start, room = np.array(node.op.params["start_indices"]), np.shape(tape.values[v])
    room = np.subtract(room, part)
    if node.op.params["strides"] or not room.any() or not np.isin(start, (0 * room, room)).all():
        return
    at = _window(room - start, part)
    words = f"counts {{{v}}} from the other end"
    if tape.active[v]:
        back = dict.fromkeys(nodes, lambda operands, results, ds: [Part(at, ds[0])])
        yield Edit(("shifted", "reversed"), words, node.site, {}, back)
    else:
        there = dict.fromkeys(nodes, lambda operands: operands[0][at])
        yield Edit(("shifted", "operand"), words, node.site, there, {})


def _cut(operands, results, ds, start):
    window = _window(start, np.shape(operands[0]))
    return [ds[0][(slice(None), *window)], None]


STRUCTURE = (
    *("reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "copy", "pad", "slice"),
    *("concatenate", "convert_element_type", "take"),
)


def _other_arguments(tape, right):
    for v, x in enumerate(tape.values):
        if v in tape.maker or v in tape.literals or v not in tape.uses or not np.size(x):
            continue
        for names, words, other in _shifted(tape, v):
            yield Edit(names, words, None, {}, _in_range(tape, right), {v: other})
        for name, other in _turned(x):
            words = f"{{{v}}} is read {name}"
            yield Edit((name, "operand"), words, None, {}, {}, {v: other}, STRUCTURE)
            if name == "transposed":
                yield Edit((name, "operand", "symmetric"), words, None, {}, {}, {v: other})


def _turned(x):
    # an array in other orders, where its shape does not tell
    if isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.ndim > 1:
        if x.shape[-1] == x.shape[-2]:
            yield "transposed", x.swapaxes(-1, -2)
        several = [(0, 1), (-2, -1)] if x.ndim > 2 else []
        for axes in (*range(x.ndim), *several):
            yield "reversed", np.flip(x, axes)
