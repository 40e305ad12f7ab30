"""Preflight's knowledge of a model: folder, architecture, chat template, adapters, context and memory."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from published import NAMES, config, facts, shape

from localai_clusters.machine import Machine
from localai_clusters.models import BUILT_IN, ModelError, find
from localai_clusters.models.adapter import Adapter, read_adapters
from localai_clusters.models.facts import ModelFacts, look_at
from localai_clusters.models.vllm_registry import Support, registry, support_of
from localai_clusters.plan import ServePlan
from localai_clusters.preflight.checks import CHECKS
from localai_clusters.preflight.report import FAIL, PASS, UNKNOWN, WARN, Report, Verdict
from localai_clusters.preflight.situation import Situation, settle

GIB = 1 << 30


def machine(name: str, **changes) -> Machine:
    return replace(Machine.from_json((Path(__file__).parent / "machines" / f"{name}.json").read_text()), **changes)


CPU = machine("linux_cpu_2_cores_24gb")
A100S = machine("made_up_linux_nvidia_8_a100_80gb")
KNOWN = Support(own_class="LlamaForCausalLM", pipeline=True)


def examined(known: ModelFacts, plan: ServePlan | None = None, on: Machine = A100S, adapters=()) -> Report:
    plan = settle(plan or ServePlan(model="a-model"), known.shape, on)
    situation = Situation(plan, on, known.shape, known.problem, facts=known, adapters=adapters)
    return Report(plan, tuple(verdict for check in CHECKS for verdict in check(situation)))


def verdict(check: str, *arguments, **named) -> Verdict | None:
    """The gravest of a check, None if it said nothing."""
    found = [v for v in examined(*arguments, **named).verdicts if v.check == check]
    return min(found, key=lambda v: [FAIL, WARN, UNKNOWN, PASS].index(v.status), default=None)


def flags(*arguments: str, **fields) -> ServePlan:
    return ServePlan(model="a-model", extra_args=arguments, **fields)


# The folder


def safetensors(tensors: dict[str, list[int]]) -> bytes:
    header, offset = {}, 0
    for name, size in tensors.items():
        count = 2
        for length in size:
            count *= length
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [offset, offset + count]}
        offset += count
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + bytes(offset)


@pytest.fixture
def folder(tmp_path):
    """A whole model: SmolLM2's config, two numbers of weights, a tokenizer with a chat template."""
    (tmp_path / "config.json").write_text(json.dumps(config("smollm2-135m")))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    (tmp_path / "model.safetensors").write_bytes(safetensors({"x": [1]}))
    return tmp_path


def test_a_whole_folder_has_nothing_against_it(folder):
    known = look_at(str(folder))
    assert (known.problem, known.incomplete, known.chat_template, known.tokenizer) == (None, None, True, True)
    assert known.weights_bytes == (folder / "model.safetensors").stat().st_size
    report = examined(known, on=CPU)
    assert report.ok and {v.status for v in report.verdicts if v.check in ("model", "architecture")} == {PASS}


def test_a_built_in_model_is_known_without_being_built():
    known = look_at("smollm2-135m")
    assert known.shape == BUILT_IN["smollm2-135m"].shape and known.chat_template
    read = support_of(known.architectures, known.model_type)
    assert known.support == replace(read, has_torchvision=True)  # which it does not need


def test_an_id_that_is_not_here_is_not_known():
    assert look_at("org/not-here") == ModelFacts()
    found = verdict("model", ModelFacts(), ServePlan(model="org/not-here"))
    assert (found.status, found.message) == (UNKNOWN, "org/not-here is not on this machine yet; it is downloaded first")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda at: (at / "model.safetensors").unlink(), "has no weights"),
        (lambda at: (at / "model.safetensors").write_bytes(b"version https://git-lfs"), "git lfs pull"),
        (lambda at: (at / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda at: (at / "tokenizer.json").write_text('{"model": {'), "ends too soon"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_before_anything_is_launched(folder, spoil, words):
    spoil(folder)
    found = verdict("model", look_at(str(folder)), on=CPU)
    assert found.status == FAIL and words in found.message
    with pytest.raises(ModelError):
        find(str(folder))


def test_a_download_that_was_cut_short_is_completed_when_it_is_served(folder, monkeypatch):
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr("localai_clusters.models.facts.cached_snapshot", lambda name: folder)
    found = verdict("model", look_at("org/name"), ServePlan(model="org/name"), on=CPU)
    assert found.status == UNKNOWN and "the rest of it is downloaded first" in found.message


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"adapter_config.json": '{"base_model_name_or_path": "meta-llama/Llama-3.1-8B"}', "adapter_model.bin": "x"},
         "holds a LoRA adapter for meta-llama/Llama-3.1-8B, not a model; type --model with its base model, and -- "
         "--enable-lora --lora-modules NAME="),
        ({"adapter_config.json": "{broken"}, "holds a LoRA adapter, not a model"),
        ({"model-Q4_K_M.gguf": "GGUF"}, "holds GGUF files, for llama.cpp"),
        ({"model_index.json": "{}"}, "makes pictures (diffusers)"),
        ({"params.json": "{}", "consolidated.00.pth": "x"}, "the model whose name ends in -hf"),
        ({"params.json": "{}", "consolidated.safetensors": "x"}, "Mistral's own format"),
        ({"modules.json": "[]"}, "sentence-transformers model"),
        ({"ggml-model-q4_0.bin": "x"}, "GGML files"),
        ({"snapshot/config.json": "{}"}, "snapshot has one; type that folder"),
        ({"readme.md": ""}, "has no config.json; type the folder of a Hugging Face model"),
    ],
)  # fmt: skip
def test_a_folder_of_something_else_is_named(tmp_path, files, words):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert words in look_at(str(tmp_path)).problem
    with pytest.raises(ModelError) as caught:
        find(str(tmp_path))
    assert words in str(caught.value)


def test_an_encoder_and_decoder_is_named(folder):
    (folder / "config.json").write_text(
        '{"architectures": ["T5Model"], "model_type": "t5", "is_encoder_decoder": true}'
    )
    assert "t5 is an encoder and a decoder" in look_at(str(folder)).problem


@pytest.mark.parametrize(
    ("name", "words"),
    [("model.gguf", "is a GGUF file, for llama.cpp"), ("model.safetensors", "holds weights only"),
     ("notes.txt", "is a file; type the folder")],
)  # fmt: skip
def test_a_file_in_place_of_a_folder_is_named(tmp_path, name, words):
    (tmp_path / name).write_text("GGUF" if "gguf" in name else "x")
    assert words in look_at(str(tmp_path / name)).problem


def test_a_folder_that_may_not_be_read_is_one_sentence(tmp_path, folder):
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/proc/self/mem")
    problem = look_at(str(folder)).problem
    assert problem and "\n" not in problem


# Architecture


@pytest.mark.parametrize(
    ("changes", "arguments", "status", "words"),
    [
        ({}, (), None, ""),
        ({"auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}}, (), None, ""),  # vLLM has its own
        ({"architectures": ["NewForCausalLM", "LlamaForCausalLM"]}, (), None, ""),
        ({"architectures": ["NewForCausalLM"]}, (), FAIL, "vLLM 0.32.0 does not know the architecture NewForCausalLM"),
        ({"architectures": ["NewForCausalLM"]}, ("--model-impl", "transformers"), None, ""),
        ({"architectures": ["NewForCausalLM"], "auto_map": {"AutoModelForCausalLM": "m.M"}}, (), FAIL,
         "the model brings its own Python files"),
        ({"architectures": ["NewForCausalLM"], "auto_map": {"AutoModelForCausalLM": "m.M"}},
         ("--trust-remote-code",), UNKNOWN, "if vLLM's Transformers backend can"),
        ({"architectures": ["DiffLlamaForCausalLM"], "model_type": "diffllama"}, (), WARN,
         "it runs the one of transformers"),
        ({"architectures": ["BaiChuanForCausalLM"]}, (), FAIL, "vLLM 0.23.0 was the last to know BaiChuanForCausalLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, (), FAIL, "it does not generate text"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, (), FAIL, "makes embeddings or scores"),
        ({"model_type": "newmodel"}, (), FAIL, "does not know the model_type 'newmodel'"),
        ({"model_type": "newmodel", "auto_map": {"AutoConfig": "c.C"}}, (), FAIL, "Python files in the model's own"),
        ({"model_type": "newmodel", "auto_map": {"AutoConfig": "c.C"}}, ("--trust-remote-code",), WARN, "as trusted"),
        ({"model_type": "deepseek_v32", "architectures": ["DeepseekV32ForCausalLM"]}, (), None, ""),  # vLLM's own
    ],
)  # fmt: skip
def test_what_vllm_makes_of_the_names_in_a_config(changes, arguments, status, words):
    found = verdict("architecture", facts("llama-3.1-8b", changes), flags(*arguments))
    assert (found.status if found else None) == status
    assert words in (found.message if found else "")
    if status == FAIL and "Python files" in words:
        assert found.fix.startswith("-- --trust-remote-code")


def test_a_folder_that_is_made_to_embed_does_not_generate():
    found = verdict("architecture", facts("qwen3-8b", pooling=True))
    assert found.status == FAIL and "makes embeddings or scores" in found.message


def test_an_architecture_that_a_plugin_has():
    known = facts("llama-3.1-8b", support=Support(plugin="https://example.org/plugin"))
    found = verdict("architecture", known)
    assert (found.status, found.fix) == (FAIL, "install https://example.org/plugin")


def test_every_published_architecture_is_one_of_vllms_own():
    for name in NAMES:
        support = facts(name).support
        assert support.own_class in registry().generating and support.knows_configuration and support.pipeline


@pytest.mark.parametrize(
    ("name", "status"), [("gemma-3-27b-it", FAIL), ("llama-4-scout", FAIL), ("llama-3.1-8b", None)]
)
def test_models_that_see_need_torchvision(name, status):
    known = facts(name)
    without = replace(known, support=replace(known.support, has_torchvision=False))
    found = verdict("architecture", without)
    assert (found.status if found else None) == status
    having = replace(known, support=replace(known.support, has_torchvision=True))
    assert verdict("architecture", having) is None


def test_layers_that_vllm_cannot_put_into_stages():
    whisper = support_of(("WhisperForConditionalGeneration",), "whisper")
    assert whisper.pipeline is False and support_of(("LlamaForCausalLM",), "llama").pipeline is True
    known = facts("llama-3.1-8b", support=replace(KNOWN, own_class="WhisperForConditionalGeneration", pipeline=False))
    found = verdict("layers", known, flags(pipeline_parallel_size=2))
    assert (found.status, found.fix) == (FAIL, "--pipeline-parallel-size 1")
    assert verdict("layers", known, flags()).status == PASS


def test_a_dense_model_has_no_experts_to_share_out():
    found = verdict("heads", facts("llama-3.1-8b"), flags("--enable-expert-parallel"))
    assert found.status == FAIL and "has none" in found.message
    assert verdict("heads", facts("qwen3-30b-a3b"), flags("--enable-expert-parallel")).status == PASS


def test_experts_whose_share_has_no_kernel_on_a_cpu():
    known = facts("gpt-oss-20b", {"quantization_config": None})
    found = verdict("heads", known, flags(tensor_parallel_size=4), CPU)
    assert found.status == FAIL and "at TP=4 each rank gets 720 of 2880 columns" in found.message
    assert verdict("heads", known, flags(tensor_parallel_size=2), CPU).status == PASS
    assert verdict("heads", known, flags(tensor_parallel_size=4), A100S).status == PASS
    wide = verdict("heads", facts("qwen3-30b-a3b", {"hidden_size": 2056}), flags(), CPU)
    assert wide.status == FAIL and "multiples of 32 rows; these have 2056" in wide.message


@pytest.mark.parametrize(
    ("name", "dtype", "stored", "status"),
    [("gemma-2-9b-it", "float16", "bfloat16", FAIL), ("glm-4-9b-0414", "float16", "bfloat16", FAIL),
     ("gemma-2-9b-it", "auto", "float16", WARN), ("gemma-2-9b-it", "auto", "bfloat16", None),
     ("llama-3.1-8b", "float16", "bfloat16", None)],
)  # fmt: skip
def test_families_that_float16_is_too_narrow_for(name, dtype, stored, status):
    found = verdict("dtype", facts(name, {"torch_dtype": stored}), flags(dtype=dtype))
    assert (found.status if found else None) == status


# Chat template


@pytest.mark.parametrize(
    ("has", "arguments", "status"),
    [(True, (), None), (None, (), None), (False, (), WARN), (False, ("--chat-template", "chat.jinja"), None),
     (False, ("--chat_template=chat.jinja",), None)],
)  # fmt: skip
def test_no_chat_template(has, arguments, status):
    found = verdict("chat template", facts("llama-2-70b-hf", chat_template=has), flags(*arguments))
    assert (found.status if found else None) == status
    if found:
        assert "/v1/chat/completions will be refused" in found.message and "--chat-template FILE" in found.fix


@pytest.mark.parametrize(
    ("files", "has"),
    [
        ({"tokenizer_config.json": "{}"}, False),
        ({"tokenizer_config.json": '{"chat_template": null}'}, False),
        ({"tokenizer_config.json": '{"chat_template": [{"name": "default", "template": "x"}]}'}, True),
        ({"tokenizer_config.json": "{}", "chat_template.jinja": "x"}, True),
        ({"tokenizer_config.json": "{}", "chat_template.json": "{}"}, True),
        ({"tokenizer_config.json": "{}", "tekken.json": "{}"}, True),
        ({"tokenizer_config.json": "{broken"}, None),
    ],
)
def test_where_a_chat_template_lies(folder, files, has):
    for name, content in files.items():
        (folder / name).write_text(content)
    assert look_at(str(folder)).chat_template is has


# LoRA

LORA = {
    "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct", "r": 8, "lora_alpha": 16,
    "target_modules": ["q_proj", "down_proj"], "peft_type": "LORA",
}  # fmt: skip
NAME = "base_model.model.model.layers.0.{}.lora_{}.weight"


@pytest.fixture
def adapter(tmp_path):
    """A LoRA adapter of rank 8 for SmolLM2-135M."""
    place = tmp_path / "adapter"
    place.mkdir()
    (place / "adapter_config.json").write_text(json.dumps(LORA))
    weights = {
        NAME.format("self_attn.q_proj", "A"): [8, 576], NAME.format("self_attn.q_proj", "B"): [576, 8],
        NAME.format("mlp.down_proj", "A"): [8, 1536], NAME.format("mlp.down_proj", "B"): [576, 8],
    }  # fmt: skip
    (place / "adapter_model.safetensors").write_bytes(safetensors(weights))
    return place


def lora(place, *arguments: str, of="smollm2-135m", enabled=True, name="HuggingFaceTB/SmolLM2-135M-Instruct"):
    given = ("--lora-modules", f"sql={place}", *(["--enable-lora"] if enabled else []), *arguments)
    plan = ServePlan(model=name, extra_args=given)
    return verdict("LoRA", facts(of), plan, CPU, adapters=read_adapters(plan.extra_args))


def test_an_adapter_of_the_model_passes(adapter):
    found = lora(adapter)
    assert (found.status, found.message) == (PASS, "sql, rank 8 of at most 16")
    (read,) = read_adapters(("--lora-modules", json.dumps({"name": "sql", "path": str(adapter)})))
    assert (read.base, read.rank, read.targets) == (LORA["base_model_name_or_path"], 8, ("q_proj", "down_proj"))
    assert read.sizes == (("q_proj", 576, 576), ("down_proj", 1536, 576))


def test_an_adapter_of_another_model_is_told_by_its_sizes(adapter):
    found = lora(adapter, of="llama-3.1-8b", name="meta-llama/Llama-3.1-8B")
    assert found.status == FAIL
    assert found.message == (
        "sql (made for HuggingFaceTB/SmolLM2-135M-Instruct) does not fit meta-llama/Llama-3.1-8B: "
        "its q_proj takes 576 numbers, this model's 4096"
    )
    assert found.fix == "--model HuggingFaceTB/SmolLM2-135M-Instruct, its base model"


def test_the_built_in_models_padded_heads_are_not_the_adapters(adapter):
    padded = replace(facts("smollm2-135m"), shape=BUILT_IN["smollm2-135m"].shape)
    plan = flags("--enable-lora", "--lora-modules", f"sql={adapter}")
    found = verdict("LoRA", padded, plan, CPU, adapters=read_adapters(plan.extra_args))
    assert found.status == FAIL and "its q_proj gives 576 numbers, this model's 768" in found.message


def test_an_adapter_of_another_name_with_the_same_sizes_is_warned_of(adapter):
    found = lora(adapter, name="somebody/another-135m")
    assert found.status == WARN and "was made for HuggingFaceTB/SmolLM2-135M-Instruct" in found.message
    assert lora(adapter, name="/models/SmolLM2-135M-Instruct/").status == PASS


@pytest.mark.parametrize(
    ("changes", "arguments", "words", "fix"),
    [
        ({"r": 64}, (), "sql has rank 64; --max-lora-rank is 16", "-- --max-lora-rank 64"),
        ({"r": 20}, ("--max-lora-rank", "8"), "rank 20; --max-lora-rank is 8", "-- --max-lora-rank 32"),
        ({"rank_pattern": {"q_proj": 128}}, (), "sql has rank 128", "-- --max-lora-rank 128"),
        ({"r": 1024}, (), "sql has rank 1024", "an adapter of rank 512 or less"),
        ({"use_dora": True}, (), "sql uses DoRA, which vLLM does not support", "an adapter made without"),
        ({"bias": "all", "modules_to_save": ["lm_head"]}, (), "a bias and whole modules (lm_head)", "an adapter made"),
        ({"r": "eight"}, (), "has no rank r above 0", ""),
        ({"r": None}, (), "has no rank r above 0", ""),
    ],
)
def test_an_adapter_that_vllm_refuses(adapter, changes, arguments, words, fix):
    (adapter / "adapter_config.json").write_text(json.dumps(LORA | changes))
    found = lora(adapter, *arguments)
    assert found.status == FAIL and words in found.message and found.fix.startswith(fix)
    if "--max-lora-rank" in fix:
        assert lora(adapter, "--max-lora-rank", fix.split()[-1]).status == PASS


def test_adapters_without_lora_enabled_and_without_a_folder(adapter):
    assert lora(adapter, enabled=False).message == "--lora-modules names sql, but LoRA is not enabled"
    assert "there is no folder /nowhere" in lora("/nowhere").message
    assert lora("org/adapter").status == UNKNOWN
    (adapter / "adapter_model.safetensors").unlink()
    assert "has no adapter_model.safetensors" in lora(adapter).message
    (adapter / "adapter_config.json").unlink()
    assert "has no adapter_config.json" in lora(adapter).message
    assert lora(adapter, "--max-lora-rank", "17").message.endswith("not 17")


@pytest.mark.parametrize("word", ["sql", "{broken", '{"name": 1}', "[1]", ""])
def test_adapters_that_are_not_named_as_they_should_be(word):
    assert [found.problem for found in read_adapters(("--lora-modules", word))] == [
        "--lora-modules takes NAME=FOLDER, or a JSON object with name and path"
    ]


def test_an_adapter_whose_weights_are_broken_is_known_by_its_config(adapter):
    (adapter / "adapter_model.safetensors").write_bytes(b"\xff" * 40)
    assert read_adapters(("--lora-modules", f"sql={adapter}"))[0].sizes == ()
    assert Adapter(name="x", place="y").misfits(shape("smollm2-135m")) == []


# Memory and context


def test_a_quantized_model_that_fits_where_the_16_bits_do_not():
    small = machine("made_up_linux_nvidia_1_t4")
    plan = ServePlan(model="a-model", dtype="float16", max_model_len=4096)
    assert verdict("memory", facts("llama-3.1-8b"), plan, small).status == FAIL
    found = verdict("memory", facts("llama-3.1-8b-instruct-awq-int4"), plan, small)
    assert found.status == PASS and "5.3 GiB of weights" in found.message


def test_activations_and_graphs_are_left_room_for():
    plan = ServePlan(model="a-model", tensor_parallel_size=2, max_model_len=45_000)
    found = verdict("memory", facts("llama-3.3-70b-instruct"), plan)  # 7.9 GiB left, 6.9 of them for one request
    assert found.status == WARN and "of activations: too little is left, it seems" in found.message
    limit = int(found.fix.split()[1])
    assert verdict("memory", facts("llama-3.3-70b-instruct"), plan.with_(max_model_len=limit)).status == PASS


def test_switches_that_free_memory_are_counted():
    known = facts("llama-3.3-70b-instruct")
    tight = ServePlan(model="a-model", tensor_parallel_size=2, max_model_len=45_000)
    assert verdict("memory", known, tight).status == WARN
    for arguments in (("--kv-cache-dtype", "fp8"), ("--cpu-offload-gb", "20")):
        assert verdict("memory", known, tight.with_(extra_args=arguments)).status == PASS
    assert verdict("memory", known, tight.with_(tensor_parallel_size=1)).status == FAIL
    offloaded = tight.with_(tensor_parallel_size=1, extra_args=("--cpu-offload-gb", "80"))
    assert verdict("memory", known, offloaded).status == PASS


@pytest.mark.parametrize(("gigabytes", "status"), [(40, PASS), (64, WARN), (70, FAIL)])
def test_a_cache_of_a_given_size_is_held_against_the_whole_gpu(gigabytes, status):
    plan = ServePlan(model="a-model", max_model_len=4096, kv_cache_memory_bytes=gigabytes * GIB)
    found = verdict("memory", facts("llama-3.1-8b"), plan)
    assert found.status == status and f"{gigabytes}.0 GiB of KV cache" in found.message


def test_a_vision_tower_is_said_to_be_unknown_and_the_rest_is_counted():
    found = verdict("memory", facts("gemma-3-27b-it"))
    assert found.status == UNKNOWN
    assert "vision_config" in found.message and "the language model alone takes 50.3 GiB" in found.message
    on = machine("made_up_linux_nvidia_1_t4")
    assert verdict("memory", facts("gemma-3-27b-it"), on=on).status == FAIL


def test_what_cannot_be_predicted_is_judged_by_its_files():
    known = facts("llama-3.1-8b", {"model_type": "falcon"}, weights_bytes=16 * GIB, support=KNOWN)
    found = verdict("memory", known)
    assert (found.status, found.message) == (
        UNKNOWN, "the size of falcon weights is not predicted; its files hold 16.0 GiB, so a rank about 16.0 GiB",
    )  # fmt: skip
    assert verdict("memory", replace(known, weights_bytes=160 * GIB)).status == FAIL
    assert verdict("memory", replace(known, weights_bytes=60 * GIB), flags(dtype="float32")).status == FAIL


def test_weights_that_shrink_while_they_are_loaded_are_not_called_too_large():
    on = machine("made_up_linux_nvidia_1_t4")
    plan = ServePlan(model="a-model", dtype="float16", max_model_len=4096, quantization="fp8_per_tensor")
    assert verdict("memory", facts("llama-3.1-8b"), plan, on).status == UNKNOWN


def test_a_window_needs_less_cache_than_the_whole_context():
    cache = 1 * GIB
    full = replace(shape("mistral-7b-v0.1"), layer_kinds=(), sliding_window=None)
    plan = ServePlan(model="a-model", kv_cache_memory_bytes=cache)
    windowed = verdict("context length", facts("mistral-7b-v0.1"), plan, CPU)
    assert windowed.status == PASS  # 6,143 tokens in 49 blocks of 16 MiB, of 64
    whole = replace(facts("mistral-7b-v0.1"), shape=full)
    assert verdict("context length", whole, plan, CPU).message == (
        "the KV cache holds 8064 tokens, fewer than one request of 32768"
    )


def test_every_way_out_of_a_cache_too_small_is_one():
    known = facts("gemma-2-9b-it")
    plan = ServePlan(model="a-model", kv_cache_memory_bytes=GIB)
    found = verdict("context length", known, plan, CPU)
    assert found.message == "the KV cache holds 2944 tokens, fewer than one request of 8192"  # as vLLM 0.32 says
    shorter, larger = found.fix.split(", or ")
    assert verdict("context length", known, plan.with_(max_model_len=int(shorter.split()[1])), CPU).status == PASS
    enough = plan.with_(kv_cache_memory_bytes=int(larger.split()[1]))
    assert verdict("context length", known, enough, CPU).status == PASS
    short = plan.with_(kv_cache_memory_bytes=int(larger.split()[1]) - 1)
    assert verdict("context length", known, short, CPU).status == FAIL


@pytest.mark.parametrize(
    ("length", "settings", "arguments", "status"),
    [(131072, {}, (), PASS), (131073, {}, (), FAIL), (131073, {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}, (), WARN),
     (131073, {}, ("--hf-overrides", '{"max_position_embeddings": 200000}'), PASS)],
)  # fmt: skip
def test_a_context_beyond_the_models_own(length, settings, arguments, status):
    plan = ServePlan(model="a-model", max_model_len=length, extra_args=arguments)
    on = replace(A100S, environment=settings)
    assert verdict("context length", facts("llama-3.1-8b"), plan, on).status == status


# All of it


@pytest.mark.parametrize("on", [CPU, A100S], ids=["CPU", "GPUs"])
@pytest.mark.parametrize(
    "name",
    ["llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v2-lite", "gemma-2-9b-it", "gpt-oss-20b", "llama-3.1-8b-bnb-4bit",
     "gemma-3-27b-it", "mixtral-8x7b-v0.1", "c4ai-command-r-v01", "llama-3.1-70b-instruct-fp8-modelopt"],
)  # fmt: skip
def test_every_family_gets_a_report(name, on):
    report = examined(facts(name), ServePlan(model=name, tensor_parallel_size=2), on)
    assert {"model", "heads", "layers", "quantization", "memory", "context length"} <= {
        v.check for v in report.verdicts
    }
    assert all(v.fix for v in report.failed), report


def test_looking_at_a_folder_imports_nothing_heavy(folder):
    code = (
        "import sys; from localai_clusters.models.facts import look_at; known = look_at(sys.argv[1]); "
        "print(*{'torch', 'vllm', 'transformers', 'numpy'} & sys.modules.keys(), known.support.own_class)"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "LlamaForCausalLM"


@pytest.mark.parametrize("value", ["inf", "nan", "1e308", "9" * 400, "-1", "0", "", "{", "many"])
@pytest.mark.parametrize("flag", ["--block-size", "--max-num-seqs", "--max-num-batched-tokens", "--cpu-offload-gb",
                                  "--max-lora-rank", "--kv-cache-dtype", "--lora-modules"])  # fmt: skip
def test_a_flag_of_no_sense_is_left_for_vllm_to_refuse(flag, value):
    for on in (CPU, A100S):
        assert examined(facts("gemma-2-9b-it"), flags("--enable-lora", flag, value), on).verdicts
