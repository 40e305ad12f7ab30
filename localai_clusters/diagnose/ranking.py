"""Which cause explains a log best, who failed first, and how sure that is."""

import math
from collections import defaultdict
from dataclasses import dataclass

from localai_clusters.diagnose.catalogue import CAUSE, ECHO, STAGE, SYMPTOM, Signature
from localai_clusters.diagnose.matching import EXCEPTION, STRONG_LEVELS, Findings, Match

# A signature's weight (50 to 60 for a cause, 20 to 40 for a symptom) is its match's score, less:
WEAK = 45  # if the line was logged as a warning or less
PLAIN = 3  # if it is neither an exception nor logged as an error
RECOVERED = 25  # if the server started afterwards
OF_THE_FIRST_RANK = 4  # and this is added in the rank that torchrun names as the first failure
LEAST = 20  # below it a match explains nothing
CLEAR, TELLING = 45, 30  # from here on a cause is sure, a symptom more than an echo
NEAR = 6  # another cause is shown beside the first one when its score is this near
MOST_CAUSES = 3
SERVES = 90  # a stage of this order or a later one: the engine worked


@dataclass(frozen=True, slots=True)
class Scored:
    """A signature that may explain the log; its matches, the best first."""

    signature: Signature
    score: float
    matches: tuple[Match, ...]

    @property
    def first(self) -> Match:
        return self.matches[0]

    @property
    def confidence(self) -> str:
        if self.signature.kind == SYMPTOM:
            return "medium" if self.score >= TELLING else "low"
        return "high" if self.score >= CLEAR else "medium"


def causes(findings: Findings) -> list[Scored]:
    """What explains the log, best first; of equals the one that was said first."""
    by_signature: dict[str, list[Match]] = defaultdict(list)
    for match in findings.matches:
        if match.signature.kind in (CAUSE, SYMPTOM) and holds_in_the_log(match.signature, findings):
            by_signature[match.signature.id].append(match)
    served_at = min((match.order for match in stages(findings) if match.signature.order >= SERVES), default=None)
    scored = []
    for matches in by_signature.values():
        matches.sort(key=lambda match: (-score(match, findings, served_at), when(match, findings)))
        best = score(matches[0], findings, served_at)
        if best >= LEAST:
            scored.append(Scored(matches[0].signature, best, tuple(matches)))
    return sorted(scored, key=lambda one: (-one.score, when(one.first, findings)))


def holds_in_the_log(known: Signature, findings: Findings) -> bool:
    if known.having and not any(one.text in findings.seen for one in known.having):
        return False
    return not any(one.text in findings.seen for one in known.without)


def score(match: Match, findings: Findings, served_at: int | None) -> float:
    value = match.signature.weight
    said_as_error = match.record.level in STRONG_LEVELS or EXCEPTION.match(match.record.text)
    if not match.strong:
        value -= WEAK
    elif match.signature.level != "any" and not said_as_error:
        value -= PLAIN
    if served_at is not None and match.order < served_at and match.signature.kind == CAUSE:
        value -= RECOVERED
    if match.record.process in findings.root_ranks:
        value += OF_THE_FIRST_RANK
    return value


def when(match: Match, findings: Findings) -> tuple[float, int]:
    """By the clock where several files are compared, else by the order of the lines."""
    if findings.files < 2:
        return 0.0, match.order
    return math.inf if match.record.time is None else match.record.time, match.order


def beside(found: list[Scored]) -> list[Scored]:
    """The best cause and those that may be it as well: other causes, on other lines, nearly as sure."""
    shown = found[:1]
    for one in found[1:]:
        is_near = one.signature.kind == CAUSE and one.score >= shown[0].score - NEAR
        if is_near and not any(is_the_same(one, other) for other in shown):
            shown.append(one)
    return shown[:MOST_CAUSES]


def is_the_same(one: Scored, other: Scored) -> bool:
    """Whether they name one cause, or read one line in two ways."""
    same_line = one.first.order in {match.order for match in other.matches}
    return same_line or one.signature.cause == other.signature.cause


def first_rank(one: Scored, findings: Findings) -> str:
    """Who failed first: of those whose lines show the cause, the one that torchrun names, else the first to say it."""
    who = [who_wrote(match) for match in sorted(one.matches, key=lambda match: when(match, findings))]
    named = [rank for rank in findings.root_ranks if rank in who]
    return (named or [name for name in who if name] or findings.root_ranks or [""])[0]


def who_wrote(match: Match) -> str:
    """Whose line it is; of a line about a rank, that rank."""
    return f"rank {match.groups['rank']}" if "rank" in match.groups else match.record.process


def stages(findings: Findings) -> list[Match]:
    return [match for match in findings.matches if match.signature.kind == STAGE]


def last_stage(findings: Findings) -> Match | None:
    return max(stages(findings), key=lambda match: (match.signature.order, match.order), default=None)


def served(findings: Findings) -> bool:
    return any(match.signature.order >= SERVES for match in stages(findings))


def is_failure(findings: Findings) -> bool:
    """Whether anything in the log says that something failed."""
    if any(match.signature.kind in (ECHO, CAUSE, SYMPTOM) and match.strong for match in findings.matches):
        return True
    return bool(findings.unclaimed or findings.root_ranks or (findings.trouble and not served(findings)))
