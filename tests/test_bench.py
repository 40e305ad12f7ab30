"""bench.py: the arithmetic of the load client, on a small server made here that streams what it is told to.

No vLLM: that the figures mean something on the real server is test_serving.py's. Times are checked from below only.
Last, the arithmetic of bench/: ratios, and seconds per import.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bench import ratios
from bench.startup import heaviest_imports, seconds_of
from localai_clusters.bench import Load, LoadError, Spread, load, spread
from localai_clusters.recording import _load

TOKEN = {"choices": [{"index": 0, "text": " a", "finish_reason": None}], "usage": None}
Script = Callable[["Stub"], None]


class Stub(BaseHTTPRequestHandler):
    """Writes server-sent events, as a script says; ``asked`` holds the bodies it got."""

    script: Script
    asked: list[dict]
    connections: list[int]
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.connections.append(1)

    def do_POST(self):
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        type(self).script(self)

    def begin(self, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def event(self, value: dict | str) -> None:
        self.send(f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n")

    def usage(self, tokens: int) -> None:
        self.event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": tokens}})

    def end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def server(script: Script) -> Iterator[tuple[str, type[Stub]]]:
    handler = type("Scripted", (Stub,), {"script": staticmethod(script), "asked": [], "connections": []})
    stub = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=stub.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{stub.server_address[1]}", handler
    finally:
        stub.shutdown()
        stub.server_close()


def three_chunks_of_five_tokens(stub: Stub) -> None:
    """0.05 s to the first chunk, 0.02 s to each of the next two; the last holds three tokens."""
    stub.begin()
    for seconds in (0.05, 0.02, 0.02):
        time.sleep(seconds)
        stub.event(TOKEN)
    stub.usage(5)
    stub.event("[DONE]")
    stub.end()


def why_it_failed(script: Script) -> str:
    with server(script) as (url, _), pytest.raises(LoadError) as caught:
        load(url, "m", 1, 1, 5)
    return str(caught.value)


def test_percentiles_are_interpolated_between_neighbours():
    assert spread([4.0, 1.0, 3.0, 2.0]) == pytest.approx((2.5, 3.97))
    assert spread([0.25]) == (0.25, 0.25)
    assert spread(list(range(101))) == (50, 99)


def test_percentiles_are_numpys():
    numpy = pytest.importorskip("numpy")
    times = [0.013 * (7 * n % 31) ** 1.5 for n in range(257)]
    assert spread(times) == pytest.approx(tuple(numpy.percentile(times, [50, 99])))


def test_tokens_are_counted_from_usage_and_times_from_chunks():
    with server(three_chunks_of_five_tokens) as (url, stub):
        found = load(url, "m", 2, 6, 5, {"Authorization": "Bearer s"})
    assert (found.concurrency, found.requests, found.output_tokens) == (2, 6, 30)
    assert found.seconds >= 3 * 0.09
    assert found.tokens_per_second == pytest.approx(30 / found.seconds)
    assert 0.05 <= found.ttft.p50 <= found.ttft.p99
    assert 0 < found.itl.p50 <= found.itl.p99
    assert len({body["prompt"] for body in stub.asked}) == 6
    assert all(body["stream"] and body["stream_options"] == {"include_usage": True} for body in stub.asked)
    assert len(stub.connections) == 2  # kept alive: no request but the first pays for one


def test_the_wait_for_the_first_chunk_is_no_gap_between_tokens():
    def late(stub: Stub) -> None:
        stub.begin()
        time.sleep(0.3)
        for _ in range(2):
            stub.event(TOKEN)
        stub.usage(2)
        stub.event("[DONE]")
        stub.end()

    with server(late) as (url, _):
        found = load(url, "m", 1, 1, 2)
    assert found.ttft.p50 >= 0.3
    assert found.itl.p50 == found.itl.p99  # one gap between two chunks, not two


def test_an_answer_of_one_chunk_has_no_gaps():
    def one(stub: Stub) -> None:
        stub.begin()
        stub.send(": a comment, as some servers send to keep a connection open\n\n")
        stub.event(TOKEN)
        stub.usage(1)
        stub.event("[DONE]")
        stub.end()

    with server(one) as (url, _):
        found = load(url, "m", 1, 2, 1)
    assert (found.output_tokens, found.itl) == (2, None)
    assert "first token" in str(found) and "between tokens" not in str(found)


def test_events_cut_anywhere_are_put_together_again():
    def in_pieces(stub: Stub) -> None:
        stub.begin()
        text = f"data: {json.dumps(TOKEN)}\n\n" * 3 + 'data: {"choices":[],"usage":{"completion_tokens":3}}\n\n'
        for start in range(0, len(text), 7):
            stub.send(text[start : start + 7])
        stub.event("[DONE]")
        stub.end()

    with server(in_pieces) as (url, _):
        assert load(url, "m", 1, 1, 3).output_tokens == 3


def test_an_error_in_the_middle_of_a_stream_is_raised_in_the_servers_words():
    def breaks_off(stub: Stub) -> None:
        stub.begin()
        stub.event(TOKEN)
        stub.event({"error": {"message": "EngineCore encountered an issue", "type": "InternalServerError"}})
        stub.event("[DONE]")
        stub.end()

    assert why_it_failed(breaks_off) == "the server broke an answer off: EngineCore encountered an issue"


def test_a_server_that_dies_midway():
    def dies(stub: Stub) -> None:
        stub.begin()
        stub.event(TOKEN)
        stub.event(TOKEN)
        stub.wfile.flush()
        stub.close_connection = True

    assert "no whole answer" in (told := why_it_failed(dies)) and "chunks that came: 2" in told


def test_a_stream_that_ends_without_its_end():
    def too_short(stub: Stub) -> None:
        stub.begin()
        stub.event(TOKEN)
        stub.end()

    assert "chunks that came: 1; it ended without its end" in why_it_failed(too_short)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"error": {"message": "no model m"}}', "the server answered 404: no model m"),
        ("<h1>Not here</h1>", "the server answered 404: <h1>Not here</h1>"),
    ],
)
def test_a_refusal_is_raised_in_the_servers_words(text, told):
    def refuses(stub: Stub) -> None:
        stub.begin(404)
        stub.send(text)
        stub.end()

    assert why_it_failed(refuses) == told


def test_an_answer_that_is_no_json():
    def babbles(stub: Stub) -> None:
        stub.begin()
        stub.event("{cut")
        stub.end()

    assert "chunks that came: 0" in why_it_failed(babbles)


def test_no_server():
    with server(three_chunks_of_five_tokens) as (url, _):
        pass
    with pytest.raises(LoadError, match=r"no whole answer from .*Connect"):
        load(url, "m", 2, 4, 5)


def test_one_failure_ends_the_load():
    """The other requests are given up, not waited for: the second would never be answered."""
    over = threading.Event()

    def first_fails(stub: Stub) -> None:
        if len(stub.asked) == 1:
            stub.begin(500)
            stub.end()
            return
        stub.begin()
        over.wait()

    with server(first_fails) as (url, _):
        with pytest.raises(LoadError, match="500"):
            load(url, "m", 2, 8, 5)
        over.set()


def test_a_checkpoint_records_the_latency():
    found = Load(2, 6, 30, 1.5, Spread(0.1, 0.2), Spread(0.01, 0.02))
    row = _load(_Server, found)
    latency = {name: value for name, value in row.items() if name.startswith(("ttft", "itl"))}
    assert latency == {"ttft_p50_s": 0.1, "ttft_p99_s": 0.2, "itl_p50_s": 0.01, "itl_p99_s": 0.02}


class _Server:
    class run:
        run_id = id = "r1"


def test_ratios_say_which_way_they_go():
    ours = {"ready": 10.0, "tokens_per_second/16": 300.0, "itl_p50/16": 0.02, "memory": 2.0 * ratios.GIB}
    theirs = {"ready": 20.0, "tokens_per_second/16": 200.0, "itl_p50/16": 0.03, "memory": 4.0 * ratios.GIB}
    assert ratios.rows(ours, theirs) == [
        ["time to ready", "10.0 s", "20.0 s", "0.50", "ours/theirs, lower is better"],
        ["throughput, 16 streams", "300 tokens/s", "200 tokens/s", "1.50", "ours/theirs, higher is better"],
        ["ITL p50, 16 streams", "20.0 ms", "30.0 ms", "1.50", "theirs/ours, higher is better"],
        ["memory (PSS)", "2.00 GiB", "4.00 GiB", "0.50", "ours/theirs, lower is better"],
    ]
    assert ratios.medians([{"ready": 1.0}, {"ready": 9.0}, {"ready": 2.0}]) == {"ready": 2.0}


def test_tables_hold_every_row():
    body = [["time to ready", "10.0 s", "20.0 s", "0.50", "ours/theirs, lower is better"]]
    lines = ratios.markdown("TP=2", body).splitlines()
    assert lines[-1] == "| time to ready | 10.0 s | 20.0 s | 0.50 | ours/theirs, lower is better |"
    assert {line.count("|") for line in lines[2:]} == {6}
    assert "0.50  ours/theirs" in ratios.plain("TP=2", body)


def test_imports_are_added_up_by_package():
    """As ``python -X importtime`` writes them: own and cumulative microseconds, importers after what they imported."""
    log = """\
import time: self [us] | cumulative | imported package
import time:       100 |        100 |     torch.nn
(EngineCore) INFO a line of vLLM's log
import time:       200 |        300 |   torch
import time:        50 |         50 |     vllm.config
import time:        30 |         80 |   vllm.engine
import time:        20 |        400 | vllm
import time:         5 |          5 | vllm.entrypoints
""".splitlines()
    expected = [("vllm", 405e-6, 105e-6), ("torch", 300e-6, 300e-6)]
    assert [name for name, *_ in heaviest_imports(log)] == ["vllm", "torch"]
    for found, wanted in zip(heaviest_imports(log), expected, strict=True):
        assert found[1:] == pytest.approx(wanted[1:])


def test_a_step_lasts_until_the_next():
    assert seconds_of({"python": 1.0, "import": 1.5, "ready": 4.0}) == {"python": 0.5, "import": 2.5}
