"""Checkpoint files: written so that a crash leaves the old one or the new one, and
read as the work of a stranger."""

import errno
import json
import os
import re
import secrets
import stat
import time
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from .building import from_json, to_json
from .record import SCHEMA_VERSION, Checkpoint, CheckpointError

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 16  # a record needs 7
MAX_MEMBERS = 4096  # of one object; the most that the schema allows anywhere
UPDATE_COMMAND = "git pull && make run"
QUICK_BYTES = 256 * 2**10  # a record is some 30 kB

_STALE_AFTER = 3600  # seconds: no write takes that long, so its writer was killed
_STRUCTURE = bytes.maketrans(b"[]{}", b"()()")
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}":'))
# Possessive: giving strings back would take 60 bytes for each of millions of quotes.
_STRINGS = re.compile(rb'(?:"[^"]*")++')
_VERSION = re.compile(rb'"schema_version"\s*:\s*[1-%d]\s*[,}]' % SCHEMA_VERSION)


class NewerVersion(CheckpointError):
    """The record is of a version that this program does not know yet."""


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
            object, or a field is not what the schema says. NewerVersion, which is
            one, for a record of a version that this program does not know.
    """
    try:
        return parse(content_of_file(path))
    except CheckpointError as error:
        raise type(error)(f"{_shown(path)}: {error}") from error


def parse(content: bytes) -> Checkpoint:
    """The record in a file's bytes. CheckpointError says what is wrong, without the file's name."""
    if len(content) > MAX_BYTES:
        raise CheckpointError(f"larger than a checkpoint may be ({MAX_BYTES:,} bytes)")
    if not content or content.isspace():
        raise CheckpointError("the file is empty")
    outside = _outside_strings(content)
    _refuse_deep(outside)
    if (record := _quickly(content, outside)) is not None:
        return record
    value = _strict_json(_decode(content))
    _refuse_other_versions(value)
    return from_json(value)


def content_of(descriptor: int) -> bytes:
    """The bytes of an open file, for `parse`: one more than MAX_BYTES of a file that is larger.

    Raises CheckpointError for what is no regular file, and OSError.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError("not a regular file")
    content = os.read(descriptor, min(MAX_BYTES, status.st_size) + 1)
    # One read for most. What is at least as long as it was said to be may have grown.
    while len(content) > status.st_size and len(content) <= MAX_BYTES:
        part = os.read(descriptor, MAX_BYTES + 1 - len(content))
        if not part:
            break
        content += part
    return content


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


def content_of_file(path: Path | str) -> bytes:
    """The bytes of a file that anyone may have put there, for `parse`. CheckpointError: it cannot be read."""
    # O_NONBLOCK: opening a FIFO that nobody writes to must not wait for ever.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags)
        try:
            return content_of(descriptor)
        finally:
            os.close(descriptor)
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot be read: {reason}") from error


def _decode(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"not UTF-8 at byte {error.start}") from error


def _outside_strings(content: bytes) -> bytes:
    """The brackets, as ( and ), and the colons that stand outside of strings."""
    unescaped = content
    if b"\\" in content:
        unescaped = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    return _STRINGS.sub(b"", unescaped.translate(_STRUCTURE, _NOT_STRUCTURE)).replace(b'"', b"")


def _refuse_deep(outside: bytes) -> None:
    """Measure the nesting without recursion: each pass removes the innermost pairs."""
    pairs = outside.replace(b":", b"")
    passes = 0
    while b"()" in pairs and passes < MAX_DEPTH:
        pairs = pairs.replace(b"()", b"")
        passes += 1
    if b"()" in pairs or pairs.count(b"(") > MAX_DEPTH:
        raise CheckpointError(f"nested deeper than {MAX_DEPTH} levels")


def _quickly(content: bytes, outside: bytes) -> Checkpoint | None:
    """The record, if pydantic's own JSON parser sees one that the strict reading would see too, in half its time.

    None wherever that is not certain: the strict reading decides, and says what is wrong. Never for a large file:
    pydantic copies the input into every error, and a hostile file of 4 MB then takes 3 GB.
    """
    if len(content) > QUICK_BYTES or not _VERSION.search(content):
        return None
    try:
        record = Checkpoint.model_validate_json(content)
    except ValidationError:
        return None
    # Of a field that stands twice pydantic takes the last: then there are more colons than fields that were set.
    return record if outside.count(b":") == _fields_set(record) else None


def _fields_set(part: BaseModel) -> int:
    """How many members the objects of a JSON text had, from what was read of it."""
    count = len(part.model_fields_set)
    for name in _with_objects(type(part)):
        value = getattr(part, name)
        if isinstance(value, dict):
            count += len(value)
        elif isinstance(value, tuple):
            count += sum(map(_fields_set, value))
        elif value is not None:
            count += _fields_set(value)
    return count


@cache
def _with_objects(part: type[BaseModel]) -> tuple[str, ...]:
    """The fields of a part that are objects in JSON, or lists of objects."""
    return tuple(name for name, field in part.model_fields.items() if _is_object(field.annotation))


def _is_object(kind: Any) -> bool:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return True
    return get_origin(kind) is dict or any(map(_is_object, get_args(kind)))


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
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    seen: set[str] = set()
    twice = next(name for name, _ in pairs if name in seen or seen.add(name))
    raise CheckpointError(f"the field {_shown(twice)} stands twice in one object")


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
        raise NewerVersion(
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
