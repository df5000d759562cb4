"""What a mistake makes of one gradient, from the two arrays and the values in the program.

Each hypothesis is a function of a Wrong that yields Alternatives.

Derivation: notebooks/32_checker.ipynb
"""

import itertools
from functools import partial

import jax
import numpy as np

from handgrad.check.naming.mistakes import Alternative, Hypothesis, Mistake

LABEL = Mistake("label", "a label, or an id, is off by one: they count from 0")


def hypotheses(wrong):
    """The Hypotheses on one wrong gradient: those that are sure, and the others."""
    made = [[], []]
    for what, sure, formula in _FORMULAS:
        made[not sure].append(Hypothesis(what, partial(formula, wrong)))
    return made


_FORMULAS = []


def _formula(what, sure=False):
    def register(f):
        _FORMULAS.append((what, sure, f))
        return f

    return register


@_formula("the gradient itself", sure=True)
def _itself(wrong):
    yield Alternative((), wrong.true)


@_formula("zeros", sure=True)
def _zeros(wrong):
    if wrong.true.any() and not wrong.hand.any():
        words = "all zeros: it was never written, or nothing was added to it"
        yield Alternative((Mistake("zeros", words),), np.zeros_like(wrong.true))


@_formula("exchanged gradients", sure=True)
def _exchanged(wrong):
    # Each of two gradients is, but for a constant, what the other should be.
    for name, hand, true in wrong.peers:
        if wrong.close(true, wrong.true) or not (_parallel(wrong.true, hand)):
            continue
        first, second = sorted((wrong.name, name))
        words = f"{first} and {second} are exchanged"
        yield Alternative((Mistake("exchanged", words),), true)


def _parallel(a, b):
    # whether b is a multiple of a, roughly
    if a.shape != b.shape or not np.isfinite(b).all():
        return False
    return bool((a * b).sum() ** 2 >= (1 - 1e-9) * (a * a).sum() * (b * b).sum() > 0)


@_formula("shifted places")
def _shifted(wrong):
    # By up to two places along one axis or two; what moves in may be anything.
    hand, true = wrong.hand, wrong.true
    if hand.shape != true.shape or hand.ndim > 4 or not true.any():
        return
    moves = [[s for s in range(-2, 3) if abs(s) <= n - 2 or not s] for n in true.shape]
    for shift in itertools.product(*moves):
        if not 1 <= np.count_nonzero(shift) <= 2:
            continue
        mine, theirs = _moved(hand, shift), _moved(true, [-s for s in shift])
        first = (0,) * (hand.ndim - 1)
        if not np.allclose(mine[first], theirs[first], rtol=1e-2, atol=0):
            continue  # the one row says so, which costs less than all
        if np.count_nonzero(mine) > 1 and np.ptp(mine) and not wrong.off(mine, theirs).any():
            by = " and ".join(f"{s:+d} along axis {axis}" for axis, s in enumerate(shift) if s)
            words = f"shifted by {by}: each entry stands where its neighbour should"
            yield Alternative((Mistake("shifted", words),), hand)


def _moved(a, shift):
    # what is left of an array that is moved by so many places along its axes
    return a[tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip(shift, a.shape, strict=True))]


@_formula("multiples of the argument")
def _decay(wrong):
    # The error is a multiple of what the gradient is of, as that of weight decay is.
    w, true, hand = wrong.value, wrong.true, wrong.hand
    if w is None or w.shape != true.shape or hand.shape != true.shape or w.size < 3:
        return
    error, square = hand - true, (w * w).sum()
    if not square or _parallel(w, true) or _parallel(true, error):
        return
    if abs((w * true).sum()) <= 1e-6 * np.sqrt(square * (true * true).sum()):
        return  # at right angles, as behind a norm: there it is a path of the norm
    c = (error * w).sum() / square
    if wrong.close(hand, true + c * w):
        what = wrong.name.removeprefix("d")
        words = f"right but for {c:.4g} times {what} itself: is its decay "
        words += "counted twice, or with another constant?" if c > 0 else "missing, or too small?"
        yield Alternative((Mistake("decay", words),), hand)


@_formula("factors left out")
def _of_factors(wrong):
    # True over u, or times u, for an array u of the program.
    hand, true = wrong.hand, wrong.true
    if hand.shape != true.shape:
        return
    some = tuple(place[:8] for place in np.nonzero(true))
    ratio = hand[some] / true[some]
    for what, u in wrong.arrays().items():
        try:
            full = np.broadcast_to(u, true.shape)
        except ValueError:
            continue
        with np.errstate(all="ignore"):
            if np.ptp(full[some]) == 0 or np.ptp(u) == 0:
                continue
            for once_more, there in ((True, full[some]), (False, 1 / full[some])):
                if not _parallel(there, ratio):
                    continue
                words = f"the factor {what} " + ("counts twice" if once_more else "is missing")
                value = true * full if once_more else true / full
                yield Alternative((Mistake("scale", words),), value)


@_formula("counts of ids", sure=True)
def _by_counts(wrong):
    # A row for each id, divided by the number of its uses.
    for ids in wrong.ids:
        rows = len(wrong.true) if wrong.true.ndim else 0
        if ids.size and ids.min() >= 0 and ids.max() < rows:
            uses = np.maximum(np.bincount(ids.ravel(), minlength=rows), 1)
            words = "each row is divided by the number of its uses: their cotangents add"
            if uses.max() > 1:
                uses = uses.reshape(-1, *[1] * (wrong.true.ndim - 1))
                yield Alternative((Mistake("duplicates", words),), wrong.true / uses)


@_formula("a symmetric matrix", sure=True)
def _of_a_symmetric_matrix(wrong):
    true = wrong.true
    if true.ndim > 1 and true.shape[-1] == true.shape[-2]:
        # entries (i, j) and (j, i) taken for one number, which moves both of them
        off = ~np.eye(true.shape[-1], dtype=bool)
        for factor, done in ((2.0, "doubled"), (0.5, "halved")):
            words = f"the off-diagonal entries are {done}: "
            words += "each entry of a symmetric matrix counts once, by itself"
            yield Alternative((Mistake("symmetric", words),), np.where(off, factor * true, true))
        both = true + np.swapaxes(true, -1, -2)
        words = "it is taken for the gradient of a symmetric matrix: "
        words += "each entry counts by itself, not together with its mirror image"
        for value in (both, np.where(off, both, true)):
            yield Alternative((Mistake("symmetric", words),), value)


@_formula("one triangle")
def _triangles(wrong):
    true = wrong.true
    if true.ndim > 1 and true.shape[-1] == true.shape[-2]:
        for part, of in ((np.tril, "lower"), (np.triu, "upper")):
            for k in (0, -1 if part is np.tril else 1):
                words = f"only its {of} triangle is there: the other entries count too"
                yield Alternative((Mistake("symmetric", words),), part(true, k))


@_formula("a norm", sure=True)
def _of_a_norm(wrong):
    for dz, layer in wrong.downstream:
        yield from _of_a_layer(wrong, dz, layer)


@_formula("a scale outside of a norm")
def _of_a_scale(wrong):
    # A norm's sums are of the cotangent times its scale. Without it in them, and with it before
    # them, the gradient is the scale times what the pullback makes of the cotangent over it.
    x = wrong.value
    for dz, layer in wrong.downstream:
        if np.shape(dz) != x.shape or x.ndim < 1:
            continue
        for what, scale in wrong.arrays().items():
            if scale.shape != x.shape[-1:] or not scale.all() or np.ptp(scale) == 0:
                continue
            words = f"{what} multiplies the whole, and is missing where the cotangent is summed: "
            words += f"sum it times {what}"
            value = scale * jax.vjp(layer, x)[1](dz / scale)[0]
            yield Alternative((Mistake("scale", words),), np.asarray(value, "float64"))


def _of_a_layer(wrong, dz, layer):
    # A norm's gradient has three paths: the direct one, the mean's and the variance's. What the
    # last two take off is, slice by slice, a constant and a multiple of the centred input.
    hand, true, x = wrong.hand, wrong.true, wrong.value
    if hand.shape != true.shape or x.shape != true.shape or true.ndim < 1:
        return
    for axes in dict.fromkeys([(true.ndim - 1,), tuple(range(true.ndim - 1)), (0,)]):
        n = int(np.prod([x.shape[a] for a in axes], dtype=int))
        if n < 3:
            continue
        mean = partial(np.mean, axis=axes, keepdims=True)
        u = x - mean(x)
        has_mean = np.abs(mean(true)).max() < 1e3 * wrong.digits() * np.abs(true).max()
        u = u if has_mean else x
        missing = _split(hand - true, u, mean)
        if not wrong.close(hand, true + sum(missing)):
            continue
        # The direct path is the slope with both fixed, dz times u's own factor, which the value
        # tells: the layer less itself at u = 0. The two others are what is then left of the truth.
        # (A layer that divides by a length has no value at 0: take it for 0.)
        value = np.asarray(layer(x)) - np.nan_to_num(layer(x - u))
        factor = np.divide(value, u, out=np.zeros_like(u), where=u != 0)
        whole = _split(dz * factor - true, u, mean)
        little = 1e3 * wrong.digits() * np.abs(true).max()  # a small u spoils the factor's digits
        if not np.abs(dz * factor - sum(whole) - true).max() < little:
            continue  # no norm over these axes
        mistakes = _of_paths(missing, whole, has_mean, mean(np.abs(factor)), u, n, little)
        if mistakes and None not in mistakes:
            yield Alternative(tuple(dict.fromkeys(mistakes)), hand)


def _split(error, u, mean):
    # In every slice a constant and a multiple of u, of the least squares; it need not be at right
    # angles to the constant.
    power, tilt = mean(u * u), mean(u)
    power = np.where(power > 0, power, 1.0)
    rest = np.maximum(1 - tilt**2 / power, 1e-30)
    constant = (mean(error) - tilt * mean(error * u) / power) / rest
    return np.broadcast_to(constant, u.shape), u * ((mean(error * u) - tilt * constant) / power)


def _of_paths(missing, whole, has_mean, factor, u, n, little):
    # what the shares of the two paths that are missing say; None is a share that says nothing
    (constant, along), (all_constant, all_along) = missing, whole
    mistakes = []
    if np.abs(constant).max() > little:
        if has_mean:
            mistakes.append(_path("mean", constant, all_constant, factor, n))
        else:
            words = "a mean is taken off, though nothing is centred here"
            return [Mistake("mean path", words)]
    if np.abs(along).max() > little:
        path = "variance" if has_mean else "length"
        of_u = [np.divide(a, u, out=np.zeros_like(u), where=u != 0) for a in (along, all_along)]
        mistakes.append(_path(path, *of_u, factor, n))
    return mistakes


def _path(name, missing, whole, factor, n):
    # The share of a path that is missing says what was done to it.
    square = (whole * whole).sum()
    share = (missing * whole).sum() / square if square > 0 else 0.0
    if np.abs(missing - share * whole).max() > 1e-2 * np.abs(missing).max():
        # no share: it may be the same in all slices, but for their own factors
        sums = [(whole - missing) / factor**p for p in (1, 2, 3)]
        if np.size(factor) > 2 and any(np.ptp(s) < 0.02 * np.abs(s).max() for s in sums):
            words = "the sums of a norm's paths run over other axes too: all slices have the same"
            return Mistake("axis", words)
        return None
    if name == "variance" and abs(share + 1 / (n - 1)) < 1e-3 / n:
        words = f"n - 1 stands for n = {n} in the variance path (Bessel's correction)"
        return Mistake("Bessel", words)
    if abs(share - 1) < 1e-4:
        words = f"the {name} path is left out: the {name} moves with every entry"
    else:
        words = f"the {name} path counts {1 - share:.3g} times"
    return Mistake(f"{name} path", words)


@_formula("digits of float32", sure=True)
def _of_float32(wrong):
    # Roundings of single precision: small beside each entry, up in some and down in others.
    hand, true = wrong.hand, wrong.true
    if hand.shape != true.shape or not hand.size or wrong.digits() > 1e-9:
        return
    error, scale = hand - true, np.abs(true).max()
    rough = np.abs(error) > 1e-11 * np.abs(true)
    if np.abs(error).max() < 1e-6 * scale and rough.sum() >= np.count_nonzero(true) / 2:
        up = (error[rough] > 0).mean()
        if (hand == hand.astype("float32")).all() or 0.1 <= up <= 0.9 or rough.sum() < 4:
            words = "right to float32 only: find the array that is not float64"
            yield Alternative((Mistake("float32", words),), hand)


@_formula("single entries")
def _in_part(wrong):
    # Mistakes that leave some entries right.
    hand, true = wrong.hand, wrong.true
    if hand.shape != true.shape or not hand.size:
        return
    off = wrong.off(hand, true)
    share = off.mean()
    places = [tuple(map(int, place)) for place in np.argwhere(off)[:16]]
    where = ", ".join(str(list(place)) for place in places[:3]) + (", ..." if places[3:] else "")
    if 0 < share <= 0.5:
        if wrong.at_a_kink(places):
            yield Alternative((_kink(where),), hand)
            return
        if not true[off].any():
            words = f"right except at {where}, where it must be 0: a masked or padded place"
            yield Alternative((Mistake("masked", words),), hand)
        elif hand.any() and not hand[off].any():
            words = f"right except at {where}, where it is 0: masked, though it counts"
            yield Alternative((Mistake("masked", words),), hand)
    if wrong.ids and hand.ndim and hand.shape[-1] > 2 and _other_label(hand, true, off):
        yield Alternative((LABEL,), hand)


def ties(wrong):
    """Where most of a small array is off, as a tie may be: for when nothing else explains it."""
    if wrong.hand.shape != wrong.true.shape:
        return
    off = wrong.off(wrong.hand, wrong.true)
    if off.mean() <= 0.5 or np.count_nonzero(off) > 16:
        return
    places = [tuple(map(int, place)) for place in np.argwhere(off)]
    if wrong.at_a_kink(places):
        where = ", ".join(str(list(place)) for place in places[:3])
        yield Alternative((_kink(where + (", ..." if places[3:] else "")),), wrong.hand)


def _kink(where):
    words = f"right except at a kink or a tie, {where}: there the slope is a choice"
    return Mistake("kink", words)


def _other_label(hand, true, wrong):
    # In every row two neighbours are wrong and nothing else; the same way round in all of them.
    # Only a loss with a label has rows that add up to 0 (scores) or hold one entry (probabilities).
    hand, true, wrong = (a.reshape(-1, a.shape[-1]) for a in (hand, true, wrong))
    hand, true, wrong = (a[wrong.any(axis=-1)] for a in (hand, true, wrong))
    for rows in (hand, true):
        of_scores = np.abs(rows.sum(axis=-1)) <= 1e-6 * np.abs(rows).sum(axis=-1)
        if not (of_scores | (np.count_nonzero(rows, axis=-1) == 1)).all():
            return False
    if not (wrong.sum(axis=-1) == 2).all():
        return False
    first = wrong.argmax(axis=-1)
    here = np.arange(len(wrong)), first
    if not (np.diff(np.nonzero(wrong)[1].reshape(-1, 2)) == 1).all():
        return False
    left, right = (hand - true)[here], (hand - true)[here[0], first + 1]
    return bool((np.sign(left) != np.sign(right)).all())
