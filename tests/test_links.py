"""links.py and data_sheets.py: what lies between ranks, how long an exchange takes, and GPUs by their names."""

from dataclasses import replace
from math import isclose
from pathlib import Path

import pytest

from localai_clusters.data_sheets import GPUS, bandwidths
from localai_clusters.links import SHARED_MEMORY, Group, Link, between_nodes, network, within_node
from localai_clusters.machine import Machine


def machine(name: str, **changes) -> Machine:
    text = (Path(__file__).parent / "machines" / f"{name}.json").read_text()
    return replace(Machine.from_json(text), **changes)


# GPUs by name


@pytest.mark.parametrize(
    ("name", "memory", "nvlink"),
    [
        ("Tesla T4", 320, 0), ("Tesla V100-SXM2-16GB", 900, 150), ("Tesla V100-PCIE-16GB", 900, 0),
        ("NVIDIA A10", 600, 0), ("NVIDIA A10G", 600, 0), ("NVIDIA A100-SXM4-40GB", 1555, 300),
        ("NVIDIA A100-SXM4-80GB", 2039, 300),
        ("NVIDIA A100 80GB PCIe", 1935, 300), ("NVIDIA L4", 300, 0), ("NVIDIA L40", 864, 0), ("NVIDIA L40S", 864, 0),
        ("NVIDIA H100 80GB HBM3", 3350, 450), ("NVIDIA H100 PCIe", 2000, 300), ("NVIDIA H200", 4800, 450),
        ("NVIDIA GeForce RTX 3090", 936, 56.25), ("NVIDIA GeForce RTX 4090", 1008, 0), ("NVIDIA B200", 8000, 900),
        ("NVIDIA GB200", 8000, 900),
    ],
)  # fmt: skip
def test_a_gpu_is_found_by_its_name(name, memory, nvlink):
    assert bandwidths(name)[:2] == (memory * 1e9, nvlink * 1e9)


@pytest.mark.parametrize(
    "name", ["NVIDIA T400", "NVIDIA XA10", "Quadro RTX 8000", "NVIDIA L4000", "", "H1000", "unknown GPU"]
)
def test_another_gpu_is_not_taken_for_one_of_those(name):
    with pytest.raises(ValueError, match="no bandwidths are known"):
        bandwidths(name)


def test_every_entry_can_be_found():
    assert [words for words, figures in GPUS.items() if bandwidths(f"NVIDIA {words}").memory != figures[0] * 1e9] == []


# Links


def test_the_link_between_nodes_is_the_machines_network():
    assert between_nodes(machine("made_up_linux_nvidia_2_a10_ethernet_1gbit")) == network(1000)
    assert "assumed" in between_nodes(machine("linux_cpu_2_cores_24gb")).name
    fast = machine("made_up_linux_nvidia_8_h100_infiniband")
    assert between_nodes(fast).name == "InfiniBand, 400 Gbit/s"
    assert between_nodes(fast).bytes_per_second == 50e9
    for off in (replace(fast, environment={"NCCL_IB_DISABLE": "1"}), replace(fast, backend="cpu")):
        assert between_nodes(off).name == "100000 Mbit/s"  # Gloo knows no InfiniBand


def test_a_made_link_has_its_delay_on_top_of_what_kernels_take():
    assert isclose(network(100, 5).seconds - network(100).seconds, 5e-3)
    assert network(100).bytes_per_second == 12.5e6
    assert network(100, 5).name == "100 Mbit/s and 5 ms one way"


@pytest.mark.parametrize(
    ("name", "count", "link"),
    [
        ("made_up_linux_nvidia_8_a100_80gb", 8, "NVLink"),
        ("made_up_linux_nvidia_4_l4_pcie", 4, "PCIe"),
        ("made_up_linux_nvidia_2_rtx_4090_no_peer_access", 2, "PCIe"),
        ("made_up_linux_nvidia_2_rtx_3090_nvlink", 2, "NVLink"),
        ("linux_cpu_2_cores_24gb", 0, "shared memory"),
    ],
)
def test_the_link_within_a_node(name, count, link):
    on = machine(name)
    assert within_node(on, on.gpus[:count]).name == link


def test_without_peer_access_data_take_two_ways():
    on = machine("made_up_linux_nvidia_2_rtx_4090_no_peer_access")
    peers = replace(on, gpu_links=tuple(replace(link, peer_access=True) for link in on.gpu_links))
    slow, fast = within_node(on, on.gpus), within_node(peers, peers.gpus)
    assert (slow.seconds, slow.bytes_per_second) == (2 * fast.seconds, fast.bytes_per_second / 2)


# Exchanges


@pytest.mark.parametrize(
    ("layers", "hidden", "logits", "added"),
    [(12, 4096, 32768, 0.396), (30, 1152, 49152, 0.988)],
    ids=["12 layers, 1,024 wide, float32", "SmolLM2-135M, bfloat16"],
)
def test_gloos_ring_on_two_ranks_is_four_messages(layers, hidden, logits, added):
    """Measured with TP=2 over nodes of one machine: how much longer a token took over a link of 5 ms one way than over
    one of 1 ms. That is 99 messages for 25 all-reduces and an all-gather, and 247 for 61 and one."""
    seconds = {}
    for delay in (1, 5):
        group = Group(2, 2, SHARED_MEMORY, network(100, delay), is_cuda=False)
        seconds[delay] = (2 * layers + 1) * group.all_reduce_seconds(hidden) + group.all_gather_seconds(logits)
    assert isclose(seconds[5] - seconds[1], added, rel_tol=0.05)


def test_a_pipelines_boundary_is_six_messages():
    """Measured likewise for PP=2: 63 - 36 = 27 ms, of which rank 0's word of the step is 4."""
    far, near = (Group(2, 2, SHARED_MEMORY, network(100, delay), is_cuda=False) for delay in (5, 1))
    assert isclose(far.next_stage_seconds(8192) - near.next_stage_seconds(8192), 0.023, rel_tol=0.05)


def test_nccls_own_estimates():
    """tuning.cc prints the latency of a 2 x 8 NVLink job's tree as 25.2 us (NVIDIA/nccl issue 1453)."""
    nvlink, net = Link("NVLink", 0.6e-6, 450e9), Link("InfiniBand", 5e-6, 50e9)
    assert isclose(Group(16, 2, nvlink, net, is_cuda=True).all_reduce_seconds(0), 25.2e-6)
    assert isclose(Group(8, 1, nvlink, net, is_cuda=True).all_reduce_seconds(0), 15.2e-6)


@pytest.mark.parametrize("is_cuda", [True, False])
@pytest.mark.parametrize("nodes", [1, 2])
def test_more_bytes_take_longer_by_the_rings_share_of_the_bandwidth(nodes, is_cuda):
    link = Link("x", 1e-6, 1e9)
    group = Group(4, nodes, link, link, is_cuda)
    added = group.all_reduce_seconds(10**9) - group.all_reduce_seconds(0)
    assert isclose(added, 4 if nodes == 1 and not is_cuda else 1.5)
    assert group.all_gather_seconds(10**9) > group.all_gather_seconds(0)
    assert isclose(group.next_stage_seconds(10**9) - group.next_stage_seconds(0), 1.0)
