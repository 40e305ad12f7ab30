"""launch/processes.py and launch/leftovers.py, on real processes and real shared memory."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from multiprocessing import shared_memory as segments
from pathlib import Path

import pytest

from localai_clusters.launch import journal, leftovers, processes

SLEEP = ["sleep", "120"]
MAPPING = (
    "import mmap, os; file = open('/dev/shm/' + os.environ['SEGMENT'], 'r+b'); "
    "mapped = mmap.mmap(file.fileno(), 0); print(flush=True); input()"
)


@contextlib.contextmanager
def running(argv=SLEEP, **settings):
    """A process and all that it started, ended whatever happens."""
    process = subprocess.Popen(argv, start_new_session=True, **settings)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=10)


def python(code: str, **settings):
    settings = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, **settings}
    return running([sys.executable, "-c", code], **settings)


def eventually(holds) -> bool:
    deadline = time.monotonic() + 10
    while not (found := holds()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(found)


@pytest.fixture
def segment():
    """The name of a segment in /dev/shm that this test may map and remove."""
    name = f"lac-test-{uuid.uuid4().hex}"
    (processes.SHM / name).write_bytes(b"\0" * 4096)
    yield name
    (processes.SHM / name).unlink(missing_ok=True)


# Who runs, and below whom


def test_descendants_are_children_and_their_children():
    code = "import subprocess; p = subprocess.Popen(['sleep', '120']); print(p.pid, flush=True); input()"
    with python(code) as parent:
        child = int(parent.stdout.readline())
        assert processes.descendants(parent.pid) == [child]
        assert processes.children(parent.pid) == [child]
        assert {parent.pid, child} <= set(processes.descendants(os.getpid()))
        assert child not in processes.children(os.getpid())


def test_a_zombie_does_not_run():
    with running(["true"]) as process:
        assert eventually(lambda: f"{process.pid}" not in map(str, processes.descendants(os.getpid())))
        assert Path(f"/proc/{process.pid}").exists()  # not reaped yet
        assert not processes.alive(process.pid)
        assert process.pid not in processes.children(os.getpid())


def test_a_process_that_is_gone():
    with running(["true"]) as process:
        pass
    assert not processes.alive(process.pid)
    assert processes.started_at(process.pid) == 0
    assert processes.descendants(process.pid) == processes.children(process.pid) == []


def test_a_start_time_tells_two_processes_apart_and_stays():
    with running() as first:
        started = processes.started_at(first.pid)
        time.sleep(0.05)
        with running() as second:
            assert 0 < started < processes.started_at(second.pid)
        assert processes.started_at(first.pid) == started


def test_names_with_spaces_and_brackets_do_not_confuse(tmp_path):
    awkward = tmp_path / "a) R 1 (b"
    awkward.symlink_to("/bin/sleep")
    with running([str(awkward), "120"]) as process:
        assert eventually(lambda: "R 1" in Path(f"/proc/{process.pid}/comm").read_text())
        assert processes.alive(process.pid)
        assert process.pid in processes.children(os.getpid())
        assert processes.parents()[process.pid] == os.getpid()
        assert processes.started_at(process.pid) >= processes.started_at(os.getpid())


def test_orphans_are_adopted():
    code = """
import os, subprocess, sys
from localai_clusters.launch import processes
if sys.argv[1:] != ["plain"]:
    processes.adopt_orphans()
child = subprocess.Popen(["bash", "-c", "sleep 120 & echo $!"], stdout=subprocess.PIPE, text=True)
orphan = int(child.stdout.readline())
child.wait()
print(orphan, orphan in processes.descendants(os.getpid()), flush=True)
input()
"""
    for arguments, adopted in ([], "True"), (["plain"], "False"):
        with running(
            [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as parent:
            orphan, found = parent.stdout.readline().split()
            assert found == adopted
            assert processes.alive(int(orphan))


def test_a_child_can_ask_to_die_with_its_parent():
    code = (
        "import subprocess; from localai_clusters.launch.processes import die_with_parent; "
        "p = subprocess.Popen(['sleep', '120'], preexec_fn=die_with_parent); print(p.pid, flush=True); input()"
    )
    with python(code) as parent:
        child = int(parent.stdout.readline())
        assert processes.alive(child)
        os.kill(parent.pid, signal.SIGKILL)
        assert processes.wait_until_gone([child], 10) == []


# By a variable of the environment


def test_processes_are_found_by_a_variable_they_were_started_with():
    name = uuid.uuid4().hex
    with running(env={**os.environ, "LAC_RUN_ID": name}) as mine, running(env={"LAC_RUN_ID": name + "x"}):
        assert eventually(lambda: processes.with_variable("LAC_RUN_ID", name) == [mine.pid])
        assert processes.with_variable("LAC_RUN_ID", name[:-1]) == []
        assert processes.with_variable("RUN_ID", name) == []


def test_the_process_that_asks_is_not_among_them(monkeypatch):
    name, value = next((name, value) for name, value in os.environ.items() if value)
    assert os.getpid() not in processes.with_variable(name, value)


# Ending and waiting


def test_waiting_names_those_that_still_run():
    with running() as stays, running() as goes:
        goes.kill()
        assert processes.wait_until_gone([stays.pid, goes.pid], 0.3) == [stays.pid]
        assert processes.wait_until_gone([], 0) == []


def test_a_signal_to_a_process_that_is_gone_is_no_error():
    with running(["true"]) as gone:
        gone.wait()
    with running() as process:
        processes.send([gone.pid, process.pid], signal.SIGTERM)
        assert process.wait(timeout=10) == -signal.SIGTERM


# Shared memory


def test_a_mapped_segment_is_found_and_removed(segment):
    with python(MAPPING, env={**os.environ, "SEGMENT": segment}) as process, running() as other:
        process.stdout.readline()
        assert processes.shared_memory([process.pid]) == {segment}
        assert processes.shared_memory([other.pid]) == set()
        assert processes.remove_shared_memory([segment]) == [segment]
        assert not (processes.SHM / segment).exists()
        assert processes.shared_memory([process.pid]) == set()  # mapped still, and deleted
    assert processes.remove_shared_memory([segment]) == []


def test_pythons_own_segments_are_found():
    memory = segments.SharedMemory(create=True, size=4096)
    try:
        assert memory.name in processes.shared_memory([os.getpid()])
    finally:
        memory.close()
        memory.unlink()


def test_what_is_not_the_runs_is_never_removed():
    path = processes.SHM / f"other-{uuid.uuid4().hex}"
    path.write_text("somebody's")
    try:
        names = [path.name, f"lac-/../{path.name}", f"../shm/{path.name}", ""]
        assert processes.remove_shared_memory(names) == []
        assert path.exists()
    finally:
        path.unlink()


# A run whose guard was killed


@pytest.fixture
def run_dir(tmp_path):
    """The folder of a run as its guard left it when it was killed, with what its ranks said."""
    folder = tmp_path / "runs" / f"test-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    (sockets / "engine.ipc").write_text("")
    (folder / "run.json").write_text(json.dumps({"run_id": folder.name, "socket_dir": str(sockets)}))
    with running() as guard:
        started = processes.started_at(guard.pid)
        journal.append(folder / "guard.jsonl", event="started", pid=guard.pid, started_at=started, agents={})
    return folder


def environment(run_dir: Path) -> dict[str, str]:
    return {**os.environ, "LAC_RUN_ID": run_dir.name}


def test_what_a_killed_guard_left_is_swept_up(run_dir, tmp_path, segment):
    mine = processes.SHM / f"lac-{run_dir.name}-0-tp"
    mine.write_text("")
    pythons = processes.SHM / f"psm_{uuid.uuid4().hex[:8]}"
    pythons.write_text("")
    journal.append(run_dir / "rank1.jsonl", rank=1, step="engine", shared_memory=[pythons.name])
    try:
        with (
            python(MAPPING, env={**environment(run_dir), "SEGMENT": segment}) as mapping,
            running(env=environment(run_dir)) as second,
            running() as bystander,
        ):
            mapping.stdout.readline()
            assert leftovers.sweep_run(run_dir)
            assert not processes.alive(mapping.pid) and not processes.alive(second.pid)
            assert processes.alive(bystander.pid)
        assert not mine.exists() and not pythons.exists() and not (processes.SHM / segment).exists()
        assert not (tmp_path / "sockets").exists()
        assert journal.read(run_dir / "guard.jsonl")[-1]["reason"] == "its guard was killed"
    finally:
        mine.unlink(missing_ok=True)
        pythons.unlink(missing_ok=True)


def test_a_run_that_was_swept_up_is_over_and_left_alone(run_dir):
    assert leftovers.sweep_run(run_dir)
    with running(env=environment(run_dir)) as later:
        assert leftovers.sweep_run(run_dir)
        assert processes.alive(later.pid)
    assert [event["event"] for event in journal.read(run_dir / "guard.jsonl")] == ["started", "stopped"]


def test_a_run_whose_guard_lives_is_left_alone(tmp_path):
    run_dir = tmp_path / f"test-{uuid.uuid4().hex}"
    run_dir.mkdir()
    with running(env=environment(run_dir)) as guard, running(env=environment(run_dir)) as rank:
        started = processes.started_at(guard.pid)
        journal.append(run_dir / "guard.jsonl", event="started", pid=guard.pid, started_at=started, agents={})
        assert not leftovers.sweep_run(run_dir)
        assert processes.alive(rank.pid)


def test_a_pid_that_another_process_got_since_is_not_the_guard(tmp_path):
    run_dir = tmp_path / f"test-{uuid.uuid4().hex}"
    run_dir.mkdir()
    with running() as another:
        started = processes.started_at(another.pid) - 1000
        journal.append(run_dir / "guard.jsonl", event="started", pid=another.pid, started_at=started, agents={})
        assert leftovers.sweep_run(run_dir)
        assert processes.alive(another.pid)


def test_a_run_that_is_just_starting_is_left_alone(tmp_path):
    run_dir = tmp_path / f"test-{uuid.uuid4().hex}"
    run_dir.mkdir()
    with running(env=environment(run_dir)) as guard:  # and has not reported yet
        assert eventually(lambda: not leftovers.sweep_run(run_dir))
        assert processes.alive(guard.pid)
    assert leftovers.sweep_run(run_dir)


def test_sweeping_keeps_the_newest_folders_and_every_run_that_lives(tmp_path):
    for number in range(leftovers.RUNS_KEPT + 3):
        folder = tmp_path / f"run-{number:03}-{uuid.uuid4().hex}"
        folder.mkdir()
        journal.append(folder / "guard.jsonl", event="stopped", reason="it was over")
    oldest = min(tmp_path.iterdir())
    (oldest / "guard.jsonl").unlink()
    (tmp_path / "a file").write_text("")
    with running(env=environment(oldest)):
        assert eventually(lambda: processes.with_variable("LAC_RUN_ID", oldest.name))
        leftovers.sweep(tmp_path)
        left = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert left[0] == oldest.name
    assert [name[:7] for name in left[1:3]] == ["run-003", "run-004"]
    assert len(left) == leftovers.RUNS_KEPT + 1


def test_sweeping_where_no_run_ever_was(tmp_path):
    leftovers.sweep(tmp_path / "none")


# The journal that all this is read from


def test_a_line_still_being_written_is_left_for_the_next_read(tmp_path):
    path = tmp_path / "rank0.jsonl"
    assert journal.read(path) == []
    journal.append(path, step="python", text="a\nb")
    whole = path.read_text()
    path.write_text(whole + '{"time": 1, "st')
    assert [line["text"] for line in journal.read(path)] == ["a\nb"]
