"""Check a function that carries its own derivative rule.

Derivation: notebooks/33_kernels.ipynb
"""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import (
    keystr,
    tree_flatten_with_path,
    tree_leaves,
    tree_structure,
)

from handgrad.check.arrays import is_float, once
from handgrad.check.call import called, generic
from handgrad.check.compare import Judge, compare_leaf, unjudged
from handgrad.check.jaxpr import changes
from handgrad.check.naming.explain import explained
from handgrad.check.plain import operations, plain, rules
from handgrad.check.report import RIGHT, UNJUDGED, WRONG, GradientMismatch, Report, Verdict
from handgrad.check.rounding import MARGIN, Rounding
from handgrad.check.rule import suspects_of

PAIRS = 4  # of points some digits away, on opposite sides
HIDDEN = 0.9  # of the entries may be smaller than their rounding, and the others tell
TRULY_0 = 1e-5  # in float64, of what roundings may do in a shorter dtype


def check_vjp(f, /, *args, reference=None, vmap=False, order=1, residuals=False, seed=0, **static):
    """Compare f's value and cotangents, by jax.vjp, with those of the plain program inside it.

    f has a custom derivative rule, or calls what has one: custom_vjp, custom_jvp, jitted, vmapped,
    a method. A Pallas kernel holds no plain program, so it needs a reference: a function of the
    same arguments, handed those keywords that it has. Float arrays are differentiated; so is a
    Python float by position, unless f declares it static. All else is handed on as it is.

    f runs in its own dtypes, the plain program in float64 on the same numbers, for a random
    cotangent. An entry is right if it is as near as rounding in f's dtypes leaves the plain
    program, (33.3). A second, generic point of the same shapes is judged as well.

    With vmap=True, jax.vmap(f) is too, with each argument in turn under in_axes=None; with order=2,
    the derivative of the cotangents; with residuals=True, the bytes kept for the way back. With
    power=True the report tells what it would have caught, unless f has an argument of that name.
    The seed draws the cotangents and the generic point.

    Raises:
        GradientMismatch: a value or a cotangent is wrong, or cannot be judged.
        TypeError: no argument is differentiable, or no value, or the plain program is not.
        ValueError: f would be compared with itself; or order is neither 1 nor 2.

    """
    __tracebackhide__ = True  # pytest ends its traceback at the test
    if order not in (1, 2):
        raise ValueError(f"order: expected 1 or 2; got {order}")
    tell = "power" not in _parameters(f) and static.pop("power", False)
    call = called(f, args, static)
    pair = _pair(f, reference, call)
    if changes(pair.kernel, *call.xs):
        reason = "f is another function at every call: does it draw random numbers?"
        return Report([unjudged("value", (), reason)]).conclude()
    rng = np.random.default_rng([33, seed])
    verdicts, findings, point = _at_two_points(pair, call.xs, rng)
    if order == 2:
        verdicts += _of_order_2(pair, point, rng)
    if vmap:
        verdicts += _under_vmap(pair, call.owners, point, rng)
    if residuals:
        verdicts.append(_residuals(pair, call.xs))
    report = Report(verdicts, findings)
    report = report.with_power() if tell else report
    right = all(verdict.right for verdict in report)
    return report.conclude("" if right else f"Drawn with seed={seed}.")


class Pair(NamedTuple):
    """Two programs of the same arrays: the one to judge, and the one that knows, by its name."""

    kernel: Callable
    oracle: Callable
    who: str
    names: list  # of the cotangents


def _pair(f, reference, call):
    def program(g):
        def of(*xs):
            args, keywords = call.fill(xs)
            return g(*args, **(keywords if g is f else _known_to(g, keywords)))

        return of

    name, kernel = getattr(f, "__name__", type(f).__name__), program(f)
    found = rules(kernel, *call.xs)
    own = [rule for rule, of_jax in found.items() if not of_jax]
    itself = f"{name} would be compared with itself: "
    if reference is not None:
        pair = Pair(kernel, plain(program(reference)), "the reference", call.names)
        texts = (str(jax.make_jaxpr(g)(*call.xs)) for g in (plain(kernel), pair.oracle))
        if reference is f or (not own and len({*texts}) == 1):
            raise ValueError(f"{itself}the reference is the same program")
    else:
        of_jax = not own and str(getattr(f, "__module__", "")).startswith("jax.")
        if not own and not (of_jax and found):
            but = f" but JAX's own, {', '.join(found)}" if found else ""
            what = f"there is no custom_vjp or custom_jvp in it{but}"
            raise ValueError(f"{itself}{what}; expected one, or a reference")
        pair = Pair(kernel, plain(kernel, of_jax), "the plain program", call.names)
        kinds = {eqn.primitive.name for eqn in operations(pair.oracle, *call.xs)}
        if "pallas_call" in kinds:
            raise ValueError(f"{name}: a Pallas kernel holds no plain program: expected reference=")
    mine, theirs = (jax.eval_shape(g, *call.xs) for g in (kernel, pair.oracle))
    if not any(map(is_float, tree_leaves(mine))):
        raise TypeError(f"{name}: expected a float in its value; got {_said(mine)}")
    if _form(mine) != _form(theirs):
        words = f"expected {_said(theirs)}, as {pair.who} has it; got {_said(mine)}"
        report = Report([Verdict("value", getattr(mine, "shape", ()), WRONG, words, ("shape",))])
        raise GradientMismatch(str(report), report)
    return pair


def _known_to(g, keywords):
    # a reference need not have a kernel's settings
    parameters = _parameters(g)
    anything = not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {
        key: value
        for key, value in keywords.items()
        if anything or key in parameters or hasattr(value, "dtype")
    }


def _parameters(f):
    try:
        return inspect.signature(f).parameters
    except (TypeError, ValueError):  # of a function in C nobody knows
        return {}


def _form(value):
    return tree_structure(value), [leaf.shape for leaf in tree_leaves(value)]


def _said(value):
    shapes, tree = [leaf.shape for leaf in tree_leaves(value)], tree_structure(value)
    return f"shape {shapes[0]}" if tree == tree_structure(0) else f"{tree} of shapes {shapes}"


def _pulled(f, count):
    # run(xs, dz) -> (the floats of f's value and the cotangents of the first xs, the rest of it)
    def run(xs, dz):
        def of(floats):
            leaves = tree_leaves(f(*floats, *xs[count:]))
            rest = [leaf for leaf in leaves if not is_float(leaf)]
            return [jnp.asarray(leaf) for leaf in leaves if is_float(leaf)], rest

        z, pull, rest = jax.vjp(of, list(xs[:count]), has_aux=True)
        (dx,) = pull([d.astype(v.dtype) for d, v in zip(dz, z, strict=True)])
        return [*z, *dx], rest

    return run


class Truth(NamedTuple):
    """What the oracle says at a point: the leaves of its value, then its cotangents."""

    leaves: list  # the floats, in f's dtypes though computed in float64
    rests: list  # what is no float, in f's dtypes and as computed in float64: a choice, perhaps
    roundings: tuple  # how far they may move each entry of leaf k: cheap, and of longer sums
    fragile: Callable  # fragile(k, measure) whether that is as far as leaf k is long
    said: str  # of what matches


class Comparison:
    """A Pair, compiled once, and judged at any point of the same shapes."""

    def __init__(self, pair, xs):
        """xs are arrays of those shapes."""
        count = len(pair.names)
        self.pair, self.value = pair, jax.eval_shape(pair.kernel, *xs)
        self.mine, self.theirs = _pulled(pair.kernel, count), _pulled(pair.oracle, count)
        self.kernel, self.oracle = once(self.mine), once(self.theirs)
        paths = [(keystr(p), leaf) for p, leaf in tree_flatten_with_path(self.value)[0]]
        self.names = ["value" + path for path, leaf in paths if is_float(leaf)] + pair.names
        self.rest = ["value" + path for path, leaf in paths if not is_float(leaf)]

    def drawn(self, rng):
        """A random cotangent."""
        floats = filter(is_float, tree_leaves(self.value))
        return [jnp.asarray(rng.normal(size=s.shape), s.dtype) for s in floats]

    def truth(self, xs, dz):
        """The Truth at a point.

        Raises:
            TypeError: JAX cannot differentiate the oracle.

        """
        who = self.pair.who
        try:
            own, rest = jax.device_get(self.oracle(xs, dz))
        except Exception as problem:  # of any kind, from the depths of JAX
            words = f"JAX cannot differentiate {who}: {_first_line(problem)}"
            raise _NoOracle(f"{words}; expected another reference") from problem
        in_own = Rounding(lambda *at: self.oracle(*at)[0], self._times, own, xs, dz)
        fragile = functools.partial(in_own.fragile, 0)
        if all(x.dtype == "float64" for x in (*xs, *dz) if is_float(x)):
            return Truth(own, [rest], (in_own.within,), fragile, f"matches {who}")
        try:
            precise, other = self._in_float64(xs, dz)
        except Exception:  # a program may insist on its dtypes
            said = f"matches {who}, which runs in these dtypes only"
            return Truth(own, [rest], (in_own.within,), fragile, said)
        measured = functools.cache(lambda: self._measured(precise, xs, dz))

        def nearby(k):
            return measured()[k]

        def summed(k):
            # short dtypes are added up in longer ones, of which the program does not tell
            return nearby(k) + (in_own.within(k) if own[k].dtype.itemsize > 2 else 0)

        def hidden(k, measure):
            size, near = np.abs(precise[k]), nearby(k)
            return size.size and bool(((near > size) & (size > TRULY_0 * near)).mean() > HIDDEN)

        rounded = [a.astype(b.dtype) for a, b in zip(precise, own, strict=True)]
        said = f"matches {who} in float64"
        return Truth(rounded, [rest, other], (nearby, summed), hidden, said)

    def _times(self, one, xs, dz):
        # the value and the cotangents times one, which the rounding of cotangents goes by
        leaves, _ = self.theirs(xs, [d * one.astype(d.dtype) for d in dz])
        values = len(dz)
        return [*(z * one.astype(z.dtype) for z in leaves[:values]), *leaves[values:]]

    def _in_float64(self, xs, dz):
        with jax.enable_x64(True):
            return jax.device_get(self.oracle(*(list(map(_widened, of)) for of in (xs, dz))))

    def _measured(self, precise, xs, dz):
        # (33.3): how far the oracle in f's dtypes is from itself in float64, at points some digits
        # away, and how far it moves from here to there. Both sides of a kink that is near are seen.
        rng = np.random.default_rng(33)
        far = [np.zeros(a.shape) for a in precise]
        for _ in range(PAIRS):
            steps = [rng.uniform(-MARGIN, MARGIN, size=a.shape) for a in (*xs, *dz)]
            for side in (1, -1):
                moved = [_nudged(a, side * s) for a, s in zip((*xs, *dz), steps, strict=True)]
                there = moved[: len(xs)], moved[len(xs) :]
                own, _ = jax.device_get(self.oracle(*there))
                true, _ = self._in_float64(*there)
                for k, (rough, fine, here) in enumerate(zip(own, true, precise, strict=True)):
                    with np.errstate(invalid="ignore"):
                        off = MARGIN * np.abs(rough.astype("float64") - fine)
                        moves = np.fmax(off, 2 * np.abs(fine - here))
                    far[k] = np.fmax(far[k], np.where(np.isfinite(moves), moves, 0))
        return far

    def judged(self, xs, dz, truth):
        """The verdicts at a point, and the findings that they rest on."""
        try:
            hand, rest = jax.device_get(self.kernel(xs, dz))
        except jax.errors.JAXTypeError:  # a rule may leave JAX, for NumPy or for an if
            hand, rest = jax.device_get(self.mine(xs, dz))
        first, verdicts, findings = len(self.names) - len(self.pair.names), [], []
        for k, name in enumerate(self.names):
            for rounding in truth.roundings:
                noted = []
                judge = Judge(
                    truth.said,
                    k - first,
                    noted,
                    rounding=lambda leaf, k=k, rounding=rounding: rounding(k),
                    fragile=lambda leaf, measure, k=k: truth.fragile(k, measure),
                )
                verdict = compare_leaf(name, hand[k], truth.leaves[k], judge)
                if verdict.outcome != WRONG:
                    break
            words = verdict.words.replace("JAX's own gradient is", f"{self.pair.who} gives")
            verdicts.append(verdict._replace(words=words))
            findings += noted if k >= first else []
        if any(verdict.outcome == WRONG for verdict in verdicts[:first]):
            verdicts = [*verdicts[:first], *map(_of_another_function, verdicts[first:])]
        elif any(finding.wrong for finding in findings):
            with jax.enable_x64(True):
                verdicts = self._explained(verdicts, findings, self._suspects(xs, dz))
        for k, (name, mine) in enumerate(zip(self.rest, rest, strict=True)):
            same = any(np.array_equal(mine, of[k]) for of in truth.rests)
            words = f"{'' if same else 'not '}what {self.pair.who} computes"
            verdicts.insert(k, Verdict(name, mine.shape, RIGHT if same else WRONG, words))
        return verdicts, findings

    def _suspects(self, xs, dz):
        def value(*xs):
            floats = list(filter(is_float, tree_leaves(self.pair.oracle(*xs))))
            return floats[0] if len(floats) == 1 else floats

        xs, dz = list(map(_widened, xs)), list(map(_widened, dz))
        rule = value, None, lambda residuals, dz: None, {}
        which = range(len(self.pair.names))
        return suspects_of(rule, which, xs, dz[0] if len(dz) == 1 else dz)

    def _explained(self, verdicts, findings, suspects):
        # at a kink nobody is wrong, and that is asked before what was done
        for k, finding in enumerate(findings):
            where = _kinks(finding, suspects) if finding.wrong else ""
            if where:
                findings[k] = finding._replace(wrong=False)
                words = f"cannot be judged here: a kink or a tie at {where}, the slope is a choice"
                verdicts = [
                    v._replace(outcome=UNJUDGED, words=words) if v.name == finding.name else v
                    for v in verdicts
                ]
        return explained(verdicts, findings, suspects)


def _of_another_function(verdict):
    if verdict.outcome != WRONG or verdict.mistakes:
        return verdict
    words = "f computes another value, so this is of another function"
    return verdict._replace(words=words, mistakes=("forward",))


def _kinks(finding, suspects):
    # the places where the gradient is wrong, if the loss has two slopes at all of them
    off = finding.off(finding.hand, finding.true)
    places = [tuple(map(int, place)) for place in np.argwhere(off)[:16]]
    try:
        kinked = suspects.evidence(finding.place)["at_a_kink"](places)
    except Exception:  # of any kind: the program may not run on many operands at once
        return ""
    shown = [str(list(place)) for place in places[:3]] + ["..."] * bool(off.sum() > 3)
    return ", ".join(shown) if kinked else ""


class _NoOracle(TypeError):
    """The plain program, or the reference, cannot be differentiated."""


def _first_line(problem):
    return f"{type(problem).__name__}, {(str(problem).splitlines() or [''])[0]}"


def _widened(x):
    return x.astype("float64") if is_float(x) else x


def _nudged(x, digits):
    if not is_float(x):
        return x
    return (x * (1 + jnp.asarray(digits, x.dtype) * jnp.finfo(x.dtype).eps)).astype(x.dtype)


def _at_two_points(pair, xs, rng):
    """The verdicts at xs and at a generic point, one for each leaf; the findings; that point."""
    comparison, count = Comparison(pair, xs), len(pair.names)
    dz = comparison.drawn(rng)
    here, findings = comparison.judged(xs, dz, comparison.truth(xs, dz))
    for floats in generic(xs[:count], rng):
        point, dz = [*floats, *xs[count:]], comparison.drawn(rng)
        truth = comparison.truth(point, dz)
        if all(np.isfinite(leaf).all() for leaf in truth.leaves):
            there, more = comparison.judged(point, dz, truth)
            return list(map(_merged, here, there)), findings + more, point
    words = f"; at another point {pair.who} is not finite"
    return [v._replace(words=v.words + words) for v in here], findings, xs


def _merged(here, there):
    if here.right and there.outcome == WRONG:
        return there._replace(words=f"at another point: {there.words}")
    if here.right and there.outcome == UNJUDGED:
        return here._replace(words=f"{here.words}; another point cannot be judged")
    return here


def _of_order_2(pair, xs, rng):
    """The verdicts on the derivatives of the cotangents."""
    dz, count = Comparison(pair, xs).drawn(rng), len(pair.names)
    first = len(dz)
    twice = pair._replace(
        kernel=lambda *xs: _pulled(pair.kernel, count)(xs, dz)[0][first:],
        oracle=lambda *xs: _pulled(pair.oracle, count)(xs, dz)[0][first:],
        names=[f"{name}, order 2" for name in pair.names],
    )
    found = _once_more(twice, xs, rng, "when differentiated again")
    return [v for v in found if v.name in twice.names or not v.right]


def _once_more(pair, xs, rng, how):
    # the verdicts at one point; that the kernel does not run is one too
    try:
        comparison = Comparison(pair, xs)
        dz = comparison.drawn(rng)
        return comparison.judged(xs, dz, comparison.truth(xs, dz))[0]
    except _NoOracle:
        raise
    except Exception as problem:  # of any kind, from the reader's code
        return [Verdict("value", (), WRONG, f"does not run {how}: {_first_line(problem)}")]


def _under_vmap(pair, owners, xs, rng):
    """The verdicts on jax.vmap of the pair: all arguments mapped, or all but one."""
    count, found = len(pair.names), {}
    draws = [[*next(generic(xs[:count], rng)), *xs[count:]] for _ in range(3)]
    for left in (None, *dict.fromkeys(owners)):
        axes = tuple(None if owner == left else 0 for owner in owners)
        if axes.count(None) == len(axes):
            continue
        stacked = [
            rows[0] if axis is None else jnp.stack(rows)
            for axis, rows in zip(axes, zip(*draws, strict=True), strict=True)
        ]
        mapped = pair._replace(
            kernel=jax.vmap(pair.kernel, axes), oracle=jax.vmap(pair.oracle, axes)
        )
        for verdict in _once_more(mapped, stacked, rng, "under vmap"):
            name = f"{verdict.name} under vmap"
            if left is not None and not verdict.right:
                verdict = verdict._replace(words=f"with in_axes=None for {left}: {verdict.words}")
            if name not in found or found[name].right:
                found[name] = verdict._replace(name=name)
    return list(found.values())


def _residuals(pair, xs):
    """The verdict on the bytes that are kept for the way back, beyond arguments and value."""
    count = len(pair.names)

    def kept(f):
        run = once(lambda floats: jax.vjp(lambda floats: f(*floats, *xs[count:]), floats))
        z, pull = run(xs[:count])
        known = [np.asarray(a) for a in (*xs, *tree_leaves(z))]
        bytes_ = 0
        for leaf in map(np.asarray, tree_leaves(pull)):
            if not any(np.array_equal(leaf, other) for other in known):
                known.append(leaf)
                bytes_ += leaf.nbytes
        return bytes_

    mine, theirs = kept(pair.kernel), kept(pair.oracle)
    words = f"{mine:,} bytes beyond arguments and value; {pair.who} keeps {theirs:,}"
    return Verdict("residuals", (), RIGHT if mine <= theirs else WRONG, words)
