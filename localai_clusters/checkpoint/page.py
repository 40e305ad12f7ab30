"""A record on a terminal, for a person. Nothing in it is trusted: text from the file
goes through `plain_text` into rich's Text, never through markup."""

from collections.abc import Iterable
from itertools import groupby

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from . import observed_page
from .consistency import verify
from .layout import MOST_ROWS, body, cell, grid, heading, line, more, table
from .record import Checkpoint, Completion, Load, Rank, Run
from .runs_consistency import served
from .summary import count, plain_text, run_names, what_it_proves

HONESTY = "A digest shows consistency, not honesty: whoever edits a file can renew it."
MOST_PROMPTS = 6
MIB = 2**20

_STYLES = {"fail": "bold red", "warn": "yellow", "unknown": "magenta", "pass": "green"}


def show(checkpoint: Checkpoint, console: Console) -> None:
    """Print the record: what it proves, its runs, memory, outputs and limits."""
    _print_title(checkpoint, console)
    _print_runs(checkpoint, console)
    _print_memory(checkpoint, console)
    _print_outputs(checkpoint, console)
    observed_page.show(checkpoint, console)
    _print_constraints(checkpoint, console)
    _print_preflight(checkpoint, console)
    _print_answers(checkpoint, console)
    _print_where(checkpoint, console)
    _print_digest(checkpoint, console)


def _print_title(record: Checkpoint, console: Console) -> None:
    title = Text()
    title.append(f"Chapter {record.chapter}, {record.lab}", "bold")
    title.append(f"  student {record.student}", "bold cyan")
    line(console, title)
    moment = record.created_at.replace("T", " ").replace("Z", " UTC")
    level = record.evidence.level
    line(console, Text(f"{moment}  record {record.record_id[:8]}  level {level}", "dim"))
    console.print()
    line(console, Text(what_it_proves(record)))


def _print_runs(record: Checkpoint, console: Console) -> None:
    if not record.runs:
        return
    heading(console, "Runs")
    shown = table(
        "run",
        ">ranks",
        "on",
        "dtype",
        ">ready",
        ">served",
        "ended",
        ">tokens/s",
        ">streams",
    )
    names = run_names(record)
    for run in record.runs[:MOST_ROWS]:
        rate, streams = _best(record.observed.load, run)
        shown.add_row(
            cell(names[run.run_id]),
            cell(f"{len(run.ranks)}"),
            cell(_devices(run), 24),
            cell(run.plan.dtype, 10),
            cell(_seconds(run.seconds_to_ready)),
            cell(_seconds(run.seconds_serving)),
            cell(_ending(run), 20),
            cell(rate),
            cell(streams),
        )
    body(console, shown)
    more(console, len(record.runs) - MOST_ROWS, "run")


def _print_memory(record: Checkpoint, console: Console) -> None:
    rows = [(run, rank) for run in record.runs for rank in run.ranks]
    if not rows:
        return
    heading(console, "Memory per rank, MiB")
    shown = table(
        "run",
        ">rank",
        "layers",
        ">weights\npredicted",
        ">weights\nmeasured",
        ">KV cache\npredicted",
        ">KV cache\nmeasured",
        ">peak\nmeasured",
        ">KV\nblocks",
    )
    names = run_names(record)
    for run, rank in rows[:MOST_ROWS]:
        memory = rank.memory
        shown.add_row(
            cell(names[run.run_id] if rank is run.ranks[0] else ""),
            cell(f"{rank.rank}"),
            cell(_layers(rank)),
            cell(_mib(memory.weights_bytes.predicted), style="dim"),
            cell(_mib(memory.weights_bytes.measured)),
            cell(_mib(memory.kv_cache_bytes.predicted), style="dim"),
            cell(_mib(memory.kv_cache_bytes.measured)),
            cell(_mib(memory.resident_bytes)),
            cell("-" if rank.kv_cache_blocks is None else f"{rank.kv_cache_blocks:,}"),
        )
    body(console, shown)
    more(console, len(rows) - MOST_ROWS, "rank")


def _print_outputs(record: Checkpoint, console: Console) -> None:
    completions = sorted(record.observed.completions, key=lambda c: c.prompt_index)
    if not completions:
        return
    heading(console, "Outputs")
    groups = [(i, list(g)) for i, g in groupby(completions, lambda c: c.prompt_index)]
    for index, answers in groups[:MOST_PROMPTS]:
        prompts = record.data.prompts
        asked = prompts[index].text if index < len(prompts) else "(no such prompt)"
        line(console, Text(plain_text(asked, 160), "cyan"), indent=2)
        _print_answers_to_one(answers[:MOST_ROWS], run_names(record), console)
        more(console, len(answers) - MOST_ROWS, "answer")
    more(console, len(groups) - MOST_PROMPTS, "prompt")


def _print_answers_to_one(answers: list[Completion], names: dict[str, str], console: Console) -> None:
    first_with: dict[tuple[int, ...], str] = {}
    shown = grid(columns=3)
    for answer in answers:
        name = names.get(answer.run_id, answer.run_id)  # there may be no such run
        earlier = first_with.setdefault(answer.token_ids, name)
        text = Text(plain_text(answer.text, 240))
        if earlier != name:
            text = Text(f"the same tokens as {earlier}", "green")
        tokens = Text(count(len(answer.token_ids), "token"), "dim")
        shown.add_row(cell(name, style="bold"), tokens, text)
    console.print(Padding(shown, (0, 0, 0, 4)), highlight=False)


def _print_constraints(record: Checkpoint, console: Console) -> None:
    if not record.constraints:
        return
    heading(console, "What the result depends on")
    shown = grid()
    for constraint in record.constraints[:MOST_ROWS]:
        said = plain_text(constraint.sentence, 400)
        if constraint.source == "student":
            said += " (the student)"
        shown.add_row(Text(constraint.kind, "bold"), Text(said))
    body(console, shown)
    more(console, len(record.constraints) - MOST_ROWS, "constraint")


def _print_preflight(record: Checkpoint, console: Console) -> None:
    if not record.preflight:
        return
    passed = sum(check.verdict == "pass" for check in record.preflight)
    heading(console, f"Preflight: {passed} of {len(record.preflight)} checks passed")
    others = [check for check in record.preflight if check.verdict != "pass"]
    names = run_names(record)
    shown = grid(columns=3)
    for check in others[:MOST_ROWS]:
        where = f" ({names.get(check.run_id, check.run_id)})" if check.run_id else ""
        shown.add_row(
            Text(check.verdict, _STYLES[check.verdict]),
            Text(plain_text(check.check, 40) + where),
            Text(plain_text(check.message, 400)),
        )
    if others:
        body(console, shown)
    more(console, len(others) - MOST_ROWS, "check")


def _print_answers(record: Checkpoint, console: Console) -> None:
    if not record.answers:
        return
    heading(console, "The student's answers")
    shown = grid()
    for name, answer in list(record.answers.items())[:MOST_ROWS]:
        shown.add_row(Text(name, "bold"), Text(plain_text(str(answer), 400)))
    body(console, shown)
    more(console, len(record.answers) - MOST_ROWS, "answer")


def _print_where(record: Checkpoint, console: Console) -> None:
    machine, versions, data = record.machine, record.versions, record.data
    heading(console, "Where and with what")
    gpus = ", ".join(f"{gpu.name} ({_gib(gpu.memory_bytes)})" for gpu in machine.gpus)
    software = {
        "Python": versions.python,
        "vLLM": versions.vllm,
        "torch": versions.torch,
        "transformers": versions.transformers,
        "CUDA": versions.cuda,
        "driver": versions.driver,
        "NCCL": versions.nccl,
        "localai-clusters": versions.localai_clusters,
    }
    rows = {
        "model": f"{data.model}, {data.source}" + (f", {data.folder}" if data.folder else ""),
        "machine": f"{count(machine.cores, 'core')} of {machine.cpu_model}, "
        f"{_gib(machine.memory_bytes)}" + (f"; {gpus}" if gpus else ""),
        "system": versions.os,
        "software": ", ".join(f"{k} {v}" for k, v in software.items() if v),
    }
    shown = grid()
    for name, value in rows.items():
        shown.add_row(Text(name, "bold"), Text(plain_text(value, 400)))
    body(console, shown)


def _print_digest(record: Checkpoint, console: Console) -> None:
    findings = verify(record)
    heading(console, "Does it hold?")
    shown = grid()
    for finding in findings[:MOST_ROWS]:
        wrong = finding.severity == "wrong"
        sentence = Text(plain_text(finding.field), "bold")
        sentence.append(f": {plain_text(finding.sentence, 300)}", "not bold")
        style = "bold red" if wrong else "yellow"
        shown.add_row(Text(finding.severity, style), sentence)
    if findings:
        body(console, shown)
    more(console, len(findings) - MOST_ROWS, "finding")
    if not findings:
        line(console, Text("Nothing in it contradicts itself.", "green"), indent=2)
    line(console, Text(f"sha256 {record.digest}", "dim"), indent=2)
    line(console, Text(HONESTY), indent=2)


def _devices(run: Run) -> str:
    """ "cores 0; 1" rank by rank, "GPUs 0; 1 | 0; 1" with a | between nodes."""
    if not run.ranks:
        return "-"
    ranks = run.ranks[:MOST_ROWS]
    nodes = ["; ".join(_numbers(rank) for rank in node) for _, node in groupby(ranks, lambda rank: rank.node_rank)]
    noun = "GPU" if ranks[0].device.kind == "cuda" else "core"
    return f"{noun}{'s' if len(ranks) > 1 else ''} {' | '.join(nodes)}"


def _numbers(rank: Rank) -> str:
    device = rank.device
    if device.kind == "cuda":
        return "?" if device.gpu_index is None else f"{device.gpu_index}"
    return ",".join(map(str, device.cores)) or "any"


def _ending(run: Run) -> str:
    """How its ranks ended: "stopped" is the normal way."""
    if run.started_at is None:
        return "not started"
    codes = sorted({r.exit_code for r in run.ranks if r.exit_code is not None})
    if codes:
        return f"exit {', '.join(map(str, codes))}"
    return "stopped" if served(run) else "never ready"


def _best(loads: Iterable[Load], run: Run) -> tuple[str, str]:
    """The highest rate of a run's load tests, and at how many streams it was."""
    mine = [load for load in loads if load.run_id == run.run_id]
    if not mine:
        return "-", "-"
    best = max(mine, key=lambda load: load.output_tokens_per_second)
    return f"{best.output_tokens_per_second:,.0f}", f"{best.concurrency:,}"


def _layers(rank: Rank) -> str:
    return "-" if rank.layers is None else f"{rank.layers[0]}-{rank.layers[1] - 1}"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:,.1f} s"


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / MIB:,.1f}"


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
