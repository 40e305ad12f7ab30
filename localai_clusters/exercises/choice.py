"""Answers that are one of several, or several of many."""

import difflib
import string
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from localai_clusters.exercises.exercise import RIGHT, WRONG, Exercise, Given, Judged, sentence, short, worked_out


@dataclass(frozen=True)
class _OfOptions(Exercise):
    options: tuple[str, ...]
    answer: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "options", tuple(str(option) for option in self.options))
        if len({_folded(option) for option in self.options}) < max(len(self.options), 2):
            raise ValueError(f"a choice needs two options or more, all different; these are {self.options}")
        if not isinstance(self.answer, Callable):
            self._meant(self.answer)
        for option in getattr(self, "why_not", {}):
            self._meant(option)

    def _meant(self, answers: Any) -> set[str]:
        """``answers`` of the lab's author as options; ``ValueError`` for one that is none."""
        several = isinstance(answers, Collection) and not isinstance(answers, str)
        found = {self._option(answer): answer for answer in (answers if several else (answers,))}
        if None in found:
            raise ValueError(f"{found[None]!r} is not one of the options {self.options}")
        return set(found)

    def _option(self, value: Any) -> str | None:
        """The option that ``value`` is: its text, however it is spaced, or its letter."""
        text = _folded(str(value))
        for letter, option in zip(string.ascii_lowercase, self.options, strict=False):
            if text == _folded(option):
                return option
            if isinstance(value, str) and text.strip("()") == letter and text not in map(_folded, self.options):
                return option
        return None

    def _none_of_them(self, value: Any) -> str:
        near = difflib.get_close_matches(str(value), self.options, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"{short(value)!r} is none of the options: {', '.join(map(repr, self.options))}.{hint}"

    def asks_for(self) -> list[str]:
        return [f"{letter}) {option}" for letter, option in zip(string.ascii_lowercase, self.options, strict=False)]


@dataclass(frozen=True)
class Choice(_OfOptions):
    """One of ``options``. ``answer`` is an option, a set of those that are all right, or a function of the notebook's
    values that returns either; ``why_not`` is what is said to who chose an option that is wrong."""

    why_not: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    def judge(self, value: Any, given: Given) -> Judged:
        chosen = self._option(value)
        if chosen is None:
            return Judged(WRONG, self._none_of_them(value), short(value, 200), counts=False)
        if chosen in self._meant(worked_out(self.answer, given)):
            return Judged(RIGHT, f"{chosen!r} is right.", chosen)
        why = next((text for option, text in self.why_not.items() if self._option(option) == chosen), "")
        return Judged(WRONG, f"{chosen!r} is not it. {sentence(why)}".strip(), chosen)

    def answer_text(self, given: Given) -> str:
        meant = self._meant(worked_out(self.answer, given))
        return " or ".join(option for option in self.options if option in meant)


@dataclass(frozen=True)
class Several(_OfOptions):
    """All of ``options`` that fit, as a set or list. ``answer`` is a collection of options, or a function that returns
    one; ``why_not`` is what is said to who chose an option that does not fit."""

    why_not: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    def judge(self, value: Any, given: Given) -> Judged:
        parts = [value] if isinstance(value, str) and self._option(value) else value
        if isinstance(parts, str):
            parts = [part.strip() for part in parts.split(";" if ";" in parts else ",")]
        if not isinstance(parts, Collection):
            odd = f"{short(value)} is a {type(value).__name__}; a set of options is asked for."
            return Judged(WRONG, odd, short(value, 200), counts=False)
        chosen = {part: self._option(part) for part in parts}
        odd = next((part for part, option in chosen.items() if option is None), None)
        if None in chosen.values():
            return Judged(WRONG, self._none_of_them(odd), short(value, 200), counts=False)
        meant, found = self._meant(worked_out(self.answer, given)), set(chosen.values())
        said = ", ".join(option for option in self.options if option in found)
        if found == meant:
            return Judged(RIGHT, "These are the ones, and all of them.", said)
        wrong = [option for option in self.options if option in found - meant]
        why = [text for option, text in self.why_not.items() if self._option(option) in wrong]
        parts = [f"{len(wrong)} of those you chose {'does' if len(wrong) == 1 else 'do'} not belong."] if wrong else []
        parts += [sentence(text) for text in why[:1]]
        parts += ["Not all of them are there."] if meant - found else []
        return Judged(WRONG, " ".join(parts), said)

    def asks_for(self) -> list[str]:
        return [*super().asks_for(), "answer: a set of these"]

    def answer_text(self, given: Given) -> str:
        meant = self._meant(worked_out(self.answer, given))
        return ", ".join(option for option in self.options if option in meant)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
