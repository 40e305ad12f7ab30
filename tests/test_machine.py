"""machine/: what is found on this machine, machines as JSON, what NVML says, visible GPUs, and who holds a port."""

import json
import os
import resource
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from localai_clusters.machine import (
    SUPPORTED_VLLM,
    Gpu,
    GpuLink,
    Interface,
    Machine,
    MigDevice,
    assign_cores,
    cores,
    free_port,
    network,
    nvidia,
    port_holder,
    system,
    visible_gpus,
)

MACHINES = sorted((Path(__file__).parent / "machines").glob("*.json"))


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


# This machine


def test_this_machine_is_described_by_what_the_kernel_says():
    now = Machine.now()
    assert now.hostname == socket.gethostname()
    assert {cpu for core in now.cores for cpu in core} <= os.sched_getaffinity(0)
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < now.memory_available_bytes <= now.memory_bytes <= total
    assert now.interfaces["lo"] == Interface("127.0.0.1", is_up=True, kind="loopback")
    assert now.versions["vllm"].startswith(SUPPORTED_VLLM)
    assert now.devices == (len(now.gpus) if now.backend == "cuda" else len(now.cores))


def test_cores_are_those_this_process_may_use():
    cpu = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{cpu}]); from localai_clusters.machine import cores as m; " \
        "print(m.physical_cores())"  # fmt: skip
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.strip() == f"(({cpu},),)"


def test_limits_are_this_processes_own():
    found = Machine.now().limits
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert (found.open_files, found.open_files_hard) == tuple(
        None if n == resource.RLIM_INFINITY else n for n in (soft, hard)
    )
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200)); " \
        "from localai_clusters.machine import system; print(system.limits())"  # fmt: skip
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "open_files=100, open_files_hard=200" in answer.stdout


def test_shared_memory_and_the_way_out_are_what_the_kernel_says():
    now = Machine.now()
    sizes = os.statvfs("/dev/shm")
    assert now.shm_bytes == sizes.f_blocks * sizes.f_frsize
    routes = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    default = [fields[0] for fields in routes if fields[1] == "00000000"]
    assert now.default_interface == (default[0] if default else None)
    if default:
        assert now.address == now.interfaces[default[0]].address


def test_torchs_cuda_is_read_and_torch_is_not_imported():
    code = "import sys; from localai_clusters.machine import Machine; " \
        "print(Machine.now().torch_cuda, 'torch' in sys.modules)"  # fmt: skip
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    import importlib.metadata

    built_for_cpu = importlib.metadata.version("torch").endswith("+cpu")
    assert answer.stdout.split() == ["None" if built_for_cpu else answer.stdout.split()[0], "False"]


@pytest.mark.parametrize(
    ("content", "cuda"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None", None),
        ("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None", "13.0"),
        ('cuda = "12.9"', "12.9"),
        ("not_cuda = '12.9'", None),
        ("", None),
    ],
)
def test_the_cuda_in_torchs_version_file(monkeypatch, content, cuda):
    monkeypatch.setattr(system, "read", lambda path: content)
    assert system.torch_cuda() == cuda


def test_variables_that_decide_are_kept_and_no_others(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_TOKEN", "secret")
    found = Machine.now().environment
    assert found["CUDA_VISIBLE_DEVICES"] == ""
    assert "HF_TOKEN" not in found


def test_this_machine_survives_json():
    now = Machine.now()
    assert Machine.from_json(now.to_json()) == now


def test_texts_survive_json_whatever_they_hold():
    odd = replace(Machine.now(), hostname='{ "x":\n [1,\n 2] }', environment={"CUDA_VISIBLE_DEVICES": "{\n  [0,\n 1"})
    assert Machine.from_json(odd.to_json()) == odd


# Machines from a file


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.stem)
def test_a_machine_from_a_file_is_written_back_as_it_was(path):
    text = path.read_text()
    found = Machine.from_json(text)
    assert found.to_json() + "\n" == text
    assert json.loads(text)["hostname"] in ("recorded", "made-up")
    assert (json.loads(text)["hostname"] == "made-up") == path.stem.startswith("made_up_")


def test_devices_are_gpus_where_vllm_is_built_for_them_and_cores_elsewhere():
    devices = {path.stem: Machine.from_json(path.read_text()).devices for path in MACHINES}
    assert devices == {
        "linux_cpu_2_cores_24gb": 2,
        "made_up_docker_nvidia_2_l40s_64mb_shm": 2,
        "made_up_linux_cpu_2_sockets_64_cores": 64,
        "made_up_linux_nvidia_1_a10_driver_470": 1,
        "made_up_linux_nvidia_1_h100_mig": 1,
        "made_up_linux_nvidia_1_t4": 1,
        "made_up_linux_nvidia_1_v100": 1,
        "made_up_linux_nvidia_2_a10_ethernet_1gbit": 2,
        "made_up_linux_nvidia_2_h100_one_in_use": 2,
        "made_up_linux_nvidia_2_rtx_3090_nvlink": 2,
        "made_up_linux_nvidia_2_rtx_4090_no_peer_access": 2,
        "made_up_linux_nvidia_4_a40_two_sockets": 4,
        "made_up_linux_nvidia_4_l4_pcie": 4,
        "made_up_linux_nvidia_8_a100_80gb": 8,
        "made_up_linux_nvidia_8_h100_infiniband": 8,
        "made_up_linux_nvidia_a100_and_t4": 2,
    }


OLD = {
    "hostname": "old", "os": "x", "python": "3.11.7", "cpu_model": "x", "cores": [[0, 1]], "memory_bytes": 2,
    "memory_available_bytes": 1, "shm_free_bytes": 0, "backend": "cuda", "versions": {},
    "gpus": [{"index": 0, "name": "Tesla T4", "memory_bytes": 2, "memory_free_bytes": 1, "compute_capability": "7.5"}],
    "driver": "570.124.06", "cuda": "12.8",
    "interfaces": {"eth0": "10.0.0.1", "lo": "127.0.0.1", "docker0": "172.17.0.1"},
}  # fmt: skip


def test_a_machine_that_an_older_version_wrote_is_read():
    found = Machine.from_json(json.dumps(OLD))
    kinds = {name: interface.kind for name, interface in found.interfaces.items()}
    assert kinds == {"eth0": "real", "lo": "loopback", "docker0": "virtual"}
    assert (found.address, found.devices, found.limits, found.gpus[0].uuid) == ("10.0.0.1", 1, None, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": "red"}, "there is no field 'colour'"),
        ({"limits": {"open_files": 1, "open_files_hard": 1, "locked_memory_bytes": 1, "processes": 1, "tea": 2}},
         "there is no field 'tea' in limits"),
        ({"gpus": [{**OLD["gpus"][0], "color": 1}]}, "there is no field 'color' in gpus.0"),
        ({"interfaces": {"eth0": {"address": "10.0.0.1", "mac": "x"}}}, "there is no field 'mac' in interfaces.eth0"),
        ({"memory_bytes": "2"}, "memory_bytes"),
        ({"memory_bytes": True}, "memory_bytes"),
        ({"cores": 4}, "cores"),
        ({"interfaces": {"eth0": 5}}, "eth0 in interfaces"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_a_machine_is_named(change, words):
    with pytest.raises(ValueError, match="not a machine: ") as caught:
        Machine.from_json(json.dumps(OLD | change))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "5", "{", "[" * 100_000, '{"cores": []}'])
def test_what_is_no_machine_at_all_is_a_plain_error(text):
    with pytest.raises(ValueError, match="not a machine"):
        Machine.from_json(text)


# GPUs, as NVML answers


class Unsupported(Exception):
    pass


class Nvml:
    """Two GPUs joined by NVLink. ``refused``: the calls that this driver does not support."""

    NVMLError = Unsupported
    NVML_P2P_STATUS_OK = 0

    def __init__(self, *refused: str, lost: int | None = None):
        self.refused, self.lost, self.is_open = refused, lost, False

    def __getattr__(self, name):
        answers = {
            "nvmlInit": lambda: setattr(self, "is_open", True),
            "nvmlShutdown": lambda: setattr(self, "is_open", False),
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": self.handle,
            "nvmlSystemGetDriverVersion": lambda: "580.126.20",
            "nvmlSystemGetCudaDriverVersion_v2": lambda: 13010,
            "nvmlDeviceGetName": lambda gpu: "NVIDIA H100 80GB HBM3" if gpu in (0, 1) else "MIG 1g.10gb",
            "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(total=80, free=70),
            "nvmlDeviceGetCudaComputeCapability": lambda gpu: (9, 0),
            "nvmlDeviceGetUUID": lambda gpu: f"GPU-{gpu}",
            "nvmlDeviceGetPciInfo": lambda gpu: SimpleNamespace(busId=b"00000000:FF:1F.7"),
            "nvmlDeviceGetGraphicsRunningProcesses": lambda gpu: [self.process(1, 3)],
            "nvmlDeviceGetComputeRunningProcesses": lambda gpu: [
                self.process(os.getpid(), 5),
                self.process(1 << 29, None),
            ],
            "nvmlSystemGetProcessName": lambda pid: "/usr/bin/\x1b[31mred",
            "nvmlDeviceGetMigMode": lambda gpu: [gpu, gpu],
            "nvmlDeviceGetMaxMigDeviceCount": lambda gpu: 7,
            "nvmlDeviceGetMigDeviceHandleByIndex": self.instance,
            "nvmlDeviceGetTopologyCommonAncestor": lambda first, second: 50,
            "nvmlDeviceGetP2PStatus": lambda first, second, index: 0 if isinstance(index, int) else 1 / 0,
        }

        def call(*arguments):
            if name in self.refused:
                raise Unsupported(name)
            return answers[name](*arguments)

        return call

    def handle(self, index):
        if index == self.lost:
            raise Unsupported("GPU is lost")
        return index

    @staticmethod
    def process(pid, count):
        return SimpleNamespace(pid=pid, usedGpuMemory=count)

    @staticmethod
    def instance(gpu, slot):
        if slot:
            raise Unsupported("not found")
        return f"instance of {gpu}"


def test_what_nvml_says_of_two_gpus():
    nvml = Nvml()
    found = nvidia.nvidia(1000, 900, nvml)
    first, second = found.gpus
    assert (found.driver, found.cuda, found.silent) == ("580.126.20", "13.1", ())
    assert (first.uuid, first.memory_bytes, first.memory_free_bytes, first.capability) == ("GPU-0", 80, 70, (9, 0))
    assert first.mig_devices is None
    assert second.mig_devices == (MigDevice("GPU-instance of 1", "MIG 1g.10gb", 80, 70),)
    assert found.links == (GpuLink(0, 1, "NVLink", True),)
    assert not nvml.is_open


def test_other_processes_on_a_gpu_are_named_without_their_escape_codes_and_this_one_is_not():
    found = nvidia.nvidia(1000, 900, Nvml()).gpus[0].processes
    assert [(process.pid, process.memory_bytes) for process in found] == [(1, 3), (1 << 29, None)]
    assert found[0].name == Path("/proc/1/comm").read_text().strip()
    assert found[1].name == "/usr/bin/?[31mred"


CALLS = {
    "nvmlDeviceGetCount": ("gpus", ()),
    "nvmlSystemGetDriverVersion": ("driver", None),
    "nvmlSystemGetCudaDriverVersion_v2": ("cuda", None),
    "nvmlDeviceGetHandleByIndex": ("silent", (0, 1)),
    "nvmlDeviceGetName": ("name", "unknown GPU"),
    "nvmlDeviceGetMemoryInfo": ("memory_bytes", 1000),  # a GPU without memory of its own shares the machine's
    "nvmlDeviceGetCudaComputeCapability": ("compute_capability", None),
    "nvmlDeviceGetUUID": ("uuid", None),
    "nvmlDeviceGetPciInfo": ("numa_node", None),
    "nvmlDeviceGetMigMode": ("mig_devices", None),
    "nvmlDeviceGetTopologyCommonAncestor": ("kind", "NVLink"),
    "nvmlDeviceGetP2PStatus": ("peer_access", None),
    "nvmlShutdown": ("driver", "580.126.20"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_a_driver_does_not_support_costs_that_fact_only(call):
    fact, value = CALLS[call]
    found = nvidia.nvidia(1000, 900, Nvml(call))
    holders = (found, *found.gpus, *found.links)
    assert {getattr(holder, fact) for holder in holders if hasattr(holder, fact)} == {value}
    if call not in ("nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"):
        assert len(found.gpus) == 2 and len(found.links) == 1


def test_other_calls_that_fail_leave_nothing_out_that_is_known():
    refused = ("nvmlDeviceGetGraphicsRunningProcesses", "nvmlDeviceGetComputeRunningProcesses",
               "nvmlDeviceGetMaxMigDeviceCount", "nvmlSystemGetProcessName")  # fmt: skip
    first, second = nvidia.nvidia(1000, 900, Nvml(*refused)).gpus
    assert first.processes == ()
    assert second.mig_devices == ()


def test_a_lost_gpu_is_silent_and_the_other_keeps_its_index():
    found = nvidia.nvidia(1000, 900, Nvml(lost=0))
    assert found.silent == (0,)
    assert [gpu.index for gpu in found.gpus] == [1]
    assert found.links == ()


def test_without_a_driver_there_is_nothing():
    assert nvidia.nvidia(1000, 900, Nvml("nvmlInit")) == nvidia.Nvidia()


def test_pynvml_has_every_call_that_is_made_of_it():
    import pynvml

    assert [call for call in CALLS if not callable(getattr(pynvml, call))] == []
    assert issubclass(pynvml.NVMLError, Exception) and pynvml.NVML_P2P_STATUS_OK == 0


# CUDA_VISIBLE_DEVICES


UUIDS = ["GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "GPU-1111f937-d72c-4106-c12f-20bd9faed9f6"]
GPUS = tuple(Gpu(index, "NVIDIA A10", 24, 23, "8.6", uuid) for index, uuid in enumerate([*UUIDS, "GPU-2"]))


@pytest.mark.parametrize(
    ("setting", "left", "problem"),
    [
        (None, [0, 1, 2], ""),
        ("2,0", [2, 0], ""),
        (" 1 , 2 ", [1, 2], ""),
        ("", [], "is set and empty, which hides every GPU"),
        ("  ", [], "is set and empty"),
        ("-1", [], "-1 is no index of a GPU; it is not used"),
        ("0,2,-1,1", [0, 2], "it is not used, nor is the one after it"),
        ("0,3,1,2", [0], "there is no GPU 3 (there are: 0, 1, 2); it is not used, nor are the 2 after it"),
        ("1,1", [], "names 1 twice, which hides every GPU"),
        ("0,00", [], "names 00 twice"),
        ("99999999999999999999", [], "is no index of a GPU"),
        ("9" * 5000, [], "is no index of a GPU"),
        ("²", [], "is no index of a GPU"),
        (f"{UUIDS[1]},{UUIDS[0]}", [1, 0], ""),
        (f"{UUIDS[0]},1", [0], "1 is no GPU UUID, as the first one is"),
        (f"0,{UUIDS[1]}", [0], "is no index of a GPU"),
        ("MIG-1", [], "MIG-1 is not on this machine"),
    ],
)
def test_what_cuda_visible_devices_leaves(setting, left, problem):
    found = visible_gpus(setting, GPUS)
    assert [gpu.index for gpu in found.gpus] == left
    assert problem in found.problem and bool(found.problem) == bool(problem)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("0,a", "a is no index"),
        ("0,", "nothing is no index"),
        ("1gpu2", "1gpu2 is no index"),  # CUDA would read 1
        ("GPU-8932", "only the beginning of a UUID"),  # CUDA would find it
        ("GPU-7777", "GPU-7777 is not on this machine"),
        ("\x1b[31m", "?[31m is no index"),
    ],
)
def test_what_vllm_cannot_look_up_is_told_apart_from_what_cuda_passes_over(setting, words):
    found = visible_gpus(setting, GPUS)
    assert found.stops_vllm and words in found.problem and "\x1b" not in found.problem
    assert not visible_gpus("0,9,-1", GPUS).stops_vllm


def test_of_gpus_in_mig_mode_one_instance_is_shown():
    small, large = MigDevice("MIG-a", "A100 MIG 1g.10gb", 10, 9), MigDevice("MIG-b", "A100 MIG 2g.20gb", 20, 19)
    split = replace(GPUS[1], mig_devices=(small, large))
    for setting in (None, "1", "0,1", UUIDS[1], "MIG-a", "MIG-a,MIG-b"):
        (gpu,) = visible_gpus(setting, (GPUS[0], split)).gpus
        assert (gpu.index, gpu.name, gpu.memory_bytes, gpu.memory_free_bytes) == (1, "A100 MIG 1g.10gb", 10, 9)
    assert visible_gpus("MIG-b", (GPUS[0], split)).gpus[0].memory_bytes == 20
    assert [gpu.index for gpu in visible_gpus("0", (GPUS[0], split)).gpus] == [0]
    empty = replace(GPUS[1], mig_devices=())
    assert [gpu.index for gpu in visible_gpus(None, (GPUS[0], empty)).gpus] == [0]


# Interfaces


@pytest.mark.parametrize(
    ("name", "address", "kind"),
    [
        ("lo", "127.0.0.1", "loopback"), ("dummy-lo", "127.0.0.2", "loopback"), ("docker0", "172.17.0.1", "virtual"),
        ("br-5f2c", "172.18.0.1", "virtual"), ("veth12", None, "virtual"), ("virbr0", "192.168.122.1", "virtual"),
        ("eth0", "10.0.0.1", "real"), ("enp5s0", None, "real"), ("ib0", "10.1.0.1", "real"),
        ("bond0", "10.2.0.1", "real"), ("br0", "10.3.0.1", "real"), ("tailscale0", "100.64.0.1", "real"),
    ],
)  # fmt: skip
def test_kinds_of_interfaces(name, address, kind):
    assert network.kind_of(name, address) == kind


@pytest.mark.parametrize(
    ("interfaces", "default", "address"),
    [
        ({"eth0": Interface("10.0.0.1"), "eth1": Interface("10.0.0.2")}, "eth1", "10.0.0.2"),
        ({"lo": Interface("127.0.0.1", kind="loopback"), "eth0": Interface("10.0.0.1")}, None, "10.0.0.1"),
        ({"docker0": Interface("172.17.0.1", kind="virtual"), "eth0": Interface("10.0.0.1", False)}, None, None),
        ({"eth0": Interface(None), "eth1": Interface("10.0.0.2")}, "eth0", "10.0.0.2"),
        ({}, "eth0", None),
    ],
)
def test_the_address_at_which_other_nodes_reach_a_machine(interfaces, default, address):
    machine = replace(Machine.now(), interfaces=interfaces, default_interface=default)
    assert machine.address == address


def test_names_that_the_hosts_file_keeps_to_this_machine(monkeypatch):
    hosts = (
        "127.0.0.1\tlocalhost\n127.0.1.1 node0.lan node0  # Debian's\n10.0.0.2 node1\n#127.0.0.1 x\n\n::1 ip6-localhost"
    )
    monkeypatch.setattr(network, "read", lambda path: hosts)
    assert network.loopback_names() == ("localhost", "node0.lan", "node0")


def test_infiniband_adapters_are_those_with_an_active_port(tmp_path):
    def port(name, number, state, rate):
        folder = tmp_path / name / "ports" / number
        folder.mkdir(parents=True)
        (folder / "state").write_text(state)
        (folder / "rate").write_text(rate)

    port("mlx5_0", "1", "4: ACTIVE\n", "400 Gb/sec (4X NDR)\n")
    port("mlx5_1", "1", "1: DOWN\n", "10 Gb/sec (4X SDR)\n")
    port("mlx5_2", "1", "4: ACTIVE\n", "")
    assert network.infiniband(str(tmp_path)) == {"mlx5_0": 400_000, "mlx5_2": None}
    assert network.infiniband(str(tmp_path / "none")) == {}


# Cores


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-3,8", [0, 1, 2, 3, 8]), ("5", [5]), ("", []), ("0-1, 4-5", [0, 1, 4, 5]), ("junk", []), ("3-1", [])],
)
def test_sets_of_cpus_as_the_kernel_writes_them(text, cpus):
    assert cores.cpu_list(text) == cpus


def test_numa_nodes_are_known_for_every_core_or_for_none():
    found = Machine.now()
    assert len(found.numa_nodes) in (0, len(found.cores))
    assert cores.numa_nodes([(1 << 20,)]) == ()


# Cores over ranks


@pytest.mark.parametrize(
    ("cores", "ranks", "shares"),
    [
        (2, 1, [[0, 1]]),
        (2, 2, [[0], [1]]),
        (5, 2, [[0, 1], [2, 3]]),
        (8, 4, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (2, 3, [[0], [1], [0]]),
    ],
)
def test_each_rank_gets_an_equal_share_of_the_cores(cores, ranks, shares):
    hyperthreads = [(core, core + cores) for core in range(cores)]
    assert assign_cores(hyperthreads, ranks) == [[(core, core + cores) for core in share] for share in shares]


# Limits of a container, as its cgroup files hold them


@pytest.fixture
def cgroup(monkeypatch):
    files: dict[str, str] = {}
    read = cores.read
    for module in (cores, system):
        monkeypatch.setattr(module, "read", lambda path: files.get(path, "" if "cgroup" in path else read(path)))
    return files


@pytest.mark.parametrize(
    ("content", "cpus"),
    [("max 100000", None), ("150000 100000", 1.5), ("", None), ("junk", None), ("50000 100000", 0.5)],
)
def test_the_cpu_quota(cgroup, content, cpus):
    cgroup["/sys/fs/cgroup/cpu.max"] = content
    assert cores.cgroup_cpus() == cpus
    if cpus is not None:
        assert len(cores.physical_cores()) == 1  # whole cores, and never none


def test_the_memory_limit_is_what_the_container_has(cgroup):
    cgroup["/sys/fs/cgroup/memory.max"], cgroup["/sys/fs/cgroup/memory.current"] = str(1 << 30), str(1 << 28)
    now = Machine.now()
    assert (now.memory_bytes, now.memory_available_bytes) == (1 << 30, (1 << 30) - (1 << 28))


def test_a_container_over_its_limit_has_nothing_left(cgroup):
    cgroup["/sys/fs/cgroup/memory.max"], cgroup["/sys/fs/cgroup/memory.current"] = "1000", "2000"
    assert Machine.now().memory_available_bytes == 0


def test_no_memory_limit(cgroup):
    cgroup["/sys/fs/cgroup/memory.max"] = "max"
    assert system.cgroup_memory() == (0, 0)


# Ports


def test_a_port_that_this_process_listens_on_names_it(listener):
    assert port_holder("127.0.0.1", listener) == f"{Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()})"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_is_taken_for_all_addresses_too(listener, host):
    assert str(os.getpid()) in port_holder(host, listener)


def test_each_port_names_the_process_that_listens_on_it(listener):
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        port = int(other.stdout.readline())
        assert port_holder("127.0.0.1", port).endswith(f"(pid {other.pid})")
        assert port_holder("127.0.0.1", listener).endswith(f"(pid {os.getpid()})")
    finally:
        other.communicate("\n", timeout=10)
    assert port_holder("127.0.0.1", port) is None


def test_a_connection_that_was_closed_is_no_holder():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
    accepted.close()  # the server's side first: its port stays in TIME_WAIT
    client.close()
    assert port_holder("127.0.0.1", port) is None


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid", "a" * 64, "a..b", "::ffff:0:0:1"])
def test_an_address_that_is_not_this_machines_counts_as_free(host):
    assert port_holder(host, 29500) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_free_port_is_one_that_can_be_bound(host):
    port = free_port(host)
    with socket.create_server((host, port)):
        assert port_holder(host, port) is not None


def test_a_free_port_other_than_one_that_is_spoken_for(monkeypatch):
    given = iter([5000, 5000, 5001])

    class Probe(socket.socket):
        def bind(self, address):
            pass

        def getsockname(self):
            return "127.0.0.1", next(given)

    monkeypatch.setattr(socket, "socket", Probe)
    assert free_port("127.0.0.1", other_than=5000) == 5001
