"""The checker names the mistake, names none in a right gradient, and admits that it knows none."""

from collections import Counter
from importlib import import_module
from pathlib import Path

import confusion
import nbformat
import numpy as np
import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "32_checker.ipynb"


@pytest.fixture(scope="module")
def cases():
    return list(confusion.cases())


@pytest.fixture(scope="module")
def table():
    return confusion.confusion(confusion.kept(confusion.PLANTED, confusion.Planted))


def test_planted_mistakes_are_told_as_they_were_kept(cases):
    # all of them take half a minute: one of every four
    kept = confusion.kept(confusion.PLANTED, confusion.Planted)
    for made, told in zip(confusion.planted(cases, every=4), kept, strict=True):
        assert made[:3] == told[:3]
        assert made.names in (None, told.names), told


def test_planted_mistakes_are_named(table):
    times = sum(n for answers in table.values() for n in answers.values())
    right = sum(
        n
        for mistake, answers in table.items()
        for names, n in answers.items()
        if confusion.named(mistake, names)
    )
    assert right >= 0.98 * times, confusion.text(table)
    for mistake, answers in table.items():
        hits = sum(n for names, n in answers.items() if confusion.named(mistake, names))
        assert hits >= 0.9 * sum(answers.values()), f"{mistake}: {dict(answers)}"


def test_a_right_gradient_is_never_blamed(cases):
    for case in cases:
        for name, d in case.rule().items():
            verdict = confusion.judge(case, name, d)
            assert verdict.right and verdict.mistakes == (), verdict


def test_unrelated_errors_are_admitted_to_be_unknown(cases):
    rng = np.random.default_rng(0)
    errors = [(case, *error) for case in cases for error in confusion.random_errors(case, rng)]
    verdicts = [confusion.judge(*error) for error in errors[::4]]
    assert not any(verdict.right for verdict in verdicts)
    unknown = sum("no known mistake" in verdict.words for verdict in verdicts)
    assert unknown >= 0.99 * len(verdicts)
    assert sum(verdict.mistakes == () for verdict in verdicts) == unknown


def test_realistic_mistakes_are_told_as_they_were_kept():
    # all of them take minutes: of every twelfth layer one, at small sizes
    kept = {t[:4]: t for t in confusion.kept(confusion.TOLD, confusion.Told)}
    chosen = {}
    for group, layer, mistake, size, *_ in sorted(kept):
        if mistake and size == "small":
            chosen.setdefault((group, layer), mistake)
    chosen = dict(list(chosen.items())[::12])
    found = list(
        confusion.told(
            sizes=("small",),
            chosen=lambda layer, mistake: (
                mistake.what in chosen.values()
                and (mistake.what in {m for (_, name), m in chosen.items() if name == layer.name})
            ),
        )
    )
    assert len(found) >= 8
    for told in found:
        assert (told.kind, told.names) == (kept[told[:4]].kind, kept[told[:4]].names), told


def test_realistic_mistakes_are_named_and_right_layers_are_not_blamed():
    kept = confusion.kept(confusion.TOLD, confusion.Told)
    made = [told for told in kept if told.mistake]
    layers = {(told.group, told.layer) for told in kept}
    every = {
        (group, layer.name, mistake.what)
        for group in confusion.GROUPS
        for layer in import_module(f"mistakes.{group}").LAYERS
        for mistake in layer.mistakes
    }
    assert {told[:3] for told in made} == every and len(layers) >= 40 and len(every) >= 200
    assert {told.kind for told in kept if not told.mistake} == {"right"}
    for size in confusion.SIZES:
        kinds = Counter(told.kind for told in made if told.size == size)
        assert kinds["named"] >= 0.85 * len(every), (size, kinds)
        assert kinds["misnamed"] <= 0.02 * len(every), (size, kinds)
        assert not kinds["passed"], (size, kinds)


def test_the_notebook_holds_the_figures_of_the_script(cases, table):
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    planted, realistic = (cell.source for cell in cells if "```text" in cell.source)
    assert confusion.text(table) in planted
    rng = np.random.default_rng(0)
    errors = sum(len(list(confusion.random_errors(case, rng))) for case in cases)
    assert f"{errors} unrelated random errors" in " ".join(planted.split())
    told = confusion.kept(confusion.TOLD, confusion.Told)
    assert confusion.of_realistic(told) in realistic
