"""Model folders made on the fly: configs as families publish them, only smaller, and weights that mean nothing.

A folder takes a few hundred kB and vLLM a second to load. Tensors carry the names and shapes that vLLM's loaders look
for; with a ``quantization_config`` the linear layers are packed as that method packs them.
"""

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Config = dict[str, Any]
Tensors = dict[str, tuple[str, tuple[int, ...]]]  # name -> (safetensors' dtype, shape)

BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I8": 1, "F8_E4M3": 1}
STORED = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
BYTE_TOKENS = 256  # the tokenizer has one token per byte, then these:
SPECIAL = ("<s>", "</s>")

LLAMA: Config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "vocab_size": 320,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 256,
    "eos_token_id": 257,
}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 128}
MIXTRAL = LLAMA | {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
DEEPSEEK = LLAMA | {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "num_key_value_heads": 4,
    "head_dim": None,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "first_k_dense_replace": 2,
    "moe_layer_freq": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
            },
        }
    },
}  # fmt: skip


def linear_layers(config: Config) -> Iterator[tuple[str, int, int]]:
    """(name, output size, input size) of what a quantization method packs."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head, kv_heads = config.get("head_dim"), config["num_key_value_heads"]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        if config["model_type"] == "deepseek_v2":
            nope, rope, rank = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["kv_lora_rank"]
            yield f"{at}.self_attn.q_proj", heads * (nope + rope), hidden
            yield f"{at}.self_attn.kv_a_proj_with_mqa", rank + rope, hidden
            yield f"{at}.self_attn.kv_b_proj", heads * (nope + config["v_head_dim"]), rank
            yield f"{at}.self_attn.o_proj", hidden, heads * config["v_head_dim"]
        else:
            yield f"{at}.self_attn.q_proj", heads * head, hidden
            yield f"{at}.self_attn.k_proj", kv_heads * head, hidden
            yield f"{at}.self_attn.v_proj", kv_heads * head, hidden
            yield f"{at}.self_attn.o_proj", hidden, heads * head
        inner = config["intermediate_size"]
        if config["model_type"] == "mixtral":
            for expert in range(config["num_local_experts"]):
                yield f"{at}.block_sparse_moe.experts.{expert}.w1", inner, hidden
                yield f"{at}.block_sparse_moe.experts.{expert}.w3", inner, hidden
                yield f"{at}.block_sparse_moe.experts.{expert}.w2", hidden, inner
        else:
            yield f"{at}.mlp.gate_proj", inner, hidden
            yield f"{at}.mlp.up_proj", inner, hidden
            yield f"{at}.mlp.down_proj", hidden, inner


def tensors(config: Config) -> Tensors:
    """Every tensor of a checkpoint with this config."""
    stored, hidden, kind = STORED[config["torch_dtype"]], config["hidden_size"], config["model_type"]
    found: Tensors = {
        "model.embed_tokens.weight": (stored, (config["vocab_size"], hidden)),
        "model.norm.weight": (stored, (hidden,)),
    }
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (stored, (config["vocab_size"], hidden))
    for name, outputs, inputs in linear_layers(config):
        found |= {f"{name}.{part}": what for part, what in packed(config, outputs, inputs).items()}
        if kind == "qwen2" and name.endswith(("q_proj", "k_proj", "v_proj")):
            found[f"{name}.bias"] = (stored, (outputs,))
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        found[f"{at}.input_layernorm.weight"] = found[f"{at}.post_attention_layernorm.weight"] = (stored, (hidden,))
        if kind == "mixtral":
            found[f"{at}.block_sparse_moe.gate.weight"] = (stored, (config["num_local_experts"], hidden))
        if kind == "deepseek_v2":
            found[f"{at}.self_attn.kv_a_layernorm.weight"] = (stored, (config["kv_lora_rank"],))
    return found


def packed(config: Config, outputs: int, inputs: int) -> Tensors:
    """The tensors of one linear layer, by the part of the name after the layer's."""
    how, stored = config.get("quantization_config") or {}, STORED[config["torch_dtype"]]
    method = how.get("quant_method")
    if method in ("awq", "gptq"):
        groups = inputs // how["group_size"]
        scales = {"qzeros": ("I32", (groups, outputs // 8)), "scales": ("F16", (groups, outputs))}
        if method == "awq":
            return {"qweight": ("I32", (inputs, outputs // 8)), **scales}
        return {"qweight": ("I32", (inputs // 8, outputs)), "g_idx": ("I32", (inputs,)), **scales}
    if method == "fp8":
        return {"weight": ("F8_E4M3", (outputs, inputs)), "weight_scale": ("F32", (1,))}
    if method == "compressed-tensors":
        return {"weight": ("I8", (outputs, inputs)), "weight_scale": ("F32", (outputs, 1))}
    return {"weight": (stored, (outputs, inputs))}


def values(dtype: str, count: int, seed: random.Random) -> bytes:
    """Small numbers of either sign, none of them infinite: the same for the same seed."""
    if dtype == "F32":
        return struct.pack(f"<{count}f", *(seed.uniform(-0.05, 0.05) for _ in range(count)))
    noise = bytearray(seed.randbytes(count * BYTES[dtype]))
    if dtype in ("BF16", "F16"):
        above = 0x3C if dtype == "BF16" else 0x24  # the byte with sign and exponent: about 0.02
        noise[1::2] = bytes(above | byte & 0x80 for byte in noise[1::2])
    if dtype == "F8_E4M3":
        noise = bytearray(byte & 0xBF for byte in noise)  # below 2, and no NaN
    return bytes(noise)


def write_safetensors(path: Path, wanted: Tensors, seed: int = 0) -> None:
    header, data, numbers = {}, bytearray(), random.Random(seed)
    for name, (dtype, shape) in wanted.items():
        count = 1
        for length in shape:
            count *= length
        if name.endswith("g_idx"):
            group = shape[0] // max(1, shape[0] // 32)
            content = struct.pack(f"<{count}i", *(row // group for row in range(count)))
        else:
            content = values(dtype, count, numbers)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def byte_alphabet() -> list[str]:
    """The characters that stand for the bytes 0 to 255 in a byte-level tokenizer: those that print for themselves."""
    printing = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printing else next(others)) for byte in range(256)]


def write_tokenizer(folder: Path, chat_template: bool = True, **settings: Any) -> None:
    names = [*byte_alphabet(), *SPECIAL]
    added = [
        {"id": BYTE_TOKENS + number, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for number, name in enumerate(SPECIAL)
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {name: number for number, name in enumerate(names)}, "merges": []}
    rules = {"version": "1.0", "added_tokens": added, "pre_tokenizer": byte_level, "decoder": byte_level}
    (folder / "tokenizer.json").write_text(json.dumps(rules | {"model": model}))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **settings}
    if chat_template:
        settings["chat_template"] = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def make(folder: Path, config: Config, **tokenizer: Any) -> None:
    """A whole folder: config.json, model.safetensors, a tokenizer."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    write_safetensors(folder / "model.safetensors", tensors(config))
    write_tokenizer(folder, **tokenizer)


def make_adapter(folder: Path, config: Config, rank: int) -> None:
    """A LoRA adapter for q_proj and v_proj of a model with ``config``."""
    folder.mkdir()
    wanted: Tensors = {}
    for name, outputs, inputs in linear_layers(config):
        if name.endswith(("q_proj", "v_proj")):
            wanted[f"base_model.model.{name}.lora_A.weight"] = ("BF16", (rank, inputs))
            wanted[f"base_model.model.{name}.lora_B.weight"] = ("BF16", (outputs, rank))
    write_safetensors(folder / "adapter_model.safetensors", wanted)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
