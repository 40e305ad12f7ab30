"""The cores that this process may use, and which ranks get which."""

import os
from collections.abc import Sequence
from pathlib import Path

Core = tuple[int, ...]  # the logical CPUs of one physical core


def physical_cores() -> tuple[Core, ...]:
    """The physical cores this process may use, each as its logical CPUs, within the cgroup's CPU quota."""
    allowed = os.sched_getaffinity(0)
    cores: dict[tuple[str, ...], list[int]] = {}
    for cpu in sorted(allowed):
        topology = f"/sys/devices/system/cpu/cpu{cpu}/topology"
        key = tuple(read(f"{topology}/{name}") for name in ("physical_package_id", "core_id"))
        if not all(key):  # no topology in this container: count every CPU as a core
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


def numa_nodes(cores: Sequence[Core]) -> tuple[int, ...]:
    """The NUMA node of each core; () where the kernel does not say."""
    node_of: dict[int, int] = {}
    for folder in Path("/sys/devices/system/node").glob("node[0-9]*"):
        for cpu in cpu_list(read(f"{folder}/cpulist")):
            node_of[cpu] = int(folder.name.removeprefix("node"))
    nodes = tuple(node_of.get(core[0], -1) for core in cores)
    return () if -1 in nodes else nodes


def cpu_list(text: str) -> list[int]:
    """The kernel's way to write a set of CPUs: ``0-3,8`` is [0, 1, 2, 3, 8]; [] for what is none."""
    cpus: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit() and (last or first).isdigit():
            cpus.extend(range(int(first), int(last or first) + 1))
    return cpus


def logical_cpus() -> int | None:
    """Logical CPUs of the whole machine that are switched on."""
    return len(cpu_list(read("/sys/devices/system/cpu/online"))) or os.cpu_count()


def cgroup_cpus() -> float | None:
    """CPUs' worth of time this cgroup (v2) may use, None without a limit."""
    quota, _, period = read("/sys/fs/cgroup/cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""
