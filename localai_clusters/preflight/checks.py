"""The checks: each takes a Situation and yields verdicts that hold the number that is wrong and the one that fits."""

from collections.abc import Callable, Iterator

from localai_clusters.machine import SUPPORTED_VLLM
from localai_clusters.models import ModelShape
from localai_clusters.plan import is_loopback
from localai_clusters.preflight.report import FAIL, PASS, UNKNOWN, WARN, Verdict
from localai_clusters.preflight.situation import Situation
from localai_clusters.sizing import CPU_BLOCK_TOKENS, CPU_RUNTIME_BYTES, dtype_of, padded_vocab_size

Check = Callable[[Situation], Iterator[Verdict]]
GPU_MEMORY_UTILIZATION = 0.92  # vLLM 0.32's default
MIB = 1 << 20
GIB = 1 << 30
SHORTEST_CONTEXT = 16  # tokens; less is no context to offer


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


def check_world_size(situation: Situation) -> Iterator[Verdict]:
    plan = situation.plan
    started = f"--nnodes {plan.nnodes} x --nproc-per-node {plan.nproc_per_node} = {plan.world_size} ranks"
    split = f"tensor {plan.tensor_parallel_size} x pipeline {plan.pipeline_parallel_size} = {plan.split_size}"
    if plan.world_size == plan.split_size:
        yield Verdict("world size", PASS, f"{started}; {split}")
        return
    per_node, rest = divmod(plan.split_size, plan.nnodes)
    ways = [] if rest else [f"--nproc-per-node {per_node}"]
    stages, rest = divmod(plan.world_size, plan.tensor_parallel_size)
    if not rest:
        ways.append(f"--pipeline-parallel-size {stages}")
    ways = ways or [f"--tensor-parallel-size {plan.nproc_per_node} --pipeline-parallel-size {plan.nnodes}"]
    yield Verdict("world size", FAIL, f"{started}, but the split needs {split}", " or ".join(ways))


def check_heads(situation: Situation) -> Iterator[Verdict]:
    shape, tensor = situation.shape, situation.plan.tensor_parallel_size
    if shape is None:
        return
    fits = tensor_parallel_sizes(shape, max(64, tensor))
    heads, kv_heads = shape.num_attention_heads, shape.num_key_value_heads
    if tensor in fits:
        how = f"{heads // tensor} heads and {max(1, kv_heads // tensor)} KV heads on each of {tensor} ranks"
        yield Verdict("heads", PASS, how if tensor > 1 else f"{heads} heads and {kv_heads} KV heads, not split")
        return
    if heads % tensor:
        wrong = f"{heads} attention heads"
    elif not kv_heads_fit(kv_heads, tensor):
        wrong = f"{kv_heads} KV heads"
    elif shape.intermediate_size % tensor:
        wrong = f"an MLP of {shape.intermediate_size} columns"
    else:
        wrong = f"a vocabulary of {padded_vocab_size(shape)} (padded)"
    best = max(size for size in fits if size <= tensor)
    fix = f"--tensor-parallel-size {best}   (fits this model: {', '.join(map(str, fits))})"
    if situation.plan.model == "smollm2-135m-published":
        fix += "\nor --model smollm2-135m, the same model padded to 12 heads and 4 KV heads"
    yield Verdict("heads", FAIL, f"{wrong} cannot be shared equally by {tensor} tensor-parallel ranks", fix)


def check_layers(situation: Situation) -> Iterator[Verdict]:
    shape, stages = situation.shape, situation.plan.pipeline_parallel_size
    if shape is None:
        return
    layers = shape.num_hidden_layers
    if stages <= layers:
        yield Verdict("layers", PASS, f"{layers} layers in {stages} pipeline stage{'s' * (stages > 1)}")
    else:
        message = f"{layers} layers do not fill {stages} pipeline stages"
        yield Verdict("layers", FAIL, message, f"--pipeline-parallel-size {layers} or less")


def check_devices(situation: Situation) -> Iterator[Verdict]:
    machine, ranks = situation.machine, situation.ranks_here
    if machine.backend is None:
        return
    count = machine.devices
    noun = "GPU" if machine.backend == "cuda" else "core"
    nouns = noun + "s" * (count != 1)
    where = "a node" if situation.nodes_here == 1 else f"{situation.nodes_here} nodes that share a machine"
    if ranks <= count:
        yield Verdict("devices", PASS, f"{ranks} rank{'s' * (ranks > 1)} on {where} with {count} {nouns}")
        return
    message = f"{ranks} ranks on {where} with {count} {nouns}: each rank needs a {noun} of its own"
    if machine.backend == "cpu":
        message += "; two that share one wait for each other about a hundred times longer"
    flag = "--tensor-parallel-size" if situation.plan.tensor_parallel_size > 1 else "--pipeline-parallel-size"
    most = f"at most {max(count, 1)} rank{'s' * (count > 1)} on a node"
    yield Verdict("devices", FAIL, message, f"{most}: a smaller {flag}, or more nodes")


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
        f"up to {_size(largest.weights_bytes)} of weights, {_size(largest.kv_cache_bytes or 0)} of KV cache and "
        f"{_size(CPU_RUNTIME_BYTES)} of runtime per rank"
    )
    message = f"{each}: {_size(needed)} for {len(local)} of {_size(machine.memory_available_bytes)} available"
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
        fix = f"a smaller model: the weights and the runtime alone take {_size(fixed)}"
    yield Verdict("memory", FAIL, message, fix)


def _gpu_memory(situation: Situation) -> Iterator[Verdict]:
    plan, gpus = situation.plan, situation.machine.gpus
    share = plan.gpu_memory_utilization or GPU_MEMORY_UTILIZATION
    for size, gpu in zip(situation.sizes[: plan.nproc_per_node], gpus, strict=False):
        budget = int(gpu.memory_bytes * share)
        left = min(budget, gpu.memory_free_bytes) - size.weights_bytes
        message = f"rank {size.rank}: {_size(size.weights_bytes)} of weights in {_size(budget)} of GPU {gpu.index}"
        tokens = left // size.kv_bytes_per_token
        longest = plan.max_model_len or situation.shape.max_position_embeddings
        if budget > gpu.memory_free_bytes:
            free = gpu.memory_free_bytes / gpu.memory_bytes
            message = f"GPU {gpu.index} has {_size(gpu.memory_free_bytes)} free, {share:.0%} of it is {_size(budget)}"
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


def check_ports(situation: Situation) -> Iterator[Verdict]:
    plan, busy = situation.plan, dict(situation.busy_ports)
    for flag, port in (("--port", plan.port), ("--master-port", plan.master_port)):
        if port in busy:
            other = _next_port(port, {*busy, plan.port, plan.master_port})
            fix = f"{flag} {other}, or {flag} 0 for any free one"
            yield Verdict("ports", FAIL, f"port {port} is taken by {busy[port]}", fix)
    if not busy:
        shown = [str(port) if port else "any free port" for port in (plan.port, plan.master_port)]
        yield Verdict("ports", PASS, f"server on {shown[0]}, torchrun on {shown[1]}: free")


def check_master_address(situation: Situation) -> Iterator[Verdict]:
    plan, machine = situation.plan, situation.machine
    if plan.nnodes == 1 or situation.nodes_here > 1:
        return
    own = [address for address in machine.interfaces.values() if not address.startswith("127.")]
    if is_loopback(plan.master_addr):
        message = f"--master-addr {plan.master_addr} is every machine's own: no other node would find node 0 there"
        node_0 = f"--master-addr {' or '.join(own)}" if own else "--master-addr ADDRESS"
        yield Verdict("master address", FAIL, message, node_0 if situation.node_rank == 0 else "node 0's address")
    elif situation.node_rank == 0 and plan.master_addr in situation.foreign_hosts:
        message = f"--master-addr {plan.master_addr} is not an address of this machine, and node 0 runs here"
        yield Verdict("master address", FAIL, message, f"--master-addr {' or '.join(own)}, or --node-rank 1 here")
    else:
        yield Verdict("master address", PASS, f"the nodes meet at {plan.master_addr}:{plan.master_port}")


def check_exposure(situation: Situation) -> Iterator[Verdict]:
    plan = situation.plan
    if plan.host in situation.foreign_hosts:
        message = f"--host {plan.host} is not an address of this machine"
        yield Verdict("exposure", FAIL, message, "--host 127.0.0.1 (this machine) or 0.0.0.0 (all networks)")
    elif plan.is_loopback:
        yield Verdict("exposure", PASS, f"the server listens on {plan.host}, for this machine only")
    else:
        key = "with the API key" if situation.has_api_key else "with an API key that is made and shown once"
        yield Verdict("exposure", WARN, f"the server listens on {plan.host}: other machines can reach it, {key}")
    if situation.nodes_here == 1 and (plan.nnodes > 1 or not plan.is_loopback):
        port = plan.master_port or "chosen at launch"
        message = f"torchrun's rendezvous (port {port}) listens on all networks and asks nobody who they are"
        fix = "a firewall that lets no other machine reach it"
        if plan.nnodes > 1:
            message += "; so do Gloo and NCCL, on ports of the system's choice"
            fix = "a private network, or a firewall, that lets only the nodes reach one another's ports"
        yield Verdict("exposure", WARN, message, fix)


def check_shared_memory(situation: Situation) -> Iterator[Verdict]:
    plan, machine = situation.plan, situation.machine
    needed = (24 + 4 * situation.ranks_here) * MIB  # lockstep's queue (6 chunks of 4 MiB) and a segment per rank
    if plan.nproc_per_node == 1:
        return
    if machine.shm_free_bytes < needed:
        message = f"/dev/shm has {_size(machine.shm_free_bytes)} free; the ranks need {_size(needed)}"
        fix = "docker run --shm-size=1g ..., or: mount -o remount,size=1G /dev/shm"
        yield Verdict("shared memory", FAIL, message, fix)
    else:
        yield Verdict("shared memory", PASS, f"/dev/shm has {_size(machine.shm_free_bytes)} free")


def check_versions(situation: Situation) -> Iterator[Verdict]:
    machine = situation.machine
    vllm = machine.versions.get("vllm")
    if vllm is None:
        yield Verdict("versions", FAIL, "vLLM is not installed", "make setup")
    elif vllm.split("+")[0] != SUPPORTED_VLLM:
        message = f"vLLM {vllm} is installed; the torchrun server is built on {SUPPORTED_VLLM}"
        yield Verdict("versions", FAIL, message, "make setup")
    elif machine.backend == "cuda" and not machine.gpus:
        message = f"vLLM {vllm} for GPUs is installed, but no NVIDIA driver answers"
        yield Verdict("versions", FAIL, message, "./setup.sh --variant cpu, or mend the driver (nvidia-smi)")
    else:
        build = "CPU" if machine.backend == "cpu" else "CUDA"
        torch = machine.versions.get("torch", "none")
        yield Verdict("versions", PASS, f"vLLM {vllm} ({build}), torch {torch}, Python {machine.python}")


def check_dtype(situation: Situation) -> Iterator[Verdict]:
    shape, machine = situation.shape, situation.machine
    if shape is None or machine.backend != "cuda" or not machine.gpus:
        return
    lowest = min(machine.gpus, key=lambda gpu: float(gpu.compute_capability))
    if dtype_of(situation.plan, shape) != "bfloat16" or float(lowest.compute_capability) >= 8.0:
        return
    message = f"{lowest.name} (compute capability {lowest.compute_capability}) has no bfloat16; it came with 8.0"
    if situation.plan.dtype == "auto":  # vllm/config/model.py, _resolve_auto_dtype
        yield Verdict("dtype", WARN, f"{message}. vLLM takes float16 in its place", "--dtype float16")
    else:
        yield Verdict("dtype", FAIL, message, "--dtype float16")


def kv_heads_fit(kv_heads: int, tensor: int) -> bool:
    """vLLM's rule: split evenly, or each repeated evenly when there are fewer than ranks."""
    return kv_heads % tensor == 0 if kv_heads >= tensor else tensor % kv_heads == 0


def tensor_parallel_sizes(shape: ModelShape, limit: int = 64) -> list[int]:
    """The tensor parallel sizes that vLLM can split this model into, up to ``limit``."""
    return [
        size
        for size in range(1, min(limit, shape.num_attention_heads) + 1)
        if shape.num_attention_heads % size == 0
        and kv_heads_fit(shape.num_key_value_heads, size)
        and shape.intermediate_size % size == 0
        and padded_vocab_size(shape) % size == 0
    ]


def _next_port(port: int, taken: set[int]) -> int:
    """The first port above ``port`` (and above those only root may use) that is not in ``taken``."""
    above, below = range(max(port + 1, 1024), 1 << 16), range(1024, port)
    return next(number for ports in (above, below) for number in ports if number not in taken)


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"


CHECKS: tuple[Check, ...] = (
    check_versions,
    check_model,
    check_world_size,
    check_heads,
    check_layers,
    check_quantization,
    check_dtype,
    check_devices,
    check_memory,
    check_context,
    check_shared_memory,
    check_ports,
    check_master_address,
    check_exposure,
)
