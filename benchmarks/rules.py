"""What each rule costs beside jax.grad of its plain forward: python benchmarks/rules.py [NAME ...]

Forward and backward under jit, in float32, at sizes that take some tenths of a millisecond or more.
A round times both, and the plain one once more, in random order; the ratios of a round are taken
within it. Printed are the medians over the rounds: hand/plain, and again/plain, which is 1 but for
noise, with its quartiles. Kept are the kilobytes that wait for the way back, beyond inputs and
output, in the rule's residuals and in jax.vjp's. Measured is the processor's time, not the clock's,
so that others on the machine count little. Run it on one core: taskset -c 0 python ...
"""

import random
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from handgrad.catalog import ROWS
from handgrad.check.arrays import put
from handgrad.classroom.facts import axes

ROUNDS, LEAST = 15, 2e-3  # seconds that one measurement lasts
BATCH, SIZES = (256,), {"H": 24, "W": 24, "P": 24, "Q": 24, "T": 256, "kh": 3, "kw": 3, "K": 3}
CHANNELS = {"C": 16, "F": 24}
SIDE = 48  # of a square matrix
LONG = {  # what the axes of a signature do not tell
    "broadcast_to": (((128,),), {"shape": (1024, 128)}),
    "transpose": (((64, 128, 32),), {"axes": (2, 0, 1)}),
    "reshape": (((64, 128, 32),), {"shape": (-1, 32)}),
    "pad": (((512, 256),), {"widths": ((1, 2), (3, 4))}),
    "concatenate": (((512, 256), (512, 128)), {"axis": 1}),
    "einsum": (((16, 64, 96), (16, 96, 80)), {"subscripts": "bij,bjk->bik"}),
    "sum": (((1024, 256),), {"axis": 0}),
    "mean": (((1024, 256),), {"axis": 0}),
    "prod": (((512, 64),), {"axis": 1}),
    "max": (((512, 256),), {"axis": 1}),
    "cumsum": (((512, 256),), {"axis": 1}),
    "attention": (((4, 256, 64),) * 3, {"causal": True}),
    "linear_attention": (((4, 256, 32),) * 3, {}),
    "gated_linear_attention": (((4, 256, 32),) * 4, {}),
    "selective_scan": (((4, 256, 64),) * 2 + ((64, 16), *((4, 256, 16),) * 2, (64,)), {}),
    "delta_rule": (((4, 256, 32),) * 3 + ((4, 256),), {}),
    "flash_attention": (((4, 1024, 64),) * 3, {"causal": True}),
    "alibi_attention": (((4, 256, 64),) * 3, {"slope": 0.5}),
    "grouped_query_attention": (((4, 256, 64), (2, 256, 64), (2, 256, 64)), {}),
    "rotary": (((64, 256, 64),), {}),
    "multi_head_attention": (
        ((4, 256, 128), (384, 128), (384,), (128, 128), (128,)),
        {"heads": 4, "causal": True},
    ),
}


def large(row, rng):
    """Arguments of a size that one meets, and the hyperparameters of the typical example."""
    args, hyper = row.examples(rng)["typical"]
    if row.name in LONG:
        shapes, hyper = LONG[row.name]
    else:
        shapes = [_shape(of) for of in axes(row)]
    made = []
    for arg, shape in zip(args, shapes, strict=True):
        arg = np.asarray(arg)
        if shape[-2:] == (SIDE, SIDE):  # positive definite
            a = rng.normal(size=shape)
            made.append(jnp.asarray(a @ np.swapaxes(a, -1, -2) + SIDE * np.eye(SIDE), "float32"))
        elif arg.dtype.kind == "f":  # numbers as in the example, for which all is defined
            made.append(jnp.asarray(np.resize(arg, shape), "float32"))
        else:
            made.append(jnp.asarray(np.resize(arg, shape)))
    return made, hyper


def _shape(names):
    shape = []
    for axis in names:
        if axis.startswith("*"):
            shape += {"*shape": [512, 128], "*space": [8, 8]}.get(axis, [*BATCH])
        else:
            number, star, name = axis.rpartition("*")  # 4*h: four times h
            times = 2 if axis.startswith("two_") else int(number) if star else 1
            default = SIDE if name == "n" else 96
            shape.append(times * (SIZES | CHANNELS).get(name, default))
    return tuple(shape)


def measured(row, rng):
    """(hand/plain, quartiles of again/plain, kilobytes kept by hand, and by jax.vjp)."""
    args, hyper = large(row, rng)
    which = [i for i, arg in enumerate(args) if arg.dtype == jnp.float32]
    given = [args[i] for i in which]

    def plain(*xs):
        return row.f(*put(args, which, xs), **hyper)

    z = plain(*given)
    dz = jnp.asarray(rng.normal(size=z.shape), z.dtype)

    def by_hand(dz, *xs):
        z, residuals = row.f_fwd(*put(args, which, xs), **hyper)
        gradients = row.f_bwd(residuals, dz, **hyper)
        return z, [gradients[i] for i in which]

    def by_jax(dz, *xs):
        z, pull = jax.vjp(plain, *xs)
        return z, list(pull(dz))

    runs = {"hand": jax.jit(by_hand), "plain": jax.jit(by_jax), "again": jax.jit(by_jax)}
    for run in runs.values():
        jax.block_until_ready(run(dz, *given))
    start = time.process_time()
    jax.block_until_ready(runs["plain"](dz, *given))
    times = max(1, int(LEAST / (time.process_time() - start)))
    rounds = []
    for _ in range(ROUNDS):
        took = {}
        for name in random.sample(list(runs), len(runs)):
            start = time.process_time()
            for _ in range(times):
                out = runs[name](dz, *given)
            jax.block_until_ready(out)
            took[name] = time.process_time() - start
        rounds.append((took["hand"] / took["plain"], took["again"] / took["plain"]))
    hand, again = zip(*rounds, strict=True)
    _, residuals = row.f_fwd(*args, **hyper)
    _, pull = jax.vjp(plain, *given)
    free = [np.asarray(a) for a in (*args, z)]
    return (
        statistics.median(hand),
        statistics.quantiles(again),
        *(_kept(tree, free) for tree in (residuals, pull)),
    )


def _kept(tree, free):
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    known = lambda leaf: any(np.array_equal(leaf, a, equal_nan=True) for a in free)  # noqa: E731
    return sum(leaf.nbytes for leaf in leaves if not known(leaf)) / 1e3


def main(names):
    """Print the table, of the rules of these names or of all."""
    print(f"{'rule':32} {'hand/plain':>10} {'again/plain':>24} {'kept kB':>9} {'by JAX':>9}")
    for row in ROWS:
        if names and row.name not in names:
            continue
        hand, (low, middle, high), ours, theirs = measured(row, np.random.default_rng(0))
        again = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        print(f"{row.name:32} {hand:10.2f} {again:>24} {ours:9.1f} {theirs:9.1f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
