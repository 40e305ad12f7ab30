"""Whether weights, KV cache and one whole request fit."""

from collections.abc import Iterator

from localai_clusters.kv_cache import KvLayout, batch_limits, kv_layouts
from localai_clusters.machine import Gpu
from localai_clusters.models import ModelShape
from localai_clusters.plan import ServePlan
from localai_clusters.preflight.report import FAIL, PASS, UNKNOWN, WARN, Verdict
from localai_clusters.preflight.situation import Situation
from localai_clusters.sizing import (
    CPU_RUNTIME_BYTES,
    DTYPE_BYTES,
    GIB,
    MIB,
    RankSize,
    dtype_of,
    padded_vocab_size,
    rank_sizes,
    size_of,
    unpredicted,
)
from localai_clusters.vllm_flags import is_on, number_of, value_of

GPU_MEMORY_UTILIZATION = 0.92  # vLLM 0.32's default
SHORTEST_CONTEXT = 16  # tokens; less is no context to offer
# Not measured here: a CUDA context with NCCL's buffers, and the graphs of decoding steps.
GPU_CONTEXT_BYTES, GPU_GRAPH_BYTES = 512 * MIB, 512 * MIB


def check_memory(situation: Situation) -> Iterator[Verdict]:
    machine = situation.machine
    if situation.shape is None or machine.backend is None:
        return
    if situation.sizes is None:
        yield _part_of_it(situation)
    elif machine.backend == "cuda":
        yield from _gpu_memory(situation)
    else:
        yield from _cpu_memory(situation)


def _part_of_it(situation: Situation) -> Verdict:
    """For weights that are not predicted: the least that they take, from what is known of them."""
    plan, shape, machine, facts = situation.plan, situation.shape, situation.machine, situation.facts
    kind = unpredicted(shape)
    least, source = 0, ""
    if kind is None:
        message = f"the size of what stands beside the language model ({', '.join(shape.towers)}) is not predicted"
        least = min(size.weights_bytes for size in rank_sizes(plan, shape))
        source = f"the language model alone takes {size_of(least)} of each rank"
    else:
        message = f"the size of {kind} weights is not predicted"
        if facts and facts.weights_bytes:
            grown = 1 if shape.quantization else DTYPE_BYTES[dtype_of(plan, shape)] / DTYPE_BYTES[shape.torch_dtype]
            least = int(facts.weights_bytes * grown) // plan.split_size
            source = f"its files hold {size_of(facts.weights_bytes)}, so a rank about {size_of(least)}"
    message += f"; {source}" if source else ""
    room = machine.memory_available_bytes // situation.ranks_here
    if machine.backend == "cuda":
        room = min((gpu.memory_bytes for gpu in machine.visible.gpus[: plan.nproc_per_node]), default=least)
    if least > room:
        return Verdict("memory", FAIL, f"{message}, of {size_of(room)}", "a larger split, or a smaller model")
    return Verdict("memory", UNKNOWN, message)


def _cpu_memory(situation: Situation) -> Iterator[Verdict]:
    sizes, machine, plan = situation.sizes, situation.machine, situation.plan
    first = situation.node_rank * plan.nproc_per_node
    local = sizes[first : first + situation.ranks_here]
    needed = sum(size.weights_bytes + (size.kv_cache_bytes or 0) + CPU_RUNTIME_BYTES for size in local)
    largest = max(local, key=lambda size: size.weights_bytes)
    each = (
        f"up to {size_of(largest.weights_bytes)} of weights, {size_of(largest.kv_cache_bytes or 0)} of KV cache and "
        f"{size_of(CPU_RUNTIME_BYTES)} of runtime per rank"
    )
    message = f"{each}: {size_of(needed)} for {len(local)} of {size_of(machine.memory_available_bytes)} available"
    if needed <= machine.memory_available_bytes:
        yield Verdict("memory", PASS, message)
        return
    fixed = sum(size.weights_bytes + CPU_RUNTIME_BYTES for size in local)
    room = (machine.memory_available_bytes - fixed) // len(local) // MIB * MIB
    layouts = kv_layouts(plan, situation.shape, "cpu")
    longest = situation.shape.default_max_model_len
    tokens = min(layout.longest_request(room, longest) for layout in layouts) if room > 0 else 0
    if tokens >= SHORTEST_CONTEXT:
        fix = f"--kv-cache-memory-bytes {room} --max-model-len {tokens}, or less"
    else:
        fix = f"a smaller model: the weights and the runtime alone take {size_of(fixed)}"
    yield Verdict("memory", UNKNOWN if _shrinks_on_loading(situation) else FAIL, message, fix)


def _shrinks_on_loading(situation: Situation) -> bool:
    """Whether vLLM makes the weights smaller than they are counted here (``--quantization`` of 16-bit weights)."""
    return situation.plan.quantization is not None and situation.shape.quantization is None


def _gpu_memory(situation: Situation) -> Iterator[Verdict]:
    plan, shape = situation.plan, situation.shape
    share = plan.gpu_memory_utilization or GPU_MEMORY_UTILIZATION
    first = situation.node_rank * plan.nproc_per_node
    local = situation.sizes[first : first + situation.ranks_here]
    for size, gpu in zip(local, situation.machine.visible.gpus, strict=False):
        budget = int(gpu.memory_bytes * share)
        if budget > gpu.memory_free_bytes:  # whatever --kv-cache-memory-bytes says: vllm/v1/worker/utils.py
            free = gpu.memory_free_bytes / gpu.memory_bytes
            message = (
                f"GPU {gpu.index} has {size_of(gpu.memory_free_bytes)} free, {share:.0%} of it is {size_of(budget)}"
            )
            lower = f"--gpu-memory-utilization {int(free * 95) / 100} or less"
            yield Verdict("memory", FAIL, message, lower if free >= 0.02 else "end what fills it: nvidia-smi names it")
            continue
        yield _one_gpu(situation, size, gpu, budget, layout_of(plan, shape, size, gpu))


def layout_of(plan: ServePlan, shape: ModelShape, size: RankSize, gpu: Gpu) -> KvLayout:
    return kv_layouts(plan, shape, "cuda", _bytes_for_batch(gpu))[size.pipeline_parallel_rank]


def _bytes_for_batch(gpu: Gpu) -> int:
    """vLLM gives an A100 the batch of a smaller GPU (vllm/engine/arg_utils.py, get_batch_defaults)."""
    return 0 if "a100" in gpu.name.lower() and gpu.memory_bytes < 160 * GIB else gpu.memory_bytes


def _one_gpu(situation: Situation, size: RankSize, gpu: Gpu, budget: int, layout: KvLayout) -> Verdict:
    plan, shape = situation.plan, situation.shape
    offloaded = int(number_of(plan.extra_args, "--cpu-offload-gb", 0) * GIB)
    weights = max(0, size.weights_bytes - offloaded)
    runtime = _runtime_bytes(plan, shape, gpu)
    longest = plan.max_model_len or shape.default_max_model_len
    message = f"rank {size.rank}: {size_of(weights)} of weights in {size_of(budget)} of GPU {gpu.index}"
    fail = UNKNOWN if _shrinks_on_loading(situation) else FAIL
    if size.kv_cache_bytes is not None:  # as it was told to: the budget does not count then
        needed = weights + size.kv_cache_bytes
        message = (
            f"rank {size.rank}: {size_of(weights)} of weights and {size_of(size.kv_cache_bytes)} of KV cache "
            f"in {size_of(gpu.memory_free_bytes)} of GPU {gpu.index}, beside about {size_of(runtime)} of activations"
        )
        room = gpu.memory_free_bytes - weights - runtime
        fix = f"--kv-cache-memory-bytes {room} or less" if room > 0 else "a larger split, or a smaller model"
        if needed > gpu.memory_free_bytes:
            return Verdict("memory", fail, message, fix)
        return Verdict("memory", PASS, message) if room >= size.kv_cache_bytes else Verdict(
            "memory", WARN, f"{message}: tight", fix
        )  # fmt: skip
    left = budget - weights
    tokens = layout.longest_request(max(0, left), longest)
    likely = layout.longest_request(max(0, left - runtime), longest)
    if tokens < min(SHORTEST_CONTEXT, longest):
        return Verdict("memory", fail, f"{message}: they do not fit", "a larger split, or a smaller model")
    fix = f"--max-model-len {likely if likely >= SHORTEST_CONTEXT else max(SHORTEST_CONTEXT, tokens // 2)} or less"
    if tokens < longest:
        message += f": room for {tokens} tokens of KV cache, fewer than one request of {longest}"
        return Verdict("memory", fail, message, fix)
    if likely < longest:
        message += f", and about {size_of(runtime)} of activations: too little is left, it seems, for the KV cache of "
        return Verdict("memory", WARN, f"{message}one request of {longest} tokens", fix)
    held = layout.capacity(left - runtime, longest)
    return Verdict("memory", PASS, f"{message}, room for about {held} tokens of KV cache")


def _runtime_bytes(plan: ServePlan, shape: ModelShape, gpu: Gpu) -> int:
    """About what a rank holds on its GPU beside weights and KV cache. An estimate, held to nothing measured here:
    the widest point of a full batch (MLP or sampling, in float32), CUDA's context, and graphs unless switched off."""
    tokens, requests = batch_limits(plan, shape, "cuda", _bytes_for_batch(gpu))
    element, tensor = DTYPE_BYTES[dtype_of(plan, shape)], plan.tensor_parallel_size
    widest = tokens * (4 * shape.hidden_size + 3 * shape.intermediate_size // tensor) * element
    sampling = requests * padded_vocab_size(shape) * 4 * 3
    graphs = 0 if is_on(plan.extra_args, "--enforce-eager") else GPU_GRAPH_BYTES
    return max(widest, sampling) + GPU_CONTEXT_BYTES + graphs


def check_context(situation: Situation) -> Iterator[Verdict]:
    """vllm/config/model.py, _get_and_verify_max_len; vllm/v1/core/kv_cache_utils.py, _check_enough_kv_cache_memory."""
    shape, sizes, plan, machine = situation.shape, situation.sizes, situation.plan, situation.machine
    if shape is None:
        return
    longest, trained = plan.max_model_len or shape.default_max_model_len, shape.longest_context
    if longest > trained and not value_of(plan.extra_args, "--hf-overrides"):
        message = f"the model was trained for {trained} tokens, not for {longest}"
        fix = f"--max-model-len {trained} or less"
        if machine.environment.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") in ("1", "true", "True"):
            yield Verdict("context length", WARN, f"{message}; VLLM_ALLOW_LONG_MAX_MODEL_LEN lets it pass", fix)
        else:
            yield Verdict("context length", FAIL, message, fix)
        return
    if not sizes or sizes[0].kv_cache_bytes is None:
        yield Verdict("context length", PASS, f"requests of up to {longest} tokens")
        return
    cache = sizes[0].kv_cache_bytes
    layouts = kv_layouts(plan, shape, machine.backend)
    if all(layout.bytes_for(longest) <= cache for layout in layouts):
        held = min(usable_tokens(layout, cache, longest) for layout in layouts)
        yield Verdict("context length", PASS, f"requests of up to {longest} tokens; the KV cache holds {held}")
        return
    held = min(layout.longest_request(cache, longest) for layout in layouts)
    fix = f"--kv-cache-memory-bytes {max(layout.bytes_for(longest) for layout in layouts)}"
    if held >= SHORTEST_CONTEXT:
        fix = f"--max-model-len {held}, or {fix}"
    message = f"the KV cache holds {held} tokens, fewer than one request of {longest}"
    yield Verdict("context length", FAIL, message, fix)


def usable_tokens(layout: KvLayout, cache_bytes: int, longest: int) -> int:
    """Tokens that requests can have in the cache at once, without the block that vLLM keeps back."""
    if layout.local_groups:
        return layout.capacity(cache_bytes - layout.block_bytes, longest)
    return (cache_bytes // layout.block_bytes - 1) * layout.block_tokens
