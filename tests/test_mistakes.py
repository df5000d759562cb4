"""The checker names the mistake, names none in a right gradient, and admits that it knows none."""

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
def table(cases):
    return confusion.confusion(cases)


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
    verdicts = [
        confusion.judge(case, name, wrong)
        for case in cases
        for name, wrong in confusion.random_errors(case, rng)
    ]
    assert not any(verdict.right for verdict in verdicts)
    unknown = sum("no known mistake" in verdict.words for verdict in verdicts)
    assert unknown >= 0.99 * len(verdicts)
    assert sum(verdict.mistakes == () for verdict in verdicts) == unknown


def test_the_notebook_holds_the_figures_of_the_script(cases, table):
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    planted, unseen = (cell.source for cell in cells if "```text" in cell.source)
    assert confusion.text(table) in planted
    rng = np.random.default_rng(0)
    errors = sum(len(list(confusion.random_errors(case, rng))) for case in cases)
    assert f"{errors} unrelated random errors" in " ".join(planted.split())
    assert confusion.of_unseen() in unseen
