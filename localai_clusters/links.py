"""What lies between ranks, and how long they take to exchange something over it.

Small messages count most while decoding: how often one waits for the other, times how long a message takes. On GPUs
that is NCCL's own estimate (nccl, src/graph/tuning.cc: baseLat and hwLat of a tree with the LL protocol). On CPUs it is
vLLM's shared memory within a node and Gloo's ring over TCP between nodes: in each phase a "ready" goes one way and data
the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil, log2

from localai_clusters.data_sheets import Bandwidths, bandwidths
from localai_clusters.machine import Gpu, Machine
from localai_clusters.machine.facts import NVLINK

NCCL_SECONDS, NVLINK_SECONDS, PCIE_SECONDS, RDMA_SECONDS = 6.8e-6, 0.6e-6, 1e-6, 5e-6
TCP_SECONDS = 50e-6  # a small message one way, through two kernels and a switch: a default, not measured here
ASSUMED_MBIT = 1000


@dataclass(frozen=True, slots=True)
class Link:
    """``seconds`` is a small message's way in one direction, what software adds to it included."""

    name: str
    seconds: float
    bytes_per_second: float


SHARED_MEMORY = Link("shared memory", 5e-6, 5e9)  # measured with vLLM's shm_allreduce on two cores: 3 us


def network(mbit: float, delay_ms: float = 0, name: str = "") -> Link:
    """A link between nodes of ``mbit`` Mbit/s and ``delay_ms`` one way, besides what the kernels take."""
    name = name or f"{mbit:g} Mbit/s" + (f" and {delay_ms:g} ms one way" if delay_ms else "")
    return Link(name, TCP_SECONDS + delay_ms * 1e-3, mbit * 1e6 / 8)


def between_nodes(machine: Machine) -> Link:
    """The link by which ``machine`` reaches other nodes; where its speed is not known, one of ``ASSUMED_MBIT``."""
    adapters = [mbit for mbit in machine.infiniband.values() if mbit]
    if machine.backend == "cuda" and adapters and machine.environment.get("NCCL_IB_DISABLE", "0") != "1":
        return Link(f"InfiniBand, {max(adapters) // 1000} Gbit/s", RDMA_SECONDS, max(adapters) * 1e6 / 8)
    out = next((i for i in machine.interfaces.values() if i.address and i.address == machine.address), None)
    if out is None or out.speed_mbit is None:
        return network(ASSUMED_MBIT, name=f"{ASSUMED_MBIT} Mbit/s, assumed")
    return network(out.speed_mbit)


def within_node(machine: Machine, gpus: Sequence[Gpu]) -> Link:
    """The slowest link between two of ``gpus``; shared memory on a CPU. ``ValueError`` for a GPU without figures."""
    if machine.backend == "cpu":
        return SHARED_MEMORY
    links = [machine.link(first.index, second.index) for first, second in combinations(gpus, 2)]
    slowest = Bandwidths(*map(min, zip(*(bandwidths(gpu.name) for gpu in gpus), strict=True)))
    if links and slowest.nvlink and all(link and link.kind == NVLINK for link in links):
        return Link("NVLink", NVLINK_SECONDS, slowest.nvlink)
    ways = 2 if any(link and link.peer_access is False for link in links) else 1  # through the host's memory
    return Link("PCIe", ways * PCIE_SECONDS, slowest.pcie / ways)


@dataclass(frozen=True, slots=True)
class Group:
    """``size`` ranks on ``nodes`` nodes, joined by ``inner`` within a node and by ``outer`` between nodes."""

    size: int
    nodes: int
    inner: Link
    outer: Link
    is_cuda: bool

    def all_reduce_seconds(self, count: int) -> float:
        """``count`` bytes on every rank."""
        sent = 2 * (self.size - 1) / self.size * count
        if self.is_cuda:
            return NCCL_SECONDS + 2 * self._tree_seconds() + sent / self._bytes_per_second()
        if self.nodes == 1:  # each rank writes its own and reads all
            return self.inner.seconds + self.size * count / self.inner.bytes_per_second
        return 4 * (self.size - 1) * self.outer.seconds + sent / self.outer.bytes_per_second

    def all_gather_seconds(self, count: int) -> float:
        """``count`` bytes from every rank to all others."""
        sent = (self.size - 1) * count
        if self.is_cuda:
            return NCCL_SECONDS + self._tree_seconds() + sent / self._bytes_per_second()
        if self.nodes == 1:
            return self.inner.seconds + self.size * count / self.inner.bytes_per_second
        return 2 * (self.size - 1) * self.outer.seconds + sent / self.outer.bytes_per_second

    def next_stage_seconds(self, count: int) -> float:
        """``count`` bytes from one pipeline stage to the next, and the token's way back.

        Over a network three exchanges of "ready" and data (the length of the tensors' description, the description,
        the tensors: vllm/distributed/parallel_state.py, send_tensor_dict), and the token; the first "ready" is sent
        ahead while the stage before computes, if that takes long enough (cost.py).
        """
        link, messages = (self.inner, 2) if self.nodes == 1 else (self.outer, 6)
        return messages * link.seconds + count / link.bytes_per_second

    def _tree_seconds(self) -> float:
        return (ceil(self.size / self.nodes) - 1) * self.inner.seconds + ceil(log2(self.nodes)) * self.outer.seconds

    def _bytes_per_second(self) -> float:
        return min(link.bytes_per_second for link in (self.inner, self.outer)[: self.nodes])
