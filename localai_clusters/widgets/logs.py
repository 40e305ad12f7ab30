"""The end of a rank's log, live."""

import html
import re
from pathlib import Path
from typing import Any

from localai_clusters.server import Server
from localai_clusters.widgets import pages
from localai_clusters.widgets.seen import Seen
from localai_clusters.widgets.session import Session, session_of
from localai_clusters.widgets.views import View

MOST_LINES = 60
MOST_BYTES = 64_000
OWN_LOOKS = '"GET /metrics'  # this package's, twice a second: they would push everything else out
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# Turned upside down, the box stays at its end when its text is replaced.
BOX = (
    f"border:{pages.LINE};border-radius:4px;height:14em;overflow:auto;display:flex;flex-direction:column-reverse;"
    "font-family:var(--jp-code-font-family, monospace);font-size:12px;line-height:1.35"
)


class LogView(View):
    """One log at a time, chosen by rank."""

    def __init__(self, session: Session, rank: int = 0):
        self.rank = rank
        self._choice: Any = None
        super().__init__(session)

    def text(self, lines: int = MOST_LINES) -> str:
        """The last lines of the chosen rank's log; what torchrun said if the rank has none."""
        run = self.session.server.run if self.session.server else None
        return tail(log_file(run, self.rank), lines) if run else ""

    def show(self, seen: Seen) -> None:
        self.seen = seen
        if self._areas:
            self._areas[0].value = self._page()

    def _page(self) -> str:
        text = html.escape(self.text() or "nothing yet")
        return (
            f"<div role='log' tabindex='0' aria-label='log of rank {self.rank}' style='{BOX}'>"
            f"<pre style='margin:0;padding:4px 8px;white-space:pre-wrap'>{text}</pre></div>"
        )

    def _build(self) -> Any:
        import ipywidgets

        ranks = [(f"rank {rank}", rank) for rank in range(self.session.plan.world_size)]
        self._choice = ipywidgets.Dropdown(options=ranks, value=self.rank, description="Log of")
        self._choice.observe(self._chosen, names="value")
        self._areas = [ipywidgets.HTML()]
        return ipywidgets.VBox([self._choice, *self._areas])

    def _chosen(self, change: dict[str, Any]) -> None:
        self.rank = change["new"]
        self.show(self.session.look())

    def __str__(self) -> str:
        return f"log of rank {self.rank}, its end\n{self.text(lines=12) or 'nothing yet'}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<div>log of rank {self.rank}, its end{self._page()}</div>"


def log_file(run: Any, rank: int) -> Path:
    own = run.log(rank)
    return own if own.exists() else run.dir / f"node{rank // run.plan.nproc_per_node}.log"


def tail(path: Path, lines: int = MOST_LINES) -> str:
    """The last lines of a file, without colours and our own looks at /metrics; '' if there is no such file."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - MOST_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    kept = ESCAPES.sub("", text).replace("\r", "\n").splitlines()
    return "\n".join([line for line in kept if line.strip() and OWN_LOOKS not in line][-lines:])


def log_view(server: Server, rank: int = 0) -> LogView:
    """The end of a rank's log, which a list above it chooses."""
    return LogView(session_of(server), rank)
