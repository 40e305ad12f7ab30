"""Real launches that end badly: whoever dies, nothing of the run is left, and the message says who and why."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from leftovers_of import SECONDS_TO_END, assert_nothing_left, leftovers_of, newest_run

import localai_clusters as lac
from localai_clusters.launch import leftovers, processes
from localai_clusters.launch.ready import serving as serving_of
from localai_clusters.launch.ready import wait_until_ready
from localai_clusters.launch.run import LaunchError, Run, runs_dir
from localai_clusters.launch.why import why_it_ended
from localai_clusters.server import ServerError, base_url, with_ports

PLAN = lac.ServePlan(tensor_parallel_size=2, dtype="float32", max_model_len=512, port=0, master_port=0)
CLI = [str(Path(sys.executable).with_name("localai-clusters"))]
SERVE = [*CLI, "serve", "-tp", "2", "--dtype", "float32", "--max-model-len", "512", "--port", "0", "--master-port", "0"]


def guard_pid(server) -> int:
    return next(event["pid"] for event in server.run.events() if event["event"] == "started")


def wait_for(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_a_killed_rank_ends_the_run_and_is_named():
    with lac.serve(PLAN) as server:
        os.kill(server.ranks()[1].pid, signal.SIGKILL)
        wait_for(lambda: not server.is_running(), 10)
        assert_nothing_left(server.run, seconds=0)
        with pytest.raises(ServerError, match=r"rank 1 was killed by SIGKILL"):
            server.complete("Hello")


def test_a_killed_agent_takes_its_ranks_along():
    with lac.serve(PLAN) as server:
        agent = int(next(iter(server.run.events()[0]["agents"])))
        os.kill(agent, signal.SIGKILL)
        assert_nothing_left(server.run)
        with pytest.raises(ServerError, match="agent on node 0 exited with -9"):
            server.complete("Hello")


def test_a_killed_guard_takes_everything_along_and_the_next_run_sweeps_up():
    server = lac.serve(PLAN)
    os.kill(guard_pid(server), signal.SIGKILL)
    wait_for(lambda: not leftovers_of(server.run.id)["processes"], SECONDS_TO_END)
    assert leftovers_of(server.run.id)["shared memory"], "nothing was left to sweep: this test shows nothing"
    leftovers.sweep(runs_dir())
    assert_nothing_left(server.run, seconds=0)
    server.stop()


def test_a_rank_stopped_with_sigstop_does_not_outlive_stop():
    with lac.serve(PLAN) as server:
        os.kill(server.ranks()[1].pid, signal.SIGSTOP)
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < SECONDS_TO_END
        assert_nothing_left(server.run, seconds=0)


def test_ranks_that_no_longer_agree_end_the_server_with_a_clear_cause():
    """Rank 1 draws from another seed. Greedy requests do not show it; the first sampled token does."""
    plan = with_ports(PLAN.with_(kv_cache_memory_bytes=128 << 20))
    torchrun = [sys.executable, "-m", *"torch.distributed.run --nproc-per-node=2 --master-port".split()]
    script = str(Path(__file__).with_name("rank_with_its_own_seed.py"))
    run = Run(plan, argv=[*torchrun, str(plan.master_port), script, *plan.rank_args()])
    try:
        with httpx.Client(base_url=base_url(plan), timeout=60) as client:
            wait_until_ready(run, serving_of(client, plan.model), lambda ranks, seconds: None, seconds=120)
            ask = {"model": plan.model, "prompt": "Hello", "max_tokens": 8}
            assert client.post("/v1/completions", json=ask | {"temperature": 0}).status_code == 200
            assert client.post("/v1/completions", json=ask | {"temperature": 1, "max_tokens": 64}).status_code == 500
        wait_for(lambda: not run.is_running(), 10)
    finally:
        run.stop()
    assert "rank 1 exited with code 1 while ready\nRanksDisagree: out of step with rank 0 after" in why_it_ended(run)
    assert_nothing_left(run, seconds=0)


def test_beyond_loopback_a_key_is_made_and_asked_for():
    with lac.serve(PLAN.with_(host="0.0.0.0", tensor_parallel_size=1)) as server:
        assert server.complete("Hello", max_tokens=2).token_ids
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        answer = httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {server.api_key}"})
        assert answer.status_code == 200 and len(server.api_key) >= 32
    for path in filter(Path.is_file, server.run.dir.rglob("*")):
        assert server.api_key not in path.read_text(errors="replace"), path.name
    assert server.api_key not in repr(server) + json.dumps(server.to_dict())


@pytest.mark.extended
def test_an_exception_in_the_with_block_stops_the_server():
    with pytest.raises(ZeroDivisionError), lac.serve(PLAN) as server:
        1 / 0  # noqa: B018
    assert_nothing_left(server.run, seconds=0)


@pytest.fixture
def serving():
    """``localai-clusters serve`` as a process of its own, and a way to wait for what it prints."""
    process = subprocess.Popen(SERVE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1)

    def read_until(text: str) -> str:
        seen = ""
        for line in process.stdout:
            seen += line
            if text in line:
                return seen
        raise AssertionError(f"ended without {text!r}:\n{seen}")

    process.read_until = read_until
    yield process
    process.kill()
    process.wait()


STARTING, SERVING = "importing vLLM", "Ctrl-C stops it"


@pytest.mark.parametrize(
    ("signum", "moment"),
    [
        (signal.SIGINT, STARTING),
        (signal.SIGINT, SERVING),
        pytest.param(signal.SIGTERM, SERVING, marks=pytest.mark.extended),
        (signal.SIGKILL, STARTING),  # while serving: tests/test_kills.py
    ],
)
def test_a_launcher_that_ends_leaves_nothing(serving, moment, signum):
    serving.read_until(moment)
    run_id = newest_run()
    assert leftovers_of(run_id)["processes"]
    serving.send_signal(signum)
    serving.wait(timeout=SECONDS_TO_END)
    assert_nothing_left(run_id)
    if signum != signal.SIGKILL:
        assert serving.returncode == 130
        assert "Traceback" not in serving.stdout.read()


KERNEL_DIES = """
import localai_clusters as lac
server = lac.serve(lac.ServePlan(tensor_parallel_size=2, max_model_len=512, port=0, master_port=0))
print(server.run.id)
"""


@pytest.mark.extended
def test_a_killed_jupyter_kernel_leaves_nothing():
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    try:
        printed = []
        client.execute_interactive(KERNEL_DIES, timeout=120, output_hook=lambda m: printed.append(m["content"]))
        run_id = "".join(content.get("text", "") for content in printed).split()[-1]
        assert leftovers_of(run_id)["processes"]
        os.kill(manager.provisioner.pid, signal.SIGKILL)
        assert_nothing_left(run_id)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def refused(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run ``serve`` with arguments that cannot work; nothing may start, and no traceback be shown."""
    runs_before = {path.name for path in runs_dir().iterdir()} if runs_dir().exists() else set()
    command = [*CLI, "serve", *arguments]
    answer = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **(environment or {})}
    )
    assert "Traceback" not in answer.stdout + answer.stderr
    assert {path.name for path in runs_dir().iterdir()} <= runs_before | {"."}, "a run was started"
    return answer


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model", "no-such-org/no-such-model"], 2, "no-such-org/no-such-model"),
        (["--model", "smollm2-135"], 1, "did you mean 'smollm2-135m'"),
        (["--model", "smollm2-135m-published", "-tp", "2"], 1, "9 attention heads"),
        (["-tp", "3"], 1, "4 KV heads"),
        (["-tp", "0"], 2, "tensor_parallel_size is 0"),
        (["-pp", "-1"], 2, "pipeline_parallel_size is -1"),
        (["--kv-cache-memory-bytes", str(1 << 50)], 1, "memory"),
        (["--host", "192.0.2.77"], 1, "is not an address of this machine"),
        (["--nnodes", "2", "-tp", "2"], 1, "--master-addr"),
        (["-tp", "two"], 2, "not a valid integer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_refused_before_anything_starts(arguments, code, words):
    answer = refused(*arguments, environment={"HF_HUB_OFFLINE": "1"})
    assert (answer.returncode, words in answer.stderr) == (code, True), answer.stderr


def test_a_port_in_use_is_refused_with_its_holder():
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        answer = refused("--port", str(port))
    assert answer.returncode == 1
    assert f"port {port} is taken by" in answer.stderr
    assert f"(pid {os.getpid()})" in answer.stderr
    assert f"--port {port + 1}" in answer.stderr


def test_a_state_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    command = [*SERVE[:-6], "--port", "0"]
    answer = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "file")},
    )
    assert answer.returncode == 1
    assert "cannot start a run in" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_refused_vllm_flag_is_reported_with_vllms_own_words():
    with pytest.raises(LaunchError, match=r"exited with code 2.*\nerror: unrecognized arguments: --no-such-flag"):
        lac.serve(PLAN.with_(extra_args=("--no-such-flag",)))
    assert_nothing_left(newest_run(), seconds=0)


def test_a_split_that_vllm_refuses_is_reported_with_vllms_own_words():
    plan = PLAN.with_(model="smollm2-135m-published")
    with pytest.raises(LaunchError, match=r"attention heads.*divisible"):
        lac.serve(plan, skip_checks=["heads"])
    assert_nothing_left(newest_run(), seconds=0)


def test_secrets_stay_out_of_the_runs_folder(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    with lac.serve(PLAN.with_(tensor_parallel_size=1), api_key="planted-api-key") as server:
        assert server.complete("Hello", max_tokens=2).token_ids
    for path in filter(Path.is_file, server.run.dir.rglob("*")):
        content = path.read_text(errors="replace")
        assert "hf_planted_secret" not in content and "planted-api-key" not in content, path.name


def test_the_guard_counts_only_its_own_processes():
    assert processes.descendants(1)
    assert not processes.with_variable("LAC_RUN_ID", "no-such-run")
