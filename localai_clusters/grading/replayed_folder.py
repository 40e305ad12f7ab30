"""Replay for a folder: every readable record once, and what each came to kept until its file changes.

Replaying takes minutes of a model's time where grading takes seconds, so its results outlive a changed rubric and a
grading that was killed.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from localai_clusters.checkpoint import Checkpoint, CheckpointError
from localai_clusters.checkpoint.store import content_of, parse
from localai_clusters.grading.folder import Gradebook, grade_folder
from localai_clusters.grading.journal import kept_for
from localai_clusters.grading.results import TOO_NEW, UNREADABLE
from localai_clusters.grading.rubric import Rubric
from localai_clusters.grading.walk import opened, shown, stamp_of, why_not_opened

AT_ONCE = 512  # records between two times that results are kept; a server is started for each
# The records, each with the path it is called by, to what became of each: {"outcome": ..., "reason": ..., ...}
Replay = Callable[[Sequence[tuple[str, Checkpoint]]], Sequence[Mapping[str, Any]]]


def grade_replayed(
    folder: Path, rubrics: Mapping[str, Rubric], replay: Replay, fresh: bool = False, **options: Any
) -> Gradebook:
    """``grade_folder`` with every record's replay; ``replay`` is asked for those that are not known yet.

    Raises what that does, ``CheckpointError`` for a file that changes meanwhile, and whatever ``replay`` does.
    """
    with grade_folder(folder, rubrics, fresh=fresh, **options) as book:
        names = [entry.name for entry in book.entries if entry.outcome not in (UNREADABLE, TOO_NEW)]
        below = book.folder
    store = kept_for(below, ".replays")
    if fresh:
        store.unlink(missing_ok=True)
    known = {name: found for name, stamp, found in kept(store) if stamp == stamp_now(below, name)}
    missing = [name for name in names if name not in known]
    for start in range(0, len(missing), AT_ONCE):
        with Records(below, missing[start : start + AT_ONCE]) as records, open(store, "ab") as file:
            for name, found in zip(records.names, replay(records), strict=True):
                known[name] = dict(found)
                file.write(json.dumps([program(), name, records.stamps.get(name), known[name]]).encode() + b"\n")
    replays = {name: known[name] for name in names}
    return grade_folder(folder, rubrics, replays=replays, **options)


class Records(Sequence):
    """The records of files, each read when it is asked for: a class's records need not fit into memory."""

    def __init__(self, folder: Path, names: Sequence[str]):
        self.names = names
        self.stamps: dict[str, list[int]] = {}
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, place: int) -> tuple[str, Checkpoint]:
        name = self.names[place]
        try:
            with opened(self._folder, name) as descriptor:
                stamp = stamp_of(os.fstat(descriptor))
                record = parse(content_of(descriptor))
        except OSError as error:
            raise CheckpointError(f"{shown(name)}: {why_not_opened(error)}") from None
        if self.stamps.setdefault(name, stamp) != stamp:
            raise CheckpointError(f"{shown(name)}: it changed while it was replayed; grade again when it is whole")
        return shown(name), record

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._folder)


def kept(store: Path) -> Iterator[tuple[str, list[int], dict[str, Any]]]:
    """(name, stamp, replay) of each result that this program kept."""
    with contextlib.suppress(FileNotFoundError), open(store, "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError, TypeError):  # cut short by a kill
                made_by, name, stamp, found = json.loads(line)
                if made_by == program():
                    yield name, stamp, found


def stamp_now(folder: Path, name: str) -> list[int] | None:
    with contextlib.suppress(OSError, ValueError):
        return stamp_of(os.stat(folder / name, follow_symlinks=False))
    return None


@cache
def program() -> str:
    """A digest of the code that replays: what other code found is not taken over."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("replay*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
