"""Whether each rank's share of a quantized matrix holds whole groups, blocks and tiles.

Files without a folder are in vllm/model_executor/layers/quantization of vLLM 0.32.
"""

from collections.abc import Iterator

from localai_clusters.models.linears import ROW, WHOLE, Linear, layer_linears
from localai_clusters.models.quantization import Quantization
from localai_clusters.preflight.report import FAIL, WARN, Verdict
from localai_clusters.preflight.situation import Situation
from localai_clusters.sizing import distinct_layers, dtype_of, tensor_parallel_sizes
from localai_clusters.vllm_flags import is_on, value_of

CPU_TILE = 32  # vllm/model_executor/kernels/linear/mixed_precision/cpu.py, can_implement
SMALLEST_EXPERT_GROUP = 32  # moe_wna16.py, create_weights
SILENT = "; vLLM does not look, and the ranks would read other groups' scales: "
ON_A_GPU, ON_A_CPU = "nonsense comes out", "its CPU kernel crashes"  # the latter was met, with GPTQ


def quantized_split(situation: Situation, method: str) -> Iterator[Verdict]:
    """Whether each rank's share of every matrix holds whole groups, blocks and tiles."""
    plan, shape = situation.plan, situation.shape
    quantized, tensor = shape.quantized, plan.tensor_parallel_size
    if quantized is None or quantized.bits is None or value_of(plan.extra_args, "--linear-backend"):
        return
    expert_parallel = is_on(plan.extra_args, "--enable-expert-parallel")
    fits = tensor_parallel_sizes(shape, max(64, tensor), expert_parallel)
    if tensor not in fits:  # the heads do not divide: the check of heads says so
        return
    wrong = misfit(situation, tensor)
    if wrong is None:
        return
    best = max((size for size in fits if misfit(situation, size) is None), default=None)
    fix = f"--tensor-parallel-size {best}" if best else "the model's 16-bit form"
    if best and tensor % best == 0 and best < tensor:
        fix += f" --pipeline-parallel-size {tensor // best * plan.pipeline_parallel_size}"
    if wrong.endswith(SILENT):
        status, outcome = (FAIL, ON_A_CPU) if situation.machine.backend == "cpu" else (WARN, ON_A_GPU)
        yield Verdict("quantization", status, wrong + outcome, fix)
    else:
        yield Verdict("quantization", FAIL, wrong, fix)


def misfit(situation: Situation, tensor: int) -> str | None:
    """What of a quantized matrix ``tensor`` ranks cannot share, in numbers; None if all fits."""
    shape, backend = situation.shape, situation.machine.backend
    quantized, family = shape.quantized, shape.family
    prefix = family.prefix if family else "model.layers.{}"
    expert_parallel = is_on(situation.plan.extra_args, "--enable-expert-parallel")
    for layer in distinct_layers(shape):
        for linear in layer_linears(shape, layer):
            module = f"{prefix.format(layer)}.{linear.module}"
            if linear.plain or any(quantized.skips(f"{module}.{part.name}") for part in linear.parts):
                continue
            if quantized.method == "mxfp4":
                continue  # padded to whole blocks
            split = 1 if expert_parallel and linear.copies > 1 else tensor
            wrong = _cpu_tiles(linear, split) if backend == "cpu" and quantized.bits == 4 else None
            if quantized.block:
                wrong = _blocks(linear, split, quantized)
            if wrong := wrong or _groups(linear, split, situation):
                return wrong
    return None


def _share(linear: Linear, name: str, whole: int, share: int, side: str, tensor: int) -> str:
    at = f"; at TP={tensor} each rank gets {share}" if tensor > 1 and share != whole else ""
    return f"{name} {'have' if ' and ' in name else 'has'} {whole} {side} columns{at}"


def _blocks(linear: Linear, tensor: int, quantized: Quantization) -> str | None:
    """utils/fp8_utils.py, validate_fp8_block_shape and validate_fp8_block_shape_moe."""
    block_n, block_k = quantized.block
    rows, is_expert = linear.rows(tensor), linear.copies > 1
    if linear.split == ROW and tensor > 1 and rows % block_k:
        share = _share(linear, linear.parts[0].name, linear.inputs, rows, "input", tensor)
        return f"{share}, which is not a multiple of the block's {block_k}"
    if linear.split == ROW or (tensor == 1 and len(linear.parts) == 1):
        return None
    sharing = tensor > 1 and linear.split != WHOLE
    checked = linear.parts if sharing or is_expert else linear.parts[:-1]
    for part in checked:
        columns = part.columns(tensor if sharing else 1)
        if columns % block_n:
            share = _share(linear, part.name, part.units * part.width, columns, "output", tensor)
            return f"{share}, which is not a multiple of the block's {block_n}"
    return None


def _groups(linear: Linear, tensor: int, situation: Situation) -> str | None:
    """A group of weights that share a scale must not lie across two ranks.

    compressed_tensors_wNa16.py (verify_group_size_divides_partition) and, on a GPU, auto_awq.py (create_weights)
    refuse it; experts fall back to smaller groups (moe_wna16.py).
    """
    quantized, backend = situation.shape.quantized, situation.machine.backend
    group, rows = quantized.group_size, linear.rows(tensor)
    if group <= 0 or linear.split != ROW or group >= linear.inputs or rows % group == 0:
        return None
    wrong = f"{_share(linear, linear.parts[0].name, linear.inputs, rows, 'input', tensor)}, which is not a multiple of "
    wrong += f"the group size {group}"
    if linear.copies > 1 and quantized.method in ("awq", "gptq"):
        while rows % group or linear.parts[0].units % group:
            group //= 2
        return wrong if group < SMALLEST_EXPERT_GROUP else None
    if quantized.method == "awq" and backend == "cpu":
        return wrong + SILENT
    if quantized.method == "gptq" and (backend == "cpu" or _has_careless_kernel(linear, tensor, situation)):
        return wrong + SILENT
    return wrong


def _has_careless_kernel(linear: Linear, tensor: int, situation: Situation) -> bool:
    """Whether one of the kernels for GPTQ on a GPU takes a group in parts: Exllama does, in float16 alone, and Machete,
    on Hopper alone (can_implement of each in vllm/model_executor/kernels/linear/mixed_precision)."""
    if dtype_of(situation.plan, situation.shape) == "float16":
        return True
    hopper = any(gpu.capability == (9, 0) for gpu in situation.machine.visible.gpus[:1])
    return hopper and linear.rows(tensor) % 64 == 0 and sum(linear.columns(tensor)) % 128 == 0


def _cpu_tiles(linear: Linear, tensor: int) -> str | None:
    rows, columns = linear.rows(tensor), sum(linear.columns(tensor))
    if rows % CPU_TILE:
        share = _share(linear, linear.names, linear.inputs, rows, "input", tensor)
    elif columns % CPU_TILE:
        share = _share(linear, linear.names, sum(linear.columns(1)), columns, "output", tensor)
    else:
        return None
    return f"{share}; vLLM's CPU kernel takes multiples of {CPU_TILE}"
