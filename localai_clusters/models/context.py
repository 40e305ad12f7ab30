"""How many tokens a model takes, from config.json, as vLLM reads it: vllm/config/model.py, _get_and_verify_max_len."""

from collections.abc import Mapping

from localai_clusters.models.config_json import POSITIONS, checked_integer, integer, part, refusal

# Scalings that max_position_embeddings has in it already.
SCALED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")


def positions(config: Mapping) -> int:
    if config.get("model_max_length") is not None:  # Cohere's, which goes before all others
        return integer(config, "model_max_length")
    found = [checked_integer(key, config[key]) for key in POSITIONS if config.get(key) is not None]
    if not found:
        raise refusal("max_position_embeddings is missing")
    return min(found)


def _rope(config: Mapping) -> list[Mapping]:
    """RoPE's parameters: one object, or one for each kind of layer."""
    rope = part(config, "rope_parameters") or part(config, "rope_scaling")
    nested = [value for value in rope.values() if isinstance(value, Mapping)]
    return nested or ([rope] if rope else [])


def context_scaling(config: Mapping, model_type: str) -> float:
    if "gemma3" in model_type:  # its max_position_embeddings is scaled already
        return 1.0
    factor = 1.0
    for rope in _rope(config):
        if (rope.get("rope_type") or rope.get("type")) not in SCALED_ALREADY:
            found = rope.get("factor", factor)
            factor = 1.0 if found is None else found
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < 1e6:
        raise refusal(f"rope_scaling.factor must be a number above 0, not {str(factor)[:80]!r}")
    return float(factor)


def usual_context(config: Mapping) -> int | None:
    """LongRoPE works worse on short requests, so vLLM starts from the length before it."""
    if any((rope.get("rope_type") or rope.get("type")) in ("longrope", "su") for rope in _rope(config)):
        return integer(config, "original_max_position_embeddings", default=0, least=0) or None
    return None
