"""serving/heartbeat.py: ranks that tell each other that they live. Rank 1 is a process of its own; no vLLM is needed.

A cut network is tested with real nodes in tests/test_nodes.py.
"""

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from localai_clusters.serving import heartbeat
from localai_clusters.serving.heartbeat import Heartbeat
from localai_clusters.serving.process import Rank

SECONDS = 20  # far above every limit here: only a hang meets it

RANK_1 = """
import sys, time
from localai_clusters.serving.heartbeat import Heartbeat
from localai_clusters.serving.process import Rank

def lost(problem):
    print("lost:", problem, flush=True)

beats = Heartbeat(Rank(1, 0, 2, 1, 1, 2), lost)
meeting = sys.stdin.readline()

class Store:
    def get(self, key):
        return meeting

    def check(self, keys):
        return True

beats.start(Store())
beats.built()
print("started", flush=True)
for command in sys.stdin:
    exec(command)
"""


class Job:
    """Rank 0 in this process, rank 1 in another."""

    def __init__(self):
        self.losses: queue.Queue[str] = queue.Queue()
        self.heartbeat = Heartbeat(Rank(0, 0, 2, 1, 0, 2), self.losses.put)
        command = [sys.executable, "-c", RANK_1]
        self.rank_1 = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.address: tuple[str, int] | None = None

    def start(self) -> None:
        self.heartbeat.start(self)
        self.heartbeat.built()
        assert self.rank_1.stdout.readline() == "started\n"
        self.await_turn(0)

    def set(self, key: str, value: str) -> None:
        """The store by which the two meet: rank 1 reads it from its standard input."""
        self.address = tuple(json.loads(value)[:2])
        self.rank_1.stdin.write(value + "\n")

    def await_turn(self, turn: int) -> None:
        """Until rank 0 has heard that rank 1 is in ``turn``."""
        deadline = time.monotonic() + SECONDS
        while [peer.turn for peer in self.heartbeat._peers] != [turn]:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def tell(self, command: str) -> None:
        self.rank_1.stdin.write(command + "\n")

    def said(self) -> str:
        return self.rank_1.stdout.readline()

    def loss(self) -> str:
        return self.losses.get(timeout=SECONDS)


@pytest.fixture
def job(monkeypatch):
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")
    made = Job()
    yield made
    made.heartbeat.stop()
    made.rank_1.kill()
    made.rank_1.communicate()


RANK_1_IS = f"rank 1 on node 1 ({socket.gethostname()})"


def test_a_killed_rank_is_gone_at_once(job):
    job.start()
    job.rank_1.kill()
    assert job.loss() == f"{RANK_1_IS} is gone: its process ended"


def test_a_stopped_rank_falls_silent(job, monkeypatch):
    monkeypatch.setattr(heartbeat, "SILENT_SECONDS", 1.5)
    job.start()
    job.rank_1.send_signal(signal.SIGSTOP)
    assert job.loss() == f"{RANK_1_IS} is stopped or stuck: its connection is open, and nothing was heard for 2 s"


def test_a_machine_that_slept_has_lost_nobody(job, monkeypatch):
    """Both ranks stand still, as on a laptop whose lid was closed. Then they go on, and a real loss is still seen."""
    monkeypatch.setattr(heartbeat, "NETWORK_SECONDS", 2.5)
    monkeypatch.setattr(heartbeat, "SILENT_SECONDS", 2.5)
    monkeypatch.setattr(heartbeat, "HELD_UP_SECONDS", 1.0)
    job.start()
    selector, asleep = job.heartbeat._selector, threading.Event()

    def sleep_once(timeout=None):
        monkeypatch.setattr(selector, "select", select)
        job.rank_1.send_signal(signal.SIGSTOP)
        asleep.set()
        time.sleep(4)
        threading.Timer(0.2, job.rank_1.send_signal, [signal.SIGCONT]).start()  # it wakes up a little later
        return []

    select = selector.select
    monkeypatch.setattr(selector, "select", sleep_once)
    assert asleep.wait(timeout=SECONDS)
    with pytest.raises(queue.Empty):
        job.losses.get(timeout=5)
    job.rank_1.send_signal(signal.SIGSTOP)
    assert "stopped or stuck" in job.loss()


def test_a_rank_that_fails_says_why(job):
    job.start()
    job.tell('beats.failed("ValueError: nine heads")')
    assert job.loss() == f"{RANK_1_IS} failed: ValueError: nine heads"


def test_a_rank_that_is_told_to_stop_alone_is_missed_as_such(job):
    job.start()
    job.rank_1.send_signal(signal.SIGTERM)
    assert job.loss() == f"{RANK_1_IS} was told to stop (SIGTERM)"
    assert job.rank_1.wait(timeout=SECONDS) == 128 + signal.SIGTERM


def test_sigterm_ends_a_rank_whose_main_thread_waits_in_c(job):
    job.start()
    job.tell("import ctypes; ctypes.CDLL(None).pause()")  # not interrupted by Python's own handlers
    job.rank_1.send_signal(signal.SIGTERM)
    assert job.rank_1.wait(timeout=SECONDS) == 128 + signal.SIGTERM


def test_rank_0s_own_end_reaches_the_others_with_its_reason(job):
    job.start()
    job.heartbeat.failed("OSError: no space left")
    assert job.said() == f"lost: rank 0 on node 0 ({socket.gethostname()}) failed: OSError: no space left\n"


def test_when_all_stop_nobody_is_missed(job):
    job.start()
    job.tell("beats.stop()")
    job.heartbeat.stop()
    with pytest.raises(queue.Empty):
        job.losses.get(timeout=2 * heartbeat.STOP_SECONDS)


def test_a_step_that_does_not_end_names_who_has_not_arrived(job, monkeypatch):
    monkeypatch.setattr(heartbeat, "STEP_SECONDS", 1.5)
    job.start()
    job.tell("beats.step_begins(6); beats.step_ends()")
    job.heartbeat.step_begins(7)
    assert job.loss() == f"step 7 has not ended for 2 s; not arrived at it: {RANK_1_IS}"


def test_strangers_are_sent_away_and_do_not_take_a_ranks_place(job, monkeypatch):
    monkeypatch.setattr(heartbeat, "HELLO_SECONDS", 0.5)
    job.start()
    guess = json.dumps({"token": "guess", "rank": 1}).encode() + b"\n"
    for hello in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b"\xff\n", guess, b"x" * 10_000, b""):
        with socket.create_connection(job.address, timeout=SECONDS) as stranger:
            stranger.sendall(hello)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
    job.rank_1.kill()
    assert job.loss().startswith(RANK_1_IS)


def test_a_rank_that_never_comes_is_missed(job, monkeypatch):
    monkeypatch.setattr(heartbeat, "CONNECT_SECONDS", 1.0)
    job.rank_1.kill()
    job.heartbeat.start(SimpleNamespace(set=lambda key, value: None))
    assert job.loss() == "rank 1 has not been heard of for 1 s"


def test_a_meeting_place_out_of_reach_is_named(monkeypatch):
    losses: queue.Queue[str] = queue.Queue()

    def check(keys):
        raise RuntimeError("wait timeout after 60000ms\nmore")

    lonely = Heartbeat(Rank(1, 0, 2, 1, 1, 2), losses.put)
    monkeypatch.setattr(lonely, "_end_on_sigterm", lambda: None)  # this process keeps its own handler
    lonely.start(SimpleNamespace(check=check))
    assert losses.get(timeout=SECONDS) == "rank 0 on node 0 is out of reach: wait timeout after 60000ms"


def test_a_rank_0_that_never_says_where_it_is_is_missed(monkeypatch):
    monkeypatch.setattr(heartbeat, "CONNECT_SECONDS", 0.5)
    losses: queue.Queue[str] = queue.Queue()
    lonely = Heartbeat(Rank(1, 0, 2, 1, 1, 2), losses.put)
    monkeypatch.setattr(lonely, "_end_on_sigterm", lambda: None)
    lonely.start(SimpleNamespace(check=lambda keys: False))
    assert losses.get(timeout=SECONDS) == "rank 0 on node 0 has not been heard of for 0 s"


NOBODY_YET = RANK_1.replace("return True", "return False").replace("beats.built()", "")


@pytest.mark.parametrize("waits_in", ["input()", "import ctypes; ctypes.CDLL(None).pause()"])
def test_sigterm_ends_a_rank_that_still_looks_for_rank_0(waits_in):
    command = [sys.executable, "-c", NOBODY_YET.replace("for command in sys.stdin", f"{waits_in}\nfor _ in ()")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as rank_1:
        rank_1.stdin.write("\n")
        rank_1.stdin.flush()
        assert rank_1.stdout.readline() == "started\n"
        rank_1.send_signal(signal.SIGTERM)
        assert rank_1.wait(timeout=SECONDS) == 128 + signal.SIGTERM


def test_one_rank_alone_opens_no_port(monkeypatch):
    monkeypatch.delenv("VLLM_HOST_IP", raising=False)
    before = threading.active_count()
    Heartbeat(Rank(0, 0, 1, 1, 0, 1), os.abort).start(SimpleNamespace())
    assert threading.active_count() == before
