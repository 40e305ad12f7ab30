"""What a sweep measured: medians over its rounds, a table, figures, and data for a program."""

import csv
import html
import io
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from localai_clusters.bench import Load
from localai_clusters.errors import PlainError
from localai_clusters.plan import ServePlan
from localai_clusters.sizing import GIB
from localai_clusters.tables import Table, as_html, as_text

WIDE = 5  # times the smallest time: on a linear scale the small ones could not be told apart

if TYPE_CHECKING:
    from localai_clusters.plots import Figure
    from localai_clusters.server import Server


class NotMeasured(PlainError, LookupError):
    """A sweep was asked for a split or a concurrency that it does not hold; the message says what it does."""


@dataclass(slots=True)
class Row:
    """One split: its stopped servers, its loads by concurrency (one a round), and what went wrong, if something did."""

    name: str
    plan: ServePlan
    cores: int | None = None
    servers: list["Server"] = field(default_factory=list)
    loads: dict[int, list[Load]] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians over rounds. ``spread``: (largest - smallest tokens/s) / median, None of one round. Times in seconds."""

    tokens_per_second: float
    ttft: float
    itl: float | None
    spread: float | None


@dataclass(frozen=True, slots=True)
class Sweep:
    """Splits by name: ``sweep.tokens_per_second("TP=2", 16)``. The first split is what the others are compared with."""

    rows: tuple[Row, ...]
    concurrency: tuple[int, ...]
    rounds: int = 1
    interrupted: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(row.name for row in self.rows)

    @property
    def servers(self) -> tuple["Server", ...]:
        """All that ran, stopped: what ``record(servers=...)`` wants."""
        return tuple(server for row in self.rows for server in row.servers)

    def reason(self, name: str) -> str:
        """Why a split was not measured, or not to the end; empty if it was."""
        return self._row(name).reason

    def figures(self, name: str, concurrency: int) -> Figures | None:
        """Of one split at one concurrency; None where it was not measured."""
        if concurrency not in self.concurrency:
            measured = ", ".join(map(str, self.concurrency))
            raise NotMeasured(f"this sweep did not run {concurrency} requests at a time; it ran {measured}")
        loads = self._row(name).loads.get(concurrency)
        if not loads:
            return None
        rates = [load.tokens_per_second for load in loads]
        between = [load.itl.p50 for load in loads if load.itl]
        middle = median(rates)
        return Figures(
            middle,
            median(load.ttft.p50 for load in loads),
            median(between) if between else None,
            (max(rates) - min(rates)) / middle if len(rates) > 1 else None,
        )

    def tokens_per_second(self, name: str, concurrency: int) -> float | None:
        found = self.figures(name, concurrency)
        return found and found.tokens_per_second

    def itl(self, name: str, concurrency: int) -> float | None:
        """Seconds from one token of an answer to the next (inter-token latency)."""
        found = self.figures(name, concurrency)
        return found and found.itl

    def ttft(self, name: str, concurrency: int) -> float | None:
        """Seconds from a request sent to its first token."""
        found = self.figures(name, concurrency)
        return found and found.ttft

    def ratio(self, name: str, concurrency: int) -> float | None:
        """Tokens/s over those of the first split; None where one of the two was not measured."""
        own, first = (self.tokens_per_second(one, concurrency) for one in (name, self.names[0]))
        return own / first if own and first else None

    def best(self, concurrency: int) -> str:
        """The split with the most tokens/s. Raises ``NotMeasured`` if there is none."""
        rates = {name: rate for name in self.names if (rate := self.tokens_per_second(name, concurrency))}
        if not rates:
            raise NotMeasured(f"no split was measured with {concurrency} requests at a time")
        return max(rates, key=rates.get)

    def places(self, name: str) -> tuple[tuple[str, ...], ...]:
        """For each rank of a split the cores that it may use, or its GPU. Raises ``NotMeasured`` if it never ran."""
        servers = self._row(name).servers
        if not servers:
            raise NotMeasured(f"{name} was not served: {self.reason(name) or 'the sweep did not come so far'}")
        return tuple(_place(rank.facts, servers[0].machine.cores) for rank in servers[0].ranks())

    def where(self) -> Table:
        """Who computed where, and the memory of all ranks of each split together."""
        rows = []
        for row in self.rows:
            for server in row.servers[:1]:
                held = server.last_memory.ranks if server.last_memory else ()
                together = sum(rank.gpu or rank.resident or 0 for rank in held)
                ranks = (f"rank {n}: {' and '.join(place)}" for n, place in enumerate(self.places(row.name)))
                rows.append((row.name, f"{together / GIB:.1f} GiB" if together else "–", "; ".join(ranks)))
        return Table("Who computed where", ("split", "memory, all ranks", "where"), tuple(rows))

    def throughput(self, *names: str) -> "Figure":
        """Tokens/s against concurrency, of ``names`` or of all splits."""
        return self._lines("Throughput", "tokens/s", self.tokens_per_second, names, 1.0)

    def latency(self, *names: str) -> "Figure":
        """Milliseconds between tokens against concurrency, on a logarithmic scale if they are far apart."""
        return self._lines("Time between tokens", "ms", self.itl, names, 1e3, log_if_wide=True)

    def to_dict(self) -> dict[str, Any]:
        """Seconds, and tokens per second; one entry per load in ``loads``."""
        splits = []
        for row in self.rows:
            figures = {str(many): self.figures(row.name, many) for many in self.concurrency}
            splits.append(
                {
                    "name": row.name,
                    "plan": row.plan.to_dict(),
                    "cores": row.cores,
                    "run_ids": [server.run.id for server in row.servers],
                    "seconds_to_ready": [server.seconds_to_ready for server in row.servers],
                    "figures": {many: asdict(found) for many, found in figures.items() if found},
                    "loads": [load_to_dict(load) for loads in row.loads.values() for load in loads],
                    "reason": row.reason or None,
                }
            )
        best = {str(many): self.best(many) for many in self.concurrency if any(many in row.loads for row in self.rows)}
        return {
            "concurrency": list(self.concurrency),
            "rounds": self.rounds,
            "interrupted": self.interrupted,
            "best": best,
            "splits": splits,
        }

    def to_csv(self) -> str:
        """A line per split and concurrency; times in seconds."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        names = ("tokens_per_second", "ttft", "itl", "spread")
        writer.writerow(("split", "concurrency", *names))
        for name in self.names:
            for many in self.concurrency:
                found = self.figures(name, many)
                writer.writerow((name, many, *(getattr(found, one) if found else None for one in names)))
        return file.getvalue()

    def __str__(self) -> str:
        return "\n".join([self._title(), as_text(*self._table()), *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        notes = "".join(f"<p style='white-space:pre-wrap'>{html.escape(note)}</p>" for note in self._notes())
        return as_html(self._title(), *self._table()) + notes

    def _title(self) -> str:
        rounds = f", medians of {self.rounds} rounds" if self.rounds > 1 else ""
        return f"{self.rows[0].plan.model}: {len(self.rows)} splits, one after the other{rounds}"

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        header = ("split", "requests at a time", "tokens/s", f"of {self.names[0]}", "first token", "between tokens")
        if self.rounds > 1:
            header = (*header, "spread")
        rows = []
        for many in self.concurrency:
            for name in self.names:
                found = self.figures(name, many)
                cells = ("–",) * (len(header) - 2)
                if found:
                    ratio = self.ratio(name, many)
                    cells = (f"{found.tokens_per_second:.{0 if found.tokens_per_second >= 10 else 1}f}",
                             "–" if ratio is None else f"{ratio:.2f}x", _ms(found.ttft), _ms(found.itl),
                             *([_percent(found.spread)] if self.rounds > 1 else []))  # fmt: skip
                rows.append((name, str(many), *cells))
        return header, rows

    def _notes(self) -> list[str]:
        notes = [f"{row.name}: {row.reason}" for row in self.rows if row.reason]
        return [*notes, *(["Stopped by Ctrl-C: what is missing was not measured."] if self.interrupted else [])]

    def _lines(
        self, title: str, unit: str, value, names: tuple[str, ...], times: float, log_if_wide: bool = False
    ) -> "Figure":
        from localai_clusters import plots

        series = {}
        for name in names or self.names:
            found = [(many, value(name, many)) for many in self.concurrency]
            points = [(many, one * times) for many, one in found if one is not None]
            if points:
                series[name] = points
        values = [value for points in series.values() for _, value in points]
        log_y = log_if_wide and bool(values) and max(values) > WIDE * min(values)
        unit += ", logarithmic" if log_y else ""
        return plots.lines(title, series, x="requests at a time", y=unit, log_x=len(self.concurrency) > 1, log_y=log_y)

    def _row(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise NotMeasured(f"this sweep has no {name!r}; it has {', '.join(self.names)}")


def load_to_dict(load: Load) -> dict[str, Any]:
    return {
        "concurrency": load.concurrency,
        "requests": load.requests,
        "output_tokens": load.output_tokens,
        "seconds": load.seconds,
        "tokens_per_second": load.tokens_per_second,
        "ttft": load.ttft._asdict(),
        "itl": load.itl and load.itl._asdict(),
    }


def _place(facts: dict[str, Any], cores: tuple[tuple[int, ...], ...]) -> tuple[str, ...]:
    device = facts.get("device", "unknown")
    if device.startswith("cuda") or not facts.get("cpus"):
        return (device,)
    return tuple(f"core {number}" for number, core in enumerate(cores) if set(core) & set(facts["cpus"]))


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.{1 if seconds < 0.1 else 0}f} ms"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"±{share * 50:.0f}%"
