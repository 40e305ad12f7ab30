"""Did two splits of one model say the same? Token by token, as ids."""

from collections.abc import Iterable, Mapping, Sequence

from .record import Comparison, Completion


def compare(completions: Iterable[Completion], run_a: str, run_b: str) -> list[Comparison]:
    """Two runs' first answers to each prompt that both answered."""
    answers = first_answers(completions)
    return [
        _compared(answers, run_a, run_b, index)
        for run_id, index in sorted(answers)
        if run_id == run_a and (run_b, index) in answers
    ]


def first_answers(
    completions: Iterable[Completion],
) -> dict[tuple[str, int], tuple[int, ...]]:
    """The token ids of the first completion by (run_id, prompt_index)."""
    answers: dict[tuple[str, int], tuple[int, ...]] = {}
    for completion in completions:
        at = (completion.run_id, completion.prompt_index)
        answers.setdefault(at, completion.token_ids)
    return answers


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Where two sequences part, from 0; the shorter one's length where it is the
    beginning of the other; None when they are equal."""
    if a == b:
        return None
    for place, (token_a, token_b) in enumerate(zip(a, b, strict=False)):
        if token_a != token_b:
            return place
    return None if len(a) == len(b) else min(len(a), len(b))


def _compared(
    answers: Mapping[tuple[str, int], tuple[int, ...]],
    run_a: str,
    run_b: str,
    index: int,
) -> Comparison:
    differ = first_difference(answers[run_a, index], answers[run_b, index])
    return Comparison(
        run_a=run_a,
        run_b=run_b,
        prompt_index=index,
        tokens_equal=differ is None,
        first_difference=differ,
    )
