"""What stands for a local rule when a hand makes a mistake in it.

Each replacement is a Variant of the backward pass: where it is met, and what is sent back there.
Here are those of one operation: a path, a factor, an axis. In words, {7} stands for value 7.

Derivation: notebooks/32_checker.ipynb
"""

import itertools
from functools import partial
from typing import NamedTuple

import numpy as np

from handgrad.check.naming.local import letters_of
from handgrad.check.naming.walk import Met

FEW = 4  # times that a site may run for each of them to be tried alone


class Variant(NamedTuple):
    """A backward pass with one thing changed.

    names are those of the mistake and words what was done, at a site; hits and blocks say how, as
    walk.differences() reads them. Of a free one any constant multiple is tried: a path that it
    drops may count any number of times, and any change that it makes may have any size. The
    likeliest have the lowest rank.
    """

    names: tuple
    words: str
    site: int
    hits: dict
    blocks: dict = {}  # noqa: RUF012
    free: str = ""  # "", "path" or "size"
    rank: int = 1


def at_all(nodes, change):
    """The same change at all of the nodes; change(met) gives what is sent back."""
    return dict.fromkeys(nodes, change)


def replacing(i, new):
    """The change in which operand i alone is sent another cotangent, new(met)."""
    return lambda met: [new(met) if k == i else b for k, b in enumerate(met.back)]


def without(which):
    """The change in which these operands are sent nothing."""
    return lambda met: [None if k in which else b for k, b in enumerate(met.back)]


def sites(tape, right):
    """The sites that something is sent back through, with their nodes, the last first."""
    for site, nodes in sorted(tape.of_site.items(), key=lambda item: -item[1][-1]):
        live = [n for n in nodes if is_live(tape, right, n)]
        if live and tape.nodes[live[0]].op.name != "tap":  # which is none of the reader's
            yield site, live


def is_live(tape, right, n):
    """Whether something is sent back through a node."""
    results = tape.nodes[n].results
    return tape.active[results[0]] and any(right[v] is not None for v in results)


def paths(tape, nodes):
    """The operands that something is sent to, at any of the nodes."""
    of_all = (tape.nodes[n].operands for n in nodes)
    return [i for i, vs in enumerate(zip(*of_all, strict=True)) if any(tape.active[v] for v in vs)]


def of_sites(tape, right, *families):
    """The Variants of every site: at all of its nodes and, where they are few, at each alone."""
    for site, nodes in sites(tape, right):
        for family in families:
            yield from family(tape, right, site, nodes)
            for n in nodes if 1 < len(nodes) <= FEW else ():
                for variant in family(tape, right, site, [n]):
                    yield variant._replace(rank=variant.rank + 1)


def of_path(tape, right, site, nodes):
    """Nothing is sent back along a path, or with the wrong sign."""
    for which in _twins(tape, nodes):
        i = min(which)
        names, words = _of_kind(tape, nodes, i)
        rank = 1 if names == ("branch",) else 0  # what has a name of its own says more
        drop = without(which)
        yield Variant(names, words, site, at_all(nodes, drop), free="path", rank=rank)
        if "carry" in names:  # all the same, what arrived from before the loop may be sent there
            inside = [n for n in nodes if _recurs(tape, nodes, n, i)]
            yield Variant(names, words, site, at_all(inside, drop), free="path", rank=rank)
        if len(nodes) > 1:  # along a loop the changes multiply, so that no multiple of one tells
            turn = partial(_signed, which=which)
            yield Variant(("sign",), f"{words} has the wrong sign", site, at_all(nodes, turn))


def _twins(tape, nodes):
    # the paths; those of a factor that is multiplied by itself are one to the reader
    product = tape.nodes[nodes[0]].op.name == "mul"
    if product and all(len(set(tape.nodes[n].operands)) == 1 for n in nodes):
        return [{0, 1}]
    return [{i} for i in paths(tape, nodes)]


def _signed(met, which):
    return [-b if k in which and b is not None else b for k, b in enumerate(met.back)]


def _of_kind(tape, nodes, i):
    v = tape.nodes[nodes[-1]].operands[i]
    if is_carry(tape, nodes, i):
        return ("carry", "branch"), "what comes back from the next step"
    ahead, x = _ahead(tape, nodes[-1]), tape.values[v]
    if "reduce_sum" in ahead and len(tape.uses[v]) > 1:
        k = ahead.index("reduce_sum")
        divides = {"sqrt", "rsqrt", "div", "pow"} & set(ahead[k:])
        if divides and {"square", "integer_pow", "mul", "abs"} & set(ahead[:k]):
            centred = any(np.abs(x.mean(axis=a)).max() < 1e-9 for a in range(x.ndim))
            kind = "variance" if centred and x.size > 1 else "length"
            return (f"{kind} path", "branch"), f"the path through the {kind}"
        if not k and "div" in ahead[:4]:
            return ("mean path", "branch"), "the path through the mean"
    return ("branch",), f"the path back to {{{v}}}"


def is_carry(tape, nodes, i):
    """Whether the rounds of a loop read there what the round before has made, but the first."""
    if len(nodes) < 3 or not _recurs(tape, nodes, nodes[1], i):
        return False
    first, second = (tape.maker.get(tape.nodes[n].operands[i]) for n in nodes[:2])
    return first is None or tape.nodes[first].site != tape.nodes[second].site


def _recurs(tape, nodes, n, i):
    # whether a node reads there what an earlier round of its loop has made
    k, maker = nodes.index(n), tape.maker.get(tape.nodes[n].operands[i])
    if k == 0 or maker is None or maker < nodes[k - 1]:
        return False
    rounds = tape.of_site[tape.nodes[maker].site]
    return any(m > n for m in rounds) and not any(maker < m < n for m in rounds)


def _ahead(tape, n):
    # the operations that follow one after another, up to one that joins two paths
    names = []
    for _ in range(12):
        node = tape.nodes[n]
        if sum(tape.active[v] for v in node.operands) > 1 and names:
            break
        names.append(node.op.name)
        uses = tape.uses.get(node.results[0], ())
        if len(uses) != 1:
            break
        n = uses[0][0]
    return names


def of_operation(tape, right, site, nodes):
    """Other rules of a product, a tap, a maximum, a cumulative sum, or a choice."""
    met = Met(tape, tape.nodes[nodes[0]], [], [])
    live = paths(tape, nodes)
    for names, words, change in _others(met, live):
        yield Variant(names, words, site, at_all(nodes, change))


def _others(met, live):
    name, operands, result = met.node.op.name, met.operands, met.result
    shapes = {np.shape(operands[i]) for i in live}
    if name in ("mul", "dot_general", "sub", "div") and len(live) == 2 and len(shapes) == 1:
        yield ("exchanged",), "the two cotangents are exchanged", lambda met: met.again()[::-1]
    if name == "dot_general":
        for i in live:
            yield from _of_product(i, *map(_is_square, (operands[i], operands[1 - i], result)))
        if _is_square(result) and np.allclose(result, _turned(result)):
            for times, words in ((2, "twice"), (0.5, "half")):
                words = f"the diagonal of what arrives counts {words}"
                times = 1 + (times - 1) * np.eye(result.shape[-1])
                again = lambda met, times=times: met.again([met.ds[0] * times])  # noqa: E731
                yield ("diagonal", "symmetric"), words, again
    elif name == "tap" and operands[0]:
        ones = replacing(1, lambda met: np.ones_like(met.back[1]))
        yield ("upstream",), "the cotangent that arrives is left out", ones
    elif name in ("reduce_max", "reduce_min"):
        for share, words in (
            (1 / max(operands[0].size // result.size, 1), "evenly"),
            (1.0, "whole"),
        ):
            names = ("slope", "masked", "local factor")
            words = f"sent to all entries {words}, not to the largest"
            yield names, words, partial(_spread, share=share)
    elif name == "transpose":
        words = "put into the shape as it is, its axes not moved back"
        yield ("permuted", "transposed"), words, lambda met: [met.ds[0].reshape(met.back[0].shape)]
    elif name.startswith("cum"):
        axis = met.node.op.params["axis"] + 1

        def turned(met):
            return [np.flip(met.again(ds=[np.flip(met.ds[0], axis)])[0], axis)]

        yield ("reversed", "transposed"), "summed in the order of the forward pass", turned
        yield ("reversed",), "not turned back", lambda met: [np.flip(met.back[0], axis)]
        words = "an entry's own place is left out"
        yield ("shifted", "diagonal"), words, lambda met: [met.back[0] - met.ds[0]]
        yield ("carry", "local factor"), "an entry's own place alone", lambda met: [met.ds[0]]
        others = set(range(1, result.ndim + 1)) - {axis} if name == "cumsum" else ()
        for other in others:
            words = f"summed along axis {other - 1}, not along axis {axis - 1}"
            yield ("axis",), words, partial(_cumulated, axis=other)
    elif name == "transpose":
        words = "the axes are not moved back"
        yield ("permuted", "transposed"), words, lambda met: [met.ds[0].reshape(met.back[0].shape)]
    elif name == "reshape":
        for axes in _orders(*sorted((operands[0].shape, result.shape), key=len)):
            words = "the axes are taken apart, or put together, in another order"
            yield ("permuted", "column-major"), words, partial(_reordered, axes=axes)
    elif name == "select_n" and len(operands) == 3:
        for names, words, side in (
            (("slope", "masked"), "the sign of the cotangent chooses", lambda met: met.ds[0] > 0),
            (("masked", "slope"), "the other side is chosen", lambda met: met.operands[0] == 0),
        ):
            yield names, words, partial(_chosen, side=side)


def _cumulated(met, axis):
    return [np.flip(np.cumsum(np.flip(met.ds[0], axis), axis), axis)]


def _orders(coarse, fine):
    # other orders of all axes, of which 2 to 4 are one axis of the coarse shape
    for a, b in itertools.combinations(range(len(fine) + 1), 2):
        if 1 < b - a <= 4 and coarse == (*fine[:a], int(np.prod(fine[a:b])), *fine[b:]):
            for order in list(itertools.permutations(range(a, b)))[1:]:
                yield *range(a), *order, *range(b, len(fine))


def _reordered(met, axes):
    d, x = met.ds[0], met.back[0].shape
    axes = [0, *(a + 1 for a in axes)]
    if len(axes) == d.ndim:
        return [d.transpose(axes).reshape(x)]
    return [d.reshape([x[a] for a in axes]).transpose(np.argsort(axes))]


def _is_square(x):
    return np.ndim(x) > 1 and x.shape[-1] == x.shape[-2]


def _turned(x):
    return np.swapaxes(x, -1, -2)


def _of_product(i, mine, other, result):
    # where the arrays are square: another shape would have told the hand of its mistake
    def unturned(met):
        operands = met.operands
        operands[1 - i] = _turned(operands[1 - i])
        return met.again(operands=operands)[i]

    if other:
        yield ("transposed", "operand"), "the factor is not transposed", replacing(i, unturned)
    if result:
        words = "the cotangent that arrives is transposed, or should be"
        yield ("transposed",), words, replacing(i, lambda met: met.again([_turned(met.ds[0])])[i])
    if mine:
        words = "what is sent back is transposed"
        yield ("transposed",), words, replacing(i, lambda met: _turned(met.again()[i]))


def _spread(met, share):
    d = np.expand_dims(met.ds[0], tuple(a + 1 for a in met.node.op.params["axes"]))
    return [np.broadcast_to(d, met.back[0].shape) * share]


def _chosen(met, side):
    which = side(met)
    return [None if b is None else met.ds[0] * (which == k - 1) for k, b in enumerate(met.back)]


def of_axes(tape, right, site, nodes):
    """Of an axis that is summed on the way back, one place alone counts, or one is left out."""
    node = tape.nodes[nodes[0]]
    shape = np.shape(tape.values[node.results[0]])
    for i in paths(tape, nodes):
        places = itertools.product(summed(tape, node, i), ((0, "first"), (-1, "last")))
        for axis, (k, which) in places:
            if shape[axis] < 2:
                continue
            this = np.zeros(shape[axis])
            this[k] = 1
            this = np.expand_dims(this, tuple(range(1, len(shape) - axis)))
            for names, words, kept in (
                (("batch", "overwritten", "branch"), "alone counts", this),
                (("shifted", "masked", "batch"), "is left out", 1 - this),
            ):
                new = replacing(i, lambda met, i=i, kept=kept: met.again([met.ds[0] * kept])[i])
                words = f"the {which} of {shape[axis]} {words}"
                yield Variant(names, words, site, at_all(nodes, new), rank=2)


def over_more_axes(tape, right):
    """What is summed along an axis on the way back is summed, or averaged, along the others too."""
    found = {}
    for site, nodes in sites(tape, right):
        node = tape.nodes[nodes[0]]
        for i in paths(tape, nodes) if node.op.name != "dot_general" else ():
            x, axes = np.shape(tape.values[node.operands[i]]), summed(tape, node, i)
            if axes and len(x) == np.ndim(tape.values[node.results[0]]) and max(x) > 1:
                found.setdefault((tuple(axes), x), []).append((site, nodes, i))
    for (axes, _), several in found.items():
        groups = [[one] for one in several] + ([several] if len(several) > 1 else [])
        for group, mean, far in itertools.product(groups, (False, True), (False, True)):
            change = partial(_over_all, mean=mean, far=far)
            hits = {n: replacing(i, partial(change, i=i)) for _, nodes, i in group for n in nodes}
            words = f"the {'mean' if mean else 'sum'} runs over all axes, not over {axes_of(axes)}"
            yield Variant(("axis", "batch"), words, group[0][0], hits, rank=2)


def _over_all(met, i, mean, far):
    terms, outside = met.back[i], 1.0
    if met.node.op.name == "div":  # a factor that is the same along the axis may stand outside
        x, y = met.operands
        inside, outside = (x, -1 / y**2) if far else (met.result, -1 / y)
        gone = tuple(a for a in range(1, terms.ndim) if np.shape(y)[a - 1] == 1)
        terms = (met.ds[0] * inside).sum(axis=gone, keepdims=True)
    over = tuple(range(1, terms.ndim))
    total = terms.mean(axis=over, keepdims=True) if mean else terms.sum(axis=over, keepdims=True)
    return np.broadcast_to(total, met.back[i].shape) * outside


def axes_of(axes):
    """Such as "axis 1" or "axes (0, 1)"."""
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {tuple(axes)}"


def summed(tape, node, i):
    """The axes of a node's result that operand i lacks, so that they are summed on the way back."""
    x, o = np.shape(tape.values[node.operands[i]]), np.shape(tape.values[node.results[0]])
    if node.op.name == "dot_general":
        *of, out = letters_of(node.op.params, *map(np.ndim, tape.operands(node)))
        return [k for k, letter in enumerate(out) if letter not in of[i]]
    if node.op.name == "broadcast_in_dim":
        kept = node.op.params["broadcast_dimensions"]
        return [a for a in range(len(o)) if a not in kept or x[kept.index(a)] < o[a]]
    if node.op.name == "gather" and i == 0:
        return list(range(np.ndim(tape.values[node.operands[1]]) - 1))
    if node.op.name in ("add", "sub", "mul", "div", "add_any") and x != o:
        gone = len(o) - len(x)
        return [a for a in range(len(o)) if a < gone or x[a - gone] < o[a]]
    return []
