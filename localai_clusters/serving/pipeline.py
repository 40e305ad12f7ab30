"""Pipeline stages that compute at the same time, each on a batch of its own.

Under torchrun vLLM 0.32 lets the last stage broadcast its logits within the step, and every stage waits for them: one
stage computes at a time (its own remark: "TODO: Support overlapping micro-batches", gpu_model_runner.py). Its engine,
though, already keeps as many batches in flight as there are stages, and takes a batch's tokens only when it needs them.
So here a stage hands on its hidden states and goes on, the last stage alone samples, and its tokens come back through
a queue when the engine asks for that batch's result::

    stage 0    A | B | A'         A' needs A's tokens, which are back by then
    stage 1        | A | B | A'

The ranks still take the same turns: which batch is scheduled and whose result is taken depends on the turn alone.
"""

import copy
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from vllm.distributed.parallel_state import get_pp_group
from vllm.v1.executor.uniproc_executor import UniProcExecutor


class Received(Future):
    """The last stage's result for one batch, taken from the queue when it is asked for: in the order of the batches."""

    def __init__(self, receive: Callable[[], Any]):
        super().__init__()
        self._receive = receive

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            self.set_result(self._receive())
        return super().result(timeout)


class Pipeline:
    """This rank's part in sharing the last stage's results. Every rank of the job must make one at the same time."""

    def __init__(self, executor: UniProcExecutor):
        stages = get_pp_group()
        worker = executor.driver_worker.worker
        worker.model_runner.broadcast_pp_output = False
        # The worker sends its hidden states on unless it is told that its runner has done so.
        worker.vllm_config = copy.copy(worker.vllm_config)
        worker.vllm_config.parallel_config = copy.copy(worker.vllm_config.parallel_config)
        worker.vllm_config.parallel_config.distributed_executor_backend = "uni"
        self._is_last = stages.is_last_rank
        self._results = stages.create_mq_broadcaster(writer_rank=stages.world_size - 1)

    def share(self, own: Any, non_block: bool) -> Any:
        """``own`` is what this stage's ``sample_tokens`` gave; returns the last stage's, or its future."""
        if self._is_last:
            self._results.enqueue(own.result() if non_block else own)
            return own
        received = Received(lambda: self._results.dequeue(indefinite=True))
        return received if non_block else received.result()
