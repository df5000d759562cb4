"""Plant mistakes, and see what the checker says of them.

python tests/confusion.py prints two tables. In the first every mistake that the checker implements
is planted in every layer where it makes sense: how often it was planted, and how often named. In
the second are the mistakes of tests/mistakes/, which people have made, in layers that they wrote by
hand. All of it takes minutes; what was said is kept in tests/mistakes/planted.tsv and told.tsv.
"""

import csv
import itertools
import re
from collections import Counter, defaultdict
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from handgrad.catalog import ROWS
from handgrad.check.arrays import argument_names, float_arguments, once, put
from handgrad.check.compare import Judge, compare_leaf
from handgrad.check.naming.explain import explained
from handgrad.check.oracles import consult
from handgrad.check.rounding import Rounding
from handgrad.check.rule import judged, suspects_of

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
        for name in each[0]:
            if name != "x":
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


class Planted(NamedTuple):
    """What the checker named where a mistake was planted: names, with commas between them."""

    layer: str
    mistake: str
    argument: str
    names: str


PLANTED = Path(__file__).with_name("mistakes") / "planted.tsv"


def planted(all_cases, every=1):
    """Plant each mistake wherever it makes sense, and see what is said; of every so many, one."""
    number = itertools.count()
    for case in all_cases:
        for (mistake, _), (plant, layers) in PLANTS.items():
            if layers and case.layer.name not in layers:
                continue
            for name, wrong in plant(case):
                if wrong.shape == case.true[name].shape and np.allclose(
                    wrong, case.true[name], rtol=1e-12, atol=0
                ):
                    continue  # at this point the mistake changes nothing
                said = None
                if next(number) % every == 0:
                    said = ", ".join(judge(case, name, wrong).mistakes)
                yield Planted(case.layer.name, mistake, name, said)


def confusion(found):
    """Planted mistake -> what was named -> how often; () where nothing was."""
    table = defaultdict(lambda: defaultdict(int))
    for one in found:
        table[one.mistake][tuple(filter(None, one.names.split(", ")))] += 1
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


class Told(NamedTuple):
    """What the checker said of one realistic mistake: "named", "unnamed" or "misnamed", or why."""

    group: str
    layer: str
    mistake: str
    size: str
    kind: str
    names: str


GROUPS = "sequences", "norms_and_losses", "shapes_and_matrices"
SIZES = "small", "realistic"
TOLD = Path(__file__).with_name("mistakes") / "told.tsv"


def told(groups=GROUPS, sizes=SIZES, chosen=lambda layer, mistake: True):
    """Make the realistic mistakes, those that are chosen, and see what is said of each."""
    for group, size in itertools.product(groups, sizes):
        for layer in import_module(f"mistakes.{group}").LAYERS:
            mistakes = [m for m in layer.mistakes if chosen(layer, m)]
            if mistakes:
                args = layer.draw(np.random.default_rng(3), size)
                draws = consult(layer.f, [args], generic=True)
                found = said(layer, "", draws)
                yield Told(group, layer.name, "", size, "blamed" if found else "right", "")
            for mistake in mistakes:
                wrong = said(layer, mistake.what, draws)
                names = dict.fromkeys(name for verdict in wrong for name in verdict.mistakes)
                words = " ".join(verdict.words for verdict in wrong)
                fits = set(names) & set(mistake.fits) and re.search(mistake.says, words)
                kind = "named" if fits else "misnamed" if names else "unnamed"
                kind = kind if wrong else "passed"
                yield Told(group, layer.name, mistake.what, size, kind, ", ".join(names))


def said(layer, wrong, draws):
    """The verdicts on what a layer's backward pass gets wrong with that mistake."""

    def fwd(*args):
        return layer.f(*args), args

    def bwd(args, dz):
        return layer.backward(args, dz, wrong)

    return [verdict for verdict in judged(layer.f, fwd, bwd, draws) if not verdict.right]


def kept(file, kind):
    """What was said of all mistakes when they were last made."""
    with file.open(newline="") as rows:
        return [kind(*row) for row in csv.reader(rows, delimiter="\t")]


def keep(file, found):
    with file.open("w", newline="") as rows:
        csv.writer(rows, delimiter="\t", lineterminator="\n").writerows(found)


def of_realistic(found):
    """The table of realistic mistakes as lines of text."""
    lines = [f"{'':22}{'small':>28}{'realistic':>30}"]
    lines += [f"{'layers':22}{'times':>6}" + f"{'named':>8}{'unnamed':>9}{'misnamed':>10}   " * 2]
    for group in (*GROUPS, None):
        line = f"{group.replace('_', ' ') if group else 'all of these':22}"
        for size in SIZES:
            row = [t for t in found if t.group in (group or GROUPS) and t.size == size]
            kinds = Counter(t.kind for t in row if t.mistake)
            times = sum(kinds.values())
            line += f"{times:6}" if size == SIZES[0] else "   "
            widths = {"named": 8, "unnamed": 9, "misnamed": 10}
            line += "".join(f"{kinds[k] / max(times, 1):{w}.0%}" for k, w in widths.items())
        lines.append(line)
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    found = list(planted(cases()))
    keep(PLANTED, found)
    print(text(confusion(found)), end="\n\n")
    found = list(told())
    keep(TOLD, found)
    print(of_realistic(found))
