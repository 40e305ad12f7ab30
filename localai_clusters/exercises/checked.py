"""An answer that a function looks at: a plan that must pass preflight, a command that must mean something."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from localai_clusters.exercises.exercise import (
    LONGEST_TEXT,
    RIGHT,
    WRONG,
    Exercise,
    Given,
    Judged,
    NotReady,
    said_by,
    short,
    worked_out,
)


@dataclass(frozen=True)
class Check(Exercise):
    """``test`` takes the student's value, or that and what the notebook handed over, and returns None if it is right
    and else what is wrong with it. ``kind`` is the type that is asked for; ``answer`` is one that would be right."""

    test: Callable[..., str | None]
    kind: type | tuple[type, ...] | None = None
    answer: Any = None

    def judge(self, value: Any, given: Given) -> Judged:
        if self.kind is not None and not isinstance(value, self.kind):
            sentence = f"{self._kinds()} is asked for; {short(value)} is of the type {type(value).__name__}."
            return Judged(WRONG, sentence, short(value, 200), counts=False)
        kept = short(value, LONGEST_TEXT)
        try:
            wrong = self.test(value, given) if _takes_two(self.test) else self.test(value)
        except NotReady:
            raise
        except Exception as error:
            return Judged(WRONG, f"It cannot be used as it is: {said_by(error)}", kept)
        if wrong is None or wrong is True:
            return Judged(RIGHT, "Right.", kept)
        return Judged(WRONG, str(wrong or "That is not it."), kept)

    def _kinds(self) -> str:
        kinds = self.kind if isinstance(self.kind, tuple) else (self.kind,)
        return " or ".join(f"{'an' if kind.__name__[0] in 'aeiouAEIOU' else 'a'} {kind.__name__}" for kind in kinds)

    def asks_for(self) -> list[str]:
        return [f"answer: {self._kinds()}"] if self.kind else []

    def answer_text(self, given: Given) -> str:
        return "" if self.answer is None else short(worked_out(self.answer, given), 400)


def _takes_two(test: Callable) -> bool:
    try:
        inspect.signature(test).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # a builtin that does not say
        return False
    return True
