"""The backward walk says which local rule was replaced, and where; and else it says nothing."""

import re
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from handgrad.check.naming import match, slopes
from handgrad.check.naming.tape import Tape
from handgrad.check.naming.variants import Operands, exchanged
from handgrad.check.naming.walk import backward

draw = np.random.default_rng(17).normal


def operands(f, *floats):
    """The loss <dz, f(*floats)> and its Operands, as check_rule makes them."""
    floats = [jnp.asarray(x) for x in floats]
    dz = jnp.asarray(np.random.default_rng(4).normal(size=jax.eval_shape(f, *floats).shape))

    def total(at):
        return (at.own["z"] * exchanged(f(*at.floats), at, "z")).sum()

    return total, Operands(floats, [], {"z": 0 * dz}, {"z": dz}, {"z": np.True_})


def gradients(f, *floats):
    total, at = operands(f, *floats)
    return list(map(np.asarray, jax.grad(lambda fs: total(at._replace(floats=fs)))(at.floats)))


def found(f, floats, wrong, tolerance=1e-11):
    """The Search for what gave the gradients `wrong`: {number of the argument: array}."""
    total, at = operands(f, *floats)
    true = gradients(f, *floats)
    findings = [
        SimpleNamespace(
            name=f"d{place}",  # so that the argument is called 0
            place=place,
            hand=np.asarray(wrong.get(place, t)),
            true=t,
            off=lambda a, b: np.abs(a - b) > tolerance * np.abs(b).max(),
            wrong=place in wrong,
        )
        for place, t in enumerate(true)
    ]
    return match.search(total, at, findings)


def rnn(x, W, U, b, h):
    hs = []
    for x_t in x:
        h = jnp.tanh(x_t @ W + h @ U + b)
        hs.append(h)
    return jnp.stack(hs)


def scanned(x, W, U, b, h):
    def step(h, x_t):
        h = jnp.tanh(x_t @ W + h @ U + b)
        return h, h

    return jax.lax.scan(step, h, x)[1]


def rnn_backward(
    floats, dz, *, carry=1.0, turned=True, slope=lambda h: 1 - h**2, blocks=9, late=False
):
    x, W, U, b, h = floats
    h = [h, *np.asarray(rnn(*floats))]
    dx, later, totals = [], 0.0, [np.zeros_like(p) for p in (W, U, b)]
    for t in range(len(x))[::-1]:
        later = 0.0 if t % blocks == blocks - 1 else carry * later
        da = dz[t] * slope(h[t + 1]) + (later if late else later * slope(h[t + 1]))
        dx.insert(0, da @ W.T)
        later = da @ (U.T if turned else U)
        totals = [p + q for p, q in zip(totals, (x[t].T @ da, h[t].T @ da, da.sum(0)), strict=True)]
    return dict(enumerate([np.stack(dx), *totals, later]))


def attention(q, k, v):
    return jax.nn.softmax(q @ k.T / jnp.sqrt(q.shape[1])) @ v


def attention_backward(floats, dz, *, rule):
    q, k, v = floats
    p = np.asarray(jax.nn.softmax(q @ k.T / np.sqrt(q.shape[1])))
    ds = rule(p, dz @ v.T) / np.sqrt(q.shape[1])
    return {0: ds @ k, 1: ds.T @ q}


def layer_norm(x, gamma, beta):
    centred = x - x.mean(-1, keepdims=True)
    return gamma * centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) + beta


def layer_norm_backward(floats, dz, *, mean=1.0, variance=1.0, scale=True):
    x, gamma, _ = floats
    rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    u, d = (x - x.mean(-1, keepdims=True)) * rstd, dz * (gamma if scale else 1)
    paths = mean * d.mean(-1, keepdims=True) + variance * u * (d * u).mean(-1, keepdims=True)
    return {0: rstd * (d - paths)}


def gated(x, W, V):
    return jax.nn.sigmoid(x @ W) * jnp.tanh(x @ V)


def gated_backward(
    floats, dz, *, gate=lambda s: s * (1 - s), factor=lambda a, t: t, slope=lambda t: 1 - t**2
):
    x, W, V = floats
    s, t = np.asarray(jax.nn.sigmoid(x @ W)), np.tanh(x @ V)
    da, dc = dz * factor(x @ V, t) * gate(s), dz * s * slope(t)
    return {0: da @ W.T + dc @ V.T, 1: x.T @ da, 2: x.T @ dc}


IDS = np.array([[1, 4, 1], [0, 4, 2]])
MASK = np.arange(5) < np.array([3, 5, 2, 4])[:, None]


def embedding(table):
    return 2.0 * table[IDS]


def embedding_backward(floats, dz, *, add=True, rows=False):
    dtable = np.zeros_like(floats[0])
    for row, d in zip(IDS.ravel(), 2 * dz.reshape(-1, dz.shape[-1]), strict=True):
        dtable[row] = d + add * dtable[row]
    if rows:
        dtable[:] = 0
        for ids, d in zip(IDS, 2 * dz, strict=True):
            last = np.zeros_like(dtable)
            last[ids] = d
            dtable += last
    return {0: dtable}


def masked(s):
    return jax.nn.softmax(jnp.where(MASK, s / 2, -1e30))


def masked_backward(floats, dz, *, mask=True):
    p = np.asarray(masked(floats[0]) if mask else jax.nn.softmax(floats[0] / 2))
    return {0: MASK * p * (dz - (p * dz).sum(axis=-1, keepdims=True)) / 2}


def gelu(x):
    return jax.nn.gelu(x, approximate=True)


def gelu_backward(floats, dz, *, exact=True, at=lambda x: x):
    slope = jax.vmap(jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, not exact))))
    return {0: dz * slope(at(floats[0]))}


def turn(*xs, sign=1, first=1):
    T, d = xs[0].shape
    angle = (jnp.arange(T) + first)[:, None] * 3.0 ** -jnp.arange(d // 2)
    cos, sin = jnp.cos(angle), sign * jnp.sin(angle)
    pairs = (jnp.split(x, 2, axis=1) for x in xs)
    return [jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1) for a, b in pairs]


def rotary(q, k):
    q, k = turn(q, k)
    return q @ k.T


def rotary_backward(floats, dz, *, before=False, **way):
    q, k = turn(*floats)
    way = {"sign": -1} | way
    return dict(enumerate(turn(dz @ (floats[1] if before else k), dz.T @ q, **way)))


def heads_and_positions(x, P):
    heads = (x + P[: len(x)]).reshape(len(x), 2, -1)
    return jnp.tanh(heads.transpose(1, 0, 2))


def heads_and_positions_backward(floats, dz, *, axes=True, end=False):
    x, P = floats
    da = dz * (1 - heads_and_positions(x, P) ** 2)
    da = np.asarray(da.transpose(1, 0, 2) if axes else da).reshape(x.shape)
    dP = np.zeros_like(P)
    dP[slice(-len(x), None) if end else slice(len(x))] = da
    return {0: da, 1: dP}


SEQUENCE = tuple(draw(size=s) / 2 for s in ((5, 3, 4), (4, 6), (6, 6), (6,), (3, 6)))
HEADS = draw(size=(4, 3)), draw(size=(5, 3)), draw(size=(5, 6))
ROWS = draw(size=(4, 7)), draw(size=7), draw(size=7)
GATES = draw(size=(4, 3)), draw(size=(3, 6)), draw(size=(3, 6))


class Planted(NamedTuple):
    """A backward pass by hand, what it is made to do, and what is to be said of it."""

    f: object
    floats: tuple
    by_hand: object
    changes: dict
    name: str
    words: str


def diagonal(p, d):
    return p * (1 - p) * d


def over_the_queries(p, d):
    return p * (d - (p * d).sum(axis=0, keepdims=True))


OF_RNN = rnn, SEQUENCE, rnn_backward
OF_HEADS = attention, HEADS, attention_backward
OF_NORM = layer_norm, ROWS, layer_norm_backward
OF_GATES = gated, GATES, gated_backward
TABLE, SCORES = (draw(size=(6, 3)),), (draw(size=(4, 5)),)
OF_ROTARY = rotary, (draw(size=(5, 6)), draw(size=(5, 6))), rotary_backward
OF_POSITIONS = (
    heads_and_positions,
    (draw(size=(4, 6)), draw(size=(7, 6))),
    heads_and_positions_backward,
)
READS = r"reads `x @ V`, not `jnp.tanh\(x @ V\)`"
LAST = r"`table\[IDS\]`.*uses of 0 meet, the last overwrites"
MISTAKES = {
    "future": Planted(*OF_RNN, {"carry": 0.0}, "carry", r"next step is left out"),
    "U": Planted(*OF_RNN, {"turned": False}, "transposed", r"`h @ U` \(line \d+\)"),
    "1 - h": Planted(*OF_RNN, {"slope": lambda h: 1 - h}, "slope", r"tanh.*1 - o stands"),
    "blocks": Planted(*OF_RNN, {"blocks": 2}, "carry", r"cut off every 2 steps"),
    "late": Planted(*OF_RNN, {"late": True}, "local factor", r"tanh.*next step is added behind"),
    "scan": Planted(scanned, *OF_RNN[1:], {"slope": lambda h: 1}, "local factor", "tanh"),
    "diagonal": Planted(*OF_HEADS, {"rule": diagonal}, "diagonal", "softmax.*diagonal"),
    "queries": Planted(*OF_HEADS, {"rule": over_the_queries}, "axis", "softmax.*axis 0"),
    "mean": Planted(*OF_NORM, {"mean": 0.0}, "mean path", "mean.*left out"),
    "variance": Planted(*OF_NORM, {"variance": 0.0}, "variance path", "variance is left out"),
    "Bessel": Planted(*OF_NORM, {"variance": 7 / 6}, "Bessel", "n = 7"),
    "gamma": Planted(*OF_NORM, {"scale": False}, "scale", "gamma"),
    "gate": Planted(*OF_GATES, {"gate": lambda s: s}, "value", "sigmoid.*value"),
    "operand": Planted(*OF_GATES, {"factor": lambda a, t: a}, "operand", READS),
    "set": Planted(embedding, TABLE, embedding_backward, {"add": False}, "duplicates", LAST),
    "rows": Planted(
        embedding, TABLE, embedding_backward, {"rows": True}, "duplicates", r"axis 0, the last"
    ),
    "mask": Planted(
        masked, SCORES, masked_backward, {"mask": False}, "masked", "where.*rules read"
    ),
    "gelu": Planted(gelu, SCORES, gelu_backward, {}, "forward", "exact form"),
    "output": Planted(
        gelu, SCORES, gelu_backward, {"exact": False, "at": gelu}, "output", "at the output"
    ),
    "forwards": Planted(*OF_ROTARY, {"sign": 1}, "sign", r"jnp\.sin.*on the way back alone"),
    "next": Planted(*OF_ROTARY, {"first": 2}, "shifted", "1 too high, on the way back alone"),
    "unturned": Planted(*OF_ROTARY, {"before": True}, "operand", r"reads 1, not `.*cos"),
    "axes": Planted(*OF_POSITIONS, {"axes": False}, "permuted", r"`.*transpose.*not moved back"),
    "end": Planted(*OF_POSITIONS, {"end": True}, "shifted", "counts 1 from the other end"),
    "two": Planted(
        *(*OF_GATES, {"gate": lambda s: s, "slope": lambda t: 1 - t}, "value", "; and at")
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_one_replaced_rule_is_named_and_located(name):
    f, floats, by_hand, changes, mistake, words = MISTAKES[name]
    dz = np.asarray(operands(f, *floats)[1].own["z"])
    hand, true = by_hand(floats, dz, **changes), gradients(f, *floats)
    wrong = {k: d for k, d in hand.items() if not np.allclose(d, true[k], rtol=1e-9)}
    assert wrong
    search = found(f, floats, wrong)
    likeliest = search.readings[:3]
    assert likeliest[0].whole and likeliest[0].places == tuple(wrong), search
    assert mistake in {n for r in likeliest for n in r.names}, search
    assert any(re.search(words, r.words) for r in likeliest), search


def test_the_tape_walks_back_as_jax_does():
    table, ids = draw(size=(6, 4)), jnp.array([[0, 2], [2, 5]])

    def f(x, W, table):
        x = jnp.where(x > 0, x, jnp.expm1(x)) + jax.nn.relu(x) * jnp.exp(x)
        padded = jnp.pad(x, ((0, 0), (1, 2)))[:, 1:-2]
        x = jax.lax.cond(x.sum() > -99, lambda x: jnp.cumsum(x, axis=1), jnp.negative, padded)
        x = jax.lax.scan(lambda c, r: (c * jnp.cos(c) + r, c), x[0], x, reverse=True)[1].max(axis=1)
        x = jnp.concatenate([x, jax.nn.logsumexp(table[ids], axis=-1).ravel()])[::-1]
        x = jax.checkpoint(jnp.sort)(jnp.linalg.solve(W, x[:5])) ** 3 / jnp.sqrt(jnp.abs(x[:5]) + 1)
        return jax.lax.conv_general_dilated(x[None, None], W[None, :1, :3], (1,), "SAME")

    floats = draw(size=(3, 4)), draw(size=(5, 5)), table
    floats[0][0, 0] = 0.0  # where relu has slope 0, and max 1/2
    total, at = operands(f, *floats)
    tape = Tape(total, at, {0, 1, 2, 3})
    sent = backward(tape)
    for d, v in zip(gradients(f, *floats), tape.inputs, strict=False):
        np.testing.assert_allclose(sent[v], d, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["1 - h", "diagonal", "mean", "gate"])
def test_what_no_rule_explains_stays_unexplained(name):
    f, floats, *_ = MISTAKES[name]
    rng = np.random.default_rng(0)
    d = gradients(f, *floats)[0]
    entry = d.copy()
    entry.flat[3] += 1.3
    for hand in (rng.normal(size=d.shape), d + 1e-3 * rng.normal(size=d.shape), entry):
        assert found(f, floats, {0: hand}).readings == []
    half = np.where(rng.random(d.shape) < 0.5, 0, d)
    assert found(f, floats, {0: half}).readings == []


def test_a_reading_agrees_to_the_digits_and_beyond_the_tolerance():
    dz = np.asarray(operands(gated, *GATES)[1].own["z"])
    hand = gated_backward(GATES, dz, gate=lambda s: s)
    assert found(gated, GATES, hand).readings
    nearly = {k: d * (1 + 1e-6 * draw(size=d.shape)) for k, d in hand.items()}
    assert found(gated, GATES, nearly).readings == []
    noise = {k: d + draw(size=d.shape) for k, d in hand.items()}
    assert found(gated, GATES, noise, tolerance=100.0).readings == []


def test_a_reading_that_contradicts_a_right_gradient_is_not_whole():
    dz = np.asarray(operands(gated, *GATES)[1].own["z"])
    dx = gated_backward(GATES, dz, gate=lambda s: s)[0]  # and yet the right dW
    readings = found(gated, GATES, {0: dx}).readings
    assert readings and not any(r.whole for r in readings), readings


def test_a_constant_that_fits_few_numbers_says_nothing():
    x = draw(size=3)
    (d,) = gradients(lambda x: jnp.sin(x).sum(), x)
    assert found(lambda x: jnp.sin(x).sum(), (x,), {0: 1.2345 * d}).readings == []


def test_a_step_is_judged_given_the_cotangents_before_it():
    W, V, x = draw(size=(4, 4)), draw(size=(4, 5)), draw(size=(3, 4))
    own = {"a": draw(size=(3, 4)), "h": draw(size=(3, 4))}

    def total(at):
        a = exchanged(x @ at.floats[0], at, "a")
        return (exchanged(jnp.tanh(a), at, "h") @ at.floats[1]).sum()

    slots = {name: np.zeros((3, 4)) for name in own}
    at = Operands([W, V], [], slots, own, dict.fromkeys(own, np.True_))
    of = jax.grad(lambda fs, s: total(at._replace(floats=fs, slots=s)), argnums=(0, 1))
    true = list(map(np.asarray, jax.tree.leaves(of([W, V], slots))))
    hand = list(true)
    hand[2] = own["h"]  # da without tanh's slope
    findings = [
        SimpleNamespace(
            name=f"d{k}",
            place=k,
            hand=h,
            true=t,
            off=lambda a, b: np.abs(a - b) > 1e-11,
            wrong=k == 2,
        )
        for k, (h, t) in enumerate(zip(hand, true, strict=True))
    ]
    best = match.readings(total, at, findings)[0]
    assert best.names == ("local factor",) and best.places == (2,) and best.whole, best


def test_the_search_is_bounded_by_counts_and_says_so(monkeypatch):
    f, floats, *_ = MISTAKES["1 - h"]
    wrong = {0: draw(size=(5, 3, 4))}
    assert found(f, floats, wrong).exhaustive
    monkeypatch.setattr(match, "WORK", 1e5)
    assert not found(f, floats, wrong).exhaustive


def test_what_it_costs_to_see_what_can_be_tried_counts_as_work(monkeypatch):
    tried = []
    teller = slopes._teller

    def counted(tape, point):
        tells = teller(tape, point)

        def tells_and_counts(slope):
            tried.append(np.size(point.d))
            return tells(slope)

        return tells_and_counts

    monkeypatch.setattr(slopes, "_teller", counted)
    monkeypatch.setattr(match, "STEP", 0)
    monkeypatch.setattr(match, "ROWS", 1)
    monkeypatch.setattr(match, "WORK", 5e5)
    monkeypatch.setattr(match._Search, "sent", lambda self, v: 0)  # so that the walks are free
    floats = [draw(size=(120, 3)) for _ in range(3)]
    searches = []
    for _ in range(2):
        tried.clear()
        searches.append((found(attention, floats, {0: draw(size=(120, 3))}), sum(tried)))
    (first, numbers), (again, as_many) = searches
    assert not first.exhaustive and not again.exhaustive and numbers == as_many
    assert 0 < numbers <= match.WORK


def test_a_large_program_leaves_the_work_for_what_stands_for_many_operations(monkeypatch):
    def after(z):
        for _ in range(10):
            z = jnp.sin(z)
        return z

    def long(q, k, v):
        return after(attention(q, k, v))

    floats = [draw(size=(60, 4)) for _ in range(3)]
    dz = operands(long, *floats)[1].own["z"]
    d = np.asarray(jax.vjp(after, attention(*floats))[1](dz)[0])
    wrong = attention_backward(floats, d, rule=lambda p, d: p * d)
    monkeypatch.setattr(match, "STEP", 0)
    monkeypatch.setattr(match, "WORK", 3e6)
    search = found(long, floats, wrong)
    assert "value" in search.readings[0].names and not search.exhaustive, search


def test_a_program_that_cannot_be_recorded_is_no_error():
    def f(x):
        return jax.pure_callback(lambda x: np.asarray(x), jax.ShapeDtypeStruct((3,), "float64"), x)

    total = lambda at: f(jax.lax.stop_gradient(at.floats[0])).sum()  # noqa: E731
    at = Operands([np.ones(3)], [], {}, {}, {})
    off = lambda a, b: a != b  # noqa: E731
    finding = SimpleNamespace(
        name="dx", place=0, hand=np.ones(3), true=np.zeros(3), off=off, wrong=True
    )
    assert match.readings(total, at, [finding]) == []
