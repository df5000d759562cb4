"""Look inside a JAX program: run it operation by operation, see where a NaN is born.

All read the jaxpr, the list of primitive operations that JAX traces a function to.

Derivation: notebooks/32_checker.ipynb
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal


def birth_of_nan(f, *args):
    """The operation of f(*args) that makes the first NaN or infinity of finite numbers, or None."""
    found = []

    def watched(eqn, operands):
        results = bind(eqn, operands)
        if not found and _finite(operands) and not _finite(results):
            found.append(eqn.primitive.name)
        return results

    evaluate(flat(f, *args), jax.tree.leaves(args), do=watched)
    return found[0] if found else None


def changes(f, *args):
    """Whether f is another program when it is traced again: it draws random numbers, or counts."""
    # A fresh function each time: JAX does not run the body again of one that it has traced.
    first, again = (jax.make_jaxpr(lambda *a: f(*a))(*args) for _ in range(2))
    texts = [re.sub(r"0x[0-9a-f]+", "", str(closed)) for closed in (first, again)]
    return texts[0] != texts[1] or not all(map(_same, first.consts, again.consts))


def _same(a, b):
    # random keys have no numbers to compare; what is drawn from them is part of the program
    known = isinstance(jnp.result_type(a), np.dtype)
    return not known or np.array_equal(a, b, equal_nan=jnp.issubdtype(a.dtype, jnp.inexact))


def flat(f, *args):
    """The jaxpr of f in which every inner jit has been written out."""
    closed = jax.make_jaxpr(lambda *a: f(*a))(*args)
    return jax.make_jaxpr(lambda *a: evaluate(closed, a))(*jax.tree.leaves(args))


INNER = {"jit": lambda eqn: eqn.params["jaxpr"], "pjit": lambda eqn: eqn.params["jaxpr"]}


def bind(eqn, operands):
    """The results of one operation of a jaxpr."""
    if eqn.primitive.name in INNER:
        return evaluate(INNER[eqn.primitive.name](eqn), operands)
    parameters = eqn.primitive.get_bind_params(eqn.params)
    results = eqn.primitive.bind(*operands, **parameters)
    return results if eqn.primitive.multiple_results else [results]


def parts_of_scan(eqn):
    """How many of a scan's operands are constants of the loop, and how many it carries."""
    inner = eqn.params["jaxpr"].jaxpr

    def stacked(outer, inner):
        # what goes in, or comes out, step by step has one axis more outside of the loop
        return sum(len(o.aval.shape) > len(i.aval.shape) for o, i in zip(outer, inner, strict=True))

    carried = len(eqn.outvars) - stacked(eqn.outvars, inner.outvars)
    return len(eqn.invars) - carried - stacked(eqn.invars, inner.invars), carried


def evaluate(closed, args, do=bind):
    """The results of a jaxpr, operation by operation: JAX's own interpreter in small.

    do(eqn, operands) does an operation.
    """
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(closed.jaxpr.invars, args, strict=True))

    def operands(variables):
        return [v.val if isinstance(v, Literal) else values[v] for v in variables]

    for eqn in closed.jaxpr.eqns:
        values |= dict(zip(eqn.outvars, do(eqn, operands(eqn.invars)), strict=True))
    return operands(closed.jaxpr.outvars)


def _finite(arrays):
    numbers = [a for a in arrays if jnp.issubdtype(jnp.result_type(a), jnp.inexact)]
    return all(np.isfinite(a).all() for a in numbers)
