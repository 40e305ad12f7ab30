"""One vLLM engine per rank, all taking the same steps.

vLLM's ``external_launcher`` backend puts a whole engine, scheduler included, on every torchrun rank.
The ranks' collectives only meet if every scheduler decides the same, so every engine must see the
same operations in the same order. Rank 0 (the leader) serves HTTP: it collects what its server
asks for, broadcasts it as one list per step, and every rank applies the list and takes one step::

    HTTP -> LockstepClient -> Leader --broadcast--> follow()   on ranks 1, 2, ...
                                |                      |
                              apply, step            apply, step     (collectives meet here)
                                |
    HTTP <- outputs <-----------+

Only the leader's outputs are delivered. An operation that the engine refuses is refused on every
rank alike, before it touches the scheduler. With every list the leader sends the state it is in (free
KV blocks, a running hash of all tokens so far), and a rank that is in another one ends the server: out
of step, collectives would mix what belongs to different requests.
"""

import asyncio
import gc
import hashlib
import logging
import queue
import threading
import time
import uuid
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from vllm.config import VllmConfig
from vllm.distributed.parallel_state import get_world_group
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.core import EngineCore
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.engine.exceptions import EngineDeadError

from localai_clusters.serving.executor import executor_class, facts
from localai_clusters.serving.heartbeat import Heartbeat
from localai_clusters.serving.process import Progress

logger = logging.getLogger("vllm.localai_clusters.lockstep")

Operation = tuple[str, Any]  # ("add", request) | ("abort", ids) | ("call", (id, method, args)) | ("stop", None)
SECONDS_TO_STOP = 1.5  # the launcher waits 5 s for everything


class RanksDisagree(RuntimeError):
    """A rank's engine is in another state than rank 0's."""


class State(NamedTuple):
    """What must be equal on all ranks before each list of operations."""

    turn: int  # lists applied so far
    free_blocks: int  # of the KV cache
    tokens: bytes  # running hash of every request id and token that came out


class Lockstep:
    """The engine of one rank: operations go in, a step at a time comes out."""

    def __init__(self, config: VllmConfig, progress: Progress, heartbeat: Heartbeat, log_stats: bool):
        self.core = EngineCore(config, executor_class(progress, heartbeat), log_stats)
        world = get_world_group()
        self.queue = world.create_mq_broadcaster(writer_rank=0) if world.world_size > 1 else None
        self.heartbeat = heartbeat
        self._blocks = self.core.scheduler.kv_cache_manager.block_pool
        self._turn, self._tokens = 0, b""
        gc.enable()  # see process.start
        heartbeat.built()
        report_engines(progress, facts(self.core))

    def state(self) -> State:
        return State(self._turn, self._blocks.get_num_free_blocks(), self._tokens)

    def check(self, leader: State) -> None:
        """Raises ``RanksDisagree`` unless this rank is in the leader's state."""
        own = self.state()
        if own == leader:
            return
        raise RanksDisagree(
            f"out of step with rank 0 after {leader.turn} steps: {own.turn} steps here, "
            f"{own.free_blocks} free KV blocks here and {leader.free_blocks} there, "
            f"{'the same' if own.tokens == leader.tokens else 'different'} tokens so far"
        )

    def begin(self) -> None:
        self._turn += 1
        self.heartbeat.step_begins(self._turn)

    def has_work(self) -> bool:
        return self.core.scheduler.has_requests() or bool(self.core.batch_queue)

    def step(self) -> dict[int, EngineCoreOutputs]:
        outputs, executed = self.core.step_fn()
        self.core.post_step(executed)
        if not executed and self.core.scheduler.has_requests():
            time.sleep(0.001)  # a KV connector is moving blocks: let its threads run
        outputs = outputs or {}
        for delivered in outputs.values():
            for output in delivered.outputs:
                text = f"{output.request_id}{output.new_token_ids}"
                self._tokens = hashlib.blake2b(self._tokens + text.encode(), digest_size=8).digest()
        return outputs

    def apply(self, operation: Operation) -> Any:
        """Apply one operation; what a refused one raises is the same on every rank."""
        kind, payload = operation
        if kind == "add":
            self.core.add_request(*self.core.preprocess_add_request(payload))
        elif kind == "abort":
            self.core.abort_requests(payload)
        elif kind == "call":
            _, method, args = payload
            return getattr(self.core, method)(*args)
        return None


def report_engines(progress: Progress, own: dict[str, Any]) -> None:
    """Report this rank's engine; rank 0 also those of other nodes, whose files its launcher cannot read."""
    world, rank = get_world_group(), progress.rank
    everyone: list[Any] = [None] * world.world_size
    torch.distributed.all_gather_object(everyone, (rank.rank, rank.node_rank, own), group=world.cpu_group)
    progress.report("engine", **own)
    if rank.rank == 0:
        for number, node_rank, engine in everyone:
            if node_rank != rank.node_rank:
                progress.report_remote(number, node_rank=node_rank, **engine)


def follow(config: VllmConfig, progress: Progress, heartbeat: Heartbeat) -> None:
    """Ranks other than 0: do what the leader broadcasts until it says stop."""
    lockstep = Lockstep(config, progress, heartbeat, log_stats=False)
    progress.report("ready")
    while True:
        state, operations = lockstep.queue.dequeue(indefinite=True)
        lockstep.check(State(*state))
        lockstep.begin()
        for operation in operations:
            if operation[0] == "stop":
                return
            try:
                lockstep.apply(operation)
            except Exception:  # refused on the leader too, which answers the client
                logger.info("%s refused, as on rank 0", operation[0])
        if lockstep.has_work():
            lockstep.step()
        heartbeat.step_ends()


class Leader(threading.Thread):
    """Rank 0's engine thread. The engine is built in it: CUDA's current device belongs to a thread."""

    def __init__(
        self,
        config: VllmConfig,
        progress: Progress,
        heartbeat: Heartbeat,
        log_stats: bool,
        client: "LockstepClient",
    ):
        super().__init__(name="lockstep-leader", daemon=True)
        self.operations: queue.SimpleQueue[Operation] = queue.SimpleQueue()
        self.built = threading.Event()
        self.error: BaseException | None = None
        self._build = lambda: Lockstep(config, progress, heartbeat, log_stats)
        self._client, self._heartbeat = client, heartbeat

    def run(self) -> None:
        try:
            lockstep = self._build()
            self.built.set()
            while self._turn(lockstep):
                pass
        except BaseException as error:
            logger.exception("the engine of rank 0 failed")
            self.error = error
            self._heartbeat.failed(f"{type(error).__name__}: {error}")
            self._client.deliver_error()
        finally:
            self.built.set()

    def _turn(self, lockstep: Lockstep) -> bool:
        """One list of operations, broadcast and applied, and one step. False when it was told to stop."""
        operations = self._take(wait=not lockstep.has_work())
        state = lockstep.state()
        lockstep.begin()
        if lockstep.queue is not None:
            lockstep.queue.enqueue((tuple(state), operations))
        for operation in operations:
            if operation[0] == "stop":
                return False
            self._apply(lockstep, operation)
        if lockstep.has_work():
            for outputs in lockstep.step().values():
                self._client.deliver(outputs)
        self._heartbeat.step_ends()
        return True

    def _take(self, wait: bool) -> list[Operation]:
        operations = [self.operations.get()] if wait else []
        while True:
            try:
                operations.append(self.operations.get_nowait())
            except queue.Empty:
                return operations

    def _apply(self, lockstep: Lockstep, operation: Operation) -> None:
        kind, payload = operation
        result = error = None
        try:
            result = lockstep.apply(operation)
        except Exception as exception:
            logger.exception("the engine refused: %s", kind)
            error = exception
        if kind == "call":
            self._client.deliver_result(payload[0], result, error)
        elif kind == "add" and error is not None:
            self._client.deliver(refusal(payload))


def refusal(request: EngineCoreRequest) -> EngineCoreOutputs:
    """The output that ends one request with an error, as vLLM's own engine process sends it."""
    output = EngineCoreOutput(request_id=request.request_id, new_token_ids=[], finish_reason=FinishReason.ERROR)
    return EngineCoreOutputs(outputs=[output], finished_requests={request.request_id})


class LockstepClient(AsyncMPClient):
    """What vLLM's AsyncLLM talks to: as AsyncMPClient, with the engine in a thread instead of a process.

    ``AsyncMPClient.__init__`` starts processes and sockets and is not called; every method that it
    offers ends in one of the few overridden here.
    """

    def __init__(self, config: VllmConfig, progress: Progress, heartbeat: Heartbeat, log_stats: bool, renderer=None):
        self.vllm_config = config
        self.engine_ranks_managed = [0]
        self.core_engine = b"\0\0"
        self.core_engines = [self.core_engine]
        self.client_index = 0
        self.engines_running = False
        self.utility_results: dict[int, asyncio.Future] = {}
        self.resources = SimpleNamespace(engine_dead=False)
        self._kv_event_sources: dict = {}
        self._engine_status: dict = {}
        self.outputs_queue: asyncio.Queue[EngineCoreOutputs | Exception] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        if renderer is not None:
            renderer.start_mm_warmup_in_background()
        self._progress, self._heartbeat, self._served = progress, heartbeat, False
        self.leader = Leader(config, progress, heartbeat, log_stats, self)
        self.leader.start()
        while not self.leader.built.wait(timeout=0.2):  # short waits let a SIGTERM be handled
            pass
        if self.leader.error is not None:
            raise self.leader.error

    # Called on the engine thread.
    def deliver(self, outputs: EngineCoreOutputs) -> None:
        if not self._served:
            self._served = True
            self._progress.report("ready")
        if outputs.outputs or outputs.scheduler_stats:
            self._loop.call_soon_threadsafe(self.outputs_queue.put_nowait, outputs)

    def deliver_result(self, call_id: int, result: Any, error: Exception | None) -> None:
        def settle() -> None:
            future = self.utility_results.pop(call_id)
            if future.done():  # its caller gave up
                return
            future.set_exception(error) if error else future.set_result(result)

        self._loop.call_soon_threadsafe(settle)

    def deliver_error(self) -> None:
        """Answer everyone who waits, and everyone who will ask, with vLLM's error for a dead engine."""

        def fail() -> None:
            self.outputs_queue.put_nowait(EngineDeadError())
            for future in self.utility_results.values():  # or whoever called would wait for ever
                if not future.done():
                    future.set_exception(EngineDeadError())

        self.resources.engine_dead = True
        self._loop.call_soon_threadsafe(fail)

    # Called by AsyncLLM on the event loop.
    async def get_output_async(self) -> EngineCoreOutputs:
        outputs = await self.outputs_queue.get()
        if isinstance(outputs, Exception):
            raise outputs
        return outputs

    def ensure_alive(self) -> None:
        if self.resources.engine_dead:
            raise EngineDeadError()

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        self.ensure_alive()
        request.client_index = self.client_index
        self.leader.operations.put(("add", request))

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        if request_ids and not self.resources.engine_dead:
            self.leader.operations.put(("abort", request_ids))

    async def _call_utility_async(self, method: str, *args, engine: bytes | None = None) -> Any:
        self.ensure_alive()
        call_id = uuid.uuid4().int
        future = self.utility_results[call_id] = self._loop.create_future()
        self.leader.operations.put(("call", (call_id, method, args)))
        return await future

    def shutdown(self, timeout: float | None = None) -> None:
        """Tell every rank to stop. Bounded: a rank that died leaves the others inside a collective."""
        self._heartbeat.stop()
        self.leader.operations.put(("stop", None))
        self.leader.join(timeout=SECONDS_TO_STOP)
