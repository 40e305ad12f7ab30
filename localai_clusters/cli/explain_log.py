"""explain-log: why a launch failed, from its log."""

import sys
from pathlib import Path

import click

from localai_clusters.cli.verbs import DOES_NOT_HOLD, HOLDS, UNDECIDED, as_json, main, show


@main.command()
@click.argument("logs", nargs=-1, metavar="[LOG]...")
@as_json
def explain_log(json_: bool, logs: tuple[str, ...]) -> None:
    """Say why a launch failed.

    LOG is a file, several of them (one per rank), a folder, a run's id, "last" for the newest run, or - for standard
    input. Exit code: 0 if nothing failed, 1 if the failure is explained, 2 if the log does not show its cause.

    \b
    Example:  localai-clusters explain-log server.log
              vllm serve ... 2>&1 | localai-clusters explain-log -
    """
    from localai_clusters.diagnose import explain_files, explain_stream
    from localai_clusters.diagnose.report import EXPLAINED, NO_FAILURE
    from localai_clusters.diagnose.runs import found

    if logs == ("-",) or (not logs and not sys.stdin.isatty()):
        report = explain_stream(sys.stdin.buffer)
    elif not logs:
        raise ValueError("which log? a file, a run's id, last, or - for standard input")
    elif "-" in logs:
        raise ValueError("- is standard input and stands alone")
    else:
        paths: list[Path] = [path for log in logs for path in found(log)]
        report = explain_files(paths)
    show(report, json_)
    sys.exit({NO_FAILURE: HOLDS, EXPLAINED: DOES_NOT_HOLD}.get(report.status, UNDECIDED))
