"""What stands for a local rule when a hand makes a mistake in it.

Each replacement is a Variant of the backward pass: where it is met, and what is sent back there.

Derivation: notebooks/32_checker.ipynb
"""

import itertools
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from handgrad.check.local import forward, letters_of, pull, slopes, summed_to
from handgrad.check.walk import whole


class Variant(NamedTuple):
    """A backward pass with one thing changed.

    names are those of the mistake and words what was done, at a site; hits and blocks say how, as
    differences() reads them. Of a free one any constant multiple is tried, since the path that it
    drops may count any number of times. The simplest have the lowest rank.
    """

    names: tuple
    words: str
    site: int
    hits: dict
    blocks: dict = {}  # noqa: RUF012
    free: bool = False
    any: bool = False
    rank: int = 1


class Point(NamedTuple):
    """Where a slope is taken: from x to o, with the slope s; d is the cotangent that arrives."""

    x: np.ndarray
    o: np.ndarray
    s: np.ndarray | None
    d: np.ndarray
    at: object = None  # the slope at another x


def simple(tape, right):
    """The Variants in which a path or the slope of an operation or a region is another one."""
    yield from _of_sites(tape, right, of_path, of_slope, of_product)
    yield from bypassed(tape, right)
    yield from of_regions(tape, right)
    yield from overwritten(tape, right)
    yield from permuted(tape, right)


def rarer(tape, right):
    """The Variants that stop short along an axis, sum along others, or apply a slope twice."""
    yield from _of_sites(tape, right, of_axes)
    yield from over_more_axes(tape, right)
    yield from once_more(tape, right)


def _of_sites(tape, right, *families):
    for site, nodes in sites(tape, right):
        for family in families:
            yield from family(tape, right, site, nodes)
            for n in nodes if 1 < len(nodes) <= FEW else ():
                for variant in family(tape, right, site, [n]):
                    yield variant._replace(rank=variant.rank + 1)


FEW = 4  # times that a site may run for each of them to be tried alone


def sites(tape, right):
    """The sites that something is sent back through, with their nodes, the last first."""
    for site, nodes in sorted(tape.of_site.items(), key=lambda item: -item[1][-1]):
        live = [n for n in nodes if _is_live(tape, right, n)]
        if live:
            yield site, live


def _is_live(tape, right, n):
    results = tape.nodes[n].results
    return tape.active[results[0]] and any(right[v] is not None for v in results)


def _paths(tape, nodes):
    # the operands that something is sent to, at any of the nodes
    of_all = (tape.nodes[n].operands for n in nodes)
    return [i for i, vs in enumerate(zip(*of_all, strict=True)) if any(tape.active[v] for v in vs)]


def _on(nodes, change):
    return dict.fromkeys(nodes, change)


def _replacing(i, new):
    # the change in which operand i alone gets another cotangent
    def change(tape, node, ds, back):
        return [new(tape, node, ds, b) if k == i else b for k, b in enumerate(back)]

    return change


# Paths


def of_path(tape, right, site, nodes):
    """Nothing is sent back along a path, or with the wrong sign."""
    for i in _paths(tape, nodes):
        yield from _of_path(tape, site, nodes, i)


def _of_path(tape, site, nodes, i):
    names, words = _of_kind(tape, nodes, i)
    drop = _replacing(i, lambda tape, node, ds, b: None)
    yield Variant(names, words, site, _on(nodes, drop), free=True)
    if "carry" in names:  # all the same, what arrived from before the loop may be sent there
        inside = [n for n in nodes if _recurs(tape, nodes, n, i)]
        yield Variant(names, words, site, _on(inside, drop), free=True)
    if len(nodes) > 1:  # along a loop the changes multiply, so that no multiple of one tells
        turn = _on(nodes, _replacing(i, lambda tape, node, ds, b: None if b is None else -b))
        yield Variant(("sign",), f"{words} has the wrong sign", site, turn)


def _of_kind(tape, nodes, i):
    v = tape.nodes[nodes[-1]].operands[i]
    if len(nodes) > 2 and _recurs(tape, nodes, nodes[1], i):
        return ("carry", "branch"), "what comes back from the next step"
    ahead, x = _ahead(tape, nodes[-1]), tape.values[v]
    if "reduce_sum" in ahead and len(tape.uses[v]) > 1:
        before, after = (ahead[: (k := ahead.index("reduce_sum"))], ahead[k + 1 :])
        divides = {"sqrt", "rsqrt", "div", "pow"} & set(after)
        if divides and {"square", "integer_pow", "mul", "abs"} & set(before):
            axes = [a for a in range(np.ndim(x)) if np.abs(x.mean(axis=a)).max() < 1e-9]
            kind = "variance" if axes and x.size > 1 else "length"
            return (f"{kind} path", "branch"), f"the {kind}'s path"
        if not before and "div" in ahead[:4]:
            return ("mean path", "branch"), "the mean's path"
    return ("branch",), "this path"


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


def of_axes(tape, right, site, nodes):
    """Of an axis that is summed on the way back, one place alone counts, or one is left out."""
    for i in _paths(tape, nodes):
        yield from _of_axes(site, tape, nodes, i)


def _of_axes(site, tape, nodes, i):
    node = tape.nodes[nodes[0]]
    shape = np.shape(tape.results(node)[0])
    for axis in _summed(tape, node, i):
        if shape[axis] < 2:
            continue
        for k, which in ((0, "first"), (-1, "last")):
            for only in (True, False):

                def new(tape, node, ds, b, axis=axis, k=k, only=only):
                    kept = np.zeros(ds[0].shape[axis + 1], bool)
                    kept[k] = True
                    kept = (kept if only else ~kept).reshape(-1, *[1] * (ds[0].ndim - axis - 2))
                    operands, results = tape.operands(node), tape.results(node)
                    return whole(tape, node, pull(node.op, operands, results, [ds[0] * kept]))[i]

                names = (
                    ("batch", "overwritten", "branch") if only else ("shifted", "masked", "batch")
                )
                words = f"the {which} of {shape[axis]} {'alone counts' if only else 'is left out'}"
                yield Variant(names, words, site, _on(nodes, _replacing(i, new)), rank=2)


def over_more_axes(tape, right):
    """What is summed along an axis on the way back is summed, or averaged, along the others too."""
    found = {}
    for site, nodes in sites(tape, right):
        for i in _paths(tape, nodes):
            node = tape.nodes[nodes[0]]
            axes = _summed(tape, node, i)
            x, o = np.shape(tape.operands(node)[i]), np.shape(tape.results(node)[0])
            if axes and node.op.name != "dot_general" and len(x) == len(o) and max(x) > 1:
                found.setdefault((tuple(axes), x), []).append((site, nodes, i))
    for (axes, _), several in found.items():
        groups = [[one] for one in several] + ([several] if len(several) > 1 else [])
        for group, mean in itertools.product(groups, (False, True)):

            def all_of_it(tape, node, ds, b, mean=mean):
                over = tuple(range(1, b.ndim))
                if node.op.name == "div":  # what is the same along the axis stands before the sum
                    y, o = tape.operands(node)[1], tape.results(node)[0]
                    terms, outside = ds[0] * o, -1 / y
                    b = summed_to(terms, y.shape)
                else:
                    outside = 1.0
                total = (
                    b.mean(axis=over, keepdims=True) if mean else b.sum(axis=over, keepdims=True)
                )
                return np.broadcast_to(total, b.shape) * outside

            hits = {n: _replacing(i, all_of_it) for _, nodes, i in group for n in nodes}
            words = f"the {'mean' if mean else 'sum'} runs over all axes, not over {_axes(axes)}"
            yield Variant(("axis", "batch"), words, group[0][0], hits, rank=2)


def _axes(axes):
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {axes}"


def once_more(tape, right):
    """A slope is applied where none belongs: the activation's, in a loss that has it built in."""
    for v, uses in tape.uses.items():
        uses = [(n, i) for n, i in uses if _is_live(tape, right, n)]
        if not uses or not tape.active[v] or (v not in tape.inputs and not _joins(tape, v)):
            continue
        for name, slope in (
            ("sigmoid", lambda x: _sigmoid(x) * _sigmoid(-x)),
            ("tanh", lambda x: 1 - np.tanh(x) ** 2),
            ("relu", lambda x: x > 0),
        ):
            hits = {}
            for n, i in uses:
                hits.setdefault(n, []).append(i)
            hits = {n: partial(_sloped, at=i, s=slope(tape.values[v])) for n, i in hits.items()}
            words = f"{name}'s slope is applied once more"
            names = ("slope", "local factor")
            yield Variant(names, words, tape.nodes[uses[0][0]].site, hits, rank=2)


def _joins(tape, v):
    node = tape.nodes[tape.maker[v]]
    return node.op.name == "dot_general" or (
        node.op.name == "add" and sum(tape.active[w] for w in node.operands) > 1
    )


def _sloped(tape, node, ds, back, at, s):
    return [b * s if k in at and b is not None else b for k, b in enumerate(back)]


def _summed(tape, node, i):
    # the axes of the result that operand i lacks
    x, o = np.shape(tape.operands(node)[i]), np.shape(tape.results(node)[0])
    if node.op.name == "dot_general":
        *of, out = letters_of(node.op.params, *map(np.ndim, tape.operands(node)))
        return [k for k, letter in enumerate(out) if letter not in of[i]]
    if node.op.name == "broadcast_in_dim":
        kept = node.op.params["broadcast_dimensions"]
        return [a for a in range(len(o)) if a not in kept or x[kept.index(a)] < o[a]]
    if node.op.name == "gather" and i == 0:
        return list(range(np.ndim(tape.operands(node)[1]) - 1))
    if slopes_known(node) and x != o:
        gone = len(o) - len(x)
        return [a for a in range(len(o)) if a < gone or x[a - gone] < o[a]]
    return []


def slopes_known(node):
    """Whether an operation is one that adds or multiplies arrays of several shapes."""
    return node.op.name in ("add", "sub", "mul", "div", "add_any")


# Slopes


def of_slope(tape, right, site, nodes):
    """Another slope stands for the right one of an operation element by element."""
    for i in _paths(tape, nodes):
        yield from _of_slope(tape, right, site, nodes, i)


def _of_slope(tape, right, site, nodes, i):
    node = tape.nodes[nodes[0]]
    if node.op.name in _TRIVIAL or slopes(node.op, tape.operands(node), tape.results(node)) is None:
        return
    alone = len([v for v in node.operands if tape.active[v]]) == 1 and node.op.name not in _JOINING

    def point(tape, node, d):
        operands, results = tape.operands(node), tape.results(node)

        def at(u):
            other = [u if k == i else x for k, x in enumerate(operands)]
            return slopes(node.op, other, forward(node.op, other))[i]

        return Point(operands[i], results[0], slopes(node.op, operands, results)[i], d, at)

    literal = [v for k, v in enumerate(node.operands) if k != i and v in tape.literals]
    choices = _OF_ONE + _OF_TWO if alone else _OF_TWO + _FACTORS.get((node.op.name, i), [])
    d = right[node.results[0]]
    for names, words, slope in choices:
        if literal and names == ("local factor",):
            names = ("factor", "local factor")
        if not _tells(slope, point(tape, node, d), np.shape(tape.operands(node)[i])):
            continue

        def new(tape, node, ds, b, slope=slope):
            s = slope(point(tape, node, ds[0][0]))
            return summed_to(ds[0] * s, np.shape(tape.operands(node)[i]))

        yield Variant(names, words, site, _on(nodes, _replacing(i, new)))


def _tells(slope, point, shape):
    # whether it can be taken here, and is another one
    try:
        with np.errstate(all="ignore"):
            other = slope(point)
            mine = summed_to((point.d * other)[None], shape)
            true = None if point.s is None else summed_to((point.d * point.s)[None], shape)
    except (TypeError, ValueError, IndexError, NotImplementedError):
        return False
    return np.isfinite(mine).all() and (true is None or not np.array_equal(mine, true))


_TRIVIAL = {
    *("add", "add_any", "sub", "neg", "copy", "convert_element_type", "reduce_precision", "real"),
    *("optimization_barrier", "tap"),
}
_JOINING = {"mul", "select_n"}


def _normal(x):
    return np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _tanh_form(x):
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    inner = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner


def _exact_form(x):
    return np.asarray(jax.scipy.stats.norm.cdf(x), "float64") + x * _normal(x)


# names, words, and the slope at a Point
_OF_TWO = [
    (("local factor",), "the slope is left out", lambda p: 1.0 + 0 * p.o),
    (("slope", "local factor"), "the slope is taken twice", lambda p: p.s * p.s),
    (("slope",), "1 / slope stands for the slope", lambda p: 1 / p.s),
    (("value",), "the value stands for the slope", lambda p: p.o),
    (("slope",), "the sign of the cotangent decides, not its own", lambda p: p.d > 0),
    (("slope",), "1 - slope stands for the slope", lambda p: 1 - p.s),
]
_OF_ONE = [
    (("slope",), "1 - o stands for the slope, o the value", lambda p: 1 - p.o),
    (("slope",), "1 + o stands for the slope, o the value", lambda p: 1 + p.o),
    (("slope",), "o (1 - o) stands for the slope, o the value", lambda p: p.o * (1 - p.o)),
    (("slope",), "1 - o^2 stands for the slope, o the value", lambda p: 1 - p.o * p.o),
    (("slope", "sign"), "1 + o^2 stands for the slope, o the value", lambda p: 1 + p.o * p.o),
    (("slope", "residual"), "x (1 - x) stands for o (1 - o)", lambda p: p.x * (1 - p.x)),
    (("slope", "residual"), "1 - x^2 stands for 1 - o^2", lambda p: 1 - p.x * p.x),
    (("slope", "residual"), "x stands for the slope", lambda p: p.x),
    (("output", "slope"), "the slope is taken at the output", lambda p: p.at(p.o)),
    (("slope",), "the sign of the operand decides", lambda p: p.x > 0),
    (("slope", "local factor"), "its root stands for the slope", lambda p: np.sqrt(p.s)),
    (("local factor",), "a factor of the slope, the value, is left out", lambda p: p.s / p.o),
    (("local factor",), "a factor of the slope, 1 / value, is left out", lambda p: p.s * p.o),
    (("local factor",), "a factor of the slope, x, is left out", lambda p: p.s / p.x),
    (("local factor",), "a factor of the slope, 1 / x, is left out", lambda p: p.s * p.x),
    (("slope", "forward"), "sigmoid's slope", lambda p: _sigmoid(p.x) * _sigmoid(-p.x)),
    (("slope", "forward"), "tanh's slope", lambda p: 1 - np.tanh(p.x) ** 2),
    (("slope", "forward"), "sigmoid, softplus' slope", lambda p: _sigmoid(p.x)),
    (("slope", "forward"), "the slope of GELU's tanh form", lambda p: _tanh_form(p.x)),
    (("slope", "forward"), "the slope of GELU's exact form", lambda p: _exact_form(p.x)),
]
_FACTORS = {
    ("div", 1): [
        (("local factor",), "the value is left out of the slope", lambda p: p.s / p.o),
        (("local factor",), "1 / x is left out of the slope", lambda p: p.s * p.x),
        (("local factor",), "one 1 / x too many", lambda p: p.s / p.x),
    ],
}


# Operations with rules of their own


def of_product(tape, right, site, nodes):
    """A factor of a matrix product, or what is sent to one, is not transposed."""
    if tape.nodes[nodes[0]].op.name == "dot_general":
        for i in _paths(tape, nodes):
            yield from _of_product(tape, site, nodes, i)
    yield from of_operation(tape, site, nodes)


def _of_product(tape, site, nodes, i):
    operands = tape.operands(tape.nodes[nodes[0]])
    square = [np.ndim(x) > 1 and x.shape[-1] == x.shape[-2] for x in operands]
    if square[1 - i]:

        def unturned(tape, node, ds, b):
            operands = tape.operands(node)
            operands[1 - i] = np.swapaxes(operands[1 - i], -1, -2)
            return pull(node.op, operands, tape.results(node), ds)[i]

        change = _on(nodes, _replacing(i, unturned))
        yield Variant(("transposed", "operand"), "the factor is not transposed", site, change)
    o = np.shape(tape.results(tape.nodes[nodes[0]])[0])
    if len(o) > 1 and o[-1] == o[-2]:

        def from_turned(tape, node, ds, b):
            d = np.swapaxes(ds[0], -1, -2)
            return pull(node.op, tape.operands(node), tape.results(node), [d])[i]

        words = "what arrives is transposed, or should be"
        yield Variant(("transposed",), words, site, _on(nodes, _replacing(i, from_turned)))
    if square[i]:

        def new(tape, node, ds, b):
            back = pull(node.op, tape.operands(node), tape.results(node), ds)[i]
            return np.swapaxes(back, -1, -2)

        turned = _replacing(i, new)
        yield Variant(("transposed",), "what is sent back is transposed", site, _on(nodes, turned))


def of_operation(tape, site, nodes):
    """Other rules of taps, maxima, cumulative sums, and selections."""
    node = tape.nodes[nodes[0]]
    name, params = node.op.name, node.op.params
    if name == "tap" and tape.operands(node)[0]:
        ones = _on(nodes, _replacing(1, lambda tape, node, ds, b: np.ones_like(b)))
        yield Variant(("upstream",), "the cotangent that arrives is left out", site, ones)
    if name in ("reduce_max", "reduce_min"):

        def spread(tape, node, ds, back, evenly):
            d = np.expand_dims(ds[0], tuple(a + 1 for a in node.op.params["axes"]))
            share = d.size / back[0].size if evenly else 1.0
            return [np.broadcast_to(d, back[0].shape) * share]

        for evenly, words in ((True, "spread evenly"), (False, "sent to all, not to the largest")):
            change = _on(nodes, partial(spread, evenly=evenly))
            yield Variant(("slope", "masked", "local factor"), words, site, change)
    if name.startswith("cum") and "axis" in params:
        axis = params["axis"] + 1

        def turned(tape, node, ds, back):
            flipped = pull(node.op, tape.operands(node), tape.results(node), [np.flip(ds[0], axis)])
            return [np.flip(flipped[0], axis)]

        def unturned(tape, node, ds, back):
            return [np.flip(back[0], axis)]

        for names, words, change in (
            (("reversed", "transposed"), "summed in the forward's order", turned),
            (("reversed",), "not turned back", unturned),
            (
                ("shifted", "diagonal"),
                "its own place is left out",
                lambda t, n, d, b: [b[0] - d[0]],
            ),
            (("carry", "local factor"), "its own place alone", lambda t, n, d, b: [d[0]]),
        ):
            yield Variant(names, words, site, _on(nodes, change))
    if name == "select_n" and len(node.operands) == 3:

        def by_sign(tape, node, ds, back):
            sides = ds[0] > 0
            return [None if b is None else ds[0] * (sides == k - 1) for k, b in enumerate(back)]

        def other(tape, node, ds, back):
            which = tape.operands(node)[0]
            return [None if b is None else ds[0] * (which != k - 1) for k, b in enumerate(back)]

        words = "the sign of the cotangent decides"
        yield Variant(("slope", "masked"), words, site, _on(nodes, by_sign))
        yield Variant(("masked", "slope"), "the sides are exchanged", site, _on(nodes, other))
    both = [i for i in _paths(tape, nodes) if node.op.name in ("mul", "dot_general", "sub", "div")]
    if len(both) == 2:
        operands = tape.operands(node)
        if np.shape(operands[both[0]]) == np.shape(operands[both[1]]):

            def exchanged(tape, node, ds, back):
                return pull(node.op, tape.operands(node), tape.results(node), ds)[::-1]

            crossed = _on(nodes, exchanged)
            yield Variant(("exchanged",), "the two cotangents are exchanged", site, crossed)


# Regions: many operations that are one to the reader


def of_regions(tape, right):
    """The Variants in which many operations between two values are one, with another slope."""
    grouped = {}
    for x, o in regions(tape, right):
        grouped.setdefault((_series(tape, x), _series(tape, o)), []).append((x, o))
    for pairs in grouped.values():
        x, o = pairs[-1]
        site = tape.nodes[tape.maker[o]].site
        slope = _slope_between(tape, x, o)
        point = Point(tape.values[x], tape.values[o], slope, right[o])
        choices = [
            c for c in _OF_TWO + _OF_ONE if slope is not None or c[0] != ("slope", "forward")
        ]
        for names, words, other in [*choices, *_of_softmax(tape.values[o])]:
            if not _tells(
                lambda p, other=other: other(p) * np.ones_like(p.d), point, point.x.shape
            ):
                continue

            def change(d, x, o, other=other, by_slope=slope is not None):
                s = _slope_between(tape, x, o) if by_slope else None
                return d * other(Point(tape.values[x], tape.values[o], s, d))

            blocks = {tape.maker[o]: (x, o, change, False) for x, o in pairs}
            yield Variant(names, f"from its input to its value: {words}", site, {}, blocks)


def bypassed(tape, right):
    """All that an argument goes through is left out, up to where all of its paths have met."""
    below, depth = {}, {}  # value -> the nearest one that all of its paths lead to
    for v in reversed(range(len(tape.values))):
        if right[v] is None or v == tape.output:
            continue
        common = None
        for k, (n, _) in enumerate(u for u in tape.uses.get(v, ()) if _is_live(tape, right, u[0])):
            o = tape.nodes[n].results[0]
            common = o if k == 0 else _common(below, depth, common, o)
        below[v], depth[v] = common, depth.get(common, 0) + 1
    for v in tape.inputs:
        o, steps = below.get(v), 0
        while o is not None and steps < 12:
            n = tape.maker[o]
            if np.shape(tape.values[o]) == np.shape(tape.values[v]) and steps:
                hits = {}
                for m, i in tape.uses[v]:
                    hits.setdefault(m, []).append(i)
                hits = {m: partial(_without, gone=which) for m, which in hits.items()}
                blocks = {n: (v, o, lambda d, x, o: d, True)}
                names, words = ("local factor",), "the slope of all that leads here is left out"
                yield Variant(names, words, tape.nodes[n].site, hits, blocks)
            o, steps = below.get(o), steps + 1


def shares(o):
    """(axis, whether o holds logarithms) for each axis along which shares add up to 1."""
    for axis in range(np.ndim(o)):
        for log in (False, True):
            parts = np.exp(np.minimum(o, 1.0)) if log else o
            total = parts.sum(axis=axis)
            if o.shape[axis] > 1 and (parts >= 0).all() and np.abs(total - 1).max() < 1e-9:
                yield axis, log


def _of_softmax(o):
    # (names, words, factor of the cotangent) for shares that add up to 1 along an axis
    for axis, log in shares(o):
        yield (
            ("diagonal", "slope"),
            "only the diagonal of its Jacobian",
            (lambda p: 1 - np.exp(p.o)) if log else (lambda p: p.o * (1 - p.o)),
        )

        def unweighted(p, axis=axis):
            d = p.o * (p.d - p.d.sum(axis=axis, keepdims=True))
            return np.divide(d, p.d, out=np.zeros_like(d), where=p.d != 0)

        if not log:
            yield ("local factor", "operand"), "its sum is not weighted", unweighted
        others = [(a,) for a in range(o.ndim) if a != axis] + [tuple(range(o.ndim))]
        for axes in others if o.ndim > 1 else ():

            def rule(p, axes=axes, log=log):
                if log:
                    d = p.d - np.exp(p.o) * p.d.sum(axis=axes, keepdims=True)
                else:
                    d = p.o * (p.d - (p.d * p.o).sum(axis=axes, keepdims=True))
                return np.divide(d, p.d, out=np.zeros_like(d), where=p.d != 0)

            yield ("axis",), f"its sum runs over {_axes(axes)}", rule


def regions(tape, right):
    """Pairs (x, o): o depends on x alone, and nothing between them is used elsewhere."""
    above = {}  # value -> the nearest value that all of its paths pass
    depth = {}
    for node in tape.nodes:
        for o in node.results:
            if not tape.active[o]:
                continue
            common = None
            for k, v in enumerate(v for v in node.operands if tape.active[v]):
                common = v if k == 0 else _common(above, depth, common, v)
            above[o] = common
            depth[o] = depth.get(common, 0) + 1
    for o in list(above):
        if right[o] is None or len(tape.nodes[tape.maker[o]].results) > 1:
            continue
        x, steps = above[o], 1
        while x is not None and steps < 12:
            start = len(tape.uses[x]) > 1 or x not in above or above[x] is None
            start = start or tape.nodes[tape.maker[x]].op.name not in _ONE_BY_ONE
            if np.shape(tape.values[x]) == np.shape(tape.values[o]) and start:
                inner = _between(tape, x, o)
                if inner is None:
                    break
                if len(inner) > 1:
                    yield x, o
            x, steps = above.get(x), steps + 1


_ONE_BY_ONE = {
    *("add", "sub", "mul", "div", "neg", "exp", "log", "tanh", "logistic", "sqrt", "rsqrt"),
    *("square", "integer_pow", "max", "min", "abs", "log1p", "expm1", "erf"),
}


def _common(above, depth, a, b):
    while a is not None and b is not None and a != b:
        if depth.get(a, 0) >= depth.get(b, 0):
            a = above.get(a)
        else:
            b = above.get(b)
    return a if a == b else None


def _between(tape, x, o, most=60):
    # the nodes from x to o, or None where a value between is used elsewhere, or there are many
    inner, todo = set(), [o]
    while todo:
        n = tape.maker[todo.pop()]
        if n in inner:
            continue
        inner.add(n)
        if len(inner) > most:
            return None
        todo += [v for v in tape.nodes[n].operands if tape.active[v] and v != x]
    for n in inner:
        for v in tape.nodes[n].results:
            if v != o and any(m not in inner for m, _ in tape.uses.get(v, ())):
                return None
    return inner


def _slope_between(tape, x, o):
    # the slope of a region all of whose operations go element by element, or None
    inner = sorted(_between(tape, x, o) or (), reverse=True)
    if not inner:
        return None
    sent = {o: np.ones((1, *np.shape(tape.values[o])))}
    for n in inner:
        node = tape.nodes[n]
        s = slopes(node.op, tape.operands(node), tape.results(node))
        d = sent.get(node.results[0])
        if s is None:
            return None
        for v, slope in zip(node.operands, s, strict=True):
            if tape.active[v] and d is not None:
                if np.shape(tape.values[v]) != d.shape[1:]:
                    return None
                sent[v] = sent.get(v, 0) + d * slope
    return sent[x][0] if x in sent else None


def _series(tape, v):
    # what the same value of another round of the loop has in common with it
    if v not in tape.maker:
        return ("input", v)
    node = tape.nodes[tape.maker[v]]
    return node.site, node.results.index(v)


# What several uses of a value send back


def overwritten(tape, right):
    """Of a value's many uses the first or the last alone counts, or wins where two meet."""
    for v, uses in tape.uses.items():
        uses = [(n, i) for n, i in uses if _is_live(tape, right, n)]
        if not tape.active[v] or not uses:
            continue
        if all(tape.nodes[n].op.name in _SELECTIONS and i == 0 for n, i in uses):
            yield from _by_entries(tape, right, v, [n for n, _ in uses])
        if len(uses) > 2:
            for kept, words in ((uses[0], "first"), (uses[-1], "last")):
                gone = {}
                for n, i in uses:
                    if (n, i) != kept:
                        gone.setdefault(n, []).append(i)
                hits = {n: partial(_without, gone=which) for n, which in gone.items()}
                site = tape.nodes[kept[0]].site
                yield Variant(
                    ("overwritten", "branch"), f"the {words} use alone counts", site, hits
                )


def _without(tape, node, ds, back, gone):
    return [None if k in gone else b for k, b in enumerate(back)]


_SELECTIONS = {"slice", "take", "gather", "dynamic_slice"}


def _by_entries(tape, right, v, nodes):
    # Which entry goes where is read from the numbers of the entries, sent through the forward pass.
    x = tape.values[v]
    number = np.arange(x.size, dtype=float).reshape(np.shape(x))
    read = []
    for n in nodes:
        operands = [number, *tape.operands(tape.nodes[n])[1:]]
        read.append(np.nan_to_num(forward(tape.nodes[n].op, operands)[0]).astype(int))
    every = np.concatenate([r.ravel() for r in read])
    if len(nodes) == 1 and np.ndim(read[0]) > 1:
        index = tape.operands(tape.nodes[nodes[0]])[1:]
        rows = int(np.prod(np.shape(index[0])[:-1])) if index else 0
        for k, which in ((0, "first"), (-1, "last")) if rows > 2 else ():
            mask = np.ones((rows, read[0].size // rows))
            mask[k] = 0
            hits = {nodes[0]: partial(_masked, mask=mask.reshape(read[0].shape))}
            words = f"the {which} of {rows} uses is left out"
            yield Variant(
                ("branch", "masked", "overwritten"), words, tape.nodes[nodes[0]].site, hits
            )
    times = np.bincount(every, minlength=x.size)
    if times.max(initial=0) < 2:
        return
    site, repeated = tape.nodes[nodes[0]].site, len(nodes) == 1
    names = ("duplicates", "overwritten") if repeated else ("overwritten",)
    sent = [right[tape.nodes[n].results[0]] for n in nodes]
    some = np.concatenate([np.ravel(d) != 0 for d in sent])
    for (turn, words), only in itertools.product(((1, "last"), (-1, "first")), (False, True)):
        # the numbers of the entries that are not overwritten later on
        writes = np.flatnonzero(some)[::turn] if only else np.arange(every.size)[::turn]
        last = np.full(x.size, -1)
        last[every[writes]] = writes
        kept = np.isin(np.arange(every.size), last)
        parts = np.split(kept, np.cumsum([r.size for r in read])[:-1])
        hits = {
            n: partial(_masked, mask=part.reshape(r.shape) * 1.0)
            for n, part, r in zip(nodes, parts, read, strict=True)
        }
        if not only or not some.all():
            yield Variant(names, f"where several add up, the {words} overwrites", site, hits)
    hits = {n: partial(_masked, mask=1 / times[r]) for n, r in zip(nodes, read, strict=True)}
    yield Variant((names[0], "factor"), "divided by how often it is used", site, hits)


def _masked(tape, node, ds, back, mask):
    new = pull(node.op, tape.operands(node), tape.results(node), [ds[0] * mask])
    return whole(tape, node, new)


def permuted(tape, right):
    """The parts of a value that was split, such as a recurrent cell's gates, in another order."""
    grouped = {}
    for uses in tape.uses.values():
        parts = [n for n, i in uses if _is_live(tape, right, n) and i == 0]
        parts = [n for n in parts if tape.nodes[n].op.name in _SELECTIONS]
        shapes = {np.shape(tape.results(tape.nodes[n])[0]) for n in parts}
        sites_ = tuple(tape.nodes[n].site for n in parts)
        if 2 <= len(parts) <= 4 and len(shapes) == 1 and len(set(sites_)) == len(parts):
            grouped.setdefault(sites_, []).append(parts)
    for site, nodes in sites(tape, right):
        shapes = {np.shape(tape.values[v]) for v in tape.nodes[nodes[0]].results}
        count = len(tape.nodes[nodes[0]].results)
        if 2 <= count <= 4 and len(shapes) == 1:
            for order in itertools.permutations(range(count)):
                words = "the parts are put together in another order"
                names = ("exchanged", "permuted")
                yield Variant(names, words, site, _on(nodes, partial(_reordered, order=order)))
    for sites_, several in grouped.items():
        for order in itertools.permutations(range(len(sites_))):
            hits = {
                parts[k]: partial(_sending, d=right[tape.nodes[parts[order[k]]].results[0]])
                for parts in several
                for k in range(len(parts))
                if order[k] != k
            }
            if hits:
                words = "the parts are put together in another order"
                yield Variant(("exchanged", "permuted"), words, sites_[0], hits, rank=2)


def _reordered(tape, node, ds, back, order):
    ds = [ds[k] for k in order]
    return whole(tape, node, pull(node.op, tape.operands(node), tape.results(node), ds))


# Other arrays


def elsewhere(tape, right):
    """The Variants in which a local rule reads another array of the program."""
    known = _by_shape(tape, tape.values)
    for site, nodes in sites(tape, right):
        node = tape.nodes[nodes[0]]
        linear = node.op.name in ("mul", "dot_general", "select_n", "conv_general_dilated")
        for j in range(len(node.operands)) if node.op.name in _READING else ():
            if not any(tape.active[v] for k, v in enumerate(node.operands) if k != j or not linear):
                continue
            present = [tape.nodes[n].operands[j] for n in nodes]
            for other in _others(tape.values, nodes, present, known):
                hits = {n: partial(_reading, j=j, u=tape.values[u]) for n, u in other.items()}
                yield Variant(("operand", "residual"), "it reads another array", site, hits, rank=3)
            v = present[-1]
            if v in tape.inputs and right[v] is not None:
                hits = _on(nodes, partial(_updated, j=j, u=right[v]))
                words = "it reads the argument after its update"
                yield Variant(
                    ("operand", "residual"), words, site, hits, free=True, any=True, rank=3
                )
        if node.op.name in _OF_VALUE:
            present = [tape.nodes[n].results[0] for n in nodes]
            for other in _others(tape.values, nodes, present, known):
                hits = {n: partial(_reading, j=None, u=tape.values[u]) for n, u in other.items()}
                words = "another array stands for its value"
                yield Variant(("residual", "operand"), words, site, hits, rank=3)


def crossed(tape, right):
    """The Variants in which two operations of one kind read each other's operand."""
    alike = {}
    for site, nodes in sites(tape, right):
        node = tape.nodes[nodes[0]]
        for j in range(2) if node.op.name in ("mul", "dot_general") else ():
            if tape.active[node.operands[1 - j]]:
                kind = node.op.name, np.shape(tape.operands(node)[j]), len(nodes)
                alike.setdefault(kind, []).append((site, nodes, j))
    for several in alike.values():
        for (site, nodes, j), (other, its, k) in itertools.combinations(several[:10], 2):
            mine = [tape.nodes[n].operands[j] for n in nodes]
            theirs = [tape.nodes[n].operands[k] for n in its]
            if site == other or mine == theirs:
                continue
            hits = {
                n: partial(_reading, j=j, u=tape.values[v])
                for n, v in zip(nodes, theirs, strict=True)
            }
            hits |= {
                n: partial(_reading, j=k, u=tape.values[v]) for n, v in zip(its, mine, strict=True)
            }
            names = ("exchanged", "operand", "residual")
            yield Variant(
                names, "this and another operation read each other's array", site, hits, rank=4
            )


def rerouted(tape, right):
    """The Variants in which another cotangent of the backward pass is sent through a node."""
    known = _by_shape(tape, right)
    for site, nodes in sites(tape, right):
        node = tape.nodes[nodes[0]]
        if node.op.name == "tap" or len(node.results) > 1:
            continue
        paths = _paths(tape, nodes)
        present = [tape.nodes[n].results[0] for n in nodes]
        for other in _others(right, nodes, present, known):
            for i in [None, *(paths if len(paths) > 1 else ())]:
                hits = {n: partial(_sending, d=right[u], i=i) for n, u in other.items()}
                names = ("exchanged", "upstream", "local factor")
                yield Variant(names, "it sends back another cotangent", site, hits, rank=4)


_READING = {
    *("mul", "div", "tanh", "logistic", "exp", "log", "sqrt", "rsqrt", "square", "integer_pow"),
    *("pow", "max", "min", "abs", "sin", "cos", "erf", "log1p", "select_n", "gather", "clamp"),
    *("conv_general_dilated", "dot_general", "reduce_max", "custom_linear_solve"),
}
_OF_VALUE = {"tanh", "logistic", "exp", "sqrt", "rsqrt", "div", "reduce_max"}
NEAR = 30  # arrays that may stand for one, the nearest


def _reading(tape, node, ds, back, j, u):
    operands, results = tape.operands(node), [u]
    if j is not None:
        operands[j] = u
        results = forward(node.op, operands)
    return whole(tape, node, pull(node.op, operands, results, ds))


def _updated(tape, node, ds, back, j, u):
    operands = tape.operands(node)
    operands[j] = u
    moved = whole(tape, node, pull(node.op, operands, tape.results(node), ds))
    return [
        b if k == j or b is None else b + m
        for k, (b, m) in enumerate(zip(back, moved, strict=True))
    ]


def _sending(tape, node, ds, back, d, i=None):
    other = whole(tape, node, pull(node.op, tape.operands(node), tape.results(node), [d[None]]))
    return [o if i in (None, k) else b for k, (o, b) in enumerate(zip(other, back, strict=True))]


def _by_shape(tape, arrays):
    # shape -> the series of values: an input, or what a site makes at each of its steps
    series = [[v] for v in tape.inputs]
    for nodes in tape.of_site.values():
        for k in range(len(tape.nodes[nodes[0]].results)):
            series.append([tape.nodes[n].results[k] for n in nodes])
    known, seen = {}, set()
    for values in series:
        x = arrays[values[-1]]
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
            continue
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


def _others(arrays, nodes, present, known):
    # {node: value} for each series that may stand in the present one's place, or a step beside
    x = arrays[present[-1]]
    if x is None:
        return
    found = sorted(known.get(np.shape(x), ()), key=lambda series: abs(series[-1] - present[-1]))
    mine = {n: _mark(arrays[v]) for n, v in zip(nodes, present, strict=True)}
    for values in found[:NEAR]:
        if len(values) == 1:
            choices = [zip(nodes, values * len(nodes), strict=True)]
        elif abs(len(values) - len(nodes)) > 1:
            continue
        else:
            shifts = (0, 1, -1)
            choices = [
                [(n, values[t + k]) for t, n in enumerate(nodes) if 0 <= t + k < len(values)]
                for k in shifts
            ]
        for choice in map(dict, choices):
            same = {n: v for n, v in choice.items() if np.shape(arrays[v]) == np.shape(x)}
            same = {n: v for n, v in same.items() if arrays[v] is not None}
            if any(_mark(arrays[v]) != mine[n] for n, v in same.items()):
                yield same
