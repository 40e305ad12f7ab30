"""Ports, the address where nodes meet, and who else can reach the server."""

from collections.abc import Iterator

from localai_clusters.plan import is_loopback
from localai_clusters.preflight.report import FAIL, PASS, WARN, Verdict
from localai_clusters.preflight.situation import Situation


def check_ports(situation: Situation) -> Iterator[Verdict]:
    plan, busy = situation.plan, dict(situation.busy_ports)
    for flag, port in (("--port", plan.port), ("--master-port", plan.master_port)):
        if port in busy:
            other = _next_port(port, {*busy, plan.port, plan.master_port})
            fix = f"{flag} {other}, or {flag} 0 for any free one"
            yield Verdict("ports", FAIL, f"port {port} is taken by {busy[port]}", fix)
    if not busy:
        shown = [str(port) if port else "any free port" for port in (plan.port, plan.master_port)]
        yield Verdict("ports", PASS, f"server on {shown[0]}, torchrun on {shown[1]}: free")


def check_master_address(situation: Situation) -> Iterator[Verdict]:
    plan, machine = situation.plan, situation.machine
    if plan.nnodes == 1 or situation.nodes_here > 1:
        return
    own = [address for address in machine.interfaces.values() if not address.startswith("127.")]
    if is_loopback(plan.master_addr):
        message = f"--master-addr {plan.master_addr} is every machine's own: no other node would find node 0 there"
        node_0 = f"--master-addr {' or '.join(own)}" if own else "--master-addr ADDRESS"
        yield Verdict("master address", FAIL, message, node_0 if situation.node_rank == 0 else "node 0's address")
    elif situation.node_rank == 0 and plan.master_addr in situation.foreign_hosts:
        message = f"--master-addr {plan.master_addr} is not an address of this machine, and node 0 runs here"
        yield Verdict("master address", FAIL, message, f"--master-addr {' or '.join(own)}, or --node-rank 1 here")
    else:
        yield Verdict("master address", PASS, f"the nodes meet at {plan.master_addr}:{plan.master_port}")


def check_exposure(situation: Situation) -> Iterator[Verdict]:
    plan = situation.plan
    if plan.host in situation.foreign_hosts:
        message = f"--host {plan.host} is not an address of this machine"
        yield Verdict("exposure", FAIL, message, "--host 127.0.0.1 (this machine) or 0.0.0.0 (all networks)")
    elif plan.is_loopback:
        yield Verdict("exposure", PASS, f"the server listens on {plan.host}, for this machine only")
    else:
        key = "with the API key" if situation.has_api_key else "with an API key that is made and shown once"
        yield Verdict("exposure", WARN, f"the server listens on {plan.host}: other machines can reach it, {key}")
    if situation.nodes_here == 1 and (plan.nnodes > 1 or not plan.is_loopback):
        port = plan.master_port or "chosen at launch"
        message = f"torchrun's rendezvous (port {port}) listens on all networks and asks nobody who they are"
        fix = "a firewall that lets no other machine reach it"
        if plan.nnodes > 1:
            message += "; so do Gloo and NCCL, on ports of the system's choice"
            fix = "a private network, or a firewall, that lets only the nodes reach one another's ports"
        yield Verdict("exposure", WARN, message, fix)


def _next_port(port: int, taken: set[int]) -> int:
    """The first port above ``port`` (and above those only root may use) that is not in ``taken``."""
    above, below = range(max(port + 1, 1024), 1 << 16), range(1024, port)
    return next(number for ports in (above, below) for number in ports if number not in taken)
