"""What is known of the model, from its published files."""

from collections.abc import Iterator

from localai_clusters.command.checks.program import contradiction
from localai_clusters.command.checks.split import place
from localai_clusters.command.deployment import Deployment
from localai_clusters.command.findings import ADVICE, NOTE, Finding
from localai_clusters.command.mending import mended, tensor_sizes
from localai_clusters.command.tables import known_model
from localai_clusters.plan import MAX_RANKS

SIZES = (24, 40, 48, 80, 96, 141, 180)  # GB of GPUs that people have
UTILIZATION = 0.92
LITTLE = 0.15  # of a GPU, for the KV cache


def named(d: Deployment) -> tuple[int, int]:
    model = d.first.model
    return (model.start, model.end) if model else (0, 0)


def check_model(d: Deployment) -> Iterator[Finding]:
    model = d.first.model
    facts = known_model(model.text) if model else None
    if facts is None:
        return
    if facts.get("gated"):
        message = f"{model.text} is gated: Hugging Face gives it to accounts that accepted its licence"
        yield Finding(
            NOTE, "gated", message, "accept it on the model's page, then: hf auth login", model.start, model.end
        )
    if facts.get("chat") is False and not d.first.meant.last("--chat-template"):
        message = (
            f"{model.text} is a base model without a chat template: /v1/chat/completions refuses, /v1/completions works"
        )
        instead = facts.get("instead")
        fix = f"{instead}, or --chat-template FILE" if instead else "--chat-template FILE, or a model trained for chat"
        yield Finding(ADVICE, "no-chat-template", message, fix, model.start, model.end)


def check_heads(d: Deployment) -> Iterator[Finding]:
    facts = known_model(d.model)
    if facts is None or d.tensor.value < 1:
        return
    heads, kv_heads, tensor = facts["heads"], facts["kv_heads"], min(d.tensor.value, MAX_RANKS)
    fits = tensor_sizes(facts, tensor)
    if tensor not in fits:
        what = f"{heads} attention heads" if heads % tensor else f"{kv_heads} KV heads"
        message = f"{d.model} has {what}, which {tensor} tensor parallel ranks cannot share equally"
        yield contradiction("heads", message, f"--tensor-parallel-size {fits[-1]}", *place(d.tensor.given))
    if d.pipeline.value > facts["layers"]:
        message = f"{d.model} has {facts['layers']} layers; {d.pipeline.value} pipeline stages are too many"
        yield contradiction("layers", message, f"--pipeline-parallel-size {facts['layers']}", *place(d.pipeline.given))


def check_memory(d: Deployment) -> Iterator[Finding]:
    """The weights of each rank against the GPUs that there are."""
    split, facts = mended(d), known_model(d.model)
    if facts is None or facts["weights_gb"] < 10 or d.first.meant.last("--quantization"):
        return
    ranks = split.tensor * split.pipeline
    each = facts["weights_gb"] / ranks
    left = {size: size * UTILIZATION - each for size in SIZES}
    fits = [size for size in SIZES if left[size] > size * LITTLE]
    tight = next((size for size in SIZES if 0 < left[size] <= size * LITTLE), None)
    message = (
        f"{d.model}: about {facts['weights_gb']:.0f} GB of weights, {each:.0f} GB on each of {ranks} "
        f"GPU{'s' * (ranks > 1)}"
    )
    if tight:
        message += f"; {'an' if tight == 80 else 'a'} {tight} GB GPU has {left[tight]:.0f} GB left for KV cache"
    if not fits:
        message += ": more than any GPU has"
    severity = ADVICE if tight == 80 or not fits else NOTE
    fix = f"GPUs of {fits[0]} GB or more" if fits else "more GPUs, or a quantized checkpoint"
    if severity == ADVICE and fits:
        fix += f", --tensor-parallel-size {split.tensor * 2}, or a quantized checkpoint"
    yield Finding(severity, "memory", message, fix, *named(d))
