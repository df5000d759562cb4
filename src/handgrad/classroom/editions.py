"""The student's and the instructor's edition of a notebook, both ready for nbgrader."""

import ast
import re
from copy import deepcopy

KINDS = ("student", "instructor")
STUB = "# Write your answer here, in place of the next line."
# A heading opens an exercise, or ends the one before it.
HEADING = re.compile(r"^## |^### Exercise (?P<number>\d+\.\d+)(?: \((?P<kind>.*)\))?", re.M)
BEGIN, END = "BEGIN SOLUTION", "END SOLUTION"  # anywhere in a line, as nbgrader reads them


def edition(notebook, kind):
    """The edition of that kind, as a new notebook; the one given stays as it is.

    The student's has a stub in place of each solution, and no outputs of answers and their checks.
    The instructor's is the whole notebook. In both, answers and checks carry nbgrader's metadata
    under the same names: what was handed out as the one is graded with the other. A check that
    fails does not keep the cells below it from being run.

    Raises:
        ValueError: kind is neither "student" nor "instructor"; the notebook is not executed; or a
            solution or an exercise is malformed. Names the cell, counted from 0 as its id is.

    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected {' or '.join(KINDS)}; got {kind!r}")
    made = deepcopy(notebook)
    _require_executed(made.cells)
    seen = {}
    for place, cell, exercise, part in _parts(made.cells):
        stub = _stub(cell.source, exercise, place) if part == "answer" else None
        name = f"exercise-{exercise.replace('.', '-')}-{part}"
        seen[name] = seen.get(name, 0) + 1
        cell.metadata["nbgrader"] = _marks(cell, part, name, seen[name])
        if part == "check":  # Run All goes on after it, in Lab and in nbclient
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "raises-exception"]
        if kind == "student":
            _strip(cell, exercise, part, stub)
    return made


def import_anew(notebook):
    """Begin each check of an edition with imports of what it uses, as the notebook has them.

    So it is not by what a student calls check_gradient, say, that her answer is graded.
    """
    imports, bound = {}, set()
    for node in (node for cell in notebook.cells for node in ast.walk(_tree(cell))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                one = type(node)(**(vars(node) | {"names": [alias]}))
                imports[(alias.asname or alias.name).partition(".")[0]] = ast.unparse(one)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("locked"):
            used = {node.id for node in ast.walk(_tree(cell)) if isinstance(node, ast.Name)}
            lines = sorted(imports[name] for name in used & imports.keys() - bound)
            cell.source = "\n".join([*lines, cell.source])


def _tree(cell):
    # A cell with one of IPython's commands is no Python, and imports nothing that a check uses.
    try:
        return ast.parse(cell.source if cell.cell_type == "code" else "")
    except SyntaxError:
        return ast.Module([], [])


def _require_executed(cells):
    code = [(number, cell) for number, cell in enumerate(cells) if cell.cell_type == "code"]
    for count, (number, cell) in enumerate(code, 1):
        if cell.execution_count != count:
            raise ValueError(
                f"{_place(number, cell)}: the notebook is not executed in order: "
                f"expected execution count {count}; got {cell.execution_count}. "
                "Run handgrad accept"
            )


def _place(number, cell):
    first_line = cell.source.strip().partition("\n")[0]
    return f'cell {number}, "{first_line[:60]}"'


def _exercises(cells):
    # (place, number, kind, cells) of each; a number of None means between the exercises
    groups = [("", None, None, [])]
    for number, cell in enumerate(cells):
        place = _place(number, cell)
        if cell.cell_type == "markdown":
            for heading in HEADING.finditer(cell.source):
                groups.append((place, heading["number"], heading["kind"], []))
        groups[-1][-1].append((place, cell))
    return groups


def _parts(cells):
    # (place, cell, exercise, part) of every cell that is an answer in words or in code, or a check
    for opening, exercise, kind, group in _exercises(cells):
        answered = checked = False
        for place, cell in group:
            solution = "solution" in cell.metadata.get("tags", [])
            region = BEGIN in cell.source or END in cell.source
            if (solution or region) and not exercise:
                raise ValueError(f"{place}: a solution that belongs to no exercise")
            if region and (solution or cell.cell_type != "code"):
                raise ValueError(f"{place}: {BEGIN} outside of an answer cell, in code")
            if solution:
                yield place, cell, exercise, "words"
            elif region:
                answered, checked = True, False
                yield place, cell, exercise, "answer"
            elif answered and cell.cell_type == "code":
                checked = True
                yield place, cell, exercise, "check"
        if exercise and not checked and (answered or kind != "by hand"):
            raise ValueError(
                f"{opening}: Exercise {exercise} has no check; "
                "expected an answer cell, and a code cell after it that checks the answer"
            )


def _stub(source, exercise, place):
    # Only a function is surely replaced: a variable may live on, and be right, from earlier cells.
    try:
        functions = [node for node in ast.walk(ast.parse(source)) if hasattr(node, "returns")]
    except SyntaxError as problem:
        raise ValueError(f"{place}: not valid Python: {problem.msg}") from None
    lines, inside = [], False
    for number, line in enumerate(source.split("\n"), 1):
        begins, ends = BEGIN in line, END in line
        if (begins and inside) or (ends and not inside):
            raise ValueError(f"{place}: line {number}: {'nested' if inside else 'stray'} marker")
        if begins:
            indent = len(line) - len(line.lstrip())
            around = [
                f for f in functions if f.lineno < number <= f.end_lineno and f.col_offset < indent
            ]
            if not around:
                raise ValueError(
                    f"{place}: line {number}: a solution outside of a function; expected it inside "
                    "one, which the check calls"
                )
            name = max(around, key=lambda f: f.lineno).name
            lines += [
                f"{' ' * indent}{STUB}",
                f"{' ' * indent}raise NotImplementedError("
                f'"Exercise {exercise}: write {name}, then check again")',
            ]
        elif not inside and not ends:
            lines.append(line)
        inside = (inside or begins) and not ends
    if inside:
        raise ValueError(f"{place}: {BEGIN} without its {END}")
    return "\n".join(lines)


def _marks(cell, part, name, occurrence):
    # nbgrader grades a check by its run. It wants words graded by hand; they weigh nothing unless
    # the teacher gives them points.
    by_hand = part == "words" and cell.cell_type == "markdown"
    marks = {
        "schema_version": 3,
        "grade_id": name if occurrence == 1 else f"{name}-{occurrence}",
        "solution": part != "check",
        "grade": part == "check" or by_hand,
        "locked": part == "check",
    }
    return marks | ({"points": 0 if by_hand else 1} if marks["grade"] else {})


def _strip(cell, exercise, part, stub):
    cell.metadata["deletable"] = False
    if part == "answer":
        cell.source = stub
    elif part == "check":
        cell.metadata["editable"] = False
    else:
        cell.source = f"*Exercise {exercise}: write your answer here, in place of this line.*"
        cell.metadata["tags"] = ["answer"]
        if cell.cell_type != "markdown":  # nbgrader would turn the words into code again
            del cell.metadata["nbgrader"]
            cell.cell_type = "markdown"
        for key in ("attachments", "outputs", "execution_count"):
            cell.pop(key, None)
    if cell.cell_type == "code":
        cell.outputs, cell.execution_count = [], None
