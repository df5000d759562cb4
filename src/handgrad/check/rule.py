"""Prove a layer's rule against three oracles.

Derivation: notebooks/08_checking.ipynb, and notebooks/32_checker.ipynb for the differences.
"""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten, tree_leaves, tree_map, tree_unflatten

from handgrad.check.arrays import (
    argument_names,
    as_arrays,
    as_float64,
    float_arguments,
    once,
    other_arguments,
    put,
)
from handgrad.check.compare import TOLERANCE, Judge, compare, compare_leaf, noise, size
from handgrad.check.explain import explained
from handgrad.check.jaxpr import birth_of_nan
from handgrad.check.mistakes import Mistake
from handgrad.check.report import GradientMismatch, Report, Verdict
from handgrad.check.variants import Operands, Suspects, exchanged

STEP, STEP_TOLERANCE = 2.0**-13, 1e-8  # of the central differences


def check_rule(f, f_fwd, f_bwd, /, *args, **hyper):
    """Prove f_bwd against three oracles in float64: jax.vjp, jax.jvp, and central differences.

    f is the plain forward, f_fwd(*args) returns (f(*args), residuals), and f_bwd(residuals, dz)
    a tuple with a cotangent for each argument, None for an integer one. The cotangent dz is random.

    Raises:
        GradientMismatch: a cotangent, or the value of f_fwd, is wrong.
        RuntimeError: JAX's 64-bit mode is off.
        TypeError: no argument is differentiable.

    """
    return Report(prove(f, f_fwd, f_bwd, [args], **hyper)).conclude()


def prove(f, f_fwd, f_bwd, draws, **hyper):
    """The verdicts of check_rule over several draws of arguments of the same shapes."""
    return judged(f, f_fwd, f_bwd, consult(f, draws, **hyper), **hyper)


class Draw(NamedTuple):
    """One draw of a rule's arguments, and what the oracles say of it: they know f alone."""

    args: tuple
    precise: tuple  # the same, the floats among them in float64
    which: tuple  # the places of the floats
    dz: object
    directions: list
    truth: object


def consult(f, draws, **hyper):
    """The Draws of several arguments of the same shapes: any number of rules can be judged by them.

    Raises:
        RuntimeError: JAX's 64-bit mode is off.
        TypeError: no argument is differentiable.

    """
    if not jax.config.jax_enable_x64:
        raise RuntimeError(
            "a proof is in float64, and JAX is in 32-bit mode: expected "
            'jax.config.update("jax_enable_x64", True) before the first array'
        )
    draws = [tuple(tree_map(jnp.asarray, as_arrays(arg)) for arg in args) for args in draws]
    which = float_arguments(argument_names(f, draws[0]), draws[0])
    # Fresh functions at every call: a cached trace would not see a helper that was redefined.
    oracles = once(lambda *operands: _oracles(f, hyper, which, *operands))
    # A seed that no reader draws the arguments with: dz equal to x would hide a transpose.
    rng = np.random.default_rng([8, 20231120])
    found = []
    for args in draws:
        precise = tuple(as_float64(arg) if i in which else arg for i, arg in enumerate(args))
        z = jax.eval_shape(lambda *a: f(*a, **hyper), *args)
        dz = tree_map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), z)
        directions = [tree_map(lambda a: rng.normal(size=a.shape), precise[i]) for i in which]
        truth = jax.device_get(oracles(dz, precise, directions))
        found.append(Draw(args, precise, which, dz, directions, truth))
    return found


def judged(f, f_fwd, f_bwd, draws, **hyper):
    """The verdicts of a rule over the Draws of its f, the first wrong one of each gradient.

    Raises:
        GradientMismatch: f_fwd or f_bwd returned something of another form.

    """
    rule = f, f_fwd, f_bwd, hyper
    by_hand = once(lambda args, dz: _by_hand(rule, args, dz))
    found = {}
    for draw in draws:
        try:
            try:
                hand = by_hand(draw.args, draw.dz)
            except jax.errors.JAXTypeError:  # a rule may leave JAX, for NumPy or for an if
                hand = _by_hand(rule, draw.args, draw.dz)
        except _WrongShape as mistake:
            raise GradientMismatch(str(mistake)) from None
        for verdict in _judge(rule, draw, *jax.device_get(hand)):
            if verdict.name not in found or found[verdict.name].right:
                found[verdict.name] = verdict
    return list(found.values())


class _WrongShape(Exception):
    """f_bwd did not return one cotangent for each argument."""


def _by_hand(rule, args, dz):
    # The value and the cotangents.
    _, f_fwd, f_bwd, hyper = rule
    kept = f_fwd(*args, **hyper)
    if not isinstance(kept, tuple | list) or len(kept) != 2:
        raise _WrongShape("f_fwd: expected (value, residuals); got something else")
    value, residuals = kept
    hand = f_bwd(residuals, dz, **hyper)
    if not isinstance(hand, tuple | list) or len(hand) != len(args):
        got = len(hand) if isinstance(hand, tuple | list) else "no tuple"
        name = getattr(f_bwd, "__name__", "f_bwd")
        raise _WrongShape(f"{name}: expected a tuple of {len(args)} cotangents; got {got}")
    return value, hand


class _Truth(NamedTuple):
    """What the oracles say; where there are several numbers, one for each float argument."""

    value: object
    reverse: list  # the cotangents
    forward: list  # <dz, Df h>, (8.1)
    differences: list  # the same by (32.3)
    doubts: list  # how far that may be off
    scale: float
    rounding: float


def _oracles(f, hyper, which, dz, precise, directions):
    # Everything that the verdicts need, in one compilation.
    floats = [precise[i] for i in which]
    dz = as_float64(dz)

    def plain(floats):
        return f(*put(precise, which, floats), **hyper)

    def along(t, chosen):
        moves = zip(floats, chosen, directions, strict=True)
        moved = [tree_map(lambda x, d, c=c: x + t * c * d, x, h) for x, c, h in moves]
        return _inner(dz, plain(moved))

    def slope(chosen):
        return jax.jvp(partial(along, chosen=chosen), (0.0,), (1.0,))[1]

    z, pull = jax.vjp(plain, floats)
    (reverse,) = pull(tree_map(lambda c, o: c.astype(o.dtype), dz, z))
    scale = _inner(tree_map(jnp.abs, dz), tree_map(jnp.abs, z))
    rounding = 16 * jnp.finfo("float64").eps * scale
    # One argument at a time, in loops: the compiler meets f once for all arguments and steps.
    chosen = jnp.eye(len(which))
    forward = jax.lax.map(slope, chosen)
    steps = jnp.outer(STEP * jnp.stack([size(x) for x in floats]), jnp.array([1, -1, 0.5, -0.5]))
    ends = jax.lax.map(lambda at: along(*at), (steps.ravel(), jnp.repeat(chosen, 4, axis=0)))
    ends = ends.reshape(steps.shape)
    wide, narrow = ((ends[:, i] - ends[:, i + 1]) / (2 * steps[:, i]) for i in (0, 2))
    # what extrapolation took away is an estimate of what it left; a rounding of f weighs 1 / step
    doubts = jnp.abs(narrow - wide) + rounding / steps[:, 2]
    return _Truth(z, reverse, forward, (4 * narrow - wide) / 3, doubts, scale, rounding)


def _judge(rule, draw, value, hand):
    args, _, which, dz, directions, true = draw
    names = argument_names(rule[0], args)
    mended = partial(_with_other_residuals, rule, which, args, dz)
    suspects = suspects_of(rule, which, draw.precise, as_float64(dz), mended)
    born = cache(partial(_born, rule=rule, which=which, args=args, dz=dz))
    for mine, theirs in zip(tree_leaves(value), tree_leaves(true.value), strict=True):
        verdict = compare_leaf("value", mine, theirs, Judge(0.0, ""))
        if not verdict.right:
            yield verdict._replace(words=f"f_fwd returns another value than f: {verdict.words}")
    judged, findings = [], []
    for i, name in enumerate(names):
        if i not in which:
            if hand[i] is not None:
                words = f"expected None: {name} is not differentiable"
                judged.append(Verdict("d" + name, (), False, words, ("None",)))
            continue
        j = which.index(i)
        agree = "matches reverse mode, forward mode and differences"
        place = suspects.of_argument(j)
        judge = Judge(noise(true.scale, args[i]), agree, place, findings, born)
        verdicts = compare("d" + name, hand[i], true.reverse[j], judge)
        if all(verdict.right for verdict in verdicts):
            leaves = map(tree_leaves, (hand[i], args[i]))
            verdicts = [_of_dtype(*leaf) for leaf in zip(verdicts, *leaves, strict=True)]
            leaves = zip(*map(tree_leaves, (hand[i], directions[j])), strict=True)
            terms = np.concatenate([np.ravel(mine * h) for mine, h in leaves])
            # the rule runs in the argument's own dtype, the oracles in float64
            tolerance = max(TOLERANCE[str(leaf.dtype)] for leaf in tree_leaves(args[i]))
            for oracle, theirs, relative, margin in (
                ("forward mode", true.forward[j], tolerance, true.rounding),
                (
                    "differences",
                    true.differences[j],
                    max(tolerance, STEP_TOLERANCE),
                    true.doubts[j],
                ),
            ):
                if not abs(terms.sum() - theirs) <= relative * np.abs(terms).sum() + margin:
                    words = f"matches reverse mode, yet not {oracle}: is there a kink or a tie?"
                    verdicts = [v._replace(right=False, words=words) for v in verdicts]
        judged += verdicts
    yield from explained(judged, findings, suspects)


def _of_dtype(verdict, mine, arg):
    if mine.dtype == arg.dtype:
        return verdict
    words = f"right values in the wrong dtype: {mine.dtype}, expected {arg.dtype}"
    return verdict._replace(right=False, words=words, mistakes=("dtype",))


def suspects_of(rule, which, args, dz, mended=tuple):
    """The Suspects of a rule: a derivation of one step, from args to z, whose cotangent is dz."""
    f, _, f_bwd, hyper = rule
    z = [*argument_names(f_bwd, ((), ()))][1].removeprefix("d")  # as the reader calls it
    others = other_arguments(args, which)

    def values(at):
        return {z: f(*put(put(args, which, at.floats), others, at.others), **hyper)}

    def total(at):
        return _inner(at.own[z], exchanged(values(at)[z], at, z))

    slots = {z: tree_map(np.zeros_like, dz)}
    floats, rest = [args[i] for i in which], [args[i] for i in others]
    return Suspects(total, Operands(floats, rest, slots, {z: dz}, {z: np.True_}), values, mended)


def _with_other_residuals(rule, which, args, dz):
    # The rule once more, with the output where its residuals hold the input, and the reverse.
    _, f_fwd, f_bwd, hyper = rule
    z, residuals = f_fwd(*args, **hyper)
    leaves, tree = tree_flatten(residuals)
    mended = []
    for k, leaf in enumerate(leaves):
        for x in args:
            shapes = {getattr(a, "shape", None) for a in (leaf, x, z)}
            if len(shapes) == 1 and None not in shapes:
                for kept, needed, words in ((x, z, "output"), (z, x, "input")):
                    if np.array_equal(leaf, kept):
                        other = [*leaves[:k], needed, *leaves[k + 1 :]]
                        what = f"the wrong residual: this formula wants the {words} of the layer"
                        cotangents = f_bwd(tree_unflatten(tree, other), dz, **hyper)
                        arrays = tree_leaves([cotangents[i] for i in which])
                        mended.append((Mistake("residual", what), list(map(np.asarray, arrays))))
    return mended


def _born(who, rule, which, args, dz):
    # The operation that made the NaN: in the hand's rule, or in JAX's.
    f, f_fwd, f_bwd, hyper = rule
    if who == "hand":
        _, residuals = f_fwd(*args, **hyper)
        return birth_of_nan(lambda r, d: f_bwd(r, d, **hyper), residuals, dz)

    def reverse(*floats):
        return jax.vjp(lambda *fs: f(*put(args, which, fs), **hyper), *floats)[1](dz)

    return birth_of_nan(reverse, *(args[i] for i in which))


def _inner(a, b):
    return sum((x * y).sum() for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))
