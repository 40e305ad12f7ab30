"""A mixture of experts, read from the config.json of the families that are known."""

from collections.abc import Mapping
from dataclasses import dataclass

from localai_clusters.models.config_json import integer


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """The mixture of experts in place of a dense MLP."""

    count: int
    per_token: int
    intermediate_size: int  # of one routed expert
    shared_intermediate_size: int = 0  # of all shared experts together, which every token passes; 0: none
    dense_layers: int = 0  # so many first layers have a dense MLP
    layer_step: int = 1  # of the others every layer_step-th has experts
    router_bias: bool = False
    score_correction: bool = False  # a float32 bias for each expert (DeepSeek-V3)

    @classmethod
    def from_config(cls, config: Mapping, model_type: str) -> "Experts | None":
        """The experts of the families that are known; None for a dense model and for a mixture of another kind."""
        if not integer(config, "num_experts", default=0, least=0):
            return None
        count, per_token = integer(config, "num_experts"), integer(config, "num_experts_per_tok", default=1)
        if model_type in ("mixtral", "gpt_oss"):
            size = integer(config, "intermediate_size")
            return cls(count=count, per_token=per_token, intermediate_size=size, router_bias=model_type == "gpt_oss")
        if model_type == "qwen3_moe":
            if config.get("mlp_only_layers"):  # dense layers among the others: in no published one
                return None
            size, step = integer(config, "moe_intermediate_size"), integer(config, "decoder_sparse_step", default=1)
            return cls(count=count, per_token=per_token, intermediate_size=size, layer_step=step)
        if model_type == "llama4_text":
            size, step = integer(config, "intermediate_size"), integer(config, "interleave_moe_layer_step", default=1)
            return cls(
                count=count, per_token=per_token, intermediate_size=size, shared_intermediate_size=size, layer_step=step
            )
        if model_type in ("deepseek_v2", "deepseek_v3", "kimi_k2") and config.get("moe_layer_freq", 1) == 1:
            size = integer(config, "moe_intermediate_size")
            return cls(
                count=count,
                per_token=per_token,
                intermediate_size=size,
                shared_intermediate_size=size * integer(config, "n_shared_experts", default=0, least=0),
                dense_layers=integer(config, "first_k_dense_replace", default=0, least=0),
                score_correction=config.get("topk_method") == "noaux_tc",
            )
        return None
