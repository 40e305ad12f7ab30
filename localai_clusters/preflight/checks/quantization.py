"""Whether the quantization that is asked for is the checkpoint's, runs on these devices, and survives the split.

What vLLM 0.32 does with a method's name: vllm/config/model.py, _verify_quantization, and each method's
override_quantization_method in vllm/model_executor/layers/quantization; what it asks of device and dtype:
vllm/config/vllm.py, _get_quantization_config. Where the shapes of a rank's share matter is named at each rule.
"""

import difflib
from collections.abc import Iterator

from localai_clusters.models import ModelShape
from localai_clusters.models.quantization import PER_CHANNEL
from localai_clusters.preflight.checks.quantized_split import quantized_split
from localai_clusters.preflight.report import FAIL, PASS, UNKNOWN, WARN, Verdict
from localai_clusters.preflight.situation import Situation
from localai_clusters.sizing import dtype_of
from localai_clusters.vllm_flags import flags, is_on

# vllm/model_executor/layers/quantization/__init__.py, QuantizationMethods
METHODS = (
    "awq", "auto_awq", "fp8", "fbgemm_fp8", "fp_quant", "modelopt", "modelopt_fp4", "modelopt_mxfp8",
    "modelopt_mixed", "auto_gptq", "gptq", "gptq_marlin", "awq_marlin", "humming", "compressed-tensors",
    "experts_int8", "quark", "moe_wna16", "torchao", "inc", "mxfp4", "gpt_oss_mxfp4", "deepseek_v4_fp8", "online",
    "fp8_per_tensor", "fp8_per_block", "fp8_per_channel", "int8_per_channel_weight_only", "nvfp4_per_token", "mxfp8",
)  # fmt: skip
# Names that mean one method when the checkpoint is of the first. On a CPU awq has no other name.
ALIASES = {
    "gptq": ("gptq", "gptq_marlin", "auto_gptq", "marlin"),
    "awq": ("awq", "awq_marlin", "auto_awq", "marlin"),
    "mxfp4": ("mxfp4", "gpt_oss_mxfp4"),
}
# What vLLM can do to 16-bit weights while it loads them (vllm/config/quantization.py, _ONLINE_SHORTHANDS).
ONLINE = (
    "fp8_per_tensor", "fp8_per_block", "fp8_per_channel", "mxfp8", "mxfp4", "int8_per_channel_weight_only",
    "nvfp4_per_token", "humming", "experts_int8",
)  # fmt: skip
DEPRECATED = ("fbgemm_fp8", "fp_quant")
# Compute capability x 10: each method's get_min_capability, and for GPTQ and packed integers that of the kernels.
LOWEST_CAPABILITY = {
    "awq": 75, "gptq": 75, "fp8": 75, "modelopt": 80, "modelopt_fp4": 75, "modelopt_mxfp8": 80, "modelopt_mixed": 80,
    "mxfp4": 80, "compressed-tensors": 75, "experts_int8": 80, "fbgemm_fp8": 80, "fp_quant": 100, "torchao": 75,
    "quark": 70, "inc": 75,
}  # fmt: skip
ACTIVATION_DTYPES = {
    "awq": ("float16", "bfloat16"), "gptq": ("float16", "bfloat16"), "fp8": ("float16", "bfloat16"),
    "modelopt": ("float16", "bfloat16"), "modelopt_fp4": ("float16", "bfloat16"), "modelopt_mxfp8": ("bfloat16",),
    "modelopt_mixed": ("float16", "bfloat16"), "mxfp4": ("bfloat16",), "experts_int8": ("float16", "bfloat16"),
    "quark": ("float16", "bfloat16"), "inc": ("float16", "bfloat16"),
}  # fmt: skip
GROUP_SIZES = (PER_CHANNEL, 32, 64, 128)  # of GPTQ: utils/marlin_utils.py, MARLIN_SUPPORTED_GROUP_SIZES
# Without a kernel on any CPU, though gpt-oss' own experts in MXFP4 have one.
CPU_NEVER = ("mxfp8", "modelopt_fp4", "modelopt_mxfp8", "humming")
INT8_EXPERTS = ("experts_int8", "int8_per_channel_weight_only")
ANOTHER_FORM = "the model's own 16-bit form, or one in AWQ, GPTQ, FP8 or compressed-tensors"


def check_quantization(situation: Situation) -> Iterator[Verdict]:
    shape = situation.shape
    if shape is None:
        return
    asked, declared = situation.plan.quantization, shape.quantization
    asked = asked.lower() if asked else None
    verdict = _name(situation, asked, declared)
    if verdict and verdict.status == FAIL:
        yield verdict
        return
    found = [verdict] if verdict else []
    method = declared or asked
    if method:
        rules = (_content, _device, _dtype, quantized_split) if declared else (_device, _dtype)
        found += [verdict for rule in rules for verdict in rule(situation, method)]
    if found:
        yield from found
    elif declared is None:
        yield Verdict("quantization", PASS, "the checkpoint is not quantized")
    else:
        described = shape.quantized.describe() if shape.quantized else declared
        yield Verdict("quantization", PASS, f"the checkpoint is {described}")


def _name(situation: Situation, asked: str | None, declared: str | None) -> Verdict | None:
    """The name that was asked for against the one that the checkpoint has."""
    machine = situation.machine
    vllm = machine.versions.get("vllm", "")
    if declared is None:
        return _on_plain_weights(situation, asked) if asked else None
    if declared not in (*METHODS, "auto-round"):
        message = f"the checkpoint is {declared}, which vLLM {vllm} does not load"
        return Verdict("quantization", FAIL, message, ANOTHER_FORM)
    same = (declared, *ALIASES.get(declared, ()))
    if declared == "awq" and machine.backend == "cpu":
        same = ("awq",)
    if asked is None or asked in same or declared.startswith("modelopt") or declared == "auto-round":
        if declared in DEPRECATED and not is_on(situation.plan.extra_args, "--allow-deprecated-quantization"):
            message = f"the checkpoint is {declared}, which vLLM {vllm} is about to drop"
            return Verdict("quantization", FAIL, message, "-- --allow-deprecated-quantization")
        return None
    if _takes_others(asked, declared, situation):
        message = f"whether {asked} can load this {declared} checkpoint shows when it is loaded"
        return Verdict("quantization", UNKNOWN, message, "leave --quantization out")
    message = f"--quantization {asked} asked for, but the checkpoint is {declared}"
    return Verdict("quantization", FAIL, message, f"--quantization {declared}, or leave it out")


def _takes_others(asked: str, declared: str, situation: Situation) -> bool:
    """Methods that load other methods' checkpoints: moe_wna16.py (is_moe_wna16_compatible) and humming.py."""
    on_gpu = situation.machine.backend == "cuda"
    return (asked == "humming" and on_gpu) or (
        asked == "moe_wna16" and (declared == "gptq" or (declared == "awq" and on_gpu))
    )


def _on_plain_weights(situation: Situation, asked: str) -> Verdict | None:
    """``--quantization`` where config.json declares none."""
    plain = f"--quantization {asked} asked for, but the checkpoint is not quantized"
    if asked not in METHODS:
        near = difflib.get_close_matches(asked, METHODS, n=1)
        message = f"there is no quantization method {asked!r} in vLLM {situation.machine.versions.get('vllm', '')}"
        fix = f"--quantization {near[0]}, or leave it out" if near else "leave --quantization out"
        return Verdict("quantization", FAIL, message, fix)
    if asked in DEPRECATED and not is_on(situation.plan.extra_args, "--allow-deprecated-quantization"):
        message = f"{asked} is about to be dropped from vLLM"
        return Verdict("quantization", FAIL, message, "leave --quantization out, or --quantization fp8_per_tensor")
    if asked == "fp8":
        message = f"{plain}; vLLM makes its 16-bit weights 8-bit while it loads them"
        return Verdict("quantization", WARN, message, "--quantization fp8_per_tensor, the name this has now")
    if asked in ONLINE:
        message = f"vLLM quantizes the 16-bit weights while it loads them ({asked}); memory is counted in 16 bits here"
        return Verdict("quantization", WARN, message)
    if asked == "online" and any(
        name.startswith("--quantization-config") for name, _ in flags(situation.plan.extra_args)
    ):
        return Verdict("quantization", UNKNOWN, "--quantization-config says what is quantized while loading")
    files = situation.facts.files if situation.facts else frozenset()
    if asked in ("awq", "awq_marlin", "auto_awq", "gptq", "gptq_marlin", "auto_gptq") and any(
        name.endswith(("quantize_config.json", "quant_config.json")) for name in files
    ):
        return Verdict("quantization", UNKNOWN, "config.json declares no quantization; a file beside it does")
    fix = f"leave --quantization out, or take the model's {asked} form (a checkpoint of its own)"
    return Verdict("quantization", FAIL, f"{plain}: its weights are {situation.shape.torch_dtype}", fix)


def _content(situation: Situation, method: str) -> Iterator[Verdict]:
    """What the checkpoint says of itself that vLLM refuses wherever it runs."""
    quantized = situation.shape.quantized
    if quantized is None:
        return
    if quantized.lacks:
        message = f"config.json's quantization_config has no {' and no '.join(quantized.lacks)}, which {method} needs"
        yield Verdict("quantization", FAIL, message.replace("|", " or "), "download the model's config.json again")
    if quantized.act_order:
        name = "desc_act" if method == "gptq" else "actorder"
        message = f"the checkpoint's groups are out of order ({name}), which vLLM no longer loads"
        fix = "the same model quantized without it (desc_act false), or as AWQ"
        yield Verdict("quantization", FAIL, message, fix)
    bits = quantized.bits
    if method == "awq" and bits not in (None, 4):
        yield Verdict("quantization", FAIL, f"the checkpoint is awq of {bits} bits; vLLM loads 4", "another form")
    if method == "gptq" and bits is not None and (bits not in (4, 8) or not quantized.symmetric):
        kind = f"{bits} bits" if bits not in (4, 8) else "asymmetric (sym false)"
        message = f"the checkpoint is gptq, {kind}; vLLM loads 4 or 8 bits, symmetric"
        yield Verdict("quantization", FAIL, message, ANOTHER_FORM)
    if method == "gptq" and quantized.group_size not in GROUP_SIZES:
        sizes = ", ".join(map(str, GROUP_SIZES[1:]))
        message = f"the checkpoint's groups of {quantized.group_size} are of no size that vLLM has kernels for"
        yield Verdict("quantization", FAIL, f"{message} ({sizes})", ANOTHER_FORM)


def _device(situation: Situation, method: str) -> Iterator[Verdict]:
    machine = situation.machine
    if machine.backend == "cuda":
        gpus = [gpu for gpu in machine.visible.gpus[: situation.ranks_here] if gpu.capability]
        lowest = min(gpus, key=lambda gpu: gpu.capability or (), default=None)
        needed = divmod(LOWEST_CAPABILITY.get(method, 75 if method in ONLINE else 0), 10)
        if lowest and (lowest.capability or ()) < needed:
            message = "{} needs a GPU of compute capability {}.{}; ".format(method, *needed)
            message += f"{lowest.name} has {lowest.compute_capability}"
            yield Verdict("quantization", FAIL, message, "a newer GPU, or the model in 16 bits")
        return
    if machine.backend == "cpu":
        yield from _on_cpu(situation, method)


def _on_cpu(situation: Situation, method: str) -> Iterator[Verdict]:
    """What vllm/model_executor/kernels/linear and layers/fused_moe/experts/cpu_moe.py have no kernel for."""
    shape, model = situation.shape, situation.machine.cpu_model
    quantized = shape.quantized
    four_bit_floats = quantized and quantized.bits == 4 and quantized.floating
    if method == "fp8" and quantized and not quantized.block:
        # layers/quantization/fp8.py brings q, k and v to one scale with an operator that the CPU build lacks
        message = "vLLM cannot load fp8 weights with one scale per tensor on a CPU"
        yield Verdict("quantization", FAIL, message, "the model's 16-bit form, or one in AWQ or GPTQ")
    elif method in CPU_NEVER or (method == "mxfp4" and quantized is None) or (four_bit_floats and method != "mxfp4"):
        message = f"vLLM has no kernels for {method} on a CPU"
        yield Verdict("quantization", FAIL, message, "the model's 16-bit form, or one in AWQ or GPTQ")
    elif what := _needs_amx(shape, method):
        message = f"{what} run on CPUs with AMX only (Intel Sapphire Rapids or newer)"
        if "AMD" in model or "EPYC" in model or "Ryzen" in model:
            yield Verdict("quantization", FAIL, f"{message}; this is an {model}", "the model's 16-bit form")
        else:
            fix = "grep amx_tile /proc/cpuinfo; without: the 16-bit form"
            yield Verdict("quantization", UNKNOWN, message, fix)
    elif quantized and not quantized.floating and quantized.bits == 8 and quantized.activation_bits == 16:
        message = f"on a CPU vLLM loads integers of 4 bits, and the checkpoint's {method} has 8"
        yield Verdict("quantization", FAIL, message, "the 4-bit form, or the 16-bit one")


def _needs_amx(shape: ModelShape, method: str) -> str | None:
    quantized = shape.quantized
    if method == "fp8_per_block" or (quantized and quantized.block):
        return f"{method} in blocks"
    if shape.experts and (method in INT8_EXPERTS or (quantized and quantized.bits == 4)):
        return f"quantized experts ({method})"
    return None


def _dtype(situation: Situation, method: str) -> Iterator[Verdict]:
    plan, shape = situation.plan, situation.shape
    allowed = ACTIVATION_DTYPES.get(method, ("float16", "bfloat16") if method in ONLINE else ())
    dtype = dtype_of(plan, shape)
    if allowed and dtype not in allowed:
        message = f"{method} computes in {' or '.join(allowed)}, not in {dtype}"
        yield Verdict("quantization", FAIL, message, f"--dtype {allowed[-1]}")
