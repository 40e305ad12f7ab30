"""Nodes on this machine: really separate, really joined by the link that was asked for, and really gone afterwards.

No vLLM: small Python programs are run inside. Nothing here calls ``ip`` or ``tc``. Both kinds of namespaces are tested;
the kind ``namespaces`` needs root, and without root its tests fail and say so, they are not skipped.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from localai_clusters.launch import nodes, processes
from localai_clusters.launch.nodes import making, state, sweep
from localai_clusters.launch.nodes.state import LOOPBACK, NAMESPACES, USER_NAMESPACES, NodesError
from localai_clusters.machine import assign_cores, free_port, physical_cores

PORT = 5000  # inside a node every port is free
CLI = [str(Path(sys.executable).with_name("localai-clusters"))]
CAP_SETFCAP = 31  # the kernel asks it of a root who maps root into a user namespace; other users need nothing

PRELUDE = f"""
import socket, sys, time
def serve():
    with socket.create_server(("", {PORT})) as server:
        print("listens", flush=True)
        while True:
            connection = server.accept()[0]
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection
def connect(host):
    connection = socket.create_connection((host, {PORT}), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
"""
# Sends back the number of bytes it got, when the other side has said that it sends no more.
SINK = """
for connection in serve():
    count = 0
    while data := connection.recv(1 << 16):
        count += len(data)
    connection.sendall(str(count).encode())
    connection.close()
"""
ECHO = """
for connection in serve():
    while data := connection.recv(1 << 16):
        connection.sendall(data)
"""
SEND = """
connection, count = connect(sys.argv[1]), int(sys.argv[2])
started = time.perf_counter()
connection.sendall(bytes(count))
connection.shutdown(socket.SHUT_WR)
assert int(connection.recv(100)) == count
print(time.perf_counter() - started)
"""
ROUND_TRIPS = """
connection, seconds = connect(sys.argv[1]), []
for _ in range(5):
    started = time.perf_counter()
    connection.sendall(b"x")
    connection.recv(1)
    seconds.append(time.perf_counter() - started)
print(min(seconds))
"""


def program(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *map(str, arguments)]


def run_in(up, rank: int, code: str, *arguments: object) -> str:
    """What ``code`` prints, run to its end in node ``rank``."""
    done = subprocess.run(up.enter(rank, program(code, *arguments)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_for(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    """Nodes of this test only; afterwards no process and no file of them is left, and the machine has what it had."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    before = psutil.net_if_addrs(), Path("/proc/self/mounts").read_text()
    yield
    nodes.down()
    assert not list(state.path().parent.glob("nodes*.json")) and not list(state.path().parent.glob("*.new"))
    assert (psutil.net_if_addrs(), Path("/proc/self/mounts").read_text()) == before


def make(kind: str, count: int = 2, **link):
    if kind == NAMESPACES and os.geteuid() != 0:
        pytest.fail("this test makes namespaces as root; run the tests as root, or leave it out with -k 'not root'")
    return nodes.up(count, kind=kind, **link)


BOTH_KINDS = pytest.mark.parametrize("kind", [NAMESPACES, USER_NAMESPACES], ids=["root", "user"])


@pytest.fixture(params=[NAMESPACES, pytest.param(USER_NAMESPACES, marks=pytest.mark.extended)], ids=["root", "user"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def two(kind):
    with make(kind) as up:
        yield up


@pytest.fixture
def listening():
    """Starts a program in a node and waits until it listens."""
    started = []

    def start(up, rank: int, code: str) -> subprocess.Popen:
        process = subprocess.Popen(up.enter(rank, program(code)), stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "listens\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def everything_of(token: str) -> list[int]:
    """Processes that were started for nodes, found by their token."""
    return sweep.helpers(state.State(token, NAMESPACES))


# What a node is


def test_nodes_have_their_own_address_hostname_hosts_shm_and_cores(two):
    code = """
    import os
    from pathlib import Path
    name = socket.gethostname()
    Path("/dev/shm", name).write_text("")
    print(name, socket.gethostbyname(name), sorted(os.listdir("/dev/shm")), sorted(os.sched_getaffinity(0)))
    print(sorted(name for _, name in socket.if_nameindex()), socket.gethostbyname("node0"), os.getcwd())
    """
    shares = assign_cores(physical_cores(), 2)
    for node in two.nodes:
        cpus = sorted(cpu for core in shares[node.rank] for cpu in core)
        said = run_in(two, node.rank, code).splitlines()
        assert said[0] == f"node{node.rank} 10.77.0.{node.rank + 1} ['node{node.rank}'] {cpus}"
        assert said[1].startswith("['eth0', 'lo'") and said[1].endswith(f" 10.77.0.1 {os.getcwd()}")
        assert (node.address, node.interface, list(node.cpus)) == (f"10.77.0.{node.rank + 1}", "eth0", cpus)
        assert (node.shm / node.hostname).exists()
        assert not (processes.SHM / node.hostname).exists()
    assert socket.gethostname() not in ("node0", "node1")


def test_nodes_do_not_share_ports_nor_system_v_memory(two, listening):
    listening(two, 0, ECHO)
    listening(two, 1, ECHO)  # the same port
    inodes = {run_in(two, rank, "import os; print(os.readlink('/proc/self/ns/ipc'))") for rank in (0, 1)}
    assert len(inodes | {os.readlink("/proc/self/ns/ipc")}) == 3


def test_entering_keeps_pid_environment_files_exit_code_and_death_signal(two, tmp_path):
    with open(tmp_path / "file", "w") as file:
        code = f"import os; os.write({file.fileno()}, str(os.getpid()).encode()); sys.exit(int(os.environ['CODE']))"
        environment = os.environ | {"CODE": "7"}
        process = subprocess.Popen(two.enter(1, program(code)), env=environment, pass_fds=[file.fileno()])
        assert process.wait(timeout=20) == 7
    assert (tmp_path / "file").read_text() == str(process.pid)
    code = "import ctypes; n = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(n)); print(n.value)"
    armed = subprocess.run(
        two.enter(0, program(code)), preexec_fn=processes.die_with_parent, capture_output=True, text=True, timeout=20
    )
    assert armed.stdout.strip() == str(int(signal.SIGKILL))


def test_a_child_with_a_death_signal_ends_with_its_parent_inside_a_node(two):
    code = """
    import ctypes, os, subprocess
    die = lambda: ctypes.CDLL(None).prctl(1, 9)
    print(subprocess.Popen(sys.argv[1:], preexec_fn=die).pid, flush=True)
    time.sleep(60)
    """
    inner = two.enter(1, program("time.sleep(60)"))
    parent = subprocess.Popen([*program(code), *inner], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    node = two.nodes[1].pid
    wait_for(lambda: os.stat(f"/proc/{child}/ns/net").st_ino == os.stat(f"/proc/{node}/ns/net").st_ino, 10, "entered")
    wait_for(lambda: b"sleep(60)" in Path(f"/proc/{child}/cmdline").read_bytes(), 10, "became the command")
    parent.kill()
    parent.wait()
    wait_for(lambda: not processes.alive(child), 5, "the child died")


# The link


def test_the_counters_show_what_was_sent_and_nothing_else(two, listening):
    listening(two, 1, SINK)
    count = 3_000_000
    before = two.counters()
    time.sleep(0.5)
    assert two.counters() == before, "something crossed the link that nobody sent"
    run_in(two, 0, SEND, "node1", count)
    there, back = (now.since(was) for now, was in zip(two.counters(), before, strict=True))
    assert count < there.bytes_sent < 1.1 * count
    assert (there.bytes_sent, there.packets_sent) == (back.bytes_received, back.packets_received)
    assert 0 < there.bytes_received < 0.1 * count
    assert there.packets_sent >= count / 65536


def test_what_a_node_says_to_itself_does_not_cross_the_link(two, listening):
    listening(two, 0, SINK)
    before = two.counters()
    run_in(two, 0, SEND, "10.77.0.1", 1_000_000)
    assert two.counters() == before


def test_the_rate_holds_and_can_be_changed_while_nodes_run(two, listening):
    listening(two, 1, SINK)
    two.set_link(rate_mbit=10)
    slow = float(run_in(two, 0, SEND, "node1", 2_000_000))
    assert slow > 1.0  # 1.6 s at 10 Mbit/s
    two.set_link()
    assert float(run_in(two, 0, SEND, "node1", 2_000_000)) < slow / 2
    assert (two.rate_mbit, two.delay_ms) == (None, 0)


def test_the_delay_holds_both_ways_with_and_without_a_rate(two, listening):
    listening(two, 1, ECHO)
    direct = float(run_in(two, 0, ROUND_TRIPS, "node1"))
    assert direct < 0.02
    for rate in (None, 100):
        two.set_link(rate_mbit=rate, delay_ms=20)
        assert float(run_in(two, 0, ROUND_TRIPS, "node1")) >= 0.04
        assert two.carried_by in ("netem", "relay")


@BOTH_KINDS
def test_a_delayed_link_loses_nothing_of_a_burst(kind, listening):
    """As large as a model's weights' shard is small: bursts that fill the sockets' buffers."""
    with make(kind, delay_ms=2) as up:
        listening(up, 1, SINK)
        count = 50_000_000
        before = up.counters()
        assert float(run_in(up, 0, SEND, "node1", count)) > 0.004
        assert up.counters()[0].since(before[0]).bytes_sent < 1.1 * count, "it was sent again"


@pytest.mark.parametrize("delay_ms", [0, 2], ids=["plain", "delayed"])
def test_a_cut_is_silence_and_mending_brings_everything(two, listening, delay_ms):
    """A connection that is open when the cable is cut gets no error, and its bytes arrive once it is mended."""
    two.set_link(delay_ms=delay_ms)
    listening(two, 1, ECHO)
    code = """
    connection = connect("node1")
    connection.sendall(b"a"); assert connection.recv(1) == b"a"
    print("ready", flush=True); sys.stdin.readline()
    connection.settimeout(1.5); connection.sendall(b"b")
    try:
        connection.recv(1); print("answered", flush=True)
    except TimeoutError:
        print("silence", flush=True)
    up = open("/proc/self/net/dev").read().count("eth0"); sys.stdin.readline()
    connection.settimeout(30); print(connection.recv(1), up, flush=True)
    """
    with subprocess.Popen(
        two.enter(0, program(code)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as client:
        assert client.stdout.readline() == "ready\n"
        two.cut()
        assert two.is_cut and not two.problems()
        client.stdin.write("\n")
        assert client.stdout.readline() == "silence\n"
        two.mend()
        client.stdin.write("\n")
        assert client.stdout.readline() == "b'b' 1\n"
    assert not two.is_cut


def test_more_than_two_nodes_reach_each_other(kind, listening):
    with make(kind, 4) as up:
        for node in up.nodes:
            listening(up, node.rank, ECHO)
        for delay_ms in (0, 3):
            up.set_link(delay_ms=delay_ms)
            for source, target in ((0, 3), (3, 1), (2, 0)):
                assert float(run_in(up, source, ROUND_TRIPS, f"node{target}")) >= 2 * delay_ms / 1000


# From outside


@pytest.fixture
def forwarder(two):
    port = free_port("127.0.0.1")
    process = subprocess.Popen(two.forward(port, PORT))

    def connect() -> socket.socket:
        deadline = time.monotonic() + 10
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port), timeout=10)
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, "the forwarder does not listen"
                time.sleep(0.02)

    yield connect
    process.kill()
    process.wait()


def test_a_client_outside_reaches_a_server_in_node_0(two, listening, forwarder):
    with forwarder() as early:
        assert early.recv(1) == b"", "nothing listens yet, so the connection ends"
    listening(two, 0, SINK)
    before = two.counters()
    with forwarder() as client:
        client.sendall(bytes(1_000_000))
        client.shutdown(socket.SHUT_WR)  # half-closed: the answer must still come
        assert client.recv(100) == b"1000000"
        assert client.recv(1) == b""
    assert two.counters() == before, "a client's bytes must not count as the link's"


def test_the_server_sees_at_once_that_a_client_is_gone(two, listening, forwarder):
    code = """
    for connection in serve():
        connection.sendall(b"x")
        try:
            got = connection.recv(1)
        except ConnectionResetError:
            got = b""
        print("gone" if not got else got, flush=True)
    """
    server = listening(two, 0, code)
    for abruptly in (False, True):
        client = forwarder()
        assert client.recv(1) == b"x"
        if abruptly:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        started = time.monotonic()
        client.close()
        assert server.stdout.readline() == "gone\n"
        assert time.monotonic() - started < 1


def test_a_forwarder_ends_with_its_parent(two):
    code = "import subprocess; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); time.sleep(60)"
    port = free_port("127.0.0.1")
    parent = subprocess.Popen([*program(code), *two.forward(port, PORT)], stdout=subprocess.PIPE, text=True)
    forwarder = int(parent.stdout.readline())

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(listens, 10, "the forwarder listens")
    parent.kill()
    parent.wait()
    wait_for(lambda: not processes.alive(forwarder), 5, "the forwarder ended")


def test_a_port_that_is_taken_outside_is_named(two):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        done = subprocess.run(two.forward(port, PORT), capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert f"cannot forward port {port}" in done.stderr and "Traceback" not in done.stderr


# How it ends


@BOTH_KINDS
def test_down_ends_what_runs_inside_and_is_harmless_twice(kind):
    up = make(kind, delay_ms=1)
    token = up._state.token
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('', flush=True); time.sleep(60)"
    inside = subprocess.Popen(up.enter(0, program(stubborn)), stdout=subprocess.PIPE)
    inside.stdout.readline()
    assert len(everything_of(token)) == 4, "two nodes, the switch, the relay"
    up.down()
    assert inside.wait(timeout=1) == -signal.SIGKILL
    assert not everything_of(token)
    up.down()
    assert nodes.down() is False
    assert up.problems() == ["these nodes are down; type: localai-clusters nodes up"]


@pytest.mark.parametrize("victim", ["node", "switch", "every holder", "relay"])
def test_whatever_is_killed_is_named_and_down_and_up_remove_the_rest(kind, victim):
    up = make(kind, delay_ms=1)
    token, found = up._state.token, up._state
    inside = subprocess.Popen(up.enter(1, program("print('', flush=True); time.sleep(60)")), stdout=subprocess.PIPE)
    inside.stdout.readline()
    pids = {
        "node": [found.nodes[1].pid],
        "switch": [found.switch.pid],
        "every holder": [holder.pid for holder in found.holders],
        "relay": [found.relay.pid] if found.relay else pytest.fail("no relay: this kernel has netem; nothing to kill"),
    }[victim]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    processes.wait_until_gone(pids, 5)
    (first, *_) = nodes.current().problems()
    assert {"node": "node 1", "switch": "the switch", "every holder": "node 0", "relay": "the relay"}[victim] in first
    assert "type: localai-clusters nodes" in first or "localai-clusters nodes down" in first
    if victim == "relay":
        up.mend()
        assert not up.problems()
    second = nodes.up(2, kind=kind) if victim != "relay" else None
    if second is None:
        nodes.down()
    assert inside.wait(timeout=1) < 0, "a program in the nodes was left"
    assert not everything_of(token)


KILLED_HALFWAY = """
import os, signal
from localai_clusters.launch.nodes import detached, link, making, up
def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
stage = sys.argv[1]
if stage == "holders": making._ready = kill
elif stage == "wire": making.connect = kill
elif stage == "relay": detached.Starting.keep = kill
elif stage == "end":
    making.Nodes = kill
up(2, kind=sys.argv[2], delay_ms=1)
"""


@pytest.mark.parametrize("stage", ["holders", "wire", "relay", "end"])
def test_a_start_that_is_killed_halfway_leaves_nothing_after_down(kind, stage):
    if kind == NAMESPACES and os.geteuid() != 0:
        pytest.fail("this test makes namespaces as root; run the tests as root, or leave it out with -k 'not root'")
    done = subprocess.run(program(KILLED_HALFWAY, stage, kind), timeout=60)
    assert done.returncode == -signal.SIGKILL
    token = state.read().token
    if stage != "end":
        assert nodes.current() is None
        # Without `down`, holders end by themselves: the pipe from the command that was killed is closed.
        wait_for(lambda: not everything_of(token), 5, "holders ended")
    assert nodes.down() is True
    assert not everything_of(token) and nodes.current() is None


def test_ctrl_c_while_starting_leaves_nothing(kind, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "connect", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(kind)
    assert state.read() is None


def test_another_process_with_a_dead_nodes_network_number_is_not_killed(kind, monkeypatch):
    """The kernel uses the numbers of namespaces again."""
    with make(kind) as first:
        pass
    dead = first._state
    bystander = psutil.Process()
    reused = [state.Process(h.pid, h.started_at, os.stat("/proc/self/ns/net").st_ino) for h in dead.holders]
    dead.holders = tuple(reused)
    assert bystander.pid not in sweep.programs(dead) and os.getppid() not in sweep.programs(dead)


def test_two_starts_at_once_make_one_set_of_nodes(kind):
    make(kind).down()  # fails here if it cannot be made at all
    said: list[object] = []

    def start():
        try:
            said.append(nodes.up(2, kind=kind))
        except NodesError as error:
            said.append(error)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [error for error in said if isinstance(error, NodesError)]
    assert len(said) == 2 and len(refused) == 1
    assert "are up already" in str(refused[0]) and "localai-clusters nodes down" in str(refused[0])


# Other kinds


def drop_every_right() -> None:
    """In a child: still this user, but none of root's rights, as an ordinary user has none."""
    for right in range(64):
        if right != CAP_SETFCAP:
            ctypes.CDLL(None).prctl(24, right)  # PR_CAPBSET_DROP; the next exec takes it from root


def test_without_rights_it_takes_user_namespaces_and_says_why():
    code = """
    import json, subprocess
    from localai_clusters.launch import nodes
    with nodes.up(2, delay_ms=1) as up:
        name = subprocess.run(up.enter(1, ["hostname"]), capture_output=True, text=True).stdout.strip()
        up.set_link(rate_mbit=10)
        print(json.dumps([up.kind, up.reasons, name, up.to_dict()["counters"], up.problems()]))
    """
    done = subprocess.run(program(code), preexec_fn=drop_every_right, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    kind, reasons, name, counters, problems = json.loads(done.stdout)
    assert (kind, name, problems) == (USER_NAMESPACES, "node1", [])
    assert len(reasons) == 1 and reasons[0].startswith("namespaces: ")
    assert [counter["rank"] for counter in counters] == [0, 1]


def test_where_namespaces_are_forbidden_it_takes_loopback_and_gives_every_reason(monkeypatch):
    """As in a container that forbids them: every attempt to make one is refused."""
    monkeypatch.setattr(making, "_start", lambda made: (_ for _ in ()).throw(NodesError("unshare: not permitted")))
    with nodes.up() as up:
        assert up.kind == LOOPBACK and len(up.reasons) == 2
        assert [node.address for node in up.nodes] == ["127.0.0.1", "127.0.0.2"]
        assert (up.nodes[1].interface, up.nodes[1].pid, up.nodes[1].shm) == ("lo", 0, processes.SHM)
        assert up.forward(8000, 8000) is None and not up.problems()
        said = run_in(up, 1, "import os; print(sorted(os.sched_getaffinity(0)))")
        assert said == str(sorted(up.nodes[1].cpus))
        for refused in (up.cut, up.mend, up.counters, up.set_link):
            with pytest.raises(NodesError, match=r"(?s)loopback addresses .*unshare: not permitted"):
                refused()
        assert "127.0.0.2" in str(up)
    with pytest.raises(NodesError, match=r"(?s)unshare: not permitted.*rate or delay"):
        nodes.up(rate_mbit=10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"count": 1}, "from 2 to 254"),
        ({"rate_mbit": 0}, "nothing for no limit"),
        ({"rate_mbit": float("nan")}, "Mbit/s cannot be made"),
        ({"delay_ms": -1}, "type 0 to 10000"),
        ({"kind": "docker"}, "it is one of: namespaces"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(arguments, words):
    with pytest.raises(ValueError, match=words):
        nodes.up(**arguments)
    assert not state.path().exists()


# The command


def cli(*arguments: str) -> subprocess.CompletedProcess:
    done = subprocess.run([*CLI, "nodes", *arguments], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    return done


@BOTH_KINDS
def test_the_command_makes_shows_changes_enters_and_ends_nodes(kind):
    make(kind).down()
    assert (cli("status").returncode, json.loads(cli("status", "--json").stdout)) == (1, {"up": False})
    made = cli("up", "--rate", "50", "--kind", kind)
    assert made.returncode == 0 and "50 Mbit/s, no delay" in made.stdout, made.stderr
    assert cli("up").returncode == 1
    changed = json.loads(cli("link", "--delay", "3", "--cut", "--json").stdout)
    assert (changed["rate_mbit"], changed["delay_ms"], changed["is_cut"], changed["kind"]) == (50, 3, True, kind)
    assert json.loads(cli("link", "--rate", "0", "--mend", "--json").stdout)["rate_mbit"] is None
    inside = cli("exec", "1", "--", "sh", "-c", "hostname; exit 3")
    assert (inside.returncode, inside.stdout) == (3, "node1\n")
    assert "no node 7" in cli("exec", "7", "--", "true").stderr
    assert cli("exec", "0", "--", "no-such-command").returncode == 127
    assert cli("status").returncode == 0
    assert json.loads(cli("down", "--json").stdout) == {"were_up": True}
    assert cli("down").stdout == "no nodes were up\n"
    assert "no nodes are up; type: localai-clusters nodes up" in cli("exec", "0", "--", "true").stderr
