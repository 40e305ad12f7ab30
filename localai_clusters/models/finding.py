"""Finding a model by what the user typed: a built-in name, a folder or a Hugging Face id."""

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path

from localai_clusters.models.built_in import BUILT_IN, built_in_names, find_built_in
from localai_clusters.models.errors import ModelError
from localai_clusters.models.folder import Model, checked_folder
from localai_clusters.models.hugging_face import cached_snapshot, find_on_hugging_face
from localai_clusters.models.other_folders import what_file
from localai_clusters.models.shape import ModelShape

Progress = Callable[[str], None] | None


def look_up(name: str) -> ModelShape | None:
    """The shape, at once: built-in, local folder or in the Hugging Face cache; None for an id that is not here.

    Builds and downloads nothing. Raises ModelError for what could not be found in any case.
    """
    kind = kind_of_name(name)
    if kind == "built-in":
        return BUILT_IN[name].shape
    folder = Path(name).expanduser() if kind == "folder" else cached_snapshot(name)
    return ModelShape.from_folder(folder) if folder else None


def find(name: str, *, on_progress: Progress = None) -> Model:
    """The model with this name, ready to be loaded.

    A built-in name is de-quantized into the user's cache on first use (about 5 s, 290 MB); a folder is checked; a
    Hugging Face id is taken from its cache, or downloaded (HF_HUB_OFFLINE, HF_TOKEN and HF_HOME are respected).
    on_progress gets short sentences for people. Raises ModelError.
    """
    report = on_progress or (lambda sentence: None)
    kind = kind_of_name(name)
    if kind == "built-in":
        return find_built_in(name, report)
    if kind == "folder":
        folder = Path(name).expanduser().absolute()
        return Model(name, folder, checked_folder(folder), "folder", "")
    return find_on_hugging_face(name, report)


def kind_of_name(name: str) -> str:
    """ "built-in", "folder" or "hugging-face"; raises ModelError for what is none of them."""
    if not isinstance(name, str) or not name.strip():
        raise ModelError(f"the model's name is empty; type one of {built_in_names()}, a folder or a Hugging Face id")
    if name in BUILT_IN:
        return "built-in"
    place = os.path.expanduser(name)
    if os.path.isdir(place):
        return "folder"
    if os.path.exists(place):
        raise ModelError(what_file(Path(place)))
    near = difflib.get_close_matches(name.strip().lower(), BUILT_IN, n=1, cutoff=0.75)
    if near and "/" not in name:
        raise ModelError(f"there is no model {name[:100]!r}; did you mean {near[0]!r}? Built in: {built_in_names()}")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no folder {name[:300]!r}; type a folder with a config.json, or {built_in_names()}")
    part = r"[A-Za-z0-9](?:[\w.-]{0,94}[\w])?"
    if not re.fullmatch(rf"{part}(?:/{part})?", name, re.ASCII) or "--" in name or ".." in name:
        raise ModelError(
            f"{name[:100]!r} is neither a folder nor a Hugging Face id (ORGANIZATION/NAME); "
            f"type one of those or {built_in_names()}"
        )
    return "hugging-face"
