"""How many bytes each rank will hold: weights and KV cache, from the model's shape and the split.

Dense decoder-only models (Llama, Qwen, Mistral and their like). Sources: the linear layers are split
as in Megatron-LM (Shoeybi et al. 2019, section 3): q/k/v and gate/up by column, o and down by row;
norms are on every rank. The embedding is split over the vocabulary, padded to a multiple of 64
(vllm/model_executor/layers/vocab_parallel_embedding.py). KV heads are split while there are enough
and repeated when there are fewer than ranks (vllm/config/model.py, get_num_kv_heads).
"""

from dataclasses import dataclass
from itertools import accumulate

from localai_clusters.models import ModelShape
from localai_clusters.plan import ServePlan

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MIB = 1 << 20
GIB = 1 << 30
VOCAB_PADDING = 64
CPU_BLOCK_TOKENS = 128  # of the KV cache (vllm/platforms/cpu.py)
CPU_KV_CACHE_BYTES = 512 << 20  # over all ranks; vLLM's own default on a CPU is a share of all memory per rank
# Resident memory of a rank beside weights and KV cache: Python, torch, vLLM and its activations.
# Measured for the built-in model; rank 0 also runs the HTTP server.
CPU_RUNTIME_BYTES = 900 << 20


@dataclass(frozen=True, slots=True)
class RankSize:
    """What one rank will hold, in bytes; ``layers`` is [first, last)."""

    rank: int
    tensor_parallel_rank: int
    pipeline_parallel_rank: int
    layers: tuple[int, int]
    weights_bytes: int
    kv_bytes_per_token: int
    kv_cache_bytes: int | None

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that this rank's KV cache holds."""
        return None if self.kv_cache_bytes is None else self.kv_cache_bytes // self.kv_bytes_per_token


def can_predict(shape: ModelShape) -> bool:
    """Whether the formulas here hold for the weights: not for quantized ones nor for a mixture of experts."""
    return not shape.num_experts and shape.quantization is None


def dtype_of(plan: ServePlan, shape: ModelShape) -> str:
    """The dtype vLLM will use: as asked, or for ``auto`` the checkpoint's, halved if that is float32."""
    if plan.dtype != "auto":
        return plan.dtype
    return "bfloat16" if shape.torch_dtype == "float32" else shape.torch_dtype


def pipeline_layers(layers: int, stages: int) -> list[tuple[int, int]]:
    """[first, last) layer of each stage. What does not divide goes to the stages before the last, from
    the back: the last stage has the output head already (vllm/distributed/utils.py, get_pp_indices)."""
    counts = [layers // stages] * stages
    for position in range(2, layers % stages + 2):
        counts[-position] += 1
    return [(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True)]


def kv_heads_per_rank(shape: ModelShape, tensor_parallel_size: int) -> int:
    return max(1, shape.num_key_value_heads // tensor_parallel_size)


def layer_parameters(shape: ModelShape, tensor_parallel_size: int) -> int:
    """Parameters of one decoder layer on one rank."""
    heads = shape.num_attention_heads // tensor_parallel_size
    kv_heads = kv_heads_per_rank(shape, tensor_parallel_size)
    intermediate = shape.intermediate_size // tensor_parallel_size
    qkv = (heads + 2 * kv_heads) * shape.head_dim
    parameters = shape.hidden_size * qkv + heads * shape.head_dim * shape.hidden_size
    parameters += 3 * shape.hidden_size * intermediate
    parameters += 2 * shape.hidden_size
    if shape.attention_bias:
        parameters += qkv
    if shape.mlp_bias:
        parameters += 2 * intermediate + shape.hidden_size
    if shape.qk_norm:
        parameters += 2 * shape.head_dim
    return parameters


def padded_vocab_size(shape: ModelShape) -> int:
    return -(-shape.vocab_size // VOCAB_PADDING) * VOCAB_PADDING


def embedding_parameters(shape: ModelShape, tensor_parallel_size: int) -> int:
    return padded_vocab_size(shape) // tensor_parallel_size * shape.hidden_size


def kv_bytes_per_token(shape: ModelShape, layers: int, tensor_parallel_size: int, dtype: str) -> int:
    """Keys and values of one token in ``layers`` layers on one rank, in bytes.

    Llama-3.3-70B (80 layers, 8 KV heads of 128) unsplit in 16 bits: 2 x 80 x 8 x 128 x 2 = 327,680.
    """
    return 2 * layers * kv_heads_per_rank(shape, tensor_parallel_size) * shape.head_dim * DTYPE_BYTES[dtype]


def rank_sizes(plan: ServePlan, shape: ModelShape) -> list[RankSize]:
    """What every rank of ``plan`` will hold. For unquantized weights; a split that does not divide rounds down."""
    dtype, tensor = dtype_of(plan, shape), plan.tensor_parallel_size
    stages = pipeline_layers(shape.num_hidden_layers, plan.pipeline_parallel_size)
    embedding = embedding_parameters(shape, tensor)
    sizes = []
    for rank, stage, tensor_rank in plan.ranks():
        first, last = stages[stage]
        is_first, is_last = stage == 0, stage == len(stages) - 1
        parameters = (last - first) * layer_parameters(shape, tensor)
        if is_first or (is_last and shape.tie_word_embeddings):
            parameters += embedding
        if is_last:
            parameters += shape.hidden_size  # the final norm
            if not shape.tie_word_embeddings:
                parameters += embedding
        sizes.append(
            RankSize(
                rank=rank,
                tensor_parallel_rank=tensor_rank,
                pipeline_parallel_rank=stage,
                layers=(first, last),
                weights_bytes=parameters * DTYPE_BYTES[dtype],
                kv_bytes_per_token=max(1, kv_bytes_per_token(shape, last - first, tensor, dtype)),
                kv_cache_bytes=plan.kv_cache_memory_bytes,
            )
        )
    return sizes


def cpu_kv_cache_bytes(plan: ServePlan, shape: ModelShape) -> int:
    """The KV cache each CPU rank gets when the plan does not say: an equal share of 512 MiB, so that every
    split holds about the same number of tokens, and at least one request of the full context length."""
    longest = plan.max_model_len or shape.max_position_embeddings
    blocks = -(-longest // CPU_BLOCK_TOKENS) + 1  # vLLM allocates whole blocks and keeps one of them back
    needed = max(size.kv_bytes_per_token for size in rank_sizes(plan, shape)) * blocks * CPU_BLOCK_TOKENS
    return max(CPU_KV_CACHE_BYTES // plan.split_size, needed)


def kv_heads_fit(kv_heads: int, tensor: int) -> bool:
    """vLLM's rule: split evenly, or each repeated evenly when there are fewer than ranks."""
    return kv_heads % tensor == 0 if kv_heads >= tensor else tensor % kv_heads == 0


def tensor_parallel_sizes(shape: ModelShape, limit: int = 64) -> list[int]:
    """The tensor parallel sizes that vLLM can split this model into, up to ``limit``."""
    return [
        size
        for size in range(1, min(limit, shape.num_attention_heads) + 1)
        if shape.num_attention_heads % size == 0
        and kv_heads_fit(shape.num_key_value_heads, size)
        and shape.intermediate_size % size == 0
        and padded_vocab_size(shape) % size == 0
    ]


def size_of(count: int) -> str:
    """``count`` bytes for a person: ``137 MiB``, ``2.5 GiB``."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"
