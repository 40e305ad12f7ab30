"""What each kind of criterion looks at in a record: a share of its points and the reason, one function per kind.

A share of None leaves the points to a person. Wherever points are lost the reason says what was found and what was
wanted; what to do about it is the criterion's ``advice``, or the kind's own from ``ADVICE``.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from localai_clusters.checkpoint import Checkpoint, Finding, Run, plain_text
from localai_clusters.checkpoint.comparing import first_answers
from localai_clusters.checkpoint.runs_consistency import served
from localai_clusters.grading import rubric as r
from localai_clusters.grading.own_prompts import own_prompts
from localai_clusters.grading.results import BY_HAND, FULL, NONE, PART, CriterionResult

BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 10**3, "MB": 10**6, "GB": 10**9}
LONGEST_REASON = 600  # characters
Marked = tuple[float | None, str]


@dataclass(frozen=True)
class Evidence:
    """What criteria are held against: the record, what in it contradicts itself, and its replay if there was one."""

    record: Checkpoint
    findings: tuple[Finding, ...]
    replay: Mapping[str, Any] | None = None  # {"outcome": "confirmed" | "refuted" | "not replayable", "reason": ...}
    key: str | None = None  # the course's, from which prompts are drawn; None: LAC_COURSE_KEY or the public default

    @cached_property
    def served(self) -> list[Run]:
        return [run for run in self.record.runs if served(run)]

    @cached_property
    def answers(self) -> dict[str, dict[int, tuple[int, ...]]]:
        """The first answer's tokens by run and prompt; one without tokens is none."""
        found: dict[str, dict[int, tuple[int, ...]]] = defaultdict(dict)
        for (run_id, index), tokens in first_answers(self.record.observed.completions).items():
            if tokens:
                found[run_id][index] = tokens
        return found

    def served_runs(self, wanted: r.RunFilter) -> list[Run]:
        return [run for run in self.served if wanted.matches(run)]


def mark(criterion: r.Criterion, evidence: Evidence) -> CriterionResult:
    """Points for one criterion, rounded to hundredths. The reason is safe to print: parts of it may be a student's."""
    share, reason = KINDS[type(criterion)](criterion, evidence)
    if not (reason.isascii() and reason.isprintable() and len(reason) <= LONGEST_REASON):
        reason = plain_text(reason, LONGEST_REASON)
    if share is None:
        return CriterionResult(criterion.id, criterion.title, None, criterion.points, BY_HAND, reason)
    status = FULL if share >= 1 else PART if share > 0 else NONE
    if share < 1:
        reason = f"{reason}. {criterion.advice or ADVICE[type(criterion)]}"
    points = round(criterion.points * min(max(share, 0.0), 1.0), 2)
    return CriterionResult(criterion.id, criterion.title, points, criterion.points, status, reason)


def consistent(criterion: r.Consistent, evidence: Evidence) -> Marked:
    broken = [finding for finding in evidence.findings if finding.severity == "wrong"]
    if not broken:
        return 1.0, "the record agrees with itself"
    return 0.0, f"{counted(len(broken), 'contradiction')}; the first: {broken[0].field}: {broken[0].sentence}"


def was_served(criterion: r.Served, evidence: Evidence) -> Marked:
    runs = evidence.served_runs(criterion.run)
    whole = [run for run in runs if len(run.ranks) == run.plan.nnodes * run.plan.nproc_per_node]
    if whole:
        ranks = counted(len(whole[0].ranks), "rank")
        return 1.0, f"run {whole[0].run_id} served on {ranks} after {whole[0].seconds_to_ready:.1f} s"
    if runs:
        return 0.0, f"run {runs[0].run_id} served, and {len(runs[0].ranks)} of its ranks are listed"
    return 0.0, no_such_run(criterion.run, evidence)


def answered(criterion: r.Answered, evidence: Evidence) -> Marked:
    ids = {run.run_id for run in evidence.served_runs(criterion.run)}
    if not ids:
        return 0.0, no_such_run(criterion.run, evidence)
    record = evidence.record
    answered = {
        completion.prompt_index
        for completion in record.observed.completions
        if completion.run_id in ids and len(completion.token_ids) >= criterion.tokens
    }
    texts = {record.data.prompts[index].text for index in answered if index < len(record.data.prompts)}
    if not criterion.own:
        return len(texts) / criterion.prompts, (
            f"{counted(len(texts), 'prompt')} of {criterion.prompts} answered with {criterion.tokens} tokens or more"
        )
    found = own_prompts(record.student, record.lab, texts, evidence.key)
    # Two draws can come out as the same words: who answered all of the first draws has answered enough.
    share = 1.0 if found.first_answered >= criterion.prompts else len(found.own) / criterion.prompts
    reason = f"{len(found.own)} of {criterion.prompts} prompts drawn for {record.student} answered"
    if share < 1 and found.foreign:
        # Not 0: the student may have recorded with another course key than this grading has.
        return None, (
            f"{reason}; {counted(len(found.foreign), 'prompt')} with words that are not this student's, "
            f"such as {min(found.foreign)!r}: were they drawn with another course key, or for somebody else?"
        )
    return share, reason


def same_tokens(criterion: r.SameTokens, evidence: Evidence) -> Marked:
    runs, references = evidence.served_runs(criterion.run), evidence.served_runs(criterion.reference)
    for wanted, found in ((criterion.run, runs), (criterion.reference, references)):
        if not found:
            return 0.0, no_such_run(wanted, evidence)
    answers = evidence.answers
    best: Marked = (0.0, "the two runs answered no prompt in common")
    for run in runs:
        for reference in references:
            if run.run_id == reference.run_id:
                continue
            a, b = answers.get(run.run_id, {}), answers.get(reference.run_id, {})
            common = a.keys() & b.keys()
            if not common:
                continue
            equal = sum(a[index] == b[index] for index in common)
            share = min(equal / len(common) / (criterion.at_least or 1), len(common) / criterion.prompts, 1.0)
            said = f"{equal} of {len(common)} prompts have the same tokens in {run.run_id} and {reference.run_id}"
            if len(common) < criterion.prompts:
                said += f"; asked for: {criterion.prompts}"
            if share > best[0] or not best[0]:
                best = share, said
            if share == 1:
                return best
    return best


def memory_measured(criterion: r.MemoryMeasured, evidence: Evidence) -> Marked:
    runs = evidence.served_runs(criterion.run)
    if not runs:
        return 0.0, no_such_run(criterion.run, evidence)
    best: Marked = (-1.0, "")
    for run in runs:
        right, said = 0, []
        for rank in run.ranks:
            weights = rank.memory.weights_bytes
            if weights.measured is None or weights.predicted is None:
                missing = "not measured" if weights.measured is None else "not predicted"
                said.append(f"rank {rank.rank}'s weights were {missing}")
            elif abs(weights.measured - weights.predicted) > criterion.tolerance * weights.predicted:
                said.append(f"rank {rank.rank} held {weights.measured:,} bytes, predicted were {weights.predicted:,}")
            else:
                right += 1
        total = max(len(run.ranks), 1)
        reason = f"the weights of {right} of {counted(len(run.ranks), 'rank')} are as predicted"
        if right / total > best[0]:
            best = right / total, "; ".join([reason, *said[:1]])
    return best


def memory_spread(criterion: r.MemorySpread, evidence: Evidence) -> Marked:
    runs = evidence.served_runs(criterion.run)
    if not runs:
        return 0.0, no_such_run(criterion.run, evidence)
    said = ""
    for run in runs:
        held = [rank.memory.weights_bytes.measured for rank in run.ranks]
        if len(held) < 2 or not all(held):
            said = said or f"run {run.run_id} does not say what each of several ranks held"
            continue
        ratio = max(held) / min(held)
        said = f"the largest rank of {run.run_id} held {ratio:.2f} times the smallest one's weights"
        if ratio <= criterion.at_most:
            return 1.0, said
        said += f", and at most {criterion.at_most:g} times is asked for"
    return 0.0, said


def load_tested(criterion: r.LoadTested, evidence: Evidence) -> Marked:
    runs = {run.run_id for run in evidence.served_runs(criterion.run)}
    if not runs:
        return 0.0, no_such_run(criterion.run, evidence)
    loads = [load for load in evidence.record.observed.load if load.run_id in runs]
    said = "no load test of it is recorded"
    for load in loads:
        said = (
            f"{load.requests} requests, {load.concurrency} at a time: {load.output_tokens_per_second:.1f} tokens/s, "
            f"{load.failed_requests} failed"
        )
        enough = load.concurrency >= criterion.concurrency and load.requests >= criterion.requests
        if enough and load.failed_requests <= criterion.failed * load.requests:
            return 1.0, said
    wanted = f"{criterion.requests} requests, {criterion.concurrency} at a time, are asked for"
    return 0.0, f"{said}; {wanted}" if loads else said


def sweep(criterion: r.Sweep, evidence: Evidence) -> Marked:
    done, missing = 0, []
    for split in criterion.splits:
        runs = {run.run_id for run in evidence.served_runs(split)}
        tried = {load.concurrency for load in evidence.record.observed.load if load.run_id in runs}
        lacking = [str(number) for number in criterion.concurrency if number not in tried]
        done += not lacking
        if lacking:
            missing.append(f"{split} lacks {', '.join(lacking)} at a time")
    reason = f"{done} of {counted(len(criterion.splits), 'split')} were load-tested"
    return done / len(criterion.splits), "; ".join([reason, *missing[:2]])


def refused(criterion: r.Refused, evidence: Evidence) -> Marked:
    by_id = {run.run_id: run for run in evidence.record.runs}
    for verdict in evidence.record.preflight:
        run = by_id.get(verdict.run_id)
        fits = criterion.run.matches(run) if run else criterion.run.is_any
        if verdict.verdict == "fail" and fits and criterion.check in (None, verdict.check):
            return 1.0, f"preflight refused it: {verdict.check}: {verdict.message}"
    if criterion.check is None:
        for run in evidence.record.runs:
            if run.started_at is not None and not served(run) and criterion.run.matches(run):
                return 1.0, f"run {run.run_id} was launched and did not serve"
    wanted = f"the check {criterion.check!r} refused" if criterion.check else "was refused or failed"
    return 0.0, f"no plan ({criterion.run}) that {wanted} is recorded"


def recorded(criterion: r.Recorded, evidence: Evidence) -> Marked:
    missing = [name for name in criterion.fields if not is_recorded(evidence.record, name)]
    right = len(criterion.fields) - len(missing)
    reason = f"{right} of {len(criterion.fields)} facts are recorded"
    return right / len(criterion.fields), reason + (f"; {', '.join(missing)} is empty" if missing else "")


def constraints(criterion: r.Constraints, evidence: Evidence) -> Marked:
    own = {c.sentence.strip() for c in evidence.record.constraints if c.source == "student"}
    long_enough = [sentence for sentence in own if len(sentence.split()) >= criterion.words]
    reason = f"{counted(len(long_enough), 'sentence')} of your own with {criterion.words} words or more"
    return len(long_enough) / criterion.sentences, f"{reason}; asked for: {criterion.sentences}"


def number_answer(criterion: r.NumberAnswer, evidence: Evidence) -> Marked:
    given = evidence.record.answers.get(criterion.answer)
    if given is None:
        return 0.0, f"the answer {criterion.answer} is not there"
    given = number_in(given, criterion.unit)
    if given is None:
        return 0.0, f"the answer {criterion.answer} is not a number"
    expected = criterion.expected if criterion.measured is None else measured_figure(criterion, evidence)
    if expected is None:
        return 0.0, f"the record does not hold the figure that {criterion.answer} is compared with"
    unit = f" {criterion.unit}" if criterion.unit else ""
    off = abs(given - expected)
    if off <= criterion.tolerance * abs(expected):
        return 1.0, f"{given:g}{unit}, within {criterion.tolerance:.0%} of what it should be"
    # Not how far off it is: that would give the number away.
    return 0.0, f"{given:g}{unit} is {'too large' if given > expected else 'too small'}"


def number_in(given: Any, unit: str) -> float | None:
    """A number, or a text that is one: 1,234.5 and 0,5 and 273 MiB; None for anything else."""
    if isinstance(given, bool):
        return None
    if isinstance(given, str):
        text = given.strip()
        if unit and text.casefold().endswith(unit.casefold()):
            text = text[: -len(unit)].strip()
        if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", text):
            text = text.replace(",", "")
        elif re.fullmatch(r"[+-]?\d+,\d+", text):
            text = text.replace(",", ".")
        try:
            given = float(text)
        except ValueError:
            return None
    return float(given) if math.isfinite(given) else None


def measured_figure(criterion: r.NumberAnswer, evidence: Evidence) -> float | None:
    """What the first such run's rank measured, in the criterion's unit."""
    for run in evidence.served_runs(criterion.run):
        for rank in run.ranks:
            if rank.rank == criterion.rank:
                held = getattr(rank.memory, criterion.measured)
                found = held if criterion.measured == "resident_bytes" else held.measured
                if found is not None:
                    return found / BYTES[criterion.unit]
    return None


def choice_answer(criterion: r.ChoiceAnswer, evidence: Evidence) -> Marked:
    given = evidence.record.answers.get(criterion.answer)
    if given is None:
        return 0.0, f"the answer {criterion.answer} is not there"
    if any(same_choice(given, right) for right in criterion.right):
        return 1.0, "right"
    if any(same_choice(given, half) for half in criterion.half):
        return 0.5, "half right"
    return 0.0, f"{str(given)[:80]!r} is not it"


def same_choice(given: Any, meant: Any) -> bool:
    if isinstance(given, bool) or isinstance(meant, bool):
        return given is meant
    return str(given).strip().casefold() == str(meant).strip().casefold()


def text_answer(criterion: r.TextAnswer, evidence: Evidence) -> Marked:
    given = evidence.record.answers.get(criterion.answer)
    words = len(given.split()) if isinstance(given, str) else 0
    if words < criterion.words:
        return 0.0, f"the answer {criterion.answer} has {counted(words, 'word')}; asked for: {criterion.words}"
    return None, f"a text of {counted(words, 'word')} to be read" + (f": {criterion.guide}" if criterion.guide else "")


def exercise_done(criterion: r.ExerciseDone, evidence: Evidence) -> Marked:
    outcome = next((each for each in evidence.record.exercises if each.id == criterion.exercise), None)
    if outcome is None or outcome.status == "not-tried":
        return 0.0, f"the exercise {criterion.exercise} was not tried"
    if outcome.status == "by-hand":
        return None, f"the exercise {criterion.exercise} is a text to be read"
    tries = f"after {counted(outcome.attempts, 'try', 'tries')} and {counted(outcome.hints, 'hint')}"
    if outcome.status == "wrong":
        return 0.0, f"the last answer to {criterion.exercise} was wrong, {tries}"
    if outcome.solution_shown:
        return criterion.after_solution, f"{criterion.exercise} is right, and its solution had been looked up"
    return 1.0, f"right {tries}"


def broken(criterion: r.Broken, evidence: Evidence) -> Marked:
    tried = [failure for failure in evidence.record.observed.failures if failure.name == criterion.failure]
    fits = [failure for failure in tried if criterion.how in (None, failure.how)]
    if not fits:
        found = f"{tried[0].how}; asked for: {criterion.how}" if tried else "no such experiment is recorded"
        return 0.0, f"{criterion.failure}: {found}"
    ids = {run.run_id for run in evidence.served}
    repaired = [failure for failure in fits if failure.repaired_run_id in ids]
    failure = (repaired or fits)[0]
    said = f"{failure.how} after {failure.seconds:.1f} s: {failure.cause}"
    if not criterion.repaired:
        return 1.0, said
    return (1.0, f"{said}; run {failure.repaired_run_id} served") if repaired else (0.5, f"{said}; it was not repaired")


def watched(criterion: r.Watched, evidence: Evidence) -> Marked:
    runs = evidence.served_runs(criterion.run)
    if not runs:
        return 0.0, no_such_run(criterion.run, evidence)
    most, said = 0.0, f"{criterion.quantity} was not watched over time"
    for run in runs:
        lines = [
            line
            for line in evidence.record.observed.timelines
            if (line.run_id, line.quantity) == (run.run_id, criterion.quantity)
        ]
        long_enough = [line for line in lines if len(line.values) >= criterion.samples]
        if any(line.rank is None for line in long_enough):
            share, whose = 1.0, "the server"
        else:
            ranks = {line.rank for line in long_enough} & {rank.rank for rank in run.ranks}
            share, whose = len(ranks) / max(len(run.ranks), 1), counted(len(ranks), "rank")
        if lines and share >= most:
            most, said = share, f"{criterion.quantity} of {whose} watched, {criterion.samples} times or more"
    return most, said


def traffic_counted(criterion: r.TrafficCounted, evidence: Evidence) -> Marked:
    runs = {run.run_id for run in evidence.served_runs(criterion.run)}
    if not runs:
        return 0.0, no_such_run(criterion.run, evidence)
    counts = [each for each in evidence.record.observed.traffic if each.run_id in runs and each.output_tokens]
    settings = {(each.rate_mbit, each.delay_ms) for each in counts if each.bytes_sent}
    said = f"bytes were counted with {counted(len(settings), 'setting')} of the link; asked for: {criterion.settings}"
    return min(len(settings) / criterion.settings, 1.0), said


def replayed(criterion: r.Replay, evidence: Evidence) -> Marked:
    if evidence.replay is None:
        return None, "not replayed yet: grade --replay"
    outcome, reason = evidence.replay["outcome"], evidence.replay["reason"]
    return {"confirmed": 1.0, "refuted": 0.0}.get(outcome), f"{outcome}: {reason}"


def is_recorded(record: Checkpoint, name: str) -> bool:
    value: Any = record
    for part in name.split("."):
        value = getattr(value, part, None)
        if value is None:
            return False
    return value not in ("", (), {})


def no_such_run(wanted: r.RunFilter, evidence: Evidence) -> str:
    tried = [run for run in evidence.record.runs if wanted.matches(run)]
    if tried:
        return f"run {tried[0].run_id} ({wanted}) never became ready"
    return f"no run with {wanted} is recorded"


def counted(number: int, noun: str, several: str = "") -> str:
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"


KINDS: dict[type[r.Criterion], Callable[[Any, Evidence], Marked]] = {
    r.Consistent: consistent,
    r.Served: was_served,
    r.Answered: answered,
    r.SameTokens: same_tokens,
    r.MemoryMeasured: memory_measured,
    r.MemorySpread: memory_spread,
    r.LoadTested: load_tested,
    r.Sweep: sweep,
    r.Refused: refused,
    r.Recorded: recorded,
    r.Constraints: constraints,
    r.NumberAnswer: number_answer,
    r.ChoiceAnswer: choice_answer,
    r.TextAnswer: text_answer,
    r.ExerciseDone: exercise_done,
    r.Broken: broken,
    r.Watched: watched,
    r.TrafficCounted: traffic_counted,
    r.Replay: replayed,
}

ADVICE: dict[type[r.Criterion], str] = {
    r.Consistent: "Record the lab again, and hand in the file as it was written",
    r.Served: "Serve that plan and give the server to record(servers=[...])",
    r.Answered: "Ask the prompts of prompts_for(student, lab) with server.chat(...) before the server is stopped",
    r.SameTokens: "Ask both servers the same prompts, with dtype float32",
    r.MemoryMeasured: "Call server.memory() while the server runs, then record()",
    r.MemorySpread: "Split the model with that plan, and call server.memory() while it runs",
    r.LoadTested: "Call server.bench(concurrency=..., requests=...) on that server before record()",
    r.Sweep: "Call server.bench(concurrency=...) on a server of each split",
    r.Refused: "Run preflight or serve on that plan, and give what came of it to record()",
    r.Recorded: "Run the lab where that is known, and record it again",
    r.Constraints: "Write them into record(constraints=[...])",
    r.NumberAnswer: "Work it out again and put it into record(answers={...})",
    r.ChoiceAnswer: "Look again at what you saw, and put your answer into record(answers={...})",
    r.TextAnswer: "Put it into record(answers={...})",
    r.ExerciseDone: "Try it again in the notebook, run its last cell, and hand in the new record",
    r.Broken: "Run that experiment in the notebook, repair it, and run the last cell again",
    r.Watched: "Use server.watch() while the server answers, and give its timelines() to record()",
    r.TrafficCounted: "Count with lac.traffic(...) at several speeds of the link, and give what it counted to record()",
    r.Replay: "Record the lab again with the model and the answers as they are",
}
