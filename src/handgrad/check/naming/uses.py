"""What several uses of a value send back: overwritten instead of added, or in another order.

Derivation: notebooks/32_checker.ipynb
"""

import itertools
from functools import partial

import numpy as np

from handgrad.check.naming.local import forward
from handgrad.check.naming.replacements import Variant, at_all, is_live, sites, without

SELECTIONS = {"slice", "take", "gather", "dynamic_slice"}
PARTS = 4  # parts of a value whose orders are tried


def overwritten(tape, right):
    """Of a value's many uses the first or the last alone counts, or wins where two meet."""
    for v, uses in tape.uses.items():
        uses = [(n, i) for n, i in uses if is_live(tape, right, n)]
        if not tape.active[v] or not uses:
            continue
        if all(tape.nodes[n].op.name in SELECTIONS and i == 0 for n, i in uses):
            yield from _by_entries(tape, right, v, [n for n, _ in uses])
        for kept, words in ((uses[0], "first"), (uses[-1], "last")) if len(uses) > 2 else ():
            gone = {}
            for n, i in uses:
                if (n, i) != kept:
                    gone.setdefault(n, set()).add(i)
            hits = {n: without(which) for n, which in gone.items()}
            words = f"of the {len(uses)} uses of {{{v}}} the {words} alone counts"
            yield Variant(("overwritten", "branch"), words, tape.nodes[kept[0]].site, hits)


def _by_entries(tape, right, v, nodes):
    # Which entry goes where is read from the numbers of the entries, sent through the forward pass.
    x = tape.values[v]
    number = np.arange(x.size, dtype=float).reshape(np.shape(x))
    read = []
    for n in nodes:
        operands = [number, *tape.operands(tape.nodes[n])[1:]]
        read.append(np.nan_to_num(forward(tape.nodes[n].op, operands)[0]).astype(int))
    site = tape.nodes[nodes[0]].site

    def masked(keep):
        # the variant's hits, from what is kept of each entry that is read
        parts = np.split(keep, np.cumsum([r.size for r in read])[:-1])
        shaped = [part.reshape(r.shape) for part, r in zip(parts, read, strict=True)]
        return {n: partial(_masked, mask=mask) for n, mask in zip(nodes, shaped, strict=True)}

    every = np.concatenate([r.ravel() for r in read])
    if len(nodes) == 1 and tape.nodes[nodes[0]].op.name == "gather":
        rows = int(np.prod(np.shape(tape.operands(tape.nodes[nodes[0]])[1])[:-1]))
        for k, words in ((0, "first"), (-1, "last")) if rows > 2 else ():
            keep = np.ones((rows, every.size // rows))
            keep[k] = 0
            words = f"the {words} of {rows} uses is left out"
            names = ("branch", "masked", "overwritten")
            yield Variant(names, words, site, masked(keep.ravel()))
    times = np.bincount(every, minlength=x.size)
    if times.max(initial=0) < 2:
        return
    names = ("duplicates", "overwritten") if len(nodes) == 1 else ("overwritten",)
    some = np.concatenate([np.ravel(right[tape.nodes[n].results[0]]) != 0 for n in nodes])
    groups = list(_groups(tape, nodes, read))
    for order, words in _writings(read):
        for only, (group, whose) in itertools.product((False, True), groups):
            # all that is read is written, or only what is not 0; what is not overwritten stays
            writes = order[(some | (not only))[order]]
            _, last = np.unique((group * x.size + every)[writes[::-1]], return_index=True)
            keep = np.isin(np.arange(every.size), writes[::-1][last]) * 1.0
            words_ = f"where several uses of {{{v}}} meet{whose}, the {words} overwrites the others"
            yield Variant(names, words_, site, masked(keep))
    words = f"divided by how often {{{v}}} is used"
    yield Variant((names[0], "factor"), words, site, masked(1 / times[every]))


def _writings(read):
    # orders in which what was read is written, and the use that is written at the end
    at = np.arange(sum(r.size for r in read))
    yield at, "last"
    yield at[::-1], "first"
    if len(read) > 1:
        by_node = np.split(at, np.cumsum([r.size for r in read])[:-1])
        yield np.concatenate(by_node[::-1]), "first round"


def _groups(tape, nodes, read):
    # within what uses overwrite one another: all, those of a round, or along an axis of the ids
    every = np.zeros(sum(r.size for r in read), int)
    yield every, ""
    if len(nodes) > 1:
        yield np.repeat(np.arange(len(read)), [r.size for r in read]), " in one round"
    elif tape.nodes[nodes[0]].op.name == "gather":
        shape = np.shape(tape.operands(tape.nodes[nodes[0]])[1])[:-1]
        for axis in range(len(shape)) if len(shape) > 1 else ():
            places = np.indices(shape)[axis].ravel()
            yield np.repeat(places, every.size // places.size), f" at one place of axis {axis}"


def _masked(met, mask):
    return met.again([met.ds[0] * mask])


def overlapping(tape, right):
    """Where the windows of a pooling or of a convolution overlap, one overwrites the others."""
    for site, nodes in sites(tape, right):
        node = tape.nodes[nodes[0]]
        x, o = node.operands[0], node.results[0]
        axes = _windows(node.op, *map(np.shape, (*tape.operands(node), tape.values[o])))
        if not tape.active[x] or len(nodes) > 1 or all(w <= s for _, _, w, s, _ in axes):
            continue
        for first in (False, True):
            change = partial(_one_window, axes=axes, first=first)
            words = (
                f"where windows overlap, the {'first' if first else 'last'} overwrites the others"
            )
            yield Variant(("overwritten",), words, site, at_all(nodes, change), rank=2)


def _windows(op, x, *others):
    # (axis of x, axis of the result, length, stride, padding) for each axis that windows run along
    if op.name.startswith("reduce_window_"):
        p, every = op.params, range(len(x))
        dilations = *p["base_dilation"], *p["window_dilation"]
        ends = every, every
        sizes = p["window_dimensions"], p["window_strides"], p["padding"]
    elif op.name == "conv_general_dilated":
        p, numbers = op.params, op.params["dimension_numbers"]
        dilations = *p["lhs_dilation"], *p["rhs_dilation"]
        ends = numbers.lhs_spec[2:], numbers.out_spec[2:]
        kernel = [others[0][a] for a in numbers.rhs_spec[2:]]
        sizes = kernel, p["window_strides"], p["padding"]
    else:
        return []
    found = zip(*ends, *sizes, strict=True)
    return [] if {*dilations} - {1} else [(*axis, low) for *axis, (low, _) in found]


def _one_window(met, axes, first):
    # Windows whose numbers differ by enough do not overlap, so that what several of them send back
    # is told apart. The windows that cover an entry are the same along each axis by itself.
    d, whole = met.ds[0], 0.0
    counts = [-(-w // s) for _, _, w, s, _ in axes]
    for group in itertools.product(*map(range, counts)):
        sent, kept = d, 1.0
        for (at, to, w, s, low), k, count in zip(axes, group, counts, strict=True):
            many, places = d.shape[to + 1], np.arange(met.operands[0].shape[at]) + low
            number = -(-(places - w + 1) // s) if first else places // s
            mine = np.clip(number, 0, many - 1) % count == k
            sent = sent * _along(np.arange(many) % count == k, to, d.ndim - 1)
            kept = kept * _along(mine, at, met.operands[0].ndim)
        whole = whole + met.again([sent])[0] * kept
    return [whole, *met.back[1:]]


def _along(mask, axis, ndim):
    return mask.reshape([-1 if a == axis else 1 for a in range(ndim)])


def permuted(tape, right):
    """The parts of a value that was split, such as a recurrent cell's gates, in another order."""
    names, words = ("exchanged", "permuted"), "the parts are put together in another order"
    for site, nodes in sites(tape, right):
        results = tape.nodes[nodes[0]].results
        if 1 < len(results) <= PARTS and len({np.shape(tape.values[v]) for v in results}) == 1:
            for order in _orders(len(results)):
                hits = at_all(nodes, partial(_reordered, order=order))
                yield Variant(names, words, site, hits, rank=2)
    grouped = {}
    for uses in tape.uses.values():
        parts = [n for n, i in uses if i == 0 and is_live(tape, right, n)]
        parts = [n for n in parts if tape.nodes[n].op.name in SELECTIONS]
        shapes = {np.shape(tape.values[tape.nodes[n].results[0]]) for n in parts}
        key = tuple(tape.nodes[n].site for n in parts)
        if 1 < len(parts) <= PARTS and len(shapes) == 1 and len(set(key)) == len(parts):
            grouped.setdefault(key, []).append(parts)
    for key, several in grouped.items():
        for order in _orders(len(key)):
            hits = {}
            for parts in several:
                for k, j in enumerate(order):
                    d = right[tape.nodes[parts[j]].results[0]]
                    hits[parts[k]] = partial(_given, d=d)
            yield Variant(names, words, key[0], hits, rank=2)


def _orders(count):
    return list(itertools.permutations(range(count)))[1:]


def _reordered(met, order):
    return met.again([met.ds[k] for k in order])


def _given(met, d):
    return met.again([d[None]])
