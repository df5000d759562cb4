"""The plain program inside a function that carries custom derivative rules.

A custom derivative rule stands in a jaxpr as one operation that holds the plain program beside it.
With that in its place, what is left is an oracle that knows nothing of the rule, wherever the rule
stood: under jit, vmap or checkpoint, in a loop, in a method, deep inside a model.

Derivation: notebooks/33_kernels.ipynb
"""

import sys
from pathlib import Path

import jax
from jax.extend.core import ClosedJaxpr
from jax.extend.source_info_util import user_context

from handgrad.check.jaxpr import INNER, bind, evaluate

_JAX = str(Path(jax.__file__).parent / "_src")


def operations(f, *args):
    """The equations of f's jaxpr, and those inside them, though not those inside a kernel."""
    todo = [jax.make_jaxpr(lambda *a: f(*a))(*args)]
    while todo:
        for eqn in todo.pop().eqns:
            yield eqn
            todo += _inside(eqn)


def rules(f, *args):
    """The custom derivative rules in f(*args): by the function's name, whether JAX brings it."""
    found = {(_source(e)[0], not _brought_by_jax(e)) for e in operations(f, *args) if _ruled(e)}
    return {name: not own for name, own in sorted(found)}  # of one name, somebody's own come last


def plain(f, of_jax=False):
    """f without its custom derivative rules. JAX's own are kept, unless of_jax is true."""

    def do(eqn, operands):
        if _ruled(eqn) and (of_jax or not _brought_by_jax(eqn)):
            return evaluate(eqn.params["call_jaxpr"], operands, do=do)
        if eqn.primitive.name in INNER:
            return evaluate(INNER[eqn.primitive.name](eqn), operands, do=do)
        if any(map(_holds_a_rule, _inside(eqn))):
            mended = {key: _mended(value, do) for key, value in eqn.params.items()}
            eqn = eqn.replace(params=mended)
        with user_context(eqn.source_info.traceback):  # it stays on the line where it was written
            return bind(eqn, operands)

    def g(*args):
        closed, shapes = jax.make_jaxpr(lambda *a: f(*a), return_shape=True)(*args)
        results = evaluate(closed, jax.tree.leaves(args), do=do)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return g


def _ruled(eqn):
    return eqn.primitive.name in ("custom_jvp_call", "custom_vjp_call")


def _source(eqn):
    # the name of the function that the rule is for, and its file
    name, _, place = eqn.params["call_jaxpr"].jaxpr.debug_info.func_src_info.partition(" at ")
    return name, place.rpartition(":")[0]


def _brought_by_jax(eqn):
    # Whether it is of JAX's own, which are trusted: relu's says what its slope at 0 is. A rule that
    # somebody has made for jnp.sin has its source in JAX too, where sin has no rule.
    name, file = _source(eqn)
    if not file.startswith(_JAX):
        return False
    known = [m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == file]
    kind = jax.custom_jvp if eqn.primitive.name == "custom_jvp_call" else jax.custom_vjp
    again = any(_ruled(e) and _source(e) == (name, file) for e in eqn.params["call_jaxpr"].eqns)
    return not again and any(isinstance(getattr(m, name, None), kind) for m in known)


def _inside(eqn):
    if eqn.primitive.name == "pallas_call":
        return []
    values = [v for p in eqn.params.values() for v in (p if isinstance(p, tuple | list) else [p])]
    return [value for value in values if hasattr(value, "eqns")]


def _holds_a_rule(jaxpr):
    return any(_ruled(eqn) or any(map(_holds_a_rule, _inside(eqn))) for eqn in jaxpr.eqns)


def _mended(value, do):
    # a parameter of an operation, with other jaxprs for those in it
    if type(value) in (tuple, list):
        return type(value)(_mended(item, do) for item in value)
    if not hasattr(value, "eqns"):
        return value
    closed = value if hasattr(value, "consts") else ClosedJaxpr(value, ())
    other = jax.make_jaxpr(lambda *a: evaluate(closed, a, do=do))(*closed.in_avals)
    return other if hasattr(value, "consts") else other.jaxpr
