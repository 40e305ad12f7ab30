"""The launcher's side of ``preflight --live``: start the job, name who stays away or falls silent, report the rest.

    report = live(ServePlan(tensor_parallel_size=2))
    print(report)                      # or look at report.verdicts, report.measurements

A node is named when it has not answered ``SECONDS_TO_ANSWER`` after this node's torchrun was ready for it; a rank that
dies, stops or is cut off, within as many seconds at whatever step.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from localai_clusters.launch.live.findings import read_findings
from localai_clusters.launch.live.measurement import token_cost
from localai_clusters.launch.live.report import LiveReport
from localai_clusters.launch.live.verdicts import judge
from localai_clusters.launch.live.watching import watch
from localai_clusters.launch.placing import place_of, plan_on, with_ports
from localai_clusters.launch.run import Run
from localai_clusters.models import ModelError, look_up
from localai_clusters.plan import ServePlan, is_number
from localai_clusters.preflight import preflight
from localai_clusters.preflight.report import PreflightError, Report, Verdict
from localai_clusters.progress import ProgressLine

if TYPE_CHECKING:
    from localai_clusters.launch.nodes import Nodes

AGENT = "localai_clusters.launch.live.agent"
SECONDS_TO_ANSWER = 12.0
SECONDS_FOR_OTHER_MACHINES = 120.0  # somebody has to type the command there


def live(
    plan: ServePlan,
    *,
    nodes: "Nodes | None" = None,
    node_rank: int = 0,
    api_key: str | None = None,
    skip_checks: Sequence[str] = (),
    wait: float | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> LiveReport:
    """Preflight of ``plan``, then its ranks on their nodes for some seconds: who answers, from where, how fast.

    With ``nodes`` (``launch.nodes.up``) every node is started inside those; a plan for several machines runs node
    ``node_rank`` here, prints the commands for the others, and waits ``wait`` seconds for them (120 unless given).
    ``skip_checks`` names preflight checks whose failure shall not keep the ranks from starting.

    Raises ``ValueError`` for arguments that do not fit together and ``LaunchError`` if no run can be started here.
    Whatever fails after that is a failed verdict, and nothing of the run is left.
    """
    if wait is not None and not (is_number(wait) and wait > 0):
        raise ValueError(f"wait is {wait!r}; it is a number of seconds above 0")
    if nodes is not None and node_rank > 0:
        raise ValueError("nodes of this machine are all started here; node_rank is for other machines, leave one out")
    if nodes is not None:
        plan = plan_on(plan, nodes)
    static = preflight(plan, api_key=api_key, node_rank=node_rank, **place_of(nodes))
    try:
        static.raise_if_failed(tuple(skip_checks))
    except PreflightError:
        return LiveReport(static)
    line = ProgressLine()
    show = on_progress or line
    plan, elsewhere = with_ports(plan), nodes is None and plan.nnodes > 1
    if wait is None:
        wait = SECONDS_FOR_OTHER_MACHINES if elsewhere else SECONDS_TO_ANSWER
    if elsewhere and node_rank == 0:
        commands = [plan.serve_command(other, "preflight --live") for other in range(1, plan.nnodes)]
        print("\n\n".join(["on the other nodes:", *commands]), file=sys.stderr, flush=True)
    run = Run(plan, argv=lambda node: [sys.executable, "-m", AGENT, str(node)], nodes=nodes, node_rank=node_rank)
    try:
        problem = watch(run, wait, show)
        seconds = time.time() - run.started_at
    finally:
        run.stop()
    if on_progress is None:
        line.done(f"{seconds:3.0f} s  {problem.message.splitlines()[0] if problem else 'measured'}")
    return reported(run, static, problem, seconds)


def reported(run: Run, static: Report, problem: Verdict | None, seconds: float) -> LiveReport:
    """What the run has found, whole or as far as it came, after what was known before it."""
    try:
        shape = look_up(run.plan.model)
    except ModelError:
        shape = None
    first_rank = run.plan.node_ranks(run.node_ranks[0])[0]
    found = read_findings(run.dir, run.plan, shape, first_rank, problem)
    return LiveReport(
        report=Report(static.plan, (*static.verdicts, *judge(found))),
        answers=found.answers or (),
        connections=found.connections or (),
        measurements=found.measurements or (),
        cost=token_cost(run.plan, shape, found.measurements) if shape and found.measurements else None,
        seconds=seconds,
        run_dir=run.dir,
    )
