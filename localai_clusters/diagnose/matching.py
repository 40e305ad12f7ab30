"""One pass over a log: which signatures its lines match, in which process, and what else the ranking needs."""

import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

from localai_clusters.diagnose.catalogue import CAUSE, NOISE, SYMPTOM, Signature, signatures
from localai_clusters.diagnose.reading import CONTINUED, Block, plain
from localai_clusters.diagnose.records import Record, record, texts
from localai_clusters.diagnose.screening import Screen, Wanted

MOST_KEPT = 20  # matches of one template in one process
MOST_FRAMES = 2000  # lines of tracebacks that are remembered, of all processes together
FARTHEST_FRAME = 400  # lines between an exception and a frame of its traceback
LAST_LINES = 12

# A frame as Python, IPython, rich and pybind print it, from its file's ending on.
FRAME = re.compile(r"""\.py(?:", line |:|\()(?P<line>\d+)\)?(?:,? in |: (?=\w+$))(?P<function>[\w<>.]{1,100})""")
HEADER = re.compile(r"Traceback \(most recent call last\)")
RAISE = re.compile(r"(?:^|[\])|:]) [\s\d>-]*raise \w")  # the source line below a frame: the code refused, on purpose
# A traceback's last line, and a command that refuses its arguments.
EXCEPTION = re.compile(
    r"\s*(?:\S{1,60}: )?(?P<what>(?:[A-Za-z_]\w{0,80}\.){0,8}"
    r"[A-Z]\w{0,80}(?:Error|Exception|Exit|Interrupt|Failure|Timeout)(?=:|$|\()|error: )"
)
TROUBLE = re.compile(r"\b(?:errors?|failed|failure|fatal|killed|refused|aborted|crash(?:ed)?|exited on signal)\b", re.I)
# What was asked for is often printed whole: a setting is no failure, whatever its name.
SETTINGS = re.compile(
    r"Namespace\(|ServerArgs\(|EngineArgs\(|LLM engine \(v[^)]{1,40}\) with config|non-default args:|Config\(\w+="
)
ROOT_CAUSE = "Root Cause (first observed failure)"
LOST_PEER = "69"  # serving/rank.py: a rank that ended because it lost another one, if before that one's process did
ROW = re.compile(r"\s*(?P<key>rank|exitcode|host)\s*:\s*(?P<value>-?\d+|\S+)")
STRONG_LEVELS = ("ERROR", "CRITICAL", "FATAL")
WEAK_LEVELS = ("INFO", "WARNING", "DEBUG")
PYTHON_WARNING = "Warning: "  # DeprecationWarning, UserWarning, ...


@dataclass(frozen=True, slots=True)
class Frame:
    file: str
    line: int
    function: str
    raised: bool  # by a ``raise`` of its own

    def is_in(self, place: str) -> bool:
        """``place`` is a function's name, or a part of a path."""
        return place in self.file if "/" in place else place == self.function


@dataclass(frozen=True, slots=True)
class Match:
    signature: Signature
    record: Record
    groups: dict[str, str]
    order: int  # among all lines of all files, as they were read

    @property
    def strong(self) -> bool:
        """Whether the line was said as an error, or by something that has no levels."""
        return self.signature.level == "any" or not is_weak(self.record)


@dataclass(slots=True)
class Findings:
    """What one pass over one or several files found.

    ``counts``: (template's text, process) -> lines, and ``seen`` the texts alone. ``exceptions``: of each process the
    last ones that no signature claims; ``unclaimed`` the first of those, with their tracebacks. ``trouble``: the last
    other lines that speak of a failure. ``root_ranks``: the first failures that torchrun's tables name.
    """

    matches: list[Match] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    seen: set[str] = field(default_factory=set)
    exceptions: dict[str, deque[Record]] = field(default_factory=dict)
    unclaimed: list[tuple[Record, tuple[Frame, ...]]] = field(default_factory=list)
    trouble: deque[Record] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    root_ranks: list[str] = field(default_factory=list)
    last: deque[Record] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    lines: int = 0
    files: int = 0


def scan(files: Iterable[tuple[str, str, Iterable[Block]]]) -> Findings:
    """``files``: (name, who wrote it, its blocks). Memory does not grow with their size."""
    findings = Findings()
    screen = Screen()
    for number, (name, owner, blocks) in enumerate(files):
        findings.files += 1
        reader = Reader(name, owner, findings, number << 40)
        for block in blocks:
            for line_number, line, wanted in screen.interesting(block):
                reader.take(line_number, line, wanted)
            findings.lines += block.data.count(b"\n") - block.data.count(CONTINUED + b"\n")
            remember_last(findings, name, owner, block)
    return findings


def remember_last(findings: Findings, name: str, owner: str, block: Block) -> None:
    lines = block.data.rstrip().rsplit(b"\n", LAST_LINES)[-LAST_LINES:]
    first = block.number + block.data.rstrip().count(b"\n") - len(lines) + 1
    for number, line in enumerate(lines, first):
        if text := plain(line).strip():
            findings.last.append(Record(name, number, owner, None, "", text))


@cache
def signatures_by_line() -> dict[str, list[Signature]]:
    found: dict[str, list[Signature]] = defaultdict(list)
    for known in signatures():
        for one in known.lines:
            found[one.text].append(known)
    return found


def is_noise(text: str, wanted: Wanted) -> bool:
    return any(
        known.kind == NOISE and one.search(text) is not None
        for one in wanted
        for known in signatures_by_line().get(one.text, ())
    )


def is_weak(found: Record) -> bool:
    return found.level in WEAK_LEVELS or PYTHON_WARNING in found.text


class Reader:
    """What has to be remembered between the lines of one file: tracebacks, and torchrun's table."""

    def __init__(self, name: str, owner: str, findings: Findings, first_order: int):
        self.name, self.owner, self.findings, self.first_order = name, owner, findings, first_order
        self.frames: deque[tuple[int, str]] = deque(maxlen=MOST_FRAMES)
        self.in_root_cause = False

    def take(self, number: int, line: bytes, wanted: Wanted) -> None:
        for text in texts(plain(line)):
            is_frame = (".py" in text and FRAME.search(text)) or ("raise " in text and RAISE.search(text))
            is_frame = bool(is_frame or HEADER.search(text))
            if is_frame:
                self.frames.append((number, text))
            if wanted or not is_frame:
                self.take_text(number, text, wanted, is_frame)

    def take_text(self, number: int, text: str, wanted: Wanted, is_frame: bool) -> None:
        found = record(self.name, number, text, self.owner)
        if is_noise(found.text, wanted):
            return
        is_setting = "=" in found.text and SETTINGS.search(found.text) is not None
        claimed = False
        for one in wanted:
            if (groups := one.search(found.text)) is not None:
                # A function's name in a traceback is no failure of that function, unless the template says "in NAME".
                is_passed = is_setting or (is_frame and not one.text.startswith("in "))
                claimed |= self.matched(one.text, found, groups, is_passed)
        if is_frame or is_setting or claimed or is_weak(found):
            return
        if EXCEPTION.match(found.text):
            self.keep_exception(found)
        elif TROUBLE.search(found.text):
            self.findings.trouble.append(found)
        self.table(found.text)

    def matched(self, line: str, found: Record, groups: dict[str, str], is_passed: bool) -> bool:
        """Count a match of the template ``line``; whether a signature holds here, and so claims the record."""
        counted = self.findings.counts[line, found.process] = self.findings.counts[line, found.process] + 1
        self.findings.seen.add(line)
        claimed = False
        for known in signatures_by_line().get(line, ()):
            if not (is_passed and known.kind in (CAUSE, SYMPTOM)) and self.holds_here(known, found):
                claimed = True
                if counted <= MOST_KEPT:
                    self.keep(Match(known, found, groups, self.first_order + found.line))
        return claimed

    def keep(self, match: Match) -> None:
        """A line counts once for a signature: by the template that gives the most numbers."""
        matches = self.findings.matches
        for place in range(len(matches) - 1, max(len(matches) - 20, -1), -1):
            other = matches[place]
            if other.signature is match.signature and other.record == match.record:
                matches[place] = max(other, match, key=lambda one: len(one.groups))
                return
        matches.append(match)

    def holds_here(self, known: Signature, found: Record) -> bool:
        if not known.frames and not known.without_frames:
            return True
        frames = self.traceback(found)
        if known.frames and not any(frame.is_in(place) for place in known.frames for frame in frames):
            return False
        return not any(frame.is_in(place) for place in known.without_frames for frame in frames)

    def traceback(self, found: Record) -> list[Frame]:
        """The frames of the traceback that ``found`` ends, innermost first."""
        frames: list[Frame] = []
        raised = False
        for number, text in reversed(self.frames):
            if found.line - number > FARTHEST_FRAME:
                break
            if record("", 0, text, self.owner).process != found.process:
                continue
            frame = FRAME.search(text)
            if frame is None and HEADER.search(text):
                break
            if frame is None:
                raised = raised or not frames
                continue
            file = re.split(r"[\s\"]", text[: frame.start()])[-1] + ".py"
            function = frame["function"].rpartition(".")[2]
            frames.append(Frame(file, int(frame["line"]), function, raised and not frames))
        return frames

    def keep_exception(self, found: Record) -> None:
        self.findings.exceptions.setdefault(found.process, deque(maxlen=3)).append(found)
        if len(self.findings.unclaimed) < MOST_KEPT:
            self.findings.unclaimed.append((found, tuple(self.traceback(found))))

    def table(self, text: str) -> None:
        """torchrun's account of a failure: after the words "Root Cause", the rank that failed first on this node."""
        if ROOT_CAUSE in text:
            self.in_root_cause = True
        elif self.in_root_cause and (row := ROW.match(text)) and row["key"] == "rank":
            self.findings.root_ranks.append(f"rank {row['value']}")
        elif self.in_root_cause and row and row["key"] == "exitcode":
            if row["value"] == LOST_PEER and self.findings.root_ranks:
                self.findings.root_ranks.pop()
            self.in_root_cause = False
