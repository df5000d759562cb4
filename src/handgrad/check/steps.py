"""Judge each step of a derivation given the steps before it.

Derivation: notebooks/32_checker.ipynb
"""

import inspect
import itertools
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_leaves, tree_map, tree_structure

from handgrad.check.arrays import (
    argument_names,
    as_arrays,
    float_arguments,
    floats_of,
    is_float,
    once,
    other_arguments,
    put,
    scalar,
    traced,
)
from handgrad.check.compare import Judge, compare, right, unjudged
from handgrad.check.gradient import no_judge, times
from handgrad.check.jaxpr import birth_of_nan
from handgrad.check.naming.explain import explained
from handgrad.check.naming.variants import Operands, Suspects, exchanged
from handgrad.check.report import RIGHT, WRONG, Report
from handgrad.check.rounding import Rounding

_recorders = []


def tap(name, value):
    """Mark an intermediate of a loss for check_steps; otherwise return value as it is."""
    return _recorders[-1](name, value) if _recorders else value


def check_steps(loss, /, *, at, power=False, **steps):
    """Judge each step of a derivation given the steps before it, (32.6).

    loss(*at) is a scalar function whose intermediates are marked with tap. Each step is named d + a
    tap's name or d + the name of one of loss's arguments. On the way back every tap hands on the
    reader's own cotangent, so a mistake is blamed on the step that makes it and on no other. With
    power it says what it would have caught.

    Raises:
        GradientMismatch: a step is wrong, or cannot be judged; names the one to mend first.
        TypeError: at is not a tuple, or loss(*at) is not scalar or not traceable.
        ValueError: no step is given, a step has no tap or argument, a name is tapped twice,
            or a tap is complex.

    """
    if not isinstance(at, tuple):
        raise TypeError(f"at: expected a tuple of loss's arguments; got {type(at).__name__}")
    loss = inspect.unwrap(loss)  # a jitted loss, traced before, would not run its taps again
    at = tuple(as_arrays(arg) for arg in at)
    names = argument_names(loss, at)
    which = float_arguments(names, at)
    steps = {step: _as_given(mine) for step, mine in steps.items()}
    taps = _find_taps(loss, at, which, names)
    arguments = {names[i]: j for j, i in enumerate(which)}
    known = ["d" + name for name in (*taps, *arguments)]
    if not steps:
        raise ValueError(f"expected steps to judge; loss has {', '.join(known)}")
    for step in steps:
        if step not in known:
            raise ValueError(f"{step}: no such step; loss has {', '.join(known)}")

    taken = {
        name: "d" + name in steps and _same_shapes(steps["d" + name], value)
        for name, value in taps.items()
    }
    slots = tree_map(jnp.zeros_like, taps)
    own = {
        name: tree_map(lambda v, d: jnp.asarray(d, v.dtype), taps[name], steps["d" + name])
        if taken[name]
        else slots[name]
        for name in taps
    }
    others = other_arguments(at, which)
    here = Operands([floats_of(at[i]) for i in which], [at[i] for i in others], slots, own, taken)

    def run(here):
        # the loss, and what its taps see
        seen = {}

        def recorder(name, value):
            if name in here.slots:
                value = seen[name] = exchanged(value, here, name)
            return value

        arguments = put(put(at, which, here.floats), others, here.others)
        return _recorded(recorder, scalar(loss), *arguments), seen

    def total(here):
        return run(here)[0]

    def of(floats, slots, taken):
        return total(here._replace(floats=floats, slots=slots, taken=taken))

    backward = once(jax.value_and_grad(of, argnums=(0, 1)))

    @cache
    def gradients(*mine):
        # given the reader's own cotangents of the taps `mine`
        given = {name: np.asarray(name in mine) for name in taps}
        value, (of_floats, of_slots) = jax.device_get(backward(here.floats, slots, given))
        by_name = {n: of_floats[j] for n, j in arguments.items()} | of_slots
        return value, by_name, (of_floats, of_slots)

    with traced("loss"):
        value, true, _ = gradients()
    _, given, here_given = gradients(*(name for name in taps if taken[name]))
    suspects = Suspects(total, here, lambda here: run(here)[1])

    @cache
    def born(who):
        none_taken = dict.fromkeys(taps, np.False_)
        return birth_of_nan(jax.grad(of), here.floats, slots, none_taken) if who == "JAX" else None

    rounding = Rounding(
        lambda *operands: backward(*operands)[1],
        lambda one, *operands: jax.grad(times(one, of), argnums=(0, 1))(*operands),
        here_given,
        *(here.floats, slots, {name: np.asarray(taken[name]) for name in taps}),
    )
    reason = no_judge(value, lambda floats: run(here._replace(floats=floats))[0], here.floats)

    def judge(name, words="", findings=None):
        place = suspects.of_tap(name) if name in taps else suspects.of_argument(arguments[name])
        measured, fragile = rounding.from_(place)
        if findings is None:  # only to see whether two arrays differ
            return Judge(words, rounding=measured)
        return Judge(words, place, findings, born, measured, fragile, reason)

    endless = " and ".join("d" + name for name in taps if taken[name] and not _finite(own[name]))

    def judged_of(step, mine):
        name = step[1:]
        if _finite(true[name]) and not _finite(given[name]):
            return [unjudged(step, np.shape(mine), f"your {endless} is not finite")]
        judged = compare(step, mine, given[name], judge(name, "right", findings))
        if any(v.outcome == WRONG for v in judged) and not any(
            map(np.any, tree_leaves(true[name]))
        ):
            words = f"the loss does not use {name}: expected zeros"
            return [v._replace(words=words) if v.outcome == WRONG else v for v in judged]
        return judged

    findings = []
    verdicts = {step: judged_of(step, mine) for step, mine in steps.items()}

    def is_true(step):
        return right(step, steps[step], true[step[1:]], judge(step[1:]))

    wrong = [step for step, judged in verdicts.items() if any(v.outcome == WRONG for v in judged)]
    aside = [step for step in wrong if is_true(step)]  # right, from other cotangents than these
    wrong = [step for step in wrong if step not in aside]
    findings = [f for f in findings if re.split(r"[\[.]", f.name)[0] not in aside]

    def reached_by(step):
        # Which wrong cotangents reach this step? Those that alone already change it.
        name, silent = step[1:], judge(step[1:])
        return [
            w
            for w in wrong
            if w != step
            and taken.get(w[1:])
            and not right(step, gradients(w[1:])[1][name], true[name], silent)
        ]

    def settled(step, judged):
        if step in wrong or not all(v.right for v in judged if step not in aside):
            return judged
        names = " and ".join(reached_by(step))
        if step in aside:
            words = f"is the true gradient, though not from your {names}"
            return [v._replace(outcome=RIGHT, words=words, mistakes=()) for v in judged]
        if not names or is_true(step):
            return judged
        return [v._replace(words=f"right given your {names}") for v in judged]

    judged = itertools.chain.from_iterable(settled(*item) for item in verdicts.items())
    report = Report(explained(judged, findings, suspects), findings)
    report = report.with_power() if power else report
    first = next((step for step in wrong if not reached_by(step)), "".join(wrong[:1]))
    return report.conclude(f"Mend {first} first." if wrong else "")


def _as_given(mine):
    # lists of numbers are as welcome here as arrays
    try:
        return as_arrays(mine)
    except (TypeError, ValueError):
        return mine


def _recorded(recorder, f, *args):
    _recorders.append(recorder)
    try:
        return f(*args)
    finally:
        _recorders.pop()


def _find_taps(loss, at, which, names):
    # The taps' values by name.
    taps = {}

    def record(name, value):
        if name in taps:
            raise ValueError(f"tap {name!r}: used twice; each intermediate needs a name of its own")
        if name in names:
            raise ValueError(f"tap {name!r}: the name of an argument of loss; expected another one")
        if any(map(np.iscomplexobj, tree_leaves(value))):
            raise ValueError(f"tap {name!r}: expected real numbers; got complex ones")
        if all(map(is_float, tree_leaves(value))):  # a mask has no cotangent
            taps[name] = value
        return value

    def recorded(floats):
        return _recorded(record, scalar(loss), *put(at, which, floats)), dict(taps)

    try:
        # A fresh function, since JAX does not run the body again of one that it has traced; and
        # run, since only then does JAX say that a value has left the vmap, scan or jit it is of.
        with traced("loss"):
            return once(recorded)([floats_of(at[i]) for i in which])[1]
    except jax.errors.UnexpectedTracerError:
        raise ValueError(
            f"tap: one of {', '.join(map(repr, taps))} stands inside vmap, scan or jit, where its "
            "value cannot be reached; expected taps in the loss function itself"
        ) from None


def _finite(tree):
    return all(np.isfinite(leaf).all() for leaf in tree_leaves(tree))


def _same_shapes(mine, values):
    same = tree_structure(mine) == tree_structure(values)
    return same and all(
        np.shape(m) == v.shape for m, v in zip(tree_leaves(mine), tree_leaves(values), strict=True)
    )
