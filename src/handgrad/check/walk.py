"""Walk a tape backwards, with local rules replaced.

A walk takes many variants of the backward pass at once, a row each. Since all rules are linear in
the cotangents, a row holds only how far its variant differs from the right backward pass: it starts
where its rule is replaced, and ends where nothing is left of it.

Derivation: notebooks/32_checker.ipynb
"""

import numpy as np

from handgrad.check.local import Part, product_pull, pull


def backward(tape, values=None, replaced=None, across=None):
    """The right cotangents: for each value an array, or None where nothing is sent back.

    values stands for those of the tape (a forward pass with something changed), and replaced maps
    nodes to their own pull(operands, results, ds); across maps one to (x, rule), by which what
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
            continue
        rule = replaced.get(n)
        back = rule(operands, results, ds) if rule else right_pull(node, operands, results, ds)
        sent.send(node, back)
    return [None if d is None else d[0] for d in map(sent.of.get, range(len(values)))]


def right_pull(node, operands, results, ds):
    """What a node sends back: a tap that is taken the reader's own cotangent."""
    back = pull(node.op, operands, results, ds)
    if node.op.name == "tap" and operands[0]:
        back[1] = operands[3][None]
    return back


def differences(tape, right, variants, leaves, thin=None):
    """How far each variant moves the gradients: for each leaf an array of rows, or None.

    right are the cotangents of the right backward pass, leaves the numbers of the values whose
    cotangents are judged; of those in thin, {leaf: places}, only these places along the first axis.
    A variant has hits, {node: change}, where change(tape, node, ds, back)
    gives the cotangents of the node's operands, from those of its results and what the node would
    send back; and
    it may have blocks, {node: (x, o, change, as_well)}: before the node, what arrives at o goes to
    x, changed, and nothing is left for what stands between unless it goes there as well.
    """
    thin = thin or {}
    sent = _Sent(tape, tape.values, thin)
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
        if any(d is not None for d in ds):
            back = _thin_pull(tape, node, ds, thin)
        else:
            back = [None] * len(node.operands)
        if here:
            back = _changed(tape, node, right, ds, back, here, len(variants), thin)
        sent.send(node, back)
        for v in node.results:
            sent.of.pop(v, None)
    return [sent.of.get(leaf) for leaf in leaves]


def _changed(tape, node, right, ds, back, here, rows, thin):
    # The rows of the variants that are met here: what they send back, less what is right.
    base = [None if right[v] is None else right[v][None] for v in node.results]
    if all(d is None for d in base):
        return back
    usual = whole(tape, node, _thin_pull(tape, node, base, thin, right_pull))
    back = [None if b is None else np.array(b) for b in whole(tape, node, back)]
    linear = [b is not None for b in back]
    for row, change in here:
        total = [
            b if d is None else d[row : row + 1] + (0 if b is None else b)
            for b, d in zip(base, ds, strict=True)
        ]
        mine = [u + b[row] if some else u for u, b, some in zip(usual, back, linear, strict=True)]
        try:
            changed = change(tape, node, total, mine)
        except Exception:  # one that can't be made here is no reading, whatever it meets
            changed = [None if u is None else np.full_like(u, np.nan) for u in usual]
        for i, (new, old) in enumerate(zip(changed, usual, strict=True)):
            v = node.operands[i]
            if tape.active[v] and not (new is None and old is None):
                if v in thin and new is not None and len(new[0]) > len(thin[v]):
                    new = new[:, thin[v]]
                d = (0 if new is None else new[0]) - (0 if old is None else old[0])
                if back[i] is None:
                    back[i] = np.zeros((rows, *np.shape(d)))
                back[i][row] = d
    return back


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


def _thin_pull(tape, node, ds, thin, usual=None):
    operands, results = tape.operands(node), tape.results(node)
    if node.op.name == "dot_general" and thin.keys() & set(node.operands):
        places = [thin.get(v) for v in node.operands]
        return [
            product_pull(node.op.params, ds[0], operands, k, places[k])
            if tape.active[node.operands[k]]
            else None
            for k in (0, 1)
        ]
    if usual is not None:
        return usual(node, operands, results, ds)
    return pull(node.op, operands, results, ds)


def merged(*several):
    """Variants made at once, each a pair of one and how often its change counts; or None."""
    hits, blocks, names, words = {}, {}, [], []
    for variant, c in several:
        for n, change in variant.hits.items():
            hits.setdefault(n, []).append((change, c))
        if blocks.keys() & variant.blocks.keys():
            return None
        blocks |= variant.blocks
        own = ("sign",) if c == 2 else variant.names
        names += [name for name in own if name not in names]
        what = {1.0: " is left out", 2.0: " has the wrong sign", -1.0: " counts 2 times"}
        free = variant.free and not variant.any
        words.append((variant.site, variant.words + (what[c] if free else "")))

    def all_of(changes):
        def change(tape, node, ds, back):
            total = list(back)
            for one, c in changes:
                new = one(tape, node, ds, back)
                for i, (n, b) in enumerate(zip(new, back, strict=True)):
                    if n is not b:
                        moved = c * ((0 if n is None else n) - (0 if b is None else b))
                        total[i] = (0 if total[i] is None else total[i]) + moved
            return total

        return change

    hits = {n: all_of(changes) for n, changes in hits.items()}
    rank = 3 + sum(variant.rank for variant, _ in several)
    first = several[0][0]
    return first._replace(
        names=tuple(names), words=tuple(words), hits=hits, blocks=blocks, free=False, rank=rank
    )


def whole(tape, node, back):
    """The cotangents of a node's operands, with whole arrays for Parts."""
    return [
        b.within(len(b.value), np.shape(tape.values[v])) if isinstance(b, Part) else b
        for b, v in zip(back, node.operands, strict=True)
    ]


class _Sent:
    """The cotangents that were sent back so far, by the number of the value."""

    def __init__(self, tape, values, thin=()):
        self.tape, self.values, self.of, self._mine = tape, values, {}, set()
        self.thin = thin

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
            self.of[v] = self._zeros(v, rows) if v not in self.of else np.array(self.of[v])
        if isinstance(d, Part):
            self.of[v][(slice(None), *d.index)] += d.value
        else:
            self.of[v] += d

    def row(self, v, row):
        return self.of[v][row] if v in self.of else 0.0

    def add_row(self, v, row, rows, d):
        thin = v in self.thin and np.ndim(d) and len(d) > len(self.thin[v])
        self._own(v, rows)[row] += d[self.thin[v]] if thin else d

    def set_row(self, v, row, rows, d):
        self._own(v, rows)[row] = d

    def _own(self, v, rows):
        if v not in self._mine:
            self._mine.add(v)
            self.of[v] = self._zeros(v, rows) if v not in self.of else np.array(self.of[v])
        return self.of[v]

    def _zeros(self, v, rows):
        shape = np.shape(self.values[v])
        return np.zeros((rows, len(self.thin[v]), *shape[1:]) if v in self.thin else (rows, *shape))
