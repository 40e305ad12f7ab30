"""A decoder's shape, read from its config.json."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from localai_clusters.models.attention import FULL, LatentAttention, layer_kinds, window_of
from localai_clusters.models.config_json import flag, integer, refusal, text
from localai_clusters.models.context import context_scaling, positions, usual_context
from localai_clusters.models.errors import ModelError
from localai_clusters.models.experts import Experts
from localai_clusters.models.families import TIED_BY_DEFAULT, Family, family_of
from localai_clusters.models.json_file import read_json
from localai_clusters.models.quantization import Quantization

DTYPES = ("bfloat16", "float16", "float32")
MOST_LAYERS = 10_000  # each is counted by itself
TOWERS = ("vision_config", "audio_config", "vision_tower_config", "speech_config")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a config.json says of a decoder's size, in elements (not bytes)."""

    architecture: str  # as vLLM registers it, "LlamaForCausalLM"
    model_type: str  # of the language model within
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int  # of a dense MLP
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int  # tokens
    tie_word_embeddings: bool
    torch_dtype: str  # "bfloat16", "float16" or "float32", as stored
    quantization: str | None = None  # the method, in vLLM's spelling
    attention_bias: bool = False  # on q, k and v
    output_bias: bool = False  # on the attention's output projection
    mlp_bias: bool = False
    qk_norm: bool = False  # a norm of head_dim elements on q and on k in each layer (Qwen3)
    num_experts: int = 0  # > 0: a mixture of experts, whose MLP is not one of intermediate_size
    experts: Experts | None = None
    latent: LatentAttention | None = None
    sliding_window: int | None = None  # tokens that a layer of kind SLIDING looks back, or of a chunk of a CHUNKED one
    layer_kinds: tuple[str, ...] = ()  # each layer's attention; empty: all FULL
    context_scaling: float = 1.0  # by which RoPE scaling multiplies max_position_embeddings
    usual_context: int | None = None  # vLLM's max_model_len where none is asked for, if not longest_context
    quantized: Quantization | None = None
    towers: tuple[str, ...] = ()  # "vision_config", ...: what stands beside the language model

    @property
    def longest_context(self) -> int:
        """Tokens that vLLM lets a request have (vllm/config/model.py, _get_and_verify_max_len)."""
        return int(self.max_position_embeddings * self.context_scaling)

    @property
    def default_max_model_len(self) -> int:
        """What vLLM takes for max_model_len where none is given."""
        return self.usual_context or self.longest_context

    @property
    def family(self) -> Family | None:
        return family_of(self.model_type)

    def layers_of(self, kind: str) -> list[int]:
        """The numbers of the layers whose attention is of this kind."""
        kinds = self.layer_kinds or (FULL,) * self.num_hidden_layers
        return [number for number, its in enumerate(kinds) if its == kind]

    def has_experts(self, layer: int) -> bool:
        experts = self.experts
        return bool(experts) and layer >= experts.dense_layers and (layer + 1) % experts.layer_step == 0

    @classmethod
    def from_config(cls, config: Mapping) -> "ModelShape":
        """Reads a config.json already parsed. Raises ModelError naming the key that is missing or ill-typed."""
        if not isinstance(config, Mapping):
            raise refusal("must hold a JSON object")
        if config.get("is_encoder_decoder") is True:
            model_type = str(config.get("model_type"))[:80]
            raise ModelError(
                f"config.json: {model_type} is an encoder and a decoder; vLLM generates with decoders alone"
            )
        outer = config
        nested = next((key for key in ("text_config", "llm_config", "language_config")
                       if isinstance(config.get(key), Mapping)), None)  # fmt: skip
        if nested:  # the language model within a multimodal one
            config = {key: value for key, value in outer.items() if key != nested} | outer[nested]
        architectures = outer.get("architectures")
        if architectures is not None and (not isinstance(architectures, list) or not architectures):
            raise refusal("architectures must be a list of names, such as ['LlamaForCausalLM']")
        architecture = text(architectures[0] if architectures else None, "architectures")
        model_type = text(config.get("model_type"), "model_type")
        family = family_of(model_type) or Family(mlp_bias=None)
        config = {**family.defaults, **{key: value for key, value in config.items() if value is not None}}

        heads, hidden = integer(config, "num_attention_heads"), integer(config, "hidden_size")
        kv_heads = integer(config, "num_key_value_heads", default=heads)  # absent: one KV head per query head
        if heads % kv_heads:
            raise refusal(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
        latent = LatentAttention.from_config(config)
        if config.get("head_dim") is None and hidden % heads and latent is None:
            raise refusal(f"head_dim is missing, and hidden_size {hidden} is no multiple of its {heads} heads")

        dtype = outer.get("dtype") or outer.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype")
        dtype = text(dtype or "float32", "torch_dtype").removeprefix("torch.")  # absent means torch's default
        if dtype not in DTYPES:
            raise refusal(f"torch_dtype must be one of {', '.join(DTYPES)}, not {dtype[:80]!r}")
        quantized = Quantization.from_config(outer)
        biased = flag(config, "attention_bias", False)
        layers = integer(config, "num_hidden_layers")
        if layers > MOST_LAYERS:
            raise refusal(f"num_hidden_layers must be {MOST_LAYERS} at most, not {layers}")
        kinds = layer_kinds(config, family, layers)
        experts = Experts.from_config(config, model_type)
        return cls(
            architecture=architecture,
            model_type=model_type,
            num_hidden_layers=layers,
            hidden_size=hidden,
            intermediate_size=_intermediate_size(config, model_type, hidden),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=integer(config, "head_dim", default=max(1, hidden // heads)),
            vocab_size=integer(config, "vocab_size"),
            max_position_embeddings=positions(config),
            tie_word_embeddings=flag(
                config, "tie_word_embeddings", family.tied or model_type.startswith(TIED_BY_DEFAULT)
            ),
            torch_dtype=dtype,
            quantization=quantized.method if quantized else None,
            attention_bias=biased if family.qkv_bias is None else family.qkv_bias,
            output_bias=biased if family.output_bias is None else family.output_bias,
            mlp_bias=flag(config, "mlp_bias", False) if family.mlp_bias is None else family.mlp_bias,
            qk_norm=family.qk_norm or model_type.startswith("qwen3"),
            num_experts=experts.count if experts else integer(config, "num_experts", default=0, least=0),
            experts=experts,
            latent=latent,
            sliding_window=window_of(config, kinds),
            layer_kinds=kinds if set(kinds) - {FULL} else (),
            context_scaling=context_scaling(config, model_type),
            usual_context=usual_context(config),
            quantized=quantized,
            towers=tuple(key for key in TOWERS if isinstance(outer.get(key), Mapping)),
        )

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelShape":
        """Reads folder/config.json (at most 10 MB). Raises ModelError naming the file."""
        path = Path(folder) / "config.json"
        config = with_its_quantization(read_json(path), path.parent)
        try:
            return cls.from_config(config)
        except ModelError as error:
            raise ModelError(f"{path.parent}/{error}") from None

    def without_quantization(self) -> "ModelShape":
        """The same model with its weights in 16 bits."""
        return replace(self, quantization=None, quantized=None)


def with_its_quantization(config: Mapping, folder: Path) -> Mapping:
    """``config`` with what ModelOpt wrote into a file of its own (vllm/transformers_utils/config.py, get_config)."""
    if config.get("quantization_config") is None and (folder / "hf_quant_config.json").is_file():
        return {**config, "quantization_config": read_json(folder / "hf_quant_config.json")}
    return config


def _intermediate_size(config: Mapping, model_type: str, hidden: int) -> int:
    if model_type == "llama4_text":  # whose intermediate_size is an expert's
        return integer(config, "intermediate_size_mlp", default=integer(config, "intermediate_size"))
    return integer(config, "intermediate_size", default=4 * hidden if model_type == "gpt2" else None)
