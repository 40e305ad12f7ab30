"""The matrices of one layer as a drawing: each as large as it is, the ranks' parts shaded and named."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localai_clusters.matrices import Matrices, Matrix

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito
MOST_DRAWN = 8  # ranks with a part of their own in the drawing
LARGEST, SMALLEST = 300.0, 10.0  # sides in pixels
GAP, ARROW, HEAD, FOOT = 24.0, 36.0, 34.0, 34.0
TEXT = "fill='currentColor' font-family='sans-serif' font-size='11'"


def picture(found: "Matrices") -> str:
    """SVG of one layer of each kind, in the order in which a token's hidden state meets its matrices."""
    drawn = [_layer(title, matrices, found) for title, matrices in found.groups() if matrices[0].layer is not None]
    return f"<p><b>{html.escape(found.label)}</b></p>" + "".join(drawn)


def _layer(title: str, matrices: Sequence["Matrix"], found: "Matrices") -> str:
    ranks = [slice_.rank for slice_ in matrices[0].slices]
    shown = [matrix for matrix in matrices if matrix.whole and len(matrix.whole) == 2]
    if not shown:
        return ""
    scale = LARGEST / max(side for matrix in shown for side in matrix.whole)
    tall = max(max(SMALLEST, matrix.whole[0] * scale) for matrix in shown)
    x, parts = 10.0, []
    for matrix in shown:
        box, width = _matrix(matrix, x, HEAD, tall, scale)
        parts.append(box)
        x += width + GAP
        if matrix.then:
            parts.append(_arrow(x - GAP / 2, HEAD + tall / 2, matrix.then))
            x += ARROW + GAP
    copied = [matrix.short for matrix in matrices if matrix.split == "copied"]
    height = HEAD + tall + FOOT
    words = alternative(title, shown, copied)
    below = f"<br>copied to every rank: {html.escape(', '.join(copied))}" if copied and len(ranks) > 1 else ""
    return (
        f"<p>{html.escape(title)}: inputs downwards, outputs to the right{below}</p>"
        f"<div style='overflow-x:auto'><svg role='img' aria-label='{html.escape(words, quote=True)}' width='{x:.0f}' "
        f"height='{height:.0f}' viewBox='0 0 {x:.0f} {height:.0f}' xmlns='http://www.w3.org/2000/svg'>"
        f"<title>{html.escape(words)}</title>{''.join(parts)}</svg></div>"
    )


def alternative(title: str, matrices: Sequence["Matrix"], copied: Sequence[str]) -> str:
    """The drawing in words."""
    said = [f"{title}."]
    for matrix in matrices:
        inputs, outputs = matrix.whole
        then = f", then {matrix.then}" if matrix.then else ""
        share = f", {len(matrix.slices)} parts" if matrix.is_cut else f" on rank {matrix.slices[0].rank}"
        said.append(f"{matrix.short}: {inputs} inputs by {outputs} outputs, {matrix.split}{share}{then}.")
    if copied:
        said.append(f"Copied: {', '.join(copied)}.")
    return " ".join(said)


def _matrix(matrix: "Matrix", x: float, top: float, tall: float, scale: float) -> tuple[str, float]:
    """(SVG, width) of one matrix, standing in the middle of a space ``tall`` pixels high."""
    high, wide = (max(SMALLEST, side * scale) for side in matrix.whole)
    y = top + (tall - high) / 2
    parts = []
    by_row = matrix.split == "by row"
    pieces = [(name, width) for name, width in matrix.parts] or [("", matrix.whole[1])]
    left = x
    for name, outputs in pieces:
        width = wide * outputs / sum(size for _, size in pieces)
        parts.append(_shares(matrix, left, y, width, high, by_row))
        if len(pieces) > 1:
            parts.append(_text(left + width / 2, y - 4, name.removesuffix("_proj")))
        left += width
    parts.append(_box(x, y, wide, high, "fill='none' stroke='currentColor' stroke-width='1.5'"))
    name = matrix.short.rpartition(".")[2]
    parts.append(_text(x + wide / 2, 14, name, "font-weight='bold'"))
    parts.append(_text(x + wide / 2, top + tall + 14, f"{matrix.whole[0]} x {matrix.whole[1]}"))
    parts.append(_text(x + wide / 2, top + tall + 28, matrix.split.partition(",")[0]))
    return "".join(parts), max(wide, 7.0 * len(name))


def _shares(matrix: "Matrix", x: float, y: float, wide: float, high: float, by_row: bool) -> str:
    count = len(matrix.slices) if matrix.is_cut else 1
    if count > MOST_DRAWN:
        return _text(x + wide / 2, y + high / 2, f"{count} parts")
    parts = []
    for number in range(count):
        colour = "currentColor" if matrix.split == "copied" else COLOURS[matrix.slices[number].rank % len(COLOURS)]
        style = f"fill='{colour}' fill-opacity='{0.08 if matrix.split == 'copied' else 0.35}' stroke='{colour}'"
        if by_row:
            box = x, y + high * number / count, wide, high / count
        else:
            box = x + wide * number / count, y, wide / count, high
        parts.append(_box(*box, style))
        if matrix.split != "copied" and box[2] >= 12 and box[3] >= 12:
            parts.append(_text(box[0] + box[2] / 2, box[1] + box[3] / 2 + 4, str(matrix.slices[number].rank)))
    return "".join(parts)


def _box(x: float, y: float, wide: float, high: float, style: str) -> str:
    return f"<rect x='{x:.1f}' y='{y:.1f}' width='{wide:.1f}' height='{high:.1f}' {style}/>"


def _arrow(x: float, y: float, text: str) -> str:
    line = f"<path d='M{x:.1f} {y:.1f} h{ARROW:.0f} m-6 -4 l6 4 l-6 4' fill='none' stroke='currentColor'/>"
    return line + _text(x + ARROW / 2, y - 8, text.replace("all-reduce", "Σ")) + _text(x + ARROW / 2, y + 16, text)


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='middle' {TEXT} {more}>{html.escape(text)}</text>"
