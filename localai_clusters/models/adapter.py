"""LoRA adapters that a plan asks for: what their folders say, against the model they are to change.

What vLLM accepts of an adapter: vllm/lora/peft_helper.py (PEFTHelper, validate_legal).
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localai_clusters.models.errors import ModelError
from localai_clusters.models.json_file import read_json
from localai_clusters.models.linears import layer_linears
from localai_clusters.models.other_folders import safetensors_header
from localai_clusters.models.shape import ModelShape
from localai_clusters.vllm_flags import words_of

# What vLLM reads in an adapter_config.json only to refuse it, and how it says so.
REFUSED = {
    "use_dora": "DoRA",
    "lora_bias": "a bias in the LoRA layers",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "layers that are used twice",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
}
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One of ``--lora-modules``. ``problem`` says why its folder cannot be read."""

    name: str
    place: str  # a folder, or a Hugging Face id
    problem: str | None = None
    is_here: bool = True  # False: a Hugging Face id, of which nothing is known
    base: str | None = None  # the model it was made for
    rank: int = 0
    targets: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()
    sizes: tuple[tuple[str, int, int], ...] = ()  # (q_proj, inputs, outputs), from its weights

    def misfits(self, shape: ModelShape) -> list[str]:
        """Where its matrices are not of the model's sizes: ``q_proj takes 4096 numbers, this model's 576``."""
        linears = layer_linears(shape, 0)
        known = {part.name: (linear.inputs, part.units * part.width) for linear in linears for part in linear.parts}
        found = []
        for name, inputs, outputs in self.sizes:
            if name not in known:
                continue
            if inputs != known[name][0]:
                found.append(f"its {name} takes {inputs} numbers, this model's {known[name][0]}")
            elif outputs != known[name][1]:
                found.append(f"its {name} gives {outputs} numbers, this model's {known[name][1]}")
        return found


def read_adapters(arguments: Sequence[str]) -> tuple[Adapter, ...]:
    """Those that ``--lora-modules`` names: NAME=FOLDER, or JSON with name and path."""
    adapters = []
    for word in words_of(arguments, "--lora-modules") or []:
        if "=" in word and "," not in word:
            name, _, place = word.partition("=")
        else:
            try:
                given = json.loads(word)
                name, place = str(given["name"]), str(given["path"])
            except (ValueError, LookupError, TypeError, RecursionError):
                problem = "--lora-modules takes NAME=FOLDER, or a JSON object with name and path"
                adapters.append(Adapter(name=word[:80], place="", problem=problem))
                continue
        adapters.append(read_adapter(name, place))
    return tuple(adapters)


def read_adapter(name: str, place: str) -> Adapter:
    folder = Path(os.path.expanduser(place))
    if not folder.is_dir():
        if place.startswith(("/", ".", "~")) or place.count("/") != 1:
            return Adapter(name=name, place=place, problem=f"there is no folder {place[:200]}")
        return Adapter(name=name, place=place, is_here=False)
    try:
        config = read_json(folder / "adapter_config.json")
    except ModelError as error:
        return Adapter(name=name, place=place, problem=str(error))
    if not any((folder / file).is_file() for file in WEIGHTS):
        return Adapter(name=name, place=place, problem=f"{folder} has no {WEIGHTS[0]}")
    ranks = [config.get("r"), *_values(config.get("rank_pattern"))]
    if not all(isinstance(rank, int) and not isinstance(rank, bool) and rank > 0 for rank in ranks):
        return Adapter(name=name, place=place, problem=f"{folder}/adapter_config.json has no rank r above 0")
    base, targets = config.get("base_model_name_or_path"), config.get("target_modules")
    unsupported = [words for key, words in REFUSED.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        unsupported.append("a bias")
    if saved := [str(m) for m in _listed(config.get("modules_to_save")) if m not in ("classifier", "score")]:
        unsupported.append(f"whole modules ({', '.join(saved)[:80]})")
    return Adapter(
        name=name,
        place=place,
        base=base if isinstance(base, str) else None,
        rank=max(ranks),
        targets=tuple(str(target)[:80] for target in _listed(targets)),
        unsupported=tuple(unsupported),
        sizes=_sizes(folder),
    )


def _values(value: object) -> list:
    return list(value.values()) if isinstance(value, Mapping) else []


def _listed(value: object) -> list:
    return value if isinstance(value, list) else [value] if isinstance(value, str) else []


def _sizes(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Of each kind of matrix the first one's inputs (lora_A's columns) and outputs (lora_B's rows)."""
    try:
        tensors = safetensors_header(folder / WEIGHTS[0])
        inputs: dict[str, int] = {}
        outputs: dict[str, int] = {}
        for name, tensor in tensors.items():
            path = name.removesuffix(".weight").split(".")
            if path[-1] == "lora_A":
                inputs.setdefault(path[-2], int(tensor["shape"][1]))
            elif path[-1] == "lora_B":
                outputs.setdefault(path[-2], int(tensor["shape"][0]))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ()
    return tuple((name, inputs[name], outputs[name]) for name in inputs if name in outputs)
