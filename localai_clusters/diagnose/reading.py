"""A log, of whatever size, encoding and compression, as blocks of numbered lines.

Nothing here holds more than a block: a line without an end is cut into pieces.
"""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK_BYTES = 1 << 20
LONGEST_LINE = 8192  # bytes; the rest of a longer line is read as further pieces of it
CONTINUED = b"\x0b"  # ends a piece whose line goes on, so that the next piece keeps its number

ANSI = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)?|[@-Z\\^_])")
# What would move a terminal's cursor, or turn the direction of the text, when it is shown.
UNPRINTABLE = {
    code: None for code in (*range(9), *range(10, 32), *range(127, 160), *range(0x202A, 0x202F), 0x200E, 0x200F)
}
UNPRINTABLE |= {code: None for code in (*range(0x2066, 0x206A), 0x2028, 0x2029, 0xFEFF)}
# Formats that are recognized to be refused with what to type.
COMPRESSED = {
    b"\x28\xb5\x2f\xfd": "zstd -dc",
    b"\xfd7zXZ": "xz -dc",
    b"BZh": "bzip2 -dc",
    b"PK\x03\x04": "unzip -p",
}


class UnreadableLog(ValueError):
    """Not a text log; the message says what it is and what to type."""


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines: ``number`` is the first one's."""

    number: int
    data: bytes


def blocks(stream: BinaryIO, name: str) -> Iterator[Block]:
    """Blocks of whole lines of ``stream``, decompressed, without ANSI codes, in UTF-8 or something close to it.

    Raises ``UnreadableLog`` for what is not text.
    """
    stream = text_stream(stream, name)
    number, rest = 1, b""
    while True:
        read = read_some(stream)
        if CONTINUED in read:
            read = read.replace(CONTINUED, b" ")
        block = rest + read
        if not block:
            return
        end = block.rfind(b"\n") + 1 if read else len(block)
        if not end and len(block) < BLOCK_BYTES:
            rest = block
            continue
        end = end or len(block)
        data, rest = block[:end], block[end:]
        if not data.endswith(b"\n"):
            data += CONTINUED + b"\n" if read else b"\n"
        yield Block(number, tidy(data))
        number += data.count(b"\n") - data.endswith(CONTINUED + b"\n")


def read_some(stream: BinaryIO) -> bytes:
    """At most a block; of a gzip file that was cut short or is broken, what could be read of it."""
    read = b""
    while len(read) < BLOCK_BYTES:
        try:
            more = stream.read(min(BLOCK_BYTES - len(read), 1 << 16))
        except (EOFError, gzip.BadGzipFile, zlib.error):
            break
        if not more:
            break
        read += more
    return read


def tidy(data: bytes) -> bytes:
    """``data`` without ANSI codes, and every progress bar's redraw and every piece of a long line on its own line."""
    if b"\x1b" in data:
        data = ANSI.sub(b"", data)
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", CONTINUED + b"\n")
    lines = data.split(b"\n")
    if max(map(len, lines)) > LONGEST_LINE:
        data = b"\n".join(b"".join(pieces(line)) if len(line) > LONGEST_LINE else line for line in lines)
    return data


def pieces(line: bytes) -> Iterator[bytes]:
    for start in range(0, len(line), LONGEST_LINE):
        piece = line[start : start + LONGEST_LINE]
        yield piece + CONTINUED + b"\n" if start + LONGEST_LINE < len(line) else piece


def text_stream(stream: BinaryIO, name: str) -> BinaryIO:
    """``stream`` as UTF-8 text in bytes: decompressed if it is gzip, decoded if it is UTF-16."""
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)  # type: ignore[arg-type]
    head = buffered.peek(512)[:512]
    if head[:2] == b"\x1f\x8b":
        return text_stream(io.BufferedReader(gzip.GzipFile(fileobj=buffered)), name)  # type: ignore[arg-type]
    for magic, command in COMPRESSED.items():
        if head.startswith(magic):
            raise UnreadableLog(f"{name} is compressed; {command} {name} | localai-clusters explain-log -")
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return Transcoded(codecs.getreader("utf-16")(buffered, errors="replace"))  # what PowerShell's > writes
    if head.count(b"\0") > len(head) // 20:
        raise UnreadableLog(f"{name} is not a text file")
    return buffered


class Transcoded(io.RawIOBase):
    """A text reader that gives UTF-8."""

    def __init__(self, reader: codecs.StreamReader):
        self._reader = reader

    def read(self, size: int = -1) -> bytes:
        return self._reader.read(size, size).encode("utf-8", "replace")


def plain(line: bytes) -> str:
    """A line's text with nothing in it that a terminal would act on."""
    text = line.decode("utf-8", "replace")
    return text if text.isprintable() else text.translate(UNPRINTABLE)
