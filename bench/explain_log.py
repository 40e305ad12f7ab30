"""How fast explain-log reads, and how often it is right on logs whose cause a person named.

python -m bench.explain_log speed [--megabytes 100]
python -m bench.explain_log rate FOLDER    # FOLDER/*.log and FOLDER/labels.json: {"NAME": {"cause": "tp-heads", ...}}

A label may hold "also_acceptable", other causes that are no error. ``rate`` writes every answer that was wrong.
"""

import argparse
import json
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path

from localai_clusters.diagnose import explain_files
from localai_clusters.diagnose.report import DONT_KNOW, NO_FAILURE, Report

ANSWERS = {DONT_KNOW: "unknown", NO_FAILURE: "no-failure"}


def answer(report: Report) -> str:
    """The cause's name as labels have it."""
    return report.best.cause if report.best else ANSWERS[report.status]


def rate(folder: Path, show: bool) -> dict:
    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    outcomes, wrong, seconds = Counter(), [], 0.0
    for name, label in sorted(labels.items()):
        path = folder / f"{name.removesuffix('.log')}.log"
        if not path.exists():
            outcomes["no log"] += 1
            continue
        began = time.perf_counter()
        report = explain_files([path])
        seconds += time.perf_counter() - began
        given, wanted = answer(report), {label["cause"], *label.get("also_acceptable", ())}
        if given in wanted:
            outcomes["right"] += 1
            continue
        outcomes["don't know" if given == "unknown" else "wrong"] += 1
        others = [cause.cause for cause in report.causes[1:]]
        wrong.append({"log": name, "wanted": label["cause"], "given": given, "next": others})
        if show:
            print(f"{name}: {label['cause']} -> {given} {others or ''}")
            print("    " + "\n    ".join(str(report).splitlines()[:6]))
    asked = sum(outcomes.values()) - outcomes["no log"]
    return {**outcomes, "logs": asked, "hit_rate": round(outcomes["right"] / max(asked, 1), 3),
            "seconds_per_log": round(seconds / max(asked, 1), 3), "confusions": wrong}  # fmt: skip


# What fills a long log: metrics, requests, progress bars, NCCL's messages, and tracebacks now and then.
USUAL = (
    "INFO 11-23 12:{m:02}:{s:02} [loggers.py:{n}] Engine 000: Avg prompt throughput: {n}.3 tokens/s\n"
    'INFO:     127.0.0.1:{n} - "POST /v1/chat/completions HTTP/1.1" 200 OK\n'
    "node{s}:{n}:{n} [0] NCCL INFO Channel {m:02}/16 : {s}[{s}] -> 1[1] via P2P/IPC\n"
    "\rLoading safetensors checkpoint shards: {s}% Completed | {m}/60 [00:{s:02}<00:10,  1.{n}s/it]"
    '(Worker_TP1 pid={n}) ERROR 11-23 12:{m:02}:{s:02} [executor.py:{n}]   File "/x/vllm/worker.py", line {n}, in f\n'
)


def write_log(path: Path, megabytes: int, every_line_new: bool) -> None:
    number = 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes << 20:
            lines = "".join(
                USUAL.format(m=k // 60 % 60, s=k % 60, n=1000 + k % 9000) for k in range(number, number + 2000)
            )
            if every_line_new:  # letters and not digits, which the screening leaves out
                lines = "".join(
                    f"{line[:40]}{new_word(number + i)} {line[40:]}\n" for i, line in enumerate(lines.splitlines())
                )
            file.write(lines)
            number += 20_000
        file.write("ValueError: Total number of attention heads (9) must be divisible by tensor parallel size (2).\n")


def new_word(number: int) -> str:
    return f"{number:x}".translate(str.maketrans("0123456789", "ghijklmnop"))


def speed(megabytes: int) -> dict:
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, new in (("usual", False), ("every line new", True)):
            for size in (megabytes // 10, megabytes):
                path = Path(folder) / "log"
                write_log(path, size, new)
                began, worked = time.perf_counter(), time.process_time()
                report = explain_files([path])
                took, worked = time.perf_counter() - began, time.process_time() - worked
                assert answer(report) == "tp-heads", report
                figures[f"{name}, {size} MB"] = f"{took:.1f} s ({worked:.1f} s of CPU), {report.lines} lines"
    figures["peak memory"] = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB"
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("speed").add_argument("--megabytes", type=int, default=100)
    rating = verbs.add_parser("rate")
    rating.add_argument("folder", type=Path)
    rating.add_argument("--quiet", action="store_true")
    given = parser.parse_args()
    figures = speed(given.megabytes) if given.verb == "speed" else rate(given.folder, not given.quiet)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
