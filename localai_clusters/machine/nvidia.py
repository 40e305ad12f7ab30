"""GPUs as NVML sees them: what each is, who else is on it, and what lies between two of them.

NVML knows nothing of CUDA_VISIBLE_DEVICES and starts no CUDA context. Which of its calls a driver answers depends on
the GPU (a GeForce has no MIG, a Jetson no memory of its own, a virtual machine no topology): each is asked by itself.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from localai_clusters.machine.cores import read
from localai_clusters.machine.facts import NODE, NVLINK, PHB, PIX, PXB, SYS, Gpu, GpuLink, GpuProcess, MigDevice

READ, WRITE, NVLINKED = 0, 1, 2  # nvmlGpuP2PCapsIndex_t; pynvml's own NVML_P2P_CAPS_INDEX_READ is a tuple by mistake
TOPOLOGY = {0: PIX, 10: PIX, 20: PXB, 30: PHB, 40: NODE, 50: SYS}  # nvmlGpuTopologyLevel_t; 0: on one board


@dataclass(frozen=True, slots=True)
class Nvidia:
    gpus: tuple[Gpu, ...] = ()
    links: tuple[GpuLink, ...] = ()
    silent: tuple[int, ...] = ()
    driver: str | None = None
    cuda: str | None = None


def nvidia(memory_bytes: int, memory_available_bytes: int, nvml: Any = None) -> Nvidia:
    """What NVML reports; nothing where no driver answers.

    The two figures are the machine's own memory, which a GPU without memory of its own shares.
    """
    if nvml is None:
        import pynvml as nvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return Nvidia()

    def ask(call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except nvml.NVMLError:
            return None

    try:
        count = ask(nvml.nvmlDeviceGetCount) or 0
        handles = {index: ask(nvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)}
        answering = {index: handle for index, handle in handles.items() if handle is not None}
        cuda = ask(nvml.nvmlSystemGetCudaDriverVersion_v2)
        shared = (memory_bytes, memory_available_bytes)
        return Nvidia(
            gpus=tuple(_gpu(nvml, ask, index, handle, shared) for index, handle in answering.items()),
            links=tuple(_link(nvml, ask, *pair) for pair in combinations(answering.items(), 2)),
            silent=tuple(index for index in handles if index not in answering),
            driver=ask(nvml.nvmlSystemGetDriverVersion),
            cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
        )
    finally:
        ask(nvml.nvmlShutdown)


def _gpu(nvml: Any, ask: Callable[..., Any], index: int, handle: Any, shared: tuple[int, int]) -> Gpu:
    memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    total, free = (memory.total, memory.free) if memory else shared
    capability = ask(nvml.nvmlDeviceGetCudaComputeCapability, handle)
    return Gpu(
        index=index,
        name=ask(nvml.nvmlDeviceGetName, handle) or "unknown GPU",
        memory_bytes=total,
        memory_free_bytes=free,
        compute_capability="{}.{}".format(*capability) if capability else None,
        uuid=ask(nvml.nvmlDeviceGetUUID, handle),
        numa_node=_numa_node(ask(nvml.nvmlDeviceGetPciInfo, handle)),
        processes=_processes(nvml, ask, handle),
        mig_devices=_mig_devices(nvml, ask, handle),
    )


def _processes(nvml: Any, ask: Callable[..., Any], handle: Any) -> tuple[GpuProcess, ...]:
    """Compute and graphics processes by pid, each once; a display server is a graphics process."""
    found = {}
    for call in (nvml.nvmlDeviceGetGraphicsRunningProcesses, nvml.nvmlDeviceGetComputeRunningProcesses):
        for process in ask(call, handle) or ():
            if process.pid != os.getpid():
                name = read(f"/proc/{process.pid}/comm") or ask(nvml.nvmlSystemGetProcessName, process.pid) or ""
                shown = "".join(character if character.isprintable() else "?" for character in name)  # it names itself
                found[process.pid] = GpuProcess(process.pid, shown or None, process.usedGpuMemory)
    return tuple(found.values())


def _mig_devices(nvml: Any, ask: Callable[..., Any], handle: Any) -> tuple[MigDevice, ...] | None:
    current, *_ = ask(nvml.nvmlDeviceGetMigMode, handle) or (0,)
    if not current:
        return None
    slots = range(ask(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0)
    instances = [ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot) for slot in slots]
    return tuple(_mig_device(nvml, ask, instance) for instance in instances if instance is not None)


def _mig_device(nvml: Any, ask: Callable[..., Any], instance: Any) -> MigDevice:
    memory = ask(nvml.nvmlDeviceGetMemoryInfo, instance)
    total, free = (memory.total, memory.free) if memory else (0, 0)
    name = ask(nvml.nvmlDeviceGetName, instance) or "MIG instance"
    return MigDevice(ask(nvml.nvmlDeviceGetUUID, instance), name, total, free)


def _link(nvml: Any, ask: Callable[..., Any], first: tuple[int, Any], second: tuple[int, Any]) -> GpuLink:
    handles = first[1], second[1]
    status = {index: ask(nvml.nvmlDeviceGetP2PStatus, *handles, index) for index in (READ, WRITE, NVLINKED)}
    kind = TOPOLOGY.get(ask(nvml.nvmlDeviceGetTopologyCommonAncestor, *handles))
    if status[NVLINKED] == nvml.NVML_P2P_STATUS_OK:  # as vLLM asks: platforms/cuda.py, is_fully_connected
        kind = NVLINK
    peer = [status[index] for index in (READ, WRITE)]
    known = None not in peer
    return GpuLink(first[0], second[0], kind, all(s == nvml.NVML_P2P_STATUS_OK for s in peer) if known else None)


def _numa_node(pci: Any) -> int | None:
    """The NUMA node that the GPU's slot belongs to, from the kernel; None on a machine with one node only."""
    bus = getattr(pci, "busId", b"")
    bus = (bus.decode(errors="replace") if isinstance(bus, bytes) else bus).lower()[-12:]  # sysfs: 16 bits of domain
    node = read(f"/sys/bus/pci/devices/{bus}/numa_node") if bus else ""
    return int(node) if node.isdigit() else None  # -1: none
