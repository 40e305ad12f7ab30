"""A model's folder with another config.json, or with files missing: the weights are linked, not copied."""

import atexit
import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from localai_clusters.models import find


def changed_model(model: str = "smollm2-135m", *, without: Iterable[str] = (), **config: Any) -> str:
    """A folder like ``model``'s, for ``ServePlan(model=...)``; it is removed when this process ends.

    ``config`` are values that its config.json shall have, None takes one out; ``without`` names files it shall lack.
    Its weights are the model's own, whatever the config says of them. Raises ``ModelError`` if there is no such model,
    ``ValueError`` for a file it does not have.
    """
    original = find(model).path
    names = {path.name for path in original.iterdir() if path.is_file()}
    if missing := sorted(set(without) - names):
        raise ValueError(f"{model} has no file {', '.join(missing)}; it has {', '.join(sorted(names))}")
    folder = Path(tempfile.mkdtemp(prefix="lac-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in names - {"config.json", *without}:
        (folder / name).symlink_to((original / name).resolve())
    if "config.json" not in without:
        changed = json.loads((original / "config.json").read_text(encoding="utf-8")) | config
        kept = {key: value for key, value in changed.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
    return str(folder)
