"""Why a run ended: which rank of which node failed first, how, and the line that says why.

Sources, best first: what the guard saw (a stopped process, a killed agent), torchrun's own account of the first
failure on each node, what the ranks said of each other (serving/heartbeat.py: a rank of another node, a dead link).
A rank that ended because it lost another one is an echo and never the cause. Where a rank or an agent failed by
itself, its log is explained (diagnose/): what the failure means, and what to type.
"""

import contextlib
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from localai_clusters.launch.run import STEPS, Rank, Run

# torchrun's own account of the first failure.
ROOT_CAUSE = re.compile(r"rank\s*:\s*(?P<rank>\d+) \(local_rank: \d+\)\s+exitcode\s*:\s*(?P<code>-?\d+) \(pid: \d+\)")
# The line that says what happened: a traceback's "ValueError: ...", "torch.distributed.DistNetworkError: ...",
# or argparse's "PROGRAM: error: ...".
ERROR_LINE = re.compile(
    r"(?:^|\] |\) )\s*(?:\S+: )?(?P<error>(?:(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit)|error): .+)$"
)
PYDANTIC_SETTINGS = re.compile(r" \[type=\w+, input_value=.*")
MOST_FIXES = 3


@dataclass(frozen=True, slots=True)
class Ended:
    """``logs``: of whoever failed by itself; none where what is known from outside says all. ``rank``: the first."""

    cause: str
    logs: tuple[Path, ...] = ()
    rank: int | None = None


def why_it_ended(run: Run) -> str:
    """Which rank failed first, how, the line that says why, what that means, what to type, and where the logs are."""
    ended = how_it_ended(run)
    return "\n".join([ended.cause, *explanation(*ended.logs), f"logs: {run.dir}"])


def why_in_short(run: Run) -> str:
    """Why it ended in one line, where the logs are, and what to type to have them explained."""
    ended = how_it_ended(run)
    first, *more = [line.strip() for line in ended.cause.splitlines() if line.strip()]
    why = f"{first}: {more[0]}" if ended.logs and more else first  # of a signal, the log's last line says nothing
    return f"{why}\nlogs: {run.dir}\n→ localai-clusters explain-log {run.id}"


def explanation(*logs: Path) -> list[str]:
    """What the failure in ``logs`` means and what to type, a few lines; none if that is not known."""
    from localai_clusters.diagnose import explain_files  # here: a launch that goes well does without it

    best = None
    with contextlib.suppress(OSError, ValueError):  # a log that is gone or no text: the cause stands without it
        best = explain_files(log for log in logs if log.exists()).best
    if best is None or best.confidence == "low":
        return []
    return [" ".join(filter(None, (f"{best.title}.", best.why))), *(f"→ {fix}" for fix in best.fixes[:MOST_FIXES])]


def ended_in_order(run: Run) -> bool:
    """Whether this is a node without the server, and node 0 told its ranks to stop."""
    agents = [event["code"] for event in run.events() if event["event"] == "agent-exit"]
    return 0 not in run.node_ranks and agents == [0]


def how_it_ended(run: Run) -> Ended:
    if ended_in_order(run):
        return Ended("node 0 stopped the server")
    events = {event["event"]: event for event in reversed(run.events())}  # the first of each
    if "stopped-process" in events:
        return Ended(stopped_process(run, events["stopped-process"]))
    killed_agent = events.get("agent-exit", {"code": 0})
    echoes = {rank.rank for rank in run.ranks() if rank.facts.get("lost")}
    causes = [found for found in root_causes(run) if int(found["rank"]) not in echoes]
    if causes and killed_agent["code"] >= 0:
        return failed_rank(run, int(causes[0]["rank"]), int(causes[0]["code"]), "oom-kill" in events)
    if killed_agent["code"] >= 0 and (found := failed_by_itself(run)):
        return found
    if killed_agent["code"] >= 0 and (found := lost_rank(run) or gone_rank(run, events)):
        return Ended(found)
    ended = events.get("stopped", {"reason": "its guard died"})
    node = killed_agent.get("node_rank", run.node_ranks[0])
    text = f"the run ended: {ended['reason']}\n{last_error(agent_log(run, node))}"
    return Ended(text, () if killed_agent["code"] < 0 else (agent_log_file(run, node),))


def stopped_process(run: Run, event: dict) -> str:
    rank = next((rank.rank for rank in run.ranks() if rank.pid == event["pid"]), None)
    who = f"torchrun's agent on {run.node_of_agent(event['pid'])}" if rank is None else named(run, rank)
    return (
        f"{who} was stopped (SIGSTOP) and did not go on for {event['seconds']:.0f} s: the other ranks waited for it\n"
        "a process is stopped by kill -STOP, by a debugger, or by Ctrl-Z in its terminal"
    )


def failed_rank(run: Run, rank: int, code: int, out_of_memory: bool) -> Ended:
    failed = next((known for known in run.ranks() if known.rank == rank), Rank(rank, None, None, {}, {}))
    reached = [step for step in failed.times if step != "failed"]
    log = run.log(rank) if run.log(rank).exists() else agent_log_file(run, run.node_ranks[0])
    what = without_settings(failed.facts.get("error", "")) or last_error(
        log.read_text(errors="replace") if log.exists() else ""
    )
    step = STEPS[reached[-1]] if reached else describe(failed)
    if "Address already in use" in what:
        what += f"\nport {run.plan.port} or {run.plan.master_port} was taken after the checks; --port 0: any free one"
    text = f"{named(run, rank)} {how_it_exited(code, out_of_memory)} while {step}\n{what}"
    # A signal says nothing in a log; which port was taken is said above, in this run's own numbers.
    by_itself = 0 <= code < 128 and "Address already in use" not in what
    return Ended(text, (log, run.dir / f"rank{rank}.jsonl") if by_itself else (), rank)


def failed_by_itself(run: Run) -> Ended | None:
    """The first rank that said what failed, where torchrun's agent did not live to say it."""
    failed = [rank for rank in run.ranks() if "error" in rank.facts]
    first = min(failed, key=lambda rank: rank.times["failed"], default=None)
    if first is None:
        return None
    reached = [step for step in first.times if step != "failed"]
    error = without_settings(first.facts["error"])
    text = f"{named(run, first.rank)} failed while {STEPS[reached[-1]]}\n{error}"
    return Ended(text, (run.log(first.rank), run.dir / f"rank{first.rank}.jsonl"), first.rank)


def gone_rank(run: Run, events: dict[str, dict]) -> str | None:
    pids = events.get("rank-gone", {"pids": []})["pids"]
    gone = next((rank for rank in run.ranks() if rank.pid in pids), None)
    if gone is None:
        return None
    log = run.log(gone.rank)
    last = last_error(log.read_text(errors="replace")) if log.exists() else ""
    return f"{named(run, gone.rank)} ended while {describe(gone)}, and torchrun's agent did not say how\n{last}"


def lost_rank(run: Run) -> str | None:
    """What the first rank that lost another one said of it."""
    lost = [rank for rank in run.ranks() if rank.facts.get("lost")]
    first = min(lost, key=lambda rank: rank.times["failed"], default=None)
    return first and f"{first.facts['lost']}\n(seen by {named(run, first.rank)}; the lost rank's own log may say more)"


def exit_code_of(run: Run, rank: int) -> int | None:
    """How ``rank`` ended if torchrun names it as the first failure; None if it was stopped or still runs."""
    causes = root_causes(run)
    return next((int(found["code"]) for found in causes if int(found["rank"]) == rank), None)


def root_causes(run: Run) -> list[re.Match[str]]:
    """The root cause on each node started here; torchrun puts it last, after the failures that followed from it."""
    found = [list(ROOT_CAUSE.finditer(agent_log(run, node))) for node in run.node_ranks]
    return [causes[-1] for causes in found if causes]


def without_settings(error: str) -> str:
    """An error's text without what pydantic adds to a refusal: all settings at length, and a link to its own pages."""
    lines = [PYDANTIC_SETTINGS.sub("", line) for line in error.splitlines()]
    return "\n".join(line for line in lines if not line.strip().startswith("For further information visit"))


def agent_log_file(run: Run, node: int) -> Path:
    return run.dir / f"node{node}.log"


def agent_log(run: Run, node: int) -> str:
    path = agent_log_file(run, node)
    return path.read_text(errors="replace") if path.exists() else ""


def named(run: Run, rank: int) -> str:
    return f"rank {rank}" if run.plan.nnodes == 1 else f"rank {rank} on {run.node_of(rank)}"


def describe(rank: Rank) -> str:
    return STEPS.get(rank.step, "not started yet")


def how_it_exited(code: int, out_of_memory: bool = False) -> str:
    """``out_of_memory``: the kernel killed a process for want of memory while the run lived."""
    known = {signum.value: signum.name for signum in signal.Signals}
    if code - 128 in known:  # a rank that ends itself on a signal (serving/heartbeat.py)
        return f"was told to stop by {known[code - 128]}"
    if code >= 0:
        return f"exited with code {code}"
    name = known.get(-code, f"signal {-code}")
    hint = ""
    if name == "SIGKILL":
        hint = " (by hand: the kernel killed nothing for want of memory)"
        if out_of_memory:
            hint = " (by the kernel, for want of memory: a smaller model, a larger split, or less KV cache)"
    elif name == "SIGBUS":
        hint = " (memory that is not there: is /dev/shm full? df -h /dev/shm)"
    return f"was killed by {name}{hint}"


def last_error(log: str) -> str:
    """The last line of ``log`` that reads like an exception, else its last lines."""
    errors = [match["error"] for line in log.splitlines() if (match := ERROR_LINE.search(line))]
    return errors[-1] if errors else last_lines(log)


def last_lines(log: str, count: int = 5) -> str:
    return "\n".join([line for line in log.splitlines() if line.strip()][-count:])
