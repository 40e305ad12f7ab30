"""Does a record agree with itself? One small function per topic.

This shows consistency, not honesty: whoever can edit the file can edit the digest.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from . import runs_consistency
from .building import digest_holds, text_sha256
from .comparing import first_answers, first_difference
from .finding import Finding, note, wrong
from .record import Checkpoint
from .runs_consistency import served

NEEDED_CONSTRAINTS = ("model-size", "backend", "available-memory")
RATE_TOLERANCE = 0.02  # of tokens / seconds: both are rounded
PAYLOAD_TOLERANCE = 0.5  # of the payload predicted, below which what was counted is doubtful


def verify(checkpoint: Checkpoint) -> list[Finding]:
    """Everything in the record that contradicts something else in it, in its order."""
    return [finding for check in CHECKS for finding in check(checkpoint)]


def _digest(record: Checkpoint) -> Iterator[Finding]:
    if not digest_holds(record):
        yield wrong("digest", "it is not the digest of this content: a field was changed")


def _evidence(record: Checkpoint) -> Iterator[Finding]:
    kinds = {rank.device.kind for run in record.runs for rank in run.ranks}
    level = "cuda" if "cuda" in kinds else "cpu" if kinds else "dry-run"
    claimed = record.evidence
    if claimed.level != level:
        yield wrong("evidence.level", f"it says {claimed.level}, the ranks' devices say {level}")
    nodes = max((len({r.node_rank for r in run.ranks}) for run in record.runs), default=0)
    ranks = max((len(run.ranks) for run in record.runs), default=0)
    for name, said, found in (
        ("nodes", claimed.nodes, nodes),
        ("ranks", claimed.ranks, ranks),
    ):
        if said != found:
            yield wrong(f"evidence.{name}", f"it says {said}, the largest run has {found}")


def _versions(record: Checkpoint) -> Iterator[Finding]:
    versions = record.versions
    needed = ["python", "os", "localai_clusters"]
    if record.evidence.level != "dry-run":
        needed += ["vllm", "torch", "transformers"]
    if record.evidence.level == "cuda":
        needed += ["cuda", "driver"]
    for name in needed:
        if not (getattr(versions, name) or "").strip():
            yield wrong(f"versions.{name}", "it is empty")


def _names(record: Checkpoint) -> Iterator[Finding]:
    """Every run that is spoken of exists, once."""
    counts = Counter(run.run_id for run in record.runs)
    for run_id, count in counts.items():
        if count > 1:
            yield wrong("runs", f"{count} runs have the run_id {run_id}")
    observed = record.observed
    for field, run_id in (
        *((f"preflight[{i}].run_id", p.run_id) for i, p in enumerate(record.preflight)),
        *(
            (f"observed.{kind}[{i}].run_id", item.run_id)
            for kind in ("completions", "load", "timelines", "traffic")
            for i, item in enumerate(getattr(observed, kind))
        ),
        *(
            (f"observed.failures[{i}].repaired_run_id", item.repaired_run_id)
            for i, item in enumerate(observed.failures)
        ),
        *(
            (f"observed.comparisons[{i}].{side}", getattr(item, side))
            for i, item in enumerate(observed.comparisons)
            for side in ("run_a", "run_b")
        ),
    ):
        if run_id is not None and run_id not in counts:
            yield wrong(field, f"there is no run {run_id}")


def _data(record: Checkpoint) -> Iterator[Finding]:
    for i, prompt in enumerate(record.data.prompts):
        if prompt.sha256 != text_sha256(prompt.text):
            yield wrong(
                f"data.prompts[{i}].sha256",
                "it is not the SHA-256 of the prompt's text",
            )
    if not record.data.weights_sha256 and record.evidence.level != "dry-run":
        yield note("data.weights_sha256", "nothing says which weights were served")


def _completions(record: Checkpoint) -> Iterator[Finding]:
    ready = {run.run_id for run in record.runs if served(run)}
    silent = {run.run_id for run in record.runs} - ready
    for i, completion in enumerate(record.observed.completions):
        at = f"observed.completions[{i}]"
        if completion.run_id in silent:
            yield wrong(at, f"run {completion.run_id} never became ready")
        if completion.prompt_index >= len(record.data.prompts):
            yield wrong(
                f"{at}.prompt_index",
                f"it is {completion.prompt_index}; there are {len(record.data.prompts)} prompts, counted from 0",
            )
        if not completion.token_ids:
            yield wrong(f"{at}.token_ids", "no token was generated")
        if completion.logprobs is None:
            continue
        if len(completion.logprobs) != len(completion.token_ids):
            yield wrong(
                f"{at}.logprobs",
                f"{len(completion.logprobs)} for {len(completion.token_ids)} tokens",
            )
        if max(completion.logprobs, default=0.0) > 0:
            yield wrong(f"{at}.logprobs", "the logarithm of a probability is <= 0")


def _comparisons(record: Checkpoint) -> Iterator[Finding]:
    answers = first_answers(record.observed.completions)
    for i, said in enumerate(record.observed.comparisons):
        at = f"observed.comparisons[{i}]"
        a = answers.get((said.run_a, said.prompt_index))
        b = answers.get((said.run_b, said.prompt_index))
        if a is None or b is None:
            yield wrong(at, f"not both runs have a completion of prompt {said.prompt_index}")
            continue
        differ = first_difference(a, b)
        if (said.tokens_equal, said.first_difference) != (differ is None, differ):
            found = "all tokens are equal"
            if differ is not None:
                found = f"they part at token {differ}"
            yield wrong(at, f"the completions say otherwise: {found}")


def _load(record: Checkpoint) -> Iterator[Finding]:
    silent = {run.run_id for run in record.runs if not served(run)}
    for i, load in enumerate(record.observed.load):
        at = f"observed.load[{i}]"
        if load.run_id in silent:
            yield wrong(at, f"run {load.run_id} never became ready")
        for name in ("requests", "output_tokens", "seconds"):
            if getattr(load, name) <= 0:
                yield wrong(f"{at}.{name}", "a load test has more than 0")
        if load.failed_requests > load.requests:
            yield wrong(f"{at}.failed_requests", "more failed than were sent")
        if load.seconds > 0:
            rate = load.output_tokens / load.seconds
            if abs(load.output_tokens_per_second - rate) > RATE_TOLERANCE * rate:
                yield wrong(
                    f"{at}.output_tokens_per_second",
                    f"it is {load.output_tokens_per_second:,.1f}; "
                    f"{load.output_tokens:,} tokens in {load.seconds:.2f} s are "
                    f"{rate:,.1f}",
                )


def _timelines(record: Checkpoint) -> Iterator[Finding]:
    for i, line in enumerate(record.observed.timelines):
        at = f"observed.timelines[{i}]"
        if len(line.seconds) != len(line.values):
            yield wrong(at, f"{len(line.seconds)} times for {len(line.values)} values")
        if any(later < earlier for earlier, later in pairwise(line.seconds)):
            yield wrong(f"{at}.seconds", "they are not in order")
        if line.capacity is not None and max(line.values, default=0) > line.capacity:
            yield wrong(f"{at}.values", f"{max(line.values):,} {line.unit} of {line.capacity:,} that there can be")


def _traffic(record: Checkpoint) -> Iterator[Finding]:
    plans = {run.run_id: run.plan for run in record.runs}
    for i, traffic in enumerate(record.observed.traffic):
        at, plan = f"observed.traffic[{i}]", plans.get(traffic.run_id)
        if plan and len(traffic.bytes_sent) != plan.nnodes:
            yield wrong(f"{at}.bytes_sent", f"of {len(traffic.bytes_sent)} nodes; the plan has {plan.nnodes}")
        least = (traffic.predicted_bytes_per_token or 0) * traffic.output_tokens
        if traffic.bytes_sent and max(traffic.bytes_sent) < PAYLOAD_TOLERANCE * least:
            sent = f"the busiest node sent {max(traffic.bytes_sent):,} bytes"
            yield note(at, f"{sent}; {traffic.output_tokens:,} tokens carry {least:,} bytes of payload by prediction")


def _exercises(record: Checkpoint) -> Iterator[Finding]:
    for exercise_id, count in Counter(outcome.id for outcome in record.exercises).items():
        if count > 1:
            yield wrong("exercises", f"{exercise_id} stands there {count} times")


def _constraints(record: Checkpoint) -> Iterator[Finding]:
    stated = {c.kind for c in record.constraints if c.sentence.strip()}
    for kind in NEEDED_CONSTRAINTS:
        if kind not in stated:
            yield wrong("constraints", f"none of the kind {kind} is stated")


def _preflight(record: Checkpoint) -> Iterator[Finding]:
    ready = {run.run_id for run in record.runs if served(run)}
    for i, check in enumerate(record.preflight):
        if check.verdict == "fail" and check.run_id in ready:
            yield note(
                f"preflight[{i}]",
                f"{check.check} failed, yet run {check.run_id} served",
            )


CHECKS = (
    _digest,
    _evidence,
    _versions,
    _names,
    *runs_consistency.CHECKS,
    _data,
    _completions,
    _comparisons,
    _load,
    _timelines,
    _traffic,
    _exercises,
    _constraints,
    _preflight,
)
