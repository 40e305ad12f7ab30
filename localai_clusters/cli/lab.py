"""lab: a chapter or a lab without a browser."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from localai_clusters.cli.verbs import DOES_NOT_HOLD, HOLDS, as_json, main


@main.command()
@click.argument("name")
@click.option("-p", "--parameter", "parameters", multiple=True, metavar="NAME=VALUE", help="May be repeated.")
@click.option("--solved", is_flag=True, help="Run a lab with its solutions; exit code 1 if a check is not right.")
@click.option("--ci", is_flag=True, help="Use the small parameters that the lab's author chose for a quick run.")
@click.option("--list-parameters", is_flag=True, help="Print the parameters and stop.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to put the executed notebook.")
@as_json
def lab(
    json_: bool,
    name: str,
    parameters: tuple[str, ...],
    solved: bool,
    ci: bool,
    list_parameters: bool,
    output: Path | None,
) -> None:
    """Run a chapter or a lab without a browser.

    NAME is a chapter (07), a lab (07/1 or where_the_memory_goes) or a notebook's path. Executes it with papermill and
    prints where its checkpoint is, what that proves, and what became of each exercise.

    \b
    Example:  localai-clusters lab 07 -p student=s123 -p max_tokens=48
              localai-clusters lab 07/1 --solved
    """
    from localai_clusters import lab as labs
    from localai_clusters.exercises.running import runnable
    from localai_clusters.signals import as_interrupt

    with runnable(name, solved) as found:
        if list_parameters:
            print_parameters(labs.parameters_of(found.notebook), json_)
            return
        if found.note:
            click.echo(f"note: {found.note}", err=True)
        values = {**(found.ci if ci else {}), **labs.parse_parameters(found.notebook, parameters)}
        with as_interrupt():
            result = labs.run(found.notebook, values, output, found.folder)
    not_right = [each for each in result.verdicts if each["status"] not in ("right", "by-hand")] if solved else []
    if json_:
        click.echo(json.dumps(result.to_dict(), indent=2))
    else:
        click.echo(f"executed notebook: {result.notebook}")
        for path, proves in result.checkpoints:
            click.echo(f"checkpoint: {path}\n{proves}")
        if result.verdicts:
            click.echo(exercises_table(result.verdicts))
    for each in not_right:
        said = f"{each['id']} is {each['status']} with its solution: {each['sentence']}"
        click.echo(f"localai-clusters: {said}", err=True)
    sys.exit(DOES_NOT_HOLD if not_right else HOLDS)


def print_parameters(found: list, json_: bool) -> None:
    if json_:
        click.echo(json.dumps([asdict(parameter) for parameter in found], indent=2))
        return
    for parameter in found:
        click.echo(f"{parameter.name}: {parameter.type} = {parameter.default}   {parameter.help}".rstrip())


def exercises_table(verdicts) -> str:
    """What each check said last, and how many are in which state."""
    from localai_clusters.exercises.notes import MARKS

    width = max(len(each["id"]) for each in verdicts)
    lines = [f"  {MARKS[v['status']][0]} {v['id']:{width}}  {v['sentence']}".replace("\n", " ") for v in verdicts]
    states = [each["status"] for each in verdicts]
    counts = ", ".join(f"{states.count(state)} {MARKS[state][1].lower()}" for state in MARKS if state in states)
    return "\n".join([f"{len(states)} exercises: {counts}", *lines])
