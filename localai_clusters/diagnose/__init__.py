"""A log in, causes out: which one, the lines that show it, why it happens, what to type.

Everything here but ``runs`` reads text and knows nothing of how it came about.
"""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from localai_clusters.diagnose.explaining import explained
from localai_clusters.diagnose.matching import scan
from localai_clusters.diagnose.reading import UnreadableLog, blocks
from localai_clusters.diagnose.records import owner_of
from localai_clusters.diagnose.report import Report

__all__ = ["Report", "UnreadableLog", "explain_files", "explain_stream", "explain_text"]


def explain_files(paths: Iterable[Path]) -> Report:
    """Explain one log that lies in one or several files, one per rank maybe. ``OSError`` if one cannot be read."""
    paths = tuple(paths)
    files = ((path.name, owner_of(path), blocks_of(path)) for path in paths)
    return explained(scan(files), tuple(str(path) for path in paths))


def blocks_of(path: Path):
    if path.is_dir():
        raise UnreadableLog(f"{path} is a folder without logs of a run")
    with open(path, "rb") as stream:
        yield from blocks(stream, str(path))


def explain_stream(stream: BinaryIO, name: str = "standard input") -> Report:
    return explained(scan([(name, "", blocks(stream, name))]), (name,))


def explain_text(text: str) -> Report:
    return explain_stream(io.BytesIO(text.encode("utf-8", "replace")), "text")
