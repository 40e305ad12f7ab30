"""What crossed the link: the kernel's own counters of each node's interface."""

from dataclasses import dataclass
from pathlib import Path

from localai_clusters.launch.nodes.state import Node


@dataclass(frozen=True, slots=True)
class LinkCounters:
    """Since the node was made, as frames on its interface: Ethernet, IP and TCP heads included.

    On a link with no limit or a fast one TCP hands over up to 64 KiB at once; that counts as one packet, with one head.
    """

    rank: int
    bytes_sent: int
    bytes_received: int
    packets_sent: int
    packets_received: int

    def since(self, before: "LinkCounters") -> "LinkCounters":
        """What was added after ``before``."""
        return LinkCounters(
            self.rank,
            self.bytes_sent - before.bytes_sent,
            self.bytes_received - before.bytes_received,
            self.packets_sent - before.packets_sent,
            self.packets_received - before.packets_received,
        )


def read(node: Node) -> LinkCounters:
    """Raises ``OSError`` if the node is gone. /proc/PID/net shows the network of PID to anyone, for microseconds."""
    for line in Path(f"/proc/{node.pid}/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == node.interface:
            values = [int(number) for number in numbers.split()]
            return LinkCounters(node.rank, values[8], values[0], values[9], values[1])
    raise OSError(f"node {node.rank} has no {node.interface}")
