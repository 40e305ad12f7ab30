"""What each file came to, appended to a file of the user's cache at once.

So memory does not grow with the reasons given, a grading that was killed goes on where it stopped, and the next one
reads again only the files that changed. A line is a small head, a tab, and the whole grade, both JSON.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from localai_clusters.grading.fingerprint import Fingerprint
from localai_clusters.grading.results import Graded
from localai_clusters.models.cache import cache_folder

OLD_SECONDS = 30 * 86_400  # a folder that nobody graded for so long is forgotten


class Head(NamedTuple):
    """What the grader keeps in memory of a file."""

    name: str  # as the folder has it
    stamp: list[Any] | None  # None: it could not be read, and is looked at anew each time
    student: str | None
    lab: str | None
    outcome: str
    points: float | None
    submitted_at: str | None
    mark: Fingerprint | None

    @classmethod
    def of(cls, name: str, stamp: list[Any] | None, graded: Graded, mark: Fingerprint | None = None) -> "Head":
        about = (graded.student, graded.lab, graded.outcome, graded.points, graded.submitted_at)
        return cls(name, stamp, *about, mark)


class Place(NamedTuple):
    """Where a file's grade stands in the journal."""

    start: int
    length: int


def line_of(head: Head, graded: Graded) -> bytes:
    plain = [*head[:-1], head.mark.to_json() if head.mark else None]
    return b"%s\t%s\n" % (json.dumps(plain).encode(), json.dumps(graded.to_dict()).encode())


def digest_of_replay(replay: Any) -> str:
    return hashlib.sha256(json.dumps(replay, sort_keys=True).encode()).hexdigest()[:16] if replay else ""


def head_of(line: bytes) -> Head:
    """The head of a line. Raises ``ValueError`` for one that is not whole."""
    head, tab, _ = line.partition(b"\t")
    if not tab or not line.endswith(b"}\n"):
        raise ValueError("not a line of the journal")
    *plain, mark = json.loads(head)
    return Head(*plain, Fingerprint.from_json(mark) if mark else None)


def kept_for(folder: Path, suffix: str) -> Path:
    """A file of the user's cache about ``folder``; nobody else's business."""
    folders = cache_folder() / "grading"
    folders.mkdir(mode=0o700, exist_ok=True)
    return folders / (hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:24] + suffix)


class Journal:
    """The journal of one folder, open for one grader at a time; what was written can be read after it is closed.

    ``made_of`` names all that the grades depend on beside the files: grades of anything else are not taken over.
    """

    def __init__(self, folder: Path, made_of: str, fresh: bool = False, on_wait: Callable[[], None] = lambda: None):
        self.path = kept_for(folder, ".jsonl")
        self._lock = FileLock(kept_for(folder, ".lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            self._lock.acquire()
        try:
            _forget_old(self.path.parent)
            self._descriptor = -1
            self._first = json.dumps({"made_of": made_of}).encode() + b"\n"
            self._descriptor = self._open(fresh)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, fresh: bool) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
        if not fresh:
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(self.path, flags | os.O_NOFOLLOW)
                if os.pread(descriptor, len(self._first), 0) == self._first:
                    return descriptor
                os.close(descriptor)
        return self._anew([])

    def _anew(self, keep: list[Place]) -> int:
        """A descriptor of the journal with these lines of the present one only; whoever reads that goes on with it."""
        temporary = self.path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)  # of a grader that was killed here; we hold the lock
        descriptor = os.open(temporary, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write(descriptor, self._first)
            for place in keep:
                _write(descriptor, self._read(place))
            os.replace(temporary, self.path)
        except BaseException:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise
        return descriptor

    def heads(self, wanted: Callable[[Head], bool]) -> list[tuple[Head, Place]]:
        """What is known of files already, the latest of each; what is not ``wanted`` is forgotten."""
        found: dict[str, tuple[Head, Place]] = {}
        lines = 0
        for line, place in self._lines():
            lines += 1
            try:
                head = head_of(line)
            except (ValueError, TypeError):
                continue
            found.pop(head.name, None)
            if wanted(head):
                found[head.name] = head, place
        if lines > 2 * len(found):
            old, self._descriptor = self._descriptor, self._anew([place for _, place in found.values()])
            os.close(old)
            start = len(self._first)
            for name, (head, place) in found.items():
                found[name] = head, Place(start, place.length)
                start += place.length
        return list(found.values())

    def _lines(self) -> Iterator[tuple[bytes, Place]]:
        start = len(self._first)
        with open(os.dup(self._descriptor), "rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):  # cut short by a kill: the next line must not be glued to it
                    os.ftruncate(self._descriptor, start)
                    return
                yield line, Place(start, len(line))
                start += len(line)

    def append(self, line: bytes) -> Place:
        """Write a line, whole or not at all. Raises ``OSError``."""
        start = os.lseek(self._descriptor, 0, os.SEEK_END)
        try:
            _write(self._descriptor, line)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, start)
            raise
        return Place(start, len(line))

    def plain(self, place: Place) -> dict[str, Any]:
        """``Graded.to_dict`` of what stands there."""
        return json.loads(self._read(place).partition(b"\t")[2])

    def _read(self, place: Place) -> bytes:
        return os.pread(self._descriptor, place.length, place.start)

    def release(self) -> None:
        """Let other graders at the folder; what stands here can still be read."""
        self._lock.release()

    def close(self) -> None:
        self._lock.release()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _forget_old(journals: Path) -> None:
    for path in journals.glob("*.*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > OLD_SECONDS:
                path.unlink()
