"""Well-known families: shapes from their published configs, held to published figures and to vLLM's own classes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from published import NAMES, config, shape

from localai_clusters import weight_bytes
from localai_clusters.kv_cache import kv_layouts
from localai_clusters.models import ModelError, ModelShape
from localai_clusters.models.attention import CHUNKED, FULL, SLIDING
from localai_clusters.plan import ServePlan
from localai_clusters.sizing import (
    can_predict,
    kv_bytes_per_token,
    padded_vocab_size,
    rank_sizes,
    tensor_parallel_sizes,
    unpredicted,
)

GIB = 1 << 30


def plan(tensor=1, pipeline=1, *flags, **fields) -> ServePlan:
    return ServePlan(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline, extra_args=flags, **fields)


# Published figures


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("c4ai-command-r-v01", 34_980_831_232),
        ("deepseek-v2-lite", 15_706_484_224),
        ("gemma-2-9b-it", 9_241_705_984),
        ("gemma-3-27b-it", 27_009_346_304),  # the language model
        ("glm-4-9b-0414", 9_400_279_040),
        ("gpt-oss-20b", 20_914_757_184),
        ("gpt-oss-120b", 116_829_156_672),
        ("gpt2", 124_439_808),
        ("llama-2-70b-hf", 68_976_648_192),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.3-70b-instruct", 70_553_706_496),
        ("llama-4-scout", 107_769_861_120),  # the language model
        ("mistral-7b-v0.1", 7_241_732_096),
        ("mistral-small-3.1-24b-instruct-2503", 23_572_403_200),  # the language model
        ("mixtral-8x7b-v0.1", 46_702_792_704),
        ("opt-125m", 125_239_296),
        ("phi-3-mini-4k-instruct", 3_821_079_552),
        ("phi-4", 14_659_507_200),
        ("qwen2.5-0.5b-instruct", 494_032_768),
        ("qwen2.5-7b-instruct", 7_615_616_512),
        ("qwen2.5-72b-instruct", 72_706_203_648),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("qwen3-235b-a22b-nvfp4", 235_093_634_560),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_parameters_are_to_the_last_one_those_of_the_published_model(name, parameters):
    found = shape(name).without_quantization()
    (size,) = rank_sizes(plan(dtype="bfloat16"), found)
    padding = (padded_vocab_size(found) - found.vocab_size) * found.hidden_size
    padding *= 1 if found.tie_word_embeddings else 2
    assert size.weights_bytes // 2 - padding == parameters


def test_deepseek_v3_has_671e9_parameters_and_a_float32_bias_for_each_expert():
    (size,) = rank_sizes(plan(), shape("deepseek-v3").without_quantization())
    biases = 58 * 256  # counted as two of 16 bits each
    assert size.weights_bytes // 2 - biases == 671_026_419_200


@pytest.mark.parametrize(
    ("name", "tensor", "per_token"),
    [
        ("llama-3.3-70b-instruct", 1, 327_680),
        ("llama-3.3-70b-instruct", 8, 40_960),
        ("llama-3.3-70b-instruct", 16, 40_960),  # 8 KV heads, each held twice
        ("deepseek-v3", 1, 70_272),
        ("deepseek-v3", 8, 70_272),  # the latent vector is for all heads, so every rank keeps all of it
        ("deepseek-v2-lite", 4, 31_104),
        ("mixtral-8x7b-v0.1", 2, 65_536),
        ("gpt-oss-20b", 1, 49_152),
        ("glm-4-9b-0414", 4, 20_480),
    ],
)
def test_bytes_of_kv_cache_per_token_in_16_bits(name, tensor, per_token):
    found = shape(name)
    assert kv_bytes_per_token(found, found.num_hidden_layers, tensor, "bfloat16") == per_token
    (size, *_) = rank_sizes(plan(tensor), found)
    assert size.kv_bytes_per_token == per_token


@pytest.mark.parametrize(
    ("flags", "name", "per_token"),
    [
        (("--kv-cache-dtype", "fp8"), "llama-3.3-70b-instruct", 163_840),
        (("--kv_cache_dtype=fp8_e5m2",), "llama-3.3-70b-instruct", 163_840),
        (("--kv-cache-dtype", "auto"), "llama-3.3-70b-instruct", 327_680),
        ((), "llama-3.1-70b-instruct-fp8-modelopt", 163_840),  # its hf_quant_config.json asks for FP8
        (("--kv-cache-dtype", "bfloat16"), "llama-3.1-70b-instruct-fp8-modelopt", 327_680),
    ],
)
def test_a_kv_cache_of_8_bits_is_half_as_large(flags, name, per_token):
    (size,) = rank_sizes(plan(1, 1, *flags), shape(name))
    assert size.kv_bytes_per_token == per_token


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("llama-3.1-8b-instruct-awq-int4", 5.73),  # the sizes of the files published under these and like names
        ("qwen2.5-7b-instruct-gptq-int4", 5.55),
        ("llama-3.1-70b-instruct-fp8-modelopt", 72.7),
        ("qwen3-30b-a3b-fp8", 31.2),
        ("qwen3-235b-a22b-nvfp4", 133.3),
    ],
)
def test_quantized_weights_take_about_what_their_files_do(name, gigabytes):
    (size,) = rank_sizes(plan(), shape(name))
    assert size.weights_bytes / 1e9 == pytest.approx(gigabytes, rel=0.01)


@pytest.mark.parametrize(("name", "total_size"), [("gpt-oss-20b", 13_761_264_768), ("gpt-oss-120b", 65_248_815_744)])
def test_experts_in_four_bits_take_to_the_byte_what_the_published_files_hold(name, total_size, monkeypatch):
    monkeypatch.setattr(weight_bytes, "MXFP4_PADDING", (1, 1))
    found = shape(name)
    layers = weight_bytes.all_layers_bytes(found, 1, "bfloat16", None)
    assert sum(layers) + weight_bytes.ends_bytes(found, 1, "bfloat16", True, True) == total_size


@pytest.mark.parametrize(
    ("tensor", "measured"),  # by vLLM's own class with its kernels for Ampere
    [(1, 14_679_227_520), (2, 7_585_240_704), (4, 3_797_402_496), (8, 1_903_483_392)],
)
def test_experts_in_four_bits_are_padded_for_their_kernels(tensor, measured):
    assert rank_sizes(plan(tensor), shape("gpt-oss-20b"))[0].weights_bytes == measured


@pytest.mark.parametrize(
    ("name", "middle_stage"),  # of three, as vLLM made it
    [
        ("llama-3.1-8b", 4_798_464_000),
        ("gemma-2-9b-it", 7_384_480_768),
        ("qwen3-30b-a3b", 21_184_524_288),
        ("gpt2", 135_545_856),
    ],
)
def test_some_models_have_embedding_and_head_on_every_pipeline_stage(name, middle_stage):
    assert rank_sizes(plan(1, 3), shape(name))[1].weights_bytes == middle_stage


# What the configs say


@pytest.mark.parametrize(
    ("name", "kinds", "window"),
    [
        ("mistral-7b-v0.1", {SLIDING: 32}, 4096),
        ("phi-3-mini-4k-instruct", {SLIDING: 32}, 2047),
        ("gemma-2-9b-it", {SLIDING: 21, FULL: 21}, 4096),
        ("gemma-3-27b-it", {SLIDING: 52, FULL: 10}, 1024),
        ("gpt-oss-20b", {SLIDING: 12, FULL: 12}, 128),
        ("llama-4-scout", {CHUNKED: 36, FULL: 12}, 8192),
        ("qwen2.5-7b-instruct", {FULL: 28}, None),  # has a sliding_window and does not use it
        ("llama-3.1-8b", {FULL: 32}, None),
    ],
)
def test_which_layers_look_back_how_far(name, kinds, window):
    found = shape(name)
    assert {kind: len(found.layers_of(kind)) for kind in (FULL, SLIDING, CHUNKED) if found.layers_of(kind)} == kinds
    assert found.sliding_window == window


def test_the_last_of_each_six_layers_of_gemma_3_looks_back_at_all():
    assert shape("gemma-3-27b-it").layers_of(FULL) == [5, 11, 17, 23, 29, 35, 41, 47, 53, 59]


@pytest.mark.parametrize(
    ("name", "experts", "first_with"),
    [("mixtral-8x7b-v0.1", 8, 0), ("deepseek-v3", 256, 3), ("deepseek-v2-lite", 64, 1), ("llama-4-scout", 16, 0),
     ("qwen3-30b-a3b", 128, 0), ("gpt-oss-120b", 128, 0), ("llama-3.1-8b", 0, None)],
)  # fmt: skip
def test_which_layers_have_how_many_experts(name, experts, first_with):
    found = shape(name)
    assert found.num_experts == experts
    with_experts = [layer for layer in range(found.num_hidden_layers) if found.has_experts(layer)]
    assert with_experts == (list(range(first_with, found.num_hidden_layers)) if experts else [])


@pytest.mark.parametrize(
    ("changes", "longest", "usual"),
    [
        ({}, 131072, 131072),  # Llama 3's own scaling is in max_position_embeddings already
        ({"rope_scaling": None}, 131072, 131072),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 262144, 262144),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, 524288, 524288),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 131072, 131072),
        ({"rope_scaling": {"rope_type": "linear", "factor": None}}, 131072, 131072),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": None}, 262144, 262144),
        ({"seq_length": 4096}, 4096, 4096),  # the smallest counts
        ({"model_max_length": 4096}, 4096, 4096),
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 4096}, 131072, 4096),
    ],
)
def test_how_long_a_request_may_be(changes, longest, usual):
    found = shape("llama-3.1-8b", **changes)
    assert (found.longest_context, found.default_max_model_len) == (longest, usual)


def test_gemma_3_counts_its_scaling_in_and_command_r_goes_by_model_max_length():
    assert shape("gemma-3-27b-it").longest_context == 131072
    assert shape("c4ai-command-r-v01").longest_context == 131072


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("smollm2-135m", [1, 3]),
        ("qwen2.5-0.5b-instruct", [1, 2]),  # 14 heads and 2 KV heads: each of 7 and 14 ranks would need a part of one
        ("qwen2.5-7b-instruct", [1, 2, 4]),
        ("phi-4", [1, 2]),  # 10 KV heads do not divide by 4, a vocabulary of 100352 not by 5
        ("gpt-oss-20b", [1, 2, 4, 8]),  # 64 heads, but vLLM does not repeat its 8 KV heads
        ("deepseek-v3", [1, 2, 4, 8, 16, 32, 64]),  # latent attention has no KV heads
        ("glm-4-9b-0414", [1, 2, 4, 8, 16, 32]),
        ("gpt2", [1, 2, 3, 4, 6, 12]),
    ],
)
def test_the_tensor_parallel_sizes_that_vllm_takes(name, sizes):
    assert tensor_parallel_sizes(shape(name)) == sizes


def test_whole_experts_need_not_be_divided():
    odd = shape("qwen3-30b-a3b", moe_intermediate_size=770)
    assert 4 not in tensor_parallel_sizes(odd) and 4 in tensor_parallel_sizes(odd, expert_parallel=True)


def test_experts_shared_out_whole_leave_the_first_ranks_the_odd_ones():
    found = shape("qwen3-30b-a3b", num_experts=30)
    sizes = rank_sizes(plan(4, 1, "--enable-expert-parallel"), found)
    expert = 3 * 2048 * 768 * 2 * 48
    assert [size.weights_bytes - sizes[3].weights_bytes for size in sizes] == [expert, expert, 0, 0]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model_type": "newmodel"}, "newmodel"),
        ({"num_local_experts": 8}, "mixture-of-experts"),
        ({"layer_types": ["linear_attention"] * 31 + ["full_attention"]}, "linear-attention"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized"),
    ],
)
def test_what_is_not_predicted_is_named(changes, what):
    found = shape("llama-3.1-8b", **changes)
    assert unpredicted(found) == what and not can_predict(found)


def test_more_layers_than_any_model_has_are_refused():
    with pytest.raises(ModelError, match="num_hidden_layers must be 10000 at most, not 2000000000"):
        shape("llama-3.1-8b", num_hidden_layers=2_000_000_000)


def test_a_vision_tower_is_not_predicted_and_the_model_within_is():
    found = shape("gemma-3-27b-it")
    assert unpredicted(found) is None and not can_predict(found)
    assert found.towers == ("vision_config",)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_that_lost_its_types_is_one_sentence(name):
    whole = config(name)
    for key in whole:
        for value in ("x", [], {}, -1, 1e400, True):
            try:
                ModelShape.from_config(whole | {key: value})
            except ValueError as error:
                assert len(str(error)) < 300


# vLLM's own classes

CASES = [
    *((name, tensor, 1, 0) for name, tensor in [
        ("llama-3.1-8b", 2), ("qwen2.5-0.5b-instruct", 1), ("qwen3-8b", 16), ("mistral-7b-v0.1", 4),
        ("mixtral-8x7b-v0.1", 8), ("qwen3-30b-a3b", 4), ("gemma-2-9b-it", 16), ("gemma-3-27b-it", 2), ("phi-4", 2),
        ("phi-3-mini-4k-instruct", 8), ("gpt-oss-20b", 2), ("deepseek-v2-lite", 4), ("deepseek-v3", 16),
        ("glm-4-9b-0414", 8), ("c4ai-command-r-v01", 2), ("llama-4-scout", 8), ("opt-125m", 3), ("gpt2", 2),
        ("llama-3.1-8b-instruct-awq-int4", 2), ("qwen2.5-7b-instruct-gptq-int4", 2),
    ]),
    *((name, 1, 3, stage) for name in (
        "llama-3.1-8b", "qwen2.5-0.5b-instruct", "gemma-2-9b-it", "gemma-3-27b-it", "mixtral-8x7b-v0.1",
        "qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v2-lite", "c4ai-command-r-v01", "llama-4-scout", "opt-125m", "gpt2",
    ) for stage in range(3)),
]  # fmt: skip
SCALES = {"llama-3.1-8b-instruct-fp8-compressed-tensors", "llama-3.1-8b-instruct-w4a16-compressed-tensors",
          "llama-3.1-70b-instruct-fp8-modelopt"}  # fmt: skip
CACHE = 32 * GIB


def text_config(name: str) -> dict:
    """A config of the language model alone, in 16 bits where vLLM's CPU build has no kernels for its own."""
    found = config(name)
    if "awq" not in name and "gptq" not in name and name not in SCALES:
        found.pop("quantization_config", None)
    alone = {"llama-4-scout": "Llama4ForCausalLM", "gemma-3-27b-it": "Gemma3ForCausalLM"}
    if name in alone:
        found = found["text_config"] | {"architectures": [alone[name]], "torch_dtype": "bfloat16"}
    return found


@pytest.fixture(scope="module")
def counted() -> dict:
    """What vLLM itself says of every case, in one process (about a minute)."""
    cases = [*CASES, *((name, 2, 1, 0) for name in sorted(SCALES))]
    asked = [
        {"config": text_config(name), "tensor": tensor, "pipeline": pipeline, "stage": stage}
        | ({"kv_cache_bytes": CACHE} if pipeline == 1 else {})
        | ({"arguments": {"max_model_len": 100_000}} if name == "llama-4-scout" else {})
        for name, tensor, pipeline, stage in cases
    ]
    script = Path(__file__).with_name("vllm_counts.py")
    answer = subprocess.run([sys.executable, script], input=json.dumps(asked), capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return dict(zip(cases, json.loads(answer.stdout), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_a_rank_holds_to_the_byte_what_vllm_makes_for_it(counted, case):
    name, tensor, pipeline, stage = case
    found = ModelShape.from_config(text_config(name))
    sizes = rank_sizes(plan(tensor, pipeline), found)
    assert counted[case]["weights_bytes"] == sizes[stage * tensor].weights_bytes, counted[case]


@pytest.mark.parametrize("name", sorted(SCALES))
def test_scales_are_within_a_few_kilobytes(counted, name):
    (size, _) = rank_sizes(plan(2), ModelShape.from_config(text_config(name)))
    assert size.weights_bytes == pytest.approx(counted[name, 2, 1, 0]["weights_bytes"], abs=4096)


@pytest.mark.parametrize("case", [case for case in CASES if case[2] == 1], ids=lambda case: "-".join(map(str, case)))
def test_the_kv_cache_is_laid_out_and_counted_as_vllm_does(counted, case):
    name, tensor, *_ = case
    found, vllm = ModelShape.from_config(text_config(name)), counted[case]["kv_cache"]
    longest = min(100_000, found.default_max_model_len) if name == "llama-4-scout" else found.default_max_model_len
    assert counted[case]["max_model_len"] == longest
    batch = ("--max-num-batched-tokens", str(vllm["batch"])) if "batch" in vllm else ()
    (layout,) = kv_layouts(plan(tensor, 1, *batch, max_model_len=longest), found, "cpu")
    if "refused" in vllm:
        held = layout.longest_request(CACHE, longest)
        assert f"the estimated maximum model length is {held}. " in vllm["refused"]
        return
    assert layout.full_groups + layout.local_groups == vllm["groups"]
    assert layout.blocks_for(longest) * layout.block_bytes == vllm["needed"]
    assert CACHE // layout.block_bytes == vllm["blocks"]
    assert layout.capacity(CACHE, longest) == vllm["tokens"]
