"""Where the seconds of a start go: each rank's steps, from its ``rank<K>.jsonl``, for TP=1, TP=2 and PP=2.

    python -m bench.startup                          # about 1 minute
    python -m bench.startup --split tp --imports     # and what rank 0 imports, heaviest packages first

A step lasts until the next one begins. Rank 0 is the one that a user waits for: its steps add up to the time to ready.
With ``--imports`` every rank writes what each import took (PYTHONPROFILEIMPORTTIME), which slows the start a little.
"""

import argparse
import re
import time
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise

import httpx
import psutil

from bench.alike import plan_for, seconds_to_ready
from localai_clusters.launch.ready import answers
from localai_clusters.launch.run import Run
from localai_clusters.plan import ServePlan
from localai_clusters.server import with_ports

# What a rank does from one step that it reports to the next; the first three and the last two are added here.
STEPS = {
    "guard": "guard starts",
    "torchrun": "torchrun's agent: interpreter, import of torch, rendezvous",
    "interpreter": "the rank's interpreter, its cores and settings",
    "python": "until the import",
    "import": "import of vLLM, flags, configuration",
    "rendezvous": "process group",
    "weights": "model built, weights read",
    "weights-loaded": "KV cache sized",
    "kv-cache": "KV cache allocated, warm-up, scheduler",
    "engine": "until the HTTP application",
    "http": "HTTP application starts",
    "health": "first completion",
    "answered": "ready",
}
PARTS = {
    "interpreter + torchrun": ("guard", "torchrun", "interpreter", "python"),
    "import": ("import",),
    "engine": ("rendezvous", "weights", "weights-loaded", "kv-cache"),
    "HTTP + first completion": ("engine", "http", "health"),
}
IMPORT_LINE = re.compile(r"import time:\s+(?P<own>\d+) \|\s+(?P<all>\d+) \| (?P<indent> *)(?P<name>\S+)$")
MOST_IMPORTS = 15


def times_of(plan: ServePlan, environment: dict[str, str]) -> tuple[list[dict[str, float]], str]:
    """(for each rank: step -> Unix time of its begin, rank 0's log) of one start."""
    run = Run(with_ports(plan), environment)
    try:
        seconds_to_ready(run, lambda client, _: healthy(client))
        health = time.time()
        answered = run.started_at + seconds_to_ready(run, answers)
        torchrun = next(event["time"] for event in run.events() if event["event"] == "started")
        found = []
        for rank in run.ranks():
            times = {"guard": run.started_at, "torchrun": torchrun} | rank.times
            times["interpreter"] = psutil.Process(rank.pid).create_time()
            # Only rank 0 has a client; the others are at its orders once they are ready.
            times |= {"health": health, "answered": answered} if rank.rank == 0 else {"answered": times["ready"]}
            found.append({step: times[step] for step in STEPS if step in times})
        return found, run.log(0).read_text(errors="replace")
    finally:
        run.stop()


def healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def seconds_of(times: dict[str, float]) -> dict[str, float]:
    """step -> seconds until the rank's next one."""
    steps = list(times)
    return {step: times[after] - times[step] for step, after in pairwise(steps)}


def steps_table(label: str, ranks: list[dict[str, float]]) -> str:
    seconds = [seconds_of(times) for times in ranks]
    head = "".join(f"{f'rank {rank}':>9}" for rank in range(len(ranks)))
    lines = [f"{label}, seconds{'':{15 + 60 - len(label) - 9}}{head}"]
    for step, meaning in STEPS.items():
        if any(step in each for each in seconds):
            cells = "".join(f"{each[step]:9.2f}" if step in each else f"{'':9}" for each in seconds)
            lines.append(f"{step:15}{meaning:60}{cells}")
    lines.append(f"{'in all':75}" + "".join(f"{sum(each.values()):9.2f}" for each in seconds))
    return "\n".join(lines)


def parts_table(starts: dict[str, list[dict[str, float]]]) -> str:
    """Rank 0's steps put together: seconds, and the share of its time to ready."""
    lines = [f"{'rank 0, in short':75}" + "".join(f"{label:>14}" for label in starts)]
    seconds = [seconds_of(ranks[0]) for ranks in starts.values()]
    for part, steps in PARTS.items():
        sums = [sum(each.get(step, 0.0) for step in steps) for each in seconds]
        cells = (f"{took:7.2f} ({took / sum(each.values()):4.0%})" for took, each in zip(sums, seconds, strict=True))
        lines.append(f"{part:75}" + "".join(f"{cell:>14}" for cell in cells))
    lines.append(f"{'time to ready':75}" + "".join(f"{sum(each.values()):7.2f}       " for each in seconds))
    return "\n".join(lines)


def heaviest_imports(log: Iterable[str]) -> list[tuple[str, float, float]]:
    """(top-level package, seconds with what it imported, seconds of its own modules), heaviest first.

    A module is written after those it imported, which stand deeper: read backwards, each follows its importer.
    A package counts where it is first met on the way down; what it imports again below itself is in that already.
    """
    everything: dict[str, float] = defaultdict(float)
    own: dict[str, float] = defaultdict(float)
    above: list[str] = []  # the packages on the way down to this module
    for line in reversed(list(log)):
        match = IMPORT_LINE.search(line)
        if match is None:
            continue
        package = match["name"].partition(".")[0]
        del above[len(match["indent"]) // 2 :]
        own[package] += int(match["own"]) / 1e6
        if package not in above:
            everything[package] += int(match["all"]) / 1e6
        above.append(package)
    ranked = sorted(everything, key=everything.__getitem__, reverse=True)
    return [(package, everything[package], own[package]) for package in ranked]


def imports_table(label: str, log: str) -> str:
    found = heaviest_imports(log.splitlines())
    lines = [f"{label}, rank 0, imports: seconds with what they import in turn, and of their own modules"]
    lines += [f"  {package:28}{everything:8.2f}{own:8.2f}" for package, everything, own in found[:MOST_IMPORTS]]
    return "\n".join([*lines, f"  {f'all {len(found)} packages':28}{'':8}{sum(own for *_, own in found):8.2f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("none", "tp", "pp"), nargs="+", default=["none", "tp", "pp"])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--imports", action="store_true", help=f"the {MOST_IMPORTS} heaviest packages of rank 0")
    arguments = parser.parse_args()

    starts: dict[str, list[dict[str, float]]] = {}
    for split in arguments.split:
        plan = plan_for(split, arguments.dtype)
        environment = {"PYTHONPROFILEIMPORTTIME": "1"} if arguments.imports else {}
        starts[plan.label], log = times_of(plan, environment)
        print(steps_table(plan.label, starts[plan.label]), end="\n\n", flush=True)
        if arguments.imports:
            print(imports_table(plan.label, log), end="\n\n", flush=True)
    print(parts_table(starts))


if __name__ == "__main__":
    main()
