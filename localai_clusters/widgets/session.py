"""A server's life behind a panel: started in a thread, looked at twice a second, stopped from a button or from code.

The processes are held as ``serve`` holds them: the guard ends them when the kernel goes. What a thread here adds
is only that the notebook can go on meanwhile.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from localai_clusters.errors import PlainError
from localai_clusters.launch.why import why_it_ended
from localai_clusters.monitor import Watch
from localai_clusters.plan import ServePlan
from localai_clusters.server import Server, serve
from localai_clusters.widgets.seen import FAILED, RUNNING, STARTING, STOPPED, STOPPING, Seen, look

SECONDS_BETWEEN_LOOKS = 0.4
SECONDS_BETWEEN_SAMPLES = 0.5
SECONDS_TO_STOP = 20.0
LIVE = (STARTING, RUNNING, STOPPING)

_lock = threading.Lock()
_live: dict[Any, "Session"] = {}  # a plan or a run's id -> who holds it, while it lives


class ConsoleError(PlainError, RuntimeError):
    """The panel cannot do what was asked for now; the message says why."""


class Stopped(Exception):
    """Raised inside ``serve`` when it is to be given up."""


class Shows(Protocol):
    def show(self, seen: Seen) -> None: ...


class Session:
    """One plan and, from start to stop, its server. ``options`` are ``serve``'s."""

    def __init__(self, plan: ServePlan, server: Server | None = None, watch: Watch | None = None, **options: Any):
        self.plan, self.server, self.options = plan, server, options
        self.message = ""
        self.watch = watch
        self.views: list[Shows] = []
        self._state = STOPPED
        self._stop_asked = threading.Event()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        if server is not None and server.is_running():
            self._state, self.message = RUNNING, f"at {server.url}"
            self._begin(self._keep_looking, "lac-views")

    @property
    def state(self) -> str:
        return self._state

    def start(self) -> None:
        """Begin to launch, and return at once. Harmless while a launch or a server is there."""
        with self._changed:
            if self._state in LIVE:
                return
            self._stop_asked.clear()
            self._set(STARTING, "checking the plan")
            self.server = self.watch = None
        with _lock:
            _live[self.plan] = self
        self._begin(self._launch, "lac-launch")
        self._begin(self._keep_looking, "lac-views")

    def stop(self, wait: bool = True) -> None:
        """End the server, or its launch. Harmless when nothing runs; ``wait``: until nothing of it is left."""
        with self._changed:
            if self._state in (STARTING, RUNNING):
                was, self._state = self._state, STOPPING
                self._stop_asked.set()
                self._changed.notify_all()
                self._begin(self._end_server if was == RUNNING else self._end_launch, "lac-stop")
        if wait:
            self.wait(STOPPED, FAILED, seconds=SECONDS_TO_STOP)
            self.settle()

    def wait(self, *states: str, seconds: float) -> str:
        """Wait until one of ``states`` is reached; returns the state reached in ``seconds``."""
        with self._changed:
            self._changed.wait_for(lambda: self._state in states, timeout=seconds)
            return self._state

    def settle(self, seconds: float = 10.0) -> None:
        """Wait until no thread of a server that has ended is left."""
        deadline = time.monotonic() + seconds
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def look(self) -> Seen:
        return look(self.plan, self._state, self.message, self.server, self.watch.latest if self.watch else None)

    def add(self, view: Shows) -> None:
        self.views.append(view)
        view.show(self.look())

    # Threads

    def _begin(self, work: Callable[[], None], name: str) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=work, name=name, daemon=True)  # a kernel that ends waits for none of them
        self._threads.append(thread)
        thread.start()

    def _set(self, state: str, message: str = "") -> None:
        with self._changed:
            self._state, self.message = state, message
            self._changed.notify_all()

    def _launch(self) -> None:
        def started(server: Server) -> None:
            self.server = server
            progress("")

        def progress(text: str) -> None:
            self.message = text.strip()
            if self._stop_asked.is_set():
                raise Stopped

        try:
            server = serve(self.plan, on_progress=progress, on_start=started, **self.options)
        except Exception as error:
            asked = self._stop_asked.is_set()
            if self.server is not None:  # given up after its last word of progress, it would live on
                self.server.run.stop()
            self._set(STOPPED if asked else FAILED, "" if asked else str(error) or type(error).__name__)
            return
        with self._changed:
            if not self._stop_asked.is_set():
                self._set(RUNNING, f"at {server.url}, ready after {server.seconds_to_ready:.1f} s")
                return
        self._end_server()

    def _end_launch(self) -> None:
        """The launch sees its run end and gives up; one that has no run yet sees it at its next word."""
        if self.server is not None:
            self.server.run.stop()

    def _end_server(self) -> None:
        try:
            self.server.stop()
            self._set(STOPPED, "nothing of it is left")
        except Exception as error:
            self._set(FAILED, f"while stopping: {error}")

    def _keep_looking(self) -> None:
        """Look, show, rest, until the server has ended; then once more."""
        while self._state in LIVE:
            if self._state == RUNNING:
                if not self.server.is_running():
                    self._lost()
                elif self.watch is None or not self.watch.is_alive():
                    self.watch = self.server.watch(every=SECONDS_BETWEEN_SAMPLES).start()
            self._show()
            with self._changed:
                self._changed.wait_for(lambda before=self._state: self._state != before, SECONDS_BETWEEN_LOOKS)
        if self.watch is not None:
            self.watch.stop()
        self._show()
        with _lock:
            for key in [key for key, session in _live.items() if session is self]:
                del _live[key]

    def _lost(self) -> None:
        """The server ended without the panel: stopped from code, or it failed."""
        with self._changed:
            if self._state != RUNNING:
                return
            if self.server.seconds_serving is not None:
                self._set(STOPPED, "nothing of it is left")
            else:
                self._set(FAILED, why_it_ended(self.server.run))

    def _show(self) -> None:
        seen = self.look()
        for view in list(self.views):
            try:
                view.show(seen)
            except Exception:  # a view must not end the others, nor be silent about it
                logging.getLogger(__name__).exception("%s shows nothing from here on", type(view).__name__)
                self.views.remove(view)


def session_of(what: ServePlan | Server | Watch | Session, **options: Any) -> Session:
    """Who holds ``what``: the same one for the same running server or plan, so that no second thread looks at it.

    A cell that is run again thus finds the server that it started. Raises ``ConsoleError`` for anything else.
    """
    if isinstance(what, Session):
        return what
    watch = what if isinstance(what, Watch) else None
    server = what.server if watch else what
    if isinstance(server, ServePlan):
        key, make = server, lambda: Session(server, **options)
    elif isinstance(server, Server):
        key, make = server.run.id, lambda: Session(server.plan, server, watch)
    else:
        raise ConsoleError(f"{type(what).__name__} is no plan and no server; lac.ServePlan(...) or lac.serve(plan)")
    with _lock:
        held = next((s for s in _live.values() if s.server is server), None) if key is not server else None
        session = held or _live.get(key) or make()
        if session.state in LIVE:
            _live[key] = session
    return session
