"""What a record proves, in a sentence or two."""

import re
from collections import Counter, defaultdict

from .comparing import first_answers
from .consistency import verify
from .record import Checkpoint, Comparison, Plan, Run
from .runs_consistency import served

# Terminal escapes first, then every character that moves the cursor or the reading
# direction: control, format, bidirectional and line-separator characters.
_ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\].*?(?:\x07|\x1b\\)", re.S)
_INVISIBLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    r"\ud800-\udfff\ufff9-\ufffb]+"
)


def plain_text(text: str, longest: int | None = None) -> str:
    """Text of unknown origin made safe for a terminal, on one line.

    Escape sequences go, control characters become a space, and what is longer than
    `longest` characters is cut with an ellipsis.
    """
    text = _INVISIBLE.sub(" ", _ESCAPES.sub("", text)).strip()
    if longest is not None and len(text) > longest:
        text = text[: longest - 1].rstrip() + "…"
    return text


def split_name(plan: Plan) -> str:
    """ "TP=2", "PP=2", "TP=2 PP=2": how a plan splits the model; "TP=1" is no split."""
    sizes = {"TP": plan.tensor_parallel_size, "PP": plan.pipeline_parallel_size}
    split = [f"{name}={size}" for name, size in sizes.items() if size > 1]
    return " ".join(split) or "TP=1"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def what_it_proves(checkpoint: Checkpoint) -> str:
    """Plain sentences on one line, safe to print. A record that contradicts itself
    proves nothing, and the first contradiction is named."""
    broken = [f for f in verify(checkpoint) if f.severity == "wrong"]
    if broken:
        things = count(len(broken), "contradiction")
        found = plain_text(f"{broken[0].field}: {broken[0].sentence}", 200)
        return f"It proves nothing, for it holds {things}. The first is {found}."
    ready = [run for run in checkpoint.runs if served(run)]
    if not ready:
        return _nothing_served(checkpoint)
    return " ".join([_served_what(checkpoint, ready), *_agreement(checkpoint)])


def _nothing_served(checkpoint: Checkpoint) -> str:
    if checkpoint.evidence.ranks == 0:
        plans = count(len(checkpoint.runs), "plan")
        return f"A dry run: {plans} checked, no rank was started."
    started = count(checkpoint.evidence.ranks, "rank")
    return f"Up to {started} started, and no server became ready."


def _served_what(checkpoint: Checkpoint, ready: list[Run]) -> str:
    largest = max(ready, key=lambda run: len(run.ranks))
    cuda = any(rank.device.kind == "cuda" for rank in largest.ranks)
    ranks = count(len(largest.ranks), "GPU rank" if cuda else "CPU rank")
    nodes = count(len({rank.node_rank for rank in largest.ranks}), "node")
    splits = dict.fromkeys(split_name(run.plan) for run in ready)
    upto = "up to " if len({len(run.ranks) for run in ready}) > 1 else ""
    model = plain_text(checkpoint.data.model, 80)
    version = plain_text(checkpoint.versions.vllm or "", 40)
    return f"Real vLLM {version} served {model} on {upto}{ranks} of {nodes} ({', '.join(splits)})."


def _agreement(checkpoint: Checkpoint) -> list[str]:
    """One sentence for the splits that agree, one for each that does not."""
    names = run_names(checkpoint)
    answers = first_answers(checkpoint.observed.completions)
    pairs: dict[tuple[str, str], list[Comparison]] = defaultdict(list)
    for comparison in checkpoint.observed.comparisons:
        pairs[comparison.run_a, comparison.run_b].append(comparison)
    agreeing: dict[tuple[str, int], list[str]] = defaultdict(list)
    sentences = []
    for (a, b), compared in pairs.items():
        parted = [c for c in compared if not c.tokens_equal]
        if parted:
            sentences.append(
                f"{names[b]} parted from {names[a]} on {len(parted)} of "
                f"{count(len(compared), 'prompt')}, first after "
                f"{count(min(c.first_difference or 0 for c in parted), 'equal token')}."
            )
        else:
            tokens = sum(len(answers[a, c.prompt_index]) for c in compared)
            agreeing[a, tokens].append(names[b])
    same = [
        f"{' and '.join(others)} gave the same {count(tokens, 'token')} as {names[a]}."
        for (a, tokens), others in agreeing.items()
    ]
    return same + sentences


def run_names(checkpoint: Checkpoint) -> dict[str, str]:
    """What to call each run, by run_id: its split, and where two runs share one,
    its run_id too."""
    splits = {run.run_id: split_name(run.plan) for run in checkpoint.runs}
    runs_of = Counter(splits.values())
    return {run_id: split if runs_of[split] == 1 else f"{split} ({run_id})" for run_id, split in splits.items()}
