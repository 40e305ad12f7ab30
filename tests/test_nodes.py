"""The commands for two nodes, run as a person would paste them: two torchrun agents on one machine, over loopback.

It shows that the commands fit together and that ranks of different nodes meet over the network and not over shared
memory. Two machines, with a network that is slow or breaks, are not tested here.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

import localai_clusters as lac
from localai_clusters.launch import processes
from localai_clusters.machine import assign_cores, free_port, physical_cores

SECONDS_UNTIL_READY = 120


@pytest.fixture
def two_agents(tmp_path):
    """Starts one agent per node from the pasted text; returns the logs. Ends them with the agents' own clean-up."""
    started = []

    def start(plan: lac.ServePlan) -> list[Path]:
        shares = assign_cores(physical_cores(), 2)
        for node, command in enumerate(plan.commands()):
            words = shlex.split(command.replace("\\\n", " "))
            log = tmp_path / f"node{node}.log"
            cpus = ",".join(str(cpu) for core in shares[node] for cpu in core)
            environment = os.environ | {
                "GLOO_SOCKET_IFNAME": "lo",
                "VLLM_HOST_IP": "127.0.0.1",
                "LAC_RUN_ID": "two-agents",
            }
            argv = ["taskset", "-c", cpus, sys.executable, "-m", "torch.distributed.run", *words[1:]]
            with open(log, "wb") as file:
                started.append(
                    subprocess.Popen(argv, env=environment, stdout=file, stderr=file, start_new_session=True)
                )
        return [tmp_path / f"node{node}.log" for node in range(2)]

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
    for process in started:
        process.wait(timeout=40)
    assert not processes.with_variable("LAC_RUN_ID", "two-agents")
    processes.remove_shared_memory(path.name for path in processes.SHM.glob("lac-two-agents-*"))


def complete(port: int) -> str:
    body = {"model": "smollm2-135m", "prompt": "The capital of France is", "max_tokens": 6, "temperature": 0}
    deadline = time.monotonic() + SECONDS_UNTIL_READY
    while time.monotonic() < deadline:
        try:
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60)
            return answer.json()["choices"][0]["text"]
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError("no answer")


@pytest.mark.parametrize("split", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_pasted_commands_of_two_nodes_serve_together_over_the_network(two_agents, split):
    port = free_port("127.0.0.1")
    plan = lac.ServePlan(
        nnodes=2,
        dtype="float32",
        max_model_len=512,
        kv_cache_memory_bytes=128 << 20,
        port=port,
        master_port=free_port("127.0.0.1", port),
        **{split: 2},
    )
    logs = two_agents(plan)
    assert complete(port).startswith(" Paris")
    assert "ranks do not share the same SHM group name" in logs[0].read_text()
