"""Quantization: what a checkpoint declares, what is asked for, what device, dtype and split make of it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from published import config, facts, shape

from localai_clusters.machine import Machine
from localai_clusters.models import ModelError, ModelShape
from localai_clusters.models.quantization import PER_CHANNEL, PER_TENSOR, Quantization
from localai_clusters.models.vllm_registry import package_folder
from localai_clusters.plan import ServePlan
from localai_clusters.preflight.checks.quantization import METHODS, check_quantization
from localai_clusters.preflight.report import FAIL, PASS, UNKNOWN, WARN, Verdict
from localai_clusters.preflight.situation import Situation


def machine(name: str) -> Machine:
    return Machine.from_json((Path(__file__).parent / "machines" / f"{name}.json").read_text())


CPU = machine("linux_cpu_2_cores_24gb")
A100S = machine("made_up_linux_nvidia_8_a100_80gb")
T4 = machine("made_up_linux_nvidia_1_t4")
AWQ, GPTQ = config("llama-3.1-8b-instruct-awq-int4"), config("qwen2.5-7b-instruct-gptq-int4")
LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
    "num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
    "torch_dtype": "float16",
}  # fmt: skip
FP8_BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def quantized(method: dict, **changes) -> ModelShape:
    return ModelShape.from_config(LLAMA_2_7B | {"quantization_config": method} | changes)


def verdicts(of: ModelShape, on: Machine = A100S, *flags: str, files=(), **fields) -> list[Verdict]:
    plan = ServePlan(model="a-model", extra_args=flags, **fields)
    known = facts("llama-3.1-8b", files=frozenset(files))
    return list(check_quantization(Situation(plan, on, of, facts=known)))


def worst(*arguments, **fields) -> Verdict:
    return min(verdicts(*arguments, **fields), key=lambda v: [FAIL, WARN, UNKNOWN, PASS].index(v.status))


# What the checkpoint declares


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama-3.1-8b-instruct-awq-int4", "awq, 4 bits, groups of 128"),
        ("qwen2.5-7b-instruct-gptq-int4", "gptq, 4 bits, groups of 128"),
        ("llama-3.1-8b-instruct-fp8-compressed-tensors", "compressed-tensors, FP8"),
        ("llama-3.1-8b-instruct-w4a16-compressed-tensors", "compressed-tensors, 4 bits, groups of 128"),
        ("llama-3.1-70b-instruct-fp8-modelopt", "modelopt, FP8"),
        ("qwen3-235b-a22b-nvfp4", "modelopt_fp4, FP4, groups of 16"),
        ("deepseek-v3", "fp8, FP8, blocks of 128 x 128"),
        ("gpt-oss-20b", "mxfp4, FP4, groups of 32"),
        ("llama-3.1-8b-bnb-4bit", "bitsandbytes"),
    ],
)
def test_every_form_is_read_into_one(name, words):
    assert shape(name).quantized.describe() == words


def test_what_is_left_in_16_bits_is_left_out_of_the_counting():
    found = shape("gpt-oss-20b").quantized
    assert found.skips("model.layers.7.self_attn.q_proj") and found.skips("lm_head")
    assert not found.skips("model.layers.7.mlp.experts.gate_proj")
    found = shape("qwen3-30b-a3b-fp8").quantized
    assert found.skips("model.layers.0.mlp.gate") and not found.skips("model.layers.0.mlp.gate_proj")
    assert not found.skips("model.layers.0.mlp.experts.gate_proj")


@pytest.mark.parametrize(
    ("entry", "module", "skipped"),
    [
        ("lm_head", "lm_head", True),
        ("q_proj", "model.layers.0.self_attn.q_proj", True),
        ("b_proj", "model.layers.0.self_attn.q_b_proj", False),
        ("model.layers.1", "model.layers.10.mlp.up_proj", False),
        ("model.layers.*.self_attn", "model.layers.3.self_attn.o_proj", True),
        ("re:.*self_attn.*", "model.layers.3.self_attn.o_proj", True),
        ("re:.*self_attn.*", "model.layers.3.mlp.up_proj", False),
        ("re:(", "model.layers.3.mlp.up_proj", False),  # not a pattern: matches nothing
    ],
)
def test_which_modules_an_entry_means(entry, module, skipped):
    assert Quantization(method="x", skipped=(entry,)).skips(module) is skipped


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"quant_method": "AWQ", "bits": 4, "group_size": 64, "zero_point": True}, {"method": "awq", "group_size": 64}),
        ({"quant_method": "compressed_tensors", "config_groups": {}}, {"method": "compressed-tensors", "bits": None}),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1, "desc_act": True, "sym": True},
         {"group_size": PER_CHANNEL, "act_order": False}),  # with one group there is no order
        ({"quant_method": "fp8", "activation_scheme": "static"}, {"group_size": PER_TENSOR, "lacks": ()}),
        ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}},
         {"method": "modelopt_fp4", "bits": 4, "lm_head": True}),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}, {"bits": 8, "lm_head": False}),
        ({"quant_method": "awq"}, {"bits": None, "lacks": ("w_bit|bits", "q_group_size|group_size", "zero_point")}),
        ({"quant_method": "something-new", "bits": 3}, {"method": "something-new", "bits": None}),
    ],
)  # fmt: skip
def test_spellings(declared, expected):
    found = quantized(declared).quantized
    assert {key: getattr(found, key) for key in expected} == expected


def test_two_forms_in_one_checkpoint_are_not_taken_for_one():
    mixed = config("llama-3.1-8b-instruct-w4a16-compressed-tensors")["quantization_config"]
    other = {"targets": ["re:.*down_proj"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}
    assert quantized(mixed | {"config_groups": mixed["config_groups"] | {"group_1": other}}).quantized.bits is None


@pytest.mark.parametrize(
    "declared",
    [
        {"quant_method": "awq", "bits": "four"},
        {"quant_method": "gptq", "group_size": 10**30},
        {"quant_method": "fp8", "weight_block_size": 128},
        {"quant_method": "fp8", "weight_block_size": [128, None]},
        {"quant_method": "compressed-tensors", "config_groups": [1]},
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": 4}}},
        {"quant_method": "awq", "modules_to_not_convert": [1]},
        {"quant_method": ["awq"]},
    ],
)
def test_values_of_other_types_are_one_sentence(declared):
    with pytest.raises(ModelError) as caught:
        quantized(declared)
    assert len(str(caught.value)) < 300


# What is asked for


@pytest.mark.parametrize(
    ("name", "on", "asked", "status"),
    [
        ("llama-3.1-8b-instruct-awq-int4", A100S, None, PASS),
        ("llama-3.1-8b-instruct-awq-int4", A100S, "awq", PASS),
        ("llama-3.1-8b-instruct-awq-int4", A100S, "AWQ", PASS),
        ("llama-3.1-8b-instruct-awq-int4", A100S, "awq_marlin", PASS),
        ("llama-3.1-8b-instruct-awq-int4", A100S, "gptq", FAIL),
        ("llama-3.1-8b-instruct-awq-int4", A100S, "fp8", FAIL),
        ("llama-3.1-8b-instruct-awq-int4", CPU, "awq", PASS),
        ("llama-3.1-8b-instruct-awq-int4", CPU, "awq_marlin", FAIL),
        ("llama-3.1-8b-instruct-awq-int4", CPU, "moe_wna16", FAIL),
        ("qwen2.5-7b-instruct-gptq-int4", CPU, "gptq_marlin", PASS),
        ("qwen2.5-7b-instruct-gptq-int4", CPU, "awq", FAIL),
        ("qwen2.5-7b-instruct-gptq-int4", CPU, "moe_wna16", UNKNOWN),
        ("qwen2.5-7b-instruct-gptq-int4", CPU, "humming", FAIL),
        ("llama-3.1-8b-instruct-fp8-compressed-tensors", A100S, "fp8", FAIL),
        ("llama-3.1-8b-instruct-fp8-compressed-tensors", A100S, "compressed-tensors", PASS),
        ("llama-3.1-8b-instruct-w4a16-compressed-tensors", A100S, "gptq", FAIL),
        ("llama-3.1-70b-instruct-fp8-modelopt", A100S, "fp8", PASS),  # vLLM goes by the file
        ("gpt-oss-20b", A100S, "mxfp4", PASS),
        ("llama-3.1-8b-bnb-4bit", A100S, None, FAIL),
        ("llama-3.1-8b-bnb-4bit", A100S, "bitsandbytes", FAIL),
        ("llama-3.1-8b", A100S, None, PASS),
        ("llama-3.1-8b", A100S, "awq", FAIL),
        ("llama-3.1-8b", A100S, "fp8", WARN),
        ("llama-3.1-8b", A100S, "fp8_per_tensor", WARN),
        ("llama-3.1-8b", CPU, "fp8_per_tensor", WARN),
        ("llama-3.1-8b", CPU, "mxfp4", FAIL),
        ("llama-3.1-8b", CPU, "fp8_per_block", FAIL),  # no AMX on an AMD
        ("llama-3.1-8b", A100S, "compressed-tensors", FAIL),
        ("llama-3.1-8b", A100S, "bitsandbytes", FAIL),
        ("llama-3.1-8b", A100S, "nonsense", FAIL),
        ("llama-3.1-8b", A100S, "online", FAIL),
        ("llama-3.1-8b", A100S, "fbgemm_fp8", FAIL),
    ],
)
def test_what_is_asked_for_against_what_is_declared(name, on, asked, status):
    found = worst(shape(name), on, quantization=asked)
    assert found.status == status, found


def test_a_mismatch_names_both_and_the_way_out():
    found = worst(shape("llama-3.1-8b-instruct-awq-int4"), quantization="gptq")
    assert found.message == "--quantization gptq asked for, but the checkpoint is awq"
    assert found.fix == "--quantization awq, or leave it out"
    found = worst(shape("llama-3.1-8b"), quantization="awq")
    assert found.message == (
        "--quantization awq asked for, but the checkpoint is not quantized: its weights are bfloat16"
    )
    assert found.fix == "leave --quantization out, or take the model's awq form (a checkpoint of its own)"


def test_a_method_that_vllm_dropped_is_named():
    found = worst(shape("llama-3.1-8b-bnb-4bit"))
    assert found.message == "the checkpoint is bitsandbytes, which vLLM 0.32.0 does not load"
    assert "16-bit" in found.fix


def test_a_slip_of_the_keyboard_is_answered_with_the_nearest_name():
    assert worst(shape("llama-3.1-8b"), quantization="gptqmarlin").fix.startswith("--quantization gptq_marlin")


def test_fp8_of_plain_weights_has_another_name_now():
    found = worst(shape("llama-3.1-8b"), quantization="fp8")
    assert found.fix == "--quantization fp8_per_tensor, the name this has now"


def test_a_file_beside_config_json_may_declare_what_it_does_not():
    assert worst(shape("llama-3.1-8b"), quantization="gptq", files=["quantize_config.json"]).status == UNKNOWN


def test_the_names_are_those_of_the_installed_vllm():
    source = (package_folder("vllm") / "model_executor/layers/quantization/__init__.py").read_text()
    table = re.search(r"^QuantizationMethods = Literal\[(.*?)^\]", source, re.MULTILINE | re.DOTALL)[1]
    assert set(METHODS) == set(re.findall(r'^\s+"([^"]+)"', table, re.MULTILINE))


# What is inside


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"desc_act": True}, "groups are out of order (desc_act)"),
        ({"sym": False}, "asymmetric"),
        ({"bits": 3}, "3 bits"),
        ({"group_size": 1024}, "groups of 1024"),
        ({"group_size": 16}, "groups of 16"),
    ],
)
def test_gptq_that_vllm_refuses(changes, words):
    found = worst(quantized(GPTQ["quantization_config"] | changes))
    assert found.status == FAIL and words in found.message


def test_the_published_kind_with_act_order_is_refused_whatever_the_split():
    found = worst(shape("llama-3.1-8b-instruct-gptq-act-order"))
    assert found.message == "the checkpoint's groups are out of order (desc_act), which vLLM no longer loads"


def test_one_group_a_column_has_no_order_to_be_out_of():
    assert worst(quantized(GPTQ["quantization_config"] | {"group_size": -1, "desc_act": True})).status == PASS


def test_awq_of_8_bits_and_configs_that_lack_keys():
    assert "awq of 8 bits" in worst(quantized(AWQ["quantization_config"] | {"bits": 8})).message
    found = worst(quantized({"quant_method": "awq", "bits": 4, "group_size": 128}))
    assert found.message == "config.json's quantization_config has no zero_point, which awq needs"


@pytest.mark.parametrize(("order", "status"), [("group", FAIL), ("dynamic", FAIL), ("weight", PASS), (None, PASS)])
def test_compressed_tensors_activation_order(order, status):
    declared = config("llama-3.1-8b-instruct-w4a16-compressed-tensors")["quantization_config"]
    declared["config_groups"]["group_0"]["weights"]["actorder"] = order
    assert worst(quantized(declared)).status == status


# Device and dtype


@pytest.mark.parametrize(
    ("name", "capability", "status"),
    [
        ("llama-3.1-8b-instruct-awq-int4", "7.5", PASS),
        ("llama-3.1-8b-instruct-awq-int4", "7.0", FAIL),
        ("llama-3.1-70b-instruct-fp8-modelopt", "7.5", FAIL),
        ("llama-3.1-70b-instruct-fp8-modelopt", "8.0", PASS),
        ("gpt-oss-20b", "7.5", FAIL),
        ("gpt-oss-20b", "9.0", PASS),
        ("qwen3-235b-a22b-nvfp4", "8.0", PASS),
    ],
)
def test_a_method_needs_a_gpu_that_can(name, capability, status):
    on = replace(T4, gpus=(replace(T4.gpus[0], compute_capability=capability),))
    dtype = "auto" if status == PASS or "awq" in name else "float16"
    found = worst(shape(name), on, dtype=dtype)
    assert found.status == status
    if status == FAIL:
        assert f"{T4.gpus[0].name} has {capability}" in found.message


@pytest.mark.parametrize(
    ("name", "dtype", "status"),
    [
        ("llama-3.1-8b-instruct-awq-int4", "float32", FAIL),
        ("llama-3.1-8b-instruct-awq-int4", "bfloat16", PASS),
        ("qwen2.5-7b-instruct-gptq-int4", "float32", FAIL),
        ("llama-3.1-70b-instruct-fp8-modelopt", "float32", FAIL),
        ("llama-3.1-8b-instruct-w4a16-compressed-tensors", "float32", PASS),
        ("llama-3.1-8b-instruct-fp8-compressed-tensors", "float32", PASS),
    ],
)
def test_a_method_computes_in_some_dtypes(name, dtype, status):
    for on in (CPU, A100S):
        assert worst(shape(name), on, dtype=dtype).status == status
    if status == FAIL:
        assert worst(shape(name), A100S, dtype=dtype).fix.startswith("--dtype ")


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("llama-3.1-8b-instruct-awq-int4", PASS),
        ("qwen2.5-7b-instruct-gptq-int4", PASS),
        ("llama-3.1-8b-instruct-w4a16-compressed-tensors", PASS),
        ("llama-3.1-8b-instruct-fp8-compressed-tensors", PASS),
        ("llama-3.1-70b-instruct-fp8-modelopt", PASS),
        ("qwen3-235b-a22b-nvfp4", FAIL),
    ],
)
def test_what_a_cpu_has_kernels_for(name, status):
    assert worst(shape(name), CPU).status == status


INTEL = replace(CPU, cpu_model="Intel(R) Xeon(R) Platinum 8481C")


@pytest.mark.parametrize(
    "model",
    [
        shape("qwen3-30b-a3b-fp8"),
        shape("gpt-oss-20b"),
        shape("deepseek-v3"),
        shape("qwen3-30b-a3b", quantization_config=AWQ["quantization_config"]),
        shape("qwen3-30b-a3b", quantization_config=GPTQ["quantization_config"]),
    ],
    ids=["fp8 blocks", "mxfp4 experts", "deepseek", "awq experts", "gptq experts"],
)
def test_blocks_and_quantized_experts_need_amx_of_a_cpu(model):
    amd, intel = worst(model, CPU), worst(model, INTEL)
    assert (amd.status, intel.status) == (FAIL, UNKNOWN)
    assert "AMX" in amd.message and CPU.cpu_model in amd.message and "amx_tile" in intel.fix


@pytest.mark.parametrize("method", ["experts_int8", "int8_per_channel_weight_only"])
def test_integer_experts_made_while_loading_need_amx_of_a_cpu(method):
    assert worst(shape("qwen3-30b-a3b"), CPU, quantization=method).status == FAIL
    assert worst(shape("qwen3-8b"), CPU, quantization=method).status == WARN


def test_integers_of_8_bits_with_16_bit_activations_have_no_kernel_on_a_cpu():
    eight = quantized(GPTQ["quantization_config"] | {"bits": 8})
    assert worst(eight, CPU).status == FAIL and worst(eight, A100S).status == PASS


# The split


@pytest.mark.parametrize(
    ("method", "on", "status"),
    [
        (AWQ["quantization_config"], A100S, FAIL),
        (AWQ["quantization_config"], CPU, FAIL),
        (GPTQ["quantization_config"], A100S, WARN),
        (GPTQ["quantization_config"], CPU, FAIL),
        (config("llama-3.1-8b-instruct-w4a16-compressed-tensors")["quantization_config"], A100S, FAIL),
        (config("llama-3.1-8b-instruct-w4a16-compressed-tensors")["quantization_config"], CPU, FAIL),
        (FP8_BLOCKS, A100S, FAIL),
    ],
    ids=["AWQ", "AWQ on a CPU", "GPTQ", "GPTQ on a CPU", "w4a16", "w4a16 on a CPU", "FP8 blocks"],
)
def test_a_group_that_would_lie_on_two_ranks(method, on, status):
    """Llama-2-7B's 11,008 columns are 86 groups of 128: two ranks have 43 each, four would have 21 and a half."""
    found = worst(quantized(method), on, tensor_parallel_size=4)
    assert found.status == status
    what = "block's 128" if method is FP8_BLOCKS else "group size 128"
    expected = f"down_proj has 11008 input columns; at TP=4 each rank gets 2752, which is not a multiple of the {what}"
    if method is FP8_BLOCKS:
        expected = expected.replace("down_proj has 11008 input", "gate_proj has 11008 output")
    assert found.message.startswith(expected)
    assert ("nonsense comes out" in found.message) == (status == WARN)
    assert found.fix == "--tensor-parallel-size 2 --pipeline-parallel-size 2"
    assert worst(quantized(method), on, tensor_parallel_size=2).status in (PASS, UNKNOWN)


@pytest.mark.parametrize(
    ("dtype", "capability", "tensor", "status"),
    [
        ("float16", "8.0", 4, WARN),  # Exllama
        ("bfloat16", "8.0", 4, FAIL),
        ("bfloat16", "9.0", 4, WARN),  # Machete: 2752 is a multiple of its 64
        ("bfloat16", "9.0", 8, FAIL),  # 1376 is not
        ("bfloat16", "10.0", 4, FAIL),
    ],
)
def test_which_gpu_kernels_take_a_gptq_group_in_parts(dtype, capability, tensor, status):
    gpus = tuple(replace(gpu, compute_capability=capability) for gpu in A100S.gpus)
    on = replace(A100S, gpus=gpus)
    assert worst(quantized(GPTQ["quantization_config"]), on, dtype=dtype, tensor_parallel_size=tensor).status == status


def test_the_figures_of_a_model_whose_heads_would_allow_the_split():
    """Qwen2.5-7B's 18,944 columns with 32 heads instead of its 28."""
    wide = shape("qwen2.5-7b-instruct-awq", num_attention_heads=32, head_dim=128)
    found = worst(wide, A100S, tensor_parallel_size=8)
    assert found.status == FAIL
    assert found.message == (
        "down_proj has 18944 input columns; at TP=8 each rank gets 2368, which is not a multiple of the group size 128"
    )
    assert found.fix == "--tensor-parallel-size 4 --pipeline-parallel-size 2"


def test_heads_that_do_not_divide_are_left_to_the_check_of_heads():
    assert worst(shape("qwen2.5-7b-instruct-awq"), A100S, tensor_parallel_size=8).status == PASS


@pytest.mark.parametrize(("tensor", "status"), [(1, PASS), (2, PASS), (4, FAIL), (8, FAIL)])
def test_fp8_blocks_of_narrow_experts(tensor, status):
    found = worst(shape("qwen3-30b-a3b-fp8"), A100S, tensor_parallel_size=tensor)
    assert found.status == status
    if tensor == 4:
        assert found.message == (
            "gate_proj has 768 output columns; at TP=4 each rank gets 192, which is not a multiple of the block's 128"
        )
        whole = verdicts(shape("qwen3-30b-a3b-fp8"), A100S, "--enable-expert-parallel", tensor_parallel_size=4)
        assert [v.status for v in whole] == [PASS]


def test_rows_and_columns_of_a_block_are_looked_at_apart():
    found = worst(quantized(FP8_BLOCKS | {"weight_block_size": [32, 128]}), tensor_parallel_size=4)
    words = "down_proj has 11008 input columns; at TP=4 each rank gets 2752, which is not a multiple of the block's 128"
    assert (found.status, found.message) == (FAIL, words)
    found = worst(quantized(FP8_BLOCKS | {"weight_block_size": [128, 64]}), tensor_parallel_size=4)
    words = (
        "gate_proj has 11008 output columns; at TP=4 each rank gets 2752, which is not a multiple of the block's 128"
    )
    assert (found.status, found.message) == (FAIL, words)


@pytest.mark.parametrize("tensor", [1, 8, 16])
def test_deepseek_v3s_own_blocks_allow_its_usual_splits(tensor):
    assert worst(shape("deepseek-v3"), A100S, tensor_parallel_size=tensor).status == PASS


def test_experts_fall_back_to_smaller_groups_down_to_32():
    narrow = {"quantization_config": AWQ["quantization_config"], "torch_dtype": "float16"}
    experts = shape("qwen3-30b-a3b", **narrow)  # 768 columns: 192 at TP=4 are groups of 64, 96 at TP=8 of 32
    assert worst(experts, A100S, tensor_parallel_size=8).status == PASS
    found = worst(experts, A100S, tensor_parallel_size=16)
    assert found.status == FAIL and "at TP=16 each rank gets 48" in found.message


def test_a_cpus_kernel_takes_multiples_of_32_columns_too():
    narrow = quantized(AWQ["quantization_config"], num_attention_heads=4, num_key_value_heads=1, head_dim=24)
    found = worst(narrow, CPU)
    assert found.status == FAIL
    assert found.message == "q_proj, k_proj and v_proj have 144 output columns; vLLM's CPU kernel takes multiples of 32"


def test_a_cpus_kernel_takes_multiples_of_32():
    odd = quantized(GPTQ["quantization_config"] | {"group_size": 32}, intermediate_size=4128, hidden_size=4096)
    assert worst(odd, CPU).status == PASS
    found = worst(odd, CPU, tensor_parallel_size=2)
    assert found.message == (
        "down_proj has 4128 input columns; at TP=2 each rank gets 2064; vLLM's CPU kernel takes multiples of 32"
    )
    assert found.fix == "--tensor-parallel-size 1 --pipeline-parallel-size 2"
