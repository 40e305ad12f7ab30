"""explain_command: real pasted commands read as they were meant, corrected, and the corrections read back."""

import random
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from test_preflight import A100S, LLAMA_70B, examined

from localai_clusters.command import explain_command
from localai_clusters.command.findings import ADDS_UP, FILL_IN, REMOVED, UNSAFE, WRONG
from localai_clusters.command.report import CommandReport
from localai_clusters.plan import ServePlan
from localai_clusters.preflight.report import FAIL

COMMANDS = Path(__file__).parent / "commands"
EXPECTED = tomllib.loads((COMMANDS / "expected.toml").read_text())
COMPLAINTS = {WRONG, REMOVED, ADDS_UP}


def pasted(name: str) -> CommandReport:
    return explain_command((COMMANDS / f"{name}.sh").read_text())


def codes(report: CommandReport, *severities: str) -> set[str]:
    return {found.code for found in report.findings if not severities or found.severity in severities}


def read_back(report: CommandReport) -> None:
    """What ``report`` prints is read without complaint, as the same plan."""
    for server in report.servers:
        for way in server.ways:
            again = explain_command("\n\n".join(way.commands))
            complaints = [found for found in again.findings if found.severity in {*COMPLAINTS, UNSAFE}]
            assert {found.code for found in complaints} <= {"trust-remote-code"}, (way.name, complaints, way.commands)
            if server.plan is None:
                continue
            assert len(again.plans) == 1, (way, again.reason)
            plan = server.plan
            if way.name != "localai-clusters" and plan.nnodes == 1:  # vLLM has no meeting point to say then
                plan = replace(plan, master_addr=again.plans[0].master_addr, master_port=again.plans[0].master_port)
            assert again.plans == (plan,), way.commands


# Real commands


@pytest.mark.parametrize("name", EXPECTED)
def test_a_real_command_is_read_as_it_was_meant(name):
    expected, report = EXPECTED[name], pasted(name)
    blocking = {found.code for found in report.findings if found.blocks}
    if "reason" in expected:
        assert expected["reason"] in report.reason
        assert (report.works, report.servers) == (None, ())
        return
    assert blocking == set(expected["blocking"])
    assert set(expected.get("also", ())) <= codes(report)
    assert report.works is (not expected["blocking"])
    if "no_plan" in expected:
        assert [expected["no_plan"] in server.reason for server in report.servers] == [True]
        return
    (plan,) = report.plans
    fields = {"tensor": "tensor_parallel_size", "pipeline": "pipeline_parallel_size"}
    wanted = {
        fields.get(key, key): value for key, value in expected.items() if key not in ("source", "blocking", "also")
    }
    defaults = {"model": "Qwen/Qwen3-0.6B", "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "port": 8000,
                "max_model_len": None, "gpu_memory_utilization": None, "extra_args": []}  # fmt: skip
    assert {key: plan.to_dict()[key] for key in defaults | wanted} == defaults | wanted


def test_every_fixture_is_expected_to_be_something():
    assert {path.stem for path in COMMANDS.glob("*.sh")} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_the_corrected_commands_are_read_back_without_complaint_as_the_same_plan(name):
    read_back(pasted(name))


@pytest.mark.parametrize("name", [name for name in EXPECTED if "reason" not in EXPECTED[name]])
def test_the_corrected_plan_passes_preflight_on_machines_that_have_the_devices(name):
    for plan in pasted(name).plans:
        machine = replace(A100S, gpus=A100S.gpus * max(1, plan.nproc_per_node // len(A100S.gpus)))
        length = min(plan.max_model_len or 4096, 4096)
        report = examined(replace(plan, max_model_len=length, quantization=None), machine, LLAMA_70B, has_api_key=True)
        failed = [verdict for verdict in report.verdicts if verdict.status == FAIL]
        # The fixtures' own models are smaller than the one that stands for them here.
        assert {verdict.check for verdict in failed} <= ({"memory"} if plan.world_size < 4 else set())


# The chapter's two commands


def test_the_chapters_first_command():
    report = pasted("chapter_one_node")
    assert codes(report, WRONG) == {"server-per-rank"}
    assert codes(report, REMOVED) == {"removed-module"}
    assert codes(report, UNSAFE) == {"open-to-all"}
    assert {"no-chat-template", "gated", "memory"} <= codes(report)
    assert report.plans == (ServePlan(model="meta-llama/Llama-2-70b-hf", tensor_parallel_size=2, host="0.0.0.0"),)
    memory = next(found for found in report.findings if found.code == "memory")
    assert "138 GB" in memory.message and "69 GB on each of 2 GPUs" in memory.message and "80 GB GPU" in memory.message
    ours, theirs = report.servers[0].ways
    assert theirs.commands[0].splitlines()[1:] == [
        "vllm serve meta-llama/Llama-2-70b-hf \\", "    --tensor-parallel-size 2 \\", "    --host 0.0.0.0",
    ]  # fmt: skip
    assert "VLLM_API_KEY" in theirs.commands[0].splitlines()[0]
    assert ours.note == "it makes an API key and shows it once"


def test_the_chapters_second_command():
    report = pasted("chapter_two_nodes")
    assert codes(report, WRONG, REMOVED, ADDS_UP, FILL_IN) == {
        "server-per-rank", "removed-module", "world-size", "placeholder",
    }  # fmt: skip
    assert "node-missing" in codes(report)
    world = next(found for found in report.findings if found.code == "world-size")
    assert "2 x 8 = 16 ranks" in world.message and "split 8 ways" in world.message
    assert world.fix == "--tensor-parallel-size 8 --pipeline-parallel-size 2"
    (plan,) = report.plans
    assert (plan.tensor_parallel_size, plan.pipeline_parallel_size, plan.nnodes, plan.nproc_per_node) == (8, 2, 2, 8)
    (server,) = report.servers
    assert server.fill_in == (("HEAD_NODE_IP", "node 0's address that the other nodes reach; there: ip -4 addr"),)
    for way in server.ways:
        assert len(way.commands) == 2
        assert [f"--node-rank {node}" in command for node, command in enumerate(way.commands)] == [True, True]
    assert "--headless" in server.ways[1].commands[1] and "--headless" not in server.ways[1].commands[0]


def test_both_of_the_chapters_commands_in_one_paste_are_two_servers():
    text = (COMMANDS / "chapter_one_node.sh").read_text() + "\n" + (COMMANDS / "chapter_two_nodes.sh").read_text()
    assert [plan.nnodes for plan in explain_command(text).plans] == [1, 2]


@pytest.mark.parametrize("filled", [False, True])
def test_the_second_command_passes_preflight_on_two_machines_of_eight_gpus(filled):
    (plan,) = pasted("chapter_two_nodes").plans
    plan = plan.with_(master_addr="10.0.0.1") if filled else plan
    for node_rank in (0, 1):
        assert examined(plan, A100S, LLAMA_70B, node_rank=node_rank).ok


# Any plan


EXTRA = [
    ("--seed", "1"), ("--max-loras=2",), ("--enforce-eager",), ("--no-enable-prefix-caching",), ("-O3",),
    ("--served-model-name", "a b", "it's"), ("--kv-transfer-config", '{"kv_role": "x", "y": "it\'s $HOME"}'),
    ("--chat-template", "a\nb  c"), ("--max-num-seqs", "64"), ("--compilation-config.mode", "3"),
    ("--limit-mm-per-prompt", '{"image": 2}'), ("--tokenizer", "~/tokenizer"), ("--trust-remote-code",),
    ("--lora-modules", "a=/x", "b=/y z", "--enable-lora"),
]  # fmt: skip
MODELS = ["org/m-1.5_b", "/models/it's $HOME `id` \\ \"mine\"", "~/m", "./m", "$MODEL", "/x y/z", "a;b|c&d>e", "C:\\x",
          "[x]y", "{a,b}", "模型/q", "#hash", "!x", "~root", "a=b", "x*?"]  # fmt: skip


def any_plan(draw: random.Random) -> ServePlan:
    nnodes, tensor, pipeline = draw.choice([1, 1, 1, 2, 2, 3, 4]), draw.choice([1, 2, 4, 8]), draw.choice([1, 2, 4])
    return ServePlan(
        model=draw.choice(MODELS),
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline * (nnodes if tensor * pipeline % nnodes else 1),
        nnodes=nnodes,
        dtype=draw.choice(["auto", "bfloat16", "float16", "float32"]),
        max_model_len=draw.choice([None, 1, 4096, 131072]),
        gpu_memory_utilization=draw.choice([None, 0.1, 0.9, 1.0, 1]),
        kv_cache_memory_bytes=draw.choice([None, 1 << 30]),
        quantization=draw.choice([None, "awq", "fp8", "gptq"]),
        host=draw.choice(["127.0.0.1", "0.0.0.0", "::", "::1", "localhost", "10.1.2.3", "my-server"]),
        port=draw.choice([8000, 1234, 65535]),
        master_addr=draw.choice(["10.0.0.1", "node-0", "fe80::1", *(["127.0.0.1"] if nnodes == 1 else [])]),
        master_port=draw.choice([29500, 29501, 4000]),
        rdzv_backend=draw.choice(["static", "c10d"]) if nnodes > 1 else "static",
        extra_args=tuple(word for words in draw.sample(EXTRA, draw.randrange(4)) for word in words),
    )


@pytest.mark.parametrize("seed", range(60))
def test_any_plans_own_commands_are_read_back_as_that_plan(seed):
    plan = any_plan(random.Random(seed))
    for commands in ([plan.serve_command(node) for node in range(plan.nnodes)], plan.commands()):
        report = explain_command("\n\n".join(commands))
        assert not codes(report, *COMPLAINTS, FILL_IN)
        assert report.plans == (plan,)
    if plan.rdzv_backend == "static":
        read_back(report)


# Several commands


def test_two_nodes_commands_are_one_server():
    text = "vllm serve m -tp 8 -pp 2 --nnodes 2 --node-rank {} --master-addr 10.0.0.1{}"
    report = explain_command(text.format(0, "") + "\n" + text.format(1, " --headless"))
    assert len(report.servers) == 1 and report.works
    assert "node-missing" not in codes(report)


def test_two_different_servers_stay_two():
    assert [plan.port for plan in explain_command("vllm serve a --port 8001\nvllm serve b --port 8002").plans] == [
        8001,
        8002,
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no text"),
        (" \n\t\n", "no text"),
        ("hello world", "no command here starts"),
        ("pip install vllm", "no command here starts"),
        ("vllm bench serve --model m", "serve nothing"),
        ("vllm chat --model m", "serve nothing"),
        ("docker compose up -d", "docker compose"),
        ("docker-compose up", "docker compose"),
        ("ray start --head --port=6379", "ray start"),
        ("python -m sglang.launch_server --model m", "another program"),
        ("docker pull vllm/vllm-openai:latest", "no command here starts"),
        ("x" * 1_000_001, "1,000,001 characters"),
        ("vllm serve m " + "a " * 3000, "2000 words"),
        ("vllm serve m\n" * 501, "500 commands"),
    ],
)
def test_what_cannot_be_judged_says_why(text, reason):
    report = explain_command(text)
    assert report.works is None and reason in report.reason
    assert not report.servers and not report.findings


@pytest.mark.parametrize("text", [None, b"vllm serve m", 7, ["vllm", "serve"]])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(TypeError, match="reads a text"):
        explain_command(text)


def test_a_name_that_only_this_library_knows_is_no_command_for_vllm_alone():
    report = explain_command("vllm serve smollm2-135m --tensor-parallel-size 2")
    assert [way.name for way in report.servers[0].ways] == ["localai-clusters"]
