"""The rank as an operating-system process, set up before torch is imported.

torchrun gives a rank its numbers in the environment (RANK, LOCAL_RANK, ...). From them follow the
cores it may use, the file its output goes to, and the addresses it may listen on. All of that has
to be in place before torch starts its OpenMP pool and vLLM reads its settings, so this module
imports neither.
"""

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import shared_memory
from pathlib import Path

from localai_clusters.launch import journal, processes
from localai_clusters.machine import assign_cores, installed_backend, interface_towards, physical_cores


@dataclass(frozen=True, slots=True)
class Rank:
    """A rank's place in the job, as torchrun states it."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    node_rank: int
    nnodes: int

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Rank":
        """Read torchrun's variables; ``ValueError`` says how to start a rank if they are missing."""
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
        missing = [name for name in names if not environ.get(name, "").isdigit()]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} not set: this module is one rank of a torchrun job. Start it with\n"
                "  torchrun --nproc-per-node=2 -m localai_clusters.serving.rank --model FOLDER --tensor-parallel-size 2"
            )
        return cls(*(int(environ[name]) for name in names))


class Progress:
    """Appends what a rank has reached to ``rank<K>.jsonl`` in the run's folder, for the launcher to read."""

    def __init__(self, rank: Rank, run_dir: Path | None):
        self.rank = rank
        self._run_dir = run_dir

    def report(self, step: str, **facts) -> None:
        """``step`` is one of launch.run.STEPS; ``facts`` are JSON values."""
        self._append(self.rank.rank, pid=os.getpid(), step=step, **facts)

    def path(self, name: str) -> Path | None:
        """``rank<K>.<name>`` in the run's folder; None without one."""
        return self._run_dir / f"rank{self.rank.rank}.{name}" if self._run_dir else None

    def report_remote(self, rank: int, **facts) -> None:
        """The engine of a rank of another node, unless that node writes into this folder itself."""
        if self._run_dir and not (self._run_dir / f"rank{rank}.jsonl").exists():
            self._append(rank, pid=None, step="engine", **facts)

    def _append(self, rank: int, **facts) -> None:
        if self._run_dir:
            journal.append(self._run_dir / f"rank{rank}.jsonl", rank=rank, **facts)


def redirect_output(path: Path) -> None:
    """Send this process's stdout and stderr, C++ prints included, to ``path``."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def pin_to_cores(rank: Rank) -> list[int]:
    """Give this rank its own share of the machine's cores; returns the logical CPUs it may use.

    Unpinned, the ranks' OpenMP threads and vLLM's spinning shared-memory all-reduce fight for the
    same cores and generation is about a hundred times slower.
    """
    cores = assign_cores(physical_cores(), rank.local_world_size)[rank.local_rank]
    cpus = sorted(cpu for core in cores for cpu in core)
    os.sched_setaffinity(0, cpus)
    os.environ["OMP_NUM_THREADS"] = str(len(cores))
    return cpus


def name_shared_memory(run_id: str) -> None:
    """Let Python name its segments (vLLM's message queues) after the run: then a killed run's are found."""
    shared_memory._SHM_NAME_PREFIX = f"/lac-{run_id}-"
    shared_memory._SHM_SAFE_NAME_LENGTH = len(shared_memory._SHM_NAME_PREFIX) + 16  # Linux allows 255


COMPILATION_FLAGS = ("--compilation-config", "--compilation_config", "-cc", "-O")


def set_environment(rank: Rank, argv: Sequence[str], backend: str | None) -> list[str]:
    """vLLM's and Gloo's settings for a torchrun rank; returns their names. What the user set is left alone."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if rank.rank > 0:  # how long a grammar may take is for rank 0 to say; another clock could say otherwise
        os.environ["VLLM_REGEX_COMPILATION_TIMEOUT_S"] = "0"
    settings = {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if backend == "cpu" and not any(argument.startswith(COMPILATION_FLAGS) for argument in argv):
        # vLLM has helpers under torch.compile that ignore its compilation mode: they would cost each rank
        # 2 s at the first request, and need a C++ compiler on the machine.
        settings["TORCHDYNAMO_DISABLE"] = "1"
    if rank.nnodes == 1:  # nothing of a single node's job needs to be reachable from outside
        settings |= {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    elif found := interface_towards(os.environ["MASTER_ADDR"]):  # Gloo and NCCL would take the first one they find
        name, address = found
        settings |= {"VLLM_HOST_IP": address, "GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    return ["VLLM_ENABLE_V1_MULTIPROCESSING", "OMP_NUM_THREADS", *settings]


def start() -> tuple[Rank, Progress]:
    """Do all of the above for the current process."""
    rank = Rank.from_environment(os.environ)
    gc.disable()  # until the engine is built: start-up makes millions of objects that all stay
    parent = os.getppid()
    processes.die_with_parent()
    if os.getppid() != parent:  # torchrun's agent died before the kernel was asked
        os._exit(1)
    run_dir = Path(os.environ["LAC_RUN_DIR"]) if os.environ.get("LAC_RUN_DIR") else None
    if run_dir:
        redirect_output(run_dir / f"rank{rank.rank}.log")
    if os.environ.get("LAC_RUN_ID"):
        name_shared_memory(os.environ["LAC_RUN_ID"])
    progress = Progress(rank, run_dir)
    backend = installed_backend()
    names = set_environment(rank, sys.argv[1:], backend)
    cpus = pin_to_cores(rank) if backend == "cpu" else sorted(os.sched_getaffinity(0))
    environment = {name: os.environ[name] for name in names if name in os.environ}
    progress.report("python", node_rank=rank.node_rank, local_rank=rank.local_rank, cpus=cpus, environment=environment)
    return rank, progress
