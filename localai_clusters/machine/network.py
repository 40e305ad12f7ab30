"""Ports, addresses and interfaces of this machine."""

import contextlib
import errno
import fnmatch
import re
import socket
from pathlib import Path

from localai_clusters.machine.cores import read
from localai_clusters.machine.facts import LOOPBACK, REAL, VIRTUAL, Interface

# Interfaces that container engines and hypervisors make: their addresses mean nothing on another machine.
VIRTUAL_NAMES = ("docker*", "br-*", "veth*", "virbr*", "cni*", "flannel*", "cali*", "podman*", "lxc*", "lxdbr*",
                 "kube-*", "dummy*", "ifb*", "vnet*", "tap*")  # fmt: skip
ELSEWHERE = "203.0.113.1"  # TEST-NET-3, which nobody has: only a default route leads there
UNKNOWN_SPEEDS = (0, 65535, (1 << 32) - 1)


def interfaces() -> dict[str, Interface]:
    import psutil

    addresses = {
        name: address.address
        for name, all_of_it in psutil.net_if_addrs().items()
        for address in all_of_it
        if address.family == socket.AF_INET
    }
    return {
        name: Interface(
            address=addresses.get(name),
            is_up=state.isup,
            speed_mbit=state.speed if state.speed not in UNKNOWN_SPEEDS else None,
            kind=kind_of(name, addresses.get(name)),
        )
        for name, state in sorted(psutil.net_if_stats().items())
    }


def kind_of(name: str, address: str | None) -> str:
    """``LOOPBACK``, ``VIRTUAL`` (of a container engine or hypervisor) or ``REAL``."""
    if name == "lo" or (address or "").startswith("127."):
        return LOOPBACK
    return VIRTUAL if any(fnmatch.fnmatch(name, pattern) for pattern in VIRTUAL_NAMES) else REAL


def default_interface() -> str | None:
    """The name of the interface by which packets leave for other networks; None without a route there."""
    found = interface_towards(ELSEWHERE)
    return found[0] if found else None


def infiniband(folder: str = "/sys/class/infiniband") -> dict[str, int | None]:
    """Adapters with an active port (NCCL reaches other nodes through them), each with its speed in Mbit/s."""
    found: dict[str, int | None] = {}
    for port in sorted(Path(folder).glob("*/ports/*")):
        if "ACTIVE" in read(f"{port}/state"):  # "4: ACTIVE"
            rate = re.match(r"([\d.]+) Gb/sec", read(f"{port}/rate"))  # "400 Gb/sec (4X NDR)"
            found[port.parent.parent.name] = int(float(rate[1]) * 1000) if rate else None
    return found


def loopback_names() -> tuple[str, ...]:
    """Names that /etc/hosts gives an address no other machine can reach: Debian writes ``127.0.1.1 HOSTNAME`` there."""
    lines = [line.partition("#")[0].split() for line in read("/etc/hosts").splitlines()]
    names = [name for address, *names in filter(None, lines) if address.startswith("127.") for name in names]
    return tuple(dict.fromkeys(names))


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
