"""What of a record is compared with other records', as small as it can be."""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, NamedTuple

from localai_clusters.checkpoint import Checkpoint
from localai_clusters.grading.own_prompts import DRAWS, own_prompts
from localai_clusters.grading.plausible import RUN_ID
from localai_clusters.prompts import DEFAULT_KEY, prompts_for

HASH_BYTES = 8  # kept of each SHA-256: 10,000 records have some 250,000, and two of them fall together once in 10^9
TOKENS_TO_COMPARE = 8  # a shorter answer ("Yes.") may be two students' own
MOST_FOREIGN = 10  # prompts that are kept as they are
EMPTY_LOG = hashlib.sha256(b"").hexdigest()
LAB_PROMPTS = 4  # what prompts_for gives unless told otherwise: with so many of one's own, others may be there for fun


class Answer(NamedTuple):
    """One answer of a record: hashes of its prompt and of its tokens, their number, the sum of their log
    probabilities (NaN if they are not recorded)."""

    prompt: bytes
    tokens: bytes
    length: int
    logprob_sum: float


ANSWER = struct.Struct(f"<{HASH_BYTES}s{HASH_BYTES}sId")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What of a record is compared with others': under a kilobyte, so that 10,000 of them fit anywhere."""

    file: str
    student: str
    record_id: str
    digest: str  # its beginning
    runs: tuple[str, ...]
    logs: bytes  # hashes, one after the other
    measured: bytes  # the same, of times
    answers: bytes  # ANSWER, one after the other
    prompts: bytes  # hashes
    foreign: tuple[str, ...]  # prompts drawn for somebody else; the first few
    default_key: bool  # they are this student's with the public default key, and another key was asked for

    def to_json(self) -> list[Any]:
        """Its fields in their order, bytes in hexadecimal."""
        fields = (getattr(self, name) for name in self.__slots__)
        return [field.hex() if isinstance(field, bytes) else field for field in fields]

    @classmethod
    def from_json(cls, plain: Sequence[Any]) -> "Fingerprint":
        file, student, record_id, digest, runs, logs, measured, answers, prompts, foreign, default_key = plain
        packed = (bytes.fromhex(each) for each in (logs, measured, answers, prompts))
        return cls(file, student, record_id, digest, tuple(runs), *packed, tuple(foreign), default_key)

    def each_answer(self) -> Iterator[Answer]:
        return map(Answer._make, ANSWER.iter_unpack(self.answers))


def fingerprint(record: Checkpoint, file: str, key: str | None = None) -> Fingerprint:
    """``key`` is the course's; None takes LAC_COURSE_KEY or the public default."""
    prompts = [short(prompt.text) for prompt in record.data.prompts]
    answers: dict[tuple[bytes, bytes], bytes] = {}
    for completion in record.observed.completions:
        length = len(completion.token_ids)
        if length >= TOKENS_TO_COMPARE and completion.prompt_index < len(prompts):
            # Of the splits that say the same, the first one.
            prompt, tokens = prompts[completion.prompt_index], short(str(completion.token_ids))
            if (prompt, tokens) not in answers:
                total = sum(completion.logprobs) if completion.logprobs else nan
                answers[prompt, tokens] = ANSWER.pack(prompt, tokens, length, total)
    texts = [prompt.text for prompt in record.data.prompts]
    found = own_prompts(record.student, record.lab, texts, key)
    foreign = sorted(found.foreign) if len(found.own) < LAB_PROMPTS else []
    default_key = bool(foreign) and found.foreign.issubset(prompts_for(record.student, record.lab, DRAWS, DEFAULT_KEY))
    return Fingerprint(
        file=file,
        student=record.student,
        record_id=record.record_id,
        digest=record.digest[: 2 * HASH_BYTES],
        # An id that the library did not draw ("tp1") is anybody's.
        runs=tuple(run.run_id for run in record.runs if RUN_ID.fullmatch(run.run_id)),
        logs=b"".join(
            bytes.fromhex(rank.log_sha256)[:HASH_BYTES]
            for run in record.runs
            for rank in run.ranks
            if rank.log_sha256 and rank.log_sha256 != EMPTY_LOG
        ),
        measured=b"".join(short(repr(value)) for value in exact_measurements(record)),
        answers=b"".join(answers.values()),
        prompts=b"".join(prompts),
        foreign=tuple(foreign[:MOST_FOREIGN]),
        default_key=default_key,
    )


def exact_measurements(record: Checkpoint) -> Iterator[float]:
    """Times that were measured to the nanosecond or finer: two machines do not have the same one."""
    for run in record.runs:
        yield from (each for each in (run.seconds_to_ready, run.seconds_serving) if each and not_rounded(each))
    for load in record.observed.load:
        yield from (each for each in (load.seconds, load.ttft_p50_s, load.ttft_p99_s) if each and not_rounded(each))


def not_rounded(seconds: float) -> bool:
    return round(seconds, 6) != seconds


def short(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:HASH_BYTES]


def hashes(joined: bytes) -> list[bytes]:
    return [joined[i : i + HASH_BYTES] for i in range(0, len(joined), HASH_BYTES)]
