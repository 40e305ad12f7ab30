"""What crosses the link between a server's nodes while it generates, by node and by what it is.

    with lac.traffic(server, nodes) as counted:
        server.complete("The capital of France is")
    print(counted)

Counted are frames on each node's interface, by the kernel. Named beside them are

- the payload that cost.py predicts: for each token generated, and the hidden states of each prompt's tokens;
- the heads of frames: Ethernet 14, IPv4 20, TCP 20 and its timestamps 12 bytes, acknowledgements being heads alone;
- what crosses while nothing is generated (the heartbeat), as measured for a moment before;
- the envelopes that Gloo puts around each message of an all-reduce, its "ready" messages included;
- and the rest: rank 0's list of what each step is, the token on its way back, and what is wrong with the prediction.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localai_clusters import cost
from localai_clusters.errors import PlainError
from localai_clusters.launch.placing import link_of
from localai_clusters.links import Link, between_nodes
from localai_clusters.machine.network import interface_towards
from localai_clusters.observed import Traffic
from localai_clusters.plan import ServePlan
from localai_clusters.tables import Table

if TYPE_CHECKING:
    from localai_clusters.launch.nodes import LinkCounters, Nodes
    from localai_clusters.server import Server

HEAD_BYTES = 14 + 20 + 20 + 12  # of a frame: Ethernet, IPv4, TCP, TCP's timestamps
# Of Gloo around each message (gloo/transport/tcp/pair.h), and how many of them, "ready" and data, one of two ranks
# sends for an all-reduce: counted, 576 bytes besides message and heads whatever the message's size.
ENVELOPE_BYTES, ENVELOPES = 48, 12
IDLE_SECONDS = 1.0
INDENT = 3 * "\N{NO-BREAK SPACE}"  # that HTML keeps
# vLLM's counters (/metrics) and what they are called here.
METRICS = {
    "generated": "vllm:generation_tokens_total",
    "prompt": "vllm:prompt_tokens_total",
    "cached": "vllm:prefix_cache_hits_total",
    "requests": "vllm:request_success_total",
    "steps": "vllm:iteration_tokens_total_count",
}


class TrafficError(PlainError, ValueError):
    """There is no link whose traffic could be counted; the message says which server has one."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What one node sent: frames and their bytes, heads included."""

    frames: int
    bytes: int

    def since(self, before: "Sent") -> "Sent":
        return Sent(self.frames - before.frames, self.bytes - before.bytes)


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes that each node sent for one purpose, in all."""

    name: str
    bytes_sent: tuple[float, ...]


class Counted:
    """A ``with`` block in which a server's traffic is counted; afterwards what was counted, which shows itself.

    ``sent`` is by node, None where nothing can be counted (``why_not`` says why). ``observed`` is for ``record``.
    """

    def __init__(self, server: "Server", nodes: "Nodes | None", idle_seconds: float):
        self.run_id, self.plan, self.layout = server.run.id, server.plan, server.plan.label
        self.rate_mbit, self.delay_ms, self.link = _link(server, nodes)
        self.sent: tuple[Sent, ...] | None = None
        self.why_not, self.where = "", ""
        self.seconds = 0.0
        self.output_tokens = self.prompt_tokens = self.requests = self.steps = 0
        self.predicted = predicted_cost(server, self.link, len(nodes.nodes) if nodes else 1)
        self.all_reduces = (
            2 * server.model.shape.num_hidden_layers + 1 if _is_gloo_between_two(server) else 0
        )  # per step
        self._server, self._nodes, self._idle_seconds = server, nodes, idle_seconds
        self._idle: tuple[float, ...] = ()  # bytes per second, heads included
        self._idle_frames: tuple[float, ...] = ()

    def __enter__(self) -> "Counted":
        if self._read() is not None and self._idle_seconds:
            before = generated(self._server)
            # The quieter half: frames of what was asked for just before may still be under way.
            rates = min((self._listen(self._idle_seconds / 2) for _ in range(2)), key=lambda both: sum(both[0]))
            if generated(self._server) == before:  # else it was not idle, and nothing is known of it
                self._idle, self._idle_frames = rates
        self._metrics, self._sent, self._began = metrics(self._server), self._read(), time.perf_counter()
        return self

    def _listen(self, seconds: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Bytes and frames per second of each node, over ``seconds``."""
        started, began = self._read(), time.perf_counter()
        time.sleep(seconds)
        ended, passed = self._read(), time.perf_counter() - began
        added = [after.since(then) for after, then in zip(ended, started, strict=True)]
        return tuple(each.bytes / passed for each in added), tuple(each.frames / passed for each in added)

    def __exit__(self, kind, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began
        if kind is not None:  # the block failed, perhaps because the server did
            return
        sent, now = self._read(), metrics(self._server)
        added = {name: now[name] - self._metrics[name] for name in METRICS}
        self.output_tokens, self.requests, self.steps = added["generated"], added["requests"], added["steps"]
        self.prompt_tokens = added["prompt"] - added["cached"]
        if sent is not None and self._sent is not None:
            self.sent = tuple(after.since(then) for after, then in zip(sent, self._sent, strict=True))

    def _read(self) -> tuple[Sent, ...] | None:
        if self._nodes is not None and self._nodes.carried_by is None:
            self.why_not = "loopback addresses share one interface, so nothing can be counted between the nodes"
            return None
        if self._nodes is not None:
            self.where = "counted on each node's interface"
            return tuple(_sent_by(counter) for counter in self._nodes.counters())
        if self.plan.nnodes != 2:
            self.why_not = f"{self.plan.nnodes} machines: this one's interface does not tell which node sent what"
            return None
        name = interface_of(self.plan)
        self.where = f"counted on {name} of this machine alone, with whatever else uses it; node 1 is what came in"
        return read_interface(name)

    @property
    def milliseconds_per_token(self) -> float | None:
        return self.seconds / self.output_tokens * 1e3 if self.output_tokens else None

    @property
    def tokens_per_second(self) -> float | None:
        return self.output_tokens / self.seconds if self.output_tokens else None

    @property
    def frames_per_token(self) -> float | None:
        """Of the node that sent most."""
        return max(node.frames for node in self.sent) / self.output_tokens if self.sent and self.output_tokens else None

    @property
    def bytes_per_token(self) -> float | None:
        """Of the node that sent most, with heads and all."""
        return max(node.bytes for node in self.sent) / self.output_tokens if self.sent and self.output_tokens else None

    @property
    def observed(self) -> Traffic | None:
        """For ``record(traffic=[...])``; None if nothing was counted or generated."""
        if self.sent is None or not self.output_tokens:
            return None
        return Traffic(
            run_id=self.run_id,
            layout=self.layout,
            output_tokens=self.output_tokens,
            seconds=self.seconds,
            bytes_sent=tuple(node.bytes for node in self.sent),
            rate_mbit=self.rate_mbit,
            delay_ms=self.delay_ms,
            predicted_bytes_per_token=self.predicted.bytes_on_the_wire if self.predicted else None,
        )

    def parts(self) -> tuple[Part, ...]:
        """What each node's bytes were, in all; the last part is what the others leave."""
        if self.sent is None:
            return ()
        heads = tuple(HEAD_BYTES * node.frames for node in self.sent)
        parts = [Part("heads of frames", heads)]
        if self._idle:
            idle = [
                max(0.0, count - HEAD_BYTES * frames) * self.seconds
                for count, frames in zip(self._idle, self._idle_frames, strict=True)
            ]
            parts.append(Part("beats (as when idle)", tuple(idle)))
        if self.all_reduces:
            envelopes = self.steps * self.all_reduces * ENVELOPES * ENVELOPE_BYTES
            parts.insert(0, Part("envelopes of all-reduces", tuple(envelopes for _ in self.sent)))
        if self.predicted:
            later = max(0, self.prompt_tokens - self.requests)  # a prompt's last token is what the first output costs
            shares = senders(self.plan)
            payload = self.output_tokens * self.predicted.bytes_on_the_wire
            prompts = later * self.predicted.hidden_bytes_on_the_wire
            parts.insert(0, Part("payload of the prompts", tuple(share * prompts for share in shares)))
            parts.insert(0, Part("payload of the tokens", tuple(share * payload for share in shares)))
        named = [sum(part.bytes_sent[node] for part in parts) for node in range(len(self.sent))]
        rest = tuple(node.bytes - name for node, name in zip(self.sent, named, strict=True))
        return (*parts, Part("the rest", rest))

    def per_token(self, node: int = 0) -> dict[str, float]:
        """One node's parts in bytes for each token generated, none below 0: for a plot."""
        return {part.name: max(0.0, part.bytes_sent[node]) / max(1, self.output_tokens) for part in self.parts()}

    def _title(self) -> str:
        link = f" ({self.link.name})" if self.link else ""
        speed = f", {self.milliseconds_per_token:.0f} ms each" if self.output_tokens else ""
        return f"{self.layout} over the link{link}: {self.output_tokens} tokens in {self.seconds:.1f} s{speed}"

    def _table(self) -> Table:
        tokens = max(1, self.output_tokens)
        header = ("for each token generated", *(f"node {node} sent" for node in range(len(self.sent or ()))))
        rows: list[tuple[str, ...]] = []
        if self.sent is not None:
            rows.append(("frames", *(f"{node.frames / tokens:,.1f}" for node in self.sent)))
            rows.append(("bytes", *(f"{node.bytes / tokens:,.0f}" for node in self.sent)))
            parts = self.parts()
            rows += [
                (f"{INDENT}{part.name}", *(f"{count / tokens:,.0f}" for count in part.bytes_sent)) for part in parts
            ]
        return Table(self._title(), header, tuple(rows))

    def __str__(self) -> str:
        if self.sent is None:
            return f"{self._title()}\n{self.why_not or 'nothing was counted'}"
        return f"{self._table()}\n{self.where}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        import html

        if self.sent is None:
            return f"<p><b>{html.escape(self._title())}</b><br>{html.escape(self.why_not or 'nothing was counted')}</p>"
        return f"{self._table()._repr_html_()}<p>{html.escape(self.where)}</p>"


def traffic(server: "Server", nodes: "Nodes | None" = None, *, idle_seconds: float = IDLE_SECONDS) -> Counted:
    """Count what ``server``'s nodes send each other in a ``with`` block, after ``idle_seconds`` of listening.

    ``nodes`` are those of this machine on which it runs; without them the server's nodes are machines, and this
    machine's interface is read. Tokens are the server's own count, whoever asked for them. Raises ``TrafficError`` for
    a server on one node.
    """
    if server.plan.nnodes < 2:
        advice = "count a server that has several: lac.serve(plan, nodes=nodes)"
        raise TrafficError(f"this server runs on one node, and nothing crosses a link; {advice}")
    if nodes is None and server.plan.master_addr in _addresses_up():
        raise TrafficError("this server runs on nodes of this machine; give them too: lac.traffic(server, nodes)")
    return Counted(server, nodes, idle_seconds)


def predicted_cost(server: "Server", link: Link | None, nodes_here: int) -> "cost.Cost | None":
    """None for what cost.py does not predict."""
    try:
        return cost.predict(server.plan, server.model.shape, server.machine, link, nodes_here)
    except ValueError:
        return None


def senders(plan: ServePlan) -> tuple[float, ...]:
    """How much of the predicted bytes each node sends: all of it, or a pipeline's boundaries but for the last node."""
    if groups_span_nodes(plan):
        return (1.0,) * plan.nnodes
    return (*((1 / (plan.nnodes - 1),) * (plan.nnodes - 1)), 0.0)


def groups_span_nodes(plan: ServePlan) -> bool:
    """Whether the ranks of a tensor parallel group are on more than one node."""
    size, here = plan.tensor_parallel_size, plan.nproc_per_node
    return any(first // here != (first + size - 1) // here for first in range(0, plan.split_size, size))


def metrics(server: "Server") -> dict[str, int]:
    """vLLM's counters since the server started, by the names of ``METRICS``; 0 for what it does not report."""
    text = server.metrics()
    return {
        name: int(sum(float(value) for value in re.findall(rf"^{re.escape(metric)}(?:{{.*}})? (\S+)$", text, re.M)))
        for name, metric in METRICS.items()
    }


def generated(server: "Server") -> int:
    return metrics(server)["generated"]


def interface_of(plan: ServePlan) -> str:
    """The interface of this machine towards the plan's other nodes. ``TrafficError`` if there is none."""
    found = interface_towards(plan.master_addr)
    if found is None:
        raise TrafficError(f"this machine has no way to {plan.master_addr}; look at: ip route get {plan.master_addr}")
    return found[0]


def read_interface(name: str, folder: str = "/sys/class/net") -> tuple[Sent, Sent]:
    """(sent, received) by an interface since the machine started; ``TrafficError`` if it has no counters."""
    at = Path(folder) / name / "statistics"
    try:
        packets, count, packets_in, count_in = (
            int((at / file).read_text()) for file in ("tx_packets", "tx_bytes", "rx_packets", "rx_bytes")
        )
    except (OSError, ValueError) as error:
        raise TrafficError(f"{at} cannot be read ({error}); look at: ip -s link show {name}") from error
    return Sent(packets, count), Sent(packets_in, count_in)


def _sent_by(counter: "LinkCounters") -> Sent:
    return Sent(counter.packets_sent, counter.bytes_sent)


def _link(server: "Server", nodes: "Nodes | None") -> tuple[float | None, float, Link | None]:
    """(rate in Mbit/s, delay in ms one way, the link for predictions)."""
    if nodes is not None:
        return nodes.rate_mbit, nodes.delay_ms, link_of(nodes)
    return None, 0.0, between_nodes(server.machine)


def _is_gloo_between_two(server: "Server") -> bool:
    plan = server.plan
    return server.machine.backend == "cpu" and plan.tensor_parallel_size == 2 and groups_span_nodes(plan)


def _addresses_up() -> tuple[str, ...]:
    from localai_clusters.launch.nodes import current

    found = current()
    return tuple(node.address for node in found.nodes) if found else ()
