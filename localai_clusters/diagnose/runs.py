"""Finding the log that somebody means: a file, a folder of logs, a run of this library, or the text itself.

The one module of this package that knows of runs: the others are used where a launch fails (launch/why.py).
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from localai_clusters.diagnose import explain_files, explain_text
from localai_clusters.diagnose.report import Report
from localai_clusters.launch.run import runs_dir

LAST = "last"
MOST_FILES = 512
RUN_ID = re.compile(r"[\w-]{4,40}")
# What lies in a run's folder (launch/run.py), or in torchrun's --log-dir, or was collected by hand.
LOG_NAMES = ("*.log", "*.jsonl", "*.out", "*.err", "*.txt", "*.log.gz")


def explain_log(log: Any) -> Report:
    """Why what ``log`` tells of failed: a path, several, a run's id, "last", a ``Server``, a ``Run``, or a log's text.

    Raises ``ValueError`` if there is nothing of that name or it is not text, ``OSError`` if it cannot be read.
    """
    folder = getattr(getattr(log, "run", log), "dir", None)
    if isinstance(folder, Path):
        return explain_files(files_of(folder))
    if isinstance(log, str) and "\n" in log:
        return explain_text(log)
    if isinstance(log, str | Path):
        return explain_files(found(str(log)))
    if isinstance(log, Iterable) and not isinstance(log, bytes):
        return explain_files([path for one in log for path in found(str(one))])
    raise ValueError(f"a log is a path, a run's id, a server or text, not a {type(log).__name__}")


def found(name: str) -> list[Path]:
    """The files that ``name`` means; ``ValueError`` if there are none."""
    path = Path(name).expanduser()
    if not name.strip():
        raise ValueError("the log's name is empty")
    try:
        if path.is_dir():
            return files_of(path)
        if path.exists():
            return [path]
    except OSError as error:  # a name too long to be one: text without a line's end
        raise ValueError(f"no file or run of that name: {error.strerror}") from error
    runs = sorted(runs_dir().glob("*"), key=lambda run: run.stat().st_mtime) if runs_dir().is_dir() else []
    if name == LAST:
        if not runs:
            raise ValueError(f"no run was started yet: there is none in {runs_dir()}")
        return files_of(runs[-1])
    if RUN_ID.fullmatch(name) and (named := [run for run in runs if run.name.startswith(name)]):
        return files_of(named[-1])
    recent = ", ".join(run.name for run in runs[:-6:-1])
    raise ValueError(f"no file and no run is called {name}" + (f"; the last runs: {recent}" if recent else ""))


def files_of(folder: Path) -> list[Path]:
    """The logs in ``folder`` and below it, a node's before its ranks'; ``ValueError`` if there are none."""
    files = sorted({path for name in LOG_NAMES for path in folder.rglob(name) if path.is_file()})
    if not files:
        raise ValueError(f"there are no logs in {folder}: no {', '.join(LOG_NAMES)}")
    if len(files) > MOST_FILES:
        raise ValueError(f"{folder} has {len(files)} files that may be logs; give the ones of one launch")
    return files
