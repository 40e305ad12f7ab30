"""What vLLM's HTTP server talks to: vLLM's own client of an engine process, with the leader's thread in its place."""

import asyncio
import threading
import uuid
from types import SimpleNamespace
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.engine.exceptions import EngineDeadError

from localai_clusters.serving.heartbeat import Heartbeat
from localai_clusters.serving.lockstep import Leader
from localai_clusters.serving.process import Progress

SECONDS_TO_STOP = 1.5  # the launcher waits 5 s for everything
SECONDS_TO_TELL = 0.5


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
        self._told = threading.Event()
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
            self._told.set()
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
        """Tell every rank to stop, and whoever waits for tokens that none will come, or HTTP would wait with them.

        Bounded: a rank that died leaves the others inside a collective.
        """
        self._heartbeat.stop()
        self.leader.operations.put(("stop", None))
        self.deliver_error()
        self._told.wait(timeout=SECONDS_TO_TELL)  # vLLM cancels the task that passes it on once this returns
        self.leader.join(timeout=SECONDS_TO_STOP)
