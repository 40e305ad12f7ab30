"""How long `grade` takes, and what memory, as the class grows.

    python -m bench.grade                                 # 1,000 to 10,000 records, about 3 minutes
    python -m bench.grade --counts 10000 --repeat 5
    python -m bench.grade --keep /tmp/class --counts 300  # leave the records there to look at

The records are made from a real one (tests/records): other students, prompts, outputs, ids, times and logs, each with a
digest that fits. What is timed is the whole command, from the interpreter's start to the last byte of its JSON, with
nothing left from an earlier grading. Memory is the resident set of the grader and its processes together, at its peak;
pages that they share count once for each.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from localai_clusters.checkpoint.building import digest_of, from_json, text_sha256, to_json
from localai_clusters.checkpoint.store import path_of
from localai_clusters.prompts import WORDS, prompts_for

REAL = Path(__file__).parents[1] / "tests" / "records" / "cpu_2_cores_float32_tp1_tp2_pp2.json"
COUNTS = (1000, 2000, 5000, 10_000)
SAMPLE_SECONDS = 0.02
# Not the console script: it need not be installed for this.
GRADE = (sys.executable, "-c", "from localai_clusters.cli import grade, main; main()", "grade")


def made_class(count: int, seed: int = 7) -> Iterator[dict[str, Any]]:
    """Records of ``count`` students, as JSON has them."""
    real = json.loads(REAL.read_text(encoding="utf-8"))
    for number in range(count):
        yield made_record(real, f"s{number:05d}", random.Random(f"{seed} {number}"))


def made_record(real: dict[str, Any], student: str, chance: random.Random) -> dict[str, Any]:
    """``real`` as if another student had recorded it; its digest fits."""
    record = deepcopy(real)
    shift = timedelta(seconds=chance.randrange(14 * 86_400))
    record["student"], record["record_id"] = student, str(uuid.UUID(int=chance.getrandbits(128), version=4))
    record["created_at"] = shifted(record["created_at"], shift)
    answers = []
    for prompt, text in zip(record["data"]["prompts"], prompts_for(student, record["lab"]), strict=True):
        prompt["text"], prompt["sha256"] = text, text_sha256(text)
        prompt["token_ids"] = [chance.randrange(49152) for _ in prompt["token_ids"]]
        answers.append([chance.randrange(49152) for _ in range(24)])
    names = {}
    for run in record["runs"]:
        run["started_at"] = shifted(run["started_at"], shift)
        started = datetime.fromisoformat(run["started_at"])
        names[run["run_id"]] = f"{started:%m%d-%H%M%S}-{chance.getrandbits(24):06x}"
        run["run_id"] = names[run["run_id"]]
        run["seconds_to_ready"] *= chance.uniform(0.9, 1.0)
        run["seconds_serving"] *= chance.uniform(0.9, 1.0)
        for rank in run["ranks"]:
            rank["log_sha256"] = f"{chance.getrandbits(256):064x}"
    observed = record["observed"]
    for completion in observed["completions"]:
        completion["run_id"] = names[completion["run_id"]]
        completion["token_ids"] = answers[completion["prompt_index"]]
        completion["text"] = " ".join(chance.choices(WORDS, k=18))
        completion["logprobs"] = [-chance.expovariate(1.0) for _ in completion["token_ids"]]
    for comparison in observed["comparisons"]:
        comparison["run_a"], comparison["run_b"] = names[comparison["run_a"]], names[comparison["run_b"]]
    for load in observed["load"]:
        load["run_id"] = names[load["run_id"]]
        load["seconds"] *= chance.uniform(0.9, 1.0)
        load["output_tokens_per_second"] = load["output_tokens"] / load["seconds"]
    for verdict in record["preflight"]:
        verdict["run_id"] = names.get(verdict["run_id"])
    record["digest"] = digest_of(from_json(record))
    return record


def shifted(moment: str, by: timedelta) -> str:
    return (datetime.fromisoformat(moment) + by).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_class(folder: Path, count: int) -> int:
    """Write the records as students hand them in, a folder each; returns their bytes."""
    size = 0
    for plain in made_class(count):
        record = from_json(plain)
        path = path_of(record, folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        size += path.write_bytes(to_json(record).encode())
    return size


def timed(folder: Path, cache: Path, processes: int) -> tuple[float, int]:
    """(seconds, peak bytes resident) of one grading of a folder."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    command = [*GRADE, str(folder), "--fresh", "--json", "--processes", str(processes)]
    began = time.perf_counter()
    with open(os.devnull, "w") as nowhere:
        grading = psutil.Popen(command, stdout=nowhere, env=environment)
        peak = 0
        while grading.poll() is None:
            peak = max(peak, resident(grading))
            time.sleep(SAMPLE_SECONDS)
    seconds = time.perf_counter() - began
    if grading.returncode != 0:
        raise SystemExit(f"grade ended with {grading.returncode}")
    return seconds, peak


def resident(process: psutil.Process) -> int:
    total = 0
    with contextlib.suppress(psutil.Error):
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += each.memory_info().rss
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="a new folder for the records, left there")
    arguments = parser.parse_args()

    print(f"{'records':>8}{'MB':>7}{'best s':>9}{'median s':>10}{'ms each':>9}{'peak MiB':>10}", flush=True)
    with contextlib.ExitStack() as stack:
        scratch = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for count in arguments.counts:
            folder = scratch / str(count)
            size = write_class(folder, count)
            subprocess.run(["sync"], check=False)
            found = [timed(folder, scratch / "cache", arguments.processes) for _ in range(arguments.repeat)]
            seconds, peak = [each[0] for each in found], max(each[1] for each in found)
            print(
                f"{count:8,}{size / 1e6:7.1f}{min(seconds):9.2f}{statistics.median(seconds):10.2f}"
                f"{min(seconds) / count * 1e3:9.2f}{peak / 2**20:10.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
