"""launch/live: what follows from what ranks said and measured, and how it is shown. Nothing is started here.

Machines and GPUs in this file are made up; tests/test_live.py starts real ranks.
"""

import json
import socket
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from localai_clusters.launch.live import gathering, measurement, reach, report, verdicts
from localai_clusters.launch.live.answer import Answer, model_files
from localai_clusters.launch.live.findings import Findings
from localai_clusters.launch.live.gathering import Mute, gather
from localai_clusters.launch.live.measurement import ALL_REDUCE, SEND, Measurement
from localai_clusters.models import BUILT_IN
from localai_clusters.plan import ServePlan
from localai_clusters.preflight.report import FAIL, PASS, UNKNOWN, WARN, Report, Verdict

SHAPE = BUILT_IN["smollm2-135m"].shape
TP_2 = ServePlan(tensor_parallel_size=2, dtype="bfloat16")
TWO_NODES = TP_2.with_(nnodes=2, master_addr="10.0.0.1")
VERSIONS = {
    "vllm": "0.32.0",
    "torch": "2.13.0",
    "transformers": "5.19.0",
    "localai-clusters": "0.1.0",
    "python": "3.11.7",
}


def made_up_answer(rank: int, node_rank: int = 0, local_rank: int | None = None, **more) -> Answer:
    known = {
        "rank": rank, "node_rank": node_rank, "local_rank": rank if local_rank is None else local_rank, "world_size": 2,
        "host": f"made-up-{node_rank}", "pid": 100 + rank, "address": f"10.0.0.{node_rank + 1}", "backend": "cpu",
        "machine": f"boot {node_rank}", "shm": "27", "device": f"CPU {rank}", "device_ids": (f"CPU {rank}",),
        "versions": VERSIONS, "model": {},
    }  # fmt: skip
    return Answer(**known | more)


def made_up_nodes(count: int = 2, **more) -> tuple[Answer, ...]:
    """One rank on each."""
    return tuple(made_up_answer(node, node, 0, **more) for node in range(count))


def found(plan: ServePlan = TWO_NODES, **more) -> Findings:
    known = {"plan": plan, "shape": SHAPE, "answers": made_up_nodes(), "connections": ()}
    return Findings(**known | more)


def measured(
    operation: str = ALL_REDUCE, ranks=(0, 1), nbytes: int = 1152, median: float = 0.001, **more
) -> Measurement:
    return Measurement(
        operation, more.pop("transport", "gloo"), ranks, nbytes, 100, median, more.pop("p99", 2 * median)
    )


def of_check(name: str, *args, **kwargs) -> list[Verdict]:
    return [verdict for verdict in verdicts.judge(found(*args, **kwargs)) if verdict.check == name]


def only(name: str, *args, **kwargs) -> Verdict:
    (verdict,) = of_check(name, *args, **kwargs)
    return verdict


# Measurements


@pytest.mark.parametrize(
    ("operation", "ranks", "expected"),
    [(ALL_REDUCE, 2, 1e9), (ALL_REDUCE, 4, 1.5e9), (ALL_REDUCE, 8, 1.75e9), (SEND, 2, 1e9)],
)
def test_bus_bandwidth_is_nccl_tests_formula(operation, ranks, expected):
    one = measured(operation, tuple(range(ranks)), nbytes=1_000_000, median=0.001)
    assert one.bus_bandwidth == pytest.approx(expected)


def test_the_median_and_the_99th_percentile():
    assert measurement.middle_and_p99(list(range(1, 1001))) == (501, 990)
    assert measurement.middle_and_p99([3.0, 1.0, 2.0]) == (2.0, 3.0)
    assert measurement.middle_and_p99([5.0]) == (5.0, 5.0)


def test_a_token_of_the_built_in_model_waits_for_61_all_reduces():
    assert measurement.token_bytes(TP_2, SHAPE) == 576 * 2
    cost = measurement.token_cost(TP_2, SHAPE, [measured(median=0.0001)])
    assert (cost.all_reduces, cost.sends, cost.seconds) == (61, 0, pytest.approx(0.0061))
    assert str(cost) == "61 all-reduces per token: 6.1 ms"


def test_each_stage_pays_for_its_own_layers_and_a_send_between():
    plan = TP_2.with_(pipeline_parallel_size=2)
    stage_0, stage_1 = measured(ranks=(0, 1), median=0.001), measured(ranks=(2, 3), median=0.002)
    sent = measured(SEND, (0, 2), nbytes=2 * 1152, median=0.5)
    cost = measurement.token_cost(plan, SHAPE, [stage_0, stage_1, sent])
    assert (cost.all_reduces, cost.sends) == (61, 1)
    assert cost.seconds == pytest.approx(31 * 0.001 + 30 * 0.002 + 0.5)
    assert str(cost) == "61 all-reduces and 1 send per token: 591 ms"
    assert measurement.token_cost(plan, SHAPE, [stage_0, sent]) is None, "a stage was not measured"
    assert measurement.token_cost(plan, SHAPE, [stage_0, stage_1]) is None


def test_one_rank_waits_for_nobody():
    assert measurement.token_cost(ServePlan(), SHAPE, []).seconds == 0


@pytest.mark.parametrize(
    ("nnodes", "tensor", "pipeline", "pairs"),
    [
        (1, 2, 1, []),
        (2, 2, 1, [(0, 1)]),
        (2, 4, 1, [(0, 2)]),
        (2, 2, 2, []),
        (3, 6, 1, [(0, 2), (2, 4)]),
        (4, 2, 2, [(0, 1), (2, 3)]),
    ],
)
def test_links_that_a_tensor_parallel_group_crosses(nnodes, tensor, pipeline, pairs):
    plan = ServePlan(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline, nnodes=nnodes)
    assert measurement.node_pairs(plan) == pairs


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (measurement.duration(2.6e-6), "2.6 µs"),
        (measurement.duration(42e-6), "42 µs"),
        (measurement.duration(0.00017), "0.17 ms"),
        (measurement.duration(0.0432), "43 ms"),
        (measurement.duration(1.25), "1.2 s"),
        (measurement.size(8), "8 B"),
        (measurement.size(64 << 10), "64 KiB"),
        (measurement.size(256 << 20), "256 MiB"),
        (measurement.bandwidth(9.2e9), "9.2 GB/s"),
        (measurement.bandwidth(11.7e6), "12 MB/s"),
        (measurement.bandwidth(4e3), "4.0 kB/s"),
        (measurement.span((0, 1)), "0, 1"),
        (measurement.span(range(8)), "0-7"),
        (measurement.span((0, 4, 8)), "0, 4, 8"),
    ],
)
def test_numbers_for_a_person(shown, expected):
    assert shown == expected


# Verdicts


def test_who_answered_from_where():
    verdict = only("roll call")
    assert (verdict.status, verdict.message) == (
        PASS,
        "2 ranks on 2 nodes answered: node 0 is made-up-0 at 10.0.0.1; node 1 is made-up-1 at 10.0.0.2",
    )


@pytest.mark.parametrize(("shm", "words"), [(("1", "2"), "each with its own"), (("1", "1"), "sharing")])
def test_nodes_of_one_machine_are_called_so(shm, words):
    answers = tuple(replace(one, machine="boot", shm=shm[one.rank]) for one in made_up_nodes())
    assert only("roll call", answers=answers).message.endswith(f"; all of one machine, {words} /dev/shm")


def test_more_ranks_than_planned_are_no_roll_call():
    verdict = only("roll call", answers=made_up_nodes(3))
    assert (verdict.status, verdict.message) == (FAIL, "3 ranks answered; the plan has 2")


def test_of_many_nodes_some_are_named():
    plan = TWO_NODES.with_(tensor_parallel_size=8, nnodes=8)
    assert only("roll call", plan, answers=made_up_nodes(8)).message.endswith(
        "node 3 is made-up-3 at 10.0.0.4; and 4 more"
    )


@pytest.mark.parametrize(
    ("package", "status"),
    [("vllm", FAIL), ("torch", FAIL), ("localai-clusters", FAIL), ("transformers", WARN), ("python", WARN)],
)
def test_a_version_that_differs_is_named_with_its_nodes(package, status):
    answers = list(made_up_nodes(3))
    answers[1] = replace(answers[1], versions=VERSIONS | {package: "9.9"})
    verdict = only("versions across nodes", answers=answers)
    assert verdict.status == status
    assert verdict.message == (
        f"{package} is {VERSIONS[package]} on node 0 (made-up-0), node 2 (made-up-2), 9.9 on node 1 (made-up-1)"
    )
    assert verdict.fix == f"{package} {VERSIONS[package]} on node 1 (made-up-1) too, or another one on all"


def test_a_version_that_is_missing_on_a_node():
    answers = made_up_nodes()
    without = {name: version for name, version in VERSIONS.items() if name != "vllm"}
    verdict = only("versions across nodes", answers=(answers[0], replace(answers[1], versions=without)))
    assert (verdict.status, "missing on node 1 (made-up-1)" in verdict.message) == (FAIL, True)


def test_equal_versions_are_listed():
    verdict = only("versions across nodes")
    assert verdict.status == PASS and "torch 2.13.0" in verdict.message and "python 3.11.7" in verdict.message


def test_one_node_has_nothing_to_be_compared_with():
    answers = (made_up_answer(0), made_up_answer(1))
    checks = [verdict.check for verdict in verdicts.judge(found(TP_2, answers=answers))]
    assert checks == ["roll call", "devices of the ranks", "all-reduce"]


HERE = {"folder": "m", "config": "abc", "weights": {"model.safetensors": 100}}


@pytest.mark.parametrize(
    ("other", "status", "words"),
    [
        (HERE, PASS, "are equal on 2 nodes"),
        (HERE | {"folder": "elsewhere/m"}, PASS, "are equal on 2 nodes"),
        (HERE | {"config": "def"}, FAIL, "config.json is not the same on node 0 (made-up-0) and node 1 (made-up-1)"),
        (HERE | {"weights": {"model.safetensors": 99}}, FAIL, "model.safetensors is 100 bytes and 99 bytes on"),
        (HERE | {"weights": {}}, FAIL, "model.safetensors is 100 bytes and missing on"),
        (HERE | {"weights": {"a": 1, "b": 2}}, FAIL, "a (and 2 more) is missing and 1 bytes on"),
        ({}, WARN, "org/made-up is not yet on node 1 (made-up-1)"),
        ({"problem": "there is no folder './m'"}, FAIL, "node 1 (made-up-1): there is no folder './m'"),
    ],
)
def test_model_files_of_two_nodes(other, status, words):
    answers = tuple(replace(one, model=HERE if one.rank == 0 else other) for one in made_up_nodes())
    verdict = only("model on every node", TWO_NODES.with_(model="org/made-up"), answers=answers)
    assert verdict.status == status and words in verdict.message


def test_model_files_are_read_from_the_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "no weights" in model_files(str(tmp_path))["problem"]
    (tmp_path / "model.safetensors").write_bytes(bytes(10))
    files = model_files(str(tmp_path))
    assert files["weights"] == {"model.safetensors": 10} and len(files["config"]) == 64
    (tmp_path / "config.json").write_text("{ }")
    assert model_files(str(tmp_path))["config"] != files["config"]
    assert model_files(str(tmp_path / "none")).keys() == {"problem"}
    assert model_files("smollm2-135m") == {}, "made of the same file on every node"


def made_up_gpu(rank: int, node_rank: int, uuid: str) -> Answer:
    return made_up_answer(rank, node_rank, 0, backend="cuda", device="NVIDIA H100", device_ids=(f"GPU-{uuid}",))


def test_two_ranks_with_the_same_gpu_cannot_join():
    answers = (made_up_gpu(0, 0, "a"), made_up_gpu(1, 1, "a"))
    verdict = only("devices of the ranks", answers=answers)
    assert (verdict.status, verdict.message) == (FAIL, "rank 0, rank 1 have the same GPU, GPU-a")
    assert not verdicts.may_join(TWO_NODES, answers, ())
    assert verdicts.may_join(TWO_NODES, (answers[0], made_up_gpu(1, 1, "b")), ())


def test_a_gpu_that_is_not_there_is_said_by_the_rank_that_needs_it():
    broken = replace(made_up_gpu(1, 1, "b"), device_ids=(), problem="torch sees 0 GPUs here; local rank 0 has none")
    answers = (made_up_gpu(0, 0, "a"), broken)
    verdict = only("devices of the ranks", answers=answers)
    assert verdict.message == "rank 1 on node 1 (made-up-1): torch sees 0 GPUs here; local rank 0 has none"
    assert not verdicts.may_join(TWO_NODES, answers, ())
    assert only("all-reduce", answers=answers).status == UNKNOWN


def test_builds_for_cpu_and_gpu_do_not_mix():
    verdict = of_check("devices of the ranks", answers=(made_up_answer(0), made_up_gpu(1, 1, "a")))[0]
    assert verdict.status == FAIL and "cpu on node 0 (made-up-0), cuda on node 1 (made-up-1)" in verdict.message


@pytest.mark.parametrize(("machines", "status"), [(("m", "m"), WARN), (("m", "n"), PASS)])
def test_a_shared_core_is_one_of_the_same_machine(machines, status):
    answers = tuple(replace(one, machine=machines[one.rank], device_ids=("CPU 0", "CPU 1")) for one in made_up_nodes())
    verdict = only("devices of the ranks", answers=answers)
    assert verdict.status == status
    if status == WARN:
        assert verdict.message == "rank 0, rank 1 share CPU 0, CPU 1: they wait for each other"


def made_up_connection(source: int, target: int, **more) -> reach.Connection:
    return reach.Connection(source, target, f"10.0.0.{target + 1}", **{"seconds": 0.001, "ahead": 0.0} | more)


def test_nodes_that_reach_each_other():
    verdict = only("reachable", connections=(made_up_connection(0, 1), made_up_connection(1, 0, seconds=0.004)))
    assert (verdict.status, verdict.message) == (PASS, "every node reaches every other one; round trip 4.0 ms")


def test_a_one_way_firewall_is_named_with_its_side():
    blocked = made_up_connection(1, 0, seconds=None, ahead=None, problem="timed out")
    connections = (made_up_connection(0, 1), blocked)
    verdict = only("reachable", connections=connections)
    assert (verdict.status, verdict.message) == (
        FAIL,
        "node 1 (made-up-1) cannot open a connection to node 0 (made-up-0) at 10.0.0.1 (timed out); "
        "the other way works",
    )
    assert "on node 0 (made-up-0), a firewall that lets 10.0.0.2" in verdict.fix
    assert not verdicts.may_join(TWO_NODES, made_up_nodes(), connections)


def test_a_link_that_is_cut_both_ways_is_not_called_one_way():
    both = [made_up_connection(a, b, seconds=None, ahead=None, problem="timed out") for a, b in ((0, 1), (1, 0))]
    assert [verdict.message.endswith("(timed out)") for verdict in of_check("reachable", connections=both)] == [
        True
    ] * 2


def test_many_nodes_behind_one_firewall_are_one_sentence():
    connections = [made_up_connection(node, 0, seconds=None, ahead=None, problem="timed out") for node in range(1, 9)]
    verdict = only("reachable", answers=made_up_nodes(9), connections=connections)
    assert verdict.message.startswith(
        "node 1 (made-up-1), node 2 (made-up-2), node 3 (made-up-3), node 4 (made-up-4), and 4"
    )


@pytest.mark.parametrize(
    ("ahead", "status", "words"),
    [(0.002, PASS, "2.0 ms off"), (65.0, WARN, "65 s ahead of"), (-3.0, WARN, "3.0 s behind")],
)
def test_clocks(ahead, status, words):
    verdict = only(
        "clocks", connections=(made_up_connection(0, 1, ahead=ahead), made_up_connection(1, 0, ahead=-ahead))
    )
    assert verdict.status == status and words in verdict.message


def test_sums():
    right = {"wrong_sums": (), "measurements": (measured(transport="shared memory"),)}
    verdict = only("all-reduce", TP_2, **right)
    assert (verdict.status, verdict.message) == (
        PASS,
        "the sums of 2 ranks are exact, over gloo and shared memory",
    )
    wrong = "1 of 7 elements in bfloat16 over gloo: element 3 is 5 and should be 4, says rank 1"
    verdict = only("all-reduce", TP_2, **right | {"wrong_sums": (wrong,)})
    assert (verdict.status, verdict.message) == (FAIL, f"a sum is wrong: {wrong}")


def test_latency_and_what_it_costs_a_token():
    verdict = only("latency", TP_2, wrong_sums=(), measurements=(measured(median=2.8e-6, p99=3.4e-6),))
    assert (verdict.status, verdict.message) == (
        PASS,
        "all-reduce of 1.125 KiB: 2.8 µs, p99 3.4 µs (ranks 0, 1, gloo); 61 all-reduces per token: 0.17 ms",
    )


def test_the_slowest_group_speaks_for_all():
    plan = TP_2.with_(pipeline_parallel_size=2)
    sent = measured(SEND, (0, 2), nbytes=2304)
    groups = (measured(ranks=(0, 1), median=0.001), measured(ranks=(2, 3), median=0.003), sent)
    verdict = only("latency", plan, wrong_sums=(), measurements=groups)
    assert "3.0 ms, p99 6.0 ms (ranks 2, 3, the slowest of 2, gloo)" in verdict.message
    assert (
        "(ranks 2, 3, the slowest of 2, gloo)"
        in only("bus bandwidth", plan, wrong_sums=(), measurements=groups).message
    )


def test_the_bus_bandwidth_is_that_of_the_best_size():
    messages = tuple(measured(nbytes=nbytes, median=0.001) for nbytes in (8, 4_000_000, 65536))
    verdict = only("bus bandwidth", TP_2, shape=None, wrong_sums=(), measurements=messages)
    assert verdict.message == "all-reduce 4.0 GB/s at 3.815 MiB (ranks 0, 1, gloo)"


def test_of_a_model_that_is_not_known_the_smallest_message_is_shown():
    verdict = only("latency", shape=None, wrong_sums=(), measurements=(measured(nbytes=8), measured(nbytes=65536)))
    assert verdict.message == "all-reduce of 8 B: 1.0 ms, p99 2.0 ms (ranks 0, 1, gloo)"


@pytest.mark.parametrize(
    ("all_reduce", "send", "status"),
    [(0.01, 0.005, WARN), (0.0001, 0.00001, PASS), (0.01, 0.3, PASS)],
    ids=["slow link", "cheap anyway", "a send is no better"],
)
def test_tensor_parallel_over_a_slow_link_is_advised_against(all_reduce, send, status):
    messages = (measured(median=all_reduce), measured(SEND, nbytes=2304, median=send))
    verdict = only("latency", wrong_sums=(), measurements=messages)
    assert verdict.status == status
    if status == WARN:
        assert verdict.fix == (
            "--tensor-parallel-size 1 --pipeline-parallel-size 2: 1 send per token between the nodes, 5.0 ms"
        )


def test_what_ended_a_run_comes_after_what_it_had_found():
    problem = Verdict("latency", FAIL, "rank 1 was killed by SIGKILL")
    checks = [verdict.check for verdict in verdicts.judge(found(connections=None, problem=problem))]
    assert checks == ["roll call", "versions across nodes", "devices of the ranks", "latency"]
    assert verdicts.judge(Findings(plan=TWO_NODES, problem=problem)) == (problem,)


# Gathering through a store


class MadeUpStore:
    """torch's store is a process of its own; a dictionary holds the same promises."""

    def __init__(self):
        self._values: dict[str, bytes] = {}

    def set(self, key: str, value: str) -> None:
        self._values[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self._values[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self._values for key in keys)


def gathered(ranks: list[int], among: range, seconds: float = 10.0) -> dict[int, object]:
    """What each of ``ranks`` got, or the ``Mute`` that it raised."""
    store, got = MadeUpStore(), {}

    def one(rank: int) -> None:
        try:
            got[rank] = gather(store, "stage", rank, {"from": rank}, among, seconds)
        except Mute as error:
            got[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return got


def test_everybody_gets_what_everybody_said():
    everything = {rank: {"from": rank} for rank in range(5)}
    assert gathered([3, 1, 4, 0, 2], range(5)) == {rank: everything for rank in range(5)}


def test_who_says_nothing_is_named_to_all_others():
    got = gathered([0, 1, 3], range(5), seconds=0.2)
    assert {rank: error.ranks for rank, error in got.items()} == {rank: (2, 4) for rank in (0, 1, 3)}


def test_a_mute_rank_0_is_named_by_the_others(monkeypatch):
    monkeypatch.setattr(gathering, "SECONDS_FOR_RANK_0", 0.1)
    got = gathered([1, 2], range(3), seconds=0.1)
    assert {error.ranks for error in got.values()} == {(0,)}


# Reaching


@pytest.fixture
def listener():
    made = reach.Listener("127.0.0.1")
    made.start("t" * 32)
    yield made
    made.close()


def test_a_connection_tells_the_round_trip_and_the_other_clock(listener):
    other = made_up_answer(1, 1, 0, address="127.0.0.1", port=listener.port, token="t" * 32)
    one = reach.connect(0, other)
    assert one.problem == "" and (one.source, one.target) == (0, 1)
    assert 0 < one.seconds < 3 and abs(one.ahead) < 3


def test_a_stranger_at_that_port_is_no_connection(listener):
    other = made_up_answer(1, 1, 0, address="127.0.0.1", port=listener.port, token="x" * 32)
    assert reach.connect(0, other).problem


def test_a_closed_port_is_refused(listener):
    listener.close()
    other = made_up_answer(1, 1, 0, address="127.0.0.1", port=listener.port, token="t" * 32)
    assert reach.connect(0, other).problem == "Connection refused"


def test_a_connection_that_says_nothing_does_not_keep_others_out(listener):
    with socket.create_connection(("127.0.0.1", listener.port)):
        other = made_up_answer(1, 1, 0, address="127.0.0.1", port=listener.port, token="t" * 32)
        assert reach.connect(0, other).problem == ""


# Answers of other versions of this package


def test_an_answer_goes_through_json():
    one = made_up_gpu(1, 1, "a")
    assert Answer.from_dict(json.loads(json.dumps(asdict(one)))) == one


def test_an_answer_with_more_or_fewer_fields_is_still_read():
    data = asdict(made_up_answer(1)) | {"from the future": 1}
    del data["shm"]
    assert Answer.from_dict(data).shm == ""


# Views


@pytest.fixture
def made_up_report() -> report.LiveReport:
    messages = tuple(measured(nbytes=nbytes) for nbytes in (8, 1152, 65536))
    judged = verdicts.judge(found(TP_2, wrong_sums=(), measurements=messages))
    cost = measurement.token_cost(TP_2, SHAPE, messages)
    return report.LiveReport(Report(TP_2, judged), made_up_nodes(), (), messages, cost, 6.25, Path("runs/made-up"))


def on_a_terminal(thing, width: int = 80) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(thing)
    return capture.get()


def test_the_report_fits_a_terminal(made_up_report):
    shown = on_a_terminal(made_up_report)
    assert max(map(len, shown.splitlines())) <= 80
    for words in ("can be launched", "made-up-1", "10.0.0.2", "all-reduce  gloo", "1.125 KiB", "6.2 s in all"):
        assert words in shown
    assert "\x1b" not in shown


def test_the_report_as_text_and_html_holds_the_same(made_up_report):
    for shown in (str(made_up_report), made_up_report._repr_html_()):
        for words in ("Who answered", "made-up-0", "Messages", "64 KiB", "bus bandwidth", "runs/made-up"):
            assert words in shown


def test_what_others_said_is_escaped(made_up_report):
    evil = replace(made_up_answer(0), host="<script>alert(1)</script>[red]", device="[bold]<b>")
    shown = replace(
        made_up_report, answers=(evil,), report=Report(TP_2, verdicts.judge(found(TP_2, answers=(evil, evil))))
    )
    assert "<script>" not in shown._repr_html_() and "&lt;script&gt;" in shown._repr_html_()
    assert "[red]" in on_a_terminal(shown, 200) and "[bold]<b>" in on_a_terminal(shown, 200)


def test_the_report_as_data(made_up_report):
    data = json.loads(json.dumps(made_up_report.to_dict()))
    assert (data["ok"], data["live"], data["seconds"]) == (True, True, 6.25)
    assert [one["host"] for one in data["ranks"]] == ["made-up-0", "made-up-1"]
    assert data["measurements"][2]["bus_bandwidth"] == pytest.approx(65536 / 0.001)
    assert data["token_cost"] == {"all_reduces": 61, "sends": 0, "seconds": pytest.approx(0.061)}
    assert "token" not in data["ranks"][0], "a secret of the run"


def test_a_report_of_a_plan_that_was_not_started():
    refused = report.LiveReport(Report(TP_2, (Verdict("heads", FAIL, "9 heads", "-tp 1"),)))
    assert not refused.ok and refused.to_dict()["live"] is False
    assert "nothing was started" in str(refused) and "nothing was started" in on_a_terminal(refused)
