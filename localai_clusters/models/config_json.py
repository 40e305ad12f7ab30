"""Reading single keys of a config.json, whose types nobody has checked."""

from collections.abc import Iterable, Mapping
from typing import Any

from localai_clusters.models.errors import ModelError

# What other architectures call the same thing in their config.json.
ALIASES = {
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "intermediate_size": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "num_experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "num_experts_per_tok": ("num_experts_per_tok", "experts_per_token", "moe_topk"),
}
# vLLM takes the smallest (transformers_utils/model_arch_config_convertor.py, derive_max_model_len_and_key).
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "seq_len")


def refusal(problem: str) -> ModelError:
    """What is wrong with a config.json, for the caller to raise."""
    return ModelError(f"config.json: {problem}; take the config.json that the model was published with")


def integer(config: Mapping, key: str, default: int | None = None, least: int = 1) -> int:
    """A whole number of at least ``least`` under any of the names that the key goes by."""
    name = next((alias for alias in ALIASES.get(key, (key,)) if config.get(alias) is not None), None)
    if name is None:
        if default is None:
            raise refusal(f"{key} is missing")
        return default
    return checked_integer(name, config[name], least)


def checked_integer(name: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        shown = repr(value) if not isinstance(value, int) or value.bit_length() < 64 else "a number far too large"
        raise refusal(f"{name} must be a whole number from {least} to 2147483647, not {shown[:80]}")
    return value


def flag(config: Mapping, key: str, default: bool) -> bool:
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise refusal(f"{key} must be true or false, not {str(value)[:80]!r}")
    return value


def text(value: object, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise refusal(f"{key} is missing" if value is None else f"{key} must be a name, not {str(value)[:80]!r}")
    return value


def names(value: object, key: str) -> tuple[str, ...]:
    """A list of texts, null and a single text among them."""
    listed = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(listed, Iterable) or isinstance(listed, Mapping):
        raise refusal(f"{key} must be a list of names, not {str(value)[:80]!r}")
    return tuple(text(name, key) for name in listed)


def part(config: Mapping, key: str) -> Mapping:
    """An object within the config; empty where it is absent or null."""
    value = config.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise refusal(f"{key} must be a JSON object")
    return value or {}
