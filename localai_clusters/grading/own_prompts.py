"""Which of a record's prompts were drawn for its student, and which for somebody else."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache

from localai_clusters.prompts import QUESTIONS, WORDS, course_key, prompts_for

DRAWS = 16  # the most that prompts_for gives


@dataclass(frozen=True, slots=True)
class OwnPrompts:
    """A record's prompts apart. ``foreign`` are drawn ones of another student, lab or key; others are in neither."""

    own: frozenset[str]
    foreign: frozenset[str]
    first_answered: int  # how many of prompts_for's, from the first on, are among them without a gap


def own_prompts(student: str, lab: str, texts: Iterable[str], key: str | None = None) -> OwnPrompts:
    """``key`` is the course's; None takes LAC_COURSE_KEY or the public default."""
    return _own_prompts(student, lab, frozenset(texts), course_key() if key is None else key)


@lru_cache(maxsize=8)  # several criteria and the fingerprint ask for the same record
def _own_prompts(student: str, lab: str, texts: frozenset[str], key: str) -> OwnPrompts:
    drawn = prompts_for(student, lab, len(QUESTIONS), key)
    if not texts.issubset(drawn):  # seldom: a lab that asks more, or prompts that are not drawn
        drawn = prompts_for(student, lab, DRAWS, key)
    first = next((place for place, text in enumerate(drawn) if text not in texts), len(drawn))
    own = texts.intersection(drawn)
    return OwnPrompts(own, frozenset(text for text in texts - own if is_drawn(text)), first)


def is_drawn(text: str) -> bool:
    """Whether a prompt is one that ``prompts_for`` could give to somebody."""
    return len(text) < 200 and _drawn().fullmatch(text) is not None


@cache
def _drawn() -> re.Pattern[str]:
    word = f"(?:{'|'.join(WORDS)})"
    return re.compile("|".join(re.escape(each).replace(r"\{0\}", word).replace(r"\{1\}", word) for each in QUESTIONS))
