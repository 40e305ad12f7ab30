"""What preflight says of GPUs, drivers, cores, shared memory and limits, on recorded and made-up machines."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from localai_clusters.machine import Gpu, GpuLink, GpuProcess, Limits, Machine
from localai_clusters.models import BUILT_IN
from localai_clusters.plan import ServePlan
from localai_clusters.preflight.checks import gpus
from localai_clusters.preflight.checks import machine as checks
from localai_clusters.preflight.report import FAIL, PASS, WARN, Verdict
from localai_clusters.preflight.situation import Situation

MIB, GIB = 1 << 20, 1 << 30
SHAPE = BUILT_IN["smollm2-135m"].shape
CHECKS = (
    checks.check_versions, checks.check_driver, checks.check_devices, checks.check_cores, checks.check_shared_memory,
    checks.check_limits, gpus.check_visible_gpus, gpus.check_mig, gpus.check_compute_capability, gpus.check_dtype,
    gpus.check_busy_gpus, gpus.check_mixed_gpus, gpus.check_gpu_links,
)  # fmt: skip


def machine(name: str, **changes) -> Machine:
    text = (Path(__file__).parent / "machines" / f"{name}.json").read_text()
    return replace(Machine.from_json(text), **changes)


CPU, SOCKETS = machine("linux_cpu_2_cores_24gb"), machine("made_up_linux_cpu_2_sockets_64_cores")
A100S, H100S = machine("made_up_linux_nvidia_8_a100_80gb"), machine("made_up_linux_nvidia_8_h100_infiniband")
T4, V100 = machine("made_up_linux_nvidia_1_t4"), machine("made_up_linux_nvidia_1_v100")
RTX_4090, RTX_3090 = (
    machine("made_up_linux_nvidia_2_rtx_4090_no_peer_access"),
    machine("made_up_linux_nvidia_2_rtx_3090_nvlink"),
)
L4S, A40S = machine("made_up_linux_nvidia_4_l4_pcie"), machine("made_up_linux_nvidia_4_a40_two_sockets")
IN_USE, MIG = machine("made_up_linux_nvidia_2_h100_one_in_use"), machine("made_up_linux_nvidia_1_h100_mig")
MIXED, OLD_DRIVER = machine("made_up_linux_nvidia_a100_and_t4"), machine("made_up_linux_nvidia_1_a10_driver_470")
DOCKER, ETHERNET = (
    machine("made_up_docker_nvidia_2_l40s_64mb_shm"),
    machine("made_up_linux_nvidia_2_a10_ethernet_1gbit"),
)


def tensor(size: int, **other) -> ServePlan:
    return ServePlan(model="any", tensor_parallel_size=size, **{"dtype": "float16"} | other)


def said(on: Machine, plan: ServePlan | None = None, **facts) -> list[Verdict]:
    situation = Situation(plan or tensor(1), on, SHAPE, **facts)
    return [verdict for check in CHECKS for verdict in check(situation)]


def verdict(check: str, on: Machine, plan: ServePlan | None = None, **facts) -> Verdict:
    found = [one for one in said(on, plan, **facts) if one.check == check]
    assert len(found) == 1, f"{check!r}: {found}"
    return found[0]


def seen(on: Machine, setting: str | None) -> Machine:
    return replace(on, environment={} if setting is None else {"CUDA_VISIBLE_DEVICES": setting})


@pytest.mark.parametrize(
    ("on", "plan"),
    [
        (CPU, tensor(2)), (T4, tensor(1)), (A100S, tensor(8)), (RTX_3090, tensor(2)), (L4S, tensor(4)),
        (L4S, tensor(2)), (H100S, tensor(8, nnodes=2, pipeline_parallel_size=2, master_addr="10.20.0.1")),
        (MIG, tensor(1)), (ETHERNET, tensor(2)), (IN_USE, tensor(1)), (SOCKETS, tensor(2)),
    ],
)  # fmt: skip
def test_a_machine_in_order_passes(on, plan):
    assert [one for one in said(on, plan) if one.status != PASS] == []


# CUDA_VISIBLE_DEVICES


@pytest.mark.parametrize(
    ("setting", "plan", "status", "words"),
    [
        ("2,3", tensor(2), PASS, "leaves GPU 2 (NVIDIA L4), 3 (NVIDIA L4)"),
        ("0,1,9", tensor(2), WARN, "there is no GPU 9"),
        ("0,9,1", tensor(2), FAIL, "there is no GPU 9"),
        ("", tensor(1), FAIL, "hides every GPU"),
        ("-1", tensor(1), FAIL, "-1 is no index"),
        ("0,0", tensor(1), FAIL, "names 0 twice"),
        ("0,one", tensor(1), FAIL, "one is no index"),  # CUDA would take GPU 0; vLLM looks up both
        ("GPU-00000000-0000-0000-0000-000000000001", tensor(1), PASS, "GPU 1"),
        ("GPU-0000", tensor(1), FAIL, "only the beginning of a UUID"),
    ],
)
def test_gpus_that_cuda_visible_devices_leaves(setting, plan, status, words):
    found = verdict("visible GPUs", seen(L4S, setting), plan)
    assert found.status == status and words in found.message
    if status != PASS:
        typed = re.search(r"export CUDA_VISIBLE_DEVICES=([\d,]+)", found.fix)[1]
        mended = said(seen(L4S, typed), plan)
        assert {one.status for one in mended if one.check in ("visible GPUs", "devices")} == {PASS}


def test_unset_nothing_is_said_of_it():
    assert "visible GPUs" not in [one.check for one in said(seen(L4S, None), tensor(2))]


def test_ranks_are_counted_against_the_gpus_that_are_left():
    found = verdict("devices", seen(A100S, "0,1,2"), tensor(4))
    assert found.status == FAIL
    assert found.message.startswith("4 ranks on a node with 3 GPUs (of 8): each rank needs a GPU of its own")


def test_a_gpu_that_does_not_answer_is_named():
    found = verdict("visible GPUs", replace(L4S, silent_gpus=(4,)), tensor(2))
    assert (found.status, found.message) == (WARN, "GPU 4 is counted by the driver and does not answer")


# MIG


def test_one_rank_runs_on_an_instance_and_two_do_not():
    assert verdict("MIG", MIG).message == "rank 0 runs on NVIDIA H100 80GB HBM3 MIG 2g.20gb with 19.5 GiB"
    found = verdict("MIG", MIG, tensor(2))
    assert found.status == FAIL and "one MIG instance" in found.message and "2 ranks" in found.message
    assert "sudo nvidia-smi -i 0 -mig 0" in found.fix


def test_mig_without_an_instance_is_no_device():
    empty = replace(MIG, gpus=(replace(MIG.gpus[0], mig_devices=()),))
    found = verdict("MIG", empty)
    assert found.status == FAIL and "has no instance" in found.message
    assert verdict("devices", empty).status == FAIL


def test_a_mig_uuid_may_stop_vllm():
    found = verdict("MIG", seen(MIG, MIG.gpus[0].mig_devices[1].uuid))
    assert found.status == WARN and "unset CUDA_VISIBLE_DEVICES" in found.fix


# Kinds of GPUs


def test_a_v100_is_older_than_what_vllm_is_built_for():
    found = verdict("compute capability", V100)
    assert found.status == FAIL
    assert "Tesla V100-SXM2-16GB has compute capability 7.0" in found.message and "7.5" in found.message
    assert "compute capability" not in [one.check for one in said(T4)]
    assert "compute capability" not in [
        one.check for one in said(seen(replace(V100, gpus=(*L4S.gpus, *V100.gpus)), "1"))
    ]


def test_dtype_is_held_to_the_gpus_that_are_used():
    plan = tensor(1, dtype="bfloat16")
    assert verdict("dtype", seen(MIXED, "0"), plan).message.startswith(
        "Tesla T4 (compute capability 7.5) has no bfloat16"
    )
    assert "dtype" not in [one.check for one in said(seen(MIXED, "1"), plan)]
    assert verdict("dtype", MIXED, tensor(2, dtype="bfloat16")).status == FAIL


def test_gpus_of_two_kinds_in_one_group():
    found = verdict("mixed GPUs", MIXED, tensor(2))
    assert found.status == WARN and "Tesla T4 and NVIDIA A100-PCIE-40GB" in found.message
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in found.fix


def test_how_mixed_gpus_are_counted_is_said_until_it_is_settled():
    found = verdict("mixed GPUs", MIXED, tensor(1))
    assert (found.status, found.fix) == (WARN, "export CUDA_DEVICE_ORDER=PCI_BUS_ID")
    settled = replace(MIXED, environment={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    assert "mixed GPUs" not in [one.check for one in said(settled, tensor(1))]
    stages = ServePlan(model="any", pipeline_parallel_size=2, dtype="float16")
    assert "mixed GPUs" not in [one.check for one in said(settled, stages)]  # a stage waits for nobody's all-reduce


# Others on the GPUs


def test_a_gpu_in_use_names_who_uses_it_and_the_idle_one():
    found = verdict("GPUs in use", IN_USE, tensor(2))
    assert (found.status, found.message) == (WARN, "GPU 1 is not idle: python3 (pid 4242, 41.3 GiB)")
    assert "nvidia-smi" in found.fix and "CUDA_VISIBLE_DEVICES" not in found.fix  # there are no two idle ones
    found = verdict("GPUs in use", seen(IN_USE, "1,0"), tensor(1))
    assert found.fix.endswith("export CUDA_VISIBLE_DEVICES=0")


def test_a_desktop_on_a_gpu_is_not_worth_a_word():
    assert RTX_4090.gpus[0].processes[0].name == "Xorg"
    assert "GPUs in use" not in [one.check for one in said(RTX_4090, tensor(2))]


@pytest.mark.parametrize(
    ("processes", "used", "words"),
    [
        ((GpuProcess(7, None, None),), 0, "a process (pid 7)"),
        ((GpuProcess(7, "a", GIB), GpuProcess(8, "b", 2 * GIB)), 3 * GIB, "b (pid 8, 2.0 GiB), a (pid 7, 1.0 GiB)"),
        (tuple(GpuProcess(n, "x", GIB) for n in range(5)), 0, "and 2 more"),
        ((), 30 * GIB, "30.0 GiB of it are held by processes that cannot be seen from here"),
        ((GpuProcess(7, "a", 100 * MIB),), 100 * MIB, None),
        ((), GIB, None),
    ],
)
def test_who_uses_a_gpu(processes, used, words):
    gpu = replace(A100S.gpus[0], processes=processes, memory_free_bytes=A100S.gpus[0].memory_bytes - used)
    found = [one.message for one in said(replace(A100S, gpus=(gpu,))) if one.check == "GPUs in use"]
    assert found == [] if words is None else words in found[0]


# Driver


@pytest.mark.parametrize(
    ("driver", "supports", "built", "status", "words"),
    [
        ("470.129.06", "11.4", "13.0", FAIL, "a driver of at least 580"),
        ("470.129.06", "11.4", "12.9", FAIL, "a driver of at least 525.60.13"),
        ("570.124.06", "12.8", "13.0", FAIL, "vLLM's build for CUDA 12.9"),
        ("570.124.06", "12.8", "12.9", PASS, "minor-version compatibility"),
        ("580.65.06", "13.0", "13.0", PASS, "supports CUDA"),
        ("610.43.02", "13.2", "12.9", PASS, "supports CUDA"),
        ("535.161.08", "13.0", "13.0", PASS, "supports CUDA"),  # with NVIDIA's cuda-compat package
        ("470.129.06", None, "12.9", FAIL, "525.60.13"),
        ("525.60.13", None, "12.9", PASS, ""),
        ("999.1", "14.0", "15.0", FAIL, "a newer driver"),
    ],
)
def test_the_driver_against_torchs_cuda(driver, supports, built, status, words):
    found = verdict("driver", replace(OLD_DRIVER, driver=driver, cuda=supports, torch_cuda=built))
    assert found.status == status and words in found.message + found.fix
    assert driver in found.message and built in found.message


def test_a_driver_of_which_nothing_is_known_is_not_judged():
    for unknown in ({"driver": None}, {"torch_cuda": None}):
        assert "driver" not in [one.check for one in said(replace(OLD_DRIVER, **unknown))]


# Links


def test_gpus_without_peer_access():
    found = verdict("GPU links", RTX_4090, tensor(2))
    assert found.status == WARN and found.message.startswith("GPUs 0,1 cannot reach one another's memory")
    assert all(
        word in found.fix for word in ("nvidia-smi topo -p2p rw", "--disable-custom-all-reduce", "NCCL_P2P_DISABLE=1")
    )
    assert "GPU links" not in [one.check for one in said(RTX_4090, tensor(1))]
    stages = ServePlan(model="any", pipeline_parallel_size=2, dtype="float16")
    assert "GPU links" not in [one.check for one in said(RTX_4090, stages)]


def test_links_that_are_in_order():
    assert verdict("GPU links", RTX_3090, tensor(2)).message == "GPUs 0,1: NVLink between any two"
    assert verdict("GPU links", L4S, tensor(2)).message == "GPUs 0,1: NODE between them"
    assert "wants NVLink for more than two" in verdict("GPU links", L4S, tensor(4)).message


def test_a_group_across_processors_is_pointed_to_one_that_is_not():
    assert "GPUs 0,1" in verdict("GPU links", A40S, tensor(2)).message
    found = verdict("GPU links", seen(A40S, "1,2,3"), tensor(2))
    assert found.status == WARN and "GPUs 1,2 belong to different processors (SYS)" in found.message
    assert "CUDA_VISIBLE_DEVICES=2,3" in found.fix
    found = verdict("GPU links", A40S, tensor(4))
    assert "--tensor-parallel-size 2 --pipeline-parallel-size 2" in found.fix


def test_each_stages_group_is_looked_at():
    plan = tensor(2, pipeline_parallel_size=2)
    assert [one.message for one in said(A40S, plan) if one.check == "GPU links"] == [
        "GPUs 0,1: NODE between them", "GPUs 2,3: NODE between them"
    ]  # fmt: skip
    crossed = [one.status for one in said(seen(A40S, "0,2,1,3"), plan) if one.check == "GPU links"]
    assert crossed == [WARN, WARN]


def test_on_the_second_node_the_groups_are_that_nodes():
    plan = tensor(4, pipeline_parallel_size=2, nnodes=2, master_addr="10.5.0.2")
    assert "0,1,2,3" in verdict("GPU links", A40S, plan, node_rank=1).message


def test_links_of_which_nothing_is_known_are_not_judged():
    assert "GPU links" not in [one.check for one in said(replace(L4S, gpu_links=()), tensor(4))]
    unknown = replace(L4S, gpu_links=tuple(replace(link, kind=None, peer_access=None) for link in L4S.gpu_links))
    assert verdict("GPU links", unknown, tensor(2)).status == PASS


# Cores


def test_cores_of_a_rank():
    assert verdict("cores", CPU, tensor(2)).message == "1 core for each rank, pinned"
    assert verdict("cores", CPU, tensor(1)).message == "2 cores for each rank, pinned"
    fewer = replace(CPU, cores=((0,),), logical_cpus=64)
    assert verdict("cores", fewer).message.endswith("this process may use 1 of 64 logical CPUs")
    assert "cores" not in [one.check for one in said(CPU, tensor(4))]  # that there are too few is the devices' verdict


def test_a_rank_on_two_numa_nodes_is_advised_to_be_two():
    found = verdict("cores", SOCKETS, tensor(1))
    assert found.status == WARN and "NUMA nodes 0 and 1" in found.message
    assert found.fix.startswith("--tensor-parallel-size 2")
    assert verdict("cores", SOCKETS, tensor(2)).status == PASS
    assert verdict("cores", replace(SOCKETS, numa_nodes=()), tensor(1)).status == PASS


def test_gpu_ranks_want_a_core_each():
    found = verdict("cores", replace(A100S, cores=A100S.cores[:2]), tensor(4))
    assert found.status == WARN and found.message.startswith("4 ranks on 2 cores")


# Shared memory and limits


def test_dockers_64_mib_of_shared_memory():
    found = verdict("shared memory", DOCKER, tensor(2))
    assert found.status == WARN and "64 MiB" in found.message and "--shm-size=1g" in found.fix
    on_cpus = replace(CPU, shm_bytes=64 * MIB, shm_free_bytes=64 * MIB)
    assert verdict("shared memory", on_cpus, tensor(2)).status == PASS
    assert verdict("shared memory", replace(DOCKER, shm_free_bytes=20 * MIB), tensor(2)).status == FAIL
    assert "shared memory" not in [one.check for one in said(DOCKER, tensor(1))]


@pytest.mark.parametrize(
    ("soft", "hard", "warns"),
    [
        (1024, 1024, True),
        (256, 4096, True),
        (1024, 65535, False),
        (1024, None, False),
        (4096, 4096, False),
        (None, None, False),
    ],
)
def test_open_files_matter_where_vllm_cannot_raise_them(soft, hard, warns):
    on = replace(CPU, limits=Limits(soft, hard, None, None))
    found = [one for one in said(on) if one.check == "open files"]
    assert [one.status for one in found] == [WARN] * warns
    assert not warns or (f"{soft} open files" in found[0].message and "nofile=65536" in found[0].fix)
    assert "open files" not in [one.check for one in said(on, tensor(2, nnodes=2), node_rank=1)]  # no server there


def test_locked_memory_matters_for_infiniband_between_nodes():
    plan = tensor(8, nnodes=2, pipeline_parallel_size=2, master_addr="10.20.0.1")
    locked = replace(H100S, limits=Limits(1 << 20, 1 << 20, 65536, None))
    found = verdict("locked memory", locked, plan)
    assert found.status == WARN and "mlx5_0" in found.message and "--ulimit memlock=-1" in found.fix
    quiet = (
        (H100S, plan), (locked, tensor(8)), (replace(locked, infiniband={}), plan),
        (replace(locked, backend="cpu"), plan),
        (replace(locked, environment={"NCCL_IB_DISABLE": "1"}), plan), (replace(locked, limits=None), plan),
    )  # fmt: skip
    for on, other in quiet:
        assert "locked memory" not in [one.check for one in said(on, other)]


def test_too_few_processes():
    found = verdict("processes", replace(CPU, limits=Limits(None, None, None, 100)))
    assert found.status == WARN and "100 processes" in found.message
    assert "processes" not in [one.check for one in said(CPU)]


# Odd machines


def test_a_gpu_of_which_the_driver_says_nothing_is_no_reason_to_fail():
    odd = Gpu(0, "unknown GPU", 24 * GIB, 23 * GIB, None)
    on = replace(A100S, gpus=(odd, replace(odd, index=1)), gpu_links=(GpuLink(0, 1, None, None),), driver=None)
    assert {one.status for one in said(on, tensor(2))} <= {PASS}


@pytest.mark.parametrize("name", sorted(path.stem for path in (Path(__file__).parent / "machines").glob("*.json")))
@pytest.mark.parametrize("size", [1, 3, 64])
def test_every_check_answers_on_every_machine_and_says_what_to_type(name, size):
    on = machine(name)
    for plan in (tensor(size), tensor(size, nnodes=2, nproc_per_node=7), ServePlan(pipeline_parallel_size=size)):
        for setting in (None, "", "1", "junk"):
            for one in said(seen(on, setting), plan):
                assert one.status in (PASS, WARN, FAIL)
                assert one.fix or one.status == PASS, one
