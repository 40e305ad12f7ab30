"""Linux processes and shared memory, as /proc shows them. Standard library only: the guard starts in 50 ms."""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
SHM = Path("/dev/shm")
# What vLLM and Python's multiprocessing name their segments; nothing else is ever removed.
SHM_PREFIXES = ("lac-", "psm_", "vllm_dist_")


def die_with_parent(signum: int = signal.SIGKILL) -> None:
    """In a child: ask the kernel for ``signum`` when the thread that started this process ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that none can escape."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def parents() -> dict[int, int]:
    """pid -> parent's pid, of every process that is not a zombie."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                state, parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    found[int(entry)] = int(parent)
    return found


def descendants(pid: int) -> list[int]:
    """Every living process below ``pid``."""
    children: dict[int, list[int]] = {}
    for child, parent in parents().items():
        children.setdefault(parent, []).append(child)
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def children(pid: int) -> list[int]:
    """Living children that ``pid``'s main thread started; cheaper than walking /proc."""
    with contextlib.suppress(OSError):
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in listed if alive(int(child))]
    return []


def alive(pid: int) -> bool:
    """Whether ``pid`` is a process that still runs; a zombie does not."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def is_stopped(pid: int) -> bool:
    """Whether ``pid`` was stopped by a signal (SIGSTOP, SIGTSTP); one under a debugger is not counted."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def out_of_memory_kills() -> int:
    """How many processes the kernel has killed for want of memory since it started."""
    with contextlib.suppress(OSError, ValueError):
        counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
        return int(counters.get("oom_kill", 0))
    return 0


def started_at(pid: int) -> int:
    """The kernel's start time of ``pid`` in clock ticks, which with the pid names a process for good; 0 if gone."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return 0


def with_variable(name: str, value: str) -> list[int]:
    """Processes whose initial environment holds ``name=value``."""
    wanted, found = f"{name}={value}".encode(), []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
    return [pid for pid in found if alive(pid)]


def send(pids: Iterable[int], signum: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)


def wait_until_gone(pids: Iterable[int], seconds: float) -> list[int]:
    """Wait until none of ``pids`` runs; returns those that still do after ``seconds``."""
    end, left = time.monotonic() + seconds, list(pids)
    while (left := [pid for pid in left if alive(pid)]) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def shared_memory(pids: Iterable[int]) -> set[str]:
    """Names in /dev/shm of the segments that ``pids`` have mapped, also in a /dev/shm of their own."""
    names = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
                name = line.rpartition("/")[2]  # from another mount namespace the folder may not show
                if name.startswith(SHM_PREFIXES) and not name.endswith(" (deleted)"):
                    names.add(name)
    return names


def remove_shared_memory(names: Iterable[str], folders: Iterable[Path] = (SHM,)) -> list[str]:
    """Remove segments by name from each /dev/shm in ``folders``; returns those that were still there."""
    removed, names = [], set(names)
    for folder in folders:
        for name in names:
            if name.startswith(SHM_PREFIXES) and "/" not in name:
                with contextlib.suppress(OSError):
                    (folder / name).unlink()
                    removed.append(name)
    return removed
