"""Ports, interfaces, the address where nodes meet, and who else can reach the server."""

from collections.abc import Iterator

from localai_clusters.machine import Interface, Machine
from localai_clusters.machine.facts import LOOPBACK, VIRTUAL
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
    if plan.nnodes == 1 and plan.master_addr in situation.foreign_hosts:  # torchrun would try it for 15 minutes
        message = f"--master-addr {plan.master_addr} is not an address of this machine, where the only node runs"
        yield Verdict("master address", FAIL, message, "--master-addr 127.0.0.1")
    if plan.nnodes == 1 or situation.nodes_here > 1:
        return
    own = own_addresses(machine)
    node_0 = f"--master-addr {' or '.join(own)}" if own else "--master-addr ADDRESS"
    fix = node_0 if situation.node_rank == 0 else "node 0's address"
    of_docker = [name for name, i in machine.interfaces.items() if i.kind == VIRTUAL and i.address == plan.master_addr]
    if is_loopback(plan.master_addr):
        message = f"--master-addr {plan.master_addr} is every machine's own: no other node would find node 0 there"
        yield Verdict("master address", FAIL, message, fix)
    elif plan.master_addr in machine.loopback_names:
        message = (
            f"--master-addr {plan.master_addr} is a loopback address on this machine, says its /etc/hosts "
            "(Debian writes 127.0.1.1 there): Gloo and NCCL would listen where no other node reaches them"
        )
        yield Verdict("master address", FAIL, message, fix)
    elif situation.node_rank == 0 and plan.master_addr in situation.foreign_hosts:
        message = f"--master-addr {plan.master_addr} is not an address of this machine, and node 0 runs here"
        yield Verdict("master address", FAIL, message, f"{node_0}, or --node-rank 1 here")
    elif situation.node_rank == 0 and of_docker:
        message = f"--master-addr {plan.master_addr} belongs to {of_docker[0]}: only this machine's containers reach it"
        yield Verdict("master address", WARN, message, node_0)
    else:
        yield Verdict("master address", PASS, f"the nodes meet at {plan.master_addr}:{plan.master_port}")


def check_interfaces(situation: Situation) -> Iterator[Verdict]:
    """The interfaces that Gloo and NCCL are told to use, and the one by which other nodes reach this one."""
    plan, machine = situation.plan, situation.machine
    if situation.nodes_here > 1 or not machine.interfaces:  # nodes of this machine have interfaces of their own
        return
    asked = list(_asked(machine)) if plan.world_size > 1 else []
    yield from asked
    if plan.nnodes == 1 or any(verdict.status == FAIL for verdict in asked):
        return
    host_ip = machine.environment.get("VLLM_HOST_IP")
    if host_ip and host_ip not in [interface.address for interface in machine.interfaces.values()]:
        message = f"VLLM_HOST_IP is {host_ip!r}, which is not an address of this machine: vLLM could not listen there"
        yield Verdict("interfaces", FAIL, message, f"unset VLLM_HOST_IP, or export VLLM_HOST_IP={machine.address}")
    elif address := machine.address:
        name = next(name for name, interface in machine.interfaces.items() if interface.address == address)
        speed = machine.interfaces[name].speed_mbit
        which = f"{name}, {speed} Mbit/s" if speed else name
        adapters = f"; NCCL goes through {', '.join(machine.infiniband)}" if _uses_infiniband(machine) else ""
        yield Verdict("interfaces", PASS, f"other nodes reach this one at {address} ({which}){adapters}")
    else:
        found = [_state(name, interface) for name, interface in machine.interfaces.items()]
        message = f"no interface leads to other machines: {', '.join(found)}"
        fix = "ip address shows them; bring one up (in a container: docker run --network host ...)"
        yield Verdict("interfaces", FAIL, message, fix)


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


def own_addresses(machine: Machine) -> list[str]:
    """This machine's addresses that another can reach, the likeliest first."""
    addresses = [interface.address for interface in machine.interfaces.values() if interface.leads_out]
    return sorted(addresses, key=lambda address: address != machine.address)


def gloo_interfaces(setting: str) -> list[str]:
    """The names in GLOO_SOCKET_IFNAME: torch takes each as it is written, and an empty setting as none."""
    return setting.split(",") if setting else []


def nccl_interfaces(setting: str, names: list[str]) -> list[str]:
    """Of ``names`` those that NCCL_SOCKET_IFNAME selects (NCCL User Guide, Environment Variables).

    A list of prefixes; ``=`` before it asks for whole names, ``^`` for all but those.
    """
    setting, exclude = setting.removeprefix("^"), setting.startswith("^")
    setting, exact = setting.removeprefix("="), setting.startswith("=")
    given = [one for one in setting.split(",") if one]
    if not given:
        return names

    def is_given(name: str) -> bool:
        return name in given if exact else name.startswith(tuple(given))

    return [name for name in names if is_given(name) != exclude]


def _asked(machine: Machine) -> Iterator[Verdict]:
    """What is wrong with GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME. Where these are set, the ranks keep to them."""
    usable = [name for name, i in machine.interfaces.items() if i.address and i.is_up is not False]
    there = f"this machine has {', '.join(_state(name, i) for name, i in machine.interfaces.items())}"
    for name in gloo_interfaces(machine.environment.get("GLOO_SOCKET_IFNAME", "")):
        if name not in usable:
            what = "has no address or is down" if name in machine.interfaces else "does not exist"
            message = f"GLOO_SOCKET_IFNAME names {name!r}, which {what}; {there}"
            yield Verdict("interfaces", FAIL, message, "unset GLOO_SOCKET_IFNAME: the right one is chosen then")
    setting = machine.environment.get("NCCL_SOCKET_IFNAME", "")
    if machine.backend == "cuda" and setting and not nccl_interfaces(setting, usable):
        message = f"NCCL_SOCKET_IFNAME {setting!r} selects no interface that is up and has an address; {there}"
        yield Verdict("interfaces", FAIL, message, "unset NCCL_SOCKET_IFNAME: the right one is chosen then")


def _uses_infiniband(machine: Machine) -> bool:
    switched_off = machine.environment.get("NCCL_IB_DISABLE", "0") == "1"
    return machine.backend == "cuda" and bool(machine.infiniband) and not switched_off


def _state(name: str, interface: Interface) -> str:
    """An interface in a few words: ``eth0 (down)``."""
    if interface.kind == LOOPBACK:
        return f"{name} (loopback)"
    if interface.is_up is False:
        return f"{name} (down)"
    if interface.kind == VIRTUAL:
        return f"{name} (of containers)"
    return name if interface.address else f"{name} (no address)"


def _next_port(port: int, taken: set[int]) -> int:
    """The first port above ``port`` (and above those only root may use) that is not in ``taken``."""
    above, below = range(max(port + 1, 1024), 1 << 16), range(1024, port)
    return next(number for ports in (above, below) for number in ports if number not in taken)
