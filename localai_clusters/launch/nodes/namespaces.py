"""Linux namespaces: leave the ones one is in, join those of another process, mount. Calls to libc, nothing else.

Python 3.11 has no ``os.setns``. A user namespace can only be joined by a process with a single thread, so whoever
joins is a small process of its own.
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterable
from pathlib import Path

from localai_clusters.launch import processes

# linux/sched.h, in the order in which they must be joined: the user namespace gives the right to join the others.
KINDS = {"user": 0x10000000, "net": 0x40000000, "uts": 0x04000000, "ipc": 0x08000000, "mnt": 0x00020000}
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000  # linux/mount.h
PR_GET_PDEATHSIG = 2  # linux/prctl.h

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, what: str, *arguments) -> None:
    """A libc function that returns 0 if it worked. Raises ``OSError`` that names it and ``what`` it was asked."""
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name} {what}: {os.strerror(number)}")


def leave(*kinds: str) -> None:
    """Move this process into new, empty namespaces of ``kinds``."""
    call("unshare", " ".join(kinds), sum(KINDS[kind] for kind in kinds))


def become_root_inside() -> None:
    """Move into a new user namespace in which this user is root; outside it stays what it was."""
    user, group = os.geteuid(), os.getegid()
    leave("user")
    Path("/proc/self/setgroups").write_text("deny")  # asked by the kernel before a user may map a group
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def join(pid: int, kinds: Iterable[str] = tuple(KINDS)) -> None:
    """Move this process, which must have one thread, into the namespaces of ``pid``; those it is in already stay.

    The working folder stays, unless the node has none by that name. A death signal that was asked of the kernel
    stays too: the change of credentials would clear it.
    """
    parent, folder, signum = os.getppid(), os.getcwd(), ctypes.c_int()
    libc.prctl(PR_GET_PDEATHSIG, ctypes.byref(signum))
    wanted = [kind for kind in KINDS if kind in kinds and not same(kind, pid)]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(f"/proc/{pid}/ns/{kind}", "rb")) for kind in wanted]
        for kind, file in zip(wanted, files, strict=True):
            call("setns", kind, file.fileno(), KINDS[kind])
    if "mnt" in wanted:
        try:
            os.chdir(folder)
        except OSError:
            os.chdir("/")
    if signum.value:
        processes.die_with_parent(signum.value)
        if os.getppid() != parent:  # it died before the signal was asked for again
            os.kill(os.getpid(), signal.SIGKILL)


def same(kind: str, pid: int) -> bool:
    return os.path.samestat(os.stat(f"/proc/{pid}/ns/{kind}"), os.stat(f"/proc/self/ns/{kind}"))


def mount(source: str, target: str, filesystem: str | None = None, flags: int = 0, options: str | None = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, filesystem, options)]
    call("mount", target, texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])


def unmount(target: str) -> None:
    call("umount2", target, os.fsencode(target), 0)


def why_no_user_namespaces() -> str:
    """What forbids them here and what to type, as far as the kernel's settings tell."""
    for setting, forbidding in (
        ("kernel/unprivileged_userns_clone", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
        ("user/max_user_namespaces", "0"),
    ):
        with contextlib.suppress(OSError):
            if Path("/proc/sys", setting).read_text().strip() == forbidding:
                allowed = {"0": "1", "1": "0"}[forbidding] if setting.startswith("kernel") else "10000"
                return f"the system forbids them; an administrator types: sysctl {setting.replace('/', '.')}={allowed}"
    return "a container forbids them; start it with: docker run --privileged"
