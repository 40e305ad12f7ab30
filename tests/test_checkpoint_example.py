"""One realistic record, as chapter 7 makes it on a laptop; the tests start from it."""

import copy
from typing import Any

from localai_clusters.checkpoint import (
    Checkpoint,
    Completion,
    build,
    compare,
    prompt,
    verify,
)

PROMPTS = ("What is tensor parallelism?", "Name three uses of an all-reduce.")
TEXTS = (
    "Tensor parallelism splits each weight matrix over several devices, so that "
    "every device computes a part of each layer and the parts are added up.",
    "1. Summing gradients over workers. 2. Joining the parts of a row-parallel "
    "linear layer. 3. Agreeing on the number of KV-cache blocks.",
)
TOKENS = (tuple(range(1000, 1048)), tuple(range(2000, 2048)))


def plan(tensor: int = 1, pipeline: int = 1) -> dict[str, Any]:
    return {
        "model": "smollm2-135m-tp4",
        "tensor_parallel_size": tensor,
        "pipeline_parallel_size": pipeline,
        "nnodes": 1,
        "nproc_per_node": tensor * pipeline,
        "dtype": "float32",
        "max_model_len": 1024,
        "kv_cache_memory_bytes": 256 * 2**20,
    }


def rank(number: int, tensor: int, pipeline: int) -> dict[str, Any]:
    stage, part = divmod(number, tensor)
    layers = 30 // pipeline
    weights = 596_000_000 // (tensor * pipeline)
    return {
        "rank": number,
        "node_rank": 0,
        "local_rank": number,
        "tensor_parallel_rank": part,
        "pipeline_parallel_rank": stage,
        "layers": [stage * layers, (stage + 1) * layers],
        "device": {"kind": "cpu", "name": "AMD EPYC 7B13", "cores": [number]},
        "memory": {
            "weights_bytes": {
                "predicted": weights,
                "measured": weights + 4096,
            },
            "kv_cache_bytes": {
                "predicted": 268_435_456,
                "measured": 268_173_312,
            },
            "resident_bytes": 1_412_300_800,
        },
        "kv_cache_blocks": 364,
        "log_sha256": f"{number:064x}",
    }


def run(run_id: str, minute: int, tensor: int = 1, pipeline: int = 1) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "plan": plan(tensor, pipeline),
        "argv": [
            [
                "torchrun",
                "--nnodes=1",
                f"--nproc-per-node={tensor * pipeline}",
                "-m",
                "localai_clusters.serving",
                "--model=smollm2-135m-tp4",
            ]
        ],
        "environment": {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        "started_at": f"2026-11-23T10:{minute:02d}:00Z",
        "seconds_to_ready": 10.4,
        "seconds_serving": 21.25,
        "ranks": [rank(n, tensor, pipeline) for n in range(tensor * pipeline)],
    }


def completions(*run_ids: str) -> list[Completion]:
    return [
        Completion(
            run_id=run_id,
            prompt_index=index,
            text=TEXTS[index],
            token_ids=TOKENS[index],
            logprobs=tuple(-0.01 * n for n in range(len(TOKENS[index]))),
            finish_reason="length",
            max_tokens=48,
        )
        for index in range(len(PROMPTS))
        for run_id in run_ids
    ]


def fields() -> dict[str, Any]:
    """What `build` is given: new objects at each call."""
    said = completions("tp1", "tp2", "pp2")
    return {
        "student": "s123",
        "chapter": 7,
        "lab": "vllm_distributed_serving",
        "created_at": "2026-11-23T10:45:00Z",
        "evidence": {"level": "cpu", "nodes": 1, "ranks": 2},
        "versions": {
            "python": "3.11.7",
            "os": "Linux 6.8.0 x86_64, Debian 12",
            "vllm": "0.32.0",
            "torch": "2.13.0+cpu",
            "transformers": "5.3.0",
            "localai_clusters": "0.1.0",
            "commit": "4f1c2a9",
        },
        "machine": {
            "cores": 2,
            "cpu_model": "AMD EPYC 7B13",
            "memory_bytes": 16 * 2**30,
        },
        "data": {
            "model": "smollm2-135m-tp4",
            "source": "built-in",
            "folder": "~/.cache/localai-clusters/models/smollm2-135m-tp4",
            "weights_sha256": {"model.safetensors": "ab" * 32},
            "prompts": [prompt(text, form="chat") for text in PROMPTS],
        },
        "runs": [run("tp1", 30), run("tp2", 35, tensor=2), run("pp2", 40, pipeline=2)],
        "observed": {
            "completions": said,
            "comparisons": [
                *compare(said, "tp1", "tp2"),
                *compare(said, "tp1", "pp2"),
            ],
            "load": [
                {
                    "run_id": "tp2",
                    "concurrency": 16,
                    "requests": 64,
                    "output_tokens": 4096,
                    "seconds": 8.0,
                    "output_tokens_per_second": 512.0,
                    "ttft_p50_s": 0.12,
                }
            ],
        },
        "constraints": [
            {
                "kind": "model-size",
                "sentence": "134 million parameters: small enough that TP=1 may be the fastest split.",
                "source": "library",
            },
            {
                "kind": "backend",
                "sentence": "vLLM's CPU backend in float32, all-reduce through shared memory.",
                "source": "library",
            },
            {
                "kind": "available-memory",
                "sentence": "11.2 of 16.0 GiB were free before the first launch.",
                "source": "library",
            },
            {
                "kind": "other",
                "sentence": "My laptop was on battery.",
                "source": "student",
            },
        ],
        "preflight": [
            {
                "run_id": "tp2",
                "check": "heads",
                "verdict": "pass",
                "message": "12 heads and 4 KV heads divide by 2",
            },
            {
                "run_id": "tp2",
                "check": "cores",
                "verdict": "warn",
                "message": "2 ranks take both cores: leave one for JupyterLab",
            },
        ],
        "answers": {"slowest-split": "pp2", "ranks": 2, "memory-share": 0.5},
    }


def example(**changes: Any) -> Checkpoint:
    """The record, with top-level fields replaced."""
    return build(**{**fields(), **changes})


def altered(path: str, value: Any) -> Checkpoint:
    """The record with one field changed before it was built, so the digest fits.

    `path` is written as findings write it: runs[1].ranks[0].layers."""
    from pydantic_core import to_jsonable_python

    changed = copy.deepcopy(to_jsonable_python(fields()))
    *parents, last = path.replace("[", ".").replace("]", "").split(".")
    node = changed
    for name in parents:
        node = node[int(name) if isinstance(node, list) else name]
    node[int(last) if isinstance(node, list) else last] = value
    return build(**changed)


def test_nothing_in_the_example_contradicts_itself():
    assert verify(example()) == []


def test_the_example_runs_really_differ():
    assert [len(run.ranks) for run in example().runs] == [1, 2, 2]
