"""What was done to a wrong gradient: the names, no wrong ones, and what could not be tried."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handgrad.check import GradientMismatch, check_gradient, check_rule, check_steps, rule, tap
from handgrad.check.naming import explain, variants

rng = np.random.default_rng(21)
X, A, S, V = (rng.normal(size=size) for size in ((5, 4), (4, 3), (4, 4), 5))
LABELS, LENGTHS = np.array([0, 2, 1, 2, 2]), np.array([2, 1, 4, 3, 2])


def said(check, *operands, **steps):
    """What a check says of wrong gradients: the wrong verdicts by name."""
    with pytest.raises(GradientMismatch) as mismatch:
        check(*operands, **steps)
    return {verdict.name: verdict for verdict in mismatch.value.report if not verdict.right}


def of_rule(f, bwd, *args):
    """What check_rule says of a rule that keeps its arguments as residuals."""
    return said(check_rule, f, lambda *args: (f(*args), args), bwd, *args)


def cubes(x):
    return (x**3).sum()


def entropy(z):
    return -jax.nn.log_softmax(z)[np.arange(5), LABELS].mean()


def of_labels(y):
    return (jax.nn.softmax(X) - jax.nn.one_hot(y, 4)) / 5


def masked(x):
    return (jnp.where(jnp.arange(4) < LENGTHS[:, None], x, -9.0) ** 2).sum()


def of_lengths(lengths):
    return np.where(np.arange(4) < lengths[:, None], 2 * X, 0)


def picked(table):
    return (table[LABELS] * X).sum()


MEANS = np.stack([*(X[i == LABELS].mean(0) for i in range(3)), np.zeros(4)])


def ridge(A):
    return ((X @ A) ** 2).mean() + 0.3 * (A**2).sum()


def error(w):
    return ((X @ w - V) ** 2).mean()


def bilinear(S):
    return X[0] @ S @ X[1]


FIT, OUTER = 2 * X.T @ X @ A / 15, np.outer(X[0], X[1])

# the loss, the wrong gradient, the argument, a name, and words of the sentence
NAMED = {
    "never written": (cubes, 0 * X, X, "zeros", "never written"),
    "a row too far": (cubes, np.roll(3 * X**2, 1, 0), X, "shifted", r"\+1 along axis 0"),
    "no decay": (ridge, FIT, A, "decay", "-0.6 times A itself: is its decay missing"),
    "decay twice": (ridge, FIT + 1.2 * A, A, "decay", "0.6 times A itself: .* counted twice"),
    "N of data closed over": (error, 2 * X.T @ (X @ S[0] - V), S[0], "factor", "missing, N = 5"),
    "a size by chance": (cubes, 12 * X**2, X, "factor", "though nothing is divided by it"),
    "taken as symmetric": (bilinear, OUTER + OUTER.T, S, "symmetric", "counts by itself"),
    "one triangle": (bilinear, np.tril(OUTER), S, "symmetric", "only its lower triangle"),
    "times itself": (cubes, 3 * X**3, X, "scale", "the factor x counts twice"),
    "labels closed over": (entropy, of_labels(LABELS + 1), X, "label", "they count from 0"),
    "one label for all": (entropy, of_labels(0 * LABELS), X, "label", "of the first stands for"),
    "mask too long": (masked, of_lengths(LENGTHS + 1), X, "masked", "one place too far"),
    "no mask": (masked, 2 * X, X, "masked", "must be 0|the mask is left out"),
    "means of rows": (picked, MEANS, S, "duplicates", "divided by the number of its uses"),
}


@pytest.mark.parametrize("what", NAMED)
def test_a_gradient_is_named(what):
    f, hand, x, name, words = NAMED[what]
    ((_, verdict),) = said(check_gradient, hand, f, x).items()
    assert name in verdict.mistakes and re.search(words, verdict.words), verdict


def attention(q, k):
    return jax.nn.softmax(q @ k.T / np.sqrt(16))


def test_exchanged_gradients_and_the_constant_of_a_product_are_named():
    q, k = rng.normal(size=(3, 16)), rng.normal(size=(3, 16))
    right = lambda args, dz: jax.vjp(attention, *args)[1](dz)  # noqa: E731
    found = of_rule(attention, lambda args, dz: right(args, dz)[::-1], q, k)
    assert [v.words for v in found.values()] == ["dk and dq are exchanged"] * 2
    found = of_rule(attention, lambda args, dz: (right(args, dz)[0], 4 * right(args, dz)[1]), q, k)
    assert "a 1/sqrt(d) is missing, d = 16" in found["dk"].words
    product = lambda a, b: a @ b  # noqa: E731
    found = of_rule(product, lambda args, dz: (args[0].T @ dz, dz @ args[1].T), X, A)
    assert found["da"].words == "expected shape (5, 4); da and db are exchanged"


def test_a_reversed_kernel_is_named():
    def convolve(x, kernel):
        return sum(x[k : k + 4] @ kernel[k] for k in range(3))

    def bwd(args, dz):
        x, kernel = args
        dx, _ = jax.vjp(convolve, x, kernel[::-1])[1](dz)
        return dx, jax.vjp(convolve, x, kernel)[1](dz)[1]

    found = of_rule(convolve, bwd, rng.normal(size=(6, 3)), rng.normal(size=(3, 3, 2)))
    assert "kernel, is reversed along axis 0" in found["dx"].words


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("paths", "over", "name"),
    [("m", -1, "variance path"), ("v", -1, "mean path"), ("mv", None, "axis"), ("mv", -1, "")],
)
def test_the_paths_of_a_norm_are_told_apart(dtype, paths, over, name):
    def parts(x):
        scale = 1 / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return (x - x.mean(-1, keepdims=True)) * scale, scale

    def bwd(args, dz):
        u, scale = parts(*args)
        mean = lambda a: a.mean(over, keepdims=True)  # noqa: E731
        return (scale * (dz - ("m" in paths) * mean(dz) - ("v" in paths) * u * mean(dz * u)),)

    f, x = lambda x: parts(x)[0], jnp.asarray(X, dtype)
    if name:
        assert of_rule(f, bwd, x)["dx"].mistakes == (name,)
    else:
        check_rule(f, lambda *args: (f(*args), args), bwd, x)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_scale_that_stands_outside_a_norm_s_sums_is_named(dtype):
    def parts(x, gamma):
        r = 1 / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return gamma * (x * r), x * r, r

    def bwd(args, dz):
        _, u, r = parts(*args)
        dx = args[1] * r * (dz - u * (dz * u).mean(-1, keepdims=True))
        return dx, (dz * u).sum(0)

    args = jnp.asarray(X, dtype), jnp.asarray(rng.normal(size=X.shape[1]), dtype)
    found = of_rule(lambda x, gamma: parts(x, gamma)[0], bwd, *args)
    assert found["dx"].mistakes == ("scale",) and "summed" in found["dx"].words
    assert list(found) == ["dx"]


def test_what_is_no_classic_mistake_gets_no_name():
    wrong = 3 * X**2
    wrong[1, :2] += [1.0, -1.0]  # two neighbours, and no label in sight
    assert said(check_gradient, wrong, cubes, X)["dx"].mistakes == ()

    def smoothed(z):
        r = jax.nn.log_softmax(z)
        return -(0.9 * r[:, 7] + 0.1 * r.mean(1)).sum()

    z = rng.normal(size=(2, 4000))
    target = np.full(z.shape, 0.1 / 3999)
    target[:, 7] = 0.9  # spread over the other classes: as close as float32, and not rounded
    found = said(check_gradient, jax.nn.softmax(z) - target, smoothed, z)
    assert "float32" not in found["dz"].mistakes


def chain(x):
    return (tap("c", jnp.exp(tap("b", jnp.sin(tap("a", 2 * x))))) ** 2).sum()


def test_only_what_comes_after_a_step_is_its_upstream():
    a = 2 * V
    dc = 2 * np.exp(np.sin(a))
    db = dc * np.exp(np.sin(a))
    da = db * np.cos(a) + 1
    found = said(check_steps, chain, at=(V,), dc=dc, db=da, da=da, dx=2 * da)
    assert "local factor" not in found["db"].mistakes  # it is da, and da comes before it
    assert "upstream db, passed through" in found["da"].words


def test_the_true_gradient_is_right_though_not_from_the_reader_s_own():
    def loss(A):
        return (tap("z", X @ A) ** 2).sum() / 10

    z = X @ A
    found = said(check_steps, loss, at=(A,), dz=z, dA=X.T @ z / 5)
    assert list(found) == ["dz"]
    with pytest.raises(
        GradientMismatch, match=r"dA .*\)  is the true gradient, .* not from your dz"
    ):
        check_steps(loss, at=(A,), dz=z, dA=X.T @ z / 5)


def test_a_tap_of_one_row_leaves_the_examples_in_sight():
    def loss(W, h):
        z = tap("z", X @ W.T + tap("s", 2 * h))
        return (tap("a", jnp.tanh(z)) * da).sum()

    h, da = rng.normal(size=(1, 3)), rng.normal(size=(5, 3))
    dz = da * (1 - np.tanh(X @ A + 2 * h) ** 2)
    d = {"da": da, "dz": dz, "ds": dz.sum(0, keepdims=True), "dW": np.outer(dz[4], X[4])}
    found = said(check_steps, loss, at=(A.T, h), **d)
    assert list(found) == ["dW"] and "example 4 alone" in found["dW"].words


@pytest.mark.parametrize("kind", range(len(variants.KINDS)))
def test_a_kind_of_variants_that_fails_costs_its_own_answer_only(kind, monkeypatch):
    def fails(suspects):
        yield 0, variants.Alternative((variants.DUPLICATES,), 7 + np.arange(4.0))
        raise MemoryError

    broken = list(variants.KINDS)
    broken[kind] = broken[kind]._replace(alternatives=fails)
    monkeypatch.setattr(variants, "KINDS", broken)
    x = X[0]
    found = said(check_gradient, 7 + np.arange(4), cubes, x)["dx"]
    assert found.mistakes == ("duplicates",)
    assert said(check_gradient, -3 * x**2, cubes, x)["dx"].mistakes == ("sign",)
    words = said(check_gradient, 3 * x**2 + np.arange(4), cubes, x)["dx"].words
    assert words.startswith("no known mistake; the largest error sits at [3]: ")
    assert words.endswith(f"(not tried: {broken[kind].what})")


def test_what_can_t_be_looked_into_is_named_from_the_arrays_alone(monkeypatch):
    def fails(*operands):
        raise RuntimeError

    monkeypatch.setattr(variants.Suspects, "evidence", fails)
    monkeypatch.setattr(variants, "Program", fails)
    monkeypatch.setattr(explain, "search", fails)
    assert said(check_gradient, -3 * X**2, cubes, X)["dx"].mistakes == ("sign",)
    words = said(check_gradient, 3 * X**2 + X**3, cubes, X)["dx"].words
    assert "no known mistake" in words and "(not tried: " in words


def test_what_ended_the_search_once_is_searched_around():
    x, W, b = rng.normal(size=(9, 9, 4)), rng.normal(size=(5, 4)), rng.normal(size=5)

    def linear(x, W, b):
        return x @ W.T + b

    def of_81_examples(args, dz):
        x, W, _ = args
        return dz @ W, np.tensordot(dz[-1], x[-1], ((0,), (0,))), dz.sum((0, 1))

    found = of_rule(linear, of_81_examples, x, W, b)["dW"]
    assert found.mistakes[0] == "batch" and "example 8 alone" in found.words

    def loss(x, key):
        return (x * jax.random.normal(key, x.shape) ** 2).sum()

    wrong = -jax.grad(loss)(x, jax.random.key(0))
    assert said(check_gradient, wrong, loss, x, jax.random.key(0))["dx"].mistakes == ("sign",)


def test_more_work_than_is_allowed_is_left_and_said(monkeypatch):
    monkeypatch.setattr(variants, "WORK", 1)
    found = said(check_gradient, of_labels(LABELS) + np.sin(X), entropy, X)["dz"]
    assert found.mistakes == () and "(not tried: other labels, ids and masks" in found.words


def test_axes_in_another_order_and_a_diagonal_that_counts_twice_are_named():
    x, W = rng.normal(size=(5, 2, 3)), rng.normal(size=(6, 4))
    dense = lambda x, W: x.reshape(5, 6) @ W  # noqa: E731

    def channels_last(args, dz):
        x, W = args
        return (dz @ W.T).reshape(5, 3, 2).swapaxes(1, 2), x.reshape(5, 6).T @ dz

    found = of_rule(dense, channels_last, x, W)["dx"]
    assert found.mistakes[0] == "permuted" and "in another order" in found.words
    moved = lambda x: jnp.sin(x.transpose(1, 2, 0))  # noqa: E731
    of_moved = lambda args, dz: ((dz * jnp.cos(args[0].transpose(1, 2, 0))).reshape(5, 2, 3),)  # noqa: E731
    assert "axes not moved back" in of_rule(moved, of_moved, x)["dx"].words
    total = lambda x: jnp.cumsum(x**2, axis=1)  # noqa: E731
    of_total = lambda args, dz: (jnp.cumsum(dz[::-1], axis=0)[::-1] * 2 * args[0],)  # noqa: E731
    found = of_rule(total, of_total, x)["dx"]
    assert found.mistakes == ("axis",) and "summed along axis 0, not along axis 1" in found.words
    gram = lambda x: jnp.einsum("bpi,bpj->bij", x, x)  # noqa: E731
    twice = lambda args, dz: (args[0] @ ((dz + dz.swapaxes(1, 2)) * (1 + jnp.eye(3))),)  # noqa: E731
    found = of_rule(gram, twice, x)["dx"]
    assert found.mistakes[0] == "diagonal" and "counts twice" in found.words


def test_labels_past_the_last_class_and_ids_of_the_other_end_are_named():
    wrong = (jax.nn.softmax(X[:, :3]) - jax.nn.one_hot(LABELS + 1, 3)) / 5
    found = said(check_gradient, wrong, entropy, X[:, :3])["dz"]
    assert "label" in found.mistakes and "read 1 too high" in found.words
    source, target = jnp.array([0, 1, 2, 3, 4, 4, 0]), jnp.array([1, 1, 2, 0, 3, 4, 4])

    def degrees(ids):
        return jax.ops.segment_sum(jnp.ones(7), ids, 5)[:, None]

    def passed(x):
        return jax.ops.segment_sum((x**2)[source], target, 5) / degrees(target)

    for dz_at, degree_of in ((source, target), (target, source)):

        def of_passed(args, dz, dz_at=dz_at, degree_of=degree_of):
            sent = (dz / degrees(degree_of))[dz_at]
            return (2 * args[0] * jax.ops.segment_sum(sent, source, 5),)

        found = of_rule(passed, of_passed, X)["dx"]
        assert found.mistakes[:2] == ("operand", "residual") and "the ids" in found.words, found


def test_what_a_cotangent_stands_for_and_a_slope_inside_are_named():
    smooth = lambda z: -jax.nn.log_softmax(z).mean(1)  # noqa: E731
    first = lambda args, dz: ((jax.nn.softmax(args[0]) - 1 / 4) * dz[0],)  # noqa: E731
    assert "every example has the first one's" in of_rule(smooth, first, X)["dz"].words
    taken = lambda args, dz: (jax.nn.softmax(args[0]) - dz[:, None] / 4,)  # noqa: E731
    assert "what arrives is taken for -1" in of_rule(smooth, taken, X)["dz"].words
    layer = lambda x, A: jnp.tanh(x @ A)  # noqa: E731

    def at_the_cotangent(args, dz):
        x, A = args
        d = 1 - jnp.tanh(dz) ** 2
        return d @ A.T, x.T @ d

    found = of_rule(layer, at_the_cotangent, X, A)
    assert all("slope at the cotangent stands alone" in v.words for v in found.values())
    spread = lambda v: V[:, None] * jnp.exp(v / 2)  # noqa: E731
    inside = lambda args, dz: (dz * V[:, None] * jnp.exp(args[0]),)  # noqa: E731
    assert "left out, here and in the slope" in of_rule(spread, inside, X)["dv"].words


def test_what_was_told_is_not_looked_for_again_at_another_point(monkeypatch):
    asked = []

    def counted(verdicts, findings, suspects):
        asked.append([f.name for f in findings if f.wrong])
        return explain.explained(verdicts, findings, suspects)

    monkeypatch.setattr(rule, "explained", counted)
    x, s = rng.normal(size=(3, 4)), np.ones(4)

    def scaled(x, s):
        return x * s

    def with_s(args, dz):
        return dz * args[1], (dz * jnp.cos(args[0])).sum(0)

    def without_s(args, dz):
        return dz, with_s(args, dz)[1]

    for bwd, wrong in ((with_s, [["ds"]]), (without_s, [["ds"], ["dx", "ds"]])):
        asked.clear()
        of_rule(scaled, bwd, x, s)
        assert asked == wrong


POOLS = {
    "maxima": lambda x: jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 3, 3), (1, 2, 2), "VALID"
    ),
    "sums": lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3), (1, 2, 2), "VALID"),
    "a convolution": lambda x: jax.lax.conv(x[:, None], np.ones((1, 1, 3, 3)), (2, 2), "VALID")[
        :, 0
    ],
}


@pytest.mark.parametrize("name", POOLS)
def test_windows_that_overwrite_where_they_overlap_are_named(name):
    pool, x = POOLS[name], rng.normal(size=(2, 5, 7))

    def overwrites(args, dz):
        (x,) = args
        dx = np.zeros_like(x)
        for i, j in np.ndindex(2, 3):
            (one,) = jax.vjp(pool, x)[1](dz * (np.arange(6).reshape(2, 3) == 3 * i + j))
            window = slice(None), slice(2 * i, 2 * i + 3), slice(2 * j, 2 * j + 3)
            dx[window] = one[window]
        return (dx,)

    found = of_rule(pool, overwrites, x)["dx"]
    assert found.mistakes == ("overwritten",) and "the last overwrites" in found.words


def test_a_factor_that_is_applied_at_the_wrong_end_is_named_and_counts_are_no_masks():
    tail, head = np.array([0, 0, 0, 1, 2, 2, 3, 1]), np.array([1, 2, 3, 2, 0, 3, 2, 0])
    incoming = np.bincount(head)[:, None]

    def average(x):
        return jnp.zeros_like(x).at[head].add(x[tail]) / incoming

    def divided_last(args, dz):
        return (np.zeros((4, 3)) + jnp.zeros((4, 3)).at[tail].add(dz[head]) / incoming,)

    def not_divided(args, dz):
        return (jnp.zeros((4, 3)).at[tail].add(dz[head]),)

    x = rng.normal(size=(4, 3))
    found = of_rule(average, divided_last, x)["dx"]
    assert "scale" in found.mistakes and "end of the way back, to dx" in found.words
    found = of_rule(average, not_divided, x)["dx"]
    assert "local factor" in found.mistakes and "mask" not in found.words


@pytest.mark.parametrize(("times", "says"), [(0, "is left out"), (-1, "has the wrong sign")])
def test_the_two_factors_of_a_square_are_one_path_and_a_path_by_its_name_is_all(times, says):
    p = rng.normal(size=(4, 5))
    p = (p - p.mean(1, keepdims=True)) / p.std(1, keepdims=True)

    def correlation(x):
        c = x - x.mean(axis=1, keepdims=True)
        return (c / jnp.sqrt((c * c).mean(axis=1, keepdims=True)) * p).mean(axis=1)

    def bwd(args, d):
        u, r = args[0] - args[0].mean(1, keepdims=True), 1 / args[0].std(1, keepdims=True)
        return (r / 5 * d[:, None] * (p - times * r * u * (p * r * u).mean(1, keepdims=True)),)

    found = of_rule(correlation, bwd, rng.normal(size=(4, 5)))["dx"]
    assert found.words.endswith(f"the path through the variance {says}")
