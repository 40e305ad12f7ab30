"""What a lab observed beside answers and load, on the page for a person."""

from rich.console import Console
from rich.text import Text

from .layout import MOST_ROWS, body, cell, grid, heading, more, table
from .record import Checkpoint, Timeline, Traffic
from .summary import count, plain_text, run_names

MIB = 2**20
BARS = "▁▂▃▄▅▆▇█"
BARS_WIDE = 24
STYLES = {"right": "green", "wrong": "bold red", "not-tried": "dim", "by-hand": "cyan"}


def show(record: Checkpoint, console: Console) -> None:
    _exercises(record, console)
    _failures(record, console)
    _traffic(record, console)
    _collectives(record, console)
    _timelines(record, console)


def _exercises(record: Checkpoint, console: Console) -> None:
    if not record.exercises:
        return
    right = sum(outcome.status == "right" for outcome in record.exercises)
    heading(console, f"Exercises: {right} of {len(record.exercises)} right, as the notebook saw it")
    rows = grid(columns=3)
    for outcome in record.exercises[:MOST_ROWS]:
        tries = count(outcome.attempts, "attempt") + (f", {count(outcome.hints, 'hint')}" if outcome.hints else "")
        tries += ", solution shown" if outcome.solution_shown else ""
        said = "" if outcome.status == "not-tried" else tries
        rows.add_row(Text(outcome.status.replace("-", " "), STYLES[outcome.status]), cell(outcome.id), cell(said))
    body(console, rows)
    more(console, len(record.exercises) - MOST_ROWS, "exercise")


def _failures(record: Checkpoint, console: Console) -> None:
    failures = record.observed.failures
    if not failures:
        return
    heading(console, "Broken on purpose")
    rows = table("experiment", "how", "cause", ">after", "repaired by")
    names = run_names(record)
    for failure in failures[:MOST_ROWS]:
        repaired = names.get(failure.repaired_run_id or "", failure.repaired_run_id or "-")
        seconds = f"{failure.seconds:,.1f} s" if failure.seconds >= 0.1 else f"{failure.seconds * 1e3:,.0f} ms"
        rows.add_row(cell(failure.name), cell(failure.how), cell(failure.cause), cell(seconds), cell(repaired))
    body(console, rows)
    more(console, len(failures) - MOST_ROWS, "failure")


def _traffic(record: Checkpoint, console: Console) -> None:
    counted = record.observed.traffic
    if not counted:
        return
    heading(console, "Between the nodes")
    rows = table("layout", "link", ">tokens/s", ">bytes per token", ">predicted")
    for traffic in counted[:MOST_ROWS]:
        predicted = traffic.predicted_bytes_per_token
        per_token = max(traffic.bytes_sent, default=0) / traffic.output_tokens if traffic.output_tokens else None
        rows.add_row(
            cell(traffic.layout),
            cell(_link(traffic)),
            cell(f"{traffic.output_tokens / traffic.seconds:,.1f}" if traffic.seconds else "-"),
            cell("-" if per_token is None else f"{per_token:,.0f}"),
            cell("-" if predicted is None else f"{predicted:,}", style="dim"),
        )
    body(console, rows)
    more(console, len(counted) - MOST_ROWS, "count")


def _link(traffic: Traffic) -> str:
    rate = "no limit" if traffic.rate_mbit is None else f"{traffic.rate_mbit:g} Mbit/s"
    return f"{rate}, {traffic.delay_ms:g} ms"


def _collectives(record: Checkpoint, console: Console) -> None:
    measured = record.observed.collectives
    if not measured:
        return
    heading(console, "Messages between ranks, measured")
    rows = table("layout", "operation", ">bytes", ">us", ">MB/s on the bus")
    for one in measured[:MOST_ROWS]:
        rate = "-" if one.bytes_per_second is None else f"{one.bytes_per_second / 1e6:,.0f}"
        size, time = f"{one.message_bytes:,}", f"{one.seconds * 1e6:,.1f}"
        rows.add_row(cell(one.layout), cell(one.operation), cell(size), cell(time), cell(rate))
    body(console, rows)
    more(console, len(measured) - MOST_ROWS, "measurement")


def _timelines(record: Checkpoint, console: Console) -> None:
    lines = record.observed.timelines
    if not lines:
        return
    heading(console, "Over time")
    rows = grid(columns=3)
    names = run_names(record)
    for line in lines[:MOST_ROWS]:
        whose = "server" if line.rank is None else f"rank {line.rank}"
        where = plain_text(f"{names.get(line.run_id, line.run_id)}, {whose}, {line.quantity}", 60)
        rows.add_row(cell(where, 60), cell(bars(line)), cell(_range(line)))
    body(console, rows)
    more(console, len(lines) - MOST_ROWS, "timeline")


def bars(line: Timeline) -> str:
    """The values as bars of eight heights from 0 to the most there can be, or was."""
    most = line.capacity or max(line.values, default=0)
    if not most:
        return BARS[0] * min(len(line.values), BARS_WIDE)
    step = max(1, -(-len(line.values) // BARS_WIDE))
    peaks = [max(line.values[start : start + step]) for start in range(0, len(line.values), step)]
    return "".join(BARS[min(len(BARS) - 1, value * len(BARS) // (most + 1))] for value in peaks)


def _range(line: Timeline) -> str:
    if not line.values:
        return "no values"
    least, most = min(line.values), max(line.values)
    if line.unit == "bytes":
        return f"{least / MIB:,.0f} to {most / MIB:,.0f} MiB"
    return f"{least:,} to {most:,} blocks" + ("" if line.capacity is None else f" of {line.capacity:,}")
