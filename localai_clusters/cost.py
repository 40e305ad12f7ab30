"""What one token costs with a split: predicted for one stream that decodes, and meant to be measured.

A decoding step reads each of a rank's weights once: bytes / memory bandwidth, and some time per layer whatever its
size. The ranks of a tensor parallel group do so at once, the stages of a pipeline one after the other. Between ranks go

- tensor parallel: two all-reduces of a hidden vector per layer (Megatron-LM, Shoeybi et al. 2019, section 3), one after
  the embedding (vllm/model_executor/layers/vocab_parallel_embedding.py) and an all-gather of the logits
  (layers/logits_processor.py);
- pipeline parallel: at each boundary hidden states and residual (vllm/model_executor/models/llama.py), and the token
  back.

Held to what was measured on two CPU cores and on two nodes of one machine, and to nothing yet on a GPU:
tests/test_cost.py has the figures. There the splits come in the right order and each prediction is within a factor of
two of its measurement. Trust the order, not the milliseconds.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from localai_clusters.data_sheets import bandwidths
from localai_clusters.links import Group, Link, between_nodes, within_node
from localai_clusters.machine import Machine
from localai_clusters.models import ModelShape
from localai_clusters.plan import ServePlan
from localai_clusters.sizing import (
    DTYPE_BYTES,
    RankSize,
    can_predict,
    dtype_of,
    padded_vocab_size,
    rank_sizes,
)
from localai_clusters.weight_bytes import embedding_parameters

# Defaults for every GPU, not measured here: the share of its data sheet's bandwidth that decoding reaches, a layer's
# kernels launched by a CUDA graph, a step's scheduling and sampling.
GPU_EFFICIENCY, GPU_LAYER_SECONDS, GPU_STEP_SECONDS = 0.7, 20e-6, 1e-3
# Fitted to TP=1 on one and on two cores of one machine (AMD EPYC, see README.md), and the default for every other CPU.
CORE_BYTES_PER_SECOND = 16e9
CPU_LAYER_SECONDS, CPU_STEP_SECONDS = 0.4e-3, 2e-3
CPU_BYTES_PER_SECOND = 100e9  # of all cores together, however many: half of eight channels of DDR4
# A description of 194 bytes ahead of the tensors, and around four messages Gloo's envelopes of 48 bytes.
STAGE_HEADER_BYTES = 400


@dataclass(frozen=True, slots=True)
class Cost:
    """``bytes_on_the_wire``: what one node sends another per token, 0 within one node. Packet headers are not in it:
    with messages of 1 kB they were another two thirds (SmolLM2-135M, TP=2). ``hidden_bytes_on_the_wire``: of them those
    that each token of a prompt costs too, all but the logits and a message's description."""

    plan: ServePlan
    compute_seconds: float
    communication_seconds: float
    bytes_on_the_wire: int
    hidden_bytes_on_the_wire: int = 0

    @property
    def seconds_per_token(self) -> float:
        return self.compute_seconds + self.communication_seconds


@dataclass(frozen=True, slots=True)
class Device:
    """What one rank computes on."""

    bytes_per_second: float
    layer_seconds: float
    step_seconds: float


def predict(
    plan: ServePlan, shape: ModelShape, machine: Machine, link: Link | None = None, nodes_here: int = 1
) -> Cost:
    """The cost of one token. ``machine`` stands for each of the nodes, which ``link`` joins (its own network, if not
    given); ``nodes_here`` of them share its cores.

    Raises ``ValueError`` for what is not predicted: experts, quantized weights, a GPU without figures, a MIG instance.
    """
    if shape.num_experts or shape.quantization or not can_predict(shape):
        raise ValueError("what a token reads of a mixture of experts, or of quantized weights, is not predicted")
    dtype, tensor = dtype_of(plan, shape), plan.tensor_parallel_size
    devices = _devices(plan, machine, nodes_here)
    link, element = link or between_nodes(machine), DTYPE_BYTES[dtype]
    hidden, logits = shape.hidden_size * element, padded_vocab_size(shape) // tensor * element
    sizes, last = rank_sizes(plan, shape), plan.pipeline_parallel_size - 1
    compute, communication, wire, once = devices[0].step_seconds, 0.0, 0, 0
    stages: list[float] = []  # until when each has computed
    for stage in range(last + 1):
        ranks = sizes[stage * tensor : (stage + 1) * tensor]
        layers = ranks[0].layers[1] - ranks[0].layers[0]
        compute += max(
            layers * device.layer_seconds + _bytes_read(size, plan, shape, element) / device.bytes_per_second
            for size, device in ((size, devices[size.rank % len(devices)]) for size in ranks)
        )
        if tensor > 1:
            group = _group(plan, machine, [size.rank for size in ranks], link)
            all_reduces = 2 * layers + (stage == 0)
            communication += all_reduces * group.all_reduce_seconds(hidden)
            communication += group.all_gather_seconds(logits) if stage == last else 0
            wire += all_reduces * 2 * (tensor - 1) * hidden // tensor if group.nodes > 1 else 0
            once += (tensor - 1) * logits if group.nodes > 1 and stage == last else 0
        if stage < last:
            boundary = _group(plan, machine, [ranks[0].rank, ranks[0].rank + tensor], link)
            communication += boundary.next_stage_seconds(2 * hidden)
            wire += 2 * hidden if boundary.nodes > 1 else 0
            once += STAGE_HEADER_BYTES if boundary.nodes > 1 else 0
        stages.append(compute)
    if plan.nnodes > 1:  # rank 0's word of what this step is; a next stage says "ready" to it while the first computes
        is_pipeline = len({rank // plan.nproc_per_node for rank in range(tensor)}) == 1
        communication += max(0.0, 2 * link.seconds - stages[0]) if is_pipeline else link.seconds
    return Cost(plan, compute, communication, wire + once, wire)


def best_split(
    plans: Iterable[ServePlan], shape: ModelShape, machine: Machine, link: Link | None = None, nodes_here: int = 1
) -> Cost:
    """The cheapest per token of ``plans``. ``ValueError`` as for ``predict``, and for no plans at all."""
    return cheapest([predict(plan, shape, machine, link, nodes_here) for plan in plans])


def cheapest(costs: Iterable[Cost]) -> Cost:
    return min(costs, key=lambda cost: cost.seconds_per_token)


def _bytes_read(size: RankSize, plan: ServePlan, shape: ModelShape, element: int) -> int:
    """Of a rank's weights what a token reads: all but the embedding (one row of it), unless that is the output head."""
    is_first, is_last = size.pipeline_parallel_rank == 0, size.pipeline_parallel_rank == plan.pipeline_parallel_size - 1
    tied, everywhere = shape.tie_word_embeddings, bool(shape.family and shape.family.ends_everywhere)
    unread = (is_first or everywhere) and not (is_last and tied)
    unread += everywhere and not is_last and not tied  # the output head, too
    return size.weights_bytes - unread * embedding_parameters(shape, plan.tensor_parallel_size) * element


def _devices(plan: ServePlan, machine: Machine, nodes_here: int) -> list[Device]:
    """Of the ranks of one node, by local rank."""
    if machine.backend == "cpu":
        ranks = plan.nproc_per_node * nodes_here
        cores = max(1, len(machine.cores) // ranks)
        rate = min(cores * CORE_BYTES_PER_SECOND, CPU_BYTES_PER_SECOND / ranks)
        return [Device(rate, CPU_LAYER_SECONDS, CPU_STEP_SECONDS)] * plan.nproc_per_node
    gpus = machine.visible.gpus[: plan.nproc_per_node] if machine.backend == "cuda" else ()
    if not gpus or any(gpu.mig_devices for gpu in gpus):
        raise ValueError("there is no whole GPU here, and no CPU build of vLLM, whose speed could be predicted")
    rates = [bandwidths(gpu.name).memory * GPU_EFFICIENCY for gpu in gpus]
    return [Device(rate, GPU_LAYER_SECONDS, GPU_STEP_SECONDS) for rate in rates]


def _group(plan: ServePlan, machine: Machine, ranks: list[int], link: Link) -> Group:
    nodes = len({rank // plan.nproc_per_node for rank in ranks})
    local = sorted({rank % plan.nproc_per_node for rank in ranks})
    visible = machine.visible.gpus
    gpus = [visible[i] for i in local if i < len(visible)]
    return Group(len(ranks), nodes, within_node(machine, gpus), link, machine.backend == "cuda")
