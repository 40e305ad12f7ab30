"""Is what a record says what the model says? The rules, over what a server was asked; nothing here asks one.

Where the numbers come from: docs/replay.md.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from localai_clusters.checkpoint import Completion, Prompt, plain_text

CONFIRMED, REFUTED, NOT_REPLAYABLE = "confirmed", "refuted", "not replayable"
AVERAGED_FROM = 64  # over fewer tokens roundings need not average out
MOST_SHOWN = 60  # characters of a token or a text in a sentence


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an honest record may be from its replay, in nats (natural logarithms of probabilities)."""

    gap: float  # by which the model may find another token likelier than the recorded one
    logprob: float  # between a recorded and a replayed log probability of one token
    mean_logprob: float  # the same, averaged over AVERAGED_FROM tokens of a run or more


EXACT = Tolerance(gap=0.01, logprob=0.01, mean_logprob=0.002)
ROUNDED = Tolerance(gap=0.5, logprob=0.6, mean_logprob=0.06)


def tolerance(recorded: str, replayed: str) -> Tolerance:
    """For a record made in one dtype and replayed in another."""
    return EXACT if recorded == replayed == "float32" else ROUNDED


@dataclass(frozen=True, slots=True)
class Token:
    """A recorded token as the model sees it in its place."""

    text: str
    logprob: float
    best_text: str  # the model's own choice there
    best_logprob: float

    @property
    def gap(self) -> float:
        """Nats by which the model prefers its own choice; 0 where the token is that choice or level with it."""
        return self.best_logprob - self.logprob


@dataclass(frozen=True, slots=True)
class Seen:
    """What a served model makes of one completion."""

    tokens: tuple[Token, ...]
    text: str  # of the token ids, without special tokens
    prompt_text: str  # of the prompt's token ids, with them
    prompt_as_recorded: bool  # the prompt's text gives the prompt's token ids


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a completion is refuted or cannot be replayed; ``sentence`` is safe to print, not to put into HTML."""

    outcome: str  # REFUTED or NOT_REPLAYABLE
    field: str
    sentence: str


def judge(
    at: str, name: str, prompt: Prompt, completion: Completion, seen: Seen, limit: Tolerance, ends: frozenset[int]
) -> Iterator[Reason]:
    """What in a completion is not what the model says. ``at`` is its field in the record, ``name`` what to call it,
    ``ends`` are the tokens that end an answer; none where they are not known."""
    yield from _prompt(name, prompt, completion, seen)
    if completion.temperature == 0:
        yield from _tokens(at, name, seen, limit)
    yield from _logprobs(at, name, completion, seen, limit)
    yield from _text(at, name, completion, seen, ends)


def judge_ending(
    at: str, name: str, completion: Completion, context_full: bool, ends: frozenset[int]
) -> Iterator[Reason]:
    """Did it end as it says?"""
    length, longest = len(completion.token_ids), completion.max_tokens
    if longest is not None and length > longest:
        yield Reason(REFUTED, f"{at}.max_tokens", f"{name}: {length} tokens, at most {longest} were asked for")
    elif completion.finish_reason == "length" and longest is not None and length < longest and not context_full:
        yield Reason(REFUTED, f"{at}.finish_reason", f"{name}: it says that {longest} tokens were reached at {length}")
    elif ends and _stopped_by_text(completion, ends):
        yield Reason(
            NOT_REPLAYABLE,
            f"{at}.finish_reason",
            f"{name}: it says stop, and its last token ends no answer (a stop string might, which is not recorded)",
        )


def judge_average(at: str, name: str, apart: Sequence[float], limit: Tolerance) -> Iterator[Reason]:
    """Are a run's log probabilities, ``apart`` by so much each, another model's that is near the recorded one?"""
    if len(apart) >= AVERAGED_FROM and not (mean := math.fsum(apart) / len(apart)) <= limit.mean_logprob:
        yield Reason(
            REFUTED,
            at,
            f"{name}: the log probabilities of {len(apart)} tokens are {mean:.3f} off on average "
            f"(rounding explains {limit.mean_logprob:g})",
        )


def _prompt(name: str, prompt: Prompt, completion: Completion, seen: Seen) -> Iterator[Reason]:
    """With other messages before it the prompt is only a part of what the model saw: its text must be in there."""
    if not seen.prompt_as_recorded and _folded(prompt.text) not in _folded(seen.prompt_text):
        yield Reason(
            REFUTED,
            f"data.prompts[{completion.prompt_index}].token_ids",
            f"{name}: its tokens are not those of the recorded prompt but {quoted(seen.prompt_text)}",
        )


def _tokens(at: str, name: str, seen: Seen, limit: Tolerance) -> Iterator[Reason]:
    for place, token in enumerate(seen.tokens):
        if not token.gap <= limit.gap:  # what is not a number is not within it
            recorded, best = quoted(token.text), quoted(token.best_text)
            yield Reason(
                REFUTED,
                f"{at}.token_ids[{place}]",
                f"{_which(name, place, seen)}: recorded {recorded}, the model's choice is {best}, "
                f"{token.gap:.2g} nats better (rounding explains {limit.gap:g})",
            )


def _logprobs(at: str, name: str, completion: Completion, seen: Seen, limit: Tolerance) -> Iterator[Reason]:
    said = completion.logprobs
    if not said:
        return
    if len(said) != len(seen.tokens):
        yield Reason(REFUTED, f"{at}.logprobs", f"{name}: {len(said)} log probabilities of {len(seen.tokens)} tokens")
        return
    apart = [abs(logprob - token.logprob) for logprob, token in zip(said, seen.tokens, strict=True)]
    place = max(range(len(apart)), key=apart.__getitem__)
    if not apart[place] <= limit.logprob:
        yield Reason(
            REFUTED,
            f"{at}.logprobs[{place}]",
            f"{_which(name, place, seen)}: log probability {said[place]:.3f} recorded, "
            f"{seen.tokens[place].logprob:.3f} replayed (rounding explains {limit.logprob:g})",
        )


def _which(name: str, place: int, seen: Seen) -> str:
    return f"{name}, token {place + 1} of {len(seen.tokens)}"


def _text(at: str, name: str, completion: Completion, seen: Seen, ends: frozenset[int]) -> Iterator[Reason]:
    # vLLM holds back a character whose last bytes have not come; a tokenizer alone writes U+FFFD for it.
    said, tokens_say = completion.text.strip(), seen.text.rstrip("\ufffd").strip()
    # vLLM leaves a stop string, and what came with it in one token, out of the text.
    if said != tokens_say and not (_stopped_by_text(completion, ends) and tokens_say.startswith(said)):
        yield Reason(
            REFUTED, f"{at}.text", f"{name}: the text is not that of its tokens, which say {quoted(seen.text)}"
        )


def _stopped_by_text(completion: Completion, ends: frozenset[int]) -> bool:
    return completion.finish_reason == "stop" and completion.token_ids[-1] not in ends


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def quoted(text: str) -> str:
    """Text of unknown origin in quotes, short, with its spaces, safe to print."""
    text = text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 1] + "…"
    return plain_text(json.dumps(text, ensure_ascii=False))
