"""Say where in the source a mistake lies.

Derivation: notebooks/32_checker.ipynb
"""

import linecache

from jax._src import source_info_util

LONGEST = 60  # letters of an expression that are shown


def where(tape, site):
    """Such as "at `tanh(h @ W + b)` (line 12)"; the name of the operation where no source is."""
    expression, line = _source(tape, site)
    if expression is None:
        return f"at {tape.operation(site)}"
    return f"at `{expression}`" + (f" (line {line})" if line else "")


def sentence(tape, parts, names):
    """The sentence of a reading: pairs of a site and of what was done there, one after another."""
    several = parts if isinstance(parts[0], tuple) else (parts,)
    return "; and ".join(
        words if site is None else f"{where(tape, site)}: {words}" for site, words in several
    )


def called(tape, v, names):
    """A value as the reader would call it: an argument's name, or what makes it."""
    for _ in range(20):
        if v in names:
            return names[v]
        if v not in tape.maker:
            return None
        node = tape.nodes[tape.maker[v]]
        active = [w for w in node.operands if tape.active[w]]
        if node.op.name not in _PASSING or len(active) != 1:
            break
        v = active[0]
    expression, _ = _source(tape, node.site)
    return f"`{expression}`" if expression else None


_PASSING = {
    *("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "convert_element_type", "copy"),
    *("slice", "take", "transpose", "gather", "dynamic_slice"),
}


def _source(tape, site):
    try:
        info = tape.places[site].source_info
        frame = source_info_util.user_frame(info.traceback)
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
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "...", frame.start_line
