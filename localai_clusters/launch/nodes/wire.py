"""Lays the cables between the nodes and sets what they carry: ``python -m localai_clusters.launch.nodes.wire SPEC``.

            node 0            the switch            node 1
            eth0 ──── port0 ── bridge or relay ── port1 ──── eth0

A process of its own, because it moves from network to network. Each node's eth0 sends at the link's rate (tbf); between
the ports every frame is delayed: by netem where the kernel has it, else by our relay (relay.py), in both directions.
A cut stops what is between the ports, so that a node's own interface stays up and a connection sees silence.

Addresses of neighbours are fixed, IPv6 is off: nothing crosses the link but what the nodes' programs send.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from localai_clusters.launch.nodes import namespaces, netlink

BRIDGE = "switch"
FRAME_BYTES = 1514  # of Ethernet, without its checksum
BURST_SECONDS = 0.00025  # what a link may send at once; less is finer and costs more timer interrupts
QUEUE_SECONDS, LEAST_QUEUE_BYTES, MOST_QUEUE_BYTES = 0.5, 1 << 18, 1 << 28
LARGEST_SEGMENT = 65536  # the kernel's own
SECONDS_UNTIL_RUNNING = 5.0
SIOCGIFFLAGS, IFF_RUNNING = 0x8913, 0x40  # linux/sockios.h, linux/if.h


def mac(rank: int) -> bytes:
    return bytes((0x02, 0x6C, 0x61, 0x63, rank >> 8, rank & 0xFF))  # 02: locally administered


def port(rank: int) -> str:
    return f"port{rank}"


class Wiring:
    def __init__(self, spec: dict[str, Any]):
        self.nodes = spec["nodes"]
        self.rate_mbit, self.delay_ms, self.is_cut = spec["rate_mbit"], spec["delay_ms"], spec["is_cut"]
        namespaces.join(spec["switch"], ["user", "net"])
        self._networks = {node["rank"]: network_of(node["pid"]) for node in self.nodes}
        self._switch = network_of(os.getpid())

    @contextlib.contextmanager
    def inside(self, rank: int) -> Iterator[None]:
        """In the network of node ``rank`` for a while."""
        namespaces.call("setns", "net", self._networks[rank], namespaces.KINDS["net"])
        yield
        namespaces.call("setns", "net", self._switch, namespaces.KINDS["net"])

    def lay(self) -> None:
        """The cables, addresses and neighbours."""
        no_ipv6()
        # First: were a port's number in the switch its eth0's in the node, the kernel would be 1 s late to see it up.
        with contextlib.suppress(OSError):  # without bridges the relay carries everything
            netlink.make_bridge(BRIDGE)
        for node in self.nodes:
            with self.inside(node["rank"]):
                no_ipv6()
            with told("veth pairs"):
                far_end = self._networks[node["rank"]]
                netlink.make_veth(port(node["rank"]), node["interface"], mac(node["rank"]), far_end)
            with self.inside(node["rank"]):
                netlink.set_up("lo")
                netlink.add_address(node["interface"], node["address"], 24)
                netlink.set_up(node["interface"])
                for other in self.nodes:
                    if other is not node:
                        netlink.add_neighbour(node["interface"], other["address"], mac(other["rank"]))
        for node in self.nodes:
            with self.inside(node["rank"]):
                wait_until_running(node["interface"])

    def set(self) -> str:
        """Rate, delay and cut as asked; returns what carries the frames: ``bridge``, ``netem`` or ``relay``."""
        for node in self.nodes:
            with self.inside(node["rank"]):
                self._set_rate(node["interface"])
        carrier = self._choose_carrier()
        bridged = carrier != "relay"
        for node in self.nodes:
            netlink.set_bridge(port(node["rank"]), BRIDGE if bridged else None)
        if bridged:
            netlink.set_up(BRIDGE, not self.is_cut)
        return carrier

    def _set_rate(self, interface: str) -> None:
        segment = LARGEST_SEGMENT
        if self.rate_mbit is None:
            netlink.clear_qdisc(interface)
        else:
            rate = max(1, round(self.rate_mbit * 1e6 / 8))
            burst = max(FRAME_BYTES, round(rate * BURST_SECONDS))
            queue = min(max(round(rate * QUEUE_SECONDS), LEAST_QUEUE_BYTES), MOST_QUEUE_BYTES)
            with told("tbf, which limits the rate"):
                netlink.set_rate(interface, rate, burst, queue)
            if burst > 2 * FRAME_BYTES:  # a segment larger than the burst is cut into frames one by one
                segment = min(segment, int(burst / 1.06))  # room for the heads of the frames it will be
        with contextlib.suppress(OSError):  # a matter of speed only
            netlink.set_largest_segment(interface, segment)

    def _choose_carrier(self) -> str:
        ports = [port(node["rank"]) for node in self.nodes]
        if BRIDGE not in interfaces():
            return "relay"
        if self.delay_ms == 0:
            for name in ports:
                netlink.clear_qdisc(name)
            return "bridge"
        try:
            for name in ports:
                netlink.set_delay(name, self.delay_ms / 1000)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP):  # this kernel has no netem
                raise
            return "relay"
        return "netem"


def network_of(pid: int) -> int:
    """An open file of its network, by which one can move there. This process is short and closes none."""
    return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """A kernel that lacks ``what`` is named so."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
            raise OSError(error.errno, f"this kernel has no {what}") from error
        raise


def interfaces() -> list[str]:
    """Of the network this process is in; sysfs would show the machine's."""
    return [line.partition(":")[0].strip() for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]]


def wait_until_running(name: str) -> None:
    """The kernel takes up to a second to see that both ends of a cable are up, and drops frames without a word."""
    request, deadline = struct.pack("16sH14x", name.encode(), 0), time.monotonic() + SECONDS_UNTIL_RUNNING
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        while not struct.unpack_from("H", fcntl.ioctl(asking, SIOCGIFFLAGS, request), 16)[0] & IFF_RUNNING:
            if time.monotonic() > deadline:
                raise OSError(errno.ETIMEDOUT, f"{name} does not come up")
            time.sleep(0.01)


def no_ipv6() -> None:
    """For interfaces made from now on in this network: it would send frames of its own."""
    with contextlib.suppress(OSError):  # no IPv6 at all
        Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")


def main() -> None:
    spec = json.loads(sys.argv[1])
    try:
        wiring = Wiring(spec)
        if spec["new"]:
            wiring.lay()
        print(json.dumps({"carried_by": wiring.set()}))
    except OSError as error:
        print(json.dumps({"error": f"{error.strerror or error}"}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
