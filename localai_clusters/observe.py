"""What a running rank really holds: the operating system's figures for a CPU rank, NVML's for a GPU rank."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from localai_clusters.launch.run import Rank
from localai_clusters.sizing import RankSize

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class RankMemory:
    """One rank's memory in bytes, predicted before the launch beside measured after it.

    ``weights`` and ``kv_cache`` are what the rank counted on its own tensors. ``resident`` is all that
    the process holds in RAM (VmRSS, and VmHWM for the peak); ``gpu`` what NVML says it holds on its GPU.
    """

    rank: int
    weights_predicted: int | None
    weights_measured: int | None
    kv_cache_predicted: int | None
    kv_cache_measured: int | None
    resident: int | None
    resident_peak: int | None
    gpu: int | None = None


def rank_memory(size: RankSize, rank: Rank, predicted: bool = True) -> RankMemory:
    """``predicted`` is False for weights that sizing cannot predict: then there is no prediction, not a guess."""
    resident, peak = resident_bytes(rank.pid) if rank.pid else (None, None)
    return RankMemory(
        rank=rank.rank,
        weights_predicted=size.weights_bytes if predicted else None,
        weights_measured=rank.facts.get("weights_bytes"),
        kv_cache_predicted=size.kv_cache_bytes,
        kv_cache_measured=rank.facts.get("kv_cache_bytes"),
        resident=resident,
        resident_peak=peak,
        gpu=gpu_bytes(rank.pid) if rank.facts.get("device", "cpu").startswith("cuda") else None,
    )


def resident_bytes(pid: int) -> tuple[int | None, int | None]:
    """(resident now, its peak) of a process in bytes; (None, None) once it is gone."""
    fields = {}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            fields[name] = value.split()
    now, peak = fields.get("VmRSS"), fields.get("VmHWM")
    return (int(now[0]) * 1024 if now else None, int(peak[0]) * 1024 if peak else None)


def gpu_bytes(pid: int) -> int | None:
    """Bytes that ``pid`` holds on all GPUs, as NVML reports them; None where no driver answers."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        processes = [process for handle in handles for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        return sum(process.usedGpuMemory or 0 for process in processes if process.pid == pid)
    finally:
        pynvml.nvmlShutdown()


def nvidia_smi() -> str | None:
    """The table that ``nvidia-smi`` prints, None where there is none."""
    import shutil
    import subprocess

    if shutil.which("nvidia-smi") is None:
        return None
    answer = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=20)
    return answer.stdout if answer.returncode == 0 else None
