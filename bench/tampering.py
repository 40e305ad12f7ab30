"""Records that are not honest, made from honest ones: what replay has to tell apart. Each is consistent with itself.

A forger here edits a file: what was changed in the text is changed in the tokens too, and the digest is made anew.
Log probabilities stay as they were recorded, for without the model nobody knows the right ones; ``without_logprobs``
leaves them out.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from localai_clusters.checkpoint import Checkpoint, Prompt, digest_of

WORD = "Ġ"  # how a byte-level tokenizer writes the space before a word


@dataclass(frozen=True, slots=True)
class Forger:
    """What somebody has who forges: chance, the model's tokenizer, and the other students' files."""

    draw: random.Random
    tokenizer: Any  # tokenizers.Tokenizer
    others: Sequence[Checkpoint]

    def text(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def is_word(self, token: int) -> bool:
        written = self.tokenizer.id_to_token(token) or ""
        return written.startswith(WORD) and written[1:].isalpha()

    def another_word(self, token: int) -> int:
        """A word that stands in another student's file."""
        while True:
            completion = self.draw.choice(self.draw.choice(self.others).observed.completions)
            other = self.draw.choice(completion.token_ids)
            if other != token and self.is_word(other):
                return other

    def who_asked_another(self, record: Checkpoint, number: int) -> Checkpoint:
        """A student whose prompt of this number is another than ``record``'s: some draw the same word."""
        own = record.data.prompts[number].token_ids
        return self.draw.choice([other for other in self.others if other.data.prompts[number].token_ids != own])


def edited(record: Checkpoint, place: int, **changes: Any) -> Checkpoint:
    """``record`` with another completion at ``place``, and the digest that goes with it."""
    completions = list(record.observed.completions)
    completions[place] = completions[place].model_copy(update=changes)
    observed = record.observed.model_copy(update={"completions": tuple(completions), "comparisons": ()})
    return resealed(record.model_copy(update={"observed": observed}))


def resealed(record: Checkpoint) -> Checkpoint:
    return record.model_copy(update={"digest": digest_of(record)})


def word_changed(record: Checkpoint, forger: Forger) -> Checkpoint:
    place, at = _a_word(record, forger)
    return with_token(record, place, at, forger.another_word(record.observed.completions[place].token_ids[at]), forger)


def last_token_changed(record: Checkpoint, forger: Forger) -> Checkpoint:
    place = forger.draw.randrange(len(record.observed.completions))
    ids = record.observed.completions[place].token_ids
    return with_token(record, place, len(ids) - 1, forger.another_word(ids[-1]), forger)


def word_left_out(record: Checkpoint, forger: Forger) -> Checkpoint:
    place, at = _a_word(record, forger)
    completion = record.observed.completions[place]
    ids = without(completion.token_ids, at)
    return edited(
        record,
        place,
        token_ids=ids,
        text=forger.text(ids),
        logprobs=completion.logprobs and without(completion.logprobs, at),
        max_tokens=len(ids) if completion.finish_reason == "length" else completion.max_tokens,
    )


def anothers_answer(record: Checkpoint, forger: Forger) -> Checkpoint:
    """Another student's answer to the question of the same number."""
    place = forger.draw.randrange(len(record.observed.completions))
    number = record.observed.completions[place].prompt_index
    other = forger.who_asked_another(record, number).observed.completions[place]
    names = ("token_ids", "text", "logprobs", "finish_reason", "max_tokens")
    return edited(record, place, **{name: getattr(other, name) for name in names})


def prompt_swapped(record: Checkpoint, forger: Forger) -> Checkpoint:
    """The right words in the prompt, and the answer to another."""
    return _with_prompt(record, forger, lambda _, other: other)


def prompt_renamed(record: Checkpoint, forger: Forger) -> Checkpoint:
    """As ``prompt_swapped``, and the token ids are left those of the prompt that was answered."""
    return _with_prompt(record, forger, lambda own, other: other.model_copy(update={"token_ids": own.token_ids}))


def text_changed(record: Checkpoint, forger: Forger) -> Checkpoint:
    """A word changed in the text alone."""
    place, _ = _a_word(record, forger)
    words = record.observed.completions[place].text.split(" ")
    at = forger.draw.randrange(len(words))
    words[at] = words[at][::-1] + "ly"
    return edited(record, place, text=" ".join(words))


def logprobs_invented(record: Checkpoint, forger: Forger) -> Checkpoint:
    place = forger.draw.randrange(len(record.observed.completions))
    count = len(record.observed.completions[place].token_ids)
    return edited(record, place, logprobs=tuple(-forger.draw.expovariate(1.5) for _ in range(count)))


def cut_short(record: Checkpoint, forger: Forger) -> Checkpoint:
    place = forger.draw.randrange(len(record.observed.completions))
    completion = record.observed.completions[place]
    ids = completion.token_ids[:-5]
    return edited(
        record, place, token_ids=ids, text=forger.text(ids), logprobs=(completion.logprobs or ())[:-5] or None
    )


def claimed(record: Checkpoint, honest: Checkpoint) -> Checkpoint:
    """``honest``, but its prompts and answers are ``record``'s, made in another way: sampled, or by another model."""
    run_id = honest.runs[0].run_id
    completions = tuple(
        completion.model_copy(update={"temperature": 0.0, "run_id": run_id})
        for completion in record.observed.completions
    )
    data = honest.data.model_copy(update={"prompts": record.data.prompts})
    observed = honest.observed.model_copy(update={"completions": completions, "comparisons": ()})
    return resealed(honest.model_copy(update={"student": record.student, "data": data, "observed": observed}))


def without_logprobs(record: Checkpoint) -> Checkpoint:
    completions = tuple(c.model_copy(update={"logprobs": None}) for c in record.observed.completions)
    return resealed(
        record.model_copy(update={"observed": record.observed.model_copy(update={"completions": completions})})
    )


EDITS: dict[str, Callable[[Checkpoint, Forger], Checkpoint]] = {
    "a word changed": word_changed,
    "the last token changed": last_token_changed,
    "a word left out": word_left_out,
    "another student's answer": anothers_answer,
    "the prompt swapped": prompt_swapped,
    "the prompt's text swapped, its tokens kept": prompt_renamed,
    "the text changed, its tokens kept": text_changed,
    "log probabilities invented": logprobs_invented,
    "cut short by 5 tokens": cut_short,
}


def without(items: Sequence, at: int) -> tuple:
    return (*items[:at], *items[at + 1 :])


def _a_word(record: Checkpoint, forger: Forger) -> tuple[int, int]:
    """(place of a completion, place in it of a token that is a whole word)."""
    found = [
        (place, at)
        for place, completion in enumerate(record.observed.completions)
        for at, (token, after) in enumerate(zip(completion.token_ids, completion.token_ids[1:], strict=False))
        if forger.is_word(token) and not (forger.tokenizer.id_to_token(after) or WORD)[0].isalpha()
    ]
    return forger.draw.choice(found)


def with_token(record: Checkpoint, place: int, at: int, token: int, forger: Forger) -> Checkpoint:
    ids = list(record.observed.completions[place].token_ids)
    ids[at] = token
    return edited(record, place, token_ids=tuple(ids), text=forger.text(ids))


def _with_prompt(record: Checkpoint, forger: Forger, swap: Callable[[Prompt, Prompt], Prompt]) -> Checkpoint:
    number = forger.draw.choice(sorted({completion.prompt_index for completion in record.observed.completions}))
    prompts = list(record.data.prompts)
    prompts[number] = swap(prompts[number], forger.who_asked_another(record, number).data.prompts[number])
    return resealed(record.model_copy(update={"data": record.data.model_copy(update={"prompts": tuple(prompts)})}))
