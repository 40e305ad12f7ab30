"""Which architectures the installed vLLM knows, read from its source: importing vLLM would take ten seconds.

What vLLM does with a name is in vllm/model_executor/models/registry.py (_normalize_arch, inspect_model_cls): its own
class, else that of transformers if it has one that vLLM can run, else the model's own code if that is trusted.
"""

import ast
import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

GENERATING = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
POOLING = ("_EMBEDDING_MODELS", "_LATE_INTERACTION_MODELS", "_REWARD_MODELS", "_TOKEN_CLASSIFICATION_MODELS",
           "_SEQUENCE_CLASSIFICATION_MODELS")  # fmt: skip
# Endings of names that vLLM takes for models that generate nothing, unless it knows better (vllm/config/model.py).
POOLING_SUFFIXES = (
    "ForTextEncoding", "EmbeddingModel", "ForSequenceClassification", "ForTokenClassification",
    "ForAudioClassification", "ForImageClassification", "ForVideoClassification", "ClassificationModel",
    "ForRewardModeling", "RewardModel", "Model",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Registry:
    """``generating`` and ``pooling``: architecture to (module, class) of vLLM's own."""

    generating: dict[str, tuple[str, str]]
    pooling: dict[str, tuple[str, str]]
    multimodal: frozenset[str]
    dropped: dict[str, str]  # architecture to the last version that had it
    plugins: dict[str, str]  # architecture to the address of a plugin that has it
    configurations: frozenset[str]  # model_types whose configuration class vLLM or transformers has


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """What the installed vLLM can do with one model's names."""

    own_class: str | None = None  # the architecture that vLLM has a class of its own for
    generates: bool = True  # False: makes embeddings or scores
    knows_configuration: bool = True  # vLLM or transformers has a configuration class for the model_type
    through_transformers: bool = False  # vLLM would run transformers' class
    pipeline: bool | None = None  # whether its layers can be put into stages; None: not known
    dropped: str | None = None  # the last version of vLLM that had it
    plugin: str | None = None  # the address of a plugin that has it
    multimodal: bool = False
    has_torchvision: bool = True


def support_of(architectures: tuple[str, ...], model_type: str) -> Support | None:
    """What becomes of a config's ``architectures`` and ``model_type``; None where no vLLM is installed."""
    known = registry()
    if known is None:
        return None
    own = next((name for name in architectures if name in known.generating), None)
    first = architectures[0] if architectures else ""
    pools = first in known.pooling or (first not in known.dropped and first.endswith(POOLING_SUFFIXES))
    return Support(
        own_class=own,
        generates=own is not None or not pools,
        knows_configuration=model_type in known.configurations,
        through_transformers=own is None and runs_through_transformers(first),
        pipeline=supports_pipeline(own) if own else None,
        dropped=known.dropped.get(first),
        plugin=known.plugins.get(first),
        multimodal=own in known.multimodal,
        has_torchvision=package_folder("torchvision") is not None,
    )


@functools.cache
def package_folder(name: str) -> Path | None:
    """Where a package is installed, without importing it."""
    spec = importlib.util.find_spec(name)
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


@functools.cache
def registry() -> Registry | None:
    """Of the installed vLLM; None where there is none, or one whose registry is written otherwise."""
    vllm = package_folder("vllm")
    try:
        tables = _tables((vllm / "model_executor/models/registry.py").read_text()) if vllm else {}
        return Registry(
            generating=_join(tables, GENERATING),
            pooling=_join(tables, POOLING),
            multimodal=frozenset(tables["_MULTIMODAL_MODELS"]),
            dropped=tables["_PREVIOUSLY_SUPPORTED_MODELS"],
            plugins=tables["_OOT_SUPPORTED_MODELS"],
            configurations=_vllm_configurations(vllm) | _transformers_configurations(),
        )
    except (OSError, ValueError, LookupError, SyntaxError):
        return None


def _join(tables: dict[str, dict], names: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    return {architecture: place for name in names for architecture, place in tables[name].items()}


def _tables(source: str) -> dict[str, dict]:
    """The module's dictionaries, so far as they are written out."""
    found = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            pairs = zip(statement.value.keys, statement.value.values, strict=True)
            known = {key.value: _literal(value) for key, value in pairs if isinstance(key, ast.Constant)}
            found[statement.targets[0].id] = known
    return found


def _literal(value: ast.expr) -> object:
    return ast.literal_eval(value) if isinstance(value, (ast.Constant, ast.Tuple)) else None


def _vllm_configurations(vllm: Path) -> frozenset[str]:
    source = (vllm / "transformers_utils/config.py").read_text()
    table = re.search(r"^_CONFIG_REGISTRY.*?LazyConfigDict\((.*?)^\)$", source, re.MULTILINE | re.DOTALL)
    return frozenset(re.findall(r'^\s+(?:\*\*\{")?(\w[\w-]*)"?(?:=|:)', table[1] if table else "", re.MULTILINE))


def _transformers_configurations() -> frozenset[str]:
    folder = package_folder("transformers")
    for place in ("models/auto/auto_mappings.py", "models/auto/configuration_auto.py"):
        path = folder / place if folder else Path()
        source = path.read_text() if path.is_file() else ""
        table = re.search(r"^CONFIG_MAPPING_NAMES = OrderedDict\((.*?)^\)$", source, re.MULTILINE | re.DOTALL)
        if table and (listed := re.findall(r'^\s+\("([^"]+)", "', table[1], re.MULTILINE)):
            return frozenset([*listed, "gpt-sw3"])
    return frozenset()


@functools.cache
def transformers_module(architecture: str) -> Path | None:
    """The file of transformers that defines the class of this name; None where it has none."""
    folder = package_folder("transformers")
    if folder is None or not architecture.isidentifier():
        return None
    source = (folder / "models/auto/modeling_auto.py").read_text()
    pairs = re.findall(rf'^\s+\("([^"]+)", "{architecture}"\)', source, re.MULTILINE)
    for model_type in pairs:
        for path in (folder / "models" / model_type.replace("-", "_")).glob("modeling_*.py"):
            if re.search(rf"^class {architecture}\b", path.read_text(), re.MULTILINE):
                return path
    return None


def runs_through_transformers(architecture: str) -> bool:
    """Whether vLLM can run transformers' own class: one whose attention it can replace (registry.py,
    _try_resolve_transformers; transformers/modeling_utils.py, _can_set_attn_implementation)."""
    path = transformers_module(architecture)
    if path is None:
        return False
    source = path.read_text()
    if re.search(r"_supports_attention_backend\s*=\s*True", source):
        return True
    has_attention = re.search(r"^class \w*Attention\w*\(nn\.Module\):", source, re.MULTILINE)
    return "ALL_ATTENTION_FUNCTIONS.get_interface(" in source if has_attention else True


@functools.cache
def supports_pipeline(architecture: str) -> bool | None:
    """Whether vLLM can put this model's layers into pipeline stages; None where that cannot be read.

    A model can if its class, or one that it inherits from, names ``SupportsPP`` among its bases.
    """
    known, vllm = registry(), package_folder("vllm")
    place = known.generating.get(architecture) if known and vllm else None
    return _inherits_pipeline(vllm, *place) if place else None


def _inherits_pipeline(vllm: Path, module: str, name: str, depth: int = 0) -> bool | None:
    path = _source_of(vllm, module)
    if path is None or depth > 8:
        return None
    source = path.read_text()
    bases = re.search(rf"^class {name}\(([^)]*)\)", source, re.MULTILINE)
    if bases is None:  # imported under this name, from a module beside it
        place = _imported_from(source, name)
        return _inherits_pipeline(vllm, place, name, depth + 1) if place else None
    answers = []
    for base in re.findall(r"\b([A-Za-z_]\w*)\b", re.sub(r"\[[^\]]*\]", "", bases[1])):
        if base == "SupportsPP":
            return True
        if re.search(rf"^class {base}\b", source, re.MULTILINE):
            answers.append(_inherits_pipeline(vllm, module, base, depth + 1))
        elif place := _imported_from(source, base):
            answers.append(_inherits_pipeline(vllm, place, base, depth + 1))
    return True if True in answers else None if None in answers else False


def _source_of(vllm: Path, module: str) -> Path | None:
    parts = (
        module.removeprefix("vllm.").split(".") if module.startswith("vllm.") else ["model_executor", "models", module]
    )
    place = vllm.joinpath(*parts)
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def _imported_from(source: str, name: str) -> str | None:
    """The module of vLLM's models that ``name`` is imported from; None for anything else (nn.Module)."""
    for match in re.finditer(r"^from (\S+) import (\([^)]*\)|.*)$", source, re.MULTILINE):
        if re.search(rf"\b{name}\b", match[2]):
            module = match[1]
            if module.startswith("vllm.model_executor.models."):
                return module.removeprefix("vllm.model_executor.models.")
            return module[1:] if re.fullmatch(r"\.\w+", module) else None
    return None
