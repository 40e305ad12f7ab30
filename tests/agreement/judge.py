"""vLLM's side: takes each plan through torchrun's agent and our real ranks, with one import of vLLM for all of them.

    python judge.py PLANS ANSWERS        PLANS: [{"name", "plan": ServePlan.to_dict(), "architectures": [...]}, ...]

This process imports what a rank imports, and computes nothing. For each plan it forks torchrun's agent, which forks
the ranks (``--start-method=fork``) where it would otherwise start interpreters; from there on all is as in any other
run. A plan is served once a completion comes back, and refused once the agent ends before that: then its ranks' errors
are vLLM's answer. Answers are appended to ANSWERS. Run under ``launch.run.Run``, which ends what a killed judge left.
"""

import contextlib
import http.client
import importlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from localai_clusters.launch import journal, processes
from localai_clusters.plan import ServePlan
from localai_clusters.server import with_ports

MODULES = (
    "torch.distributed.run",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.v1.engine.core",
    "localai_clusters.serving.client",
    "localai_clusters.serving.rank",
)
SECONDS_TO_ANSWER = 120.0
SECONDS_TO_END = 5.0
LAST_LINES = 12
ERROR_LINE = re.compile(r"[Ee]rror\b|\bassert ")


def import_vllm(architectures: set[str]) -> None:
    """What a rank imports on its way to an engine. Nothing here may start a thread: a forked rank would lack it."""
    for module in MODULES:
        importlib.import_module(module)
    registry = importlib.import_module("vllm").ModelRegistry
    # vLLM starts an interpreter to look at the class of an architecture that it has not met on this machine.
    for name in architectures & registry.models.keys():
        registry.register_model(name, registry.models[name].load_model_cls())


def rank(*argv: str) -> None:
    from localai_clusters.serving.rank import main

    sys.argv = ["rank", *argv]
    main()


def agent(torchrun: list[str], folder: Path) -> NoReturn:
    """torchrun, in a process forked for it; what it and its ranks say goes to ``folder``."""
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    processes.die_with_parent()
    log = os.open(folder / "agent.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["LAC_RUN_ID"] += f"-{folder.name}"
    os.environ["LAC_RUN_DIR"] = str(folder)
    try:
        flags = [f"--log-dir={folder / 'torchrun'}", "--start-method=fork", *torchrun]
        config, _, words = config_from_args(parse_args(flags))
        elastic_launch(config, rank)(*words[words.index("-m") + 2 :])
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def completion(port: int, model: str) -> tuple[int, str] | None:
    """(HTTP status, body) of one token's completion; None while nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS_TO_ANSWER)
    body = json.dumps({"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0})
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    return None


def judge(plan: ServePlan, folder: Path) -> dict[str, Any]:
    """What became of ``plan``: {"served", "said": vLLM's words, "seconds"}."""
    folder.mkdir()
    plan = with_ports(plan)  # now, and not for all plans at once: other processes take ports too
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        agent(plan.argv()[1:], folder)
    answer, ended = None, False
    while answer is None and not ended and time.monotonic() - began < SECONDS_TO_ANSWER:
        time.sleep(0.05)
        ended = os.waitpid(pid, os.WNOHANG)[0] == pid
        if any(line["step"] == "http" for line in journal.read(folder / "rank0.jsonl")):
            answer = completion(plan.port, plan.served_name)
    seconds = time.monotonic() - began
    end([] if ended else [pid])
    served = answer is not None and answer[0] == 200
    return {"served": served, "said": [answer[1]] if served else errors(folder, answer), "seconds": seconds}


def errors(folder: Path, answer: tuple[int, str] | None) -> list[str]:
    """The HTTP server's, the ranks' own, and from each log the lines that tell of one, or its last."""
    found = [f"HTTP {answer[0]}: {answer[1]}"] if answer else []
    for path in sorted(folder.glob("rank*.jsonl")):
        found += [line["error"] for line in journal.read(path) if "error" in line]
    for log in sorted(folder.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()
        found += [line for line in lines if ERROR_LINE.search(line)] or lines[-LAST_LINES:]
    return list(dict.fromkeys(found))


def end(agents: list[int]) -> None:
    """End every process below this one, and remove the shared memory that they used."""
    segments = processes.shared_memory(processes.descendants(os.getpid()))
    processes.send(agents, signal.SIGTERM)
    deadline = time.monotonic() + SECONDS_TO_END
    while left := processes.descendants(os.getpid()):
        if time.monotonic() > deadline:
            processes.send(left, signal.SIGKILL)
        time.sleep(0.02)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    processes.remove_shared_memory(segments)


def main() -> None:
    asked, answers = (Path(argument) for argument in sys.argv[1:])
    processes.adopt_orphans()
    plans = json.loads(asked.read_text(encoding="utf-8"))
    import_vllm({name for plan in plans for name in plan["architectures"]})
    for number, plan in enumerate(plans):
        answer = judge(ServePlan.from_dict(plan["plan"]), Path(os.environ["LAC_RUN_DIR"]) / f"plan{number}")
        journal.append(answers, name=plan["name"], **answer)


if __name__ == "__main__":
    main()
