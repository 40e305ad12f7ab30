"""What a checkpoint says of its quantization, in one form for the many that it is written in.

Spellings and precedence are vLLM's: vllm/transformers_utils/model_arch_config_convertor.py
(_normalize_quantization_config) and each method's ``from_config`` in vllm/model_executor/layers/quantization.
"""

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass

from localai_clusters.models.config_json import checked_integer, names, part, refusal, text

PER_TENSOR, PER_CHANNEL = 0, -1  # in place of a group size: one scale for a matrix, one for each of its columns
# ModelOpt's algorithm: (vLLM's method, bits of a weight, weights to a scale, bits of a scale)
MODELOPT = {
    "FP8": ("modelopt", 8, PER_TENSOR, 32),
    "FP8_PER_CHANNEL_PER_TOKEN": ("modelopt", 8, PER_CHANNEL, 32),
    "FP8_PB_WO": ("modelopt", 8, PER_TENSOR, 32),
    "NVFP4": ("modelopt_fp4", 4, 16, 8),
    "W4A16_NVFP4": ("modelopt_fp4", 4, 16, 8),
    "MXFP8": ("modelopt_mxfp8", 8, 32, 8),
    "MIXED_PRECISION": ("modelopt_mixed", None, PER_TENSOR, 0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How the weights of a checkpoint are stored. ``bits`` is None where this library cannot tell."""

    method: str  # in vLLM's spelling: "awq", "gptq", "fp8", "compressed-tensors", "modelopt_fp4"
    bits: int | None = None  # of a stored weight
    group_size: int = PER_TENSOR  # weights along the input that share a scale; or PER_TENSOR, PER_CHANNEL
    block: tuple[int, int] | None = None  # (outputs, inputs) that share a scale, for FP8 in blocks
    scale_bits: int = 0
    floating: bool = False  # weights are FP8 or FP4 numbers, not integers
    symmetric: bool = True  # around 0
    zero_points: bool = False  # whether one is stored beside each scale; GPTQ stores those of 0 too
    activation_bits: int = 16
    act_order: bool = False  # GPTQ's desc_act, compressed-tensors' actorder "group": the groups are not in order
    skipped: tuple[str, ...] = ()  # modules that are left as they were, as names, prefixes or patterns
    lm_head: bool = False  # whether the output head is quantized too
    fp8_kv_cache: bool = False  # the checkpoint asks for a KV cache in 8 bits
    lacks: tuple[str, ...] = ()  # keys that vLLM must have and the config does not

    def skips(self, module: str) -> bool:
        """Whether ``module`` (``model.layers.0.self_attn.q_proj``) keeps its 16 bits."""
        return any(_matches(entry, module) for entry in self.skipped)

    def describe(self) -> str:
        """``awq, 4 bits, groups of 128``"""
        words = [self.method]
        if self.bits:
            words.append(f"{'FP' if self.floating else ''}{self.bits}{'' if self.floating else ' bits'}")
        if self.block:
            words.append(f"blocks of {self.block[0]} x {self.block[1]}")
        elif self.group_size > 0:
            words.append(f"groups of {self.group_size}")
        return ", ".join(words)

    @classmethod
    def from_config(cls, config: Mapping) -> "Quantization | None":
        """From a config.json (with hf_quant_config.json's content as its quantization_config, if that is where it is).

        Raises ModelError for what nobody could load: no method, or values of the wrong type.
        """
        inner = part(config, "text_config")
        declared = next(
            (found for where in (config, inner) for key in ("quantization_config", "compression_config")
             if (found := part(where, key))), None)  # fmt: skip
        if declared is None:
            return None
        nested = declared.get("quantization")
        if isinstance(nested, Mapping) and (
            part(declared, "producer").get("name") == "modelopt" or "modelopt_quant_config" in nested
        ):
            return _modelopt(nested)
        method = text(declared.get("quant_method"), "quantization_config.quant_method").lower()
        method = method.replace("compressed_tensors", "compressed-tensors")
        if method.startswith("modelopt"):
            return _modelopt(declared)
        read = _READERS.get(method)
        return read(method, declared) if read else cls(method=method)


def _matches(entry: str, module: str) -> bool:
    if entry.startswith("re:"):
        try:
            return re.match(entry[3:], module) is not None
        except re.error:
            return False
    if "*" in entry:
        return fnmatch.fnmatchcase(module, entry) or fnmatch.fnmatchcase(module, f"{entry}.*")
    return f".{entry}." in f".{module}."


def _number(config: Mapping, *keys: str, default: int | None = None) -> int | None:
    """The first of ``keys`` that is there; -1, for one scale a column, is a number too."""
    for key in keys:
        if config.get(key) is not None:
            return checked_integer(f"quantization_config.{key}", config[key], least=-1)
    return default


def _lacks(config: Mapping, *keys: str) -> tuple[str, ...]:
    return tuple(key for key in keys if not any(name in config for name in key.split("|")))


def _skipped(config: Mapping, *keys: str) -> tuple[str, ...]:
    return next((names(config[key], f"quantization_config.{key}") for key in keys if config.get(key)), ())


def _awq(method: str, config: Mapping) -> Quantization:
    return Quantization(
        method=method,
        bits=_number(config, "w_bit", "bits"),
        group_size=_number(config, "q_group_size", "group_size", default=PER_CHANNEL),
        scale_bits=16,
        symmetric=not config.get("zero_point", True),
        zero_points=bool(config.get("zero_point", True)),
        skipped=_skipped(config, "modules_to_not_convert"),
        lm_head=bool(config.get("lm_head")),
        lacks=_lacks(config, "w_bit|bits", "q_group_size|group_size", "zero_point"),
    )


def _gptq(method: str, config: Mapping) -> Quantization:
    group_size = _number(config, "group_size", default=PER_CHANNEL)
    rules = part(config, "dynamic")
    return Quantization(
        method=method,
        bits=_number(config, "bits"),
        group_size=group_size,
        scale_bits=16,
        symmetric=bool(config.get("sym", True)),
        zero_points=True,
        act_order=bool(config.get("desc_act")) and group_size != PER_CHANNEL,
        skipped=tuple(f"re:{rule[2:]}" for rule in rules if isinstance(rule, str) and rule.startswith("-:")),
        lm_head=bool(config.get("lm_head")),
        lacks=_lacks(config, "bits", "group_size", "desc_act", "sym"),
    )


def _fp8(method: str, config: Mapping) -> Quantization:
    block = config.get("weight_block_size")
    if block is not None:
        if not isinstance(block, (list, tuple)) or len(block) != 2:
            raise refusal(f"quantization_config.weight_block_size must be two numbers, not {str(block)[:80]!r}")
        block = tuple(checked_integer("quantization_config.weight_block_size", size) for size in block)
    return Quantization(
        method=method,
        bits=8,
        block=block,
        scale_bits=32,
        floating=True,
        activation_bits=8,
        skipped=_skipped(config, "ignored_layers", "modules_to_not_convert"),
        lacks=_lacks(config, "activation_scheme"),
    )


def _mxfp4(method: str, config: Mapping) -> Quantization:
    return Quantization(
        method=method,
        bits=4,
        group_size=32,
        scale_bits=8,
        floating=True,
        skipped=_skipped(config, "modules_to_not_convert"),
    )


def _compressed_tensors(method: str, config: Mapping) -> Quantization:
    """The first group that is not about attention; further ones (mixed precision) leave ``bits`` unknown."""
    groups = [part({"group": group}, "group") for group in part(config, "config_groups").values()]
    groups = [group for group in groups if not all(str(t).endswith("Attention") for t in group.get("targets") or ["L"])]
    forms = {str(part(group, "weights")) for group in groups}
    if len(forms) != 1:
        return Quantization(method=method, skipped=_skipped(config, "ignore"))
    weights, inputs = part(groups[0], "weights"), part(groups[0], "input_activations")
    strategy, floating = weights.get("strategy"), weights.get("type") == "float"
    group_size = {"tensor": PER_TENSOR, "channel": PER_CHANNEL}.get(strategy, PER_TENSOR)
    if strategy in ("group", "tensor_group"):
        group_size = _number(weights, "group_size", default=PER_CHANNEL)
    block = weights.get("block_structure")
    return Quantization(
        method=method,
        bits=_number(weights, "num_bits"),
        group_size=group_size,
        block=tuple(block) if strategy == "block" and isinstance(block, list) and len(block) == 2 else None,
        scale_bits=16 if group_size > 0 and not floating else 8 if group_size > 0 else 32,
        floating=floating,
        symmetric=bool(weights.get("symmetric", True)),
        zero_points=not weights.get("symmetric", True),
        activation_bits=_number(inputs, "num_bits", default=16),
        act_order=weights.get("actorder") in ("group", "dynamic"),
        skipped=_skipped(config, "ignore"),
        lm_head=any("lm_head" in str(target) for group in groups for target in group.get("targets") or ()),
        fp8_kv_cache=bool(config.get("kv_cache_scheme")),
    )


def _modelopt(config: Mapping) -> Quantization:
    algorithm = str(config.get("quant_algo") or "").upper()
    method, bits, group_size, scale_bits = MODELOPT.get(algorithm, ("modelopt", None, PER_TENSOR, 0))
    skipped = _skipped(config, "exclude_modules", "ignore")
    return Quantization(
        method=method,
        bits=bits,
        group_size=_number(config, "group_size", default=group_size) if group_size > 0 else group_size,
        block=(128, 128) if algorithm == "FP8_PB_WO" else None,
        scale_bits=scale_bits,
        floating=True,
        activation_bits=16 if algorithm.startswith("W4A16") else bits or 16,
        skipped=skipped,
        lm_head=not any(_matches(entry, "lm_head") for entry in skipped),
        fp8_kv_cache=str(config.get("kv_cache_quant_algo") or "").upper() == "FP8",
    )


_READERS = {
    "awq": _awq,
    "gptq": _gptq,
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "compressed-tensors": _compressed_tensors,
}
