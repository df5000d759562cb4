"""What a program says of itself: its sizes, constants and ids, and what depends on what.

All is read from the jaxpr, so what a loss closes over counts as much as what it is given.

Derivation: notebooks/32_checker.ipynb
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal
from jax.lax import GatherScatterMode

from handgrad.check.jaxpr import bind, evaluate, flat


class Program:
    """The program of f(*args), a scalar, as a list of operations on arrays."""

    def __init__(self, f, *args):
        """Trace it; nothing runs."""
        self.args = args
        self.closed = flat(f, *args)

    def numbers(self):
        """How many numbers it holds: a bound on its memory, and a measure of its time."""
        return sum(map(np.size, jax.tree.leaves(self.args))) + _numbers(self.closed.jaxpr)

    def sizes(self):
        """The sizes of all arrays along each axis, and over several axes: what an N may be."""
        jaxpr = self.closed.jaxpr
        variables = [*jaxpr.constvars, *jaxpr.invars, *(v for e in jaxpr.eqns for v in e.outvars)]
        return sizes(getattr(v.aval, "shape", ()) for v in variables)

    def constants(self):
        """The numbers that stand in it, as a divisor or a factor: a set of positive floats."""
        found = set()
        for eqn in _equations(self.closed.jaxpr):
            if eqn.primitive.name in ("div", "mul"):
                scalars = [float(v.val) for v in eqn.invars if _is_scalar(v)]
                found.update(abs(c) for c in scalars if c and math.isfinite(c))
        return found

    def discrete(self):
        """The arrays of ids, labels and masks that it closes over, by place among its constants."""
        return {k: np.asarray(c) for k, c in enumerate(self.closed.consts) if is_discrete(c)}

    def picks(self, variable):
        """Whether the integers in a variable pick entries, as ids do, and are not only compared."""
        jaxpr, those = self.closed.jaxpr, {variable}
        for eqn in jaxpr.eqns:
            if any(v in those for v in eqn.invars if not isinstance(v, Literal)):
                if eqn.primitive.name in ("eq", "gather", "dynamic_slice"):
                    return True
                kinds = (v for v in eqn.outvars if not jnp.issubdtype(v.aval.dtype, jnp.inexact))
                those.update(kinds)
        return False

    def compares(self, variable):
        """Whether the integers in a variable are compared, as lengths are, or are truth values.

        Others, such as counts, are numbers that are reckoned with.
        """
        jaxpr, those = self.closed.jaxpr, {variable}
        for eqn in jaxpr.eqns:
            if any(v in those for v in eqn.invars if not isinstance(v, Literal)):
                if any(jnp.issubdtype(v.aval.dtype, jnp.bool_) for v in (*eqn.outvars, *those)):
                    return True
                kinds = (v for v in eqn.outvars if not jnp.issubdtype(v.aval.dtype, jnp.inexact))
                those.update(kinds)
        return False

    def run(self, args, discrete):
        """Its value at other arguments, and with others of the arrays that it closes over.

        An id out of range picks zeros, and sends nothing back.
        """
        consts = [discrete.get(k, c) for k, c in enumerate(self.closed.consts)]
        closed = ClosedJaxpr(self.closed.jaxpr, consts)
        return evaluate(closed, jax.tree.leaves(args), do=_bind_in_range)[0]


def is_discrete(array):
    """Whether it is an array of integers or of truth values."""
    dtype = jnp.result_type(array)
    return bool(np.ndim(array)) and (
        jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)
    )


def _bind_in_range(eqn, operands):
    if eqn.primitive.name != "gather":
        return bind(eqn, operands)
    out_of_range = {"mode": GatherScatterMode.FILL_OR_DROP, "fill_value": 0}
    return [eqn.primitive.bind(*operands, **eqn.params | out_of_range)]


def sizes(shapes):
    """The sizes along each axis of some shapes, over all but the last, and over all."""
    found = {int(n) for s in shapes for n in (*s, np.prod(s[:-1]), np.prod(s))}
    return tuple(sorted(found - {0, 1}))


def dependence(f, *args):
    """For each leaf of f(*args), the numbers of the leaves of args on which it depends."""
    jaxpr = flat(f, *args).jaxpr
    known = {v: 1 << k for k, v in enumerate(jaxpr.invars)}  # sets, as the bits of an integer

    def of(variables):
        bits = 0
        for v in variables:
            bits |= 0 if isinstance(v, Literal) else known.get(v, 0)
        return bits

    for eqn in jaxpr.eqns:
        known |= dict.fromkeys(eqn.outvars, of(eqn.invars))
    return [{k for k in range(len(jaxpr.invars)) if of([v]) >> k & 1} for v in jaxpr.outvars]


def _is_scalar(v):
    return isinstance(v, Literal) and not np.shape(v.val) and np.isreal(v.val)


def _inner(eqn):
    # the jaxprs of an operation's body: of a scan, a loop, a custom rule
    for value in eqn.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for body in _inner(eqn):
            yield from _equations(body)


def _numbers(jaxpr):
    total = 0
    for eqn in jaxpr.eqns:
        results = sum(math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars)
        total += results * (1 + _terms(eqn) // 32)  # a product's terms are cheap, not free
        total += eqn.params.get("length", 1) * sum(map(_numbers, _inner(eqn)))
    return total


def _terms(eqn):
    # how many products are added up in an entry of the result
    if eqn.primitive.name == "dot_general":
        (axes, _), _ = eqn.params["dimension_numbers"]
        return math.prod(eqn.invars[0].aval.shape[a] for a in axes)
    if eqn.primitive.name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        return math.prod(kernel) // kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 0
