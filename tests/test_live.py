"""preflight --live for real: torchrun, ranks with torch, on one node and on two nodes of this machine; no vLLM starts.

Two machines with network cards, and GPUs with NCCL between them, are not tested here. What follows from what ranks
said is tested without any in tests/test_live_report.py.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from leftovers_of import assert_nothing_left, newest_run

import localai_clusters as lac
from localai_clusters.launch import nodes as local_nodes
from localai_clusters.launch.live import LiveReport, collectives, live
from localai_clusters.launch.live.answer import cuda_device
from localai_clusters.launch.run import read_rank, runs_dir
from localai_clusters.preflight.report import FAIL, PASS, UNKNOWN, WARN, Verdict

PLAN = lac.ServePlan(tensor_parallel_size=2, port=0, master_port=0)
TOKEN_BYTES = 576 * 2  # of the built-in model, in bfloat16
MEASURING, IMPORTING = "measuring latency", "importing torch"


@pytest.fixture(autouse=True)
def state_of_its_own(tmp_path, monkeypatch):
    """Runs and nodes of these tests are not those of whoever works on this machine; none of them is left."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield
    local_nodes.down()
    for run in runs_dir().iterdir() if runs_dir().is_dir() else ():
        assert_nothing_left(run.name)


@pytest.fixture
def two():
    with local_nodes.up(2) as nodes:
        assert nodes.kind != "loopback addresses", "no namespaces here: these tests need them (root or user namespaces)"
        yield nodes


def quiet(text: str) -> None:
    """In place of the line on the terminal."""


def of_check(report: LiveReport, name: str) -> Verdict:
    (verdict,) = [verdict for verdict in report.verdicts if verdict.check == name]
    return verdict


def the_failure(report: LiveReport) -> Verdict:
    """The only check that failed; the run that found it is over and nothing of it is left."""
    assert not report.ok
    (verdict,) = report.report.failed
    assert_nothing_left(report.run_dir.name, seconds=0)
    return verdict


# Healthy


def test_ranks_of_one_node_answer_add_up_and_are_timed_through_shared_memory():
    report = live(PLAN, on_progress=quiet)
    assert report.ok, str(report)
    assert_nothing_left(report.run_dir.name, seconds=0)
    host = socket.gethostname()
    assert [(one.rank, one.node_rank, one.host) for one in report.answers] == [(0, 0, host), (1, 0, host)]
    assert len({one.pid for one in report.answers}) == 2
    assert of_check(report, "all-reduce").message == "the sums of 2 ranks are exact, over gloo and shared memory"
    assert {one.transport for one in report.measurements} == {"shared memory"}, "what vLLM would use here"
    assert [one.nbytes for one in report.measurements][:3] == [8, TOKEN_BYTES, 65536]
    assert all(0 < one.median <= one.p99 for one in report.measurements)
    assert report.cost.all_reduces == 61
    assert report.cost.seconds == pytest.approx(61 * report.measurements[1].median)
    assert not [line for line in report.run_dir.joinpath("rank0.log").read_text().splitlines() if "Error" in line]


def test_ranks_of_two_nodes_meet_over_the_link(two):
    two.set_link(rate_mbit=100, delay_ms=5)
    shown = []
    before = two.counters()
    report = live(PLAN, nodes=two, on_progress=shown.append)
    assert report.ok, str(report)
    assert_nothing_left(report.run_dir.name, seconds=0)
    assert [one.host for one in report.answers] == ["node0", "node1"]
    assert "each with its own /dev/shm" in of_check(report, "roll call").message
    assert of_check(report, "versions across nodes").status == PASS
    assert [(one.source, one.target, one.problem) for one in report.connections] == [(0, 1, ""), (1, 0, "")]
    assert all(one.seconds >= 0.01 for one in report.connections), "5 ms there and 5 ms back"
    for operation, least in (("all-reduce", 0.005), ("send", 0.005)):
        times = [one.median for one in report.measurements if one.operation == operation]
        assert times and min(times) >= least and {one.transport for one in report.measurements} == {"gloo"}
    fastest = max(one.bus_bandwidth for one in report.measurements)
    assert 1e6 < fastest < 13e6, "100 Mbit/s are 12.5 MB/s"
    assert all(after.bytes_sent - then.bytes_sent > 1 << 20 for then, after in zip(before, two.counters(), strict=True))
    latency = of_check(report, "latency")
    assert latency.status == WARN and "--tensor-parallel-size 1 --pipeline-parallel-size 2" in latency.fix
    assert any("not answered at 10.77.0.1:29500 yet" in text or "starting the ranks" in text for text in shown)
    assert any(MEASURING in text for text in shown)


def test_stages_and_tensor_parallel_groups_are_each_measured():
    """Four ranks, two on each core here."""
    plan = PLAN.with_(pipeline_parallel_size=2)
    report = live(plan, skip_checks=["devices"], on_progress=quiet)
    assert {(one.operation, one.ranks) for one in report.measurements} == {
        ("all-reduce", (0, 1)),
        ("all-reduce", (2, 3)),
        ("send", (0, 2)),
    }
    assert (report.cost.all_reduces, report.cost.sends) == (61, 1)


def test_one_rank_answers_alone():
    report = live(PLAN.with_(tensor_parallel_size=1), on_progress=quiet)
    assert report.ok and len(report.answers) == 1 and report.measurements == ()
    assert report.cost is None and "all-reduce" not in {verdict.check for verdict in report.verdicts}


def test_a_plan_that_preflight_refuses_starts_nothing():
    report = live(PLAN.with_(model="smollm2-135m-published"), on_progress=quiet)
    assert not report.ok and report.run_dir is None
    assert "9 attention heads" in of_check(report, "heads").message
    assert not runs_dir().exists()


@pytest.mark.parametrize("wait", [0, -1, True, "5", float("nan")])
def test_a_wait_that_is_no_time_is_refused(wait):
    with pytest.raises(ValueError, match="a number of seconds above 0"):
        live(PLAN, wait=wait)


def test_nodes_of_this_machine_are_not_started_one_by_one(two):
    with pytest.raises(ValueError, match="leave one out"):
        live(PLAN, nodes=two, node_rank=1)


# As on two machines: one command on each node


COMMAND = """
import json, sys
import localai_clusters as lac
from localai_clusters.launch.live import live
report = live(lac.ServePlan.from_dict(json.loads(sys.argv[1])), node_rank=int(sys.argv[2]), wait=float(sys.argv[3]))
print(json.dumps(report.to_dict()))
"""


@contextlib.contextmanager
def started(two, plan: lac.ServePlan, node_rank: int, wait: float = 30, **environment: str):
    """``live`` in a process inside node ``node_rank``, with a state folder of its own."""
    environment = os.environ | {"XDG_STATE_HOME": f"{os.environ['XDG_STATE_HOME']}-{node_rank}"} | environment
    argv = [sys.executable, "-c", COMMAND, json.dumps(plan.to_dict()), str(node_rank), str(wait)]
    # `enter` finds the nodes through the state folder of this process, the command then has its own
    enter = two.enter(node_rank, ["env", f"XDG_STATE_HOME={environment['XDG_STATE_HOME']}", *argv])
    environment["XDG_STATE_HOME"] = os.environ["XDG_STATE_HOME"]
    process = subprocess.Popen(enter, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen) -> tuple[dict, str]:
    """The report as data, and what was shown on the way."""
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0 and "Traceback" not in err, err
    return json.loads(out), err


def verdict_in(data: dict, name: str) -> dict:
    (verdict,) = [verdict for verdict in data["verdicts"] if verdict["check"] == name]
    return verdict


AS_TWO_MACHINES = PLAN.with_(nnodes=2, master_addr="10.77.0.1", master_port=29500, port=8000)


def other_torch(folder: Path) -> str:
    """A folder that tells Python's package metadata of another version of torch."""
    metadata = folder / "torch-9.9.9.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
    return str(folder)


def test_two_commands_make_the_same_report_and_other_versions_are_named(two, tmp_path):
    plan = AS_TWO_MACHINES.with_(rdzv_backend="c10d")
    with (
        started(two, plan, 0) as node_0,
        started(two, plan, 1, PYTHONPATH=other_torch(tmp_path / "other")) as node_1,
    ):
        (first, shown), (second, _) = said(node_0), said(node_1)
    command = " ".join(shown.replace("\\", "").split())
    assert "on the other nodes: localai-clusters preflight --live" in command and "--node-rank 1" in command
    versions = verdict_in(first, "versions across nodes")
    assert versions["status"] == FAIL
    assert versions["message"].endswith(" on node 0 (node0), 9.9.9 on node 1 (node1)")
    for name in ("ranks", "connections", "measurements"):
        assert first[name] and first[name] == second[name]
    assert [verdict for verdict in first["verdicts"] if verdict["status"] == FAIL] == [versions]


def test_a_node_that_was_never_started_is_named(two):
    with started(two, AS_TWO_MACHINES, 0, wait=3) as node_0:
        data, shown = said(node_0)
    verdict = verdict_in(data, "roll call")
    assert verdict["status"] == FAIL
    assert verdict["message"].startswith("node 1 has not answered for 3 s: its torchrun has not started there, or ")
    assert "10.77.0.1:29500 cannot be reached from there (firewall?)" in verdict["message"]
    assert "--node-rank 1" in verdict["fix"]
    assert "not answered at 10.77.0.1:29500 yet: node 1" in shown


def test_a_node_that_waits_for_node_0_says_so(two):
    with started(two, AS_TWO_MACHINES, 1, wait=3) as node_1:
        data, shown = said(node_1)
    verdict = verdict_in(data, "roll call")
    assert verdict["message"] == (
        "node 0 does not answer at 10.77.0.1:29500 (Connection refused) for 3 s, seen from node 1"
    )
    assert "node 0 does not answer at 10.77.0.1:29500: Connection refused" in shown


def test_a_node_with_another_plan_is_told_apart(two):
    other = AS_TWO_MACHINES.with_(tensor_parallel_size=4, nnodes=4)
    with started(two, AS_TWO_MACHINES, 0) as node_0, started(two, other, 1) as node_1:
        for process in (node_0, node_1):
            data, _ = said(process)
            verdict = verdict_in(data, "same plan")
            assert verdict["status"] == FAIL
            assert verdict["message"].startswith("node 1 (node1) was started with tensor_parallel_size 4 and not 2, ")
            assert "nnodes 4 and not 2" in verdict["message"]


# nftables as an administrator would set them: what opens a connection here is dropped, except to torchrun's port.
FIREWALL = """
from pyroute2.nftables.expressions import genex, verdict
from pyroute2.nftables.main import NFTables

IP, TRANSPORT, ACCEPT, DROP = 1, 2, 1, 0

def compare(header, offset, value, equal=True):
    load = genex("payload", {"dreg": 1, "base": header, "offset": offset, "len": len(value)})
    data = {"attrs": [("NFTA_DATA_VALUE", value)]}
    return [[load], [genex("cmp", {"sreg": 1, "op": 0 if equal else 1, "data": data})]]

tcp, syn = compare(IP, 9, bytes([6])), compare(TRANSPORT, 13, bytes([2]))
other_port = compare(TRANSPORT, 2, (29500).to_bytes(2, "big"), equal=False)
with NFTables(nfgen_family=2) as firewall:
    firewall.table("add", name="here")
    firewall.chain("add", table="here", name="input", hook="input", type="filter", policy=ACCEPT)
    firewall.rule("add", table="here", chain="input", expressions=[*tcp, *syn, *other_port, verdict(DROP)])
"""


def test_a_firewall_that_lets_only_torchruns_port_through_is_named_with_its_direction(two):
    subprocess.run(two.enter(0, [sys.executable, "-c", FIREWALL]), check=True, timeout=20)
    report = live(PLAN, nodes=two, on_progress=quiet)
    verdict = the_failure(report)
    assert verdict.check == "reachable"
    assert verdict.message == (
        "node 1 (node1) cannot open a connection to node 0 (node0) at 10.77.0.1 (timed out); the other way works"
    )
    assert of_check(report, "all-reduce").status == UNKNOWN and not report.measurements


# Dead and mute


def kill(two) -> str:
    os.kill(pid_of_rank_1(), signal.SIGKILL)
    return "rank 1 on node 1 (node1) was killed by SIGKILL"


def stop(two) -> str:
    os.kill(pid_of_rank_1(), signal.SIGSTOP)
    return "rank 1 on node 1 (node1) was stopped (SIGSTOP) and did not go on for 3 s"


def cut(two) -> str:
    two.cut()
    return "is out of reach: the network between the nodes does not answer"


def pid_of_rank_1() -> int:
    return read_rank(runs_dir() / newest_run(), 1).pid


@pytest.mark.parametrize(
    ("fault", "moment", "check"),
    [
        (kill, MEASURING, "latency"),
        (stop, IMPORTING, "roll call"),
        pytest.param(cut, MEASURING, "latency", marks=pytest.mark.extended),
    ],
)
def test_a_rank_that_is_lost_on_the_way_is_named(two, fault, moment, check):
    words = []

    def strike(text: str) -> None:
        if not words and f"rank 1: {moment}" in text:
            words.append(fault(two))

    report = live(PLAN, nodes=two, on_progress=strike)
    assert words, "the moment did not come"
    verdict = the_failure(report)
    assert (verdict.check, words[0] in verdict.message) == (check, True), verdict
    assert bool(report.answers) == (moment == MEASURING), "what was found before is kept"


def test_nodes_that_a_cut_link_keeps_apart(two):
    two.cut()
    verdict = the_failure(live(PLAN, nodes=two, wait=5, on_progress=quiet))
    assert verdict.check == "roll call"
    assert verdict.message == (
        "node 1 has not answered for 5 s: torchrun runs there and cannot reach 10.77.0.1:29500 (timed out)"
    )
    assert "is the link cut?" in verdict.fix


def test_an_agent_that_is_killed_while_nodes_meet_is_named(two):
    two.cut()

    def strike(text: str) -> None:
        if "not answered" in text:
            events = [json.loads(line) for line in (runs_dir() / newest_run() / "guard.jsonl").read_text().splitlines()]
            agents = events[0]["agents"]
            with contextlib.suppress(ProcessLookupError):
                os.kill(next(int(pid) for pid, node in agents.items() if node == 1), signal.SIGKILL)

    verdict = the_failure(live(PLAN, nodes=two, on_progress=strike))
    assert verdict.check == "roll call" and "agent on node 1 exited with -9" in verdict.message


# Sums


def transport(all_reduce, ranks=(0, 1)) -> collectives.Transport:
    return collectives.Transport("made up", ranks, "cpu", None, all_reduce, None, None)


def as_if_both_gave(tensor: torch.Tensor) -> None:
    """The sum of two ranks of which this one is rank 0, for the two patterns that are checked."""
    elements = torch.arange(len(tensor))
    if tensor.dtype == torch.float32:
        tensor.mul_(3)  # 1 x the pattern of rank 0, and 2 x it
    else:
        tensor.copy_(torch.where(elements % 2 == 0, tensor.float(), elements % 199 + 1))


def test_right_sums_are_right():
    assert collectives.wrong_sums(transport(as_if_both_gave), 0, (1, 7, 1000), torch.bfloat16) == []


def one_element_off(tensor: torch.Tensor) -> None:
    as_if_both_gave(tensor)
    tensor[len(tensor) // 2] += 1


def not_summed(tensor: torch.Tensor) -> None:
    pass


@pytest.mark.parametrize("broken", [one_element_off, not_summed])
def test_wrong_sums_name_the_size_the_element_and_both_numbers(broken):
    found = collectives.wrong_sums(transport(broken), 0, (7,), torch.bfloat16)
    assert len(found) == 2
    if broken is one_element_off:
        assert found[0] == "1 of 7 elements in float32 over made up: element 3 is 13 and should be 12"


def test_known_sums_stay_exact_in_float32_for_the_largest_plan():
    ranks = tuple(range(4096))
    total = len(ranks) * (len(ranks) + 1) // 2

    def all_gave(tensor: torch.Tensor) -> None:
        if tensor.dtype == torch.float32:
            tensor.mul_(total)
        else:
            tensor.copy_(torch.arange(len(tensor)) % 199 + 1)

    assert collectives.wrong_sums(transport(all_gave, ranks), 0, (1000,), torch.bfloat16) == []


def test_a_gpu_that_torch_does_not_see_is_said():
    """This machine has none; with one, its name and UUID are the answer."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert cuda_device(0) == ("", (), "torch sees 0 GPUs here; local rank 0 has none")


def test_the_rank_says_how_to_start_it():
    done = subprocess.run(
        [sys.executable, "-m", "localai_clusters.launch.live.job"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "one rank of a torchrun job" in done.stderr and "Traceback" not in done.stderr


def test_importing_the_launchers_side_costs_no_torch():
    code = textwrap.dedent("""
        import sys
        import localai_clusters.launch.live.probe, localai_clusters.launch.live.job, localai_clusters.launch.live.agent
        assert not {"torch", "vllm", "numpy"} & set(sys.modules), "imported"
    """)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
