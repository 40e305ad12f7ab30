"""An answer in the student's own words, which a person marks."""

from dataclasses import dataclass
from typing import Any

from localai_clusters.exercises.exercise import BY_HAND, LONGEST_TEXT, WRONG, Exercise, Given, Judged, short


@dataclass(frozen=True)
class Text(Exercise):
    """At least ``words`` of them. ``guide`` is for the person who marks it and is not shown to the student."""

    words: int = 20
    guide: str = ""

    def judge(self, value: Any, given: Given) -> Judged:
        if not isinstance(value, str):
            sentence = f"{short(value)} is a {type(value).__name__}; a text in quotes is asked for."
            return Judged(WRONG, sentence, short(value, 200), counts=False)
        count = len(value.split())
        kept = value.strip()[:LONGEST_TEXT]
        if count < self.words:
            sentence = f"{count} word{'' if count == 1 else 's'} so far; at least {self.words} are asked for."
            return Judged(WRONG, sentence, kept, counts=False)
        if len(value.strip()) > LONGEST_TEXT:
            return Judged(WRONG, f"It is too long: at most {LONGEST_TEXT:,} characters are kept.", kept, counts=False)
        return Judged(BY_HAND, f"{count} words, which a person will read and mark.", kept)

    def asks_for(self) -> list[str]:
        return [f"answer: a text of {self.words} words or more; a person marks it"]
