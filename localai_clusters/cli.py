"""``localai-clusters VERB``: a thin function per verb. Exit code 0: it holds; 1: it does not; 2: undecided."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from localai_clusters import __version__
from localai_clusters.plan import ServePlan

HOLDS, DOES_NOT_HOLD, UNDECIDED = 0, 1, 2


class Verbs(click.Group):
    """Errors that a user can cause end in one message on stderr, never in a traceback."""

    def invoke(self, context: click.Context):
        from localai_clusters.checkpoint import CheckpointError
        from localai_clusters.lab import LabFailed
        from localai_clusters.launch.nodes import NodesError
        from localai_clusters.launch.run import LaunchError
        from localai_clusters.preflight.report import PreflightError

        try:
            return super().invoke(context)
        except LabFailed as error:
            stop(str(error), DOES_NOT_HOLD)
        except PreflightError as error:
            stop(f"this plan cannot be launched\n{error}", DOES_NOT_HOLD)
        except (LaunchError, NodesError) as error:
            stop(str(error), DOES_NOT_HOLD)
        except (CheckpointError, ValueError) as error:
            stop(str(error), UNDECIDED)
        except OSError as error:
            stop(f"{error.filename or ''}: {error.strerror or error}".lstrip(": "), UNDECIDED)
        except KeyboardInterrupt:
            stop("stopped", 130)


def stop(message: str, code: int) -> None:
    click.echo(f"localai-clusters: {message}", err=True)
    sys.exit(code)


def show(thing, as_json: bool) -> None:
    """A rich thing on the terminal, or its data as JSON."""
    if as_json:
        click.echo(json.dumps(thing.to_dict(), indent=2))
    else:
        Console().print(thing)


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


def as_json(function):
    return click.option("--json", "json_", is_flag=True, help="Print JSON.")(function)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """The course companion for "Local AI Clusters".

    Example:  localai-clusters serve -tp 2
    """


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


@main.command()
@plan_options
@node_rank_option
@as_json
def preflight(json_: bool, node_rank: int, api_key: str | None, **plan) -> None:
    """Check a plan; start nothing.

    Example:  localai-clusters preflight --model smollm2-135m-published -tp 2
    """
    from localai_clusters.preflight import preflight as check

    report = check(ServePlan(**plan), api_key=api_key, node_rank=node_rank)
    show(report, json_)
    sys.exit(HOLDS if report.ok else DOES_NOT_HOLD)


@main.command()
@plan_options
@node_rank_option
@click.option("--on-nodes", is_flag=True, help="Serve on the nodes of this machine that `nodes up` made.")
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
        from localai_clusters.launch import nodes as local_nodes

        nodes = local_nodes.current()
        if nodes is None:
            raise ValueError("no nodes are up on this machine; localai-clusters nodes up")
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


@main.command()
@click.argument("name")
@click.option("-p", "--parameter", "parameters", multiple=True, metavar="NAME=VALUE", help="May be repeated.")
@click.option("--list-parameters", is_flag=True, help="Print the parameters and stop.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to put the executed notebook.")
@as_json
def lab(json_: bool, name: str, parameters: tuple[str, ...], list_parameters: bool, output: Path | None) -> None:
    """Run a chapter without a browser.

    Executes the chapter's notebook with papermill and prints where its checkpoint is and what it proves.

    Example:  localai-clusters lab 07 -p student=s123 -p max_tokens=48
    """
    from localai_clusters import lab as labs
    from localai_clusters.signals import as_interrupt

    notebook = labs.find_notebook(name)
    if list_parameters:
        found = labs.parameters_of(notebook)
        if json_:
            click.echo(json.dumps([asdict(parameter) for parameter in found], indent=2))
            return
        for parameter in found:
            click.echo(f"{parameter.name}: {parameter.type} = {parameter.default}   {parameter.help}".rstrip())
        return
    with as_interrupt():
        result = labs.run(notebook, labs.parse_parameters(notebook, parameters), output)
    if json_:
        click.echo(json.dumps(result.to_dict(), indent=2))
        return
    click.echo(f"executed notebook: {result.notebook}")
    for path, proves in result.checkpoints:
        click.echo(f"checkpoint: {path}\n{proves}")


@main.group()
def checkpoint() -> None:
    """Read checkpoint files.

    Example:  localai-clusters checkpoint verify checkpoints/s123/07-....json
    """


@checkpoint.command("show")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def checkpoint_show(file: Path, json_: bool) -> None:
    """Print a checkpoint for a person.

    Example:  localai-clusters checkpoint show checkpoints/s123/07-....json
    """
    from localai_clusters import checkpoint as records

    found = records.read(file)
    if json_:
        click.echo(records.to_json(found), nl=False)
    else:
        records.show(found, Console())


@checkpoint.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@as_json
def checkpoint_verify(file: Path, json_: bool) -> None:
    """Say what in a checkpoint does not hold. Exit code 1 if anything does not.

    Example:  localai-clusters checkpoint verify checkpoints/s123/07-....json
    """
    from localai_clusters import checkpoint as records

    found = records.read(file)
    findings = records.verify(found)
    wrong = [finding for finding in findings if finding.severity == "wrong"]
    if json_:
        click.echo(json.dumps({"holds": not wrong, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        for finding in findings:
            click.echo(records.plain_text(f"{finding.severity}: {finding.field}: {finding.sentence}"))
        click.echo(records.what_it_proves(found))
    sys.exit(DOES_NOT_HOLD if wrong else HOLDS)


class NodesVerbs(click.Group):
    """As ``Verbs``, for what can go wrong with nodes."""

    def invoke(self, context: click.Context):
        from localai_clusters.launch.nodes import NodesError

        try:
            return super().invoke(context)
        except NodesError as error:
            stop(str(error), DOES_NOT_HOLD)


@main.group(cls=NodesVerbs)
def nodes() -> None:
    """Nodes on this machine, joined by a link that is measured.

    Each has its own address, hostname, /dev/shm and cores. The link's rate and delay can be set, its bytes are counted.

    Example:  localai-clusters nodes up --rate 100 --delay 5
    """


def nodes_that_are_up():
    from localai_clusters.launch import nodes as local_nodes

    found = local_nodes.current()
    if found is None:
        stop("no nodes are up; type: localai-clusters nodes up", DOES_NOT_HOLD)
    return found


@nodes.command("up")
@click.option("--count", type=int, default=2, show_default=True, help="How many nodes.")
@click.option("--rate", type=float, metavar="MBIT", help="What each node can send, in Mbit/s; no limit without it.")
@click.option("--delay", type=float, default=0.0, metavar="MS", help="One way, in ms; a round trip takes twice that.")
@click.option("--kind", help="'namespaces', 'user namespaces' or 'loopback addresses'; the best that works without it.")
@as_json
def nodes_up(json_: bool, count: int, rate: float | None, delay: float, kind: str | None) -> None:
    """Make nodes; they stay until `nodes down`.

    Example:  localai-clusters nodes up --rate 100 --delay 5
    """
    from localai_clusters.launch import nodes as local_nodes
    from localai_clusters.signals import as_interrupt

    with as_interrupt():
        show(local_nodes.up(count, rate_mbit=rate, delay_ms=delay, kind=kind), json_)


@nodes.command("down")
@as_json
def nodes_down(json_: bool) -> None:
    """End every program in the nodes, and the nodes.

    Harmless if nothing is up; after a crash it removes what was left.

    Example:  localai-clusters nodes down
    """
    from localai_clusters.launch import nodes as local_nodes

    there_were = local_nodes.down()
    click.echo(json.dumps({"were_up": there_were}) if json_ else "nodes are down" if there_were else "no nodes were up")


@nodes.command("status")
@as_json
def nodes_status(json_: bool) -> None:
    """The nodes, their link and what crossed it. Exit code 1 if none are up or one is gone.

    Example:  localai-clusters nodes status
    """
    from localai_clusters.launch import nodes as local_nodes

    found = local_nodes.current()
    if found is None and json_:
        click.echo(json.dumps({"up": False}))
        sys.exit(DOES_NOT_HOLD)
    found = nodes_that_are_up()
    show(found, json_)
    sys.exit(DOES_NOT_HOLD if found.problems() else HOLDS)


@nodes.command("link")
@click.option("--rate", type=float, metavar="MBIT", help="What each node can send, in Mbit/s; 0: no limit.")
@click.option("--delay", type=float, metavar="MS", help="One way, in ms; a round trip takes twice that.")
@click.option("--cut/--mend", default=None, help="Cut the cable in the middle, or mend it.")
@as_json
def nodes_link(json_: bool, rate: float | None, delay: float | None, cut: bool | None) -> None:
    """Change the link while programs use it; what is not named stays.

    Example:  localai-clusters nodes link --rate 10 --delay 20
    """
    found = nodes_that_are_up()
    if rate is not None or delay is not None:
        wanted = found.rate_mbit if rate is None else rate or None
        found.set_link(rate_mbit=wanted, delay_ms=found.delay_ms if delay is None else delay)
    if cut is not None:
        found.cut() if cut else found.mend()
    show(found, json_)


@nodes.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("node", type=int)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def nodes_exec(node: int, command: tuple[str, ...]) -> None:
    """Run a command inside a node; its exit code is this one's.

    Example:  localai-clusters nodes exec 1 -- hostname
    """
    import os

    argv = nodes_that_are_up().enter(node, command)
    sys.stdout.flush()
    os.execv(argv[0], argv)
