"""The plans that preflight and vLLM are both asked about, each with what both must say.

``check`` is preflight's check that refuses a plan, ``says`` a pattern in vLLM's own error for the same cause, so that a
plan refused for another reason does not count as agreement. With neither, the plan must be served. Where only one side
refuses, ``alone`` says why that is right.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localai_clusters.plan import ServePlan

from . import folders
from .folders import AWQ, DEEPSEEK, FP8, GPTQ, INT8, LLAMA, MISTRAL, MIXTRAL, QWEN2, Config

Spoil = Callable[[Path], None]
TAKEN = -1  # as a plan's port: one that another process listens on
NOWHERE = "192.0.2.77"  # TEST-NET-1: no machine's address
# One request of 1,024 tokens of LLAMA in bfloat16: its blocks of 128 tokens and the one that vLLM keeps back.
KV_BYTES = 9 * 128 * 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    model: str | None = None  # a name to be found; None: a folder made of ``config``, then spoilt
    config: Config = field(default_factory=lambda: LLAMA)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    spoil: Spoil | None = None
    adapter_rank: int | None = None  # of a LoRA adapter that is served too
    flags: dict[str, Any] = field(default_factory=dict)  # ServePlan's
    check: str | None = None
    says: str | None = None
    alone: str = ""

    def plan(self, folder: Path, taken_port: int) -> ServePlan:
        """The plan, its model's folder made under ``folder``; ports that it does not name are any free ones."""
        flags = {"port": 0, "master_port": 0, **self.flags}
        if flags["port"] == TAKEN:
            flags["port"] = taken_port
        if self.adapter_rank is not None:
            adapter = folder / f"{self.name.replace(' ', '-')}-adapter"
            folders.make_adapter(adapter, self.config, self.adapter_rank)
            flags["extra_args"] = ("--enable-lora", "--lora-modules", f"mine={adapter}")
        return ServePlan(model=self.model or str(self.make_model(folder)), **flags)

    def make_model(self, folder: Path) -> Path:
        made = folder / self.name.replace(" ", "-")
        folders.make(made, self.config, **self.tokenizer)
        if self.spoil is not None:
            self.spoil(made)
        return made


def without(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def cut(name: str, size: int) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def with_config(**changes: Any) -> Spoil:
    """A config.json that its weights were not made for; None takes a key out."""

    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        kept = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return spoil


def without_a_shard(folder: Path) -> None:
    """Weights in two files, as the index says, of which one was downloaded."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    files = dict.fromkeys(folders.tensors(LLAMA), "model-00001-of-00002.safetensors")
    index = {"weight_map": files | {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def with_another_shape(folder: Path) -> None:
    changed = folders.tensors(LLAMA) | {"model.layers.1.mlp.down_proj.weight": ("BF16", (128, 255))}
    folders.write_safetensors(folder / "model.safetensors", changed)


def with_packed_weights_only(folder: Path) -> None:
    """An AWQ checkpoint whose config.json does not say so."""
    folders.write_safetensors(folder / "model.safetensors", folders.tensors(LLAMA | {"quantization_config": AWQ}))


SERVED = (
    Case(name="one rank"),
    Case(name="two tensor-parallel ranks", flags={"tensor_parallel_size": 2}),
    Case(name="two pipeline stages", config=QWEN2, flags={"pipeline_parallel_size": 2}),
    Case(name="experts on two ranks", config=MIXTRAL, flags={"tensor_parallel_size": 2}),
    Case(
        name="one KV head and an odd vocabulary on two ranks",
        config=LLAMA | {"num_key_value_heads": 1, "vocab_size": 259},
        flags={"tensor_parallel_size": 2},
    ),
    Case(name="no chat template", tokenizer={"chat_template": False}),
    Case(name="a KV cache for just one request", flags={"kv_cache_memory_bytes": KV_BYTES}),
    Case(
        name="a KV cache for just one request in float32",
        flags={"kv_cache_memory_bytes": 2 * KV_BYTES, "dtype": "float32"},
    ),
    Case(
        name="a KV cache for just one request in a sliding window",
        config=MISTRAL,
        flags={"kv_cache_memory_bytes": KV_BYTES // 9 * 10},
    ),
    Case(name="latent attention", config=DEEPSEEK),
    Case(
        name="a rotary embedding stretched four times",
        config=LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        flags={"max_model_len": 4096},
    ),
    Case(name="AWQ", config=LLAMA | {"quantization_config": AWQ}),
    Case(
        name="GPTQ asked for by another of its names",
        config=LLAMA | {"quantization_config": GPTQ},
        flags={"quantization": "gptq_marlin"},
    ),
    Case(name="compressed-tensors", config=LLAMA | {"quantization_config": INT8}),
    Case(name="a LoRA adapter", adapter_rank=8),
    Case(name="quantized on loading", flags={"quantization": "int8_per_channel_weight_only"}),
)

REFUSED = (
    # The split
    Case(
        name="3 heads on 2 ranks",
        config=LLAMA | {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 3},
        flags={"tensor_parallel_size": 2},
        check="heads",
        says=r"attention heads \(3\) must be divisible by tensor parallel size \(2\)",
    ),
    Case(
        name="3 KV heads on 2 ranks",
        config=LLAMA | {"hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 3},
        flags={"tensor_parallel_size": 2},
        check="heads",
        says=r"assert self\.total_num_kv_heads % tp_size == 0",
    ),
    Case(
        name="an MLP of 257 columns on 2 ranks",
        config=LLAMA | {"intermediate_size": 257},
        flags={"tensor_parallel_size": 2},
        check="heads",
        says=r"assert all\(output_size % self\.tp_size == 0",
    ),
    Case(
        name="1 layer in 2 stages",
        config=LLAMA | {"num_hidden_layers": 1},
        flags={"pipeline_parallel_size": 2},
        check="layers",
        says="requires at least one cacheable group",
    ),
    Case(
        name="1 rank for a split of 2",
        flags={"tensor_parallel_size": 2, "nproc_per_node": 1},
        check="world size",
        says="torchrun started 1 ranks, but tensor parallel size 2",
    ),
    # Context and memory
    Case(
        name="a context longer than trained for",
        flags={"max_model_len": 1025},
        check="context length",
        says=r"max_model_len \(1025\) is greater than the derived max_model_len",
    ),
    Case(
        name="YaRN, whose stretching is counted already",
        config=LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}},
        flags={"max_model_len": 4096},
        check="context length",
        says=r"max_model_len \(4096\) is greater than the derived max_model_len",
    ),
    Case(
        name="a KV cache one byte too small",
        flags={"kv_cache_memory_bytes": KV_BYTES - 1},
        check="context length",
        says="estimated maximum model length is 896",
    ),
    Case(
        name="a KV cache one byte too small for each of 2 ranks",
        flags={"kv_cache_memory_bytes": KV_BYTES // 2 - 1, "tensor_parallel_size": 2},
        check="context length",
        says="estimated maximum model length is 896",
    ),
    Case(
        name="a KV cache too small for a sliding window",
        config=MISTRAL,
        flags={"kv_cache_memory_bytes": KV_BYTES},
        check="context length",
        says="estimated maximum model length is 896",
    ),
    Case(
        name="a KV cache too small for latent attention",  # 2 layers x (512 + 64) values x 2 bytes, and no block for it
        config=DEEPSEEK,
        flags={"kv_cache_memory_bytes": 1024 * 2304},
        check="context length",
        says="estimated maximum model length is",
    ),
    Case(
        name="more KV cache than memory",
        flags={"kv_cache_memory_bytes": 1 << 50},
        check="memory",
        says="less than requested memory for kv",
    ),
    # Quantization
    Case(
        name="a quantization method that does not exist",
        flags={"quantization": "made-up"},
        check="quantization",
        says="Unknown quantization method: made-up",
    ),
    Case(
        name="AWQ asked of plain weights",
        flags={"quantization": "awq"},
        check="quantization",
        says="Cannot find the config file for awq",
    ),
    Case(
        name="GPTQ asked of an AWQ checkpoint",
        config=LLAMA | {"quantization_config": AWQ},
        flags={"quantization": "gptq"},
        check="quantization",
        says=r"model config \(awq\) does not match the quantization method .* \(gptq\)",
    ),
    Case(
        name="a checkpoint of a method that vLLM dropped",
        config=LLAMA | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        check="quantization",
        says="Unknown quantization method: bitsandbytes",
    ),
    Case(
        name="FP8 on a CPU",
        config=LLAMA | {"quantization_config": FP8},
        check="quantization",
        says="static_scaled_fp8_quant",
    ),
    Case(
        name="AWQ in float32",
        config=LLAMA | {"quantization_config": AWQ},
        flags={"dtype": "float32"},
        check="quantization",
        says="float32 is not supported for quantization method awq",
    ),
    Case(
        name="GPTQ of 8 bits on a CPU",
        config=LLAMA | {"quantization_config": GPTQ | {"bits": 8}},
        check="quantization",
        says="does not support weight_bits = uint8b128",
    ),
    Case(
        name="GPTQ with activation order",
        config=LLAMA | {"quantization_config": GPTQ | {"desc_act": True}},
        check="quantization",
        says="desc_act=True",
    ),
    Case(
        name="packed columns that no kernel takes",
        config=LLAMA | {"quantization_config": AWQ, "intermediate_size": 288},
        flags={"tensor_parallel_size": 2},
        check="quantization",
        says=r"Input size \(144\) not supported by CPUWNA16, supported sizes are multiples of 32",
    ),
    Case(
        name="a group of weights on two ranks",
        config=LLAMA | {"quantization_config": GPTQ | {"group_size": 128}, "intermediate_size": 384},
        flags={"tensor_parallel_size": 2},
        check="quantization",
        says="Fatal Python error: (Segmentation fault|Floating point exception)",  # vLLM 0.32 does not look
    ),
    # The model's folder
    Case(name="no config.json", spoil=without("config.json"), check="model", says="Invalid repository ID or local"),
    Case(name="config.json cut short", spoil=cut("config.json", 100), check="model", says="not a valid JSON file"),
    Case(name="no weights", spoil=without("model.safetensors"), check="model", says="Cannot find any model weights"),
    Case(
        name="weights cut short",
        spoil=cut("model.safetensors", 100_000),
        check="model",
        says="file not fully covered",
    ),
    Case(name="one file of two", spoil=without_a_shard, check="model", says="referenced in index but missing"),
    Case(
        name="no tokenizer",
        spoil=without("tokenizer.json"),
        check="model",
        says="Couldn't instantiate the backend tokenizer",
    ),
    Case(
        name="an architecture that vLLM does not know",
        config=LLAMA | {"architectures": ["MadeUpForCausalLM"]},
        check="architecture",
        says=r"\['MadeUpForCausalLM'\] are not supported for now",
    ),
    Case(
        name="a model that brings its own code",
        config=LLAMA
        | {
            "architectures": ["MadeUpForCausalLM"],
            "model_type": "made_up",
            "auto_map": {"AutoConfig": "configuration.MadeUpConfig"},
        },
        check="architecture",
        says="contains custom code which must be executed",
    ),
    Case(
        name="a tensor of another shape",
        spoil=with_another_shape,
        says=r"start \(0\) \+ length \(256\) exceeds dimension size \(255\)",
        check="model",
    ),
    Case(
        name="a layer more than there are weights",
        spoil=with_config(num_hidden_layers=3),
        says=r"not initialized from checkpoint: .*model\.layers\.2\.",
        check="model",
    ),
    Case(
        name="packed weights of a config that says nothing",
        spoil=with_packed_weights_only,
        says="no module or parameter named .*qweight",
        check="model",
    ),
    Case(
        name="heads of a size that no kernel takes",
        config=LLAMA | {"head_dim": 24},
        check="heads",
        says="Unsupported CPU attention configuration: head_dim=24",
    ),
    Case(
        name="a LoRA adapter of a rank that is not allowed",
        adapter_rank=32,
        check="LoRA",
        says="LoRA rank 32 is greater than max_lora_rank 16",
    ),
    Case(
        name="a model that goes wrong in float16",
        config=LLAMA | {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"},
        flags={"dtype": "float16"},
        check="dtype",
        says="'gemma2' does not support float16",
    ),
    Case(name="no folder", model="/nowhere/at/all", check="model", says="Repo id must be in the form"),
    # The network
    Case(name="a port that is taken", flags={"port": TAKEN}, check="ports", says="Address already in use"),
    Case(
        name="an address of another machine",
        flags={"host": NOWHERE, "port": 8000},
        check="exposure",
        says="Cannot assign requested address",
    ),
)

DIFFERENT = (
    Case(
        name="a flag that vLLM does not have",
        flags={"extra_args": ("--no-such-flag",)},
        says="unrecognized arguments: --no-such-flag",
        alone="what follows -- goes to vLLM unread",
    ),
)

CASES = (*SERVED, *REFUSED, *DIFFERENT)

# Checks that refuse none of the plans above, and why.
UNASKED = {
    "versions": "another vLLM, or none: there is nobody to ask",
    "devices": "ours alone: on a CPU vLLM runs two ranks on one core, a hundred times slower",
    "shared memory": "vLLM dies of it at some later step; tests/test_refusals.py mounts a /dev/shm that is full",
    "master address": "other machines: vLLM waits for them for minutes",
    "interfaces": "other machines: vLLM waits for them for minutes",
    "visible GPUs": "GPUs only",
    "driver": "GPUs only",
    "compute capability": "GPUs only",
    "MIG": "GPUs only",
}
