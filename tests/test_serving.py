"""Real vLLM on real torchrun ranks, on CPU cores: the splits agree, and the server is vLLM's own.

What a GPU does differently (NCCL, CUDA graphs, nvidia-smi) is not tested here.
"""

import concurrent.futures
import functools

import httpx
import openai
import pytest
from leftovers_of import assert_nothing_left

import localai_clusters as lac
from localai_clusters.launch import processes
from localai_clusters.machine import assign_cores, physical_cores
from localai_clusters.server import ServerError

PLAN = lac.ServePlan(dtype="float32", max_model_len=512, port=0, master_port=0)
PROMPTS = ["The capital of France is", "Once upon a time", "def fibonacci(n):", "Water boils at"]
TOKENS = 32


@pytest.fixture(scope="module")
def unsplit():
    """TP=1: (server, now stopped; its completions)."""
    with lac.serve(PLAN) as server:
        answers = [server.complete(prompt, max_tokens=TOKENS, ignore_eos=True) for prompt in PROMPTS]
    return server, answers


@pytest.fixture(scope="module")
def tensor():
    """TP=2, running, with one of vLLM's own flags."""
    plan = PLAN.with_(tensor_parallel_size=2, extra_args=("--served-model-name", "house-model"))
    with lac.serve(plan) as server:
        yield server


def same_tokens(unsplit, answers) -> None:
    for one, other in zip(unsplit[1], answers, strict=True):
        assert len(one.token_ids) == TOKENS
        assert one.token_ids == other.token_ids, one.prompt


def test_tensor_parallel_size_2_gives_the_greedy_tokens_of_one_rank(unsplit, tensor):
    same_tokens(unsplit, [tensor.complete(prompt, max_tokens=TOKENS, ignore_eos=True) for prompt in PROMPTS])


def test_pipeline_parallel_size_2_gives_the_greedy_tokens_of_one_rank(unsplit):
    with lac.serve(PLAN.with_(pipeline_parallel_size=2)) as server:
        same_tokens(unsplit, [server.complete(prompt, max_tokens=TOKENS, ignore_eos=True) for prompt in PROMPTS])
        check_memory(server)
        assert [rank.facts["layers"] for rank in server.ranks()] == [[0, 15], [15, 30]]
    assert_nothing_left(server.run)


@pytest.mark.extended  # tests/test_nodes.py: the same four ranks on two nodes
def test_tensor_and_pipeline_parallel_together_give_the_greedy_tokens_of_one_rank(unsplit):
    """Four ranks; where there are fewer cores they share them, which preflight refuses and this test asks for."""
    plan = PLAN.with_(tensor_parallel_size=2, pipeline_parallel_size=2)
    with lac.serve(plan, skip_checks=["devices"]) as server:
        answer = server.complete(PROMPTS[0], max_tokens=TOKENS, ignore_eos=True)
        assert answer.token_ids == unsplit[1][0].token_ids
        check_memory(server)
        assert [rank.facts["layers"] for rank in server.ranks()] == [[0, 15], [0, 15], [15, 30], [15, 30]]


def test_pipeline_stages_keep_several_requests_apart(unsplit):
    """Two batches are in flight at once here, with logprobs, several choices and a JSON schema among them."""
    with lac.serve(PLAN.with_(pipeline_parallel_size=2)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        form = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema}}
        message = [{"role": "user", "content": "Name a number."}]
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            ask = functools.partial(pool.submit, client.chat.completions.create, model="smollm2-135m", messages=message)
            others = [ask(max_tokens=TOKENS, temperature=1.0, n=2, logprobs=True, top_logprobs=2) for _ in range(4)]
            formed = ask(max_tokens=TOKENS, temperature=0, response_format=form)
            greedy = pool.map(lambda prompt: server.complete(prompt, max_tokens=TOKENS, ignore_eos=True), PROMPTS)
            same_tokens(unsplit, greedy)
            assert formed.result().choices[0].message.content.lstrip().startswith("{")
            for answer in (other.result() for other in others):
                assert len(answer.choices) == 2
                assert all(len(token.top_logprobs) == 2 for token in answer.choices[0].logprobs.content)


def check_memory(server) -> None:
    facts = server.ranks()[0].facts
    block = facts["kv_cache_bytes"] / facts["kv_cache_blocks"]
    for rank in server.memory().ranks:
        assert rank.weights_measured == rank.weights_predicted
        assert 0 <= rank.kv_cache_predicted - rank.kv_cache_measured < block  # whole blocks only
        assert rank.resident > rank.weights_measured


def test_each_rank_holds_the_bytes_that_were_predicted(unsplit, tensor):
    check_memory(tensor)
    whole, halves = unsplit[0].last_memory.ranks[0], tensor.memory().ranks
    assert all(0.5 * whole.weights_measured <= rank.weights_measured < 0.51 * whole.weights_measured for rank in halves)


def test_ranks_are_pinned_to_cores_of_their_own(tensor):
    shares = assign_cores(physical_cores(), 2)
    for rank, share in zip(tensor.ranks(), shares, strict=True):
        assert rank.facts["cpus"] == sorted(cpu for core in share for cpu in core)


def test_each_rank_writes_its_own_log_under_the_run(tensor):
    for rank in tensor.ranks():
        assert f"rank={rank.rank} local_rank={rank.rank}" in tensor.run.log(rank.rank).read_text()


def test_the_server_listens_on_loopback_only(tensor):
    import psutil

    pids = processes.with_variable("LAC_RUN_ID", tensor.run.id)
    listening = [c.laddr for c in psutil.net_connections("tcp") if c.pid in pids and c.status == psutil.CONN_LISTEN]
    assert [address.ip for address in listening if address.port == tensor.plan.port] == ["127.0.0.1"]


def test_health_models_and_metrics(tensor):
    assert httpx.get(f"{tensor.url}/health").status_code == 200
    assert [m["id"] for m in httpx.get(f"{tensor.url}/v1/models").json()["data"]] == ["house-model"]
    assert "vllm:generation_tokens_total" in tensor.metrics()


def test_the_load_figures_count_what_was_asked_for(tensor):
    load = tensor.bench(concurrency=3, requests=6, max_tokens=5)
    assert (load.requests, load.output_tokens) == (6, 30)
    assert load.tokens_per_second == pytest.approx(30 / load.seconds)
    with pytest.raises(ValueError, match="concurrency is 0"):
        tensor.bench(concurrency=0)


def test_after_stop_nothing_is_left_and_the_server_says_so(tensor):
    """Last of this module: it stops the server that the others use."""
    tensor.stop()
    assert_nothing_left(tensor.run)
    assert "stopped" in repr(tensor)
    with pytest.raises(ServerError, match="was stopped"):
        tensor.complete("Hello")
    with pytest.raises(ServerError, match="load test"):
        tensor.bench()
