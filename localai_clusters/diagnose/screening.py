"""Which of a block's lines may matter, and which templates each could match: all lines of a long log pass through here.

Most lines are like lines before them but for their numbers. So a line is looked at without its digits, in lower case,
and what it could match is worked out once for all lines that are the same then. For a line that is new, every third run
of four bytes is looked up: that takes the same time for one template and for two thousand.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache

from localai_clusters.diagnose.catalogue import signatures
from localai_clusters.diagnose.reading import CONTINUED, Block
from localai_clusters.diagnose.template import SHORTEST_LITERAL, Template

MOST_KNOWN_LINES = 40_000  # different lines, digits aside, whose screening is remembered
MOST_ALIKE = 500  # lines that are the same, digits aside; those that follow say nothing new
MOST_TRIED = 5000  # lines on which one template is tried
LOWER = bytes(byte + 32 if 65 <= byte <= 90 else byte for byte in range(256))
DIGITS = b"0123456789"
# A line matters for these too: exceptions, tracebacks, torchrun's table, talk of a failure.
TROUBLE_WORDS = (
    b"error:", b"error(", b"error]", b"error\n", b"exception", b"interrupt", b"failure", b"failed", b"fatal ",
    b"killed", b"timeout", b"refused", b"aborted", b"crashed", b"on signal", b'file "', b"traceback (", b".py(): ",
    b".py:, in", b".py: in", b"raise ", b"root cause (first", b"exitcode", b"(local_rank:", b"systemexit",
)  # fmt: skip
RUN, STRIDE = 4, SHORTEST_LITERAL - 3  # bytes; of so many neighbouring runs of a literal, one is always looked up
Wanted = tuple[Template, ...]


class Screen:
    """What is known of the lines that were seen so far; one for all blocks of all files."""

    def __init__(self) -> None:
        self.known: dict[bytes, Wanted | None] = {}
        self.alike: Counter[bytes] = Counter()
        self.tried: Counter[str] = Counter()  # template's text -> lines

    def interesting(self, block: Block) -> Iterator[tuple[int, bytes, Wanted]]:
        """(line number, line, templates it could match) for every line that may matter."""
        keys = block.data.translate(LOWER, DIGITS).split(b"\n")
        lines = block.data.split(b"\n")
        known = self.known
        if len(known) > MOST_KNOWN_LINES:
            known.clear()
            self.alike.clear()
        number = block.number
        for key, line in zip(keys, lines, strict=True):
            try:
                wanted = known[key]
            except KeyError:
                wanted = known[key] = screened(key)
            if wanted is not None and (not wanted or any(self.tried[one.text] < MOST_TRIED for one in wanted)):
                yield number, line, wanted
                self.tried.update([one.text for one in wanted])
                self.alike[key] += 1
                if self.alike[key] > MOST_ALIKE:
                    known[key] = None
            if not key.endswith(CONTINUED):
                number += 1


def screened(key: bytes) -> Wanted | None:
    """The templates that lines like ``key`` can match; None if such lines do not matter."""
    by_run = literals_by_run()
    text = key + b"\n"
    runs = {run for i in range(0, len(text) - RUN + 1, STRIDE) if (run := text[i : i + RUN]) in by_run}
    if not runs:
        return None
    found = {literal: one for run in runs for literal, one in by_run[run] if literal in text}
    if not found:
        return None
    return tuple(template for templates in found.values() for template in templates)


@cache
def literals_by_run() -> dict[bytes, list[tuple[bytes, Wanted]]]:
    """Every literal with its templates, by the ``STRIDE`` neighbouring runs of it that fewest other literals have."""
    by_literal: dict[bytes, dict[str, Template]] = {word: {} for word in TROUBLE_WORDS}
    for known in signatures():
        for one in known.templates:
            by_literal.setdefault(one.literal, {})[one.text] = one
    runs = {literal: [literal[i : i + RUN] for i in range(len(literal) - RUN + 1)] for literal in by_literal}
    shared = Counter(run for found in runs.values() for run in found)
    index: dict[bytes, list[tuple[bytes, Wanted]]] = defaultdict(list)
    for literal, found in runs.items():
        starts = range(len(found) - STRIDE + 1)
        best = min(starts, key=lambda start: sum(shared[run] for run in found[start : start + STRIDE]))
        for run in found[best : best + STRIDE]:
            index[run].append((literal, tuple(by_literal[literal].values())))
    return dict(index)
