"""launch/ready.py: when a run is ready, and what is said when it is not."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from test_why import RANK_1_WAS_KILLED, reached, run, write

from localai_clusters.launch import ready
from localai_clusters.launch.ready import answers, following, serving, wait_until_ready
from localai_clusters.launch.run import LaunchError

__all__ = ["run"]  # a fixture


@pytest.fixture
def server():
    """A server whose ``/health`` and ``/v1/completions`` give the statuses that the test sets."""

    class Handler(BaseHTTPRequestHandler):
        def reply(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(served.statuses[self.path])
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_POST = reply

        def log_message(self, *_):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.statuses = {"/health": 200, "/v1/completions": 200}
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    with httpx.Client(base_url=f"http://127.0.0.1:{served.server_address[1]}") as client:
        yield served, client
    served.shutdown()
    served.server_close()


@pytest.mark.parametrize(("health", "completion", "ready"), [(200, 200, True), (503, 200, False), (200, 500, False)])
def test_ready_is_a_completion_that_comes_back(server, health, completion, ready):
    served, client = server
    served.statuses = {"/health": health, "/v1/completions": completion}
    assert answers(client, "m") is ready


def test_a_server_that_is_not_there_is_not_ready():
    with httpx.Client(base_url="http://127.0.0.1:9") as client:
        assert not answers(client, "m")


@pytest.fixture
def living(run):
    """``run`` as one that still runs, until the test says otherwise."""
    run._guard = type("Guard", (), {"poll": lambda self: None})()
    return run


def test_waiting_ends_when_rank_0_answers_and_shows_every_step_once(living, server):
    reached(living, 0, "python")
    shown = []

    def on_progress(ranks, seconds):
        shown.append([rank.step for rank in ranks])
        if len(shown) == 1:
            reached(living, 1, "python", "import")
        else:
            reached(living, 0, "http")

    assert wait_until_ready(living, serving(server[1], "m"), on_progress, seconds=1e12) > 0
    assert shown[0] == ["python", None]
    assert shown[-1] == ["http", "import"]


def test_waiting_gives_up_and_says_where_each_rank_is(living, server):
    reached(living, 0, "python", "weights")
    with pytest.raises(LaunchError) as caught:
        wait_until_ready(living, serving(server[1], "m"), lambda ranks, seconds: None, seconds=1)
    assert "rank 0: loading its weights; rank 1: not started yet" in str(caught.value)
    assert caught.value.run_dir == living.dir


def test_a_node_without_the_server_is_ready_when_its_ranks_follow(living):
    reached(living, 0, "python", "ready")
    assert not following(living.ranks())
    reached(living, 1, "python", "ready")
    assert following(living.ranks())


def test_nodes_of_this_machine_are_not_waited_for_as_other_machines_are(living, monkeypatch):
    monkeypatch.setattr(ready, "SECONDS_UNTIL_NODES_MEET", 0.2)
    living.nodes, living.started_at = ["up"], time.time()
    with pytest.raises(LaunchError, match=r"the nodes have not met at 127\.0\.0\.1:29500 after 0 s; is the link"):
        wait_until_ready(living, following, lambda ranks, seconds: None)


def test_waiting_ends_with_the_run(run):
    run._guard = type("Guard", (), {"poll": lambda self: 0})()
    write(run.dir / "node0.log", RANK_1_WAS_KILLED)
    with pytest.raises(LaunchError, match="rank 1 was killed by SIGKILL"):
        wait_until_ready(run, following, lambda ranks, seconds: None)
