"""Anybody's numbers against jax.grad."""

from functools import cache

import jax
import numpy as np

from handgrad.check.arrays import (
    argument_names,
    as_arrays,
    float_arguments,
    floats_of,
    once,
    other_arguments,
    put,
    scalar,
    traced,
)
from handgrad.check.compare import Judge, born_in, compare
from handgrad.check.jaxpr import birth_of_nan, changes
from handgrad.check.naming.explain import explained
from handgrad.check.naming.variants import Operands, Suspects
from handgrad.check.report import Report
from handgrad.check.rounding import Rounding


def check_gradient(hand, f, /, *args, power=False):
    """Compare numbers with jax.grad of the scalar function f at args.

    hand is one gradient for each float argument (a tuple or list of them), or the gradient itself
    where there is but one. Lists, NumPy and JAX arrays, and trees of them, are welcome.
    With power, it says what it would have caught (report.power holds it in any case).

    Raises:
        GradientMismatch: a gradient is wrong, or cannot be judged at args.
        TypeError: f is not scalar, or not traceable, or no argument is differentiable.
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
    floats = [floats_of(args[i]) for i in which]

    def loss(floats):
        return scalar(f)(*put(args, which, floats))

    gradient = jax.value_and_grad(loss)
    backward = once(gradient)
    with traced("f"):
        value, true = jax.device_get(backward(floats))
    others = other_arguments(args, which)

    def total(at):
        return f(*put(put(args, which, at.floats), others, at.others))

    at = Operands(floats, [args[i] for i in others], {}, {}, {})
    suspects = Suspects(total, at, lambda at: {})
    born = cache(lambda who: birth_of_nan(gradient, floats) if who == "JAX" else None)
    again = lambda floats: backward(floats)[1]  # noqa: E731
    rounding = Rounding(again, lambda one, floats: jax.grad(times(one, loss))(floats), true, floats)
    reason = no_judge(value, loss, floats)
    verdicts, findings = [], []
    for j, (i, mine, theirs) in enumerate(zip(which, hand, true, strict=True)):
        place = suspects.of_argument(j)
        judge = Judge("matches jax.grad", place, findings, born, *rounding.from_(place), reason)
        verdicts += compare("d" + names[i], mine, theirs, judge)
    report = Report(explained(verdicts, findings, suspects), findings)
    return (report.with_power() if power else report).conclude()


def times(one, f):
    """The function one * f, whose gradients are as many times those of f."""
    return lambda *args: one * f(*args)


def no_judge(value, loss, *args):
    """Why a loss of this value judges no gradient, or nothing."""
    if not np.isfinite(value):
        return f"the loss is {value}{born_in(birth_of_nan(loss, *args))}"
    if changes(loss, *args):
        return "f is another function at every call: does it draw random numbers, or count?"
    return ""


def _holds_one(hand, arg):
    # (dx,) does, and so does [dx], unless the list is the gradient of a list
    one = isinstance(hand, tuple | list) and len(hand) == 1
    return one and (type(hand) is tuple or getattr(hand[0], "shape", ()) == np.shape(arg) != ())
