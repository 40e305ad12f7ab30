"""What a rank says at the roll call: where it is, what it runs, which device and which model files it has."""

import hashlib
import os
import platform
import secrets
import socket
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from localai_clusters.launch import processes
from localai_clusters.machine import installed_backend
from localai_clusters.machine.system import versions
from localai_clusters.models import ModelError
from localai_clusters.serving.process import Rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One rank's own words. Nothing here was measured by another rank."""

    rank: int
    local_rank: int
    node_rank: int
    world_size: int
    host: str
    pid: int
    address: str
    interface: str = ""
    machine: str = ""  # the kernel's boot id: the same for nodes of one machine
    shm: str = ""  # which /dev/shm: the same for ranks that can share memory
    backend: str | None = None  # "cpu" or "cuda": which vLLM is installed
    device: str = ""
    device_ids: tuple[str, ...] = ()  # UUID of the GPU, or the logical CPUs
    problem: str = ""  # why the device cannot be used
    versions: dict[str, str] = field(default_factory=dict)
    # Of the first rank of each node only:
    model: dict[str, Any] | None = None
    port: int = 0  # where it waits for connections of the other nodes
    token: str = ""  # what they have to say there

    @property
    def who(self) -> str:
        return f"rank {self.rank} on node {self.node_rank} ({self.host})"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Answer":
        """From JSON. A node with another version of this package may say more or less: versions tell."""
        known = {field.name for field in fields(cls)} & data.keys()
        return cls(**{name: data[name] for name in known} | {"device_ids": tuple(data.get("device_ids", ()))})


def answer(rank: Rank, model: str, port: int = 0) -> Answer:
    """This process's own answer. Imports torch where the vLLM that is installed needs a GPU."""
    backend = installed_backend()
    device, ids, problem = cuda_device(rank.local_rank) if backend == "cuda" else cpu_device()
    return Answer(
        rank=rank.rank,
        local_rank=rank.local_rank,
        node_rank=rank.node_rank,
        world_size=rank.world_size,
        host=socket.gethostname(),
        pid=os.getpid(),
        address=os.environ.get("VLLM_HOST_IP") or os.environ["MASTER_ADDR"],
        interface=os.environ.get("GLOO_SOCKET_IFNAME", ""),
        machine=read("/proc/sys/kernel/random/boot_id"),
        shm=str(os.stat(processes.SHM).st_dev) if processes.SHM.is_dir() else "",
        backend=backend,
        device=device,
        device_ids=ids,
        problem=problem,
        versions=versions() | {"python": platform.python_version()},
        model=model_files(model) if rank.local_rank == 0 else None,
        port=port,
        token=secrets.token_hex(16) if port else "",
    )


def cpu_device() -> tuple[str, tuple[str, ...], str]:
    cpus = sorted(os.sched_getaffinity(0))
    return f"CPU {', '.join(map(str, cpus))}", tuple(f"CPU {cpu}" for cpu in cpus), ""


def cuda_device(local_rank: int) -> tuple[str, tuple[str, ...], str]:
    """(name, UUID, what is wrong) of the GPU that torch gives a rank with this local rank."""
    import torch

    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    limit = "" if seen is None else f" (CUDA_VISIBLE_DEVICES={seen})"
    count = torch.cuda.device_count()
    if local_rank >= count:
        seen_by_torch = f"torch sees {count} GPU{'s' * (count != 1)} here{limit}"
        return "", (), f"{seen_by_torch}; local rank {local_rank} has none"
    try:
        torch.cuda.set_device(local_rank)
        torch.ones(1, device="cuda").sum().item()
    except RuntimeError as error:
        return "", (), f"GPU {local_rank} cannot be used{limit}: {str(error).splitlines()[0]}"
    properties = torch.cuda.get_device_properties(local_rank)
    return properties.name, (f"GPU-{properties.uuid}",), ""


def model_files(name: str) -> dict[str, Any]:
    """What tells two copies of a model apart at no cost: the sha256 of its config.json, the sizes of its weights."""
    from localai_clusters.models.folder import weights_files

    try:
        folder = folder_of(name)
        if folder is None or not (folder / "config.json").is_file():
            return {}
        config = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
        weights = {path.name: path.stat().st_size for path in weights_files(folder)}
        return {"folder": str(folder), "config": config, "weights": weights}
    except ModelError as error:
        return {"problem": str(error)}
    except OSError as error:
        return {"problem": f"{error.filename}: {error.strerror}"}


def folder_of(name: str) -> Path | None:
    """Where the model is on this node; None if it is not here yet, or built in: made of the same file everywhere."""
    from localai_clusters.models.finding import kind_of_name
    from localai_clusters.models.hugging_face import cached_snapshot

    kind = kind_of_name(name)
    if kind == "folder":
        return Path(name).expanduser()
    return cached_snapshot(name) if kind == "hugging-face" else None


def read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
