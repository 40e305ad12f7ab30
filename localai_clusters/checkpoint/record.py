"""The checkpoint: what one student's run of one lab was, as it stands in the file.

Each class is one object of the JSON file, each docstring below a field its description
in the JSON Schema. Version 2 added what labs observe beside answers and load; a file of
version 1 is read as it is, and has none of it. Units: bytes, seconds, tokens; times are UTC.
A value that could not be known is null, never a guess.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator
from pydantic_core import PydanticCustomError

from . import fields as f

SCHEMA_VERSION = 2


class CheckpointError(ValueError):
    """One line: which file or field is wrong, and what was expected there."""


class Part(BaseModel):
    """What every object of the record is: strict, frozen, with no unknown fields."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        defer_build=True,
    )


Value = TypeVar("Value")
# A field that version 1 did not have from the start. Left out of the file and of the digest when it is null, so that
# the digest of a record from before it still holds.
Later = Annotated[Value | None, Field(exclude_if=lambda value: value is None)]


def Since2(item: Any, limit: int) -> Any:
    """A list that version 1 did not have; left out of the file when empty, for then a digest of version 1 holds."""
    return Annotated[f.Several[item], Field(max_length=limit, exclude_if=lambda value: not value)]


class Evidence(Part):
    """What really ran. A plan that was only checked is a dry run of 0 ranks."""

    level: Literal["dry-run", "cpu", "cuda"]
    """`cuda` when any rank held a GPU, `cpu` when ranks ran without, else `dry-run`."""
    nodes: Annotated[int, Field(ge=0, le=f.MAX_NODES)]
    """The most nodes that took part in one run."""
    ranks: Annotated[int, Field(ge=0, le=f.MAX_RANKS)]
    """The most ranks that were started in one run."""


class Versions(Part):
    """The software. vLLM and torch are null only where they are not installed."""

    python: f.Name
    os: f.Name
    vllm: f.Name | None = None
    torch: f.Name | None = None
    transformers: f.Name | None = None
    cuda: f.Name | None = None
    driver: f.Name | None = None
    nccl: f.Name | None = None
    localai_clusters: f.Name
    commit: f.Name | None = None


class Gpu(Part):
    """One GPU of the machine. Its UUID is not recorded: it names a machine's owner."""

    name: f.Name
    memory_bytes: f.Bytes


class Machine(Part):
    """The hardware as found."""

    cores: f.Positive
    """Cores this process may use."""
    cpu_model: f.Name
    memory_bytes: f.Bytes
    gpus: Annotated[f.Several[Gpu], Field(max_length=256)] = ()


class Plan(Part):
    """What was asked of vLLM and torchrun, in their own words."""

    model: f.PathText
    tensor_parallel_size: f.Positive
    pipeline_parallel_size: f.Positive
    nnodes: Annotated[int, Field(ge=1, le=f.MAX_NODES)]
    nproc_per_node: Annotated[int, Field(ge=1, le=f.MAX_RANKS)]
    dtype: f.Name
    max_model_len: f.Positive
    """Tokens."""
    gpu_memory_utilization: f.Share | None = None
    kv_cache_memory_bytes: f.Bytes | None = None
    """Per rank."""
    quantization: f.Name | None = None


class Device(Part):
    """Where one rank ran."""

    kind: Literal["cpu", "cuda"]
    name: f.Name
    cores: Annotated[f.Several[f.Whole], Field(max_length=4096)] = ()
    """The cores a CPU rank was pinned to."""
    gpu_index: f.Whole | None = None
    """The GPU's number on its node, as nvidia-smi counts."""


class Figure(Part):
    """Bytes as `sizing` predicted them before launch, and as the rank measured them."""

    predicted: f.Bytes | None = None
    measured: f.Bytes | None = None


class Memory(Part):
    """Memory of one rank."""

    weights_bytes: Figure = Figure()
    kv_cache_bytes: Figure = Figure()
    resident_bytes: f.Bytes | None = None
    """The measured peak: resident set of a CPU rank, GPU memory of a CUDA rank."""


class Rank(Part):
    """One process that torchrun started."""

    rank: f.Whole
    node_rank: f.Whole
    local_rank: f.Whole
    tensor_parallel_rank: f.Whole | None = None
    pipeline_parallel_rank: f.Whole | None = None
    layers: Annotated[tuple[f.Whole, f.Whole], Strict(False)] | None = None
    """[first, last): the transformer layers it held, the second number excluded."""
    device: Device
    memory: Memory = Memory()
    kv_cache_blocks: f.Whole | None = None
    exit_code: f.ExitCode | None = None
    """Null when the rank served until it was stopped in the normal way, or still ran
    when the record was made. A number when it ended by itself: its exit status, or
    minus the signal that killed it."""
    log_sha256: f.Sha256 | None = None


class Run(Part):
    """One launch of a server. A chapter has several: TP=1, TP=2, PP=2."""

    run_id: f.Identifier
    plan: Plan
    argv: Annotated[
        f.Several[Annotated[f.Several[f.Argument], Field(max_length=512)]],
        Field(max_length=f.MAX_NODES),
    ] = ()
    """torchrun's command on each node, node 0 first; values of secrets removed."""
    environment: Annotated[dict[f.Variable, f.Argument], Field(max_length=256)] = {}
    """Only the variables that shape the run; see `scrub_environment`."""
    started_at: f.UtcTime | None = None
    """Null when it was planned and not started."""
    seconds_to_ready: f.Seconds | None = None
    """From the start to the first completion; null when it never answered."""
    seconds_serving: f.Seconds | None = None
    ranks: Annotated[f.Several[Rank], Field(max_length=f.MAX_RANKS)] = ()
    """The processes that were started, rank 0 first; none for a dry run."""


class Prompt(Part):
    """A prompt as it was sent."""

    text: f.Passage
    sha256: f.Sha256
    """Of the text in UTF-8."""
    form: Literal["text", "chat"] = "text"
    """`chat` when the model's chat template was put around it."""
    token_ids: Annotated[f.Several[f.TokenId], Field(max_length=f.MAX_TOKENS)] | None = None
    """What the model saw, template included; replay needs them."""


class Data(Part):
    """The data path: which weights, from where, and what was asked of them."""

    model: f.PathText
    source: Literal["built-in", "folder", "hugging-face"]
    folder: f.PathText | None = None
    """The home directory is written ~."""
    revision: f.Name | None = None
    weights_sha256: Annotated[dict[f.PathText, f.Sha256], Field(max_length=4096)] = {}
    """By file name, relative to the folder."""
    prompts: Annotated[f.Several[Prompt], Field(max_length=f.MAX_PROMPTS)] = ()


class Completion(Part):
    """What one run answered to one prompt."""

    run_id: f.Identifier
    prompt_index: f.Whole
    """Into data.prompts, from 0."""
    text: f.Passage
    token_ids: Annotated[f.Several[f.TokenId], Field(max_length=f.MAX_TOKENS)]
    logprobs: Annotated[f.Several[f.Logprob], Field(max_length=f.MAX_TOKENS)] | None = None
    """Natural logarithms, one for each token."""
    finish_reason: f.Name | None = None
    temperature: f.Temperature = 0.0
    """0 is greedy decoding, which replay can check."""
    max_tokens: f.Positive | None = None


class Comparison(Part):
    """Two runs' first answers to the same prompt, token by token."""

    run_a: f.Identifier
    run_b: f.Identifier
    prompt_index: f.Whole
    tokens_equal: bool
    first_difference: f.Whole | None = None
    """The first token, from 0, where they part: where one ends and the other goes
    on, too. Null when they are equal."""


class Load(Part):
    """One load test of one run."""

    run_id: f.Identifier
    concurrency: f.Positive
    requests: f.Whole
    failed_requests: f.Whole = 0
    output_tokens: f.Whole
    seconds: f.Seconds
    output_tokens_per_second: f.Rate
    ttft_p50_s: f.Seconds | None = None
    """Time to first token, median, seconds."""
    ttft_p99_s: f.Seconds | None = None
    tpot_p50_s: f.Seconds | None = None
    """Time per output token after the first, median, seconds."""
    tpot_p99_s: f.Seconds | None = None
    itl_p50_s: Later[f.Seconds] = None
    """Inter-token latency, median, seconds: between the chunks of one streamed answer."""
    itl_p99_s: Later[f.Seconds] = None


class Timeline(Part):
    """One quantity over time, of one rank or of the whole server."""

    run_id: f.Identifier
    rank: f.Whole | None = None
    """Null for the whole server."""
    quantity: Literal["resident", "gpu", "kv-blocks"]
    """Memory of the process, of its GPU, or blocks of the KV cache in use."""
    unit: Literal["bytes", "blocks"]
    capacity: f.Whole | None = None
    """The most that there can be."""
    seconds: Annotated[f.Several[f.Seconds], Field(max_length=f.MAX_POINTS)]
    """Since the run was started, in order."""
    values: Annotated[f.Several[f.Whole], Field(max_length=f.MAX_POINTS)]
    """One for each of `seconds`."""


class Traffic(Part):
    """What crossed the link between nodes while tokens were generated."""

    run_id: f.Identifier
    layout: f.Name
    rate_mbit: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """What each node could send; null: no limit."""
    delay_ms: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """One way."""
    output_tokens: f.Whole
    seconds: f.Seconds
    bytes_sent: Annotated[f.Several[f.Bytes], Field(max_length=f.MAX_NODES)]
    """By node, as frames on the wire: packet heads and acknowledgements are in it."""
    predicted_bytes_per_token: f.Bytes | None = None
    """One node's payload alone."""


class Failure(Part):
    """Something that was made to fail, and who said so."""

    name: f.Identifier
    """The experiment's."""
    how: Literal["refused by preflight", "launch failed", "lost while serving"]
    cause: f.Name
    """The preflight check, or the explained cause."""
    message: f.Sentence
    rank: f.Whole | None = None
    """The first that failed, where one was found."""
    seconds: f.Seconds
    """Until it was known."""
    plan: Plan | None = None
    run_id: f.Identifier | None = None
    """Of the launch that failed, which is not in `runs`; null when nothing was started."""
    repaired_run_id: f.Identifier | None = None
    """The run that served after the repair."""


class Collective(Part):
    """One operation between ranks, measured."""

    layout: f.Name
    operation: Literal["all-reduce", "all-gather", "send"]
    message_bytes: f.Bytes
    seconds: f.Seconds
    """Of one message."""
    bytes_per_second: f.Rate | None = None
    """Bus bandwidth as nccl-tests define it."""
    nodes: f.Positive = 1


class ExerciseOutcome(Part):
    """How far the student came with one exercise, as the notebook saw it. The answer is in `answers`."""

    id: f.Identifier
    status: Literal["right", "wrong", "not-tried", "by-hand"]
    attempts: f.Whole = 0
    hints: f.Whole = 0
    """How many were asked for."""
    solution_shown: bool = False


class Observed(Part):
    """What came out."""

    completions: Annotated[f.Several[Completion], Field(max_length=f.MAX_COMPLETIONS)] = ()
    comparisons: Annotated[f.Several[Comparison], Field(max_length=f.MAX_COMPLETIONS)] = ()
    load: Annotated[f.Several[Load], Field(max_length=1024)] = ()
    nvidia_smi: f.Passage | None = None
    """The table as printed during serving, where there is a GPU."""
    timelines: Since2(Timeline, 1024) = ()
    traffic: Since2(Traffic, 1024) = ()
    failures: Since2(Failure, 256) = ()
    collectives: Since2(Collective, 1024) = ()


class Constraint(Part):
    """Something the result depends on."""

    kind: Literal["model-size", "vector-count", "backend", "available-memory", "other"]
    sentence: f.Sentence
    source: Literal["library", "student"]


class Preflight(Part):
    """One check made before a launch."""

    run_id: f.Identifier | None = None
    """Null when the check was of the machine, not of one run."""
    check: f.Name
    verdict: Literal["pass", "warn", "fail", "unknown"]
    message: f.Sentence


class Checkpoint(Part):
    """The record of one student's run of one lab of "Local AI Clusters"."""

    schema_version: Literal[1, 2]
    record_id: f.Uuid4
    student: f.Student
    chapter: f.Chapter
    lab: f.Slug
    created_at: f.UtcTime
    evidence: Evidence
    versions: Versions
    machine: Machine
    data: Data
    runs: Annotated[f.Several[Run], Field(max_length=f.MAX_RUNS)] = ()
    observed: Observed = Observed()
    constraints: Annotated[f.Several[Constraint], Field(max_length=256)] = ()
    preflight: Annotated[f.Several[Preflight], Field(max_length=4096)] = ()
    answers: Annotated[
        dict[f.Identifier, f.Answer | f.AnyInteger | f.AnyNumber | bool],
        Field(max_length=256),
    ] = {}
    """The student's answers to the exercises, by exercise."""
    exercises: Since2(ExerciseOutcome, 256) = ()
    digest: f.Sha256
    """SHA-256 over the canonical JSON of everything else. It shows that the file
    agrees with itself, not that it is honest."""

    @model_validator(mode="after")
    def _version_1_had_less(self) -> "Checkpoint":
        if self.schema_version < 2:
            newer = [name for name in SINCE_2 if getattr(self.observed, name)] + ["exercises"] * bool(self.exercises)
            if newer:
                said = "should not be of version 1, which has no {name}"
                raise PydanticCustomError("newer_field", said, {"name": newer[0]})
        return self


SINCE_2 = ("timelines", "traffic", "failures", "collectives")
