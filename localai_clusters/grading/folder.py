"""A folder of checkpoint files to a gradebook."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import localai_clusters
from localai_clusters.grading.copies import copies
from localai_clusters.grading.fingerprint import Fingerprint
from localai_clusters.grading.grade import unread
from localai_clusters.grading.journal import Head, Journal, Place, digest_of_replay, head_of, line_of
from localai_clusters.grading.pool import GradingError, graded_lines
from localai_clusters.grading.results import UNREADABLE, Flag, Graded
from localai_clusters.grading.rubric import Rubric
from localai_clusters.grading.walk import Found, find_files, is_record_name, shown, stamp_of
from localai_clusters.prompts import course_key

BEST, LATEST = "best", "latest"
OnProgress = Callable[[int, int], None]  # files done, files in all


class Entry(NamedTuple):
    """What a gradebook keeps of a file in memory; the whole is in the journal."""

    name: str  # as the folder has it
    shown: str
    student: str | None
    lab: str | None
    outcome: str
    points: float | None
    submitted_at: str | None
    place: Place


@dataclass(slots=True)
class Gradebook:
    """The grades of a folder, in the order of the files' names. To be closed; a ``with`` does it."""

    folder: Path
    rubrics: Mapping[str, Rubric]
    entries: list[Entry]
    flags: Mapping[str, tuple[Flag, ...]]  # by file as shown; those that come from comparing records
    counting: frozenset[int]  # places in ``entries`` of the one record of each student and lab that counts
    others: int  # files that are no *.json
    _journal: Journal

    def results(self) -> Iterator[Graded]:
        """Every file's grade, read from the journal one at a time."""
        return (self._graded(place) for place in range(len(self.entries)))

    def plain(self) -> Iterator[dict[str, Any]]:
        """What ``to_dict`` makes of each of ``results``, without making those first."""
        for place, entry in enumerate(self.entries):
            found = self._journal.plain(entry.place)
            found["flags"] += [flag.to_dict() for flag in self.flags.get(entry.shown, ())]
            found["counts"] = place in self.counting
            yield found

    def students(self) -> Iterator[Graded]:
        """The one record of each student and lab that counts."""
        return (self._graded(place) for place in range(len(self.entries)) if place in self.counting)

    def _graded(self, place: int) -> Graded:
        entry = self.entries[place]
        found = Graded.from_dict(self._journal.plain(entry.place))
        flags = found.flags + self.flags.get(entry.shown, ())
        return replace(found, flags=flags, counts=place in self.counting)

    def close(self) -> None:
        self._journal.close()

    def __enter__(self) -> "Gradebook":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def grade_folder(
    folder: Path | str,
    rubrics: Mapping[str, Rubric],
    *,
    take: str = BEST,
    key: str | None = None,
    replays: Mapping[str, Mapping[str, Any]] | None = None,
    processes: int | None = None,
    fresh: bool = False,
    on_progress: OnProgress = lambda done, total: None,
    on_wait: Callable[[], None] = lambda: None,
) -> Gradebook:
    """Grade every ``*.json`` below ``folder``, or one file, by the rubric of its lab.

    ``key`` is the course's, from which prompts are drawn (None: LAC_COURSE_KEY or the public default); ``replays`` is
    {"outcome": ..., "reason": ...} by file; ``fresh`` forgets what an earlier grading of the same files came to;
    ``on_wait`` is called when another grading of the folder must end first. Raises ``GradingError`` if there is
    nothing to grade, ``OSError`` for a folder that cannot be read and for a full disk.
    """
    if take not in (BEST, LATEST):
        raise ValueError(f"take is {take!r}; it can be {BEST} or {LATEST}")
    if processes is not None and not 1 <= processes <= 64:
        raise ValueError(f"processes is {processes}; it can be 1 to 64")
    folder, found = files_in(Path(folder))
    key = course_key() if key is None else key
    journal = Journal(folder, made_of(rubrics, key), fresh, on_wait)
    try:
        entries, prints = grade_files(folder, found, rubrics, key, replays or {}, processes, journal, on_progress)
    except BaseException:
        journal.close()
        raise
    journal.release()
    ordered = [entries[name] for name in sorted(entries, key=os.fsencode)]
    return Gradebook(folder, rubrics, ordered, copies(prints), chosen(ordered, take), found.others, journal)


def files_in(path: Path) -> tuple[Path, Found]:
    """(the folder, what of it is graded); ``path`` may be one file. Raises ``GradingError``, ``OSError``."""
    if path.is_dir():
        found = find_files(path)
        if not found.files and not found.refused:
            raise GradingError(f"{path} holds no *.json; type the folder that the checkpoint files are in")
        return path, found
    if not is_record_name(path.name) and path.exists():
        raise GradingError(f"{path} is no folder and no *.json")
    os.stat(path)  # an OSError says what is wrong with it
    return path.parent, Found([path.name])


def grade_files(
    folder: Path,
    found: Found,
    rubrics: Mapping[str, Rubric],
    key: str,
    replays: Mapping[str, Mapping[str, Any]],
    processes: int | None,
    journal: Journal,
    on_progress: OnProgress,
) -> tuple[dict[str, Entry], list[Fingerprint]]:
    """Every file's entry by name, from the journal where it still holds, and the fingerprints of the records."""
    entries: dict[str, Entry] = {}
    prints: list[Fingerprint] = []

    def take_up(head: Head, place: Place) -> None:
        about = (head.student, head.lab, head.outcome, head.points, head.submitted_at)
        entries[head.name] = Entry(head.name, shown(head.name), *about, place)
        if head.mark:
            prints.append(head.mark)

    digests = {name: digest_of_replay(replays.get(name)) for name in found.files}
    for head, place in journal.heads(lambda head: still_holds(folder, head, digests)):
        take_up(head, place)
    total = len(found.files)
    on_progress(len(entries), total)
    waiting = [(name, replays.get(name)) for name in found.files if name not in entries]
    done = len(entries)
    for line in graded_lines(folder, waiting, rubrics, key, processes) if waiting else ():
        take_up(head_of(line), journal.append(line))
        done += 1
        on_progress(done, total)
    for name, reason in found.refused:
        graded = unread(shown(name), reason)
        head = Head.of(name, None, graded)
        take_up(head, journal.append(line_of(head, graded)))
    return entries, prints


def still_holds(folder: Path, head: Head, digests: Mapping[str, str]) -> bool:
    """Whether the file is the one that was graded."""
    if head.stamp is None or head.name not in digests:
        return False
    try:
        now = stamp_of(os.stat(folder / head.name, follow_symlinks=False))
    except (OSError, ValueError):
        return False
    return head.stamp == [*now, digests[head.name]]


def chosen(entries: list[Entry], take: str) -> frozenset[int]:
    """Of each student's records of a lab the best one, or the latest; first of all one in the student's own folder."""
    best: dict[tuple[str, str | None], tuple[tuple, int]] = {}
    for place, entry in enumerate(entries):
        if entry.student is None or entry.outcome == UNREADABLE:
            continue
        # Somebody else can hand in a record with this student's id, and must not take the place of the student's own.
        own = entry.student in entry.shown.split("/")[:-1]
        points = -1.0 if entry.points is None else entry.points
        merit = (points, entry.submitted_at or "") if take == BEST else (entry.submitted_at or "", points)
        rank = (own, *merit, -place)
        if rank > best.get((entry.student, entry.lab), ((), 0))[0]:
            best[entry.student, entry.lab] = (rank, place)
    return frozenset(place for _, place in best.values())


def made_of(rubrics: Mapping[str, Rubric], key: str) -> str:
    """A digest of all that a grade depends on beside the file: the rubrics, the key, and this program."""
    plain = {lab: rubric.model_dump(mode="json") for lab, rubric in sorted(rubrics.items())}
    content = json.dumps([plain, hashlib.sha256(key.encode()).hexdigest(), program()])
    return hashlib.sha256(content.encode()).hexdigest()


@cache
def program() -> str:
    """A digest of this package's code: after an update nothing is taken from an earlier grading."""
    digest = hashlib.sha256()
    for path in sorted(Path(localai_clusters.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
