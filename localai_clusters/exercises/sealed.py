"""The exercises of a lab in one file that nobody reads by accident.

It is packed and not secret: who wants the answers can unpack it, as can this module. What it keeps is the surprise. The
file is JSON: what lab it is of, the SHA-256 of the source that it was made from, and the exercise cells (zlib, base64).
"""

import base64
import binascii
import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localai_clusters.errors import PlainError

FORMAT, VERSION = "localai-clusters sealed exercises", 1
LARGEST = 4 * 2**20  # bytes of a file, and of what is in it
WRAP = 100  # characters of base64 on a line


class SealedError(PlainError, ValueError):
    """A file of sealed exercises that cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Python source, and the line of the lab's source that it begins at."""

    line: int
    source: str


@dataclass(frozen=True, slots=True)
class Sealed:
    """``lab`` is the slug that records carry, ``ci`` the small parameters of a quick run."""

    chapter: int
    number: int
    lab: str
    title: str
    source_sha256: str
    cells: tuple[Cell, ...]
    ci: dict[str, Any]


def seal(sealed: Sealed) -> str:
    """The text of the file."""
    inside = json.dumps(
        {"cells": [[cell.line, cell.source] for cell in sealed.cells], "ci": sealed.ci}, sort_keys=True
    ).encode()
    packed = base64.b64encode(zlib.compress(inside, 9)).decode()
    page = {
        "format": FORMAT,
        "version": VERSION,
        "chapter": sealed.chapter,
        "number": sealed.number,
        "lab": sealed.lab,
        "title": sealed.title,
        "source_sha256": sealed.source_sha256,
        "sha256": hashlib.sha256(inside).hexdigest(),
        "packed": [packed[start : start + WRAP] for start in range(0, len(packed), WRAP)],
    }
    return json.dumps(page, indent=1, ensure_ascii=False) + "\n"


def unseal(path: Path) -> Sealed:
    """The exercises in ``path``. ``SealedError`` if it is not such a file, was changed, or is of a later version."""
    again = f"get {path.name} anew from the course's archive, and put it beside the notebook"
    try:
        if path.stat().st_size > LARGEST:
            raise SealedError(f"{path} is too large to hold exercises; {again}")
        page = json.loads(path.read_bytes())
    except OSError as error:
        raise SealedError(f"{path}: {error.strerror}; {again}") from error
    except (ValueError, RecursionError) as error:
        raise SealedError(f"{path} is not a file of sealed exercises; {again}") from error
    if not isinstance(page, dict) or page.get("format") != FORMAT:
        raise SealedError(f"{path} is not a file of sealed exercises; {again}")
    if page.get("version") != VERSION:
        raise SealedError(f"{path} is of version {page.get('version')} and this library reads {VERSION}; update it")
    try:
        unpacking = zlib.decompressobj()
        inside = unpacking.decompress(base64.b64decode("".join(page["packed"]), validate=True), LARGEST)
        if hashlib.sha256(inside).hexdigest() != page["sha256"]:
            raise SealedError(f"{path} was changed: its exercises are not those that it was sealed with; {again}")
        content = json.loads(inside)
        cells = tuple(Cell(int(line), str(source)) for line, source in content["cells"])
        about = {name: page[name] for name in ("chapter", "number", "lab", "title", "source_sha256")}
        return Sealed(**about, cells=cells, ci=dict(content["ci"]))
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
        if isinstance(error, SealedError):
            raise
        raise SealedError(f"{path} was changed or cut short: it cannot be unpacked; {again}") from error
