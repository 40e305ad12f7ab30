"""Numbers that a signature needs and the log does not say: the tensor parallel size that fits, a port that is near."""

import re

CALL = re.compile(r"(?P<name>\w+) = (?P<function>\w+)\((?P<arguments>[^()]*)\)")


def number(text: str) -> float | None:
    """The number in ``text``, thousands' commas ignored; None if there is none."""
    found = re.search(r"-?\d[\d,]*(?:\.\d+)?", text)
    return float(found[0].replace(",", "")) if found else None


def divisor(of: float, most: float) -> str:
    """The largest divisor of ``of`` that is at most ``most``."""
    of, most = int(of), int(most)
    if of < 1 or most < 1:
        return ""
    return str(max(size for size in range(1, min(of, most, 4096) + 1) if of % size == 0))


def share(part: float, whole: float) -> str:
    """``part`` of ``whole`` as a fraction, rounded down to two places, a little left free."""
    return f"{int(part / whole * 100 - 3) / 100:.2f}" if whole > 0 and part / whole > 0.05 else ""


def half(value: float) -> str:
    return str(int(value // 2)) if value >= 2 else ""


def after(value: float) -> str:
    return str(int(value) + 1)


def times(left: float, right: float) -> str:
    return f"{left * right:g}"


def quotient(left: float, right: float) -> str:
    return str(int(left // right)) if right else ""


FUNCTIONS = {function.__name__: function for function in (divisor, share, half, after, times, quotient)}


def worked_out(calls: tuple[str, ...], found: dict[str, str]) -> dict[str, str]:
    """``found`` and what ``calls`` make of it; a call whose numbers are missing, or do not fit, adds nothing."""
    values = dict(found)
    for call in calls:
        parts = CALL.fullmatch(call)
        if parts is None or parts["function"] not in FUNCTIONS:
            raise ValueError(f"{call!r} is not NAME = FUNCTION(numbers); functions: {', '.join(FUNCTIONS)}")
        texts = [values.get(name.strip(), name.strip()) for name in parts["arguments"].split(",")]
        numbers = [number(text) for text in texts]
        if None not in numbers:
            try:
                result = FUNCTIONS[parts["function"]](*numbers)
            except (OverflowError, ValueError):
                continue
            if result:
                values[parts["name"]] = result
    return values
