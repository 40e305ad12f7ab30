"""Waiting until a run serves."""

import time
from collections.abc import Callable, Sequence

import httpx

from localai_clusters.launch.run import LaunchError, Rank, Run
from localai_clusters.launch.why import describe, explanation, why_it_ended

SECONDS_UNTIL_READY = 900.0  # a 70B model is read from disk in minutes
SECONDS_UNTIL_NODES_MEET = 30.0  # of one machine, all started at once; other machines are waited for
OnProgress = Callable[[Sequence[Rank], float], None]  # ranks, seconds since the start


def wait_until_ready(
    run: Run, is_ready: Callable[[Sequence[Rank]], bool], on_progress: OnProgress, seconds: float = SECONDS_UNTIL_READY
) -> float:
    """Wait until ``is_ready(ranks)``; returns the seconds it took since the run started.

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
        if is_ready(ranks):
            return time.time() - run.started_at
        if run.nodes and elapsed > SECONDS_UNTIL_NODES_MEET and not any(steps):
            where = f"{run.plan.master_addr}:{run.plan.master_port}"
            raise LaunchError(
                f"the nodes have not met at {where} after {elapsed:.0f} s; is the link between them cut?\n"
                f"localai-clusters nodes status\nlogs: {run.dir}",
                run.dir,
            )
        if elapsed > seconds:
            where = "; ".join(f"rank {rank.rank}: {describe(rank)}" for rank in ranks)
            meant = explanation(*(run.log(rank.rank) for rank in ranks))
            message = "\n".join([f"not ready after {seconds:.0f} s; {where}", *meant, f"logs: {run.dir}"])
            raise LaunchError(message, run.dir)
        time.sleep(0.05)


def serving(client: httpx.Client, model: str) -> Callable[[Sequence[Rank]], bool]:
    """Ready once rank 0, the first of the ranks, answers a completion."""
    return lambda ranks: ranks[0].step in ("http", "ready") and answers(client, model)


def following(ranks: Sequence[Rank]) -> bool:
    """Ready once every rank of a node without the server waits for what rank 0 broadcasts."""
    return all(rank.step == "ready" for rank in ranks)


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
