"""All that can be known of a model on this machine without loading it, gathered once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from localai_clusters.models.built_in import BUILT_IN
from localai_clusters.models.errors import ModelError
from localai_clusters.models.finding import kind_of_name
from localai_clusters.models.folder import TOKENIZERS, check_files, weights_files
from localai_clusters.models.hugging_face import cached_snapshot
from localai_clusters.models.json_file import read_json
from localai_clusters.models.other_folders import what_instead
from localai_clusters.models.shape import ModelShape, with_its_quantization
from localai_clusters.models.tensors import contradiction
from localai_clusters.models.vllm_registry import Support, support_of

BUILT_IN_SUPPORT = Support(own_class="LlamaForCausalLM", pipeline=True)  # known without reading vLLM's source
TOKENIZER_CONFIG_LIMIT = 50 << 20  # bytes; some list every added token


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """``None`` stands for what cannot be known here: the model has to be downloaded or built first."""

    shape: ModelShape | None = None
    problem: str | None = None  # why the model cannot be used at all
    incomplete: str | None = None  # what its folder lacks
    contradiction: str | None = None  # what its configuration says that its weights do not bear out
    downloads: bool = False  # what is missing is downloaded when the model is served
    folder: Path | None = None
    architectures: tuple[str, ...] = ()  # of which vLLM takes the first that it knows
    model_type: str = ""  # of the config itself, not of a language model within
    own_config_code: bool = False  # auto_map names Python files that come with the model
    own_model_code: bool = False
    files: frozenset[str] = frozenset()
    chat_template: bool | None = None
    tokenizer: bool | None = None
    weights_bytes: int | None = None  # of its weights files
    pooling: bool = False  # sentence-transformers' modules.json makes embeddings of it
    support: Support | None = None  # what the installed vLLM can do with it

    @classmethod
    def from_config(cls, config: Mapping, **facts) -> "ModelFacts":
        """Of a config.json already parsed. Raises ModelError."""
        shape = ModelShape.from_config(config)
        auto_map = config.get("auto_map")
        classes = [str(key) for key in auto_map] if isinstance(auto_map, Mapping) else []
        architectures = tuple(name for name in config["architectures"] if isinstance(name, str))
        model_type = str(config.get("model_type") or shape.model_type)
        return cls(
            shape=shape,
            architectures=architectures,
            model_type=model_type,
            own_config_code="AutoConfig" in classes,
            own_model_code=any(name.startswith("AutoModel") for name in classes),
            **{"support": support_of(architectures, model_type), **facts},
        )


def look_at(name: str) -> ModelFacts:
    """What is known of the model that a user named so. Never raises for a model, and downloads and builds nothing."""
    try:
        kind = kind_of_name(name)
        if kind == "built-in":
            shape = BUILT_IN[name].shape
            return ModelFacts(
                shape=shape,
                architectures=(shape.architecture,),
                model_type=shape.model_type,
                chat_template=True,
                tokenizer=True,
                support=BUILT_IN_SUPPORT,
            )
        folder = Path(name).expanduser() if kind == "folder" else cached_snapshot(name)
        if folder is None:
            return ModelFacts()
        facts = facts_of_folder(folder)
    except ModelError as error:
        return ModelFacts(problem=str(error))
    if kind == "folder" or facts.incomplete is None:
        return facts
    return replace(facts, downloads=True, weights_bytes=None, tokenizer=None, chat_template=facts.chat_template or None)


def facts_of_folder(folder: Path) -> ModelFacts:
    """Raises ModelError for a folder whose config.json is missing or of no use."""
    if not (folder / "config.json").is_file() and (other := what_instead(folder)):
        raise ModelError(other)
    shape = ModelShape.from_folder(folder)  # whose errors name the folder
    config = with_its_quantization(read_json(folder / "config.json"), folder)
    files = frozenset(os.listdir(folder))
    incomplete = wrong = None
    try:
        wrong = contradiction(shape, check_files(folder))
    except ModelError as error:
        incomplete = str(error)
    return ModelFacts.from_config(
        config,
        folder=folder,
        incomplete=incomplete,
        contradiction=wrong,
        files=files,
        chat_template=_has_chat_template(folder, files),
        tokenizer=any(name in files for name in TOKENIZERS),
        weights_bytes=_weights_bytes(folder),
        pooling=_is_pooling(folder),
    )


def _has_chat_template(folder: Path, files: frozenset[str]) -> bool | None:
    """Where transformers and vLLM look for one (vllm/renderers/hf.py, resolve_chat_template)."""
    if (
        files & {"chat_template.jinja", "chat_template.json", "tekken.json"}
        or (folder / "additional_chat_templates").is_dir()
    ):
        return True
    for name in ("tokenizer_config.json", "processor_config.json"):
        if name in files:
            try:
                if read_json(folder / name, TOKENIZER_CONFIG_LIMIT).get("chat_template"):
                    return True
            except ModelError:
                return None
    return False


def _weights_bytes(folder: Path) -> int | None:
    try:
        return sum(path.stat().st_size for path in weights_files(folder))
    except (ModelError, OSError):
        return None


def _is_pooling(folder: Path) -> bool:
    """As vLLM tells (vllm/transformers_utils/config.py, get_pooling_config)."""
    path = folder / "modules.json"
    try:
        return path.is_file() and b".Pooling" in path.read_bytes()[: 1 << 20]
    except OSError:
        return False
