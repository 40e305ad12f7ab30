"""One exercise in one notebook: the definition, and what its student did with it."""

from typing import Any

from localai_clusters.exercises.exercise import (
    NOT_TRIED,
    RIGHT,
    WRONG,
    Exercise,
    Given,
    NotReady,
    Plain,
    recordable,
    short,
)
from localai_clusters.exercises.notes import Help, Note, Verdict
from localai_clusters.observed import ExerciseOutcome


class Bound:
    """``lab.kv_bytes_per_token``: shows the question; ``check(value)``, ``hint()`` and ``solution()``.

    Running a cell again with the same answer is no new attempt, and a solution that is read after the answer was right
    costs nothing.
    """

    def __init__(self, id: str, exercise: Exercise, given: Given) -> None:
        self.id, self.exercise, self._given = id, exercise, given
        self.status, self.answer = NOT_TRIED, None
        self.attempts, self.hints, self.solution_shown = 0, 0, False
        self._last: tuple[str, Plain] | None = None
        self._verdict: Verdict | None = None

    def check(self, value: Any = None) -> Verdict:
        """What is right or wrong about ``value``; never an exception."""
        judged = self.exercise.check(value, self._given)
        key = (judged.status, judged.answer)
        if judged.counts and judged.status != NOT_TRIED and key != self._last:
            self.attempts += 1
            self._last = key
        self.status = judged.status
        self.answer = recordable(judged.answer) if judged.status != NOT_TRIED else None
        question = (self.exercise.prompt, *self.exercise.asks_for()) if judged.status == NOT_TRIED else ()
        self._verdict = Verdict(self.id, judged.status, judged.sentence, self._next(), question)
        return self._verdict

    def hint(self) -> Help:
        """The next hint, below those before it, and below what ``check`` said last."""
        hints = tuple(self.exercise.hints)
        if not hints:
            return Help(Note("hint", self.id, ("There is none for this one.",)), self._verdict)
        self.hints = min(self.hints + 1, len(hints))
        left = len(hints) - self.hints
        numbered = [f"{number}. {text}" for number, text in enumerate(hints[: self.hints], start=1)]
        last = f"{left} more: run it again." if left else f"That was the last. lab.{self.id}.solution() tells all."
        return Help(Note("hint", self.id, (*numbered, last)), self._verdict)

    def solution(self) -> Help:
        """The answer that holds for this run, and why."""
        if self.status != RIGHT:
            self.solution_shown = True
        try:
            answer = self.exercise.answer_text(self._given)
            said = f"Answer: {answer}" if answer else ""
        except NotReady:
            said = "The answer of this run is known when the cells above have been run."
        except Exception as error:
            said = f"The answer of this run could not be worked out ({short(error)})."
        reasoning = tuple(line.strip() for line in self.exercise.solution.strip().splitlines())
        lines = tuple(filter(None, (said, *reasoning))) or ("There is none written down.",)
        return Help(Note("solution", self.id, lines), self._verdict)

    def outcome(self) -> ExerciseOutcome:
        return ExerciseOutcome(self.id, self.status, self.answer, self.attempts, self.hints, self.solution_shown)

    def _next(self) -> str:
        if self.status == WRONG and self.exercise.hints and self.hints < len(self.exercise.hints):
            return f"lab.{self.id}.hint() gives a hint."
        if self.status == RIGHT and self.exercise.solution:
            return f"lab.{self.id}.solution() says why."
        return ""

    def _question(self) -> Note:
        return Note("question", f"{self.id}: {self.exercise.prompt}", tuple(self.exercise.asks_for()))

    def __repr__(self) -> str:
        return str(self._question())

    def _repr_html_(self) -> str:
        return self._question()._repr_html_()
