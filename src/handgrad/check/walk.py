"""Walk a tape backwards, with local rules replaced.

A walk takes many variants of the backward pass at once, a row each. Since all rules are linear in
the cotangents, a row holds only how far its variant differs from the right backward pass: it starts
where its rule is replaced, and ends where nothing is left of it.

Derivation: notebooks/32_checker.ipynb
"""

import numpy as np

from handgrad.check.local import Part, pull


def backward(tape, values=None, replaced=(), across=()):
    """The right cotangents: for each value an array, or None where nothing is sent back.

    values stands for those of the tape (a forward pass with something changed), and replaced maps
    nodes to their own pull(operands, results, ds); across maps one to (x, rule), by which what
    arrives there goes to the value x at once.
    """
    values = tape.values if values is None else values
    sent = _Sent(tape, values)
    sent.add(tape.output, np.ones((1,)))
    for n in reversed(range(len(tape.nodes))):
        node = tape.nodes[n]
        ds = [sent.of.get(v) for v in node.results]
        if all(d is None for d in ds) or not tape.active[node.results[0]]:
            continue
        operands, results = tape.operands(node, values), tape.results(node, values)
        if n in across:
            x, rule = across[n]
            sent.add(x, rule(results[0], ds[0]))
            continue
        rule = replaced[n] if n in replaced else None
        back = rule(operands, results, ds) if rule else right_pull(node, operands, results, ds)
        sent.send(node, back)
    return [None if d is None else d[0] for d in map(sent.of.get, range(len(values)))]


def right_pull(node, operands, results, ds):
    """What a node sends back: a tap that is taken the reader's own cotangent."""
    back = pull(node.op, operands, results, ds)
    if node.op.name == "tap" and operands[0]:
        back[1] = operands[3][None]
    return back


def differences(tape, right, variants, leaves):
    """How far each variant moves the gradients: for each leaf an array of rows, or None.

    right are the cotangents of the right backward pass, leaves the numbers of the values whose
    cotangents are judged. A variant has hits, {node: change}, where change(tape, node, ds, back)
    gives the cotangents of the node's operands, from those of its results and the right ones; and
    it may have blocks, {node: (x, o, change, as_well)}: before the node, what arrives at o goes to
    x, changed, and nothing is left for what stands between unless it goes there as well.
    """
    sent = _Sent(tape, tape.values)
    met, blocked = {}, {}
    for row, variant in enumerate(variants):
        for n, change in variant.hits.items():
            met.setdefault(n, []).append((row, change))
        for n, unit in variant.blocks.items():
            blocked.setdefault(n, []).append((row, unit))
    start = max([*met, *blocked], default=-1)
    for n in range(start, -1, -1):
        node = tape.nodes[n]
        for row, (operand, result, change, as_well) in blocked.get(n, ()):
            if right[result] is not None:
                try:
                    new = change(right[result] + sent.row(result, row), operand, result)
                except Exception:  # one that can't be made here is no reading, whatever it meets
                    new = np.nan
                sent.add_row(operand, row, len(variants), new)
                if not as_well:
                    sent.set_row(result, row, len(variants), -right[result])
        if not tape.active[node.results[0]]:
            continue
        ds = [sent.of.get(v) for v in node.results]
        here = met.get(n, ())
        operands, results = tape.operands(node), tape.results(node)
        if any(d is not None for d in ds):
            back = pull(node.op, operands, results, ds)
        else:
            back = [None] * len(operands)
        if here:
            back = _changed(tape, node, right, ds, back, here, len(variants))
        sent.send(node, back)
    return [sent.of.get(leaf) for leaf in leaves]


def _changed(tape, node, right, ds, back, here, rows):
    # The rows of the variants that are met here: what they send back, less what is right.
    base = [None if right[v] is None else right[v][None] for v in node.results]
    if all(d is None for d in base):
        return back
    usual = whole(tape, node, right_pull(node, tape.operands(node), tape.results(node), base))
    back = [
        b.within(rows, np.shape(tape.values[v])) if isinstance(b, Part) else b
        for b, v in zip(back, node.operands, strict=True)
    ]
    back = [None if b is None else np.array(b) for b in back]
    for row, change in here:
        total = [
            b if d is None else d[row : row + 1] + (0 if b is None else b)
            for b, d in zip(base, ds, strict=True)
        ]
        mine = [
            None if u is None else u + (0 if b is None else b[row : row + 1])
            for u, b in zip(usual, back, strict=True)
        ]
        try:
            changed = change(tape, node, total, mine)
        except Exception:  # one that can't be made here is no reading, whatever it meets
            changed = [None if u is None else np.full_like(u, np.nan) for u in usual]
        for i, (new, old) in enumerate(zip(changed, usual, strict=True)):
            if tape.active[node.operands[i]] and not (new is None and old is None):
                if back[i] is None:
                    back[i] = np.zeros((rows, *np.shape(tape.values[node.operands[i]])))
                back[i][row] = (0 if new is None else new[0]) - (0 if old is None else old[0])
    return back


def whole(tape, node, back):
    """The cotangents of a node's operands, with whole arrays for Parts."""
    return [
        b.within(len(b.value), np.shape(tape.values[v])) if isinstance(b, Part) else b
        for b, v in zip(back, node.operands, strict=True)
    ]


class _Sent:
    """The cotangents that were sent back so far, by the number of the value."""

    def __init__(self, tape, values):
        self.tape, self.values, self.of, self._mine = tape, values, {}, set()

    def send(self, node, back):
        for v, d in zip(node.operands, back, strict=True):
            if d is not None and self.tape.active[v]:
                self.add(v, d)

    def add(self, v, d):
        if v not in self.of and not isinstance(d, Part):
            self.of[v] = d
            return
        if v not in self._mine:
            self._mine.add(v)
            rows = len(d.value if isinstance(d, Part) else d)
            self.of[v] = np.array(self.of.get(v, np.zeros((rows, *np.shape(self.values[v])))))
        if isinstance(d, Part):
            self.of[v][(slice(None), *d.index)] += d.value
        else:
            self.of[v] += d

    def row(self, v, row):
        return self.of[v][row] if v in self.of else 0.0

    def add_row(self, v, row, rows, d):
        self._own(v, rows)[row] += d

    def set_row(self, v, row, rows, d):
        self._own(v, rows)[row] = d

    def _own(self, v, rows):
        if v not in self._mine:
            self._mine.add(v)
            self.of[v] = np.array(self.of.get(v, np.zeros((rows, *np.shape(self.values[v])))))
        return self.of[v]
