"""From servers that ran to a checkpoint file: what the library itself saw, the student's answers beside it."""

import hashlib
import html
import io
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from localai_clusters import __version__, checkpoint
from localai_clusters.lab import CHECKPOINT_MIME, course_root
from localai_clusters.launch.run import Rank
from localai_clusters.launch.why import exit_code_of
from localai_clusters.machine import Machine
from localai_clusters.models import BUILT_IN, Model, ModelShape, look_up
from localai_clusters.observe import MIB, RankMemory
from localai_clusters.observed import Collective, ExerciseOutcome, Failure, Timeline, Traffic
from localai_clusters.plan import ServePlan
from localai_clusters.server import Completion, Server
from localai_clusters.sizing import can_predict, dtype_of, rank_sizes

GIB = 1 << 30
LONGEST_SENTENCE = 4096  # characters; checkpoint/fields.py
PRE = "<pre style='white-space:pre;overflow-x:auto'>"


def record(
    *,
    student: str,
    chapter: int,
    lab: str,
    servers: Sequence[Server] = (),
    answers: Mapping[str, Any] | None = None,
    constraints: Iterable[str] = (),
    exercises: Iterable[ExerciseOutcome] = (),
    failures: Iterable[Failure] = (),
    timelines: Iterable[Timeline] = (),
    traffic: Iterable[Traffic] = (),
    collectives: Iterable[Collective] = (),
    folder: str | Path | None = None,
) -> "Recorded":
    """Write the checkpoint of ``servers``, stopped or running, below ``folder`` (the course's checkpoints/).

    Runs, outputs, memory, load and constraints are taken from the servers; ``answers`` and the sentences in
    ``constraints`` are the student's; the rest is what the lab measured (observed.py). The first server is what the
    others' tokens are compared with. Without servers the record is of ``failures`` alone, a dry run. Raises
    ``ValueError`` for neither, or for servers of different models, ``CheckpointError`` for a field that does not fit.
    """
    failures = tuple(failures)
    models = {server.model.name for server in servers}
    if len(models) > 1:
        raise ValueError(f"one checkpoint is about one model; these servers ran {', '.join(sorted(models))}")
    plan = servers[0].plan if servers else next((failure.plan for failure in failures if failure.plan), None)
    if plan is None:
        raise ValueError("record() needs the servers that ran, record(..., servers=[server]), or failures with a plan")
    machine = servers[0].machine if servers else Machine.now()
    prompts = list(dict.fromkeys(_prompt_key(c) for server in servers for c in server.completions))
    completions = [
        _completion(server, completion, prompts.index(_prompt_key(completion)))
        for server in servers
        for completion in server.completions
    ]
    comparisons = [c for other in servers[1:] for c in checkpoint.compare(completions, servers[0].run.id, other.run.id)]
    built = checkpoint.build(
        student=student,
        chapter=chapter,
        lab=lab,
        evidence=_evidence(servers),
        versions=_versions(machine),
        machine={
            "cores": len(machine.cores),
            "cpu_model": machine.cpu_model,
            "memory_bytes": machine.memory_bytes,
            "gpus": [{"name": gpu.name, "memory_bytes": gpu.memory_bytes} for gpu in machine.gpus],
        },
        data={
            **(_data(servers[0].model) if servers else _data_of_a_plan(plan)),
            "prompts": [checkpoint.prompt(text, form=form, token_ids=ids) for form, text, ids in prompts],
        },
        runs=[_run(server) for server in servers],
        observed={
            "completions": completions,
            "comparisons": comparisons,
            "load": [_load(server, load) for server in servers for load in server.loads],
            "nvidia_smi": next((server.nvidia_smi for server in servers if server.nvidia_smi), None),
            "timelines": [_timeline(timeline) for timeline in timelines],
            "traffic": [asdict(counted) for counted in traffic],
            "failures": [_failure(failure) for failure in failures],
            "collectives": [asdict(measured) for measured in collectives],
        },
        constraints=[
            *({"kind": kind, "sentence": text, "source": "library"} for kind, text in known_constraints(servers, plan)),
            *({"kind": "other", "sentence": text, "source": "student"} for text in constraints),
        ],
        preflight=[
            {"run_id": server.run.id, "check": v.check, "verdict": v.status, "message": v.message}
            for server in servers
            for v in server.report.verdicts
        ],
        answers=dict(answers or {}),
        exercises=[outcome.to_dict() for outcome in exercises],
    )
    path = checkpoint.write(built, folder or course_root() / "checkpoints")
    return Recorded(path, built)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A checkpoint that was written: shows itself, and is a path for ``open`` and ``Path``."""

    path: Path
    checkpoint: checkpoint.Checkpoint

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return f"{self.path}\n{checkpoint.what_it_proves(self.checkpoint)}"

    __repr__ = __str__

    def _repr_mimebundle_(self, **_) -> dict[str, Any]:
        from rich.console import Console

        console = Console(record=True, width=88, file=io.StringIO(), force_jupyter=False)
        checkpoint.show(self.checkpoint, console)
        page = console.export_text()
        proves = checkpoint.what_it_proves(self.checkpoint)
        return {
            "text/plain": f"{page}\n{self.path}",
            "text/html": f"{PRE}{html.escape(page)}</pre><p><b>{html.escape(proves)}</b></p>"
            f"<p>Written to <code>{html.escape(str(self.path))}</code>: this file is handed in.</p>",
            CHECKPOINT_MIME: {"path": str(self.path), "proves": proves},
        }


def known_constraints(servers: Sequence[Server], plan: ServePlan) -> list[tuple[str, str]]:
    """(kind, sentence) of what the library knows the result to depend on. ``plan`` is the first that was tried."""
    machine = servers[0].machine if servers else Machine.now()
    shape = servers[0].model.shape if servers else look_up(plan.model)
    found, held = [("model-size", f"{plan.model}: the bytes of its weights were measured, not predicted.")], 0
    if shape is None or not servers:
        found = [("model-size", f"Plans of {plan.model} were refused or failed; none of its weights was served.")]
    elif can_predict(shape):
        unsplit = rank_sizes(plan.with_(tensor_parallel_size=1, pipeline_parallel_size=1, nnodes=1), shape)[0]
        found = [
            (
                "model-size",
                f"The weights of {plan.model} take {unsplit.weights_bytes / MIB:.0f} MiB in {dtype_of(plan, shape)}; a "
                "model this small gains little from a split, and its speeds say nothing about larger ones.",
            )
        ]
    if servers:
        held = min(size.kv_tokens or 0 for size in rank_sizes(plan, shape))
    if not servers:
        devices = f"{len(machine.gpus)} GPUs" if machine.backend == "cuda" else f"{len(machine.cores)} CPU cores"
        found.append(("backend", f"Nothing was served: what was refused or failed did so for a machine of {devices}."))
    elif machine.backend == "cpu":
        found.append(
            (
                "backend",
                f"vLLM's CPU backend ran on {len(machine.cores)} cores ({machine.cpu_model}), each rank pinned to its "
                "own: tokens are comparable with a GPU's up to rounding, times are not.",
            )
        )
    else:
        names = ", ".join(sorted({gpu.name for gpu in machine.gpus}))
        found.append(("backend", f"vLLM's CUDA backend ran on {len(machine.gpus)} GPUs ({names})."))
    if any(server.run.nodes for server in servers):
        found.append(
            (
                "backend",
                "The nodes were namespaces of one machine, joined by a link of its kernel: their ranks met over a "
                "network, and shared that machine's memory bandwidth and cores.",
            )
        )
    cache = f"the KV cache was set to hold {held} tokens." if held else "vLLM sized the KV cache by what was free."
    free, total = machine.memory_available_bytes / GIB, machine.memory_bytes / GIB
    said = f"{free:.1f} of {total:.1f} GiB were available"
    found.append(("available-memory", f"{said}; {cache}" if servers else f"{said}."))
    return found


def _evidence(servers: Sequence[Server]) -> dict[str, Any]:
    on_gpu = any(_on_gpu(rank) for server in servers for rank in server.ranks())
    return {
        "level": "cuda" if on_gpu else "cpu" if servers else "dry-run",
        "nodes": max((server.plan.nnodes for server in servers), default=0),
        "ranks": max((server.plan.world_size for server in servers), default=0),
    }


def _data(model: Model) -> dict[str, Any]:
    return {
        "model": model.name,
        "source": model.source,
        "folder": str(model.path),
        "revision": model.revision or None,
        "weights_sha256": model.weights_sha256(),
    }


def _data_of_a_plan(plan: ServePlan) -> dict[str, Any]:
    """Of a model that was not served, and may be nowhere: fetching it only to record it would be too much."""
    source = "built-in" if plan.model in BUILT_IN else "folder" if Path(plan.model).is_dir() else "hugging-face"
    return {"model": plan.model, "source": source}


def _timeline(timeline: Timeline) -> dict[str, Any]:
    fields = asdict(timeline)
    points = fields.pop("points")
    seconds, values = zip(*points, strict=True) if points else ((), ())
    return {**fields, "seconds": seconds, "values": values}


def _failure(failure: Failure) -> dict[str, Any]:
    fields = {name: getattr(failure, name) for name in failure.__slots__ if name != "plan"}
    fields["message"] = failure.message[:LONGEST_SENTENCE]
    return {**fields, "plan": _plan(failure.plan, look_up(failure.plan.model)) if failure.plan else None}


def _prompt_key(completion: Completion) -> tuple[str, str, tuple[int, ...] | None]:
    return completion.form, completion.prompt, completion.prompt_token_ids or None


def _completion(server: Server, completion: Completion, prompt_index: int) -> checkpoint.Completion:
    return checkpoint.Completion(
        run_id=server.run.id,
        prompt_index=prompt_index,
        text=completion.text,
        token_ids=completion.token_ids,
        logprobs=completion.logprobs or None,
        finish_reason=completion.finish_reason,
        temperature=completion.temperature,
        max_tokens=completion.max_tokens,
    )


def _load(server: Server, load) -> dict[str, Any]:
    return {
        "run_id": server.run.id,
        "concurrency": load.concurrency,
        "requests": load.requests,
        "output_tokens": load.output_tokens,
        "seconds": load.seconds,
        "output_tokens_per_second": load.tokens_per_second,
        "ttft_p50_s": load.ttft.p50,
        "ttft_p99_s": load.ttft.p99,
        "itl_p50_s": load.itl.p50 if load.itl else None,
        "itl_p99_s": load.itl.p99 if load.itl else None,
    }


def _run(server: Server) -> dict[str, Any]:
    plan, ranks = server.plan, server.ranks()
    memory = server.last_memory.ranks if server.last_memory else [None] * len(ranks)
    return {
        "run_id": server.run.id,
        "plan": _plan(plan, server.model.shape),
        "argv": [plan.argv(node_rank) for node_rank in range(plan.nnodes)],
        "environment": {**os.environ, **ranks[0].facts.get("environment", {})},
        "started_at": checkpoint.utc(server.run.started_at),
        "seconds_to_ready": server.seconds_to_ready or None,
        "seconds_serving": server.seconds_serving,
        "ranks": [_rank(server, rank, held) for rank, held in zip(ranks, memory, strict=True)],
    }


def _plan(plan: ServePlan, shape: ModelShape | None) -> dict[str, Any]:
    same = "tensor_parallel_size pipeline_parallel_size nnodes nproc_per_node gpu_memory_utilization quantization"
    return {
        "model": plan.model,
        "dtype": plan.dtype,
        "max_model_len": plan.max_model_len or (shape.default_max_model_len if shape else None) or 1,
        "kv_cache_memory_bytes": plan.kv_cache_memory_bytes,
        **{name: getattr(plan, name) for name in same.split()},
    }


def _rank(server: Server, rank: Rank, memory: RankMemory | None) -> dict[str, Any]:
    facts, machine = rank.facts, server.machine
    if _on_gpu(rank):
        gpu = machine.visible.gpus[int(facts["device"].partition(":")[2] or 0)]
        device = {"kind": "cuda", "name": gpu.name, "gpu_index": gpu.index}
    else:
        device = {"kind": "cpu", "name": machine.cpu_model, "cores": facts.get("cpus", [])}
    held = {}
    if memory is not None:
        held = {
            "weights_bytes": {"predicted": memory.weights_predicted, "measured": memory.weights_measured},
            "kv_cache_bytes": {"predicted": memory.kv_cache_predicted, "measured": memory.kv_cache_measured},
            "resident_bytes": memory.gpu if memory.gpu is not None else memory.resident_peak,
        }
    log = server.run.log(rank.rank)
    return {
        "rank": rank.rank,
        "node_rank": facts.get("node_rank", 0),
        "local_rank": facts.get("local_rank", rank.rank),
        "tensor_parallel_rank": facts.get("tensor_parallel_rank"),
        "pipeline_parallel_rank": facts.get("pipeline_parallel_rank"),
        "layers": facts.get("layers"),
        "device": device,
        "memory": held,
        "kv_cache_blocks": facts.get("kv_cache_blocks"),
        "exit_code": exit_code_of(server.run, rank.rank),
        "log_sha256": hashlib.sha256(log.read_bytes()).hexdigest() if log.exists() else None,
    }


def _on_gpu(rank: Rank) -> bool:
    return rank.facts.get("device", "cpu").startswith("cuda")


def _versions(machine: Machine) -> dict[str, Any]:
    return {
        "python": machine.python,
        "os": machine.os,
        "vllm": machine.versions.get("vllm"),
        "torch": machine.versions.get("torch"),
        "transformers": machine.versions.get("transformers"),
        "cuda": machine.cuda,
        "driver": machine.driver,
        "localai_clusters": __version__,
        "commit": commit(),
    }


def commit() -> str | None:
    """The commit of this package's checkout, with ``-dirty`` when files differ from it; None outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
