"""How far back each layer looks, and what DeepSeek's latent attention keeps: read from config.json."""

from collections.abc import Mapping
from dataclasses import dataclass

from localai_clusters.models.config_json import integer, names, refusal
from localai_clusters.models.families import Family

FULL, SLIDING, CHUNKED, LINEAR = "full_attention", "sliding_attention", "chunked_attention", "linear_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """DeepSeek's multi-head latent attention (MLA): keys and values are kept as one latent vector for all heads."""

    kv_lora_rank: int
    q_lora_rank: int | None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    @classmethod
    def from_config(cls, config: Mapping) -> "LatentAttention | None":
        if config.get("kv_lora_rank") is None:
            return None
        return cls(
            kv_lora_rank=integer(config, "kv_lora_rank"),
            q_lora_rank=integer(config, "q_lora_rank", default=0, least=0) or None,
            qk_nope_head_dim=integer(config, "qk_nope_head_dim"),
            qk_rope_head_dim=integer(config, "qk_rope_head_dim"),
            v_head_dim=integer(config, "v_head_dim"),
        )


def layer_kinds(config: Mapping, family: Family, layers: int) -> tuple[str, ...]:
    """Each layer's attention, as the configuration classes of transformers work it out."""
    listed = names(config.get("layer_types"), "layer_types")
    if listed:
        if len(listed) != layers:
            raise refusal(f"layer_types has {len(listed)} entries, and there are {layers} layers")
        return listed
    if config["model_type"] == "llama4_text":  # the layers without RoPE look back at all
        every = integer(config, "no_rope_layer_interval", default=4)
        return tuple(FULL if (layer + 1) % every == 0 else CHUNKED for layer in range(layers))
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if not window:
        return (FULL,) * layers
    every = integer(config, "sliding_window_pattern", default=family.full_attention_every or 1)
    if family.full_attention_every:
        return tuple(FULL if (layer + 1) % every == 0 else SLIDING for layer in range(layers))
    first = integer(config, "max_window_layers", default=0, least=0)
    return tuple(SLIDING if layer >= first else FULL for layer in range(layers))


def window_of(config: Mapping, kinds: tuple[str, ...]) -> int | None:
    if SLIDING in kinds:
        return integer(config, "sliding_window")
    return integer(config, "attention_chunk_size", default=8192) if CHUNKED in kinds else None
