"""What `verify` reports."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not hold ("wrong") or deserves a look ("note")."""

    field: str
    severity: Literal["wrong", "note"]
    sentence: str


def wrong(field: str, sentence: str) -> Finding:
    return Finding(field, "wrong", sentence)


def note(field: str, sentence: str) -> Finding:
    return Finding(field, "note", sentence)
