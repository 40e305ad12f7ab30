"""A report on a command as HTML, for a notebook: readable on a light and on a dark page, without scripts."""

import html
from collections.abc import Iterator

from localai_clusters.command.findings import BLOCKING, Finding
from localai_clusters.command.meaning import Part
from localai_clusters.command.report import CommandReport
from localai_clusters.command.show import about, blocks, mark, visible

# Mid tones, which can be read on white and on black; everything else takes the page's own colours.
COLOURS = {"unsafe": "#b8860b", "advice": "#3b8ea5", "note": "#808080"}
BAD = "#d9534f"
LEFT = "<td style='text-align:left;vertical-align:top;white-space:normal'>"
PART_SHOWN = 5_000  # characters of one part
REST_SHOWN = 20_000  # characters after the last part
BOX = (
    "border:1px solid #80808066;border-radius:4px;padding:.6em .8em;margin:.3em 0 .8em;overflow-x:auto;"
    "background:#8080801a;color:inherit;white-space:pre;text-align:left"
)


def colour(severity: str) -> str:
    return BAD if severity in BLOCKING else COLOURS[severity]


def as_html(report: CommandReport) -> str:
    return "".join(["<div style='max-width:60em'>", *_pieces(report), "</div>"])


def _pieces(report: CommandReport) -> Iterator[str]:
    yield f"<p><b>{_safe(report.title)}</b></p>"
    if report.parts:
        yield f"<pre style='{BOX}'>{''.join(_marked(report))}</pre>"
        yield f"<table>{''.join(_meaning(number, part) for number, part in enumerate(report.parts, 1))}</table>"
    if report.findings:
        yield "<p><b>What is wrong, unsafe or worth knowing</b></p>"
        yield "<table>" + "".join(map(_finding, report.findings)) + "</table>"
    for number, server in enumerate(report.servers, 1):
        which = f" (server {number} of {len(report.servers)})" if len(report.servers) > 1 else ""
        yield f"<p><b>Type this{'' if report.works else ' instead'}{which}</b></p>"
        yield "".join(f"<p>{_safe(line)}</p>" for line in about(server))
        for way in server.ways:
            for title, command in blocks(way):
                yield f"<div>{_safe(title)}</div><pre style='{BOX}'>{_safe(command)}</pre>"


def _meaning(number: int, part: Part) -> str:
    return (
        f"<tr><td style='text-align:right;vertical-align:top'>{number}</td>"
        f"{LEFT}<code>{_safe(part.text[:200])}</code></td>"
        f"{LEFT}{_safe(part.meaning)}</td></tr>"
    )


def _finding(finding: Finding) -> str:
    severity = finding.severity
    bold = f"color:{colour(severity)};font-weight:bold;white-space:nowrap"
    chip = f"<span style='{bold}'>{mark(severity)}&nbsp;{severity}</span>"
    fix = f"<br><code style='white-space:pre-wrap'>→ {_safe(finding.fix)}</code>" if finding.fix else ""
    return f"<tr>{LEFT}{chip}</td>{LEFT}{_safe(finding.message)}{fix}</td></tr>"


def _marked(report: CommandReport) -> Iterator[str]:
    """The text with each part underlined and numbered, its meaning as a tooltip."""
    text, at, worst = report.text, 0, report.severities()
    for number, part in enumerate(report.parts, 1):
        line = f"2px solid {colour(worst[number])}" if number in worst else "1px solid #80808099"
        inside = _safe(text[part.start : min(part.end, part.start + PART_SHOWN)])
        yield _safe(text[at : part.start][:PART_SHOWN])
        yield f"<span title='{_safe(part.meaning)}' style='border-bottom:{line}'>{inside}</span>"
        yield f"<sup style='opacity:.7'>{number}</sup>"
        at = part.end
    yield _safe(text[at : at + REST_SHOWN])


def _safe(text: str) -> str:
    return html.escape(visible(text))
