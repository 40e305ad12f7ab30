"""The process that holds a run: ``python -m localai_clusters.launch.guard RUN_DIR``.

It starts the torchrun agents that ``run.json`` names and ends the whole run when

- its standard input closes or its parent changes (the launcher stopped it, or died: a killed kernel
  cannot tidy up, but the kernel closes its pipes),
- an agent or a helper exits, or a rank is gone and its agent has not followed within a few seconds,
- it gets SIGTERM, SIGINT or SIGHUP.

A rank or an agent that was stopped by a signal and does not go on is killed; the rest follows from that.

Ending means: SIGTERM to the agents, which pass it on; SIGKILL to every descendant that is left after
``SECONDS_OF_GRACE``; the run's shared memory and sockets removed. The guard adopts orphans, so a rank
whose agent was killed is still its descendant. If the guard itself is killed, the kernel kills the
agents and, with them, the ranks; what stays in /dev/shm is removed when the next run starts (leftovers.py).

What happened is appended to ``guard.jsonl``.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from localai_clusters.launch import journal, processes

SECONDS_OF_GRACE = 2.5
SECONDS_FOR_AGENT = 4.0  # torchrun notices a dead rank in 0.1 s and stops the others; a stuck one takes it 30 s
SECONDS_STOPPED = 3.0
ATTEMPTS_TO_KILL = 10  # a process in uninterruptible sleep cannot be killed at all
POLL_SECONDS = 0.1


class Guard:
    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self.agents: dict[int, int] = {}  # pid -> node rank
        self.exited: dict[int, int] = {}  # node rank -> exit code, negative for a signal
        self._signal: int | None = None
        self._ranks_seen: set[int] = set()
        self._rank_gone_at: float | None = None
        self._ending = False
        self._stopped_since: dict[int, float] = {}
        self._helpers: list[subprocess.Popen] = []
        self._out_of_memory_kills = processes.out_of_memory_kills()
        self._shm = [processes.SHM]

    def report(self, event: str, **facts) -> None:
        with contextlib.suppress(OSError):  # a full disk must not stop the tidying
            journal.append(self.run_dir / "guard.jsonl", event=event, **facts)

    def start(self, spec: dict) -> None:
        self._shm = [Path(folder) for folder in spec["shm"]]
        for helper in spec["helpers"]:
            self._helpers.append(self._popen(helper, "helpers.log"))
        for agent in spec["agents"]:
            process = self._popen(agent["argv"], f"node{agent['node_rank']}.log")
            self.agents[process.pid] = agent["node_rank"]
        self.report("started", pid=os.getpid(), started_at=processes.started_at(os.getpid()), agents=self.agents)

    def _popen(self, argv: list[str], log: str) -> subprocess.Popen:
        with open(self.run_dir / log, "ab") as file:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=processes.die_with_parent,
            )

    def watch(self) -> str:
        """Wait for a reason to end the run, and return it."""
        launcher, helper_gone = os.getppid(), False  # with its whole node, perhaps: then its agent is gone too
        while True:
            readable, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
            if readable and not os.read(sys.stdin.fileno(), 1024):
                return "the launcher closed it"
            if os.getppid() != launcher:
                return "the launcher is gone"
            if self._signal is not None:
                return f"it got {signal.Signals(self._signal).name}"
            self._reap()
            if helper_gone and not self.exited:
                return "the way into node 0 is gone: its forwarder ended"
            if self.exited:
                node, code = next(iter(self.exited.items()))
                return f"torchrun's agent on node {node} exited with {code}"
            if not all(processes.alive(helper.pid) for helper in self._helpers):
                helper_gone = True
                continue
            ranks = {child for agent in self.agents for child in processes.children(agent)}
            if self._agent_overdue(ranks):
                return "a rank is gone and torchrun's agent did not end the others"
            if stopped := self._stopped({*ranks, *self.agents}):
                self.report("stopped-process", pid=stopped, seconds=SECONDS_STOPPED)
                processes.send([stopped], signal.SIGKILL)  # a rank that is gone is something the others can answer for

    def _reap(self) -> None:
        """Collect exit codes of agents, and of orphans this process adopted."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.agents:
                self.exited[self.agents[pid]] = os.waitstatus_to_exitcode(status)
                event = "agent-ended" if self._ending else "agent-exit"
                self.report(event, node_rank=self.agents[pid], code=self.exited[self.agents[pid]])

    def _stopped(self, pids: set[int]) -> int | None:
        """The process among ``pids`` that has been stopped for too long."""
        now = time.monotonic()
        stopped = [pid for pid in pids if processes.is_stopped(pid)]
        self._stopped_since = {pid: self._stopped_since.get(pid, now) for pid in stopped}
        return next((pid for pid, since in self._stopped_since.items() if now - since > SECONDS_STOPPED), None)

    def _agent_overdue(self, ranks: set[int]) -> bool:
        if self._ranks_seen - ranks and self._rank_gone_at is None:
            self._rank_gone_at = time.monotonic()
            self.report("rank-gone", pids=sorted(self._ranks_seen - ranks))
        self._ranks_seen |= ranks
        return self._rank_gone_at is not None and time.monotonic() - self._rank_gone_at > SECONDS_FOR_AGENT

    def end(self, reason: str) -> None:
        self._ending = True
        if processes.out_of_memory_kills() > self._out_of_memory_kills:
            self.report("oom-kill")
        everything = processes.descendants(os.getpid())
        segments = processes.shared_memory(everything)
        processes.send((pid for pid in self.agents if pid in everything), signal.SIGTERM)
        deadline = time.monotonic() + SECONDS_OF_GRACE
        helpers = {helper.pid for helper in self._helpers}  # they end last: answers pass through them
        while set(processes.descendants(os.getpid())) - helpers and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.02)
        left = processes.descendants(os.getpid())
        killed = sorted(set(left) - helpers)
        for _ in range(ATTEMPTS_TO_KILL):  # a process may fork while it is being killed, so look again
            if not left:
                break
            processes.send(left, signal.SIGKILL)
            processes.wait_until_gone(left, 0.5)
            self._reap()
            left = processes.descendants(os.getpid())
        self._reap()
        removed = processes.remove_shared_memory(segments | segments_of(self.run_dir, self._shm), self._shm)
        self.report("stopped", reason=reason, killed=killed, alive=left, shared_memory_removed=sorted(removed))

    def on_signal(self, signum: int, _frame) -> None:
        self._signal = signum


def segments_of(run_dir: Path, folders: Iterable[Path]) -> set[str]:
    """Shared memory of a run whose ranks may be gone: named after it (serving.executor.init_method), or reported."""
    named = {path.name for folder in folders for path in folder.glob(f"lac-{run_dir.name}-*")}
    lines = (line for log in run_dir.glob("rank*.jsonl") for line in journal.read(log))
    return named.union(*(line.get("shared_memory", ()) for line in lines))


def main() -> None:
    run_dir = Path(sys.argv[1])
    spec = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    guard = Guard(run_dir)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, guard.on_signal)
    processes.adopt_orphans()
    reason = "it could not start torchrun"
    try:
        guard.start(spec)
        reason = guard.watch()
    except Exception as error:
        reason = f"{reason}: {error}"
    finally:
        guard.end(reason)
        shutil.rmtree(spec["socket_dir"], ignore_errors=True)


if __name__ == "__main__":
    main()
