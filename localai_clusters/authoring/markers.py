"""Solutions in a lab's source stand between ``# BEGIN SOLUTION`` and ``# END SOLUTION``."""

import re

BEGIN, END = "BEGIN SOLUTION", "END SOLUTION"
_MARKER = re.compile(r"\s*#\s*(BEGIN|END)\s+SOLUTION\s*$")
_ALMOST = re.compile(r"#+\s*(begin|end)[ _-]*solutions?\b", re.IGNORECASE)


class Unbalanced(ValueError):
    """A marker without the other, or one that is misspelt; ``offset`` is its line within the text, from 0."""

    def __init__(self, offset: int, sentence: str) -> None:
        super().__init__(sentence)
        self.offset, self.sentence = offset, sentence


def without_solutions(source: str) -> str:
    """What a student gets."""
    return "\n".join(line for line, inside in _lines(source) if not inside)


def with_solutions(source: str) -> str:
    """What CI runs: the solutions, without their markers."""
    return "\n".join(line for line, _ in _lines(source))


def _lines(source: str) -> list[tuple[str, bool]]:
    """(line, whether it is part of a solution), without the markers."""
    found, begun = [], None
    for offset, line in enumerate(source.splitlines()):
        marker = _MARKER.match(line)
        if not marker:
            if _ALMOST.search(line):
                raise Unbalanced(offset, f"this is nearly a marker; write # {BEGIN} or # {END} on a line of its own")
            found.append((line, begun is not None))
        elif (marker[1] == "BEGIN") == (begun is not None):
            raise Unbalanced(offset, f"# {marker[1]} SOLUTION " + (
                f"inside the solution that began {offset - begun} lines above" if begun is not None
                else f"without a # {BEGIN} above it"))  # fmt: skip
        else:
            begun = offset if marker[1] == "BEGIN" else None
    if begun is not None:
        raise Unbalanced(begun, f"# {BEGIN} without a # {END} below it in the same cell")
    return found
