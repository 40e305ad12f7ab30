"""Verdicts, and a report of them that shows itself as text, as a terminal table and as HTML."""

import html
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from localai_clusters.errors import PlainError
from localai_clusters.plan import ServePlan

PASS, WARN, FAIL, UNKNOWN = "pass", "warn", "fail", "unknown"
MARKS = {PASS: "✓", WARN: "!", FAIL: "✗", UNKNOWN: "?"}
STYLES = {PASS: "green", WARN: "yellow", FAIL: "bold red", UNKNOWN: "dim"}
COLOURS = {PASS: "#1a7f37", WARN: "#9a6700", FAIL: "#cf222e", UNKNOWN: "#6e7781"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check's answer: ``message`` holds the numbers, ``fix`` what to type when it does not pass."""

    check: str
    status: str
    message: str
    fix: str = ""


class PreflightError(PlainError, ValueError):
    """A plan that a check refuses; the message is the failed verdicts."""

    def __init__(self, report: "Report"):
        self.report = report
        super().__init__("\n".join(_sentence(verdict) for verdict in report.failed))


@dataclass(frozen=True, slots=True)
class Report:
    plan: ServePlan
    verdicts: tuple[Verdict, ...] = field(default_factory=tuple)

    @property
    def failed(self) -> tuple[Verdict, ...]:
        return tuple(verdict for verdict in self.verdicts if verdict.status == FAIL)

    @property
    def ok(self) -> bool:
        """Whether no check failed. A warning does not stop a launch."""
        return not self.failed

    def raise_if_failed(self, skip: tuple[str, ...] = ()) -> None:
        """Raise ``PreflightError`` if a check not in ``skip`` failed, ``ValueError`` for an unknown name in it."""
        unknown = set(skip) - {verdict.check for verdict in self.verdicts}
        if unknown:
            known = ", ".join(dict.fromkeys(verdict.check for verdict in self.verdicts))
            raise ValueError(f"there is no check {', '.join(sorted(unknown))}; this plan was checked for: {known}")
        kept = Report(self.plan, tuple(verdict for verdict in self.verdicts if verdict.check not in skip))
        if not kept.ok:
            raise PreflightError(kept)

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, "plan": self.plan.to_dict(), "verdicts": [asdict(verdict) for verdict in self.verdicts]}

    @property
    def title(self) -> str:
        count = len(self.failed)
        outcome = "can be launched" if not count else f"cannot be launched: {count} check{'s' * (count > 1)} failed"
        return f"{self.plan.model}, {self.plan.label}: {outcome}"

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"  {MARKS[v.status]} {_sentence(v)}" for v in self.verdicts)])

    __repr__ = __str__

    def __rich__(self):
        from rich.table import Table
        from rich.text import Text

        title = Text(self.title, style="bold")  # not a str: rich would read the model's name as markup
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        table.add_column("")
        table.add_column("check", no_wrap=True)
        table.add_column("what was found")
        for verdict in self.verdicts:
            found = Text(verdict.message)
            if verdict.fix:
                found.append(f"\n→ {verdict.fix}", style="bold")
            table.add_row(Text(MARKS[verdict.status], style=STYLES[verdict.status]), Text(verdict.check), found)
        return table

    def _repr_html_(self) -> str:
        rows = "".join(_row(verdict, html.escape) for verdict in self.verdicts)
        head = "<tr><th></th><th style='text-align:left'>check</th><th style='text-align:left'>what was found</th></tr>"
        return f"<p><b>{html.escape(self.title)}</b></p><table>{head}{rows}</table>"


def _sentence(verdict: Verdict) -> str:
    return f"{verdict.check}: {verdict.message}" + (f"\n      → {verdict.fix}" if verdict.fix else "")


def _row(verdict: Verdict, escape: Callable[[str], str]) -> str:
    mark = f"<span style='color:{COLOURS[verdict.status]};font-weight:bold'>{MARKS[verdict.status]}</span>"
    fix = f"<br><b>→ {escape(verdict.fix)}</b>" if verdict.fix else ""
    cell = "<td style='text-align:left;white-space:pre-wrap'>"
    return f"<tr><td>{mark}</td>{cell}{escape(verdict.check)}</td>{cell}{escape(verdict.message)}{fix}</td></tr>"
