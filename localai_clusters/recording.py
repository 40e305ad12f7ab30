"""From servers that ran to a checkpoint file: what the library itself saw, the student's answers beside it."""

import hashlib
import html
import io
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localai_clusters import __version__, checkpoint
from localai_clusters.lab import CHECKPOINT_MIME, course_root
from localai_clusters.launch.run import Rank
from localai_clusters.launch.why import exit_code_of
from localai_clusters.machine import Machine
from localai_clusters.observe import MIB, RankMemory
from localai_clusters.server import Completion, Server
from localai_clusters.sizing import can_predict, dtype_of, rank_sizes

GIB = 1 << 30
PRE = "<pre style='white-space:pre;overflow-x:auto'>"


def record(
    *,
    student: str,
    chapter: int,
    lab: str,
    servers: Sequence[Server],
    answers: Mapping[str, Any] | None = None,
    constraints: Iterable[str] = (),
    folder: str | Path | None = None,
) -> "Recorded":
    """Write the checkpoint of ``servers``, stopped or running, below ``folder`` (the course's checkpoints/).

    Runs, outputs, memory, load and constraints are taken from the servers; ``answers`` and the sentences in
    ``constraints`` are the student's. The first server is what the others' tokens are compared with. Raises
    ``ValueError`` for no server or servers of different models, ``CheckpointError`` for a field that does not fit.
    """
    if not servers:
        raise ValueError("record() needs the servers that ran: record(..., servers=[server])")
    models = {server.model.name for server in servers}
    if len(models) > 1:
        raise ValueError(f"one checkpoint is about one model; these servers ran {', '.join(sorted(models))}")
    machine, model = servers[0].machine, servers[0].model
    prompts = list(dict.fromkeys(_prompt_key(c) for server in servers for c in server.completions))
    completions = [
        _completion(server, completion, prompts.index(_prompt_key(completion)))
        for server in servers
        for completion in server.completions
    ]
    first, *others = servers
    comparisons = [c for other in others for c in checkpoint.compare(completions, first.run.id, other.run.id)]
    built = checkpoint.build(
        student=student,
        chapter=chapter,
        lab=lab,
        evidence={
            "level": "cuda" if any(_on_gpu(rank) for server in servers for rank in server.ranks()) else "cpu",
            "nodes": max(server.plan.nnodes for server in servers),
            "ranks": max(server.plan.world_size for server in servers),
        },
        versions=_versions(machine),
        machine={
            "cores": len(machine.cores),
            "cpu_model": machine.cpu_model,
            "memory_bytes": machine.memory_bytes,
            "gpus": [{"name": gpu.name, "memory_bytes": gpu.memory_bytes} for gpu in machine.gpus],
        },
        data={
            "model": model.name,
            "source": model.source,
            "folder": str(model.path),
            "revision": model.revision or None,
            "weights_sha256": model.weights_sha256(),
            "prompts": [checkpoint.prompt(text, form=form, token_ids=ids) for form, text, ids in prompts],
        },
        runs=[_run(server) for server in servers],
        observed={
            "completions": completions,
            "comparisons": comparisons,
            "load": [_load(server, load) for server in servers for load in server.loads],
            "nvidia_smi": next((server.nvidia_smi for server in servers if server.nvidia_smi), None),
        },
        constraints=[
            *({"kind": kind, "sentence": text, "source": "library"} for kind, text in known_constraints(servers)),
            *({"kind": "other", "sentence": text, "source": "student"} for text in constraints),
        ],
        preflight=[
            {"run_id": server.run.id, "check": v.check, "verdict": v.status, "message": v.message}
            for server in servers
            for v in server.report.verdicts
        ],
        answers=dict(answers or {}),
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
            "text/html": f"{PRE}{html.escape(page)}</pre><p><b>{html.escape(proves)}</b></p>",
            CHECKPOINT_MIME: {"path": str(self.path), "proves": proves},
        }


def known_constraints(servers: Sequence[Server]) -> list[tuple[str, str]]:
    """(kind, sentence) of what the library knows the result to depend on."""
    server = servers[0]
    machine, plan, shape = server.machine, server.plan, server.model.shape
    unsplit = rank_sizes(plan.with_(tensor_parallel_size=1, pipeline_parallel_size=1, nnodes=1), shape)[0]
    dtype = dtype_of(plan, shape)
    held = min(size.kv_tokens or 0 for size in rank_sizes(plan, shape))
    found = [("model-size", f"{plan.model}: the bytes of its weights were measured, not predicted.")]
    if can_predict(shape):
        found = [
            (
                "model-size",
                f"The weights of {plan.model} take {unsplit.weights_bytes / MIB:.0f} MiB in {dtype}; a model this "
                "small gains little from a split, and its speeds say nothing about larger ones.",
            )
        ]
    if machine.backend == "cpu":
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
    found.append(
        (
            "available-memory",
            f"{machine.memory_available_bytes / GIB:.1f} of {machine.memory_bytes / GIB:.1f} GiB were available; "
            + (f"the KV cache was set to hold {held} tokens." if held else "vLLM sized the KV cache by what was free."),
        )
    )
    return found


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
        "plan": {
            "model": plan.model,
            "tensor_parallel_size": plan.tensor_parallel_size,
            "pipeline_parallel_size": plan.pipeline_parallel_size,
            "nnodes": plan.nnodes,
            "nproc_per_node": plan.nproc_per_node,
            "dtype": plan.dtype,
            "max_model_len": plan.max_model_len or server.model.shape.max_position_embeddings,
            "gpu_memory_utilization": plan.gpu_memory_utilization,
            "kv_cache_memory_bytes": plan.kv_cache_memory_bytes,
            "quantization": plan.quantization,
        },
        "argv": [plan.argv(node_rank) for node_rank in range(plan.nnodes)],
        "environment": {**os.environ, **ranks[0].facts.get("environment", {})},
        "started_at": checkpoint.utc(server.run.started_at),
        "seconds_to_ready": server.seconds_to_ready or None,
        "seconds_serving": server.seconds_serving,
        "ranks": [_rank(server, rank, held) for rank, held in zip(ranks, memory, strict=True)],
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
