"""Grade the notebooks that come back from students, each in a process of its own, on all cores."""

import csv
import io
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from handgrad.classroom import match
from handgrad.classroom.feedback import page
from handgrad.classroom.handout import write
from handgrad.classroom.sitting import RESULTS, Limits, judged
from handgrad.notebooks import FOLDER, needs

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet may take the start of one for


class Graded(NamedTuple):
    """What was found in a file.

    results holds (result, words) by exercise, and answers the code that was handed in for it.
    written are the exercises with an answer in words, which no machine judges. problem says why the
    file could not be graded at all; then there are no results.
    """

    file: str
    title: str = ""
    results: dict = {}  # noqa: RUF012
    answers: dict = {}  # noqa: RUF012
    written: tuple = ()
    remarks: tuple = ()
    problem: str = ""

    def rows(self):
        """(exercise, result, words) of each; one of no exercise, an error, where there is none."""
        found = [(exercise, *said) for exercise, said in self.results.items()]
        return found or [("", "error", self.problem)]


def grade(folder, keys=(), table=None, pages=Path("feedback"), limits=(60, 2), force=False):
    """Grade the notebooks in a folder, and in those in it; returns a Graded for each.

    Which notebook a file was made from is told by what it holds, whatever it is called: one of the
    keys, which are an instructor's, or of the collection where no key is given. The keys are graded
    first, since their own answers have to be right. A summary is printed, and then it is
    written: a page for each file in the folder pages, and the table, of comma-separated values.

    Raises:
        FileExistsError: a file would be overwritten, and `force` is not set; nothing is graded.
        FileNotFoundError: there is nothing to grade, or no such key.
        ImportError: the extra "classroom" or "notebooks" is not installed.
        OSError: a file can't be written; names it.
        RuntimeError: an answer of a key is not right.
        ValueError: a key is malformed, or the table would replace a notebook.

    """
    paths, others = _came_back(folder)
    places = [pages / path.relative_to(folder).with_suffix(".html") for path in paths]
    written = [*places, *([table] if table else [])]
    if table and table.resolve() in [path.resolve() for path in paths]:
        raise ValueError(f"{table}: expected a new file for the table; got a notebook to grade")
    if not force and (taken := [str(path) for path in written if path.exists()]):
        raise FileExistsError(f"not overwritten without --force: {', '.join(taken)}")
    graded = [
        found._replace(file=_name(path.relative_to(folder)))
        for path, found in zip(paths, _graded(paths, keys, Limits(*limits)), strict=True)
    ]
    for line in _summary(graded):
        print(line)
    if others:
        names = ", ".join(_name(path.relative_to(folder)) for path in others)
        print(f"ignored, since no notebook's name ends like that: {names}")
    files = {place: page(one).encode() for place, one in zip(places, graded, strict=True)}
    write(files | ({table: _table(graded).encode()} if table else {}), force)
    return graded


def _came_back(folder):
    # The notebooks, and the other files. Hidden are the copies that Jupyter keeps.
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder with the notebooks that came back")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    seen = [p for p in files if not any(part[0] == "." for part in p.relative_to(folder).parts)]
    notebooks = [path for path in seen if path.suffix == ".ipynb"]
    if not notebooks:
        raise FileNotFoundError(f"{folder}: expected files that end in .ipynb; there is none")
    return notebooks, [path for path in seen if path.suffix != ".ipynb"]


def _name(path):
    # As a spreadsheet may read it, which takes what begins with = or - for a formula.
    name = os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
    return f"./{name}" if name.startswith(FORMULA) else name


def _graded(paths, keys, limits):
    from tqdm import tqdm

    for module in ("IPython", "matplotlib"):
        needs(module, "notebooks")
    known = {path: match.signs_of_key(path) for path in keys or sorted(FOLDER.glob("*.ipynb"))}
    read, problems = {}, {}
    for path in paths:
        try:
            cells = match.cells_of(path)
            read[path] = cells, match.origin(cells, known)
        except ValueError as problem:
            problems[path] = Graded("", problem=str(problem))
    used = {path: match.key(path) for path in sorted({origin for _, origin in read.values()})}
    stop, threads = threading.Event(), ThreadPoolExecutor(os.cpu_count())
    with tempfile.TemporaryDirectory(prefix="handgrad-") as folder:
        compiled = {path: Path(folder, str(i)) for i, path in enumerate(used)}

        def one(cells, origin):
            steps, answers, remarks = match.steps(used[origin], cells)
            results, more = judged(steps, limits, compiled[origin], stop)
            key = used[origin]
            return Graded("", key.title, results, answers, key.written, (*remarks, *more))

        def prove(path):
            for exercise, (result, words) in one(match.cells_of(path), path).results.items():
                if result != "right":
                    raise RuntimeError(
                        f"{path}: nothing is graded, since its own answer to Exercise {exercise} "
                        f"comes out as {result}: {words}"
                    )

        def work():
            yield from threads.map(prove, used)
            yield from threads.map(lambda path: problems.get(path) or one(*read[path]), paths)

        try:
            bar = tqdm(work(), total=len(used) + len(paths), disable=None, unit="notebook")
            return list(bar)[len(used) :]
        finally:
            stop.set()
            threads.shutdown(cancel_futures=True)


def _summary(graded):
    # A line for each file, and below it what there is to remark.
    width = max(len(_shown(one.file)) for one in graded)
    yield "  ".join([f"{'file':{width}}", *RESULTS])
    for one in graded:
        found = [result for _, result, _ in one.rows()]
        counts = [f"{found.count(result):{len(result)}}" for result in RESULTS]
        yield "  ".join([f"{_shown(one.file):{width}}", *counts])
        yield from (f"    {_shown(remark)}" for remark in [*one.remarks, one.problem] if remark)


def _shown(text):
    return "".join(c if c.isprintable() else "?" for c in text)


def _table(graded):
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("file", "exercise", "result", "words"))
    for one in graded:
        for exercise, result, words in one.rows():
            line = " ".join(words.split())
            guarded = f"'{line}" if line.startswith(FORMULA) else line
            writer.writerow((one.file, exercise, result, guarded))
    return table.getvalue()
