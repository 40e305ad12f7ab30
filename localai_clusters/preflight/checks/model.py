"""Whether this vLLM can load the model as asked."""

from collections.abc import Iterator

from localai_clusters.preflight.report import FAIL, PASS, UNKNOWN, WARN, Verdict
from localai_clusters.preflight.situation import Situation


def check_model(situation: Situation) -> Iterator[Verdict]:
    if situation.model_error:
        yield Verdict("model", FAIL, situation.model_error)
    elif situation.shape is None:
        yield Verdict("model", UNKNOWN, f"{situation.plan.model} is not on this machine yet; it is downloaded first")
    else:
        shape = situation.shape
        yield Verdict(
            "model",
            PASS,
            f"{situation.plan.model}: {shape.architecture}, {shape.num_hidden_layers} layers, "
            f"{shape.num_attention_heads} heads, {shape.num_key_value_heads} KV heads",
        )


def check_quantization(situation: Situation) -> Iterator[Verdict]:
    asked = situation.plan.quantization
    if situation.shape is None:
        return
    stored = situation.shape.quantization
    if asked == stored or (asked is None and stored is not None):
        yield Verdict("quantization", PASS, f"the checkpoint is {stored or 'not quantized'}")
    elif stored is None:
        message = f"--quantization {asked} asked for, but the checkpoint is not quantized"
        yield Verdict("quantization", WARN, message, "leave --quantization out, unless vLLM applies it on loading")
    else:
        message = f"--quantization {asked} asked for, but the checkpoint is {stored}"
        yield Verdict("quantization", FAIL, message, f"--quantization {stored}, or leave it out")
