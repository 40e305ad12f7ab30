"""A picture of a split: a box per rank with the layers, heads and bytes it will hold, and what joins the boxes."""

import html
from dataclasses import dataclass

from localai_clusters.models import ModelShape, look_up
from localai_clusters.observe import MIB
from localai_clusters.plan import ServePlan
from localai_clusters.sizing import RankSize, can_predict, dtype_of, kv_heads_per_rank, rank_sizes, unpredicted

BOX = "border:2px solid #0969da;border-radius:8px;padding:8px 12px;min-width:11em"
ROW = "display:flex;gap:12px;align-items:center;flex-wrap:wrap"
JOIN = "font-size:90%;opacity:.75"


@dataclass(frozen=True, slots=True)
class SplitMap:
    """Rows are pipeline stages, columns tensor-parallel ranks."""

    plan: ServePlan
    shape: ModelShape
    sizes: tuple[RankSize, ...]

    def _lines(self, size: RankSize) -> list[str]:
        tensor, shape = self.plan.tensor_parallel_size, self.shape
        return [
            f"layers {size.layers[0]} to {size.layers[1] - 1}",
            f"{shape.num_attention_heads // tensor} of {shape.num_attention_heads} heads",
            f"{kv_heads_per_rank(shape, tensor)} of {shape.num_key_value_heads} KV heads"
            if shape.latent is None
            else "the whole latent vector of each token",
            _columns(shape, tensor),
            f"{size.weights_bytes / MIB:.0f} MiB of weights",
            f"{size.kv_bytes_per_token / 1024:.1f} KiB of KV cache per token",
        ]

    def _title(self) -> str:
        return f"{self.plan.model}, {self.plan.label}, {dtype_of(self.plan, self.shape)}"

    def _stages(self) -> list[list[RankSize]]:
        width = self.plan.tensor_parallel_size
        return [list(self.sizes[start : start + width]) for start in range(0, len(self.sizes), width)]

    def __str__(self) -> str:
        lines = [self._title()]
        for number, stage in enumerate(self._stages()):
            if number:
                lines.append("    | the hidden states of each token are sent on")
            lines += [f"  rank {size.rank}: " + ", ".join(self._lines(size)) for size in stage]
            if len(stage) > 1:
                lines.append("    = all-reduce after attention and after the MLP of every layer")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = []
        for stage in self._stages():
            join = f"<span style='{JOIN}'>⟷ all-reduce, twice a layer ⟷</span>"
            rows.append(f"<div style='{ROW}'>" + join.join(self._box(size) for size in stage) + "</div>")
        down = f"<div style='{JOIN};padding:4px 12px'>↓ the hidden states of each token</div>"
        return f"<p><b>{html.escape(self._title())}</b></p>" + down.join(rows)

    def _box(self, size: RankSize) -> str:
        lines = "<br>".join(html.escape(line) for line in self._lines(size))
        return f"<div style='{BOX}'><b>rank {size.rank}</b><br>{lines}</div>"


def _columns(shape: ModelShape, tensor: int) -> str:
    if shape.experts is None:
        return f"{shape.intermediate_size // tensor} of {shape.intermediate_size} MLP columns"
    size = shape.experts.intermediate_size
    return f"{size // tensor} of {size} columns of each of {shape.experts.count} experts"


def split_map(plan: ServePlan) -> SplitMap:
    """What each rank of ``plan`` will hold. Raises ``ValueError`` for a model whose shape is not known here."""
    shape = look_up(plan.model)
    if shape is None:
        raise ValueError(f"{plan.model} is not on this machine, so its shape is not known; serve it once")
    if not can_predict(shape):
        kind = unpredicted(shape) or " and ".join(tower.removesuffix("_config") for tower in shape.towers)
        raise ValueError(f"{plan.model}: the bytes of such a model ({kind}) are not predicted")
    return SplitMap(plan, shape, tuple(rank_sizes(plan, shape)))
