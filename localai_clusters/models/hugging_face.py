"""A model by its Hugging Face id: from the local cache, else from the hub."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from localai_clusters.models.built_in import built_in_names
from localai_clusters.models.errors import ModelError
from localai_clusters.models.folder import Model, checked_folder

HUB_TIMEOUT = 10  # seconds for the hub's first answer, then for each file's headers


def cached_snapshot(name: str) -> Path | None:
    """The folder of the id's main revision in the local Hugging Face cache, perhaps incomplete; never the network."""
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE).expanduser() / f"models--{name.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text().strip()
    except (OSError, ValueError):
        return None
    folder = repository / "snapshots" / commit
    return folder if commit.isalnum() and (folder / "config.json").is_file() else None


def find_on_hugging_face(name: str, report: Callable[[str], None]) -> Model:
    """A whole model under this id: from the local cache, else downloaded. Raises ModelError."""
    folder, partly = cached_snapshot(name), ""
    if folder:
        try:
            return Model(name, folder, checked_folder(folder), "hugging-face", folder.name)
        except ModelError as error:  # a download that was cut short
            partly = f" completely ({error})"
    folder = _download(name, partly, report)
    return Model(name, folder, checked_folder(folder), "hugging-face", folder.name)


def _download(name: str, partly: str, report: Callable[[str], None]) -> Path:
    """The folder of a snapshot from the hub: safetensors if it has any, else *.bin. Raises ModelError."""
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    same = " (the same model is built in: smollm2-135m-published)" if "smollm2-135m-instruct" in name.lower() else ""
    instead = f"check the spelling, or type a local folder or {built_in_names()}{same}"
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE") or constants.HF_HUB_OFFLINE
    if offline:
        raise ModelError(
            f"{name} is not{partly} in the local cache {constants.HF_HUB_CACHE} and HF_HUB_OFFLINE=1 forbids asking "
            f"the hub; type `HF_HUB_OFFLINE=0 hf download {name}` where there is a network, or {instead}"
        )
    report(f"looking for {name} on {constants.ENDPOINT}")
    try:
        # Asked first because snapshot_download's own first question waits for an answer without limit.
        files = [file.rfilename for file in HfApi().model_info(name, timeout=HUB_TIMEOUT).siblings or []]
        weights = next((kind for kind in ("*.safetensors", "*.bin")
                        if any("/" not in file and file.endswith(kind[1:]) for file in files)), None)  # fmt: skip
        if weights is None:
            raise ModelError(f"{name} has no weights that vLLM loads (*.safetensors or *.bin); choose another model")
        report(f"downloading {name}")
        folder = snapshot_download(
            name,
            allow_patterns=["*.json", "*.txt", "*.model", "*.jinja", weights],
            ignore_patterns=["*/*", "consolidated*", "training_args*", "optimizer*", "scheduler*"],
            etag_timeout=HUB_TIMEOUT,
        )
        return Path(folder)
    except ModelError:
        raise
    except errors.GatedRepoError:
        raise ModelError(
            f"{name} is gated: accept its licence at {constants.ENDPOINT}/{name}, type `hf auth login`, then try again"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"there is no model {name} on {constants.ENDPOINT}, or it is private (then type `hf auth login`): {instead}"
        ) from None
    except Exception as error:  # the hub's client raises its own, its HTTP library's and the system's errors
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            problem = f"{name} cannot be stored in {constants.HF_HUB_CACHE} ({error.strerror})"
            raise ModelError(f"{problem}; free some space there, or set HF_HOME to another folder") from None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(
            f"{name} is not{partly} in the local cache {constants.HF_HUB_CACHE} and {constants.ENDPOINT} cannot be "
            f"reached ({reason}); check the network (HF_HUB_OFFLINE=1 stops asking), or {instead}"
        ) from error
