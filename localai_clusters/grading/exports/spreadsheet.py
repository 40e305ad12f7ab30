"""Grades as CSV: a row per file, a column per criterion, the points possible in the second row."""

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from localai_clusters.checkpoint import plain_text
from localai_clusters.grading.exports.files import replaced
from localai_clusters.grading.results import Graded
from localai_clusters.grading.rubric import Criterion, Rubric

COLUMNS = ("file", "student", "lab", "counts", "outcome", "points", "possible", "late", "flags", "reason")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet begins a formula with


def write_csv(path: Path, graded: Iterable[Graded], rubrics: Mapping[str, Rubric]) -> None:
    """One row per file. With rubrics for several labs, a criterion's column is named ``lab:criterion``."""
    criteria = list(columns_of(rubrics))
    with replaced(path) as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow([*COLUMNS, *(text for _, _, name in criteria for text in (name, f"{name} status"))])
        possible = "" if len(rubrics) != 1 else number(next(iter(rubrics.values())).possible)
        totals = {"file": "points possible", "points": possible, "possible": possible}
        each = [text for _, criterion, _ in criteria for text in (number(criterion.points), "")]
        writer.writerow([*(totals.get(column, "") for column in COLUMNS), *each])
        for one in graded:
            writer.writerow(row(one, criteria))


def columns_of(rubrics: Mapping[str, Rubric]) -> Iterator[tuple[str, Criterion, str]]:
    """(lab, criterion, the column's name) of every criterion."""
    for lab, rubric in sorted(rubrics.items()):
        for criterion in rubric.criteria:
            yield lab, criterion, criterion.id if len(rubrics) == 1 else f"{lab}:{criterion.id}"


def row(one: Graded, criteria: list[tuple[str, Criterion, str]]) -> list[str]:
    found = {result.id: result for result in one.criteria}
    cells = {
        "file": one.file,
        "student": one.student or "",
        "lab": one.lab or "",
        "counts": "yes" if one.counts else "no",
        "outcome": one.outcome,
        "points": number(one.points),
        "possible": number(one.possible),
        "late": one.late,
        "flags": "; ".join(flag.sentence for flag in one.flags),
        "reason": one.reason,
    }
    texts = [cells[column] for column in COLUMNS]
    for lab, criterion, _ in criteria:
        result = found.get(criterion.id) if lab == one.lab else None
        texts += [number(result.points), result.status] if result else ["", ""]
    return [cell(text) for text in texts]


def cell(text: str) -> str:
    """``text`` as a cell that no spreadsheet takes for a formula: with an apostrophe before it where it might."""
    text = plain_text(text)
    return f"'{text}" if text.startswith(FORMULA) else text


def number(value: Any) -> str:
    return "" if value is None else f"{value:g}"
