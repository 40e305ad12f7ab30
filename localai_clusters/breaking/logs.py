"""The ends of a run's logs as they are, file by file: what one reads before anything explains it."""

import html
import re
from dataclasses import dataclass
from pathlib import Path

from localai_clusters.breaking.views import shortened

COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # vLLM writes them where it was told that its output is looked at
WIDEST = 180  # characters of a line that are shown


@dataclass(frozen=True, slots=True)
class Tail:
    name: str
    total: int  # lines of the file
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogTails:
    """Shows itself; ``tails`` in the order of node, then ranks."""

    tails: tuple[Tail, ...]

    def _headed(self) -> list[tuple[str, str]]:
        found = []
        for tail in self.tails:
            shown = f"the last {len(tail.lines)} of {tail.total} lines" if tail.total else "empty"
            found.append((f"{tail.name}: {shown}", "\n".join(shortened(line, WIDEST) for line in tail.lines)))
        return found

    def __str__(self) -> str:
        return "\n\n".join(f"--- {head}\n{text}".rstrip() for head, text in self._headed())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        pre = "white-space:pre-wrap;overflow-wrap:anywhere;font-size:90%;margin:.2em 0 .8em 1em;background:none"
        pre += ";font-family:var(--jp-code-font-family, monospace)"
        parts = [(html.escape(head), html.escape(text)) for head, text in self._headed()]
        return "".join(f"<div><b>{head}</b><pre style='{pre}'>{text}</pre></div>" for head, text in parts)


def log_tails(folder: Path, lines: int) -> LogTails:
    """The last ``lines`` lines, blank ones left out, of ``node*.log`` and ``rank*.log`` in ``folder``."""
    logs = [*sorted(folder.glob("node*.log")), *sorted(folder.glob("rank*.log"))]
    tails = []
    for log in logs:
        text = COLOURS.sub("", log.read_text(errors="replace"))
        said = [line.rstrip() for line in text.splitlines() if line.strip()]
        tails.append(Tail(log.name, len(said), tuple(said[-lines:])))
    return LogTails(tuple(tails))
