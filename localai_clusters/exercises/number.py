"""An answer that is a figure, with a unit and a tolerance; a wrong one is looked at for how it came to be wrong."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from localai_clusters.exercises import units
from localai_clusters.exercises.exercise import (
    LARGEST,
    RIGHT,
    WRONG,
    Exercise,
    Given,
    Judged,
    NotReady,
    sentence,
    short,
    worked_out,
)
from localai_clusters.plan import ServePlan

EXACT = 1e-9  # relative; a float is never more exact than that on its way through a notebook
SAME_SLIP = 0.002  # how near a figure must be to a known slip's to be taken for it
TYPED = 0.01  # a figure may be as coarse as it was typed, if that is not coarser than this
Figure = float | Callable[[Given], float]


@dataclass(frozen=True)
class Number(Exercise):
    """``tolerance`` is relative, ``absolute`` is in ``unit``; the wider of both holds.

    ``answer`` is a figure in ``unit`` or a function of what the notebook handed over; so are the values of
    ``mistakes``, whose keys are what is said to a student whose figure is that one. "5.6 MiB" is converted.
    """

    answer: Figure
    unit: str = ""
    tolerance: float = 0.0
    absolute: float = 0.0
    mistakes: Mapping[str, Figure] = field(default_factory=dict, kw_only=True)

    def judge(self, value: Any, given: Given) -> Judged:
        quantity, wrong = self._quantity(value)
        if wrong:
            return Judged(WRONG, wrong, short(value, 200), counts=False)
        found = _plain(quantity.value)
        expected = float(worked_out(self.answer, given))
        allowed = max(abs(expected) * max(self.tolerance, EXACT), self.absolute)
        if quantity.half <= TYPED * abs(expected):
            allowed = max(allowed, quantity.half * (1 + EXACT))
        if abs(found - expected) <= allowed:
            return Judged(RIGHT, f"{self.shown(found)} is right.", found)
        return Judged(WRONG, f"{self.shown(found)} is not it. {self._what_is_wrong(found, expected, given)}", found)

    def _quantity(self, value: Any) -> tuple[units.Quantity, str]:
        """In ``unit``; or what is wrong with ``value`` as a figure."""
        nothing = units.Quantity(0.0)
        example = f'a figure is asked for, such as 12 or "12 {self.unit or "x"}"'
        if isinstance(value, str):
            typed = units.read(value)
            if typed is None:
                return nothing, f"{short(value)!r} does not begin with a number: {example}."
            times = units.factor(typed.unit, self.unit)
            if times is None:
                wanted = f"the figure is asked for in {self.unit}" if self.unit else "the figure has no unit"
                return nothing, f"{typed.unit!r} does not fit: {wanted}."
            # What was typed without a conversion is meant as exactly as it stands.
            quantity = units.Quantity(typed.value * times, self.unit, typed.half * times if times != 1 else 0.0)
        elif isinstance(value, bool) or not hasattr(type(value), "__float__"):
            return nothing, f"{short(value)} is a {type(value).__name__}: {example}."
        else:
            try:
                exact = value if isinstance(value, int) else float(value)
                float(exact)
            except (TypeError, ValueError, OverflowError):
                return nothing, f"{short(value)} cannot be taken for one figure: {example}."
            quantity = units.Quantity(exact)
        if not math.isfinite(quantity.value):
            return nothing, f"{short(value)} is not a finite figure."
        return quantity, ""

    def _what_is_wrong(self, found: float, expected: float, given: Given) -> str:
        for words, figure in self.mistakes.items():
            try:
                slip = float(worked_out(figure, given))
            except (NotReady, TypeError, ValueError):
                continue
            if abs(found - slip) <= max(self.tolerance, SAME_SLIP) * abs(slip):
                return sentence(words)
        return _slip(found, expected, self.unit, _sizes(given))

    def shown(self, value: float) -> str:
        return units.shown(value, self.unit)

    def asks_for(self) -> list[str]:
        if not self.unit:
            return ["answer: a figure"]
        top = self.unit.split("/")[0].split()[0]
        example = ', for example 12_000 or "12 KiB"' if top in units.BYTES else ""
        return [f"answer: a figure in {self.unit}{example}"]

    def answer_text(self, given: Given) -> str:
        return self.shown(_plain(float(worked_out(self.answer, given))))


def _slip(found: float, expected: float, unit: str, sizes: set[int]) -> str:
    """What a figure that no author foresaw is likely to have got wrong, without saying by how much."""
    if expected == 0 or found == 0 or (found > 0) != (expected > 0):
        return "Look at its sign." if _near(found, -expected) else _direction(found, expected)
    ratio = found / expected
    ratio = max(ratio, 1 / ratio)
    in_bytes = any(part in units.BYTES for part in unit.replace("/", " ").split())
    if in_bytes and any(_near(ratio, 1.024**power) for power in (1, 2, 3, 4)):
        return "It is near: 1 kB is 1,000 bytes and 1 KiB is 1,024. Which of them is in your figure?"
    if any(_near(ratio, base**power) for base in (1000, 1024) for power in (1, 2, 3)):
        return f"The digits are right and the unit is not: {unit or 'what'} is asked for."
    if "%" in unit and _near(ratio, 100):
        return "The digits are right: is it a share, or percent?"
    doubts = []
    if any(_near(ratio, size) for size in sizes if size > 1):
        doubts.append("is it of one rank, or of all of them together?")
    if _near(ratio, 2):
        doubts.append("does something come in pairs here (keys and values, there and back), or in 2 bytes and not 4?")
    if _near(ratio, 8) and in_bytes:
        doubts.append("are these bits or bytes?")
    if doubts:
        doubts = " Or ".join(doubts)
        return f"The way is right and one factor is not: {doubts}"
    return _direction(found, expected)


def _direction(found: float, expected: float) -> str:
    far = expected and found and not 0.1 <= abs(found / expected) <= 10
    return f"It is {'much ' if far else ''}too {'large' if found > expected else 'small'}."


def _near(found: float, meant: float) -> bool:
    return abs(found - meant) <= SAME_SLIP * abs(meant)


def _sizes(given: Given) -> set[int]:
    """By which a figure "of one rank" differs from one of all: the sizes of the plans that were handed over."""
    sizes: set[int] = set()
    for value in vars(given).values():
        plan = getattr(value, "plan", value)
        if isinstance(plan, ServePlan):
            sizes |= {plan.tensor_parallel_size, plan.pipeline_parallel_size, plan.world_size}
    return sizes


def _plain(value: float) -> int | float:
    """A whole figure as one."""
    if abs(value) <= LARGEST and float(value).is_integer():
        return int(value)
    return float(value)
