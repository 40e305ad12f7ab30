"""What crosses the link between nodes: counted by the kernel under a real server, and held to what is predicted."""

import subprocess
import sys
from pathlib import Path

import pytest

import localai_clusters as lac
from localai_clusters import wire
from localai_clusters.launch import nodes
from localai_clusters.plan import ServePlan
from localai_clusters.wire import TrafficError

TENSOR = ServePlan(tensor_parallel_size=2, port=0, max_model_len=512)
PIPELINE = ServePlan(pipeline_parallel_size=2, port=0, max_model_len=512)
ON_NODES = {"nnodes": 2, "master_addr": "10.77.0.1"}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two nodes with a state folder of their own: whoever has nodes up on this machine keeps them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        with nodes.up(2) as made:
            if made.carried_by is None:
                pytest.fail("namespaces are forbidden here; nothing between nodes can be counted")
            yield made


@pytest.fixture(scope="module", params=[TENSOR, PIPELINE], ids=["TP=2", "PP=2"])
def served(request, two):
    two.set_link()
    with lac.serve(request.param, nodes=two, on_progress=lambda text: None) as server:
        server.complete("Hello", max_tokens=4)
        yield server


def part(counted, name: str, node: int = 0) -> float:
    return next(part.bytes_sent[node] for part in counted.parts() if part.name == name)


@pytest.mark.extended
def test_bytes_on_the_wire_are_what_is_predicted_and_little_else(served, two):
    with lac.traffic(served, two) as counted:
        answer = served.complete("The capital of France is", max_tokens=16, ignore_eos=True)
    assert counted.output_tokens == len(answer.token_ids) == 16
    assert (counted.prompt_tokens, counted.requests, counted.steps) == (len(answer.prompt_token_ids), 1, 16)
    payload = part(counted, "payload of the tokens")
    assert payload == 16 * counted.predicted.bytes_on_the_wire > 0
    assert payload < counted.sent[0].bytes < 3 * payload
    assert abs(part(counted, "the rest")) < 0.15 * counted.sent[0].bytes
    assert all(sum(part.bytes_sent[n] for part in counted.parts()) == counted.sent[n].bytes for n in (0, 1))


@pytest.mark.extended
def test_what_was_counted_is_ready_for_a_record(served, two):
    two.set_link(rate_mbit=200, delay_ms=1)
    with lac.traffic(served, two, idle_seconds=0) as counted:
        served.bench(concurrency=2, requests=2, max_tokens=4)
    two.set_link()
    seen = counted.observed
    assert (seen.run_id, seen.layout) == (served.run.id, served.plan.label)
    assert (seen.rate_mbit, seen.delay_ms, seen.output_tokens) == (200, 1, 8)
    assert seen.bytes_sent == tuple(node.bytes for node in counted.sent)
    assert "200 Mbit/s and 1 ms one way" in str(counted) and "node 1 sent" in counted._repr_html_()


@pytest.mark.extended
def test_only_tensor_parallel_sends_as_much_from_either_node(served, two):
    with lac.traffic(served, two, idle_seconds=0) as counted:
        served.complete("One, two, three", max_tokens=8, ignore_eos=True)
    first, second = (node.bytes for node in counted.sent)
    if served.plan.tensor_parallel_size > 1:
        assert 0.8 < first / second < 1.25
    else:
        assert second < 0.6 * first


@pytest.mark.extended
def test_a_block_in_which_nothing_was_generated_is_no_traffic_of_a_record(served, two):
    with lac.traffic(served, two, idle_seconds=0) as counted:
        pass
    assert counted.output_tokens == 0 and counted.observed is None and counted.bytes_per_token is None
    assert "0 tokens" in str(counted)


@pytest.mark.extended
def test_a_server_on_nodes_of_this_machine_is_not_counted_on_the_machines_interface(served, two):
    with pytest.raises(TrafficError, match=r"lac\.traffic\(server, nodes\)"):
        lac.traffic(served)


# Without a server


def test_the_name_of_the_call_is_not_a_modules():
    code = "import localai_clusters as lac; import localai_clusters.wire; assert callable(lac.traffic)"
    code += "; import sys; assert not {'torch', 'vllm', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("plan", "shares"),
    [
        (TENSOR.with_(**ON_NODES), (1, 1)),
        (PIPELINE.with_(**ON_NODES), (1, 0)),
        (ServePlan(tensor_parallel_size=2, pipeline_parallel_size=2, **ON_NODES), (1, 0)),
        (ServePlan(pipeline_parallel_size=3, nnodes=3, master_addr="10.77.0.1"), (0.5, 0.5, 0)),
    ],
    ids=["TP=2", "PP=2", "TP=2 x PP=2", "PP=3"],
)
def test_who_sends_what_is_predicted(plan, shares):
    assert wire.senders(plan) == shares


def test_counters_of_an_interface(tmp_path):
    """Files as Linux lays them out, in /sys/class/net/NAME/statistics."""
    folder = tmp_path / "eno1" / "statistics"
    folder.mkdir(parents=True)
    for name, value in {"tx_packets": 3, "tx_bytes": 400, "rx_packets": 5, "rx_bytes": 600}.items():
        (folder / name).write_text(f"{value}\n")
    assert wire.read_interface("eno1", str(tmp_path)) == (wire.Sent(3, 400), wire.Sent(5, 600))
    with pytest.raises(TrafficError, match="ip -s link show eno2"):
        wire.read_interface("eno2", str(tmp_path))


@pytest.mark.skipif(not Path("/sys/class/net/lo/statistics").is_dir(), reason="no sysfs here")
def test_this_machines_own_loopback_is_read():
    before = wire.read_interface("lo")
    subprocess.run(
        [sys.executable, "-c", "import socket; s = socket.socket(type=2); s.sendto(b'x' * 1000, ('127.0.0.1', 9))"],
        check=True,
    )
    sent, received = (after.since(then) for after, then in zip(wire.read_interface("lo"), before, strict=True))
    assert sent.bytes >= 1000 and received.bytes >= 1000
