"""What of a file that came back is whose: the notebook that it was made from, cell by cell."""

import ast
import json
import re
from pathlib import Path
from typing import NamedTuple

from handgrad.classroom.editions import BEGIN, HEADING
from handgrad.classroom.handout import _edition
from handgrad.classroom.sitting import Step

LARGEST = 100 * 2**20  # bytes of a notebook
TELLING = 40  # characters of prose that no two notebooks have in common
PART = re.compile(r"exercise-\d+-\d+-(words|answer|check)(?:-\d+)?")


CODE = ("given", "answer", "check")


class Cell(NamedTuple):
    """A cell as it came back; its name is nbgrader's, which whatever edits a notebook keeps."""

    kind: str
    source: str
    name: str


class Part(NamedTuple):
    """A cell of a key. kind is a Step's, "prose" or "words"; stub what a student is handed."""

    kind: str
    source: str
    name: str
    exercise: str
    stub: str


class Key(NamedTuple):
    """An instructor's notebook."""

    path: Path
    title: str
    parts: tuple

    @property
    def written(self):
        """The exercises that have an answer in words."""
        return tuple(dict.fromkeys(p.exercise for p in self.parts if p.kind == "words"))


def cells_of(path):
    """The cells of a notebook, whatever else is wrong with it.

    Raises:
        ValueError: the file is no notebook.

    """
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("larger than 100 MB")
        text = path.read_text("utf-8-sig")
        if not text.strip():
            raise ValueError("empty")
        return [
            Cell(
                cell["cell_type"],
                "".join(cell["source"]),
                str(cell.get("metadata", {}).get("nbgrader", {}).get("grade_id", "")),
            )
            for cell in json.loads(text)["cells"]
        ]
    except OSError as problem:
        raise ValueError(f"the file can't be read: {problem.strerror}") from None
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as problem:
        why = str(problem) if type(problem) is ValueError else "not what Jupyter writes"
        raise ValueError(f"the file is no notebook: {why}") from None


def signs(cells):
    """What tells a notebook from others: names of answers, and prose."""
    prose = {c.source.strip() for c in cells if c.kind == "markdown"}
    names = {c.name for c in cells if PART.fullmatch(c.name)}
    return names | {text for text in prose if len(text) > TELLING}


def signs_of_key(path):
    """The same of a key, whose answers have no names until it is handed out.

    Raises:
        FileNotFoundError: there is no such notebook.
        ValueError: the file is no notebook.

    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such notebook")
    try:
        cells = cells_of(path)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    text = "\n".join(cell.source for cell in cells if cell.kind == "markdown")
    numbers = [found["number"] for found in HEADING.finditer(text) if found["number"]]
    return signs(cells) | {f"exercise-{n.replace('.', '-')}-answer" for n in numbers}


def origin(cells, known):
    """Which of the keys the cells were made from; known are the signs of each.

    Raises:
        ValueError: they were made from none.

    """
    own = signs(cells)
    best = max(known, key=lambda path: len(own & known[path]))
    if not own & known[best]:
        raise ValueError("the notebook is none of those that were handed out")
    return best


def key(path):
    """Read a key.

    Raises:
        FileNotFoundError: there is no such notebook.
        ValueError: it is malformed; says where.

    """
    parts, exercise = [], ""
    editions = [_edition(path, kind).cells for kind in ("instructor", "student")]
    for cell, handed in zip(*editions, strict=True):
        if cell.cell_type == "markdown":
            for heading in HEADING.finditer(cell.source):
                exercise = heading["number"] or ""
        name = cell.metadata.get("nbgrader", {}).get("grade_id", "")
        named = PART.fullmatch(name)
        kind = named[1] if named else "given" if cell.cell_type == "code" else "prose"
        parts.append(Part(kind, cell.source, name, exercise, handed.source))
    heading = re.search(r"(?m)^# (.+)$", parts[0].source if parts else "")
    title = re.sub(r"[`*$]", "", heading[1]) if heading else path.stem
    return Key(path, title, tuple(parts))


def steps(key, cells):
    """The Steps that judge the cells by the key; {exercise: the answer in code}; and remarks.

    The key's own cells are run as the key has them, and in its order. The student's answers come in
    their places, and what else she has after the cell that it follows in her notebook.
    """
    places = _places(key.parts, cells)
    added, place, answers, remarks = {}, -1, {}, []
    for number, cell in enumerate(cells):
        place = next((i for i, taken in places.items() if taken == number), place)
        if number not in places.values() and cell.kind == "code":
            added.setdefault(place, []).append(cell.source)
    made = [Step("own", source) for source in added.get(-1, ())]
    for i, part in enumerate(key.parts):
        source = cells[places[i]].source if i in places else ""
        if part.kind == "given":
            made.append(Step("given", part.source))
        elif part.kind == "answer":
            asked = _asked(part.source)
            made.append(Step("answer", source, part.exercise, part.stub, asked))
            answers[part.exercise] = f"{answers.get(part.exercise, '')}\n\n{source}".strip()
        elif part.kind == "check":
            made.append(Step("check", part.source, part.exercise))
            if _body(source) not in (_body(part.source), _body(part.stub)):
                what = "altered" if source.strip() else "deleted"
                remarks.append(f"the check of Exercise {part.exercise} is {what}; it was restored")
        made += [Step("own", source, part.exercise) for source in added.get(i, ())]
    return made, answers, remarks


def _places(parts, cells):
    # Which cell stands in the place of which part: by its name, by its text, or by what it defines.
    texts = {
        text.strip(): i for i, p in reversed([*enumerate(parts)]) for text in (p.source, p.stub)
    }
    names = {part.name: i for i, part in enumerate(parts) if part.name}
    found = {}
    for number, cell in enumerate(cells):
        i = names.get(cell.name, texts.get(cell.source.strip()))
        if i is not None and (cell.kind == "code") == (parts[i].kind in CODE):
            found.setdefault(i, number)
    for i, part in enumerate(parts):
        if part.kind == "answer" and i not in found:
            definition = re.compile(rf"(?m)^(?:def|class) (?:{'|'.join(_asked(part.source))})\b")
            for number, cell in enumerate(cells):
                if number not in found.values() and definition.search(cell.source):
                    found.setdefault(i, number)
    return found


def _body(check):
    # Less the imports that it may begin with, in the edition for nbgrader.
    return re.sub(r"\A(?:(?:import|from) .*\n+)*", "", check.strip())


def _asked(answer):
    # The names of what has a solution in it: the rest of the cell is given.
    lines = [n for n, line in enumerate(answer.split("\n"), 1) if BEGIN in line]
    return tuple(
        node.name
        for node in ast.parse(answer).body
        if hasattr(node, "name") and any(node.lineno < n <= node.end_lineno for n in lines)
    )
