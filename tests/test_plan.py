"""plan.py: what a ServePlan refuses, and torchrun's argv for each of its nodes."""

import json
import shlex
import subprocess

import pytest

from localai_clusters.plan import RANK_MODULE, ServePlan, paste

HUGE = 10**400  # larger than any float
SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "nnodes", "nproc_per_node", "max_model_len",
         "kv_cache_memory_bytes")  # fmt: skip
TWO_NODES = ServePlan(
    model="Qwen/Qwen2.5-0.5B-Instruct",
    tensor_parallel_size=2,
    pipeline_parallel_size=2,
    nnodes=2,
    dtype="bfloat16",
    max_model_len=4096,
    gpu_memory_utilization=0.85,
    kv_cache_memory_bytes=1 << 30,
    quantization="awq",
    host="0.0.0.0",
    port=9000,
    master_addr="10.0.0.1",
    master_port=29400,
    extra_args=("--seed", "1"),
)
AWKWARD = ServePlan(
    model='/models/it\'s $HOME `id` \\ "mine"',
    extra_args=("--chat-template", "a\nb  c", "--override", '{"a": "it\'s"}', "--empty", "", "--seed", "-1", "--x=a b"),
)


def complaint(**fields) -> str:
    with pytest.raises(ValueError) as caught:
        ServePlan(**fields)
    return str(caught.value)


# What is refused


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -1, True, False, "2", 2.0, float("nan"), [2], HUGE])
def test_a_size_is_a_whole_number_of_at_least_1(name, value):
    message = complaint(**{name: value})
    assert message.startswith(f"{name} is ")
    assert "at least 1" in message or "less than 2**63" in message
    assert len(message) < 200


@pytest.mark.parametrize("value", [0, -0.1, 1.01, 92, True, "0.9", float("nan"), float("inf"), -HUGE, HUGE])
def test_a_memory_share_is_above_0_and_up_to_1(value):
    assert complaint(gpu_memory_utilization=value).startswith("gpu_memory_utilization is ")


@pytest.mark.parametrize("value", [0.01, 0.9, 1, 1.0])
def test_a_memory_share_that_is_one(value):
    assert ServePlan(gpu_memory_utilization=value).gpu_memory_utilization == value


@pytest.mark.parametrize("name", ["port", "master_port"])
@pytest.mark.parametrize("value", [-1, 65536, HUGE, True, "8000", 8000.0, None])
def test_a_port_is_from_0_to_65535(name, value):
    assert complaint(**{name: value}).startswith(f"{name} is ")


def test_the_two_ports_differ_unless_both_are_chosen_at_launch():
    assert complaint(port=8000, master_port=8000) == (
        "port and master_port are both 8000; the server and torchrun need one each"
    )
    assert ServePlan(port=0, master_port=0).port == 0


@pytest.mark.parametrize("value", ["fp16", "", "Float32", None, 16, ["auto"]])
def test_an_unknown_dtype_is_refused_with_the_known_ones(value):
    assert complaint(dtype=value) == f"dtype is {value!r}; it can be auto, bfloat16, float16, float32"


@pytest.mark.parametrize("name", ["model", "host", "master_addr", "quantization"])
@pytest.mark.parametrize("value", ["", "  ", "a\nb", "a\0b", "\x1b[31mred", "-x", "--trust-remote-code", 7, b"a"])
def test_texts_that_could_be_read_as_flags_or_lines_are_refused(name, value):
    message = complaint(**{name: value})
    assert message.startswith(f"{name} is ")
    assert "\n" not in message


@pytest.mark.parametrize("name", ["model", "host", "master_addr"])
def test_texts_that_have_to_be_there(name):
    assert complaint(**{name: None}) == f"{name} is None; it must be a text that is not empty"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("--seed 1", "strings"),
        (("--seed", 1), "strings"),
        (None, "strings"),
        (("Qwen/Qwen3-0.6B",), "--model Qwen/Qwen3-0.6B"),
        (("--seed", "1", "--port", "9"), "--port"),
        (("--seed", "1", "-tp", "4"), "-tp"),
        (("--tensor_parallel_size=4",), "--tensor-parallel-size"),
        (("--seed", "1\0"), "null character"),
    ],
)
def test_extra_args_are_other_flags_as_strings(value, words):
    assert words in complaint(extra_args=value)


def test_ranks_that_do_not_divide_over_the_nodes():
    assert complaint(tensor_parallel_size=3, nnodes=2) == (
        "tensor_parallel_size 3 x pipeline_parallel_size 1 = 3 ranks do not divide over 2 nodes"
    )


@pytest.mark.parametrize(
    "sizes",
    [
        {"tensor_parallel_size": 10**9},
        {"pipeline_parallel_size": 10**9},
        {"tensor_parallel_size": 4096, "pipeline_parallel_size": 4096},
        {"nnodes": 4096, "nproc_per_node": 4096},
    ],
    ids=str,
)
def test_a_number_of_ranks_that_no_machine_has_is_refused_at_once(sizes):
    assert complaint(**sizes).endswith("ranks; at most 4096 can be planned")


# The split


def test_processes_per_node_follow_from_the_split():
    assert (TWO_NODES.split_size, TWO_NODES.nproc_per_node, TWO_NODES.world_size) == (4, 2, 4)


def test_processes_per_node_that_disagree_with_the_split_are_for_preflight_to_judge():
    plan = ServePlan(tensor_parallel_size=2, nproc_per_node=3)
    assert (plan.split_size, plan.world_size) == (2, 3)


def test_with_follows_the_split():
    plan = ServePlan(tensor_parallel_size=2)
    assert plan.with_(tensor_parallel_size=4).nproc_per_node == 4
    assert plan.with_(pipeline_parallel_size=2).nproc_per_node == 4
    assert plan.with_(nnodes=2).nproc_per_node == 1
    assert plan.with_(tensor_parallel_size=4, nproc_per_node=2).nproc_per_node == 2
    assert plan.with_(port=9).nproc_per_node == 2
    assert plan == ServePlan(tensor_parallel_size=2)  # unchanged


def test_with_keeps_processes_per_node_that_were_asked_for_while_the_split_stays():
    assert ServePlan(nproc_per_node=3).with_(port=9).nproc_per_node == 3


def test_with_checks_what_it_changes():
    with pytest.raises(ValueError, match="tensor_parallel_size is 0"):
        ServePlan().with_(tensor_parallel_size=0)


def test_ranks_are_in_vllms_order_with_tensor_parallel_innermost():
    plan = ServePlan(tensor_parallel_size=2, pipeline_parallel_size=3)
    assert list(plan.ranks()) == [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1), (4, 2, 0), (5, 2, 1)]


@pytest.mark.parametrize(
    ("tensor", "pipeline", "label"), [(1, 1, "TP=1"), (2, 1, "TP=2"), (1, 2, "PP=2"), (4, 2, "TP=4 x PP=2")]
)
def test_label(tensor, pipeline, label):
    assert ServePlan(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline).label == label


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.7", False), ("my-server", False), ("127.0.0.1.evil.example", False)],
)  # fmt: skip
def test_loopback(host, loopback):
    assert ServePlan(host=host).is_loopback is loopback


# The commands


def test_argv_of_the_smallest_plan():
    assert ServePlan().argv() == [
        "torchrun", "--nnodes=1", "--nproc-per-node=1", "--node-rank=0", "--master-addr=127.0.0.1",
        "--master-port=29500", "-m", RANK_MODULE, "--model", "smollm2-135m", "--tensor-parallel-size", "1",
        "--pipeline-parallel-size", "1", "--dtype", "auto", "--host", "127.0.0.1", "--port", "8000",
    ]  # fmt: skip


def test_argv_of_a_plan_that_says_everything():
    assert TWO_NODES.argv(1) == [
        "torchrun", "--nnodes=2", "--nproc-per-node=2", "--node-rank=1", "--master-addr=10.0.0.1",
        "--master-port=29400", "-m", RANK_MODULE, "--model", "Qwen/Qwen2.5-0.5B-Instruct",
        "--tensor-parallel-size", "2", "--pipeline-parallel-size", "2", "--dtype", "bfloat16", "--max-model-len",
        "4096", "--gpu-memory-utilization", "0.85", "--kv-cache-memory-bytes", "1073741824", "--quantization", "awq",
        "--host", "0.0.0.0", "--port", "9000", "--seed", "1",
    ]  # fmt: skip


def test_the_nodes_commands_differ_in_their_rank_only():
    first, second = TWO_NODES.argv(0), TWO_NODES.argv(1)
    assert [pair for pair in zip(first, second, strict=True) if pair[0] != pair[1]] == [
        ("--node-rank=0", "--node-rank=1")
    ]


@pytest.mark.parametrize("node_rank", [-1, 2])
def test_a_node_rank_that_is_none(node_rank):
    with pytest.raises(ValueError, match=f"node_rank is {node_rank}; with --nnodes 2 it runs from 0 to 1"):
        TWO_NODES.argv(node_rank)


def words_in_a_shell(command: str) -> list[str]:
    script = f"set -- {command}\nprintf '%s\\0' \"$@\""
    answer = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    return answer.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("plan", [ServePlan(), TWO_NODES, AWKWARD], ids=["smallest", "two nodes", "awkward texts"])
def test_a_shell_reads_the_pasted_command_as_argv(plan):
    for node_rank, command in enumerate(plan.commands()):
        assert words_in_a_shell(command) == plan.argv(node_rank)
        assert shlex.split(command.replace(" \\\n", " ")) == plan.argv(node_rank)


def test_the_pasted_command_has_a_flag_and_its_value_to_a_line():
    assert ServePlan().commands()[0].splitlines()[:2] == ["torchrun \\", "    --nnodes=1 \\"]
    assert "    --model smollm2-135m \\" in ServePlan().commands()[0].splitlines()
    assert paste(["a", "--b", "c", "d"]) == "a \\\n    --b c \\\n    d"


# To data and back


@pytest.mark.parametrize("plan", [ServePlan(), TWO_NODES, AWKWARD, ServePlan(nproc_per_node=3)])
def test_a_plan_survives_json(plan):
    assert ServePlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_an_unknown_field_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"a plan has no tensor_size; it has .*tensor_parallel_size"):
        ServePlan.from_dict({"tensor_size": 2})


def test_extra_args_given_as_a_list_make_an_equal_plan():
    assert ServePlan(extra_args=["--seed", "1"]) == ServePlan(extra_args=("--seed", "1"))


@pytest.mark.parametrize(
    ("extra_args", "name"),
    [
        ((), "org/m"),
        (("--seed", "1"), "org/m"),
        (("--served-model-name", "house", "home"), "house"),
        (("--seed", "1", "--served_model_name=house"), "house"),
        (("--served-model-name",), "org/m"),  # vLLM refuses it
    ],
)
def test_requests_ask_for_the_name_that_vllm_is_told_to_serve(extra_args, name):
    assert ServePlan(model="org/m", extra_args=extra_args).served_name == name
