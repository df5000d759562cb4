"""Layers that people write by hand, and the mistakes that they make in them.

Apart from the checker: nothing here is known to it. Each mistake comes from a public report or a
course's forum where there is one, and was written again for a layer of this size.
"""

from collections.abc import Callable
from typing import NamedTuple


class Mistake(NamedTuple):
    """A mistake that the backward pass of a layer makes when it is asked to.

    fits holds the names that would describe it, says a pattern that its sentence must match, where
    one is due; source is the report that it was seen in, "" where it is common knowledge.
    """

    what: str
    fits: tuple
    says: str = ""
    source: str = ""


class Layer(NamedTuple):
    """A layer: its plain forward, its backward pass, its arguments, and its mistakes.

    f(*args) is the forward in jax.numpy; backward(args, dz, wrong) returns a cotangent for each
    argument, None for an integer one, right when wrong is "", else with the mistake of that name
    made; draw(rng, size) gives the arguments, size "small" or "realistic".
    """

    name: str
    f: Callable
    backward: Callable
    draw: Callable
    mistakes: tuple
