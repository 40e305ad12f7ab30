"""A message as its author wrote it, with holes for what varies: ``must be divisible by {tp:int}``.

A template cannot be slow, whoever writes it: text stands for itself, a hole takes a bounded run of one kind, and an
open hole ends where the text after it first stands. Nothing is tried twice.

    {name}       anything, up to 300 characters                            {name:int}   a whole number
    {name:word}  no spaces                                                 {name:num}   a number, with a fraction maybe
    {...}        anything, not kept                                        {a|b|c}      one of these texts, not kept
    {name:a|b}   one of these texts, kept                                  {{ and }}    the braces themselves
    ^ first, $ last: the line begins, ends there

Letters match in both cases, a first word from its first letter on, a run of spaces any run of spaces.
"""

import re
from dataclasses import dataclass
from functools import cache

KINDS = {"int": r"\d[\d,]{0,20}", "num": r"\d[\d,]{0,20}(?:\.\d{1,12})?", "word": r"[^\s'\"`,;)]{1,200}"}
LONGEST_GAP = 300  # characters that an open hole takes
MOST_STARTS = 8  # places at which a template's first words are tried
SHORTEST_LITERAL = 6  # bytes
HOLE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
BREAKS = re.compile(r"[\d\"'\\]+|  +")  # not in a screened line, or written otherwise inside JSON


@dataclass(frozen=True, slots=True)
class Template:
    """``text`` as it is in the data; ``literal`` is in every line that matches, in lower case and without digits.

    ``pieces``: (name of the open hole before it, regular expression); a name is None before the first piece, and empty
    where nothing is kept. ``tail`` is the name of an open hole at the end.
    """

    text: str
    pieces: tuple[tuple[str | None, str], ...]
    tail: str | None
    literal: bytes
    names: frozenset[str]

    def search(self, line: str) -> dict[str, str] | None:
        """What the holes hold in ``line``; None if it is not there."""
        start = 0
        for _ in range(MOST_STARTS):
            first = compiled(self.pieces[0][1]).search(line, start)
            if first is None:
                return None
            found = self._from(line, first)
            if found is not None:
                return found
            start = first.start() + 1
        return None

    def _from(self, line: str, first: re.Match[str]) -> dict[str, str] | None:
        found = {name: value for name, value in first.groupdict().items() if value}
        if name := self.pieces[0][0]:
            found[name] = line[max(0, first.start() - LONGEST_GAP) : first.start()].strip()
        end = first.end()
        for name, regex in self.pieces[1:]:
            piece = compiled(regex).search(line, min(end + bool(name), len(line)))
            if piece is None or piece.start() - end > LONGEST_GAP:
                return None
            if name:
                found[name] = line[end : piece.start()]
            found |= {name: value for name, value in piece.groupdict().items() if value}
            end = piece.end()
        if self.tail:
            found[self.tail] = line[end : end + LONGEST_GAP].strip()
            if not found[self.tail]:
                return None
        return found


@cache
def compiled(regex: str) -> re.Pattern[str]:
    """When it is first needed: a log meets few of the hundreds of templates."""
    return re.compile(regex, re.IGNORECASE)


@cache
def template(text: str) -> Template:
    """``ValueError`` if a hole is of no known kind, or if nothing fixed is left to look for."""
    begins, ends = text.startswith("^"), text.endswith("$")
    body = text[begins : len(text) - ends]
    start = r"^\s*" if begins else r"(?<!\w)" if body[:1].isalnum() else ""  # "HIP error" is not in "ship error"
    pieces: list[tuple[str | None, list[str]]] = [(None, [start])]
    fixed, names, at = [""], [], 0
    for hole in HOLE.finditer(body):
        text_before = body[at : hole.start()]
        at = hole.end()
        fixed[-1] += text_before
        pieces[-1][1].append(quoted(text_before))
        if hole[0] in ("{{", "}}"):
            fixed[-1] += hole[0][0]
            pieces[-1][1].append(re.escape(hole[0][0]))
            continue
        fixed.append("")
        regex = regex_of(hole[1], text, names)
        if regex is None:
            pieces.append((hole[1].strip("."), []))
        else:
            pieces[-1][1].append(regex)
    fixed[-1] += body[at:]
    pieces[-1][1].append(quoted(body[at:]) + (r"\s*$" if ends else ""))
    literal = max((piece for run in fixed for piece in BREAKS.split(run.lower())), key=len)
    if len(literal.encode()) < SHORTEST_LITERAL:
        raise ValueError(f"nothing of {SHORTEST_LITERAL} letters to look for in {text!r}")
    made = [(name, "".join(parts)) for name, parts in pieces]
    tail = made.pop()[0] if made[-1][1] == "" else None
    if made[0][1] == "":  # the template begins with an open hole
        made = [(made[1][0], made[1][1]), *made[2:]]
    if any(regex == "" for _, regex in made):
        raise ValueError(f"two open holes stand side by side in {text!r}")
    return Template(text, tuple(made), tail, literal.encode(), frozenset(names))


def quoted(text: str) -> str:
    return re.sub(r"(?:\\ )+", r"\\s+", re.escape(text))


def regex_of(hole: str, text: str, names: list[str]) -> str | None:
    """A hole's regular expression; None for an open one. Its name is added to ``names``."""
    if hole == "...":
        return None
    name, _, kind = hole.partition(":")
    if "|" in hole:
        alternatives = "|".join(re.escape(choice) for choice in (kind or hole).split("|"))
        if not kind:
            return f"(?:{alternatives})"
        names.append(name)
        return f"(?P<{name}>{alternatives})"
    if kind not in ("", *KINDS) or not name.isidentifier():
        raise ValueError(f"{{{hole}}} in {text!r} is no hole: name, name:{', name:'.join(KINDS)}, a|b or ...")
    names.append(name)
    return f"(?P<{name}>{KINDS[kind]})" if kind else None
