"""server.py without vLLM: what a request, a load test or a look at the memory says once the server has died."""

import http.server
import json
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from test_why import RANK_1_WAS_KILLED, reached, run, write

from localai_clusters import server as server_module
from localai_clusters.launch import journal
from localai_clusters.models import Model, look_up
from localai_clusters.server import Server, ServerError

__all__ = ["run"]  # a fixture

DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
REFUSED = "[0]:\n  rank      : 1 (local_rank: 1)\n  exitcode  : 1 (pid: 101)\n"
REQUESTS = {
    "complete": lambda server: server.complete("Hello"),
    "chat": lambda server: server.chat("Hello"),
    "bench": lambda server: server.bench(concurrency=1, requests=1),
    "memory": lambda server: server.memory(),
    "metrics": lambda server: server.metrics(),
}


class Guard:
    """In place of the process: it lives for so many seconds."""

    def __init__(self, seconds: float):
        self.ends = time.monotonic() + seconds

    def poll(self) -> int | None:
        return 0 if time.monotonic() >= self.ends else None


@pytest.fixture
def stub() -> Iterator[http.server.HTTPServer]:
    """Answers every POST with ``status`` and vLLM's words for a dead engine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"error": {"message": self.server.words}}).encode()
            self.send_response(self.server.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as answering:
        answering.status, answering.words = 500, DEAD
        threading.Thread(target=answering.serve_forever, daemon=True).start()
        yield answering
        answering.shutdown()


def server_of(run, url: str, seconds: float) -> Server:
    run._guard, run.id = Guard(seconds), "1124-001122-abcdef"
    run.stop = lambda: None
    model = Model("smollm2-135m", run.dir, look_up("smollm2-135m"), "built-in", "")
    return Server(run, model, None, httpx.Client(base_url=url))


@pytest.fixture
def dead(run) -> Server:
    """A server of two ranks, the second of which was killed; nobody listens at its port."""
    reached(run, 1, "python", "import", "ready")
    write(run.dir / "node0.log", RANK_1_WAS_KILLED)
    write(run.log(1), "INFO the last that it said\n")
    server = server_of(run, "http://127.0.0.1:9", 0.0)
    yield server
    server._client.close()


@pytest.mark.parametrize("name", REQUESTS)
def test_a_dead_server_says_in_one_line_why_then_where_and_what_to_type(dead, name):
    with pytest.raises(ServerError) as caught:
        REQUESTS[name](dead)
    why, where, what = str(caught.value).splitlines()
    assert why.startswith("the server is gone: rank 1 was killed by SIGKILL (by hand:") and why.endswith("while ready")
    assert (where, what) == (f"logs: {dead.run.dir}", "→ localai-clusters explain-log 1124-001122-abcdef")


def test_a_rank_that_failed_by_itself_is_told_with_its_error_on_the_same_line(dead):
    write(dead.run.dir / "node0.log", f"Root Cause (first observed failure):\n{REFUSED}")
    said = "RanksDisagree: out of step with rank 0 after 14 steps"
    journal.append(dead.run.dir / "rank1.jsonl", rank=1, pid=101, step="failed", error=f"{said}\nand more")
    with pytest.raises(ServerError) as caught:
        dead.complete("Hello")
    assert str(caught.value).splitlines()[0] == f"the server is gone: rank 1 exited with code 1 while ready: {said}"


def test_an_answer_of_a_dead_engine_waits_until_the_run_has_ended(dead, stub):
    server = server_of(dead.run, f"http://127.0.0.1:{stub.server_port}", 0.5)
    with pytest.raises(ServerError, match="the server is gone: rank 1 was killed by SIGKILL"):
        server.complete("Hello")
    server._client.close()


@pytest.mark.parametrize(("status", "words"), [(400, "too long"), (500, "the regex does not compile")])
def test_a_refusal_of_a_living_server_is_not_waited_with(dead, stub, status, words):
    stub.status, stub.words = status, words
    server, began = server_of(dead.run, f"http://127.0.0.1:{stub.server_port}", 60.0), time.monotonic()
    with pytest.raises(ServerError, match=f"^the server answered {status}: {words}$"):
        server.complete("Hello")
    assert time.monotonic() - began < 2
    server._client.close()


def test_a_server_that_does_not_end_is_not_called_gone(dead, monkeypatch):
    monkeypatch.setattr(server_module, "SECONDS_TO_END", 0.2)
    dead.run._guard = Guard(60.0)
    with pytest.raises(ServerError, match=r"^no answer from http://127\.0\.0\.1:9/?/v1/completions: "):
        dead.complete("Hello")


def test_a_server_that_was_stopped_is_not_called_gone(dead):
    dead._client.close()
    with pytest.raises(ServerError, match="was stopped"):
        dead.complete("Hello")
    assert dead.memory().ranks[1].resident is None
