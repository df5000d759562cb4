"""handgrad grade beside nbgrader: python benchmarks/grade.py [-h]

Of each notebook N files are made, whose answers are right, wrong or left empty, by lot, from what
tests/layers knows. handgrad grades them all, with its pages and its table, and nbgrader the first M
of them, one after another, with its feedback. Printed are the seconds, nbgrader's for N files, the
ratio, and whether both found the same number of right answers. Run it where nothing else runs.
"""

import argparse
import csv
import os
import random
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from importlib import import_module
from pathlib import Path

import matplotlib
import nbformat

from handgrad.classroom.editions import edition
from handgrad.notebooks import FOLDER

ROOT = FOLDER.parent
REGION = re.compile(r"(?sm)^( *)### BEGIN SOLUTION\n.*?### END SOLUTION")


def main():
    """Print a line for each notebook."""
    parser = argparse.ArgumentParser()
    parser.add_argument("notebooks", nargs="*", default=["01_gradient", "04_linear"])
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--nbgrader", type=int, default=60)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "layers"))
    for stem in options.notebooks:
        with tempfile.TemporaryDirectory() as folder:
            print(compared(stem, Path(folder), options.files, options.nbgrader), flush=True)


def compared(stem, folder, files, few):
    """The line for a notebook."""
    notebook = nbformat.read(FOLDER / f"{stem}.ipynb", as_version=4)
    names = [f"student-{number:02}" for number in range(files)]
    (folder / "returned").mkdir()
    source = folder / "course" / "source" / "week1" / f"{stem}.ipynb"
    source.parent.mkdir(parents=True)
    nbformat.write(edition(notebook, "instructor"), source)
    for number, name in enumerate(names):
        made = filled(notebook, stem, random.Random(number))
        nbformat.write(made, folder / "returned" / f"{name}.ipynb")
        if number < few:
            place = folder / "course" / "submitted" / name / "week1" / f"{stem}.ipynb"
            place.parent.mkdir(parents=True)
            nbformat.write(made, place)
    ours = seconds(folder, "handgrad grade returned --csv grades.csv")
    seconds(folder / "course", "nbgrader generate_assignment week1")
    one_by_one = "nbgrader autograde week1", "nbgrader generate_feedback week1"
    theirs = sum(seconds(folder / "course", call) for call in one_by_one) * files / few
    seconds(folder / "course", "nbgrader export --to grades.csv")
    right = dict.fromkeys(names, 0)
    for row in rows(folder / "grades.csv"):
        right[Path(row["file"]).stem] += row["result"] == "right"
    graded = [row for row in rows(folder / "course" / "grades.csv") if row["raw_score"]]
    alike = sum(float(row["raw_score"]) == right[row["student_id"]] for row in graded)
    return (
        f"{stem}: {files} files, handgrad {ours:.0f} s, nbgrader {theirs:.0f} s, "
        f"ratio {ours / theirs:.2f}; {alike} of {len(graded)} have as many right answers by both"
    )


def filled(notebook, stem, lot):
    """The student's edition, each exercise answered rightly, wrongly or not at all."""
    answers = import_module(f"test_{stem[3:]}")
    made, number = edition(notebook, "student"), None
    for cell, key in zip(made.cells, notebook.cells, strict=True):
        if opened := re.search(r"(?m)^### Exercise (\d+\.\d+)", cell.source):
            number = opened[1]
        if REGION.search(key.source):
            kind = lot.choice((answers.RIGHT, answers.WRONG, {}))
            if bodies := kind.get(number):
                body = textwrap.dedent(lot.choice(bodies)).strip("\n")
                cell.source = REGION.sub(
                    lambda found, body=body: textwrap.indent(body, found[1]), key.source, count=1
                )
    return made


def seconds(folder, command):
    """How long the command takes there."""
    home = {
        "HOME": str(folder),
        "MPLCONFIGDIR": matplotlib.get_cachedir(),  # a new home would search for fonts again
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    start = time.perf_counter()
    done = subprocess.run(
        command.split(), cwd=folder, env=os.environ | home, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{command}: {done.stdout}{done.stderr}")
    return time.perf_counter() - start


def rows(path):
    """Of a table, as dictionaries."""
    with path.open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


if __name__ == "__main__":
    main()
