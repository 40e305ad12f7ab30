"""Whether this machine's versions, cores, memory for sharing and limits carry the ranks. What GPUs are: gpus.py."""

from collections.abc import Iterator

from localai_clusters.machine import SUPPORTED_VLLM, assign_cores
from localai_clusters.preflight.report import FAIL, PASS, WARN, Verdict
from localai_clusters.preflight.situation import Situation
from localai_clusters.sizing import MIB, size_of

# The oldest driver of each CUDA major version; a newer minor version than the driver's own runs on it, with less in it
# (NVIDIA, CUDA Compatibility, "Minor Version Compatibility"; CUDA Toolkit Release Notes, table of driver versions).
OLDEST_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580"}
DOCKER_SHM_BYTES = 64 * MIB
VLLM_OPEN_FILES = 65535  # vllm/utils/system_utils.py, set_ulimit: what the server raises its limit to, if it may
FEW_OPEN_FILES = 1024  # a socket for each client, and some hundred files of the server's own
FEW_PROCESSES = 1024  # threads count: a rank starts dozens, and one for each core in several pools


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


def check_driver(situation: Situation) -> Iterator[Verdict]:
    machine = situation.machine
    if machine.backend != "cuda" or not machine.driver or not machine.torch_cuda:
        return
    built = version(machine.torch_cuda)
    oldest = OLDEST_DRIVER.get(built[0])
    if machine.cuda:  # with NVIDIA's cuda-compat package installed an old driver supports a newer CUDA
        enough = version(machine.cuda)[0] >= built[0]
    else:
        enough = oldest is None or version(machine.driver) >= version(oldest)
    offers = f"{machine.driver} supports CUDA {machine.cuda or 'of a version it does not say'}"
    if not enough:
        needs = f"a driver of at least {oldest}" if oldest else "a newer driver"
        message = f"{offers}; torch {machine.versions.get('torch', '')} is built with {machine.torch_cuda}"
        fix = f"install {needs} and restart (nvidia-smi shows the one in use)"
        if built[0] == 13 and machine.cuda and version(machine.cuda)[0] == 12:
            fix += f", or vLLM's build for CUDA 12.9 ({SUPPORTED_VLLM}+cu129)"
        yield Verdict("driver", FAIL, message, fix)
    else:
        minor = machine.cuda is not None and version(machine.cuda) < built
        how = " and runs by minor-version compatibility" if minor else ""
        yield Verdict("driver", PASS, f"{offers}; torch is built with {machine.torch_cuda}{how}")


def check_devices(situation: Situation) -> Iterator[Verdict]:
    machine, ranks = situation.machine, situation.ranks_here
    if machine.backend is None:
        return
    count = machine.devices
    noun = "GPU" if machine.backend == "cuda" else "core"
    nouns = noun + "s" * (count != 1)
    where = "a node" if situation.nodes_here == 1 else f"{situation.nodes_here} nodes that share a machine"
    if machine.backend == "cuda" and count < len(machine.gpus):
        nouns += f" (of {len(machine.gpus)})"
    if ranks <= count:
        yield Verdict("devices", PASS, f"{ranks} rank{'s' * (ranks > 1)} on {where} with {count} {nouns}")
        return
    message = f"{ranks} ranks on {where} with {count} {nouns}: each rank needs a {noun} of its own"
    if machine.backend == "cpu":
        message += "; two that share one wait for each other about a hundred times longer"
    flag = "--tensor-parallel-size" if situation.plan.tensor_parallel_size > 1 else "--pipeline-parallel-size"
    most = f"at most {max(count, 1)} rank{'s' * (count > 1)} on a node"
    yield Verdict("devices", FAIL, message, f"{most}: a smaller {flag}, or more nodes")


def check_cores(situation: Situation) -> Iterator[Verdict]:
    machine, ranks = situation.machine, situation.ranks_here
    if machine.backend == "cuda" and len(machine.cores) < ranks:
        message = f"{ranks} ranks on {len(machine.cores)} cores: each rank's Python keeps one busy while it serves"
        yield Verdict("cores", WARN, message, f"at least {ranks} (docker run --cpus {ranks} ..., taskset)")
    if machine.backend != "cpu" or len(machine.cores) < ranks:
        return
    shares = assign_cores(machine.cores, ranks)
    numa = dict(zip(machine.cores, machine.numa_nodes, strict=False))
    spread = [sorted({numa[core] for core in share if core in numa}) for share in shares]
    each = f"{len(shares[0])} core{'s' * (len(shares[0]) > 1)} for each rank, pinned"
    usable, there = sum(map(len, machine.cores)), machine.logical_cpus
    of_all = f"; this process may use {usable} of {there} logical CPUs" if there and usable < there else ""
    wide = next((rank for rank, nodes in enumerate(spread) if len(nodes) > 1), None)
    if wide is None:
        yield Verdict("cores", PASS, f"{each}{of_all}")
        return
    nodes = len(set(machine.numa_nodes))
    # vllm/v1/worker/cpu_worker.py takes memory from the NUMA node of a rank's first core.
    message = (
        f"{each}{of_all}, but rank {wide}'s lie on NUMA nodes {' and '.join(map(str, spread[wide]))} and its weights "
        "on the first of them: the others read through the link between processors"
    )
    yield Verdict("cores", WARN, message, f"--tensor-parallel-size {nodes}: a rank for each NUMA node")


def check_shared_memory(situation: Situation) -> Iterator[Verdict]:
    plan, machine = situation.plan, situation.machine
    needed = (24 + 4 * situation.ranks_here) * MIB  # lockstep's queue (6 chunks of 4 MiB) and a segment per rank
    fix = "docker run --shm-size=1g ..., or: mount -o remount,size=1G /dev/shm"
    if plan.nproc_per_node == 1:
        return
    free = f"/dev/shm has {size_of(machine.shm_free_bytes)} free"
    if machine.shm_free_bytes < needed:
        yield Verdict("shared memory", FAIL, f"{free}; the ranks need {size_of(needed)}", fix)
    elif machine.backend == "cuda" and machine.shm_bytes is not None and machine.shm_bytes <= DOCKER_SHM_BYTES:
        message = f"{free} (64 MiB is what Docker gives); NCCL takes 7 to 10 MiB for each pair of ranks and channel"
        yield Verdict("shared memory", WARN, message, fix)  # NCCL User Guide, Troubleshooting, "Shared memory"
    else:
        yield Verdict("shared memory", PASS, free)


def check_limits(situation: Situation) -> Iterator[Verdict]:
    """``ulimit``: open files where the server runs, processes, and memory that InfiniBand may lock."""
    machine, limits = situation.machine, situation.machine.limits
    if limits is None:
        return
    files, hard = limits.open_files, limits.open_files_hard
    raised = hard is None or hard >= VLLM_OPEN_FILES  # then the server raises the limit itself
    if situation.node_rank == 0 and files is not None and files <= FEW_OPEN_FILES and not raised:
        message = f"{files} open files, and up to {hard} at most: each client of the server takes one"
        fix = "docker run --ulimit nofile=65536:65536 ..., or as root: ulimit -n 65536"
        yield Verdict("open files", WARN, message, fix)
    if limits.processes is not None and limits.processes < FEW_PROCESSES:
        message = f"{limits.processes} processes and threads; {situation.ranks_here} ranks start some hundreds"
        yield Verdict("processes", WARN, message, "ulimit -u 65536")
    locked = limits.locked_memory_bytes
    uses_infiniband = machine.infiniband and machine.environment.get("NCCL_IB_DISABLE", "0") != "1"
    if machine.backend == "cuda" and situation.plan.nnodes > 1 and uses_infiniband and locked is not None:
        adapters = ", ".join(machine.infiniband)
        message = f"{size_of(locked)} may be locked; NCCL locks its buffers in memory for {adapters}"
        yield Verdict("locked memory", WARN, message, "docker run --ulimit memlock=-1 ..., or: ulimit -l unlimited")


def version(text: str) -> tuple[int, ...]:
    """``"535.161.08"`` as (535, 161, 8): what can be compared."""
    return tuple(int(part) for part in text.split(".") if part.isdigit()) or (0,)
