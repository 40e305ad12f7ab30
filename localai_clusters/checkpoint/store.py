"""Checkpoint files: written so that a crash leaves the old one or the new one, and
read as the work of a stranger."""

import errno
import json
import os
import re
import secrets
import stat
import time
from pathlib import Path
from typing import Any

from .building import from_json, to_json
from .record import SCHEMA_VERSION, Checkpoint, CheckpointError

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 16  # a record of version 1 needs 7
MAX_MEMBERS = 4096  # of one object; the most that the schema allows anywhere
UPDATE_COMMAND = "git pull && make run"

_STALE_AFTER = 3600  # seconds: no write takes that long, so its writer was killed
_STRUCTURE = bytes.maketrans(b"[]{}", b"()()")
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[]{}"))
_STRING = re.compile(rb'"[^"]*"')


def path_of(checkpoint: Checkpoint, folder: Path | str) -> Path:
    """folder/<student>/<chapter>-<lab>-<UTC time>-<8 digits of the record id>.json"""
    moment = re.sub(r"[:-]", "", checkpoint.created_at)
    name = f"{checkpoint.chapter:02d}-{checkpoint.lab}-{moment}-{checkpoint.record_id[:8]}.json"
    return Path(folder) / checkpoint.student / name


def write(checkpoint: Checkpoint, folder: Path | str) -> Path:
    """Write the record below `folder` and return where it is.

    Whatever ends the process leaves the old file or the new one, whole. An exception
    leaves nothing else; a kill may leave a hidden `.tmp` file, which a later write
    by the same student removes.

    Raises:
        CheckpointError: the disk is full, the folder cannot be written, or the
            record is larger than `read` accepts.
    """
    path = path_of(checkpoint, folder)
    content = to_json(checkpoint).encode()
    if len(content) > MAX_BYTES:
        raise CheckpointError(
            f"the record takes {len(content):,} bytes and a checkpoint may hold "
            f"{MAX_BYTES:,}: record fewer completions or leave out their logprobs"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path.parent)
        _replace(path, content)
    except OSError as error:
        raise CheckpointError(_why_not_written(error, path, len(content))) from error
    return path


def read(path: Path | str) -> Checkpoint:
    """The record in a file that anyone may have written.

    Raises:
        CheckpointError: always this one, in one line: the file cannot be read, is
            not a regular file, is larger than MAX_BYTES, is not one strict JSON
            object, or a field is not what the schema says.
    """
    try:
        content = _read_bytes(path)
        _refuse_deep(content)
        value = _strict_json(_decode(content))
        _refuse_other_versions(value)
        return from_json(value)
    except CheckpointError as error:
        raise CheckpointError(f"{_shown(path)}: {error}") from error


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _remove_stale(folder: Path) -> None:
    for left in folder.glob(".*.json.*.tmp"):
        try:
            if time.time() - left.stat().st_mtime > _STALE_AFTER:
                left.unlink(missing_ok=True)
        except OSError:
            continue  # another writer was faster, or it is not ours to remove


def _why_not_written(error: OSError, path: Path, size: int) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"no room for the checkpoint: {path.parent} cannot take {size:,} bytes "
            f"more ({error.strerror}). Nothing was changed; free some space and record "
            "again"
        )
    return f"the checkpoint cannot be written to {path}: {error.strerror or error}"


def _read_bytes(path: Path | str) -> bytes:
    # O_NONBLOCK: opening a FIFO that nobody writes to must not wait for ever.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags)
        try:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            content = _read_up_to(descriptor, MAX_BYTES + 1) if regular else b""
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot be read: {reason}") from error
    if not regular:
        raise CheckpointError("not a regular file")
    if len(content) > MAX_BYTES:
        raise CheckpointError(f"larger than a checkpoint may be ({MAX_BYTES:,} bytes)")
    if not content.strip():
        raise CheckpointError("the file is empty")
    return content


def _read_up_to(descriptor: int, size: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(size)


def _decode(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"not UTF-8 at byte {error.start}") from error


def _refuse_deep(content: bytes) -> None:
    """Measure the nesting without recursion: each pass removes the innermost pairs."""
    unescaped = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    pairs = _STRING.sub(b"", unescaped).translate(_STRUCTURE, _NOT_STRUCTURE)
    passes = 0
    while b"()" in pairs and passes < MAX_DEPTH:
        pairs = pairs.replace(b"()", b"")
        passes += 1
    if b"()" in pairs or pairs.count(b"(") > MAX_DEPTH:
        raise CheckpointError(f"nested deeper than {MAX_DEPTH} levels")


def _strict_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
            raise CheckpointError(f"the file ends too early, in line {error.lineno}: it was cut short") from error
        raise CheckpointError(f"not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except CheckpointError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise CheckpointError("it holds a number that is far too long") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_MEMBERS:
        raise CheckpointError(f"an object of more than {MAX_MEMBERS:,} fields")
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise CheckpointError(f"the field {_shown(name)} stands twice in one object")
        members[name] = value
    return members


def _refuse_constant(name: str) -> None:
    raise CheckpointError(f"{name} is not a number that JSON knows")


def _refuse_other_versions(record: Any) -> None:
    if not isinstance(record, dict):
        raise CheckpointError("a checkpoint is one JSON object, this is something else")
    version = record.get("schema_version")
    if version is None:
        raise CheckpointError("schema_version: this field is missing")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise CheckpointError(f"schema_version: should be a whole number from 1; found {_shown(version)}")
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"this file is version {_shown(version)}; this program reads up to "
            f"{SCHEMA_VERSION}: update with `{UPDATE_COMMAND}` in the course's folder"
        )


def _shown(value: Any) -> str:
    """A name or value from outside, short, on one line, in plain ASCII."""
    if isinstance(value, Path | str):
        text = json.dumps(str(value))
        text = text[1:-1] if isinstance(value, Path) else text
    else:
        text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:90]}...{text[-90:]}"
