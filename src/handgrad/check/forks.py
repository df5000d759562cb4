"""Look inside a JAX program: where a value is used more than once, and where a NaN is born.

Both read the jaxpr, the list of primitive operations that JAX traces a function to.
"""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal


def gated(f, *args):
    """f again as g(gates, *args): gates[k] multiplies the cotangent that use k sends back.

    With all gates 1 it is f; with one of them 0, one branch of a fan-out sends nothing back.
    Returns g and, for each use, the number of the value that is used.
    """
    closed = _flat(f, *args)
    uses = _uses(closed)
    tree = jax.tree.structure(jax.eval_shape(lambda *a: f(*a), *args))

    def g(gates, *args):
        def read(place, value):
            return _gate(value, gates[uses[place][0]]) if place in uses else value

        return jax.tree.unflatten(tree, _run(closed, jax.tree.leaves(args), read))

    return g, [value for _, value in sorted(uses.values())]


def birth_of_nan(f, *args):
    """The operation of f(*args) that makes the first NaN or infinity of finite numbers, or None."""
    found = []

    def seen(name, operands, results):
        if not found and _finite(operands) and not _finite(results):
            found.append(name)

    _run(_flat(f, *args), jax.tree.leaves(args), lambda _, value: value, seen)
    return found[0] if found else None


def _flat(f, *args):
    # The jaxpr of f in which every inner jit has been written out.
    closed = jax.make_jaxpr(lambda *a: f(*a))(*args)
    leaves = jax.tree.leaves(args)
    return jax.make_jaxpr(lambda *a: _run(closed, a, lambda _, value: value))(*leaves)


def _run(closed, args, read, seen=lambda name, operands, results: None):
    # JAX's own interpreter in small. read(place, value) sees every operand; a place is the number
    # of the operation (-1 for the results) and of the operand.
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(closed.jaxpr.invars, args, strict=True))

    def operands(variables, line):
        return [
            v.val if isinstance(v, Literal) else read((line, i), values[v])
            for i, v in enumerate(variables)
        ]

    for line, eqn in enumerate(closed.jaxpr.eqns):
        given = operands(eqn.invars, line)
        if eqn.primitive.name in ("jit", "pjit"):
            results = _run(eqn.params["jaxpr"], given, lambda _, value: value, seen)
        else:
            parameters = eqn.primitive.get_bind_params(eqn.params)
            results = eqn.primitive.bind(*given, **parameters)
            results = results if eqn.primitive.multiple_results else [results]
            seen(eqn.primitive.name, given, results)
        values |= dict(zip(eqn.outvars, results, strict=True))
    return operands(closed.jaxpr.outvars, -1)


def _uses(closed):
    # place -> (its number, the number of the value used there), for values with several uses
    lines = [(line, eqn.invars) for line, eqn in enumerate(closed.jaxpr.eqns)]
    places = [
        ((line, i), v)
        for line, variables in [*lines, (-1, closed.jaxpr.outvars)]
        for i, v in enumerate(variables)
        if not isinstance(v, Literal) and jnp.issubdtype(v.aval.dtype, jnp.floating)
    ]
    times = Counter(v for _, v in places)
    numbers = {v: n for n, v in enumerate(times)}
    forked = [(place, v) for place, v in places if times[v] > 1]
    return {place: (k, numbers[v]) for k, (place, v) in enumerate(forked)}


def _finite(arrays):
    numbers = [a for a in arrays if jnp.issubdtype(jnp.result_type(a), jnp.inexact)]
    return all(np.isfinite(a).all() for a in numbers)


@jax.custom_vjp
def _gate(value, gate):
    return value


_gate.defvjp(
    lambda value, gate: (value, gate),
    lambda gate, d: ((d * gate).astype(d.dtype), jnp.zeros_like(gate)),
)
