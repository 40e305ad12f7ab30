"""lab: a chapter without a browser."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from localai_clusters.cli.verbs import as_json, main


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
