"""Times of messages between ranks, the bandwidth that follows, and what a plan's messages cost per token.

Pure: job.py measures, this does the arithmetic.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from localai_clusters.models import ModelShape
from localai_clusters.plan import ServePlan
from localai_clusters.sizing import DTYPE_BYTES, dtype_of, pipeline_layers

ALL_REDUCE, SEND = "all-reduce", "send"
SMALLEST_BYTES = 8
# vLLM's row-parallel layers, after attention and after the MLP (vllm/model_executor/layers/linear.py,
# RowParallelLinear.forward; Megatron-LM, section 3).
ALL_REDUCES_PER_LAYER = 2


@dataclass(frozen=True, slots=True)
class Measurement:
    """``count`` messages of ``nbytes``, one after another. ``median`` and ``p99`` in seconds, as the first rank saw it.

    A send is from the first rank to the second: half a round trip.
    """

    operation: str  # ALL_REDUCE or SEND
    transport: str  # "gloo", "nccl" or "shared memory": what vLLM itself uses between CPU ranks of one node
    ranks: tuple[int, ...]
    nbytes: int
    count: int
    median: float
    p99: float

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Measurement":
        return cls(**data | {"ranks": tuple(data["ranks"])})

    @property
    def bus_bandwidth(self) -> float:
        """Bytes per second that every rank's link carried each way, to be compared with the hardware's.

        For an all-reduce of n ranks size / time x 2(n-1)/n, for a send size / time (NVIDIA/nccl-tests,
        doc/PERFORMANCE.md).
        """
        n = len(self.ranks)
        return self.nbytes / self.median * (2 * (n - 1) / n if self.operation == ALL_REDUCE else 1)


def middle_and_p99(seconds: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile (nearest rank: of fewer than 100 the longest)."""
    ordered = sorted(seconds)
    return ordered[len(ordered) // 2], ordered[math.ceil(0.99 * len(ordered)) - 1]


def token_bytes(plan: ServePlan, shape: ModelShape) -> int:
    """The hidden state of one token: what one all-reduce of one decoding step of one request carries."""
    return shape.hidden_size * DTYPE_BYTES[dtype_of(plan, shape)]


def stage_bytes(plan: ServePlan, shape: ModelShape) -> int:
    """What a pipeline stage sends on per token: the hidden state and the residual beside it."""
    return 2 * token_bytes(plan, shape)


def tensor_groups(plan: ServePlan) -> list[tuple[int, ...]]:
    """The ranks of each pipeline stage; each all-reduces among its own."""
    size = plan.tensor_parallel_size
    return [tuple(range(stage * size, (stage + 1) * size)) for stage in range(plan.pipeline_parallel_size)]


def stage_pairs(plan: ServePlan) -> list[tuple[int, int]]:
    """The first ranks of neighbouring pipeline stages."""
    size = plan.tensor_parallel_size
    return [((stage - 1) * size, stage * size) for stage in range(1, plan.pipeline_parallel_size)]


def node_pairs(plan: ServePlan) -> list[tuple[int, int]]:
    """The first ranks of neighbouring nodes where a tensor-parallel group lies on several: the link it pays for."""
    per_node = plan.nproc_per_node
    return [
        (node * per_node, (node + 1) * per_node)
        for node in range(plan.nnodes - 1)
        if any(node * per_node in group and (node + 1) * per_node in group for group in tensor_groups(plan))
    ]


@dataclass(frozen=True, slots=True)
class TokenCost:
    """What one token of one request waits for messages between ranks: a floor, for nothing is computed meanwhile."""

    all_reduces: int
    sends: int
    seconds: float

    def __str__(self) -> str:
        parts = [f"{count} {name}{'s' * (count > 1)}" for count, name in self.parts if count]
        return f"{' and '.join(parts)} per token: {duration(self.seconds)}"

    @property
    def parts(self) -> tuple[tuple[int, str], ...]:
        return (self.all_reduces, "all-reduce"), (self.sends, "send")


def token_cost(plan: ServePlan, shape: ModelShape, measurements: Sequence[Measurement]) -> TokenCost | None:
    """The plan's messages for one token, each as long as its median was; None if one was not measured.

    Two all-reduces a layer and one after the embedding, among the ranks of the stage; one send between stages. The
    gathering of the logits is left out.
    """
    times = {(m.operation, m.ranks, m.nbytes): m.median for m in measurements}
    stages = pipeline_layers(shape.num_hidden_layers, plan.pipeline_parallel_size)
    all_reduces, seconds = 0, 0.0
    if plan.tensor_parallel_size > 1:
        for (first, last), group in zip(stages, tensor_groups(plan), strict=True):
            took = times.get((ALL_REDUCE, group, token_bytes(plan, shape)))
            if took is None:
                return None
            count = ALL_REDUCES_PER_LAYER * (last - first) + (first == 0)
            all_reduces, seconds = all_reduces + count, seconds + count * took
    pairs = stage_pairs(plan)
    for pair in pairs:
        took = times.get((SEND, pair, stage_bytes(plan, shape)))
        if took is None:
            return None
        seconds += took
    return TokenCost(all_reduces, len(pairs), seconds)


def duration(seconds: float) -> str:
    """``2.6 µs``, ``0.17 ms``, ``43 ms``, ``1.2 s``."""
    unit, name = (1.0, "s") if seconds >= 1 else (1e-3, "ms") if seconds >= 1e-4 else (1e-6, "µs")
    return f"{digits(seconds / unit)} {name}"


def size(nbytes: int) -> str:
    """``8 B``, ``64 KiB``, ``16 MiB``."""
    unit, name = next(((u, n) for u, n in ((1 << 20, "MiB"), (1 << 10, "KiB")) if nbytes >= u), (1, "B"))
    return f"{nbytes / unit:.4g} {name}"


def bandwidth(bytes_per_second: float) -> str:
    """``9.2 GB/s`` (10^9), ``12 MB/s``, ``4.0 kB/s``: as nccl-tests and network cards count."""
    units = ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"))
    unit, name = next((one for one in units if bytes_per_second >= one[0]), units[-1])
    return f"{digits(bytes_per_second / unit)} {name}"


def span(ranks: Sequence[int]) -> str:
    """``0, 1``, ``0-7``, ``0, 4``."""
    if len(ranks) > 2 and list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}-{ranks[-1]}"
    return ", ".join(map(str, ranks))


def digits(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
