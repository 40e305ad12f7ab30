"""The percent format, as jupytext writes it: cells below ``# %%`` lines, with the line that each begins at."""

import json
import re
from dataclasses import dataclass
from itertools import pairwise

MARKER = re.compile(r"# ?%%(?P<rest>(\s.*)?)$")
KIND = re.compile(r"\[(markdown|md|raw)\]")
TAGS = re.compile(r"tags=(\[[^\]]*\])")
EXERCISES = "exercises"  # the tag of a cell that no student's notebook has


@dataclass(frozen=True, slots=True)
class PercentCell:
    """``line`` is that of the first line of ``source``, from 1; a markdown cell's source is without the ``# ``."""

    line: int
    kind: str
    tags: tuple[str, ...]
    source: str


def cells_of(text: str) -> list[PercentCell]:
    """The cells in order. What stands before the first marker, a front matter say, is none."""
    found: list[PercentCell] = []
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if MARKER.match(line)]
    for start, end in pairwise([*starts, len(lines)]):
        head = MARKER.match(lines[start])["rest"]
        kind = KIND.search(head)
        tags = TAGS.search(head)
        body = list(enumerate(lines[start + 1 : end], start=start + 2))
        while body and not body[0][1].strip():
            body.pop(0)
        while body and not body[-1][1].strip():
            body.pop()
        texts = [line for _, line in body]
        if kind:
            texts = [re.sub(r"^# ?", "", line) for line in texts]
        name = {"md": "markdown"}.get(kind[1], kind[1]) if kind else "code"
        line = body[0][0] if body else start + 1
        found.append(PercentCell(line, name, _tags(tags[1]) if tags else (), "\n".join(texts)))
    return found


def _tags(text: str) -> tuple[str, ...]:
    try:
        return tuple(str(tag) for tag in json.loads(text))
    except ValueError:
        return ()
