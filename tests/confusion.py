"""Plant mistakes, and see what the checker says of them.

python tests/confusion.py prints two tables. In the first every mistake that the checker implements
is planted in every layer where it makes sense: how often it was planted, and how often named. In
the second are mistakes from bug reports and students' work, in layers that the checker never saw.
"""

from collections import defaultdict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from handgrad.catalog import ROWS
from handgrad.check.arrays import argument_names, float_arguments, once, put
from handgrad.check.compare import Judge, compare_leaf
from handgrad.check.explain import explained
from handgrad.check.rounding import Rounding
from handgrad.check.rule import prove, suspects_of

SEEDS = range(1)


# A sample of the catalog, one rule of a kind, and of each rule's examples.
RULES = (
    *("squared_error", "linear", "relu", "sigmoid", "softmax", "logsumexp", "log_softmax"),
    *("cross_entropy", "softmax_cross_entropy"),
)
SHAPES = "typical", "edge: more batch axes"


class Layer(NamedTuple):
    """A rule of the catalog, or one that makes a mistake which none of the catalog can."""

    name: str
    f: object
    f_fwd: object
    f_bwd: object
    examples: object


def norm(x, gamma, beta):
    centred = x - x.mean(axis=-1, keepdims=True)
    return gamma * centred / jnp.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) + beta


def norm_fwd(x, gamma, beta):
    scale = 1 / jnp.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    return norm(x, gamma, beta), ((x - x.mean(axis=-1, keepdims=True)) * scale, scale, gamma)


def mean(a):
    return a.mean(axis=-1, keepdims=True)


def norm_bwd(residuals, dz, *, paths=("mean", "variance"), n=1.0):
    u, scale, gamma = residuals
    du = dz * gamma
    dx = du - ("mean" in paths) * mean(du) - ("variance" in paths) * n * u * mean(du * u)
    axes = tuple(range(dz.ndim - 1))
    return scale * dx, (dz * u).sum(axis=axes), dz.sum(axis=axes)


def scaled(x, s):
    return x * s


def scaled_bwd(residuals, dz):
    x, s = residuals
    return dz * s, (dz * x).sum(axis=0, keepdims=True)


def gate(x):
    return x * jnp.tanh(x)


def gate_bwd(x, dz):
    t = jnp.tanh(x)
    return (dz * t + dz * x * (1 - t**2),)


def form(S):
    return S @ S


def form_bwd(S, dz):
    return (dz @ S.T + S.T @ dz,)


def rows(table, ids):
    return table[ids]


def rows_bwd(residuals, dz):
    table, ids = residuals
    return jnp.zeros_like(table).at[ids].add(dz), None


def kinked(rng):
    x = rng.normal(size=(4, 5))
    x[rng.random(size=x.shape) < 0.2] = 0
    x[0, 0], x[1] = 0, [1, -1, 2, -2, 3]
    return [((x,), {})]


EXTRA = [
    Layer(
        *("norm", norm, norm_fwd, norm_bwd),
        lambda rng: [
            ((rng.normal(size=s), 1 + rng.random(size=s[-1:]), rng.normal(size=s[-1:])), {})
            for s in ((3, 5), (2, 3, 6))
        ],
    ),
    Layer(
        *("scaled", scaled, lambda x, s: (x * s, (x, s)), scaled_bwd),
        lambda rng: [((rng.normal(size=(3, 5)), rng.normal(size=(1, 5))), {})],
    ),
    Layer(
        *("gate", gate, lambda x: (gate(x), x), gate_bwd),
        lambda rng: [((rng.normal(size=s),), {}) for s in ((6,), (3, 4))],
    ),
    Layer(
        *("form", form, lambda S: (form(S), S), form_bwd),
        lambda rng: [((rng.normal(size=(4, 4)),), {})],
    ),
    Layer(
        *("rows", rows, lambda table, ids: (table[ids], (table, ids)), rows_bwd),
        lambda rng: [((rng.normal(size=(7, 4)), rng.integers(4, size=9)), {})],
    ),
]
relu = next(row for row in ROWS if row.name == "relu")
EXTRA.append(Layer("relu at 0", relu.f, relu.f_fwd, relu.f_bwd, kinked))


class Case(NamedTuple):
    """One layer at one point: its right cotangents by name, and what judges others."""

    layer: object
    args: tuple
    hyper: dict
    dz: np.ndarray
    z: np.ndarray
    residuals: object
    true: dict
    judges: dict
    suspects: object

    def rule(self, dz=None, residuals=None):
        """The right rule's cotangents by name, on these operands."""
        residuals = self.residuals if residuals is None else residuals
        dz = self.dz if dz is None else dz
        return self.named(self.layer.f_bwd(residuals, dz, **self.hyper))

    def named(self, cotangents):
        names = argument_names(self.layer.f, self.args)
        pairs = zip(names, cotangents, strict=True)
        return {n: np.asarray(d) for n, d in pairs if d is not None}


def cases(seeds=SEEDS):
    """Every layer at every example shape, for every seed."""
    for seed in seeds:
        for layer in (*map(of_row, filter(lambda row: row.name in RULES, ROWS)), *EXTRA):
            for args, hyper in layer.examples(np.random.default_rng(seed)):
                yield case(layer, tuple(map(jnp.asarray, args)), hyper, seed)


def of_row(row):
    """A row of the catalog as a layer here."""

    def examples(rng):
        drawn = row.examples(rng)
        return [drawn[name] for name in SHAPES if name in drawn]

    return Layer(row.name, row.f, row.f_fwd, row.f_bwd, examples)


def case(layer, args, hyper, seed):
    names = argument_names(layer.f, args)
    which = float_arguments(names, args)

    @once
    def oracle(args, dz):
        def plain(*floats):
            return layer.f(*put(args, which, floats), **hyper)

        z, pull = jax.vjp(plain, *(args[i] for i in which))
        return z, pull(dz), layer.f_fwd(*args, **hyper)[1]

    shape = jax.eval_shape(lambda *args: layer.f(*args, **hyper), *args).shape
    dz = jnp.asarray(np.random.default_rng([seed, 1]).normal(size=shape))
    z, cotangents, residuals = oracle(args, dz)
    rule = layer.f, layer.f_fwd, layer.f_bwd, hyper
    suspects = suspects_of(rule, which, args, dz)
    floats = [args[i] for i in which]

    def reverse(one, floats):
        pull = jax.vjp(lambda *fs: layer.f(*put(args, which, fs), **hyper), *floats)[1]
        return pull(one * dz)

    rounding = Rounding(None, reverse, jax.device_get(cotangents), floats)
    places = [suspects.of_argument(j) for j in range(len(which))]
    judges = {
        names[i]: Judge("right", place, rounding=rounding.from_(place)[0])
        for i, place in zip(which, places, strict=True)
    }
    true = {names[i]: np.asarray(d) for i, d in zip(which, cotangents, strict=True)}
    return Case(layer, args, hyper, dz, np.asarray(z), residuals, true, judges, suspects)


PLANTS = {}


def plants(name, *layers):
    """Register a mistake: a function of a Case that yields (argument, wrong cotangent) pairs."""

    def register(f):
        PLANTS[name, f.__name__] = f, layers
        return f

    return register


def everywhere(name, change):
    """A mistake that is made on the cotangent alone, in any layer; change gives None where not."""

    def f(case):
        for argument, d in case.true.items():
            if (wrong := change(d)) is not None:
                yield argument, wrong

    f.__name__ = f"everywhere {len(PLANTS)}"
    plants(name)(f)


def swapped(d):
    """The transpose, where it is more than a reshape."""
    return np.swapaxes(d, -1, -2) if d.ndim > 1 and 1 not in d.shape else None


def by_columns(d):
    """The same entries, read by rows and laid by columns, where that is more than a transpose."""
    plain = d.ndim < 2 or 1 in d.shape or (d.ndim == 2 and d.shape[0] == d.shape[1])
    return None if plain else d.reshape(-1, order="F").reshape(d.shape)


def then(change, factor):
    """A change of order, and then a factor."""
    return lambda d: None if change(d) is None else factor * change(d)


everywhere("transposed", swapped)
everywhere("sign", lambda d: -d)
everywhere("factor", lambda d: 2 * d)
everywhere("factor", lambda d: d / 2)
everywhere("factor", lambda d: d * len(d) if d.ndim else None)
everywhere("factor", lambda d: d / len(d) if d.ndim else None)
everywhere("factor", lambda d: 3.7 * d if np.count_nonzero(d) > 1 else None)
everywhere("column-major", by_columns)
everywhere("reversed", lambda d: d[::-1] if d.ndim and len(d) > 1 else None)
everywhere("reversed", lambda d: np.flip(d, -1) if d.ndim > 1 else None)
everywhere("permuted", lambda d: np.moveaxis(d, 0, 1) if d.ndim > 2 else None)
everywhere("float32", lambda d: d.astype("float32").astype("float64"))
everywhere("shape", lambda d: d.reshape(-1) if d.ndim > 1 else None)
everywhere("NaN", lambda d: np.where(np.arange(d.size).reshape(d.shape) == 0, np.nan, d))
everywhere("inf", lambda d: np.where(np.arange(d.size).reshape(d.shape) == 0, np.inf, d))
everywhere("transposed+sign", then(swapped, -1))
everywhere("transposed+factor", then(swapped, 1 / 2))
everywhere("column-major+sign", then(by_columns, -1))
everywhere("sign+factor", lambda d: -d / len(d) if d.ndim and len(d) > 1 else None)


@plants("upstream")
def local_derivative_only(case):
    yield from case.rule(dz=jnp.ones_like(case.dz)).items()


@plants("upstream+sign")
def local_derivative_with_the_wrong_sign(case):
    for name, d in case.rule(dz=jnp.ones_like(case.dz)).items():
        if not np.allclose(d, 0):
            yield name, -d


@plants(
    "local factor", "relu", "sigmoid", "tanh", "softmax", "log_softmax", "squared_error", "gate"
)
def upstream_passed_through(case):
    for name in case.true:
        yield name, np.asarray(case.dz)


def one_by_one(case):
    for n in range(len(case.dz)):
        mask = (np.arange(len(case.dz)) == n).reshape(-1, *[1] * (case.dz.ndim - 1))
        yield case.rule(dz=case.dz * mask)


@plants("batch", "linear", "norm")
def batch_axis_kept(case):
    if case.dz.ndim > 1:
        each = list(one_by_one(case))
        for name in set(case.true) - {"x"}:
            yield name, np.stack([d[name] for d in each])


@plants("batch", "linear", "norm")
def last_example_alone(case):
    if case.dz.ndim > 1:
        for name, d in list(one_by_one(case))[-1].items():
            if name != "x":
                yield name, d


@plants("batch+sign", "linear", "norm")
def batch_axis_kept_with_the_wrong_sign(case):
    for name, d in batch_axis_kept(case):
        yield name, -d


@plants("broadcast", "scaled")
def broadcast_kept(case):
    yield "s", np.asarray(case.dz * case.args[0])


@plants("axis", "linear", "norm")
def bias_summed_over_the_features(case):
    if case.dz.ndim > 1:
        name = "b" if case.layer.name == "linear" else "beta"
        yield name, np.asarray(case.dz.reshape(-1, case.dz.shape[-1]).sum(axis=1))


@plants("axis", "softmax")
def softmax_mean_over_another_axis(case):
    o, do = case.z, case.dz
    if o.ndim > 1:
        yield "z", np.asarray(o * (do - (o * do).sum(axis=0)))
        yield "z", np.asarray(o * (do - (o * do).sum()))


@plants("axis", "log_softmax")
def log_softmax_sum_over_another_axis(case):
    r, dr = case.z, case.dz
    if r.ndim > 1:
        yield "z", np.asarray(dr - np.exp(r) * dr.sum(axis=0))
        yield "z", np.asarray(dr - np.exp(r) * dr.sum())


@plants("diagonal", "softmax")
def softmax_diagonal(case):
    yield "z", np.asarray(case.z * (1 - case.z) * case.dz)


@plants("diagonal", "log_softmax")
def log_softmax_diagonal(case):
    yield "z", np.asarray((1 - np.exp(case.z)) * case.dz)


@plants("diagonal+sign", "softmax")
def softmax_diagonal_with_the_wrong_sign(case):
    yield "z", np.asarray(-case.z * (1 - case.z) * case.dz)


@plants("mean path", "norm")
def norm_without_its_mean_path(case):
    yield "x", np.asarray(norm_bwd(case.residuals, case.dz, paths="variance")[0])


@plants("variance path", "norm")
def norm_without_its_variance_path(case):
    yield "x", np.asarray(norm_bwd(case.residuals, case.dz, paths="mean")[0])


@plants("mean path+variance path", "norm")
def norm_with_its_direct_path_only(case):
    yield "x", np.asarray(norm_bwd(case.residuals, case.dz, paths="")[0])


@plants("Bessel", "norm")
def norm_with_bessel(case):
    n = case.dz.shape[-1]
    yield "x", np.asarray(norm_bwd(case.residuals, case.dz, n=n / (n - 1))[0])


@plants("branch", "gate")
def one_branch(case):
    x, dz, t = case.args[0], case.dz, jnp.tanh(case.args[0])
    yield "x", np.asarray(dz * t)
    yield "x", np.asarray(dz * x * (1 - t**2))


@plants("branch", "softmax")
def softmax_without_its_sum(case):
    yield "z", np.asarray(case.z * case.dz)


@plants("duplicates", "rows")
def duplicate_ids_overwritten(case):
    table, ids = case.args
    yield "table", np.asarray(jnp.zeros_like(table).at[np.asarray(ids)].set(case.dz))


@plants("label", "cross_entropy", "softmax_cross_entropy")
def label_off_by_one(case):
    y = case.args[1]
    other = jnp.maximum(y - 1, 0)
    residuals = (case.residuals[0], other)
    yield from case.rule(residuals=residuals).items()


@plants("symmetric", "form")
def entries_of_a_symmetric_matrix_counted_together(case):
    diagonal = np.diag(np.diag(case.true["S"]))
    yield "S", 2 * case.true["S"] - diagonal
    yield "S", (case.true["S"] + diagonal) / 2


@plants("output", "tanh")
def tanh_slope_at_the_output(case):
    yield "x", np.asarray(case.dz * (1 - np.tanh(case.z) ** 2))


@plants("output", "sigmoid")
def sigmoid_slope_at_the_output(case):
    s = 1 / (1 + np.exp(-case.z))
    yield "x", np.asarray(case.dz * s * (1 - s))


@plants("value", "relu", "tanh", "sigmoid")
def value_for_slope(case):
    yield "x", np.asarray(case.dz * case.z)


@plants("kink", "relu at 0")
def relu_with_slope_one_half_at_0(case):
    x = np.asarray(case.args[0])
    yield "x", np.asarray(case.dz * np.where(x > 0, 1, np.where(x == 0, 0.5, 0)))


@plants("masked", "softmax_cross_entropy", "cross_entropy")
def a_place_that_must_be_0_is_not(case):
    for name, d in case.true.items():
        places = np.argwhere(d == 0)[:1]
        if len(places) and d.size > 2:
            wrong = d.copy()
            wrong[tuple(places[0])] = 1.5
            yield name, wrong


def random_errors(case, rng):
    """Wrong cotangents that no mistake explains."""
    for name, d in case.true.items():
        yield name, rng.normal(size=d.shape)
        yield name, d + 1e-3 * rng.normal(size=d.shape)
        yield name, d * (1 + 0.1 * rng.random(size=d.shape)) + 0.1


def judge(case, name, d):
    """The verdict on the cotangent d of an argument."""
    judge = case.judges[name]._replace(findings=[])
    verdict = compare_leaf("d" + name, d, case.true[name], judge)
    return explained([verdict], judge.findings, case.suspects)[0]


def confusion(all_cases):
    """Planted mistake -> what was named -> how often; "" where nothing was."""
    table = defaultdict(lambda: defaultdict(int))
    for case in all_cases:
        for (mistake, _), (plant, layers) in PLANTS.items():
            if layers and case.layer.name not in layers:
                continue
            for name, wrong in plant(case):
                if wrong.shape == case.true[name].shape and np.allclose(
                    wrong, case.true[name], rtol=1e-12, atol=0
                ):
                    continue  # at this point the mistake changes nothing
                table[mistake][judge(case, name, wrong).mistakes] += 1
    return table


def named(mistake, names):
    """Whether all parts of a planted mistake are among the names."""
    return set(mistake.split("+")) <= set(names)


EASY = {"factor", "sign", "shape", "float32", "NaN", "inf"}  # told from the hand's array alone


def easy(mistake):
    """Whether a planted mistake is no more than a factor, a sign, a shape, a cast, a NaN or inf."""
    return set(mistake.split("+")) <= EASY


def text(table):
    """The confusion table as lines of text: the hard ones first, the easy ones apart."""
    lines = [f"{'planted':24}{'times':>6}{'named':>9}{'alone':>9}   otherwise"]
    for apart, title in ((False, "all of these"), (True, "all of these easy ones")):
        mistakes = sorted(m for m in table if easy(m) == apart)
        lines += [_line(m, m, table[m].items()) for m in mistakes]
        together = [(m, item) for m in mistakes for item in table[m].items()]
        counts = [sum(n for m, (names, n) in together if fits(m, names)) for fits in (named, alone)]
        times = sum(n for _, (_, n) in together)
        lines += [_shares(title, times, *counts), ""]
    return "\n".join(lines[:-1])


def alone(mistake, names):
    """Whether the parts of a planted mistake are all that was named."""
    return set(mistake.split("+")) == set(names)


def _line(title, mistake, answers):
    missed = {names: n for names, n in answers if not named(mistake, names)}
    rest = ", ".join(f"{n} {'+'.join(names) or 'unknown'}" for names, n in missed.items())
    counts = [sum(n for names, n in answers if fits(mistake, names)) for fits in (named, alone)]
    return f"{_shares(title, sum(n for _, n in answers), *counts)}   {rest}".rstrip()


def _shares(title, times, *counts):
    return f"{title:24}{times:6}" + "".join(f"{n / times:9.1%}" for n in counts)


class Unseen(NamedTuple):
    """A mistake that was not written down from the checker's list, in a layer of its own.

    bwd(args, dz) makes it; fits holds those of the checker's names that would describe it.
    """

    what: str
    f: object
    bwd: object
    args: tuple
    fits: tuple = ()


def unseen():
    """Mistakes that bug reports and students' work are full of."""
    draw = np.random.default_rng(11).normal
    x, W, A = draw(size=(3, 5)), draw(size=(4, 5)), draw(size=(4, 4)) + 3 * np.eye(4)

    def scores(q, k):
        return jax.nn.softmax(q @ k.T / np.sqrt(q.shape[-1]))

    def exchanged(args, dz):
        return jax.vjp(scores, *args)[1](dz)[::-1]

    def silu(x):
        return x * jax.nn.sigmoid(x)

    def gate_alone(args, dz):
        return (dz * jax.nn.sigmoid(args[0]),)

    def gelu(x):
        return jax.nn.gelu(x, approximate=False)

    def of_tanh_form(args, dz):
        return jax.vjp(lambda x: jax.nn.gelu(x, approximate=True), *args)[1](dz)

    def without_gamma(args, dz):
        x, gamma, beta = args
        _, dgamma, dbeta = jax.vjp(norm, x, gamma, beta)[1](dz)
        return jax.vjp(norm, x, jnp.ones_like(gamma), beta)[1](dz)[0], dgamma, dbeta

    def recurrent(x, R):
        step = lambda h, x_t: (jnp.tanh(R @ h + x_t),) * 2  # noqa: E731
        return jax.lax.scan(step, jnp.zeros_like(x[0]), x)[1]

    def future_dropped(args, dz):
        h = recurrent(*args)
        da = dz * (1 - h**2)
        return da, da[1:].T @ h[:-1]

    def slope_forgotten(args, dz):
        h, R = recurrent(*args), args[1]
        da, above = [], jnp.zeros_like(dz[0])
        for dh in dz[::-1]:
            da.insert(0, dh + above)
            above = R.T @ da[0]
        return jnp.stack(da), jnp.stack(da)[1:].T @ h[:-1]

    def untransposed(args, dz):
        B = inverse(*args)
        return (-B @ dz @ B,)

    def quadratic(x, A):
        return ((x @ A) * x).sum(axis=-1)

    def as_if_symmetric(args, dz):
        x, A = args
        return 2 * dz[:, None] * (x @ A), (dz[:, None] * x).T @ x

    def unit(x):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def without_projection(args, dz):
        return (dz / jnp.linalg.norm(args[0], axis=-1, keepdims=True),)

    def dropped(x, keep):
        return jnp.where(keep, x / 0.7, 0.0)

    def mask_forgotten(args, dz):
        return dz / 0.7, None

    def log_loss(z, y):
        return -jnp.where(y, jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z))

    def slope_once_more(args, dl):
        z, y = args
        p = jax.nn.sigmoid(z)
        return dl * (p - y) * p * (1 - p), None

    def decayed(x, W):
        return ((x @ W.T) ** 2).sum(axis=-1) + 0.1 * (W**2).sum()

    def decay_forgotten(args, dl):
        x, W = args
        dz = 2 * (x @ W.T) * dl[:, None]
        return dz @ W, dz.T @ x

    gamma, beta = 1 + np.abs(draw(size=5)), draw(size=5)
    steps, R = draw(size=(6, 4)), draw(size=(4, 4)) / 2
    rows, inverse, apart = draw(size=(3, 4)), jnp.linalg.inv, ("branch", "diagonal")
    keep, y = draw(size=(3, 5)) > -0.5, draw(size=(3, 5)) > 0
    return [
        Unseen("attention's dq and dk exchanged", scores, exchanged, (x, draw(size=(3, 5)))),
        Unseen("silu: sigmoid's path left out", silu, gate_alone, (x,), ("branch",)),
        Unseen("gelu: the slope of its tanh form", gelu, of_tanh_form, (x,)),
        Unseen("layer norm: gamma forgotten in dx", norm, without_gamma, (x, gamma, beta)),
        Unseen("recurrent: the future's dh dropped", recurrent, future_dropped, (steps, R), apart),
        Unseen("recurrent: tanh's slope forgotten", recurrent, slope_forgotten, (steps, R)),
        Unseen("inverse: factors not transposed", inverse, untransposed, (A,), ("transposed",)),
        Unseen("quadratic form: A taken as symmetric", quadratic, as_if_symmetric, (rows, A)),
        Unseen("unit length: projection forgotten", unit, without_projection, (x,), ("branch",)),
        Unseen("dropout: the mask forgotten", dropped, mask_forgotten, (x, keep), ("masked",)),
        Unseen("log loss: sigmoid's slope once more", log_loss, slope_once_more, (x, y)),
        Unseen("weight decay forgotten", decayed, decay_forgotten, (x, W), ("branch",)),
    ]


def of_unseen():
    """What was said of each unseen mistake, as lines of text, and a count."""
    lines, counts = [f"{'mistake':38}said"], defaultdict(int)
    for what, f, bwd, args, fits in unseen():
        verdicts = prove(f, lambda *args, f=f: (f(*args), args), bwd, [args])
        names = dict.fromkeys(n for v in verdicts if not v.right for n in v.mistakes)
        assert not all(v.right for v in verdicts), what
        kind = "unknown" if not names else "named" if set(fits) & set(names) else "misnamed"
        counts[kind] += 1
        lines.append(f"{what:38}{kind}{': ' if names else ''}{', '.join(names)}")
    kinds = ("named", "unknown", "misnamed")
    return "\n".join([*lines, ", ".join(f"{counts[kind]} {kind}" for kind in kinds)])


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    print(text(confusion(cases())), of_unseen(), sep="\n\n")
