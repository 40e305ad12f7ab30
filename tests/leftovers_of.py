"""What a run left behind: for the tests that kill things."""

import json
import time
from pathlib import Path

from localai_clusters.launch import journal, processes
from localai_clusters.launch.run import Run, runs_dir
from localai_clusters.machine import port_holder

SECONDS_TO_END = 5.0  # what the library promises


def leftovers_of(run_id: str) -> dict[str, list]:
    """Processes, shared-memory segments, held ports and the sockets' folder of a run, as they are now."""
    run_dir = runs_dir() / run_id
    spec = json.loads((run_dir / "run.json").read_text())
    folders = [Path(folder) for folder in spec["shm"]]  # those of nodes that are up too
    segments = {path.name for folder in folders for path in folder.glob(f"*{run_id}*")}
    for log in run_dir.glob("rank*.jsonl"):
        for line in journal.read(log):
            for folder in folders:
                segments |= {name for name in line.get("shared_memory", ()) if (folder / name).exists()}
    plan = spec["plan"]
    ports = [("127.0.0.1", plan["port"]), ("127.0.0.1", plan["master_port"])]
    return {
        "processes": processes.with_variable("LAC_RUN_ID", run_id),
        "shared memory": sorted(segments),
        "ports": [port for host, port in ports if port and port_holder(host, port)],
        "sockets": [spec["socket_dir"]] if Path(spec["socket_dir"]).exists() else [],
    }


def segments_here() -> set[str]:
    """What is in this machine's /dev/shm of the kind that ranks make, whoever made it."""
    return {path.name for path in processes.SHM.iterdir() if path.name.startswith(processes.SHM_PREFIXES)}


def mapped_segments() -> set[str]:
    """Those that a living process uses."""
    return processes.shared_memory(processes.parents())


def assert_nothing_left(run: Run | str, seconds: float = SECONDS_TO_END) -> None:
    """Within ``seconds`` from now, nothing of the run is left."""
    run_id = run if isinstance(run, str) else run.id
    deadline = time.monotonic() + seconds
    while any((left := leftovers_of(run_id)).values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(left.values()), left


def newest_run() -> str:
    """Its id; empty where there never was one."""
    return max((path.name for path in runs_dir().glob("*")), default="")
