"""Load on a server: so many requests at a time, so many tokens each; what came back, how fast."""

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from localai_clusters.plan import check_size

# Different words at the start of each prompt, so that prefix caching does not answer for the model.
PROMPT = "Request {number}: tell a long story about a computer that was made of many small computers."


@dataclass(frozen=True, slots=True)
class Load:
    """``seconds`` from the first request sent to the last answer received."""

    concurrency: int
    requests: int
    output_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.output_tokens / self.seconds

    def __str__(self) -> str:
        return (
            f"{self.tokens_per_second:.0f} tokens/s with {self.concurrency} requests at a time "
            f"({self.requests} requests, {self.output_tokens} tokens, {self.seconds:.1f} s)"
        )

    __repr__ = __str__


def load(
    url: str, model: str, concurrency: int, requests: int, max_tokens: int, headers: Mapping[str, str] | None = None
) -> Load:
    """Send ``requests`` completions of exactly ``max_tokens`` tokens, ``concurrency`` at a time.

    Raises ``httpx.HTTPError`` if one fails, ``ValueError`` for a number below 1.
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
    limits = httpx.Limits(max_connections=concurrency)
    numbers = iter(range(requests))
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600, limits=limits) as client:

        async def stream() -> int:
            tokens = 0
            for number in numbers:
                body = {"model": model, "prompt": PROMPT.format(number=number), "max_tokens": max_tokens}
                body |= {"temperature": 0, "ignore_eos": True}
                answer = await client.post("/v1/completions", json=body)
                answer.raise_for_status()
                tokens += answer.json()["usage"]["completion_tokens"]
            return tokens

        started = time.perf_counter()
        tokens = await asyncio.gather(*(stream() for _ in range(concurrency)))
        return Load(concurrency, requests, sum(tokens), time.perf_counter() - started)
