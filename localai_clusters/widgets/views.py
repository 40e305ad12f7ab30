"""Live views of a server: the cluster, its memory. Each is HTML written anew when something changed.

A view makes its widgets when a front end asks for them. Without one it is what it would show now, as text and HTML.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

from localai_clusters.monitor import Watch
from localai_clusters.plan import ServePlan
from localai_clusters.server import Server
from localai_clusters.widgets import pages
from localai_clusters.widgets.seen import Seen
from localai_clusters.widgets.session import Session, session_of

Page = Callable[[Seen], str]
WIDGET = "application/vnd.jupyter.widget-view+json"


def has_front_end() -> bool:
    """Whether somebody may look: jupyter_server and VS Code say so to the kernels they start, papermill does not."""
    return any(name == "JPY_SESSION_NAME" or name.startswith("VSCODE_") for name in os.environ)


class View:
    """Some pages of one session, kept up to date while its server lives. ``texts`` and ``pages`` go together."""

    texts: Sequence[Page] = ()
    pages: Sequence[Page] = ()

    def __init__(self, session: Session):
        self.session = session
        self.seen: Seen | None = None
        self._areas: list[Any] = []
        self._widget: Any = None
        session.add(self)

    def show(self, seen: Seen) -> None:
        self.seen = seen
        for area, page in zip(self._areas, self.pages, strict=False):
            area.value = page(seen)  # the same value again sends nothing

    @property
    def widget(self) -> Any:
        """The ipywidgets box, made when it is first asked for."""
        if self._widget is None:
            self._widget = self._build()
            self.show(self.session.look())
        return self._widget

    def _build(self) -> Any:
        import ipywidgets

        self._areas = [ipywidgets.HTML() for _ in self.pages]
        return ipywidgets.VBox(self._areas)

    def __str__(self) -> str:
        seen = self.session.look()
        return "\n".join(filter(None, (text(seen) for text in self.texts)))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        seen = self.session.look()
        return "".join(f"<div style='margin:6px 0'>{page(seen)}</div>" for page in self.pages)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = {}
        if has_front_end():
            bundle[WIDGET] = self.widget._repr_mimebundle_()[WIDGET]
        return bundle | {"text/plain": str(self), "text/html": self._repr_html_()}


class ClusterView(View):
    texts = (pages.status_text, pages.cluster_text)
    pages = (pages.status_html, pages.cluster_html)


class MemoryView(View):
    texts = (pages.status_text, pages.memory_text, pages.blocks_text)
    pages = (pages.status_html, pages.memory_html, pages.blocks_html)


def cluster(what: ServePlan | Server) -> ClusterView:
    """A map of nodes and ranks: where each rank is, what it holds, how far its start is."""
    return ClusterView(session_of(what))


def watch_view(what: Server | Watch) -> MemoryView:
    """What each rank of a running server holds now, and how full the KV cache is.

    Given a ``Watch`` (``server.watch()``) it shows that one's samples and takes none of its own.
    """
    return MemoryView(session_of(what))
