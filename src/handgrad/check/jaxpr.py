"""Look inside a JAX program: where values fork, where a NaN is born, and what roundings may do.

All read the jaxpr, the list of primitive operations that JAX traces a function to.

Derivation: notebooks/32_checker.ipynb
"""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from handgrad.check.arrays import once


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

    def bind(eqn, operands):
        results = _bind(eqn, operands)
        if not found and _finite(operands) and not _finite(results):
            found.append(eqn.primitive.name)
        return results

    _run(_flat(f, *args), jax.tree.leaves(args), bind=bind)
    return found[0] if found else None


def rounding(f, here, *args):
    """How far roundings may move each leaf of here = f(*args): twice the farthest of four draws.

    In a draw each array that goes in, or that an operation has to round, is scaled by 1 plus or
    minus machine epsilon, after which all that follows rounds otherwise, as in Monte Carlo
    arithmetic (Parker 1997). What jumps, such as a sign or the outcome of a comparison, stays as
    it was, so that no other branch is taken; inside a scan it may be.
    """
    closed = _flat(f, *args)
    leaves = jax.tree.leaves(args)

    def otherwise(signs, leaves):
        sign = iter(signs)

        def rounded(as_it_was, moved, operation=None):
            here = next(sign)
            if operation in _JUMPS or not jnp.issubdtype(moved.dtype, jnp.floating):
                return as_it_was, as_it_was
            scale = 1 + here * float(jnp.finfo(moved.dtype).eps)
            exact = operation in _EXACT
            return as_it_was, moved if exact else moved * scale.astype(moved.dtype)

        def side(operands, k):
            return [value[k] if isinstance(value, tuple) else value for value in operands]

        def bind(eqn, operands):
            name = itertools.repeat(eqn.primitive.name)
            return list(map(rounded, *(_bind(eqn, side(operands, k)) for k in (0, 1)), name))

        return side(_run(closed, list(map(rounded, leaves, leaves)), bind=bind), 1)

    def farthest(value, *draws):
        moves = np.abs(np.asarray(draws, "float64") - np.asarray(value, "float64"))
        return 2 * moves.max(initial=0.0, where=np.isfinite(moves))

    count = len(leaves) + sum(len(eqn.outvars) for eqn in closed.jaxpr.eqns)
    signs = np.random.default_rng(8).choice([-1.0, 1.0], size=(4, count))
    run = once(otherwise)
    tree = jax.tree.structure(here)
    return jax.tree.map(farthest, here, *(tree.unflatten(run(row, leaves)) for row in signs))


def _flat(f, *args):
    # The jaxpr of f in which every inner jit has been written out.
    closed = jax.make_jaxpr(lambda *a: f(*a))(*args)
    return jax.make_jaxpr(lambda *a: _run(closed, a))(*jax.tree.leaves(args))


def _bind(eqn, operands):
    if eqn.primitive.name in ("jit", "pjit"):
        return _run(eqn.params["jaxpr"], operands)
    parameters = eqn.primitive.get_bind_params(eqn.params)
    results = eqn.primitive.bind(*operands, **parameters)
    return results if eqn.primitive.multiple_results else [results]


def _run(closed, args, read=lambda place, value: value, bind=_bind):
    # JAX's own interpreter in small. read(place, value) sees every operand; a place is the number
    # of the operation (-1 for the results) and of the operand. bind does the operation.
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(closed.jaxpr.invars, args, strict=True))

    def operands(variables, line):
        return [
            v.val if isinstance(v, Literal) else read((line, i), values[v])
            for i, v in enumerate(variables)
        ]

    for line, eqn in enumerate(closed.jaxpr.eqns):
        values |= dict(zip(eqn.outvars, bind(eqn, operands(eqn.invars, line)), strict=True))
    return operands(closed.jaxpr.outvars, -1)


# Operations that hand floats on as they are, or change no more than their sign.
_EXACT = {
    *("abs", "broadcast_in_dim", "clamp", "concatenate", "copy", "dynamic_slice", "expand_dims"),
    *("dynamic_update_slice", "gather", "max", "min", "neg", "optimization_barrier", "pad"),
    *("reduce_max", "reduce_min", "reshape", "rev", "select_n", "slice", "sort", "split"),
    *("squeeze", "stop_gradient", "transpose"),
}
_JUMPS = {"ceil", "floor", "rem", "round", "sign"}


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
