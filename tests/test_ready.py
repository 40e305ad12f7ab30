"""launch/ready.py: which rank failed, how and why, from logs that torchrun and vLLM wrote; and when a run is ready."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from localai_clusters.launch import journal
from localai_clusters.launch.ready import (
    answers,
    exit_code_of,
    how_it_exited,
    last_error,
    last_lines,
    wait_until_ready,
    why_it_ended,
)
from localai_clusters.launch.run import STEPS, LaunchError, Run
from localai_clusters.plan import ServePlan

# Recorded from torchrun (torch 2.13.0); the traceback above the table is cut.
RULE, LINE = "=" * 60, "-" * 60
HEAD = f"""\
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
{RULE}
localai_clusters.serving.rank FAILED
{LINE}
Failures:
"""
RANK_1_REFUSED_ITS_FLAGS_FIRST = f"""{HEAD}[1]:
  time      : 2026-11-23_11:58:42
  host      : localhost
  rank      : 0 (local_rank: 0)
  exitcode  : 2 (pid: 10019)
  error_file: <N/A>
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
{LINE}
Root Cause (first observed failure):
[0]:
  time      : 2026-11-23_11:58:42
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : 2 (pid: 10020)
  error_file: <N/A>
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
{RULE}
"""
RANK_1_WAS_KILLED = f"""{HEAD}  <NO_OTHER_FAILURES>
{LINE}
Root Cause (first observed failure):
[0]:
  time      : 2026-11-23_12:10:20
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 13032)  (SIGKILL)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 13032
{RULE}
"""
PORT_TAKEN = """\
  File "/x/torch/distributed/elastic/rendezvous/static_tcp_rendezvous.py", line 76, in next_rendezvous
    self._store = TCPStore(  # type: ignore[call-arg]
                  ^^^^^^^^^
torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. port: 29500
"""
VLLM_TRACEBACK = """\
INFO 11-23 12:02:11 [model.py:1745] Using max model len 2048
Traceback (most recent call last):
  File "/x/vllm/config/parallel.py", line 1, in verify
    raise ValueError(
ValueError: Total number of attention heads (9) must be divisible by tensor parallel size (2).

"""


@pytest.fixture
def run(tmp_path) -> Run:
    """A run of two ranks that was recorded, not started: only its folder and its plan are there."""
    recorded = object.__new__(Run)
    recorded.plan = ServePlan(tensor_parallel_size=2)
    recorded.dir = tmp_path
    recorded.started_at = 0.0
    return recorded


def reached(run: Run, rank: int, *steps: str) -> None:
    for step in steps:
        journal.append(run.dir / f"rank{rank}.jsonl", rank=rank, pid=100 + rank, step=step)


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


# Why a run ended


def test_the_rank_that_failed_first_is_named_with_what_vllm_said(run):
    write(run.dir / "node0.log", RANK_1_REFUSED_ITS_FLAGS_FIRST)
    write(run.log(1), VLLM_TRACEBACK)
    write(run.log(0), "RuntimeError: Connection closed by peer\n")  # what followed from it
    reached(run, 0, "python", "import")
    reached(run, 1, "python", "import")
    assert why_it_ended(run) == (
        "rank 1 exited with code 2 while importing vLLM\n"
        "ValueError: Total number of attention heads (9) must be divisible by tensor parallel size (2).\n"
        f"logs: {run.dir}"
    )
    assert (exit_code_of(run, 1), exit_code_of(run, 0)) == (2, None)


def test_a_killed_rank_is_named_with_its_signal(run):
    write(run.dir / "node0.log", RANK_1_WAS_KILLED)
    write(run.log(1), "INFO one\nINFO two\n\nINFO three\n")
    reached(run, 1, *list(STEPS)[:-1])
    assert why_it_ended(run) == (
        "rank 1 was killed by SIGKILL (by hand, or by the kernel for want of memory: see dmesg) while ready\n"
        f"INFO one\nINFO two\nINFO three\nlogs: {run.dir}"
    )
    assert exit_code_of(run, 1) == -9


def test_a_rank_that_wrote_no_log_is_explained_by_its_agents(run):
    write(run.dir / "node0.log", f"ImportError: libcudart.so.12: cannot open\n{RANK_1_WAS_KILLED}")
    told = why_it_ended(run)
    assert told.startswith("rank 1 was killed by SIGKILL")
    assert "while not started yet\nImportError: libcudart.so.12: cannot open\n" in told


def test_a_rank_of_another_node_is_named_too(run):
    log = RANK_1_WAS_KILLED.replace("rank      : 1 (local_rank: 1)", "rank      : 3 (local_rank: 1)")
    write(run.dir / "node0.log", log)
    assert why_it_ended(run).startswith("rank 3 was killed by SIGKILL")
    assert exit_code_of(run, 3) == -9


def test_what_a_rank_said_of_its_own_failure_comes_before_its_log(run):
    write(run.dir / "node0.log", RANK_1_REFUSED_ITS_FLAGS_FIRST)
    write(run.log(1), "KeyError: something that was caught\n")
    reached(run, 1, "python", "import", "weights")
    journal.append(run.dir / "rank1.jsonl", rank=1, pid=101, step="failed", error="OSError: no space left")
    assert why_it_ended(run).splitlines()[:2] == [
        "rank 1 exited with code 2 while loading its weights",
        "OSError: no space left",
    ]


def test_an_agent_that_failed_itself_is_explained_by_its_last_lines(run):
    write(run.dir / "node0.log", PORT_TAKEN)
    journal.append(run.dir / "guard.jsonl", event="started", pid=1)
    journal.append(run.dir / "guard.jsonl", event="stopped", reason="torchrun's agent on node 0 exited with 1")
    told = why_it_ended(run)
    assert told.startswith("the run ended: torchrun's agent on node 0 exited with 1\n")
    assert "failed to listen on any local network address. port: 29500" in told
    assert exit_code_of(run, 0) is None


def test_a_run_that_left_no_word(run):
    assert why_it_ended(run) == f"the run ended: its guard died\n\nlogs: {run.dir}"


def test_bytes_that_are_no_text_do_not_hide_the_cause(run):
    (run.dir / "node0.log").write_bytes(b"\xff\xfe\n" + RANK_1_WAS_KILLED.encode())
    run.log(1).write_bytes(b"\xff\xfe\nRuntimeError: out of memory\n")
    assert "RuntimeError: out of memory" in why_it_ended(run)


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "exited with code 0"), (2, "exited with code 2"), (-11, "was killed by SIGSEGV"),
     (-35, "was killed by signal 35"), (-64, "was killed by SIGRTMAX")],
)  # fmt: skip
def test_how_a_process_exited(code, words):
    assert how_it_exited(code) == words


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("ValueError: no", "ValueError: no"),
        ("torch.distributed.DistNetworkError: no", "torch.distributed.DistNetworkError: no"),
        ("(EngineCore pid=7) ERROR 11-23 [core.py:1] RuntimeError: no", "RuntimeError: no"),
        ("[rank1]: huggingface_hub.errors.GatedRepoError: 401", "huggingface_hub.errors.GatedRepoError: 401"),
    ],
)
def test_the_line_that_says_why(line, error):
    assert last_error(f"INFO a\nKeyError: earlier\n{line}\nINFO b\n") == error


def test_a_log_without_an_exception_is_told_by_its_end():
    log = "\n".join(f"line {number}" for number in range(9)) + "\n\n"
    assert last_error(log) == "line 4\nline 5\nline 6\nline 7\nline 8"
    assert last_lines("") == ""
    assert last_error("The word ValueError: inside a sentence") == "The word ValueError: inside a sentence"


# When a run is ready


@pytest.fixture
def server():
    """A server whose ``/health`` and ``/v1/completions`` give the statuses that the test sets."""

    class Handler(BaseHTTPRequestHandler):
        def reply(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(served.statuses[self.path])
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_POST = reply

        def log_message(self, *_):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.statuses = {"/health": 200, "/v1/completions": 200}
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    with httpx.Client(base_url=f"http://127.0.0.1:{served.server_address[1]}") as client:
        yield served, client
    served.shutdown()
    served.server_close()


@pytest.mark.parametrize(("health", "completion", "ready"), [(200, 200, True), (503, 200, False), (200, 500, False)])
def test_ready_is_a_completion_that_comes_back(server, health, completion, ready):
    served, client = server
    served.statuses = {"/health": health, "/v1/completions": completion}
    assert answers(client, "m") is ready


def test_a_server_that_is_not_there_is_not_ready():
    with httpx.Client(base_url="http://127.0.0.1:9") as client:
        assert not answers(client, "m")


@pytest.fixture
def living(run):
    """``run`` as one that still runs, until the test says otherwise."""
    run._guard = type("Guard", (), {"poll": lambda self: None})()
    return run


def test_waiting_ends_when_rank_0_answers_and_shows_every_step_once(living, server):
    reached(living, 0, "python")
    shown = []

    def on_progress(ranks, seconds):
        shown.append([rank.step for rank in ranks])
        if len(shown) == 1:
            reached(living, 1, "python", "import")
        else:
            reached(living, 0, "http")

    assert wait_until_ready(living, server[1], "m", on_progress, seconds=1e12) > 0
    assert shown[0] == ["python", None]
    assert shown[-1] == ["http", "import"]


def test_waiting_gives_up_and_says_where_each_rank_is(living, server):
    reached(living, 0, "python", "weights")
    with pytest.raises(LaunchError) as caught:
        wait_until_ready(living, server[1], "m", lambda ranks, seconds: None, seconds=1)
    assert "rank 0: loading its weights; rank 1: not started yet" in str(caught.value)
    assert caught.value.run_dir == living.dir


def test_waiting_ends_with_the_run(run, server):
    run._guard = type("Guard", (), {"poll": lambda self: 0})()
    write(run.dir / "node0.log", RANK_1_WAS_KILLED)
    with pytest.raises(LaunchError, match="rank 1 was killed by SIGKILL"):
        wait_until_ready(run, server[1], "m", lambda ranks, seconds: None)
