"""How long preflight takes to refuse a plan, beside vLLM's own refusal of the same plan.

    python -m bench.preflight                                 # every plan that both refuse, about 10 minutes
    python -m bench.preflight --plan "3 heads on 2 ranks"     # one of them, or several; --list names them
    python -m bench.preflight --json

The plans are those of the agreement test (tests/agreement/plans.py), on small model folders made for the occasion:

- preflight(): the function, in a process that has called it before; median of several calls
- the command: ``localai-clusters preflight``, a process from its start to its exit; median of several
- vLLM: its own server on the same flags (``python -m vllm.entrypoints.openai.api_server``, which is what ``vllm serve``
  runs), a process from its start to its exit, once; where it does not say what preflight says, or starts and fails with
  its first request, no ratio is taken ("other")

A world size that is not the split's exists under torchrun only: there torchrun starts vLLM's server. Ratios are vLLM's
seconds over ours.
"""

import argparse
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from localai_clusters.launch.run import Run
from localai_clusters.machine import Machine
from localai_clusters.plan import ServePlan
from localai_clusters.preflight import preflight
from localai_clusters.server import with_ports
from tests.agreement.plans import REFUSED, Case

CALLS, COMMANDS = 9, 3
SECONDS_FOR_VLLM = 180.0
CLI = str(Path(sys.executable).with_name("localai-clusters"))
API_SERVER = ["-m", "vllm.entrypoints.openai.api_server"]
MOST_SECONDS, LEAST_RATIO = 0.5, 50.0  # what is promised
COLUMNS = ("plan", "refused for", "preflight()", "the command", "vLLM", "vLLM / function", "vLLM / command")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Seconds until one plan was refused; ``vllm`` is None where vLLM did not refuse it for the same cause."""

    plan: str
    check: str
    function: float
    command: float
    vllm: float | None

    def cells(self) -> list[str]:
        ours = [f"{self.function * 1e3:.1f} ms", f"{self.command:.2f} s"]
        if self.vllm is None:
            return [self.plan, self.check, *ours, "other", "", ""]
        ratios = [f"{self.vllm / self.function:.0f}", f"{self.vllm / self.command:.0f}"]
        return [self.plan, self.check, *ours, f"{self.vllm:.1f} s", *ratios]


def measure(case: Case, folder: Path, taken_port: int) -> Refusal:
    plan = case.plan(folder, taken_port)
    plan = with_ports(plan) if plan.port == 0 else plan
    report = preflight(plan)
    if case.check not in {verdict.check for verdict in report.failed}:
        raise SystemExit(f"{case.name}: preflight does not refuse this for its {case.check}\n{report}")
    function = statistics.median(seconds_of_call(plan) for _ in range(CALLS))
    command = statistics.median(seconds_of_command(plan) for _ in range(COMMANDS))
    return Refusal(case.name, case.check, function, command, seconds_of_vllm(report.plan, case.says))


def seconds_of_call(plan: ServePlan) -> float:
    began = time.perf_counter()
    preflight(plan)
    return time.perf_counter() - began


def seconds_of_command(plan: ServePlan) -> float:
    torchrun = ["--nproc-per-node", str(plan.nproc_per_node), "--master-port", str(plan.master_port)]
    extra = ["--", *plan.extra_args] if plan.extra_args else []
    words = [CLI, "preflight", *plan.with_(extra_args=()).rank_args(), *torchrun, *extra]
    began = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode != 1:
        raise SystemExit(f"{CLI} preflight ended with {done.returncode}: {done.stdout}{done.stderr}")
    return seconds


def vllm_command(plan: ServePlan) -> list[str]:
    """vLLM's server on the plan's flags, with nothing of this project's in it."""
    server = [*API_SERVER, *plan.rank_args()]
    if plan.world_size == plan.split_size:
        return [sys.executable, *server]
    torchrun = ["torch.distributed.run", f"--nproc-per-node={plan.nproc_per_node}", f"--master-port={plan.master_port}"]
    return [sys.executable, "-m", *torchrun, *server, "--distributed-executor-backend", "external_launcher"]


def seconds_of_vllm(plan: ServePlan, says: str) -> float | None:
    """From the start of vLLM's command to its exit; None if it does not end, or not for what ``says`` matches."""
    # The guard would end a run whose agent loses a child; as a shell's child, vLLM ends in its own time.
    command = ["sh", "-c", '"$@"; exit $?', "sh", *vllm_command(plan)]
    run = Run(plan, {"VLLM_NO_USAGE_STATS": "1"}, command)
    try:
        while run.is_running() and time.time() - run.started_at < SECONDS_FOR_VLLM:
            time.sleep(0.1)
        events = {event["event"]: event for event in run.events()}
    finally:
        run.stop()
    said = (run.dir / "node0.log").read_text(errors="replace")
    if "agent-exit" not in events or events["agent-exit"]["code"] == 0 or not re.search(says, said):
        return None
    return events["agent-exit"]["time"] - events["started"]["time"]


def summary(found: list[Refusal]) -> list[str]:
    """What was found beside what is promised, for both ways of asking."""
    lines = []
    for what, attribute in (("preflight()", "function"), ("the command", "command")):
        seconds = [getattr(refusal, attribute) for refusal in found]
        lines.append(f"{what}: {spread(seconds, 's', 3, max)}, promised {MOST_SECONDS} s")
        ratios = [refusal.vllm / getattr(refusal, attribute) for refusal in found if refusal.vllm is not None]
        if ratios:
            lines.append(f"{what}: {spread(ratios, 'times sooner', 0, min)}, promised {LEAST_RATIO:.0f}")
    refused = [refusal.vllm for refusal in found if refusal.vllm is not None]
    return [*lines, f"vLLM: {spread(refused, 's', 1, min)}"] if refused else lines


def spread(numbers: list[float], unit: str, digits: int, worst: Callable[[list[float]], float]) -> str:
    return f"median {statistics.median(numbers):.{digits}f}, {worst.__name__} {worst(numbers):.{digits}f} {unit}"


def markdown(found: list[Refusal]) -> str:
    rows = [COLUMNS, ("---", "---", *["---:"] * 5), *(refusal.cells() for refusal in found)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def setting() -> dict[str, Any]:
    machine = Machine.now()
    return {
        "cpu": machine.cpu_model,
        "cores": len(machine.cores),
        "os": machine.os,
        "python": machine.python,
        "versions": machine.versions,
        "calls": CALLS,
        "commands": COMMANDS,
    }


def main() -> None:
    names = {case.name: case for case in REFUSED}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", nargs="+", choices=names, metavar="NAME", help="only these", default=list(names))
    parser.add_argument("--list", action="store_true", help="the plans' names")
    parser.add_argument("--json", action="store_true", help="seconds of every plan")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(names))
        return

    found = []
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as holder:
        for number, name in enumerate(arguments.plan, 1):
            print(f"{number} of {len(arguments.plan)}, {name}", end=": ", file=sys.stderr, flush=True)
            found.append(measure(names[name], Path(folder), holder.getsockname()[1]))
            print(", ".join(found[-1].cells()[2:5]), file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps({"setting": setting(), "refusals": [asdict(refusal) for refusal in found]}, indent=2))
        return
    at = setting()
    versions = ", ".join(f"{name} {is_}" for name, is_ in at["versions"].items())
    print(f"{at['cpu']}, {at['cores']} cores; {at['os']}, Python {at['python']}, {versions}.\n")
    print(markdown(found) + "\n")
    print("\n".join(summary(found)))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped")
