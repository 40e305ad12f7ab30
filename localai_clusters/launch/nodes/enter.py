"""Run a command inside a node: ``python -m localai_clusters.launch.nodes.enter K [--] COMMAND...``.

It becomes the command: same pid, environment, folder, open files and death signal; the node's namespaces and cores.
"""

import os
import sys

from localai_clusters.launch.nodes import namespaces, state
from localai_clusters.launch.nodes.state import Node, NodesError, State

NOT_FOUND, NOT_ENTERED = 127, 125  # as env(1) and docker(1) exit


def node_of(found: State, rank: int) -> Node:
    """Raises ``NodesError`` if there is no such node or it is gone."""
    if not 0 <= rank < len(found.nodes):
        raise NodesError(f"there is no node {rank}; there are 0 to {len(found.nodes) - 1}")
    if found.kind != state.LOOPBACK and not found.holders[rank].alive:
        raise NodesError(f"node {rank} is gone; type: localai-clusters nodes down, then localai-clusters nodes up")
    return found.nodes[rank]


def enter(rank: int) -> None:
    """Move this process, which must have one thread, into node ``rank``. Raises ``NodesError`` or ``OSError``."""
    node = node_of(state.read_complete(), rank)
    if node.pid:
        namespaces.join(node.pid)
    os.sched_setaffinity(0, node.cpus)


def main() -> int:
    rank, argv = sys.argv[1:2], sys.argv[2:]
    if argv[:1] == ["--"]:
        argv = argv[1:]
    if not rank or not rank[0].isdigit() or not argv:
        print("usage: python -m localai_clusters.launch.nodes.enter K [--] COMMAND...", file=sys.stderr)
        return 2
    try:
        enter(int(rank[0]))
    except (NodesError, OSError) as error:
        print(f"localai-clusters: cannot enter node {rank[0]}: {error}", file=sys.stderr)
        return NOT_ENTERED
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        print(f"localai-clusters: cannot run {argv[0]} in node {rank[0]}: {error.strerror}", file=sys.stderr)
        return NOT_FOUND


if __name__ == "__main__":
    sys.exit(main())
