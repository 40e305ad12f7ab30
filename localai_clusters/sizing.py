"""How many bytes each rank will hold: weights and KV cache, from the model's shape and the split.

The formulas of the weights are in weight_bytes.py, the blocks of the KV cache in kv_cache.py.
"""

import functools
from dataclasses import dataclass
from itertools import accumulate

from localai_clusters.models import ModelShape
from localai_clusters.models.attention import LINEAR
from localai_clusters.models.linears import WHOLE, layer_linears
from localai_clusters.plan import ServePlan
from localai_clusters.vllm_flags import is_on, value_of
from localai_clusters.weight_bytes import DTYPE_BYTES, all_layers_bytes, ends_bytes, padded_vocab_size

MIB = 1 << 20
GIB = 1 << 30
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
    kv_bytes_per_token: int  # of a token that every layer still keeps
    kv_cache_bytes: int | None

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that this rank's KV cache holds, if every layer keeps every token."""
        return None if self.kv_cache_bytes is None else self.kv_cache_bytes // self.kv_bytes_per_token


def unpredicted(shape: ModelShape) -> str | None:
    """What of a model's weights the formulas here do not cover; None where they cover it all."""
    if shape.quantization is not None and (shape.quantized is None or shape.quantized.bits is None):
        return "quantized"
    if shape.num_experts and shape.experts is None:
        return "mixture-of-experts"
    if shape.layers_of(LINEAR):
        return "linear-attention"
    if shape.family is None:
        return shape.model_type
    return None


def can_predict(shape: ModelShape) -> bool:
    """Whether the formulas here hold for all that a rank holds of this model, its vision tower too."""
    return unpredicted(shape) is None and not shape.towers


def dtype_of(plan: ServePlan, shape: ModelShape) -> str:
    """The dtype vLLM will use: as asked, or for ``auto`` the checkpoint's, halved if that is float32."""
    if plan.dtype != "auto":
        return plan.dtype
    return "bfloat16" if shape.torch_dtype == "float32" else shape.torch_dtype


def kv_dtype_of(plan: ServePlan, shape: ModelShape) -> str:
    """What keys and values are kept in: ``--kv-cache-dtype``, else the checkpoint's wish, else the model's dtype.

    vllm/utils/torch_utils.py, resolve_kv_cache_dtype_string. For its packed formats (4 bits, a scale per head) the
    model's dtype stands in: they take less.
    """
    asked = value_of(plan.extra_args, "--kv-cache-dtype") or "auto"
    if asked in ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc"):
        return "fp8"
    if asked == "auto" and shape.quantized and shape.quantized.fp8_kv_cache:
        return "fp8"
    return asked if asked in ("bfloat16", "float16") else dtype_of(plan, shape)


def pipeline_layers(layers: int, stages: int) -> list[tuple[int, int]]:
    """[first, last) layer of each stage. What does not divide goes to the stages before the last, from
    the back: the last stage has the output head already (vllm/distributed/utils.py, get_pp_indices)."""
    counts = [layers // stages] * stages
    for position in range(2, layers % stages + 2):
        counts[-position] += 1
    return [(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True)]


def kv_heads_per_rank(shape: ModelShape, tensor_parallel_size: int) -> int:
    return max(1, shape.num_key_value_heads // tensor_parallel_size)


def rank_sizes(plan: ServePlan, shape: ModelShape) -> list[RankSize]:
    """What every rank of ``plan`` will hold. A split that does not divide rounds down; what is not predicted
    (``unpredicted``) is counted as if it were a dense layer in the plan's dtype."""
    return list(_rank_sizes(plan, shape))


@functools.lru_cache(maxsize=64)
def _rank_sizes(plan: ServePlan, shape: ModelShape) -> tuple[RankSize, ...]:
    dtype, tensor = dtype_of(plan, shape), plan.tensor_parallel_size
    stages = pipeline_layers(shape.num_hidden_layers, plan.pipeline_parallel_size)
    sharing = shape.experts is not None and tensor > 1 and is_on(plan.extra_args, "--enable-expert-parallel")
    kv_token = kv_bytes_per_token(shape, 1, tensor, kv_dtype_of(plan, shape))
    sums: dict[int | None, list[int]] = {}  # bytes of the first N layers, for a tensor parallel rank
    sizes = []
    for rank, stage, tensor_rank in plan.ranks():
        expert_rank = tensor_rank if sharing else None
        if expert_rank not in sums:
            layers = all_layers_bytes(shape, tensor, dtype, expert_rank)
            sums[expert_rank] = [0, *accumulate(layers)]
        first, last = stages[stage]
        sizes.append(
            RankSize(
                rank=rank,
                tensor_parallel_rank=tensor_rank,
                pipeline_parallel_rank=stage,
                layers=(first, last),
                weights_bytes=sums[expert_rank][last]
                - sums[expert_rank][first]
                + ends_bytes(shape, tensor, dtype, stage == 0, stage == len(stages) - 1),
                kv_bytes_per_token=max(1, (last - first) * kv_token),
                kv_cache_bytes=plan.kv_cache_memory_bytes,
            )
        )
    return tuple(sizes)


def kv_bytes_per_token(shape: ModelShape, layers: int, tensor_parallel_size: int, dtype: str) -> int:
    """Keys and values of one token in ``layers`` layers on one rank, in bytes.

    Llama-3.3-70B (80 layers, 8 KV heads of 128) unsplit in 16 bits: 2 x 80 x 8 x 128 x 2 = 327,680. With latent
    attention every rank keeps the whole latent vector: DeepSeek-V3, 61 x (512 + 64) x 2 = 70,272.
    """
    if shape.latent:
        width = shape.latent.kv_lora_rank + shape.latent.qk_rope_head_dim
    else:
        width = 2 * kv_heads_per_rank(shape, tensor_parallel_size) * shape.head_dim
    return layers * width * DTYPE_BYTES[dtype]


def kv_heads_fit(kv_heads: int, tensor: int) -> bool:
    """vLLM's rule: split evenly, or each repeated evenly when there are fewer than ranks."""
    return kv_heads % tensor == 0 if kv_heads >= tensor else tensor % kv_heads == 0


def unsplittable(shape: ModelShape, tensor: int, expert_parallel: bool = False) -> str | None:
    """What of the model ``tensor`` ranks cannot share equally, with its number; None if they can."""
    if shape.num_attention_heads % tensor:
        return f"{shape.num_attention_heads} attention heads"
    family = shape.family
    if not shape.latent and not kv_heads_fit(shape.num_key_value_heads, tensor):
        return f"{shape.num_key_value_heads} KV heads"
    if family and family.kv_heads_split_only and tensor > shape.num_key_value_heads:
        return f"{shape.num_key_value_heads} KV heads (which vLLM does not repeat for this model)"
    for layer in distinct_layers(shape) if family else ():
        for linear in layer_linears(shape, layer):
            if linear.split == WHOLE or linear.fits(tensor) or (expert_parallel and linear.copies > 1):
                continue
            kind = "experts" if linear.copies > 1 else "shared experts" if "shared" in linear.module else "an MLP"
            return f"{kind} of {linear.parts[0].units if linear.split != 'row' else linear.inputs} columns"
    if padded_vocab_size(shape) % tensor:
        return f"a vocabulary of {padded_vocab_size(shape)} (padded)"
    return None


def distinct_layers(shape: ModelShape) -> list[int]:
    """One layer with experts and one without, where there are both."""
    first: dict[bool, int] = {}
    for layer in range(shape.num_hidden_layers):
        first.setdefault(shape.has_experts(layer), layer)
    return sorted(first.values())


def tensor_parallel_sizes(shape: ModelShape, limit: int = 64, expert_parallel: bool = False) -> list[int]:
    """The tensor parallel sizes that vLLM can split this model into, up to ``limit``."""
    sizes = range(1, min(limit, shape.num_attention_heads) + 1)
    return [size for size in sizes if unsplittable(shape, size, expert_parallel) is None]


def size_of(count: int) -> str:
    """``count`` bytes for a person: ``137 MiB``, ``2.5 GiB``."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"
