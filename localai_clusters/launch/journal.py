"""Append-only files of JSON lines, by which a run's processes tell the launcher what they have reached."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any


def append(path: Path, **facts: Any) -> None:
    """Add one line ``{"time": now, **facts}``, in a single write so that no reader sees half of two."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"time": time.time(), **facts}) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of ``path``, none if it is missing; a line still being written is left for the next read."""
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found
