"""How nodes show themselves: a table and a picture of the link for a terminal, data for JSON."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from localai_clusters.launch.nodes.state import LOOPBACK, Node, NodesError

if TYPE_CHECKING:
    from localai_clusters.launch.nodes.cluster import Nodes
    from localai_clusters.launch.nodes.counters import LinkCounters


def as_dict(nodes: "Nodes") -> dict[str, Any]:
    return {
        "up": True,
        "kind": nodes.kind,
        "nodes": [asdict(node) | {"shm": str(node.shm)} for node in nodes.nodes],
        "rate_mbit": nodes.rate_mbit,
        "delay_ms": nodes.delay_ms,
        "is_cut": nodes.is_cut,
        "carried_by": nodes.carried_by,
        "counters": [asdict(counted) for counted in counted_or_none(nodes)],
        "problems": nodes.problems(),
        "reasons": list(nodes.reasons),
    }


def counted_or_none(nodes: "Nodes") -> "tuple[LinkCounters, ...]":
    try:
        return nodes.counters()
    except NodesError:
        return ()


def link(nodes: "Nodes") -> str:
    """The link in words."""
    if nodes.kind == LOOPBACK:
        return "the machine's own loopback: no link of their own"
    rate = "no limit" if nodes.rate_mbit is None else f"{nodes.rate_mbit:g} Mbit/s"
    delay = f"{nodes.delay_ms:g} ms each way" if nodes.delay_ms else "no delay"
    return f"{rate}, {delay}" + (", CUT" if nodes.is_cut else "")


def cores(node: Node) -> str:
    return f"CPU {', '.join(map(str, node.cpus))}"


def picture(nodes: "Nodes") -> str:
    """Each node with its cable, and what joins them."""
    names = [f"{node.hostname}  {node.address}  {cores(node)}  {node.interface}" for node in nodes.nodes]
    width, last = max(map(len, names)), len(names) - 1
    corners = ["┐" if rank == 0 else "┘" if rank == last else "┤" for rank in range(len(names))]
    lines = []
    for rank, (name, corner) in enumerate(zip(names, corners, strict=True)):
        cable = "─╳─" if nodes.is_cut else "───"
        lines.append(f"{name.ljust(width)} {cable}{corner}")
        if rank == (last - 1) // 2:
            lines.append(f"{' ' * width}    ├─ {link(nodes)}")
    return "\n".join(lines)


def as_rich(nodes: "Nodes"):
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("node", "address", "cores", "pid", "sent", "received"):
        table.add_column(name, justify="right" if name in ("pid", "sent", "received") else "left", no_wrap=True)
    counted = {each.rank: each for each in counted_or_none(nodes)}
    for node in nodes.nodes:
        here = counted.get(node.rank)
        sent, received = (mb(here.bytes_sent), mb(here.bytes_received)) if here else ("–", "–")
        table.add_row(f"{node.hostname}", node.address, cores(node), str(node.pid or "–"), sent, received)
    about = [Text(f"{len(nodes.nodes)} nodes: {nodes.kind}", style="bold")]
    about += [Text(f"not {reason}") for reason in nodes.reasons]
    problems = [Text(problem, style="bold red") for problem in nodes.problems()]
    return Group(*about, Text(), Text(picture(nodes)), Text(), table, *problems)


def mb(count: int) -> str:
    return f"{count / 1e6:.3f} MB"
