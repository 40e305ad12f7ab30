"""Asks the installed vLLM itself what one rank of a model would hold: ``python vllm_counts.py < cases > answers``.

Each case is a JSON object: a config.json's content, tensor and pipeline parallel size, the stage, engine arguments.
vLLM reads the config, builds the very model class that it would serve, and plans its KV cache. The weights are on
torch's meta device, which keeps shapes and no numbers, and the process groups of one process are told how many ranks
they would have, so that a model of 671e9 parameters on 16 ranks fits into this process. Nothing of vLLM is replaced.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ |= {
    "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "MASTER_ADDR": "127.0.0.1", "RANK": "0", "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
}  # fmt: skip


def main() -> None:
    cases = json.load(sys.stdin)
    answers, sys.stdout = sys.stdout, sys.stderr  # what vLLM prints is no answer
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        json.dump([answer(case, Path(folder)) for case in cases], answers)


def answer(case: dict, folder: Path) -> dict:
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model

    (folder / "config.json").write_text(json.dumps(case["config"]))
    tensor, pipeline = case.get("tensor", 1), case.get("pipeline", 1)
    try:
        config = EngineArgs(
            model=str(folder), tensor_parallel_size=tensor, pipeline_parallel_size=pipeline, skip_tokenizer_init=True,
            distributed_executor_backend="mp", load_format="dummy", enforce_eager=True, **case.get("arguments", {}),
        ).create_engine_config()  # fmt: skip
        torch.set_default_dtype(config.model_config.dtype)
        with set_current_vllm_config(config):
            join(folder, tensor, pipeline, case.get("stage", 0))
            with torch.device("meta"):
                model = initialize_model(config)
            weights = {id(tensor): tensor for tensor in model.parameters()}
            return {
                "max_model_len": config.model_config.max_model_len,
                "weights_bytes": sum(tensor.numel() * tensor.element_size() for tensor in weights.values()),
                "kv_cache": kv_cache(config, case["kv_cache_bytes"]) if "kv_cache_bytes" in case else None,
            }
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    finally:
        torch.set_default_dtype(torch.float32)


def join(folder: Path, tensor: int, pipeline: int, stage: int) -> None:
    """Make the process groups of one process once, and tell them the sizes that they stand for."""
    from vllm.distributed import parallel_state

    if not parallel_state.model_parallel_is_initialized():
        parallel_state.init_distributed_environment(1, 0, f"file://{folder}/store", 0, "gloo")
        parallel_state.initialize_model_parallel(1, 1)
        if parallel_state._EP is None:
            parallel_state._EP = parallel_state.init_model_parallel_group([[0]], 0, "gloo", group_name="ep")
    pretend(parallel_state.get_tp_group(), tensor)
    pretend(parallel_state._EP, tensor)
    pretend(parallel_state.get_pp_group(), pipeline, stage)


def pretend(group, size: int, rank: int = 0) -> None:
    """Tell a process group of one that it is one of ``size``."""
    group.world_size, group.rank_in_group, group.ranks, group.rank = size, rank, list(range(size)), rank


def kv_cache(config, available: int) -> dict:
    """vLLM's own plan of a KV cache of so many bytes for the layers that were built last."""
    from vllm.v1.core import kv_cache_utils

    specs = {
        name: layer.get_kv_cache_spec(config)
        for name, layer in config.compilation_config.static_forward_context.items()
        if hasattr(layer, "get_kv_cache_spec")
    }
    config.cache_config.kv_cache_layout = "LBNHC"
    try:
        (plan,) = kv_cache_utils.get_kv_cache_configs(config, [specs], [available])
    except ValueError as error:
        return {"refused": str(error)}
    scheduler = kv_cache_utils.generate_scheduler_kv_cache_config([plan])
    return {
        "blocks": plan.num_blocks,
        "groups": len(plan.kv_cache_groups),
        "batch": config.scheduler_config.max_num_batched_tokens,
        "tokens": kv_cache_utils.get_kv_cache_capacity(config, scheduler)[0],
        "needed": kv_cache_utils._max_memory_usage_bytes_from_groups(config, plan.kv_cache_groups),
    }


if __name__ == "__main__":
    main()
