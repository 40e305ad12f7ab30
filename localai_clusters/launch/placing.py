"""Where a plan's nodes and ports are, as far as the plan leaves that open."""

from typing import TYPE_CHECKING, Any

from localai_clusters.links import Link, network
from localai_clusters.machine import free_port, is_own_address
from localai_clusters.plan import MASTER_PORT, ServePlan

if TYPE_CHECKING:
    from localai_clusters.launch.nodes import Nodes

UNLIMITED_MBIT = 10_000  # what a link of no limit is taken for: one core copies about as much


def plan_on(plan: ServePlan, nodes: "Nodes") -> ServePlan:
    """``plan`` for ``nodes`` of this machine: their number, and the first one's address to meet at."""
    count = len(nodes.nodes)
    if plan.nnodes not in (1, count):
        raise ValueError(f"the plan has {plan.nnodes} nodes and {count} are up; localai-clusters nodes up --count N")
    if not plan.is_loopback:
        raise ValueError(f"on nodes of one machine the server is reached at 127.0.0.1; --host is {plan.host}")
    if problems := nodes.problems():
        raise ValueError("\n".join(problems))
    return plan.with_(nnodes=count, master_addr=nodes.nodes[0].address)


def link_of(nodes: "Nodes") -> Link:
    """The link between nodes of one machine, as predictions take it."""
    if nodes.rate_mbit is None:
        delay = f" and {nodes.delay_ms:g} ms one way" if nodes.delay_ms else ""
        return network(UNLIMITED_MBIT, nodes.delay_ms, f"no limit{delay}")
    return network(nodes.rate_mbit, nodes.delay_ms)


def place_of(nodes: "Nodes | None") -> dict[str, Any]:
    """What ``preflight`` is told of ``nodes`` of this machine; nothing where there are none."""
    return {"nodes_here": len(nodes.nodes), "link": link_of(nodes)} if nodes is not None else {}


def with_ports(plan: ServePlan) -> ServePlan:
    """``plan`` with real ports in place of 0."""
    port = plan.port or free_port(plan.host, plan.master_port)
    master_port = plan.master_port
    if not master_port:
        if plan.nnodes > 1 and not is_own_address(plan.master_addr):  # inside nodes of our own, or on another machine
            master_port = MASTER_PORT
        else:
            master_port = free_port(plan.master_addr, port)
    return plan.with_(port=port, master_port=master_port)
