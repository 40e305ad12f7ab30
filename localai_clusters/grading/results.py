"""What grading a file comes to: data that criteria make, that copies add to, and that every export shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GRADED, NEEDS_A_HAND, UNREADABLE = "graded", "needs a hand", "unreadable"
TOO_NEW, BELOW_EVIDENCE = "too new", "below the evidence level"
OUTCOMES = (GRADED, NEEDS_A_HAND, UNREADABLE, TOO_NEW, BELOW_EVIDENCE)

FULL, PART, NONE, BY_HAND = "full", "part", "none", "by hand"


@dataclass(frozen=True, slots=True)
class CriterionResult:
    """Points of one criterion. ``points`` is None until a person marks it (status ``by hand``)."""

    id: str
    title: str
    points: float | None
    possible: float
    status: str  # FULL, PART, NONE or BY_HAND
    reason: str  # what was found, and where points are lost what the student can do about it


@dataclass(frozen=True, slots=True)
class Flag:
    """A suspicion for a person to look at. It takes no points."""

    kind: str
    sentence: str
    evidence: tuple[str, ...] = ()  # values or lines that show it
    others: tuple[str, ...] = ()  # other files it has to do with

    def to_dict(self) -> dict[str, Any]:
        plain = {"kind": self.kind, "sentence": self.sentence}
        return plain | {"evidence": list(self.evidence), "others": list(self.others)}


@dataclass(frozen=True, slots=True)
class Graded:
    """The verdict on one file."""

    file: str  # relative to the graded folder, with /
    student: str | None
    lab: str | None
    outcome: str  # one of OUTCOMES
    reason: str  # why this outcome, in a sentence
    points: float | None  # after lateness; None where nothing could be graded
    possible: float
    criteria: tuple[CriterionResult, ...] = ()
    flags: tuple[Flag, ...] = ()
    submitted_at: str | None = None  # UTC, as the record says
    late: str = ""  # what lateness cost, in a sentence
    replay: dict[str, Any] | None = None
    counts: bool = False  # of several files of one student and lab, the one whose points are the student's

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: lists for tuples, an object for each criterion and flag."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        plain["criteria"] = [{name: getattr(each, name) for name in each.__slots__} for each in self.criteria]
        plain["flags"] = [flag.to_dict() for flag in self.flags]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Graded":
        """What ``to_dict`` made, back."""
        criteria = tuple(CriterionResult(**each) for each in plain["criteria"])
        flags = tuple(
            Flag(each["kind"], each["sentence"], tuple(each["evidence"]), tuple(each["others"]))
            for each in plain["flags"]
        )
        return cls(**{**plain, "criteria": criteria, "flags": flags})
