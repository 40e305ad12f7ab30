"""A launch that fails for a cause that is not told: its logs are real, and to be read."""

import contextlib
import os
import signal
import socket
import time
import zlib
from dataclasses import dataclass

from localai_clusters.breaking.attempting import SECONDS_TO_FAIL, NothingFailed
from localai_clusters.breaking.logs import LogTails, log_tails
from localai_clusters.launch.placing import with_ports
from localai_clusters.launch.ready import following, wait_until_ready
from localai_clusters.launch.run import LaunchError, Run
from localai_clusters.plan import ServePlan
from localai_clusters.progress import ProgressLine
from localai_clusters.server import prepare

KINDS = ("port-taken", "killed-at-start")
BEFORE_THEY_MEET = (None, "python", "import")


@dataclass(frozen=True, slots=True)
class Mystery:
    """A run that failed. ``kind`` and ``first_rank`` are what is to be found out."""

    run: Run
    seconds: float
    kind: str
    first_rank: int

    def tail(self, lines: int = 8) -> LogTails:
        """The last lines of each log, as they are."""
        return log_tails(self.run.dir, lines)

    def __str__(self) -> str:
        return f"a launch of {self.run.plan.world_size} ranks that ended after {self.seconds:.1f} s; its logs: .tail()"

    __repr__ = __str__


def mystery(student: str, plan: ServePlan) -> Mystery:
    """Launch ``plan``, two ranks or more, so that one rank fails and the others follow it; ``student`` decides how.

    Raises ``PreflightError`` for a plan that could not be launched, ``NothingFailed`` if nothing came of it.
    """
    kind = KINDS[zlib.crc32(student.encode()) % len(KINDS)]
    line = ProgressLine()
    with contextlib.ExitStack() as stack:
        if kind == "port-taken":
            holder = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            plan = plan.with_(port=holder.getsockname()[1])
        plan, _, _ = prepare(plan, line, ("ports", "devices"))
        run = Run(with_ports(plan))
        stack.callback(run.stop)
        victim, killed = plan.world_size - 1, []

        def is_ready(ranks) -> bool:
            if kind == "killed-at-start" and ranks[victim].step not in BEFORE_THEY_MEET and not killed:
                killed.append(ranks[victim].pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(ranks[victim].pid, signal.SIGKILL)
            return following(ranks)

        try:
            wait_until_ready(run, is_ready, lambda ranks, since: line(f"{since:3.0f} s  starting"), SECONDS_TO_FAIL)
            raise NothingFailed("the launch came up, so there is nothing to find out; try again")
        except LaunchError:
            seconds = time.time() - run.started_at
    line.done(f"it ended after {seconds:.1f} s")
    return Mystery(run, seconds, kind, 0 if kind == "port-taken" else victim)
