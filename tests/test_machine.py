"""machine.py: what is found on this machine, machines as JSON, and who holds a port."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from localai_clusters import machine
from localai_clusters.machine import Machine, assign_cores, free_port, port_holder

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
    assert now.interfaces["lo"] == "127.0.0.1"
    assert now.versions["vllm"].startswith(machine.SUPPORTED_VLLM)
    assert now.devices == (len(now.gpus) if now.backend == "cuda" else len(now.cores))


def test_cores_are_those_this_process_may_use():
    cpu = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{cpu}]); from localai_clusters import machine as m; " \
        "print(m.physical_cores())"  # fmt: skip
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.strip() == f"(({cpu},),)"


def test_this_machine_survives_json():
    now = Machine.now()
    assert Machine.from_json(now.to_json()) == now


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
        "made_up_linux_nvidia_1_t4": 1,
        "made_up_linux_nvidia_8_a100_80gb": 8,
    }


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
    read = machine._read
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, "" if "cgroup" in path else read(path)))
    return files


@pytest.mark.parametrize(
    ("content", "cpus"),
    [("max 100000", None), ("150000 100000", 1.5), ("", None), ("junk", None), ("50000 100000", 0.5)],
)
def test_the_cpu_quota(cgroup, content, cpus):
    cgroup["/sys/fs/cgroup/cpu.max"] = content
    assert machine.cgroup_cpus() == cpus
    if cpus is not None:
        assert len(machine.physical_cores()) == 1  # whole cores, and never none


def test_the_memory_limit_is_what_the_container_has(cgroup):
    cgroup["/sys/fs/cgroup/memory.max"], cgroup["/sys/fs/cgroup/memory.current"] = str(1 << 30), str(1 << 28)
    now = Machine.now()
    assert (now.memory_bytes, now.memory_available_bytes) == (1 << 30, (1 << 30) - (1 << 28))


def test_a_container_over_its_limit_has_nothing_left(cgroup):
    cgroup["/sys/fs/cgroup/memory.max"], cgroup["/sys/fs/cgroup/memory.current"] = "1000", "2000"
    assert Machine.now().memory_available_bytes == 0


def test_no_memory_limit(cgroup):
    cgroup["/sys/fs/cgroup/memory.max"] = "max"
    assert machine.cgroup_memory() == (0, 0)


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
