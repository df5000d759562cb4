"""The command handgrad: prove the rules, open the notebooks, hand them out."""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import threading
from inspect import signature
from pathlib import Path

SEEDS = 3
FOLDERS = {"student": "handouts", "instructor": "solutions"}


def main(argv=None):
    """Run the command line; the exit status is 0, or 2 for bad input.

    It is 1 for a wrong gradient, or a file that could not be graded, and 141 where nobody reads on,
    as behind `| head`. Interrupted, the process ends with 130.
    """
    options = parser().parse_args(argv)
    sys.unraisablehook = _interrupt_again
    try:
        status = run(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 141
    except (OSError, LookupError, RuntimeError, ImportError, ValueError) as problem:
        if isinstance(problem, OSError) and problem.strerror:  # as it comes from the system
            problem = f"{problem.filename}: {problem.strerror}"
        print(f"handgrad: {problem}", file=sys.stderr)
        return 2
    # Past the handler, so that a progress bar is off the screen and what was half-written is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    print("handgrad: interrupted", file=sys.stderr, flush=True)
    os._exit(130)  # at once: JAX may be compiling in another thread


def _interrupt_again(ignored):
    # JAX has the garbage collector call it back, and there Python drops an interrupt.
    if ignored.exc_type is KeyboardInterrupt:
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
    else:
        sys.__unraisablehook__(ignored)


def parser():
    """What the command line may say."""
    top = argparse.ArgumentParser(prog="handgrad", description="Gradients by hand, proved.")
    top.add_argument("--version", action="store_true", help="print the version, and no more")
    commands = top.add_subparsers(dest="command")
    proof = commands.add_parser("verify", help="prove every rule of the catalog (the default)")
    proof.add_argument(
        "name", nargs="?", help="a layer, a module or a notebook: softmax, losses, 10_losses, ..."
    )
    commands.add_parser("list", help="the notebooks, and the rules that each derives")
    desk = commands.add_parser("lab", help="copy the notebooks, and open them in JupyterLab")
    place = Path("handgrad-notebooks")
    desk.add_argument("folder", nargs="?", type=Path, default=place, metavar="DIR")
    renewal = commands.add_parser("accept", help="re-execute notebooks and store their outputs")
    lesson = commands.add_parser("handout", help="write notebooks for students or instructors")
    for command in (renewal, lesson):
        words = "files, folders of them, or names such as 01_gradient; or else all"
        command.add_argument("notebooks", nargs="*", type=Path, help=words)
    lesson.add_argument("--to", choices=["pdf", "html", "ipynb"], default="pdf")
    lesson.add_argument("--paper", choices=["a4", "letter"], help="of the pdf; a4 unless told")
    lesson.add_argument("--plain", action="store_true", help="leave the edition out of the names")
    words = "handouts, or solutions for instructors, unless told"
    lesson.add_argument("-o", dest="folder", metavar="DIR", type=Path, help=words)
    pages = commands.add_parser("site", help="the notebooks as a static site, to open offline")
    for command, edition in ((lesson, "student"), (pages, "instructor")):
        words = f"the instructor's has the solutions; {edition} unless told"
        command.add_argument("--edition", choices=[*FOLDERS], default=edition, help=words)
    pages.add_argument("-o", dest="out", type=Path, default=Path("site"), metavar="DIR")
    card = commands.add_parser("cheatsheet", help="every layer's gradients on a sheet of paper")
    card.add_argument("-o", dest="out", type=Path, default=Path("cheatsheet.pdf"), metavar="FILE")
    card.add_argument("--paper", choices=["a4", "letter"], default="a4")
    marking = commands.add_parser(
        "grade",
        help="grade the notebooks that came back",
        epilog="The exit status is 1 where a file could not be graded, whatever the grades are.",
    )
    marking.add_argument("folder", type=Path, metavar="FOLDER", help="where the notebooks are")
    marking.add_argument("--csv", type=Path, metavar="FILE", help="a table of all results")
    marking.add_argument("-o", dest="pages", type=Path, metavar="DIR", default=Path("feedback"))
    marking.add_argument(
        "--key",
        dest="keys",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="an instructor's notebook of your own, instead of the collection's; once or more",
    )
    marking.add_argument(
        "--seconds", type=_positive, default=60, help="of a core, for a cell (default: 60)"
    )
    marking.add_argument(
        "--memory", type=_positive, default=2, metavar="GIB", help="for a notebook (default: 2)"
    )
    for command in (desk, lesson, card, marking):
        command.add_argument("--force", action="store_true", help="overwrite what has changed")
    return top


def run(options):
    """Do what the command line asks for; the exit status."""
    if options.version:
        from handgrad import __version__

        print(f"handgrad {__version__}")
        return 0
    if options.command == "lab":
        return lab(options.folder, options.force)
    if options.command == "handout":
        return hand_out(options)
    if options.command == "grade":
        return grade(options)
    if options.command == "site":
        return site(options.out, options.edition)
    _import_jax()  # as the others do
    if options.command == "list":
        return show()
    if options.command == "accept":
        return accept(options.notebooks)
    if options.command == "cheatsheet":
        return cheat_sheet(options)
    return verify(getattr(options, "name", None))


def _import_jax():
    # An interrupt waits for that, since jaxlib would print a traceback of its own.
    late = []
    handler = signal.signal(signal.SIGINT, lambda *interrupt: late.append(interrupt))
    import jax  # noqa: F401

    signal.signal(signal.SIGINT, handler)
    if late:
        raise KeyboardInterrupt


def show():
    """Print the notebooks, each with its title and the rules that it derives."""
    from itertools import zip_longest
    from textwrap import wrap

    from handgrad.catalog import ROWS
    from handgrad.notebooks import named, opening

    paths = named()
    column = max(len(path.stem) for path in paths) + 2
    width = shutil.get_terminal_size().columns - column
    for path in paths:
        rules = ", ".join(row.name for row in ROWS if row.notebook == path.stem)
        lines = [opening(path)[0], *wrap(rules, width)]
        for name, line in zip_longest([path.stem], lines, fillvalue=""):
            print(f"{name:{column}}{line}")
    return 0


def verify(name=None):
    """Prove the layer of that name, or all of a module or notebook; all there are without one.

    Raises:
        LookupError: nothing bears the name.

    """
    from concurrent.futures import ThreadPoolExecutor
    from difflib import get_close_matches

    import jax
    from tqdm import tqdm

    from handgrad.catalog import ROWS
    from handgrad.check.report import painted

    jax.config.update("jax_enable_x64", True)
    # where the user has a folder for compiled programs, all of them are worth keeping
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    rows = [row for row in ROWS if name == row.name]
    rows = rows or [row for row in ROWS if name in (None, row.topic, row.notebook)]
    if not rows:
        known = {known for row in ROWS for known in (row.name, row.topic, row.notebook)}
        near = "".join(f", but {one}" for one in get_close_matches(name, known, n=1))
        raise LookupError(f"verify {name}: no such layer{near}; `handgrad list` has them all")
    width = max(len(row.name) for row in rows)
    columns = max(len(p) + 1 for row in rows for p in signature(row.f).parameters)
    gradients = wrong = 0
    threads = ThreadPoolExecutor(os.cpu_count())  # JAX compiles outside of Python's lock
    try:
        proofs = threads.map(_proved, rows)
        progress = tqdm(proofs, total=len(rows), disable=None, leave=False, unit="rule")
        for row, verdicts in zip(rows, progress, strict=True):
            for verdict in verdicts:
                gradients, wrong = gradients + 1, wrong + (not verdict.right)
                reason = "" if verdict.right else f"WRONG, shape {verdict.shape}: "
                words = painted(reason + verdict.words, verdict.right)
                progress.write(f"{row.name:{width}}  {verdict.name:{columns}}  {words}")
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    if wrong:
        print(f"\n{wrong} of {gradients} gradients of {len(rows)} rules are wrong.")
        return 1
    print(f"\n{gradients} gradients of {len(rows)} rules proved in float64, over {SEEDS} seeds.")
    print("Open the derivations with: handgrad lab")
    return 0


def _proved(row):
    # A row's verdicts over all its examples and some seeds, one a gradient.
    import numpy as np

    from handgrad.check import GradientMismatch, Verdict, prove

    draws, verdicts = {}, {}
    for seed in range(SEEDS):
        for args, hyper in row.proved(np.random.default_rng(seed)).values():
            draws.setdefault(tuple(hyper.items()), []).append(args)
    for hyper, same in draws.items():
        try:
            found = prove(row.f, row.f_fwd, row.f_bwd, same, **dict(hyper))
        except GradientMismatch as mistake:
            return [Verdict(row.name, (), "wrong", str(mistake))]
        for verdict in found:
            if verdict.name not in verdicts or verdicts[verdict.name].right:
                verdicts[verdict.name] = verdict
    return list(verdicts.values())


def lab(folder, force=False):
    """Copy the notebooks into the folder, and become the JupyterLab that opens them there.

    Raises:
        ImportError: JupyterLab is not installed; the notebooks have been copied.

    """
    from handgrad.classroom.lab import copy
    from handgrad.notebooks import advice

    if kept := copy(folder, force):
        names = ", ".join(path.name for path in kept)
        print(f"kept, though they differ from the collection's (--force overwrites them): {names}")
    print(contents := folder / "00_contents.ipynb", flush=True)
    here = Path(sys.executable).parent  # whose kernel has handgrad: look there first
    jupyter = shutil.which("jupyter", path=here) or shutil.which("jupyter")
    if not jupyter or (Path(jupyter).parent == here and not shutil.which("jupyter-lab", path=here)):
        raise ImportError(f"JupyterLab is not installed: {advice('lab')}")
    os.execv(jupyter, [jupyter, "lab", str(contents)])


def accept(paths=()):
    """Re-execute the notebooks, all without a path, and store their outputs.

    What follows from there being a notebook is written too: the README's table, the table in 00,
    and the line that leads from one notebook to the next.

    Raises:
        FileNotFoundError: a path names no notebook.
        RuntimeError: there is no clone; or a cell failed.

    """
    from handgrad import notebooks

    if notebooks.PACKED in notebooks.FOLDER.parents:
        raise RuntimeError("accept: is for a clone of the collection, and this is an installed one")
    from handgrad.catalog import table
    from handgrad.classroom.handout import write

    named = [path.resolve() for path in notebooks.named(paths)]
    notebooks.accept(named)
    if any(path.parent == notebooks.FOLDER for path in named):
        readme = notebooks.FOLDER.parent / "README.md"
        before, _, after = readme.read_text("utf-8").split(MARK)
        texts = notebooks.connected() | {readme: f"{before}{MARK}\n\n{table()}\n\n{MARK}{after}"}
        write({path: text.encode() for path, text in texts.items()}, force=True)
    return 0


def hand_out(options):
    """Write the handouts that the command line asks for, and print their paths.

    Raises:
        ValueError: a paper is named for what is not printed.

    """
    from handgrad.classroom.handout import handout
    from handgrad.notebooks import named

    if options.paper and options.to != "pdf":
        raise ValueError(f"--paper {options.paper}: is for --to pdf; got --to {options.to}")
    written = handout(
        named(options.notebooks),
        options.edition,
        options.to,
        options.folder or Path(FOLDERS[options.edition]),
        options.paper or "a4",
        options.force,
        options.plain,
    )
    print(*written, sep="\n")
    return 0


def grade(options):
    """Grade what came back, and print a table of it; 1 where a file could not be graded."""
    from handgrad.notebooks import needs

    needs("psutil")
    from handgrad.classroom.grade import grade

    limits = options.seconds, options.memory
    graded = grade(options.folder, options.keys, options.csv, options.pages, limits, options.force)
    return int(any(one.problem for one in graded))


def _positive(text):
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < 1e6:
            return number
    raise argparse.ArgumentTypeError(f"expected a number above 0 and below 1e6; got {text!r}")


def site(out, edition):
    """Write the site of all notebooks to the folder `out`, and print where it starts."""
    from handgrad.classroom.site import build
    from handgrad.notebooks import FOLDER

    print(build(FOLDER, out, edition))
    return 0


def cheat_sheet(options):
    """Write the cheat sheet that the command line asks for, and print its path."""
    import jax

    from handgrad.classroom.cheatsheet import cheatsheet

    jax.config.update("jax_enable_x64", True)  # what the rows' examples are in
    print(cheatsheet(options.out, options.paper, force=options.force))
    return 0


MARK = "<!-- the table of layers: made by `handgrad accept` -->"
