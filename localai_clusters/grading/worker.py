"""The process that reads students' files: ``python -P -m localai_clusters.grading.worker``, started by pool.py.

It takes its job as JSON on standard input and writes a line per file, in their order, as soon as each is graded. A
student's file can at worst end this process; the grader goes on with the next file.
"""

import contextlib
import gc
import json
import os
import resource
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from localai_clusters.checkpoint import CheckpointError
from localai_clusters.checkpoint.store import content_of
from localai_clusters.grading.fingerprint import fingerprint
from localai_clusters.grading.grade import grade_content, unread
from localai_clusters.grading.journal import Head, digest_of_replay, line_of
from localai_clusters.grading.results import Graded
from localai_clusters.grading.rubric import Rubric
from localai_clusters.grading.walk import opened, shown, stamp_of, why_not_opened
from localai_clusters.launch.processes import die_with_parent

MEMORY_BYTES = 3 << 30  # of addresses; the worst 16 MiB known take 0.8 GiB
TIMES_READ = 3  # of a file that changes while it is read
READY = b"\n"


def main() -> None:
    die_with_parent()
    job = json.load(sys.stdin.buffer)
    if os.getppid() != job["parent"]:
        return  # it ended before die_with_parent took hold
    soft = resource.getrlimit(resource.RLIMIT_AS)[1]
    with contextlib.suppress(ValueError, OSError):  # a lower limit is in force
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, soft))
    rubrics = {lab: Rubric.model_validate(rubric) for lab, rubric in job["rubrics"].items()}
    folder = os.open(os.fsencode(job["folder"]), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    gc.freeze()
    gc.set_threshold(50_000)  # records hold no cycles; looking for them took a tenth of the time
    write(READY)
    for line in lines(folder, job["files"], rubrics, job["key"]):
        write(line)


def write(content: bytes) -> None:
    while content:
        content = content[os.write(sys.stdout.fileno(), content) :]


def lines(
    folder: int, files: Iterable[tuple[str, Any]], rubrics: Mapping[str, Rubric], key: str | None
) -> Iterable[bytes]:
    """The journal's line for each (name, replay or None)."""
    for name, replay in files:
        graded, head = grade_one(folder, name, rubrics, replay, key)
        yield line_of(head, graded)


def grade_one(
    folder: int, name: str, rubrics: Mapping[str, Rubric], replay: Any, key: str | None
) -> tuple[Graded, Head]:
    """Never raises, whatever the file is or becomes."""
    for _ in range(TIMES_READ):
        try:
            with opened(folder, name) as descriptor:
                before = stamp_of(os.fstat(descriptor))
                content = content_of(descriptor)
                if stamp_of(os.fstat(descriptor)) == before:
                    break
        except OSError as error:
            graded = unread(shown(name), why_not_opened(error))
            return graded, Head.of(name, None, graded)
        except (CheckpointError, MemoryError) as error:
            graded = unread(shown(name), str(error) or "it takes too much memory to read")
            return graded, Head.of(name, None, graded)
    else:
        graded = unread(
            shown(name), f"it changed while it was read, {TIMES_READ} times over: grade again when it is whole"
        )
        return graded, Head.of(name, None, graded)
    graded, record = grade_content(content, shown(name), rubrics, replay, key)
    mark = fingerprint(record, shown(name), key) if record else None
    return graded, Head.of(name, [*before, digest_of_replay(replay)], graded, mark)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the grader stopped
        main()
