"""Secrets in a command, and a text in which they cannot be read."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from localai_clusters.command.launch import Launch
from localai_clusters.command.words import Word

SECRET_NAME = re.compile(r"(?i).*(?:token|secret|passw|api_?key|access_?key|credential).*")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN")
LOOKS_SECRET = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|ghp_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{12,})\b")
HIDDEN = "•"
SHORTEST = 6  # a key of fewer letters may be a word that stands in a sentence for itself


@dataclass(frozen=True, slots=True)
class Secret:
    kind: str  # key, token, other
    word: Word
    start: int
    end: int


def secrets(launch: Launch) -> Iterator[Secret]:
    """The secrets that stand in the command itself; $NAME does not count, but for what ends up in ps."""
    for given in launch.args.given:
        if given.name == "--api-key":
            for value in given.values:
                yield Secret("key", value, value.start, value.end)
        elif given.name == "--hf-token" and given.value and not given.value.unknown:
            yield Secret("token", given.value, given.value.start, given.value.end)
    for name, value in (launch.environment or {}).items():
        if value.unknown or not value.text or "<" in value.text:
            continue
        if name in TOKENS:
            yield Secret("token", value, value.start, value.end)
        elif name == "VLLM_API_KEY" and launch.container is not None and _inside(launch, value):
            yield Secret("key", value, value.start, value.end)
        elif SECRET_NAME.fullmatch(name) and name != "VLLM_API_KEY":
            yield Secret("other", value, value.start, value.end)


def _inside(launch: Launch, value: Word) -> bool:
    return launch.container is not None and any(
        given.value is not None and given.value.start <= value.start <= given.value.end
        for given in launch.container.args.given
        if given.name == "--env"
    )


def hidden(text: str, launches: Sequence[Launch]) -> str:
    """``text`` with every secret's characters replaced, and so as long as before."""
    spans = [(word.start, word.end) for launch in launches for word in _words(launch)]
    spans += [found.span() for found in LOOKS_SECRET.finditer(text)]
    pieces, at = [], 0
    for start, end in sorted(spans):
        start = max(start, at)
        if end <= start:
            continue
        pieces += [text[at:start], HIDDEN * (end - start)]
        at = end
    return "".join([*pieces, text[at:]])


def without(launches: Sequence[Launch]) -> Callable[[str], str]:
    """What takes the secrets of ``launches``, and all that looks like one, out of a sentence about them."""
    known = {word.text for launch in launches for word in _words(launch) if len(word.text) >= SHORTEST}
    pattern = re.compile("|".join([*map(re.escape, sorted(known, key=len, reverse=True)), LOOKS_SECRET.pattern]))
    return lambda text: pattern.sub(lambda found: HIDDEN * min(len(found[0]), 12), text)


def _words(launch: Launch) -> Iterator[Word]:
    for secret in secrets(launch):
        if not secret.word.unknown:
            yield secret.word
    key = launch.variable("VLLM_API_KEY")
    if key is not None and not key.unknown and key.text:
        yield key
