"""Flags of vLLM, torchrun, docker and this library: what each takes, and a command's words read by it.

Read as argparse reads them, for that is what vLLM and torchrun use: ``--flag=value``, unambiguous beginnings of a
flag, one-letter flags with the value attached, ``--no-flag``. vLLM's own parser adds underscores for dashes and
``--config.key value`` (``vllm/utils/argparse_utils.py``, FlexibleArgumentParser).
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from localai_clusters.command.tables import Flag, Table, data, vllm_table
from localai_clusters.command.values import NUMBER
from localai_clusters.command.words import Word


@dataclass(frozen=True, slots=True)
class Given:
    """A flag as it was given. ``name`` is the canonical one; ``typed`` is what stands in the text."""

    name: str
    typed: Word
    values: tuple[Word, ...] = ()
    flag: Flag | None = None  # None: the table does not have it
    negated: bool = False
    problem: str = ""  # a finding's code: this is not how the flag can be given
    detail: str = ""
    attached: bool = False  # --flag=value, one word

    @property
    def value(self) -> Word | None:
        return self.values[0] if self.values else None

    @property
    def start(self) -> int:
        return self.typed.start

    @property
    def end(self) -> int:
        return max([self.typed.end, *(value.end for value in self.values)])


@dataclass(frozen=True, slots=True)
class Parsed:
    given: tuple[Given, ...] = ()
    positionals: tuple[Word, ...] = ()
    rest: tuple[Word, ...] = ()  # what follows the first positional, where reading ends there, or what follows --

    def last(self, name: str) -> Given | None:
        """The one that counts: the last of those given."""
        return next((given for given in reversed(self.given) if given.name == name and not given.problem), None)

    def text(self, name: str) -> str | None:
        found = self.last(name)
        return found.value.text if found and found.value else None


def is_flag(word: Word) -> bool:
    """Whether argparse would take the word for a flag: a dash, and neither a number nor a phrase."""
    text = word.text
    return len(text) > 1 and text[0] == "-" and not NUMBER.fullmatch(text) and " " not in text.partition("=")[0]


def parse(words: Sequence[Word], table: Table, stop_at_positional: bool = False) -> Parsed:
    """``words`` as the flags of ``table``; with ``stop_at_positional``, the rest is another program's."""
    given: list[Given] = []
    positionals: list[Word] = []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word.text == "--":
            rest = tuple(words[at:])
            return Parsed(tuple(given), tuple(positionals), rest)
        if not is_flag(word):
            if word.text.startswith("-") and " " in word.text:  # "--port 8000" in one pair of quotes
                name = word.text.split(" ")[0]
                given.append(Given(_canonical(name, table), word, problem="quoted-together", detail=word.text))
                continue
            positionals.append(word)
            if stop_at_positional:
                return Parsed(tuple(given), tuple(positionals), tuple(words[at:]))
            continue
        found, at = _one(words, at, word, table)
        given += found
    return Parsed(tuple(given), tuple(positionals))


def _one(words: Sequence[Word], at: int, word: Word, table: Table) -> tuple[list[Given], int]:
    """The flag ``word`` and the values that follow it from ``at`` on."""
    equals = word.text.find("=")
    name = word.text if equals < 0 else word.text[:equals]
    typed = word if equals < 0 else word.piece(0, equals)
    attached = None if equals < 0 else word.piece(equals + 1)
    dashed = _canonical(name, table)
    root = dashed.split(".")[0] if table.dotted else dashed
    if (table.dotted and root == "-O" and len(dashed) == 2) or (table.dotted and re.fullmatch(r"-O\d", name)):
        return _optimization(words, at, word, table)
    if len(name) > 2 and name[0] == "-" != name[1] and set(name[1:]) <= table.short:  # -it
        return [
            Given(table.by_name[f"-{letter}"].name, word, flag=table.by_name[f"-{letter}"]) for letter in name[1:]
        ], at
    flag, could_be = table.find(root)
    if flag is not None and root != dashed and (flag.kind not in ("json", "text") or flag.choices):
        flag, root = None, dashed  # only what takes JSON has keys
    if flag is None and len(name) > 2 and name[0] == "-" != name[1]:
        short = table.by_name.get(name[:2])
        if table.by_name.get(f"-{dashed}") and f"-{dashed}" not in ("--",):
            return _unknown(words, at, word, attached, Given(f"-{dashed}", typed, problem="single-dash"), table)
        if short and short.takes == "1" and equals < 0 and short.kind in ("integer", "text"):  # -n2, -e A=b
            return [Given(short.name, word.piece(0, 2), (word.piece(2),), short)], at
        if short and short.takes == "1" and equals >= 0 and table.unknown_takes:  # docker's -eA=b
            return [Given(short.name, word.piece(0, 2), (word.piece(2),), short)], at
    if flag is None:
        detail = ", ".join(could_be)
        problem = "ambiguous-flag" if could_be else "unknown-flag"
        return _unknown(words, at, word, attached, Given(root, typed, problem=problem, detail=detail), table)
    canonical = flag.name + (dashed[len(root) :] if table.dotted and "." in dashed else "")
    negated = root.startswith("--no-") and root not in (flag.name,) and f"--{root[5:]}" in flag.names
    takes = "1" if "." in canonical else flag.takes
    if attached is not None:
        if takes == "0" and not table.unknown_takes:
            return [Given(canonical, typed, (attached,), flag, negated, "takes-no-value", attached=True)], at
        return [Given(canonical, typed, (attached,) if takes != "0" else (), flag, negated, attached=True)], at
    values: list[Word] = []
    while at < len(words) and takes != "0" and (takes == "+" or not values) and not is_flag(words[at]):
        if words[at].text == "--":
            break
        values.append(words[at])
        at += 1
    if (
        takes == "1" and not values and table.unknown_takes and at < len(words)
    ):  # docker takes what follows, flag or not
        return [Given(canonical, typed, (words[at],), flag)], at + 1
    if takes in ("1", "+") and not values:
        return [Given(canonical, typed, (), flag, negated, "missing-value")], at
    return [Given(canonical, typed, tuple(values), flag, negated)], at


def _canonical(name: str, table: Table) -> str:
    if not table.underscores or not name.startswith("--"):
        return name
    head, dot, tail = name.partition(".")
    return head.replace("_", "-") + dot + tail


def _optimization(words: Sequence[Word], at: int, word: Word, table: Table) -> tuple[list[Given], int]:
    """``-O3``, ``-O=3`` and ``-O 3``, which vLLM turns into --optimization-level."""
    flag = table.by_name["--optimization-level"]
    level = word.text[2:].removeprefix("=")
    if level:
        return [Given(flag.name, word.piece(0, 2), (word.piece(len(word.text) - len(level)),), flag)], at
    if at < len(words) and words[at].text in ("0", "1", "2", "3"):
        return [Given(flag.name, word, (words[at],), flag)], at + 1
    return [Given(flag.name, word, (), flag, problem="missing-value")], at


def _unknown(
    words: Sequence[Word], at: int, word: Word, attached: Word | None, given: Given, table: Table
) -> tuple[list[Given], int]:
    """A flag that the table lacks, with what looks like its value: the next word that is no flag."""
    if attached is not None:
        values: tuple[Word, ...] = (attached,)
    elif at < len(words) and not is_flag(words[at]) and (table.unknown_takes or _is_value_of(given, words, at, table)):
        values, at = (words[at],), at + 1
    else:
        values = ()
    flag = table.by_name.get(given.name) if given.problem == "single-dash" else None
    problem = "" if table.unknown_takes and given.problem == "unknown-flag" else given.problem
    return [Given(given.name, given.typed, values, flag, False, problem, given.detail, attached is not None)], at


def _is_value_of(given: Given, words: Sequence[Word], at: int, table: Table) -> bool:
    """Whether the word after an unknown flag is its value: not if the flag is a switch under its right name."""
    target = table.by_name.get(given.name) or table.by_name.get(data("old.toml")["foreign"].get(given.name, ""))
    if target is None and (near := table.nearest(given.name)):
        target = table.by_name[near]
    return target is None or target.takes != "0"


def meant(given: Sequence[Given]) -> Iterator[Given]:
    """``given`` as it was meant: flags that have another name here, or are misspelt, under the name they have."""
    foreign = data("old.toml")["foreign"]
    for one in given:
        target = _target(one, foreign)
        if target is None:
            yield one
        elif target.name == "--master-addr" and one.value is not None and one.value.text.rpartition(":")[2].isdigit():
            address, _, port = one.value.text.rpartition(":")
            yield Given(target.name, one.typed, (replace(one.value, text=address),), target)
            meeting = vllm_table().by_name["--master-port"]
            yield Given(meeting.name, one.typed, (replace(one.value, text=port),), meeting)
        else:
            yield Given(target.name, one.typed, one.values, target, attached=one.attached)


def _target(given: Given, foreign: Mapping[str, str]) -> Flag | None:
    table = vllm_table()
    if given.problem == "single-dash":
        target = given.flag
    elif given.problem in ("unknown-flag", "ambiguous-flag") and given.name not in data("old.toml")["flags"]:
        near = foreign.get(given.name) or table.nearest(given.name)
        alike = near and (near in foreign.values() or difflib.SequenceMatcher(None, given.name, near).ratio() > 0.88)
        target = table.by_name[near] if alike and given.name not in data("old.toml")["packages"] else None
    else:
        return None
    return target if target is not None and (target.takes == "0") == (not given.values) else None
