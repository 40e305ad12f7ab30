"""Whether the split's numbers fit together and fit the model."""

from collections.abc import Iterator

from localai_clusters.preflight.report import FAIL, PASS, Verdict
from localai_clusters.preflight.situation import Situation
from localai_clusters.sizing import tensor_parallel_sizes, unsplittable
from localai_clusters.vllm_flags import is_on

CPU_TILE = 32

CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # v1/attention/backends/cpu_attn.py


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
    expert_parallel = is_on(situation.plan.extra_args, "--enable-expert-parallel")
    if expert_parallel and not shape.num_experts:
        message = "--enable-expert-parallel shares out experts, and this model has none"
        yield Verdict("heads", FAIL, message, "leave --enable-expert-parallel out")
    heads, kv_heads = shape.num_attention_heads, shape.num_key_value_heads
    wrong = unsplittable(shape, tensor, expert_parallel)
    if wrong is None and situation.machine.backend == "cpu" and (tile := _experts_off_tile(situation, expert_parallel)):
        yield Verdict("heads", FAIL, tile, "another --tensor-parallel-size, or -- --enable-expert-parallel")
    elif wrong is None and situation.machine.backend == "cpu" and not shape.latent and shape.head_dim not in CPU_HEADS:
        message = f"vLLM's attention on a CPU takes heads of {', '.join(map(str, CPU_HEADS))}, not of {shape.head_dim}"
        yield Verdict("heads", FAIL, message, "a GPU, or another model")
    elif wrong is None:
        kept = "one latent vector a token" if shape.latent else f"{max(1, kv_heads // tensor)} KV heads"
        how = f"{heads // tensor} heads and {kept} on each of {tensor} ranks"
        yield Verdict("heads", PASS, how if tensor > 1 else f"{heads} heads and {kv_heads} KV heads, not split")
    if wrong is None:
        return
    fits = tensor_parallel_sizes(shape, max(64, tensor), expert_parallel)
    best = max(size for size in fits if size <= tensor)
    fix = f"--tensor-parallel-size {best}   (fits this model: {', '.join(map(str, fits))})"
    if situation.plan.model == "smollm2-135m-published":
        fix += "\nor --model smollm2-135m, the same model padded to 12 heads and 4 KV heads"
    yield Verdict("heads", FAIL, f"{wrong} cannot be shared equally by {tensor} tensor-parallel ranks", fix)


def _experts_off_tile(situation: Situation, expert_parallel: bool) -> str | None:
    """Experts whose share vLLM's CPU kernel cannot take: layers/fused_moe/experts/cpu_moe.py, _supports_grouped_gemm.

    It pads their columns, but not those of gpt-oss.
    """
    shape, tensor = situation.shape, situation.plan.tensor_parallel_size
    if shape.experts is None or shape.quantization:
        return None
    share = shape.experts.intermediate_size // (1 if expert_parallel else tensor)
    if shape.hidden_size % CPU_TILE:
        return f"vLLM's CPU kernel takes experts of multiples of {CPU_TILE} rows; these have {shape.hidden_size}"
    if shape.model_type == "gpt_oss" and share % CPU_TILE:
        at = f"at TP={tensor} each rank gets {share} of {shape.experts.intermediate_size} columns of each expert"
        return f"{at}; vLLM's CPU kernel takes multiples of {CPU_TILE}"
    return None


def check_layers(situation: Situation) -> Iterator[Verdict]:
    shape, stages = situation.shape, situation.plan.pipeline_parallel_size
    if shape is None:
        return
    layers = shape.num_hidden_layers
    support = situation.facts.support if situation.facts else None
    if stages > layers:
        message = f"{layers} layers do not fill {stages} pipeline stages"
        yield Verdict("layers", FAIL, message, f"--pipeline-parallel-size {layers} or less")
    elif stages > 1 and support and support.pipeline is False:
        message = f"vLLM cannot put the layers of {support.own_class} into pipeline stages"
        yield Verdict("layers", FAIL, message, "--pipeline-parallel-size 1")
    else:
        yield Verdict("layers", PASS, f"{layers} layers in {stages} pipeline stage{'s' * (stages > 1)}")
