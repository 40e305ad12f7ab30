"""The process that holds a node's namespaces, or the switch's: ``python -m ...holder TOKEN SPEC``. Then it sleeps.

A node gets its own network, mounts, hostname and System V memory; in its mounts a /dev/shm of its own, and an
/etc/hosts that names every node. The switch needs only a network. Without root the switch's holder first makes a user
namespace in which this user is root, and the nodes' holders join it.
"""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from localai_clusters.launch.nodes import detached, namespaces


def hold(spec: dict[str, Any]) -> Callable[[], None]:
    if spec.get("new_user"):
        namespaces.become_root_inside()
    if "join_user_of" in spec:
        namespaces.join(spec["join_user_of"], ["user"])
    if "hostname" in spec:
        namespaces.leave("net", "uts", "ipc", "mnt")
        socket.sethostname(spec["hostname"])
        make_mounts(spec["hosts"])
    else:
        namespaces.leave("net")
    os.chdir("/")
    return sleep


def make_mounts(hosts: str) -> None:
    """A private /dev/shm, and ``hosts`` as /etc/hosts, from a tmpfs that no folder shows."""
    namespaces.mount("none", "/", flags=namespaces.MS_REC | namespaces.MS_PRIVATE)  # nothing gets out
    if os.path.exists("/etc/hosts"):
        namespaces.mount("tmpfs", "/dev/shm", "tmpfs", options="mode=0755,size=64k")
        Path("/dev/shm/hosts").write_text(hosts, encoding="utf-8")
        namespaces.mount("/dev/shm/hosts", "/etc/hosts", flags=namespaces.MS_BIND)
        namespaces.unmount("/dev/shm")
    namespaces.mount("tmpfs", "/dev/shm", "tmpfs", options="mode=1777")


def sleep() -> None:
    while True:
        signal.pause()


if __name__ == "__main__":
    detached.live(hold)
