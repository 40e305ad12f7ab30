"""What explains a log, and its views: text, a terminal, a notebook, JSON. A view does not compute."""

import html
import re
from dataclasses import asdict, dataclass
from typing import Any

EXPLAINED, DONT_KNOW, NO_FAILURE = "explained", "don't know", "no failure"
TITLES = {
    DONT_KNOW: "don't know: nothing in this log shows the cause",
    NO_FAILURE: "no failure found in this log",
}
LONGEST_EVIDENCE = 240  # characters of a line that are shown
MANY = 10  # lines that say the same: from here on their number is worth a line
STYLES = {"title": "bold", "where": "dim", "line": "", "why": "", "fix": "bold", "note": "dim"}
PYDANTIC = re.compile(r" \[type=\w+, input_value=.*")  # what a refused setting was, at length


@dataclass(frozen=True, slots=True)
class Evidence:
    """One line of the log; ``rank`` is who wrote it, empty if the log does not say."""

    file: str
    line: int
    rank: str
    text: str

    @property
    def where(self) -> str:
        return ", ".join(filter(None, (f"{self.file.rpartition('/')[2]}:{self.line}", self.rank)))

    @property
    def short(self) -> str:
        """The text, its middle left out where it is long: what happened stands first, the numbers often last."""
        text = PYDANTIC.sub("", self.text)
        if len(text) <= LONGEST_EVIDENCE:
            return text
        return f"{text[: LONGEST_EVIDENCE * 3 // 4]} ... {text[-LONGEST_EVIDENCE // 4 :]}"


@dataclass(frozen=True, slots=True)
class Cause:
    """``id`` is the signature's, ``cause`` the kind of failure; ``confidence`` is high, medium or low."""

    id: str
    cause: str
    title: str
    confidence: str
    why: str
    fixes: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    count: int
    rank: str
    applies: str
    source: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """``causes`` are ranked, the best first; ``last`` are the last errors where there is none."""

    status: str
    causes: tuple[Cause, ...] = ()
    first_rank: str = ""
    stage: str = ""
    last: tuple[Evidence, ...] = ()
    hints: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    lines: int = 0

    @property
    def best(self) -> Cause | None:
        return self.causes[0] if self.causes else None

    @property
    def title(self) -> str:
        return self.causes[0].title if self.causes else TITLES[self.status]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(text for _, text in self.parts())

    __repr__ = __str__

    def parts(self) -> list[tuple[str, str]]:
        """(what it is, its text), for a view to style: title, line, why, fix, note."""
        parts: list[tuple[str, str]] = []
        for number, cause in enumerate(self.causes):
            also = "" if not number else "or: "
            sure = "" if cause.confidence == "high" else f" ({cause.confidence} confidence)"
            parts.append(("title", f"{also}{cause.title}{sure}"))
            for evidence in cause.evidence:
                parts += [("where", f"  {evidence.where}"), ("line", f"    {evidence.short}")]
            if cause.count >= MANY:
                parts.append(("where", f"  {cause.count} such lines in all"))
            if cause.why:
                parts.append(("why", f"  {cause.why}"))
            parts += [("fix", f"  → {fix}") for fix in cause.fixes]
        if not self.causes:
            parts.append(("title", self.title))
            for evidence in self.last:
                parts += [("where", f"  {evidence.where}"), ("line", f"    {evidence.short}")]
            parts += [("fix", f"  → {hint}") for hint in self.hints]
        if self.stage:
            parts.append(("note", f"reached: {self.stage}"))
        if self.first_rank:
            parts.append(("note", f"failed first: {self.first_rank}"))
        return parts

    def __rich_console__(self, console, options):
        from rich.text import Text

        for kind, text in self.parts():
            indent = len(text) - len(text.lstrip())
            whole = Text(text.strip(), style=STYLES[kind])  # not a str: rich would read a log's brackets as markup
            hanging = 2 * (kind == "fix")  # below the words, not below their arrow
            for number, line in enumerate(whole.wrap(console, options.max_width - indent - hanging)):
                line.rstrip()
                yield Text(" " * (indent + hanging * bool(number))) + line

    def _repr_html_(self) -> str:
        styles = {
            "title": "font-weight:bold;margin-top:.6em",
            "where": "opacity:.65;font-size:90%;margin-left:1em",
            "line": "margin-left:2em;white-space:pre-wrap;overflow-wrap:anywhere;font-family:monospace;font-size:90%",
            "why": "margin:.3em 0 .3em 1em;max-width:60em",
            "fix": "font-weight:bold;margin-left:1em;white-space:pre-wrap;overflow-wrap:anywhere",
            "note": "opacity:.65;font-size:90%",
        }
        rows = "".join(f"<div style='{styles[kind]}'>{html.escape(text.strip())}</div>" for kind, text in self.parts())
        return f"<div style='text-align:left'>{rows}</div>"
