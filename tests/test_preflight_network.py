"""What preflight says of interfaces, the address where nodes meet, and the variables that Gloo, NCCL and vLLM read."""

from dataclasses import replace
from pathlib import Path

import pytest

from localai_clusters.machine import Interface, Machine
from localai_clusters.models import BUILT_IN
from localai_clusters.plan import ServePlan
from localai_clusters.preflight.checks.network import (
    check_interfaces,
    check_master_address,
    gloo_interfaces,
    nccl_interfaces,
)
from localai_clusters.preflight.report import FAIL, PASS, WARN, Verdict
from localai_clusters.preflight.situation import Situation

SHAPE = BUILT_IN["smollm2-135m"].shape
LO, DOCKER = Interface("127.0.0.1", True, kind="loopback"), Interface("172.17.0.1", True, kind="virtual")


def machine(name: str, **changes) -> Machine:
    text = (Path(__file__).parent / "machines" / f"{name}.json").read_text()
    return replace(Machine.from_json(text), **changes)


ETHERNET, INFINIBAND = (
    machine("made_up_linux_nvidia_2_a10_ethernet_1gbit"),
    machine("made_up_linux_nvidia_8_h100_infiniband"),
)
TWO_NODES = ServePlan(tensor_parallel_size=2, pipeline_parallel_size=2, nnodes=2, master_addr="192.168.7.10")
ONE_NODE = ServePlan(tensor_parallel_size=2)


def said(check, on: Machine, plan: ServePlan = TWO_NODES, **facts) -> list[Verdict]:
    return list(check(Situation(plan, on, SHAPE, **facts)))


def only(check, *arguments, **facts) -> Verdict:
    (found,) = said(check, *arguments, **facts)
    return found


def with_environment(on: Machine, **variables: str) -> Machine:
    return replace(on, environment=variables)


# The way to other nodes


def test_the_address_that_other_nodes_reach_and_its_speed():
    found = only(check_interfaces, ETHERNET)
    assert found == Verdict(
        "interfaces", PASS, "other nodes reach this one at 192.168.7.10 (eno1, 1000 Mbit/s)"
    )  # not docker0's
    assert only(check_interfaces, INFINIBAND).message.endswith("(eno3, 100000 Mbit/s); NCCL goes through mlx5_0, "
        "mlx5_10, mlx5_11, mlx5_3, mlx5_4, mlx5_5, mlx5_6, mlx5_9")  # fmt: skip
    off = with_environment(INFINIBAND, NCCL_IB_DISABLE="1")
    assert "mlx5_0" not in only(check_interfaces, off).message


def test_one_node_needs_no_way_out():
    assert said(check_interfaces, replace(ETHERNET, interfaces={"lo": LO}), ONE_NODE) == []


@pytest.mark.parametrize(
    ("interfaces", "words"),
    [
        ({"lo": LO}, "lo (loopback)"),
        ({"lo": LO, "docker0": DOCKER}, "lo (loopback), docker0 (of containers)"),
        ({"lo": LO, "eno1": Interface("10.0.0.1", False)}, "eno1 (down)"),
        ({"lo": LO, "eno1": Interface(None, True)}, "eno1 (no address)"),
    ],
)
def test_no_way_out_names_what_there_is(interfaces, words):
    found = only(check_interfaces, replace(ETHERNET, interfaces=interfaces, default_interface=None))
    assert found.status == FAIL and words in found.message and "--network host" in found.fix


def test_nodes_on_one_machine_have_interfaces_of_their_own():
    broken = replace(with_environment(ETHERNET, GLOO_SOCKET_IFNAME="eth7"), interfaces={"lo": LO})
    assert said(check_interfaces, broken, nodes_here=2) == []
    assert said(check_master_address, broken, nodes_here=2) == []


# What Gloo, NCCL and vLLM are told


@pytest.mark.parametrize(
    ("setting", "status", "words"),
    [
        ("eno1", None, ""),
        ("lo", None, ""),
        ("", None, ""),
        ("eth0", FAIL, "'eth0', which does not exist"),
        ("eno2", FAIL, "'eno2', which has no address or is down"),
        ("eno1,eth0", FAIL, "'eth0'"),
        ("eno", FAIL, "'eno', which does not exist"),  # torch takes no prefixes
    ],
)
@pytest.mark.parametrize("plan", [ONE_NODE, TWO_NODES])
def test_glooss_interfaces_must_exist(plan, setting, status, words):
    found = [one for one in said(check_interfaces, with_environment(ETHERNET, GLOO_SOCKET_IFNAME=setting), plan)]
    assert [one.status for one in found if one.status != PASS] == [status] * (status is not None)
    if status:
        assert words in found[0].message and "eno1" in found[0].message and "unset GLOO_SOCKET_IFNAME" in found[0].fix


def test_one_rank_alone_meets_nobody():
    assert said(check_interfaces, with_environment(ETHERNET, GLOO_SOCKET_IFNAME="eth7"), ServePlan()) == []


@pytest.mark.parametrize(
    ("setting", "chosen"),
    [
        ("eth", ["eth0", "eth1"]),
        ("eth,ib", ["eth0", "eth1", "ib0"]),
        ("=eth0", ["eth0"]),
        ("=eth0,ib0", ["eth0", "ib0"]),
        ("=eth", []),
        ("^docker,lo", ["eth0", "eth1", "ib0"]),
        ("^=docker0", ["eth0", "eth1", "ib0", "lo"]),
        ("wlan", []),
        ("", ["docker0", "eth0", "eth1", "ib0", "lo"]),
        ("^", ["docker0", "eth0", "eth1", "ib0", "lo"]),
    ],
)
def test_nccls_interfaces_are_prefixes(setting, chosen):
    assert nccl_interfaces(setting, ["docker0", "eth0", "eth1", "ib0", "lo"]) == chosen


def test_gloos_interfaces_are_names():
    assert (gloo_interfaces("eth0,eth1"), gloo_interfaces("")) == (["eth0", "eth1"], [])


def test_nccls_interfaces_must_leave_one_that_is_up():
    found = only(check_interfaces, with_environment(ETHERNET, NCCL_SOCKET_IFNAME="=eno2"))
    assert found.status == FAIL and "'=eno2' selects no interface" in found.message
    assert only(check_interfaces, with_environment(ETHERNET, NCCL_SOCKET_IFNAME="en")).status == PASS
    on_cpus = replace(with_environment(ETHERNET, NCCL_SOCKET_IFNAME="=eno2"), backend="cpu")
    assert only(check_interfaces, on_cpus).status == PASS  # there is no NCCL


def test_vllms_host_address_must_be_this_machines():
    found = only(check_interfaces, with_environment(ETHERNET, VLLM_HOST_IP="10.9.9.9"))
    assert found.status == FAIL and "'10.9.9.9'" in found.message and "VLLM_HOST_IP=192.168.7.10" in found.fix
    assert only(check_interfaces, with_environment(ETHERNET, VLLM_HOST_IP="192.168.7.10")).status == PASS
    assert said(check_interfaces, with_environment(ETHERNET, VLLM_HOST_IP="10.9.9.9"), ONE_NODE) == []


# The nodes' meeting point


def test_a_name_that_the_hosts_file_keeps_to_this_machine_is_no_meeting_point():
    plan = TWO_NODES.with_(master_addr="made-up", nproc_per_node=2)
    found = only(check_master_address, ETHERNET, plan)
    assert found.status == FAIL and "127.0.1.1" in found.message
    assert found.fix == "--master-addr 192.168.7.10"
    assert only(check_master_address, ETHERNET, plan, node_rank=1).fix == "node 0's address"
    assert only(check_master_address, replace(ETHERNET, loopback_names=()), plan).status == PASS


def test_dockers_own_address_is_reached_by_its_containers_only():
    plan = TWO_NODES.with_(master_addr="172.17.0.1", nproc_per_node=2)
    found = only(check_master_address, ETHERNET, plan)
    assert (found.status, found.fix) == (WARN, "--master-addr 192.168.7.10")
    assert "docker0" in found.message
    assert only(check_master_address, ETHERNET, plan, node_rank=1).status == PASS


def test_the_likeliest_of_several_addresses_comes_first():
    several = {"eno1": Interface("10.0.0.1", True), "eno2": Interface("10.0.0.2", True), "docker0": DOCKER, "lo": LO}
    on = replace(ETHERNET, interfaces=several, default_interface="eno2")
    plan = TWO_NODES.with_(master_addr="127.0.0.1", nproc_per_node=2)
    assert only(check_master_address, on, plan).fix == "--master-addr 10.0.0.2 or 10.0.0.1"
    nowhere = replace(ETHERNET, interfaces={"lo": LO}, default_interface=None)
    assert only(check_master_address, nowhere, plan).fix == "--master-addr ADDRESS"


def test_what_a_variable_holds_cannot_move_the_cursor():
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "VLLM_HOST_IP"):
        found = said(check_interfaces, with_environment(ETHERNET, **{name: "\x1b[2J"}))
        assert found[0].status == FAIL and "\x1b" not in found[0].message + found[0].fix
