"""The torchrun server beside ``vllm serve``: time to ready, throughput, latency and memory, as ratios of medians.

    python -m bench.serve_ratio                                     # TP=2 and PP=2, 3 rounds, about 20 minutes
    python -m bench.serve_ratio --split tp --rounds 1               # about 3 minutes on two quiet cores
    python -m bench.serve_ratio --streams 1 16 --markdown >table.md

Both serve the built-in model, configured alike (bench/alike.py), one after the other; who comes first alternates from
round to round. At each number of streams a server answers at least 8 requests, 4 per stream, all of the same length
(64 tokens, 32 above 16 streams), as many at a time as there are streams; none shares a prefix that could be cached.

- time to ready: from the start of the command to the first completion
- TTFT: from a request sent to its first token; all streams start together, so that with many it is mostly waiting
- ITL: from one chunk of an answer to the next, the first left out, as ``vllm bench serve`` takes it
- memory: proportional set size of all processes of the server after the load

Time to ready, throughput and memory are compared as ours/theirs, latencies as theirs/ours: only for time to ready and
memory is less better. The client takes its share of the same cores, from both alike.
"""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from bench.alike import BUILT_IN, memory_bytes, plan_for, seconds_to_ready, torchrun_server, vllm_serve
from bench.ratios import GIB, Figures, markdown, medians, plain, ratios, rows
from localai_clusters.bench import load
from localai_clusters.launch.run import Run
from localai_clusters.machine import Machine
from localai_clusters.plan import ServePlan
from localai_clusters.server import base_url, with_ports

OURS, THEIRS = "torchrun", "vllm serve"
STARTS = {OURS: torchrun_server, THEIRS: vllm_serve}
Show = Callable[[str], None]


def measure(start: Callable[[ServePlan], Run], plan: ServePlan, streams: list[int], show: Show) -> Figures:
    """All figures of one launch; keys as in ``ratios.KINDS``, per number of streams ``"itl_p50/16"``."""
    plan = with_ports(plan)
    show("starting")
    run = start(plan)
    try:
        found = {"ready": seconds_to_ready(run)}
        show(f"ready after {found['ready']:.1f} s")
        for count in streams:
            # The first requests of each shape are slower on both.
            load(base_url(plan), plan.model, count, count, 4)
            done = load(base_url(plan), plan.model, count, max(8, 4 * count), 64 if count <= 16 else 32)
            show(str(done))
            found[f"tokens_per_second/{count}"] = done.tokens_per_second
            for name, times in (("ttft", done.ttft), ("itl", done.itl)):
                found |= {f"{name}_p50/{count}": times.p50, f"{name}_p99/{count}": times.p99}
        return found | {"memory": memory_bytes(run)}
    finally:
        run.stop()


def compare(plans: list[ServePlan], rounds: int, streams: list[int]) -> dict[str, dict[str, list[Figures]]]:
    """{"TP=2": {"torchrun": [a round's figures, ...], "vllm serve": [...]}, ...}"""
    found: dict[str, dict[str, list[Figures]]] = {plan.label: {OURS: [], THEIRS: []} for plan in plans}
    for number in range(rounds):
        for plan in plans:
            for name in (OURS, THEIRS) if number % 2 == 0 else (THEIRS, OURS):
                head = f"round {number + 1} of {rounds}, {plan.label}, {name}: "
                show = lambda text, head=head: print(head + text, file=sys.stderr, flush=True)  # noqa: E731
                found[plan.label][name].append(measure(STARTS[name], plan, streams, show))
    return found


def setting(plan: ServePlan, rounds: int) -> dict[str, Any]:
    machine = Machine.now()
    return {
        "model": plan.model,
        "dtype": plan.dtype,
        "max_model_len": plan.max_model_len,
        "kv_cache_bytes_per_rank": plan.kv_cache_memory_bytes,
        "cpu": machine.cpu_model,
        "cores": len(machine.cores),
        "memory_bytes": machine.memory_bytes,
        "gpus": [gpu.name for gpu in machine.gpus],
        "os": machine.os,
        "python": machine.python,
        "versions": machine.versions,
        "rounds": rounds,
    }


def sentence(at: dict[str, Any]) -> str:
    parts = [
        f"{at['model']}, {at['dtype']}, context {at['max_model_len']}",
        f"KV cache {at['kv_cache_bytes_per_rank'] >> 20} MiB per rank",
        f"{at['cpu']}, {at['cores']} cores, {at['memory_bytes'] / GIB:.0f} GiB, {', '.join(at['gpus']) or 'no GPU'}",
        f"{at['os']}, Python {at['python']}, {', '.join(f'{name} {is_}' for name, is_ in at['versions'].items())}",
        f"medians of {at['rounds']} round{'s' * (at['rounds'] > 1)}",
    ]
    return "; ".join(parts) + "."


def number(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("tp", "pp", "both"), default="both")
    parser.add_argument("--streams", type=number, nargs="+", default=[1, 4, 16, 64], help="requests at a time")
    parser.add_argument("--rounds", type=number, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--model", default=BUILT_IN, help="a built-in name, a folder or a Hugging Face id")
    parser.add_argument("--json", action="store_true", help="every round's figures: seconds, bytes, tokens per second")
    parser.add_argument("--markdown", action="store_true", help="tables to paste into a page")
    arguments = parser.parse_args()

    splits = ("tp", "pp") if arguments.split == "both" else (arguments.split,)
    plans = [plan_for(split, arguments.dtype, arguments.model) for split in splits]
    found = compare(plans, arguments.rounds, arguments.streams)
    middle = {label: {name: medians(many) for name, many in sides.items()} for label, sides in found.items()}
    at = setting(plans[0], arguments.rounds)
    if arguments.json:
        quotients = {label: ratios(sides[OURS], sides[THEIRS]) for label, sides in middle.items()}
        print(json.dumps({"setting": at, "rounds": found, "medians": middle, "ratios": quotients}, indent=2))
        return
    table = markdown if arguments.markdown else plain
    print(sentence(at))
    for label, sides in middle.items():
        print("\n" + table(label, rows(sides[OURS], sides[THEIRS])))


if __name__ == "__main__":
    main()
