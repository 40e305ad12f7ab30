"""Ends everything that belongs to a set of nodes, whoever died before: programs inside, forwarders, holders, the relay.

The kernel removes a namespace with its last process, and interfaces and mounts with their namespace.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

from localai_clusters.launch import processes
from localai_clusters.launch.nodes.state import NodesError, State

SECONDS_OF_GRACE = 2.0  # for programs inside, between SIGTERM and SIGKILL
SECONDS_TO_DIE = 5.0


def end(state: State) -> None:
    """Returns when nothing is left. Raises ``NodesError`` if a process cannot be killed."""
    inside = programs(state)
    processes.send(inside, signal.SIGTERM)
    processes.send(inside, signal.SIGCONT)  # a stopped one hears nothing
    processes.wait_until_gone(inside, SECONDS_OF_GRACE)
    deadline = time.monotonic() + SECONDS_TO_DIE
    while left := programs(state):  # before the holders, who tell which networks are ours; and again: it may fork
        _kill(left, deadline)
    end_helpers(state)


def end_helpers(state: State, module: str | None = None) -> None:
    deadline = time.monotonic() + SECONDS_TO_DIE
    while left := helpers(state, module):
        _kill(left, deadline)


def _kill(pids: list[int], deadline: float) -> None:
    processes.send(pids, signal.SIGKILL)
    left = processes.wait_until_gone(pids, 0.5)
    if left and time.monotonic() > deadline:
        listed = ",".join(map(str, left))
        raise NodesError(f"processes of the nodes cannot be killed; type: ps -o pid,stat,wchan,args -p {listed}")


def helpers(state: State, module: str | None = None) -> list[int]:
    """Holders, relay, forwarders (or only ``module``): what was started with the nodes' token as an argument."""
    token, found = state.token.encode(), []
    for pid in _others():
        with contextlib.suppress(OSError):
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if token in arguments and (module is None or f"{__package__}.{module}".encode() in arguments):
                found.append(pid)
    return [pid for pid in found if processes.alive(pid)]


def programs(state: State) -> list[int]:
    """Every other process in the network of a node or the switch."""
    # The number of a dead network may be another's by now: such a process must also have our /etc/hosts.
    certain = {holder.net for holder in state.holders if holder.alive}
    possible, ours, found = {holder.net for holder in state.holders}, set(helpers(state)), []
    for pid in _others():
        with contextlib.suppress(OSError):
            network = os.stat(f"/proc/{pid}/ns/net").st_ino
            if network in certain or (network in possible and _names_token(pid, state.token)):
                found.append(pid)
    return [pid for pid in found if pid not in ours and processes.alive(pid)]


def _names_token(pid: int, token: str) -> bool:
    return token in Path(f"/proc/{pid}/root/etc/hosts").read_text(encoding="utf-8", errors="replace")


def _others() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid()]
