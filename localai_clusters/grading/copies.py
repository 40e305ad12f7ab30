"""Across records: what two students cannot both have by themselves. Suspicions for a person, never points.

What is no sign of copying, and raises no flag: two students who were asked the same prompt and have the same answer to
it. The words come from a short list, so prompts coincide in every class, and greedy decoding gives equal prompts equal
answers, down to the log probabilities on equal machines.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isnan
from typing import Any

from localai_clusters.checkpoint import plain_text
from localai_clusters.grading.fingerprint import TOKENS_TO_COMPARE, Answer, Fingerprint, hashes, short
from localai_clusters.grading.results import Flag

MOST_LISTED = 10  # of the files that a flag names
MANY = 50  # records that share a thing: all of them are flagged, and not compared one by one
NEAR = 0.02  # nats per token: two answers' log probabilities are one another's copy, perhaps with some noise put on


def copies(prints: Sequence[Fingerprint]) -> dict[str, tuple[Flag, ...]]:
    """Flags by file, for the files that have any; the same for the records in any order."""
    prints = sorted(prints, key=lambda each: each.file)
    flags: dict[str, list[Flag]] = defaultdict(list)
    for look in (same_records, shared_runs, shared_logs, shared_measurements, shared_answers, foreign_prompts, folders):
        for file, flag in look(prints):
            flags[file].append(flag)
    return {file: tuple(flags[file]) for file in sorted(flags)}


Flags = Iterator[tuple[str, Flag]]


def same_records(prints: Sequence[Fingerprint]) -> Flags:
    """A record is drawn its id once: two files with one id are one record, copied or changed."""
    for record_id, group in groups((each.record_id, each) for each in prints):
        if len({each.digest for each in group}) > 1:
            sentence = "another file holds a record with the same id and another content: one of them was changed"
        elif len({folder_of(each.file) for each in group}) > 1:
            sentence = "the same record lies in another folder too"
        else:
            continue  # handed in twice
        few = group[: MOST_LISTED + 1]
        for each in group:
            yield each.file, Flag("same-record", sentence, (f"record_id {record_id}",), listed(each, few))


def shared_runs(prints: Sequence[Fingerprint]) -> Flags:
    yield from shared(
        prints,
        lambda each: each.runs,
        Flag("shared-run", "a run with the same id is in another student's record: one run was recorded twice"),
        lambda values: tuple(f"run {value}" for value in values[:3]),
    )


def shared_logs(prints: Sequence[Fingerprint]) -> Flags:
    yield from shared(
        prints,
        lambda each: hashes(each.logs),
        Flag("shared-log", "ranks' logs are byte for byte those of another student, times and process ids included"),
        lambda values: tuple(f"log_sha256 {value.hex()}..." for value in values[:3]),
    )


def shared_measurements(prints: Sequence[Fingerprint]) -> Flags:
    yield from shared(
        prints,
        lambda each: hashes(each.measured),
        Flag("shared-time", "measured times are those of another student to the last digit"),
        lambda values: (f"{len(values)} time{' is' if len(values) == 1 else 's are'} equal",),
    )


def shared_answers(prints: Sequence[Fingerprint]) -> Flags:
    """The same tokens for different prompts: that a model says so twice is possible; that it does with the same log
    probabilities is not, for they depend on the prompt."""
    by_name = {each.file: each for each in prints}
    copied: dict[tuple[str, str], set[bytes]] = defaultdict(set)
    unclear: dict[tuple[str, str], set[bytes]] = defaultdict(set)
    for tokens, group in groups((answer.tokens, (each, answer)) for each in prints for answer in each.each_answer()):
        if len({answer.prompt for _, answer in group}) == 1:
            continue
        for (a, answer), (b, other), near in pairs_to_compare(group):
            if a.student != b.student and answer.prompt != other.prompt:
                for pair in ((a.file, b.file), (b.file, a.file)):
                    (copied if near else unclear)[pair].add(tokens)
    others: dict[str, list[Fingerprint]] = defaultdict(list)
    counts: dict[str, int] = {}
    for pair in sorted(copied.keys() | unclear.keys()):
        count = len(copied.get(pair, ())) + len(unclear.get(pair, ()))
        if pair in copied or count > 1:  # one answer without log probabilities may be what the model says to many
            others[pair[0]].append(by_name[pair[1]])
            counts[pair[0]] = max(counts.get(pair[0], 0), count)
    for file, found in others.items():
        sentence = "answers are another student's to other prompts, token for token"
        evidence = (f"{counts[file]} answer{'' if counts[file] == 1 else 's'} of {TOKENS_TO_COMPARE} tokens or more",)
        yield file, Flag("shared-answer", sentence, evidence, listed(by_name[file], found))


Held = tuple[Fingerprint, Answer]


def pairs_to_compare(group: list[Held]) -> Iterator[tuple[Held, Held, bool]]:
    """(one, another, whether their log probabilities are the same) of those with equal tokens; never all of a crowd."""
    summed = sorted((held for held in group if not isnan(held[1].logprob_sum)), key=lambda held: held[1].logprob_sum)
    for place, held in enumerate(summed):
        for other in summed[place + 1 : place + 1 + MANY]:
            if other[1].logprob_sum - held[1].logprob_sum > NEAR * held[1].length:
                break
            yield held, other, True
    for held in [held for held in group if isnan(held[1].logprob_sum)][:MANY]:
        for other in group[:MANY]:
            yield held, other, False


def foreign_prompts(prints: Sequence[Fingerprint]) -> Flags:
    """Prompts drawn for somebody else, and for whom if that student's record is here."""
    if not any(each.foreign for each in prints):
        return
    owners: dict[bytes, list[Fingerprint]] = defaultdict(list)
    for each in prints:
        if not each.foreign:
            for prompt in hashes(each.prompts):
                owners[prompt].append(each)
    for each in prints:
        if not each.foreign:
            continue
        shown = tuple(each.foreign[:3])
        if each.default_key:
            sentence = "the prompts are this student's with the public default key, and not with the course's key"
            yield each.file, Flag("default-key", sentence, shown)
            continue
        common: dict[str, int] = defaultdict(int)
        foreign = {short(text) for text in each.foreign}
        for prompt in foreign:
            for owner in owners.get(prompt, ())[:1000]:
                if owner.student != each.student:
                    common[owner.file] += 1
        # One prompt in common is chance; most of them are not.
        whose = [file for file, count in common.items() if count > max(1, len(foreign) // 2)]
        sentence = f"prompts are not those of {each.student}: their words are drawn for somebody else"
        yield each.file, Flag("foreign-prompts", sentence, shown, tuple(sorted(whose)[:MOST_LISTED]))


def folders(prints: Sequence[Fingerprint]) -> Flags:
    """A record in a folder that is not its student's, where most lie in folders named for their students."""
    within = [(each, each.file.split("/")[:-1]) for each in prints if "/" in each.file]
    strangers = [(each, above) for each, above in within if each.student not in above]
    if len(strangers) * 2 > len(within):
        return  # the folders mean something else: weeks, groups, a learning management system's own names
    students = {each.student for each in prints}
    for each, above in strangers:
        whose = next((name for name in reversed(above) if name in students), above[-1])
        sentence = f"the record is {each.student}'s and lies in another's folder"
        yield each.file, Flag("folder", sentence, (f"student {each.student}", f"folder {plain_text(whose, 80)}"))


def shared(
    prints: Sequence[Fingerprint],
    values_of: Callable[[Fingerprint], Iterable[Any]],
    flag: Flag,
    evidence: Callable[[list[Any]], tuple[str, ...]],
) -> Flags:
    """``flag`` for each record that shares a value with another student's, with the values as evidence."""
    by_name = {each.file: each for each in prints}
    values: dict[str, list[Any]] = defaultdict(list)
    others: dict[str, dict[str, Fingerprint]] = defaultdict(dict)
    for value, group in groups((value, each) for each in prints for value in dict.fromkeys(values_of(each))):
        one_each = list({each.student: each for each in reversed(group)}.values())[-MOST_LISTED - 1 :]
        if len(one_each) < 2:
            continue
        for each in group:
            values[each.file].append(value)
            others[each.file].update((other.file, other) for other in one_each if other.student != each.student)
    for file, found in values.items():
        yield file, Flag(flag.kind, flag.sentence, evidence(found), listed(by_name[file], list(others[file].values())))


def groups(pairs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, list[Any]]]:
    """(value, what has it) for each value that more than one has, in the order of their first."""
    first: dict[Any, Any] = {}
    more: dict[Any, list[Any]] = {}
    for value, each in pairs:
        if value not in first:
            first[value] = each
        else:
            more.setdefault(value, [first[value]]).append(each)
    yield from more.items()


def listed(each: Fingerprint, others: Sequence[Fingerprint]) -> tuple[str, ...]:
    return tuple(sorted({other.file for other in others if other.file != each.file})[:MOST_LISTED])


def folder_of(file: str) -> str:
    return file.rpartition("/")[0]
