"""The rubric of a lab: data in YAML that an instructor edits, and every mistake in it with its line.

    rubric: 1
    lab: vllm_distributed_serving
    chapter: 7
    evidence: cpu                    # the least that counts: dry-run, cpu or cuda
    deadline: 2026-12-14 23:59 +01:00
    late: {per_day: 10%, at_most: 50%}
    criteria:
      - id: tensor-parallel
        title: A server split over two ranks answered
        points: 2
        kind: served
        run: {tensor_parallel_size: 2}

What each kind looks at is in criteria.py; reading the file is in rubric_file.py.
"""

import re
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from localai_clusters.checkpoint import Checkpoint, Run
from localai_clusters.checkpoint.fields import Chapter, Identifier, Slug

EVIDENCE = ("dry-run", "cpu", "cuda")  # from the least to the most
MOST = 1_000_000  # of ranks, prompts, requests or whatever a rubric may ask for


def _share(value: Any) -> Any:
    """``10%`` and ``0.1`` as 0.1."""
    share = value
    if isinstance(value, str) and (found := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)):
        share = float(found[1]) / 100
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        meant = f"{share:g}%" if isinstance(share, int | float) and 1 < share <= 100 else "10% or 0.1"
        raise ValueError(f"a share is from 0% to 100%, or from 0 to 1; write {meant}")
    return float(share)


def _moment(value: Any) -> Any:
    if isinstance(value, int | float):  # 23:59 is a number in YAML
        raise ValueError("a number is not a time; write 2026-12-14 23:59 +01:00")
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(re.sub(r"\s+(?=[+-]\d\d:?\d\d$)", "", value.strip()))
        except ValueError:
            raise ValueError(f"{value!r} is not a time; write 2026-12-14 23:59 +01:00") from None
    if isinstance(value, date) and not isinstance(value, datetime):
        raise ValueError(f"{value} is a day and not a moment; write {value} 23:59 +01:00")
    if isinstance(value, datetime) and value.tzinfo is None:
        raise ValueError(f"{value} has no time zone; write {value:%Y-%m-%d %H:%M} +01:00, or Z for UTC")
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def _size(value: Any) -> Any:
    """``2`` as exactly 2, ``2+`` as 2 or more: (the least, the most)."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST:
        return value, value
    if isinstance(value, str) and (found := re.fullmatch(r"([1-9]\d{0,5})\+", value.strip())):
        return int(found[1]), MOST
    if isinstance(value, list | tuple) and len(value) == 2:  # as a rubric is passed on to another process
        return tuple(value)
    raise ValueError(f"{value!r} is not a size; write 2 for exactly 2, or 2+ for 2 or more")


def _choice(value: Any) -> Any:
    if isinstance(value, str | bool | int) and value != "":
        return value
    raise ValueError("a choice is a word, a whole number, true or false")


def _field_of_the_record(name: str) -> str:
    """A dotted name of the record's schema, through objects only."""
    model: Any = Checkpoint
    for part in name.split("."):
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            known = f"; there is {', '.join(fields)}" if fields else ""
            raise ValueError(f"the record has no field {name!r}{known}")
        model = fields[part].annotation
    return name


Share = Annotated[float, BeforeValidator(_share)]
Moment = Annotated[datetime, BeforeValidator(_moment)]
Count = Annotated[int, Field(strict=True, ge=1, le=MOST)]
Size = Annotated[tuple[int, int], BeforeValidator(_size)]
Points = Annotated[float, Field(strict=True, gt=0, le=1000)]
Words = Annotated[str, Field(min_length=1, max_length=2000)]
# Not a union: each wrong item would be as many mistakes as the union has kinds.
Choice = Annotated[Any, BeforeValidator(_choice)]
FieldName = Annotated[Words, AfterValidator(_field_of_the_record)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunFilter(Part):
    """Which runs of a record are meant: those whose plan has these values. Sizes may be ``2`` or ``2+``."""

    tensor_parallel_size: Size | None = None
    pipeline_parallel_size: Size | None = None
    nnodes: Size | None = None
    dtype: Words | None = None
    quantization: Words | None = None
    model: Words | None = None

    @cached_property
    def _wanted(self) -> tuple[tuple[str, Any], ...]:
        return tuple(
            (name, value) for name in self.__class__.model_fields if (value := getattr(self, name)) is not None
        )

    def matches(self, run: Run) -> bool:
        for name, wanted in self._wanted:
            found = getattr(run.plan, name)
            if not (wanted[0] <= found <= wanted[1] if isinstance(wanted, tuple) else wanted == found):
                return False
        return True

    @property
    def is_any(self) -> bool:
        return not self._wanted

    def __str__(self) -> str:
        short = {"tensor_parallel_size": "TP", "pipeline_parallel_size": "PP", "nnodes": "nodes"}
        said = []
        for name, wanted in self._wanted:
            if isinstance(wanted, tuple):
                wanted = f"{wanted[0]}{'' if wanted[0] == wanted[1] else ' or more'}"
            said.append(f"{short.get(name, name)}={wanted}")
        return ", ".join(said) or "any plan"


ANY_RUN = RunFilter()


class Criterion(Part):
    """What every kind has. ``advice`` is told to a student who loses points, in place of the kind's own words."""

    id: Identifier
    title: Words
    points: Points
    advice: Words | None = None


class Consistent(Criterion):
    """The record does not contradict itself (`checkpoint verify`)."""

    kind: Literal["consistent"]


class Served(Criterion):
    """A server of this plan became ready, on as many ranks as planned."""

    kind: Literal["served"]
    run: RunFilter = ANY_RUN


class Answered(Criterion):
    """Such a run answered at least this many of the prompts; partial credit by prompt.

    With ``own`` only prompts count that were drawn for this student (`prompts_for`).
    """

    kind: Literal["answered"]
    run: RunFilter = ANY_RUN
    prompts: Count = 4
    tokens: Count = 1
    own: bool = False


class SameTokens(Criterion):
    """Two runs gave the same tokens; full points from ``at_least`` of the prompts on, partial credit below.

    ``prompts`` is how many both must have answered.
    """

    kind: Literal["same-tokens"]
    run: RunFilter
    reference: RunFilter
    prompts: Count = 1
    at_least: Share = 1.0


class MemoryMeasured(Criterion):
    """Each rank's weights were measured and are what was predicted, within ``tolerance``; partial credit by rank."""

    kind: Literal["memory-measured"]
    run: RunFilter = ANY_RUN
    tolerance: Share = 0.1


class MemorySpread(Criterion):
    """The weights are spread: the largest rank holds at most ``at_most`` times the smallest one's bytes."""

    kind: Literal["memory-spread"]
    run: RunFilter
    at_most: Annotated[float, Field(ge=1, le=100)] = 1.2


class LoadTested(Criterion):
    """A load test of such a run; ``failed`` is the most requests that may fail."""

    kind: Literal["load-tested"]
    run: RunFilter = ANY_RUN
    concurrency: Count = 1
    requests: Count = 1
    failed: Share = 0.0


class Sweep(Criterion):
    """Load tests of several splits at the same concurrency; partial credit by split."""

    kind: Literal["sweep"]
    splits: Annotated[tuple[RunFilter, ...], Field(min_length=1, max_length=64)]
    concurrency: Annotated[tuple[Count, ...], Field(min_length=1, max_length=64)]


class Refused(Criterion):
    """A plan that preflight's ``check`` failed, or a launch that did not serve, as the exercise set out to see."""

    kind: Literal["refused"]
    check: Words | None = None
    run: RunFilter = ANY_RUN


class Recorded(Criterion):
    """Facts that stand in the record, by dotted name (versions.vllm); partial credit by fact."""

    kind: Literal["recorded"]
    fields: Annotated[tuple[FieldName, ...], Field(min_length=1, max_length=64)]


class Constraints(Criterion):
    """Sentences of the student's own on what the result depends on; partial credit by sentence."""

    kind: Literal["constraints"]
    sentences: Count = 1
    words: Count = 5


class NumberAnswer(Criterion):
    """A numeric answer: ``expected``, or a figure of the record itself (``measured``), within a tolerance."""

    kind: Literal["number"]
    answer: Identifier
    expected: Annotated[float, Field(strict=True)] | None = None
    measured: Literal["weights_bytes", "kv_cache_bytes", "resident_bytes"] | None = None
    run: RunFilter = ANY_RUN
    rank: Annotated[int, Field(strict=True, ge=0, le=4095)] = 0
    unit: Literal["", "B", "KiB", "MiB", "GiB", "kB", "MB", "GB", "s", "ms", "tokens", "tokens/s", "ranks"] = ""
    tolerance: Share = 0.05

    @model_validator(mode="after")
    def _one_source(self):
        if (self.expected is None) == (self.measured is None):
            raise ValueError("a number is compared with `expected` or with `measured`: give one of the two")
        if self.measured and self.unit not in ("B", "KiB", "MiB", "GiB", "kB", "MB", "GB"):
            raise ValueError(f"`measured` is in bytes: unit must be B, KiB, MiB, GiB, kB, MB or GB, not {self.unit!r}")
        return self


class ChoiceAnswer(Criterion):
    """An answer that is one of several: full points for those in ``right``, half for those in ``half``."""

    kind: Literal["choice"]
    answer: Identifier
    right: Annotated[tuple[Choice, ...], Field(min_length=1, max_length=64)]
    half: Annotated[tuple[Choice, ...], Field(max_length=64)] = ()


class TextAnswer(Criterion):
    """A free text, marked by a person; none at all gets no points."""

    kind: Literal["text"]
    answer: Identifier
    words: Count = 1
    guide: Words | None = None


class ExerciseDone(Criterion):
    """An exercise whose check said "right", in the notebook; ``after_solution`` of the points if it was looked up."""

    kind: Literal["exercise"]
    exercise: Identifier
    after_solution: Share = 0.0


class Broken(Criterion):
    """An experiment that failed on purpose; with ``repaired``, half the points are for the run that served after it."""

    kind: Literal["broken"]
    failure: Identifier
    how: Literal["refused by preflight", "launch failed", "lost while serving"] | None = None
    repaired: bool = False


class Watched(Criterion):
    """A quantity that was watched while such a run served, on every rank or for the whole server."""

    kind: Literal["watched"]
    quantity: Literal["resident", "gpu", "kv-blocks"]
    run: RunFilter = ANY_RUN
    samples: Count = 10


class TrafficCounted(Criterion):
    """Bytes between nodes counted for such a run, with so many different settings of the link."""

    kind: Literal["traffic"]
    run: RunFilter = ANY_RUN
    settings: Count = 1


class Replay(Criterion):
    """`grade --replay` confirmed the recorded tokens; without --replay it waits for a hand."""

    kind: Literal["replayed"]


AnyCriterion = Annotated[
    Consistent
    | Served
    | Answered
    | SameTokens
    | MemoryMeasured
    | MemorySpread
    | LoadTested
    | Sweep
    | Refused
    | Recorded
    | Constraints
    | NumberAnswer
    | ChoiceAnswer
    | TextAnswer
    | ExerciseDone
    | Broken
    | Watched
    | TrafficCounted
    | Replay,
    Field(discriminator="kind"),
]


class Late(Part):
    """``per_day`` of the points reached is lost for each day begun, ``at_most`` in all.

    Nothing counts after ``refused_after_days``.
    """

    per_day: Share
    at_most: Share = 1.0
    refused_after_days: Count | None = None


class Rubric(Part):
    """What a record of one lab must show, and what that is worth."""

    rubric: Literal[1]
    lab: Slug
    chapter: Chapter
    title: Words | None = None
    evidence: Literal["dry-run", "cpu", "cuda"] = "cpu"
    nodes: Annotated[int, Field(strict=True, ge=0, le=256)] = 0
    deadline: Moment | None = None
    late: Late | None = None
    criteria: Annotated[tuple[AnyCriterion, ...], Field(min_length=1, max_length=256)]

    @property
    def possible(self) -> float:
        return sum(criterion.points for criterion in self.criteria)


KINDS: dict[str, type[Criterion]] = {
    kind.model_fields["kind"].annotation.__args__[0]: kind for kind in Criterion.__subclasses__()
}
