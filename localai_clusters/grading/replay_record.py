"""One record's replay: which of its completions can be replayed, what the model makes of them, and the outcome."""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from localai_clusters.checkpoint import Checkpoint, Completion, Run, plain_text
from localai_clusters.checkpoint.summary import count, run_names
from localai_clusters.grading.replay_models import beyond_replay
from localai_clusters.grading.replay_rules import (
    CONFIRMED,
    NOT_REPLAYABLE,
    REFUTED,
    Reason,
    Seen,
    judge,
    judge_average,
    judge_ending,
    tolerance,
)
from localai_clusters.grading.replay_server import Ask, Refused, look
from localai_clusters.models import Model
from localai_clusters.plan import DTYPES, ServePlan
from localai_clusters.sizing import dtype_of

MOST_TOKENS = 100_000  # of one record, prompts included: a chapter's has 900, and a stranger's could take hours
MOST_REASONS = 20  # kept of one record: one of another model departs everywhere


@dataclass(frozen=True, slots=True)
class Stage:
    """What records are replayed on."""

    model: Model
    plan: ServePlan  # of the server
    special: frozenset[int]  # tokens that are no text
    ends: frozenset[int]  # tokens that end an answer

    @property
    def dtype(self) -> str:
        return dtype_of(self.plan, self.model.shape)


@dataclass(frozen=True, slots=True)
class Replayed:
    """A record's replay. Sentences are safe to print; they hold text from the record, so escape them in HTML."""

    path: str
    outcome: str  # CONFIRMED, REFUTED or NOT_REPLAYABLE
    reason: str
    reasons: tuple[Reason, ...] = ()
    model: str | None = None
    dtype: str | None = None  # that it was replayed in
    completions: int = 0  # that were replayed
    tokens: int = 0  # of them
    not_the_choice: int = 0  # greedy tokens to which the model prefers another, by however little
    largest_gap: float | None = None  # nats, over the greedy tokens
    largest_logprob_difference: float | None = None  # nats, recorded against replayed

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return "\n  ".join([f"{self.path}: {self.outcome}: {self.reason}", *(r.sentence for r in self.reasons[1:])])

    __repr__ = __str__


def not_replayable(path: object, why: str) -> Replayed:
    return Replayed(plain_text(str(path)), NOT_REPLAYABLE, why)


def lengths_of(record: Checkpoint) -> list[int]:
    """Tokens of each prompt with its completion."""
    prompts = [len(prompt.token_ids or ()) for prompt in record.data.prompts]
    return [
        prompts[completion.prompt_index] + len(completion.token_ids)
        for completion in record.observed.completions
        if completion.prompt_index < len(prompts)
    ]


def dtype_for(record: Checkpoint, model: Model) -> str:
    """What to replay a record in: float32 if any run was, which only float32 holds to its narrow tolerance."""
    found = [dtype_recorded(run, model) for run in record.runs]
    return "float32" if "float32" in found else next((dtype for dtype in found if dtype in DTYPES), "auto")


def dtype_recorded(run: Run, model: Model) -> str:
    return dtype_of(ServePlan(), model.shape) if run.plan.dtype == "auto" else run.plan.dtype


async def replay_record(ask: Ask, path: object, record: Checkpoint, stage: Stage) -> Replayed:
    """Ask the server of ``stage`` about every completion and judge it. Raises ``ServerGone``."""
    completions = record.observed.completions
    if not completions:
        return not_replayable(path, "the record holds no completion")
    if (tokens := sum(lengths_of(record))) > MOST_TOKENS:
        return not_replayable(path, f"the record holds {tokens:,} tokens, and at most {MOST_TOKENS:,} are replayed")
    names, reasons, places = names_of(record), [], []
    for place, completion in enumerate(completions):
        if why := why_not(record, completion, stage):
            reasons.append(Reason(NOT_REPLAYABLE, field(place), f"{names[place]}: {why}"))
        else:
            places.append(place)
    prompts = record.data.prompts
    looks = (look(ask, prompts[completions[i].prompt_index], completions[i], stage.special) for i in places)
    seen: dict[int, Seen] = {}
    for place, found in zip(places, await asyncio.gather(*looks, return_exceptions=True), strict=True):
        if isinstance(found, Refused):
            reasons.append(
                Reason(NOT_REPLAYABLE, field(place), f"{names[place]}: vLLM says {plain_text(str(found), 200)}")
            )
        elif isinstance(found, BaseException):
            raise found
        else:
            seen[place] = found
            reasons += verdicts(record, place, names[place], found, stage)
    reasons += averages(record, seen, stage)
    return summed_up(path, record, seen, reasons, stage)


def why_not(record: Checkpoint, completion: Completion, stage: Stage) -> str | None:
    """Why one completion cannot be replayed; None if it can."""
    run = next((run for run in record.runs if run.run_id == completion.run_id), None)
    if run is None or completion.prompt_index >= len(record.data.prompts):
        return "the record lacks its run or its prompt"
    prompt = record.data.prompts[completion.prompt_index]
    if not prompt.token_ids or not completion.token_ids:
        return "the record lacks its token ids" if completion.token_ids else "it has no tokens"
    if completion.temperature > 0 and not completion.logprobs:
        return f"it was sampled (temperature {completion.temperature:g}), and its log probabilities were not recorded"
    if run.plan.quantization != stage.plan.quantization:
        return f"it was served with quantization {plain_text(str(run.plan.quantization), 40)}"
    length = len(prompt.token_ids) + len(completion.token_ids)
    if stage.plan.max_model_len is not None and length >= stage.plan.max_model_len:
        return f"{length} tokens are more than the {stage.plan.max_model_len} of this replay"
    return beyond_replay(run, stage.model)


def verdicts(record: Checkpoint, place: int, name: str, seen: Seen, stage: Stage) -> Iterator[Reason]:
    completion = record.observed.completions[place]
    prompt = record.data.prompts[completion.prompt_index]
    run = next(run for run in record.runs if run.run_id == completion.run_id)
    limit = tolerance(dtype_recorded(run, stage.model), stage.dtype)
    yield from judge(field(place), name, prompt, completion, seen, limit, stage.ends)
    context_full = len(prompt.token_ids) + len(completion.token_ids) >= run.plan.max_model_len
    yield from judge_ending(field(place), name, completion, context_full, stage.ends)


def averages(record: Checkpoint, seen: Mapping[int, Seen], stage: Stage) -> Iterator[Reason]:
    names = run_names(record)
    for number, run in enumerate(record.runs):
        of_run = {p: found for p, found in seen.items() if record.observed.completions[p].run_id == run.run_id}
        limit = tolerance(dtype_recorded(run, stage.model), stage.dtype)
        yield from judge_average(f"runs[{number}]", names[run.run_id], apart(record, of_run), limit)


def apart(record: Checkpoint, seen: Mapping[int, Seen]) -> list[float]:
    """Nats between the recorded and the replayed log probability of every token that has both."""
    return [
        abs(said - token.logprob)
        for place, found in seen.items()
        for said, token in zip(record.observed.completions[place].logprobs or (), found.tokens, strict=False)
    ]


def summed_up(
    path: object, record: Checkpoint, seen: Mapping[int, Seen], reasons: list[Reason], stage: Stage
) -> Replayed:
    completions = record.observed.completions
    greedy = [
        token.gap for place, found in seen.items() if completions[place].temperature == 0 for token in found.tokens
    ]
    reasons.sort(key=lambda reason: reason.outcome != REFUTED)  # what refutes comes first
    outcome = reasons[0].outcome if reasons else CONFIRMED
    if not reasons and not greedy:
        reasons = [
            Reason(NOT_REPLAYABLE, "observed.completions", "every answer was sampled; replay confirms greedy ones")
        ]
        outcome = NOT_REPLAYABLE
    return Replayed(
        path=plain_text(str(path)),
        outcome=outcome,
        reason=sentence(outcome, reasons, seen, greedy, completions, stage),
        reasons=tuple(reasons[:MOST_REASONS]),
        model=stage.model.name,
        dtype=stage.dtype,
        completions=len(seen),
        tokens=sum(len(found.tokens) for found in seen.values()),
        not_the_choice=sum(gap > 0 for gap in greedy),
        largest_gap=_largest(greedy),
        largest_logprob_difference=_largest(apart(record, seen)),
    )


def _largest(figures: Sequence[float]) -> float | None:
    """Rounded: the same record gives the same figures, whatever was computed beside it."""
    return round(max(figures), 4) if figures and all(map(math.isfinite, figures)) else None


def sentence(
    outcome: str,
    reasons: Sequence[Reason],
    seen: Mapping[int, Seen],
    greedy: Sequence[float],
    completions: Sequence[Completion],
    stage: Stage,
) -> str:
    """The outcome in a sentence: what was found, or the first thing that is wrong and how many more there are."""
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    if outcome != CONFIRMED:
        return reasons[0].sentence + more
    sampled = sum(completions[place].temperature > 0 for place in seen)
    near = sum(gap > 0 for gap in greedy)
    parts = [
        f"{count(len(greedy), 'token')} of {count(len(seen) - sampled, 'answer')} are what {stage.model.name} says"
    ]
    if near:
        parts.append(f"{near} of them within rounding of its choice")
    if sampled:
        parts.append(f"{count(sampled, 'sampled answer')} held to the log probabilities alone")
    if more_than_asked := sum(not found.prompt_as_recorded for found in seen.values()):
        parts.append(f"the model saw more than the recorded prompt in {count(more_than_asked, 'answer')}")
    return "; ".join(parts)


def names_of(record: Checkpoint) -> list[str]:
    """What to call each completion."""
    runs = run_names(record)
    return [
        f"answer {place + 1} (prompt {completion.prompt_index + 1}, {runs.get(completion.run_id, 'no run')})"
        for place, completion in enumerate(record.observed.completions)
    ]


def field(place: int) -> str:
    return f"observed.completions[{place}]"
