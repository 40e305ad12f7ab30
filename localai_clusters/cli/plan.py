"""doctor, preflight, serve: what one plan would do, and doing it."""

import json
import sys
import time

import click

from localai_clusters.cli.verbs import DOES_NOT_HOLD, HOLDS, as_json, main, show, stop
from localai_clusters.plan import ServePlan


def plan_options(function):
    """vLLM's and torchrun's own flags for a plan."""
    for option in reversed(
        (
            click.option("--model", default="smollm2-135m", show_default=True, help="Built-in name, folder or HF id."),
            click.option("--tensor-parallel-size", "-tp", type=int, default=1, show_default=True),
            click.option("--pipeline-parallel-size", "-pp", type=int, default=1, show_default=True),
            click.option("--dtype", default="auto", show_default=True, help="auto, bfloat16, float16 or float32."),
            click.option("--max-model-len", type=int, help="Longest request, in tokens."),
            click.option("--gpu-memory-utilization", type=float, help="Share of each GPU's memory for vLLM."),
            click.option("--kv-cache-memory-bytes", type=int, help="KV cache of each rank, in bytes."),
            click.option("--quantization", "-q", help="Quantization method, if not the checkpoint's own."),
            click.option("--host", default="127.0.0.1", show_default=True),
            click.option("--port", type=int, default=8000, show_default=True, help="0: any free port."),
            click.option("--nnodes", type=int, default=1, show_default=True),
            click.option("--nproc-per-node", type=int, help="Ranks per node; follows from the split."),
            click.option("--master-addr", default="127.0.0.1", show_default=True),
            click.option("--master-port", type=int, default=29500, show_default=True, help="0: any free port."),
            click.option("--rdzv-backend", default="static", show_default=True, help="How nodes meet: static or c10d."),
            click.option("--api-key", envvar="VLLM_API_KEY", help="Asked of every client; needed beyond loopback."),
            click.argument("extra_args", nargs=-1, type=click.UNPROCESSED),
        )
    ):
        function = option(function)
    return function


@main.command()
@as_json
def doctor(json_: bool) -> None:
    """What this machine is and can serve.

    Example:  localai-clusters doctor
    """
    from localai_clusters.doctor import examine_machine

    diagnosis = examine_machine()
    show(diagnosis, json_)
    sys.exit(HOLDS if diagnosis.ok else DOES_NOT_HOLD)


def node_rank_option(function):
    return click.option(
        "--node-rank", type=int, default=0, show_default=True, help="Which node of the plan this machine is."
    )(function)


def on_nodes_option(function):
    return click.option("--on-nodes", is_flag=True, help="On the nodes of this machine that `nodes up` made.")(function)


def nodes_of_this_machine():
    """The nodes that ``--on-nodes`` means; ``ValueError`` if none are up."""
    from localai_clusters.launch import nodes as local_nodes

    found = local_nodes.current()
    if found is None:
        raise ValueError("no nodes are up on this machine; localai-clusters nodes up")
    return found


@main.command()
@plan_options
@node_rank_option
@on_nodes_option
@click.option("--live", is_flag=True, help="Start the ranks for some seconds too, without vLLM.")
@click.option("--wait", type=float, metavar="SECONDS", help="With --live: how long other nodes may take to answer.")
@click.option("--skip-check", multiple=True, metavar="CHECK", help="With --live: start although this check fails.")
@as_json
def preflight(
    json_: bool, node_rank: int, on_nodes: bool, live: bool, wait: float | None, skip_check: tuple[str, ...],
    api_key: str | None, **plan
) -> None:
    """Check a plan; start nothing, or with --live its ranks for some seconds.

    --live says who answers from where, whether the all-reduce is right, and what a message costs. For several machines
    run it on each, with the same flags and its own --node-rank.

    \b
    Example:  localai-clusters preflight --model smollm2-135m-published -tp 2
              localai-clusters preflight --live -tp 2
    """
    from localai_clusters.preflight import preflight as check

    plan = ServePlan(**plan)
    nodes = nodes_of_this_machine() if on_nodes else None
    if live:
        from localai_clusters.launch.live import live as start
        from localai_clusters.signals import as_interrupt

        with as_interrupt():
            report = start(
                plan, nodes=nodes, node_rank=node_rank, api_key=api_key, wait=wait, skip_checks=skip_check
            )
    elif nodes:
        from localai_clusters.launch.placing import place_of, plan_on

        report = check(plan_on(plan, nodes), api_key=api_key, node_rank=node_rank, **place_of(nodes))
    else:
        report = check(plan, api_key=api_key, node_rank=node_rank)
    show(report, json_)
    sys.exit(HOLDS if report.ok else DOES_NOT_HOLD)


@main.command()
@plan_options
@node_rank_option
@on_nodes_option
@click.option("--skip-check", multiple=True, metavar="CHECK", help="Launch although this check fails.")
@as_json
def serve(
    json_: bool, skip_check: tuple[str, ...], on_nodes: bool, node_rank: int, api_key: str | None, **plan
) -> None:
    """Serve a model with torchrun until Ctrl-C.

    Ctrl-C, SIGTERM or the end of this process leave nothing behind. What follows -- goes to vLLM as it stands.
    For several machines run it on each, with the same flags and its own --node-rank; node 0 prints the commands.

    \b
    Example:  localai-clusters serve -tp 2 --port 8000 -- --seed 1
              localai-clusters serve -tp 2 --nnodes 2 --master-addr 10.0.0.1
    """
    from localai_clusters import server as servers
    from localai_clusters.launch.why import ended_in_order, why_it_ended
    from localai_clusters.signals import as_interrupt

    plan, nodes = ServePlan(**plan), None
    plan.check_node_rank(node_rank)
    if on_nodes and node_rank > 0:
        raise ValueError("--on-nodes starts every node; --node-rank is for other machines, leave one of them out")
    if on_nodes:
        nodes = nodes_of_this_machine()
    elif node_rank == 0 and plan.nnodes > 1:
        servers.preflight(plan, api_key=api_key).raise_if_failed(skip_check)
        plan = servers.with_ports(plan)  # chosen here, for every node must know it
        commands = [plan.serve_command(other) for other in range(1, plan.nnodes)]
        click.echo("\n\n".join(["on the other nodes:", *commands]) + "\n", err=True)
    with as_interrupt():
        if node_rank > 0:
            run = servers.join(plan, node_rank, skip_checks=skip_check)
            stopping = run.stop
        else:
            server = servers.serve(plan, nodes=nodes, api_key=api_key, skip_checks=skip_check)
            run, stopping = server.run, server.stop
        try:
            if node_rank == 0:
                say_what_is_served(server, api_key, json_)
            while run.is_running():
                time.sleep(0.2)
            stop(why_it_ended(run), HOLDS if ended_in_order(run) else DOES_NOT_HOLD)
        finally:
            stopping()


def say_what_is_served(server, given_key: str | None, as_json: bool) -> None:
    for verdict in server.report.verdicts:
        if verdict.status == "warn":
            click.echo(f"warning: {'; '.join(filter(None, (verdict.message, verdict.fix)))}", err=True)
    made_key = None if given_key else server.api_key
    if as_json:
        click.echo(json.dumps(server.to_dict() | ({"api_key": made_key} if made_key else {})))
        return
    click.echo(f"OpenAI API at {server.url}/v1, model {server.plan.served_name}; logs in {server.run.dir}")
    if made_key:
        click.echo(f"API key, shown this once: {made_key}")
    click.echo(f"{server.memory()}\nCtrl-C stops it")
