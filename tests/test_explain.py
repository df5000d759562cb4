"""What was done to a wrong gradient: one hypothesis that fails costs its own answer only."""

import jax
import numpy as np
import pytest

from handgrad.check import GradientMismatch, check_gradient, check_rule, variants

rng = np.random.default_rng(21)


def said(check, *operands, **steps):
    """What a check says of wrong gradients: the verdicts by name."""
    with pytest.raises(GradientMismatch) as mismatch:
        check(*operands, **steps)
    return {verdict.name: verdict for verdict in mismatch.value.report if not verdict.right}


def names(check, *operands, **steps):
    return {name: verdict.mistakes for name, verdict in said(check, *operands, **steps).items()}


def cubes(x):
    return (x**3).sum()


@pytest.mark.parametrize("kind", range(len(variants.KINDS)))
def test_a_kind_of_variants_that_fails_costs_its_own_answer_only(kind, monkeypatch):
    def fails(suspects):
        yield 0, variants.Alternative((variants.DUPLICATES,), 7 + np.arange(4.0))
        raise MemoryError

    broken = list(variants.KINDS)
    broken[kind] = broken[kind]._replace(alternatives=fails)
    monkeypatch.setattr(variants, "KINDS", broken)
    x = rng.normal(size=4)
    assert names(check_gradient, 7 + np.arange(4), cubes, x) == {"dx": ("duplicates",)}
    assert names(check_gradient, -3 * x**2, cubes, x) == {"dx": ("sign",)}
    words = said(check_gradient, 3 * x**2 + np.arange(4), cubes, x)["dx"].words
    assert words.startswith("no known mistake; the largest error sits at [3]: ")
    assert words.endswith(f"(not tried: {broken[kind].what})")


def test_what_ended_the_search_once_is_searched_around():
    x = rng.normal(size=(9, 9, 4))
    W, b = rng.normal(size=(5, 4)), rng.normal(size=5)

    def linear(x, W, b):
        return x @ W.T + b

    def of_81_examples(residuals, dz):
        x, W = residuals
        return dz @ W, np.tensordot(dz[-1], x[-1], ((0,), (0,))), dz.sum((0, 1))

    verdicts = said(
        check_rule, linear, lambda x, W, b: (linear(x, W, b), (x, W)), of_81_examples, x, W, b
    )
    assert verdicts["dW"].mistakes[0] == "batch" and "example 8 alone" in verdicts["dW"].words

    def loss(x, key):
        return (x * jax.random.normal(key, x.shape) ** 2).sum()

    wrong = -jax.grad(loss)(x, jax.random.key(0))
    assert names(check_gradient, wrong, loss, x, jax.random.key(0)) == {"dx": ("sign",)}
