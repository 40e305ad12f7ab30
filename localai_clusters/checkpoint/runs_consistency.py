"""Does each run of a record agree with its plan, its ranks and the clock?"""

from collections.abc import Iterator
from datetime import datetime

from .finding import Finding, note, wrong
from .privacy import may_record
from .record import Checkpoint, Run

WEIGHTS_TOLERANCE = 0.10  # of the bytes predicted
CLOCK_TOLERANCE = 2.0  # seconds: times are written in whole seconds


def served(run: Run) -> bool:
    return run.seconds_to_ready is not None


def splits(record: Checkpoint) -> Iterator[Finding]:
    """World size = tensor x pipeline size = nodes x processes = ranks."""
    for i, run in enumerate(record.runs):
        plan, at = run.plan, f"runs[{i}]"
        split = plan.tensor_parallel_size * plan.pipeline_parallel_size
        world = plan.nnodes * plan.nproc_per_node
        # A launch that failed may have been planned wrong on purpose.
        report = wrong if served(run) else note
        if split != world:
            yield report(
                f"{at}.plan",
                f"the split needs {split} ranks, torchrun starts {world} "
                f"(nnodes {plan.nnodes} x nproc_per_node {plan.nproc_per_node})",
            )
        if served(run) and len(run.ranks) != world:
            yield wrong(
                f"{at}.ranks",
                f"{world} ranks were planned, {len(run.ranks)} are listed",
            )
        elif len(run.ranks) > world:
            yield wrong(f"{at}.ranks", f"{len(run.ranks)} ranks in a world of {world}")
        if run.argv and len(run.argv) != plan.nnodes:
            yield wrong(f"{at}.argv", f"{len(run.argv)} commands for {plan.nnodes} nodes")


def ranks(record: Checkpoint) -> Iterator[Finding]:
    """Each rank stands where torchrun and vLLM put it."""
    for i, run in enumerate(record.runs):
        plan, seen = run.plan, set()
        for place, rank in enumerate(run.ranks):
            at = f"runs[{i}].ranks[{place}]"
            # vLLM's layout: neighbouring ranks share a stage and split its tensors.
            stage, part = divmod(rank.rank, plan.tensor_parallel_size)
            node, local = divmod(rank.rank, plan.nproc_per_node)
            if rank.rank in seen:
                yield wrong(f"{at}.rank", f"rank {rank.rank} is listed twice")
            elif served(run) and rank.rank != place:
                yield wrong(f"{at}.rank", f"it is {rank.rank} and should be {place}")
            seen.add(rank.rank)
            for name, found, right in (
                ("node_rank", rank.node_rank, node),
                ("local_rank", rank.local_rank, local),
                ("tensor_parallel_rank", rank.tensor_parallel_rank, part),
                ("pipeline_parallel_rank", rank.pipeline_parallel_rank, stage),
            ):
                # A rank that failed early never learnt its place in the split.
                unknown = found is None and not served(run)
                if found != right and not unknown:
                    yield wrong(f"{at}.{name}", f"it is {found} and should be {right}")


def layers(record: Checkpoint) -> Iterator[Finding]:
    """The stages cut 0..layers without gap or overlap, the same total in every run."""
    totals: dict[str, tuple[str, int]] = {}
    for i, run in enumerate(record.runs):
        at = f"runs[{i}].ranks"
        if not served(run):
            continue
        if any(rank.layers is None for rank in run.ranks):
            yield note(at, "not every rank says which layers it held")
            continue
        stages = sorted({(rank.pipeline_parallel_rank or 0, rank.layers) for rank in run.ranks})
        if len(stages) != len({stage for stage, _ in stages}):
            yield wrong(at, "two ranks of one pipeline stage hold different layers")
            continue
        end = 0
        for stage, (first, last) in stages:
            if first != end or last <= first:
                yield wrong(
                    at,
                    f"stage {stage} holds layers [{first}, {last}) and should begin at {end}",
                )
                break
            end = last
        else:
            other, total = totals.setdefault(run.plan.model, (run.run_id, end))
            if total != end:
                yield wrong(at, f"{end} layers in all, but {total} in run {other} of that model")


def memory(record: Checkpoint) -> Iterator[Finding]:
    for i, run in enumerate(record.runs):
        at = f"runs[{i}].ranks"
        weights = [rank.memory.weights_bytes for rank in run.ranks]
        known = [w for w in weights if w.predicted is not None and w.measured is not None]
        if known and len(known) == len(weights):
            predicted = sum(w.predicted for w in known)
            measured = sum(w.measured for w in known)
            if abs(measured - predicted) > WEIGHTS_TOLERANCE * predicted:
                yield note(
                    at,
                    f"the weights took {measured:,} bytes over all ranks, {predicted:,} were predicted",
                )
        blocks = {rank.kv_cache_blocks for rank in run.ranks}
        if served(run) and len(blocks) > 1:
            yield wrong(at, "the ranks do not have the same number of KV-cache blocks")


def times(record: Checkpoint) -> Iterator[Finding]:
    created = datetime.fromisoformat(record.created_at).timestamp()
    for i, run in enumerate(record.runs):
        at = f"runs[{i}]"
        if run.started_at is None:
            if run.ranks or served(run) or run.seconds_serving is not None:
                yield wrong(f"{at}.started_at", "it ran, yet it has no start")
            continue
        started = datetime.fromisoformat(run.started_at).timestamp()
        lasted = (run.seconds_to_ready or 0) + (run.seconds_serving or 0)
        if started + lasted > created + CLOCK_TOLERANCE:
            yield wrong(
                "created_at",
                f"the record was made before run {run.run_id}, begun at {run.started_at}, had served {lasted:.1f} s",
            )
        if run.seconds_to_ready == 0:
            yield wrong(f"{at}.seconds_to_ready", "no server is ready in 0 seconds")
        if run.seconds_serving is not None and not served(run):
            yield wrong(f"{at}.seconds_serving", "it served, yet it was never ready")


def environment(record: Checkpoint) -> Iterator[Finding]:
    for i, run in enumerate(record.runs):
        for name in run.environment:
            if not may_record(name):
                yield wrong(
                    f"runs[{i}].environment",
                    f"{name} does not belong in a record: it may hold a secret",
                )


CHECKS = (splits, ranks, layers, memory, times, environment)
