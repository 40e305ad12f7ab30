"""Configs of well-known models (model_configs/README.md), by name, for the tests that need one."""

import json
from pathlib import Path

from localai_clusters.models import ModelShape
from localai_clusters.models.facts import ModelFacts

FOLDER = Path(__file__).parent / "model_configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json") if not path.stem.endswith(".hf_quant_config"))


def config(name: str, **changes) -> dict:
    """The config.json published under this name, with hf_quant_config.json's content where it has one."""
    found = json.loads((FOLDER / f"{name}.json").read_text())
    beside = FOLDER / f"{name}.hf_quant_config.json"
    if beside.exists():
        found["quantization_config"] = json.loads(beside.read_text())
    return found | changes


def shape(name: str, **changes) -> ModelShape:
    return ModelShape.from_config(config(name, **changes))


def facts(name: str, changes: dict | None = None, **known) -> ModelFacts:
    return ModelFacts.from_config(config(name, **(changes or {})), **known)
