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

Only the leader's outputs are delivered. A request that the engine refuses is refused by the leader, before
the others hear of it: some refusals depend on a rank's own clock. With every list the leader sends the state
it is in (free KV blocks, a running hash of all that was scheduled and of all tokens), and a rank that is in
another one ends the server: out of step, collectives would mix what belongs to different requests.
"""

import gc
import hashlib
import logging
import queue
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from vllm.config import VllmConfig
from vllm.distributed.parallel_state import get_world_group
from vllm.platforms import current_platform
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.core import EngineCore

from localai_clusters.serving.executor import executor_class, facts
from localai_clusters.serving.heartbeat import Heartbeat
from localai_clusters.serving.process import Progress

if TYPE_CHECKING:
    from localai_clusters.serving.client import LockstepClient

logger = logging.getLogger("vllm.localai_clusters.lockstep")

Operation = tuple[str, Any]  # ("add", request) | ("abort", ids) | ("call", (id, method, args)) | ("stop", None)


class RanksDisagree(RuntimeError):
    """A rank's engine is in another state than rank 0's."""


class State(NamedTuple):
    """What must be equal on all ranks before each list of operations."""

    turn: int  # lists applied so far
    free_blocks: int  # of the KV cache
    history: bytes  # running hash of what was scheduled, on which KV blocks, and of every token that came out


class Lockstep:
    """The engine of one rank: operations go in, a step at a time comes out."""

    def __init__(self, config: VllmConfig, progress: Progress, heartbeat: Heartbeat, log_stats: bool):
        progress.report("build")
        self.core = EngineCore(config, executor_class(progress), log_stats)
        world = get_world_group()
        self.queue = world.create_mq_broadcaster(writer_rank=0) if world.world_size > 1 else None
        if current_platform.is_cpu() and config.parallel_config.pipeline_parallel_size > 1:
            self.core.model_executor.overlap_stages()  # not on GPUs: never run there
        self.heartbeat = heartbeat
        self._blocks = self.core.scheduler.kv_cache_manager.block_pool
        self._turn, self._history = 0, b""
        self._prepared: dict[str, tuple] = {}
        self._note_what_is_scheduled()
        gc.enable()  # see process.start
        heartbeat.built()
        report_engines(progress, facts(self.core))

    def state(self) -> State:
        return State(self._turn, self._blocks.get_num_free_blocks(), self._history)

    def check(self, leader: State) -> None:
        """Raises ``RanksDisagree`` unless this rank is in the leader's state."""
        own = self.state()
        if own == leader:
            return
        raise RanksDisagree(
            f"out of step with rank 0 after {leader.turn} steps: {own.turn} steps here, "
            f"{own.free_blocks} free KV blocks here and {leader.free_blocks} there, "
            f"{'the same' if own.history == leader.history else 'another'} history of batches, blocks and tokens"
        )

    def _note_what_is_scheduled(self) -> None:
        """Blocks freed in another order show in no count; they show when they are given out again."""
        schedule = self.core.scheduler.schedule

        def noted(*args, **kwargs):
            output = schedule(*args, **kwargs)
            new, running = output.scheduled_new_reqs, output.scheduled_cached_reqs
            self._note(output.num_scheduled_tokens, [one.block_ids for one in new], running.new_block_ids)
            return output

        self.core.scheduler.schedule = noted

    def _note(self, *facts: Any) -> None:
        self._history = hashlib.blake2b(self._history + repr(facts).encode(), digest_size=8).digest()

    def begin(self) -> None:
        self._turn += 1
        self.heartbeat.step_begins(self._turn)

    def has_work(self) -> bool:
        return self.core.scheduler.has_requests() or bool(self.core.batch_queue)

    def step(self) -> dict[int, EngineCoreOutputs]:
        outputs, executed = self.core.step_fn()
        self.core.post_step(executed)
        outputs = outputs or {}
        came_out = [output for delivered in outputs.values() for output in delivered.outputs]
        for output in came_out:
            self._note(output.request_id, output.new_token_ids)
        if not executed and not came_out and self.core.scheduler.has_requests():
            time.sleep(0.001)  # a KV connector is moving blocks: let its threads run
        return outputs

    def prepare(self, request: EngineCoreRequest) -> None:
        """Do for ``request`` what needs no other rank, as compiling its grammar; raises if the engine refuses it."""
        prepared = self.core.preprocess_add_request(request)
        structured = prepared[0].structured_output_request
        if structured is not None and isinstance(structured.grammar, Exception):
            raise structured.grammar
        self._prepared[request.request_id] = prepared

    def apply(self, operation: Operation) -> Any:
        """Apply one operation. ``RanksDisagree`` is fatal; whatever else it raises is the same on every rank."""
        kind, payload = operation
        if kind == "add":
            if payload.request_id not in self._prepared:
                try:
                    self.prepare(payload)
                except Exception as error:
                    raise RanksDisagree(f"refused a request that rank 0 has taken: {error}") from error
            self.core.add_request(*self._prepared.pop(payload.request_id))
        elif kind == "abort":
            for request_id in payload:  # vLLM frees several in the order of a set, which each process orders otherwise
                self.core.abort_requests([request_id])
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
            except RanksDisagree:
                raise
            except Exception:
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
        operations = [one for one in self._take(wait=not lockstep.has_work()) if self._admits(lockstep, one)]
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

    def _admits(self, lockstep: Lockstep, operation: Operation) -> bool:
        """Whether the ranks shall hear of ``operation``: not of a request that the engine refuses."""
        kind, payload = operation
        if kind != "add":
            return True
        try:
            lockstep.prepare(payload)
        except Exception:
            logger.exception("the engine refused a request")
            self._client.deliver(ended([payload.request_id], FinishReason.ERROR))
            return False
        return True

    def _apply(self, lockstep: Lockstep, operation: Operation) -> None:
        kind, payload = operation
        running = list(lockstep.core.scheduler.requests) if kind == "call" else []
        result = error = None
        try:
            result = lockstep.apply(operation)
        except Exception as exception:
            logger.exception("the engine refused: %s", kind)
            error = exception
        if kind == "add" and error is not None:
            self._client.deliver(ended([payload.request_id], FinishReason.ERROR))
        elif kind == "call":
            # A call can end requests (/pause, /sleep); in vLLM its engine process tells their clients, here the leader.
            gone = [request_id for request_id in running if request_id not in lockstep.core.scheduler.requests]
            if gone:
                self._client.deliver(ended(gone, FinishReason.ABORT))
            self._client.deliver_result(payload[0], result, error)


def ended(request_ids: Iterable[str], reason: FinishReason) -> EngineCoreOutputs:
    """The output that ends requests without a token, as vLLM's own engine process sends it."""
    outputs = [EngineCoreOutput(request_id=one, new_token_ids=[], finish_reason=reason) for one in request_ids]
    return EngineCoreOutputs(outputs=outputs, finished_requests={output.request_id for output in outputs})
