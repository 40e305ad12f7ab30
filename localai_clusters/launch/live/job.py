"""One rank of the job behind ``preflight --live``, started by torchrun with the flags that serve would get.

Imports torch and no vLLM. What it finds goes into ``rank<K>.jsonl`` step by step; the first rank of each node writes
what all ranks said, so that the launcher of every node has it.
"""

import contextlib
import functools
import json
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from localai_clusters.launch.live import answer, measurement, reach, verdicts
from localai_clusters.launch.live.checks_of_nodes import listed
from localai_clusters.launch.live.gathering import PREFIX, Mute, collect, gather
from localai_clusters.launch.live.measurement import ALL_REDUCE, SEND
from localai_clusters.models import ModelError, ModelShape, look_up
from localai_clusters.plan import ServePlan
from localai_clusters.serving.heartbeat import Heartbeat
from localai_clusters.serving.process import Progress, Rank, start
from localai_clusters.serving.rank import lose, torchrun_store
from localai_clusters.sizing import dtype_of

# Silent for longer at one of these, a rank is mute. Python and torch are read from a warm cache by now: torchrun's
# agent on the same node has imported both.
SECONDS_FOR_ROLL_CALL = 10.0
SECONDS_FOR_REACH = reach.CONNECT_SECONDS + 3.0
SECONDS_FOR_RESULTS = 6.0
SECONDS_OF_MEASURING = 1.5  # in all, about
SECONDS_TO_LEAVE = 3.0
SUM_ELEMENTS = (1, 7, 1000, 1 << 16)


def run(rank: Rank, progress: Progress, heartbeat: Heartbeat) -> None:
    progress.report("torch")
    from torch.distributed import DistNetworkError, DistStoreError, PrefixStore

    plan, shape = planned()
    store = PrefixStore(PREFIX, torchrun_store())
    try:
        work(rank, plan, shape, store, progress, heartbeat)
    except Mute as error:
        lose(progress, sentence(error, plan, hosts(store)))
    except (DistNetworkError, DistStoreError) as error:
        where = f"node 0's torchrun does not answer any more at {plan.master_addr}:{plan.master_port}"
        lose(progress, f"{where} ({str(error).splitlines()[0][:200]})")


def work(
    rank: Rank, plan: ServePlan, shape: ModelShape | None, store: Any, progress: Progress, heartbeat: Heartbeat
) -> None:
    progress.report("roll-call")
    answers = roll_call(rank, plan, store)
    report = progress.report if rank.local_rank == 0 else lambda step, **facts: progress.report(step)
    report("reach", answers=[asdict(one) for one in answers])
    connections = reach_others(rank, store, answers)
    report("all-reduce", connections=[asdict(one) for one in connections])
    results: dict[str, Any] = {}
    if rank.world_size > 1 and verdicts.may_join(plan, answers, connections):
        heartbeat.start(store)
        heartbeat.built()
        wrong, measured = exchange(rank, plan, shape, store, answers, progress)
        heartbeat.on_loss = lambda problem: None  # who ends first is no loss any more; who falls silent is mute
        said = {"wrong": wrong, "measured": measured}
        heard = gather(store, "measured", rank.rank, said, range(rank.world_size), SECONDS_FOR_RESULTS)
        results = {
            "wrong_sums": [f"{text}, says rank {other}" for other, word in heard.items() for text in word["wrong"]],
            "measurements": [one for word in heard.values() for one in word["measured"]],
        }
    if rank.rank == 0:  # last: its launcher then stops node 0's agent, which holds the store that the others read
        collect(store, {other: f"bye/{other}" for other in range(1, rank.world_size)}, SECONDS_TO_LEAVE)
    report("measured", **results)
    store.set(f"bye/{rank.rank}", "0")


def planned() -> tuple[ServePlan, ModelShape | None]:
    spec = json.loads((Path(os.environ["LAC_RUN_DIR"]) / "run.json").read_text(encoding="utf-8"))
    plan = ServePlan.from_dict(spec["plan"])
    with contextlib.suppress(ModelError):
        return plan, look_up(plan.model)
    return plan, None


def roll_call(rank: Rank, plan: ServePlan, store: Any) -> list[answer.Answer]:
    """Every rank's answer, in their order. The first rank of each node listens from now on."""
    listener = None
    if rank.local_rank == 0 and rank.nnodes > 1:
        listener = reach.Listener(os.environ.get("VLLM_HOST_IP") or os.environ["MASTER_ADDR"])
    mine = answer.answer(rank, plan.model, listener.port if listener else 0)
    if listener:
        listener.start(mine.token)
    said = gather(store, "roll-call", rank.rank, asdict(mine), range(rank.world_size), SECONDS_FOR_ROLL_CALL)
    return [answer.Answer.from_dict(word) for _, word in sorted(said.items())]


def reach_others(rank: Rank, store: Any, answers: list[answer.Answer]) -> list[reach.Connection]:
    """Every node's connections to every other one."""
    mine = reach.connections(answers[rank.rank], answers) if rank.local_rank == 0 else []
    said = gather(store, "reach", rank.rank, [asdict(one) for one in mine], range(rank.world_size), SECONDS_FOR_REACH)
    return [reach.Connection(**one) for word in said.values() for one in word]


def exchange(
    rank: Rank,
    plan: ServePlan,
    shape: ModelShape | None,
    store: Any,
    answers: list[answer.Answer],
    progress: Progress,
) -> tuple[list[str], list[dict[str, Any]]]:
    """(sums that were wrong, times) as this rank saw them; a group's times come from its first rank."""
    import torch
    import torch.distributed as dist

    from localai_clusters.launch.live import collectives

    device = "cuda" if answers[rank.rank].backend == "cuda" else "cpu"
    dtype = getattr(torch, dtype_of(plan, shape) if shape else "bfloat16")
    collectives.join(store, rank.rank, rank.world_size, device)
    everyone = range(rank.world_size)
    checked = [collectives.through_torch(everyone, "cpu")]
    if device == "cuda":
        checked.append(collectives.through_torch(everyone, "cuda"))
    timed = []
    for operation, ranks in exchanges(plan):
        transport = collectives.through_torch(ranks, device)
        if device == "cpu" and rank.rank in ranks and one_node(ranks, answers):
            run_id = os.environ.get("LAC_RUN_ID", plan.master_port)
            transport = collectives.through_shared_memory(transport, rank.rank, f"lac-{run_id}-{rank.node_rank}-live")
        timed.append((operation, transport))
        if operation == ALL_REDUCE and transport.name != collectives.GLOO:
            checked.append(transport)
    wrong = [
        text
        for transport in checked
        if rank.rank in transport.ranks
        for text in collectives.wrong_sums(transport, rank.rank, SUM_ELEMENTS, dtype)
    ]
    of_a_token = {}
    if shape:
        of_a_token = {ALL_REDUCE: measurement.token_bytes(plan, shape), SEND: measurement.stage_bytes(plan, shape)}
    measured = []
    for operation, transport in timed:  # one after another, as one token meets them
        dist.barrier()
        if rank.rank not in transport.ranks:
            continue
        sizes = collectives.sizes_for(device, *filter(None, [of_a_token.get(operation)]))
        seconds = SECONDS_OF_MEASURING / len(timed) / len(sizes)
        for one in collectives.times_of(transport, rank.rank, operation, sizes, seconds, dtype):
            progress.report("latency")
            if rank.rank == transport.ranks[0]:
                measured.append(asdict(one))
    dist.barrier()
    return wrong, measured


def exchanges(plan: ServePlan) -> list[tuple[str, tuple[int, ...]]]:
    """Who all-reduces with whom, and who sends to whom."""
    groups = measurement.tensor_groups(plan) if plan.tensor_parallel_size > 1 else []
    pairs = [*measurement.stage_pairs(plan), *measurement.node_pairs(plan)]
    return [*((ALL_REDUCE, group) for group in groups), *((SEND, pair) for pair in dict.fromkeys(pairs))]


def one_node(ranks: tuple[int, ...], answers: list[answer.Answer]) -> bool:
    """vLLM decides by the name of the segments, which serving/executor.py makes out of run and node."""
    return len({one.node_rank for one in answers if one.rank in ranks}) == 1


def hosts(store: Any) -> dict[int, str]:
    """Node rank -> hostname, as torchrun's agents said (agent.py)."""
    with contextlib.suppress(RuntimeError):
        if store.check(["nodes"]):
            return {int(node): said["host"] for node, said in json.loads(store.get("nodes")).items()}
    return {}


def sentence(error: Mute, plan: ServePlan, hosts: dict[int, str]) -> str:
    """Who is mute, and what is known of it."""
    nodes = {mute: mute // plan.nproc_per_node for mute in error.ranks}
    who = listed([f"rank {mute} on node {node} ({hosts.get(node, '?')})" for mute, node in nodes.items()])
    has = "has" if len(error.ranks) == 1 else "have"
    if error.stage == "roll-call":
        return f"{who}: started by torchrun there, {has} said nothing for {error.seconds:.0f} s"
    return f"{who} answered the roll call and {has} said nothing for {error.seconds:.0f} s since"


def main() -> None:
    try:
        rank, progress = start()
    except ValueError as error:
        sys.exit(str(error))
    code = 1
    heartbeat = Heartbeat(rank, functools.partial(lose, progress))
    try:
        run(rank, progress, heartbeat)
        code = 0
    except BaseException as error:
        traceback.print_exc()
        with contextlib.suppress(OSError):
            progress.report("failed", error=f"{type(error).__name__}: {error}"[:2000])
        heartbeat.failed(f"{type(error).__name__}: {error}")
    finally:
        heartbeat.stop()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # as serving/rank.py: a thread inside a collective would keep the process


if __name__ == "__main__":
    main()
