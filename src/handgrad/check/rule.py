"""Prove a layer's rule against three oracles.    Derivation: notebooks/08_checking.ipynb"""

import inspect
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import all_leaves, tree_flatten, tree_leaves, tree_map, tree_unflatten

from handgrad.check.arrays import (
    argument_names,
    as_float64,
    is_float,
    once,
    other_arguments,
    put,
)
from handgrad.check.compare import Judge, compare, compare_leaf
from handgrad.check.jaxpr import birth_of_nan
from handgrad.check.naming.explain import explained
from handgrad.check.naming.mistakes import Mistake
from handgrad.check.naming.variants import Operands, Suspects, exchanged
from handgrad.check.oracles import _inner, consult
from handgrad.check.report import RIGHT, UNJUDGED, WRONG, GradientMismatch, Report, Verdict


def check_rule(f, f_fwd, f_bwd, /, *args, **hyper):
    """Prove f_bwd against three oracles in float64: jax.vjp, jax.jvp, and central differences.

    f is the plain forward, f_fwd(*args) returns (f(*args), residuals), and f_bwd(residuals, dz)
    a tuple with a cotangent for each argument, None for an integer one. The cotangent dz is random.
    The rule is judged at args and, since they may hide a mistake (a gamma of 1, a symmetric matrix,
    zeros), at random arguments of the same shapes and dtypes too. With power=True it says what it
    would have caught, unless that is an argument of f; report.power holds it in any case.

    Raises:
        GradientMismatch: a cotangent, or the value of f_fwd, is wrong, or cannot be judged at args.
        RuntimeError: JAX's 64-bit mode is off.
        TypeError: no argument is differentiable.

    """
    tell = "power" not in inspect.signature(f).parameters and hyper.pop("power", False)
    draws, findings = consult(f, [args], generic=True, **hyper), []
    report = Report(judged(f, f_fwd, f_bwd, draws, findings, **hyper), findings)
    report = report.with_power() if tell else report
    one = all(v.right for v in report) and _one_example(draws[0])
    note = "One example does not show whether a sum over examples is missing: take two."
    return report.conclude(note if one else "")


def _one_example(draw):
    return any(np.ndim(d) > 1 and len(d) == 1 for d in tree_leaves(draw.dz))


def prove(f, f_fwd, f_bwd, draws, **hyper):
    """The verdicts of a rule over several draws of arguments of the same shapes."""
    return judged(f, f_fwd, f_bwd, consult(f, draws, **hyper), **hyper)


def judged(f, f_fwd, f_bwd, draws, findings=None, **hyper):
    """The verdicts of a rule over the Draws of its f, the first wrong one of each gradient.

    The list findings, where there is one, gathers what was compared.

    Raises:
        GradientMismatch: f_fwd or f_bwd returned something of another form.

    """
    rule = f, f_fwd, f_bwd, hyper
    compiled = once(lambda args, dz: _by_hand(rule, args, dz))
    found = {}
    for draw in draws:
        try:
            hand = _run(rule, compiled, draw)
        except _WrongShape as mistake:
            raise GradientMismatch(str(mistake)) from None
        wrong = {name for name, verdict in found.items() if not verdict.right}
        verdicts = list(_judge(rule, draw, *jax.device_get(hand), findings=findings, told=wrong))
        if not all(v.right for v in verdicts) and _other_order(rule, draw):
            name = getattr(f_bwd, "__name__", "f_bwd")
            raise GradientMismatch(
                f"{name}: expected (residuals, dz), in this order; got (dz, residuals)"
            )
        for verdict in verdicts:
            if draw.generic and verdict.outcome == UNJUDGED:
                continue  # the caller's arguments are judged, these are not asked for
            if draw.generic and not verdict.right:
                verdict = verdict._replace(words=f"at another point: {verdict.words}")
            if verdict.name not in found or (found[verdict.name].right and not verdict.right):
                found[verdict.name] = verdict
    return list(found.values())


def _order(f_bwd):
    name = getattr(f_bwd, "__name__", "f_bwd")
    return f"{name}: expected (residuals, dz), in this order; it takes (dz, residuals)"


class _WrongShape(Exception):
    """f_fwd or f_bwd returned something of another form."""


def _run(rule, compiled, draw):
    # compiled; or else as it is, since a rule may leave JAX; or else on NumPy's arrays, copies
    # that it may write to
    copies = tree_map(_copy, (draw.args, draw.dz))
    problems = []
    for run, operands in (
        (compiled, (draw.args, draw.dz)),
        (partial(_by_hand, rule), (draw.args, draw.dz)),
        (partial(_by_hand, rule), copies),
    ):
        try:
            return run(*operands)
        except _WrongShape:
            raise
        except Exception as problem:
            problems.append(problem)
    if _other_order(rule, draw):
        raise _WrongShape(_order(rule[2]))
    raise problems[1]


def _copy(leaf):
    return np.array(leaf) if isinstance(leaf.dtype, np.dtype) else leaf  # a random key stays one


def _by_hand(rule, args, dz):
    # The value and the cotangents.
    _, f_fwd, f_bwd, hyper = rule
    kept = f_fwd(*args, **hyper)
    if not isinstance(kept, tuple | list) or len(kept) != 2:
        raise _WrongShape("f_fwd: expected (value, residuals); got something else")
    value, residuals = kept
    hand = f_bwd(residuals, dz, **hyper)
    if not isinstance(hand, tuple | list) or len(hand) != len(args):
        name, names = getattr(f_bwd, "__name__", "f_bwd"), argument_names(rule[0], args)
        wanted = ", ".join("d" + name for name in names)
        words = f"{name}: expected a tuple of {len(args)} cotangents ({wanted}); got "
        if not isinstance(hand, tuple | list):
            raise _WrongShape(words + "no tuple")
        raise _WrongShape(f"{words}{len(hand)}{_missing(names, args, hand)}")
    return value, hand


def _missing(names, args, hand):
    # Which cotangents are not there, as far as their shapes tell.
    shapes = [np.shape(d) for d in hand]
    missing = []
    for name, arg in zip(names, args, strict=True):
        if np.shape(arg) in shapes:
            shapes.remove(np.shape(arg))
        elif any(map(is_float, tree_leaves(arg))):
            missing.append("d" + name)
        else:
            missing.append(f"the None for {name}")
    if len(missing) != len(args) - len(hand):
        return ""
    return f": {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"


def _other_order(rule, draw):
    # whether f_bwd(dz, residuals) is right, the order of other libraries
    f, f_fwd, f_bwd, hyper = rule
    swapped = f, f_fwd, lambda residuals, dz, **hyper: f_bwd(dz, residuals, **hyper), hyper
    for copy in (jnp.asarray, _copy):
        try:
            hand = _by_hand(swapped, *tree_map(copy, (draw.args, draw.dz)))
            return all(v.right for v in _judge(swapped, draw, *jax.device_get(hand), name=False))
        except Exception:  # whatever the other order meets
            continue
    return False


AGREE = "matches reverse mode, forward mode and differences"
OTHERWISE = {
    "": (RIGHT, AGREE),
    "kink": (
        RIGHT,
        "matches reverse mode and forward mode; at a kink, where the slope is a choice, so is this",
    ),
    "coarse": (UNJUDGED, "cannot be judged here: differences tell nothing in float64"),
    **{
        oracle: (
            WRONG,
            f"matches reverse mode, yet not {oracle}: has a part of f a derivative of its own?",
        )
        for oracle in ("forward mode", "differences")
    },
}


def _judge(rule, draw, value, hand, name=True, findings=None, told=()):
    # with name, what was done is said too, unless only gradients in told are wrong: an earlier
    # draw has told of those
    args, which, dz, true = draw.args, draw.which, draw.dz, draw.truth
    names = argument_names(rule[0], args)
    suspects = suspects_of(
        rule,
        which,
        draw.precise,
        as_float64(dz),
        partial(_with_other_residuals, rule, which, args, dz),
    )
    born = cache(partial(_born, rule=rule, which=which, args=args, dz=dz))
    rounding = draw.rounding
    values = zip(tree_leaves(value), tree_leaves(true.value), tree_leaves(dz), strict=True)
    for leaf, (mine, z, d) in enumerate(values):
        judge = Judge("", rounding=draw.of_value.within)
        verdict = compare_leaf("value", mine, z.astype(d.dtype), judge, leaf)
        if verdict.outcome == WRONG:
            yield verdict._replace(words=f"f_fwd returns another value than f: {verdict.words}")
    found, compared = [], []
    for i, argument in enumerate(names):
        argument = "d" + argument
        if i not in which:
            if hand[i] is not None:
                words = f"expected None: {argument[1:]} is not differentiable"
                found.append(Verdict(argument, (), WRONG, words, ("None",)))
            continue
        j = which.index(i)
        place = suspects.of_argument(j)
        judge = Judge(AGREE, place, compared, born, *rounding.from_(place), draw.reason)
        verdicts = compare(argument, hand[i], draw.cotangents[j], judge)
        if all(verdict.right for verdict in verdicts):
            theirs = draw.cotangents[j]
            mine = [hand[i]] if all_leaves([theirs]) else tree_leaves(hand[i])  # or a list of rows
            leaves = zip(verdicts, mine, tree_leaves(theirs), strict=True)
            verdicts = [_of_dtype(*leaf) for leaf in leaves]
        if all(verdict.right for verdict in verdicts):
            places = range(place, place + len(verdicts))
            within = lambda places=places: list(map(rounding.within, places))  # noqa: E731
            outcome, words = OTHERWISE[draw.agreement(j, within)]
            if words != AGREE:
                verdicts = [v._replace(outcome=outcome, words=words) for v in verdicts]
        found += verdicts
    if findings is not None:
        findings += compared
    name = name and not {f.name for f in compared if f.wrong} <= set(told)
    yield from explained(found, compared, suspects) if name else found


def _of_dtype(verdict, mine, arg):
    mine = np.asarray(mine)
    if mine.dtype == arg.dtype:
        return verdict
    words = f"right values in the wrong dtype: {mine.dtype}, expected {arg.dtype}"
    return verdict._replace(outcome=WRONG, words=words, mistakes=("dtype",))


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
        for x in (args[i] for i in which):
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
