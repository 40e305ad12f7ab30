"""The record as JSON Schema (draft 2020-12), for readers in any language.

Regenerate the committed file with `python -m localai_clusters.checkpoint`.
"""

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from .record import SCHEMA_VERSION, Checkpoint

FILE_NAME = f"checkpoint-v{SCHEMA_VERSION}.schema.json"
COMMITTED = Path(__file__).parents[2] / "checkpoints" / "schema" / FILE_NAME


class _WithoutTitles(GenerateJsonSchema):
    """A title that repeats the field's name says nothing."""

    def field_title_should_be_set(self, schema) -> bool:
        return False


def schema() -> dict[str, Any]:
    """What `read` accepts, as far as JSON Schema can say it.

    `read` is stricter in four ways: 1.0 is no integer, a date must exist, no field
    stands twice, and the file has a limit in bytes and depth.
    """
    generated = Checkpoint.model_json_schema(schema_generator=_WithoutTitles)
    _close(generated)
    return {"$schema": GenerateJsonSchema.schema_dialect, **generated}


def schema_text() -> str:
    """The committed file's content."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _close(node: Any) -> None:
    """Names that no pattern allows are refused, as pydantic does."""
    if isinstance(node, dict):
        if "patternProperties" in node:
            node["additionalProperties"] = False
        for value in node.values():
            _close(value)
    elif isinstance(node, list):
        for value in node:
            _close(value)
