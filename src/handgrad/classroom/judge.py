"""Runs a notebook that came back and judges its answers, in a process that nobody else needs.

The instructor's cells run in one namespace and the student's in another, which is given all that
the first one makes. A check is the instructor's, and takes of the student's nothing but the
functions that she was asked for: what else she redefines, a check or the data, it never sees. What
she replaces inside of a module is put back before each check.

She shares the process with her judge, so whoever sets out to deceive it can.
"""

import ast
import contextlib
import copy
import itertools
import json
import linecache
import os
import sys
import traceback
from types import FunctionType, ModuleType

# Imported here, they are there already when the process is forked; none of them starts a thread.
import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from traitlets.config import Config

import handgrad.layers  # noqa: F401
from handgrad import figures
from handgrad.check import gradient, rule, steps, vjp  # noqa: F401
from handgrad.check.naming import explain  # noqa: F401

LONGEST = 2000  # characters of a diagnosis
KEPT = ("JAX_", "LANG", "LC_", "OPENBLAS_", "PATH", "PYTHON", "SYSTEMROOT", "TZ", "XLA_")
GUARDED = {"builtins", "handgrad", "jax", "jaxlib", "math", "numpy", "operator", "scipy"}
THREAD = 32 * 2**20  # bytes that a core's threads reserve, and hardly use


def sit(cells, skipped, folder, memory):
    """Run the Steps, less those whose numbers are skipped, and end the process.

    It works in folder/home, reads compiled programs in folder/compiled, and writes what it finds
    to folder/told, a line of JSON each: where it is, the result of an exercise, or a remark.
    """
    with (folder / "told").open("a", buffering=1, encoding="ascii") as told:
        _settle(folder, memory)
        sitting = _Sitting(lambda **said: told.write(json.dumps(said) + "\n"))
        for number, step in enumerate(cells):
            sitting.tell(at=number)
            if number not in skipped:
                getattr(sitting, step.kind)(step)
            elif step.kind == "answer":
                sitting.hand_out(step)
        sitting.tell(done=True)
    os._exit(0)  # whatever the student has left to be done at the end, or in a thread


def _settle(folder, memory):
    # Nothing to read from, nobody to write to, and no more to know than is needed.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    home = folder / "home"
    settings = {name: value for name, value in os.environ.items() if name.startswith(KEPT)}
    os.environ.clear()
    os.environ |= settings | dict.fromkeys(("HOME", "IPYTHONDIR", "TMPDIR"), str(home))
    os.chdir(home)
    if sys.platform != "win32":
        import resource

        os.setsid()  # a group of processes, to be ended together
        # Of all limits the one that stops a hog but not JAX, which reserves far more than it uses.
        most = {"RLIMIT_DATA": memory + THREAD * (os.cpu_count() or 1)}
        most |= {"RLIMIT_FSIZE": memory, "RLIMIT_CORE": 0}
        for name, limit in most.items():
            which = getattr(resource, name)
            _, least = resource.getrlimit(which)
            limit = limit if least == resource.RLIM_INFINITY else min(limit, least)
            resource.setrlimit(which, (limit, limit))
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # without it the name of that folder, which is new each time, would be a part of every key
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    plt.switch_backend("agg")
    plt.show = figures.show = lambda *args, **kwargs: None  # nobody looks


class _Sitting:
    """The two namespaces, and what is told of them."""

    def __init__(self, tell):
        self.tell = tell
        settings = Config({"HistoryManager": {"enabled": False}})
        self.shell = InteractiveShell.instance(config=settings)
        names = {"__name__": "__main__", "display": display, "get_ipython": lambda: self.shell}
        self.ours, self.theirs = dict(names), dict(names)
        self.numbers = itertools.count()
        self.asked, self.filled, self.problems = {}, set(), {}
        self.guard = _Guard()

    def given(self, step):
        """A cell of the notebook itself; both have what it makes."""
        if problem := self._make(step.source):
            self.tell(remark=f"a cell of the notebook itself fails: {self._words(problem)}")

    def own(self, step):
        """A cell that the student has added."""
        self._run(step.source, self.theirs)

    def answer(self, step):
        """A cell that was to be filled in; as it was handed out, or blank, it is not run."""
        self.hand_out(step)
        if _bare(step.source) not in (_bare(step.stub), _bare("")):
            self.filled.add(step.exercise)
            self.problems[step.exercise] = self._run(step.source, self.theirs)

    def hand_out(self, step):
        """The stub of an answer: what of it is given, and functions that refuse to be called."""
        self._make(step.stub)
        stubs = {name: self.ours.get(name) for name in step.asked}
        self.asked.setdefault(step.exercise, {}).update(stubs)

    def check(self, step):
        """A check of the instructor's, on the student's functions as they are now."""
        exercise, stubs = step.exercise, self.asked.get(step.exercise, {})
        answers = {name: self.theirs.get(name, stub) for name, stub in stubs.items()}
        if all(answers[name] is stub for name, stub in stubs.items()):
            if problem := self.problems.get(exercise):
                return self.tell(exercise=exercise, result="error", words=self._words(problem))
            if exercise not in self.filled:
                return self.tell(exercise=exercise, result="empty", words="")
        self._put_back()
        self.ours.update(answers)
        problem = self._run(step.source, self.ours)
        result, words = "right", ""
        if problem:
            result = "wrong" if isinstance(problem, AssertionError) else "error"
            words = self._words(problem)
        if replaced := self._put_back():
            result, words = "error", f"while it is checked, it replaces {replaced}"
        self.tell(exercise=exercise, result=result, words=words)

    def _put_back(self):
        if replaced := ", ".join(self.guard.put_back()):
            self.tell(remark=f"replaces {replaced}, which was put back before the next check")
        return replaced

    def _make(self, source):
        # In the instructor's namespace, and from there to the student's; the exception, or None.
        before = dict(self.ours)
        problem = self._run(source, self.ours)
        made = {name: v for name, v in self.ours.items() if before.get(name, self) is not v}
        self.theirs |= {name: _copy(value) for name, value in made.items()}
        return problem

    def _run(self, source, names):
        # The exception that the cell raises, or None.
        own = names is self.theirs
        if own:
            self.guard.look()
        cell = f"<{'own' if own else 'given'} cell {next(self.numbers)}>"
        try:
            code = self.shell.transform_cell(source)
            linecache.cache[cell] = len(code), None, code.splitlines(True), cell
            exec(compile(code, cell, "exec", dont_inherit=True), names)
        except BaseException as problem:  # even one that is meant to end the process
            return problem
        finally:
            plt.close("all")

    def _words(self, problem):
        try:
            text = str(problem)[:LONGEST].strip()
        except BaseException:  # it is the student's, too
            text = ""
        frames = traceback.extract_tb(problem.__traceback__)
        traceback.clear_frames(problem.__traceback__)  # of what may have filled the memory
        if isinstance(problem, AssertionError):
            return text or f"it fails at: {frames[-1].line}"
        kind = type(problem).__name__
        own = [frame for frame in frames if frame.filename.startswith("<own cell")]
        place = [f"at line {frame.lineno} of the cell: {frame.line}" for frame in own[-1:]]
        return ", ".join([f"{kind}: {text}" if text else kind, *place])


def _copy(value):
    # Data that may be changed in place: the student has her own.
    if isinstance(value, list | dict | set | np.ndarray | np.random.Generator):
        with contextlib.suppress(Exception):  # not all that they hold can be copied
            return copy.deepcopy(value)
    return value


def _bare(source):
    # What of a cell counts: no comment and no spacing, nor what it says that it is still a stub.
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and "NotImplementedError" in ast.unparse(node):
            node.exc = None
    return ast.dump(tree)


class _Guard:
    """What was in the modules before a student's code ran."""

    def __init__(self):
        self.modules, self.names, self.parts = {}, {}, {}

    def look(self):
        """Remember what has been imported since."""
        for name in [name for name in sys.modules if name.partition(".")[0] in GUARDED]:
            if name not in self.modules:
                module = self.modules[name] = sys.modules[name]
                self.names[name] = {k: v for k, v in vars(module).items() if _is_code(v)}
                for thing in self.names[name].values() if name.startswith("handgrad") else ():
                    if isinstance(thing, type | FunctionType):
                        self.parts[thing] = _parts(thing)

    def put_back(self):
        """Undo what was replaced since; the names of it."""
        replaced = []
        for name, module in self.modules.items():
            if sys.modules.get(name) is not module:
                sys.modules[name] = module
                replaced.append(name)
            now = vars(module)
            for attribute, value in self.names[name].items():
                if now.get(attribute) is not value:
                    now[attribute] = value
                    replaced.append(f"{name}.{attribute}")
        for thing, parts in self.parts.items():
            now = _parts(thing)
            changed = [n for n in now.keys() | parts.keys() if now.get(n) is not parts.get(n)]
            for name in changed:
                setattr(thing, name, parts[name]) if name in parts else delattr(thing, name)
            if changed:
                replaced.append(f"{thing.__module__}.{thing.__qualname__}")
        return replaced


def _is_code(value):
    return callable(value) or isinstance(value, ModuleType)


def _parts(thing):
    # What may be replaced in a function, or in a class.
    if isinstance(thing, type):
        return {name: value for name, value in vars(thing).items() if _is_code(value)}
    return {name: getattr(thing, name) for name in ("__code__", "__defaults__", "__kwdefaults__")}
