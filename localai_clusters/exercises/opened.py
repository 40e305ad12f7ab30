"""A lab in one notebook: its exercises bound to the student, what was handed over, and the record at the end."""

import difflib
import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localai_clusters.errors import PlainError
from localai_clusters.exercises.bound import Bound
from localai_clusters.exercises.exercise import BY_HAND, NOT_TRIED, RIGHT, WRONG, Exercise, Given, Plain
from localai_clusters.exercises.loading import load
from localai_clusters.exercises.notes import MARKS
from localai_clusters.exercises.percent import EXERCISES, cells_of
from localai_clusters.exercises.sealed import Cell, SealedError, unseal
from localai_clusters.exercises.where import find_lab
from localai_clusters.observed import ExerciseOutcome
from localai_clusters.tables import Table


class NoSuchExercise(PlainError, AttributeError):
    """An exercise that the lab does not have; the message names the nearest."""


class Lab:
    """``lab.NAME`` is the exercise NAME. Made by ``open_lab``; opening again, or a new kernel, starts afresh."""

    def __init__(
        self, chapter: int, number: int, slug: str, title: str, student: str, exercises: Mapping[str, Exercise]
    ) -> None:
        self.chapter, self.number, self.slug, self.title, self.student = chapter, number, slug, title, student
        self._given = Given()
        self._bound = {id: Bound(id, exercise, self._given) for id, exercise in exercises.items()}

    def __getattr__(self, name: str) -> Bound:
        bound = self.__dict__.get("_bound", {})
        if name in bound:
            return bound[name]
        if name.startswith("_"):  # IPython and copy ask for such names
            raise AttributeError(name)
        near = difflib.get_close_matches(name, bound, n=1)
        listed = f"did you mean lab.{near[0]}?" if near else f"it has {', '.join(bound)}"
        raise NoSuchExercise(f"lab {self.chapter}.{self.number} has no exercise {name!r}; {listed}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._bound]

    def given(self, **values: Any) -> None:
        """Hand over what answers are compared with: ``lab.given(plan=plan, server=server)``. Later values replace."""
        for name, value in values.items():
            if value is None or value is ...:
                self._given.__dict__.pop(name, None)
            else:
                self._given.__dict__[name] = value

    def prompts(self, count: int = 4) -> list[str]:
        """The student's own prompts for this lab."""
        from localai_clusters.prompts import prompts_for

        return prompts_for(self.student, self.slug, count)

    @property
    def answers(self) -> dict[str, Plain]:
        """The last answer to each exercise that has one, as it is recorded: a figure in the exercise's unit."""
        return {id: bound.answer for id, bound in self._bound.items() if bound.answer is not None}

    def outcomes(self) -> tuple[ExerciseOutcome, ...]:
        """How far the student came, exercise by exercise."""
        return tuple(bound.outcome() for bound in self._bound.values())

    def summary(self) -> "Summary":
        """All exercises with their status; shows itself."""
        return Summary(f"Lab {self.chapter}.{self.number}: {self.title}", self.outcomes())

    def record(
        self,
        servers: Iterable[Any] = (),
        *,
        answers: Mapping[str, Plain] | None = None,
        constraints: Iterable[str] = (),
        failures: Iterable[Any] = (),
        traffic: Iterable[Any] = (),
        timelines: Iterable[Any] = (),
        collectives: Iterable[Any] = (),
        folder: str | Path | None = None,
    ):
        """``lac.record`` of this student, this lab and the answers given so far; ``answers`` may add more."""
        from localai_clusters.recording import record

        return record(
            student=self.student,
            chapter=self.chapter,
            lab=self.slug,
            servers=list(servers),
            answers={**self.answers, **(answers or {})},
            exercises=self.outcomes(),
            constraints=[text for text in constraints if isinstance(text, str) and text.strip() not in ("", "...")],
            failures=failures,
            traffic=traffic,
            timelines=timelines,
            collectives=collectives,
            folder=folder,
        )

    def __repr__(self) -> str:
        count = len(self._bound)
        tried = f"{count} exercise{'' if count == 1 else 's'}: {', '.join(self._bound)}"
        return f"Lab {self.chapter}.{self.number}: {self.title}, for {self.student}\n{tried}"

    def _repr_html_(self) -> str:
        head, names = repr(self).split("\n")
        return f"<div><b>{html.escape(head)}</b></div><div>{html.escape(names)}</div>"


@dataclass(frozen=True, slots=True)
class Summary:
    """A table of outcomes and a line that counts them."""

    title: str
    outcomes: tuple[ExerciseOutcome, ...]

    def counts(self) -> dict[str, int]:
        """By status."""
        return {status: sum(each.status == status for each in self.outcomes) for status in _WORDS}

    def sentence(self) -> str:
        counts = self.counts()
        said = [f"{counts[status]} {word}" for status, word in _WORDS.items() if counts[status]]
        return f"{len(self.outcomes)} exercises: {', '.join(said)}" if said else "no exercises"

    def _table(self) -> Table:
        rows = tuple(
            (each.id, f"{MARKS[each.status][0]} {_WORDS[each.status]}", str(each.attempts), str(each.hints),
             "looked up" if each.solution_shown else "")
            for each in self.outcomes
        )  # fmt: skip
        return Table(self.title, ("exercise", "status", "attempts", "hints", "solution"), rows)

    def __str__(self) -> str:
        return f"{self._table()}\n{self.sentence()}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"{self._table()._repr_html_()}<p>{html.escape(self.sentence())}</p>"


_WORDS = {RIGHT: "right", BY_HAND: "for a person to mark", WRONG: "not right yet", NOT_TRIED: "not tried yet"}


def open_lab(name: str | Path, student: str = "student") -> Lab:
    """The lab ``name`` (``07/1``, its slug, or a path), with its exercises.

    They come from the lab's source where it lies beside the notebook, in a checkout, and else from the sealed file.
    Raises ``NoSuchLab``, ``SealedError``, or ``ExercisesError`` for a mistake of the lab's author.
    """
    files = find_lab(str(name))
    if files.source.is_file() and Path(name).suffix != ".sealed":
        text = files.source.read_text(encoding="utf-8")
        cells, title = exercise_cells(text), title_of(text)
    elif files.sealed.is_file():
        sealed = unseal(files.sealed)
        if (sealed.chapter, sealed.lab) != (files.chapter, files.slug):
            message = f"{files.sealed} is of lab {sealed.chapter:02}/{sealed.number} ({sealed.lab})"
            raise SealedError(f"{message}, and was given another name")
        cells, title = sealed.cells, sealed.title
    else:
        advice = "get it from the course's archive, and put it beside the notebook"
        raise SealedError(f"{files.sealed} is not there; {advice}")
    exercises = load(cells, files.name)
    return Lab(files.chapter, files.number, files.slug, title, student, exercises)


def exercise_cells(text: str) -> tuple[Cell, ...]:
    """The cells of a lab's source that no notebook has."""
    return tuple(Cell(cell.line, cell.source) for cell in cells_of(text) if EXERCISES in cell.tags)


def title_of(text: str) -> str:
    """``# Lab 7.1: Where the memory goes`` is "Where the memory goes"; "" without a heading."""
    for cell in cells_of(text):
        for line in cell.source.splitlines():
            if cell.kind == "markdown" and line.startswith("# "):
                return line[2:].partition(": ")[2].strip() or line[2:].strip()
    return ""
