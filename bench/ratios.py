"""The figures of ours and theirs as a table: medians over the rounds, their ratio, and which way it is taken."""

import statistics
from dataclasses import dataclass

GIB = 1 << 30
Figures = dict[str, float]  # "ready", "memory", or "<kind>/<streams>": seconds, bytes, tokens per second
COLUMNS = ("torchrun (this)", "vllm serve", "ratio", "the ratio is")


@dataclass(frozen=True, slots=True)
class Kind:
    label: str
    unit: str
    scale: float
    digits: int
    inverse: bool = False  # the ratio is theirs/ours
    better: str = "higher"

    @property
    def direction(self) -> str:
        return f"{'theirs/ours' if self.inverse else 'ours/theirs'}, {self.better} is better"


KINDS = {
    "ready": Kind("time to ready", "s", 1, 1, better="lower"),
    "tokens_per_second": Kind("throughput", "tokens/s", 1, 0),
    "ttft_p50": Kind("TTFT p50", "ms", 1e3, 0, inverse=True),
    "ttft_p99": Kind("TTFT p99", "ms", 1e3, 0, inverse=True),
    "itl_p50": Kind("ITL p50", "ms", 1e3, 1, inverse=True),
    "itl_p99": Kind("ITL p99", "ms", 1e3, 1, inverse=True),
    "memory": Kind("memory (PSS)", "GiB", 1 / GIB, 2, better="lower"),
}


def medians(rounds: list[Figures]) -> Figures:
    return {key: statistics.median(found[key] for found in rounds) for key in rounds[0]}


def ratios(ours: Figures, theirs: Figures) -> Figures:
    """Of each figure, in its kind's direction."""
    return {
        key: theirs[key] / ours[key] if KINDS[key.split("/")[0]].inverse else ours[key] / theirs[key] for key in ours
    }


def rows(ours: Figures, theirs: Figures) -> list[list[str]]:
    """Label, ours, theirs, ratio, direction; figures of a kind beside one another."""
    found = []
    for name, kind in KINDS.items():
        for key in (key for key in ours if key.split("/")[0] == name):
            streams = key.partition("/")[2]
            label = kind.label + (f", {streams} stream{'s' * (streams != '1')}" if streams else "")
            values = [f"{side[key] * kind.scale:.{kind.digits}f} {kind.unit}" for side in (ours, theirs)]
            found.append([label, *values, f"{ratios(ours, theirs)[key]:.2f}", kind.direction])
    return found


def markdown(title: str, body: list[list[str]]) -> str:
    table = [["", *COLUMNS], ["---", "---:", "---:", "---:", "---"], *body]
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in table)])


def plain(title: str, body: list[list[str]]) -> str:
    table = [["", *COLUMNS], *body]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = []
    for label, *numbers, direction in table:
        right = "  ".join(text.rjust(width) for text, width in zip(numbers, widths[1:-1], strict=True))
        lines.append(f"{label.ljust(widths[0])}  {right}  {direction}")
    return "\n".join([title, "", *lines])
