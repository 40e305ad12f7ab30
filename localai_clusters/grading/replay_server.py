"""What a served model makes of recorded tokens: one prefill for each completion, through vLLM's own HTTP server.

``/v1/completions`` with ``prompt_logprobs`` scores every token of a prompt in one step
(vllm/v1/worker/gpu_model_runner.py, ``_get_prompt_logprobs_dict``); ``/tokenize`` and ``/detokenize`` are the model's
tokenizer and chat template, so that neither is needed in this process.
"""

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import aiohttp

from localai_clusters.checkpoint import Completion, Prompt
from localai_clusters.errors import PlainError, server_words
from localai_clusters.grading.replay_rules import Seen, Token

REQUESTS_AT_ONCE = 32
SECONDS_TO_ANSWER = 600.0

Answer = TypeVar("Answer")
Ask = Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]  # path, body -> what the server answers


class ServerGone(PlainError, RuntimeError):
    """The server does not answer any more."""


class Refused(ValueError):
    """vLLM's own words about a request that it does not take."""


async def look(ask: Ask, prompt: Prompt, completion: Completion, special: frozenset[int]) -> Seen:
    """What the model makes of ``completion``. ``special`` tokens are left out of its text, as vLLM leaves them out.

    Raises ``Refused`` (a token that the model does not know, more tokens than fit) and ``ServerGone``.
    """
    before, ids = list(prompt.token_ids), list(completion.token_ids)
    sequence = {"prompt": before + ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
    chat = {"messages": [{"role": "user", "content": prompt.text}]}
    answers = await asyncio.gather(
        ask("/v1/completions", sequence),
        ask("/detokenize", {"tokens": [token for token in ids if token not in special]}),
        ask("/tokenize", chat if prompt.form == "chat" else {"prompt": prompt.text}),
        return_exceptions=True,  # each is awaited, whichever fails
    )
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    scored, own, rendered = answers
    text = own["prompt"]
    if text.strip() != completion.text.strip() and not special.isdisjoint(ids):
        whole = (await ask("/detokenize", {"tokens": ids}))["prompt"]  # a request may ask for its special tokens
        text = whole if whole.strip() == completion.text.strip() else text
    as_recorded = rendered["tokens"] == before
    prompt_text = prompt.text if as_recorded else (await ask("/detokenize", {"tokens": before}))["prompt"]
    scores = scored["choices"][0]["prompt_logprobs"][len(before) :]
    tokens = tuple(token_of(score, token) for score, token in zip(scores, ids, strict=True))
    return Seen(tokens, text, prompt_text, as_recorded)


def token_of(score: Mapping[str, Mapping[str, Any]], token: int) -> Token:
    """From vLLM's object for one position: the token that stands there, and the likeliest one if that is another."""
    recorded = score[str(token)]
    best = max(score.values(), key=lambda each: each["logprob"])
    return Token(recorded["decoded_token"], recorded["logprob"], best["decoded_token"], best["logprob"])


def once(ask: Ask) -> Ask:
    """``ask`` that remembers its questions: the splits of one record mostly gave the same answers."""
    asked: dict[str, asyncio.Future] = {}

    def remembered(path: str, body: Mapping[str, Any]) -> Awaitable[dict[str, Any]]:
        question = path + json.dumps(body)
        if question not in asked:
            asked[question] = asyncio.ensure_future(ask(path, body))
        return asked[question]

    return remembered


def talk(url: str, headers: Mapping[str, str], work: Callable[[Ask], Coroutine[Any, Any, Answer]]) -> Answer:
    """What ``work`` returns, run with a way to ask the server at ``url``; in a thread, for a notebook has a loop of
    its own. An interrupt ends the questions that are open."""

    async def connected() -> Answer:
        async with aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=REQUESTS_AT_ONCE),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=SECONDS_TO_ANSWER, sock_read=SECONDS_TO_ANSWER),
        ) as session:
            return await work(functools.partial(_post, session, url.rstrip("/")))

    loop = asyncio.new_event_loop()
    task = loop.create_task(connected())
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="replay") as thread:
            answered = thread.submit(loop.run_until_complete, task)
            try:
                return answered.result()
            except BaseException:  # Ctrl-C, or what `work` raised
                loop.call_soon_threadsafe(task.cancel)
                raise
    finally:
        loop.close()


async def _post(session: aiohttp.ClientSession, url: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    try:
        async with session.post(url + path, json=body) as answer:
            text = await answer.text()
        if answer.status == 200:
            return json.loads(text)
        if answer.status < 500 or await _is_healthy(session, url):  # one request that it stumbles over is no end
            raise Refused(server_words(text))
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise ServerGone(f"no answer from {url}{path}: {str(error) or type(error).__name__}") from error
    raise ServerGone(f"{url}{path} answered {answer.status}: {server_words(text)}")


async def _is_healthy(session: aiohttp.ClientSession, url: str) -> bool:
    async with session.get(url + "/health") as answer:
        return answer.status == 200
