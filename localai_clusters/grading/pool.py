"""Processes that read students' files, and what becomes of a file that ends one of them."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from localai_clusters.grading.grade import unread
from localai_clusters.grading.journal import Head, line_of
from localai_clusters.grading.rubric import Rubric
from localai_clusters.grading.walk import shown

FILES_PER_PROCESS = 64  # fewer are not worth the start of another process
MOST_PROCESSES = 16
# -P: not from the working directory, which may be the students' own.
COMMAND = (sys.executable, "-P", "-m", "localai_clusters.grading.worker")
File = tuple[str, Any]  # its name, and its replay or None


class GradingError(ValueError):
    """Nothing can be graded; the message says what to do."""


def graded_lines(
    folder: Path, files: Sequence[File], rubrics: Mapping[str, Rubric], key: str | None, processes: int | None = None
) -> Iterator[bytes]:
    """The journal's line for every file, in the order in which they are done. Closing it ends the processes."""
    count = processes or min(len(os.sched_getaffinity(0)), -(-len(files) // FILES_PER_PROCESS), MOST_PROCESSES)
    count = max(1, min(count, len(files)))
    job = {
        "parent": os.getpid(),
        "folder": os.path.abspath(folder),
        "rubrics": {lab: rubric.model_dump(mode="json", exclude_unset=True) for lab, rubric in rubrics.items()},
        "key": key,
    }
    # Every n-th file: neighbours are often of one student, and alike.
    shares = [share for share in (files[i::count] for i in range(count)) if share]
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:

        def start(shares: list[Sequence[File]]) -> None:
            workers = []
            for share in shares:
                workers.append(_Worker(share))
                stack.callback(workers[-1].close)
            for worker in workers:
                worker.begin(job)
                selector.register(worker.output, selectors.EVENT_READ, worker)

        start(shares)
        while selector.get_map():
            for key_, _ in selector.select():
                worker = key_.data
                content = os.read(worker.output, 1 << 16)
                yield from worker.lines(content)
                if content:
                    continue
                selector.unregister(worker.output)
                ending = worker.ending()
                worker.close()
                if worker.files:
                    name, _ = worker.files.popleft()
                    graded = unread(shown(name), f"reading it ended the process that did ({ending})")
                    yield line_of(Head.of(name, None, graded), graded)
                    if worker.files:
                        start([list(worker.files)])


class _Worker:
    """One process and the files that it has not answered for."""

    def __init__(self, files: Sequence[File]):
        self.files = deque(files)
        self._rest = b""
        self._ready = False
        self._errors = os.memfd_create("errors", os.MFD_CLOEXEC)
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            process_group=0,  # Ctrl-C is for the grader, which ends its workers
        )
        self.output = self._process.stdout.fileno()

    def close(self) -> None:
        """End the process, whatever it is at. May be called again."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        if self._errors >= 0:
            os.close(self._errors)
            self._errors = -1

    def begin(self, job: Mapping[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:  # it says why itself
            pipe.write(json.dumps({**job, "files": list(self.files)}).encode())

    def lines(self, content: bytes) -> Iterator[bytes]:
        """The whole lines in what has come."""
        *whole, self._rest = (self._rest + content).split(b"\n")
        for line in whole:
            if not self._ready:
                self._ready = True
                continue
            self.files.popleft()
            yield line + b"\n"

    def ending(self) -> str:
        """How the process ended. ``GradingError`` if it never began."""
        code = self._process.wait()
        if not self._ready:
            said = os.pread(self._errors, 4096, max(0, os.fstat(self._errors).st_size - 4096)).decode(errors="replace")
            last = (said.strip().splitlines() or [f"it ended with {code}"])[-1]
            raise GradingError(f"the process that reads the files cannot start: {last}")
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"
