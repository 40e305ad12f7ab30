"""Waiting for a live run: who stays away, who was started with another plan, who falls silent, and what ended it.

What is known of the nodes comes from torchrun's agents (agent.py), what is known of the ranks from their journals.
"""

import time
from collections.abc import Callable, Sequence

from localai_clusters.launch.live.checks_of_messages import LATENCY, SUMS
from localai_clusters.launch.live.checks_of_nodes import REACHABLE, ROLL_CALL, listed
from localai_clusters.launch.live.findings import Agent, read_agent
from localai_clusters.launch.live.verdicts import SAME_PLAN
from localai_clusters.launch.run import Rank, Run
from localai_clusters.launch.why import describe, why_it_ended
from localai_clusters.preflight.report import FAIL, Verdict
from localai_clusters.progress import startup_text

SECONDS_TO_IMPORT = 60.0  # Python and torch from a cold disk
SECONDS_WITHOUT_A_STEP = 40.0  # whoever can be named is named sooner, by the ranks
SECONDS_TO_TELL = 1.0  # for the other nodes to read from the store, which ends with this run, what is known here
POLL_SECONDS = 0.05
CHECK_OF_STEP = {"reach": REACHABLE, "all-reduce": SUMS, "latency": LATENCY, "measured": LATENCY}


def watch(run: Run, wait: float, show: Callable[[str], None]) -> Verdict | None:
    """Until the ranks of this machine have measured, or what ended or stopped them before."""
    shown, seen, changed = None, None, time.monotonic()
    while True:
        running = run.is_running()  # asked first: what a run that has ended wrote, it wrote before
        ranks, agent = local_ranks(run), read_agent(run.dir, run.node_ranks[0])
        steps = [(rank.step, rank.times.get(rank.step)) for rank in ranks]
        if all(rank.step == "measured" for rank in ranks):
            return different_plan(agent)
        if not running:
            return ended(run, ranks, agent)
        if steps != seen:
            seen, changed = steps, time.monotonic()
        elapsed = time.time() - run.started_at
        met = any(step for step, _ in steps)
        text = startup_text(ranks, elapsed) if met else waiting_text(run, agent, elapsed)
        if text != shown:
            show(text)
            shown = text
        problem = different_plan(agent) if time.time() - agent.heard_at > SECONDS_TO_TELL else None
        problem = problem or (silent(ranks, time.monotonic() - changed) if met else absent(run, agent, wait))
        if problem:
            return problem
        time.sleep(POLL_SECONDS)


def local_ranks(run: Run) -> list[Rank]:
    here = {rank for node in run.node_ranks for rank in run.plan.node_ranks(node)}
    return [rank for rank in run.ranks() if rank.rank in here]


def absent(run: Run, agent: Agent, wait: float) -> Verdict | None:
    """Before the nodes have met: one that has not answered in time, or cannot."""
    if agent.started_at is None:
        elapsed = time.time() - run.started_at
        message = f"torchrun has not started on this node for {elapsed:.0f} s"
        return Verdict(ROLL_CALL, FAIL, message, f"logs: {run.dir}") if elapsed > SECONDS_TO_IMPORT else None
    if agent.twice:
        message = f"{agent.twice} has answered as node {run.node_ranks[0]} already"
        return Verdict(ROLL_CALL, FAIL, message, "another --node-rank on one of the two")
    seconds = time.time() - agent.started_at
    return Verdict(ROLL_CALL, FAIL, *missing(run, agent, f"for {seconds:.0f} s")) if seconds > wait else None


def missing(run: Run, agent: Agent, how_long: str) -> tuple[str, str]:
    """(who has not answered and what that can mean, what to do)."""
    plan, here = run.plan, run.node_ranks[0]
    where = f"{plan.master_addr}:{plan.master_port}"
    if here > 0 and agent.unreachable:
        message = f"node 0 does not answer at {where} ({agent.unreachable}) {how_long}, seen from node {here}"
        return message, f"node 0's command running there; a firewall that lets this node reach port {plan.master_port}"
    others = unheard(run, agent)
    if not others:
        return f"all nodes answered, and torchrun has started no rank {how_long}", f"logs: {run.dir}"
    message = f"{named(others)} {'has' if len(others) == 1 else 'have'} not answered {how_long}:"
    if run.nodes:
        why = {read_agent(run.dir, node).unreachable for node in others} - {""}
        message += f" torchrun runs there and cannot reach {where} ({', '.join(sorted(why)) or 'silence'})"
        return message, "localai-clusters nodes status (is the link cut?)"
    message += f" its torchrun has not started there, or {where} cannot be reached from there (firewall?)"
    return message, f"on node {others[0]}: {plan.serve_command(others[0], 'preflight --live')}"


def unheard(run: Run, agent: Agent) -> list[int]:
    """The other nodes that have not answered here."""
    return [node for node in range(run.plan.nnodes) if node not in {*agent.nodes, run.node_ranks[0]}]


def named(nodes: Sequence[int]) -> str:
    return listed([f"node {node}" for node in nodes])


def different_plan(agent: Agent) -> Verdict | None:
    """The first node whose command is not node 0's. Each node may have its own server's host and port."""
    plans = {node: {**said["plan"], "host": "", "port": 0} for node, said in sorted(agent.nodes.items())}
    first = plans.get(0, {})
    for node, other in plans.items():
        names = [name for name in first if name in other and other[name] != first[name]]
        if names:
            what = ", ".join(f"{name} {other[name]!r} and not {first[name]!r}" for name in names)
            message = f"node {node} ({agent.nodes[node]['host']}) was started with {what}, as node 0 was"
            return Verdict(SAME_PLAN, FAIL, message, "the command that node 0 printed")
    return None


def silent(ranks: Sequence[Rank], seconds: float) -> Verdict | None:
    """Once ranks have started: they come to a next step every few seconds, or somebody is stuck."""
    patience = SECONDS_TO_IMPORT if any(r.step in (None, "python", "torch") for r in ranks) else SECONDS_WITHOUT_A_STEP
    if seconds < patience:
        return None
    stuck = "; ".join(f"rank {rank.rank}: {describe(rank)}" for rank in ranks)
    message = f"nothing has happened for {seconds:.0f} s: {stuck}"
    return Verdict(check_of(ranks), FAIL, message, "the logs of these ranks")


def ended(run: Run, ranks: Sequence[Rank], agent: Agent) -> Verdict:
    """What ended the run before its ranks were through."""
    logs = f"logs: {run.dir}"
    if different := different_plan(agent):
        return different
    if not any(rank.step for rank in ranks):
        others = unheard(run, agent)
        if 0 in agent.nodes and others and run.node_ranks[0] > 0:
            return Verdict(ROLL_CALL, FAIL, f"node 0 gave up: {named(others)} had not answered", logs)
    return Verdict(check_of(ranks), FAIL, why_it_ended(run).removesuffix(f"\n{logs}"), logs)


def check_of(ranks: Sequence[Rank]) -> str:
    """The check at which the first of ``ranks`` is."""
    reached = [step for step in ranks[0].times if step != "failed"]
    return CHECK_OF_STEP.get(reached[-1] if reached else "", ROLL_CALL)


def waiting_text(run: Run, agent: Agent, elapsed: float) -> str:
    plan = run.plan
    where = f"{plan.master_addr}:{plan.master_port}"
    if agent.started_at is None:
        return f"{elapsed:3.0f} s  starting torchrun"
    if run.node_ranks[0] > 0 and agent.unreachable:
        return f"{elapsed:3.0f} s  node 0 does not answer at {where}: {agent.unreachable}"
    others = unheard(run, agent)
    if not others:
        return f"{elapsed:3.0f} s  starting the ranks"
    return f"{elapsed:3.0f} s  not answered at {where} yet: {named(others)}"
