"""Tables that show themselves as text and in a notebook. What they show is computed elsewhere."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from localai_clusters.observe import MIB, RankMemory


def as_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [[cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
             for row in (header, *rows)]  # fmt: skip
    return "\n".join("  ".join(line).rstrip() for line in lines)


def as_html(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        sides = ("left", *("right" for _ in cells[1:]))
        texts = (f"<{tag} style='text-align:{s}'>{html.escape(c)}</{tag}>" for s, c in zip(sides, cells, strict=True))
        return "<tr>" + "".join(texts) + "</tr>"

    head, body = line("th", header), "".join(line("td", row) for row in rows)
    return f"<p><b>{html.escape(title)}</b></p><table>{head}{body}</table>"


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts with a title."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        return f"{self.title}\n{as_text(self.header, self.rows)}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(self.title, self.header, self.rows)


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """Per rank: bytes predicted before the launch beside bytes measured after it."""

    label: str
    ranks: tuple[RankMemory, ...]

    def _table(self) -> Table:
        header = ("rank", "weights: predicted", "measured", "KV cache: predicted", "measured", "resident", "peak")
        names = ("weights_predicted", "weights_measured", "kv_cache_predicted", "kv_cache_measured", "resident",
                 "resident_peak")  # fmt: skip
        if any(rank.gpu is not None for rank in self.ranks):
            header, names = (*header, "on the GPU"), (*names, "gpu")
        rows = tuple((str(rank.rank), *(mib(getattr(rank, name)) for name in names)) for rank in self.ranks)
        return Table(f"Memory per rank, {self.label}, in MiB", header, rows)

    def __str__(self) -> str:
        return str(self._table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()


def mib(count: int | None) -> str:
    return "–" if count is None else f"{count / MIB:.1f}"
