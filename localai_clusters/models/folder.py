"""A folder with a model in it: its weights files, its tokenizer, and whether they are whole."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localai_clusters.models.cache import sha256_cached
from localai_clusters.models.errors import ModelError
from localai_clusters.models.json_file import read_json
from localai_clusters.models.other_folders import safetensors_header, what_instead
from localai_clusters.models.shape import ModelShape
from localai_clusters.models.tensors import contradiction

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


@dataclass(frozen=True, slots=True)
class Model:
    """A model found on this machine and ready to be loaded from its folder."""

    name: str  # what the user typed
    path: Path  # local folder with config.json, weights and tokenizer
    shape: ModelShape
    source: str  # "built-in", "folder" or "hugging-face"
    revision: str  # built-in: the packages' versions; Hugging Face: the commit; folder: ""

    def weights_sha256(self) -> dict[str, str]:
        """File name to hex sha256 of each weights file. Hashes a file again only when it changed."""
        return {path.name: sha256_cached(path) for path in weights_files(self.path)}


def weights_files(folder: Path) -> list[Path]:
    """The weights files vLLM would load, sorted; ModelError when there are none or some are missing."""
    for pattern, index in (
        ("*.safetensors", "model.safetensors.index.json"),
        ("*.bin", "pytorch_model.bin.index.json"),
    ):
        if (folder / index).is_file():
            listed = read_json(folder / index, 100 << 20).get("weight_map")
            names = set(listed.values()) if isinstance(listed, dict) else {None}
            if not all(isinstance(name, str) and name == os.path.basename(name) for name in names):
                raise ModelError(f"{folder / index} does not list weights files; download it again")
        else:
            # Mistral publishes its weights a second time as consolidated*, the Trainer leaves states as *.bin.
            other = ("consolidated", "training_args", "optimizer", "scheduler")
            names = {path.name for path in folder.glob(pattern) if not path.name.startswith(other)}
        missing = sorted(name for name in names if not (folder / name).is_file())
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ModelError(f"{folder} lacks the weights file {missing[0]}{more}; download the model again")
        if names:
            return [folder / name for name in sorted(names)]
    raise ModelError(f"{folder} has no weights (*.safetensors or *.bin); download the model again")


def _check_safetensors(path: Path) -> dict:
    """The tensors of its header.

    ModelError when the file is cut short, or is the text file that git leaves where git-lfs is not installed.
    """
    size = path.stat().st_size
    try:
        tensors = safetensors_header(path)
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        if not all(isinstance(size, int) for tensor in tensors.values() for size in tensor["shape"]):
            raise ValueError("a shape is of whole numbers")
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
    except (ValueError, AttributeError, TypeError, LookupError, RecursionError):
        raise ModelError(f"{path} is not a safetensors file; download it again (with git: git lfs pull)") from None
    if size != start + end:
        raise ModelError(f"{path} holds {size} bytes where its header says {start + end}; download it again")
    return tensors


def check_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The tensors of the safetensors files: name to {"dtype", "shape"}. Reads headers and ends of files only.

    Raises ModelError unless whole weights and a tokenizer are there.
    """
    tensors = {}
    try:
        for path in weights_files(folder):
            if path.suffix == ".safetensors":
                tensors |= _check_safetensors(path)
        tokenizers = [name for name in TOKENIZERS if (folder / name).is_file()]
        if not tokenizers:
            raise ModelError(f"{folder} has no tokenizer ({', '.join(TOKENIZERS)}); download the model again")
        for name in tokenizers:
            if name.endswith(".json") and not _ends_as_json(folder / name):
                raise ModelError(f"{folder / name} is not valid JSON (it ends too soon); download it again")
    except OSError as error:
        raise ModelError(f"{error.filename or folder} cannot be read: {error.strerror}") from None
    return tensors


def _ends_as_json(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        return file.read().rstrip().endswith(b"}")


def checked_folder(folder: Path) -> ModelShape:
    """The shape of a folder that can be loaded: config.json, whole weights, a tokenizer. Raises ModelError."""
    if not (folder / "config.json").is_file() and (other := what_instead(folder)):
        raise ModelError(other)
    shape = ModelShape.from_folder(folder)
    if wrong := contradiction(shape, check_files(folder)):
        raise ModelError(f"{folder}: {wrong}")
    for name in TOKENIZERS:
        if name.endswith(".json") and (folder / name).is_file():
            read_json(folder / name, 100 << 20)
    return shape
