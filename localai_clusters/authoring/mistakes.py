"""What can be wrong in a lab's source: one function per kind of mistake, each naming the line."""

import ast
from collections.abc import Iterator

from localai_clusters.authoring.markers import Unbalanced, with_solutions, without_solutions
from localai_clusters.authoring.source import Mistake, Source
from localai_clusters.exercises.exercise import not_tried
from localai_clusters.exercises.loading import line_of
from localai_clusters.exercises.percent import EXERCISES, PercentCell
from localai_clusters.exercises.sealed import Cell
from localai_clusters.exercises.text import Text

PARAMETERS = "parameters"
METHODS = ("check", "hint", "solution")


def mistakes_in(source: Source, text: str, known: bool = True) -> list[Mistake]:
    """All of them. ``known`` False: the exercises did not load, and nothing is said of their names."""
    broken = list(_markers(source))
    if broken:
        return broken  # what a cell is without its solution cannot be said
    if not _code(source):
        return [Mistake(1, "there is no cell of code; cells stand below # %% lines")]
    found = [*_as_jupytext_reads_it(source, text), *_syntax(source)]
    if not found:
        found += [*_parameters(source), *_opens_itself(source), *_records(source)]
        if known:
            found += [*_checks(source), *_definitions(source), *_left_in_clear(source), *_rubric(source)]
    return found


def shown_cells(source: Source) -> list[PercentCell]:
    """Those that a notebook has."""
    return [cell for cell in source.cells if EXERCISES not in cell.tags]


def _code(source: Source) -> list[PercentCell]:
    return [cell for cell in shown_cells(source) if cell.kind == "code"]


def _markers(source: Source) -> Iterator[Mistake]:
    for cell in shown_cells(source):
        try:
            without_solutions(cell.source)
        except Unbalanced as error:
            yield Mistake(cell.line + error.offset, error.sentence)
            continue
        if cell.kind != "code" and with_solutions(cell.source) != cell.source:
            yield Mistake(cell.line, "a solution stands in a code cell; this text would be cut")


def _as_jupytext_reads_it(source: Source, text: str) -> Iterator[Mistake]:
    import jupytext

    theirs = [(c.cell_type, c.source) for c in jupytext.reads(text, fmt="py:percent").cells]
    ours = [(cell.kind, cell.source) for cell in source.cells]
    for cell, mine, other in zip(source.cells, ours, theirs, strict=False):
        if mine != other:
            yield Mistake(cell.line, "jupytext reads this cell in another way (a magic such as %time, or an escape)")
            return
    if len(ours) != len(theirs):
        line = source.cells[-1].line if source.cells else 1
        yield Mistake(line, f"jupytext reads {len(theirs)} cells here, and there are {len(ours)} '# %%' lines")


def _syntax(source: Source) -> Iterator[Mistake]:
    for cell in _code(source):
        for made in (with_solutions, without_solutions):
            try:
                ast.parse(made(cell.source))
            except SyntaxError as error:
                which = "with its solution" if made is with_solutions else "as the student gets it"
                said = f"{error.msg} in {(error.text or '').strip()!r}"
                yield Mistake(cell.line, f"this cell is no Python {which}: {said}")
                break


def _parameters(source: Source) -> Iterator[Mistake]:
    cells = [cell for cell in _code(source) if PARAMETERS in cell.tags]
    if len(cells) != 1:
        line = cells[1].line if cells else 1
        yield Mistake(line, f'a lab has one cell with # %% tags=["{PARAMETERS}"]; this one has {len(cells)}')
        return
    names = {}
    for node in ast.parse(cells[0].source).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = node
        else:
            yield Mistake(cells[0].line + node.lineno - 1, "a parameter is written NAME: TYPE = VALUE  # what it is")
    if "student" not in names:
        yield Mistake(cells[0].line, 'the parameters need student: str = "student"')
    for name in source.ci:
        if name not in names:
            yield Mistake(1, f"ci names the parameter {name!r}, which the parameters cell does not have")


def _opens_itself(source: Source) -> Iterator[Mistake]:
    opened = [(cell, node) for cell in _code(source) for node in _calls(cell) if _called(node) == "open_lab"]
    if not opened:
        yield Mistake(1, f'nothing opens the lab: lab = lac.open_lab("{source.files.name}", student=student)')
    for cell, node in opened:
        name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        if name != source.files.name:
            yield Mistake(_line(cell, node), f'this opens {name!r}; by its file name this lab is "{source.files.name}"')


def _records(source: Source) -> Iterator[Mistake]:
    if not any(_is_lab(node, "record") for node in _calls(_code(source)[-1])):
        line = _code(source)[-1].line
        yield Mistake(line, "the last code cell records: recorded = lab.record(servers=[...]), then recorded")


def _checks(source: Source) -> Iterator[Mistake]:
    checked: set[str] = set()
    for cell in _code(source):
        body = ast.parse(without_solutions(cell.source)).body
        for node in _calls(cell):
            if not (isinstance(node.func, ast.Attribute) and node.func.attr in METHODS):
                continue
            owner = node.func.value
            if not (isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name) and owner.value.id == "lab"):
                continue
            if owner.attr not in source.exercises:
                known = ", ".join(source.exercises) or "none is defined"
                yield Mistake(_line(cell, node), f"there is no exercise {owner.attr!r} ({known})")
            elif node.func.attr == "check":
                checked.add(owner.attr)
                if not (body and isinstance(body[-1], ast.Expr) and ast.dump(body[-1].value) == ast.dump(node)):
                    sentence = f"lab.{owner.attr}.check(...) is shown only as the last line of a cell; give it its own"
                    yield Mistake(_line(cell, node), sentence)
            elif node.func.attr != "check":
                sentence = f"lab.{owner.attr}.{node.func.attr}() is run with the notebook; make it a comment"
                yield Mistake(_line(cell, node), sentence)
    for name in source.exercises:
        if name not in checked:
            yield Mistake(_defined(source, name), f"no cell checks the exercise {name}: lab.{name}.check({name})")


def _definitions(source: Source) -> Iterator[Mistake]:
    if not source.exercises:
        yield Mistake(1, f'no exercise is defined in a cell with # %% tags=["{EXERCISES}"]')
    for name, exercise in source.exercises.items():
        line = _defined(source, name)
        if not isinstance(exercise, Text) and not exercise.hints:
            yield Mistake(line, f"{name} has no hint: hints=(...,)")
        if not isinstance(exercise, Text) and not exercise.solution.strip():
            yield Mistake(line, f"{name} has no solution: solution=...")


def _left_in_clear(source: Source) -> Iterator[Mistake]:
    """A value for an exercise that the student's notebook holds already, or definitions outside of their cells."""
    for cell in _code(source):
        student = without_solutions(cell.source)
        if "localai_clusters.exercises" in student:
            sentence = f'exercises are defined in cells with # %% tags=["{EXERCISES}"]; this one is shown'
            yield Mistake(cell.line, sentence)
        tree = ast.parse(student)
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and _is_exercise_check(node)):
                continue
            given = node.args[0] if node.args else None
            name = node.func.value.attr
            if given is not None and not _is_open(given, tree):
                line = _line_of_text(cell, f"lab.{name}.check")
                yield Mistake(line, f"the student's notebook has an answer to {name}; it begins with {name} = ...")


def _rubric(source: Source) -> Iterator[Mistake]:
    """Of a rubric beside the source: that it can be read, and asks for what there is."""
    from localai_clusters.grading.rubric_file import read_rubric_or_mistakes

    path = source.files.rubric
    if not path.is_file():
        yield Mistake(1, f"there is no rubric {path.name} beside it; docs/grading.md says what stands in one")
        return
    rubric, wrong = read_rubric_or_mistakes(path)
    for mistake in wrong:
        yield Mistake(1, f"{path.name}:{mistake.line}: {mistake.sentence}")
    if rubric is None:
        return
    if (rubric.chapter, rubric.lab) != (source.files.chapter, source.files.slug):
        here = f"here it is {source.files.slug}"
        yield Mistake(1, f"{path.name} is of chapter {rubric.chapter}, lab {rubric.lab}; {here}")
    for criterion in rubric.criteria:
        asked = getattr(criterion, "exercise", None) or getattr(criterion, "answer", None)
        by_hand = any(f'"{asked}"' in cell.source for cell in _code(source))  # lab.record(answers={"asked": ...})
        if asked is not None and asked not in source.exercises and not by_hand:
            yield Mistake(1, f"{path.name} asks for {asked!r}, and no exercise is called that")


def _is_open(given: ast.expr, tree: ast.Module) -> bool:
    """Whether what is checked has no value yet in this cell."""
    if isinstance(given, ast.Constant):
        return not_tried(given.value)
    if not isinstance(given, ast.Name):
        return True  # an expression over what the student fills in
    last: ast.expr | None = None
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", None) == given.id for t in node.targets):
            last = node.value
    if last is None:
        return True  # set in a cell above, which is looked at where it is
    try:
        return not_tried(ast.literal_eval(last))
    except ValueError:
        return False


def _is_exercise_check(node: ast.Call) -> bool:
    function = node.func
    if not (isinstance(function, ast.Attribute) and function.attr == "check"):
        return False
    owner = function.value
    return isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name) and owner.value.id == "lab"


def _calls(cell: PercentCell) -> list[ast.Call]:
    """In the cell as the student gets it."""
    return [node for node in ast.walk(ast.parse(without_solutions(cell.source))) if isinstance(node, ast.Call)]


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", None) or getattr(node.func, "id", "")


def _is_lab(node: ast.Call, method: str) -> bool:
    function = node.func
    return (
        isinstance(function, ast.Attribute)
        and function.attr == method
        and isinstance(function.value, ast.Name)
        and function.value.id == "lab"
    )


def _line(cell: PercentCell, node: ast.AST) -> int:
    """Of the source: the node stands in the cell without its solutions."""
    line = without_solutions(cell.source).splitlines()[node.lineno - 1]
    return _line_of_text(cell, line)


def _line_of_text(cell: PercentCell, text: str) -> int:
    for offset, line in enumerate(cell.source.splitlines()):
        if text in line:
            return cell.line + offset
    return cell.line


def _defined(source: Source, name: str) -> int:
    return line_of(name, [Cell(cell.line, cell.source) for cell in source.cells if EXERCISES in cell.tags])
