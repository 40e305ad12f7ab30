"""Making nodes: the best kind that works here, with the reason for each that does not."""

import os
import secrets
import socket
from typing import Any

from localai_clusters.launch.nodes import detached, namespaces, state
from localai_clusters.launch.nodes.cluster import Nodes, remove
from localai_clusters.launch.nodes.link import check_link, connect
from localai_clusters.launch.nodes.state import KINDS, LOOPBACK, NAMESPACES, Node, NodesError, Process, State
from localai_clusters.machine import assign_cores, physical_cores

MOST_NODES = 254  # of 10.77.0.0/24
INTERFACE = "eth0"


def up(count: int = 2, *, rate_mbit: float | None = None, delay_ms: float = 0.0, kind: str | None = None) -> Nodes:
    """Make ``count`` nodes joined by a link of ``rate_mbit`` Mbit/s (None: no limit) and ``delay_ms`` ms one way.

    Of the best kind that works here, or of ``kind`` and no other. Raises ``ValueError`` for numbers that make no sense,
    ``NodesError`` if nodes are up already or cannot be made, with the reason for every kind that was tried.
    """
    if not 2 <= count <= MOST_NODES:
        raise ValueError(f"{count} nodes cannot be made; type a number from 2 to {MOST_NODES}")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"there is no kind {kind!r}; it is one of: {', '.join(KINDS)}")
    check_link(rate_mbit, delay_ms)
    with state.locked():
        before = state.read()
        if before is not None:
            if before.complete and not Nodes(before).problems():
                many = f"{len(before.nodes)} nodes are up already ({before.kind})"
                raise NodesError(f"{many}; type: localai-clusters nodes down")
            remove(before)
        reasons: list[str] = []
        for tried in (kind,) if kind else KINDS:
            try:
                return _make(tried, count, rate_mbit, delay_ms, tuple(reasons))
            except NodesError as error:
                reasons.append(f"{tried}: {error}")
        raise NodesError("nodes cannot be made here\n" + "\n".join(reasons))


def _make(kind: str, count: int, rate_mbit: float | None, delay_ms: float, reasons: tuple[str, ...]) -> Nodes:
    if kind == LOOPBACK and (rate_mbit is not None or delay_ms):
        raise NodesError("they have no link whose rate or delay could be set; leave both out, or see the reasons above")
    if kind == NAMESPACES and os.geteuid() != 0:
        raise NodesError("only root may make them")
    made = State(f"lac-nodes-{secrets.token_hex(4)}", kind, reasons=reasons, rate_mbit=rate_mbit, delay_ms=delay_ms)
    try:
        state.write(made)  # before anything is started: from here on `down` finds it
    except OSError as error:
        raise NodesError(f"{state.path()}: {error.strerror}; set XDG_STATE_HOME to a folder you can write") from error
    try:
        made.nodes = _nodes(kind, count)
        if kind != LOOPBACK:
            _start(made)
        made.complete = True
        state.write(made)
    except BaseException:  # Ctrl-C too
        remove(made)
        raise
    return Nodes(made)


def _nodes(kind: str, count: int) -> tuple[Node, ...]:
    shares = assign_cores(physical_cores(), count)
    cpus = [tuple(sorted(cpu for core in share for cpu in core)) for share in shares]
    if kind == LOOPBACK:
        name = socket.gethostname()
        return tuple(Node(rank, name, f"127.0.0.{rank + 1}", "lo", cpus[rank], 0) for rank in range(count))
    return tuple(Node(rank, f"node{rank}", f"10.77.0.{rank + 1}", INTERFACE, cpus[rank], 0) for rank in range(count))


def _start(made: State) -> None:
    """The switch's holder, then the nodes' side by side, then the link."""
    hosts = "".join(f"{node.address} {node.hostname}\n" for node in made.nodes)
    hosts = f"# {made.token}\n127.0.0.1 localhost\n::1 localhost\n{hosts}"
    started: list[detached.Starting] = []
    try:
        is_user = made.kind != NAMESPACES
        started.append(detached.Starting("holder", made.token, {"new_user": is_user}))
        switch = _ready(started[0], is_user)
        for node in made.nodes:
            spec: dict[str, Any] = {"hostname": node.hostname, "hosts": hosts}
            started.append(
                detached.Starting("holder", made.token, spec | ({"join_user_of": switch.pid} if is_user else {}))
            )
        holders = [_ready(holder, is_user) for holder in started[1:]]
        made.nodes = tuple(
            Node(n.rank, n.hostname, n.address, n.interface, n.cpus, holder.pid)
            for n, holder in zip(made.nodes, holders, strict=True)
        )
        made.holders = (*holders, switch)
        connect(made, new=True)
        for holder in started:
            holder.keep()
    finally:
        for holder in started:
            holder.close()


def _ready(holder: detached.Starting, is_user: bool) -> Process:
    try:
        return holder.ready()
    except NodesError as error:
        hint = namespaces.why_no_user_namespaces() if is_user else "a container without CAP_SYS_ADMIN forbids them"
        raise NodesError(f"{error}; {hint}") from error
