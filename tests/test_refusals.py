"""What cannot be served is refused by the command itself, in one clear line and before vLLM is loaded."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from leftovers_of import assert_nothing_left, newest_run

import localai_clusters as lac
from localai_clusters.launch.run import LaunchError, read_rank
from localai_clusters.models import find
from localai_clusters.server import with_ports

CLI = str(Path(sys.executable).with_name("localai-clusters"))
PLAN = ["-tp", "2", "--dtype", "float32", "--max-model-len", "512", "--master-port", "0"]
SECONDS_TO_REFUSE = 10.0  # two on a quiet machine; vLLM's own refusals take longer
MOST_LINES = 4  # preflight's list of one failed check and what to type

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a /dev/shm")


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch) -> Path:
    """Runs of this test alone, so that one that was started shows."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def refusal(state: Path, *command: str) -> str:
    """What ``command`` says when it refuses, after the checks that hold for every refusal."""
    began = time.monotonic()
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    took = time.monotonic() - began
    assert answer.returncode in (1, 2), answer.stdout + answer.stderr
    assert answer.stderr.startswith("localai-clusters: "), answer.stderr
    assert "Traceback" not in answer.stderr
    assert len(answer.stderr.splitlines()) <= MOST_LINES, answer.stderr
    assert not list(state.rglob("run.json")), f"a run was started: {answer.stderr}"
    assert took < SECONDS_TO_REFUSE
    return answer.stderr


def with_shm(free_mib: int, *command: str) -> list[str]:
    """``command`` where /dev/shm is a full tmpfs but for ``free_mib``; this machine's own is not touched."""
    fill = f"mount -t tmpfs -o size={40 + free_mib}m none /dev/shm && head -c 40M /dev/zero >/dev/shm/full"
    return ["unshare", "-m", "sh", "-c", f'{fill} && exec "$@"', "sh", *command]


@needs_root
@pytest.mark.parametrize("free_mib", [0, 31])
def test_a_full_shared_memory_mounted_as_root_is_refused_with_what_is_needed(state, free_mib):
    said = refusal(state, *with_shm(free_mib, CLI, "serve", *PLAN, "--port", "0"))
    assert f"/dev/shm has {free_mib} MiB free; the ranks need 32 MiB" in said


@needs_root
def test_preflight_finds_a_full_shared_memory_mounted_as_root():
    command = with_shm(0, CLI, "preflight", *PLAN, "--port", "0", "--json")
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    failed = [verdict["check"] for verdict in json.loads(answer.stdout)["verdicts"] if verdict["status"] == "fail"]
    assert (answer.returncode, failed) == (1, ["shared memory"])


@pytest.fixture
def folder(tmp_path) -> Path:
    """The built-in model as a folder that may be spoilt; its weights are linked, not copied."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in find("smollm2-135m").path.iterdir():
        if path.suffix == ".safetensors":
            (folder / path.name).symlink_to(path)
        else:
            shutil.copy(path, folder)
    return folder


def cut(path: Path, size: int) -> None:
    """Cut a file short; what it may link to is not touched."""
    with path.open("rb") as file:
        content = file.read(size)
    path.unlink()
    path.write_bytes(content)


BAD_FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config.json": (lambda at: (at / "config.json").unlink(), "has no config.json"),
    "config.json cut short": (lambda at: cut(at / "config.json", 200), "is not valid JSON"),
    "no weights": (lambda at: (at / "model.safetensors").unlink(), "has no weights"),
    "weights cut short": (
        lambda at: cut(at / "model.safetensors", 1 << 20),
        r"holds 1048576 bytes where its header says 286755280",
    ),
    "weights cut in the header": (lambda at: cut(at / "model.safetensors", 100), "is not a safetensors file"),
    "no tokenizer": (lambda at: (at / "tokenizer.json").unlink(), "has no tokenizer"),
    "tokenizer cut short": (lambda at: cut(at / "tokenizer.json", 1000), "tokenizer.json is not valid JSON"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_bad_model_folder_is_one_line(state, folder, case):
    spoil, words = BAD_FOLDERS[case]
    spoil(folder)
    said = refusal(state, CLI, "serve", "--model", str(folder), *PLAN, "--port", "0")
    assert re.search(words, said), said
    assert str(folder) in said


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_file_that_may_not_be_read_is_one_line(state, folder, name):
    cut(folder / name, 1000)
    (folder / name).chmod(0)
    as_others = []
    if os.geteuid() == 0:  # root reads everything, unless these two powers are taken away
        if not shutil.which("setpriv"):
            pytest.skip("no setpriv to take root's powers away")
        as_others = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    said = refusal(state, *as_others, CLI, "serve", "--model", str(folder), *PLAN, "--port", "0")
    assert f"{folder / name} cannot be read: Permission denied" in said


@contextlib.contextmanager
def serving(log: Path) -> Iterator[dict]:
    """A server as a command of its own; what it says of itself once it is ready."""
    with open(log, "w") as err:
        command = [CLI, "serve", *PLAN, "--port", "0", "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True)
    try:
        yield json.loads(process.stdout.readline() or log.read_text())
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def test_a_second_server_on_the_same_port_is_refused_with_its_holder(state, tmp_path, monkeypatch):
    with serving(tmp_path / "log") as first:
        port = httpx.URL(first["url"]).port
        pid = read_rank(Path(first["logs"]), 0).pid
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "second"))  # as another user of this machine
        said = refusal(tmp_path / "second", CLI, "serve", *PLAN, "--port", str(port))
        assert re.search(rf"port {port} is taken by \S+ \(pid {pid}\)", said)
        body = {"model": "smollm2-135m", "prompt": "Hello", "max_tokens": 4}
        assert httpx.post(f"{first['url']}/v1/completions", json=body, timeout=30).status_code == 200


@pytest.mark.parametrize("which", ["port", "master_port"])
def test_a_port_taken_between_preflight_and_the_start_is_named(which):
    """The only refusal here that comes from within a run: the port was free when the plan was checked."""
    plan = lac.ServePlan(tensor_parallel_size=2, dtype="float32", max_model_len=512, port=0, master_port=0)
    plan = with_ports(plan)
    port = getattr(plan, which)
    with socket.socket() as holder:

        def take(text: str) -> None:
            if "rank 0" in text and not holder.getsockname()[1]:  # the run has begun
                holder.bind(("127.0.0.1", port))
                holder.listen()

        began = time.monotonic()
        with pytest.raises(LaunchError) as caught:
            lac.serve(plan, on_progress=take)
        assert time.monotonic() - began < 2 * SECONDS_TO_REFUSE
    assert re.search(rf"\b{port}\b", str(caught.value)), caught.value
    assert re.search("in use|taken", str(caught.value)), caught.value
    assert_nothing_left(newest_run(), seconds=0)
