"""From what was found to a report: the cause in words and numbers, or what is known where the cause is not."""

import re

from localai_clusters.diagnose.catalogue import ECHO, SYMPTOM
from localai_clusters.diagnose.matching import EXCEPTION, HEADER, Findings, Frame, Match
from localai_clusters.diagnose.numbers import worked_out
from localai_clusters.diagnose.ranking import (
    TELLING,
    Scored,
    beside,
    causes,
    first_rank,
    is_failure,
    last_stage,
    served,
    when,
)
from localai_clusters.diagnose.records import Record
from localai_clusters.diagnose.report import DONT_KNOW, EXPLAINED, NO_FAILURE, Cause, Evidence, Report

MOST_EVIDENCE = 5
MOST_LAST_ERRORS = 12
# What of a log may stand in a line that somebody will paste into a shell; one word or a list of them.
SAFE = re.compile(r"[\w./][\w.:/@+=-]*(?:, ?[\w./][\w.:/@+=-]*)*")
HOLE = re.compile(r"\{(\w+)\}")
# Exceptions that are no answer to a setting, where no signature has anything to say.
INTERNAL = ("AssertionError", "AttributeError", "KeyError", "IndexError", "UnboundLocalError", "NameError", "TypeError")
INTERNAL += ("NotImplementedError", "RecursionError", "ZeroDivisionError")
STUMBLED = ("RuntimeError", "ValueError")  # likewise, unless vLLM raised it itself: then it is a refusal
VLLM_FILE = re.compile(r"(?:packages|/vllm)/vllm/")
HINTS = (
    "VLLM_LOGGING_LEVEL=DEBUG shows what each process was doing",
    "NCCL_DEBUG=INFO TORCH_DISTRIBUTED_DEBUG=DETAIL shows how the ranks meet",
    "give the log of every rank, from its first line on: torchrun --log-dir DIR --redirects 3",
)
EMPTY = "the log is empty: was its output sent elsewhere?"


def explained(findings: Findings, files: tuple[str, ...]) -> Report:
    """The report of one log; its ``status`` says whether there is an answer."""
    stage = last_stage(findings)
    common = {"files": files, "lines": findings.lines, "stage": stage.signature.title if stage else ""}
    found = causes(findings)
    # A symptom beside an exception that nobody knows is most likely what followed from that exception.
    if found and found[0].signature.kind == SYMPTOM and found[0].score < TELLING and findings.unclaimed:
        found = []
    if found:
        answers = tuple(in_words(one, findings) for one in beside(found))
        return Report(EXPLAINED, answers, first_rank=answers[0].rank, **common)
    if internal := internal_error(findings):
        return Report(EXPLAINED, (internal,), first_rank=internal.rank, **common)
    if is_failure(findings):
        return Report(DONT_KNOW, last=last_errors(findings), hints=HINTS, **common)
    if stage and not served(findings):
        return Report(EXPLAINED, (hang(stage),), **common)
    if not findings.lines:
        return Report(DONT_KNOW, hints=(EMPTY, *HINTS), **common)
    if served(findings):
        return Report(NO_FAILURE, **common)
    return Report(DONT_KNOW, last=last_errors(findings), hints=HINTS, **common)  # silence is no sign of health


def in_words(one: Scored, findings: Findings) -> Cause:
    known = one.signature
    groups: dict[str, str] = {}
    for match in reversed(one.matches):  # the best match's numbers win
        groups |= match.groups
    values = worked_out(known.numbers, {name: text.strip().rstrip(".,;:") for name, text in groups.items()})
    processes = {match.record.process for match in one.matches}
    return Cause(
        id=known.id,
        cause=known.cause,
        title=filled(known.title, values) or known.title,
        confidence=one.confidence,
        why=" ".join(all_filled(known.why, values) or all_filled(known.cause_why, values)),
        fixes=to_type(known.fix, values) or known.cause_fix,
        evidence=evidence(one.matches, findings),
        count=sum(findings.counts[line.text, process] for line in known.lines for process in processes),
        rank=first_rank(one, findings),
        applies=known.applies,
        source=known.source,
    )


def to_type(texts: tuple[str, ...], values: dict[str, str]) -> tuple[str, ...]:
    """As ``all_filled``, for a shell: a line with something of the log that is more than plain words is left out."""
    plain = {name: " ".join(re.split(", ?", text)) for name, text in values.items() if SAFE.fullmatch(text)}
    return all_filled(texts, plain)


def all_filled(texts: tuple[str, ...], values: dict[str, str]) -> tuple[str, ...]:
    return tuple(line for text in texts if (line := filled(text, values)))


def filled(text: str, values: dict[str, str]) -> str:
    """``text`` with its numbers; empty if the log did not give one of them."""
    if any(name not in values for name in HOLE.findall(text)):
        return ""
    return HOLE.sub(lambda hole: values[hole[1]], text)


def evidence(matches: tuple[Match, ...], findings: Findings) -> tuple[Evidence, ...]:
    """The lines that show it, the first of each process, in the order in which they were said."""
    firsts: dict[str, Match] = {}
    for match in matches:
        firsts.setdefault(match.record.process, match)
    kept = sorted(list(firsts.values())[:MOST_EVIDENCE], key=lambda match: when(match, findings))
    return tuple(as_evidence(match.record) for match in kept)


def as_evidence(found: Record) -> Evidence:
    return Evidence(file=found.file, line=found.line, rank=found.process, text=found.text.strip())


def last_errors(findings: Findings) -> tuple[Evidence, ...]:
    """The last errors of each process; the log's last lines if there are none."""
    exceptions = [found for queue in findings.exceptions.values() for found in queue]
    echoes = [match.record for match in findings.matches if match.signature.kind == ECHO and match.strong]
    echoes = [found for found in echoes if not HEADER.search(found.text)]
    kept = exceptions or echoes[-4:] or list(findings.trouble)[-6:] or list(findings.last)[-6:]
    return tuple(as_evidence(found) for found in kept[:MOST_LAST_ERRORS])


def internal_error(findings: Findings) -> Cause | None:
    """vLLM's own code raised something that no signature knows: that much can be said, and where."""
    for found, frames in findings.unclaimed:
        what = EXCEPTION.match(found.text)["what"].strip(": ")
        own = next((frame for frame in frames if VLLM_FILE.search(frame.file)), None)
        if own and (what in INTERNAL or (what in STUMBLED and not own.raised)):
            return in_vllm(found, what, own)
    return None


def in_vllm(found: Record, what: str, own: Frame) -> Cause:
    where = f"vllm/{own.file.rpartition('/vllm/')[2]}:{own.line}, in {own.function}"
    return Cause(
        id="vllm-internal-error",
        cause="vllm-bug",
        title=f"vLLM's own code failed with {what}",
        confidence="low",
        why=f"It came from {where}, and is none of the refusals that are known: most often a case that this version of "
        "vLLM does not handle, or one that a setting leads into.",
        fixes=(
            "the newest vLLM, or the version that the model's card names",
            "leave out flags until it starts: --enforce-eager, then the attention backend, quantization, LoRA",
            f"github.com/vllm-project/vllm/issues: look for {own.function} and the message",
        ),
        evidence=(as_evidence(found),),
        count=1,
        rank=found.process,
        applies="any",
        source=(),
    )


def hang(stage: Match) -> Cause:
    """The log ends while starting, without an error: what it waits for, from the last stage that it reached."""
    known = stage.signature
    values = worked_out(known.numbers, stage.groups)
    return Cause(
        id=f"ends-{known.id}",
        cause="engine-hang",
        title=f"The log ends without an error: {known.title}",
        confidence="medium",
        why=" ".join(all_filled(known.why, values)),
        fixes=to_type(known.fix, values),
        evidence=(as_evidence(stage.record),),
        count=1,
        rank=stage.record.process,
        applies=known.applies,
        source=known.source,
    )
