"""De-quantizes the built-in model's GGUF file into a Hugging Face folder; run as a process of its own.

    python -m localai_clusters.models.build GGUF FOLDER ATTENTION_HEADS KV_HEADS

writes config.json, generation_config.json, tokenizer.json, tokenizer_config.json, model.safetensors and, last,
manifest.json (each file's bytes and sha256) into the existing, empty FOLDER. With more heads than the GGUF file
has, the added ones are padding that never reaches the output. Needs numpy and gguf, but neither torch nor
transformers: transformers' own GGUF loader gives the same bits (compared once, all 272 tensors) in 24 s where this
takes 5, and its tokenizer loses SmolLM2's rule that digits are split from the spaces before them.

Every byte written is the same on every machine, which is why built_in.py can hold the weights to a constant: Q4_1 and
Q8_0 blocks are one float32 multiplication (and addition) per element, which IEEE 754 rounds in one way only and
numpy does in separate passes (so nothing is fused); rounding to bfloat16 is integer arithmetic; and the safetensors
header is written here, not by a library whose layout may change.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

from localai_clusters.models.cache import sha256_of_file


def to_bfloat16(array):
    """float32 to bfloat16 bits (uint16), to nearest, ties to even; the weights hold no NaN."""
    import numpy as np

    bits = np.ascontiguousarray(array, dtype="<f4").view("<u4")
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")


def undo_llama_cpp_rows(array, heads: int):
    """Rows of a q or k projection back in Hugging Face's order.

    llama.cpp interleaves the two halves of each head for its own rotary embedding (`permute` in its
    convert_hf_to_gguf.py); Hugging Face and vLLM rotate halves.
    """
    rows, columns = array.shape
    return array.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


# GGUF names to Hugging Face names, within a layer and outside one.
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


class Gguf:
    """A Llama GGUF file, read as numpy arrays under Hugging Face's tensor names."""

    def __init__(self, path: Path):
        from gguf import GGUFReader

        self.reader = GGUFReader(path)
        self.heads = self.field("llama.attention.head_count")
        self.kv_heads = self.field("llama.attention.head_count_kv")
        self.head_dim = self.field("llama.rope.dimension_count")
        self.tensors = {self.hugging_face_name(tensor.name): tensor for tensor in self.reader.tensors}

    def field(self, key: str):
        return self.reader.fields[key].contents()

    def hugging_face_name(self, name: str) -> str:
        if name in OTHER_NAMES:
            return OTHER_NAMES[name]
        block, layer, kind, suffix = name.split(".")
        assert (block, suffix) == ("blk", "weight"), name
        return f"model.layers.{layer}.{LAYER_NAMES[kind]}.weight"

    def array(self, name: str):
        """One tensor in float32, de-quantized and in Hugging Face's row order."""
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        array = dequantize(tensor.data, tensor.tensor_type)
        if name.endswith("q_proj.weight"):
            return undo_llama_cpp_rows(array, self.heads)
        if name.endswith("k_proj.weight"):
            return undo_llama_cpp_rows(array, self.kv_heads)
        return array


def padded_shape(name: str, shape: tuple[int, ...], q_rows: int, kv_rows: int) -> tuple[int, ...]:
    """The shape a tensor has with q_rows = heads * head_dim and kv_rows = KV heads * head_dim."""
    if name.endswith("q_proj.weight"):
        return (q_rows, shape[1])
    if name.endswith(("k_proj.weight", "v_proj.weight")):
        return (kv_rows, shape[1])
    if name.endswith("o_proj.weight"):
        return (shape[0], q_rows)
    return shape


def pad_with_zeros(array, shape: tuple[int, ...]):
    """The array in the corner of a larger one.

    Heads are added at the end, in whole groups of query heads with a KV head of their own, so no published head
    changes its group. An added head attends evenly to values that are all zero, and o_proj's columns for it are
    zero too: exactly nothing is added to the residual stream.
    """
    import numpy as np

    if array.shape == shape:
        return array
    return np.pad(array, [(0, new - old) for old, new in zip(array.shape, shape, strict=True)])


def write_weights(gguf: Gguf, path: Path, heads: int, kv_heads: int) -> str:
    """Writes model.safetensors in bfloat16, tensor by tensor; returns its sha256."""
    q_rows, kv_rows = heads * gguf.head_dim, kv_heads * gguf.head_dim
    header: dict = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(gguf.tensors):
        in_file = tuple(int(size) for size in reversed(gguf.tensors[name].shape))  # GGUF lists the fastest axis first
        shape = padded_shape(name, in_file, q_rows, kv_rows)
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # safetensors wants the data aligned to 8 bytes

    digest = hashlib.sha256()
    with path.open("wb") as file:

        def write(data) -> None:
            file.write(data)
            digest.update(data)

        write(len(text).to_bytes(8, "little") + text)
        for name in sorted(gguf.tensors):
            write(to_bfloat16(pad_with_zeros(gguf.array(name), tuple(header[name]["shape"]))))
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave a renamed folder whose weights are zeros
    return digest.hexdigest()


def config(gguf: Gguf, heads: int, kv_heads: int) -> dict:
    """config.json, with the keys the published SmolLM2-135M-Instruct has, plus head_dim."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": gguf.field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": gguf.field("tokenizer.ggml.eos_token_id"),
        "head_dim": gguf.head_dim,  # needed when padded: hidden_size / heads is no longer it
        "hidden_act": "silu",
        "hidden_size": gguf.field("llama.embedding_length"),
        "initializer_range": 0.041666666666666664,
        "intermediate_size": gguf.field("llama.feed_forward_length"),
        "max_position_embeddings": gguf.field("llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": gguf.field("llama.block_count"),
        "num_key_value_heads": kv_heads,
        "pad_token_id": gguf.field("tokenizer.ggml.padding_token_id"),
        # The GGUF file keeps this as float32, where 1e-05 reads 9.999999747378752e-06.
        "rms_norm_eps": float(f"{gguf.field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_scaling": None,
        "rope_theta": gguf.field("llama.rope.freq_base"),
        "tie_word_embeddings": "lm_head.weight" not in gguf.tensors,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": gguf.field("llama.vocab_size"),
    }


def tokenizer(gguf: Gguf) -> tuple[dict, dict]:
    """(tokenizer.json, tokenizer_config.json), laid out as SmolLM2 publishes them.

    The GGUF file names its pre-tokenizer "smollm": each digit by itself, then GPT-2's byte-level split.
    """
    assert gguf.field("tokenizer.ggml.pre") == "smollm"
    tokens, control = gguf.field("tokenizer.ggml.tokens"), 3
    special = [
        {"id": number, "content": tokens[number], "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for number, kind in enumerate(gguf.field("tokenizer.ggml.token_type")) if kind == control
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    rules = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": gguf.field("tokenizer.ggml.merges"),
        },
    }  # fmt: skip
    settings = {
        "add_prefix_space": False,
        "bos_token": tokens[gguf.field("tokenizer.ggml.bos_token_id")],
        "chat_template": gguf.field("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens[gguf.field("tokenizer.ggml.eos_token_id")],
        "model_max_length": gguf.field("llama.context_length"),
        "pad_token": tokens[gguf.field("tokenizer.ggml.padding_token_id")],
        # Not GPT2Tokenizer: that class may rebuild the splitting rules, this one takes tokenizer.json as it is.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": tokens[gguf.field("tokenizer.ggml.unknown_token_id")],
    }
    return rules, settings


def build(gguf_path: Path, folder: Path, heads: int, kv_heads: int) -> None:
    """Fills the folder; manifest.json comes last, so a folder with one is whole."""
    gguf = Gguf(gguf_path)
    assert heads * gguf.kv_heads == kv_heads * gguf.heads, "padding must keep the query heads per KV head"
    settings = config(gguf, heads, kv_heads)
    rules, tokenizer_settings = tokenizer(gguf)
    token_ids = {key: settings[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    manifest: dict = {"gguf_sha256": sha256_of_file(gguf_path), "files": {}}

    def record(path: Path, sha256: str) -> None:
        manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256}

    for name, content in (
        ("config.json", settings),
        ("generation_config.json", token_ids),
        ("tokenizer.json", rules),
        ("tokenizer_config.json", tokenizer_settings),
    ):
        path = folder / name
        path.write_text(json.dumps(content, indent=None if content is rules else 2, ensure_ascii=False) + "\n", "utf-8")
        record(path, sha256_of_file(path))
    weights = folder / "model.safetensors"
    record(weights, write_weights(gguf, weights, heads, kv_heads))
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    sys.modules["mistral_common"] = None  # gguf imports it where it can: 2.4 s, for a kind of tokenizer not met here
    build(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
