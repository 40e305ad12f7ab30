"""checkpoint: read records, and hold them against the model."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from localai_clusters.cli.verbs import DOES_NOT_HOLD, HOLDS, UNDECIDED, as_json, main


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
        from rich.console import Console

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


@checkpoint.command("replay")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--model", "models", multiple=True, metavar="FOLDER", help="Where recorded weights may lie. Repeatable.")
@click.option("--dtype", default="auto", show_default=True, help="To replay in; auto is float32 where that can be.")
@click.option("--tensor-parallel-size", "-tp", type=int, default=1, show_default=True)
@click.option("--pipeline-parallel-size", "-pp", type=int, default=1, show_default=True)
@as_json
def checkpoint_replay(json_: bool, files: tuple[Path, ...], models: tuple[str, ...], **plan) -> None:
    """Say whether recorded answers are what the recorded model says.

    Runs the recorded tokens through the model once. Exit code 1 if a record is refuted, 2 if one cannot be replayed.

    Example:  localai-clusters checkpoint replay checkpoints/s123/07-*.json
    """
    from localai_clusters import checkpoint as records
    from localai_clusters.grading.replay import not_replayable, replay
    from localai_clusters.grading.replay_rules import CONFIRMED, REFUTED
    from localai_clusters.plan import ServePlan
    from localai_clusters.signals import as_interrupt

    plan, unread, readable = ServePlan(**plan), {}, []
    for file in files:
        try:
            readable.append((file, records.read(file)))
        except records.CheckpointError as error:
            unread[file] = not_replayable(file, str(error).removeprefix(f"{file}: "))
    with as_interrupt():
        replayed = replay(readable, plan=plan, models=models)
    of_file = unread | dict(zip((file for file, _ in readable), replayed, strict=True))
    found = [of_file[file] for file in files]
    outcomes = {each.outcome for each in found}
    if json_:
        click.echo(json.dumps({"holds": outcomes == {CONFIRMED}, "records": [r.to_dict() for r in found]}, indent=2))
    else:
        click.echo("\n".join(map(str, found)))
    sys.exit(DOES_NOT_HOLD if REFUTED in outcomes else HOLDS if outcomes == {CONFIRMED} else UNDECIDED)
