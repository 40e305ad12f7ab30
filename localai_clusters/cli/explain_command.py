"""explain-command: what a pasted command means and what is wrong with it."""

import json
import sys
from pathlib import Path

import click

from localai_clusters.cli.verbs import DOES_NOT_HOLD, HOLDS, UNDECIDED, as_json, main


@main.command("explain-command")
@click.argument("command", required=False)
@click.option("--file", type=click.Path(path_type=Path), help="Read the command from a file.")
@as_json
def explain_command(command: str | None, file: Path | None, json_: bool) -> None:
    """Say what a torchrun, vllm or docker command means, what is wrong with it, and what to type instead.

    It only reads the command. Without COMMAND, or with -, standard input is read: paste, then Ctrl-D. Exit code 0: it
    works as it stands; 1: it does not; 2: it starts no server, so that there is nothing to judge.

    \b
    Example:  localai-clusters explain-command 'vllm serve Qwen/Qwen3-0.6B -tp 2'
              localai-clusters explain-command < command.sh
    """
    from localai_clusters.command import explain_command as explain
    from localai_clusters.command.reading import MAX_CHARACTERS
    from localai_clusters.command.show import show

    if command not in (None, "-") and file is not None:
        raise ValueError("give the command or --file, not both")
    if file is not None:
        with file.open("rb") as source:
            text = source.read(4 * MAX_CHARACTERS + 4).decode("utf-8", errors="replace")
    elif command in (None, "-"):
        text = sys.stdin.buffer.read(4 * MAX_CHARACTERS + 4).decode("utf-8", errors="replace")
    else:
        text = command
    report = explain(text)
    if json_:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        from rich.console import Console

        show(report, Console())
    sys.exit(UNDECIDED if report.works is None else HOLDS if report.works else DOES_NOT_HOLD)
