"""Replay: which records it accepts and refuses, and how fast it is beside generating the answers anew.

    python -m bench.replay make FOLDER                        # records of every setting, about 10 minutes on two cores
    python -m bench.replay make FOLDER --only float32-tp2
    python -m bench.replay table FOLDER                       # honest and changed records through replay, kind by kind
    python -m bench.replay speed FOLDER                       # records a minute, and the ratio to generating anew

``make`` serves the built-in model and records what students' four prompts give, in 24 to 48 tokens. What is made in the
settings that are not honest (sampled, other weights) is claimed to be by ``table``, which also edits honest records in
the ways of bench/tampering.py.

``speed``: one server replays the records and answers their requests anew, each in as many tokens as were recorded. A
lab sends its prompts one after another (1 stream); with more streams a grader sends those of several records at once.
"""

import argparse
import asyncio
import functools
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from bench.tampering import EDITS, Forger, claimed, with_token, without_logprobs
from bench.weights import with_noise
from localai_clusters.checkpoint import Checkpoint, Completion, Prompt, read
from localai_clusters.grading.replay import replay_on, stage_for
from localai_clusters.grading.replay_record import Replayed, Stage, lengths_of, replay_record
from localai_clusters.grading.replay_rules import CONFIRMED, REFUTED
from localai_clusters.grading.replay_server import Ask, once, talk
from localai_clusters.models import find
from localai_clusters.plan import ServePlan
from localai_clusters.prompts import prompts_for
from localai_clusters.recording import record
from localai_clusters.server import Server, serve

LAB = "vllm_distributed_serving"
BUILT_IN = "smollm2-135m"
SPLITS = {"tp1": {}, "tp2": {"tensor_parallel_size": 2}, "pp2": {"pipeline_parallel_size": 2}}
DTYPES = ("float32", "bfloat16")
SECOND_CHOICES = {
    "a token changed to the model's second choice": False,
    "the same, where the choices are nearest": True,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """How records are made. ``noise`` is the relative change of every weight."""

    dtype: str
    split: str = "tp1"
    temperature: float = 0.0
    noise: float = 0.0
    students: int = 34


HONEST = {f"{dtype}-{split}": Setting(dtype, split) for dtype in DTYPES for split in SPLITS}
CLAIMED = {
    "float32-sampled": Setting("float32", temperature=0.7, students=12),
    "bfloat16-sampled": Setting("bfloat16", temperature=0.7, students=12),
    "float32-other-weights": Setting("float32", noise=0.01, students=12),
    "bfloat16-other-weights": Setting("bfloat16", noise=0.05, students=12),
}
CLAIMS = {
    "sampled": "sampled at temperature 0.7",
    "other-weights": "by another model (1 % or 5 % noise in its weights)",
}


def make(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        setting = (HONEST | CLAIMED)[name]
        with tempfile.TemporaryDirectory() as weights:
            model = str(with_noise(find(BUILT_IN).path, Path(weights), setting.noise)) if setting.noise else BUILT_IN
            plan = ServePlan(model=model, dtype=setting.dtype, max_model_len=512, port=0, master_port=0)
            with serve(plan.with_(**SPLITS[setting.split])) as server:
                make_records(server, setting, folder / name)


def make_records(server: Server, setting: Setting, folder: Path) -> None:
    """A record for each student, four students' prompts at a time; other students for each dtype."""
    numbers = range(DTYPES.index(setting.dtype) * 40, DTYPES.index(setting.dtype) * 40 + setting.students)
    with ThreadPoolExecutor(16) as pool:
        for four in (numbers[place : place + 4] for place in range(0, len(numbers), 4)):
            asked = [(number, prompt) for number in four for prompt in prompts_for(student(number), LAB)]
            answers = pool.map(
                lambda each: server.chat(each[1], max_tokens=24 + each[0] % 25, temperature=setting.temperature), asked
            )
            of_number = defaultdict(list)
            for (number, _), answer in zip(asked, answers, strict=True):
                of_number[number].append(answer)
            for number, completions in of_number.items():
                server.completions[:] = completions
                record(student=student(number), chapter=7, lab=LAB, servers=[server], folder=folder)


def student(number: int) -> str:
    return f"s{number:03}"


def records_in(folder: Path, name: str) -> list[Checkpoint]:
    found = [read(path) for path in sorted((folder / name).glob("*/*.json"))]
    if not found:
        raise SystemExit(f"no records in {folder / name}; type: python -m bench.replay make {folder} --only {name}")
    return found


def stage_of(records: Sequence[Checkpoint], dtype: str) -> Stage:
    return stage_for(
        find(BUILT_IN), ServePlan(dtype=dtype), max(length for one in records for length in lengths_of(one))
    )


@dataclass(frozen=True, slots=True)
class Case:
    kind: str
    record: Checkpoint
    honest: bool = False
    logprobs: bool = True


async def cases_of(ask: Ask, folder: Path, dtype: str, each: int, draw: random.Random) -> list[Case]:
    """Every honest record of one dtype, ``each`` of every kind of edit, with log probabilities and without, and the
    claimed ones."""
    honest = {name: records_in(folder, name) for name, setting in HONEST.items() if setting.dtype == dtype}
    cases = [Case(name, one, honest=True) for name, records in honest.items() for one in records]
    originals = [case.record for case in cases]
    forger = Forger(draw, Tokenizer.from_file(str(find(BUILT_IN).path / "tokenizer.json")), originals)
    changed = [(kind, edit(one, forger)) for kind, edit in EDITS.items() for one in draw.sample(originals, each)]
    for kind, nearest in SECOND_CHOICES.items():
        some = (second_choice(ask, one, forger, nearest) for one in draw.sample(originals, each))
        changed += [(kind, one) for one in await asyncio.gather(*some)]
    for name in CLAIMED:
        if CLAIMED[name].dtype == dtype:
            changed += [
                (CLAIMS[name.partition("-")[2]], claimed(one, originals[0])) for one in records_in(folder, name)
            ]
    cases += [Case(kind, one) for kind, one in changed]
    cases += [Case(kind, without_logprobs(one), logprobs=False) for kind, one in changed if "invented" not in kind]
    return cases


async def second_choice(ask: Ask, original: Checkpoint, forger: Forger, nearest: bool) -> Checkpoint:
    """What somebody can do who has the model: change one token to the model's second choice, at a place drawn by
    chance or where that is nearest to its first."""
    places = range(len(original.observed.completions))
    found = [
        (margin, place, at, token)
        for place in (places if nearest else [forger.draw.choice(places)])
        for at, (margin, token) in enumerate(await second_choices(ask, original, place))
    ]
    _, place, at, token = min(found) if nearest else forger.draw.choice(found)
    return with_token(original, place, at, token, forger)


async def second_choices(ask: Ask, original: Checkpoint, place: int) -> list[tuple[float, int]]:
    """(nats below the likeliest, token) for each token of a completion: the likeliest that is another."""
    completion = original.observed.completions[place]
    before = original.data.prompts[completion.prompt_index].token_ids
    sequence = [*before, *completion.token_ids]
    answer = await ask("/v1/completions", {"prompt": sequence, "max_tokens": 1, "prompt_logprobs": 2})
    found = []
    scores = answer["choices"][0]["prompt_logprobs"][len(before) :]
    for recorded, score in zip(completion.token_ids, scores, strict=True):
        logprobs = {int(token): each["logprob"] for token, each in score.items()}
        other = max(logprobs.keys() - {recorded}, key=logprobs.get)
        found.append((max(logprobs.values()) - logprobs[other], other))
    return found


async def replays_of(ask: Ask, stage: Stage, cases: Sequence[Case]) -> list[Replayed]:
    """Each case's replay; answers that several cases share are asked for once."""
    ask, found = once(ask), []
    for some in (cases[place : place + 16] for place in range(0, len(cases), 16)):
        found += await asyncio.gather(*(replay_record(ask, case.kind, case.record, stage) for case in some))
        print(f"\r{len(found)} of {len(cases)} records", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def table(folder: Path, each: int, seed: int, dtypes: Sequence[str]) -> list[dict]:
    """Every case with its replay, in the dtype it was made in."""
    rows = []
    for dtype in dtypes:
        stage = stage_of(records_in(folder, f"{dtype}-tp1"), dtype)
        with serve(stage.plan) as server:
            cases = talk(server.url, {}, lambda ask: cases_of(ask, folder, dtype, each, random.Random(seed)))  # noqa: B023
            replays = talk(server.url, {}, lambda ask: replays_of(ask, stage, cases))  # noqa: B023
        rows += [
            {"kind": case.kind, "dtype": dtype, "honest": case.honest, "logprobs": case.logprobs, **replayed.to_dict()}
            for case, replayed in zip(cases, replays, strict=True)
        ]
    return rows


def table_text(rows: Sequence[dict]) -> str:
    """Markdown: of each kind and dtype, how many records were confirmed and how many refuted."""
    lines = []
    for title, honest, logprobs in (
        ("honest", True, True),
        ("not honest", False, True),
        ("not honest, log probabilities left out", False, False),
    ):
        lines += [
            f"| {title} | {' | '.join(f'{dtype}: confirmed | refuted' for dtype in DTYPES)} |",
            "|---|" + "---:|" * 4,
        ]
        some = [row for row in rows if row["honest"] is honest and row["logprobs"] is logprobs]
        for kind in dict.fromkeys(row["kind"] for row in some):
            lines.append(f"| {kind} | {' | '.join(counts([row for row in some if row['kind'] == kind]))} |")
        lines += [f"| **all** | {' | '.join(counts(some))} |", ""]
    return "\n".join(lines)


def counts(rows: Sequence[dict]) -> Iterator[str]:
    for dtype in DTYPES:
        outcomes = [row["outcome"] for row in rows if row["dtype"] == dtype]
        for outcome in (CONFIRMED, REFUTED):
            yield f"{outcomes.count(outcome)} of {len(outcomes)}" if outcomes else ""


def chapters_in(folder: Path, dtype: str) -> list[Checkpoint]:
    """Records as the chapter makes them: a student's three splits in one."""
    by_student = defaultdict(list)
    for split in SPLITS:
        for one in records_in(folder, f"{dtype}-{split}"):
            by_student[one.student].append(one)
    return [joined(several) for several in by_student.values() if len(several) == len(SPLITS)]


def joined(records: Sequence[Checkpoint]) -> Checkpoint:
    """One record of several runs that answered the same prompts in the same order."""
    first = records[0]
    completions = tuple(completion for one in records for completion in one.observed.completions)
    observed = first.observed.model_copy(update={"completions": completions})
    return first.model_copy(update={"runs": tuple(run for one in records for run in one.runs), "observed": observed})


def speed(folder: Path, dtype: str, rounds: int, streams: Sequence[int]) -> dict:
    """Records a minute, of ``chapters_in``: replayed, and generated anew with so many requests at a time."""
    records = chapters_in(folder, dtype)
    stage = stage_of(records, dtype)
    found: dict[str, list[float]] = defaultdict(list)
    with serve(stage.plan) as server:
        for number in range(rounds + 1):  # the first one warms up
            for count in streams:
                some = records[: 1 + count // 4] if number else records[:1]  # 3 answers a stream, or more
                anew = functools.partial(generate, records=some, streams=count)
                found[f"anew/{count}"].append(per_minute(some, lambda: talk(server.url, {}, anew)))  # noqa: B023
            some = records if number else records[:1]
            found["replay"].append(per_minute(some, lambda: replay_all(server, stage, some)))  # noqa: B023
            print({name: round(figures[-1], 1) for name, figures in found.items()}, file=sys.stderr, flush=True)
    middle = {name: sorted(figures[1:])[rounds // 2] for name, figures in found.items()}
    answers = [len(one.observed.completions) for one in records]
    return {
        "dtype": dtype,
        "records": len(records),
        "answers_per_record": sum(answers) / len(answers),
        "records_per_minute": middle,
        "ratio": {name: middle["replay"] / figure for name, figure in middle.items() if name != "replay"},
    }


def per_minute(records: Sequence[Checkpoint], work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return 60 * len(records) / (time.perf_counter() - started)


def replay_all(server: Server, stage: Stage, records: Sequence[Checkpoint]) -> None:
    found: dict[int, Replayed] = {}
    replay_on(server, stage, [(one.student, one) for one in records], range(len(records)), found, lambda text: None)
    refuted = [str(replayed) for replayed in found.values() if replayed.outcome != CONFIRMED]
    if refuted:
        raise SystemExit("\n".join(refuted))


async def generate(ask: Ask, records: Sequence[Checkpoint], streams: int) -> None:
    waiting = ((one.data.prompts[c.prompt_index], c) for one in records for c in one.observed.completions)

    async def one_after_another() -> None:
        for prompt, completion in waiting:
            await ask("/v1/completions", request_of(prompt, completion))

    await asyncio.gather(*(one_after_another() for _ in range(streams)))


def request_of(prompt: Prompt, completion: Completion) -> dict:
    """The request that gives as many tokens as were recorded."""
    length = len(completion.token_ids)
    body = {"prompt": list(prompt.token_ids), "max_tokens": length, "ignore_eos": True}
    return body | {"temperature": 0, "logprobs": 0, "return_token_ids": True}


def speed_text(found: dict) -> str:
    """Markdown: records a minute, and how many times that replay does."""
    lines = [
        f"| {found['dtype']}, {found['answers_per_record']:.0f} answers a record | records a minute | replay does |",
        "|---|---:|---:|",
    ]
    lines.append(f"| replay | {found['records_per_minute']['replay']:.0f} | |")
    for name, ratio in found["ratio"].items():
        count = name.partition("/")[2]
        label = f"generated anew, {count} stream{'s' * (count != '1')}"
        lines.append(f"| {label} | {found['records_per_minute'][name]:.1f} | {ratio:.1f} times that |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "table", "speed"))
    parser.add_argument("folder", type=Path, help="of the records")
    parser.add_argument("--only", choices=[*HONEST, *CLAIMED], nargs="+", help="make: these settings")
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+", default=DTYPES, help="table, speed: records of these")
    parser.add_argument("--each", type=int, default=24, help="table: records of each kind and dtype")
    parser.add_argument("--seed", type=int, default=7, help="table: of what is changed where")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16], help="speed: requests at a time")
    parser.add_argument("--rounds", type=int, default=3, help="speed: medians are taken over these")
    parser.add_argument("--json", action="store_true", help="all figures")
    arguments = parser.parse_args()
    if arguments.what == "make":
        make(arguments.folder, arguments.only or [*HONEST, *CLAIMED])
    elif arguments.what == "table":
        rows = table(arguments.folder, arguments.each, arguments.seed, arguments.dtypes)
        print(json.dumps(rows, indent=1) if arguments.json else table_text(rows))
    else:
        found = [speed(arguments.folder, dtype, arguments.rounds, arguments.streams) for dtype in arguments.dtypes]
        print(json.dumps(found, indent=1) if arguments.json else "\n\n".join(map(speed_text, found)))


if __name__ == "__main__":
    main()
