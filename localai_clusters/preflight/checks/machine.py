"""Whether this machine's devices, system and versions carry the ranks."""

from collections.abc import Iterator

from localai_clusters.machine import SUPPORTED_VLLM
from localai_clusters.preflight.report import FAIL, PASS, WARN, Verdict
from localai_clusters.preflight.situation import Situation
from localai_clusters.sizing import MIB, dtype_of, size_of


def check_versions(situation: Situation) -> Iterator[Verdict]:
    machine = situation.machine
    vllm = machine.versions.get("vllm")
    if vllm is None:
        yield Verdict("versions", FAIL, "vLLM is not installed", "make setup")
    elif vllm.split("+")[0] != SUPPORTED_VLLM:
        message = f"vLLM {vllm} is installed; the torchrun server is built on {SUPPORTED_VLLM}"
        yield Verdict("versions", FAIL, message, "make setup")
    elif machine.backend == "cuda" and not machine.gpus:
        message = f"vLLM {vllm} for GPUs is installed, but no NVIDIA driver answers"
        yield Verdict("versions", FAIL, message, "./setup.sh --variant cpu, or mend the driver (nvidia-smi)")
    else:
        build = "CPU" if machine.backend == "cpu" else "CUDA"
        torch = machine.versions.get("torch", "none")
        yield Verdict("versions", PASS, f"vLLM {vllm} ({build}), torch {torch}, Python {machine.python}")


def check_devices(situation: Situation) -> Iterator[Verdict]:
    machine, ranks = situation.machine, situation.ranks_here
    if machine.backend is None:
        return
    count = machine.devices
    noun = "GPU" if machine.backend == "cuda" else "core"
    nouns = noun + "s" * (count != 1)
    where = "a node" if situation.nodes_here == 1 else f"{situation.nodes_here} nodes that share a machine"
    if ranks <= count:
        yield Verdict("devices", PASS, f"{ranks} rank{'s' * (ranks > 1)} on {where} with {count} {nouns}")
        return
    message = f"{ranks} ranks on {where} with {count} {nouns}: each rank needs a {noun} of its own"
    if machine.backend == "cpu":
        message += "; two that share one wait for each other about a hundred times longer"
    flag = "--tensor-parallel-size" if situation.plan.tensor_parallel_size > 1 else "--pipeline-parallel-size"
    most = f"at most {max(count, 1)} rank{'s' * (count > 1)} on a node"
    yield Verdict("devices", FAIL, message, f"{most}: a smaller {flag}, or more nodes")


def check_dtype(situation: Situation) -> Iterator[Verdict]:
    shape, machine = situation.shape, situation.machine
    if shape is None or machine.backend != "cuda" or not machine.gpus:
        return
    lowest = min(machine.gpus, key=lambda gpu: float(gpu.compute_capability))
    if dtype_of(situation.plan, shape) != "bfloat16" or float(lowest.compute_capability) >= 8.0:
        return
    message = f"{lowest.name} (compute capability {lowest.compute_capability}) has no bfloat16; it came with 8.0"
    if situation.plan.dtype == "auto":  # vllm/config/model.py, _resolve_auto_dtype
        yield Verdict("dtype", WARN, f"{message}. vLLM takes float16 in its place", "--dtype float16")
    else:
        yield Verdict("dtype", FAIL, message, "--dtype float16")


def check_shared_memory(situation: Situation) -> Iterator[Verdict]:
    plan, machine = situation.plan, situation.machine
    needed = (24 + 4 * situation.ranks_here) * MIB  # lockstep's queue (6 chunks of 4 MiB) and a segment per rank
    if plan.nproc_per_node == 1:
        return
    if machine.shm_free_bytes < needed:
        message = f"/dev/shm has {size_of(machine.shm_free_bytes)} free; the ranks need {size_of(needed)}"
        fix = "docker run --shm-size=1g ..., or: mount -o remount,size=1G /dev/shm"
        yield Verdict("shared memory", FAIL, message, fix)
    else:
        yield Verdict("shared memory", PASS, f"/dev/shm has {size_of(machine.shm_free_bytes)} free")
