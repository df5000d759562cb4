"""Walk a tape backwards, with local rules replaced.

A walk takes many variants of the backward pass at once, a row each. Since all rules are linear in
the cotangents, a row holds only how far its variant differs from the right backward pass: it starts
where its rule is replaced, and ends where nothing is left of it.

Derivation: notebooks/32_checker.ipynb
"""

from typing import NamedTuple

import numpy as np

from handgrad.check.naming.local import Part, product_pull, pull


class Met(NamedTuple):
    """A node that a variant meets: ds arrive, and back would be sent, each with one row."""

    tape: object
    node: object
    ds: list
    back: list

    @property
    def operands(self):
        """The values that the node reads."""
        return self.tape.operands(self.node)

    @property
    def result(self):
        """The value that it makes, the first where there are several."""
        return self.tape.values[self.node.results[0]]

    def again(self, ds=None, operands=None, result=None):
        """What the node would send back, had it met these."""
        results = self.tape.results(self.node) if result is None else [result]
        operands = self.operands if operands is None else operands
        ds = self.ds if ds is None else ds
        return _whole(self.tape, self.node, pull(self.node.op, operands, results, ds))


def backward(tape, values=None, replaced=None, across=None):
    """The right cotangents: for each value an array, or None where nothing is sent back.

    values stand for those of the tape (a forward pass with something changed). replaced maps nodes
    to their own pull(operands, results, ds), and across maps one to (x, rule), by which what
    arrives there goes to the value x at once.
    """
    values = tape.values if values is None else values
    replaced, across = replaced or {}, across or {}
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
        else:
            rule = replaced.get(n)
            sent.send(node, (rule or _right_pull(node))(operands, results, ds))
    return [None if d is None else d[0] for d in map(sent.of.get, range(len(values)))]


def differences(tape, right, variants, leaves, thin=None):
    """How far each variant moves the gradients: for each leaf an array of rows, or None.

    right are the cotangents of the right backward pass, leaves the numbers of the values whose
    cotangents are judged; of those in thin, {leaf: places}, only these places along the first axis.
    A variant has hits, {node: change}, where change(Met) gives the cotangents of the operands; and
    it may have blocks, {node: (x, o, change, as_well)}: before the node, what arrives at o goes to
    x, changed, and nothing is left for what stands between unless it goes there as well.
    """
    thin, rows = thin or {}, len(variants)
    sent = _Sent(tape, tape.values, thin)
    met, blocked = {}, {}
    for row, variant in enumerate(variants):
        for n, change in variant.hits.items():
            met.setdefault(n, []).append((row, change))
        for n, block in variant.blocks.items():
            blocked.setdefault(n, []).append((row, *block))
    for n in range(max([*met, *blocked], default=-1), -1, -1):
        node = tape.nodes[n]
        for row, x, o, change, as_well in blocked.get(n, ()):
            if right[o] is not None:
                arrived = right[o] + (sent.of[o][row] if o in sent.of else 0.0)
                sent.rows_of(x, rows)[row] += sent.cut(x, _tried(change, arrived, x, o))
                if not as_well:
                    sent.rows_of(o, rows)[row] = -right[o]
        if not tape.active[node.results[0]]:
            continue
        ds = [sent.of.get(v) for v in node.results]
        back = [None] * len(node.operands)
        if any(d is not None for d in ds):
            back = _thin_pull(tape, node, ds, thin)
        if n in met:
            back = _changed(tape, node, right, ds, back, met[n], rows, thin)
        sent.send(node, back)
        for v in node.results:
            sent.of.pop(v, None)
    return [sent.of.get(leaf) for leaf in leaves]


def _tried(change, *operands):
    try:
        return change(*operands)
    except Exception:  # one that can't be made here is no reading, whatever it meets
        return np.nan


def _changed(tape, node, right, ds, back, here, rows, thin):
    # The rows of the variants that are met here: what they send back, less what is right.
    base = [None if right[v] is None else right[v][None] for v in node.results]
    if all(d is None for d in base):
        return back
    usual = _whole(tape, node, _thin_pull(tape, node, base, thin, taken=True))
    back = [None if b is None else np.array(b) for b in _whole(tape, node, back)]
    linear = [b is not None for b in back]
    for row, change in here:
        arrived = [
            b if d is None else d[row : row + 1] + (0 if b is None else b)
            for b, d in zip(base, ds, strict=True)
        ]
        mine = [u + b[row] if some else u for u, b, some in zip(usual, back, linear, strict=True)]
        changed = _tried(change, Met(tape, node, arrived, mine))
        if changed is np.nan:
            changed = [None if u is None else np.full_like(u, np.nan) for u in usual]
        for i, (v, new, old) in enumerate(zip(node.operands, changed, usual, strict=True)):
            if tape.active[v] and not (new is None and old is None):
                if v in thin and new is not None and len(new[0]) > len(thin[v]):
                    new = new[:, thin[v]]
                d = (0 if new is None else new[0]) - (0 if old is None else old[0])
                back[i] = np.zeros((rows, *d.shape)) if back[i] is None else back[i]
                back[i][row] = d
    return back


def _whole(tape, node, back):
    # whole arrays for Parts
    return [
        b.within(len(b.value), np.shape(tape.values[v])) if isinstance(b, Part) else b
        for b, v in zip(back, node.operands, strict=True)
    ]


def _right_pull(node):
    # A tap that is taken hands on the reader's own cotangent: a constant, in no difference.
    def pulled(operands, results, ds):
        back = pull(node.op, operands, results, ds)
        if node.op.name == "tap" and operands[0]:
            back[1] = operands[3][None]
        return back

    return pulled


def _thin_pull(tape, node, ds, thin, taken=False):
    operands, results = tape.operands(node), tape.results(node)
    if node.op.name == "dot_general" and thin.keys() & set(node.operands):
        return [
            product_pull(node.op.params, ds[0], operands, k, thin.get(v))
            if tape.active[v]
            else None
            for k, v in enumerate(node.operands)
        ]
    if taken:
        return _right_pull(node)(operands, results, ds)
    return pull(node.op, operands, results, ds)


def most_at_once(tape, right, thin=()):
    """How many numbers the cotangents of one variant hold at the most."""
    held, now, most = set(), 0, 0
    sizes = [0 if d is None or v in thin else d.size for v, d in enumerate(right)]
    for node in reversed(tape.nodes):
        new = [v for v in dict.fromkeys(node.operands) if sizes[v] and v not in held]
        held.update(new)
        now += sum(sizes[v] for v in new)
        most = max(most, now)
        now -= sum(sizes[v] for v in node.results if v in held)
    return most


class _Sent:
    """The cotangents that were sent back so far, by the number of the value."""

    def __init__(self, tape, values, thin=None):
        self.tape, self.values, self.thin = tape, values, thin or {}
        self.of, self._mine = {}, set()

    def send(self, node, back):
        for v, d in zip(node.operands, back, strict=True):
            if d is not None and self.tape.active[v]:
                self.add(v, d)

    def add(self, v, d):
        if v not in self.of and not isinstance(d, Part):
            self.of[v] = d  # not to be written into: it may be another value's too
        elif isinstance(d, Part):
            self.rows_of(v, len(d.value))[(slice(None), *d.index)] += d.value
        else:
            self.rows_of(v, len(d))[...] += d

    def rows_of(self, v, rows):
        """The array of a value, to be written into."""
        if v not in self._mine or v not in self.of:
            shape = np.shape(self.values[v])
            if v in self.thin:
                shape = len(self.thin[v]), *shape[1:]
            self._mine.add(v)
            self.of[v] = np.array(self.of[v]) if v in self.of else np.zeros((rows, *shape))
        return self.of[v]

    def cut(self, v, d):
        """The places of one row that are kept."""
        return d[self.thin[v]] if v in self.thin and np.ndim(d) else d
