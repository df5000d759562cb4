"""Record a program as a tape: its operations one after another, with the values that they made.

Inner functions are written out, a scan is unrolled, and of a cond the branch that it takes stays.
Operations that stem from one place of the source share a site, so that a loop's body is one set of
sites, however often it runs.

Derivation: notebooks/32_checker.ipynb
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from handgrad.check.jaxpr import parts_of_scan
from handgrad.check.naming.local import forward, plain

NODES = 8000  # a scan that would make the tape longer than that stays one operation


class Operation(NamedTuple):
    """What a node does; params are those of its equation, key is the same where the code is."""

    name: str
    params: dict
    eqn: object
    key: object
    cache: dict


class Node(NamedTuple):
    """One operation on the tape; operands and results are numbers of values."""

    op: Operation
    operands: tuple
    results: tuple
    site: int


class Tape:
    """A program that has run once.

    inputs are the numbers of its arguments' leaves, and output that of its result; values holds all
    values, active says which depend on the differentiable inputs, and literals holds those written
    in the code. maker gives the node that makes a value, uses the (node, operand) pairs that read
    it, of_site the nodes of a site, and places its equation in the reader's own code. tried counts
    the numbers that were computed to see which variants can be made.
    """

    def __init__(self, f, at, differentiable):
        """Run f(at); differentiable are the numbers of the leaves that gradients are taken by."""
        closed = jax.make_jaxpr(f)(at)
        self.values, self.active, self.literals = [], [], set()
        self.nodes, self.places, self.tried = [], [], 0
        self._sites, self._cache, self._library, self._within = {}, {}, set(), None
        leaves = [plain(leaf) for leaf in jax.tree.leaves(at)]
        self.inputs = [self._new(x, i in differentiable) for i, x in enumerate(leaves)]
        (self.output,) = self._run(closed, self.inputs, ())
        self.uses = {}
        for n, node in enumerate(self.nodes):
            for i, v in enumerate(node.operands):
                self.uses.setdefault(v, []).append((n, i))
        self.of_site = {}
        for n, node in enumerate(self.nodes):
            self.of_site.setdefault(node.site, []).append(n)
        self.maker = {v: n for n, node in enumerate(self.nodes) for v in node.results}

    def operation(self, site):
        """The name of a site's operation."""
        return self.nodes[self.of_site[site][0]].op.name if site in self.of_site else "a function"

    def operands(self, node, values=None):
        """The values of a node's operands."""
        values = self.values if values is None else values
        return [values[v] for v in node.operands]

    def results(self, node, values=None):
        """The values of a node's results."""
        values = self.values if values is None else values
        return [values[v] for v in node.results]

    def _new(self, value, active=False):
        self.values.append(value)
        self.active.append(bool(active) and _inexact(value))
        return len(self.values) - 1

    def _run(self, jaxpr, args, path):
        jaxpr, consts = (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "consts") else (jaxpr, ())
        known = {
            v: self._new(plain(c)) for v, c in zip(jaxpr.constvars, consts, strict=True)
        } | dict(zip(jaxpr.invars, args, strict=True))
        for number, eqn in enumerate(jaxpr.eqns):
            operands = [self._read(v, known) for v in eqn.invars]
            site = self._site(eqn, number, path)
            results = self._equation(eqn, operands, site)
            known |= dict(zip(eqn.outvars, results, strict=True))
        return [self._read(v, known) for v in jaxpr.outvars]

    def _read(self, v, known):
        if not isinstance(v, Literal):
            return known[v]
        number = self._new(plain(v.val))
        self.literals.add(number)
        return number

    def _site(self, eqn, number, path):
        # Inside a function the number of the equation tells, outside the place in the source.
        key = (path, number) if path else _frames(eqn)
        key = (eqn.primitive.name, key)
        if key not in self._sites:
            self._sites[key] = len(self.places)
            # what stands inside JAX's own functions is said to be where those are called
            library = next((place for place in path if place in self._library), None)
            self.places.append(eqn if library is None else self.places[library])
        return self._sites[key]

    def _equation(self, eqn, operands, site):
        name, params = eqn.primitive.name, eqn.params
        inner = params.get("jaxpr", params.get("call_jaxpr"))
        path = (site,)
        if name in _INNER:
            if _is_library(inner):
                self._library.add(site)
            outer, self._within = self._within, params.get("name") or self._within
            results = self._run(inner, operands, path)
            self._within = outer
            return results
        if name == "cond":
            branch = params["branches"][int(self.values[operands[0]])]
            return self._run(branch, operands[1:], path)
        if name == "scan" and len(self.nodes) + params["length"] * _length(inner) < NODES:
            return self._unrolled(eqn, operands, path)
        if name == "custom_vjp_call" and params["call_jaxpr"].jaxpr.debug_info.func_name == TAP:
            # the taps of a tree's leaves stem from one place, and are several all the same
            self.places.append(self.places[site])
            site = len(self.places) - 1
            return self._add("tap", {}, eqn, operands, site)
        return self._add(name, params, eqn, operands, site)

    def _unrolled(self, eqn, operands, path):
        params, (fixed, carried) = eqn.params, parts_of_scan(eqn)
        consts, carry, xs = (
            operands[:fixed],
            operands[fixed : fixed + carried],
            operands[fixed + carried :],
        )
        times = range(params["length"])
        made = []
        for t in reversed(times) if params["reverse"] else times:
            here = [self._own("take", {"t": t}, [x], (*path, i)) for i, x in enumerate(xs)]
            out = self._run(params["jaxpr"], [*consts, *carry, *here], path)
            carry = out[: len(carry)]
            made.append(out[len(carry) :])
        if params["reverse"]:
            made.reverse()
        ys = zip(*made, strict=True)
        return [*carry, *(self._own("stack", {"axis": 0}, y, (*path, i)) for i, y in enumerate(ys))]

    def _own(self, name, params, operands, key):
        # an operation of the tape's own, at the scan's place
        key = (name, key)
        if key not in self._sites:
            self._sites[key] = len(self.places)
            self.places.append(self.places[key[1][0]])
        return self._add(name, params, None, operands, self._sites[key])[0]

    def _add(self, name, params, eqn, operands, site):
        if name == "max" and self._within == "relu":  # its slope at 0 is 0, not 1/2
            name = "relu"
        op = Operation(name, params, eqn, _key(eqn, params), self._cache)
        values = forward(op, [self.values[v] for v in operands])
        active = any(self.active[v] for v in operands) and name not in _FLAT
        results = tuple(self._new(value, active) for value in values)
        self.nodes.append(Node(op, tuple(operands), results, site))
        return results


_INNER = {
    *("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"),
    "custom_jvp_call",
}
TAP = "_exchange"
_FLAT = {"stop_gradient", "sign", "floor", "ceil", "round", "argmax", "argmin"}


def _inexact(value):
    return jnp.issubdtype(jnp.result_type(value), jnp.inexact)


def _key(eqn, params):
    if eqn is None:
        return None
    try:
        key = eqn.primitive, tuple(sorted(params.items())), *(str(v.aval) for v in eqn.invars)
        hash(key)
    except TypeError:
        return id(eqn)
    return key


def _frames(eqn):
    try:
        codes, places = eqn.source_info.traceback.raw_frames()
        return tuple(zip(map(id, codes), places, strict=True))
    except Exception:  # JAX may keep no source, and may keep it otherwise
        return id(eqn)


def _is_library(closed):
    info = getattr(closed, "jaxpr", closed).debug_info
    return (getattr(info, "func_filename", None) or _JAX).startswith(_JAX)


_JAX = jax.__file__.rpartition("__init__")[0]


def _length(closed):
    return 2 + sum(
        1 if "jaxpr" not in eqn.params else _length(eqn.params["jaxpr"])
        for eqn in getattr(closed, "jaxpr", closed).eqns
    )


def numbers(tape):
    """How many numbers there are on a tape."""
    return sum(np.size(v) for v in tape.values)
