"""The students' archive: what a student needs and no more; the same files in, the same bytes out.

In it: the labs' notebooks and sealed exercises, the chapters, the library with its set-up, and a README of its own.
Not in it: the labs' sources, which hold the solutions, rubrics that hold answers, tests, benchmarks.
"""

import hashlib
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from localai_clusters import __version__
from localai_clusters.authoring.building import stale
from localai_clusters.authoring.markers import BEGIN
from localai_clusters.errors import PlainError
from localai_clusters.exercises.where import NOTEBOOK, RUBRIC, SEALED, all_labs
from localai_clusters.lab import course_root

FOLDER = "localai-clusters-labs"
README = "README.md"
ROOT_FILES = ("setup.sh", "Makefile", "pyproject.toml", "environment.yml", ".gitignore")
TREES = {  # folder: what of it
    "requirements": (".txt",),
    "localai_clusters": (".py", ".css", ".j2", ".js", ".json", ".toml"),
    "course": (NOTEBOOK, RUBRIC),
    "labs": (NOTEBOOK, SEALED, RUBRIC),
    "docs": (".md",),
    "checkpoints": ("schema.json", ".gitignore", README),
}
ONLY_HERE = {"docs/labs.md", "docs/grading.md"}  # for instructors
ANSWERS = ("number", "choice")  # kinds of a rubric that hold what the right answer is
MOMENT = (2026, 1, 1, 0, 0, 0)  # of every file, so that the archive depends on nothing but them


class ReleaseError(PlainError, ValueError):
    """An archive that must not be handed out; the message says which file is why."""


@dataclass(frozen=True, slots=True)
class Released:
    """The archive that was written."""

    path: Path
    folder: str
    files: int
    bytes: int
    sha256: str


def release(output: Path, root: Path | None = None) -> Released:
    """Write the archive of the course in ``root`` to ``output``.

    Raises ``SourceError`` for a mistake in a lab's source, ``ReleaseError`` for a notebook that is not what its source
    builds or was saved with outputs, and for a solution that is in the clear.
    """
    root = root or course_root()
    for files in all_labs(root):
        if files.source.is_file() and (old := stale(files)):
            built = f"localai-clusters course build {files.name}"
            raise ReleaseError(f"{', '.join(old)} in {files.folder} is not what its source builds; type: {built}")
    contents = dict(sorted(_contents(root)))
    for name, content in contents.items():
        _must_not_tell(name, content)
    folder = f"{FOLDER}-{__version__}"
    new = output.with_name(f".{output.name}.new")
    try:
        with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name, content in contents.items():
                entry = zipfile.ZipInfo(f"{folder}/{name}", MOMENT)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.create_system = 3  # Unix, for the mode
                entry.external_attr = (0o100755 if content.startswith(b"#!") else 0o100644) << 16
                archive.writestr(entry, content)
        os.replace(new, output)
    finally:
        new.unlink(missing_ok=True)
    written = output.read_bytes()
    return Released(output, folder, len(contents), len(written), hashlib.sha256(written).hexdigest())


def _contents(root: Path) -> Iterator[tuple[str, bytes]]:
    for name in ROOT_FILES:
        yield name, (root / name).read_bytes()
    for tree, ends in TREES.items():
        for path in sorted((root / tree).rglob("*")):
            name = path.relative_to(root).as_posix()
            if not path.is_file() or not name.endswith(ends) or "__pycache__" in name or "/.ipynb_checkpoints/" in name:
                continue
            if name in ONLY_HERE or (tree == "labs" and path.name == README):
                continue
            if name.endswith(RUBRIC) and _has_answers(path):
                continue
            yield name, path.read_bytes()
    yield README, _readme(root).encode()


def _has_answers(rubric: Path) -> bool:
    page = yaml.safe_load(rubric.read_text(encoding="utf-8"))
    return any(criterion.get("kind") in ANSWERS for criterion in page["criteria"])


def _must_not_tell(name: str, content: bytes) -> None:
    """A notebook or sealed file with something in it that is for nobody's eyes, or of somebody's machine."""
    if name.endswith(NOTEBOOK):
        if BEGIN.encode() in content:
            raise ReleaseError(f"{name} holds a solution; build it anew: localai-clusters course build")
        if re.search(rb'"execution_count": \d|"output_type"', content):
            raise ReleaseError(f"{name} was saved with its outputs; remove them: .venv/bin/nbstripout {name}")


def _readme(root: Path) -> str:
    found = [lab for lab in all_labs(root) if lab.notebook.is_file()]
    rows = [f"| {lab.name} | [{_title(lab)}](labs/{lab.folder.name}/{lab.notebook.name}) |" for lab in found]
    return PAGE.format(labs="\n".join(rows), first=found[0].name if found else "07/1")


def _title(lab) -> str:
    from localai_clusters.exercises.sealed import unseal

    return unseal(lab.sealed).title


PAGE = """\
# Local AI Clusters: the labs

You run one language model on several processes, see what each of them holds, break it, and keep a record of it all.
The servers are real: vLLM, launched by torchrun, on NVIDIA GPUs or, without one, on CPU cores.

## Start

Needs Linux on x86-64, Python 3.11 (or `conda env create -f environment.yml`), 4 GB of disk, 8 GB of memory and two
cores. No account and no model download: a small model comes with it.

```
bash setup.sh   # once, some minutes: makes .venv in this folder
make lab        # opens JupyterLab; or: .venv/bin/jupyter lab
```

Begin with the chapter, `course/07_vllm_distributed_serving.ipynb`; then the labs, in any order:

| lab | notebook |
|---|---|
{labs}

## How a lab goes

1. Put your id into the first code cell: `student = "s123"`. It decides your prompts.
2. Run the cells from the top. Where it says `...`, put your answer in its place and run the cell again. `check` says
   what is right or wrong about it; a figure may have a unit (`"5.6 MiB"`).
3. Stuck? Take the `#` away from `# lab.NAME.hint()`, and run it again for the next one. `lab.NAME.solution()` tells
   all; your record says so if you looked before you had it.
4. The last cell writes your record to `checkpoints/YOUR-ID/`. That file is what you hand in.

A restarted kernel starts afresh: run the cells from the top. A server never outlives its kernel.

The `.sealed` files hold the exercises, packed so that nobody reads the answers by accident. Keep each beside its
notebook.

When something does not work: `.venv/bin/localai-clusters doctor`, and [docs/explain.md](docs/explain.md).
A lab without a browser: `.venv/bin/localai-clusters lab {first} -p student=s123`.
"""
