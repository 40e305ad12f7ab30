"""Figures for a notebook: lines, bars and a timeline, to be read on light and dark pages, without colours, and as text.

A figure shows itself as SVG in which text and axes take the colour of the page's own text, with its data as a table
below; where no HTML is shown it is the table alone. The same data give the same bytes. matplotlib draws; pyplot, with
its global figures, is never touched.
"""

import hashlib
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localai_clusters.plot_words import (
    PlotError,
    Point,
    checked,
    columns,
    levels_text,
    number_text,
    of,
    sum_of,
    summary_of,
    table_of,
    value_of,
)
from localai_clusters.tables import as_html, as_text

# Okabe and Ito's colours (Color Universal Design, 2008) in an order that keeps neighbours apart; their black and
# their yellow are left out, for each is lost on one of the two pages.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))
HATCHES = ("", "///", "...", "\\\\\\", "xx", "++")
INK = "#010203"  # stands for the page's text colour while matplotlib draws
MOST_MARKERS = 40  # points of one line; beyond it markers would hide the line
INCHES = (6.8, 3.4)
STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and copied
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "hatch.linewidth": 0.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    **{
        name: INK
        for name in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "hatch.color")
    },
}


@dataclass(frozen=True)
class Figure:
    """A drawn figure. ``header`` and ``rows`` are its table, ``summary`` one sentence for who does not see it."""

    title: str
    summary: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""  # under the table
    _drawing: Any = field(default=None, repr=False)  # draws on matplotlib axes

    @property
    def svg(self) -> str:
        """One ``<svg>`` element, to stand in a page: its text has the page's colour."""
        return self._render("svg")

    def save(self, path: str | Path) -> Path:
        """Write the figure as ``.svg``, ``.png`` (on white) or ``.txt``; returns the path."""
        path = Path(path)
        if path.suffix == ".svg":
            style = "<style>svg{color:#1b1b1b}@media(prefers-color-scheme:dark){svg{color:#e6e6e6}}</style>"
            path.write_text(self.svg.replace("<title", f"{style}<title", 1) + "\n", encoding="utf-8")
        elif path.suffix == ".png":
            path.write_bytes(self._render("png"))
        elif path.suffix == ".txt":
            path.write_text(f"{self}\n", encoding="utf-8")
        else:
            raise PlotError(f"{path.name}: a figure is saved as .svg, .png or .txt")
        return path

    def __str__(self) -> str:
        return "\n".join(filter(None, (self.title, as_text(self.header, self.rows), self.note)))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        table = as_html(self.title, self.header, self.rows) + (f"<p>{html.escape(self.note)}</p>" if self.note else "")
        return f"<div>{self.svg}<details><summary>the figures as a table</summary>{table}</details></div>"

    def _render(self, form: str) -> Any:
        from matplotlib import style
        from matplotlib.figure import Figure as Drawing

        digest = hashlib.sha256("\0".join((self.title, self.summary, str(self))).encode()).hexdigest()[:12]
        with style.context([STYLE, {"svg.hashsalt": digest}], after_reset=True):
            drawing = Drawing(figsize=INCHES, layout="constrained")
            axes = drawing.add_subplot()
            axes.set_title(self.title, wrap=True)
            self._drawing(drawing, axes)
            file = io.BytesIO() if form == "png" else io.StringIO()
            if form == "png":
                drawing.savefig(file, format="png", dpi=144, facecolor="white", metadata={"Software": None})
                return file.getvalue()
            drawing.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return for_a_page(file.getvalue(), self.title, self.summary, digest)


def lines(
    title: str,
    series: Mapping[str, Sequence[Point]],
    *,
    x: str = "",
    y: str = "",
    log_x: bool = False,
    log_y: bool = False,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """A line with markers for each name -> (x, y) points; a y of None leaves a gap.

    ``levels`` are named horizontal lines, such as a limit. A logarithmic x has its ticks at the points. Raises
    ``PlotError`` for what is no number.
    """
    series = {str(name): checked(name, points, log_x, log_y) for name, points in series.items()}
    levels = dict(levels or {})
    header, rows, note = table_of(series, x, held=False)

    def draw(drawing, axes):
        for number, (name, points) in enumerate(series.items()):
            marker = MARKERS[number % 6] if len(points) <= MOST_MARKERS else None
            axes.plot(*columns(points), label=name, marker=marker, **look(number))
        if log_x:
            axes.set_xscale("log")
            ticks = sorted({place for points in series.values() for place, _ in points})
            if len(ticks) <= 12:
                axes.set_xticks(ticks, [number_text(tick) for tick in ticks])
                axes.minorticks_off()
        finish(drawing, axes, x, y, levels, len(series) > 1, log_y)

    return Figure(title, summary_of(series, x, y, levels), header, rows, note, draw)


def steps(
    title: str,
    series: Mapping[str, Sequence[Point]],
    *,
    x: str = "seconds",
    y: str = "",
    levels: Mapping[str, float] | None = None,
    marks: Sequence[tuple[float, str]] = (),
) -> Figure:
    """A timeline: each value holds until the next point. ``marks`` are (x, what happened then)."""
    series = {str(name): checked(name, points) for name, points in series.items()}
    levels, marks = dict(levels or {}), [(float(place), str(what)) for place, what in marks]
    header, rows, note = table_of(series, x, held=True)
    happened = "; ".join(f"at {number_text(place)}: {what}" for place, what in marks)

    def draw(drawing, axes):
        for number, (name, points) in enumerate(series.items()):
            axes.step(*columns(points), where="post", label=name, **look(number))
        for place, what in marks:
            axes.axvline(place, color=INK, linewidth=0.7, linestyle=":")
            axes.text(place, 1.0, f" {what}", transform=axes.get_xaxis_transform(), va="top", fontsize=8, rotation=90,
                      ha="right")  # fmt: skip
        finish(drawing, axes, x, y, levels, len(series) > 1)

    summary = " ".join(filter(None, (summary_of(series, x, y, levels), happened and f"Marked: {happened}.")))
    return Figure(title, summary, header, rows, "; ".join(filter(None, (note, happened))), draw)


def bars(
    title: str,
    groups: Mapping[str, Mapping[str, float | None]],
    *,
    y: str = "",
    stacked: bool = True,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """A bar for each group, made of its named parts one above the other, or side by side if not ``stacked``.

    Raises ``PlotError`` for what is no number, and for a negative part of a stack.
    """
    groups = {str(group): {str(part): value_of(f"{group}, {part}", value) for part, value in parts.items()}
              for group, parts in groups.items()}  # fmt: skip
    parts = list(dict.fromkeys(part for values in groups.values() for part in values))
    if stacked and (low := next((v for values in groups.values() for v in values.values() if v and v < 0), None)):
        raise PlotError(f"a part of a stack is {low}; parts cannot be negative (stacked=False draws them side by side)")
    levels = dict(levels or {})
    total = stacked and len(parts) > 1
    rows = tuple(
        (group, *(number_text(values.get(part)) for part in parts), *([number_text(sum_of(values))] if total else []))
        for group, values in groups.items()
    )
    header = ("", *(f"{part} ({y})" if y else part for part in parts), *(["together"] if total else []))
    told = "; ".join(
        f"{group}: " + ", ".join(f"{part} {number_text(values.get(part))}" for part in parts)
        for group, values in groups.items()
    )

    def draw(drawing, axes):
        (draw_stacks if stacked else draw_side_by_side)(axes, groups, parts)
        axes.set_xticks(range(len(groups)), list(groups))
        axes.tick_params(axis="x", length=0)
        finish(drawing, axes, "", y, levels, len(parts) > 1, bars=True, stacked=stacked)

    return Figure(title, f"Bars{of(y)}. {told}.{levels_text(levels)}", header, rows, "", draw)


def draw_stacks(axes, groups: Mapping[str, Mapping[str, float | None]], parts: Sequence[str]) -> None:
    highest = max((sum_of(values) for values in groups.values()), default=0.0)
    for number, part in enumerate(parts):
        heights = [values.get(part) or 0.0 for values in groups.values()]
        below = [sum(values.get(under) or 0.0 for under in parts[:number]) for values in groups.values()]
        axes.bar(range(len(groups)), heights, 0.55, bottom=below, label=part, **fill(number))
        for place, (height, base) in enumerate(zip(heights, below, strict=True)):
            if height > 0.09 * highest:
                box = {"facecolor": COLOURS[number % 6], "edgecolor": "none", "pad": 1.5}
                axes.text(place, base + height / 2, number_text(height), ha="center", va="center", fontsize=9,
                          color="white" if number % 6 == 0 else "black", bbox=box)  # fmt: skip
    if len(parts) > 1:
        for place, values in enumerate(groups.values()):
            axes.text(place, sum_of(values), number_text(sum_of(values)), ha="center", va="bottom", fontsize=9)


def draw_side_by_side(axes, groups: Mapping[str, Mapping[str, float | None]], parts: Sequence[str]) -> None:
    width = 0.8 / max(1, len(parts))
    for number, part in enumerate(parts):
        places = [place - 0.4 + width * (number + 0.5) for place in range(len(groups))]
        heights = [values.get(part) for values in groups.values()]
        axes.bar(places, [height or 0.0 for height in heights], width * 0.9, label=part, **fill(number))
        for place, height in zip(places, heights, strict=True):
            axes.text(place, max(height or 0.0, 0.0), number_text(height), ha="center", va="bottom", fontsize=9)


def finish(
    drawing, axes, x: str, y: str, levels: Mapping[str, float], legend: bool, log_y=False, bars=False, stacked=False
) -> None:
    """What all figures share: axes' names, a scale from zero, named levels, the legend beside the axes."""
    for name, level in levels.items():
        axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (4, 2)))
        axes.text(0.0 if bars else 1.0, level, f" {name}: {number_text(level)} ", va="bottom", fontsize=9,
                  ha="left" if bars else "right", transform=axes.get_yaxis_transform())  # fmt: skip
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.margins(y=0.12)
    if log_y:
        axes.set_yscale("log")
        for axis_text in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            axis_text(lambda value, _: number_text(value) if f"{value:e}"[0] in "125" else "")
    else:
        lowest = axes.dataLim.y0
        if not lowest < 0:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: number_text(value))
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.7)
    axes.set_axisbelow(True)
    if legend:
        handles, labels = axes.get_legend_handles_labels()
        if stacked:  # in the order in which they lie
            handles, labels = handles[::-1], labels[::-1]
        drawing.legend(handles, labels, loc="outside right upper", handlelength=2.6)


def look(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % 6], "linestyle": DASHES[number % 6]}


def fill(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % 6], "hatch": HATCHES[number % 6], "edgecolor": INK, "linewidth": 0.5}


def for_a_page(drawn: str, title: str, summary: str, digest: str) -> str:
    """matplotlib's SVG as an element of a page: its own names only, the page's text colour, words for who sees none."""
    svg = drawn[drawn.index("<svg") :].strip()
    svg = re.sub(r" *<metadata>.*?</metadata>\n", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*_\d+"(/?)>', r"<g\1>", svg)  # figure_1, axes_1: the same in every figure of a page
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--jp-ui-font-family, sans-serif)", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--jp-ui-font-family, sans-serif)", svg)
    names = f'role="img" aria-labelledby="title-{digest} summary-{digest}" style="max-width:100%;height:auto"'
    told = f'<title id="title-{digest}">{html.escape(title)}</title>'
    told += f'<desc id="summary-{digest}">{html.escape(summary)}</desc>'
    return re.sub(r"<svg([^>]*)>", lambda found: f"<svg{found[1]} {names}>{told}", svg, count=1)
