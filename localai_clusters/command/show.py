"""A report on a command for a terminal: the text with its parts numbered, what is wrong, what to type instead."""

import io
import unicodedata
from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from localai_clusters.command.correcting import Server
from localai_clusters.command.findings import BLOCKING
from localai_clusters.command.report import CommandReport
from localai_clusters.command.ways import Way

MARKS = {"unsafe": "!", "advice": "→", "note": "·"}
STYLES = {"unsafe": "bold yellow", "advice": "cyan", "note": "dim"}
WAYS = {
    "localai-clusters": "With this library",
    "vllm": "With vLLM alone",
    "docker": "In a container",
}
LINES_SHOWN = 200
WIDTH_SHOWN = 400  # characters of one line


def mark(severity: str) -> str:
    return "✗" if severity in BLOCKING else MARKS[severity]


def style(severity: str) -> str:
    return "bold red" if severity in BLOCKING else STYLES[severity]


def visible(text: str) -> str:
    """``text`` as long as before, without what would steer a terminal or turn the direction of writing."""
    return "".join(_sign(character) for character in text)


def _sign(character: str) -> str:
    if character in "\n" or (" " <= character < "\x7f"):
        return character
    if character == "\t":
        return " "
    code = ord(character)
    if code < 32:
        return chr(0x2400 + code)
    return "\ufffd" if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else character


def as_text(report: CommandReport, width: int = 80) -> str:
    file = io.StringIO()
    show(report, Console(file=file, width=width, color_system=None, legacy_windows=False, force_jupyter=False))
    return file.getvalue()


def show(report: CommandReport, console: Console) -> None:
    """Print ``report``; commands to paste are never wrapped, so that they can be."""
    console.print(Text(visible(report.title), style="bold"))
    if report.parts:
        console.print()
        for line in numbered(report):
            console.print(line, soft_wrap=True)
        console.print(_meanings(report))
    if report.findings:
        console.print(Text("\nWhat is wrong, unsafe or worth knowing", style="bold"))
        console.print(_findings(report))
    for number, server in enumerate(report.servers, 1):
        which = f" (server {number} of {len(report.servers)})" if len(report.servers) > 1 else ""
        console.print(Text(f"\nType this{' instead' if not report.works else ''}{which}", style="bold"))
        for line in about(server):
            console.print(Text(visible(line)))
        for way in server.ways:
            for title, command in blocks(way):
                console.print(Text(f"\n# {title}", style="dim"), soft_wrap=True)
                console.print(Text(visible(command)), soft_wrap=True)


def numbered(report: CommandReport) -> Iterator[Text]:
    """The text's lines, each with a line beneath it that underlines and numbers its parts."""
    shown, at, parts = visible(report.text), 0, list(enumerate(report.parts, 1))
    styles = {number: style(severity) for number, severity in report.severities().items()}
    for line in shown.split("\n")[:LINES_SHOWN]:
        end = at + len(line)
        here = [(number, part) for number, part in parts if part.start < end and part.end > at]
        parts = [(number, part) for number, part in parts if part.end > end]
        if line.strip():
            yield Text("  " + line[:WIDTH_SHOWN])
            beneath = Text("  ")
            for number, part in here:
                start, stop = max(part.start, at) - at, min(part.end - at, len(line), WIDTH_SHOWN)
                if start >= WIDTH_SHOWN or (part.start < at and not line[start:stop].strip()):
                    continue
                start += len(line[start:stop]) - len(line[start:stop].lstrip())
                beneath.append(" " * max(0, 2 + cell_len(line[:start]) - cell_len(beneath.plain)))
                label = str(number) if part.start >= at else ""
                length = max(cell_len(line[start:stop].rstrip(" \\")), len(label))
                beneath.append(label + "─" * (length - len(label)), style=styles.get(number, "dim"))
            if beneath.plain.strip():
                yield beneath
        at = end + 1


def _meanings(report: CommandReport) -> Table:
    styles = {number: style(severity) for number, severity in report.severities().items()}
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(max_width=32, overflow="fold")
    table.add_column(overflow="fold")
    for number, part in enumerate(report.parts, 1):
        text = part.text if len(part.text) <= 120 else part.text[:117] + "..."
        table.add_row(
            Text(str(number), style=styles.get(number, "dim")), Text(visible(text)), Text(visible(part.meaning))
        )
    return table


def _findings(report: CommandReport) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in report.findings:
        line = Text(f"{finding.severity}: ", style=style(finding.severity))
        line.append(visible(finding.message), style="default")
        if finding.fix:
            line.append(f"\n→ {visible(finding.fix)}", style="bold")
        table.add_row(Text(mark(finding.severity), style=style(finding.severity)), line)
    return table


def about(server: Server) -> Iterator[str]:
    """What there is to say of the commands, a line each."""
    if server.reason:
        yield f"This library cannot serve it: {server.reason}"
    for text, hint in server.fill_in:
        yield f"Replace {text} by {hint}."
    for text in server.assumed:
        yield f"Assumed: {text}."
    if server.left_out:
        yield f"Left out: {', '.join(server.left_out)}."


def blocks(way: Way) -> Iterator[tuple[str, str]]:
    """(title, command) for each node."""
    for node, command in enumerate(way.commands):
        where = f", on node {node}" if len(way.commands) > 1 else ""
        yield f"{WAYS[way.name]}{where}" + (f" ({way.note})" if way.note and node == 0 else ""), command
