"""A prompt in, tokens out as they come."""

import html
import json
import threading
import time
from typing import Any

import httpx

from localai_clusters.errors import server_words
from localai_clusters.server import Server
from localai_clusters.widgets import pages
from localai_clusters.widgets.seen import RUNNING, Seen
from localai_clusters.widgets.session import Session, session_of
from localai_clusters.widgets.views import View

SECONDS_BETWEEN_SHOWS = 0.25
SECONDS_OF_SILENCE = 600.0
MOST_PROMPT = 8000  # characters; the model's own limit is less and says so itself
FIRST_PROMPT = "What is tensor parallelism?"


class ChatView(View):
    """One question at a time to a running server; what is asked here is for looking at and goes into no record."""

    def __init__(self, session: Session, max_tokens: int = 128):
        self.max_tokens = max_tokens
        self.prompt, self.answer, self.note = "", "", ""
        self._box: Any = None
        self._send: Any = None
        self._thread: threading.Thread | None = None
        super().__init__(session)

    def ask(self, prompt: str, wait: bool = True) -> str:
        """Ask and stream the answer; returns it, or what came so far if not ``wait``. One question at a time."""
        if prompt.strip() and not self.is_asking():
            self.prompt, self.answer, self.note = prompt[:MOST_PROMPT], "", "waiting for the first token"
            self._thread = threading.Thread(target=self._stream, name="lac-chat", daemon=True)
            self._thread.start()
            self._enable()
        thread = self._thread  # it sets this to None at its end
        if wait and thread is not None:
            thread.join()
        return self.answer

    def is_asking(self) -> bool:
        return self._thread is not None and self._thread.is_alive() and self._thread is not threading.current_thread()

    def _stream(self) -> None:
        server = self.session.server
        try:
            if server is None or self.session.state != RUNNING:
                self.note = "no server is running; start one"
                return
            self._read(server)
        except (httpx.HTTPError, OSError, ValueError) as error:
            self.note = f"broken off: {str(error) or type(error).__name__}"
        finally:
            self._thread = None
            self._write()
            self._enable()

    def _read(self, server: Server) -> None:
        body = {"model": server.plan.served_name, "messages": [{"role": "user", "content": self.prompt}]}
        body |= {"max_tokens": self.max_tokens, "temperature": 0, "stream": True}
        begun, shown, first, tokens = time.monotonic(), 0.0, None, 0
        headers = {"headers": server._headers(), "timeout": SECONDS_OF_SILENCE}
        with httpx.stream("POST", f"{server.url.rstrip('/')}/v1/chat/completions", json=body, **headers) as answer:
            if answer.status_code != 200:
                self.note = f"the server answered {answer.status_code}: {server_words(answer.read().decode())}"
                return
            for line in answer.iter_lines():
                if not line.startswith("data:") or line.endswith("[DONE]"):
                    continue
                chunk = json.loads(line[5:])
                if "error" in chunk:
                    self.note = f"broken off: {server_words(line[5:])}"
                    return
                text = chunk["choices"][0]["delta"].get("content") if chunk.get("choices") else None
                if not text:
                    continue
                now = time.monotonic()
                first, tokens = first or now, tokens + 1
                self.answer += text
                self.note = f"{tokens} chunks, first after {first - begun:.2f} s"
                if tokens > 1:
                    self.note += f", then {(tokens - 1) / max(now - first, 1e-9):.0f} a second"
                if now - shown > SECONDS_BETWEEN_SHOWS:
                    shown = now
                    self._write()

    # What is shown

    def show(self, seen: Seen) -> None:
        self.seen = seen
        self._enable()

    def _enable(self) -> None:
        if self._send is not None:
            self._send.disabled = self.session.state != RUNNING or self.is_asking()

    def _write(self) -> None:
        if self._areas:
            self._areas[0].value = self._page()

    def _page(self) -> str:
        if not self.prompt:
            return ""
        return (
            f"<div role='log' aria-live='polite' aria-label='answer' style='{pages.TEXT}'>"
            f"<div style='{pages.QUIET}'>&gt; {html.escape(self.prompt)}</div>"
            f"<div style='white-space:pre-wrap'>{html.escape(self.answer)}</div>"
            f"<div style='{pages.QUIET}'>{html.escape(self.note)}</div></div>"
        )

    def _build(self) -> Any:
        import ipywidgets

        wide = ipywidgets.Layout(width="min(40em, 75%)")
        self._box = ipywidgets.Text(value=FIRST_PROMPT, description="Prompt", layout=wide)
        self._box.on_msg(self._message)
        self._send = ipywidgets.Button(description="Send", tooltip="Send the prompt to the running server")
        self._send.on_click(lambda _: self.ask(self._box.value, wait=False))
        self._areas = [ipywidgets.HTML(value=self._page())]
        return ipywidgets.VBox([ipywidgets.HBox([self._box, self._send]), *self._areas])

    def _message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        if isinstance(content, dict) and content.get("event") == "submit":  # Enter
            self.ask(self._box.value, wait=False)

    def __str__(self) -> str:
        if not self.prompt:
            return "no question was asked; .ask('...') asks one"
        return "\n".join(filter(None, (f"> {self.prompt}", self.answer, f"({self.note})" if self.note else "")))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._page() or f"<div>{html.escape(str(self))}</div>"


def chat_view(server: Server, max_tokens: int = 128) -> ChatView:
    """A box for a prompt; its answer appears token by token."""
    return ChatView(session_of(server), max_tokens)
