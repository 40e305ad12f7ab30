"""bench, sweep: load on a server; the same load on several splits."""

import json
import sys
from pathlib import Path

import click

from localai_clusters.cli.plan import plan_options
from localai_clusters.cli.verbs import DOES_NOT_HOLD, HOLDS, as_json, main
from localai_clusters.plan import ServePlan


class SeveralNumbers(click.Command):
    """``--concurrency 1 4 16``, besides click's own ``--concurrency 1,4,16``."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        joined: list[str] = []
        for word in args:
            if word.isdigit() and len(joined) > 1 and joined[-2] == "--concurrency" and joined[-1][-1:].isdigit():
                joined[-1] += f",{word}"
            else:
                joined.append(word)
        return super().parse_args(context, joined)


def numbers(context, parameter, text: str) -> tuple[int, ...]:
    words = text.replace(" ", ",").split(",")
    if not all(word.isdigit() and 1 <= int(word) <= 4096 for word in words):
        raise click.BadParameter(f"{text!r}: write whole numbers from 1 to 4096, such as 1 4 16")
    return tuple(dict.fromkeys(map(int, words)))


def load_options(function):
    for option in reversed(
        (
            click.option("--concurrency", default="1,4,16", show_default=True, callback=numbers, metavar="N [N ...]",
                         help="Requests at a time."),
            click.option("--requests", type=click.IntRange(1), help="In each load, if not twice --concurrency."),
            click.option("--max-tokens", type=click.IntRange(1), default=32, show_default=True, help="Each."),
        )
    ):  # fmt: skip
        function = option(function)
    return function


@main.command(cls=SeveralNumbers)
@plan_options
@load_options
@click.option("--url", help="A server that runs already, such as http://127.0.0.1:8000; --model is its name there.")
@as_json
def bench(json_: bool, url: str | None, concurrency, requests, max_tokens: int, api_key: str | None, **plan) -> None:
    """Put a server under load: tokens/s, time to the first token, time between tokens.

    Serves the plan for that, or takes one that runs (--url).

    \b
    Example:  localai-clusters bench -tp 2 --concurrency 1 16
              localai-clusters bench --url http://127.0.0.1:8000 --concurrency 16
    """
    from contextlib import ExitStack

    from localai_clusters import server as servers
    from localai_clusters.bench import LoadError, load
    from localai_clusters.signals import as_interrupt

    plan, loads = ServePlan(**plan), []
    key = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with as_interrupt(), ExitStack() as stack:
        if not url:
            port = 0 if plan.port == ServePlan.port else plan.port
            server = stack.enter_context(servers.serve(plan.with_(port=port), api_key=api_key))
            url, key = server.url, server._headers()
        for many in concurrency:
            try:
                load(url, plan.served_name, many, many, 4, key)  # the first requests of their kind are slower
                done = load(url, plan.served_name, many, requests or max(4, 2 * many), max_tokens, key)
            except LoadError as error:
                raise ValueError(f"the load test of {url} failed: {error}") from error
            loads.append(done)
            if not json_:
                click.echo(str(done))
    if json_:
        from localai_clusters.sweep_result import load_to_dict

        click.echo(json.dumps([load_to_dict(done) for done in loads], indent=2))


def model_options(function):
    """Of the plan what all splits share."""
    for option in reversed(
        (
            click.option("--model", default="smollm2-135m", show_default=True, help="Built-in name, folder or HF id."),
            click.option("--dtype", default="auto", show_default=True, help="auto, bfloat16, float16 or float32."),
            click.option("--max-model-len", type=int, help="Longest request, in tokens."),
            click.option("--gpu-memory-utilization", type=float, help="Share of each GPU's memory for vLLM."),
            click.option("--kv-cache-memory-bytes", type=int, help="KV cache of each rank, in bytes."),
            click.option("--quantization", "-q", help="Quantization method, if not the checkpoint's own."),
            click.argument("extra_args", nargs=-1, type=click.UNPROCESSED),
        )
    ):
        function = option(function)
    return function


@main.command(cls=SeveralNumbers)
@model_options
@load_options
@click.option("--splits", default="tp1,tp2,pp2", show_default=True, help="tp2, pp2, tp2pp2; tp1@1: on one core.")
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, help="Medians over so many.")
@click.option("--skip-check", multiple=True, metavar="CHECK", help="Serve although this check fails.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Throughput as .svg, .png or .txt.")
@click.option("--csv", "csv_", is_flag=True, help="Print CSV.")
@as_json
def sweep(
    json_: bool, csv_: bool, plot: Path | None, splits: str, skip_check, concurrency, requests, max_tokens: int,
    rounds: int, **plan,
) -> None:  # fmt: skip
    """Serve several splits in turn and load each alike: which is faster, and when.

    What follows -- goes to vLLM as it stands. Ctrl-C stops the server and prints what was measured.
    Exit code 1 if a split could not be measured.

    \b
    Example:  localai-clusters sweep --splits tp1,tp2,pp2 --concurrency 1 4 16 --plot throughput.svg
              localai-clusters sweep --splits tp1@1,tp1,tp2 --rounds 3 --csv
    """
    from localai_clusters import sweeping
    from localai_clusters.signals import as_interrupt

    if plot and plot.suffix not in (".svg", ".png", ".txt"):
        raise ValueError(f"{plot.name}: a figure is saved as .svg, .png or .txt")
    if plot and not plot.absolute().parent.is_dir():
        raise ValueError(f"{plot.absolute().parent} is no folder; --plot takes the path of a file in one")
    cases = sweeping.splits(splits, ServePlan(**plan))
    with as_interrupt():
        found = sweeping.sweep(cases, concurrency, requests=requests, max_tokens=max_tokens, rounds=rounds,
                               skip_checks=skip_check)  # fmt: skip
    if plot and any(row.loads for row in found.rows):
        click.echo(f"figure: {found.throughput().save(plot)}", err=True)
    for row in found.rows if csv_ else ():
        if row.reason:
            click.echo(f"{row.name}: {row.reason}", err=True)
    click.echo(json.dumps(found.to_dict(), indent=2) if json_ else found.to_csv().rstrip() if csv_ else str(found))
    if found.interrupted:
        sys.exit(130)
    sys.exit(HOLDS if not any(row.reason for row in found.rows) else DOES_NOT_HOLD)
