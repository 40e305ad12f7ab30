"""A live run's report: preflight's own with the live checks below it, the ranks that answered, the times measured."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from localai_clusters.launch.live.answer import Answer
from localai_clusters.launch.live.measurement import Measurement, TokenCost, bandwidth, duration, size, span
from localai_clusters.launch.live.reach import Connection
from localai_clusters.preflight.report import Report, Verdict
from localai_clusters.tables import Table

WORDS = ("host", "address", "device", "message", "through")  # columns of texts, the others of numbers


@dataclass(frozen=True, slots=True)
class LiveReport:
    """``report`` holds the verdicts of both. Nothing was started if ``run_dir`` is None. ``seconds``: the whole run."""

    report: Report
    answers: tuple[Answer, ...] = ()
    connections: tuple[Connection, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    cost: TokenCost | None = None
    seconds: float | None = None
    run_dir: Path | None = None

    @property
    def ok(self) -> bool:
        """Whether no check failed, of those before the run and of those in it."""
        return self.report.ok

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        return self.report.verdicts

    def to_dict(self) -> dict[str, Any]:
        cost = self.cost and asdict(self.cost)
        return self.report.to_dict() | {
            "live": self.run_dir is not None,
            "ranks": [{k: v for k, v in asdict(one).items() if k not in ("port", "token")} for one in self.answers],
            "connections": [asdict(one) for one in self.connections],
            "measurements": [asdict(one) | {"bus_bandwidth": one.bus_bandwidth} for one in self.measurements],
            "token_cost": cost,
            "seconds": self.seconds,
            "logs": self.run_dir and str(self.run_dir),
        }

    def tables(self) -> list[Table]:
        found = []
        if self.answers:
            header = ("rank", "node", "host", "address", "pid", "device")
            found.append(Table("Who answered", header, tuple(rank_row(one) for one in self.answers)))
        if self.measurements:
            header = ("ranks", "message", "through", "size", "times", "median", "p99", "bandwidth")
            rows = tuple(measurement_row(one) for one in self.measurements)
            found.append(Table("Messages, one after another, and their bus bandwidth", header, rows))
        return found

    def __str__(self) -> str:
        return "\n\n".join(map(str, [self.report, *self.tables()])) + self._footer()

    __repr__ = __str__

    def _footer(self) -> str:
        if self.run_dir is None:
            return "\n\nnothing was started"
        return f"\n\n{self.seconds:.1f} s in all; logs: {self.run_dir}"

    def __rich__(self):
        from rich.console import Group
        from rich.text import Text

        tables = [part for table in self.tables() for part in (Text(), as_rich(table))]
        return Group(self.report, *tables, Text(self._footer().removeprefix("\n")))

    def _repr_html_(self) -> str:
        import html

        tables = "".join(table._repr_html_() for table in self.tables())
        return f"{self.report._repr_html_()}{tables}<p>{html.escape(self._footer().strip())}</p>"


def rank_row(one: Answer) -> tuple[str, ...]:
    uuid = f" {one.device_ids[0][:12]}" if one.backend == "cuda" and one.device_ids else ""
    device = one.device + uuid
    return (str(one.rank), str(one.node_rank), one.host, one.address, str(one.pid), device or "none")


def measurement_row(one: Measurement) -> tuple[str, ...]:
    times, rate = (duration(one.median), duration(one.p99)), bandwidth(one.bus_bandwidth)
    return (span(one.ranks), one.operation, one.transport, size(one.nbytes), str(one.count), *times, rate)


def as_rich(table: Table):
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(title=Text(table.title, style="bold"), title_justify="left", box=None, pad_edge=False)
    for number, name in enumerate(table.header):
        grid.add_column(name, justify="left" if number == 0 or name in WORDS else "right")
    for row in table.rows:
        grid.add_row(*map(Text, row))
    return grid
