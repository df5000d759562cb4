"""A learner's own copy of the notebooks, to work in."""

import re

from handgrad.classroom.handout import holds, write
from handgrad.notebooks import FOLDER


def copy(folder, force=False):
    """Copy the notebooks into the folder, and what they link to; returns the files that were kept.

    Kept is what is there already and differs, since it is a learner's work, unless `force` is set.

    Raises:
        OSError: a file cannot be written; names it.

    """
    if folder.resolve() == FOLDER.resolve():  # a contributor's, who works in the clone's own
        return []
    files = {}
    for path in sorted(FOLDER.glob("*.ipynb")):
        text = path.read_bytes()
        for target in re.findall(rb"\]\(\.\./([^)\s#]+)", text):
            linked = FOLDER.parent / target.decode()
            if linked.is_file():
                files[folder / target.decode()] = linked.read_bytes()
        files[folder / path.name] = text.replace(b"](../", b"](")
    kept = [p for p, new in files.items() if not force and p.is_file() and not holds(p, new)]
    write({path: files[path] for path in files if path not in kept}, force)
    return kept
