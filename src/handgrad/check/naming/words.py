"""Say where in the source a mistake lies.

Derivation: notebooks/32_checker.ipynb
"""

import linecache
import re
from pathlib import Path

from jax._src import source_info_util

LONGEST = 60  # letters of an expression that are shown
CHECK = Path(__file__).parents[1]
INNER = "a value of the checker's own"


def where(tape, site):
    """Such as "at `tanh(h @ W + b)` (line 12)"; the name of the operation where no source is."""
    expression, line = _source(tape, site)
    if not expression:
        return f"at {tape.operation(site)}"
    return f"at `{expression}`" + (f" (line {line})" if line else "")


def sentence(tape, parts, names):
    """The sentence of a reading, from pairs of a site and of what was done there.

    {7} stands for value 7: an argument by its name, {number: name}, another by what makes it.
    """
    said = []
    for site, words in parts:
        words = re.sub(r"{(\d+)}", lambda found: _called(tape, int(found[1]), names), words)
        words = re.sub(r"(`[^`]+`), not \1", r"another \1 than it should", words)
        said.append(words if site is None else f"{where(tape, site)}: {words}")
    return "; and ".join(said)


def _called(tape, v, names):
    while v not in names and v in tape.maker:
        node = tape.nodes[tape.maker[v]]
        if node.op.name not in _PASSING:
            expression, _ = _source(tape, node.site)
            if expression == "":
                return INNER
            return f"`{expression}`" if expression else f"the result of {node.op.name}"
        v = node.operands[node.op.name == "tap"]  # whose first operand says whether it is taken
    return names.get(v, "a constant")


_PASSING = {
    *("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "convert_element_type", "copy"),
    *("slice", "take", "tap", "transpose"),
}


def _source(tape, site):
    try:
        info = tape.places[site].source_info
        frame = source_info_util.user_frame(info.traceback)
        file = Path(frame.file_name)
        if CHECK in file.parents:
            return "", None  # no line of the reader's
        line = linecache.getline(frame.file_name, frame.start_line)
        if not line.strip():
            return None, None
        same = frame.end_line == frame.start_line and frame.end_column > frame.start_column
        # columns count bytes
        line = line.encode()
        text = line[frame.start_column : frame.end_column] if same else line
        text = " ".join(text.decode().split())
    except Exception:  # JAX keeps its sources to itself
        return None, None
    text = text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
    return text, None if CHECK.parent in file.parents else frame.start_line
