"""Where the notebooks are; and to re-execute them, their outputs stored in one normal form."""

import importlib
import json
import os
import re
from pathlib import Path

PACKED = Path(__file__).with_name("_collection")  # in a wheel, laid out as a clone is
FOLDER = (PACKED if PACKED.is_dir() else Path(__file__).parents[2]) / "notebooks"


def named(paths=()):
    """The notebooks that the paths name: files, folders of them, or names such as 01_gradient.

    They are the collection's where there is no path.

    Raises:
        FileNotFoundError: a path names no notebook.

    """
    own = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
    found = []
    for path in paths:
        inside = sorted(path.glob("*.ipynb")) if path.is_dir() else [own.get(str(path), path)]
        if not inside or not inside[0].is_file():
            expected = "expected a file, a folder of notebooks, or a name such as 01_gradient"
            raise FileNotFoundError(f"{path}: no such notebook; {expected}")
        found += inside
    return found or list(own.values())


def read(path):
    """A notebook, in the fourth version of the format.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: nbformat is not installed; says which extra has it.
        ValueError: it holds no notebook; names it.

    """
    nbformat = needs("nbformat")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such notebook")
    try:
        notebook = nbformat.convert(nbformat.reader.reads(path.read_text("utf-8")), 4)
        nbformat.validate(notebook)
    except Exception as problem:  # nbformat has half a dozen types of error for a malformed file
        reason = str(problem).partition("\n")[0]
        raise ValueError(f"{path.name}: not a valid notebook: {reason}") from None
    return notebook


def opening(path):
    """A notebook's title, and the text of its first cell.

    Raises:
        ValueError: it has no title; names the notebook.

    """
    text = "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"])
    if title := re.search(r"(?m)^# \d+\. (.*)$", text):
        return title[1], text
    raise ValueError(f"{path.name}: its first cell has no title: expected a line '# N. Title'")


def connected(folder=FOLDER):
    """What the notebooks of a folder say of each other, brought up to date: {path: its new text}.

    That is the line that leads to the one before and to the one after, and 00's table of them all.

    Raises:
        ValueError: a notebook does not say its title, or what it is for; names it.

    """
    nbformat = needs("nbformat", "test")
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    openings = {path: opening(path) for path in paths}
    rows = ["| notebook | you will be able to |", "|---|---|"]
    for path in paths[1:]:
        title, text = openings[path]
        able = re.search(r"(?s)\*\*You will be able to\*\*\s*(?:- )?(.*?)[;.]?\n(?:- |\n)", text)
        if not able:
            raise ValueError(f"{path.name}: its first cell has no words '**You will be able to**'")
        able = " ".join(able[1].split())
        rows.append(f"| [{int(path.stem[:2])}. {title}]({path.name}) | {able} |")
    texts = {}
    for i, path in enumerate(paths):
        notebook = nbformat.read(path, as_version=4)
        before, after = paths[max(i - 1, 0) : i], paths[i + 1 : i + 2]
        links = [f"[← {openings[p][0]}]({p.name})" for p in before]
        links += [f"[Contents]({paths[0].name})"] if i > 1 else []
        links += [f"[{openings[p][0]} →]({p.name})" for p in after]
        heading = openings[path][1]
        notebook.cells[0].source = " · ".join(links) + "\n\n" + heading[heading.index("# ") :]
        if i == 0:
            for cell in notebook.cells:
                table = r"(?m)^\| notebook \|.*\n(?:\|.*(?:\n|\Z))*"
                cell.source = re.sub(table, lambda _: "\n".join(rows) + "\n", cell.source)
        texts[path] = nbformat.writes(notebook) + "\n"
    return texts


def needs(module, extra="classroom"):
    """Import a module that not everybody has installed.

    Raises:
        ImportError: it is missing; says which extra to install.

    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ImportError(f"{module} is not installed: {advice(extra)}") from None


def advice(extra):
    """How to install an extra of the handgrad that is there, from a clone or not."""
    return f'python -m pip install "handgrad[{extra}]"'


def accept(paths):
    """Execute each notebook in a fresh kernel and write it back with the new outputs.

    A notebook that fails stays as it was: the new text replaces the old one whole, or not at all.

    Raises:
        FileNotFoundError: a path names no notebook.
        ImportError: the extra "test" is not installed.
        RuntimeError: a cell failed, or took too long; names the notebook and quotes the error.
        ValueError: a file holds no notebook; names it.

    """
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    nbclient, nbformat = needs("nbclient", "test"), needs("nbformat", "test")
    notebooks = {path: read(path) for path in paths}
    # As nbval has it: nothing that a compiled library writes to the process's stderr is stored.
    os.environ |= {"PYTEST_CURRENT_TEST": "accept", "TF_CPP_MIN_LOG_LEVEL": "3"}
    for path in tqdm(paths, disable=None, unit="notebook"):
        client = nbclient.NotebookClient(
            notebooks[path],
            timeout=120,
            kernel_name="python3",
            record_timing=False,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            resources={"metadata": {"path": str(path.parent)}},
        )
        thread = ThreadPoolExecutor(1)  # in the main one nbclient would take Ctrl-C for itself
        try:
            thread.submit(client.execute).result()
        except (nbclient.exceptions.CellControlSignal, RuntimeError) as failure:
            raise RuntimeError(
                f"{path.name}: left as it was, since a cell fails:\n{failure}"
            ) from None
        finally:
            thread.shutdown(wait=False)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(nbformat.writes(normalised(client.nb)) + "\n", encoding="utf-8")
        unfinished.replace(path)


def normalised(notebook):
    """The notebook less everything that differs from run to run or from machine to machine."""
    notebook.nbformat_minor = 5
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
    return notebook


def _joined(outputs):
    # The kernel splits what a cell prints into pieces as time will have it.
    joined = []
    for output in outputs:
        before = joined[-1] if joined else {}
        if output.output_type == "stream" and before.get("name") == output.name:
            before.text += output.text
        else:
            joined.append(output)
    return joined
