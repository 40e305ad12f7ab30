"""What a figure says without a picture: its numbers checked, its table, one sentence; plots.py draws them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from localai_clusters.errors import PlainError

Point = tuple[float, float | None]
MOST_ROWS = 16  # of a figure's table


class PlotError(PlainError, ValueError):
    """What was given cannot be drawn; the message says which value."""


def value_of(what: str, value: Any) -> float | None:
    """``value`` as a float; None for None and for what is not finite."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise PlotError(f"{what}: {value!r} is no number") from None
    return number if math.isfinite(number) else None


def checked(name: str, points: Sequence[Point], log_x: bool = False, log_y: bool = False) -> list[Point]:
    found = []
    for point in points:
        try:
            place, value = point
        except (TypeError, ValueError):
            raise PlotError(f"{name}: {point!r} is no pair (x, y)") from None
        place, value = value_of(f"{name}, x", place), value_of(f"{name}, y", value)
        if place is None:
            raise PlotError(f"{name}: the x of {point!r} is no finite number")
        if (log_x and place <= 0) or (log_y and value is not None and value <= 0):
            raise PlotError(f"{name}: {point!r} has no place on a logarithmic axis; it must be above 0")
        found.append((place, value))
    return sorted(found, key=lambda point: point[0])


def columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [place for place, _ in points], [math.nan if value is None else value for _, value in points]


def table_of(
    series: Mapping[str, Sequence[Point]], x: str, held: bool
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], str]:
    """Header, rows and a note; of many places every so-manieth. ``held``: a value counts until the next point."""
    places = sorted({place for points in series.values() for place, _ in points})
    every = math.ceil(len(places) / MOST_ROWS)
    kept = places if every <= 1 else sorted({*places[:: every or 1], places[-1]})
    rows = tuple((number_text(place), *(number_text(at(points, place, held)) for points in series.values()))
                 for place in kept)  # fmt: skip
    note = f"{len(kept)} of {len(places)} points" if len(kept) < len(places) else ""
    return (x or "x", *series), rows, note


def at(points: Sequence[Point], place: float, held: bool) -> float | None:
    if held:
        return next((value for where, value in reversed(points) if where <= place), None)
    return next((value for where, value in points if where == place), None)


def summary_of(series: Mapping[str, Sequence[Point]], x: str, y: str, levels: Mapping[str, float]) -> str:
    told = []
    for name, points in series.items():
        known = [(place, value) for place, value in points if value is not None]
        if not known:
            told.append(f"{name}: no points")
            continue
        low, high = min(value for _, value in known), max(value for _, value in known)
        (first_x, first), (last_x, last) = known[0], known[-1]
        told.append(
            f"{name}: from {number_text(first)} at {number_text(first_x)} to {number_text(last)} at "
            f"{number_text(last_x)}, lowest {number_text(low)}, highest {number_text(high)}"
        )
    return f"Lines{of(y)}{f' over {x}' if x else ''}. {'; '.join(told)}.{levels_text(levels)}"


def of(y: str) -> str:
    return f" of {y}" if y else ""


def levels_text(levels: Mapping[str, float]) -> str:
    return "".join(f" Level {name}: {number_text(level)}." for name, level in levels.items())


def sum_of(values: Mapping[str, float | None]) -> float:
    return sum(value for value in values.values() if value is not None)


def number_text(value: float | None) -> str:
    """``1,234`` ``12.3`` ``0.0123``: three figures at least, a dash for None."""
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 10 else f"{value:.3g}"
