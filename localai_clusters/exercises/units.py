"""Quantities as people type them: 11520, "11,520 bytes", "5.6 MiB", "1.2 ms", "3 tokens"."""

import re
from dataclasses import dataclass

KILO, KIBI = 10**3, 2**10


def _bytes() -> dict[str, float]:
    found = {"B": 1.0, "byte": 1.0, "bytes": 1.0, "bit": 1 / 8, "bits": 1 / 8}
    for power, letter in enumerate("kMGT", start=1):
        found |= {f"{letter}B": KILO**power, f"{letter}bit": KILO**power / 8, f"{letter.upper()}iB": KIBI**power}
        found |= {f"{letter}bits": KILO**power / 8, f"{letter.upper()}ibit": KIBI**power / 8}
    return found


KINDS: tuple[dict[str, float], ...] = (
    _bytes(),
    {"s": 1, "sec": 1, "second": 1, "seconds": 1, "ms": 1e-3, "millisecond": 1e-3, "milliseconds": 1e-3, "us": 1e-6,
     "µs": 1e-6, "μs": 1e-6, "microsecond": 1e-6, "microseconds": 1e-6, "ns": 1e-9, "min": 60, "minutes": 60},
    {"%": 0.01, "percent": 0.01, "times": 1.0, "x": 1.0},
)  # fmt: skip
BYTES = KINDS[0]
_NUMBER = re.compile(r"[~≈]?\s*([+-]?(?:\d[\d,_]*)?(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Quantity:
    """``half`` is half of the last digit that was written: how exact the figure can be. 0 if it was not typed."""

    value: float
    unit: str = ""
    half: float = 0.0


def read(text: str) -> Quantity | None:
    """The number and unit in ``text``; None if it does not begin with a number."""
    found = _NUMBER.fullmatch(text.strip())
    number, unit = found.groups() if found else ("", "")
    plain = number.replace("_", "")
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", plain):
        plain = plain.replace(",", "")
    elif re.fullmatch(r"[+-]?\d+,\d+", plain):
        plain = plain.replace(",", ".")
    try:
        value = float(plain)
    except ValueError:
        return None
    mantissa, _, exponent = plain.lower().partition("e")
    half = 0.5 * 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return Quantity(value, " ".join(unit.split()), half)


def factor(given: str, wanted: str) -> float | None:
    """What a figure in ``given`` is multiplied with to be in ``wanted``; None if one is not the other's kind.

    No unit at all, and the bare noun for a rate ("bytes" for "bytes per token"), are taken for the one wanted.
    """
    if not given:
        return 1.0
    (given_top, given_below), (wanted_top, wanted_below) = _parts(given), _parts(wanted)
    if given_below and _plural(given_below) != _plural(wanted_below):
        return None
    for kind in KINDS:
        a, b = _look_up(given_top, kind), _look_up(wanted_top, kind)
        if a is not None and b is not None:
            return a / b
        if a is not None and wanted_top:
            return None
    if not wanted_top:
        return _look_up(given_top, KINDS[2])
    return 1.0 if _plural(given_top) == _plural(wanted_top) else None


def _parts(unit: str) -> tuple[str, str]:
    top, _, below = re.sub(r"\s+per\s+|\s+an?\s+", "/", unit).partition("/")
    return top.strip(), below.strip()


def _plural(noun: str) -> str:
    noun = noun.casefold().rstrip(".")
    return {"second": "s", "seconds": "s", "sec": "s"}.get(noun, noun if noun.endswith("s") else f"{noun}s")


def _look_up(unit: str, kind: dict[str, float]) -> float | None:
    if unit in kind:
        return kind[unit]
    folded = {name.casefold(): size for name, size in kind.items()}
    return folded.get(unit.casefold())


def shown(value: float, unit: str) -> str:
    """A figure with its unit: 11,520 bytes; 0.85 ms."""
    whole = isinstance(value, int) or (abs(value) < 1e15 and float(value).is_integer())
    number = f"{int(value):,}" if whole else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if value == 1 and re.fullmatch(r"[a-z-]+[a-z]s", unit) and not any(_look_up(unit, kind) for kind in KINDS):
        unit = unit[:-1]  # 1 rank, 1 block
    return f"{number} {unit}".strip() if unit != "%" else f"{number}%"
