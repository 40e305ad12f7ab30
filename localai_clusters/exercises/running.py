"""Which notebook ``localai-clusters lab NAME`` runs: a chapter's, a student's, or a lab's with its solutions."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localai_clusters.exercises.sealed import SealedError, unseal
from localai_clusters.exercises.where import LabFiles, NoSuchLab, find_lab
from localai_clusters.lab import find_notebook


@dataclass(frozen=True, slots=True)
class Runnable:
    """A notebook and the folder to run it in. ``ci`` are the small parameters that the lab's author chose."""

    notebook: Path
    folder: Path
    ci: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@contextlib.contextmanager
def runnable(name: str, solved: bool = False) -> Iterator[Runnable]:
    """The notebook for ``07`` (a chapter), ``07/1`` (a lab), its slug or a path; a solved one lies there for as long as
    the ``with`` lasts. ``ValueError`` lists what there is."""
    found = find(name)
    if isinstance(found, Path):
        if solved:
            raise ValueError(f"{found.stem} has no exercises, and so no solutions; labs have: 07/1")
        yield Runnable(found, found.parent)
    elif solved:
        with tempfile.TemporaryDirectory() as folder:
            yield _solved(found, Path(folder))
    else:
        yield _students(found)


def find(name: str) -> Path | LabFiles:
    try:
        return find_lab(name)
    except NoSuchLab as no_lab:
        try:
            return find_notebook(name)
        except ValueError as no_chapter:
            chapters = str(no_chapter).partition("; there is: ")[2]
            head, _, labs = str(no_lab).partition("; there is: ")
            raise ValueError(f"{head}; there is: {chapters}{'' if labs == 'none' else f', {labs}'}") from None


def _solved(files: LabFiles, folder: Path) -> Runnable:
    if not files.source.is_file():
        where = f"in the course's checkout, in {files.source.name}"
        raise ValueError(f"the solutions of lab {files.name} are not here; they are {where}")
    from localai_clusters.authoring.building import solved_notebook
    from localai_clusters.authoring.source import read_source

    source = read_source(files)
    notebook = folder / files.notebook.name
    notebook.write_text(solved_notebook(source), encoding="utf-8")
    return Runnable(notebook, files.folder, source.ci)


def _students(files: LabFiles) -> Runnable:
    if not files.notebook.is_file():
        raise ValueError(f"{files.notebook} is not there yet: localai-clusters course build {files.name}")
    if not files.source.is_file():
        try:
            ci = unseal(files.sealed).ci
        except SealedError:
            ci = {}
        return Runnable(files.notebook, files.folder, ci)
    from localai_clusters.authoring.building import stale
    from localai_clusters.authoring.source import read_source

    note = ""
    if files.notebook.name in stale(files):
        built = f"localai-clusters course build {files.name}"
        note = f"{files.notebook.name} is not what its source builds: it was filled in, or is old ({built})"
    return Runnable(files.notebook, files.folder, read_source(files).ci, note)
