"""Has notebooks judged, each in a process of its own, which is ended when it takes too much."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

import psutil

RESULTS = ("right", "wrong", "empty", "error")
CHECKED = ("answer", "check")
LOOK = 0.1  # seconds between two looks at a process
LIBRARIES = 2**29  # bytes of memory that are not a notebook's
TOLD = 2**20  # bytes that are read of what a process tells
# A server that has imported JAX once is copied for each notebook; Windows has no such thing.
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
CONTEXT = multiprocessing.get_context(METHOD)
CONTEXT.set_forkserver_preload(["handgrad.classroom.judge"])


class Step(NamedTuple):
    """A cell to run: `given` with the notebook, or a student's `own`, an `answer`, or a `check`.

    An answer goes with its stub, which holds what of the cell was given, and the names of the
    functions that were asked for.
    """

    kind: str
    source: str
    exercise: str = ""
    stub: str = ""
    asked: tuple = ()


class Limits(NamedTuple):
    """How many seconds of a core a cell may take, and a notebook how many GiB of memory."""

    seconds: float = 60
    memory: float = 2


def judged(steps, limits, compiled, stop):
    """Run the steps; returns {exercise: (result, words)}, and remarks.

    A cell that ends the process, or takes more than the limits, is an error of its exercise; then
    the others are run once more without it. The folder compiled, of programs that JAX has compiled,
    is copied, or made where there is none. The event stop ends it all.

    Raises:
        InterruptedError: it was stopped.

    """
    exercises = list(dict.fromkeys(step.exercise for step in steps if step.kind == "check"))
    results, remarks, skipped = {}, {}, set()

    def note(exercise, result, words):
        words = "".join(c if c.isprintable() or c == "\n" else " " for c in words)
        if results.get(exercise, ("right",))[0] == "right":  # the first of its checks that objects
            results[exercise] = result, words

    while True:
        told, end = _run(steps, skipped, limits, compiled, stop)
        for line in told:
            if line.get("exercise") in exercises and line.get("result") in RESULTS:
                note(line["exercise"], line["result"], str(line.get("words")))
            elif "remark" in line:
                remarks[str(line["remark"])] = None
        at = max((line["at"] for line in told if line.get("at") in range(len(steps))), default=0)
        if not end or at in skipped or steps[at].kind == "given":
            break
        skipped.add(at)
        if steps[at].kind == "own":
            remarks[f"a cell that was added {end}; it was left out"] = None
        else:
            exercise = steps[at].exercise
            note(exercise, "error", end)
            skipped |= {
                i for i, s in enumerate(steps) if s.exercise == exercise and s.kind in CHECKED
            }
    missed = "error", f"not judged, since a cell before it {end}" if end else "not judged"
    return {exercise: results.get(exercise, missed) for exercise in exercises}, list(remarks)


def _run(steps, skipped, limits, compiled, stop):
    # What the process told, line by line, and how it ended; nothing, where it came to the end.
    with tempfile.TemporaryDirectory(prefix="handgrad-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "home").mkdir()
        first = not compiled.exists()
        if first:
            (folder / "compiled").mkdir()
        else:
            shutil.copytree(compiled, folder / "compiled")
        with (folder / "told").open("w+b", buffering=0) as told:
            args = steps, skipped, folder, int(limits.memory * 2**30)
            process = CONTEXT.Process(target=_sit, args=args, daemon=True)
            process.start()
            end = _watch(process, told, limits, stop)
            lines = _lines(told)
        if first:
            shutil.move(folder / "compiled", compiled)
    return lines, "" if any("done" in line for line in lines) else end


def _sit(*args):
    # In the process: what this needs is not for the one that watches.
    from handgrad.classroom.judge import sit

    sit(*args)


def _lines(told):
    # The process may have written there whatever it liked.
    told.seek(0)
    lines = []
    for line in told.read(TOLD).splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict)]


def _watch(process, told, limits, stop):
    # Until it ends, or has to be ended, with all that it has started; returns how.
    family, at, spent, start, waited = {}, None, 0.0, 0.0, 0.0
    try:
        while not wait([process.sentinel], LOOK):
            if stop.is_set():
                raise InterruptedError
            with contextlib.suppress(psutil.NoSuchProcess):
                main = family.setdefault(process.pid, psutil.Process(process.pid))
                children = main.children(recursive=True)
                family |= {child.pid: child for child in children}
                memory = sum(one.memory_info().rss for one in (main, *children))
                before, spent = spent, sum(sum(one.cpu_times()[:4]) for one in (main, *children))
                # A machine that is busy with other things makes nobody's answer wrong.
                idle = spent == before and main.status() == psutil.STATUS_SLEEPING
                waited += LOOK * idle
                now = [line["at"] for line in _lines(told) if "at" in line][-1:]
                if now != at:
                    at, start, waited = now, spent, 0.0
                if spent - start > limits.seconds:
                    return f"took more than {limits.seconds:g} s"
                if waited > limits.seconds:
                    return f"waited for more than {limits.seconds:g} s"
                if memory > limits.memory * 2**30 + LIBRARIES:
                    return f"took more than {limits.memory:g} GiB of memory"
    finally:
        for one in family.values():
            with contextlib.suppress(psutil.Error):
                one.kill()
        process.kill()
        if hasattr(os, "killpg"):
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
        process.join()
    code = process.exitcode
    return f"was killed by signal {-code}" if code < 0 else f"ended the process with status {code}"
