"""One look at a plan and, if there is one, its server: everything the views show, as data."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from localai_clusters.launch.run import STEPS, Rank
from localai_clusters.models import ModelError, ModelShape, look_up
from localai_clusters.monitor import Sample
from localai_clusters.plan import ServePlan
from localai_clusters.sizing import RankSize, can_predict, kv_heads_per_rank, rank_sizes

if TYPE_CHECKING:
    from localai_clusters.server import Server

STOPPED, STARTING, RUNNING, STOPPING, FAILED = "stopped", "starting", "running", "stopping", "failed"
WAITING, ENDED, READY = "not started", "ended", "ready"  # of a rank, beside STARTING and FAILED
# The steps of serve (launch/run.py) that every rank takes, in order: how far a start is.
PATH = ("python", "import", "rendezvous", "weights", "weights-loaded", "kv-cache", "engine", "ready")


@dataclass(frozen=True, slots=True)
class RankSeen:
    """One rank. ``done`` is the share of the start's steps that it has taken; sizes in bytes, None: not known."""

    rank: int
    node: str
    state: str
    step: str
    done: float
    device: str = ""
    layers: str = ""
    heads: str = ""
    weights: int | None = None
    weights_predicted: int | None = None
    kv_cache: int | None = None
    held: int | None = None  # all that the process holds, in RAM or on its GPU
    limit: int | None = None  # the most that the device has


@dataclass(frozen=True, slots=True)
class Seen:
    """``kv_used`` of ``kv_blocks``, ``running`` and ``waiting`` requests, ``generated`` tokens: None if not known."""

    title: str
    state: str
    message: str
    ranks: tuple[RankSeen, ...]
    tensor_parallel_size: int
    seconds: float | None = None  # since the run was started, of the sample
    kv_used: int | None = None
    kv_blocks: int | None = None
    kv_block_tokens: int | None = None
    running: int | None = None
    waiting: int | None = None
    generated: int | None = None
    on_gpu: bool = False


def look(plan: ServePlan, state: str, message: str, server: "Server | None", sample: Sample | None) -> Seen:
    shape = shape_of(plan, server)
    plan = server.plan if server else plan
    sizes = rank_sizes(plan, shape) if shape and can_predict(shape) else []
    said = server.ranks() if server else [Rank(rank, None, None, {}, {}) for rank in range(plan.world_size)]
    live = state in (STARTING, RUNNING, STOPPING)
    ranks = tuple(
        rank_seen(rank, plan, shape, sizes[rank.rank] if rank.rank < len(sizes) else None, server, sample, live)
        for rank in said
    )
    facts = said[0].facts if said else {}
    sample = sample if live else None
    return Seen(
        title=f"{plan.model}, {plan.label}",
        state=state,
        message=message,
        ranks=ranks,
        tensor_parallel_size=plan.tensor_parallel_size,
        seconds=sample and sample.seconds,
        kv_used=sample and sample.kv_blocks_used,
        kv_blocks=sample and sample.kv_blocks,
        kv_block_tokens=facts.get("kv_cache_block_tokens"),
        running=sample and sample.running,
        waiting=sample and sample.waiting,
        generated=sample and sample.generated,
        on_gpu=str(facts.get("device", "")).startswith("cuda"),
    )


def shape_of(plan: ServePlan, server: "Server | None") -> ModelShape | None:
    if server:
        return server.model.shape
    try:
        return look_up(plan.model)
    except (ModelError, OSError):
        return None


def rank_seen(
    rank: Rank,
    plan: ServePlan,
    shape: ModelShape | None,
    size: RankSize | None,
    server: "Server | None",
    sample: Sample | None,
    live: bool,
) -> RankSeen:
    reached = [step for step in PATH if step in rank.times]
    if "failed" in rank.times:
        state = FAILED
    elif not live:
        state = ENDED if rank.step else WAITING
    else:
        state = READY if rank.step == "ready" else STARTING if rank.step else WAITING
    step = STEPS.get(rank.step, WAITING) if state in (STARTING, FAILED) else state
    on_gpu = str(rank.facts.get("device", "")).startswith("cuda")
    held = None
    if sample and live and rank.rank < len(sample.resident):
        held = sample.gpu[rank.rank] if on_gpu else sample.resident[rank.rank]
    tensor, layers = plan.tensor_parallel_size, rank.facts.get("layers") or (size and size.layers)
    heads = ""
    if shape and shape.num_attention_heads % tensor == 0:
        heads = (
            f"{shape.num_attention_heads // tensor} of {shape.num_attention_heads} heads, "
            f"{kv_heads_per_rank(shape, tensor)} of {shape.num_key_value_heads} KV heads"
        )
    return RankSeen(
        rank=rank.rank,
        node=server.run.node_of(rank.rank) if server else f"node {rank.rank // plan.nproc_per_node}",
        state=state,
        step=step,
        done=(PATH.index(reached[-1]) + 1) / len(PATH) if reached else 0.0,
        device=device_of(rank),
        layers=f"layers {layers[0]} to {layers[1] - 1}" if layers else "",
        heads=heads,
        weights=rank.facts.get("weights_bytes"),
        weights_predicted=size.weights_bytes if size else None,
        kv_cache=rank.facts.get("kv_cache_bytes"),
        held=held,
        limit=limit_of(rank, server, on_gpu),
    )


def device_of(rank: Rank) -> str:
    device, cpus = rank.facts.get("device", ""), rank.facts.get("cpus")
    if str(device).startswith("cuda"):
        return f"GPU {device.partition(':')[2] or rank.facts.get('local_rank', 0)}"
    return f"CPU {'core' if len(cpus) == 1 else 'cores'} {', '.join(map(str, cpus))}" if cpus else ""


def limit_of(rank: Rank, server: "Server | None", on_gpu: bool) -> int | None:
    if server is None:
        return None
    if not on_gpu:
        return server.machine.memory_bytes
    local = rank.facts.get("local_rank", 0)
    return server.machine.gpus[local].memory_bytes if local < len(server.machine.gpus) else None
