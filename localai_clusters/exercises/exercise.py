"""What every exercise is: a question, a judge, hints and a solution. It knows no student and no notebook."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Literal

RIGHT, WRONG, NOT_TRIED, BY_HAND = "right", "wrong", "not-tried", "by-hand"
Status = Literal["right", "wrong", "not-tried", "by-hand"]
Plain = str | int | float | bool | None
NOT_YET = "Put your answer in place of the dots, and run the cell again."
LARGEST = 10**18  # figure that a record holds
LONGEST_TEXT = 4096  # characters of an answer that are kept


class NotReady(Exception):
    """An answer cannot be judged yet: the cells above have not handed over what it is compared with."""


class Given:
    """What the notebook handed over by ``lab.given(name=value)``; a name that is missing is ``NotReady``."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotReady(f"{name} is not known yet")


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of one answer. ``answer`` is how it is recorded; a mistyped one does not ``count`` as an attempt."""

    status: Status
    sentence: str
    answer: Plain = None
    counts: bool = True


@dataclass(frozen=True)
class Exercise:
    """``hints`` go from a nudge to nearly the answer. ``solution`` is the reasoning; the answer is put before it."""

    prompt: str
    hints: Collection[str] = field(default=(), kw_only=True)
    solution: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.hints, str):
            object.__setattr__(self, "hints", (self.hints,))

    def check(self, value: Any, given: Given) -> Judged:
        """Judges ``value``. Never raises for any value, nor for an answer that cannot be worked out yet."""
        try:
            if not_tried(value):
                return Judged(NOT_TRIED, NOT_YET)
            return self.judge(value, given)
        except NotReady as error:
            sentence = f"This cannot be checked yet ({error}). Run the cells above it first, then this one again."
            return Judged(NOT_TRIED, sentence)
        except Exception as error:  # a value whose own methods raise
            sentence = f"This is not something that can be checked ({said_by(error)})."
            return Judged(WRONG, sentence, short(value, 200), counts=False)

    def judge(self, value: Any, given: Given) -> Judged:
        raise NotImplementedError

    def asks_for(self) -> list[str]:
        """What an answer looks like: a line each."""
        return []

    def answer_text(self, given: Given) -> str:
        """The right answer of this run in words; ``NotReady`` if it is not known, "" if there is not one alone."""
        return ""


def not_tried(value: Any) -> bool:
    """Dots, nothing, or a collection of only these."""
    if value is None or value is ...:
        return True
    if isinstance(value, str):
        return value.strip() in ("", "...", "…")
    if isinstance(value, list | tuple | set | frozenset):
        return all(not_tried(item) for item in value)
    return False


def worked_out(answer: Any, given: Given) -> Any:
    """``answer``, or what it comes to as a function of what the notebook handed over."""
    if not isinstance(answer, Callable):
        return answer
    try:
        found = answer(given)
    except NotReady:
        raise
    except Exception as error:
        raise NotReady(said_by(error)) from error
    if found is None or found is ... or (isinstance(found, float) and not math.isfinite(found)):
        raise NotReady("what it is compared with has not been measured")
    return found


def said_by(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except Exception:
        return type(error).__name__


def recordable(answer: Plain) -> Plain:
    """``answer`` as a record can hold it, whatever a student typed."""
    if isinstance(answer, str):
        return answer[:LONGEST_TEXT].encode("utf-8", "replace").decode()
    if isinstance(answer, int | float) and not -LARGEST <= answer <= LARGEST:  # nan too
        return short(answer)
    return answer


def sentence(text: str) -> str:
    """An author's words as a sentence of their own."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if not text or text.endswith((".", "?", "!")) else ".")


def short(value: Any, most: int = 60) -> str:
    """``value`` as a person would recognise it."""
    try:
        text = " ".join((value if isinstance(value, str) else repr(value)).split())
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 1]}…"
