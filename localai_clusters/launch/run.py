"""One run: its folder, its guard, what its ranks have reached, and how it ended.

<state>/localai-clusters/runs/<run id>/
    run.json      the plan and each agent's argv
    node0.log     torchrun's own output        guard.jsonl   starts, exits, how it was ended
    rank0.log     the rank's whole output      rank0.jsonl   the steps it reached, what it holds

A run holds one node's share of a plan (--node-rank), or, on nodes made by launch.nodes, all of them.
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from localai_clusters.errors import PlainError
from localai_clusters.launch import journal, leftovers, processes
from localai_clusters.plan import ServePlan

if TYPE_CHECKING:
    from localai_clusters.launch.nodes import Nodes

SECONDS_TO_STOP = 5.0
LEAST_FREE_BYTES = 32 << 20  # a start writes some 100 kB of logs, a day of serving more
# In the order in which a rank reaches them, with what a person is shown.
STEPS = {
    "python": "starting Python",
    # in preflight --live (launch/live/job.py), instead of what follows
    "torch": "importing torch",
    "roll-call": "answering the roll call",
    "reach": "connecting to the other nodes",
    "all-reduce": "checking the all-reduce",
    "latency": "measuring latency and bandwidth",
    "measured": "measured",
    # in serve
    "import": "importing vLLM",
    "flags": "reading its flags",
    "listen": "opening the server's port",
    "config": "reading the model's configuration",
    "tokenizer": "loading the tokenizer",
    "build": "building its engine",
    "rendezvous": "joining the process group",
    "weights": "loading its weights",
    "weights-loaded": "weights loaded",
    "kv-cache": "allocating its KV cache",
    "engine": "engine built",
    "http": "starting the HTTP server",
    "ready": "ready",
    "failed": "failed",
}


class LaunchError(PlainError, RuntimeError):
    """A run did not start or did not live; the message names the rank, the cause and where the log is."""

    def __init__(self, message: str, run_dir: Path | None = None):
        super().__init__(message)
        self.run_dir = run_dir


@dataclass(frozen=True, slots=True)
class Rank:
    """What a rank has said of itself so far. ``facts`` is what it measured once its engine was built."""

    rank: int
    pid: int | None
    step: str | None
    times: dict[str, float]  # step -> Unix time
    facts: dict[str, Any]


def runs_dir() -> Path:
    return platformdirs.user_state_path("localai-clusters") / "runs"


class Run:
    """A started run. Ends with ``stop()``, or by itself when this process ends."""

    def __init__(
        self,
        plan: ServePlan,
        environment: dict[str, str] | None = None,
        argv: Sequence[str] | Callable[[int], Sequence[str]] | None = None,
        *,
        node_rank: int = 0,
        nodes: "Nodes | None" = None,
    ):
        """Start torchrun's agent for ``node_rank`` of ``plan``, with ``environment`` on top of this process's own.

        With ``nodes``, nodes of this machine, every one's agent is started, each inside its node. ``argv`` runs
        another command in the agent's place (bench/ measures ``vllm serve`` under the same guard); a function of
        the node rank gives every node its own.

        Raises ``LaunchError`` if the run's folder cannot be written or the guard does not start.
        """
        plan.check_node_rank(node_rank)
        self.plan, self.nodes = plan, nodes
        self.node_ranks = range(plan.nnodes) if nodes else range(node_rank, node_rank + 1)
        leftovers.sweep(runs_dir())
        self.id = time.strftime("%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(3)
        self.dir = runs_dir() / self.id
        self.started_at = time.time()
        sockets = tempfile.mkdtemp(prefix="lac-")  # a Unix socket's path has room for 107 characters
        try:
            self.dir.mkdir(parents=True)
            if shutil.disk_usage(self.dir).free < LEAST_FREE_BYTES:
                raise OSError(errno.ENOSPC, f"less than {LEAST_FREE_BYTES >> 20} MiB free for logs; set XDG_STATE_HOME")
            self._write_spec(sockets, argv)
            # By inheritance and not through a file: the environment may hold secrets.
            env = {**os.environ, **(environment or {}), "LAC_RUN_ID": self.id, "LAC_RUN_DIR": str(self.dir)}
            env["VLLM_RPC_BASE_PATH"] = sockets
            # Sets and dictionaries in the same order on every rank of every node; Python's own seed is random.
            env.setdefault("PYTHONHASHSEED", str(zlib.crc32(json.dumps(plan.to_dict()).encode())))
            with open(self.dir / "guard.log", "ab") as log:
                self._guard = subprocess.Popen(
                    [sys.executable, "-m", "localai_clusters.launch.guard", str(self.dir)],
                    env=env,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # a Ctrl-C reaches the launcher, which stops the guard
                )
        except OSError as error:
            shutil.rmtree(sockets, ignore_errors=True)
            raise LaunchError(f"cannot start a run in {self.dir}: {error.strerror or error}") from error

    def _write_spec(self, sockets: str, argv: Sequence[str] | Callable[[int], Sequence[str]] | None) -> None:
        agents, helpers = [], []
        for node in self.node_ranks:
            logs = f"--log-dir={self.dir / 'torchrun'}"  # its default is a new folder in /tmp, which stays
            torchrun = [sys.executable, "-m", "torch.distributed.run", logs, *self.plan.argv(node)[1:]]
            agent = list(argv(node) if callable(argv) else argv or torchrun)
            agents.append({"node_rank": node, "argv": self.nodes.enter(node, agent) if self.nodes else agent})
        if self.nodes and (forward := self.nodes.forward(self.plan.port, self.plan.port)):
            helpers.append(forward)
        spec = {
            "run_id": self.id,
            "plan": self.plan.to_dict(),
            "socket_dir": sockets,
            "agents": agents,
            "helpers": helpers,
            "shm": sorted({str(node.shm) for node in self.nodes.nodes} if self.nodes else {str(processes.SHM)}),
        }
        (self.dir / "run.json").write_text(json.dumps(spec, indent=1), encoding="utf-8")

    def is_running(self) -> bool:
        return self._guard.poll() is None

    def ranks(self) -> list[Rank]:
        """What each rank has reached, in rank order; ranks that said nothing yet included.

        A run of node 0 knows the ranks of other machines once their engines are built; any other node its own only.
        """
        ranks = range(self.plan.world_size) if 0 in self.node_ranks else self.plan.node_ranks(self.node_ranks[0])
        return [read_rank(self.dir, rank) for rank in ranks]

    def node_of(self, rank: int) -> str:
        """``node 1 (its hostname)`` of a rank that was started here; the plain number where there is one node."""
        node = rank // self.plan.nproc_per_node
        host = self.nodes.nodes[node].hostname if self.nodes else socket.gethostname()
        return f"node {node} ({host})" if node in self.node_ranks else f"node {node}"

    def node_of_agent(self, pid: int) -> str:
        started = next((event for event in self.events() if event["event"] == "started"), {"agents": {}})
        node = started["agents"].get(str(pid), 0)
        return self.node_of(node * self.plan.nproc_per_node)

    def log(self, rank: int) -> Path:
        return self.dir / f"rank{rank}.log"

    def events(self) -> list[dict[str, Any]]:
        """What the guard reported."""
        return journal.read(self.dir / "guard.jsonl")

    def stop(self) -> None:
        """End every process of the run; at most ``SECONDS_TO_STOP``. Harmless when it has ended already."""
        with contextlib.suppress(OSError):
            self._guard.stdin.close()
        try:
            self._guard.wait(timeout=SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:  # a stuck guard: the kernel kills agents and ranks with it
            self._guard.kill()
            self._guard.wait()
        leftovers.sweep_run(self.dir)


def read_rank(run_dir: Path, rank: int) -> Rank:
    lines = journal.read(run_dir / f"rank{rank}.jsonl")
    times = {line["step"]: line["time"] for line in lines}
    facts: dict[str, Any] = {}
    for line in lines:
        facts |= {key: value for key, value in line.items() if key not in ("time", "rank", "pid", "step")}
    last = lines[-1] if lines else {}
    return Rank(rank, last.get("pid"), last.get("step"), times, facts)
