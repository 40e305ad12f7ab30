"""Nodes that are up: entering, changing and ending them. Every change is made under the lock and written down."""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from localai_clusters.launch.nodes import counters, state, sweep
from localai_clusters.launch.nodes.counters import LinkCounters
from localai_clusters.launch.nodes.link import check_link, connect
from localai_clusters.launch.nodes.state import LOOPBACK, Node, NodesError, State

AGAIN = "type: localai-clusters nodes down, then localai-clusters nodes up"


class Nodes:
    """Nodes that are up. They stay until ``down()``, whatever becomes of the process that made them."""

    def __init__(self, found: State):
        self._state = found

    @property
    def kind(self) -> str:
        """``"namespaces"``, ``"user namespaces"`` or ``"loopback addresses"``."""
        return self._state.kind

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self._state.nodes

    @property
    def rate_mbit(self) -> float | None:
        """What each node can send, in Mbit/s; None: no limit."""
        return self._state.rate_mbit

    @property
    def delay_ms(self) -> float:
        """One way; a round trip takes twice as long."""
        return self._state.delay_ms

    @property
    def is_cut(self) -> bool:
        return self._state.is_cut

    @property
    def carried_by(self) -> str | None:
        """What carries frames between the nodes: ``"bridge"``, ``"netem"``, ``"relay"``; None on loopback."""
        return self._state.carried_by

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the nodes are not of a better kind."""
        return self._state.reasons

    def enter(self, rank: int, argv: Sequence[str]) -> list[str]:
        """The command that runs ``argv`` inside node ``rank``; it becomes ``argv``, so its pid is the program's."""
        if not 0 <= rank < len(self.nodes):
            raise NodesError(f"there is no node {rank}; there are 0 to {len(self.nodes) - 1}")
        return [sys.executable, "-m", f"{__package__}.enter", str(rank), "--", *argv]

    def forward(self, port: int, to_port: int) -> list[str] | None:
        """The command that brings connections to 127.0.0.1:``port`` of this machine to ``to_port`` of node 0.

        It ends with the process that starts it. None where nodes share the machine's network and need no such thing.
        """
        if self.kind == LOOPBACK:
            return None
        return [sys.executable, "-m", f"{__package__}.forward", str(port), str(to_port), self._state.token]

    def set_link(self, rate_mbit: float | None = None, delay_ms: float = 0.0) -> None:
        """Change rate (Mbit/s that each node can send; None: no limit) and delay (ms one way) while programs run."""
        check_link(rate_mbit, delay_ms)
        self._change(rate_mbit=rate_mbit, delay_ms=delay_ms)

    def cut(self) -> None:
        """As if the cable were cut in the middle: every interface stays up, nothing arrives."""
        self._change(is_cut=True)

    def mend(self) -> None:
        self._change(is_cut=False)

    def _change(self, **values: Any) -> None:
        if self.kind == LOOPBACK:
            raise NodesError(f"loopback addresses have no link that could be changed; {better(self.reasons)}")
        with self._locked():
            if not all(holder.alive for holder in self._state.holders):
                raise NodesError("\n".join(self.problems()))
            changed = dataclasses.replace(self._state, **values, carried_by=None, relay=None)
            state.write(changed)  # what is half done shows as such
            connect(changed)
            state.write(changed)
            self._state = changed

    @contextlib.contextmanager
    def _locked(self):
        """With the lock held, and knowing what others have changed."""
        with state.locked():
            found = state.read()
            if found is None or found.token != self._state.token:
                raise NodesError("these nodes are down; type: localai-clusters nodes up")
            self._state = found
            yield

    def counters(self) -> tuple[LinkCounters, ...]:
        """Bytes and packets of each node's interface since it was made; two readings tell what crossed between."""
        if self.kind == LOOPBACK:
            raise NodesError(f"loopback addresses share one interface, nothing is counted; {better(self.reasons)}")
        try:
            return tuple(counters.read(node) for node in self.nodes)
        except OSError as error:
            raise NodesError("\n".join(self.problems()) or f"the link cannot be read: {error}") from error

    def problems(self) -> list[str]:
        """What of it is no longer alive, and what to type; empty if all is well."""
        if self.kind == LOOPBACK:
            return []
        found = state.read()
        if found is None or found.token != self._state.token:
            return ["these nodes are down; type: localai-clusters nodes up"]
        names = [*(f"node {node.rank}" for node in found.nodes), "the switch between the nodes"]
        gone = [
            f"{name} (pid {holder.pid}) is gone; {AGAIN}"
            for name, holder in zip(names, found.holders, strict=True)
            if not holder.alive
        ]
        if gone:
            return gone
        if found.carried_by is None:
            return ["the link was left half changed; type: localai-clusters nodes link --mend"]
        if found.carried_by == "relay" and not found.is_cut and not (found.relay and found.relay.alive):
            return ["the relay is gone and nothing crosses the link; type: localai-clusters nodes link --mend"]
        return []

    def down(self) -> None:
        """End every program in the nodes, and the nodes. Harmless if they are down already."""
        with state.locked():
            found = state.read()
            if found is not None and found.token == self._state.token:
                remove(found)

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *_) -> None:
        self.down()

    def to_dict(self) -> dict[str, Any]:
        from localai_clusters.launch.nodes import view

        return view.as_dict(self)

    def __str__(self) -> str:
        from localai_clusters.launch.nodes import view

        return view.picture(self)

    __repr__ = __str__

    def __rich__(self):
        from localai_clusters.launch.nodes import view

        return view.as_rich(self)


def current() -> Nodes | None:
    """The nodes that are up, or should be (``problems()`` tells); None if there are none."""
    found = state.read()
    return Nodes(found) if found is not None and found.complete else None


def down() -> bool:
    """End what is up, or what a killed command left of it. Returns whether there was anything."""
    with state.locked():
        found = state.read()
        if found is not None:
            remove(found)
        return found is not None


def remove(found: State) -> None:
    sweep.end(found)
    state.remove()


def better(reasons: Sequence[str]) -> str:
    """What would be needed for a link of one's own."""
    return "nodes in namespaces have one" + "".join(f"\n{reason}" for reason in reasons)
