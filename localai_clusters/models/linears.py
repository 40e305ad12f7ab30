"""The matrices of a decoder layer as vLLM lays them out, and what a tensor-parallel rank holds of each.

q/k/v and gate/up stand beside each other and are split by column, o and down by row, as in Megatron-LM (Shoeybi et al.
2019, section 3). KV heads are split while there are enough and repeated when there are fewer than ranks
(vllm/model_executor/layers/linear.py, QKVParallelLinear). Experts are split like a dense MLP, or shared out whole with
expert parallelism (fused_moe/expert_map_manager.py); the router is on every rank. Of latent attention (MLA) the
projections into the latent space are on every rank, those out of it split by head (models/deepseek_v2.py).
"""

from dataclasses import dataclass

from localai_clusters.models.families import Family
from localai_clusters.models.shape import ModelShape

COLUMN, ROW, WHOLE = "column", "row", "whole"


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix of the checkpoint: ``units`` that ranks share out (heads, or single columns), each ``width`` wide."""

    name: str  # "q_proj"
    units: int
    width: int = 1
    repeated: bool = False  # held by several ranks where there are fewer units than ranks

    def fits(self, tensor: int) -> bool:
        """Whether ``tensor`` ranks can have equal shares."""
        if self.repeated and self.units < tensor:
            return tensor % self.units == 0
        return self.units % tensor == 0

    def columns(self, tensor: int) -> int:
        """Output columns on one of ``tensor`` ranks."""
        return (max(1, self.units // tensor) if self.repeated else self.units // tensor) * self.width


@dataclass(frozen=True, slots=True)
class Linear:
    """Matrices that vLLM keeps as one, ``inputs`` rows by the columns of all its parts together."""

    module: str  # within the layer: "self_attn", "mlp.experts"
    parts: tuple[Part, ...]
    inputs: int
    split: str  # COLUMN, ROW or WHOLE
    bias: bool = False
    copies: int = 1  # as many as there are experts
    plain: bool = False  # never quantized: a router

    @property
    def names(self) -> str:
        """``q_proj, k_proj and v_proj``"""
        names = [part.name for part in self.parts]
        return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

    def fits(self, tensor: int) -> bool:
        if self.split == ROW:
            return self.inputs % tensor == 0
        return self.split == WHOLE or all(part.fits(tensor) for part in self.parts)

    def rows(self, tensor: int) -> int:
        """Input rows on one of ``tensor`` ranks."""
        return self.inputs // tensor if self.split == ROW else self.inputs

    def columns(self, tensor: int) -> list[int]:
        """Output columns of each part on one of ``tensor`` ranks."""
        return [part.columns(tensor if self.split == COLUMN else 1) for part in self.parts]


def layer_linears(shape: ModelShape, layer: int) -> list[Linear]:
    """Every linear layer of decoder layer ``layer``. For families that are not known, those of Llama."""
    family = shape.family or Family()
    attention, mlp, experts_name, shared_name = family.modules
    linears = _latent_attention(shape, attention) if shape.latent else _attention(shape, attention)
    experts = shape.experts
    if not shape.has_experts(layer):
        return linears + _mlp(mlp, shape.hidden_size, shape.intermediate_size, family.gated, shape.mlp_bias)
    linears.append(
        Linear(mlp, (Part("gate", experts.count),), shape.hidden_size, WHOLE, bias=experts.router_bias, plain=True)
    )
    linears += _mlp(
        experts_name, shape.hidden_size, experts.intermediate_size, True, family.experts_bias, experts.count
    )
    if experts.shared_intermediate_size:
        linears += _mlp(shared_name, shape.hidden_size, experts.shared_intermediate_size, True, False)
    return linears


def _attention(shape: ModelShape, module: str) -> list[Linear]:
    heads, kv_heads, width, hidden = (
        shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim, shape.hidden_size
    )  # fmt: skip
    qkv = (
        Part("q_proj", heads, width),
        Part("k_proj", kv_heads, width, repeated=True),
        Part("v_proj", kv_heads, width, repeated=True),
    )
    return [
        Linear(module, qkv, hidden, COLUMN, bias=shape.attention_bias),
        Linear(module, (Part("o_proj", hidden),), heads * width, ROW, bias=shape.output_bias),
    ]


def _latent_attention(shape: ModelShape, module: str) -> list[Linear]:
    latent, heads, hidden = shape.latent, shape.num_attention_heads, shape.hidden_size
    query = latent.qk_nope_head_dim + latent.qk_rope_head_dim
    into = Part("kv_a_proj_with_mqa", latent.kv_lora_rank + latent.qk_rope_head_dim)
    if latent.q_lora_rank:
        linears = [
            Linear(module, (Part("q_a_proj", latent.q_lora_rank), into), hidden, WHOLE),
            Linear(module, (Part("q_b_proj", heads, query),), latent.q_lora_rank, COLUMN),
        ]
    else:
        linears = [
            Linear(module, (into,), hidden, WHOLE),
            Linear(module, (Part("q_proj", heads, query),), hidden, COLUMN),
        ]
    out = Part("kv_b_proj", heads, latent.qk_nope_head_dim + latent.v_head_dim)
    return [
        *linears,
        Linear(module, (out,), latent.kv_lora_rank, COLUMN),
        Linear(module, (Part("o_proj", hidden),), heads * latent.v_head_dim, ROW),
    ]


def _mlp(module: str, hidden: int, size: int, gated: bool, bias: bool, copies: int = 1) -> list[Linear]:
    up = (Part("gate_proj", size), Part("up_proj", size)) if gated else (Part("up_proj", size),)
    return [
        Linear(module, up, hidden, COLUMN, bias, copies),
        Linear(module, (Part("down_proj", hidden),), size, ROW, bias, copies),
    ]


def rest_of_layer(shape: ModelShape, layer: int, tensor: int) -> int:
    """Parameters of a layer's norms and the like on one rank; for DeepSeek's float32 bias as so many of 16 bits."""
    family = shape.family or Family()
    parameters = family.norms * shape.hidden_size * (2 if family.norm_bias else 1)
    if shape.qk_norm:
        parameters += 2 * shape.head_dim
    if family.sinks:
        parameters += shape.num_attention_heads // tensor
    if shape.latent:
        parameters += shape.latent.kv_lora_rank + (shape.latent.q_lora_rank or 0)
    if shape.has_experts(layer) and shape.experts.score_correction:
        parameters += 2 * shape.experts.count
    return parameters
