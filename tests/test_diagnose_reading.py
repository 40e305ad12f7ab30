"""diagnose/reading.py: bytes as blocks of numbered lines, whatever their encoding, compression and length."""

import gzip
import io

import pytest

from localai_clusters.diagnose.reading import (
    BLOCK_BYTES,
    CONTINUED,
    LONGEST_LINE,
    UnreadableLog,
    blocks,
    plain,
)


def read(data: bytes) -> list[tuple[int, bytes]]:
    """(number, line) of all lines, pieces of a long one under the same number."""
    found = []
    for block in blocks(io.BytesIO(data), "log"):
        number = block.number
        for line in block.data.splitlines() if b"\x0b" not in block.data else block.data.split(b"\n")[:-1]:
            found.append((number, line.removesuffix(CONTINUED)))
            number += not line.endswith(CONTINUED)
    return found


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"one", [(1, b"one")]),
        (b"one\ntwo\n", [(1, b"one"), (2, b"two")]),
        (b"one\r\ntwo\r\n", [(1, b"one"), (2, b"two")]),
        (b"\x1b[36mblue\x1b[0m\nnext", [(1, b"blue"), (2, b"next")]),
        (b"\x1b]8;;http://x\x07link\x1b]8;;\x07\n", [(1, b"link")]),
        (b" 10%\r 20%\r 30%\nnext\n", [(1, b" 10%"), (1, b" 20%"), (1, b" 30%"), (2, b"next")]),
        (gzip.compress(b"one\ntwo\n", mtime=0), [(1, b"one"), (2, b"two")]),
        ("one\nzwei ä\n".encode("utf-16"), [(1, b"one"), (2, "zwei ä".encode())]),
    ],
)
def test_lines_keep_their_numbers(data, lines):
    assert read(data) == lines


def test_a_long_log_of_another_encoding_is_read_whole():
    lines = [f"Zeile {number} ä" for number in range(100_000)]
    assert [line.decode() for _, line in read("\n".join(lines).encode("utf-16-le").join([b"\xff\xfe", b""]))] == lines


def test_a_gzip_file_that_is_cut_short_is_read_as_far_as_it_goes():
    whole = gzip.compress(b"".join(b"line %d\n" % number for number in range(50_000)))
    assert read(whole[: len(whole) // 2])[0] == (1, b"line 0")


def test_a_line_that_never_ends_is_read_in_pieces_of_one_number():
    long = b"x" * (3 * BLOCK_BYTES + 17)
    found = read(b"first\n" + long + b"\nlast\n")
    assert found[0] == (1, b"first")
    assert found[-1] == (3, b"last")
    assert {number for number, _ in found[1:-1]} == {2}
    assert b"".join(line for _, line in found[1:-1]) == long
    assert max(len(line) for _, line in found) <= LONGEST_LINE


def test_lines_across_blocks_are_whole():
    lines = [b"line %07d" % number + b"." * 90 for number in range(30_000)]
    assert read(b"\n".join(lines)) == list(enumerate(lines, 1))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bytes(range(256)) * 4, None),
        (b"\x7fELF\x02\x01\x01" + bytes(300), "is not a text file"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 99, "zstd -dc"),
        (b"PK\x03\x04" + b"x" * 99, "unzip -p"),
    ],
)
def test_what_is_no_text_is_refused_with_what_to_type(data, words):
    if words is None:
        assert read(data)  # bytes that are no UTF-8 are no reason to refuse
        return
    with pytest.raises(UnreadableLog, match=words):
        read(data)


def test_nothing_that_a_terminal_would_act_on_is_left():
    assert plain("a\x07b\x08c\u202egnp.exe\u2066\x9b1mred\tz".encode()) == "abcgnp.exe1mred\tz"
