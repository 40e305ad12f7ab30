"""Whether the GPUs that CUDA shows the ranks can carry them: kind, memory in use, and what lies between them."""

from collections.abc import Iterator, Sequence
from itertools import combinations

from localai_clusters.machine import Gpu, GpuLink
from localai_clusters.machine.facts import NVLINK, SYS
from localai_clusters.preflight.checks.model import NO_FLOAT16
from localai_clusters.preflight.report import FAIL, PASS, WARN, Verdict
from localai_clusters.preflight.situation import Situation
from localai_clusters.sizing import MIB, dtype_of, size_of

# vLLM's CUDA builds: CMakeLists.txt, CUDA_SUPPORTED_ARCHS ("7.5;8.0;..." from CUDA 12.8 on), and its installation guide
# ("compute capability 7.5 or higher"). torch's own wheels for CUDA 13.0 begin at 7.5 too.
LOWEST_CAPABILITY = (7, 5)
BFLOAT16_CAPABILITY = (8, 0)  # vllm/platforms/cuda.py, supported_dtypes
IDLE_BYTES = 2048 * MIB  # in use on a GPU that nobody uses: the driver's own share, up to 0.8 GiB of an 80 GB card
SMALL_BYTES = 512 * MIB  # a desktop's share of a GPU


def used_gpus(situation: Situation) -> tuple[Gpu, ...]:
    """The GPUs that the ranks of this node would take; () on a CPU."""
    machine = situation.machine
    return machine.visible.gpus[: situation.ranks_here] if machine.backend == "cuda" else ()


def tensor_parallel_groups(situation: Situation) -> list[tuple[Gpu, ...]]:
    """The GPUs of each tensor parallel group, as far as it lies on this node."""
    plan = situation.plan
    first = situation.node_rank * plan.nproc_per_node
    groups: dict[int, list[Gpu]] = {}
    for local_rank, gpu in enumerate(used_gpus(situation)):
        groups.setdefault((first + local_rank) // plan.tensor_parallel_size, []).append(gpu)
    return [tuple(group) for group in groups.values()]


def check_visible_gpus(situation: Situation) -> Iterator[Verdict]:
    machine = situation.machine
    if machine.backend != "cuda" or not machine.gpus:
        return
    visible, setting = machine.visible, machine.environment.get("CUDA_VISIBLE_DEVICES")
    if visible.problem:
        enough = len(visible.gpus) >= situation.ranks_here and not visible.stops_vllm
        fix = f"export CUDA_VISIBLE_DEVICES={listed(machine.gpus[: situation.ranks_here])} (or unset it)"
        yield Verdict("visible GPUs", WARN if enough else FAIL, visible.problem, fix)
    elif setting is not None:
        gpus = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in visible.gpus)
        yield Verdict("visible GPUs", PASS, f"CUDA_VISIBLE_DEVICES leaves GPU {gpus}")
    if machine.silent_gpus:
        which = ", ".join(map(str, machine.silent_gpus))
        message = f"GPU {which} is counted by the driver and does not answer"
        yield Verdict(
            "visible GPUs", WARN, message, f"nvidia-smi -q -i {which}; a restart brings it back, or it is broken"
        )


def check_mig(situation: Situation) -> Iterator[Verdict]:
    machine = situation.machine
    in_mig = [gpu for gpu in machine.gpus if gpu.mig_devices is not None] if machine.backend == "cuda" else []
    if not in_mig:
        return
    used = used_gpus(situation)
    off = "; ".join(f"sudo nvidia-smi -i {gpu.index} -mig 0" for gpu in in_mig)
    instances = [instance for gpu in used for instance in gpu.mig_devices or ()]
    setting = machine.environment.get("CUDA_VISIBLE_DEVICES", "")
    if not used and not any(gpu.mig_devices for gpu in in_mig):
        message = f"GPU {listed(in_mig)} is in MIG mode and has no instance: CUDA sees no device on it"
        yield Verdict("MIG", FAIL, message, f"sudo nvidia-smi mig -cgi 0 -C makes one; or {off}")
    elif instances and situation.ranks_here > 1:
        message = (
            f"CUDA shows a process one MIG instance ({instances[0].name}); {situation.ranks_here} ranks need a GPU each"
        )
        yield Verdict("MIG", FAIL, message, f"one rank on a node, or whole GPUs: {off}")
    elif instances and "MIG-" in setting:
        # vllm/platforms/cuda.py asks NVML for the index of what it finds under that UUID; an instance has none.
        message = "vLLM 0.32 looks up the index of the GPU of that UUID, which a MIG instance does not have"
        yield Verdict("MIG", WARN, message, "unset CUDA_VISIBLE_DEVICES: CUDA takes the first instance by itself")
    elif instances:
        instance = instances[0]
        yield Verdict("MIG", PASS, f"rank 0 runs on {instance.name} with {size_of(instance.memory_bytes)}")


def check_compute_capability(situation: Situation) -> Iterator[Verdict]:
    for gpu in {gpu.name: gpu for gpu in used_gpus(situation)}.values():
        if gpu.capability and gpu.capability < LOWEST_CAPABILITY:
            lowest = "{}.{}".format(*LOWEST_CAPABILITY)
            message = (
                f"{gpu.name} has compute capability {gpu.compute_capability}; vLLM's CUDA build begins at {lowest} (T4)"
            )
            fix = "a newer GPU, or ./setup.sh --variant cpu (without it: no kernel image is available)"
            yield Verdict("compute capability", FAIL, message, fix)


def check_dtype(situation: Situation) -> Iterator[Verdict]:
    shape = situation.shape
    known = [gpu for gpu in used_gpus(situation) or situation.machine.gpus if gpu.capability]
    if shape is None or situation.machine.backend != "cuda" or not known:
        return
    lowest = min(known, key=lambda gpu: gpu.capability or ())
    if dtype_of(situation.plan, shape) != "bfloat16" or (lowest.capability or ()) >= BFLOAT16_CAPABILITY:
        return
    message = f"{lowest.name} (compute capability {lowest.compute_capability}) has no bfloat16; it came with 8.0"
    instead = "float32" if shape.model_type in NO_FLOAT16 else "float16"
    if situation.plan.dtype == "auto":  # vllm/config/model.py, _resolve_auto_dtype
        yield Verdict("dtype", WARN, f"{message}. vLLM takes {instead} in its place", f"--dtype {instead}")
    else:
        yield Verdict("dtype", FAIL, message, f"--dtype {instead}")


def check_busy_gpus(situation: Situation) -> Iterator[Verdict]:
    """Whether others are on the ranks' GPUs. If what they leave is too little, the memory check says so."""
    used = used_gpus(situation)
    idle = [gpu for gpu in situation.machine.visible.gpus if not _users(gpu)]
    fix = "nvidia-smi; end them if they are yours"
    if len(idle) >= len(used):
        fix += f", or export CUDA_VISIBLE_DEVICES={listed(idle[: len(used)])}"
    for gpu in used:
        if users := _users(gpu):
            yield Verdict("GPUs in use", WARN, f"GPU {gpu.index} is not idle: {users}", fix)


def _users(gpu: Gpu) -> str:
    """Who is on a GPU, for a person; "" if nobody who matters."""
    held = sum(process.memory_bytes or 0 for process in gpu.processes)
    in_use = gpu.memory_bytes - gpu.memory_free_bytes
    if gpu.processes and (held >= SMALL_BYTES or any(process.memory_bytes is None for process in gpu.processes)):
        largest = sorted(gpu.processes, key=lambda process: -(process.memory_bytes or 0))
        shown = [
            f"{process.name or 'a process'} (pid {process.pid}"
            + (f", {size_of(process.memory_bytes)})" if process.memory_bytes is not None else ")")
            for process in largest[:3]
        ]
        more = f" and {len(largest) - 3} more" if len(largest) > 3 else ""
        return f"{', '.join(shown)}{more}"
    if in_use >= IDLE_BYTES and not gpu.mig_devices:
        return f"{size_of(in_use)} of it are held by processes that cannot be seen from here (another container)"
    return ""


def check_mixed_gpus(situation: Situation) -> Iterator[Verdict]:
    machine = situation.machine
    for group in tensor_parallel_groups(situation):
        names = list(dict.fromkeys(gpu.name for gpu in group))
        if len(names) > 1:
            message = f"a tensor parallel group of {' and '.join(names)}: every layer waits for the slowest of them"
            alike = [gpu for gpu in machine.gpus if gpu.name == names[0]]
            fix = f"export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={listed(alike)}, and ranks for these only"
            yield Verdict("mixed GPUs", WARN, message, fix)
            return
    mixed = machine.backend == "cuda" and len({gpu.name for gpu in machine.gpus}) > 1
    if mixed and machine.environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":  # platforms/cuda.py, log_warnings
        message = "GPUs of several kinds: CUDA counts the fastest as 0, nvidia-smi and this table go by the PCI bus"
        yield Verdict("mixed GPUs", WARN, message, "export CUDA_DEVICE_ORDER=PCI_BUS_ID")


def check_gpu_links(situation: Situation) -> Iterator[Verdict]:
    """Whether the GPUs of a tensor parallel group reach one another, and how far apart they are."""
    for group in tensor_parallel_groups(situation):
        links = [situation.machine.link(a.index, b.index) for a, b in combinations(group, 2)]
        known = [link for link in links if link is not None]
        if len(known) < len(links) or not links or any(gpu.mig_devices for gpu in group):
            continue
        which = f"GPUs {listed(group)}"
        if any(link.peer_access is False for link in known):
            yield _no_peer_access(which, known)
        elif all(link.kind == NVLINK for link in known):
            yield Verdict("GPU links", PASS, f"{which}: NVLink between any two")
        elif any(link.kind == SYS for link in known):
            yield _far_apart(situation, which, group)
        else:
            kinds = " and ".join(dict.fromkeys(link.kind or "an unknown link" for link in known))
            through = (
                "" if len(group) == 2 else "; vLLM's own all-reduce wants NVLink for more than two, so NCCL does it"
            )
            yield Verdict("GPU links", PASS, f"{which}: {kinds} between them{through}")


def _no_peer_access(which: str, links: Sequence[GpuLink]) -> Verdict:
    """custom_all_reduce.py, CustomAllreduce.__init__: without peer access it is disabled, with a warning."""
    far = ", and between processors" if any(link.kind == SYS for link in links) else ""
    message = (
        f"{which} cannot reach one another's memory: NCCL copies through host memory{far}, "
        "and vLLM turns its own all-reduce off"
    )
    fix = (
        "nvidia-smi topo -p2p rw shows it. It works, only slower; if it hangs: export NCCL_P2P_DISABLE=1. "
        "To silence vLLM's warning, at the command's end: -- --disable-custom-all-reduce"
    )
    return Verdict("GPU links", WARN, message, fix)


def _far_apart(situation: Situation, which: str, group: Sequence[Gpu]) -> Verdict:
    message = f"{which} belong to different processors (SYS): every all-reduce crosses between these"
    by_node: dict[int | None, list[Gpu]] = {}
    for gpu in situation.machine.visible.gpus:
        by_node.setdefault(gpu.numa_node, []).append(gpu)
    together = next((gpus for node, gpus in by_node.items() if node is not None and len(gpus) >= len(group)), None)
    if together:
        fix = f"export CUDA_VISIBLE_DEVICES={listed(together[: len(group)])}, which share one"
    else:
        plan = situation.plan
        halved = max(plan.tensor_parallel_size // 2, 1), plan.pipeline_parallel_size * 2
        fix = "nvidia-smi topo -m; measure it against --tensor-parallel-size {} --pipeline-parallel-size {}".format(
            *halved
        )
    return Verdict("GPU links", WARN, message, fix)


def listed(gpus: Sequence[Gpu]) -> str:
    """``0,1,2``"""
    return ",".join(str(gpu.index) for gpu in gpus)
