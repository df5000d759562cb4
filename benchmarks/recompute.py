"""What recomputing costs, beside JAX's gradients of the plain forms: python benchmarks/recompute.py

Forward and backward under jit, in float32. A round times the rule, the plain form, and the plain
form once more, in random order. Printed are the medians over the rounds of the plain form's
milliseconds, of rule/plain, and of again/plain, which is 1 but for noise; and the megabytes that
the compiled programs need beyond inputs and outputs. Measured is the processor's time. Run it on
one core: taskset -c 0 python ...
"""

import random
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import handgrad as hg

ROUNDS = 11


def flash(q, k, v, do, **hyper):
    """O and its gradients, by the rule."""
    o, residuals = hg.flash_attention_fwd(q, k, v, **hyper)
    return o, hg.flash_attention_bwd(residuals, do, **hyper)


def plain_attention(q, k, v, do, *, causal=False):
    """The same, by jax.vjp of attention."""
    o, pull = jax.vjp(partial(hg.attention, causal=causal), q, k, v)
    return o, pull(do)


def chunked_loss(x, W, y, dl):
    """The losses and their gradients, by the rule."""
    loss, residuals = hg.linear_cross_entropy_fwd(x, W, y)
    return loss, hg.linear_cross_entropy_bwd(residuals, dl)[:2]


def plain_loss(x, W, y, dl):
    """The same, by jax.vjp of the linear layer and the cross-entropy."""
    loss, pull = jax.vjp(lambda x, W: hg.softmax_cross_entropy(x @ W.T, y), x, W)
    return loss, pull(dl)


def measure(title, rule, plain, args):
    """Print the line of a table."""
    compiled = [jax.jit(f).lower(*args).compile() for f in (rule, plain)]
    runs = {"rule": compiled[0], "plain": compiled[1], "again": compiled[1]}
    rounds = []
    for _ in range(ROUNDS + 1):  # the first one warms up
        took = {}
        for name in random.sample(list(runs), 3):
            start = time.process_time()
            jax.block_until_ready(runs[name](*args))
            took[name] = time.process_time() - start
        rounds.append((1e3 * took["plain"], *(took[n] / took["plain"] for n in ("rule", "again"))))
    milliseconds, ratio, again = map(statistics.median, zip(*rounds[1:], strict=True))
    ours, theirs = (c.memory_analysis().temp_size_in_bytes / 1e6 for c in compiled)
    print(f"{title:44} {milliseconds:8.1f} {ratio:10.2f} {again:11.2f} {ours:8.1f} {theirs:9.1f}")


def main():
    """Print the table."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), "float32")  # noqa: E731
    print(f"{'':44} {'plain ms':>8} {'rule/plain':>10} {'again/plain':>11} {'rule MB':>8} plain MB")
    for shape in ((1024, 64), (4, 1024, 64)):
        for causal in (True, False):
            for block in (64, 128):
                title = f"attention {shape}{', causal' if causal else ''}, block {block}"
                rule = partial(flash, causal=causal, block=block)
                plain = partial(plain_attention, causal=causal)
                measure(title, rule, plain, [draw(*shape) for _ in range(4)])
    for N, d, k in ((256, 64, 50257), (256, 256, 20000)):
        x, W, dl = draw(N, d), draw(k, d) / 8, draw(N)
        y = jnp.asarray(rng.integers(k, size=N))
        measure(
            f"loss of {N} examples ({d},), {k} classes", chunked_loss, plain_loss, (x, W, y, dl)
        )


if __name__ == "__main__":
    main()
