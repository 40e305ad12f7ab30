"""Which files of a folder are graded, and opening them: no link is followed, whatever changes meanwhile."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MAX_DEPTH = 16  # folders within folders
SUFFIX = ".json"
NOT_RECORDS = (".schema.json",)
A_LINK = "a link, which is not followed"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO that nobody writes to must not wait for ever.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


@dataclass(slots=True)
class Found:
    """Names are relative to the folder, with /, and undecodable bytes as Python has them (surrogates)."""

    files: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)  # (name, why it is not looked at)
    others: int = 0  # files that are no *.json


def find_files(folder: Path | str) -> Found:
    """Every ``*.json`` below ``folder``, sorted. Hidden files and folders are left alone. Raises ``OSError``."""
    found = Found()
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _walk(descriptor, "", 0, found)
    finally:
        os.close(descriptor)
    found.files.sort(key=os.fsencode)
    found.refused.sort(key=lambda each: os.fsencode(each[0]))
    return found


def _walk(descriptor: int, above: str, depth: int, found: Found) -> None:
    below = []
    with os.scandir(descriptor) as entries:
        for entry in entries:
            name, is_record = above + entry.name, is_record_name(entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                if is_record or _leads_to_folder(descriptor, entry.name):
                    found.refused.append((name, A_LINK))
                else:
                    found.others += 1
            elif entry.is_dir(follow_symlinks=False):
                below.append(entry.name)
                if is_record:
                    found.refused.append((name, "a folder, not a file"))
            elif is_record:
                found.files.append(name)  # a FIFO or a device too: it is refused with its reason when it is opened
            else:
                found.others += 1
    for name in below:
        if depth == MAX_DEPTH:
            found.refused.append((above + name, f"more than {MAX_DEPTH} folders deep, not looked into"))
            continue
        try:
            inner = os.open(name, _FOLDER, dir_fd=descriptor)
        except OSError as error:
            found.refused.append((above + name, why_not_opened(error)))
            continue
        try:
            _walk(inner, f"{above}{name}/", depth + 1, found)
        except OSError as error:
            found.refused.append((above + name, why_not_opened(error)))
        finally:
            os.close(inner)


def is_record_name(name: str) -> bool:
    lower = name.lower()
    return lower.endswith(SUFFIX) and not lower.endswith(NOT_RECORDS)


def _leads_to_folder(descriptor: int, name: str) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISDIR(os.stat(name, dir_fd=descriptor).st_mode)
    return False


@contextlib.contextmanager
def opened(folder: int, name: str) -> Iterator[int]:
    """A descriptor of the file ``name`` below the open ``folder``, no part of whose path is a link. ``OSError``."""
    *above, last = name.split("/")
    with contextlib.ExitStack() as stack:
        here = folder
        for part in above:
            here = os.open(part, _FOLDER, dir_fd=here)
            stack.callback(os.close, here)
        descriptor = os.open(last, _FILE, dir_fd=here)
        stack.callback(os.close, descriptor)
        yield descriptor


def why_not_opened(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return A_LINK
    return f"cannot be read: {error.strerror or error}"


def stamp_of(status: os.stat_result) -> list[int]:
    """What changes when a file does; a student who sets the time of modification does not set that of the change."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def shown(name: str) -> str:
    """A file's name as text; bytes that are no UTF-8 as ``\\xff``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
