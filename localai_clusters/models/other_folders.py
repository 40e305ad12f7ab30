"""What a folder or a file is that is not a model vLLM can serve, in words that name the way out."""

import json
import struct
from pathlib import Path

from localai_clusters.models.errors import ModelError
from localai_clusters.models.json_file import read_json


def what_file(path: Path) -> str:
    """The sentence for a model given as a file."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        start = b""
    if start == b"GGUF" or path.suffix == ".gguf":
        return f"{path} is a GGUF file, for llama.cpp; vLLM needs the folder that the model was published with"
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth"):
        return f"{path} holds weights only; type the folder it lies in, with the model's config.json and tokenizer"
    return f"{path} is a file; type the folder that holds the model's config.json, weights and tokenizer"


def what_instead(folder: Path) -> str | None:
    """What a folder without a config.json is, and what to do with it; None for one that says nothing."""

    def has(pattern: str) -> bool:
        return next(folder.glob(pattern), None) is not None

    if has("adapter_config.json"):
        return f"{folder} holds a LoRA adapter{_base_of(folder)}, not a model; {_how_to_serve(folder)}"
    if has("*.gguf"):
        return f"{folder} holds GGUF files, for llama.cpp; vLLM needs the folder that the model was published with"
    if has("model_index.json"):
        return f"{folder} holds a pipeline that makes pictures (diffusers), not a language model"
    if has("params.json") and has("consolidated*"):
        kind = "safetensors" if has("consolidated*.safetensors") else "pth"
        if kind == "safetensors":
            return (
                f"{folder} holds Mistral's own format (params.json); take the form with a config.json, which is "
                "published beside it"
            )
        return f"{folder} holds Meta's own format (consolidated.*.pth); take the model whose name ends in -hf"
    if has("ggml*.bin"):
        return f"{folder} holds GGML files, for llama.cpp; vLLM needs the folder that the model was published with"
    if has("modules.json"):
        return f"{folder} holds a sentence-transformers model: it makes embeddings and generates no text"
    nested = [path.parent for path in folder.glob("*/config.json")][:2]
    if len(nested) == 1:
        return f"{folder} has no config.json, and {nested[0]} has one; type that folder"
    return None


def _base_of(folder: Path) -> str:
    try:
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    except ModelError:
        return ""
    return f" for {base[:200]}" if isinstance(base, str) and base else ""


def _how_to_serve(folder: Path) -> str:
    return f"type --model with its base model, and -- --enable-lora --lora-modules NAME={folder}"


def safetensors_header(path: Path) -> dict:
    """The tensors of a safetensors file: name to {"dtype", "shape", "data_offsets"}. Raises ValueError, OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        header = json.loads(file.read(length)) if 0 < length <= min(size, 100 << 20) else None
    if not isinstance(header, dict):
        raise ValueError("no header")
    return {name: tensor for name, tensor in header.items() if name != "__metadata__"}
