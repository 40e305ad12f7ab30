"""What follows from what a live run has found: every check's verdicts, as far as the run came."""

from collections.abc import Callable, Iterator, Sequence

from localai_clusters.launch.live import checks_of_messages as messages
from localai_clusters.launch.live import checks_of_nodes as nodes
from localai_clusters.launch.live.answer import Answer
from localai_clusters.launch.live.findings import Findings
from localai_clusters.launch.live.reach import Connection
from localai_clusters.plan import ServePlan
from localai_clusters.preflight.report import FAIL, UNKNOWN, Verdict

SAME_PLAN = "same plan"  # found out by torchrun's agents, before any rank starts (probe.py)

OF_ANSWERS: dict[str, Callable[[Findings], Iterator[Verdict]]] = {
    nodes.ROLL_CALL: nodes.check_roll_call,
    nodes.VERSIONS: nodes.check_versions,
    nodes.MODEL: nodes.check_model,
    nodes.DEVICES: nodes.check_devices,
}
OF_CONNECTIONS = {nodes.REACHABLE: nodes.check_reachable, nodes.CLOCKS: nodes.check_clocks}
OF_MESSAGES = {
    messages.SUMS: messages.check_sums,
    messages.LATENCY: messages.check_latency,
    messages.BANDWIDTH: messages.check_bandwidth,
}


def judge(found: Findings) -> tuple[Verdict, ...]:
    """The verdicts on what is there, and last what ended the run before there was more."""
    checks = OF_ANSWERS if found.answers is not None else {}
    if found.connections is not None:
        checks = checks | OF_CONNECTIONS
    if found.measurements is not None:
        checks = checks | OF_MESSAGES
    verdicts = [verdict for check in checks.values() for verdict in check(found)]
    if found.problem:
        verdicts.append(found.problem)
    elif found.measurements is None and found.plan.world_size > 1:
        verdicts.append(Verdict(messages.SUMS, UNKNOWN, "not tried, because of what failed above"))
    return tuple(verdicts)


def may_join(plan: ServePlan, answers: Sequence[Answer], connections: Sequence[Connection]) -> bool:
    """Whether a collective can be tried: else it would hang, or its failure would say less than what is known."""
    found = Findings(plan=plan, answers=tuple(answers), connections=tuple(connections))
    checks = (nodes.check_roll_call, nodes.check_devices, nodes.check_reachable)
    return not any(verdict.status == FAIL for check in checks for verdict in check(found))
