"""A rank killed or stopped while it serves: who is told, after how long, and what the client gets."""

import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass

import httpx

from localai_clusters.breaking.logs import LogTails, log_tails
from localai_clusters.breaking.views import Telling, telling_html, telling_text
from localai_clusters.errors import PlainError
from localai_clusters.launch import processes
from localai_clusters.launch.why import how_it_ended
from localai_clusters.observed import Failure
from localai_clusters.plan import ServePlan
from localai_clusters.server import Server

SIGNALS = ("SIGKILL", "SIGTERM", "SIGSTOP")
SECONDS_TO_NOTICE = 60.0
TOKENS_BEFORE = 8
TOKENS_ASKED = 1024


class CannotKill(PlainError, ValueError):
    """There is no such rank here, or the server does not run."""


@dataclass(slots=True)
class Loss:
    """What followed from a signal to one rank. Times are seconds since the signal was sent."""

    name: str
    plan: ServePlan
    run_id: str
    rank: int
    signal: str
    tokens_before: int
    client_got: str
    client_seconds: float
    launcher_said: str
    launcher_seconds: float
    logs: object = None  # the run's folder
    repaired_run_id: str | None = None

    def repaired(self, server: Server) -> "Loss":
        """Note the server that works after the repair."""
        self.repaired_run_id = server.run.id
        return self

    def failure(self) -> Failure:
        return Failure(
            name=self.name,
            how="lost while serving",
            cause=self.signal,
            message=self.launcher_said,
            seconds=self.launcher_seconds,
            plan=self.plan,
            rank=self.rank,
            run_id=self.run_id,
            repaired_run_id=self.repaired_run_id,
        )

    def tail(self, lines: int = 8) -> LogTails:
        return log_tails(self.logs, lines)

    def tellings(self) -> list[Telling]:
        client = f"{self.tokens_before} tokens had come; then: {self.client_got}"
        return [
            Telling("the client that waited", self.client_seconds, client),
            Telling("the launcher", self.launcher_seconds, self.launcher_said),
        ]

    @property
    def title(self) -> str:
        return f"{self.name}: {self.signal} to rank {self.rank} of {self.plan.model}, {self.plan.label}"

    def __str__(self) -> str:
        return telling_text(self.title, self.tellings())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return telling_html(self.title, self.tellings())


def kill_rank(server: Server, rank: int, name: str = "killed-rank", *, signal_name: str = "SIGKILL") -> Loss:
    """Ask the server for a long answer, and while it comes send ``signal_name`` to the process of ``rank``.

    Returns once the client was answered and the run has ended, of which nothing is left then. Raises ``CannotKill``
    for a server that has stopped and a rank that is not on this machine.
    """
    pid = process_of(server, rank, signal_name)
    server.memory()  # afterwards there is nothing to measure
    tokens, killed_at, got = 0, 0.0, "the answer came to its end"
    body = {"model": server.plan.served_name, "prompt": "Once upon a time", "stream": True, "ignore_eos": True,
            "max_tokens": min(TOKENS_ASKED, longest(server)), "temperature": 0}  # fmt: skip
    client = httpx.Client(base_url=server.url, headers=server._headers(), timeout=SECONDS_TO_NOTICE)
    try:
        with client, client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                raise CannotKill(f"the server does not answer as it should: HTTP {answer.status_code}")
            for line in answer.iter_lines():
                data = line.removeprefix("data: ")
                if not line.startswith("data: ") or data == "[DONE]":
                    continue
                if error := json.loads(data).get("error"):
                    got = f"an error in the stream: {error['message'] if isinstance(error, dict) else error}"
                    break
                tokens += 1
                if tokens == TOKENS_BEFORE:
                    os.kill(pid, getattr(signal, signal_name))
                    killed_at = time.monotonic()
    except httpx.TransportError as error:
        got = f"the connection was closed ({type(error).__name__})"
    if not killed_at:
        raise CannotKill(f"no rank was killed: after {tokens} tokens {got}")
    client_seconds = time.monotonic() - killed_at
    while server.is_running() and time.monotonic() - killed_at < SECONDS_TO_NOTICE:
        time.sleep(0.02)
    launcher_seconds = time.monotonic() - killed_at
    still = server.is_running()
    said = "nobody noticed, and the server was stopped" if still else how_it_ended(server.run).cause
    if (
        signal_name != "SIGSTOP"
    ):  # who is killed says nothing: below the first line is what happened to stand in its log
        said = said.partition("\n")[0]
    server.stop()
    return Loss(name, server.plan, server.run.id, rank, signal_name, tokens, got, client_seconds, said,
                launcher_seconds, server.run.dir)  # fmt: skip


def longest(server: Server) -> int:
    """Tokens that an answer can have: the context, less some for the prompt."""
    return (server.plan.max_model_len or server.model.shape.max_position_embeddings) - 16


def process_of(server: Server, rank: int, signal_name: str) -> int:
    """The pid of a living rank of a running server on this machine; ``CannotKill`` says why there is none."""
    if not isinstance(server, Server):
        raise CannotKill(f"kill_rank(server, rank) takes a server that serve() returned, not a {type(server).__name__}")
    if signal_name not in SIGNALS:
        raise CannotKill(f"{signal_name!r} cannot be sent; it can be {', '.join(SIGNALS)}")
    if not server.is_running():
        raise CannotKill("this server has stopped; serve the plan again")
    ranks = {known.rank: known.pid for known in server.ranks()}
    if isinstance(rank, bool) or rank not in ranks:
        raise CannotKill(f"there is no rank {rank!r}; this server has the ranks {', '.join(map(str, ranks))}")
    pid = ranks[rank]
    with contextlib.suppress(StopIteration):
        guard = next(event["pid"] for event in server.run.events() if event["event"] == "started")
        if pid and pid in processes.descendants(guard):  # and not another process that got its number
            return pid
    raise CannotKill(f"rank {rank} is not a process of this machine")
