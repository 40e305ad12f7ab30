"""Whether another split would be faster: predicted, for one stream, and never a reason not to launch."""

from collections.abc import Iterator

from localai_clusters.cost import Cost, cheapest, predict
from localai_clusters.links import TCP_SECONDS, between_nodes
from localai_clusters.plan import ServePlan
from localai_clusters.preflight.report import WARN, Verdict
from localai_clusters.preflight.situation import Situation
from localai_clusters.sizing import CPU_RUNTIME_BYTES, rank_sizes, tensor_parallel_sizes

MUCH_FASTER = 0.9  # of the time: a prediction is not good enough to tell less than a tenth apart
SHARE_FOR_RANKS = 0.9  # of a GPU's memory
TO_BE_MEASURED = "These are predictions for one stream: measure both"


def check_split_over_nodes(situation: Situation) -> Iterator[Verdict]:
    """Tensor parallel groups that span nodes, where a pipeline between the nodes would cost less."""
    plan = situation.plan
    other = _pipeline_between_nodes(situation)
    if _link_unknown(situation) or other is None or not _spans_nodes(plan):
        return
    link = situation.link or between_nodes(situation.machine)
    costs = _costs(situation, [plan, other])
    what = f"a tensor parallel group on {plan.nnodes} nodes ({link.name})"
    fix = f"--tensor-parallel-size {other.tensor_parallel_size} --pipeline-parallel-size {other.pipeline_parallel_size}"
    if costs and costs[1].seconds_per_token <= MUCH_FASTER * costs[0].seconds_per_token:
        own, better = costs
        message = (
            f"{what}: {_ms(own)} and {_kb(own)} over the network per token, "
            f"against {_ms(better)} and {_kb(better)} with {other.label}. {TO_BE_MEASURED}"
        )
        yield Verdict("split over nodes", WARN, message, fix)
    elif not costs and link.seconds >= TCP_SECONDS:
        message = f"{what}: two all-reduces per layer cross the network for each token; a pipeline crosses it once"
        yield Verdict("split over nodes", WARN, message, f"{fix}, and measure both")


def check_over_decomposition(situation: Situation) -> Iterator[Verdict]:
    """A model split over more tensor parallel ranks than it gains by."""
    plan, shape, machine = situation.plan, situation.shape, situation.machine
    if shape is None or _link_unknown(situation) or situation.ranks_here > machine.devices:
        return
    if plan.world_size != plan.split_size:
        return
    sizes = tensor_parallel_sizes(shape, plan.tensor_parallel_size - 1)
    smaller = [other for size in sizes if (other := _with_tensor_parallel_size(situation, size))]
    costs = _costs(situation, [plan, *smaller]) if smaller else []
    if not costs:
        return
    own, best = costs[0], cheapest(costs)
    if best.seconds_per_token <= MUCH_FASTER * own.seconds_per_token:
        message = (
            f"{plan.label}: {_ms(own)} per token, {own.communication_seconds * 1e3:.1f} of them between ranks; "
            f"{best.plan.label}: {_ms(best)}. {TO_BE_MEASURED}"
        )
        nodes = f" --nnodes {best.plan.nnodes}" if best.plan.nnodes != plan.nnodes else ""
        nodes = ", without --on-nodes" if nodes and situation.nodes_here > 1 else nodes
        fix = f"--tensor-parallel-size {best.plan.tensor_parallel_size}{nodes}"
        yield Verdict("over-decomposition", WARN, message, fix)


def _costs(situation: Situation, plans: list[ServePlan]) -> list[Cost]:
    """One for each plan; none at all where that cannot be predicted."""
    if situation.shape is None:
        return []
    try:
        return [_predict(plan, situation) for plan in plans]
    except ValueError:
        return []


def _predict(plan: ServePlan, situation: Situation) -> Cost:
    here = situation.nodes_here if plan.nnodes > 1 else 1
    return predict(plan, situation.shape, situation.machine, situation.link, here)


def _link_unknown(situation: Situation) -> bool:
    """Nodes of this machine whose link nobody has told of: it is a made one, and not among the machine's facts."""
    return situation.nodes_here > 1 and situation.link is None


def _spans_nodes(plan: ServePlan) -> bool:
    """Whether the ranks of a tensor parallel group are on more than one node."""
    size = plan.tensor_parallel_size
    return any(
        first // plan.nproc_per_node != (first + size - 1) // plan.nproc_per_node
        for first in range(0, plan.split_size, size)
    )


def _pipeline_between_nodes(situation: Situation) -> ServePlan | None:
    """The same number of ranks, with tensor parallel groups as large as a node allows and stages between the nodes."""
    plan, shape = situation.plan, situation.shape
    if plan.world_size != plan.split_size:
        return None
    sizes = tensor_parallel_sizes(shape, plan.nproc_per_node) if shape else range(1, plan.nproc_per_node + 1)
    for tensor in reversed(list(sizes)):
        stages, rest = divmod(plan.split_size, tensor)
        if plan.nproc_per_node % tensor == 0 and not rest and (shape is None or stages <= shape.num_hidden_layers):
            return plan.with_(tensor_parallel_size=tensor, pipeline_parallel_size=stages)
    return None


def _with_tensor_parallel_size(situation: Situation, size: int) -> ServePlan | None:
    """The plan with fewer tensor parallel ranks, on one node if they have room there; None if it does not fit."""
    plan = situation.plan
    ranks = size * plan.pipeline_parallel_size
    nodes = 1 if ranks <= situation.machine.devices else plan.nnodes
    if ranks % nodes:
        return None
    other = plan.with_(tensor_parallel_size=size, nnodes=nodes)
    return other if _fits(other, situation) else None


def _fits(plan: ServePlan, situation: Situation) -> bool:
    """Whether weights and one whole request have room on every rank."""
    machine, shape = situation.machine, situation.shape
    longest = plan.max_model_len or shape.max_position_embeddings
    needed = [size.weights_bytes + size.kv_bytes_per_token * longest for size in rank_sizes(plan, shape)]
    if machine.backend == "cpu":
        here = needed[: plan.nproc_per_node]
        return sum(here) + len(here) * CPU_RUNTIME_BYTES <= machine.memory_available_bytes
    gpus = machine.visible.gpus[: plan.nproc_per_node]
    room = min((min(gpu.memory_bytes * SHARE_FOR_RANKS, gpu.memory_free_bytes) for gpu in gpus), default=0)
    return max(needed) <= room


def _ms(cost: Cost) -> str:
    return f"{cost.seconds_per_token * 1e3:.1f} ms"


def _kb(cost: Cost) -> str:
    return f"{cost.bytes_on_the_wire / 1e3:.0f} kB"
