"""nodes: nodes of one machine and the link between them."""

import json
import sys

import click

from localai_clusters.cli.verbs import DOES_NOT_HOLD, HOLDS, as_json, main, show, stop


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
