"""A call of anybody's function: which of its arguments are differentiated, and others like them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path, tree_leaves, tree_unflatten

from handgrad.check.arrays import argument_names, is_float


class Call(NamedTuple):
    """A call of f as a function of its arrays alone, of which the first are differentiated."""

    xs: list
    names: list  # of those that are differentiated
    owners: list  # the argument that each of xs belongs to
    fill: Callable  # fill(xs) -> args, keywords


def called(f, args, static):
    """The Call f(*args, **static).

    Raises:
        TypeError: no argument is differentiable.

    """
    names, fixed = argument_names(f, args), _declared_static(f)
    leaves, tree = tree_flatten_with_path((tuple(map(_as_array, args)), static))

    def differentiable(path, leaf):
        by_position = path[0].idx == 0 and path[1].idx not in fixed
        return is_float(leaf) and (by_position or hasattr(leaf, "dtype"))

    def name(path):
        return names[path[1].idx] if path[0].idx == 0 else path[1].key

    floats = [i for i, leaf in enumerate(leaves) if differentiable(*leaf)]
    others = [i for i, (_, x) in enumerate(leaves) if i not in floats and hasattr(x, "dtype")]
    if not floats:
        kinds = [f"{name(p)} is {getattr(x, 'dtype', type(x).__name__)}" for p, x in leaves]
        kinds = ", ".join(kinds) or "got none"
        raise TypeError(f"expected a float array to differentiate by; {kinds}")
    paths, values = [path for path, _ in leaves], [leaf for _, leaf in leaves]
    which = [*floats, *others]
    return Call(
        [jnp.asarray(values[i]) for i in which],
        ["d" + name(paths[i]) + keystr(paths[i][2:]) for i in floats],
        [name(paths[i]) for i in which],
        lambda xs: tree_unflatten(tree, _filled(values, which, xs)),
    )


def _filled(values, which, xs):
    full = list(values)
    for i, x in zip(which, xs, strict=True):
        full[i] = x
    return full


def _as_array(arg):
    # a list of numbers is an array, one of arrays a tree
    numbers = tree_leaves(arg) if isinstance(arg, list) else []
    some_float = any(isinstance(leaf, float) for leaf in numbers)
    return np.asarray(arg) if some_float and not any(map(np.ndim, numbers)) else arg


def _declared_static(f):
    # the places that custom_vjp, custom_jvp or jit do not count among the arguments
    places, bound = set(), 0
    while f is not None:
        jitted = getattr(f, "_jit_info", None)
        for found in (getattr(f, "nondiff_argnums", ()), getattr(jitted, "static_argnums", ())):
            places |= {place - bound for place in found}
        bound += len(f.args) if isinstance(f, functools.partial) else hasattr(f, "__func__")
        within = (getattr(f, name, None) for name in ("func", "__func__", "__wrapped__"))
        f = next((g for g in within if g is not None), None)
    return places


def generic(values, rng):
    """Other floats of the same shapes and dtypes, in which nothing is special; then closer ones.

    Numbers of one sign keep it, those between 0 and 1 stay there, and rows that add up to 1 still
    do; a constant may become anything, and zeros and ones together, a mask, stay what they are.
    The closer ones differ from the given by some tenths of each entry.
    """
    yield [_redrawn(value, rng) for value in values]
    yield [_like(value, value * (1 + 0.1 * rng.normal(size=value.shape))) for value in values]


def _redrawn(value, rng):
    x = np.asarray(value, "float64")
    size = np.sqrt((x**2).mean()) if x.any() else 1.0
    constant = x.size > 1 and x.min() == x.max()
    square = x.ndim > 1 and x.shape[-1] == x.shape[-2]
    if not x.size or (np.isin(x, (0, 1)).all() and not constant and x.size > 1 and not square):
        return value
    if constant or (x.min() < 0 < x.max()) or not x.any():
        other = size * rng.normal(size=x.shape)
    elif x.min() < 0:
        other = -size * rng.uniform(0.5, 1.5, size=x.shape)
    elif x.max() > 1:
        other = size * rng.uniform(0.5, 1.5, size=x.shape)
    else:
        other = rng.uniform(0.05, 0.95, size=x.shape)
        if x.ndim and np.allclose(x.sum(-1), 1, atol=1e-2):
            other /= other.sum(-1, keepdims=True)
    return _like(value, other)


def _like(value, other):
    # a Python float has no dtype of its own, and must not get one
    weak = value.weak_type and not value.shape
    return jnp.asarray(float(other)) if weak else jnp.asarray(other, value.dtype)
