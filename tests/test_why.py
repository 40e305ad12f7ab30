"""launch/why.py: which rank of which node failed first, how and why, from logs that torchrun and vLLM wrote."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from localai_clusters.launch import journal
from localai_clusters.launch.run import STEPS, Run
from localai_clusters.launch.why import exit_code_of, how_it_exited, last_error, last_lines, why_it_ended
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
    recorded.nodes, recorded.node_ranks = None, range(1)
    return recorded


def reached(run: Run, rank: int, *steps: str) -> None:
    for step in steps:
        journal.append(run.dir / f"rank{rank}.jsonl", rank=rank, pid=100 + rank, step=step)


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def test_the_rank_that_failed_first_is_named_with_what_vllm_said(run):
    write(run.dir / "node0.log", RANK_1_REFUSED_ITS_FLAGS_FIRST)
    write(run.log(1), VLLM_TRACEBACK)
    write(run.log(0), "RuntimeError: Connection closed by peer\n")  # what followed from it
    reached(run, 0, "python", "import")
    reached(run, 1, "python", "import")
    assert why_it_ended(run) == (
        "rank 1 exited with code 2 while importing vLLM\n"
        "ValueError: Total number of attention heads (9) must be divisible by tensor parallel size (2).\n"
        "The attention heads do not divide by the tensor parallel size. "
        "The model has 9 attention heads, and 9 do not divide into 2 equal shares.\n"
        "→ --tensor-parallel-size 1\n"
        "→ --pipeline-parallel-size 2 splits by layers instead\n"
        f"logs: {run.dir}"
    )
    assert (exit_code_of(run, 1), exit_code_of(run, 0)) == (2, None)


def test_a_killed_rank_is_named_with_its_signal(run):
    write(run.dir / "node0.log", RANK_1_WAS_KILLED)
    write(run.log(1), "INFO one\nINFO two\n\nINFO three\n")
    reached(run, 1, *list(STEPS)[:-1])
    assert why_it_ended(run) == (
        "rank 1 was killed by SIGKILL (by hand: the kernel killed nothing for want of memory) while ready\n"
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


def test_a_rank_that_the_kernel_killed_for_want_of_memory_is_named_so(run):
    write(run.dir / "node0.log", RANK_1_WAS_KILLED)
    journal.append(run.dir / "guard.jsonl", event="oom-kill")
    assert why_it_ended(run).startswith("rank 1 was killed by SIGKILL (by the kernel, for want of memory: a smaller")


@pytest.fixture
def two_nodes(run) -> Run:
    """As ``run``, with rank 0 on node 0 and rank 1 on node 1, both on this machine."""
    run.plan = run.plan.with_(nnodes=2)
    run.node_ranks = range(2)
    run.nodes = SimpleNamespace(nodes=[SimpleNamespace(hostname="node0"), SimpleNamespace(hostname="node1")])
    return run


RANK_0_LOST_A_PEER = RANK_1_WAS_KILLED.replace("rank      : 1", "rank      : 0").replace(
    "exitcode  : -9 (pid: 13032)  (SIGKILL)", "exitcode  : 69 (pid: 13031)"
)


def test_the_rank_that_died_is_named_with_its_node_and_not_the_one_that_lost_it(two_nodes):
    write(two_nodes.dir / "node0.log", RANK_0_LOST_A_PEER)
    write(two_nodes.dir / "node1.log", RANK_1_WAS_KILLED)
    reached(two_nodes, 1, *list(STEPS)[:-1])
    journal.append(two_nodes.dir / "rank0.jsonl", rank=0, pid=100, step="failed", lost="rank 1 on node 1 is gone")
    assert why_it_ended(two_nodes).startswith("rank 1 on node 1 (node1) was killed by SIGKILL (by hand")
    assert (exit_code_of(two_nodes, 0), exit_code_of(two_nodes, 1)) == (69, -9)


def test_a_rank_of_another_machine_is_named_by_the_one_that_lost_it(two_nodes):
    two_nodes.nodes, two_nodes.node_ranks = None, range(1)
    write(two_nodes.dir / "node0.log", RANK_0_LOST_A_PEER)
    reached(two_nodes, 0, "python", "http")
    said = "rank 1 on node 1 (far) is gone: its process ended"
    journal.append(two_nodes.dir / "rank0.jsonl", rank=0, pid=100, step="failed", lost=said)
    assert why_it_ended(two_nodes).splitlines()[0] == said


def test_of_two_ranks_that_lost_each_other_the_first_is_believed(two_nodes):
    for rank, said in ((1, "rank 0 on node 0 (node0) is out of reach"), (0, "rank 1 on node 1 (node1) is gone")):
        journal.append(two_nodes.dir / f"rank{rank}.jsonl", rank=rank, pid=100 + rank, step="failed", lost=said)
    assert why_it_ended(two_nodes).startswith("rank 0 on node 0 (node0) is out of reach")


def test_a_killed_agent_is_the_cause_and_not_the_rank_that_went_with_it(two_nodes):
    journal.append(two_nodes.dir / "rank0.jsonl", rank=0, pid=100, step="failed", lost="rank 1 is gone")
    journal.append(two_nodes.dir / "guard.jsonl", event="agent-exit", node_rank=1, code=-9)
    journal.append(two_nodes.dir / "guard.jsonl", event="stopped", reason="torchrun's agent on node 1 exited with -9")
    assert why_it_ended(two_nodes).startswith("the run ended: torchrun's agent on node 1 exited with -9")


def test_a_stopped_rank_is_the_cause_and_not_the_kill_that_followed(two_nodes):
    write(two_nodes.dir / "node1.log", RANK_1_WAS_KILLED)
    reached(two_nodes, 1, "python")
    journal.append(two_nodes.dir / "guard.jsonl", event="stopped-process", pid=101, seconds=3.0)
    assert why_it_ended(two_nodes).startswith("rank 1 on node 1 (node1) was stopped (SIGSTOP)")


def test_a_stopped_agent_is_named_with_its_node(two_nodes):
    journal.append(two_nodes.dir / "guard.jsonl", event="started", pid=1, agents={"50": 0, "51": 1})
    journal.append(two_nodes.dir / "guard.jsonl", event="stopped-process", pid=51, seconds=3.0)
    assert why_it_ended(two_nodes).startswith("torchrun's agent on node 1 (node1) was stopped (SIGSTOP)")


def test_what_a_rank_said_of_its_own_failure_comes_before_its_log(run):
    write(run.dir / "node0.log", RANK_1_REFUSED_ITS_FLAGS_FIRST)
    write(run.log(1), "KeyError: something that was caught\n")
    reached(run, 1, "python", "import", "weights")
    journal.append(run.dir / "rank1.jsonl", rank=1, pid=101, step="failed", error="OSError: no space left")
    assert why_it_ended(run).splitlines()[:2] == [
        "rank 1 exited with code 2 while loading its weights",
        "OSError: no space left",
    ]


def test_a_refusal_is_told_without_all_its_settings(run):
    error = (
        "ValidationError: 1 validation error for VllmConfig\n  Value error, 9 heads on 2 ranks. "
        "[type=value_error, input_value=ArgsKwargs((), {'a': 1}), input_type=ArgsKwargs]\n"
        "    For further information visit https://errors.pydantic.dev/2.14/v/value_error"
    )
    write(run.dir / "node0.log", RANK_1_REFUSED_ITS_FLAGS_FIRST)
    journal.append(run.dir / "rank1.jsonl", rank=1, pid=101, step="failed", error=error)
    assert why_it_ended(run).splitlines()[1:3] == [
        "ValidationError: 1 validation error for VllmConfig",
        "  Value error, 9 heads on 2 ranks.",
    ]


def test_an_agent_that_failed_itself_is_explained_by_its_last_lines(run):
    write(run.dir / "node0.log", PORT_TAKEN)
    journal.append(run.dir / "guard.jsonl", event="started", pid=1)
    journal.append(run.dir / "guard.jsonl", event="stopped", reason="torchrun's agent on node 0 exited with 1")
    told = why_it_ended(run)
    assert told.startswith("the run ended: torchrun's agent on node 0 exited with 1\n")
    assert "failed to listen on any local network address. port: 29500" in told
    assert exit_code_of(run, 0) is None


def test_an_agents_own_failure_is_explained_with_its_port(run):
    write(run.dir / "node0.log", PORT_TAKEN)
    journal.append(run.dir / "guard.jsonl", event="stopped", reason="torchrun's agent on node 0 exited with 1")
    told = why_it_ended(run).splitlines()
    assert told[-4].startswith("The port at which the ranks meet is taken. Something listens at port 29500 already")
    assert told[-3:-1] == ["→ ss -ltnp 'sport = :29500'", "→ --master-port 29501 on every node"]


@pytest.mark.parametrize("log", ["ValueError: a refusal that nobody has seen\n", "KeyError: 7\n", ""])
def test_what_is_not_known_is_not_explained(run, log):
    write(run.dir / "node0.log", RANK_1_REFUSED_ITS_FLAGS_FIRST)
    write(run.log(1), log)
    assert "→" not in why_it_ended(run)


def test_a_log_that_is_no_text_hides_nothing(run):
    write(run.dir / "node0.log", RANK_1_REFUSED_ITS_FLAGS_FIRST)
    run.log(1).write_bytes(bytes(4096))
    assert why_it_ended(run).startswith("rank 1 exited with code 2")


@pytest.mark.parametrize("code", ["-9", "-11", "143"])
def test_a_rank_that_a_signal_ended_is_not_explained_by_what_its_log_says(run, code):
    log = RANK_1_REFUSED_ITS_FLAGS_FIRST.replace("exitcode  : 2 (pid: 10020)", f"exitcode  : {code} (pid: 10020)")
    write(run.dir / "node0.log", log)
    write(run.log(1), VLLM_TRACEBACK)
    assert "→" not in why_it_ended(run)


def test_what_is_only_a_guess_is_not_shown_with_a_failed_launch(run):
    write(run.dir / "node0.log", RANK_1_REFUSED_ITS_FLAGS_FIRST)
    write(run.log(1), "RuntimeError: [/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:41822\n")
    assert "→" not in why_it_ended(run)


def test_another_ranks_log_explains_nothing(run):
    write(run.dir / "node0.log", RANK_1_REFUSED_ITS_FLAGS_FIRST)
    write(run.log(1), "ValueError: a refusal that nobody has seen\n")
    write(run.log(0), VLLM_TRACEBACK)
    assert "→" not in why_it_ended(run)


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
