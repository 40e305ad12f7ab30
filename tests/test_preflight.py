"""preflight: every check passing and failing, on recorded and made-up machines; the fix, followed, passes."""

import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import localai_clusters as lac
from localai_clusters.machine import Interface, Machine
from localai_clusters.models import BUILT_IN
from localai_clusters.plan import ServePlan
from localai_clusters.preflight.checks import CHECKS
from localai_clusters.preflight.report import FAIL, PASS, UNKNOWN, WARN, PreflightError, Report, Verdict
from localai_clusters.preflight.situation import Situation, settle
from localai_clusters.sizing import tensor_parallel_sizes

GIB = 1 << 30
MIB = 1 << 20
PADDED, PUBLISHED = BUILT_IN["smollm2-135m"].shape, BUILT_IN["smollm2-135m-published"].shape
LLAMA_8B = replace(
    PADDED, num_hidden_layers=32, hidden_size=4096, intermediate_size=14336, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, vocab_size=128256, max_position_embeddings=131072, tie_word_embeddings=False,
)  # fmt: skip
LLAMA_70B = replace(LLAMA_8B, num_hidden_layers=80, hidden_size=8192, intermediate_size=28672, num_attention_heads=64)
SMOLLM2_360M = replace(
    PUBLISHED, num_hidden_layers=32, hidden_size=960, intermediate_size=2560, num_attention_heads=15,
    num_key_value_heads=5,
)  # fmt: skip


def machine(name: str, **changes) -> Machine:
    text = (Path(__file__).parent / "machines" / f"{name}.json").read_text()
    return replace(Machine.from_json(text), **changes)


CPU = machine("linux_cpu_2_cores_24gb")
A100S = machine("made_up_linux_nvidia_8_a100_80gb")
T4 = machine("made_up_linux_nvidia_1_t4")
LLAMA_ON_TWO_NODES = ServePlan(
    model="llama", tensor_parallel_size=4, pipeline_parallel_size=4, nnodes=2, master_addr="10.0.0.1"
)


def examined(plan=None, on=CPU, shape=PADDED, **facts) -> Report:
    plan = settle(plan or ServePlan(), shape, on)
    situation = Situation(plan, on, shape, **facts)
    return Report(plan, tuple(verdict for check in CHECKS for verdict in check(situation)))


def verdict(check: str, *arguments, **facts) -> Verdict:
    found = verdicts(check, *arguments, **facts)
    assert found, f"the check {check!r} said nothing"
    return min(found, key=lambda v: [FAIL, WARN, UNKNOWN, PASS].index(v.status))


def verdicts(check: str, *arguments, **facts) -> list[Verdict]:
    return [v for v in examined(*arguments, **facts).verdicts if v.check == check]


def followed(plan: ServePlan, fix: str) -> ServePlan:
    """``plan`` with the flags of ``fix`` as a person would type them: the first way of several, without the remarks."""
    words = shlex.split(re.split(r" or |, or|\n|   \(", fix)[0].replace("=", " ").rstrip(","))
    changes = {}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        value = value.rstrip(",")
        changes[flag.removeprefix("--").replace("-", "_")] = float(value) if "." in value else int(value)
    return plan.with_(**changes)


# All is well


@pytest.mark.parametrize(
    ("plan", "on", "shape"),
    [
        (ServePlan(), CPU, PADDED),
        (ServePlan(tensor_parallel_size=2), CPU, PADDED),
        (ServePlan(pipeline_parallel_size=2, dtype="float32"), CPU, PADDED),
        (ServePlan(model="smollm2-135m-published"), CPU, PUBLISHED),
        (ServePlan(model="llama", tensor_parallel_size=8), A100S, LLAMA_70B),
        (LLAMA_ON_TWO_NODES, A100S, LLAMA_70B),
        (ServePlan(dtype="float16"), T4, PADDED),
    ],
    ids=["one rank", "TP=2", "PP=2", "9 heads unsplit", "70B on 8 GPUs", "70B on 2 nodes", "T4"],
)
def test_a_plan_that_fits_passes_every_check(plan, on, shape):
    report = examined(plan, on, shape)
    assert {v.status for v in report.verdicts if v.check != "exposure"} == {PASS}
    assert report.ok
    assert report.ok and not report.failed
    report.raise_if_failed()


# Model


def test_a_model_that_cannot_be_had_fails_with_its_own_words():
    found = verdict("model", shape=None, model_error="there is no model 'smollm2-135'; did you mean 'smollm2-135m'?")
    assert found.status == FAIL
    assert "did you mean" in found.message


def test_a_model_that_is_not_here_yet_is_undecided_and_does_not_stop_a_launch():
    report = examined(ServePlan(model="org/name"), shape=None)
    assert [v.check for v in report.verdicts if v.status == UNKNOWN] == ["model"]
    assert report.ok


# World size


@pytest.mark.parametrize(
    ("plan", "wrong", "fixes"),
    [
        (ServePlan(tensor_parallel_size=2, nproc_per_node=1), "= 1 ranks", ["--nproc-per-node 2"]),
        (ServePlan(tensor_parallel_size=2, nproc_per_node=4), "= 4 ranks",
         ["--nproc-per-node 2", "--pipeline-parallel-size 2"]),
        (ServePlan(pipeline_parallel_size=5, nnodes=2, nproc_per_node=3), "= 6 ranks", ["--pipeline-parallel-size 6"]),
        (ServePlan(tensor_parallel_size=4, pipeline_parallel_size=1, nnodes=3, nproc_per_node=1), "= 3 ranks",
         ["--tensor-parallel-size 1 --pipeline-parallel-size 3"]),
    ],
    ids=["too few", "too many", "two nodes", "three nodes"],
)  # fmt: skip
def test_a_world_size_that_is_not_the_splits(plan, wrong, fixes):
    found = verdict("world size", plan)
    assert found.status == FAIL
    assert wrong in found.message and f"= {plan.split_size}" in found.message
    assert found.fix == " or ".join(fixes)
    for fix in fixes:
        mended = followed(plan, fix)
        if "--nproc-per-node" not in fix:  # the command that the person typed still has its own
            mended = mended.with_(nproc_per_node=plan.nproc_per_node)
        assert verdict("world size", mended).status == PASS


# Heads


@pytest.mark.parametrize(
    ("shape", "tensor", "wrong", "best", "fits"),
    [
        (PUBLISHED, 2, "9 attention heads", 1, "1, 3"),
        (PADDED, 3, "4 KV heads", 2, "1, 2, 4, 12"),
        (PADDED, 5, "12 attention heads", 4, "1, 2, 4, 12"),
        (LLAMA_8B, 3, "32 attention heads", 2, "1, 2, 4, 8, 16, 32"),
        (replace(LLAMA_8B, intermediate_size=14336 + 4), 8, "an MLP of 14340 columns", 4, "1, 2, 4"),
        (SMOLLM2_360M, 5, "a vocabulary of 49152 (padded)", 1, "1"),
        (replace(LLAMA_8B, num_attention_heads=1), 2, "1 attention heads", 1, "1"),
        (replace(PADDED, num_attention_heads=4096), 4095, "4096 attention heads", 512, " 256, 512"),
    ],
)
def test_heads_that_cannot_be_shared_equally(shape, tensor, wrong, best, fits):
    plan = ServePlan(model="a-model", tensor_parallel_size=tensor)
    found = verdict("heads", plan, shape=shape)
    assert found.status == FAIL
    assert found.message == f"{wrong} cannot be shared equally by {tensor} tensor-parallel ranks"
    assert found.fix.startswith(f"--tensor-parallel-size {best} ")
    assert found.fix.endswith(f"{fits})")
    assert verdict("heads", followed(plan, found.fix), shape=shape).status == PASS


def test_two_ranks_on_the_nine_heads_are_pointed_to_the_padded_model():
    plan = ServePlan(model="smollm2-135m-published", tensor_parallel_size=2)
    fix = verdict("heads", plan, shape=PUBLISHED).fix
    assert fix.splitlines()[1] == "or --model smollm2-135m, the same model padded to 12 heads and 4 KV heads"
    assert verdict("heads", plan.with_(model="smollm2-135m"), shape=PADDED).status == PASS


def test_kv_heads_fewer_than_ranks_are_repeated():
    found = verdict("heads", ServePlan(tensor_parallel_size=16), on=A100S, shape=LLAMA_8B)
    assert (found.status, found.message) == (PASS, "2 heads and 1 KV heads on each of 16 ranks")


def test_a_model_with_128_heads_can_be_split_128_ways():
    wide = replace(LLAMA_70B, num_attention_heads=128)
    assert verdict("heads", ServePlan(tensor_parallel_size=128), on=A100S, shape=wide).status == PASS


@pytest.mark.parametrize(("shape", "fits"), [(PADDED, [1, 2, 4, 12]), (PUBLISHED, [1, 3]), (SMOLLM2_360M, [1])])
def test_tensor_parallel_sizes(shape, fits):
    assert tensor_parallel_sizes(shape) == fits


# Layers, devices


def test_more_stages_than_layers():
    plan = ServePlan(pipeline_parallel_size=31)
    found = verdict("layers", plan)
    assert (found.status, found.message) == (FAIL, "30 layers do not fill 31 pipeline stages")
    assert verdict("layers", followed(plan, found.fix)).status == PASS


@pytest.mark.parametrize(
    ("plan", "on", "words", "fix"),
    [
        (ServePlan(tensor_parallel_size=4), CPU, "4 ranks on a node with 2 cores",
         "at most 2 ranks on a node: a smaller --tensor-parallel-size, or more nodes"),
        (ServePlan(pipeline_parallel_size=3), CPU, "3 ranks on a node with 2 cores",
         "at most 2 ranks on a node: a smaller --pipeline-parallel-size, or more nodes"),
        (ServePlan(tensor_parallel_size=2), T4, "2 ranks on a node with 1 GPU:",
         "at most 1 rank on a node: a smaller --tensor-parallel-size, or more nodes"),
        (ServePlan(tensor_parallel_size=16), A100S, "16 ranks on a node with 8 GPUs", "at most 8 ranks on a node"),
    ],
)  # fmt: skip
def test_more_ranks_than_devices(plan, on, words, fix):
    found = verdict("devices", plan, on)
    assert found.status == FAIL
    assert words in found.message
    assert found.fix.startswith(fix)
    flag = "tensor_parallel_size" if plan.tensor_parallel_size > 1 else "pipeline_parallel_size"
    most = int(re.search(r"at most (\d+)", found.fix)[1])
    assert verdict("devices", plan.with_(**{flag: most}), on).status == PASS
    if most > 1:
        assert verdict("devices", plan.with_(nnodes=plan.split_size), on).status == PASS


# Memory


def test_a_plan_bigger_than_memory_names_the_cache_that_fits():
    plan = ServePlan(tensor_parallel_size=2, kv_cache_memory_bytes=1 << 50)
    found = verdict("memory", plan)
    assert found.status == FAIL
    assert "1048576.0 GiB of KV cache" in found.message
    assert "of 22.4 GiB available" in found.message
    mended = examined(followed(plan, found.fix))
    assert mended.ok, str(mended)


def test_a_context_too_long_for_memory_names_the_tokens_that_fit():
    small = replace(CPU, memory_available_bytes=20 * GIB)
    plan = ServePlan(model="llama-8b", dtype="bfloat16")
    found = verdict("memory", plan, small, LLAMA_8B)
    assert found.status == FAIL
    mended = followed(plan, found.fix)
    assert mended.max_model_len % 128 == 0 and 0 < mended.max_model_len < 131072
    assert mended.kv_cache_memory_bytes // (128 * 131072) > mended.max_model_len // 128  # whole blocks and one more
    report = examined(mended, small, LLAMA_8B)
    assert report.ok, str(report)


def test_weights_alone_too_large_for_memory():
    found = verdict("memory", ServePlan(model="llama-70b"), shape=LLAMA_70B)
    assert found.status == FAIL
    assert "131.4 GiB of weights" in found.message
    assert found.fix.startswith("a smaller model: the weights and the runtime alone take 132.3 GiB")


def test_memory_counts_the_ranks_of_this_node_only():
    half = replace(CPU, memory_available_bytes=10 * GIB)
    plan = ServePlan(model="llama-8b", pipeline_parallel_size=2, max_model_len=1024, dtype="bfloat16")
    assert verdict("memory", plan, half, LLAMA_8B).status == FAIL
    assert verdict("memory", plan.with_(nnodes=2), half, LLAMA_8B).status == PASS


def test_weights_that_do_not_fit_a_gpu_and_a_split_that_does():
    plan = ServePlan(model="llama-70b", max_model_len=8192)
    found = verdict("memory", plan, A100S, LLAMA_70B)
    assert (found.status, found.fix) == (FAIL, "a larger split, or a smaller model")
    assert "131.4 GiB of weights in 73.6 GiB of GPU 0" in found.message
    assert verdict("memory", plan.with_(tensor_parallel_size=2), A100S, LLAMA_70B).status == PASS


def test_a_context_too_long_for_a_gpu_names_one_that_fits():
    plan = ServePlan(model="llama-70b", tensor_parallel_size=2)
    found = verdict("memory", plan, A100S, LLAMA_70B)
    assert found.status == FAIL
    assert "fewer than one request of 131072" in found.message
    assert examined(followed(plan, found.fix), A100S, LLAMA_70B).ok


def test_a_gpu_that_others_use_names_the_share_that_is_free():
    used = replace(A100S, gpus=tuple(replace(gpu, memory_free_bytes=30 * GIB) for gpu in A100S.gpus))
    plan = ServePlan()
    found = verdict("memory", plan, used)
    assert found.status == FAIL
    assert found.message == "GPU 0 has 30.0 GiB free, 92% of it is 73.6 GiB"
    assert examined(followed(plan, found.fix), used).ok


@pytest.mark.parametrize("free", [0, 100 * MIB])
def test_a_full_gpu_is_not_answered_with_a_share_of_zero(free):
    used = replace(T4, gpus=(replace(T4.gpus[0], memory_free_bytes=free),))
    assert verdict("memory", ServePlan(dtype="float16"), used).fix == "end what fills it: nvidia-smi names it"


def test_room_for_next_to_no_tokens_is_not_answered_with_a_context_of_zero():
    weights = 2 * 134_515_008 + 2 * 30 * (3 * 2 + 1 * 2) * 64 * 576  # padded: 3 heads and 1 KV head more a layer
    tight = replace(T4.gpus[0], memory_bytes=weights + 30720, memory_free_bytes=weights + 30720)
    plan = ServePlan(dtype="float16", gpu_memory_utilization=1)
    found = verdict("memory", plan, replace(T4, gpus=(tight,)))
    assert (found.status, found.fix) == (FAIL, "a larger split, or a smaller model")


@pytest.mark.parametrize(
    ("shape", "kind"),
    [(replace(PADDED, quantization="awq"), "quantized"), (replace(PADDED, num_experts=8), "mixture-of-experts")],
)
def test_sizes_that_are_not_predicted_are_undecided(shape, kind):
    found = verdict("memory", ServePlan(), A100S, shape)
    assert (found.status, found.message) == (UNKNOWN, f"the size of {kind} weights is not predicted")


def test_a_cpu_ranks_cache_is_settled_and_a_gpus_is_what_vllm_finds_left():
    plan = ServePlan(tensor_parallel_size=2, max_model_len=1024)
    assert settle(plan, PADDED, CPU).kv_cache_memory_bytes == 256 * MIB
    assert settle(plan.with_(kv_cache_memory_bytes=1), PADDED, CPU).kv_cache_memory_bytes == 1
    assert settle(plan, PADDED, A100S) == settle(plan, None, CPU) == plan


# Context length


def test_a_context_longer_than_the_model_was_trained_for():
    plan = ServePlan(max_model_len=8193)
    found = verdict("context length", plan)
    assert (found.status, found.message) == (FAIL, "the model was trained for 8192 tokens, not for 8193")
    assert verdict("context length", followed(plan, found.fix)).status == PASS


def test_a_cache_smaller_than_one_request_in_whole_blocks_names_both_ways_out():
    plan = ServePlan(max_model_len=2048, kv_cache_memory_bytes=1000 * 30720 + 5, dtype="bfloat16")
    found = verdict("context length", plan)
    # vLLM 0.32 says of 7 blocks of 128: "the estimated maximum model length is 768"
    assert found.message == "the KV cache holds 768 tokens, fewer than one request of 2048"
    shorter, larger = found.fix.split(", or ")
    for fix in (shorter, larger):
        assert verdict("context length", followed(plan, fix)).status == PASS


def test_a_cache_of_no_tokens_is_not_answered_with_a_context_of_zero():
    plan = ServePlan(kv_cache_memory_bytes=1)
    found = verdict("context length", plan)
    assert found.status == FAIL and "--max-model-len" not in found.fix
    assert verdict("context length", followed(plan, found.fix)).status == PASS


# Quantization and dtype


@pytest.mark.parametrize(
    ("asked", "stored", "status"),
    [(None, None, PASS), (None, "awq", PASS), ("awq", "awq", PASS), ("fp8", None, WARN), ("gptq", "awq", FAIL)],
)
def test_quantization_is_the_checkpoints_own(asked, stored, status):
    found = verdict("quantization", ServePlan(quantization=asked), A100S, replace(PADDED, quantization=stored))
    assert found.status == status
    if status == FAIL:
        assert found.fix == "--quantization awq, or leave it out"


@pytest.mark.parametrize(("dtype", "status"), [("bfloat16", FAIL), ("auto", WARN)])
def test_a_t4_has_no_bfloat16(dtype, status):
    found = verdict("dtype", ServePlan(dtype=dtype), T4)
    assert found.status == status
    assert found.message.startswith("Tesla T4 (compute capability 7.5) has no bfloat16; it came with 8.0")
    assert found.fix == "--dtype float16"
    assert {v.status for v in examined(ServePlan(dtype="float16"), T4).verdicts} == {PASS}


# Shared memory


def test_too_little_shared_memory_names_what_is_there_and_what_is_needed():
    docker = replace(CPU, shm_free_bytes=16 * MIB)
    plan = ServePlan(tensor_parallel_size=2)
    found = verdict("shared memory", plan, docker)
    assert found.status == FAIL
    assert found.message == "/dev/shm has 16 MiB free; the ranks need 32 MiB"
    assert "--shm-size=1g" in found.fix
    assert verdict("shared memory", plan, replace(CPU, shm_free_bytes=GIB)).status == PASS
    assert examined(ServePlan(), docker).ok  # one rank shares nothing


# Ports


def test_a_port_in_use_names_its_holder_and_a_port_that_fits():
    plan = ServePlan(port=8000, master_port=8001)
    found = verdict("ports", plan, busy_ports=((8000, "nginx (pid 7)"),))
    assert (found.status, found.message) == (FAIL, "port 8000 is taken by nginx (pid 7)")
    assert found.fix == "--port 8002, or --port 0 for any free one"
    assert followed(plan, found.fix).port == 8002


@pytest.mark.parametrize(("port", "other"), [(65535, 1024), (80, 1024)])
def test_the_port_to_type_is_one_that_exists_and_needs_no_root(port, other):
    plan = ServePlan(port=port)
    assert followed(plan, verdict("ports", plan, busy_ports=((port, "x"),)).fix).port == other


def test_both_ports_in_use_are_both_named():
    report = examined(ServePlan(port=8000, master_port=8001), busy_ports=((8000, "a"), (8001, "b")))
    assert [v.fix.split(",")[0] for v in report.failed] == ["--port 8002", "--master-port 8002"]


def test_a_port_that_this_process_holds_is_found_on_the_real_machine():
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        report = lac.preflight(ServePlan(port=port, master_port=0))
    (found,) = report.failed
    assert found.check == "ports"
    assert re.search(rf"port {port} is taken by .+ \(pid {os.getpid()}\)", found.message)
    assert lac.preflight(ServePlan(port=0, master_port=0)).ok


# Exposure


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_beyond_loopback_the_key_and_torchruns_open_port_are_named(host):
    server, rendezvous = verdicts("exposure", ServePlan(host=host, master_port=29511))
    assert (server.status, rendezvous.status) == (WARN, WARN)
    assert host in server.message and "an API key that is made and shown once" in server.message
    assert "port 29511" in rendezvous.message and "firewall" in rendezvous.fix
    assert "with the API key" in verdicts("exposure", ServePlan(host=host), has_api_key=True)[0].message


def test_on_loopback_nothing_is_exposed():
    assert [v.status for v in verdicts("exposure", ServePlan(host="127.0.0.1"))] == [PASS]


def test_several_nodes_expose_torchruns_port_though_the_server_stays_on_loopback():
    found = verdicts("exposure", ServePlan(tensor_parallel_size=2, nnodes=2))
    assert [v.status for v in found] == [PASS, WARN]
    assert "Gloo and NCCL" in found[1].message


def test_an_address_of_another_machine_cannot_be_listened_on():
    plan = ServePlan(host="192.0.2.77", port=0, master_port=0)  # TEST-NET-1: nobody's
    assert [(v.check, v.fix.split()[0]) for v in lac.preflight(plan).failed] == [("exposure", "--host")]


# The nodes' meeting point


@pytest.mark.parametrize(
    ("address", "node_rank", "foreign", "status", "fix"),
    [
        ("127.0.0.1", 0, (), FAIL, "--master-addr 10.0.0.5"),
        ("localhost", 1, (), FAIL, "node 0's address"),
        ("10.0.0.5", 0, (), PASS, ""),
        ("10.0.0.9", 0, ("10.0.0.9",), FAIL, "--master-addr 10.0.0.5, or --node-rank 1 here"),
        ("10.0.0.9", 1, (), PASS, ""),
    ],
)
def test_the_nodes_must_be_able_to_meet(address, node_rank, foreign, status, fix):
    machine = replace(CPU, interfaces={"lo": Interface("127.0.0.1"), "eth0": Interface("10.0.0.5")})
    plan = ServePlan(tensor_parallel_size=2, nnodes=2, master_addr=address)
    found = verdict("master address", plan, machine, node_rank=node_rank, foreign_hosts=foreign)
    assert (found.status, found.fix) == (status, fix)


def test_nodes_of_one_machine_share_its_cores():
    plan = ServePlan(tensor_parallel_size=len(CPU.cores), nnodes=len(CPU.cores))
    assert verdict("devices", plan, nodes_here=plan.nnodes).status == PASS
    plan = ServePlan(tensor_parallel_size=2 * len(CPU.cores), nnodes=len(CPU.cores))
    assert verdict("devices", plan, nodes_here=plan.nnodes).status == FAIL


# Versions


@pytest.mark.parametrize(
    ("on", "message", "fix"),
    [
        (replace(CPU, versions={}, backend=None), "vLLM is not installed", "make setup"),
        (replace(CPU, versions={"vllm": "0.31.2+cpu"}),
         "vLLM 0.31.2+cpu is installed; the torchrun server is built on 0.32.0", "make setup"),
        (replace(A100S, gpus=(), driver=None),
         "vLLM 0.32.0 for GPUs is installed, but no NVIDIA driver answers",
         "./setup.sh --variant cpu, or mend the driver (nvidia-smi)"),
    ],
    ids=["missing", "another", "no driver"],
)  # fmt: skip
def test_vllm_that_cannot_serve(on, message, fix):
    found = verdict("versions", on=on)
    assert (found.status, found.message, found.fix) == (FAIL, message, fix)


def test_a_local_build_of_the_right_version_passes():
    assert verdict("versions", on=replace(CPU, versions={"vllm": "0.32.0+cpu"})).status == PASS


# The report


HOSTILE = "<script>alert('x')</script>[/bold]"


@pytest.fixture
def failing() -> Report:
    plan = ServePlan(model=HOSTILE, tensor_parallel_size=3, host="0.0.0.0")
    return examined(plan, busy_ports=((8000, "<b>x</b>"),))


def printed(thing, **options) -> str:
    stream = io.StringIO()
    Console(file=stream, width=80, **options).print(thing)
    return stream.getvalue()


def test_text_has_every_verdict_with_its_fix(failing):
    text = str(failing)
    assert text.startswith(f"{HOSTILE}, TP=3: cannot be launched: 3 checks failed\n")
    for v in failing.verdicts:
        assert f"{v.check}: {v.message}" in text and v.fix in text


def test_html_escapes_what_others_wrote(failing):
    page = failing._repr_html_()
    assert "<script" not in page and "<b>x</b>" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in page
    assert page.count("<tr>") == len(failing.verdicts) + 1


def test_to_dict_is_json_and_says_it_all(failing):
    data = json.loads(json.dumps(failing.to_dict()))
    assert data["ok"] is False
    assert ServePlan.from_dict(data["plan"]) == failing.plan
    assert [Verdict(**v) for v in data["verdicts"]] == list(failing.verdicts)


def test_a_terminal_of_80_columns_shows_whole_words_and_markup_as_it_is(failing):
    text = printed(failing)
    assert max(map(len, text.splitlines())) <= 80
    assert HOSTILE in text
    assert "\x1b" not in text  # a pipe gets no colour
    flat = " ".join(text.split())
    assert "4 KV heads cannot be shared equally by 3 tensor-parallel ranks" in flat
    assert "→ --tensor-parallel-size 2 (fits this model: 1, 2, 4, 12)" in flat


def test_a_terminal_gets_colour(failing):
    assert "\x1b[" in printed(failing, force_terminal=True, color_system="standard", no_color=False)


def test_an_error_holds_the_failed_verdicts_only(failing):
    with pytest.raises(PreflightError) as caught:
        failing.raise_if_failed()
    message = str(caught.value)
    assert all(v.message in message for v in failing.failed)
    assert "30 layers" not in message
    assert isinstance(caught.value, ValueError)


def test_checks_that_are_skipped_do_not_stop_a_launch(failing):
    with pytest.raises(PreflightError) as caught:
        failing.raise_if_failed(skip=("heads", "exposure", "ports"))
    assert [v.check for v in caught.value.report.failed] == ["devices"]
    failing.raise_if_failed(skip=("heads", "exposure", "ports", "devices"))


# What it costs


def test_a_whole_preflight_imports_neither_torch_nor_vllm_nor_transformers():
    code = (
        "import sys, localai_clusters as lac; plan = lac.ServePlan(tensor_parallel_size=2, port=0, master_port=0); "
        "report = lac.preflight(plan); str(report); report._repr_html_(); lac.split_map(plan); "
        "print(*{'torch', 'vllm', 'transformers'} & sys.modules.keys(), len(report.verdicts) > 8)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.strip() == "True"
