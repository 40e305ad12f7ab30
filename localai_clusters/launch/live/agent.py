"""torchrun's agent of one node, which also says that its node is there: ``python -m ...live.agent NODE_RANK``.

torchrun alone starts no rank before all nodes have met, and does not say which one it waits for. So a thread beside it
puts the node's name into the store that node 0's agent opens for the rendezvous, and reads who else has. What it learns
goes into ``node<K>.jsonl``, for the launcher.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from localai_clusters.launch import journal
from localai_clusters.launch.live.gathering import PREFIX
from localai_clusters.plan import ServePlan

JOB = "localai_clusters.launch.live.job"
ATTEMPT_SECONDS, POLL_SECONDS = 1.0, 0.1


def main() -> None:
    node_rank, run_dir = int(sys.argv[1]), Path(os.environ["LAC_RUN_DIR"])
    log = run_dir / f"node{node_rank}.jsonl"
    plan = ServePlan.from_dict(json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["plan"])
    # Of this process and its ranks: torch warns of each address that has no name, and a rank's last words are shown.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed.run import main as torchrun

    journal.append(log, step="torchrun")
    threading.Thread(target=answer, args=(plan, node_rank, log), name="roll call", daemon=True).start()
    torchrun([f"--log-dir={run_dir / 'torchrun'}", *plan.argv(node_rank, JOB)[1:]])


def answer(plan: ServePlan, node_rank: int, log: Path) -> None:
    """Say that this node is there, and note who else is, until all are."""
    from torch.distributed import PrefixStore, TCPStore

    wait_for_store(plan, log)
    with contextlib.suppress(RuntimeError):  # node 0 is gone: its own launcher says why
        store = PrefixStore(PREFIX, TCPStore(plan.master_addr, plan.master_port, wait_for_workers=False))
        mine = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "plan": plan.to_dict()})
        first = store.compare_set(f"node/{node_rank}", "", mine).decode()
        if first != mine:
            journal.append(log, twice=json.loads(first)["host"])
        heard: dict[str, Any] = {}
        while len(heard) < plan.nnodes:
            found = hear(store, range(plan.nnodes)) if node_rank == 0 else read(store)
            if found != heard:
                heard = found
                journal.append(log, nodes=heard)
                if node_rank == 0:
                    store.set("nodes", json.dumps(heard))
            time.sleep(POLL_SECONDS)


def hear(store: Any, nodes: range) -> dict[str, Any]:
    keys = {str(node): f"node/{node}" for node in nodes}
    return {node: json.loads(store.get(key)) for node, key in keys.items() if store.check([key])}


def read(store: Any) -> dict[str, Any]:
    """What node 0 has heard so far."""
    return json.loads(store.get("nodes")) if store.check(["nodes"]) else {}


def wait_for_store(plan: ServePlan, log: Path) -> None:
    """Until node 0's agent listens; why it cannot be reached is noted whenever that changes."""
    noted = None
    while True:
        try:
            socket.create_connection((plan.master_addr, plan.master_port), timeout=ATTEMPT_SECONDS).close()
            return
        except OSError as error:
            why = error.strerror or str(error)
            if why != noted:
                journal.append(log, unreachable=why)
                noted = why
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main()
