"""checkpoint: read one record."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from localai_clusters.cli.verbs import DOES_NOT_HOLD, HOLDS, as_json, main


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
