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

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from localai_clusters.launch.nodes import namespaces

BRIDGE = "switch"
LEAST_BURST_BYTES = 1600  # an Ethernet frame of 1514, and what is lost by rounding its time to microseconds
BURST_SECONDS = 0.00025  # what a link may send at once; less is finer and costs more timer interrupts
QUEUE_SECONDS, LEAST_QUEUE_BYTES, MOST_QUEUE_BYTES = 0.5, 1 << 18, 1 << 28
UNLIMITED_PACKETS = 1_000_000  # netem's own limit of 1,000 would lose some at 1 Gbit/s and 20 ms
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
    def inside(self, rank: int) -> Iterator[IPRoute]:
        """In the network of node ``rank`` for a while."""
        namespaces.call("setns", "net", self._networks[rank], namespaces.KINDS["net"])
        with kernel() as network:
            yield network
        namespaces.call("setns", "net", self._switch, namespaces.KINDS["net"])

    def lay(self) -> None:
        """The cables, addresses and neighbours."""
        no_ipv6()
        # First: were a port's number in the switch its eth0's in the node, the kernel would be 1 s late to see it up.
        with contextlib.suppress(OSError), kernel() as switch:  # without bridges the relay carries everything
            # With multicast snooping it would join groups, and send.
            switch.link("add", ifname=BRIDGE, kind="bridge", br_mcast_snooping=0, state="up")
        for node in self.nodes:
            with self.inside(node["rank"]):
                no_ipv6()
            far_end = {"ifname": node["interface"], "address": mac(node["rank"]).hex(":")}
            far_end["net_ns_fd"] = self._networks[node["rank"]]
            with kernel() as switch, told("veth pairs"):
                switch.link("add", ifname=port(node["rank"]), kind="veth", peer=far_end, state="up")
            with self.inside(node["rank"]) as network:
                eth0 = socket.if_nametoindex(node["interface"])
                network.link("set", index=socket.if_nametoindex("lo"), state="up")
                network.addr("add", index=eth0, address=node["address"], prefixlen=24)
                network.link("set", index=eth0, state="up")
                for other in self.nodes:
                    if other is not node:
                        at = {"dst": other["address"], "lladdr": mac(other["rank"]).hex(":")}
                        network.neigh("add", **at, ifindex=eth0, state="permanent")
        for node in self.nodes:
            with self.inside(node["rank"]):
                wait_until_running(node["interface"])

    def set(self) -> str:
        """Rate, delay and cut as asked; returns what carries the frames: ``bridge``, ``netem`` or ``relay``."""
        for node in self.nodes:
            with self.inside(node["rank"]) as network:
                self._set_rate(network, socket.if_nametoindex(node["interface"]))
        with kernel() as switch:
            ports = [socket.if_nametoindex(port(node["rank"])) for node in self.nodes]
            carrier = self._choose_carrier(switch, ports)
            bridge = 0 if carrier == "relay" else socket.if_nametoindex(BRIDGE)
            for index in ports:
                switch.link("set", index=index, master=bridge)
            if bridge:
                switch.link("set", index=bridge, state="down" if self.is_cut else "up")
        return carrier

    def _set_rate(self, network: IPRoute, index: int) -> None:
        segment = LARGEST_SEGMENT
        if self.rate_mbit is None:
            clear_qdisc(network, index)
        else:
            rate = max(1, round(self.rate_mbit * 1e6 / 8))
            burst = max(LEAST_BURST_BYTES, round(rate * BURST_SECONDS))
            queue = min(max(round(rate * QUEUE_SECONDS), LEAST_QUEUE_BYTES), MOST_QUEUE_BYTES)
            with told("tbf, which limits the rate"):
                network.tc("replace", "tbf", index=index, handle="1:", rate=rate, burst=burst, limit=queue)
            if burst > 2 * LEAST_BURST_BYTES:  # a segment larger than the burst is cut into frames one by one
                segment = min(segment, int(burst / 1.06))  # room for the heads of the frames it will be
        with contextlib.suppress(NetlinkError):  # a matter of speed only
            network.link("set", index=index, gso_max_size=segment)

    def _choose_carrier(self, switch: IPRoute, ports: list[int]) -> str:
        if BRIDGE not in interfaces():
            return "relay"
        if self.delay_ms == 0:
            for index in ports:
                clear_qdisc(switch, index)
            return "bridge"
        try:
            for index in ports:
                delay = round(self.delay_ms * 1000)  # microseconds
                switch.tc("replace", "netem", index=index, handle="1:", delay=delay, limit=UNLIMITED_PACKETS)
        except NetlinkError as error:
            if error.code not in (errno.ENOENT, errno.EOPNOTSUPP):  # this kernel has no netem
                raise
            return "relay"
        return "netem"


@contextlib.contextmanager
def kernel() -> Iterator[IPRoute]:
    """Ask the kernel about the network that this process is in now. What it refuses is an ``OSError``."""
    with IPRoute() as network:
        try:
            yield network
        except NetlinkError as error:
            raise OSError(error.code, os.strerror(error.code)) from error


def clear_qdisc(network: IPRoute, index: int) -> None:
    try:
        network.tc("del", index=index, handle="1:", root=True)
    except NetlinkError as error:
        if error.code not in (errno.ENOENT, errno.EINVAL):  # there was none
            raise


def network_of(pid: int) -> int:
    """An open file of its network, by which one can move there. This process is short and closes none."""
    return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """A kernel that lacks ``what`` is named so."""
    try:
        yield
    except NetlinkError as error:
        if error.code in (errno.ENOENT, errno.EOPNOTSUPP):
            raise OSError(error.code, f"this kernel has no {what}") from error
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
