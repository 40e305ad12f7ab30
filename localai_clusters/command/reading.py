"""Shell text, as people paste it, into commands. Nothing is ever run, and every word keeps its place in the text.

A subset of the shell's grammar, with what a paste has that a shell would not take: prompts, Markdown fences,
typographic quotes and dashes, line breaks without a backslash. Each of those is read as it was meant, and noted.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from localai_clusters.command.words import ASSIGNMENT, NO_WIDTH, ODD_SPACES, PLACEHOLDER, SPACES, Oddity, Scanner, Word

MAX_CHARACTERS = 1_000_000
MAX_COMMANDS = 500  # nobody pastes more to start a server; reading stops there
MAX_WORDS = 2000  # in one command, likewise
OPERATORS = ("&&", "||", ";;", "|&", ";", "|", "&", "(", ")")
REDIRECTION = re.compile(r"(?:&>>?|\d?(?:>>|>\||<<<|<<|<>|>|<))(?:&\d?-?)?")
FLAG_AHEAD = re.compile(r"[ \t]*[-‐‑‒–—−]{1,2}[A-Za-z]")
BLANK_LINE = re.compile(r"[ \t\r]*\n")
CONTINUED = re.compile(rf"\\(?P<blank>[{SPACES}]*)(?P<comment>#[^\n]*)?(?P<end>\r?\n|\Z)")
# What stands before a command on its line. A continued line has a shell's second prompt instead.
PROMPT = re.compile(
    r"[ \t]*(?:"
    r"(?:\([\w.@ -]{1,40}\)[ \t]*)*(?:[\w.-]{1,64}@[\w.-]{1,64}[:\s][^\s$#%]{0,120}[ \t]?[$#%]|\[[^\]\n]{1,80}\][$#%])"
    r"|(?:\([\w.@ -]{1,40}\)[ \t]*)+[$%#]|[$%❯➜](?=\s)|>>>|In \[\d*\]:|C:\\[^>\n]{0,80}>|PS [^>\n]{0,80}>"
    r")[ \t]+|[ \t]*!(?=[A-Za-z])"
)
SECOND_PROMPT = re.compile(r"[ \t]*(?:>[ \t]+|\$[ \t]+(?=\S))")
PROGRAMS = "vllm|torchrun|python3?|docker|podman|sudo|export|localai-clusters|ray"
ROOT_PROMPT = re.compile(rf"[ \t]*#[ \t]*(?=(?:{PROGRAMS})\b)")
NOT_A_COMMAND = re.compile(r"[ \t]*(?:`{3,}|~{3,}|%%(?:bash|sh|shell|cmd)\b|%cd\b|#!)")


@dataclass(frozen=True, slots=True)
class Command:
    """One simple command: its words, the assignments before it, and what ends it (a newline, ``&&``, ``|``...)."""

    words: tuple[Word, ...]
    assignments: tuple[tuple[str, Word], ...]
    end: str = "\n"


@dataclass(frozen=True, slots=True)
class Reading:
    commands: tuple[Command, ...]
    oddities: tuple[Oddity, ...]
    used: frozenset[str] = frozenset()  # variables that the text itself looks up: $NAME

    @property
    def is_too_long(self) -> bool:
        """Whether reading stopped before the end of the text."""
        return len(self.commands) > MAX_COMMANDS or any(len(command.words) > MAX_WORDS for command in self.commands)


def read(text: str, offset: int = 0) -> Reading:
    """All commands of ``text``; places count from ``offset``. Linear in its length."""
    found = _Reader(text, offset).all()
    if not found.commands and "#" in text:  # a root prompt, unless there is anything else to read
        found = _Reader(text, offset, root_prompt=True).all()
    return found


def set_by(command: Command) -> Iterator[tuple[str, Word]]:
    """The variables that a command sets for those after it: ``A=b`` alone, ``export A=b``, ``%env A=b``."""
    if not command.words:
        yield from command.assignments
    elif command.words[0].text in ("export", "declare", "set", "setenv", "%env", "local", "readonly", "typeset"):
        words = command.words[1:]
        for word in words:
            if assignment := ASSIGNMENT.match(word.text):
                yield assignment[0][:-1], word.piece(len(assignment[0]))
        if command.words[0].text in ("setenv", "%env") and len(words) == 2:
            yield words[0].text, words[1]


@dataclass(slots=True)
class _Reader(Scanner):
    root_prompt: bool = False
    commands: list[Command] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    assignments: list[tuple[str, Word]] = field(default_factory=list)
    heredocs: list[str] = field(default_factory=list)

    def all(self) -> Reading:
        self.line_begins()
        while self.at < len(self.text) and len(self.commands) <= MAX_COMMANDS and len(self.words) <= MAX_WORDS:
            self.step()
        self.finish("")
        return Reading(tuple(self.commands), tuple(self.oddities), frozenset(self.used))

    def step(self) -> None:
        text, at = self.text, self.at
        character = text[at]
        if character in SPACES or character in NO_WIDTH or character == "\r":
            if character in ODD_SPACES or character in NO_WIDTH:
                self.note("odd-space", at, at + 1)
            self.at += 1
        elif character == "\n":
            self.newline()
        elif character == "#":
            self.at = self.line_end()
        elif character == "\\" and self.continues():
            return
        elif character in "`^" and text[at + 1 : at + 2] in ("\n", "\r"):
            self.note("other-shell", at, at + 1)
            self.continued(self.line_end())
        elif (redirection := REDIRECTION.match(text, at)) and not PLACEHOLDER.match(text, at):
            self.redirect(redirection)
        elif operator := next((sign for sign in OPERATORS if text.startswith(sign, at)), ""):
            self.at += len(operator)
            self.finish(operator)
        else:
            self.add(self.word())

    # Lines

    def line_end(self) -> int:
        end = self.text.find("\n", self.at)
        return len(self.text) if end < 0 else end

    def line_begins(self) -> None:
        while NOT_A_COMMAND.match(self.text, self.at):
            self.at = min(self.line_end() + 1, len(self.text))
        prompt = PROMPT.match(self.text, self.at)
        if not prompt and self.root_prompt:
            prompt = ROOT_PROMPT.match(self.text, self.at)
        if prompt:
            self.at = prompt.end()

    def newline(self) -> None:
        """The end of a line that does not end in a backslash: the end of the command, unless a flag comes next."""
        if self.heredocs:
            self.skip_heredocs()
            return
        here, self.at = self.at, self.at + 1
        ahead = self.at
        while self.words and (blank := BLANK_LINE.match(self.text, ahead)):
            ahead = blank.end()
        if self.words and FLAG_AHEAD.match(self.text, ahead):
            self.note("missing-backslash", max(here - 1, 0), here)
            self.at = ahead
            return
        self.finish("\n")
        self.line_begins()

    def continues(self) -> bool:
        """A backslash that was meant to continue the line: before a newline, blanks, or blanks and a comment."""
        rest = CONTINUED.match(self.text, self.at)
        if not rest or (rest["comment"] and not rest["blank"]):
            return False
        if rest["comment"]:
            self.note("comment-after-backslash", rest.start("comment"), rest.end("comment"))
        elif rest["blank"] and rest["end"]:
            self.note("space-after-backslash", self.at, rest.end("blank"))
        self.continued(rest.start("end"))
        return True

    def continued(self, newline: int) -> None:
        """Go on after the line break at ``newline`` with the same command."""
        self.at = newline + (2 if self.text.startswith("\r\n", newline) else 1)
        if prompt := SECOND_PROMPT.match(self.text, self.at):
            self.at = prompt.end()

    def skip_heredocs(self) -> None:
        """Over the lines of ``<<END`` to the one that ends them; to the end of the text if none does."""
        for tag in self.heredocs:
            end = re.compile(rf"\n[ \t]*{re.escape(tag)}[ \t]*\r?(?=\n|\Z)").search(self.text, self.at)
            self.at = end.end() if end else len(self.text)
        self.heredocs = []
        self.finish("\n")
        self.at = min(self.at + 1, len(self.text))
        self.line_begins()

    def redirect(self, redirection: re.Match[str]) -> None:
        self.at = redirection.end()
        if re.search(r"&\d?-?$", redirection[0]) and not redirection[0].startswith("&"):
            return
        while self.text[self.at : self.at + 1] in (" ", "\t"):
            self.at += 1
        if self.at < len(self.text) and self.text[self.at] not in "\n\r;|&\\":
            target = self.word()
            if redirection[0].endswith("<<") and target.text.removeprefix("-"):
                self.heredocs.append(target.text.removeprefix("-"))

    # Commands

    def add(self, word: Word) -> None:
        if word.text in ("...", "…") and word.plain:
            self.oddities.append(Oddity("ellipsis", word.start, word.end))
            return
        assignment = ASSIGNMENT.match(word.text)
        if assignment and not self.words:
            self.assignments.append((assignment[0][:-1], word.piece(len(assignment[0]))))
        else:
            self.words.append(word)

    def finish(self, end: str) -> None:
        if self.words or self.assignments:
            self.commands.append(Command(tuple(self.words), tuple(self.assignments), end))
            self.variables |= dict(set_by(self.commands[-1]))
        self.words, self.assignments = [], []
