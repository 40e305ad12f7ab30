"""Which matrices each running rank holds, how they are cut, and where the ranks add up: from the ranks themselves.

Every rank writes the names, shapes and vLLM layer classes of its parameters once they are loaded
(serving/weights.py), and the SHA-256 of those of its first layer. Shapes here are (inputs, outputs), as in Y = X A of
Megatron-LM (Shoeybi et al. 2019, section 3), where "by column" means: by outputs. torch stores A transposed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localai_clusters.errors import PlainError
from localai_clusters.launch.run import Run
from localai_clusters.models import Model
from localai_clusters.observe import MIB
from localai_clusters.tables import Table

if TYPE_CHECKING:
    from localai_clusters.slices import SliceCheck

COLUMN, ROW, HEADS, VOCABULARY = "by column", "by row", "by column, whole heads", "vocabulary"
COPIED, WHOLE, UNKNOWN = "copied", "whole", "not known here"  # copied: whole on several ranks of a stage
# vLLM's layer classes (vllm/model_executor/layers/), the most special first: class, the cut, what follows it.
CUTS = (
    ("QKVParallelLinear", HEADS, ""),
    ("MergedColumnParallelLinear", COLUMN, ""),
    ("ColumnParallelLinear", COLUMN, ""),
    ("RowParallelLinear", ROW, "all-reduce"),
    ("ParallelLMHead", VOCABULARY, "gather"),
    ("VocabParallelEmbedding", VOCABULARY, "all-reduce"),
    ("FusedMoE", UNKNOWN, "all-reduce"),
)


class MatricesError(PlainError, RuntimeError):
    """What the ranks hold cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What one rank holds of a matrix. ``sha256`` is that of the tensor's bytes, for the first layer of a rank only."""

    rank: int
    tensor_parallel_rank: int
    shape: tuple[int, ...]
    bytes: int
    dtype: str
    sha256: str | None = None
    tied_to: str | None = None  # the name of the parameter whose memory it is


@dataclass(frozen=True, slots=True)
class Matrix:
    """One parameter of the model, with the slice of every rank that has one. ``whole`` is None where it is not known.

    ``parts`` are the checkpoint's own matrices, side by side in this one, with the outputs of each.
    """

    name: str  # "model.layers.0.mlp.down_proj.weight"
    layer_class: str  # vLLM's
    split: str
    then: str  # what the ranks do with its result
    whole: tuple[int, ...] | None
    parts: tuple[tuple[str, int], ...]
    slices: tuple[Slice, ...]
    heads: tuple[int, int, int] | None = None  # query heads, KV heads, elements of one

    @property
    def layer(self) -> int | None:
        return next((int(part) for part in self.name.split(".") if part.isdigit()), None)

    @property
    def short(self) -> str:
        """``mlp.down_proj``: the name without the layer's number and without ``.weight``."""
        words = self.name.removesuffix(".weight").split(".")
        number = next((at for at, word in enumerate(words) if word.isdigit()), None)
        return ".".join(words[number + 1 :] if number is not None else [w for w in words if w != "model"])

    @property
    def is_cut(self) -> bool:
        return self.split not in (COPIED, WHOLE)

    @property
    def bytes_on(self) -> dict[int, int]:
        return {slice_.rank: 0 if slice_.tied_to else slice_.bytes for slice_ in self.slices}


@dataclass(frozen=True, slots=True)
class Matrices:
    """All parameters of a running server's model, in the order in which the model holds them."""

    label: str
    world_size: int
    all: tuple[Matrix, ...]
    folder: Path  # of the model's files
    missing: tuple[int, ...] = ()  # ranks of other machines, whose files are there
    seconds_to_write: float = 0.0  # that the slowest rank spent on it while it started

    def __iter__(self) -> Iterator[Matrix]:
        return iter(self.all)

    def __getitem__(self, name: str) -> Matrix:
        """By any end of its name: ``matrices["layers.0.mlp.down_proj"]``. ``KeyError`` names those near it."""
        found = [m for m in self.all if m.name.removesuffix(".weight").endswith(name) or m.name == name]
        if len(found) == 1 or (found and len({m.short for m in found}) == 1):
            return found[0]
        known = sorted({matrix.short for matrix in self.all})
        raise KeyError(f"{name!r} is {'several' if found else 'none'} of the matrices; there are {', '.join(known)}")

    def layers(self) -> list[int]:
        return sorted({matrix.layer for matrix in self.all if matrix.layer is not None})

    def layer(self, number: int = 0) -> list[Matrix]:
        return [matrix for matrix in self.all if matrix.layer == number]

    def ends(self) -> list[Matrix]:
        """What is not in a layer: the embedding, the last norm, the output head."""
        return [matrix for matrix in self.all if matrix.layer is None]

    def all_reduces(self) -> int:
        """All-reduces of one step through all layers and the embedding."""
        return sum(matrix.then == "all-reduce" for matrix in self.all)

    def bytes_on(self, rank: int, cut: bool | None = None) -> int:
        """Bytes of weights on ``rank``: all, or only those of matrices that are cut (True) or copied (False)."""
        return sum(m.bytes_on.get(rank, 0) for m in self.all if cut is None or m.is_cut == cut)

    def check(self) -> "SliceCheck":
        """Whether the slices of the first layers are the bytes of the model's own files."""
        from localai_clusters.slices import check

        return check(self)

    def groups(self) -> list[tuple[str, list[Matrix]]]:
        """(title, matrices): one layer for all that are alike, and the ends of the model."""
        alike: dict[Any, list[int]] = {}
        for number in self.layers():
            alike.setdefault(tuple(_kind(matrix) for matrix in self.layer(number)), []).append(number)
        found = [(_title(numbers, self.layer(numbers[0])), self.layer(numbers[0])) for numbers in alike.values()]
        return [*found, ("outside the layers", self.ends())]

    def _tables(self) -> list[Table]:
        header = ("matrix", "inputs x outputs", "on each rank", "cut", "then", "vLLM's layer")
        return [
            Table(title, header, tuple(_row(matrix, self.world_size) for matrix in matrices))
            for title, matrices in self.groups()
        ]

    def _sums(self) -> str:
        return "; ".join(self._sum(rank) for rank in range(self.world_size) if rank not in self.missing)

    def _sum(self, rank: int) -> str:
        cut, rest = self.bytes_on(rank, True) / MIB, self.bytes_on(rank, False) / MIB
        if any(matrix.split == COPIED for matrix in self.all):
            return f"rank {rank}: {cut:.2f} MiB of cut matrices, {rest:.3f} MiB copied"
        return f"rank {rank}: {cut + rest:.2f} MiB"

    def __str__(self) -> str:
        missing = f"\nNot shown: ranks {self.missing}, on other machines" if self.missing else ""
        return f"{self.label}\n\n" + "\n\n".join(map(str, self._tables())) + f"\n\n{self._sums()}{missing}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from localai_clusters.matrix_picture import picture

        tables = "".join(table._repr_html_() for table in self._tables())
        return f"{picture(self)}<details><summary>as tables</summary>{tables}</details><p>{self._sums()}</p>"


def _kind(matrix: Matrix) -> tuple:
    return (matrix.short, matrix.whole, matrix.split, tuple(slice_.rank for slice_ in matrix.slices))


def _title(numbers: Sequence[int], matrices: Sequence[Matrix]) -> str:
    ranks = sorted({slice_.rank for matrix in matrices for slice_ in matrix.slices})
    on = f"on rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
    if len(numbers) == 1:
        return f"layer {numbers[0]}, {on}"
    return f"layer {numbers[0]}, and {len(numbers) - 1} like it (up to {numbers[-1]}), {on}"


def _row(matrix: Matrix, world_size: int) -> tuple[str, ...]:
    shapes = {slice_.shape for slice_ in matrix.slices}
    held = sizes(next(iter(shapes))) if len(shapes) == 1 else ", ".join(sizes(s.shape) for s in matrix.slices)
    ranks = [slice_.rank for slice_ in matrix.slices]
    if len(ranks) < world_size and matrix.layer is None:
        held += f" (rank {', '.join(map(str, ranks))})"
    tied = next((slice_.tied_to for slice_ in matrix.slices if slice_.tied_to), None)
    split = f"the same memory as {tied.removesuffix('.weight').rpartition('.')[2]}" if tied else matrix.split
    whole = sizes(matrix.whole) if matrix.whole else "?"
    name = matrix.short + (f" ({', '.join(part for part, _ in matrix.parts)})" if len(matrix.parts) > 1 else "")
    return name, whole, held, split, matrix.then, matrix.layer_class


def sizes(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def matrices(run: Run, model: Model, label: str) -> Matrices:
    """What the ranks of ``run`` wrote. Raises ``MatricesError`` if none did."""
    entries: dict[str, dict[int, Mapping[str, Any]]] = {}
    packed: dict[str, list[str]] = {}
    missing, seconds = [], 0.0
    stages = {rank: (stage, tensor_rank) for rank, stage, tensor_rank in run.plan.ranks()}
    for rank in range(run.plan.world_size):
        try:
            about = json.loads((run.dir / f"rank{rank}.matrices.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            missing.append(rank)
            continue
        packed |= about["packed"]
        seconds = max(seconds, about["seconds"])
        for entry in about["parameters"]:
            entries.setdefault(entry["name"], {})[rank] = entry
    if not entries:
        raise MatricesError(f"no rank of run {run.id} wrote what it holds: {run.dir} has no rank0.matrices.json")
    found = tuple(_matrix(name, by_rank, packed, stages) for name, by_rank in entries.items())
    return Matrices(label, run.plan.world_size, found, model.path, tuple(missing), seconds)


def _matrix(name: str, by_rank: Mapping[int, Mapping[str, Any]], packed: Mapping, stages: Mapping) -> Matrix:
    first = next(iter(by_rank.values()))
    tensor = first["tensor_parallel_size"]
    split, then = next(((split, then) for kind, split, then in CUTS if kind in first["classes"]), (COPIED, ""))
    if tensor == 1 or (split == ROW and len(first["shape"]) == 1):  # a row-parallel layer's bias is whole
        split, then = COPIED, ""
    if split == COPIED and len({tensor_rank for _, tensor_rank in stages.values()}) == 1:
        split = WHOLE
    if first.get("reduce_results") is False:
        then = ""
    turned = len(first["shape"]) == 2 and not _is_lookup(first)
    slices = tuple(
        Slice(
            rank=rank,
            tensor_parallel_rank=stages[rank][1],
            shape=tuple(reversed(entry["shape"])) if turned else tuple(entry["shape"]),
            bytes=entry["bytes"],
            dtype=entry["dtype"],
            sha256=entry.get("sha256"),
            tied_to=entry.get("tied_to"),
        )
        for rank, entry in by_rank.items()
    )
    module = name.split(".")[-2] if name.count(".") else name
    names = packed.get(module, [module])
    outputs = _outputs(first, slices[0].shape, split, tensor)
    parts = tuple(zip(names, outputs, strict=True)) if len(names) == len(outputs) else ()
    heads = None
    if split == HEADS:
        heads = (first["total_num_heads"], first["total_num_kv_heads"], first["head_size"])
    return Matrix(
        name=name,
        layer_class=first["classes"][0] if first["classes"] else "",
        split=split,
        then=then,
        whole=_whole(slices[0].shape, split, tensor, outputs),
        parts=parts,
        slices=slices,
        heads=heads,
    )


def _is_lookup(entry: Mapping[str, Any]) -> bool:
    return "VocabParallelEmbedding" in entry["classes"] and "ParallelLMHead" not in entry["classes"]


def _outputs(entry: Mapping[str, Any], shape: Sequence[int], split: str, tensor: int) -> list[int]:
    """Outputs of each of the checkpoint's matrices, whole; KV heads that several ranks hold count once."""
    if "total_num_kv_heads" in entry and "output_sizes" in entry:
        size = entry["head_size"]
        return [entry["total_num_heads"] * size, entry["total_num_kv_heads"] * size, entry["total_num_kv_heads"] * size]
    if "output_sizes" in entry:
        return list(entry["output_sizes"])
    return [shape[-1] * (tensor if split == COLUMN else 1)]


def _whole(shape: tuple[int, ...], split: str, tensor: int, outputs: Sequence[int]) -> tuple[int, ...] | None:
    match split:
        case "by column" | "by column, whole heads":
            return (*shape[:-1], sum(outputs))
        case "by row":
            return (shape[0] * tensor, *shape[1:])
        case "vocabulary":
            wide = max(range(len(shape)), key=lambda at: shape[at])
            return tuple(size * tensor if at == wide else size for at, size in enumerate(shape))
        case "copied" | "whole":
            return shape
    return None
