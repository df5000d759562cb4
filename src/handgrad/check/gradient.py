"""Anybody's numbers against jax.grad."""

from functools import cache

import jax
import numpy as np
from jax.tree_util import tree_leaves

from handgrad.check.arrays import (
    argument_names,
    as_arrays,
    float_arguments,
    once,
    other_arguments,
    put,
    scalar,
)
from handgrad.check.compare import Judge, compare, noise
from handgrad.check.explain import explained
from handgrad.check.jaxpr import birth_of_nan, rounding
from handgrad.check.report import Report
from handgrad.check.variants import Operands, Suspects


def check_gradient(hand, f, /, *args):
    """Compare numbers with jax.grad of the scalar function f at args.

    hand is one gradient for each float argument (a tuple or list of them), or the gradient itself
    where there is but one. Lists, NumPy and JAX arrays, and trees of them, are welcome.

    Raises:
        GradientMismatch: a gradient is wrong.
        TypeError: f is not scalar, or no argument is differentiable.
        ValueError: hand does not hold one gradient for each float argument.

    """
    args = tuple(as_arrays(arg) for arg in args)
    names = argument_names(f, args)
    which = float_arguments(names, args)
    if len(which) == 1 and not _holds_one(hand, args[which[0]]):
        hand = (hand,)
    if not isinstance(hand, tuple | list) or len(hand) != len(which):
        got = len(hand) if isinstance(hand, tuple | list) else 1
        wanted = ", ".join("d" + names[i] for i in which)
        raise ValueError(f"hand: expected {len(which)} gradients ({wanted}); got {got}")
    floats = [args[i] for i in which]

    def loss(floats):
        return scalar(f)(*put(args, which, floats))

    gradient = jax.value_and_grad(loss)
    backward = once(gradient)
    value, true = backward(floats)
    others = other_arguments(args, which)

    def total(at):
        return f(*put(put(args, which, at.floats), others, at.others))

    at = Operands(floats, [args[i] for i in others], {}, {}, {})
    suspects = Suspects(total, at, lambda at: {})
    born = cache(lambda who: birth_of_nan(gradient, floats) if who == "JAX" else None)
    measured = cache(lambda: rounding(jax.grad(loss), true, floats))
    verdicts, findings = [], []
    for j, (i, mine, theirs) in enumerate(zip(which, hand, true, strict=True)):
        judge = Judge(
            noise(value, args[i]),
            "matches jax.grad",
            suspects.of_argument(j),
            findings,
            born,
            lambda leaf, j=j: tree_leaves(measured()[j])[leaf],
        )
        verdicts += compare("d" + names[i], mine, theirs, judge)
    return Report(explained(verdicts, findings, suspects)).conclude()


def _holds_one(hand, arg):
    # (dx,) does, and so does [dx], unless the list is the gradient of a list
    one = isinstance(hand, tuple | list) and len(hand) == 1
    return one and (type(hand) is tuple or getattr(hand[0], "shape", ()) == np.shape(arg) != ())
