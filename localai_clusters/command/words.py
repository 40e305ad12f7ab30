"""One word of shell text: quotes, escapes, variables and placeholders taken apart, its place kept. Nothing is run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

QUOTES = {"“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "‚": "'"}
DASHES = "‐‑‒–—−"
ODD_SPACES = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
SPACES = " \t" + ODD_SPACES
NO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff"
BLANKS = frozenset(SPACES + NO_WIDTH + "\r\n")
PLACEHOLDER = re.compile(r"<[A-Za-z](?:[\w .:/,'*-]{0,60}[\w.*'])?>")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
LINE_BREAK = re.compile(rf"\\[{SPACES}]*\r?(?:\n|\Z)")
ANSI_C = re.compile(r"'((?:[^'\\]|\\.)*)'", re.DOTALL)
BRACED = re.compile(r"\$\{([A-Za-z_]\w*)(?::?([-=+?])([^{}\n]{0,200}))?[^{}\n]{0,80}\}")
LONG_DASH = re.compile(rf"[{DASHES}][{DASHES}-]?[A-Za-z]")
NAMED = re.compile(r"\$([A-Za-z_]\w*|[0-9@*#?$!])")
ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{1,2}|u[0-9A-Fa-f]{1,4}|U[0-9A-Fa-f]{1,8}|[0-7]{1,3}|.)", re.DOTALL)
ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "e": "\x1b", "E": "\x1b", "f": "\f", "v": "\v"}
FAR = 2000  # characters; no quotation by hand and no $(command) in a serve command is as long


@dataclass(frozen=True, slots=True)
class Word:
    """``text`` as a shell would pass it on; ``start`` and ``end`` are its place in what was pasted."""

    text: str
    start: int
    end: int
    plain: bool = True  # text is exactly what stands at start..end
    quoted: bool = False
    unknown: tuple[str, ...] = ()  # the parts of text that only a shell on the user's machine knows: $NAME, $(command)

    def piece(self, start: int, end: int | None = None) -> "Word":
        """Characters ``start`` to ``end`` of the word; the whole place if quotes stand in between."""
        text = self.text[start:end]
        unknown = tuple(part for part in self.unknown if part in text)
        if not self.plain:
            return Word(text, self.start, self.end, False, self.quoted, unknown)
        return Word(text, self.start + start, self.start + start + len(text), True, self.quoted, unknown)


@dataclass(frozen=True, slots=True)
class Oddity:
    """Something in the text that a shell would take otherwise than it was meant; ``name`` is a finding's code."""

    name: str
    start: int
    end: int


@dataclass(slots=True)
class Scanner:
    """Reads words from ``text`` at ``at``, in time that grows with its length and no faster."""

    text: str
    offset: int = 0  # of the text in a larger one, which is what places count in
    at: int = 0
    oddities: list[Oddity] = field(default_factory=list)
    variables: dict[str, Word] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)  # variables that were looked up
    unclosed: set[str] = field(default_factory=set)  # what has no end in the rest, so that it is looked for once

    def note(self, name: str, start: int, end: int) -> None:
        self.oddities.append(Oddity(name, start + self.offset, end + self.offset))

    def word(self) -> Word:
        """The word that begins here. Always moves on."""
        text, start = self.text, self.at
        parts: list[str] = []
        unknown: list[str] = []
        quoted = False
        while self.at < len(text):
            at, character = self.at, text[self.at]
            if character in BLANKS:
                break
            if character == "\\":
                if at > start and LINE_BREAK.match(text, at):
                    break
                parts.append(text[at + 1 : at + 2])
                self.at += 2
                quoted = True
            elif character == "<" and (placeholder := PLACEHOLDER.match(text, at)):
                parts.append(placeholder[0])
                self.at = placeholder.end()
            elif character in ";|&()<>" and at > start:
                break
            elif character in "'\"" or character in QUOTES or text.startswith(("$'", '$"'), at):
                quoted = True
                self.quotation(parts, unknown)
            elif character in "$`":
                self.expand(parts, unknown)
            elif character in DASHES and not parts and LONG_DASH.match(text, at):
                self.long_dash(parts)
            else:
                parts.append(character)
                self.at += 1
        if self.at == start:  # a lone sign that begins nothing
            self.at += 1
            parts.append(text[start])
        meant, end = "".join(parts), min(self.at, len(text))
        plain = meant == text[start:end] and not unknown
        return Word(meant, start + self.offset, end + self.offset, plain, quoted, tuple(dict.fromkeys(unknown)))

    def long_dash(self, parts: list[str]) -> None:
        self.note("long-dash", self.at, self.at + 1)
        self.at += 1
        if self.text[self.at : self.at + 1] in tuple(DASHES + "-"):
            self.at += 1
        parts.append("--")

    def quotation(self, parts: list[str], unknown: list[str]) -> None:
        """A quotation, its opening sign next. One that never ends is an ordinary sign."""
        text, start = self.text, self.at
        opening = text[start]
        if opening in QUOTES:
            self.typographic(parts)
            return
        if opening == "$":
            self.at += 1
            opening = text[start + 1]
            closed = self.ansi_c(parts) if opening == "'" else self.double(parts, unknown)
        else:
            closed = self.single(parts) if opening == "'" else self.double(parts, unknown)
        if not closed:
            self.note("unclosed-quote", start, start + 1)
            self.at = start + (2 if text[start] == "$" else 1)

    def typographic(self, parts: list[str]) -> None:
        start, kind = self.at, QUOTES[self.text[self.at]]
        self.note("typographic-quotes", start, start + 1)
        closing = {kind, *(sign for sign in QUOTES if QUOTES[sign] == kind)}
        ends = (at for at in range(start + 1, min(len(self.text), start + FAR)) if self.text[at] in closing)
        end = next(ends, None) if kind + "far" not in self.unclosed else None
        if end is None:
            self.unclosed.add(kind + "far")  # the next are most likely apostrophes
            self.at = start + 1
            return
        parts.append(self.text[start + 1 : end])
        self.at = end + 1

    def single(self, parts: list[str]) -> bool:
        end = self.text.find("'", self.at + 1) if "'" not in self.unclosed else -1
        if end < 0:
            self.unclosed.add("'")
            return False
        parts.append(self.text[self.at + 1 : end])
        self.at = end + 1
        return True

    def double(self, parts: list[str], unknown: list[str]) -> bool:
        if '"' in self.unclosed:
            return False
        inside: list[str] = []
        inside_unknown: list[str] = []
        self.at += 1
        while self.at < len(self.text) and self.text[self.at] != '"':
            if self.text[self.at] == "\\" and self.text[self.at + 1 : self.at + 2] in ("$", "`", '"', "\\", "\n"):
                inside.append(self.text[self.at + 1].replace("\n", ""))
                self.at += 2
            elif self.text[self.at] in "$`":
                self.expand(inside, inside_unknown)
            else:
                inside.append(self.text[self.at])
                self.at += 1
        if self.at >= len(self.text):
            self.unclosed.add('"')
            return False
        self.at += 1
        parts += inside
        unknown += inside_unknown
        return True

    def ansi_c(self, parts: list[str]) -> bool:
        r"""``$'...'``, whose escapes stand for characters: $'a\nb'."""
        found = ANSI_C.match(self.text, self.at) if "$'" not in self.unclosed else None
        if found is None:
            self.unclosed.add("$'")
            return False
        parts.append(ESCAPE.sub(_unescaped, found[1]))
        self.at = found.end()
        return True

    def expand(self, parts: list[str], unknown: list[str]) -> None:
        """``$NAME``, ``${NAME:-value}``, ``$(command)`` or a backtick command: its value, or its text as unknown."""
        text, at = self.text, self.at
        if text[at] == "`" or text.startswith("$(", at):
            if end := self.command_end(at):
                self.at = end
                parts.append(text[at:end])
                unknown.append(text[at:end])
                return
        elif found := BRACED.match(text, at):
            self.at = found.end()
            self.value_of(found[1], found[0], found[3] if found[2] in ("-", "=") else None, parts, unknown)
            return
        elif found := NAMED.match(text, at):
            self.at = found.end()
            self.value_of(found[1], found[0], None, parts, unknown)
            return
        parts.append(text[at])
        self.at += 1

    def value_of(self, name: str, written: str, default: str | None, parts: list[str], unknown: list[str]) -> None:
        known: Mapping[str, Word] = self.variables
        self.used.add(name)
        if name in known and len(known[name].text) < FAR:
            parts.append(known[name].text)
            unknown += known[name].unknown
        elif default is not None:
            parts.append(default)
        else:
            parts.append(written)
            unknown.append(written)

    def command_end(self, at: int) -> int | None:
        """Where ``$(...)`` or a backtick command ends; on its own line or not at all."""
        opening = self.text[at] if self.text[at] == "`" else "$("
        if opening in self.unclosed:
            return None
        limit = min(len(self.text), at + FAR)
        line = self.text.find("\n", at, limit)
        limit = limit if line < 0 else line
        if opening == "`":
            end = self.text.find("`", at + 1, limit)
            return end + 1 if end > 0 else None
        depth = 0
        for place in range(at + 1, limit):
            depth += (self.text[place] == "(") - (self.text[place] == ")")
            if depth == 0:
                return place + 1
        self.unclosed.add(opening)  # once is enough: a paste that is full of them is none that anybody means
        return None


def _unescaped(escape: re.Match[str]) -> str:
    code = escape[1]
    if code[0] in "xuU" and len(code) > 1:
        number = int(code[1:], 16)
        return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else "\ufffd"
    if code[0] in "01234567":
        return chr(int(code, 8) & 0xFF)
    return ESCAPED.get(code, code)
