"""A line as a record: which process wrote it, when, at which level, and what it says.

In front of what a program says stands what others put there: torchrun its rank, vLLM its process, NCCL its host, and
Docker, Kubernetes, journald and Slurm their own stamps, one inside the other.
"""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Record:
    """One line, or one line inside a JSON line.

    ``process`` is who wrote it ("rank 3", "EngineCore"), empty if nothing says so; ``time`` is seconds since New Year.
    """

    file: str
    line: int
    process: str
    time: float | None
    level: str
    text: str


# A JSON line of Docker's json-file driver or of a structured logger; the keys under which the text lies, best first.
JSON_TEXT = ("log", "message", "msg", "text", "event", "exc_info", "stack_trace", "traceback")


def texts(line: str) -> list[str]:
    """The lines inside ``line``: those of a JSON log's text, of a text whose line ends were escaped, or itself."""
    if line.startswith("{") and line.rstrip().endswith("}"):
        try:
            data = json.loads(line)
        except ValueError:
            data = None
        if isinstance(data, dict) and isinstance(data.get("time"), float):
            return own_journal(line, data)
        if isinstance(data, dict):
            found = [str(data[key]) for key in JSON_TEXT if data.get(key)]
            stamp = f"{data['time']} " if isinstance(data.get("time"), str) else ""
            if found:
                return [stamp + inner for text in found for inner in text.splitlines() if inner.strip()]
    if line.count("\\n") > 2:
        return line.split("\\n")
    return [line]


FAILED_ELSEWHERE = re.compile(r"rank (\d+) on node [^:]{1,200} failed: ")


def own_journal(line: str, data: dict) -> list[str]:
    """A line of this library's journals (launch/journal.py): what failed, or the line as it stands."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S ", time.localtime(data["time"]))
    said = str(data.get("error") or data.get("lost") or line)
    if other := FAILED_ELSEWHERE.match(said):  # what another rank had said of itself
        stamp, said = f"{stamp}[rank{other[1]}]: ", said[other.end() :]
    return [stamp + inner for inner in said.splitlines()]


# Who wrote a line and when, in the forms that stand before the text; a line may carry several, one inside the other.
CLOCK = r"(?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d(?:[.,]\d{1,9})?)"
PREFIXES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\[?\d{{4}}[-/](?P<month>\d\d)[-/](?P<day>\d\d)[T_ ]{CLOCK}(?:Z|[+-]\d\d:?\d\d)?\]? ?(?:[-|] )?",
        r"(?P<level>DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL) (?P<month>\d\d)-(?P<day>\d\d) "
        rf"{CLOCK} \[?[\w./-]{{1,80}}:\d+\] ?",  # vLLM
        r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL|FATAL)\b(?::[\w.]+: *|(?: *:| +-+| *\|)? +)",
        r"> ?",  # quoted in a mail or an issue
        r"(?:stdout|stderr) [FP] ",  # containerd
        r"[\w.-]{1,80} +\| ",  # docker compose
        r"\[(?:pod|container)/[^\]]{1,120}\] ",  # kubectl logs --prefix
        rf"[A-Z][a-z][a-z] +\d\d? {CLOCK} [\w.-]{{1,80}} [^\s:]{{1,60}}\[\d+\]: ",  # journald, syslog
        r"\((?P<process>[A-Za-z][\w.:]{0,60}(?: rank=\d+)?)[, ]+(?:pid=(?P<pid>\d+))?(?:, ip=(?P<ip>[\w.:]+))?\) ?",
        r"\[(?:rank|default)(?P<rank>\d{1,5})\]: ?",  # torch, torchrun --tee
        r"(?P<srun>\d{1,4}): (?=\S)",  # srun --label
        r"\[\d+,(?P<mpi>\d{1,5})\]<std(?:err|out)>:? ?",
        rf"\[?(?P<glog>[IWEFC])(?P<month>\d\d)(?P<day>\d\d) {CLOCK} +(?:\d+ )?[^\]\s]{{1,160}}\] ?",  # torch
        r"[\w.-]{1,80}:\d+:\d+ \[(?:\d+|-1)\] (?=NCCL (?P<nccl>INFO|TRACE)|\S+ NCCL WARN|NCCL WARN)",
        r"(?=NCCL (?P<nccl>INFO|TRACE) )",
    )
)
GLOG = {"I": "INFO", "W": "WARNING", "E": "ERROR", "F": "FATAL", "C": "CRITICAL"}
BOX = " \t│┃|╭╮╰╯─━"  # the frames of rich's tracebacks
VLLM_WORKER = re.compile(r"(?:Vllm)?Worker_?(?:DP\d+_)?(?P<pp>PP\d+_)?(?:TP(?P<tp>\d+))?|VllmWorker rank=(?P<rank>\d+)")


def record(file: str, line: int, text: str, owner: str = "") -> Record:
    """Peel the prefixes off ``text``. ``owner`` is who wrote the file, where the lines do not say it."""
    process, clock, level, at = "", None, "", 0
    for _ in range(6):
        found = next((match for prefix in PREFIXES if (match := prefix.match(text, at))), None)
        if found is None:
            break
        facts = found.groupdict()
        level = "INFO" if facts.get("nccl") else level
        if found.end() == at:
            break
        at = found.end()
        process = who(facts) or process
        if facts.get("h"):
            clock = seconds(facts)
        level = facts.get("level") or GLOG.get(facts.get("glog") or "") or level
    rest = text[at:]
    if rest.startswith(("│", "┃", "╭")):
        rest = rest.strip(BOX)
    if owner and not process.startswith("rank "):  # rank 0 is its API server too
        process = owner
    return Record(file, line, process, clock, "WARNING" if level == "WARN" else level, rest)


def who(facts: dict[str, str | None]) -> str:
    rank = facts.get("rank") or facts.get("srun") or facts.get("mpi")
    if rank is not None:
        return f"rank {int(rank)}"
    process = facts.get("process")
    if not process:
        return ""
    worker = VLLM_WORKER.fullmatch(process)
    if worker and worker["rank"]:
        return f"rank {worker['rank']}"
    if worker and worker["tp"] and not worker["pp"] and "DP" not in process:
        return f"rank {worker['tp']}"
    if facts.get("ip"):
        return f"{process} {facts['pid']} on {facts['ip']}"
    return f"{process} {facts['pid']}" if process.startswith(("Ray", "VllmWorkerProcess")) and facts["pid"] else process


def seconds(facts: dict[str, str | None]) -> float:
    """Seconds since New Year, near enough to tell which line came first."""
    clock = int(facts["h"]) * 3600 + int(facts["m"]) * 60 + float(facts["s"].replace(",", "."))
    return clock + 86400 * (31 * int(facts.get("month") or 1) + int(facts.get("day") or 1))


RANK_IN_PATH = re.compile(r"(?:^|/)(?:rank[_-]?(\d+)|(\d+)(?=/std(?:err|out)\.log))")


def owner_of(path: Path) -> str:
    """Who wrote a file, from its name: ``rank3.log``, torchrun's ``attempt_0/3/stderr.log``."""
    found = RANK_IN_PATH.findall(str(path))
    return f"rank {int(found[-1][0] or found[-1][1])}" if found else ""
