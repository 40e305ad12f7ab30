"""The user's cache of this package, and the sha256 of files noted there."""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from pathlib import Path

from localai_clusters.models.errors import ModelError

CHUNK = 1 << 22  # bytes per read when hashing a file


def sha256_of_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def cache_folder() -> Path:
    """The user's cache of this package (below XDG_CACHE_HOME where set), made if absent. Raises ModelError."""
    import platformdirs

    folder = platformdirs.user_cache_path("localai-clusters").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable_cache(folder, error) from None
    return folder


def unusable_cache(folder: Path, error: Exception) -> ModelError:
    """The sentence for a cache folder that the system refuses, to be raised by the caller."""
    return ModelError(
        f"the cache folder {folder} cannot be used ({getattr(error, 'strerror', None) or error}); "
        "set XDG_CACHE_HOME to a folder that you can write to and that has 300 MB free"
    )


def sha256_cached(path: Path) -> str:
    """Hex sha256 of a file; read again only when its size, times or inode changed. Raises ModelError."""
    try:
        stat = path.stat()
        # The ctime too: unlike the mtime it cannot be set back after a change.
        seen = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        # By device and inode, not by path: what is known of a file stays known when its folder is renamed.
        note = cache_folder() / "sha256" / f"{stat.st_dev}-{stat.st_ino}.json"
        try:
            known = json.loads(note.read_bytes())
            if known["seen"] == seen and re.fullmatch("[0-9a-f]{64}", known["sha256"]):
                return known["sha256"]
        except (OSError, ValueError, LookupError, TypeError):
            pass  # no note, or one cut short: the file itself decides
        sha256 = sha256_of_file(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    with contextlib.suppress(OSError):  # a full or read-only cache costs time, not the answer
        _write_atomically(note, json.dumps({"path": str(path.absolute()), "seen": seen, "sha256": sha256}))
    return sha256


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
