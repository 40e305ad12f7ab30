"""Reading a JSON file that somebody else wrote."""

import json
from collections.abc import Mapping
from pathlib import Path

from localai_clusters.models.errors import ModelError

CONFIG_LIMIT = 10 << 20  # bytes; the largest published config.json files hold some 100 kB


def read_json(path: Path, limit: int = CONFIG_LIMIT) -> Mapping:
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
