"""One file to its grade: read as a stranger's, held against the rubric of its lab."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localai_clusters.checkpoint import Checkpoint, CheckpointError, Finding, plain_text, verify
from localai_clusters.checkpoint.store import NewerVersion, content_of_file, parse
from localai_clusters.grading.criteria import Evidence, counted, mark
from localai_clusters.grading.plausible import implausible
from localai_clusters.grading.results import (
    BELOW_EVIDENCE,
    BY_HAND,
    GRADED,
    NEEDS_A_HAND,
    TOO_NEW,
    UNREADABLE,
    Flag,
    Graded,
)
from localai_clusters.grading.rubric import EVIDENCE, Rubric

SECONDS_PER_DAY = 86_400
FAILED = "the grader itself failed on it"
Replayed = Mapping[str, Any]  # {"outcome": "confirmed" | "refuted" | "not replayable", "reason": ...}


def unread(name: str, reason: str, outcome: str = UNREADABLE) -> Graded:
    return Graded(name, None, None, outcome, reason, None, 0.0)


def grade_file(
    path: Path | str, name: str, rubrics: Mapping[str, Rubric], replay: Replayed | None = None, key: str | None = None
) -> tuple[Graded, Checkpoint | None]:
    """The grade of the file at ``path``, shown as ``name``; its record too if it could be read."""
    try:
        content = content_of_file(path)
    except CheckpointError as error:
        return unread(name, str(error)), None
    return grade_content(content, name, rubrics, replay, key)


def grade_content(
    content: bytes, name: str, rubrics: Mapping[str, Rubric], replay: Replayed | None = None, key: str | None = None
) -> tuple[Graded, Checkpoint | None]:
    """The grade of a file's bytes; the record in them too if there is one. Raises nothing for any bytes.

    ``rubrics`` is by lab; ``key`` is the course's key (None: LAC_COURSE_KEY or the public default).
    """
    try:
        record = parse(content)
    except NewerVersion as error:
        return unread(name, str(error), TOO_NEW), None
    except CheckpointError as error:
        return unread(name, str(error)), None
    except MemoryError:
        return unread(name, f"{len(content):,} bytes that take more memory to read than a grading gives a file"), None
    except Exception as error:  # one file that nobody thought of must not keep a class from its grades
        return unread(name, f"{FAILED} ({_said(error)}): please report this"), None
    try:
        return grade_record(record, name, rubrics, replay, key), record
    except Exception as error:
        graded = Graded(
            file=name,
            student=record.student,
            lab=record.lab,
            outcome=NEEDS_A_HAND,
            reason=f"{FAILED} ({_said(error)}): please report this",
            points=None,
            possible=0.0,
            submitted_at=record.created_at,
        )
        return graded, None


def grade_record(
    record: Checkpoint,
    name: str,
    rubrics: Mapping[str, Rubric],
    replay: Replayed | None = None,
    key: str | None = None,
) -> Graded:
    """The grade of a record by the rubric of its lab."""
    findings = tuple(verify(record))
    about = {
        "file": name,
        "student": record.student,
        "lab": record.lab,
        "submitted_at": record.created_at,
        "flags": (*implausible(record, name), *_refuted(replay)),
        "replay": dict(replay) if replay else None,
    }
    rubric = rubrics.get(record.lab)
    if rubric is None or rubric.chapter != record.chapter:
        known = ", ".join(sorted(rubrics)) or "none"
        reason = f"there is no rubric for lab {record.lab} of chapter {record.chapter} (there are: {known})"
        return Graded(**about, outcome=NEEDS_A_HAND, reason=reason, points=None, possible=0.0)
    evidence = Evidence(record, findings, replay, key)
    criteria = tuple(mark(criterion, evidence) for criterion in rubric.criteria)
    points, late = after_lateness(sum(result.points or 0.0 for result in criteria), record, rubric)
    about |= {"possible": rubric.possible, "criteria": criteria, "late": late}
    if lack := lacking_evidence(record, rubric):
        return Graded(**about, outcome=BELOW_EVIDENCE, reason=lack, points=0.0)
    if hand := what_needs_a_hand(findings, criteria):
        return Graded(**about, outcome=NEEDS_A_HAND, reason=hand, points=points)
    return Graded(**about, outcome=GRADED, reason=f"{points:g} of {rubric.possible:g} points", points=points)


def what_needs_a_hand(findings: tuple[Finding, ...], criteria: tuple) -> str:
    """Why a person must look before the points stand; empty if nobody must."""
    said = []
    broken = [finding for finding in findings if finding.severity == "wrong"]
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        said.append(plain_text(f"it contradicts itself: {broken[0].field}: {broken[0].sentence}", 300) + more)
    waiting = [result.title for result in criteria if result.status == BY_HAND]
    if waiting:
        said.append(f"{len(waiting)} {'criterion' if len(waiting) == 1 else 'criteria'} to mark: {'; '.join(waiting)}")
    return ". ".join(said)


def lacking_evidence(record: Checkpoint, rubric: Rubric) -> str:
    """Why the record shows less than the rubric asks for; empty if it does not."""
    shown = record.evidence
    if EVIDENCE.index(shown.level) < EVIDENCE.index(rubric.evidence):
        return f"it is {shown.level} evidence and the rubric asks for {rubric.evidence}: run the lab on such a machine"
    if shown.nodes < rubric.nodes:
        return f"it ran on {counted(shown.nodes, 'node')} and the rubric asks for {rubric.nodes}"
    return ""


def after_lateness(points: float, record: Checkpoint, rubric: Rubric) -> tuple[float, str]:
    """(points that are left, what lateness cost). The time is the record's own ``created_at``."""
    if rubric.deadline is None:
        return round(points, 2), ""
    over = (datetime.fromisoformat(record.created_at).astimezone(UTC) - rubric.deadline).total_seconds()
    if over <= 0:
        return round(points, 2), ""
    days = math.ceil(over / SECONDS_PER_DAY)
    said = f"{counted(days, 'day')} late"
    policy = rubric.late
    if policy is None:
        return round(points, 2), f"{said}, which costs nothing"
    if policy.refused_after_days is not None and days > policy.refused_after_days:
        return 0.0, f"{said}: nothing counts after {counted(policy.refused_after_days, 'day')}"
    lost = min(policy.per_day * days, policy.at_most)
    return round(points * (1 - lost), 2), f"{said}: {lost:.0%} of {points:g} points lost"


def _said(error: Exception) -> str:
    return plain_text(f"{type(error).__name__}: {error}", 200)


def _refuted(replay: Replayed | None) -> tuple[Flag, ...]:
    if replay is None or replay["outcome"] != "refuted":
        return ()
    return (Flag("replay", "the model does not say what is recorded", (plain_text(str(replay["reason"]), 300),)),)
