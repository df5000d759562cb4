"""The command: its output, its exit status, and what it refuses."""

import sys
from dataclasses import replace

import nbformat
import pytest

from handgrad import catalog, cli, linear_bwd, notebooks


def test_verify_prints_a_line_a_gradient_and_counts_them(capsys):
    assert cli.main(["verify", "linear"]) == 0
    printed, shown = capsys.readouterr()
    *lines, _, count, hint = printed.splitlines()
    assert [line.split()[:2] for line in lines] == [["linear", d] for d in ("dx", "dW", "db")]
    assert count.startswith("3 gradients of 1 rules proved")
    assert "jupyter lab notebooks/00_contents.ipynb" in hint
    assert shown == "", "no progress bar in a pipe"


def test_a_module_s_name_takes_all_its_layers(capsys):
    assert cli.main(["verify", "activations"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[:3]} == {
        "relu",
        "sigmoid",
        "tanh",
    }


@pytest.mark.parametrize("wrong", [lambda r, dz: (*linear_bwd(r, dz)[:2], dz), lambda r, dz: (dz,)])
def test_a_wrong_rule_ends_with_status_1_and_the_reason(monkeypatch, capsys, wrong):
    linear = next(row for row in catalog.ROWS if row.name == "linear")
    monkeypatch.setattr(catalog, "ROWS", (replace(linear, f_bwd=wrong),))
    assert cli.main([]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_an_unknown_name_is_refused_with_the_known_ones(capsys):
    assert cli.main(["verify", "sofmax"]) == 2
    message = capsys.readouterr().err
    assert "verify sofmax: no such layer; expected one of" in message and "softmax" in message


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
    line = 'handgrad: nbclient is not installed: python -m pip install -e ".[test]"\n'
    assert capsys.readouterr().err == line
