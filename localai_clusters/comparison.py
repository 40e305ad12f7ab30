"""Did two splits of one model say the same? A table for a person; checkpoint.compare does the same for the record."""

from collections.abc import Sequence
from dataclasses import dataclass

from localai_clusters.checkpoint.comparing import first_difference
from localai_clusters.server import Completion
from localai_clusters.tables import Table


@dataclass(frozen=True, slots=True)
class Agreement:
    """``differences[i]`` is the first token, from 0, at which the answers to prompt i part; None if they do not."""

    table: Table
    differences: tuple[int | None, ...]

    @property
    def holds(self) -> bool:
        """Whether every answer is the same, token by token."""
        return all(place is None for place in self.differences)

    def __str__(self) -> str:
        return str(self.table)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def agreement(first: Sequence[Completion], second: Sequence[Completion], title: str = "Agreement") -> Agreement:
    """Compare token by token, per prompt. Raises ``ValueError`` if the two did not answer the same prompts."""
    if [c.prompt for c in first] != [c.prompt for c in second]:
        raise ValueError("the two lists answer different prompts; send both servers the same ones, in one order")
    rows, differences = [], []
    for a, b in zip(first, second, strict=True):
        place = first_difference(a.token_ids, b.token_ids)
        differences.append(place)
        verdict = "all equal" if place is None else f"part at token {place + 1}"
        gap = max((abs(x - y) for x, y in zip(a.logprobs[:place], b.logprobs[:place], strict=False)), default=0.0)
        rows.append((a.prompt, str(len(a.token_ids)), verdict, f"{gap:.1e}"))
    header = ("prompt", "tokens", "token by token", "largest difference in log probability")
    return Agreement(Table(title, header, tuple(rows)), tuple(differences))
