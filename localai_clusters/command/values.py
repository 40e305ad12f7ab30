"""Values of flags: what numbers look like on vLLM's command line."""

import json
import re

NUMBER = re.compile(r"-?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?")
HUMAN_NUMBER = re.compile(r"(\d+)(\.\d+)?([kKmMgGtT])?")
UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
MAX_DIGITS = 300  # what is longer is no number that anybody meant, and slow to convert


def whole_number(text: str) -> int | None:
    """``text`` as Python's int() reads it, with at most 300 digits."""
    if len(text) > MAX_DIGITS or not re.fullmatch(r"\s*[+-]?\d+(_\d+)*\s*", text):
        return None
    return int(text)


def tokens(text: str) -> int | None:
    """``12``, ``12k`` (12,000), ``12K`` (12,288), ``1.5k``: vLLM's human_readable_int."""
    found = HUMAN_NUMBER.fullmatch(text.strip()) if len(text) <= MAX_DIGITS else None
    if not found:
        return None
    whole, fraction, unit = found.groups()
    if unit is None:
        return None if fraction else int(whole)
    if fraction and unit.isupper():
        return None
    return int(float(whole + (fraction or "")) * UNITS[unit]) if fraction else int(whole) * UNITS[unit]


def takes_value(kind: str, text: str) -> bool:
    """Whether a value of ``kind`` can be ``text``."""
    if kind == "integer":
        return whole_number(text) is not None
    if kind == "number":
        return bool(NUMBER.fullmatch(text.strip().lower())) or text.strip().lower() in ("inf", "nan")
    if kind == "tokens":
        return tokens(text) is not None
    if kind == "tokens or auto":
        return text.lower() in ("auto", "-1") or tokens(text) is not None
    if kind == "json":
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return False
    return True
