"""Whether the split's numbers fit together and fit the model."""

from collections.abc import Iterator

from localai_clusters.preflight.report import FAIL, PASS, Verdict
from localai_clusters.preflight.situation import Situation
from localai_clusters.sizing import kv_heads_fit, padded_vocab_size, tensor_parallel_sizes


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
