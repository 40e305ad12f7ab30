"""One record alone: times, rates, memory and versions that no machine gives. Suspicions for a person, never points.

Every bound here is far from what honest machines do, and says where it is from: a class of honest records must raise
no flag at all. Who knows the bounds can invent a record within them; that is what replay is for.
"""

import re
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache

from localai_clusters.checkpoint import Checkpoint, Rank, Run, plain_text
from localai_clusters.checkpoint.runs_consistency import served
from localai_clusters.data_sheets import bandwidths
from localai_clusters.grading.releases import VLLM, numbers
from localai_clusters.grading.results import Flag
from localai_clusters.models.built_in import BUILT_IN
from localai_clusters.plan import ServePlan
from localai_clusters.sizing import rank_sizes

# A rank imports torch and vLLM before it serves: 4 s here (python -m bench.startup), over 2 s on any machine of today.
FASTEST_START = 1.5  # seconds
CLOCK_SECONDS = 120  # a run's name and its start are taken within the same second; clocks may be set in between
YEAR_SECONDS = 365 * 86_400
BENCH_SECONDS = 1.0  # by which a load test may seem longer than the serving it is part of

# A CPU core takes at most 32 bytes per cycle from the last-level cache (AMD, "Software Optimization Guide for the
# Zen 4 Microarchitecture", 2.6; Intel's take fewer), at no more than 6.2 GHz: weights in that cache come no faster.
BYTES_PER_SECOND_OF_A_CORE = 200e9
GPU_SLACK = 1.3  # over the data sheet: weights that stay in the GPU's own cache
FASTEST_GPU = 12e12  # bytes/s of memory; a GPU without a known data sheet
FASTEST_STEP = 0.0002  # seconds: vLLM's scheduler and the kernels' launches take longer, however small the model
SHARE_READ = 0.025  # of the weights per token, where the model is not known: the sparsest mixtures of experts read 3 %
SPECULATIVE_TOKENS = 16  # that one step may confirm, with a draft model

WEIGHTS_TOLERANCE = 0.05  # of what a known model takes; they are predicted to the byte for all splits tried
KV_BLOCK_TOKENS = (1, 512)  # vLLM's block sizes in tokens, with room for a KV cache of 8 or 4 bits
RUN_ID = re.compile(r"(\d{2})(\d{2})-(\d{2})(\d{2})(\d{2})-[0-9a-f]{6}")  # launch/run.py
FILE_NAME = re.compile(r"(?<!\d)\d{2}-[A-Za-z0-9_-]+-(\d{8}T\d{6}Z)-([0-9a-f]{8})(?![0-9a-f])")  # checkpoint/store.py


def implausible(record: Checkpoint, name: str = "") -> tuple[Flag, ...]:
    """Everything in a record that cannot have happened as it says; ``name`` is its file's."""
    return tuple(flag for look in LOOKS for flag in look(record)) + tuple(_renamed(record, name))


def _times(record: Checkpoint) -> Iterator[Flag]:
    for run in record.runs:
        if served(run) and run.ranks and run.seconds_to_ready < FASTEST_START:
            yield Flag(
                "times",
                f"run {run.run_id} was ready before torch and vLLM can be imported",
                (f"seconds_to_ready {run.seconds_to_ready:g}", f"no machine takes less than {FASTEST_START:g} s"),
            )
        if (found := RUN_ID.fullmatch(run.run_id)) and run.started_at:
            started = datetime.fromisoformat(run.started_at)
            month, day, hour, minute, second = map(int, found.groups())
            try:
                named = started.replace(month=month, day=day, hour=hour, minute=minute, second=min(second, 59))
                off = abs((named - started).total_seconds())
            except ValueError:
                off = YEAR_SECONDS / 2
            if CLOCK_SECONDS < off < YEAR_SECONDS - CLOCK_SECONDS:  # or New Year was between the two
                yield Flag(
                    "times",
                    f"run {run.run_id} carries another moment in its name than the one it started at",
                    (f"run_id {run.run_id}", f"started_at {run.started_at}"),
                )
    serving = {run.run_id: run.seconds_serving for run in record.runs}
    for load in record.observed.load:
        most = serving.get(load.run_id)
        if most is not None and load.seconds > most + BENCH_SECONDS:
            yield Flag(
                "times",
                f"a load test of run {load.run_id} took longer than that run served",
                (f"load {load.seconds:.1f} s", f"seconds_serving {most:.1f} s"),
            )


def _rates(record: Checkpoint) -> Iterator[Flag]:
    runs = {run.run_id: run for run in record.runs}
    for load in record.observed.load:
        run = runs.get(load.run_id)
        if run is None or not served(run) or not load.seconds:
            continue
        streams = max(min(load.concurrency, load.requests), 1)
        found = load.output_tokens / load.seconds / streams
        if load.tpot_p50_s:
            found = max(found, 1 / load.tpot_p50_s)
        least, why = seconds_per_token(record, run)
        if found * least > 1 and is_speculative(run):
            least /= SPECULATIVE_TOKENS
        if found * least > 1:
            yield Flag(
                "rate",
                f"run {run.run_id} is said to have given {found:,.0f} tokens/s to one request, "
                f"and its weights cannot be read that often",
                (f"at most {1 / least:,.0f} tokens/s: {why}",),
            )
        if load.output_tokens > load.requests * run.plan.max_model_len:
            yield Flag(
                "rate",
                f"a load test of run {run.run_id} has more tokens than its requests can have had",
                (f"{load.output_tokens:,} tokens", f"{load.requests:,} requests of up to {run.plan.max_model_len:,}"),
            )


def seconds_per_token(record: Checkpoint, run: Run) -> tuple[float, str]:
    """(the least that one request's next token takes, of what): every stage reads its weights, one after the other."""
    share = 1.0 if record.data.source == "built-in" and run.plan.model in BUILT_IN else SHARE_READ
    stages: dict[int, float] = {}
    for rank in run.ranks:
        held = (rank.memory.weights_bytes.measured or 0) * share
        stage = rank.pipeline_parallel_rank or 0
        stages[stage] = max(stages.get(stage, 0.0), held / bytes_per_second(record, rank))
    seconds = sum(stages.values())
    if seconds < FASTEST_STEP:
        return FASTEST_STEP, f"a step of vLLM takes {FASTEST_STEP * 1e3:g} ms or more"
    held = sum(rank.memory.weights_bytes.measured or 0 for rank in run.ranks)
    rates = sorted({bytes_per_second(record, rank) for rank in run.ranks})
    return seconds, f"{held / 2**20:,.0f} MiB of weights, at most {rates[-1] / 1e9:,.0f} GB/s for a rank"


def is_speculative(run: Run) -> bool:
    return any(argument.startswith("--speculative") for command in run.argv for argument in command)


def bytes_per_second(record: Checkpoint, rank: Rank) -> float:
    """More than the rank's device can read."""
    if rank.device.kind == "cpu":
        return BYTES_PER_SECOND_OF_A_CORE * (len(rank.device.cores) or record.machine.cores)
    try:
        return bandwidths(rank.device.name).memory * GPU_SLACK
    except ValueError:
        return FASTEST_GPU


def _memory(record: Checkpoint) -> Iterator[Flag]:
    for run in record.runs:
        if not served(run):
            continue
        yield from _weights_of_a_known_model(record, run)
        yield from _kv_blocks(record, run)
        for rank in run.ranks:
            weights, resident = rank.memory.weights_bytes.measured, rank.memory.resident_bytes
            # On a GPU the driver may not see the process: its figure can be 0.
            if rank.device.kind == "cpu" and weights and resident and resident < 0.9 * weights:
                yield Flag(
                    "memory",
                    f"rank {rank.rank} of run {run.run_id} holds more weights than the whole process does memory",
                    (f"weights {weights:,} bytes", f"resident {resident:,} bytes"),
                )
                break


def _weights_of_a_known_model(record: Checkpoint, run: Run) -> Iterator[Flag]:
    plan = run.plan
    if record.data.source != "built-in" or plan.model not in BUILT_IN or plan.quantization:
        return
    sizes = known_sizes(
        plan.model, plan.tensor_parallel_size, plan.pipeline_parallel_size, plan.nnodes, plan.nproc_per_node, plan.dtype
    )
    for rank in run.ranks:
        size, measured = sizes.get(rank.rank), rank.memory.weights_bytes.measured
        if size is None or measured is None:
            continue
        if abs(measured - size[0]) > WEIGHTS_TOLERANCE * size[0]:
            yield Flag(
                "memory",
                f"rank {rank.rank} of run {run.run_id} held weights that are not those of {plan.model}",
                (f"measured {measured:,} bytes", f"its share in {plan.dtype} takes {size[0]:,}"),
            )
            return
        kv, blocks = rank.memory.kv_cache_bytes.measured, rank.kv_cache_blocks
        if kv and blocks and not KV_BLOCK_TOKENS[0] <= kv / blocks / size[1] <= KV_BLOCK_TOKENS[1]:
            yield Flag(
                "memory",
                f"rank {rank.rank} of run {run.run_id} had KV blocks of a size that vLLM does not have",
                (f"{kv:,} bytes in {blocks:,} blocks", f"a token of {plan.model} takes {size[1]:,} bytes there"),
            )
            return


@lru_cache(maxsize=256)
def known_sizes(
    model: str, tensor: int, pipeline: int, nnodes: int, nproc: int, dtype: str
) -> dict[int, tuple[int, int]]:
    """rank -> (bytes of weights, bytes of one token's keys and values); empty for a plan that no server has."""
    shape = BUILT_IN[model].shape
    try:
        plan = ServePlan(
            model=model,
            tensor_parallel_size=tensor,
            pipeline_parallel_size=pipeline,
            nnodes=nnodes,
            nproc_per_node=nproc,
            dtype=dtype,
        )
        return {size.rank: (size.weights_bytes, size.kv_bytes_per_token) for size in rank_sizes(plan, shape)}
    except (ValueError, ArithmeticError, LookupError):
        return {}


def _kv_blocks(record: Checkpoint, run: Run) -> Iterator[Flag]:
    for rank in run.ranks:
        kv, blocks = rank.memory.kv_cache_bytes.measured, rank.kv_cache_blocks
        if kv and blocks and kv % blocks:
            yield Flag(
                "memory",
                f"the KV cache of rank {rank.rank} of run {run.run_id} is no whole number of its blocks",
                (f"{kv:,} bytes", f"{blocks:,} blocks, each of the same size"),
            )
            return


def _machine(record: Checkpoint) -> Iterator[Flag]:
    """The first node's ranks ran on the machine that is recorded."""
    machine = record.machine
    for run in record.runs:
        here = [rank for rank in run.ranks if rank.node_rank == 0]
        cores = {core for rank in here for core in rank.device.cores}
        if len(cores) > machine.cores:
            yield Flag(
                "machine",
                f"the ranks of run {run.run_id} ran on more cores than the machine has",
                (f"{len(cores):,} cores", f"machine.cores {machine.cores:,}"),
            )
        gpus = [rank for rank in here if rank.device.kind == "cuda"]
        if gpus and not machine.gpus:
            yield Flag("machine", f"run {run.run_id} ran on GPUs and the machine has none", (gpus[0].device.name,))
        elif gpus:
            names = {gpu.name for gpu in machine.gpus}
            for rank in gpus:
                if rank.device.name not in names or (rank.device.gpu_index or 0) >= len(machine.gpus):
                    had = plain_text(", ".join(sorted(names)), 200)
                    yield Flag(
                        "machine",
                        f"rank {rank.rank} of run {run.run_id} ran on a GPU that the machine does not have",
                        (f"GPU {rank.device.gpu_index}: {plain_text(rank.device.name, 80)}", f"the machine has {had}"),
                    )
                    break
        held = sum(rank.memory.weights_bytes.measured or 0 for rank in here if rank.device.kind == "cpu")
        if held > machine.memory_bytes:
            yield Flag(
                "machine",
                f"the weights of run {run.run_id} are larger than the machine's memory",
                (f"{held:,} bytes", f"machine.memory_bytes {machine.memory_bytes:,}"),
            )


def _versions(record: Checkpoint) -> Iterator[Flag]:
    versions = record.versions
    if record.evidence.level == "cuda" and (versions.torch or "").endswith("+cpu"):
        yield Flag("versions", "it ran on GPUs with a torch that has no CUDA", (f"torch {versions.torch}",))
    needs = VLLM.get((versions.vllm or "").partition("+")[0])
    if needs is None:
        return
    asked = {
        "torch": (needs.torch, None),
        "transformers": needs.transformers,
        "python": needs.python,
    }
    for name, (first, end) in asked.items():
        said = getattr(versions, name)
        found = numbers(said or "")
        if not said or found is None:
            continue
        if end is None:
            fits, wanted = found == numbers(first), f"=={first}"
        else:
            fits, wanted = numbers(first) <= found < numbers(end), f">={first},<{end}"
        if not fits:
            yield Flag(
                "versions",
                f"vLLM {plain_text(versions.vllm, 40)} cannot be installed beside {name} {plain_text(said, 40)}",
                (f"its package asks for {name}{wanted}",),
            )


def _renamed(record: Checkpoint, name: str) -> Iterator[Flag]:
    """A file that kept the name it was written with says when, and which record."""
    found = FILE_NAME.search(name.rpartition("/")[2])
    if not found:
        return
    written = re.sub("[:-]", "", record.created_at)
    if (found[1], found[2]) != (written, record.record_id[:8]):
        yield Flag(
            "name",
            "the file was written under this name for another record, or the record was changed since",
            (f"named {found[1]}-{found[2]}", f"holds {written}-{record.record_id[:8]}"),
        )


LOOKS = (_times, _rates, _memory, _machine, _versions)
