"""The checks of the exercises accept every right answer, however written, and refuse wrong ones.

A topic lists answers in tests/layers/test_<topic>.py: RIGHT and WRONG hold, by exercise, the bodies
that might stand between the marks of its solution.
"""

import importlib
import re
import sys
import textwrap
from pathlib import Path

import pytest
from kernel import Kernel, prose, sections

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "layers"))
TOPICS = {
    path.stem: importlib.import_module(f"test_{path.stem[3:]}")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    if (ROOT / "tests" / "layers" / f"test_{path.stem[3:]}.py").exists()
}
REGION = re.compile(r"(?sm)^( *)### BEGIN SOLUTION\n.*?### END SOLUTION")


def exercises(path):
    """The code cells of each exercise, by number."""
    heading = r"(?m)^### Exercise (\d+\.\d+)"
    numbers = re.findall(heading, prose(path))
    given, *found = sections(path, heading)
    return given, dict(zip(numbers, found, strict=True))


def answered(cell, body):
    """The cell with another body between the marks."""
    return REGION.sub(
        lambda found: textwrap.indent(textwrap.dedent(body).strip("\n"), found[1]), cell, 1
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("topic", TOPICS)
def test_right_answers_are_accepted_and_wrong_ones_refused(topic, monkeypatch):
    module, path = TOPICS[topic], ROOT / "notebooks" / f"{topic}.ipynb"
    given, found = exercises(path)
    kernel = Kernel(monkeypatch, path.parent)
    for cell in given:
        kernel.run(cell)
    restore = kernel.saved()

    def judge(number, body):
        restore()
        answer = next(i for i, cell in enumerate(found[number]) if REGION.search(cell))
        for i, cell in enumerate(found[number]):
            kernel.run(answered(cell, body) if i == answer else cell)

    for number, bodies in getattr(module, "RIGHT", {}).items():
        for body in bodies:
            judge(number, body)
    for number, bodies in getattr(module, "WRONG", {}).items():
        for body in bodies:
            with pytest.raises(Exception):  # noqa: B017  whatever its check raises
                judge(number, body)
                pytest.fail(f"Exercise {number} accepts\n{body}", pytrace=False)
