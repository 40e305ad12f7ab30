"""What all verbs share: the group, errors without a stack, exit codes, showing a thing as text or JSON."""

import importlib
import json
import sys
from collections.abc import Iterator, MutableMapping

import click

from localai_clusters import __version__

HOLDS, DOES_NOT_HOLD, UNDECIDED = 0, 1, 2
MODULES = {
    "bench": "sweep",
    "checkpoint": "checkpoint",
    "course": "course",
    "doctor": "plan",
    "explain-command": "explain_command",
    "explain-log": "explain_log",
    "grade": "grade",
    "lab": "lab",
    "nodes": "nodes",
    "preflight": "plan",
    "serve": "plan",
    "sweep": "sweep",
}


class Commands(MutableMapping[str, click.Command]):
    """Name of a verb -> its command, whose module is imported when the verb is asked for."""

    def __init__(self) -> None:
        self._imported: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._imported:
            importlib.import_module(f"localai_clusters.cli.{MODULES[name]}")  # it adds its verbs
        return self._imported[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._imported[name] = command

    def __delitem__(self, name: str) -> None:
        del self._imported[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**MODULES, **self._imported})

    def __len__(self) -> int:
        return len({**MODULES, **self._imported})


class Verbs(click.Group):
    """Errors that a user can cause end in one message on stderr, never in a traceback."""

    def invoke(self, context: click.Context):
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            stop("stopped", 130)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            message, code = said_of(error)
            if code is None:
                raise
            stop(message, code)


def said_of(error: Exception) -> tuple[str, int | None]:
    """What a person is told of ``error`` and the exit code; None for one that no user can cause."""
    # Here and not above: the checkpoint's schema alone takes a fifth of a second to import.
    from localai_clusters.checkpoint import CheckpointError
    from localai_clusters.lab import LabFailed
    from localai_clusters.launch.nodes import NodesError
    from localai_clusters.launch.run import LaunchError
    from localai_clusters.preflight.report import PreflightError

    match error:
        case PreflightError():
            return f"this plan cannot be launched\n{error}", DOES_NOT_HOLD
        case LabFailed() | LaunchError() | NodesError():
            return str(error), DOES_NOT_HOLD
        case CheckpointError() | ValueError():
            return str(error), UNDECIDED
        case OSError():
            return f"{error.filename or ''}: {error.strerror or error}".lstrip(": "), UNDECIDED
    return str(error), None


def stop(message: str, code: int) -> None:
    click.echo(f"localai-clusters: {message}", err=True)
    sys.exit(code)


def show(thing, as_json: bool) -> None:
    """A rich thing on the terminal, or its data as JSON."""
    if as_json:
        click.echo(json.dumps(thing.to_dict(), indent=2))
    else:
        from rich.console import Console

        Console().print(thing)


def as_json(function):
    return click.option("--json", "json_", is_flag=True, help="Print JSON.")(function)


@click.group(cls=Verbs, commands=Commands(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """The course companion for "Local AI Clusters".

    Example:  localai-clusters serve -tp 2
    """
