"""Removes what a run left whose guard was killed: processes, shared memory, sockets; and old run folders."""

import contextlib
import json
import shutil
import signal
from pathlib import Path

from localai_clusters.launch import journal, processes
from localai_clusters.launch.guard import segments_of

RUNS_KEPT = 50


def sweep(runs: Path) -> None:
    """Clean up after every run in ``runs`` that is over, and keep only the newest ``RUNS_KEPT`` folders of those."""
    if not runs.is_dir():
        return
    over = [run_dir for run_dir in sorted(runs.iterdir()) if run_dir.is_dir() and sweep_run(run_dir)]
    for run_dir in over[:-RUNS_KEPT]:
        shutil.rmtree(run_dir, ignore_errors=True)


def sweep_run(run_dir: Path) -> bool:
    """Whether the run is over; if its guard could not tidy up, that is done now."""
    events = journal.read(run_dir / "guard.jsonl")
    if any(event.get("event") == "stopped" for event in events):
        return True
    started = next((event for event in events if event.get("event") == "started"), None)
    if started is None:
        return not processes.with_variable("LAC_RUN_ID", run_dir.name)
    if processes.alive(started["pid"]) and processes.started_at(started["pid"]) == started["started_at"]:
        return False
    spec = {}
    with contextlib.suppress(OSError, ValueError):
        spec = json.loads((run_dir / "run.json").read_text())
    folders = [Path(folder) for folder in spec.get("shm", [processes.SHM])]
    pids = processes.with_variable("LAC_RUN_ID", run_dir.name)
    segments = processes.shared_memory(pids) | segments_of(run_dir, folders)
    processes.send(pids, signal.SIGKILL)
    processes.wait_until_gone(pids, 2.0)
    processes.remove_shared_memory(segments, folders)
    if "socket_dir" in spec:
        shutil.rmtree(spec["socket_dir"], ignore_errors=True)
    with contextlib.suppress(OSError):
        journal.append(run_dir / "guard.jsonl", event="stopped", reason="its guard was killed")
    return True
