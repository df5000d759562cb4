"""Anybody's arguments: their names, and which of them are differentiable."""

import inspect
from contextlib import contextmanager
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_leaves, tree_map


def is_float(leaf):
    """Whether a leaf is differentiable."""
    return isinstance(leaf, float) or jnp.issubdtype(getattr(leaf, "dtype", int), jnp.floating)


def as_float64(arg):
    """The argument with its float leaves in float64."""
    return tree_map(lambda a: jnp.asarray(a, "float64") if is_float(a) else a, arg)


def as_arrays(arg):
    """The argument with arrays for leaves: a list of numbers is an array, one of arrays a tree.

    A plain int stays one, so that a function may use it as a size; so do words and functions.
    """
    if isinstance(arg, list) and arg and not any(np.ndim(leaf) for leaf in tree_leaves(arg)):
        arg = np.asarray(arg)
    return tree_map(lambda a: a if is_static(a) else jnp.asarray(a), arg)


def is_static(leaf):
    """Whether a leaf is a plain int, a word or a function, which JAX does not trace."""
    return isinstance(leaf, int | str) or callable(leaf)


def argument_names(f, args):
    """The names of f's parameters, one for each of args."""
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        parameters = ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [p.name for p in parameters if p.kind in positional]
    return [named[i] if i < len(named) else f"arg{i}" for i in range(len(args))]


def float_arguments(names, args):
    """The places of the differentiable arguments.

    Raises:
        TypeError: there is none.

    """
    which = tuple(i for i, arg in enumerate(args) if any(map(is_float, tree_leaves(arg))))
    if not which:
        kinds = ", ".join(
            f"{n} is {getattr(a, 'dtype', type(a).__name__)}"
            for n, a in zip(names, args, strict=True)
        )
        raise TypeError(f"expected a float argument to differentiate by; {kinds or 'got none'}")
    return which


def other_arguments(args, which):
    """The places of the arguments that are arrays, though not differentiable: labels, ids."""
    return [i for i, arg in enumerate(args) if i not in which and hasattr(arg, "dtype")]


def put(args, which, floats):
    """The arguments, with others at the places `which`; of a tree the float leaves alone."""
    full = list(args)
    for i, value in zip(which, floats, strict=True):
        if not any(map(is_float, tree_leaves(args[i]))):
            full[i] = value
            continue
        others = iter(tree_leaves(value))
        full[i] = tree_map(lambda a, others=others: next(others) if is_float(a) else a, args[i])
    return full


def floats_of(arg):
    """The argument with None for each leaf that is not differentiable."""
    return tree_map(lambda a: a if is_float(a) else None, arg)


@contextmanager
def traced(name):
    """Say in one line why JAX cannot trace the function of that name.

    Raises:
        TypeError: it asks for the value of what is being traced.

    """
    try:
        yield
    except jax.errors.TracerArrayConversionError:
        why = "NumPy computes with numbers only; expected jax.numpy where it sees its arguments"
    except jax.errors.ConcretizationTypeError:
        why = "an if, a loop or an int depends on a value; expected jnp.where, or jax.lax.cond"
    else:
        return
    raise TypeError(f"{name}: JAX cannot differentiate it: {why}") from None


def scalar(f):
    """The function f, refused with a TypeError where its value is not one number."""

    def checked(*args):
        value = f(*args)
        if not hasattr(value, "dtype") and not isinstance(value, float):
            raise TypeError(f"expected a scalar loss; got {type(value).__name__}")
        if jnp.shape(value) != ():
            raise TypeError(f"expected a scalar loss; got shape {jnp.shape(value)}")
        return value

    return checked


# What runs once is not worth the compiler's effort to make it fast. Emitters that make fast kernels
# take three times as long to make them; where they can't be turned off, they are all there are.
_QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
if jax.__version_info__ < (0, 11):
    _QUICK["xla_cpu_use_fusion_emitters"] = False
once = partial(jax.jit, compiler_options=_QUICK)
