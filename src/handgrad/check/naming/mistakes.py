"""Name the mistake in a wrong gradient.    Explained in notebooks/32_checker.ipynb

A classic mistake turns the right gradient into another, predictable array, (32.7). So each
hypothesis computes that array, and where the hand has computed the same, to the digits of its
dtype, the mistake has a name. Nothing here looks at how the gradient was written.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Mistake(NamedTuple):
    """A classic mistake: its name, and the sentence that says how to mend it.

    It is sure unless another one may well be behind it.
    """

    name: str
    words: str
    sure: bool = True


SIGN = Mistake("sign", "its sign is flipped")


class Alternative(NamedTuple):
    """The array that would have come out, had these mistakes been made."""

    mistakes: tuple
    value: np.ndarray


class Wrong(NamedTuple):
    """A wrong gradient, and what else is known; what can't be known is empty.

    name is what the reader calls it; hand and true are the two arrays; off(a, b) says which entries
    of a differ from b beyond the digits of their dtype; counts are the sizes that an N may stand
    for, and constants the numbers in the program; value is what the gradient is of; peers are the
    other gradients of the check, (name, hand, true); arrays are values in the program, by what they
    are called; ids are the arrays of labels and ids. at_a_kink(places) says whether the loss has
    two slopes there; downstream are the layers that follow, (dz, the layer on any input).
    """

    name: str
    hand: np.ndarray
    true: np.ndarray
    off: Callable
    counts: tuple = ()
    constants: frozenset = frozenset()
    value: np.ndarray | None = None
    peers: tuple = ()
    arrays: Callable = dict
    ids: tuple = ()
    at_a_kink: Callable = lambda places: False
    downstream: tuple = ()

    def close(self, a, b):
        """Whether a is b, to the digits of their dtype."""
        finite = a.shape == b.shape and np.isfinite(a).all() and np.isfinite(b).all()
        return bool(finite and not self.off(a, b).any())

    def digits(self):
        """The smallest power of ten by which the largest entry may not be off, relatively."""
        powers = (10.0**k for k in range(-14, 0))
        return next((t for t in powers if self.off(self.true * (1 + t), self.true).any()), 0.1)


class Hypothesis(NamedTuple):
    """What is tried, and a function that yields the Alternatives."""

    what: str
    alternatives: Callable


class Diagnosis(NamedTuple):
    """What was done: ways to make the array, tuples of Mistakes; and what could not be tried.

    It is sure where no other way need be looked for.
    """

    made: tuple = ()
    untried: tuple = ()
    sure: bool = False


def diagnose(wrong, hypotheses):
    """The mistakes that turn the true gradient into the wrong one: a Diagnosis.

    Nothing is made when no hypothesis fits. Where several mistakes would give the same array, those
    of the fewest parts count. A hypothesis that fails or takes too long costs its own answer only.
    """
    if not np.isfinite(wrong.hand).all():
        return Diagnosis()
    fits, untried = [], []

    def each(what, generate):
        # all that generate() gives before it fails
        try:
            yield from generate()
        except Exception:  # whatever is met in the reader's code, the others are still tried
            untried.append(what)

    for what, alternatives in hypotheses:
        for alternative in each(what, alternatives):
            fits += each(what, lambda alternative=alternative: _made_of(alternative, wrong))
    fewest = min((steps for steps, _ in fits), default=0)
    made = dict.fromkeys(made for steps, made in fits if steps == fewest)
    return Diagnosis(tuple(made), tuple(dict.fromkeys(untried)))


def _made_of(alternative, wrong):
    made, value = alternative
    if made and wrong.close(value, wrong.true):
        return  # made here, it would change nothing
    if made and wrong.close(wrong.hand, value):
        yield 1, made
        return
    if made and not value.any():
        return  # zeros are multiples of nothing
    for mistakes, other, mine in _rearranged(value, wrong):
        plain = not made and not mistakes
        factor = _factor(mine, other, wrong, anything=plain)
        if factor is not None:
            more = (*mistakes, *_named(factor, wrong))
            steps = len(more) + bool(made)
            if 1 <= steps <= 2:
                yield steps, (*made, *more)


def _factor(hand, value, wrong, anything):
    # The constant c with hand = c * value, or None; any c or one that a mistake is known to make.
    if hand.shape != value.shape or not np.isfinite(value).all():
        return None
    for exactly in (1.0, -1.0):
        if wrong.close(hand, exactly * value):
            return exactly
    square = (value * value).sum()
    if not square:
        return None
    c = (hand * value).sum() / square
    if not c or not wrong.close(hand, c * value):
        return None
    # one number alone is always a multiple of another
    known = any(abs(abs(c) - k) <= 1e-6 * k for k in _famous(wrong, plain=anything))
    return c if known or (anything and np.count_nonzero(value) > 1 and abs(c) > 1e-9) else None


def _famous(wrong, plain):
    yield from (1, 2, 1 / 2)
    for n in wrong.counts:
        yield from (n, 1 / n)
        if n > 2:
            yield from (n / (n - 1), (n - 1) / n)
    if plain:  # elsewhere there are too many of them
        yield from itertools.chain.from_iterable((c, 1 / c) for c in wrong.constants)
        yield from itertools.chain.from_iterable((n**0.5, n**-0.5) for n in wrong.counts)


def _named(c, wrong):
    sign = [SIGN] if c < 0 else []
    size = abs(c)
    if abs(size - 1) <= 1e-6:
        return tuple(sign)
    reasons = dict(itertools.islice(_reasons(size, wrong), 3))
    number = f"1/{1 / size:.4g}" if reasons and size < 1 else f"{size:.4g}"
    why = ": " + ", or ".join(reasons) if reasons else ""
    words = f"off by the constant factor {number}{why}"
    return *sign, Mistake("factor", words, sure=any(reasons.values()))


def _reasons(size, wrong):
    # what a factor may stand for, and whether that is more than chance
    def is_(number):
        return abs(size - number) <= 1e-6 * number

    if is_(2):
        yield "a factor 1/2 is missing", True
    if is_(1 / 2):
        yield "a factor 2 is missing", True
    for n in sorted(set(wrong.counts)):
        if any(abs(c - k) <= 1e-6 * k for c in wrong.constants for k in (n, 1 / n)):
            if is_(n):
                yield f"the 1/N of a mean is missing, N = {n}", True
            if is_(1 / n):
                yield f"the mean over N = {n} was taken twice", True
        elif is_(n):
            yield f"{n} is a size here, though nothing is divided by it", False
        elif is_(1 / n):
            yield f"divided by {n}, a size here, by which nothing else is", False
        if n > 2 and is_(n / (n - 1)):
            yield f"n - 1 stands for n = {n} (Bessel's correction)", True
        if n > 2 and is_((n - 1) / n):
            yield f"n = {n} stands for n - 1 (Bessel's correction)", True
    for n in sorted(set(wrong.counts) - {2, 4}):
        if is_(n**0.5):
            yield f"a 1/sqrt(d) is missing, d = {n}", True
        if is_(n**-0.5):
            yield f"a 1/sqrt(d) was taken twice, d = {n}", True
    for c in sorted(wrong.constants):
        if not {c, 1 / c} & {1.0, 2.0, *map(float, wrong.counts)} and (is_(c) or is_(1 / c)):
            yield f"the program's constant {c:.4g} is forgotten, or counts twice", True


def _rearranged(value, wrong):
    # (mistakes, what the hand should be a multiple of, the hand or its sum)
    hand = wrong.hand
    yield (), value, hand
    shape = hand.shape
    if hand.size == value.size:
        seen = [value, value.reshape(shape)]
        if shape != value.shape:
            words = f"right values in the wrong shape: expected {value.shape}"
            yield (Mistake("shape", words),), seen[1], hand
        for mistake, other in _orders(value, shape) if _alike(hand, value) else ():
            if other.shape == shape and not any(wrong.close(other, s) for s in seen):
                seen.append(other)
                yield (mistake,), other, hand
    elif hand.ndim <= 5:
        for axes in _subsets(range(hand.ndim)):
            reduced = hand.sum(axis=axes)
            if np.squeeze(value).shape == np.squeeze(reduced).shape:
                leading = axes == tuple(range(len(axes))) and hand.ndim > value.ndim
                mistake = _not_summed(wrong.name, axes, leading)
                yield (mistake,), value, reduced.reshape(value.shape)


def _alike(a, b):
    # Whether one may be the other in another order, times a constant: sums that no order changes
    # tell, at the cost of one of the many orders.
    if not np.isfinite(b).all():
        return False
    (once_a, twice_a), (once_b, twice_b) = ((np.abs(x).sum(), (x * x).sum()) for x in (a, b))
    shares = once_a**2 * twice_b, once_b**2 * twice_a
    return bool(abs(shares[0] - shares[1]) <= 1e-2 * max(shares))


def _not_summed(name, axes, leading):
    over = f"axis {axes[0]}" if len(axes) == 1 else f"axes {axes}"
    what = name.removeprefix("d")
    if leading:
        words = f"the batch axis was not summed: {what} serves every example, so sum over {over}"
        return Mistake("batch", words)
    words = f"a broadcast was not summed: {what} was repeated, so sum over {over}"
    return Mistake("broadcast", words)


def _orders(value, shape):
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
