"""The parts of a machine, as data."""

from dataclasses import dataclass

LINKS = NVLINK, PIX, PXB, PHB, NODE, SYS = ("NVLink", "PIX", "PXB", "PHB", "NODE", "SYS")  # the nearest first
LOOPBACK, VIRTUAL, REAL = "loopback", "virtual", "real"


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory on a GPU. In a container NVML gives the host's pid, and no name."""

    pid: int
    name: str | None
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class MigDevice:
    """A part of a GPU in MIG mode, which CUDA takes for a GPU of its own."""

    uuid: str | None
    name: str
    memory_bytes: int
    memory_free_bytes: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML sees it; None where the driver does not say."""

    index: int  # as nvidia-smi counts: in the order of the PCI bus
    name: str
    memory_bytes: int
    memory_free_bytes: int
    compute_capability: str | None
    uuid: str | None = None
    numa_node: int | None = None
    processes: tuple[GpuProcess, ...] = ()  # this process is not among them
    mig_devices: tuple[MigDevice, ...] | None = None  # None: not in MIG mode

    @property
    def capability(self) -> tuple[int, int] | None:
        """The compute capability as numbers: (8, 0) for "8.0"."""
        major, _, minor = (self.compute_capability or "").partition(".")
        return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


@dataclass(frozen=True, slots=True)
class GpuLink:
    """What lies between two GPUs: one of ``LINKS``, named as ``nvidia-smi topo -m`` does; None: not known."""

    first: int
    second: int
    kind: str | None
    peer_access: bool | None  # whether each may read and write the other's memory (nvidia-smi topo -p2p rw)


@dataclass(frozen=True, slots=True)
class Interface:
    address: str | None  # IPv4
    is_up: bool | None = None
    speed_mbit: int | None = None  # where the kernel knows it; of a virtual machine's it mostly does not
    kind: str = REAL

    @property
    def leads_out(self) -> bool:
        """Whether another machine may reach this one by it."""
        real = self.kind == REAL and self.is_up is not False
        return real and self.address is not None and not self.address.startswith("127.")


@dataclass(frozen=True, slots=True)
class Limits:
    """This process's limits (``ulimit``), which the ranks inherit. None: no limit."""

    open_files: int | None
    open_files_hard: int | None  # up to here a process may raise the other itself
    locked_memory_bytes: int | None
    processes: int | None
