"""What is up now, in one file: ``<state>/localai-clusters/nodes.json``. A lock beside it lets one command at a time in.

Standard library and platformdirs only: every command that enters a node reads it first.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from localai_clusters.errors import PlainError
from localai_clusters.launch import processes

SECONDS_FOR_LOCK = 30.0  # starting or stopping nodes takes one to five
NAMESPACES, USER_NAMESPACES, LOOPBACK = KINDS = ("namespaces", "user namespaces", "loopback addresses")


class NodesError(PlainError, RuntimeError):
    """Nodes could not be made, changed or reached; the message says why and what to type."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node. ``pid`` is the process that holds its namespaces, 0 for a loopback address."""

    rank: int
    hostname: str
    address: str
    interface: str
    cpus: tuple[int, ...]
    pid: int

    @property
    def shm(self) -> Path:
        """The node's /dev/shm as it is seen from outside."""
        return Path(f"/proc/{self.pid}/root/dev/shm") if self.pid else processes.SHM


@dataclass(frozen=True, slots=True)
class Process:
    """A process for good: a pid is used again, a pid with its start time (kernel clock ticks) is not."""

    pid: int
    started_at: int
    net: int = 0  # inode of its network namespace

    @classmethod
    def of(cls, pid: int) -> "Process":
        return cls(pid, processes.started_at(pid), os.stat(f"/proc/{pid}/ns/net").st_ino)

    @property
    def alive(self) -> bool:
        return processes.alive(self.pid) and processes.started_at(self.pid) == self.started_at


@dataclass(slots=True)
class State:
    """``token`` is an argument of every process started for these nodes and is written in each node's /etc/hosts."""

    token: str
    kind: str
    nodes: tuple[Node, ...] = ()
    holders: tuple[Process, ...] = ()  # one per node, then the switch's
    relay: Process | None = None
    carried_by: str | None = None  # "bridge", "netem" (a bridge that delays) or "relay"
    rate_mbit: float | None = None
    delay_ms: float = 0.0
    is_cut: bool = False
    reasons: tuple[str, ...] = ()  # why it is not a better kind
    complete: bool = False  # False while the nodes are being made, and for good if that was killed

    @property
    def switch(self) -> Process:
        return self.holders[-1]


def path() -> Path:
    return platformdirs.user_state_path("localai-clusters") / "nodes.json"


def read() -> State | None:
    """What was written last, None if nothing is up. Raises ``NodesError`` for a file that is not ours."""
    try:
        data = json.loads(path().read_text(encoding="utf-8"))
        data["nodes"] = tuple(Node(**node | {"cpus": tuple(node["cpus"])}) for node in data["nodes"])
        data["holders"] = tuple(Process(**holder) for holder in data["holders"])
        data["relay"] = data["relay"] and Process(**data["relay"])
        return State(**data | {"reasons": tuple(data["reasons"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise NodesError(f"{path()} cannot be read ({error}); type: rm {path()}") from error


def read_complete() -> State:
    """As ``read``. Raises ``NodesError`` if no nodes are up."""
    state = read()
    if state is None or not state.complete:
        raise NodesError("no nodes are up; type: localai-clusters nodes up")
    return state


def write(state: State) -> None:
    """All or nothing: a reader sees the old file or the new one."""
    new = path().with_suffix(f".{os.getpid()}.new")
    try:
        new.write_text(json.dumps(_as_data(state), indent=1), encoding="utf-8")
        os.replace(new, path())
    finally:
        new.unlink(missing_ok=True)


def _as_data(state: State) -> dict[str, Any]:
    return dataclasses.asdict(state)


def remove() -> None:
    for leftover in path().parent.glob("nodes.*.new"):  # of a command killed while it wrote
        leftover.unlink(missing_ok=True)
    path().unlink(missing_ok=True)


@contextlib.contextmanager
def locked(seconds: float = SECONDS_FOR_LOCK) -> Iterator[None]:
    """Hold the lock; the kernel gives it back if this process dies. Raises ``NodesError`` if others keep it."""
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        file = open(path().with_suffix(".lock"), "a")  # noqa: SIM115 (closed below)
    except OSError as error:
        where = f"{path().parent}: {error.strerror}"
        raise NodesError(f"{where}; the nodes are noted there, set XDG_STATE_HOME to a folder you can write") from error
    with file:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise NodesError(
                        "another `localai-clusters nodes` is at work and does not end; look for it with: "
                        "pgrep -af 'localai-clusters nodes'"
                    ) from None
                time.sleep(0.05)
        yield
