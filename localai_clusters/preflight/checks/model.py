"""Whether this vLLM can load the model as asked, and answer what clients ask of it."""

from collections.abc import Iterator

from localai_clusters.models.vllm_registry import Support
from localai_clusters.preflight.report import FAIL, PASS, UNKNOWN, WARN, Verdict
from localai_clusters.preflight.situation import Situation
from localai_clusters.sizing import dtype_of
from localai_clusters.vllm_flags import is_on, number_of, value_of

TRUST = "-- --trust-remote-code, which runs Python files that come with the model: read them first"
MAX_LORA_RANK = 16  # vLLM's default, and the ranks that it can be set to (vllm/config/lora.py)
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# model_types that vLLM has a chat template of its own for (vllm/transformers_utils/chat_templates/registry.py)
TEMPLATE_IN_VLLM = ("blip-2", "deepseek_ocr", "deepseek_ocr2", "deepseek_vl_v2", "kimi_audio", "minicpmv", "paligemma")
# Of those that also take pictures, well-known ones whose import fails without torchvision in vLLM 0.32. Others may too.
NEEDS_TORCHVISION = (
    "Gemma3ForConditionalGeneration", "Gemma4ForConditionalGeneration", "Glm4vForConditionalGeneration",
    "InternVLChatModel", "Llama4ForConditionalGeneration", "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration", "Mistral3ForConditionalGeneration", "PixtralForConditionalGeneration",
    "Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration", "Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration",
)  # fmt: skip
# vllm/config/model.py, _FLOAT16_NOT_SUPPORTED_MODELS
NO_FLOAT16 = ("gemma2", "gemma3", "gemma3_text", "glm4")


def check_model(situation: Situation) -> Iterator[Verdict]:
    facts, shape, name = situation.facts, situation.shape, situation.plan.model
    if situation.model_error:
        yield Verdict("model", FAIL, situation.model_error)
    elif shape is None:
        yield Verdict("model", UNKNOWN, f"{name} is not on this machine yet; it is downloaded first")
    elif facts and facts.incomplete and not facts.downloads:
        yield Verdict("model", FAIL, facts.incomplete)
    elif facts and facts.incomplete:
        yield Verdict("model", UNKNOWN, f"{name} is not whole on this machine; the rest of it is downloaded first")
    elif facts and facts.contradiction:
        yield Verdict("model", FAIL, f"{name}: {facts.contradiction}", "download the model again, with its config.json")
    else:
        yield Verdict(
            "model",
            PASS,
            f"{name}: {shape.architecture}, {shape.num_hidden_layers} layers, "
            f"{shape.num_attention_heads} heads, {shape.num_key_value_heads} KV heads",
        )


def check_architecture(situation: Situation) -> Iterator[Verdict]:
    """What vLLM does with the names in ``architectures``: vllm/model_executor/models/registry.py."""
    facts, arguments = situation.facts, situation.plan.extra_args
    if facts is None or facts.support is None or value_of(arguments, "--model-impl"):
        return
    support, trusted = facts.support, is_on(arguments, "--trust-remote-code")
    if not support.knows_configuration:
        yield _unknown_configuration(situation, trusted)
    elif facts.pooling or not support.generates:
        message = f"{facts.architectures[0]} makes embeddings or scores; it does not generate text"
        yield Verdict("architecture", FAIL, message, "a model whose architecture ends in ForCausalLM")
    elif support.own_class is None:
        yield _unknown_architecture(situation, support, trusted)
    elif not support.has_torchvision:
        yield from _without_torchvision(support)


def _unknown_configuration(situation: Situation, trusted: bool) -> Verdict:
    facts, version = situation.facts, situation.machine.versions.get("transformers", "")
    if not facts.own_config_code:
        message = f"transformers {version} does not know the model_type {facts.model_type!r}, nor does vLLM"
        return Verdict("architecture", FAIL, message, "a newer version of both, or another model")
    if not trusted:
        message = f"model_type {facts.model_type!r} is described by Python files in the model's own folder"
        return Verdict("architecture", FAIL, message, TRUST)
    message = f"model_type {facts.model_type!r} is read by the model's own Python files, as trusted"
    return Verdict("architecture", WARN, message)


def _without_torchvision(support: Support) -> Iterator[Verdict]:
    name, fix = support.own_class, "pip install torchvision, of the version that fits torch"
    if name in NEEDS_TORCHVISION:
        yield Verdict("architecture", FAIL, f"vLLM cannot import {name} without torchvision, which is missing", fix)
    elif support.multimodal:
        message = f"{name} also takes pictures or sound; torchvision, which most such models need, is missing"
        yield Verdict("architecture", WARN, message, fix)


def _unknown_architecture(situation: Situation, support: Support, trusted: bool) -> Verdict:
    facts, vllm = situation.facts, situation.machine.versions.get("vllm", "")
    name = facts.architectures[0] if facts.architectures else ""
    if support.through_transformers:
        message = f"vLLM {vllm} has no {name} of its own; it runs the one of transformers, which is slower"
        return Verdict("architecture", WARN, message)
    if facts.own_model_code and trusted:
        message = f"{name} is run from the model's own Python files, if vLLM's Transformers backend can"
        return Verdict("architecture", UNKNOWN, message)
    if facts.own_model_code:
        message = f"vLLM {vllm} does not know {name}; the model brings its own Python files for it"
        return Verdict("architecture", FAIL, message, TRUST)
    if support.dropped:
        message = f"vLLM {support.dropped} was the last to know {name}; {vllm} does not"
        return Verdict("architecture", FAIL, message, "another model")
    if support.plugin:
        message = f"vLLM {vllm} knows {name} through a plugin only"
        return Verdict("architecture", FAIL, message, f"install {support.plugin}")
    return Verdict("architecture", FAIL, f"vLLM {vllm} does not know the architecture {name}", "another model")


def check_model_dtype(situation: Situation) -> Iterator[Verdict]:
    shape, plan = situation.shape, situation.plan
    kinds = {shape.model_type, situation.facts.model_type if situation.facts else ""} if shape else set()
    if kinds & set(NO_FLOAT16) and plan.dtype == "float16":
        message = f"{shape.model_type} goes wrong in float16 (its numbers grow too large), and vLLM refuses it"
        yield Verdict("dtype", FAIL, message, "--dtype bfloat16, or float32 where that is slow")
    elif kinds & set(NO_FLOAT16) and dtype_of(plan, shape) == "float16":
        message = f"the checkpoint is in float16, which {shape.model_type} goes wrong in; vLLM takes bfloat16"
        yield Verdict("dtype", WARN, message, "--dtype bfloat16")


def check_chat_template(situation: Situation) -> Iterator[Verdict]:
    facts, arguments = situation.facts, situation.plan.extra_args
    if facts is None or facts.chat_template is not False or value_of(arguments, "--chat-template"):
        return
    if facts.model_type in TEMPLATE_IN_VLLM or facts.pooling:
        return
    message = "the tokenizer has no chat template, so /v1/chat/completions will be refused; /v1/completions works"
    fix = "-- --chat-template FILE (a Jinja template that fits the model), or its -instruct or -chat form"
    yield Verdict("chat template", WARN, message, fix)


def check_lora(situation: Situation) -> Iterator[Verdict]:
    arguments, shape = situation.plan.extra_args, situation.shape
    enabled = is_on(arguments, "--enable-lora")
    allowed = int(number_of(arguments, "--max-lora-rank", MAX_LORA_RANK))
    if enabled and allowed not in LORA_RANKS:
        fits = next((rank for rank in LORA_RANKS if rank >= allowed), LORA_RANKS[-1])
        message = f"--max-lora-rank can be {', '.join(map(str, LORA_RANKS))}; not {allowed}"
        yield Verdict("LoRA", FAIL, message, f"-- --max-lora-rank {fits}")
        return
    for adapter in situation.adapters:
        if not enabled:
            message = f"--lora-modules names {adapter.name}, but LoRA is not enabled"
            yield Verdict("LoRA", FAIL, message, "-- --enable-lora --lora-modules ...")
            return
        if adapter.problem:
            yield Verdict("LoRA", FAIL, f"{adapter.name}: {adapter.problem}")
        elif not adapter.is_here:
            yield Verdict("LoRA", UNKNOWN, f"{adapter.name}: {adapter.place} is not a folder; vLLM will download it")
        elif adapter.rank > allowed:
            fits = next((rank for rank in LORA_RANKS if rank >= adapter.rank), None)
            message = f"{adapter.name} has rank {adapter.rank}; --max-lora-rank is {allowed}"
            fix = f"-- --max-lora-rank {fits}" if fits else f"an adapter of rank {LORA_RANKS[-1]} or less"
            yield Verdict("LoRA", FAIL, message, fix)
        elif adapter.unsupported:
            message = f"{adapter.name} uses {' and '.join(adapter.unsupported)}, which vLLM does not support"
            yield Verdict("LoRA", FAIL, message, "an adapter made without, or merged into its base model")
        elif shape and (wrong := adapter.misfits(shape)):
            made_for = f" (made for {adapter.base})" if adapter.base else ""
            message = f"{adapter.name}{made_for} does not fit {situation.plan.model}: {wrong[0]}"
            yield Verdict("LoRA", FAIL, message, f"--model {adapter.base or 'BASE'}, its base model")
        elif adapter.base and not _same_model(adapter.base, situation.plan.model):
            message = f"{adapter.name} was made for {adapter.base}, not for {situation.plan.model}; its sizes fit"
            yield Verdict("LoRA", WARN, message, f"--model {adapter.base}, unless this is a copy of it")
        else:
            yield Verdict("LoRA", PASS, f"{adapter.name}, rank {adapter.rank} of at most {allowed}")


def _same_model(base: str, name: str) -> bool:
    """Whether two names can mean one model: the last part of each, whatever its case and form."""
    last = [part.rstrip("/").rsplit("/", 1)[-1].lower() for part in (base, name)]
    return last[0] in last[1] or last[1] in last[0]
