"""The program with its forward pass changed: an operation left out, a number or an argument other.

A hand that recomputes a value, or derives a formula from the wrong one, goes back through another
program: wholly, or only where the rules read what the forward pass has kept.

Derivation: notebooks/32_checker.ipynb
"""

from typing import NamedTuple

import numpy as np

from handgrad.check.local import SLOPES, Part, forward, pull
from handgrad.check.replacements import regions, shares
from handgrad.check.walk import backward


class Edit(NamedTuple):
    """A changed program: forward and back give, for some nodes, other results and rules.

    start holds other values to begin with; where through is given, only nodes of these operations
    see what has changed; across takes a cotangent from a node to an earlier value, by a rule.
    """

    names: tuple
    words: str
    site: int | None
    forward: dict
    back: dict
    start: dict = {}  # noqa: RUF012
    through: tuple | None = None
    rank: int = 3
    across: dict = {}  # noqa: RUF012


def gradients(tape, edit):
    """The cotangents of the changed program."""
    values, changed = list(tape.values), set(edit.start)
    for v, x in edit.start.items():
        values[v] = x
    for n, node in enumerate(tape.nodes):
        if n in edit.forward:
            results = [np.asarray(edit.forward[n](tape.operands(node, values)))]
        elif changed.intersection(node.operands) and (
            edit.through is None or node.op.name in edit.through
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
            yield from _other_integers(tape, nodes)
            yield from _other_ends(tape, nodes)
    yield from _other_softmax(tape, right)
    yield from _other_windows(tape, right)
    yield from _other_arguments(tape, right)


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
    if node.op.name not in SLOPES or node.op.name in _PLAIN:
        return
    for k, v in enumerate(node.operands):
        x, o = tape.values[v], tape.results(node)[0]
        if np.shape(x) != np.shape(o) or np.asarray(x).dtype != o.dtype or v in tape.literals:
            continue

        def ahead(operands, k=k):
            return operands[k]

        def back(operands, results, ds, k=k):
            return [ds[0] if i == k else None for i in range(len(operands))]

        there = dict.fromkeys(nodes, ahead)
        names = ("forward", "masked") if node.op.name == "select_n" else ("forward",)
        if node.op.name in ("mul", "div"):
            names = ("scale", "local factor", "forward")
        words = "the operation is left out"
        if tape.active[node.results[0]]:
            yield Edit(names, words, node.site, there, dict.fromkeys(nodes, back))
        names = (*names, "residual", "operand")
        yield Edit(names, f"{words} in what the rules read", node.site, there, {})
    if node.op.name == "select_n":  # multiplied by the mask in place of being chosen by it

        def masked(operands):
            return operands[2] * (operands[0] == 1)

        there = dict.fromkeys(nodes, masked)
        words = "0 stands for what is masked"
        yield Edit(("forward", "masked"), words, node.site, there, {})


_PLAIN = {"copy", "convert_element_type", "reduce_precision", "stop_gradient", "add_any"}


def _other_numbers(tape, nodes):
    node = tape.nodes[nodes[0]]
    for j, v in enumerate(node.operands):
        if v not in tape.literals or node.op.name not in ("mul", "div", "add", "sub"):
            continue
        number = tape.values[v]
        if np.ndim(number) or np.asarray(number).dtype.kind != "f":
            continue
        for other, words in ((2 * number, "twice"), (number / 2, "half"), (-number, "minus")):

            def put(operands, j=j, other=other):
                return [other if k == j else x for k, x in enumerate(operands)]

            def ahead(operands, op=node.op, put=put):
                return forward(op, put(operands))[0]

            def back(operands, results, ds, op=node.op, put=put):
                return pull(op, put(operands), results, ds)

            names, words = ("forward", "factor"), f"{words} the number {number:g}"
            there = dict.fromkeys(nodes, ahead)
            yield Edit(names, words, node.site, there, dict.fromkeys(nodes, back))
            yield Edit(names, f"{words} in what the rules read", node.site, there, {})


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


def _other_integers(tape, nodes):
    node = tape.nodes[nodes[0]]
    x = tape.results(node)[0]
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "iu" or not x.ndim or len(nodes) > 1:
        return
    if node.op.name in ("iota", "reshape", "concatenate", "select_n"):
        return
    for names, words, other in shifted(x):
        yield Edit(names, words, node.site, {nodes[0]: lambda operands, other=other: other}, {})


def shifted(x):
    """(names, words, other integers) for labels and ids that may have been read otherwise."""
    yield ("label", "shifted"), "the integers are 1 less", x - 1
    yield ("label", "shifted"), "the integers are 1 more", x + 1
    if x.ndim and x.size > 1 and (x != x.ravel()[0]).any():
        first = np.full_like(x, x.ravel()[0])
        yield ("batch", "operand", "masked"), "the first of the integers stands for all", first


def _other_softmax(tape, right):
    for x, o in regions(tape, right):
        n = tape.maker[o]
        for usual, log in shares(tape.values[o]):
            for axis in range(np.ndim(tape.values[o])):
                if axis == usual:
                    continue

                def ahead(operands, x=x, axis=axis, log=log):
                    z = tape.values[x]
                    z = z - z.max(axis=axis, keepdims=True)
                    e = np.exp(z)
                    total = e.sum(axis=axis, keepdims=True)
                    return z - np.log(total) if log else e / total

                words = f"softmax runs over axis {axis}, not over axis {usual}"
                for summed in (axis, usual):
                    across = {n: (x, _SoftmaxBack(summed + 1, log))}
                    site = tape.nodes[n].site
                    yield Edit(("axis", "forward"), words, site, {n: ahead}, {}, across=across)


class _SoftmaxBack(NamedTuple):
    """The rule of a softmax, or of its logarithm, over an axis of rows."""

    axis: int
    log: bool

    def __call__(self, o, d):
        if self.log:
            return d - np.exp(o) * d.sum(axis=self.axis, keepdims=True)
        return o * (d - (d * o).sum(axis=self.axis, keepdims=True))


def _other_windows(tape, right):
    """Windows that start at their number, without the stride."""
    for v, uses in tape.uses.items():
        nodes = [n for n, _ in uses if tape.nodes[n].op.name == "slice"]
        starts = np.array([tape.nodes[n].op.params["start_indices"] for n in nodes])
        if len(nodes) < 3 or not tape.active[v]:
            continue
        stride = np.maximum(np.gcd.reduce(starts, axis=0), 1)
        if stride.max() == 1:
            continue
        ahead, back = {}, {}
        for n, start in zip(nodes, starts, strict=True):
            shape = np.shape(tape.results(tape.nodes[n])[0])
            at = tuple(slice(a, a + size) for a, size in zip(start // stride, shape, strict=True))
            ahead[n] = lambda operands, at=at: operands[0][at]
            back[n] = lambda operands, results, ds, at=at: [Part(at, ds[0])]
        words = "a window starts at its number, without the stride"
        site = tape.nodes[nodes[0]].site
        yield Edit(("shifted", "operand"), words, site, ahead, back)


def _other_ends(tape, nodes):
    node = tape.nodes[nodes[0]]
    if node.op.name != "pad":
        return
    lows = [low for low, _, _ in node.op.params["padding_config"]]
    highs = [high for _, high, _ in node.op.params["padding_config"]]
    if any(inner for *_, inner in node.op.params["padding_config"]) or min(*lows, *highs) < 0:
        return
    for cut, words in ((np.zeros(len(lows), int), "far"), (np.add(lows, highs), "near")):
        if not np.array_equal(cut, lows):

            def back(operands, results, ds, cut=cut):
                shape = np.shape(operands[0])
                at = tuple(slice(a, a + n) for a, n in zip(cut, shape, strict=True))
                return [ds[0][(slice(None), *at)], *[None] * (len(operands) - 1)]

            words = f"the padding is cut from the {words} end alone"
            yield Edit(("shifted",), words, node.site, {}, dict.fromkeys(nodes, back))


STRUCTURE = (
    *("reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "copy", "pad", "slice"),
    *("concatenate", "convert_element_type", "take"),
)


def _other_arguments(tape, right):
    made = set(tape.maker)
    for v, x in enumerate(tape.values):
        if v in made or v in tape.literals or not isinstance(x, np.ndarray) or not x.size:
            continue
        if x.dtype.kind in "iu" and tape.uses.get(v):
            for names, words, other in shifted(x):
                yield Edit(names, words, None, {}, {}, {v: other})
        if x.dtype.kind == "f" and x.ndim > 1 and v in tape.uses:
            turned = [("transposed", x.swapaxes(-1, -2))] if x.shape[-1] == x.shape[-2] else []
            turned += [
                ("reversed", np.flip(x, axis)) for axis in range(x.ndim) if x.shape[axis] > 1
            ]
            if x.ndim > 2:
                turned += [("reversed", np.flip(x, (-1, -2))), ("reversed", np.flip(x, (0, 1)))]
            for name, other in turned:
                words = f"the argument is {name}"
                yield Edit((name, "operand"), words, None, {}, {}, {v: other}, STRUCTURE)
                if name == "transposed":
                    yield Edit((name, "operand", "symmetric"), words, None, {}, {}, {v: other})
