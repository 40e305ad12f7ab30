"""sizing.py: bytes per rank, held to published figures and to what vLLM measured."""

import math
from dataclasses import replace

import pytest

from localai_clusters.kv_cache import cpu_kv_cache_bytes
from localai_clusters.models import BUILT_IN, ModelShape
from localai_clusters.plan import ServePlan
from localai_clusters.sizing import (
    CPU_BLOCK_TOKENS,
    CPU_KV_CACHE_BYTES,
    dtype_of,
    kv_bytes_per_token,
    pipeline_layers,
    rank_sizes,
)

MIB = 1 << 20
PADDED, PUBLISHED = BUILT_IN["smollm2-135m"].shape, BUILT_IN["smollm2-135m-published"].shape


def shape_of(model_type="llama", architecture="LlamaForCausalLM", **config) -> ModelShape:
    return ModelShape.from_config({"model_type": model_type, "architectures": [architecture], **config})


# As in the models' config.json on Hugging Face.
LLAMA_3_70B = shape_of(
    num_hidden_layers=80, hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_key_value_heads=8,
    vocab_size=128256, max_position_embeddings=131072, tie_word_embeddings=False, torch_dtype="bfloat16",
)  # fmt: skip
LLAMA_2_70B = shape_of(
    num_hidden_layers=80, hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_key_value_heads=8,
    vocab_size=32000, max_position_embeddings=4096, tie_word_embeddings=False, torch_dtype="float16",
)  # fmt: skip
QWEN_2_5_HALF_B = shape_of(
    "qwen2", "Qwen2ForCausalLM", num_hidden_layers=24, hidden_size=896, intermediate_size=4864, num_attention_heads=14,
    num_key_value_heads=2, vocab_size=151936, max_position_embeddings=32768, tie_word_embeddings=True,
    torch_dtype="bfloat16",
)  # fmt: skip
QWEN_3_06B = shape_of(
    "qwen3", "Qwen3ForCausalLM", num_hidden_layers=28, hidden_size=1024, intermediate_size=3072, num_attention_heads=16,
    num_key_value_heads=8, head_dim=128, vocab_size=151936, max_position_embeddings=40960, tie_word_embeddings=True,
    torch_dtype="bfloat16",
)  # fmt: skip


def split(tensor=1, pipeline=1, **fields) -> ServePlan:
    return ServePlan(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline, **fields)


def parameters(shape: ModelShape) -> int:
    (size,) = rank_sizes(split(dtype="float32"), shape)
    return size.weights_bytes // 4


# Known figures


@pytest.mark.parametrize(
    ("shape", "published"),
    [
        (PUBLISHED, 134_515_008),
        (LLAMA_2_70B, 68_976_648_192),
        (LLAMA_3_70B, 70_553_706_496),
        (QWEN_2_5_HALF_B, 494_032_768),
        (QWEN_3_06B, 596_049_920),
    ],
    ids=["SmolLM2-135M", "Llama-2-70b", "Llama-3.3-70B", "Qwen2.5-0.5B", "Qwen3-0.6B"],
)
def test_parameters_are_those_of_the_published_model(shape, published):
    assert parameters(shape) == published


def test_llama_2_70b_in_16_bits_weighs_about_138_gb():
    (size,) = rank_sizes(split(), LLAMA_2_70B)
    assert size.weights_bytes == pytest.approx(138e9, rel=0.001)


def test_llama_3_70b_keeps_327680_bytes_per_token():
    assert kv_bytes_per_token(LLAMA_3_70B, 80, 1, "bfloat16") == 327_680
    assert {size.kv_bytes_per_token for size in rank_sizes(split(8), LLAMA_3_70B)} == {327_680 // 8}
    assert {size.kv_bytes_per_token for size in rank_sizes(split(1, 4), LLAMA_3_70B)} == {327_680 // 4}


@pytest.mark.parametrize(("tensor", "pipeline", "measured"), [(2, 1, 273.5), (1, 2, 327.4)])
def test_each_rank_of_the_built_in_model_weighs_what_vllm_measured(tensor, pipeline, measured):
    sizes = rank_sizes(split(tensor, pipeline, dtype="float32"), PADDED)
    assert [round(size.weights_bytes / MIB, 1) for size in sizes] == [measured, measured]


# How a split shares the model


@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_tensor_parallel_ranks_hold_the_unsplit_model_and_every_norm_once_more(tensor):
    (whole,) = rank_sizes(split(), LLAMA_3_70B)
    norms = (2 * 80 + 1) * 8192 * 2  # two a layer and the final one, in 16 bits
    sizes = rank_sizes(split(tensor), LLAMA_3_70B)
    assert sum(size.weights_bytes for size in sizes) - (tensor - 1) * norms == whole.weights_bytes
    assert len({size.weights_bytes for size in sizes}) == 1


@pytest.mark.parametrize(
    ("shape", "embedding_again"), [(LLAMA_3_70B, 0), (QWEN_3_06B, 151936 * 1024 * 2)], ids=["untied", "tied"]
)
def test_pipeline_stages_hold_the_unsplit_model_and_a_tied_embedding_twice(shape, embedding_again):
    (whole,) = rank_sizes(split(), shape)
    sizes = rank_sizes(split(1, 4), shape)
    assert sum(size.weights_bytes for size in sizes) - embedding_again == whole.weights_bytes


def test_the_middle_stages_hold_layers_only():
    first, second, third, last = (size.weights_bytes for size in rank_sizes(split(1, 4), LLAMA_3_70B))
    assert second == third
    assert first - second == 128256 * 8192 * 2  # the embedding
    assert last - first == 8192 * 2  # the output head is as large, and the final norm


def test_kv_heads_are_repeated_when_there_are_fewer_than_ranks():
    assert kv_bytes_per_token(LLAMA_3_70B, 80, 16, "bfloat16") == kv_bytes_per_token(LLAMA_3_70B, 80, 8, "bfloat16")


def test_a_vocabulary_is_padded_to_64():
    odd = replace(QWEN_3_06B, vocab_size=151937)
    assert parameters(odd) - parameters(QWEN_3_06B) == 64 * 1024


def test_biases_of_q_k_and_v_are_split_with_their_columns():
    without = replace(QWEN_2_5_HALF_B, attention_bias=False)
    for tensor in (1, 2):
        (with_bias, *_), (bare, *_) = (rank_sizes(split(tensor), shape) for shape in (QWEN_2_5_HALF_B, without))
        assert with_bias.weights_bytes - bare.weights_bytes == 24 * (14 + 2 + 2) * 64 // tensor * 2


def test_ranks_are_numbered_as_the_plan_numbers_them():
    plan = split(2, 2)
    sizes = rank_sizes(plan, PADDED)
    assert [(s.rank, s.pipeline_parallel_rank, s.tensor_parallel_rank) for s in sizes] == list(plan.ranks())
    assert [size.layers for size in sizes] == [(0, 15), (0, 15), (15, 30), (15, 30)]


# Layers over stages


@pytest.mark.parametrize(
    ("layers", "stages", "counts"),
    [
        (30, 1, [30]),
        (30, 2, [15, 15]),
        (31, 2, [16, 15]),
        (30, 4, [7, 8, 8, 7]),  # vLLM's own: the middle first
        (32, 5, [6, 6, 7, 7, 6]),
        (34, 5, [7, 7, 7, 7, 6]),
        (3, 3, [1, 1, 1]),
        (2, 4, [0, 1, 1, 0]),
    ],
)
def test_layers_that_do_not_divide_go_to_the_stages_before_the_last(layers, stages, counts):
    assert [last - first for first, last in pipeline_layers(layers, stages)] == counts


@pytest.mark.parametrize("stages", range(1, 13))
@pytest.mark.parametrize("layers", [1, 2, 12, 28, 30, 61, 80, 126])
def test_stages_follow_one_another_and_none_has_two_layers_more_than_another(layers, stages):
    found = pipeline_layers(layers, stages)
    assert [layer for first, last in found for layer in range(first, last)] == list(range(layers))
    counts = [last - first for first, last in found]
    assert len(found) == stages and max(counts) - min(counts) <= 1
    assert counts[-1] == layers // stages


def test_many_stages_are_no_work():
    assert len(rank_sizes(split(1, 4096), PADDED)) == 4096


# Types and KV cache


@pytest.mark.parametrize(
    ("asked", "stored", "used"),
    [
        ("auto", "bfloat16", "bfloat16"),
        ("auto", "float16", "float16"),
        ("auto", "float32", "bfloat16"),
        ("float32", "bfloat16", "float32"),
        ("float16", "float32", "float16"),
    ],
)
def test_the_dtype_that_vllm_uses(asked, stored, used):
    shape = replace(PADDED, torch_dtype=stored)
    assert dtype_of(split(dtype=asked), shape) == used
    (size,) = rank_sizes(split(dtype=asked), shape)
    assert size.weights_bytes == parameters(shape) * (4 if used == "float32" else 2)


def test_kv_tokens_are_the_cache_over_the_bytes_of_a_token():
    (size,) = rank_sizes(split(kv_cache_memory_bytes=100 * 30720 + 1, dtype="bfloat16"), PADDED)
    assert (size.kv_bytes_per_token, size.kv_tokens) == (30720, 100)
    (unsaid,) = rank_sizes(split(), PADDED)
    assert unsaid.kv_tokens is None


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (1, 2), (4, 1)])
def test_every_split_of_the_built_in_model_shares_one_cache_on_a_cpu(tensor, pipeline):
    plan = split(tensor, pipeline, max_model_len=1024)
    assert cpu_kv_cache_bytes(plan, PADDED) == CPU_KV_CACHE_BYTES // (tensor * pipeline)


@pytest.mark.parametrize("length", [1000, 1024, 8192, None])
def test_a_cpu_rank_of_a_large_model_has_the_blocks_of_a_full_request_and_the_one_vllm_keeps_back(length):
    plan = split(1, 1, max_model_len=length)
    per_token = kv_bytes_per_token(LLAMA_3_70B, 80, 1, "bfloat16")
    blocks = cpu_kv_cache_bytes(plan, LLAMA_3_70B) // (CPU_BLOCK_TOKENS * per_token)
    assert blocks - 1 >= math.ceil((length or 131072) / CPU_BLOCK_TOKENS)
