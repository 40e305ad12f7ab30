"""vLLM's torchrun executor for one rank: reports its steps, counts its weights, names its shared memory."""

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.model_executor.model_loader import base_loader
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher

from localai_clusters.launch.processes import shared_memory
from localai_clusters.serving import weights
from localai_clusters.serving.pipeline import Pipeline
from localai_clusters.serving.process import Progress


def executor_class(progress: Progress) -> type[ExecutorWithExternalLauncher]:
    """vLLM's torchrun executor, which also reports its steps and names its shared memory after the run."""

    class LockstepExecutor(ExecutorWithExternalLauncher):
        def _distributed_args(self) -> tuple[str, int, int]:
            progress.report("rendezvous")
            worker = self.driver_worker

            def load_model() -> None:
                progress.report("weights")
                with counting_weights(progress) as counted:
                    worker.worker.load_model()
                allocate_stage_input(worker.worker.model_runner)
                progress.report("weights-loaded", weights_bytes=sum(counted))

            worker.load_model = load_model
            _, rank, local_rank = super()._distributed_args()
            return init_method(), rank, local_rank

        def determine_available_memory(self) -> list[int]:
            progress.report("kv-cache")
            return super().determine_available_memory()

        pipeline: Pipeline | None = None  # until the engine is built: its warm-up runs are not shared

        def overlap_stages(self) -> None:
            self.pipeline = Pipeline(self)

        def sample_tokens(self, grammar_output, non_block: bool = False):
            sampled = super().sample_tokens(grammar_output, non_block)
            return self.pipeline.share(sampled, non_block) if self.pipeline else sampled

    return LockstepExecutor


def init_method() -> str:
    """torch's ``env://``, ending in ``:<run>-<node>``.

    vLLM's CPU worker names its shared-memory segment after what follows the last colon, which for
    plain ``env://`` is the same for every run on a machine: two runs would collide, and a segment
    left by a killed run would stop the next. With the node in the name, ranks of different nodes
    find that they share no memory and use the network; with a shared name they would not check.
    """
    run = os.environ.get("LAC_RUN_ID") or os.environ["MASTER_PORT"]
    return f"env://?run=:lac-{run}-{os.environ['GROUP_RANK']}"


def allocate_stage_input(runner) -> None:
    """Make the buffers in which a later pipeline stage receives hidden states.

    vLLM makes them in its warm-up run, which its CPU backend skips without compilation; the first
    request then fails on ``assert self.intermediate_tensors is not None``.
    """
    if not get_pp_group().is_first_rank and runner.intermediate_tensors is None:
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
        )


@contextlib.contextmanager
def counting_weights(progress: Progress) -> Iterator[list[int]]:
    """Collects the bytes of the parameters that a model loader fills; buffers, such as rotary tables, are no weights.
    Their names and shapes go to ``rank<K>.matrices.json``.

    Counted before ``process_weights_after_loading``, in which vLLM's CPU backend packs the linear
    layers into oneDNN's own layout and empties the tensors that were loaded.
    """
    counted: list[int] = []
    process = base_loader.process_weights_after_loading

    def count_first(model, *args, **kwargs):
        counted.append(distinct_bytes(model.parameters()))
        if path := progress.path("matrices.json"):
            weights.write(model, path)
        return process(model, *args, **kwargs)

    base_loader.process_weights_after_loading = count_first
    try:
        yield counted
    finally:
        base_loader.process_weights_after_loading = process


def facts(core: EngineCore) -> dict[str, Any]:
    """What this rank holds, measured on the loaded model: bytes, KV blocks and its part of the split."""
    runner = core.model_executor.driver_worker.worker.model_runner
    model = runner.get_model()
    cache = core.vllm_config.cache_config
    stack = getattr(model, "model", model)
    return {
        "host": socket.gethostname(),
        "tensor_parallel_rank": get_tp_group().rank_in_group,
        "pipeline_parallel_rank": get_pp_group().rank_in_group,
        "layers": [getattr(stack, "start_layer", 0), getattr(stack, "end_layer", None)],
        "kv_cache_bytes": distinct_bytes(flatten(runner.kv_caches)),
        "kv_cache_blocks": cache.num_gpu_blocks,
        "kv_cache_block_tokens": cache.block_size,
        "device": str(runner.device),
        "shared_memory": sorted(shared_memory([os.getpid()])),
    }


def flatten(nested) -> list:
    return [leaf for item in nested for leaf in (flatten(item) if isinstance(item, (list, tuple)) else [item])]


def distinct_bytes(tensors) -> int:
    """Bytes of the storages behind ``tensors``, each counted once (tied weights share one)."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
