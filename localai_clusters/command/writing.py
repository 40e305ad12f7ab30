"""Words as text for a shell: quoted, one flag to a line, and with what only the user's shell knows left open."""

import re
import shlex
from collections.abc import Collection, Sequence

from localai_clusters.command.words import PLACEHOLDER

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
BRACES = re.compile(r"(?:\[([A-Za-z][\w -]*)\]|\{\{?\s*([A-Za-z][\w .-]*?)\s*\}?\})")


def fill(text: str) -> str:
    """Placeholders as names that a shell leaves alone: ``<head-node-ip>`` becomes HEAD_NODE_IP."""
    if braces := BRACES.fullmatch(text):
        return _name(braces[1] or braces[2])
    return PLACEHOLDER.sub(lambda found: _name(found[0][1:-1]), text)


def _name(words: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", words).strip("_").upper() or "VALUE"


def in_shell(word: str, unknown: Collection[str] = ()) -> str:
    """``word`` for a shell; parts that are in ``unknown`` ($NAME, $(command)) are left for it to expand."""
    if CONTROL.search(word):
        inner = word.replace("\\", "\\\\").replace("'", "\\'")
        escaped = re.sub(
            r"[\x00-\x1f\x7f-\x9f]",
            lambda c: f"\\x{ord(c[0]):02x}" if ord(c[0]) < 128 else f"\\u{ord(c[0]):04x}",
            inner,
        )
        return f"$'{escaped}'"
    parts = sorted((part for part in unknown if part and part in word), key=len, reverse=True)
    if parts:
        pieces = re.split("(" + "|".join(map(re.escape, parts)) + ")", word)
        quoted = [piece if piece in parts else re.sub(r'([\\"$`])', r"\\\1", piece) for piece in pieces]
        return '"' + "".join(quoted) + '"'
    if word.startswith("~/"):
        return "~/" + (shlex.quote(word[2:]) if word[2:] else "")
    if word in ("...", "…"):  # unquoted it would be read as something left out
        return f"'{word}'"
    return shlex.quote(word)


def paste(argv: Sequence[str], unknown: Collection[str] = ()) -> str:
    """``argv`` as text to paste, the program and each flag with its values on a line of its own."""
    lines: list[str] = []
    for word in argv:
        text = in_shell(word, unknown)
        if lines and not (word.startswith("-") and len(word) > 1):
            lines[-1] += " " + text
        else:
            lines.append(text)
    return " \\\n    ".join(lines)
