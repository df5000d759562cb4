"""GPT-2 whole, by hand and by jax.grad: python benchmarks/gpt2.py [float32|float64 ...]

The 124M configuration: 12 blocks, d = 768, 12 heads, 50257 tokens, and one sequence of 128, with
random weights, norms and biases. For each dtype, float32 alone unless others are named, it compares
all 148 tensors of the gradient by hand with jax.grad's, and stops with an error unless each agrees:
to 1e-5 in float32, 1e-12 in float64, relative to the tensor's largest entry. The biases of the keys
change no weight, (6.2), so their true gradient is 0: it is judged with those of queries and values,
whose tensor it shares.

Then it prints what the hand takes beside jax.grad, each as one program under jit: the time of a
step, the median over rounds that take both in turn, and the time to trace and compile; and last the
memory that was needed at most, which is to stay below 8 GiB.
"""

import resource
import statistics
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import handgrad as hg

SIZE = {"vocabulary": 50257, "positions": 1024, "d": 768, "blocks": 12}
HEADS, T, ROUNDS = 12, 128, 7
AGREE = {"float32": 1e-5, "float64": 1e-12}


def parameters(rng, dtype):
    """GPT-2's, with noise on norms and biases, so that no entry is special."""

    def drawn(leaf):
        noise = 0.1 * rng.normal(size=leaf.shape) if leaf.ndim == 1 else 0
        return jnp.asarray(leaf + noise, dtype)

    return jax.tree.map(drawn, hg.gpt_parameters(rng, **SIZE))


def timed(f, *args):
    """The seconds that a call takes, and what it returns."""
    start = time.perf_counter()
    out = jax.block_until_ready(f(*args))
    return time.perf_counter() - start, out


def compare(dtype):
    """Compare and time both in this dtype."""
    rng = np.random.default_rng(0)
    p = parameters(rng, dtype)
    ids, y = jnp.asarray(rng.integers(0, SIZE["vocabulary"], size=(2, T)))
    ways = {
        "by hand": jax.jit(partial(hg.gpt_gradients, heads=HEADS)),
        "jax.grad": jax.jit(jax.value_and_grad(partial(hg.gpt_loss, heads=HEADS))),
    }
    first, found = {}, {}
    for name, f in ways.items():
        first[name], found[name] = timed(f, p, ids, y)
    (loss, hand), (its_loss, its) = found.values()
    judge(dtype, hand, its)
    print(f"{dtype}: loss {loss:.6f} by hand, {its_loss:.6f} by JAX")
    del found, hand, its
    rounds = [{name: timed(f, p, ids, y)[0] for name, f in ways.items()} for _ in range(ROUNDS)]
    step = {name: statistics.median(took[name] for took in rounds) for name in ways}
    for what, took in (
        ("a step", step),
        ("to compile", {name: first[name] - step[name] for name in ways}),
    ):
        mine, its = took.values()
        print(f"{dtype}: {what} {mine:.2f} s by hand, {its:.2f} s by JAX: {mine / its:.2f}")


def judge(dtype, hand, its):
    """Compare two trees tensor by tensor, and name the one that is farthest off."""
    named, leaves = jax.tree_util.tree_leaves_with_path(hand), jax.tree.leaves(its)
    assert jax.tree.structure(hand) == jax.tree.structure(its)
    off = {}
    for (path, mine), true in zip(named, leaves, strict=True):
        off[jax.tree_util.keystr(path)] = float(jnp.abs(mine - true).max() / jnp.abs(true).max())
    worst = max(off, key=off.get)
    count = sum(leaf.size for leaf in leaves)
    right = sum(value < AGREE[dtype] for value in off.values())
    print(f"{dtype}: {right} of {len(off)} tensors, {count:,} numbers, agree to {AGREE[dtype]}")
    print(f"{dtype}: farthest off is {worst}, by {off[worst]:.1e} of its largest entry")
    if right < len(off):
        raise SystemExit("a gradient is wrong")


def main(dtypes):
    """Compare in these dtypes."""
    for dtype in dtypes or ["float32"]:
        jax.config.update("jax_enable_x64", dtype == "float64")
        compare(dtype)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"memory at most: {peak:.1f} GiB")


if __name__ == "__main__":
    main(sys.argv[1:])
