"""From a lab's source to its notebooks and its sealed exercises: the same source gives the same bytes."""

import json
from collections.abc import Callable
from typing import Any

from localai_clusters.authoring.markers import with_solutions, without_solutions
from localai_clusters.authoring.mistakes import shown_cells
from localai_clusters.authoring.source import Source, read_source
from localai_clusters.exercises.sealed import SealedError, seal, unseal
from localai_clusters.exercises.where import LabFiles

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def student_notebook(source: Source) -> str:
    """The text of the notebook that a student opens."""
    return _notebook(source, without_solutions)


def solved_notebook(source: Source) -> str:
    """The text of the notebook with every solution in place."""
    return _notebook(source, with_solutions)


def _notebook(source: Source, made: Callable[[str], str]) -> str:
    cells = []
    for cell in shown_cells(source):
        text = made(cell.source) if cell.kind == "code" else cell.source
        # Ids by place, as nbstripout writes them: what is committed stays as the linter wants it.
        page: dict[str, Any] = {"cell_type": cell.kind, "id": str(len(cells))}
        if cell.kind == "code":
            page["execution_count"] = None
        page["metadata"] = {"tags": list(cell.tags)} if cell.tags else {}
        if cell.kind == "code":
            page["outputs"] = []
        page["source"] = text.splitlines(keepends=True)
        cells.append(page)
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    book = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


def build(files: LabFiles) -> list[str]:
    """Write the notebook and the sealed exercises beside the source; the names of the files that changed."""
    source = read_source(files)
    changed = _stale(source)
    if files.notebook.name in changed:
        files.notebook.write_text(student_notebook(source), encoding="utf-8")
    if files.sealed.name in changed:
        files.sealed.write_text(seal(source.sealed()), encoding="utf-8")
    return changed


def stale(files: LabFiles) -> list[str]:
    """The files beside the source that are not what it builds."""
    return _stale(read_source(files))


def _stale(source: Source) -> list[str]:
    files = source.files
    notebook = files.notebook.read_text(encoding="utf-8") if files.notebook.is_file() else ""
    found = [] if notebook == student_notebook(source) else [files.notebook.name]
    try:
        same = unseal(files.sealed) == source.sealed()  # packed bytes differ from one zlib to another
    except SealedError:
        same = False
    return found if same else [*found, files.sealed.name]
