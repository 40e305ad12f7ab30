"""A lab's source, read: its cells, its exercises, and every mistake that can be seen without running it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from localai_clusters.errors import PlainError
from localai_clusters.exercises.exercise import Exercise
from localai_clusters.exercises.loading import ExercisesError, ci_parameters, load
from localai_clusters.exercises.opened import exercise_cells, title_of
from localai_clusters.exercises.percent import EXERCISES, PercentCell, cells_of
from localai_clusters.exercises.sealed import Cell, Sealed
from localai_clusters.exercises.where import LabFiles


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """What is wrong in a source, and the line of it."""

    line: int
    sentence: str


class SourceError(PlainError, ValueError):
    """A lab's source that cannot be built; the message has a line for each mistake."""

    def __init__(self, path, mistakes) -> None:
        super().__init__("\n".join(f"{path}:{mistake.line}: {mistake.sentence}" for mistake in mistakes))
        self.mistakes = tuple(mistakes)


@dataclass(frozen=True, slots=True)
class Source:
    """One lab as its author wrote it."""

    files: LabFiles
    title: str
    sha256: str
    cells: tuple[PercentCell, ...]
    exercises: Mapping[str, Exercise]
    ci: Mapping[str, Any]

    def sealed(self) -> Sealed:
        hidden = tuple(Cell(cell.line, cell.source) for cell in self.cells if EXERCISES in cell.tags)
        files = self.files
        return Sealed(files.chapter, files.number, files.slug, self.title, self.sha256, hidden, dict(self.ci))


def read_source(files: LabFiles) -> Source:
    """Raises ``SourceError`` with every mistake that is found, ``OSError`` if the file cannot be read."""
    from localai_clusters.authoring.mistakes import mistakes_in

    text = files.source.read_text(encoding="utf-8")
    hidden = exercise_cells(text)
    mistakes: list[Mistake] = []
    exercises: Mapping[str, Exercise] = {}
    ci: Mapping[str, Any] = {}
    try:
        exercises = load(hidden, files.name)
        ci = ci_parameters(hidden)
    except ExercisesError as error:
        mistakes.append(Mistake(error.line, error.sentence))
    cells = tuple(cells_of(text))
    source = Source(files, title_of(text), hashlib.sha256(text.encode()).hexdigest(), cells, exercises, ci)
    mistakes += mistakes_in(source, text, known=not mistakes)
    if mistakes:
        raise SourceError(files.source, sorted(set(mistakes)))
    return source
