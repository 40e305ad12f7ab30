"""A served model: launch it, talk to it, see what each rank holds, stop it.

with serve(ServePlan(tensor_parallel_size=2)) as server:
    print(server.chat("What is tensor parallelism?").text)
    print(server.memory())
"""

import atexit
import secrets
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import httpx

from localai_clusters import observe, sizing
from localai_clusters.errors import PlainError, server_words
from localai_clusters.launch.placing import place_of, plan_on, with_ports
from localai_clusters.launch.ready import following, serving, wait_until_ready
from localai_clusters.launch.run import Rank, Run
from localai_clusters.launch.why import why_in_short
from localai_clusters.machine import Machine
from localai_clusters.models import Model, find
from localai_clusters.plan import ServePlan
from localai_clusters.preflight import preflight
from localai_clusters.preflight.report import Report
from localai_clusters.preflight.situation import settle
from localai_clusters.progress import ProgressLine, startup_text
from localai_clusters.tables import MemoryTable

if TYPE_CHECKING:
    from localai_clusters.launch.nodes import Nodes
    from localai_clusters.matrices import Matrices
    from localai_clusters.monitor import Watch

SECONDS_TO_ANSWER = 600.0
SECONDS_TO_END = 10.0  # from a client's error until the run has ended and its cause is known
DEAD_ENGINE = "EngineCore encountered an issue"  # vLLM's EngineDeadError, as its server answers it


class ServerError(PlainError, RuntimeError):
    """The server refused a request, with its answer, or is gone: with why, where its logs are and what to type."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model said to one prompt. ``logprobs`` are natural logarithms, one per token."""

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    seconds: float
    form: str = "text"  # or "chat": the model's chat template was put around the prompt
    prompt_token_ids: tuple[int, ...] = ()
    temperature: float = 0.0
    max_tokens: int | None = None

    def __str__(self) -> str:
        return self.text


class Server:
    """A running server. ``stop()``, the end of a ``with`` block, or the end of this process ends it."""

    def __init__(self, run: Run, model: Model, report: Report, client: httpx.Client, api_key: str | None = None):
        self.api_key = api_key  # shown by nothing here
        self.run, self.model, self.report, self.plan = run, model, report, run.plan
        self.url = str(client.base_url)
        self.seconds_to_ready = 0.0
        self.seconds_serving: float | None = None
        self.machine = Machine.now()
        self.completions: list[Completion] = []
        self.loads: list[Any] = []
        self.last_memory: MemoryTable | None = None
        self.nvidia_smi: str | None = None
        self._client = client
        # Bound to the run, not to this object, so that a forgotten server is stopped too.
        self._stop = weakref.finalize(self, _stop, run, client)
        atexit.register(self._stop)

    def chat(self, message: str | Sequence[dict[str, str]], *, max_tokens: int = 64, **options: Any) -> Completion:
        """One answer through ``/v1/chat/completions``; greedy unless ``temperature`` says otherwise."""
        messages = [{"role": "user", "content": message}] if isinstance(message, str) else list(message)
        body = {"messages": messages, "logprobs": True, "max_tokens": max_tokens, **options}
        answer, seconds = self._post("/v1/chat/completions", body)
        choice = answer["choices"][0]
        logprobs = [entry["logprob"] for entry in (choice.get("logprobs") or {}).get("content") or ()]
        text, prompt = choice["message"]["content"] or "", messages[-1]["content"]
        return self._keep(prompt, text, choice, logprobs, seconds, "chat", answer.get("prompt_token_ids"), body)

    def complete(self, prompt: str, *, max_tokens: int = 64, **options: Any) -> Completion:
        """The continuation of ``prompt`` through ``/v1/completions``; greedy unless ``temperature`` says otherwise."""
        body = {"prompt": prompt, "logprobs": 0, "max_tokens": max_tokens, **options}
        answer, seconds = self._post("/v1/completions", body)
        choice = answer["choices"][0]
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or ()
        ids = choice.get("prompt_token_ids")
        return self._keep(prompt, choice["text"], choice, logprobs, seconds, "text", ids, body)

    def memory(self) -> MemoryTable:
        """What each rank holds now, predicted beside measured, in bytes. ``ServerError`` if the server died."""
        if not self._client.is_closed and not self.is_running():
            raise self._gone()
        return self._measured()

    def _measured(self) -> MemoryTable:
        predicted = sizing.can_predict(self.model.shape)
        sizes = sizing.rank_sizes(self.plan, self.model.shape)
        rows = [observe.rank_memory(size, rank, predicted) for size, rank in zip(sizes, self.ranks(), strict=True)]
        self.last_memory = MemoryTable(self.plan.label, tuple(rows))
        if self.machine.gpus:
            self.nvidia_smi = observe.nvidia_smi()
        return self.last_memory

    def ranks(self) -> list[Rank]:
        return self.run.ranks()

    def bench(self, *, concurrency: int = 8, requests: int | None = None, max_tokens: int = 64):
        """Load the server with ``concurrency`` requests at a time; returns a ``bench.Load``."""
        from localai_clusters.bench import LoadError, load

        requests = 4 * concurrency if requests is None else requests
        try:
            result = load(self.url, self.plan.served_name, concurrency, requests, max_tokens, self._headers())
        except LoadError as error:
            said, refused = f"the load test of {self.url} failed: {error}", "the server answered 4"
            raise self._failed(said, may_end=not str(error).startswith(refused)) from error
        self.loads.append(result)
        return result

    def metrics(self) -> str:
        """vLLM's ``/metrics``, in Prometheus's text format."""
        return self._asked("GET", "/metrics").text

    def watch(self, *, every: float = 0.25) -> "Watch":
        """A ``with`` block in which ranks' memory and KV blocks are looked at ``every`` so many seconds."""
        from localai_clusters.monitor import Watch

        return Watch(self, every)

    def matrices(self) -> "Matrices":
        """Which matrices each running rank holds and how they are cut, as the ranks themselves wrote it."""
        from localai_clusters.matrices import matrices

        return matrices(self.run, self.model, f"{self.plan.model}, {self.plan.label}")

    def to_dict(self) -> dict[str, Any]:
        return {
            "run_id": self.run.id,
            "url": self.url,
            "plan": self.plan.to_dict(),
            "seconds_to_ready": self.seconds_to_ready,
            "logs": str(self.run.dir),
            "memory": [asdict(rank) for rank in self.memory().ranks],
        }

    def is_running(self) -> bool:
        return self.run.is_running()

    def stop(self) -> None:
        """End every process of this server. Harmless when it has stopped already."""
        if self.seconds_serving is None:
            self.seconds_serving = time.time() - self.run.started_at - self.seconds_to_ready
        try:
            if self.is_running():
                self._measured()
        finally:  # whatever looking at the memory meets, a Ctrl-C too
            self._stop()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "running" if self.is_running() else "stopped"
        return f"<Server {self.plan.model} {self.plan.label} at {self.url}, {state}, run {self.run.id}>"

    def _headers(self) -> dict[str, str]:
        return {name: value for name, value in self._client.headers.items() if name == "authorization"}

    def _post(self, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], float]:
        body = {"model": self.plan.served_name, "temperature": 0.0, "return_token_ids": True, **body}
        started = time.perf_counter()
        answer = self._asked("POST", path, json=body)
        return answer.json(), time.perf_counter() - started

    def _asked(self, method: str, path: str, **request: Any) -> httpx.Response:
        if self._client.is_closed:
            raise ServerError("this server was stopped and its connection is closed; serve the plan again")
        try:
            answer = self._client.request(method, path, **request)
        except httpx.TransportError as error:
            said = f"no answer from {self.url}{path}: {error}"
            raise self._failed(said, may_end=not isinstance(error, httpx.TimeoutException)) from error
        if answer.status_code != 200:
            words = server_words(answer.text)
            raise self._failed(f"the server answered {answer.status_code}: {words}", may_end=DEAD_ENGINE in words)
        return answer

    def _failed(self, said: str, *, may_end: bool) -> ServerError:
        """For a request that failed: why the server is gone, if it is or ``may_end`` and does so, else ``said``."""
        deadline = time.monotonic() + (SECONDS_TO_END if may_end and not self._client.is_closed else 0.0)
        while self.is_running() and time.monotonic() < deadline:
            time.sleep(0.05)
        return ServerError(said) if self._client.is_closed or self.is_running() else self._gone()

    def _gone(self) -> ServerError:
        return ServerError(f"the server is gone: {why_in_short(self.run)}")

    def _keep(self, prompt, text, choice, logprobs, seconds, form, prompt_token_ids, body) -> Completion:
        completion = Completion(
            prompt=prompt,
            text=text,
            token_ids=tuple(choice.get("token_ids") or ()),
            logprobs=tuple(min(value, 0.0) for value in logprobs),  # rounding can leave one just above 0
            finish_reason=choice["finish_reason"],
            seconds=seconds,
            form=form,
            prompt_token_ids=tuple(prompt_token_ids or ()),
            temperature=float(body.get("temperature", 0.0)),
            max_tokens=body["max_tokens"],
        )
        self.completions.append(completion)
        return completion


def serve(
    plan: ServePlan,
    *,
    nodes: "Nodes | None" = None,
    api_key: str | None = None,
    skip_checks: Sequence[str] = (),
    on_progress: Callable[[str], None] | None = None,
    on_start: Callable[["Server"], None] | None = None,
) -> Server:
    """Launch ``plan`` on this machine and wait until it answers.

    A plan for several nodes starts node 0 here and waits for the others, which ``join`` or the commands of
    ``plan.serve_command`` start on their machines; with ``nodes`` (``launch.nodes.up``) all of them are started
    inside those. ``skip_checks`` names preflight checks whose failure is to be met for real. Beyond loopback the
    server asks for a key: ``api_key``, or one that is made and found in ``Server.api_key``. ``on_start`` is given the
    server as soon as its processes are started, long before it answers. Raises
    ``PreflightError`` before anything starts if another check fails, ``ModelError`` if the model cannot be had,
    and ``LaunchError`` if the ranks do not come up; nothing of the run is left then.
    """
    line = ProgressLine()
    show = on_progress or line
    if nodes is not None:
        plan = plan_on(plan, nodes)
    if not api_key and not plan.is_loopback:
        api_key = secrets.token_urlsafe(24)
    plan, model, report = prepare(plan, show, skip_checks, api_key=api_key, **place_of(nodes))
    run = Run(plan, {"VLLM_API_KEY": api_key} if api_key else {}, nodes=nodes)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    client = httpx.Client(base_url=base_url(plan), headers=headers, timeout=SECONDS_TO_ANSWER)
    server = Server(run, model, report, client, api_key)
    try:
        if on_start:
            on_start(server)
        seconds = wait_until_ready(
            run, serving(client, plan.served_name), lambda ranks, elapsed: show(startup_text(ranks, elapsed, run.plan))
        )
    except BaseException:  # a Ctrl-C too
        server._stop()
        raise
    server.seconds_to_ready = seconds
    text = f"{plan.model} {plan.label} is ready at {server.url} after {seconds:.1f} s"
    show(text) if on_progress else line.done(text)
    return server


def join(
    plan: ServePlan,
    node_rank: int,
    *,
    skip_checks: Sequence[str] = (),
    on_progress: Callable[[str], None] | None = None,
) -> Run:
    """Start the share of ``plan`` that belongs to node ``node_rank``, not 0, and wait until its ranks follow rank 0.

    The plan must be node 0's own. Returns the run, to be ended with ``Run.stop``; raises as ``serve`` does.
    """
    plan.check_node_rank(node_rank)
    if node_rank == 0:
        raise ValueError("node 0 holds the server: serve(plan)")
    line = ProgressLine()
    show = on_progress or line
    plan, _, _ = prepare(plan, show, skip_checks, node_rank=node_rank)
    run = Run(plan, node_rank=node_rank)
    try:
        seconds = wait_until_ready(run, following, lambda ranks, elapsed: show(startup_text(ranks, elapsed, run.plan)))
    except BaseException:
        run.stop()
        raise
    text = f"{plan.model} {plan.label}: node {node_rank} follows {plan.master_addr} after {seconds:.1f} s"
    show(text) if on_progress else line.done(text)
    return run


def prepare(
    plan: ServePlan, show: Callable[[str], None], skip_checks: Sequence[str], **place: Any
) -> tuple[ServePlan, Model, Report]:
    """Check the plan, find or build the model, and settle what was left open: (the plan to run, its model, the report).

    ``place`` says which node this machine is, as for ``preflight``.
    """
    preflight(plan, **place).raise_if_failed(tuple(skip_checks))
    model = find(plan.model, on_progress=show)
    plan = with_ports(settle(plan, model.shape, Machine.now()))
    report = preflight(plan, **place)
    report.raise_if_failed(tuple(skip_checks))
    return plan, model, report


def base_url(plan: ServePlan) -> str:
    """Where this machine reaches the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(plan.host, plan.host)
    return f"http://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{plan.port}"


def _stop(run: Run, client: httpx.Client) -> None:
    client.close()
    run.stop()
