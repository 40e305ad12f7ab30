"""Prompts that differ from student to student, so that one student's outputs are of no use to another.

The words are drawn by HMAC-SHA256 (RFC 2104) with the course's key over the student and the lab: an
instructor who holds the key can draw them again and compare.
"""

import hmac
import os
from functools import lru_cache

# Nouns that a small model has something to say about, and that take "a".
WORDS = """
    bakery bicycle bridge candle canyon castle cello cloud comet compass desert dolphin falcon feather forest
    fountain garden glacier harbor hammer harvest jacket kettle ladder lantern library lighthouse magnet maple
    market meadow mirror mountain museum painter pencil piano planet prairie rainbow river robot rocket sailor
    satellite school shadow spider station stone sunrise telescope theater tiger tower train tunnel turtle
    valley village violin volcano waterfall whale window winter wizard
""".split()
QUESTIONS = (
    "What is a {0}? Answer in one sentence.",
    "Write one sentence about a {0} and a {1}.",
    "Name three things that go with a {0}.",
    "Why would someone keep a {0} near a {1}?",
)
DEFAULT_KEY = "local-ai-clusters"


def course_key() -> str:
    """The course's key: LAC_COURSE_KEY, or a public default with which the words prove nothing."""
    return os.environ.get("LAC_COURSE_KEY") or DEFAULT_KEY


def prompts_for(student: str, lab: str, count: int = 4, key: str | None = None) -> list[str]:
    """``count`` questions (at most 16) whose words are ``student``'s for ``lab``."""
    if not 1 <= count <= 16:
        raise ValueError(f"count is {count}; it can be 1 to 16")
    return list(_drawn(student, lab, count, course_key() if key is None else key))


@lru_cache(maxsize=64)  # a record's prompts are asked for several times while it is graded
def _drawn(student: str, lab: str, count: int, key: str) -> tuple[str, ...]:
    found = []
    for number in range(count):
        draw = hmac.digest(key.encode(), f"{student}\0{lab}\0{number}".encode(), "sha256")
        first, second = (int.from_bytes(draw[i : i + 8]) % len(WORDS) for i in (0, 8))
        found.append(QUESTIONS[number % len(QUESTIONS)].format(WORDS[first], WORDS[second]))
    return tuple(found)
