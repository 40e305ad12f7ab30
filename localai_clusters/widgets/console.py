"""The panel: start, stop, and all the views of one server."""

from typing import Any

from localai_clusters.plan import ServePlan
from localai_clusters.server import Server
from localai_clusters.widgets import pages
from localai_clusters.widgets.chat import ChatView
from localai_clusters.widgets.logs import LogView
from localai_clusters.widgets.seen import FAILED, RUNNING, STARTING, STOPPED, STOPPING, Seen
from localai_clusters.widgets.session import ConsoleError, Session, session_of
from localai_clusters.widgets.views import View


class Console(View):
    """Buttons and views of one plan. From code: ``start()``, ``wait()``, ``server``, ``ask()``, ``stop()``."""

    texts = (pages.status_text, pages.cluster_text, pages.memory_text, pages.blocks_text)
    pages = (pages.status_html, pages.cluster_html, pages.memory_html, pages.blocks_html)

    def __init__(self, session: Session):
        self.chat, self.log = ChatView(session), LogView(session)
        self._start: Any = None
        self._stop: Any = None
        super().__init__(session)

    @property
    def server(self) -> Server | None:
        """The server once its processes are started, and after its end: for ``lac.record``."""
        return self.session.server

    @property
    def state(self) -> str:
        """``stopped``, ``starting``, ``running``, ``stopping`` or ``failed``."""
        return self.session.state

    def start(self, wait: bool = False) -> None:
        """What the button does. ``wait``: until it serves, as ``wait()`` does."""
        self.session.start()
        if wait:
            self.wait()

    def wait(self, seconds: float = 900.0) -> Server:
        """The server once it serves. Raises ``ConsoleError`` if the launch fails, is stopped or takes longer."""
        reached = self.session.wait(RUNNING, FAILED, STOPPED, seconds=seconds)
        if reached != RUNNING:
            raise ConsoleError(self.session.message or f"no server after {seconds:.0f} s; it is {reached}")
        return self.session.server

    def stop(self) -> None:
        """End the server, or its launch, and wait until nothing of it is left. Harmless when nothing runs."""
        self.session.stop()

    def ask(self, prompt: str) -> str:
        """Send ``prompt`` as the box does and wait for the answer."""
        return self.chat.ask(prompt)

    def show(self, seen: Seen) -> None:
        super().show(seen)
        if self._start is not None:
            self._start.disabled = seen.state in (STARTING, RUNNING, STOPPING)
            self._stop.disabled = seen.state not in (STARTING, RUNNING)

    def _build(self) -> Any:
        import ipywidgets

        button = ipywidgets.Button
        self._start = button(description="Start", icon="play", tooltip=f"Start {self.session.plan.label}")
        self._stop = button(description="Stop", icon="stop", tooltip="End every process of the server")
        self._start.on_click(lambda _: self.session.start())
        self._stop.on_click(lambda _: self.session.stop(wait=False))
        status, cluster, memory, blocks = self._areas = [ipywidgets.HTML() for _ in self.pages]
        logs = ipywidgets.Accordion([self.log.widget], titles=("Logs",), selected_index=None)
        box = ipywidgets.VBox(
            [ipywidgets.HBox([self._start, self._stop]), status, cluster, memory, blocks, self.chat.widget, logs]
        )
        box.add_class("lac-console")
        return box

    def __str__(self) -> str:
        told = super().__str__()
        return told if self.session.server else f"{told}\n.start() launches it; in JupyterLab a button does"

    __repr__ = __str__


def console(what: ServePlan | Server, **options: Any) -> Console:
    """A panel for ``what``: a plan to start, or a server that runs. ``options`` are ``serve``'s.

    The same plan asked for again, as when a cell is run twice, is the same server while it lives.
    """
    return Console(session_of(what, **options))
