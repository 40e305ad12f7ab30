"""Whether a running rank's slice of a matrix is made of the bytes of the model's own files.

The rank's SHA-256 of its tensor is held against that of the same columns or rows, cut here out of the safetensors
files. Their format: a length, a JSON header with each tensor's dtype, shape and place, the tensors' bytes
(huggingface/safetensors, README, "Format").
"""

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localai_clusters.matrices import HEADS, ROW, Matrices, Matrix, Slice
from localai_clusters.tables import Table

if TYPE_CHECKING:
    import numpy

DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
NUMPY = {"bfloat16": "<u2", "float16": "<f2", "float32": "<f4"}  # numpy has no bfloat16: its bits
MOST_COLUMNS = 4
WORDS = {True: "✓ same bytes", False: "× OTHER bytes", None: "? cannot be told"}


@dataclass(frozen=True, slots=True)
class SliceCheck:
    """Each slice that a rank hashed, what of the file it should be, and whether it is; None: not to be told here."""

    rows: tuple[tuple[str, int, str, bool | None], ...]  # matrix, rank, what of the file, whether

    @property
    def equal(self) -> int:
        return sum(verdict is True for *_, verdict in self.rows)

    @property
    def different(self) -> int:
        return sum(verdict is False for *_, verdict in self.rows)

    def _table(self) -> Table:
        ranks = sorted({rank for _, rank, _, _ in self.rows})
        title = f"{self.equal} of {len(self.rows)} slices are, byte for byte, the model's own file"
        if len(ranks) > MOST_COLUMNS:
            rows = tuple((name, str(rank), f"{WORDS[verdict]}: {what}") for name, rank, what, verdict in self.rows)
            return Table(title, ("matrix", "rank", "SHA-256"), rows)
        cells: dict[str, dict[int, str]] = {}
        for name, rank, what, verdict in self.rows:
            cells.setdefault(name, {})[rank] = f"{WORDS[verdict]}: {what}"
        rows = tuple((name, *(on.get(rank, "") for rank in ranks)) for name, on in cells.items())
        return Table(title, ("matrix", *(f"on rank {rank}" for rank in ranks)), rows)

    def __str__(self) -> str:
        return str(self._table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()


def check(found: Matrices) -> SliceCheck:
    files = index(found.folder)
    rows = []
    for matrix in found:
        for slice_ in matrix.slices:
            if slice_.sha256:
                rows.append(
                    (
                        matrix.name.removesuffix(".weight").removeprefix("model."),
                        slice_.rank,
                        *_compare(matrix, slice_, files),
                    )
                )
    return SliceCheck(tuple(rows))


def _compare(matrix: Matrix, slice_: Slice, files: dict) -> tuple[str, bool | None]:
    tensor = max(other.tensor_parallel_rank for other in matrix.slices) + 1
    module, _, kind = matrix.name.rpartition(".")
    prefix = module.rpartition(".")[0]
    pieces, words = [], []
    for part, _ in matrix.parts or ((module.rpartition(".")[2], 0),):
        name = f"{prefix}.{part}.{kind}"
        if name not in files:
            return f"{name} is not in the files", None
        whole = read(*files[name])
        if whole is None:
            return f"{name} has another dtype", None
        first, last = _range(matrix, part, slice_.tensor_parallel_rank, tensor, whole[1])
        if matrix.split == ROW:
            pieces.append(whole[1][:, first:last])
        else:
            pieces.append(whole[1][first:last])
        words.append((f"{part.removesuffix('_proj')} " if len(matrix.parts) > 1 else "") + f"{first} to {last - 1}")
    data = b"".join(as_dtype(piece, whole[0], slice_.dtype).tobytes() for piece in pieces)
    said = f"{'rows' if matrix.split == ROW else 'columns'} {', '.join(words)}" if matrix.is_cut else "all of it"
    return said, hashlib.sha256(data).hexdigest() == slice_.sha256


def _range(matrix: Matrix, part: str, rank: int, tensor: int, whole: "numpy.ndarray") -> tuple[int, int]:
    """Which columns (or rows) of ``part`` are the rank's; KV heads fewer than ranks are held by several."""
    if not matrix.is_cut:
        return 0, whole.shape[0]
    length = whole.shape[1] if matrix.split == ROW else whole.shape[0]
    if matrix.split == HEADS and part != matrix.parts[0][0]:
        kv_heads, width = matrix.heads[1], matrix.heads[2]
        if kv_heads < tensor:
            head = rank * kv_heads // tensor
            return head * width, (head + 1) * width
    return rank * length // tensor, (rank + 1) * length // tensor


def index(folder: Path) -> dict[str, tuple[Path, str, tuple[int, ...], int, int]]:
    """tensor's name -> (file, dtype, shape, first byte, last) of all safetensors files in ``folder``."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            for name, about in json.loads(opened.read(length)).items():
                if name != "__metadata__":
                    first, last = about["data_offsets"]
                    found[name] = (file, about["dtype"], tuple(about["shape"]), 8 + length + first, 8 + length + last)
    return found


def read(file: Path, dtype: str, shape: Sequence[int], first: int, last: int) -> tuple[str, "numpy.ndarray"] | None:
    """(dtype, array) of one tensor; bfloat16 as its bits. None for a dtype that is not a plain float."""
    import numpy

    if dtype not in DTYPES:
        return None
    name = DTYPES[dtype]
    flat = numpy.memmap(file, mode="r", dtype="u1", offset=first, shape=(last - first,))
    return name, flat.view(NUMPY[name]).reshape(shape)


def as_dtype(values: "numpy.ndarray", dtype: str, wanted: str) -> "numpy.ndarray":
    """``values`` of ``dtype`` as torch converts them to ``wanted``: rounded to the nearest, ties to even."""
    import numpy

    if dtype == wanted:
        return numpy.ascontiguousarray(values)
    wide = (values.astype("u4") << 16).view("f4") if dtype == "bfloat16" else values.astype("f4")
    if wanted != "bfloat16":
        return wide.astype(NUMPY[wanted])
    bits = numpy.ascontiguousarray(wide).view("u4").astype("u8")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
