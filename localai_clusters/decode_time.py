"""Where the time of a token goes: the messages between ranks, measured, and what splits and what does not.

    messages = communication(ServePlan(tensor_parallel_size=2))     # starts the ranks for some seconds, without vLLM
    print(messages.cost)                                            # 61 all-reduces per token: 0.24 ms
    model = DecodeTime.fit(alone=0.031, split=0.022, messages=messages.seconds)
    model.seconds(2, larger=4)                                      # with four times the weights

The model is Amdahl's law with a price for talking: t(n) = fixed + work / n + messages. ``work`` is what n ranks share,
reading the weights above all; ``fixed`` is what each of them does again, or waits for: scheduling, sampling, the Python
of each layer, the answer's way to the client.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from localai_clusters.errors import PlainError
from localai_clusters.launch.live.measurement import ALL_REDUCE, Measurement, TokenCost, duration, size, token_bytes
from localai_clusters.launch.live.probe import live
from localai_clusters.models import look_up
from localai_clusters.observed import Collective
from localai_clusters.plan import ServePlan
from localai_clusters.sweep_result import Sweep
from localai_clusters.tables import Table

if TYPE_CHECKING:
    from localai_clusters.launch.nodes import Nodes


class NoMessages(PlainError, RuntimeError):
    """The ranks' messages could not be measured; the message says why."""


@dataclass(frozen=True, slots=True)
class Communication:
    """What ``plan``'s ranks send each other for one token of one request, each message as long as it was measured."""

    plan: ServePlan
    cost: TokenCost
    measurements: tuple[Measurement, ...]
    of_a_token: int  # bytes of one all-reduce

    @property
    def seconds(self) -> float:
        """Of one token: a floor, for nothing is computed meanwhile and the logits' gathering is left out."""
        return self.cost.seconds

    @property
    def all_reduce_seconds(self) -> float | None:
        """One all-reduce of one token's hidden state, the median; None where the plan has none."""
        found = [m.median for m in self.measurements if (m.operation, m.nbytes) == (ALL_REDUCE, self.of_a_token)]
        return max(found, default=None)

    def collectives(self) -> tuple[Collective, ...]:
        """For ``record(collectives=...)``."""
        return tuple(
            Collective(self.plan.label, m.operation, m.nbytes, m.median, m.bus_bandwidth, self.plan.nnodes)
            for m in self.measurements
        )

    def _table(self) -> Table:
        rows = tuple(
            (m.operation, m.transport, size(m.nbytes), str(m.count), duration(m.median), duration(m.p99))
            for m in self.measurements
        )
        title = f"Messages between the ranks of {self.plan.label}, one after another"
        return Table(title, ("message", "through", "size", "times", "median", "p99"), rows)

    def __str__(self) -> str:
        return str(self._table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()


def communication(
    plan: ServePlan,
    *,
    cores: int | None = None,
    nodes: "Nodes | None" = None,
    skip_checks: Sequence[str] = (),
    on_progress: Callable[[str], None] | None = None,
) -> Communication:
    """Start ``plan``'s ranks for some seconds, without vLLM, and time their messages (``lac.live``).

    ``cores`` and ``skip_checks`` as for a sweep. Raises ``NoMessages`` for a plan of one rank, one that is refused, and
    a model whose shape is not known here.
    """
    from localai_clusters.sweeping import known, on_cores

    if plan.split_size == 1:
        raise NoMessages(f"{plan.label} is one rank: it sends nothing; measure a plan with two or more")
    plan = plan.with_(port=0, master_port=0)
    with on_cores(cores):
        report = live(plan, nodes=nodes, skip_checks=known(skip_checks, plan), on_progress=on_progress)
    shape = look_up(plan.model)
    if report.cost is None or shape is None:
        reasons = [f"{verdict.check}: {verdict.message}" for verdict in report.report.failed]
        why = "; ".join(reasons) or f"the shape of {plan.model} is not known on this machine; serve it once"
        raise NoMessages(f"{plan.label}: its messages were not measured. {why}")
    return Communication(plan, report.cost, report.measurements, token_bytes(plan, shape))


@dataclass(frozen=True, slots=True)
class DecodeTime:
    """Seconds per token of one request at a time: ``fixed + larger x work / ranks + messages``."""

    fixed: float
    work: float
    messages: float

    @classmethod
    def fit(cls, alone: float, split: float, messages: float, ranks: int = 2) -> "DecodeTime":
        """From one rank on one device and ``ranks`` ranks on as many: two times, so two unknowns.

        alone = fixed + work, split = fixed + work / ranks + messages. Negative where the measured times are further
        apart by noise than by the split.
        """
        work = (alone - split + messages) * ranks / (ranks - 1)
        return cls(fixed=alone - work, work=work, messages=messages)

    def seconds(self, ranks: int, larger: float = 1.0, messages: float | None = None) -> float:
        """With weights ``larger`` times as large; ``messages`` in place of those that were measured."""
        between = 0.0 if ranks == 1 else self.messages if messages is None else messages
        return self.fixed + larger * self.work / ranks + between

    def speedup(self, ranks: int = 2, larger: float = 1.0) -> float:
        """One rank's time over that of ``ranks``; with ``larger`` without bound it comes near ``ranks``."""
        return self.seconds(1, larger) / self.seconds(ranks, larger)

    def larger_for(self, speedup: float, ranks: int = 2) -> float:
        """How many times larger the weights have to be for this speedup. ``ValueError`` for one out of reach.

        fixed + k work = speedup (fixed + k work / ranks + messages), solved for k. That the layers are as many, only
        wider, and messages cost the same, is assumed: a small message's price is its latency, not its size.
        """
        if not 0 < speedup < ranks:
            raise ValueError(f"{ranks} ranks are never {speedup:g} times as fast as one; ask for less than {ranks}")
        return ((speedup - 1) * self.fixed + speedup * self.messages) / (self.work * (1 - speedup / ranks))


def where_it_goes(found: Sweep, messages: Mapping[str, Communication]) -> Table:
    """Per split, with one request at a time: the time between tokens as measured, and what of it the messages explain.

    ``messages`` by the sweep's names. Splits without a time are left out.
    """
    rows, fewest = [], min(found.concurrency)
    for name in found.names:
        between, sent = found.itl(name, fewest), messages.get(name)
        if between is None:
            continue
        cells = ("–", "–", "0 ms", "0%")
        if sent:
            each = sent.all_reduce_seconds
            share = f"{min(1.0, sent.seconds / between):.0%}"
            cells = (str(sent.cost.all_reduces or "–"), duration(each) if each else "–", duration(sent.seconds), share)
        rows.append((name, f"{between * 1e3:.1f} ms", *cells))
    header = ("split", "between tokens", "all-reduces", "each, measured alone", "messages of a token", "share")
    return Table("Where the time of a token goes, one request at a time", header, tuple(rows))
