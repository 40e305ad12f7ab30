"""What this machine is, and which splits of the built-in model it can serve."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from localai_clusters.machine import Gpu, Machine
from localai_clusters.plan import ServePlan
from localai_clusters.preflight import preflight
from localai_clusters.preflight.report import Report

SPLITS = ((1, 1), (2, 1), (1, 2), (4, 1), (2, 2))  # (tensor, pipeline)
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Diagnosis:
    machine: Machine
    reports: tuple[Report, ...]

    @property
    def ok(self) -> bool:
        """Whether at least one split can be served."""
        return any(report.ok for report in self.reports)

    def to_dict(self) -> dict[str, Any]:
        splits = [{"split": report.plan.label, "ok": report.ok, **report.to_dict()} for report in self.reports]
        return {"ok": self.ok, "machine": asdict(self.machine), "splits": splits}

    def __rich__(self):
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        about = Table.grid(padding=(0, 2))
        for name, value in _rows(self.machine):
            about.add_row(Text(name, style="bold"), Text(value))
        title = "\nSplits of smollm2-135m"
        splits = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        splits.add_column("split", no_wrap=True)
        splits.add_column("here")
        for report in self.reports:
            why = "; ".join(verdict.message for verdict in report.failed)
            splits.add_row(report.plan.label, Text("can be served" if report.ok else why))
        return Group(about, splits)


def _rows(machine: Machine) -> Iterator[tuple[str, str]]:
    yield "machine", f"{machine.hostname}, {machine.os}"
    yield "processor", _processor(machine)
    yield "memory", f"{machine.memory_available_bytes / GIB:.1f} of {machine.memory_bytes / GIB:.1f} GiB available"
    of_all = f" of {machine.shm_bytes / GIB:.1f}" if machine.shm_bytes is not None else ""
    yield "/dev/shm", f"{machine.shm_free_bytes / GIB:.1f}{of_all} GiB free"
    visible = {gpu.index for gpu in machine.visible.gpus}
    for gpu in machine.gpus:
        yield f"GPU {gpu.index}", _gpu(gpu) + ("" if gpu.index in visible else "; hidden")
    for index in machine.silent_gpus:
        yield f"GPU {index}", "does not answer"
    if machine.gpu_links:
        yield "GPU links", _links(machine)
    supports = f", for CUDA up to {machine.cuda}" if machine.cuda else ""
    yield "GPU driver", f"{machine.driver}{supports}" if machine.driver else "none answers"
    built = f", torch for CUDA {machine.torch_cuda}" if machine.torch_cuda else ""
    yield "vLLM", f"{machine.versions.get('vllm', 'not installed')} ({machine.backend or 'none'} build){built}"
    if machine.limits:
        yield "limits", _limits(machine)
    yield "network", "\n".join(_network(machine)) or "no interface"
    if machine.environment:
        yield "environment", "\n".join(f"{name}={value!r}" for name, value in machine.environment.items())


def _processor(machine: Machine) -> str:
    numa = len(set(machine.numa_nodes))
    count = f"{len(machine.cores)} core{'s' * (len(machine.cores) != 1)} for this process"
    return f"{machine.cpu_model}, {count}" + (f", on {numa} NUMA nodes" if numa > 1 else "")


def _gpu(gpu: Gpu) -> str:
    free = f"{gpu.memory_free_bytes / GIB:.0f} GiB free of {gpu.memory_bytes / GIB:.0f}"
    text = f"{gpu.name}, {free}, capability {gpu.compute_capability or 'unknown'}"
    if gpu.mig_devices is not None:
        text += f"; MIG: {', '.join(instance.name.split()[-1] for instance in gpu.mig_devices) or 'no instance'}"
    users = [f"{process.name or 'a process'} ({process.pid})" for process in gpu.processes]
    return text + (f"; used by {', '.join(users[:3])}{', ...' * (len(users) > 3)}" if users else "")


def _links(machine: Machine) -> str:
    """``any two: NVLink``; or each kind with its pairs, the first of a long list."""
    pairs: dict[str, list[str]] = {}
    for link in machine.gpu_links:
        peer = " without peer access" if link.peer_access is False else ""
        pairs.setdefault(f"{link.kind or 'unknown'}{peer}", []).append(f"{link.first}-{link.second}")
    if len(pairs) == 1:
        return f"any two: {next(iter(pairs))}"
    return "; ".join(
        f"{kind}: {', '.join(which[:8])}" + (f" and {len(which) - 8} more" if len(which) > 8 else "")
        for kind, which in pairs.items()
    )


def _limits(machine: Machine) -> str:
    limits = machine.limits
    files = "any number of" if limits.open_files is None else limits.open_files
    more = "" if limits.open_files_hard == limits.open_files else f" (up to {limits.open_files_hard or 'any number'})"
    locked = limits.locked_memory_bytes
    shown = "any memory" if locked is None else f"{locked / (1 << 20):.0f} MiB"
    return f"{files} open files{more}, {shown} locked, {limits.processes or 'any number of'} processes"


def _network(machine: Machine) -> Iterator[str]:
    for name, interface in machine.interfaces.items():
        if interface.address and interface.kind != "loopback":
            speed = f", {interface.speed_mbit} Mbit/s" if interface.speed_mbit else ""
            down = ", down" if interface.is_up is False else ""
            here = ": other nodes reach this one here" if interface.address == machine.address else ""
            yield f"{name} {interface.address}{speed}{down}{here}"
    if machine.infiniband:
        speeds = sorted({f"{mbit // 1000} Gbit/s" for mbit in machine.infiniband.values() if mbit})
        yield f"InfiniBand {', '.join(machine.infiniband)}: {' or '.join(speeds) or 'of unknown speed'}"


def examine_machine() -> Diagnosis:
    """Preflight of each of ``SPLITS`` for the built-in model on this machine."""
    plan = ServePlan(max_model_len=2048, port=0, master_port=0)
    plans = [plan.with_(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline) for tensor, pipeline in SPLITS]
    return Diagnosis(Machine.now(), tuple(preflight(plan) for plan in plans))
