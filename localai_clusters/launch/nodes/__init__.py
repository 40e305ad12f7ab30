"""Nodes on one machine: each with its own addresses, hostname, /dev/shm and cores, joined by a link that is measured.

    from localai_clusters.launch import nodes
    with nodes.up(2, rate_mbit=100, delay_ms=5) as two:
        subprocess.run(two.enter(1, ["ping", "node0"]))
        print(two.counters())

A node is a set of Linux namespaces (net, mount, uts, ipc) that a small process holds; a further set, the switch, joins
the nodes' cables. Nothing is made in the machine's own network: no interface, no route, no mount. When the processes
that hold the namespaces end, the kernel removes everything. Where namespaces are forbidden, the nodes are the loopback
addresses 127.0.0.1, 127.0.0.2, ... and share everything but their cores.

Importing it loads nothing; the names below are loaded when they are first used.
"""

from localai_clusters import lazy

_WHERE = {
    "Node": "state",
    "NodesError": "state",
    "Nodes": "cluster",
    "LinkCounters": "counters",
    "up": "making",
    "current": "cluster",
    "down": "cluster",
}
__all__ = list(_WHERE)
__getattr__, __dir__ = lazy.names(__name__, _WHERE)
