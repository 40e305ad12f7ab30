"""What this machine is, and which splits of the built-in model it can serve."""

from dataclasses import asdict, dataclass
from typing import Any

from localai_clusters.machine import Machine
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

        machine = self.machine
        about = Table.grid(padding=(0, 2))
        rows = [
            ("machine", f"{machine.hostname}, {machine.os}"),
            ("processor", f"{machine.cpu_model}, {len(machine.cores)} cores for this process"),
            ("memory", f"{machine.memory_available_bytes / GIB:.1f} of {machine.memory_bytes / GIB:.1f} GiB available"),
            ("/dev/shm", f"{machine.shm_free_bytes / GIB:.1f} GiB free"),
            *((f"GPU {g.index}", f"{g.name}, {g.memory_free_bytes / GIB:.0f} GiB free") for g in machine.gpus),
            ("GPU driver", machine.driver or "none answers"),
            ("vLLM", f"{machine.versions.get('vllm', 'not installed')} ({machine.backend or 'none'} build)"),
        ]
        for name, value in rows:
            about.add_row(Text(name, style="bold"), Text(value))
        title = "\nSplits of smollm2-135m"
        splits = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        splits.add_column("split", no_wrap=True)
        splits.add_column("here")
        for report in self.reports:
            why = "; ".join(verdict.message for verdict in report.failed)
            splits.add_row(report.plan.label, Text("can be served" if report.ok else why))
        return Group(about, splits)


def examine_machine() -> Diagnosis:
    """Preflight of each of ``SPLITS`` for the built-in model on this machine."""
    plan = ServePlan(max_model_len=2048, port=0, master_port=0)
    plans = [plan.with_(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline) for tensor, pipeline in SPLITS]
    return Diagnosis(Machine.now(), tuple(preflight(plan) for plan in plans))
