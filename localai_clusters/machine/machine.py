"""A machine as data: found now, written to JSON, read back, made up in a test."""

import functools
import json
import platform
import re
import socket
from dataclasses import asdict, dataclass, field

from localai_clusters.machine import cores, network, nvidia, system
from localai_clusters.machine.facts import Gpu, GpuLink, Interface, Limits
from localai_clusters.machine.visible import VisibleGpus, visible_gpus


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides whether a plan can run here. Sizes in bytes."""

    hostname: str
    os: str
    python: str
    cpu_model: str
    cores: tuple[cores.Core, ...]
    memory_bytes: int
    memory_available_bytes: int
    shm_free_bytes: int
    backend: str | None  # "cpu" or "cuda": which vLLM is installed; None: no vLLM
    versions: dict[str, str]
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None  # the newest that the driver supports
    interfaces: dict[str, Interface] = field(default_factory=dict)
    torch_cuda: str | None = None  # the one torch was built with
    gpu_links: tuple[GpuLink, ...] = ()
    silent_gpus: tuple[int, ...] = ()  # counted by the driver, and do not answer
    numa_nodes: tuple[int, ...] = ()  # of each of ``cores``; empty: not known
    logical_cpus: int | None = None  # of the whole machine, those this process may not use among them
    shm_bytes: int | None = None
    limits: Limits | None = None
    default_interface: str | None = None  # where packets to other networks leave
    infiniband: dict[str, int | None] = field(default_factory=dict)  # an active adapter -> Mbit/s
    loopback_names: tuple[str, ...] = ()  # host names that /etc/hosts gives an address of this machine alone
    environment: dict[str, str] = field(default_factory=dict)  # of ``system.VARIABLES``, those that are set

    @classmethod
    def now(cls) -> "Machine":
        memory, available = system.memory()
        usable = cores.physical_cores()
        found = nvidia.nvidia(memory, available)
        shm, shm_free = system.shared_memory()
        return cls(
            hostname=socket.gethostname(),
            os=system.os_name(),
            python=platform.python_version(),
            cpu_model=system.cpu_model(),
            cores=usable,
            memory_bytes=memory,
            memory_available_bytes=available,
            shm_free_bytes=shm_free,
            backend=system.installed_backend(),
            versions=system.versions(),
            gpus=found.gpus,
            driver=found.driver,
            cuda=found.cuda,
            interfaces=network.interfaces(),
            torch_cuda=system.torch_cuda(),
            gpu_links=found.links,
            silent_gpus=found.silent,
            numa_nodes=cores.numa_nodes(usable),
            logical_cpus=cores.logical_cpus(),
            shm_bytes=shm,
            limits=system.limits(),
            default_interface=network.default_interface(),
            infiniband=network.infiniband(),
            loopback_names=network.loopback_names(),
            environment=system.environment(),
        )

    @property
    def devices(self) -> int:
        """How many ranks have a device of their own here: GPUs that CUDA lets them see, or cores on a CPU."""
        return len(self.visible.gpus) if self.backend == "cuda" else len(self.cores)

    @property
    def visible(self) -> VisibleGpus:
        """The GPUs that CUDA lets a process see, local rank 0's first."""
        return visible_gpus(self.environment.get("CUDA_VISIBLE_DEVICES"), self.gpus)

    @property
    def address(self) -> str | None:
        """The IPv4 address at which other nodes most likely reach this one; None if no interface leads out."""
        chosen = self.interfaces.get(self.default_interface or "")
        if chosen is not None and chosen.address is not None:
            return chosen.address
        return next((interface.address for interface in self.interfaces.values() if interface.leads_out), None)

    def link(self, first: int, second: int) -> GpuLink | None:
        """What lies between two GPUs, by their indices; None if it is not known."""
        pair = {first, second}
        return next((link for link in self.gpu_links if {link.first, link.second} == pair), None)

    def to_json(self) -> str:
        """Indented; what has no parts of its own is on one line: a GPU link, an interface, all cores."""
        text = json.dumps(asdict(self), indent=2, sort_keys=True)
        return re.sub(r"\{[^{}\[\]]*\}|\[[\s\d,\[\]]*\]", lambda flat: _on_one_line(flat[0]), text)

    @classmethod
    def from_json(cls, text: str) -> "Machine":
        """Reads ``to_json``, also an older version's with fewer facts. ``ValueError`` names what is wrong in it."""
        from pydantic import ValidationError

        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"not a machine as JSON: {error}") from None
        if isinstance(data, dict) and isinstance(data.get("interfaces"), dict):
            data["interfaces"] = {name: _interface(name, given) for name, given in data["interfaces"].items()}
        try:
            return _reader().validate_json(json.dumps(data), strict=True, extra="forbid")
        except ValidationError as error:
            wrong = "; ".join(_wrong(each) for each in error.errors(include_url=False))
            raise ValueError(f"not a machine: {wrong}") from None


@functools.cache
def _reader():
    from pydantic import TypeAdapter  # takes longer to import than a machine to look at

    return TypeAdapter(Machine)


def _on_one_line(flat: str) -> str:
    """JSON has a line break between two values only, never inside a text."""
    return re.sub(r",\n\s*", ", ", re.sub(r"(?<=[\[{])\n\s*|\n\s*(?=[\]}])", "", flat))


def _interface(name: str, given: object) -> object:
    """An interface as older versions wrote it, its address alone, as it is written now."""
    return asdict(Interface(given, kind=network.kind_of(name, given))) if isinstance(given, str) else given


def _wrong(error: dict) -> str:
    """One of pydantic's errors in a few words: where, and what."""
    *outer, last = error["loc"] or ("it",)
    where = f" in {'.'.join(map(str, outer))}" if outer else ""
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"there is no field {last!r}{where}"
    if error["type"] in ("missing", "missing_argument"):
        return f"the field {last!r} is missing{where}"
    return f"{last}{where}: {error['msg']}"
