"""Live checks of who answered: from where, with which versions, model files and devices, and who reaches whom."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from localai_clusters.launch.live.answer import Answer
from localai_clusters.launch.live.findings import Findings
from localai_clusters.launch.live.measurement import duration
from localai_clusters.models import BUILT_IN
from localai_clusters.preflight.report import FAIL, PASS, WARN, Verdict

ROLL_CALL, VERSIONS, MODEL = "roll call", "versions across nodes", "model on every node"
DEVICES, REACHABLE, CLOCKS = "devices of the ranks", "reachable", "clocks"
# Ranks run in lockstep, step by step the same code; the others decide how a model and its text are read.
MUST_BE_EQUAL, SHOULD_BE_EQUAL = ("vllm", "torch", "localai-clusters"), ("transformers", "python")
MOST_NAMED = 4  # of nodes or ranks, in one sentence
SECONDS_AHEAD = 1.0  # as far apart the logs of two nodes cannot be read side by side


def check_roll_call(found: Findings) -> Iterator[Verdict]:
    answers, plan, nodes = found.answers, found.plan, firsts(found)
    if len(answers) != plan.world_size:
        message = f"{plural(len(answers), 'rank')} answered; the plan has {plan.world_size}"
        yield Verdict(ROLL_CALL, FAIL, message, "the same command on every node, with its own --node-rank")
        return
    places = listed([f"node {one.node_rank} is {one.host} at {one.address}" for one in nodes], "; ")
    message = f"{plural(len(answers), 'rank')} on {plural(len(nodes), 'node')} answered: {places}"
    if len(nodes) > 1 and nodes[0].machine and len({one.machine for one in nodes}) == 1:
        apart = len({one.shm for one in nodes}) == len(nodes)
        message += f"; all of one machine, {'each with its own' if apart else 'sharing'} /dev/shm"
    yield Verdict(ROLL_CALL, PASS, message)


def check_versions(found: Findings) -> Iterator[Verdict]:
    nodes = firsts(found)
    if len(nodes) == 1:
        return
    groups = {name: by_version(nodes, name) for name in (*MUST_BE_EQUAL, *SHOULD_BE_EQUAL)}
    differing = {name: versions for name, versions in groups.items() if len(versions) > 1}
    for name, versions in differing.items():
        wanted, *_ = versions  # node 0's, where the server is
        message = f"{name} is " + ", ".join(f"{version} on {listed(names)}" for version, names in versions.items())
        others = [host for version, names in versions.items() if version != wanted for host in names]
        status = FAIL if name in MUST_BE_EQUAL else WARN
        yield Verdict(VERSIONS, status, message, f"{name} {wanted} on {listed(others)} too, or another one on all")
    if not differing:
        equal = ", ".join(f"{name} {version}" for name, version in sorted(nodes[0].versions.items()))
        yield Verdict(VERSIONS, PASS, f"equal on all {len(nodes)} nodes: {equal}")


def by_version(nodes: Iterable[Answer], name: str) -> dict[str, list[str]]:
    """Version -> nodes that have it; node 0's first."""
    groups: dict[str, list[str]] = {}
    for one in nodes:
        groups.setdefault(one.versions.get(name, "missing"), []).append(named(one))
    return groups


def check_model(found: Findings) -> Iterator[Verdict]:
    nodes = [one for one in firsts(found) if one.model is not None]
    if len(nodes) < 2 or found.plan.model in BUILT_IN:
        return
    verdicts = []
    for one in nodes:
        if problem := one.model.get("problem"):
            fix = f"the model on {named(one)} too, under the same name"
            verdicts.append(Verdict(MODEL, FAIL, f"{named(one)}: {problem}", fix))
    if absent := [named(one) for one in nodes if not one.model]:
        message = f"{found.plan.model} is not yet on {listed(absent)}; every node reads its own copy"
        verdicts.append(Verdict(MODEL, WARN, message, "download it there before you serve"))
    there = [one for one in nodes if "config" in one.model]
    for other in there[1:]:
        if difference := different_files(there[0].model, other.model):
            message = f"{difference} on {named(there[0])} and {named(other)}"
            fix = f"a copy of {named(there[0])}'s folder on {named(other)}, or a shared one"
            verdicts.append(Verdict(MODEL, FAIL, message, fix))
    equal = f"config.json and the weights files' names and sizes are equal on {plural(len(nodes), 'node')}"
    yield from verdicts or [Verdict(MODEL, PASS, equal)]


def different_files(one: dict[str, Any], other: dict[str, Any]) -> str:
    """What differs between two models' files, "" if nothing does."""
    if one["config"] != other["config"]:
        return "config.json is not the same"
    first, second = one["weights"], other["weights"]
    names = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    if not names:
        return ""
    sizes = [f"{of[names[0]]} bytes" if names[0] in of else "missing" for of in (first, second)]
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{names[0]}{more} is {sizes[0]} and {sizes[1]}"


def check_devices(found: Findings) -> Iterator[Verdict]:
    answers = found.answers
    verdicts = [
        Verdict(DEVICES, FAIL, f"{one.who}: {one.problem}", "fewer ranks on that node, or its GPUs repaired")
        for one in answers
        if one.problem
    ]
    if len({one.backend for one in answers}) > 1:
        of = listed([f"{one.backend or 'none'} on {named(one)}" for one in firsts(found)])
        message = f"vLLM's build is not the same everywhere: {of}"
        verdicts.append(Verdict(DEVICES, FAIL, message, "the same build on every node"))
    for ranks, devices in shared_devices(answers).items():
        who = listed([f"rank {rank}" for rank in ranks])
        if any(device.startswith("GPU") for device in devices):
            fix = "other CUDA_VISIBLE_DEVICES on one of the nodes, or one node fewer"
            verdicts.append(Verdict(DEVICES, FAIL, f"{who} have the same GPU, {listed(devices)}", fix))
        else:
            message = f"{who} share {listed(devices)}: they wait for each other"
            verdicts.append(Verdict(DEVICES, WARN, message, "fewer ranks on that machine"))
    each = listed([f"rank {one.rank}: {one.device}" for one in answers], "; ")
    yield from verdicts or [Verdict(DEVICES, PASS, f"each rank has its own: {each}")]


def shared_devices(answers: Iterable[Answer]) -> dict[tuple[int, ...], list[str]]:
    """Ranks -> devices that they share."""
    owners: dict[tuple[str, str], list[int]] = {}
    for one in answers:
        machine = one.machine if one.backend == "cpu" else ""  # a CPU's number means something on one machine only
        for device in one.device_ids:
            owners.setdefault((machine, device), []).append(one.rank)
    shared: dict[tuple[int, ...], list[str]] = {}
    for (_, device), ranks in owners.items():
        if len(ranks) > 1:
            shared.setdefault(tuple(ranks), []).append(device)
    return shared


def check_reachable(found: Findings) -> Iterator[Verdict]:
    nodes = {one.node_rank: one for one in firsts(found)}
    works = {(one.source, one.target) for one in found.connections if not one.problem}
    failed: dict[tuple[int, str], list[int]] = {}
    for one in found.connections:
        if one.problem:
            failed.setdefault((one.target, one.problem), []).append(one.source)
    for (target, problem), sources in failed.items():
        who, to = listed([named(nodes[source]) for source in sources]), named(nodes[target])
        one_way = "; the other way works" if all((target, source) in works for source in sources) else ""
        message = f"{who} cannot open a connection to {to} at {nodes[target].address} ({problem}){one_way}"
        addresses = listed([nodes[source].address for source in sources])
        fix = f"on {to}, a firewall that lets {addresses} reach every TCP port: Gloo and NCCL take any free one"
        yield Verdict(REACHABLE, FAIL, message, fix)
    if found.connections and not failed:
        slowest = max(found.connections, key=lambda one: one.seconds)
        message = f"every node reaches every other one; round trip {duration(slowest.seconds)}"
        if len(nodes) > 2:
            message += f" at most, from node {slowest.source} to node {slowest.target}"
        yield Verdict(REACHABLE, PASS, message)


def check_clocks(found: Findings) -> Iterator[Verdict]:
    nodes = {one.node_rank: one for one in firsts(found)}
    ahead = {one.target: one.ahead for one in found.connections if one.source == 0 and one.ahead is not None}
    wrong = {node: seconds for node, seconds in ahead.items() if abs(seconds) > SECONDS_AHEAD}
    for node, seconds in wrong.items():
        order = "ahead of" if seconds > 0 else "behind"
        message = f"the clock of {named(nodes[node])} is {duration(abs(seconds))} {order} {named(nodes[0])}'s"
        yield Verdict(CLOCKS, WARN, f"{message}: their logs cannot be compared", "on both: timedatectl set-ntp true")
    if ahead and not wrong:
        furthest = max(abs(seconds) for seconds in ahead.values())
        yield Verdict(CLOCKS, PASS, f"at most {duration(furthest)} off node 0's")


def firsts(found: Findings) -> list[Answer]:
    """The first rank of each node, which speaks for it."""
    return [one for one in found.answers if one.local_rank == 0]


def named(one: Answer) -> str:
    return f"node {one.node_rank} ({one.host})"


def listed(names: Sequence[str], separator: str = ", ") -> str:
    more = f"{separator}and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return separator.join(names[:MOST_NAMED]) + more


def plural(count: int, name: str) -> str:
    return f"{count} {name}{'s' * (count != 1)}"
