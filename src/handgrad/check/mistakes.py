"""Name the mistake in a wrong gradient.    Explained in notebooks/32_checker.ipynb

A classic mistake turns the right gradient into another, predictable array, (32.7). So each
hypothesis here computes that array, and where the hand has computed the same, to the digits of its
dtype, the mistake has a name. Nothing here looks at how the gradient was written.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Mistake(NamedTuple):
    """A classic mistake: its name, and the sentence that says how to mend it."""

    name: str
    words: str


class Alternative(NamedTuple):
    """The array that would have come out, had these mistakes been made."""

    mistakes: tuple
    value: np.ndarray


class Evidence(NamedTuple):
    """What a checker knows of a wrong gradient besides the two arrays; what it can't know is empty.

    off(a, b) says which entries of a differ from b beyond the digits of their dtype; counts are the
    sizes that an N may stand for; alternatives are what mistakes would have given, pairs of what is
    tried and a function that yields them; mended() pairs of a mistake and what the hand gives
    without it; at_a_kink(places) says whether the loss has two slopes there. The last three are for
    a norm: its input, the layer on any input, and dz.
    """

    off: Callable
    counts: tuple = ()
    alternatives: tuple = ()
    mended: Callable = tuple
    at_a_kink: Callable = lambda places: False
    argument: np.ndarray | None = None
    forward: Callable | None = None
    upstream: np.ndarray | None = None

    def close(self, a, b):
        """Whether a is b, to the digits of their dtype."""
        return a.shape == b.shape and bool(np.isfinite(a).all()) and not self.off(a, b).any()


class Diagnosis(NamedTuple):
    """The names of the mistakes, a sentence about them, and what could not be tried."""

    names: tuple = ()
    words: str = ""
    untried: tuple = ()


def diagnose(name, hand, true, evidence):
    """The mistakes that turn the gradient `true` into `hand`: a Diagnosis.

    There are no names, and no sentence, when no known mistake fits. Where different mistakes would
    give the same array, all are named. What fails or takes too long costs its own answer only.
    """
    if not np.isfinite(hand).all():
        return Diagnosis()
    fits, untried = [], []

    def each(what, generate):
        # all that generate() gives before it fails
        try:
            yield from generate()
        except Exception:  # whatever is met in the reader's code, the others are still tried
            untried.append(what)

    def made_of(alternative):
        for mistakes, value, mine in _rearranged(name, hand, alternative.value, evidence):
            plain = not alternative.mistakes and not mistakes
            factor = _factor(mine, value, evidence, anything=plain)
            if factor is not None:
                more = (*mistakes, *_named(factor, evidence.counts))
                steps = len(more) + bool(alternative.mistakes)
                if 1 <= steps <= 2:
                    yield steps, (*alternative.mistakes, *more)

    for what, generate in (
        ("the gradient itself", lambda: [Alternative((), true)]),
        ("a symmetric matrix", lambda: _of_a_symmetric_matrix(true)),
        ("a norm", lambda: _of_a_norm(hand, true, evidence)),
        *evidence.alternatives,
    ):
        for alternative in each(what, generate):
            if alternative.mistakes and evidence.close(alternative.value, true):
                continue  # made here, it would change nothing
            fits += each(what, lambda alternative=alternative: made_of(alternative))
    in_part = lambda: _in_part(hand, true, evidence, explained=bool(fits))  # noqa: E731
    fits += [(1, made) for made in each("single entries", in_part)]
    mended = each("other residuals", evidence.mended)
    fits += [(1, (m,)) for m, value in mended if evidence.close(value, true)]
    untried = tuple(dict.fromkeys(untried))
    if not fits:
        return Diagnosis(untried=untried)
    fewest = min(steps for steps, _ in fits)
    made_so = [made for steps, made in fits if steps == fewest]
    sentences = {"; and ".join(m.words for m in made): made for made in made_so}
    names = dict.fromkeys(m.name for made in sentences.values() for m in made)
    return Diagnosis(tuple(names), ". Or: ".join(list(sentences)[:3]), untried)


def _factor(hand, value, evidence, anything):
    # The constant c with hand = c * value, or None; any c or one that a mistake is known to make.
    if hand.shape != value.shape or not np.isfinite(value).all():
        return None
    for exactly in (1.0, -1.0):
        if evidence.close(hand, exactly * value):
            return exactly
    square = (value * value).sum()
    if not square:
        return None
    c = (hand * value).sum() / square
    if not c or not evidence.close(hand, c * value):
        return None
    # one number alone is always a multiple of another
    known = any(abs(abs(c) - k) <= 1e-6 * k for k in _famous(evidence.counts))
    return c if known or (anything and np.count_nonzero(value) > 1 and abs(c) > 1e-9) else None


def _famous(counts):
    yield from (1, 2, 1 / 2)
    for n in counts:
        yield from (n, 1 / n)
        if n > 2:
            yield n / (n - 1)


def _named(c, counts):
    sign = [Mistake("sign", "its sign is flipped")] if c < 0 else []
    size = abs(c)
    if abs(size - 1) <= 1e-6:
        return tuple(sign)
    reasons = []
    if abs(size - 2) <= 1e-6:
        reasons.append("a factor 1/2 is missing")
    if abs(size - 0.5) <= 1e-6:
        reasons.append("a factor 2 is missing")
    for n in sorted(set(counts)):
        if n > 1 and abs(size - n) <= 1e-6 * n:
            reasons.append(f"the 1/N of a mean is missing, N = {n}")
        if n > 1 and abs(size - 1 / n) <= 1e-6 / n:
            reasons.append(f"the mean over N = {n} was taken twice")
        if n > 2 and abs(size - n / (n - 1)) <= 1e-6:
            reasons.append(f"n - 1 stands for n = {n} (Bessel's correction)")
    number = f"1/{1 / size:.4g}" if reasons and size < 1 else f"{size:.4g}"
    why = ": " + ", or ".join(reasons) if reasons else ""
    return *sign, Mistake("factor", f"off by the constant factor {number}{why}")


def _rearranged(name, hand, value, evidence):
    # (mistakes, what the hand should be a multiple of, the hand or its sum)
    yield (), value, hand
    shape = hand.shape
    if hand.size == value.size:
        seen = [value, value.reshape(shape)]
        if shape != value.shape:
            words = f"right values in the wrong shape: expected {value.shape}"
            yield (Mistake("shape", words),), seen[1], hand
        for mistake, other in _orders(name, value, shape) if _alike(hand, value) else ():
            if other.shape == shape and not any(evidence.close(other, s) for s in seen):
                seen.append(other)
                yield (mistake,), other, hand
    elif hand.ndim <= 5:
        for axes in _subsets(range(hand.ndim)):
            reduced = hand.sum(axis=axes)
            if np.squeeze(value).shape == np.squeeze(reduced).shape:
                leading = axes == tuple(range(len(axes))) and hand.ndim > value.ndim
                yield (_not_summed(name, axes, leading),), value, reduced.reshape(value.shape)


def _alike(a, b):
    # Whether one may be the other in another order, times a constant: the sizes of their entries
    # tell, at the cost of one of the many orders.
    if not np.isfinite(b).all():
        return False
    a, b = np.sort(np.abs(a), axis=None), np.sort(np.abs(b), axis=None)
    return bool((np.abs(a * b[-1:] - b * a[-1:]) <= 0.1 * a[-1:] * b[-1:]).all())


def _not_summed(name, axes, leading):
    over = f"axis {axes[0]}" if len(axes) == 1 else f"axes {axes}"
    what = name.removeprefix("d")
    if leading:
        words = f"the batch axis was not summed: {what} serves every example, so sum over {over}"
        return Mistake("batch", words)
    words = f"a broadcast was not summed: {what} was repeated, so sum over {over}"
    return Mistake("broadcast", words)


def _orders(name, value, shape):
    if value.ndim > 1:
        swapped = f"swap {'the factors of the product' if value.ndim == 2 else 'its last two axes'}"
        yield Mistake("transposed", f"transposed: {swapped}"), np.swapaxes(value, -1, -2)
        words = "flattened row-major, reshaped column-major: reshape it row by row, order='C'"
        yield Mistake("column-major", words), value.reshape(-1).reshape(shape, order="F")
        words = "flattened column-major, reshaped row-major: use one order both ways"
        yield Mistake("column-major", words), value.reshape(-1, order="F").reshape(shape)
        for axes in itertools.permutations(range(value.ndim)) if value.ndim < 5 else ():
            back = tuple(map(int, np.argsort(axes)))
            words = f"its axes are permuted: transpose it by axes={back}"
            yield Mistake("permuted", words), np.transpose(value, axes)
    for axes in _subsets(range(min(value.ndim, 4))):
        over = " and ".join(map(str, axes))
        yield Mistake("reversed", f"reversed along axis {over}: flip it back"), np.flip(value, axes)


def _subsets(items):
    items = tuple(items)
    for n in range(1, len(items) + 1):
        yield from itertools.combinations(items, n)


def _in_part(hand, true, evidence, explained):
    # Mistakes that leave some entries right.
    if hand.shape != true.shape or not hand.size:
        return
    scale = np.abs(true).max()
    wrong = evidence.off(hand, true)
    share = wrong.mean()
    rough = np.abs(hand - true) > 1e-11 * np.abs(true)
    if np.abs(hand - true).max() < 1e-6 * scale and rough.sum() >= np.count_nonzero(true) / 2:
        yield (Mistake("float32", "right to float32 only: find the array that is not float64"),)
    places = [tuple(map(int, place)) for place in np.argwhere(wrong)[:16]]
    where = ", ".join(str(list(place)) for place in places[:3]) + (", ..." if places[3:] else "")
    # a tie may take most of a small array; that is looked at when nothing else explains it
    few = share <= 0.5 or (wrong.sum() <= len(places) and not explained)
    if share and few and evidence.at_a_kink(places):
        words = f"right except at a kink or a tie, {where}: there the slope is a choice"
        yield (Mistake("kink", words),)
        return
    if 0 < share <= 0.5:
        if not true[wrong].any():
            words = f"right except at {where}, where it must be 0: a masked or padded place"
            yield (Mistake("masked", words),)
        elif not hand[wrong].any():
            words = f"right except at {where}, where it is 0: masked, though it counts"
            yield (Mistake("masked", words),)
    if hand.ndim and hand.shape[-1] > 2 and _shifted_label(hand, true, wrong):
        yield (LABEL,)


LABEL = Mistake("label", "a label, or an id, is off by one: they count from 0")


def _shifted_label(hand, true, wrong):
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


def _of_a_symmetric_matrix(true):
    # Entries (i, j) and (j, i) taken for one number, which moves both of them.
    if true.ndim > 1 and true.shape[-1] == true.shape[-2]:
        off = ~np.eye(true.shape[-1], dtype=bool)
        for factor, done in ((2.0, "doubled"), (0.5, "halved")):
            words = f"the off-diagonal entries are {done}: "
            words += "each entry of a symmetric matrix counts once, by itself"
            yield Alternative((Mistake("symmetric", words),), np.where(off, factor * true, true))


def _of_a_norm(hand, true, evidence):
    # A norm's gradient has three paths: the direct one, the mean's and the variance's. What the
    # last two contribute is, slice by slice, a constant and a multiple of the centred input.
    x = evidence.argument
    if x is None or hand.shape != true.shape or x.shape != true.shape or true.ndim < 1:
        return
    error = hand - true
    for axes in dict.fromkeys([(true.ndim - 1,), tuple(range(true.ndim - 1)), (0,)]):
        n = int(np.prod([x.shape[a] for a in axes], dtype=int))
        if n < 3:
            continue
        mean = lambda a, axes=axes: a.mean(axis=axes, keepdims=True)  # noqa: E731
        scale = np.abs(true).max()
        centred, has_mean = x - mean(x), np.abs(mean(true)).max() < 1e-9 * scale
        u = centred if has_mean else x
        power = mean(u * u)
        if not power.all() or np.abs(mean(true * u)).max() > 1e-2 * scale * np.sqrt(power.max()):
            continue  # not a norm over these axes: its gradient is not at right angles to u
        constant = mean(error) if has_mean else 0 * mean(error)
        along = u * (mean(error * u) / power)
        if not evidence.close(true + constant + along, hand):
            continue
        mistakes = []
        # The direct path is the slope with both fixed, dz times u's own factor, which the value
        # tells: the layer less itself at u = 0. From it follows what each path contributes.
        # (A layer that divides by a length has no value at 0: take it for 0.)
        value = evidence.forward(x) - np.nan_to_num(evidence.forward(x - u))
        direct = evidence.upstream * np.divide(value, u, out=np.zeros_like(u), where=u != 0)
        if np.abs(constant).max() > 1e-9 * scale:
            mistakes.append(_path("mean", constant, mean(direct), n))
        if np.abs(along).max() > 1e-9 * scale:
            path = "variance" if has_mean else "length"
            mistakes.append(_path(path, along, u * mean(direct * u) / power, n))
        yield Alternative(tuple(mistakes), hand)


def _path(name, missing, whole, n):
    # The share of a path's contribution that is missing says what was done to it.
    square = (whole * whole).sum()
    share = (missing * whole).sum() / square if square > 0 else 1.0
    if name == "variance" and abs(share + 1 / (n - 1)) < 1e-3 / n:
        words = f"n - 1 stands for n = {n} in the variance path (Bessel's correction)"
        return Mistake("Bessel", words)
    if abs(share - 1) < 1e-2:
        words = f"the {name} path is left out: the {name} moves with every entry"
    else:
        words = f"the {name} path counts {1 - share:.3g} times"
    return Mistake(f"{name} path", words)
