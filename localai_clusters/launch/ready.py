"""Waiting for a run to serve, and saying in a few lines why it did not."""

import re
import signal
import time
from collections.abc import Callable, Sequence

import httpx

from localai_clusters.launch.run import STEPS, LaunchError, Rank, Run

SECONDS_UNTIL_READY = 900.0  # a 70B model is read from disk in minutes
OnProgress = Callable[[Sequence[Rank], float], None]  # ranks, seconds since the start

# torchrun's own account of the first failure.
ROOT_CAUSE = re.compile(r"rank\s*:\s*(?P<rank>\d+) \(local_rank: \d+\)\s+exitcode\s*:\s*(?P<code>-?\d+) \(pid: \d+\)")
# The line that says what happened: a traceback's "ValueError: ...", "torch.distributed.DistNetworkError: ...",
# or argparse's "PROGRAM: error: ...".
ERROR_LINE = re.compile(
    r"(?:^|\] |\) )\s*(?:\S+: )?(?P<error>(?:(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit)|error): .+)$"
)


def wait_until_ready(
    run: Run, client: httpx.Client, model: str, on_progress: OnProgress, seconds: float = SECONDS_UNTIL_READY
) -> float:
    """Wait until a completion comes back from ``client``; returns the seconds it took since the run started.

    Raises ``LaunchError`` when the run ends or ``seconds`` pass.
    """
    shown = None
    while True:
        ranks, elapsed = run.ranks(), time.time() - run.started_at
        steps = [rank.step for rank in ranks]
        if (steps, int(elapsed)) != shown:
            shown = (steps, int(elapsed))
            on_progress(ranks, elapsed)
        if not run.is_running():
            raise LaunchError(why_it_ended(run), run.dir)
        if steps[0] == "http" and answers(client, model):
            return time.time() - run.started_at
        if elapsed > seconds:
            raise LaunchError(
                f"not ready after {seconds:.0f} s; "
                + "; ".join(f"rank {r.rank}: {describe(r)}" for r in ranks)
                + f"\nlogs: {run.dir}",
                run.dir,
            )
        time.sleep(0.05)


def answers(client: httpx.Client, model: str) -> bool:
    """Whether the server completes a prompt yet. ``LaunchError`` if it refuses to."""
    try:
        if client.get("/health", timeout=20).status_code != 200:
            return False
        body = {"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
        answer = client.post("/v1/completions", json=body, timeout=60)
        if 400 <= answer.status_code < 500:
            raise LaunchError(f"the server runs and refuses a completion ({answer.status_code}): {answer.text[:500]}")
        return answer.status_code == 200
    except httpx.TransportError:
        return False


def describe(rank: Rank) -> str:
    return STEPS.get(rank.step, "not started yet")


def why_it_ended(run: Run) -> str:
    """Which rank failed first, how, the line of its log that says why, and where the logs are."""
    causes = root_causes(run)
    if not causes:
        ended = next((event for event in run.events() if event["event"] == "stopped"), {"reason": "its guard died"})
        return f"the run ended: {ended['reason']}\n{last_lines(agent_log(run))}\nlogs: {run.dir}"
    rank, code = int(causes[-1]["rank"]), int(causes[-1]["code"])
    failed = run.ranks()[rank] if rank < run.plan.nproc_per_node else Rank(rank, None, None, {}, {})
    reached = [step for step in failed.times if step != "failed"]
    log = run.log(rank).read_text(errors="replace") if run.log(rank).exists() else agent_log(run)
    what = failed.facts.get("error") or last_error(log)
    step = STEPS[reached[-1]] if reached else describe(failed)
    return f"rank {rank} {how_it_exited(code)} while {step}\n{what}\nlogs: {run.dir}"


def exit_code_of(run: Run, rank: int) -> int | None:
    """How ``rank`` ended if torchrun names it as the first failure; None if it was stopped or still runs."""
    causes = root_causes(run)
    return int(causes[-1]["code"]) if causes and int(causes[-1]["rank"]) == rank else None


def root_causes(run: Run) -> list[re.Match[str]]:
    """torchrun's list of failures; it puts the root cause last, after those that followed from it."""
    return list(ROOT_CAUSE.finditer(agent_log(run)))


def agent_log(run: Run) -> str:
    path = run.dir / "node0.log"
    return path.read_text(errors="replace") if path.exists() else ""


def how_it_exited(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    known = {signum.value: signum.name for signum in signal.Signals}
    name = known.get(-code, f"signal {-code}")
    hint = " (by hand, or by the kernel for want of memory: see dmesg)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def last_error(log: str) -> str:
    """The last line of ``log`` that reads like an exception, else its last lines."""
    errors = [match["error"] for line in log.splitlines() if (match := ERROR_LINE.search(line))]
    return errors[-1] if errors else last_lines(log)


def last_lines(log: str, count: int = 5) -> str:
    return "\n".join([line for line in log.splitlines() if line.strip()][-count:])
