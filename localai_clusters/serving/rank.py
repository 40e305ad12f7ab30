"""One rank of a torchrun job that serves a model with vLLM::

    torchrun --nproc-per-node=2 -m localai_clusters.serving.rank --model FOLDER --tensor-parallel-size 2 --port 8000

Takes ``vllm serve``'s own flags. Every rank builds its engine; rank 0 also runs vLLM's OpenAI server.
"""

import argparse
import contextlib
import logging
import os
import socket
import sys
import time
from datetime import timedelta

from localai_clusters.machine import installed_backend
from localai_clusters.models import BUILT_IN, find
from localai_clusters.serving.heartbeat import CONNECT_SECONDS, NETWORK_SECONDS, Heartbeat
from localai_clusters.serving.process import Progress, Rank, start

EXIT_LOST_PEER = 69  # BSD's EX_UNAVAILABLE
SECONDS_TO_ANSWER = 1.0  # for the answers to clients of an engine that lost a rank


def parse(argv: list[str], world_size: int, progress: Progress) -> argparse.Namespace:
    """vLLM's serve flags, set for torchrun. ``ValueError`` if the split and the world size differ."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    progress.report("flags")
    parser = make_arg_parser(FlexibleArgumentParser(prog="localai_clusters.serving.rank"))
    args = parser.parse_args(argv)
    tensor, pipeline = args.tensor_parallel_size, args.pipeline_parallel_size
    if tensor * pipeline != world_size:
        raise ValueError(
            f"torchrun started {world_size} ranks, but tensor parallel size {tensor} x pipeline parallel size "
            f"{pipeline} = {tensor * pipeline}. Make --nnodes x --nproc-per-node equal to {tensor * pipeline}."
        )
    if args.model in BUILT_IN:
        args.served_model_name = args.served_model_name or [args.model]
        args.model = str(find(args.model).path)
    args.distributed_executor_backend = "external_launcher"
    if installed_backend() == "cpu" and args.compilation_config == parser.get_default("compilation_config"):
        from vllm.config import CompilationConfig, CompilationMode
        from vllm.config.kernel import IrOpPriorityConfig

        from localai_clusters.serving import cpu_kernels

        # No compilation starts soonest. Without it, vLLM's operators need no wrapping for a compiler to see.
        args.compilation_config = CompilationConfig(mode=CompilationMode.NONE, ir_enable_torch_wrap=False)
        if args.ir_op_priority == parser.get_default("ir_op_priority"):
            args.ir_op_priority = IrOpPriorityConfig(**cpu_kernels.IR_OP_PRIORITY)
        cpu_kernels.register()
    validate_parsed_serve_args(args)
    return args


def lead(args: argparse.Namespace, progress: Progress, heartbeat: Heartbeat) -> int:
    """Rank 0: vLLM's own server, on an engine that leads the other ranks."""
    import uvloop
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.entry import run_server
    from vllm.v1.engine.core_client import EngineCoreClient

    from localai_clusters.serving.client import LockstepClient

    clients: list[LockstepClient] = []
    create_config = AsyncEngineArgs.create_engine_config

    def reported_config(*args, **kwargs):
        progress.report("config")
        config = create_config(*args, **kwargs)
        progress.report("tokenizer")  # AsyncLLM's own, before it asks for a client
        return config

    def make_client(vllm_config, executor_class, log_stats, *_, renderer=None, **__) -> LockstepClient:
        clients.append(LockstepClient(vllm_config, progress, heartbeat, log_stats, renderer))
        heartbeat.on_loss = lambda problem: lose(progress, problem, clients[-1])
        progress.report("http")
        return clients[-1]

    AsyncEngineArgs.create_engine_config = reported_config
    EngineCoreClient.make_async_mp_client = staticmethod(make_client)
    progress.report("listen")
    uvloop.run(run_server(args))
    return 1 if not clients or clients[0].leader.error else 0


def follow(args: argparse.Namespace, progress: Progress, heartbeat: Heartbeat) -> int:
    """Every other rank: the same configuration, the leader's operations."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    from localai_clusters.serving import lockstep

    progress.report("config")
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    lockstep.follow(config, progress, heartbeat)
    return 0


def torchrun_store():
    """A connection of our own to the store by which torchrun's agents met."""
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:  # the store is there, for the agents have met; torch would try for minutes
        socket.create_connection((address, port), timeout=NETWORK_SECONDS).close()
    except OSError as error:
        problem = f"{address}:{port} is out of reach: the network between the nodes does not answer"
        raise ConnectionError(f"{problem} ({error})") from error
    return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=CONNECT_SECONDS))


def lose(progress: Progress, problem: str, client=None) -> None:
    """End this process because of a lost rank, for the engine may wait for it for ever; clients get an error first."""
    with contextlib.suppress(OSError):
        print(f"ending: {problem}", file=sys.stderr, flush=True)
        progress.report("failed", lost=problem)
    if client is not None:
        client.deliver_error()
        time.sleep(SECONDS_TO_ANSWER)
    os._exit(EXIT_LOST_PEER)


def run(argv: list[str], rank: Rank, progress: Progress, heartbeat: Heartbeat) -> int:
    """This rank's whole life; returns its exit code (2: the command does not add up)."""
    progress.report("import")
    if rank.world_size > 1:
        heartbeat.start(torchrun_store())
    try:
        args = parse(argv, rank.world_size, progress)
    except ValueError as error:
        print(f"rank {rank.rank}: {error}", file=sys.stderr)
        return 2
    if rank.rank == 0:
        return lead(args, progress, heartbeat)
    return follow(args, progress, heartbeat)


def main() -> None:
    try:
        rank, progress = start()
    except ValueError as error:
        sys.exit(str(error))
    code = 1
    heartbeat = Heartbeat(rank, lambda problem: lose(progress, problem))
    try:
        code = run(sys.argv[1:], rank, progress, heartbeat)
    except KeyboardInterrupt:  # what vLLM raises for a SIGTERM during start-up
        code = 130
    except SystemExit as request:  # argparse, for a flag that vLLM does not have
        code = request.code if isinstance(request.code, int) else 1
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk may be what failed
            logging.getLogger("vllm").exception("rank %d failed", rank.rank)
            progress.report("failed", error=f"{type(error).__name__}: {error}"[:2000])
        heartbeat.failed(f"{type(error).__name__}: {error}")
    finally:
        heartbeat.stop()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        # Not sys.exit: a thread inside a collective whose peer is gone would keep the process alive.
        os._exit(code)


if __name__ == "__main__":
    main()
