"""The command: its output, its exit status, and what it refuses."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest

import handgrad
from handgrad import catalog, cli, linear_bwd, notebooks
from handgrad.check import Verdict
from handgrad.classroom import cheatsheet, lab


def test_verify_prints_a_line_a_gradient_and_counts_them(capsys):
    assert cli.main(["verify", "linear"]) == 0
    printed, shown = capsys.readouterr()
    *lines, _, count, hint = printed.splitlines()
    assert [line.split()[:2] for line in lines] == [["linear", d] for d in ("dx", "dW", "db")]
    assert count.startswith("3 gradients of 1 rules proved")
    assert hint == "Open the derivations with: handgrad lab"
    assert shown == "", "no progress bar in a pipe"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("softmax", ["softmax"]),
        ("softmax_cross_entropy", ["softmax_cross_entropy"]),  # a module's name as well
        ("losses", [row.name for row in catalog.ROWS if row.topic == "losses"]),
        ("06_softmax_cross_entropy", ["softmax", "logsumexp", "log_softmax", "cross_entropy"]),
        (None, [row.name for row in catalog.ROWS]),
    ],
)
def test_a_name_is_a_layer_s_or_else_a_module_s_or_a_notebook_s(monkeypatch, capsys, name, meant):
    monkeypatch.setattr(cli, "_proved", lambda row: [Verdict("dx", (), "right", "matches")])
    assert cli.main(["verify", *filter(None, [name])]) == 0
    *lines, _, count, _ = capsys.readouterr().out.splitlines()
    proved = [line.split()[0] for line in lines]
    assert proved[: len(meant)] == meant and set(proved[len(meant) :]) <= {"softmax_cross_entropy"}
    assert count.startswith(f"{len(proved)} gradients of {len(proved)} rules proved")


@pytest.mark.parametrize("wrong", [lambda r, dz: (*linear_bwd(r, dz)[:2], dz), lambda r, dz: (dz,)])
def test_a_wrong_rule_ends_with_status_1_and_the_reason(monkeypatch, capsys, wrong):
    linear = next(row for row in catalog.ROWS if row.name == "linear")
    monkeypatch.setattr(catalog, "ROWS", (replace(linear, f_bwd=wrong),))
    assert cli.main([]) == 1
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "near"), [("sofmax", ", but softmax"), ("?", "")])
def test_an_unknown_name_is_refused_with_the_nearest_one(capsys, name, near):
    assert cli.main(["verify", name]) == 2
    message = f"handgrad: verify {name}: no such layer{near}; `handgrad list` has them all\n"
    assert capsys.readouterr() == ("", message)


def test_the_list_has_each_notebook_with_its_rules(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "70")
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 70
    heads = [line for line in lines if not line.startswith(" ")]
    assert [line.split()[0] for line in heads] == [path.stem for path in notebooks.named()]
    assert "12_matrix                 Differentiate matrix functions and the solve" in heads
    rules = " ".join(line.strip() for line in lines if line.startswith(" "))
    assert re.findall(r"\w+", rules) == [row.name for row in catalog.ROWS]


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"handgrad {handgrad.__version__}\n"
    assert handgrad.__version__ == version("handgrad") and "__version__" in dir(handgrad)


def notebook(folder, *cells):
    path = folder / "01_example.ipynb"
    cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_accepting_twice_changes_no_byte(tmp_path):
    path = notebook(tmp_path, "print('a')", "print('b', flush=True); print('c')")
    assert cli.main(["accept", str(path)]) == 0
    once = path.read_bytes()
    assert cli.main(["accept", str(path)]) == 0
    assert path.read_bytes() == once
    assert [c.execution_count for c in nbformat.read(path, 4).cells] == [1, 2]


def test_a_notebook_that_fails_stays_as_it_was(tmp_path, capsys):
    path = notebook(tmp_path, "print('a')", "1 / 0")
    before = path.read_bytes()
    assert cli.main(["accept", str(path)]) == 2
    assert "01_example.ipynb: left as it was" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_notebook_is_named(tmp_path, capsys):
    assert cli.main(["accept", str(tmp_path / "nowhere.ipynb")]) == 2
    assert "nowhere.ipynb: no such notebook" in capsys.readouterr().err
    assert notebooks.FOLDER.is_dir()


def test_a_missing_library_names_the_extra_that_has_it(tmp_path, monkeypatch, capsys):
    path = notebook(tmp_path, "print('a')")
    monkeypatch.setitem(sys.modules, "nbclient", None)
    assert cli.main(["accept", str(path)]) == 2
    line = 'handgrad: nbclient is not installed: python -m pip install "handgrad[test]"\n'
    assert capsys.readouterr().err == line


# What a command is at, in a thread or not, when it is interrupted; it would never end by itself.
AT_WORK = r"""
import gc, os, signal, sys, threading
from handgrad import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
def work(*_):
    os.write(1, b"at work\n")
    threading.Event().wait()
def collect():
    gc.callbacks.append(lambda *_: gc.callbacks.clear() or work())
    gc.collect()
    threading.Event().wait()
"""
INTERRUPTED = {
    "verify": "cli._proved = work",
    "list": "cli.show = collect",  # while garbage is collected, whose callbacks may not raise
    "handout 01_gradient": "import handgrad.classroom.paper; handgrad.classroom.paper.pdf = work",
    "accept one.ipynb": "",
}


@pytest.mark.parametrize("command", INTERRUPTED)
def test_an_interrupt_ends_it_at_once_with_one_line(tmp_path, command):
    one = notebook(tmp_path, "import os; os.write(1, b'at work\\n'); input()")
    one.rename(tmp_path / "one.ipynb")
    before = (tmp_path / "one.ipynb").read_bytes()
    code = f"{AT_WORK}{INTERRUPTED[command]}\nsys.exit(cli.main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command.split()],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "at work\n"
    process.send_signal(signal.SIGINT)
    try:
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert (process.returncode, said) == (130, "handgrad: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["one.ipynb"]
    assert (tmp_path / "one.ipynb").read_bytes() == before


def test_an_interrupt_waits_until_jax_is_imported(tmp_path):
    # Its compiled part takes an interrupt for a fault of its own.
    (tmp_path / "jax.py").write_text("""
import signal
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    raise ImportError("jaxlib: cannot be initialized")
""")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.pathsep.join(sys.path)}"}
    command = [sys.executable, "-m", "handgrad", "list"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "handgrad: interrupted\n")


def test_nobody_reads_on():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "handgrad", "--version"]
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=buffered)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_cheat_sheet_takes_the_place_of_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cheatsheet.cheatsheet, "__defaults__", ("a4", (), False))  # no layers
    monkeypatch.setattr(cheatsheet, "_typeset", lambda texts: {})
    monkeypatch.setattr(cheatsheet, "compiled", lambda *_: b"the sheet")
    thesis = tmp_path / "thesis.pdf"
    thesis.write_text("five years of work")
    call = ["cheatsheet", "-o", str(thesis)]
    assert cli.main(call) == 2
    refusal = f"handgrad: not overwritten without --force: {thesis}\n"
    assert capsys.readouterr() == ("", refusal)
    assert thesis.read_text() == "five years of work"
    assert cli.main([*call, "--force"]) == cli.main(call) == 0
    assert thesis.read_text() == "the sheet"


@pytest.fixture
def jupyter(monkeypatch):
    """What is executed in place of this process."""
    executed = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: executed.append((path, *arguments)))
    return executed


def test_a_learner_s_second_visit_opens_what_she_has_written(tmp_path, jupyter, capsys):
    folder = tmp_path / "mine"
    contents, hers, gone = (
        folder / f"{n}.ipynb" for n in ("00_contents", "03_chain_rule", "08_checking")
    )
    cli.main(["lab", str(folder)])
    assert capsys.readouterr() == (f"{contents}\n", "")
    original = hers.read_bytes()
    names = {path.name for path in notebooks.FOLDER.glob("*.ipynb")}
    assert {path.name for path in folder.glob("*.ipynb")} == names
    hers.write_text("hers", "utf-8")
    gone.unlink()
    cli.main(["lab", str(folder)])
    kept, opened = capsys.readouterr().out.splitlines()
    assert kept.startswith("kept, though they differ") and kept.endswith("): 03_chain_rule.ipynb")
    assert opened == str(contents)
    assert hers.read_text("utf-8") == "hers" and gone.exists()
    cli.main(["lab", str(folder), "--force"])
    assert hers.read_bytes() == original
    command = str(Path(sys.executable).with_name("jupyter"))
    assert jupyter == [(command, command, "lab", str(contents))] * 3


def test_what_a_copy_links_to_comes_along(tmp_path, monkeypatch):
    project, folder = tmp_path / "project", tmp_path / "copy"
    (project / "notebooks").mkdir(parents=True)
    (project / "src").mkdir()
    (project / "src" / "rule.py").write_text("dx = dz")
    cell = nbformat.v4.new_markdown_cell("[a](01_b.ipynb), [b](../src/rule.py#L1), [c](../gone.py)")
    written = nbformat.v4.new_notebook(cells=[cell])
    nbformat.write(written, project / "notebooks" / "00_contents.ipynb")
    monkeypatch.setattr(lab, "FOLDER", project / "notebooks")
    assert lab.copy(folder) == lab.copy(folder) == []
    (copied,) = nbformat.read(folder / "00_contents.ipynb", 4).cells
    assert copied.source == "[a](01_b.ipynb), [b](src/rule.py#L1), [c](gone.py)"
    assert (folder / "src" / "rule.py").read_text() == "dx = dz"
    lab.copy(project / "notebooks", force=True)
    assert nbformat.read(project / "notebooks" / "00_contents.ipynb", 4) == written
    assert [path.name for path in (project / "notebooks").iterdir()] == ["00_contents.ipynb"]


def test_without_jupyterlab_the_notebooks_are_there_and_it_says_what_to_install(
    tmp_path, monkeypatch, capsys
):
    script = tmp_path / "jupyter"  # comes with every kernel
    script.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    line = 'handgrad: JupyterLab is not installed: python -m pip install "handgrad[lab]"\n'
    for _ in range(2):
        assert cli.main(["lab", str(tmp_path / "mine")]) == 2
        assert capsys.readouterr() == (f"{tmp_path / 'mine' / '00_contents.ipynb'}\n", line)
        script.unlink(missing_ok=True)
