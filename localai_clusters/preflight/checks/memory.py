"""Whether weights, KV cache and one whole request fit."""

from collections.abc import Iterator

from localai_clusters.preflight.report import FAIL, PASS, UNKNOWN, Verdict
from localai_clusters.preflight.situation import Situation
from localai_clusters.sizing import CPU_BLOCK_TOKENS, CPU_RUNTIME_BYTES, MIB, size_of

GPU_MEMORY_UTILIZATION = 0.92  # vLLM 0.32's default
SHORTEST_CONTEXT = 16  # tokens; less is no context to offer


def check_memory(situation: Situation) -> Iterator[Verdict]:
    sizes, machine, plan = situation.sizes, situation.machine, situation.plan
    if sizes is None:
        if situation.shape is not None:
            kind = "mixture-of-experts" if situation.shape.num_experts else "quantized"
            yield Verdict("memory", UNKNOWN, f"the size of {kind} weights is not predicted")
        return
    if machine.backend == "cuda":
        yield from _gpu_memory(situation)
        return
    if machine.backend is None:
        return
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
    blocks = room // (max(size.kv_bytes_per_token for size in local) * CPU_BLOCK_TOKENS)
    tokens = min((blocks - 1) * CPU_BLOCK_TOKENS, situation.shape.max_position_embeddings)  # vLLM keeps a block back
    if tokens > 0:
        fix = f"--kv-cache-memory-bytes {room} --max-model-len {tokens}, or less"
    else:
        fix = f"a smaller model: the weights and the runtime alone take {size_of(fixed)}"
    yield Verdict("memory", FAIL, message, fix)


def _gpu_memory(situation: Situation) -> Iterator[Verdict]:
    plan, gpus = situation.plan, situation.machine.gpus
    share = plan.gpu_memory_utilization or GPU_MEMORY_UTILIZATION
    for size, gpu in zip(situation.sizes[: plan.nproc_per_node], gpus, strict=False):
        budget = int(gpu.memory_bytes * share)
        left = min(budget, gpu.memory_free_bytes) - size.weights_bytes
        message = f"rank {size.rank}: {size_of(size.weights_bytes)} of weights in {size_of(budget)} of GPU {gpu.index}"
        tokens = left // size.kv_bytes_per_token
        longest = plan.max_model_len or situation.shape.max_position_embeddings
        if budget > gpu.memory_free_bytes:
            free = gpu.memory_free_bytes / gpu.memory_bytes
            message = (
                f"GPU {gpu.index} has {size_of(gpu.memory_free_bytes)} free, {share:.0%} of it is {size_of(budget)}"
            )
            lower = f"--gpu-memory-utilization {int(free * 95) / 100} or less"
            yield Verdict("memory", FAIL, message, lower if free >= 0.02 else "end what fills it: nvidia-smi names it")
        elif tokens < SHORTEST_CONTEXT:
            yield Verdict("memory", FAIL, f"{message}: they do not fit", "a larger split, or a smaller model")
        elif tokens < longest:
            message += f": room for {tokens} tokens of KV cache, fewer than one request of {longest}"
            yield Verdict("memory", FAIL, message, f"--max-model-len {tokens // 2} or less")
        else:
            yield Verdict("memory", PASS, f"{message}, room for about {tokens} tokens of KV cache")


def check_context(situation: Situation) -> Iterator[Verdict]:
    shape, sizes, plan = situation.shape, situation.sizes, situation.plan
    if shape is None:
        return
    longest = plan.max_model_len or shape.max_position_embeddings
    if longest > shape.max_position_embeddings:
        message = f"the model was trained for {shape.max_position_embeddings} tokens, not for {longest}"
        yield Verdict("context length", FAIL, message, f"--max-model-len {shape.max_position_embeddings} or less")
        return
    held = min((size.kv_tokens for size in sizes if size.kv_tokens is not None), default=None) if sizes else None
    if held is None:
        yield Verdict("context length", PASS, f"requests of up to {longest} tokens")
        return
    if situation.machine.backend == "cpu":  # vLLM allots whole blocks and keeps one of them back
        held = max(held // CPU_BLOCK_TOKENS - 1, 0) * CPU_BLOCK_TOKENS
    if held < longest:
        blocks = -(-longest // CPU_BLOCK_TOKENS) + 1
        needed = max(size.kv_bytes_per_token for size in sizes) * blocks * CPU_BLOCK_TOKENS
        fix = f"--kv-cache-memory-bytes {needed}"
        if held >= SHORTEST_CONTEXT:
            fix = f"--max-model-len {held}, or {fix}"
        message = f"the KV cache holds {held} tokens, fewer than one request of {longest}"
        yield Verdict("context length", FAIL, message, fix)
    else:
        yield Verdict("context length", PASS, f"requests of up to {longest} tokens; the KV cache holds {held}")
