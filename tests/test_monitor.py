"""Watching a server: what is seen is what the ranks hold and what vLLM counts, and no thread outlives its server."""

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from leftovers_of import assert_nothing_left

from localai_clusters import ServePlan, serve
from localai_clusters.monitor import Sample, Watch, read_metrics, thinned, timelines
from localai_clusters.observe import resident_bytes
from localai_clusters.observed import MAX_POINTS

BLOCK = 128  # tokens, vLLM's default on a CPU
PLAN = ServePlan(tensor_parallel_size=2, port=0, master_port=0, max_model_len=1024, kv_cache_memory_bytes=25 << 20)


def sample(seconds: float, blocks: int | None = 0, resident=(10, 20), gpu=(None, None)) -> Sample:
    return Sample(seconds, resident, gpu, blocks, None if blocks is None else 12, 0, 0)


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "watch"]


@pytest.mark.parametrize("count", [0, 1, MAX_POINTS, MAX_POINTS + 1, 5000])
def test_thinning_keeps_the_order_the_extremes_and_no_more_than_fit(count):
    numbers = random.Random(7)
    points = [(float(at), numbers.randrange(10**6)) for at in range(count)]
    kept = thinned(points)
    assert len(kept) <= MAX_POINTS and list(kept) == sorted(kept) and set(kept) <= set(points)
    if points:
        values = [value for _, value in points]
        assert {max(values), min(values)} <= {value for _, value in kept}


def test_a_short_rise_in_a_long_watch_is_not_lost():
    points = [(at / 10, 0) for at in range(20_000)]
    points[11_111] = (1111.1, 9)
    assert (1111.1, 9) in thinned(points)


def test_timelines_leave_out_what_was_not_seen():
    found = timelines("run", [sample(0), sample(1, None, resident=(11, None)), sample(2, 3)])
    assert [(line.quantity, line.rank) for line in found] == [("resident", 0), ("resident", 1), ("kv-blocks", None)]
    rank0, rank1, blocks = found
    assert rank0.points == ((0, 10), (1, 11), (2, 10))
    assert rank1.points == ((0, 20), (2, 20))  # gone at one look
    assert (blocks.points, blocks.capacity, blocks.unit) == (((0, 0), (2, 3)), 12, "blocks")
    assert timelines("run", []) == []


def test_metrics_are_summed_over_engines_and_half_an_answer_is_no_error():
    text = '# TYPE vllm:x gauge\nvllm:x{engine="0"} 2.0\nvllm:x{engine="1"} 3.0\n# TYPE vllm:y gauge\nvllm:y 1.0\n'
    assert read_metrics(text, ["vllm:x"]) == {"vllm:x": 5.0}
    assert read_metrics(text + 'vllm:z{engine="0', ["vllm:z"]) == {}


@pytest.mark.parametrize("every", [0, -1, 61, float("nan")])
def test_an_interval_that_makes_no_sense_is_refused(every):
    with pytest.raises(ValueError, match="every is"):
        Watch(None, every)


@pytest.fixture(scope="module")
def server():
    with serve(PLAN) as running:
        yield running


def test_blocks_fill_and_empty_as_a_request_comes_and_goes(server):
    with server.watch(every=0.05) as seen:
        time.sleep(0.2)
        answer = server.complete("river " * 300, max_tokens=100, ignore_eos=True)
        time.sleep(0.2)
    tokens = len(answer.prompt_token_ids) + len(answer.token_ids)
    assert seen.most_blocks() == -(-tokens // BLOCK)
    assert seen.samples[0].kv_blocks_used == seen.samples[-1].kv_blocks_used == 0
    assert seen.samples[0].kv_blocks == server.ranks()[0].facts["kv_cache_blocks"] - 1 == 12
    assert seen.samples[-1].generated - seen.samples[0].generated == 100
    assert [line.quantity for line in seen.timelines()] == ["resident", "resident", "kv-blocks"]
    assert "KV blocks 0 of 12" in str(seen) and "<svg" in seen._repr_html_()
    assert not watchers()


def test_the_memory_seen_is_that_of_the_ranks_processes(server):
    with server.watch(every=0.05) as seen:
        time.sleep(0.3)
    for rank, held in zip(server.ranks(), seen.latest.resident, strict=True):
        assert held == pytest.approx(resident_bytes(rank.pid)[0], rel=0.05)
    assert seen.latest.gpu == (None, None) or all(seen.latest.gpu)


def test_a_request_that_does_not_fit_waits_for_blocks(server):
    with server.watch(every=0.05) as seen, ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(server.complete, f"{word} " * 800, max_tokens=10, ignore_eos=True)
            for word in ("tower", "train")
        ]
        assert [len(each.result().token_ids) for each in asked] == [10, 10]
    assert max(one.waiting for one in seen.samples) == 1
    assert seen.most_blocks() <= 8  # never both


def test_a_watch_ends_with_a_server_that_is_killed(server):
    """Last of this module: it kills the server that the others use."""
    seen = server.watch(every=0.05).start()
    time.sleep(0.3)
    os.kill(server.ranks()[1].pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while seen.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not seen.is_alive() and not watchers()
    assert len(seen) and seen.timelines()
    seen.stop()
    server.stop()
    assert_nothing_left(server.run)
