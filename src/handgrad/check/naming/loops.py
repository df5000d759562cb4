"""What a loop carries from round to round: cut, or handed on past a slope.

Derivation: notebooks/32_checker.ipynb
"""

from functools import partial

import numpy as np

from handgrad.check.naming.local import Part, pull
from handgrad.check.naming.replacements import Variant, is_carry, paths, sites, without

LONGEST = 5  # rounds between two cuts


def loops(tape, right):
    """All that a loop carries is cut, between all rounds or blocks, or is added too late."""
    found = {}
    for _, nodes in sites(tape, right):
        for i in paths(tape, nodes):
            if is_carry(tape, nodes, i):
                found.setdefault(len(nodes), []).append((nodes, i))
    for rounds, reads in found.items():
        yield from _cut(tape, rounds, reads)
        yield from _late(tape, right, reads)


def _cut(tape, rounds, reads):
    words = "all that comes back from the next step is cut off"
    for every in range(1, min(rounds, LONGEST + 1)):
        for start in sorted({0, rounds % every}):  # blocks are counted from either end
            hits = {}
            for nodes, i in reads:
                for t in range(start or every, rounds, every):
                    hits.setdefault(nodes[t], set()).add(i)
            hits = {n: without(which) for n, which in hits.items()}
            far = "" if every == 1 else f" every {every} steps"
            site = tape.nodes[reads[0][0][0]].site
            yield Variant(("carry",), words + far, site, hits, rank=1 + (every > 1))


def _late(tape, right, reads):
    # behind the slope of the operation that has made what is carried
    later = {}  # what a value is sent from the next round
    for nodes, i in reads:
        for node in (tape.nodes[n] for n in nodes[1:]):
            ds = [None if right[v] is None else right[v][None] for v in node.results]
            back = pull(node.op, tape.operands(node), tape.results(node), ds)[i]
            later.setdefault(node.operands[i], []).append(back)
    hits = {}
    for v, sent in later.items():
        node = tape.nodes[tape.maker[v]]
        live = [k for k, u in enumerate(node.operands) if tape.active[u]]
        shapes = {np.shape(tape.values[u]) for u in (v, *(node.operands[k] for k in live))}
        if len(live) == len(shapes) == 1 and not any(isinstance(d, Part) for d in sent):
            change = partial(_behind, i=live[0], own=right[v] - sum(sent)[0])
            hits.setdefault(node.site, {})[tape.maker[v]] = change
    words = "what comes back from the next step is added behind it, so that it lacks this slope"
    for site, here in hits.items():
        yield Variant(("carry", "local factor"), words, site, here)


def _behind(met, i, own):
    # what comes from elsewhere than the next round is the same in all variants
    late = met.ds[0] - own
    return [b + late if k == i else b for k, b in enumerate(met.again([met.ds[0] - late]))]
