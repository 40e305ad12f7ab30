"""Advice on the split: given where the prediction says so, and nowhere else; a launch is never stopped by it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from localai_clusters.launch.nodes.cluster import Nodes
from localai_clusters.launch.nodes.state import Node, State
from localai_clusters.launch.placing import place_of
from localai_clusters.links import Link, network
from localai_clusters.machine import Machine
from localai_clusters.models import BUILT_IN
from localai_clusters.plan import ServePlan
from localai_clusters.preflight.checks.advice import check_over_decomposition, check_split_over_nodes
from localai_clusters.preflight.report import WARN, Verdict
from localai_clusters.preflight.situation import Situation, examine, settle

SMALL = BUILT_IN["smollm2-135m"].shape
LLAMA_8B = replace(
    SMALL, num_hidden_layers=32, hidden_size=4096, intermediate_size=14336, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, vocab_size=128256, max_position_embeddings=8192, tie_word_embeddings=False,
)  # fmt: skip
LLAMA_70B = replace(LLAMA_8B, num_hidden_layers=80, hidden_size=8192, intermediate_size=28672, num_attention_heads=64)


def machine(name: str, **changes) -> Machine:
    text = (Path(__file__).parent / "machines" / f"{name}.json").read_text()
    return replace(Machine.from_json(text), **changes)


CPU, A100S = machine("linux_cpu_2_cores_24gb"), machine("made_up_linux_nvidia_8_a100_80gb")
H100S, L4S = machine("made_up_linux_nvidia_8_h100_infiniband"), machine("made_up_linux_nvidia_4_l4_pcie")
A10S = machine("made_up_linux_nvidia_2_a10_ethernet_1gbit")
NODES = tuple(Node(rank, f"node{rank}", f"10.77.0.{rank + 1}", "eth0", (rank,), 0) for rank in range(2))
UNKNOWN = replace(A100S, gpus=tuple(replace(gpu, name="NVIDIA X1") for gpu in A100S.gpus))


def said(check, plan: ServePlan, on: Machine, shape=SMALL, **facts) -> list[Verdict]:
    return list(check(Situation(settle(plan, shape, on), on, shape, **facts)))


def on_nodes(nnodes: int = 2, **split) -> ServePlan:
    return ServePlan(model="any", nnodes=nnodes, master_addr="10.0.0.1", **split)


def figures(verdict: Verdict) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+) ms", verdict.message)]


# Tensor parallel between nodes


def test_a_group_across_a_slow_network_is_advised_to_be_a_pipeline():
    (found,) = said(check_split_over_nodes, on_nodes(tensor_parallel_size=4), A10S, LLAMA_8B)
    assert found.status == WARN
    assert found.fix == "--tensor-parallel-size 2 --pipeline-parallel-size 2"
    assert (
        "2 nodes (1000 Mbit/s)" in found.message and "TP=2 x PP=2" in found.message and "measure both" in found.message
    )
    worse, better = figures(found)
    assert better < worse
    advised = on_nodes(tensor_parallel_size=2, pipeline_parallel_size=2)
    assert said(check_split_over_nodes, advised, A10S, LLAMA_8B) == []


def test_the_chapters_two_nodes_of_eight():
    slow = replace(A100S, interfaces={n: replace(i, speed_mbit=1000) for n, i in A100S.interfaces.items()})
    (found,) = said(check_split_over_nodes, on_nodes(tensor_parallel_size=16), slow, LLAMA_70B)
    assert found.fix == "--tensor-parallel-size 8 --pipeline-parallel-size 2"


def test_on_infiniband_it_is_predicted_to_be_right():
    plan = on_nodes(tensor_parallel_size=16)
    assert said(check_split_over_nodes, plan, H100S, LLAMA_70B) == []
    without = replace(H100S, infiniband={}, interfaces={"eno3": replace(H100S.interfaces["eno3"], speed_mbit=1000)})
    assert [
        one.status for one in said(check_split_over_nodes, on_nodes(tensor_parallel_size=16), without, LLAMA_70B)
    ] == [WARN]


def test_two_cpu_nodes_of_one_core_each():
    (found,) = said(check_split_over_nodes, on_nodes(tensor_parallel_size=2), CPU)
    assert found.fix == "--tensor-parallel-size 1 --pipeline-parallel-size 2"
    assert "1000 Mbit/s, assumed" in found.message  # this machine's kernel does not know its network's speed


@pytest.mark.parametrize("shape", [None, replace(LLAMA_8B, num_experts=8), replace(LLAMA_8B, quantization="awq")])
def test_a_model_of_which_too_little_is_known_is_advised_without_figures(shape):
    (found,) = said(check_split_over_nodes, on_nodes(tensor_parallel_size=4), A10S, shape)
    assert found.status == WARN and not figures(found)
    assert found.fix.startswith("--tensor-parallel-size 2 --pipeline-parallel-size 2")
    assert said(check_split_over_nodes, on_nodes(tensor_parallel_size=16), H100S, shape) == []  # a fast network


@pytest.mark.parametrize(
    ("plan", "on", "shape", "facts"),
    [
        (ServePlan(tensor_parallel_size=2), A10S, LLAMA_8B, {}),
        (on_nodes(tensor_parallel_size=2, pipeline_parallel_size=2), A10S, LLAMA_8B, {}),
        (on_nodes(tensor_parallel_size=2), CPU, SMALL, {"nodes_here": 2}),
        (on_nodes(tensor_parallel_size=4, nproc_per_node=8), A10S, LLAMA_8B, {}),
    ],
    ids=["one node", "inside nodes", "a link that nobody told of", "world size"],
)
def test_where_nothing_can_be_said_nothing_is_said_of_nodes(plan, on, shape, facts):
    assert said(check_split_over_nodes, plan, on, shape, **facts) == []


@pytest.mark.parametrize(("mbit", "delay_ms"), [(10_000, 5), (100, 1), (10, 0)])
def test_a_slow_link_between_nodes_of_this_machine_is_judged_as_it_was_made(mbit, delay_ms):
    """Measured with 5 ms: TP=2 more than a second for each token, PP=2 less than a tenth."""
    link = network(mbit, delay_ms)
    (found,) = said(check_split_over_nodes, on_nodes(tensor_parallel_size=2), CPU, nodes_here=2, link=link)
    assert (found.status, found.fix) == (WARN, "--tensor-parallel-size 1 --pipeline-parallel-size 2")
    assert f"2 nodes ({link.name})" in found.message
    assert said(check_split_over_nodes, on_nodes(pipeline_parallel_size=2), CPU, nodes_here=2, link=link) == []


def test_a_link_that_is_none_to_speak_of_is_no_reason():
    link = Link("as within a machine", 1e-6, 1e12)
    assert said(check_split_over_nodes, on_nodes(tensor_parallel_size=2), CPU, nodes_here=2, link=link) == []


@pytest.mark.parametrize(("rate_mbit", "delay_ms", "name"), [(100, 5, "100 Mbit/s and 5 ms one way"),
                                                             (None, 5, "no limit and 5 ms one way"),
                                                             (None, 0, "no limit")])  # fmt: skip
def test_the_link_of_nodes_that_are_up_reaches_preflight(rate_mbit, delay_ms, name):
    up = Nodes(State("token", "namespaces", nodes=NODES, rate_mbit=rate_mbit, delay_ms=delay_ms))
    place = place_of(up)
    assert (place["nodes_here"], place["link"].name) == (2, name)
    plan = on_nodes(tensor_parallel_size=2, port=0).with_(model="smollm2-135m")
    assert examine(plan, **place).link == place["link"]
    assert place_of(None) == {}


# Over-decomposition


@pytest.mark.parametrize("size", [2, 4])
def test_a_small_model_on_several_gpus(size):
    (found,) = said(check_over_decomposition, ServePlan(tensor_parallel_size=size, dtype="float16"), A100S)
    assert (found.status, found.fix) == (WARN, "--tensor-parallel-size 1")
    assert f"TP={size}: " in found.message and "TP=1: " in found.message and "measure both" in found.message
    worse, better = figures(found)
    assert better < worse


@pytest.mark.parametrize(
    ("plan", "on", "shape"),
    [
        (ServePlan(tensor_parallel_size=2), CPU, SMALL),  # measured: 22.3 ms per token, and 22.4 with TP=1
        (ServePlan(pipeline_parallel_size=2), CPU, SMALL),
        (ServePlan(), CPU, SMALL),
        (ServePlan(tensor_parallel_size=8), A100S, LLAMA_70B),
        (ServePlan(tensor_parallel_size=2), A100S, LLAMA_8B),
        (ServePlan(tensor_parallel_size=4), L4S, LLAMA_8B),
        (ServePlan(tensor_parallel_size=2, nproc_per_node=4), A100S, SMALL),
        (ServePlan(tensor_parallel_size=4), CPU, SMALL),
        (ServePlan(tensor_parallel_size=2), A100S, None),
        (ServePlan(tensor_parallel_size=2), A100S, replace(SMALL, num_experts=4)),
        (ServePlan(tensor_parallel_size=2), UNKNOWN, SMALL),
    ],
    ids=["CPU", "pipeline", "TP=1", "70B", "8B", "L4", "world size", "cores", "unknown", "experts", "unknown GPU"],
)
def test_a_split_that_pays_or_cannot_be_judged_is_left_alone(plan, on, shape):
    assert said(check_over_decomposition, plan, on, shape) == []


def test_a_split_that_is_needed_for_memory_is_left_alone():
    tight = replace(A100S, gpus=tuple(replace(gpu, memory_free_bytes=200 << 20) for gpu in A100S.gpus))
    assert said(check_over_decomposition, ServePlan(tensor_parallel_size=2, dtype="float16"), tight) == []


def test_a_small_model_on_two_nodes_is_advised_to_be_on_one():
    (found,) = said(check_over_decomposition, on_nodes(tensor_parallel_size=2), CPU)
    assert found.fix == "--tensor-parallel-size 1 --nnodes 1"
    assert said(check_over_decomposition, on_nodes(tensor_parallel_size=2), CPU, nodes_here=2) == []  # what link?
    slow = network(100, 5)
    (found,) = said(check_over_decomposition, on_nodes(tensor_parallel_size=2), CPU, nodes_here=2, link=slow)
    assert found.fix == "--tensor-parallel-size 1, without --on-nodes"
    assert "TP=1: 23" in found.message  # with both cores: it is alone on the machine
