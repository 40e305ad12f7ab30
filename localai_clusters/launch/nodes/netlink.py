"""The few questions this package asks the kernel's rtnetlink: interfaces, addresses, neighbours, queueing disciplines.

Neither ``ip`` nor ``tc`` is on every machine, and the library for it takes a second to import. Layouts are from
linux/rtnetlink.h, if_link.h and pkt_sched.h; everything is in the network that this process is in when it asks.
"""

import errno
import ipaddress
import os
import socket
import struct

NEW_LINK, DELETE_LINK, NEW_ADDRESS, NEW_NEIGHBOUR, NEW_QDISC, DELETE_QDISC = 16, 17, 20, 28, 36, 37
REQUEST_AND_ANSWER, CREATE, EXCLUSIVE, REPLACE = 0x5, 0x400, 0x200, 0x100
UP = 1  # IFF_UP
ROOT = 0xFFFFFFFF  # TC_H_ROOT
TICK_NS = 64  # of the packet scheduler, see /proc/net/psched
UNLIMITED_PACKETS = 1_000_000  # netem's own limit of 1,000 would lose some at 1 Gbit/s and 20 ms


def attribute(number: int, value: bytes | str | int, size: str = "I") -> bytes:
    """One attribute: 4 bytes of head, the value, padding to 4 bytes."""
    if isinstance(value, str):
        value = value.encode() + b"\0"
    elif isinstance(value, int):
        value = struct.pack(f"={size}", value)
    return struct.pack("=HH", 4 + len(value), number) + value + b"\0" * (-len(value) % 4)


def ask(kind: int, flags: int, body: bytes) -> None:
    """Send one request and wait for the kernel's verdict. Raises ``OSError``."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.bind((0, 0))
        kernel.send(struct.pack("=IHHII", 16 + len(body), kind, REQUEST_AND_ANSWER | flags, 1, 0) + body)
        number = -struct.unpack_from("=i", kernel.recv(65536), 16)[0]
    if number:
        raise OSError(number, os.strerror(number))


def link_head(index: int = 0, flags: int = 0, mask: int = 0) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, mask)


def make_veth(name: str, peer: str, peer_mac: bytes, peer_network: int) -> None:
    """A cable: one end here and up, the other in the network whose /proc/PID/ns/net is open as ``peer_network``."""
    other = link_head() + attribute(3, peer) + attribute(1, peer_mac) + attribute(28, peer_network)
    info = attribute(1, "veth") + attribute(2, attribute(1, other))
    ask(NEW_LINK, CREATE | EXCLUSIVE, link_head(0, UP, UP) + attribute(3, name) + attribute(18, info))


def make_bridge(name: str) -> None:
    """One that sends nothing of its own: with multicast snooping it would join groups."""
    info = attribute(1, "bridge") + attribute(2, attribute(23, 0, "B"))
    ask(NEW_LINK, CREATE | EXCLUSIVE, link_head(0, UP, UP) + attribute(3, name) + attribute(18, info))


def set_up(name: str, up: bool = True) -> None:
    ask(NEW_LINK, 0, link_head(socket.if_nametoindex(name), UP if up else 0, UP))


def set_bridge(name: str, bridge: str | None) -> None:
    """Plug ``name`` into ``bridge``, or out of any."""
    master = socket.if_nametoindex(bridge) if bridge else 0
    ask(NEW_LINK, 0, link_head(socket.if_nametoindex(name)) + attribute(10, master))


def set_largest_segment(name: str, count: int) -> None:
    """The most bytes that TCP may hand to ``name`` at once, to be cut into frames later."""
    ask(NEW_LINK, 0, link_head(socket.if_nametoindex(name)) + attribute(41, count))


def add_address(name: str, address: str, prefix: int) -> None:
    packed = ipaddress.ip_address(address).packed
    head = struct.pack("=BBBBi", socket.AF_INET, prefix, 0, 0, socket.if_nametoindex(name))
    ask(NEW_ADDRESS, CREATE | REPLACE, head + attribute(2, packed) + attribute(1, packed))


def add_neighbour(name: str, address: str, mac: bytes) -> None:
    """For good, so that nobody asks for it over the link."""
    head = struct.pack("=BxHiHBB", socket.AF_INET, 0, socket.if_nametoindex(name), 0x80, 0, 0)  # NUD_PERMANENT
    body = head + attribute(1, ipaddress.ip_address(address).packed) + attribute(2, mac)
    ask(NEW_NEIGHBOUR, CREATE | REPLACE, body)


def set_rate(name: str, bytes_per_second: int, burst: int, queue: int) -> None:
    """Let ``name`` send at most this much, at most ``burst`` bytes at once, with ``queue`` bytes waiting (tbf)."""
    rate = struct.pack("=BBHhHI", 0, 1, 0, 0, 0, min(bytes_per_second, (1 << 32) - 1))  # 1: Ethernet's frames
    ticks = burst * 1_000_000_000 // bytes_per_second // TICK_NS
    parameters = rate + bytes(12) + struct.pack("=III", queue, ticks, 0)
    _set_qdisc(name, "tbf", attribute(1, parameters) + attribute(4, bytes_per_second, "Q") + attribute(6, burst))


def set_delay(name: str, seconds: float) -> None:
    """Hold back every frame that ``name`` sends (netem). Raises ``OSError`` with ENOENT if this kernel has none."""
    ticks = int(seconds * 1e9) // TICK_NS
    _set_qdisc(name, "netem", struct.pack("=6I", ticks, UNLIMITED_PACKETS, 0, 0, 0, 0))


def _set_qdisc(name: str, kind: str, options: bytes) -> None:
    head = struct.pack("=BxHiIII", socket.AF_UNSPEC, 0, socket.if_nametoindex(name), 0, ROOT, 0)
    ask(NEW_QDISC, CREATE | REPLACE, head + attribute(1, kind) + attribute(2, options))


def clear_qdisc(name: str) -> None:
    head = struct.pack("=BxHiIII", socket.AF_UNSPEC, 0, socket.if_nametoindex(name), 0, ROOT, 0)
    try:
        ask(DELETE_QDISC, 0, head)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):  # there was none
            raise
