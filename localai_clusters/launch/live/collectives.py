"""All-reduces and sends between this process and others: whether their sums are right, and how long they take.

Needs torch, and of vLLM only the library with its CPU kernels, which is loaded without importing vLLM (5 ms, not 6 s).
"""

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from localai_clusters.launch.live.measurement import ALL_REDUCE, SMALLEST_BYTES, Measurement, middle_and_p99

GLOO, NCCL, SHARED_MEMORY = "gloo", "nccl", "shared memory"
SECONDS_FOR_A_COLLECTIVE = 12.0  # of gloo; a lost rank is named sooner, by the heartbeat
SECONDS_FOR_NCCL = 30.0  # the first one of a group also finds the ways between its GPUs
WARM_UPS, ESTIMATES, LEAST_TIMES, MOST_TIMES = 2, 3, 5, 1000
LARGEST_ON_A_GPU, LARGEST_ON_A_CPU = 256 << 20, 4 << 20
LARGEST_EXACT = 1 << 24  # whole numbers up to here are exact in float32


@dataclass(frozen=True, slots=True)
class Transport:
    """One way in which ``ranks`` reach each other. Ranks are the job's own numbers."""

    name: str
    ranks: tuple[int, ...]
    device: str
    group: Any  # of torch.distributed, by which the ranks agree on how often to measure
    all_reduce: Callable[[torch.Tensor], Any]
    send: Callable[[torch.Tensor, int], Any]
    receive: Callable[[torch.Tensor, int], Any]

    def agree(self, seconds: float) -> float:
        """The longest of what the ranks say."""
        longest = torch.tensor([seconds], dtype=torch.float64)
        dist.all_reduce(longest, op=dist.ReduceOp.MAX, group=self.group)
        return longest.item()

    def finish(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def join(store: Any, rank: int, world_size: int, device: str) -> None:
    """Make torch's process group: gloo for tensors in RAM, and NCCL beside it for those on GPUs, as vLLM does."""
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=SECONDS_FOR_NCCL if device == "cuda" else SECONDS_FOR_A_COLLECTIVE),
    )


def through_torch(ranks: Sequence[int], device: str) -> Transport:
    """gloo, or NCCL for ``cuda``. Every rank of the job has to call it, in the same order."""
    group = dist.new_group(ranks)
    return Transport(
        NCCL if device == "cuda" else GLOO,
        tuple(ranks),
        device,
        group,
        all_reduce=lambda tensor: dist.all_reduce(tensor, group=group),
        send=lambda tensor, to: dist.send(tensor, to, group=group),
        receive=lambda tensor, of: dist.recv(tensor, of, group=group),
    )


def through_shared_memory(gloo: Transport, rank: int, name: str) -> Transport:
    """What vLLM's CPU ranks of one node use (vllm/distributed/device_communicators/cpu_communicator.py,
    ``_CPUSHMDistributed``): they spin on segments in /dev/shm, and no kernel and no socket is in the way.

    Where a rank's vLLM has no such thing, ``gloo`` again.
    """
    kernels, index = vllm_kernels(), gloo.ranks.index(rank)
    threads = torch.tensor([torch.get_num_threads() if kernels else 0])
    dist.all_reduce(threads, op=dist.ReduceOp.MIN, group=gloo.group)
    if not threads.item():
        return gloo
    segment = f"{name}-[{'-'.join(map(str, gloo.ranks))}]"
    handle = kernels.init_shm_manager(segment, len(gloo.ranks), index, threads.item())
    dist.barrier(gloo.group)  # every segment is made before any is opened
    kernels.join_shm_manager(handle, segment)
    dist.barrier(gloo.group)
    return Transport(
        SHARED_MEMORY,
        gloo.ranks,
        "cpu",
        gloo.group,
        all_reduce=lambda tensor: kernels.shm_allreduce(handle, tensor),
        send=lambda tensor, to: kernels.shm_send_tensor_list(handle, [tensor], gloo.ranks.index(to)),
        receive=lambda tensor, of: tensor.copy_(kernels.shm_recv_tensor_list(handle, gloo.ranks.index(of))[0]),
    )


def vllm_kernels() -> Any:
    """``torch.ops._C`` with vLLM's operators, chosen as ``CpuPlatform.import_kernels`` does; None if there are none."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.origin:
        return None
    library = "_C_AVX2"
    if torch.cpu._is_avx512_supported():
        library = "_C" if torch.cpu._is_avx512_bf16_supported() else "_C_AVX512"
    try:
        torch.ops.load_library(Path(spec.origin).with_name(f"{library}.abi3.so"))
    except OSError:
        return None
    return torch.ops._C if hasattr(torch.ops._C, "init_shm_manager") else None


def wrong_sums(transport: Transport, rank: int, sizes: Sequence[int], dtype: torch.dtype) -> list[str]:
    """All-reduces of known numbers, compared exactly; what was wrong, as this rank saw it.

    In float32 every rank adds (its place + 1) x a pattern. In ``dtype`` each element comes from one rank and the
    others add 0, so that the sum is exact whatever the dtype rounds to.
    """
    found, place, count = [], transport.ranks.index(rank), len(transport.ranks)
    ones = count * (count + 1) // 2
    pattern_size = max(1, min(17, LARGEST_EXACT // ones))
    for elements in sizes:
        index = torch.arange(elements)
        pattern = index % pattern_size + 1
        mine = index % count == place
        cases = (
            (torch.float32, (place + 1) * pattern, ones * pattern),
            (dtype, torch.where(mine, index % 199 + 1, 0), index % 199 + 1),  # to 256 exact in bfloat16
        )
        for kind, given, right in cases:
            summed = given.to(kind).to(transport.device)
            transport.all_reduce(summed)
            transport.finish()
            wrong = (summed.cpu().double() != right).nonzero().flatten()
            if len(wrong):
                at = int(wrong[0])
                found.append(
                    f"{len(wrong)} of {elements} elements in {str(kind).removeprefix('torch.')} over {transport.name}: "
                    f"element {at} is {summed[at].item():g} and should be {right[at].item()}"
                )
    return found


def times_of(
    transport: Transport, rank: int, operation: str, sizes: Sequence[int], seconds: float, dtype: torch.dtype
) -> Iterator[Measurement]:
    """One measurement per size (bytes, growing), each taking about ``seconds``; it ends early where that is too slow.

    Sends go from the first rank to the second and back, and count half.
    """
    for nbytes in sizes:
        tensor = torch.zeros(max(1, nbytes // dtype.itemsize), dtype=dtype, device=transport.device)
        if operation == ALL_REDUCE:
            once, share = lambda tensor=tensor: transport.all_reduce(tensor), 1.0
        else:
            once, share = ping_pong(transport, rank, tensor), 0.5
        repeat(transport, once, WARM_UPS)
        estimate = transport.agree(sum(repeat(transport, once, ESTIMATES)) / ESTIMATES)
        took = repeat(transport, once, max(LEAST_TIMES, min(MOST_TIMES, int(seconds / max(estimate, 1e-7)))))
        median, p99 = middle_and_p99(took)
        yield Measurement(operation, transport.name, transport.ranks, nbytes, len(took), median * share, p99 * share)
        if estimate * LEAST_TIMES > seconds:
            return


def ping_pong(transport: Transport, rank: int, tensor: torch.Tensor) -> Callable[[], None]:
    first, second = transport.ranks
    to = second if rank == first else first

    def once() -> None:
        if rank == first:
            transport.send(tensor, to)
        transport.receive(tensor, to)
        if rank == second:
            transport.send(tensor, to)

    return once


def repeat(transport: Transport, once: Callable[[], Any], times: int) -> list[float]:
    """Seconds of each."""
    took = []
    for _ in range(times):
        started = time.perf_counter()
        once()
        transport.finish()
        took.append(time.perf_counter() - started)
    return took


def sizes_for(device: str, *of_a_token: int) -> list[int]:
    """Bytes to measure, growing: the smallest message, one token's, and larger ones for the bandwidth."""
    largest = LARGEST_ON_A_GPU if device == "cuda" else LARGEST_ON_A_CPU
    larger = [nbytes for exponent in range(10) if (nbytes := (64 << 10) * 8**exponent) <= largest]
    return sorted({SMALLEST_BYTES, *of_a_token, *larger})
