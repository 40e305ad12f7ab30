"""Which model a record is to be replayed on, and what of that model decides how its answers look.

A name in a record is a stranger's: it is compared, never opened as a path and never downloaded.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from localai_clusters.checkpoint import Data, Run, plain_text
from localai_clusters.models import BUILT_IN, Model, ModelError, find
from localai_clusters.models.folder import checked_folder
from localai_clusters.models.hugging_face import cached_snapshot
from localai_clusters.models.json_file import read_json

# vLLM's flags that change what a model says, or which log probabilities are reported, and that no plan holds.
TELLING_FLAGS = frozenset(
    "--hf-overrides --kv-cache-dtype --load-format --logits-processors --logprobs-mode --lora-modules "
    "--override-generation-config --rope-scaling --tokenizer".split()
)
# vLLM takes these from the model's generation_config.json where a request does not say otherwise, and they move the
# greedy choice away from the likeliest token (vllm/config/model.py, get_diff_sampling_param).
NO_PENALTY = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
TOKENIZER_LIMIT = 100 << 20  # bytes


class NotHere(ValueError):
    """Why a record's model cannot be had on this machine."""


def model_of(data: Data, given: Sequence[Model] = ()) -> Model:
    """The model whose weights files have the recorded sha256: one of ``given``, a built-in one, or the one of that
    name in the local Hugging Face cache. Raises ``NotHere``."""
    recorded, name = data.weights_sha256, plain_text(data.model, 80)
    if not recorded:
        raise NotHere("the record does not say which weights were served")
    try:
        for built_in in BUILT_IN:
            if recorded == {"model.safetensors": BUILT_IN[built_in].weights_sha256}:
                return find(built_in)
        near = [*given, *_cached(data.model)]
        for model in near:
            if model.weights_sha256() == recorded:
                return model
    except ModelError as error:
        raise NotHere(str(error)) from error
    if data.model in BUILT_IN or any(model.name == data.model for model in near):
        raise NotHere(f"other weights were served than those of {name} on this machine")
    raise NotHere(f"{name} is not on this machine; type --model FOLDER where it is")


def _cached(name: str) -> Iterator[Model]:
    """The model of a Hugging Face id in the local cache, if it is there whole."""
    part = r"[A-Za-z0-9][\w.-]{0,95}"
    folder = cached_snapshot(name) if re.fullmatch(f"{part}(/{part})?", name, re.ASCII) else None
    if folder:
        yield Model(name, folder, checked_folder(folder), "hugging-face", folder.name)


def end_tokens(model: Model) -> frozenset[int]:
    """Tokens that end an answer; none where the model's files do not say."""
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        value = _read(model, name).get("eos_token_id")
        found.update(token for token in (value if isinstance(value, list) else [value]) if isinstance(token, int))
    return frozenset(found)


def special_tokens(model: Model) -> frozenset[int]:
    """Tokens that vLLM leaves out of an answer's text."""
    added = _read(model, "tokenizer.json").get("added_tokens")
    entries = [entry for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    return end_tokens(model) | {entry["id"] for entry in entries if entry.get("special") and "id" in entry}


def beyond_replay(run: Run, model: Model) -> str | None:
    """What about a run makes its greedy choice another than the model's likeliest token; None if nothing does."""
    flags = {flag.replace("_", "-"): value for argv in run.argv for flag, value in _flags(argv)}
    if telling := sorted(TELLING_FLAGS & flags.keys()):
        return f"it was served with {telling[0]}, which replay does not know"
    config = flags.get("--generation-config", "auto")
    if config == "vllm":
        return None
    if config != "auto":
        return "it was served with a --generation-config of its own, which replay does not know"
    settings = _read(model, "generation_config.json")
    for name, none in NO_PENALTY.items():
        if settings.get(name, none) not in (none, None):
            return f"the model's generation_config.json sets {name}; record it with -- --generation-config vllm"
    return None


def _flags(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(flag, value) of a command; the next word where the value is not joined by =."""
    for number, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            yield flag, value if equals else next(iter(argv[number + 1 :]), "")


def _read(model: Model, name: str) -> Mapping[str, Any]:
    try:
        return read_json(model.path / name, TOKENIZER_LIMIT)
    except ModelError:  # not every model has every file
        return {}
