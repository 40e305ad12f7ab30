"""Grades as the column of a learning management system, by a map of its CSV's columns.

The roster is the CSV that Canvas (Grades, Export) or Moodle (Grades, Export) gives; its rows and columns stay as they
are, and one column of grades is filled in. A student is found by any of the columns that may hold the id.
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from localai_clusters.grading.exports.files import replaced
from localai_clusters.grading.exports.spreadsheet import cell, number
from localai_clusters.grading.results import Graded


@dataclass(frozen=True, slots=True)
class Columns:
    """Of one system's CSV: where a student's id may stand, and what the rows before the first student hold."""

    ids: tuple[str, ...]
    possible_row: str  # the first cell of a row that holds the points possible; "" if the system has none
    feedback: str  # the column for the reasons; "" if the system takes none


SYSTEMS = {
    "canvas": Columns(("SIS Login ID", "SIS User ID", "Integration ID", "ID"), "Points Possible", ""),
    "moodle": Columns(("ID number", "Username", "Email address", "Identifier"), "", "Feedback comments"),
}


class RosterError(ValueError):
    """The roster is not one of the system's."""


def write_lms(path: Path, system: str, roster: Path, column: str, students: Iterable[Graded]) -> tuple[int, list[str]]:
    """Write ``roster`` with ``column`` filled in; returns (students filled in, ids of records not in the roster).

    Grades wait for a hand where a criterion does: those cells hold the points so far. Raises ``RosterError``.
    """
    columns = SYSTEMS[system]
    try:
        text = roster.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RosterError(f"{roster} is not UTF-8; export it again from {system}") from None
    rows = list(csv.reader(io.StringIO(text)))
    header = rows[0] if rows else []
    ids = [header.index(name) for name in columns.ids if name in header]
    if not ids:
        raise RosterError(f"{roster} has none of the columns {', '.join(columns.ids)}; export it from {system}")
    grades = {one.student.casefold(): one for one in students if one.student and one.points is not None}
    place = header.index(column) if column in header else len(header)
    feedback = columns.feedback and (header.index(columns.feedback) if columns.feedback in header else len(header) + 1)
    found: set[str] = set()
    with replaced(path) as file:
        writer = csv.writer(file, lineterminator="\r\n")
        for line, cells in enumerate(rows):
            cells, one = cells + [""] * (max(len(header), place + 1) - len(cells)), None
            if line == 0:
                cells[place] = column
            elif columns.possible_row and cells[0].strip() == columns.possible_row:
                cells[place] = number(max((one.possible for one in grades.values()), default=0.0))
            else:
                names = {name for i in ids for name in spellings(cells[i])}
                one = next((grades[name] for name in names if name in grades), None)
                if one:
                    found.add(one.student.casefold())
                    cells[place] = number(one.points)
            if feedback:
                cells += [""] * (feedback + 1 - len(cells))
                cells[feedback] = columns.feedback if line == 0 else cell(lost(one)) if one else cells[feedback]
            writer.writerow(cells)
    return len(found), sorted(one.student for name, one in grades.items() if name not in found)


def spellings(text: str) -> tuple[str, ...]:
    """An id as the roster may write it: with its mail domain and without."""
    text = text.strip().casefold()
    return tuple(name for name in (text, text.partition("@")[0]) if name)


def lost(one: Graded) -> str:
    """The reasons for every point lost, on one line."""
    reasons = [f"{r.title}: {r.reason}" for r in one.criteria if r.points is None or r.points < r.possible]
    return "; ".join([*reasons, *([one.late] if one.late else [])]) or one.reason
