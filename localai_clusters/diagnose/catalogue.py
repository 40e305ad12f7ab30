"""The signatures: what a failure looks like in a log, why it happens, what to type. Data in ``signatures/*.toml``.

A file has causes, ``[cause.NAME]`` with a title, why and what to type, and signatures of them, ``[[signature]]``, that
may say any of these better: with the numbers of their own lines.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

from localai_clusters.diagnose.template import Template, template

# What a line is. A cause explains; a symptom does where nothing better is found; an echo follows from something else;
# a stage is a step of a start that went well; noise reads like an error and is none.
CAUSE, SYMPTOM, ECHO, STAGE, NOISE = "cause", "symptom", "echo", "stage", "noise"
WEIGHTS = {CAUSE: 50, SYMPTOM: 30, ECHO: 0, STAGE: 0, NOISE: 0}


@dataclass(frozen=True, slots=True)
class Signature:
    """One way in which one cause shows itself. ``lines``: any of them; the other conditions must hold as well."""

    id: str
    cause: str
    kind: str
    title: str
    lines: tuple[Template, ...]
    why: tuple[str, ...] = ()  # sentences; one with a number that the log does not give is left out
    fix: tuple[str, ...] = ()  # what to type, likewise
    cause_why: tuple[str, ...] = ()  # the cause's own words, where the log gives none of the numbers
    cause_fix: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()  # "fits = divisor(heads, tp)": from diagnose/numbers.py
    weight: int = 50
    level: str = "error"  # or "any": the line counts although it was logged as a warning or less
    frames: tuple[str, ...] = ()  # any of these functions is in the traceback that the line ends
    without_frames: tuple[str, ...] = ()
    having: tuple[Template, ...] = ()  # any of these is somewhere in the log
    without: tuple[Template, ...] = ()  # none of these is
    applies: str = "any"  # cuda, rocm, cpu, or any
    source: tuple[str, ...] = ()
    example: tuple[str, ...] = ()
    order: int = 0  # of a stage

    @property
    def templates(self) -> Iterator[Template]:
        yield from self.lines
        yield from self.having
        yield from self.without


@cache
def signatures() -> tuple[Signature, ...]:
    """All of them, in the order of the files. ``ValueError`` names one that is not well formed."""
    entries: list[tuple[str, dict]] = []
    causes: dict[str, dict] = {}
    folder = resources.files(__package__) / "signatures"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".toml"):
            data = tomllib.loads(file.read_text(encoding="utf-8"))
            causes |= data.get("cause", {})
            entries += [(file.name, entry) for entry in data.get("signature", [])]
    found = [
        signature({**words(causes.get(entry.get("cause", ""), {})), **entry}, f"{name}: ") for name, entry in entries
    ]
    ids = [known.id for known in found]
    if twice := {id for id in ids if ids.count(id) > 1}:
        raise ValueError(f"two signatures are named {', '.join(sorted(twice))}")
    return tuple(found)


def words(cause: dict) -> dict:
    return {"title": cause.get("title", ""), "cause_why": cause.get("why", ()), "cause_fix": cause.get("fix", ())}


TEMPLATES = ("lines", "having", "without")
TEXTS = ("why", "fix", "cause_why", "cause_fix", "numbers", "frames", "without_frames", "source", "example")


def signature(entry: dict, where: str = "") -> Signature:
    """One entry of the data. ``ValueError`` says what is wrong with it."""
    known = set(Signature.__dataclass_fields__)
    name = entry.get("id", "a signature without an id")
    if unknown := set(entry) - known:
        raise ValueError(f"{where}{name}: unknown keys {', '.join(sorted(unknown))}")
    entry = {"kind": CAUSE, "title": "", "cause": "", **entry}
    if entry["kind"] not in WEIGHTS:
        raise ValueError(f"{where}{name}: kind is {entry['kind']}; one of {', '.join(WEIGHTS)}")
    entry.setdefault("weight", WEIGHTS[entry["kind"]])
    for key in (*TEMPLATES, *TEXTS):
        value = entry.get(key, ())
        entry[key] = (value,) if isinstance(value, str) else tuple(value)
    try:
        for key in TEMPLATES:
            entry[key] = tuple(template(text) for text in entry[key])
        return Signature(**entry)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}{name}: {error}") from error
