"""How vLLM lays a KV cache out, and how many tokens and which longest request it then holds.

Layers whose attention is of one kind form groups of equally many layers; a block is a piece of memory in which one
group keeps ``block_tokens`` tokens, and all groups draw blocks from one pool (vllm/v1/core/kv_cache_utils.py,
_get_kv_cache_groups_uniform_page_size). Layers that look back a sliding window only, or to the beginning of a chunk
(Llama 4), give back the blocks behind it. One block of the pool is never used.
"""

from dataclasses import dataclass

from localai_clusters.models import ModelShape
from localai_clusters.models.attention import CHUNKED, FULL, SLIDING
from localai_clusters.plan import ServePlan
from localai_clusters.sizing import (
    CPU_BLOCK_TOKENS,
    CPU_KV_CACHE_BYTES,
    GIB,
    kv_bytes_per_token,
    kv_dtype_of,
    pipeline_layers,
)
from localai_clusters.vllm_flags import is_on, number_of

GPU_BLOCK_TOKENS = 16  # vllm/config/cache.py
CPU_MLA_BLOCK_TOKENS = 16  # of the kernel without AMX (vllm/platforms/cpu.py)


@dataclass(frozen=True, slots=True)
class KvLayout:
    """The KV cache of one rank."""

    block_tokens: int
    block_bytes: int
    full_groups: int  # of layers that keep every token of a request
    local_groups: int = 0  # of layers that keep a window or chunk only
    local_tokens: int = 0  # that such a group keeps of one request
    spare_blocks: int = 0  # beside them: a window seldom begins where a block does

    def blocks_for(self, tokens: int) -> int:
        """Blocks that one request of so many tokens takes."""
        full = -(-tokens // self.block_tokens)
        local = -(-min(self.local_tokens, tokens) // self.block_tokens) + self.spare_blocks
        return self.full_groups * full + self.local_groups * local

    def bytes_for(self, tokens: int) -> int:
        """Bytes of the smallest cache that holds one request of so many tokens."""
        return (self.blocks_for(tokens) + 1) * self.block_bytes

    def longest_request(self, cache_bytes: int, limit: int) -> int:
        """Tokens of the longest request, up to ``limit``, that a cache of so many bytes holds; 0 for none."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.bytes_for(middle) <= cache_bytes else (low, middle - 1)
        return low

    def capacity(self, cache_bytes: int, max_model_len: int) -> int:
        """The tokens that vLLM names as ``KV cache size``: of requests of ``max_model_len``, all together."""
        return int(cache_bytes // self.block_bytes / self.blocks_for(max_model_len) * max_model_len)


def kv_layouts(plan: ServePlan, shape: ModelShape, backend: str | None, gpu_bytes: int = 0) -> list[KvLayout]:
    """The layout on the ranks of each pipeline stage.

    ``gpu_bytes``, a GPU's memory, decides vLLM's batch and so what a window keeps. Blocks are as long as the plan's
    ``--block-size`` or the platform's default; some GPU kernels want another.
    """
    kind = next((kind for kind in (SLIDING, CHUNKED) if shape.layers_of(kind)), None)
    if shape.layers_of(FULL) and is_on(plan.extra_args, "--disable-hybrid-kv-cache-manager"):
        kind = None  # then layers of both kinds keep every token
    local = shape.layers_of(kind) if kind else []
    full = sorted(set(range(shape.num_hidden_layers)) - set(local))
    kinds = [layers for layers in (full, local) if layers]
    size = min(map(len, kinds))
    if max(map(len, kinds)) < 1.5 * size:  # vLLM's rule against groups that are mostly padding
        size = max(map(len, kinds))
    groups = [layers[i :: -(-len(layers) // size)] for layers in kinds for i in range(-(-len(layers) // size))]
    tokens = block_tokens(plan, shape, backend)
    page = tokens * kv_bytes_per_token(shape, 1, plan.tensor_parallel_size, kv_dtype_of(plan, shape))
    in_flight = tokens_in_flight(plan, shape, backend, gpu_bytes)
    layouts = []
    for first, last in pipeline_layers(shape.num_hidden_layers, plan.pipeline_parallel_size):
        widest = max(sum(first <= layer < last for layer in group) for group in groups)
        layouts.append(
            KvLayout(
                block_tokens=tokens,
                block_bytes=max(1, widest) * page,
                full_groups=-(-len(full) // size),
                local_groups=-(-len(local) // size),
                local_tokens=(shape.sliding_window or 0) - (kind == SLIDING) + in_flight,
                spare_blocks=int(kind == SLIDING),
            )
        )
    return layouts


def block_tokens(plan: ServePlan, shape: ModelShape, backend: str | None) -> int:
    if backend == "cpu" and shape.latent:
        return CPU_MLA_BLOCK_TOKENS  # whatever was asked for
    default = CPU_BLOCK_TOKENS if backend == "cpu" else GPU_BLOCK_TOKENS
    return max(1, int(number_of(plan.extra_args, "--block-size", default)))


def batch_limits(plan: ServePlan, shape: ModelShape, backend: str | None, gpu_bytes: int = 0) -> tuple[int, int]:
    """(tokens, requests) that vLLM puts into one step at most: vllm/engine/arg_utils.py, get_batch_defaults."""
    if backend == "cpu":
        tokens, requests = 2048 * plan.split_size, 128 * plan.split_size
    elif gpu_bytes >= 160 * GIB:
        tokens, requests = 16384, 1024
    elif gpu_bytes >= 70 * GIB:  # vLLM gives an A100 of 80 GB 2048 and 256
        tokens, requests = 8192, 1024
    else:
        tokens, requests = 2048, 256
    longest = plan.max_model_len or shape.default_max_model_len
    requests = int(number_of(plan.extra_args, "--max-num-seqs", requests))
    tokens = int(number_of(plan.extra_args, "--max-num-batched-tokens", min(tokens, requests * longest)))
    return tokens, min(requests, tokens)


def tokens_in_flight(plan: ServePlan, shape: ModelShape, backend: str | None, gpu_bytes: int = 0) -> int:
    """Tokens that are scheduled and not yet done with: a batch for every stage (vllm/config/vllm.py)."""
    tokens, _ = batch_limits(plan, shape, backend, gpu_bytes)
    batches = plan.pipeline_parallel_size
    if backend == "cuda" and batches == 1:  # asynchronous scheduling prepares the next batch meanwhile
        batches = 2
    return tokens * batches


def cpu_kv_cache_bytes(plan: ServePlan, shape: ModelShape) -> int:
    """The KV cache each CPU rank gets when the plan does not say: an equal share of 512 MiB, so that every
    split holds about the same number of tokens, and at least one request of the full context length."""
    longest = plan.max_model_len or shape.default_max_model_len
    needed = max(layout.bytes_for(longest) for layout in kv_layouts(plan, shape, "cpu"))
    return max(CPU_KV_CACHE_BYTES // plan.split_size, needed)
