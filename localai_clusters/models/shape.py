"""A decoder's shape, read from its config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from localai_clusters.models.errors import ModelError
from localai_clusters.models.json_file import read_json

# What other architectures call the same thing in their config.json.
_ALIASES = {
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "intermediate_size": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "num_key_value_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "vocab_size": ("vocab_size",),
    "num_experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "max_seq_len"),
}
_DTYPES = ("bfloat16", "float16", "float32")
# Read when the key is absent, which means the architecture's own default; Llama's, Qwen's and Mistral's is False.
_TIED_BY_DEFAULT = ("gemma", "gpt2", "opt", "cohere", "bloom")


def _refuse(problem: str) -> ModelError:
    return ModelError(f"config.json: {problem}; take the config.json that the model was published with")


def _integer(config: Mapping, key: str, default: int | None = None) -> int:
    """A positive integer under any of the names the key goes by."""
    name = next((alias for alias in _ALIASES[key] if config.get(alias) is not None), None)
    if name is None:
        if default is None:
            raise _refuse(f"{key} is missing")
        return default
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        shown = repr(value) if not isinstance(value, int) or value.bit_length() < 64 else "a number far too large"
        raise _refuse(f"{name} must be a whole number from 1 to 2147483647, not {shown[:80]}")
    return value


def _flag(config: Mapping, key: str, default: bool) -> bool:
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _refuse(f"{key} must be true or false, not {str(value)[:80]!r}")
    return value


def _text(value: object, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise _refuse(f"{key} is missing" if value is None else f"{key} must be a name, not {str(value)[:80]!r}")
    return value


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a config.json says of a decoder's size, in elements (not bytes)."""

    architecture: str  # as vLLM registers it, "LlamaForCausalLM"
    model_type: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int  # tokens
    tie_word_embeddings: bool
    torch_dtype: str  # "bfloat16", "float16" or "float32", as stored
    quantization: str | None = None  # quantization_config.quant_method
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # a norm of head_dim elements on q and on k in each layer (Qwen3)
    num_experts: int = 0  # > 0: a mixture of experts, whose MLP is not one of intermediate_size

    @classmethod
    def from_config(cls, config: Mapping) -> "ModelShape":
        """Reads a config.json already parsed. Raises ModelError naming the key that is missing or ill-typed."""
        if not isinstance(config, Mapping):
            raise _refuse("must hold a JSON object")
        outer = config
        if isinstance(config.get("text_config"), Mapping):  # the language model within a multimodal one
            config = {key: value for key, value in outer.items() if key != "text_config"} | config["text_config"]
        architectures = outer.get("architectures")
        if architectures is not None and (not isinstance(architectures, list) or not architectures):
            raise _refuse("architectures must be a list of names, such as ['LlamaForCausalLM']")
        architecture = _text(architectures[0] if architectures else None, "architectures")
        model_type = _text(config.get("model_type"), "model_type")

        heads, hidden = _integer(config, "num_attention_heads"), _integer(config, "hidden_size")
        kv_heads = _integer(config, "num_key_value_heads", default=heads)  # absent: one KV head per query head
        if heads % kv_heads:
            raise _refuse(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
        if config.get("head_dim") is None and hidden % heads:
            raise _refuse(f"head_dim is missing, and hidden_size {hidden} is no multiple of its {heads} heads")

        dtype = config.get("dtype") or config.get("torch_dtype") or "float32"  # absent means torch's default
        dtype = _text(dtype, "torch_dtype").removeprefix("torch.")
        if dtype not in _DTYPES:
            raise _refuse(f"torch_dtype must be one of {', '.join(_DTYPES)}, not {dtype[:80]!r}")
        quantization = outer.get("quantization_config") or config.get("quantization_config")
        if quantization is not None and not isinstance(quantization, Mapping):
            raise _refuse("quantization_config must be a JSON object")
        gpt2 = model_type == "gpt2"  # leaves n_inner null for 4 * n_embd
        return cls(
            architecture=architecture,
            model_type=model_type,
            num_hidden_layers=_integer(config, "num_hidden_layers"),
            hidden_size=hidden,
            intermediate_size=_integer(config, "intermediate_size", default=4 * hidden if gpt2 else None),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=_integer(config, "head_dim", default=hidden // heads),
            vocab_size=_integer(config, "vocab_size"),
            max_position_embeddings=_integer(config, "max_position_embeddings"),
            tie_word_embeddings=_flag(config, "tie_word_embeddings", model_type.startswith(_TIED_BY_DEFAULT)),
            torch_dtype=dtype,
            quantization=_text(quantization.get("quant_method"), "quantization_config.quant_method")
            if quantization
            else None,
            # Qwen2 has biases on q, k and v and no key that says so.
            attention_bias=_flag(config, "attention_bias", model_type.startswith("qwen2")),
            mlp_bias=_flag(config, "mlp_bias", False),
            qk_norm=model_type.startswith("qwen3"),
            num_experts=_integer(config, "num_experts", default=0),
        )

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelShape":
        """Reads folder/config.json (at most 10 MB). Raises ModelError naming the file."""
        path = Path(folder) / "config.json"
        config = read_json(path)
        try:
            return cls.from_config(config)
        except ModelError as error:
            raise ModelError(f"{path.parent}/{error}") from None
