"""Real vLLM over two nodes of one machine: namespaces with their own addresses, /dev/shm and cores, joined by a link.

Two machines with network cards between them are not tested here. tests/test_nodes_link.py tests nodes without vLLM.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from leftovers_of import SECONDS_TO_END, assert_nothing_left, newest_run

import localai_clusters as lac
from localai_clusters.launch import nodes as local_nodes
from localai_clusters.launch import processes
from localai_clusters.launch.why import why_it_ended
from localai_clusters.server import ServerError

CLI = str(Path(sys.executable).with_name("localai-clusters"))
PROMPT, TOKENS = "The capital of France is", 12
PLAN = lac.ServePlan(dtype="float32", max_model_len=512, port=0, master_port=0)
SECONDS_TO_NAME_IT = 10.0


@pytest.fixture(autouse=True, scope="module")
def state_of_its_own(tmp_path_factory):
    """Runs and nodes of these tests are not those of whoever works on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def two():
    with local_nodes.up(2) as nodes:
        assert nodes.kind != "loopback addresses", "no namespaces here: these tests need them (root or user namespaces)"
        yield nodes


@pytest.fixture(scope="module")
def tokens_of_one_rank():
    with lac.serve(PLAN) as server:
        return server.complete(PROMPT, max_tokens=TOKENS, ignore_eos=True).token_ids


def test_two_ranks_on_each_node_split_both_ways(two, tokens_of_one_rank):
    """Tensor parallel inside each node, pipeline parallel across the link; the ranks of a node share its core here."""
    plan = PLAN.with_(tensor_parallel_size=2, pipeline_parallel_size=2)
    with lac.serve(plan, nodes=two, skip_checks=["devices"]) as server:
        before = two.counters()
        assert server.complete(PROMPT, max_tokens=TOKENS, ignore_eos=True).token_ids == tokens_of_one_rank
        sent = [after.bytes_sent - then.bytes_sent for then, after in zip(before, two.counters(), strict=True)]
        # A stage's output, 576 numbers of 4 bytes and the residual beside it, whole or in halves from each rank.
        least = 2 * server.model.shape.hidden_size * 4 * TOKENS
        assert least < sent[0] < 10 * least, (least, sent)
        assert [rank.facts["host"] for rank in server.ranks()] == ["node0", "node0", "node1", "node1"]
        record = lac.record(student="s1", chapter=7, lab="nodes", servers=[server], folder=server.run.dir).checkpoint
        assert (record.evidence.nodes, record.evidence.ranks) == (2, 4)
        assert any("namespaces of one machine" in constraint.sentence for constraint in record.constraints)


def test_tensor_parallel_ranks_of_two_nodes_meet_over_the_link(two, tokens_of_one_rank):
    with lac.serve(PLAN.with_(tensor_parallel_size=2), nodes=two) as server:
        before = two.counters()
        answer = server.complete(PROMPT, max_tokens=TOKENS, ignore_eos=True)
        sent = [after.bytes_sent - then.bytes_sent for then, after in zip(before, two.counters(), strict=True)]
        assert answer.token_ids == tokens_of_one_rank
        # Two all-reduces a layer, and a ring of two sends each half there and back: 2 x 2 x 1/2 x 4 bytes.
        shape = server.model.shape
        least = 2 * shape.num_hidden_layers * shape.hidden_size * 4 * TOKENS
        assert all(least < count < 4 * least for count in sent), (least, sent)
        assert [rank.facts["host"] for rank in server.ranks()] == ["node0", "node1"]
        assert [rank.facts["node_rank"] for rank in server.ranks()] == [0, 1]
        segments = [{path.name for path in node.shm.glob("lac-*")} for node in two.nodes]
        assert not segments[0] & segments[1], "the ranks share memory"
    assert_nothing_left(server.run)
    assert not [path for node in two.nodes for path in node.shm.iterdir()]


@pytest.mark.parametrize("rendezvous", ["static", pytest.param("c10d", marks=pytest.mark.extended)])
def test_one_serve_command_on_each_node_as_on_two_machines(two, tokens_of_one_rank, rendezvous, tmp_path):
    """Node 0 is started first and prints the other's command, which is pasted into a shell of node 1."""
    plan = ["-pp", "2", "--dtype", "float32", "--max-model-len", "512", "--nnodes", "2", "--master-addr", "10.77.0.1"]
    with running([CLI, "serve", *plan, "--rdzv-backend", rendezvous], two, 0, tmp_path / "0") as node_0:
        other = node_0.read_until("--node-rank 1").partition("on the other nodes:\n")[2]
        with running(["sh", "-c", f"PATH={Path(CLI).parent}:$PATH {other}"], two, 1, tmp_path / "1") as node_1:
            node_0.read_until("Ctrl-C stops it")
            assert "follows 10.77.0.1" in node_1.read_until("follows")
            with subprocess.Popen(two.forward(18000, 8000)) as forwarder:
                assert complete(18000) == list(tokens_of_one_rank)
                forwarder.kill()
            node_0.process.send_signal(signal.SIGINT)
            assert node_0.process.wait(timeout=SECONDS_TO_END) == 130
            assert node_1.process.wait(timeout=SECONDS_TO_END) == 0
            assert "node 0 stopped the server" in node_1.output.read_text()


def complete(port: int) -> list[int]:
    body = {"model": "smollm2-135m", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    deadline = time.monotonic() + SECONDS_TO_END
    while True:
        try:
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body | {"return_token_ids": True})
            return answer.json()["choices"][0]["token_ids"]
        except httpx.ConnectError:  # the forwarder has only just been started
            assert time.monotonic() < deadline
            time.sleep(0.1)


class running:
    """A command inside a node, and a way to wait for what it prints."""

    def __init__(self, argv, nodes, node_rank, output: Path):
        self.output = output
        with open(output, "w") as file:
            self.process = subprocess.Popen(nodes.enter(node_rank, argv), stdout=file, stderr=subprocess.STDOUT)

    def read_until(self, text: str, seconds: float = 120) -> str:
        deadline = time.monotonic() + seconds
        while text not in (printed := self.output.read_text()):
            assert self.process.poll() is None or text in self.output.read_text(), printed
            assert time.monotonic() < deadline, printed
            time.sleep(0.1)
        return printed

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def cut_the_link(nodes, server) -> str:
    nodes.cut()
    return r"is out of reach: the network between the nodes does not answer"


def end_node_1(nodes, server) -> str:
    for process in (nodes.nodes[1].pid, server.ranks()[1].pid):
        os.kill(process, signal.SIGKILL)
    return r"rank 1 on node 1 \(node1\) was killed by SIGKILL"


def kill_the_agent_of_node_1(nodes, server) -> str:
    agents = next(event for event in server.run.events() if event["event"] == "started")["agents"]
    os.kill(next(int(pid) for pid, node in agents.items() if node == 1), signal.SIGKILL)
    return r"agent on node 1 exited with -9"


def stop_rank_1(nodes, server) -> str:
    os.kill(server.ranks()[1].pid, signal.SIGSTOP)
    return r"rank 1 on node 1 \(node1\) was stopped \(SIGSTOP\)"


@pytest.mark.parametrize("fault", [cut_the_link, end_node_1,
                                   pytest.param(kill_the_agent_of_node_1, marks=pytest.mark.extended),
                                   pytest.param(stop_rank_1, marks=pytest.mark.extended)])  # fmt: skip
def test_a_lost_node_under_load_is_named_and_clients_get_an_error(two, fault):
    server = lac.serve(PLAN.with_(tensor_parallel_size=2), nodes=two)
    errors = []

    def client():
        try:
            server.complete(PROMPT, max_tokens=400, ignore_eos=True)
        except ServerError as error:
            errors.append(str(error))

    clients = [threading.Thread(target=client) for _ in range(3)]
    for thread in clients:
        thread.start()
    time.sleep(1.0)
    words, began = fault(two, server), time.monotonic()
    for thread in clients:
        thread.join(timeout=60)
    while server.is_running() and time.monotonic() - began < 60:
        time.sleep(0.05)
    took = time.monotonic() - began
    assert len(errors) == 3
    with pytest.raises(ServerError, match=words):
        server.complete(PROMPT)
    assert took < SECONDS_TO_NAME_IT, why_it_ended(server.run)
    assert_nothing_left(newest_run(), seconds=0)
    assert not [path for node in two.nodes if processes.alive(node.pid) for path in node.shm.iterdir()]
    server.stop()
