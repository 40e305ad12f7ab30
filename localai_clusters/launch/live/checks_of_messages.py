"""Live checks of what ranks send each other: are the sums right, how long does it take, what does it cost a token."""

from collections.abc import Iterable, Iterator

from localai_clusters.launch.live.checks_of_nodes import MOST_NAMED, plural
from localai_clusters.launch.live.findings import Findings
from localai_clusters.launch.live.measurement import (
    ALL_REDUCE,
    SEND,
    Measurement,
    TokenCost,
    bandwidth,
    duration,
    node_pairs,
    size,
    span,
    stage_bytes,
    token_bytes,
    token_cost,
)
from localai_clusters.preflight.report import FAIL, PASS, WARN, Verdict

SUMS, LATENCY, BANDWIDTH = "all-reduce", "latency", "bus bandwidth"
# Advice to split by layers: where messages cost a token as much as that, and many times what its sends would.
SECONDS_PER_TOKEN, TIMES_MORE = 0.01, 4


def check_sums(found: Findings) -> Iterator[Verdict]:
    for text in found.wrong_sums[:MOST_NAMED]:
        fix = "nothing can be served on ranks that add up wrong; the driver of the network card or GPU, its cables"
        yield Verdict(SUMS, FAIL, f"a sum is wrong: {text}", fix)
    if not found.wrong_sums:
        transports = dict.fromkeys(one.transport for one in found.measurements if one.operation == ALL_REDUCE)
        over = " and ".join(dict.fromkeys(["gloo", *transports]))
        yield Verdict(SUMS, PASS, f"the sums of {found.plan.world_size} ranks are exact, over {over}")


def check_latency(found: Findings) -> Iterator[Verdict]:
    parts = []
    for operation in operations(found):
        wanted = message_bytes(found, operation)
        measured = [one for one in found.measurements if (one.operation, one.nbytes) == (operation, wanted)]
        slowest = max(measured, key=lambda one: one.median)
        times = f"{duration(slowest.median)}, p99 {duration(slowest.p99)}"
        parts.append(f"{operation} of {size(wanted)}: {times} ({between(slowest, len(measured))})")
    cost = token_cost(found.plan, found.shape, found.measurements) if found.shape else None
    advice = layers_instead(found, cost) if cost else ""
    message = "; ".join([*parts, *([str(cost)] if cost else [])])
    yield Verdict(LATENCY, WARN if advice else PASS, message, advice)


def check_bandwidth(found: Findings) -> Iterator[Verdict]:
    parts = []
    for operation in operations(found):
        best = fastest(one for one in found.measurements if one.operation == operation)
        slowest = min(best, key=lambda one: one.bus_bandwidth)
        rate = f"{bandwidth(slowest.bus_bandwidth)} at {size(slowest.nbytes)}"
        parts.append(f"{operation} {rate} ({between(slowest, len(best))})")
    yield Verdict(BANDWIDTH, PASS, "; ".join(parts))


def operations(found: Findings) -> list[str]:
    return list(dict.fromkeys(one.operation for one in found.measurements))


def message_bytes(found: Findings, operation: str) -> int:
    """What one token's message is; where the model is not known, the smallest that was measured."""
    if found.shape is None:
        return min(one.nbytes for one in found.measurements if one.operation == operation)
    return (token_bytes if operation == ALL_REDUCE else stage_bytes)(found.plan, found.shape)


def fastest(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Of each group of ranks the one with the most bandwidth."""
    best: dict[tuple[int, ...], Measurement] = {}
    for one in measurements:
        if one.ranks not in best or one.bus_bandwidth > best[one.ranks].bus_bandwidth:
            best[one.ranks] = one
    return list(best.values())


def between(one: Measurement, of: int) -> str:
    slowest = f", the slowest of {of}" if of > 1 else ""
    return f"ranks {span(one.ranks)}{slowest}, {one.transport}"


def layers_instead(found: Findings, cost: TokenCost) -> str:
    """The split by layers that would cost a token much less on the link between the nodes, "" if there is none."""
    plan, wanted = found.plan, stage_bytes(found.plan, found.shape)
    pairs = node_pairs(plan)
    sends = [m.median for m in found.measurements if (m.operation, m.nbytes) == (SEND, wanted) and m.ranks in pairs]
    stages = plan.pipeline_parallel_size * plan.nnodes
    if not sends or cost.seconds < max(SECONDS_PER_TOKEN, TIMES_MORE * sum(sends)):
        return ""
    if plan.tensor_parallel_size % plan.nnodes or stages > found.shape.num_hidden_layers:
        return ""
    split = f"--tensor-parallel-size {plan.tensor_parallel_size // plan.nnodes} --pipeline-parallel-size {stages}"
    return f"{split}: {plural(len(sends), 'send')} per token between the nodes, {duration(sum(sends))}"
