"""Load on a server: so many requests at a time, so many tokens each; what came back, how fast.

Answers are streamed, for that is when the first token comes and how long each next one takes. The client
shares the machine with the server: aiohttp took 60 us of CPU per chunk where httpx took 220.
"""

import asyncio
import json
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import aiohttp

from localai_clusters.errors import PlainError, server_words
from localai_clusters.plan import check_size

# Different words at the start of each prompt, so that prefix caching does not answer for the model.
PROMPT = "Request {number}: tell a long story about a computer that was made of many small computers."
SECONDS_TO_ANSWER = 600.0


class LoadError(PlainError, RuntimeError):
    """A request of the load failed; the message holds the server's words, or what became of the connection."""


class Spread(NamedTuple):
    """The middle of many measured times and their slow end: percentiles, in seconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Load:
    """``seconds`` from the first request sent to the last answer received.

    ``ttft`` (time to first token): from a request sent to the first chunk of its answer. ``itl`` (inter-token
    latency): from one chunk to the next of the same answer, as ``vllm bench serve`` takes it; None if every answer
    was one chunk. A chunk is one token, or several that a busy server sent together: tokens are counted
    from what the server says it generated.
    """

    concurrency: int
    requests: int
    output_tokens: int
    seconds: float
    ttft: Spread
    itl: Spread | None

    @property
    def tokens_per_second(self) -> float:
        return self.output_tokens / self.seconds

    def __str__(self) -> str:
        times = [("first token", self.ttft), ("between tokens", self.itl)]
        latency = "; ".join(f"{what} {t.p50 * 1e3:.0f} ms, p99 {t.p99 * 1e3:.0f}" for what, t in times if t)
        return (
            f"{self.tokens_per_second:.0f} tokens/s with {self.concurrency} requests at a time "
            f"({self.requests} requests, {self.output_tokens} tokens, {self.seconds:.1f} s)\n{latency}"
        )

    __repr__ = __str__


def load(
    url: str, model: str, concurrency: int, requests: int, max_tokens: int, headers: Mapping[str, str] | None = None
) -> Load:
    """Send ``requests`` completions of exactly ``max_tokens`` tokens, ``concurrency`` at a time.

    Raises ``LoadError`` if one fails, ``ValueError`` for a number below 1.
    Runs in a thread of its own: a notebook's has an event loop already.
    """
    for name, value in (("concurrency", concurrency), ("requests", requests), ("max_tokens", max_tokens)):
        check_size(name, value)
    outcome: list[Load | BaseException] = []

    def work() -> None:
        try:
            outcome.append(asyncio.run(_load(url, model, concurrency, requests, max_tokens, headers or {})))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work, name="bench")
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


async def _load(
    url: str, model: str, concurrency: int, requests: int, max_tokens: int, headers: Mapping[str, str]
) -> Load:
    numbers = iter(range(requests))
    tokens, first, between = 0, [], []
    async with aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=concurrency),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=SECONDS_TO_ANSWER, sock_read=SECONDS_TO_ANSWER),
    ) as session:

        async def one_at_a_time() -> None:
            nonlocal tokens
            for number in numbers:
                body = {"model": model, "prompt": PROMPT.format(number=number), "max_tokens": max_tokens}
                body |= {"temperature": 0, "ignore_eos": True}
                sent = time.perf_counter()
                count, times = await _stream(session, f"{url.rstrip('/')}/v1/completions", body)
                tokens += count
                first.append(times[0] - sent)
                between.extend(later - earlier for earlier, later in pairwise(times))

        started = time.perf_counter()
        await asyncio.gather(*(one_at_a_time() for _ in range(concurrency)))
        seconds = time.perf_counter() - started
    return Load(concurrency, requests, tokens, seconds, spread(first), spread(between) if between else None)


async def _stream(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[int, list[float]]:
    """(tokens generated, when each chunk of the answer came) of one request."""
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    times, tokens, done = [], None, False
    try:
        async with session.post(url, json=body) as answer:
            if answer.status != 200:
                raise LoadError(f"the server answered {answer.status}: {server_words(await answer.text())}")
            async for line in answer.content:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    done = True
                    continue  # to the answer's very end, or its connection cannot be used again
                chunk = json.loads(data)
                if chunk.get("error"):
                    raise LoadError(f"the server broke an answer off: {server_words(data.decode())}")
                if chunk.get("choices"):
                    times.append(time.perf_counter())
                elif chunk.get("usage"):
                    tokens = chunk["usage"]["completion_tokens"]
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise LoadError(f"no whole answer from {url}, chunks that came: {len(times)}; {words}") from error
    if not (done and times and tokens):
        raise LoadError(f"no whole answer from {url}, chunks that came: {len(times)}; it ended without its end")
    return tokens, times


def spread(times: Sequence[float]) -> Spread:
    """Percentiles of at least one time, interpolated between neighbours as numpy and ``vllm bench serve`` do."""
    if len(times) == 1:
        return Spread(times[0], times[0])
    hundredths = statistics.quantiles(times, n=100, method="inclusive")
    return Spread(hundredths[49], hundredths[98])
