"""What vLLM's implementation of a family has that its config.json does not say: norms, biases, names, defaults.

One entry per model_type (of the text model, where a config nests one). Each was held, to the byte, to the parameters
that vLLM's own class creates (tests/test_model_families.py).
"""

from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """``None`` for a bias: as the config's attention_bias or mlp_bias says, and none where it says nothing."""

    norms: int = 2  # of hidden_size, in each layer
    norm_bias: bool = False  # LayerNorm with a bias, not RMSNorm
    qkv_bias: bool | None = None
    output_bias: bool | None = False  # of the attention's output projection
    mlp_bias: bool | None = False
    gated: bool = True  # gate and up beside each other, then down; else up, then down
    qk_norm: bool = False  # a norm of head_dim elements on q and one on k
    sinks: bool = False  # one element a head
    tied: bool = False  # where the config has no tie_word_embeddings
    learned_positions: int | None = None  # rows of a position embedding beyond max_position_embeddings; None: none
    full_attention_every: int = 0  # n > 0: of n layers n - 1 look back a sliding window only, the n-th at all
    experts_bias: bool = False
    kv_heads_split_only: bool = False  # vLLM does not repeat its KV heads when there are fewer than ranks
    ends_everywhere: bool = False  # embedding, final norm and output head on every pipeline stage
    prefix: str = "model.layers.{}"
    # (attention, mlp, experts, shared experts), as the checkpoint names them within a layer
    modules: tuple[str, str, str, str] = ("self_attn", "mlp", "mlp.experts", "mlp.shared_experts")
    # What the family's own configuration class fills in where the key is absent.
    defaults: MappingProxyType = field(default_factory=lambda: MappingProxyType({}))


_GEMMA3 = {
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
    "sliding_window": 4096,
}  # fmt: skip
_LLAMA = Family(output_bias=None, mlp_bias=None)
_DEEPSEEK = Family()

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "granite": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": Family(ends_everywhere=True, modules=("self_attn", "mlp", "block_sparse_moe.experts", "")),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
    "qwen3_moe": Family(qk_norm=True, ends_everywhere=True),
    "gemma": Family(tied=True, ends_everywhere=True, output_bias=None),
    "gemma2": Family(norms=4, tied=True, ends_everywhere=True, output_bias=None, full_attention_every=2),
    "gemma3_text": Family(
        norms=4,
        tied=True,
        ends_everywhere=True,
        output_bias=None,
        qk_norm=True,
        full_attention_every=6,
        defaults=MappingProxyType(_GEMMA3),
    ),
    "phi3": Family(),
    "glm4": Family(norms=4),
    "cohere": Family(norms=1, tied=True, ends_everywhere=True),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "gpt_oss": Family(
        qkv_bias=True,
        output_bias=True,
        sinks=True,
        experts_bias=True,
        ends_everywhere=True,
        full_attention_every=2,
        kv_heads_split_only=True,
    ),
    "llama4_text": Family(modules=("self_attn", "feed_forward", "feed_forward.experts", "feed_forward.shared_expert")),
    "opt": Family(
        norm_bias=True,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        gated=False,
        tied=True,
        learned_positions=2,
        ends_everywhere=True,
        prefix="model.decoder.layers.{}",
    ),
    "gpt2": Family(
        norm_bias=True,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        gated=False,
        tied=True,
        learned_positions=0,
        ends_everywhere=True,
        prefix="transformer.h.{}",
    ),
}
# Of families that are not above, only whether the embedding is the output head too is known.
TIED_BY_DEFAULT = ("gemma", "gpt2", "opt", "cohere", "bloom")


def family_of(model_type: str) -> Family | None:
    """The family by its model_type; None for one whose layers are not known here."""
    return FAMILIES.get(model_type)
