"""From exercise cells, which are the course's own code, to the exercises that they define."""

from collections.abc import Iterable, Mapping
from typing import Any

from localai_clusters.errors import PlainError
from localai_clusters.exercises.exercise import Exercise
from localai_clusters.exercises.sealed import Cell

# What a Lab has itself; an exercise of that name could not be reached.
RESERVED = "answers chapter given number outcomes prompts record slug student summary title".split()


class ExercisesError(PlainError, ValueError):
    """The exercises of a lab do not load; the message names the line of the lab's source. An author's mistake."""

    def __init__(self, line: int, sentence: str) -> None:
        super().__init__(f"line {line}: {sentence}")
        self.line, self.sentence = line, sentence


def load(cells: Iterable[Cell], name: str) -> Mapping[str, Exercise]:
    """The exercises by name, in the order of the cells: each top-level name that is one."""
    namespace: dict[str, Any] = {"__name__": f"localai_clusters.exercises of {name}"}
    for cell in cells:
        # Line numbers of the lab's own source, whatever is wrong.
        padded = "\n" * (cell.line - 1) + cell.source
        try:
            exec(compile(padded, f"<exercises of {name}>", "exec"), namespace)
        except SyntaxError as error:
            raise ExercisesError(error.lineno or cell.line, f"{error.msg}: {(error.text or '').strip()}") from error
        except Exception as error:
            line = _line_in(error, f"<exercises of {name}>") or cell.line
            raise ExercisesError(line, f"{type(error).__name__}: {error}") from error
    found = {key: value for key, value in namespace.items() if isinstance(value, Exercise) and key[0] != "_"}
    for key in found:
        if key in RESERVED:
            raise ExercisesError(line_of(key, cells), f"no exercise can be called {key}: a lab has that name already")
    return found


def ci_parameters(cells: Iterable[Cell]) -> dict[str, Any]:
    """``ci = {...}`` of the exercise cells: parameters of a quick run. {} without one."""
    import ast

    for cell in cells:
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["ci"]:
                try:
                    values = ast.literal_eval(node.value)
                except ValueError:
                    values = None
                if not isinstance(values, dict):
                    line = cell.line + node.lineno - 1
                    raise ExercisesError(line, 'ci is a dict of plain values, such as ci = {"max_tokens": 8}')
                return values
    return {}


def line_of(name: str, cells: Iterable[Cell]) -> int:
    """Where ``name`` is first set; 1 if nowhere."""
    for cell in cells:
        for number, text in enumerate(cell.source.splitlines()):
            if text.startswith(name) and text[len(name) :].lstrip()[:1] == "=":
                return cell.line + number
    return 1


def _line_in(error: BaseException, filename: str) -> int | None:
    line, trace = None, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
