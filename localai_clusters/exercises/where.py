"""The files of a lab, by the names that people call it."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from localai_clusters.errors import PlainError
from localai_clusters.exercises.sealed import SealedError, unseal
from localai_clusters.lab import course_root

FOLDER = re.compile(r"(\d+)_\w+")  # 07_vllm_distributed_serving
STEM = re.compile(r"(\d+)_(\w+)")  # 1_where_the_memory_goes
SOURCE, NOTEBOOK, SEALED, RUBRIC = ".py", ".ipynb", ".sealed", ".rubric.yaml"


class NoSuchLab(PlainError, ValueError):
    """A lab that is not there; the message lists those that are."""


@dataclass(frozen=True, slots=True)
class LabFiles:
    """Where the files of one lab are or would be. A student's folder has no source and no rubric."""

    folder: Path
    stem: str
    chapter: int

    @property
    def number(self) -> int:
        return int(STEM.fullmatch(self.stem)[1])

    @property
    def slug(self) -> str:
        return STEM.fullmatch(self.stem)[2]

    @property
    def name(self) -> str:
        return f"{self.chapter:02}/{self.number}"

    def path(self, suffix: str) -> Path:
        return self.folder / f"{self.stem}{suffix}"

    @property
    def source(self) -> Path:
        return self.path(SOURCE)

    @property
    def notebook(self) -> Path:
        return self.path(NOTEBOOK)

    @property
    def sealed(self) -> Path:
        return self.path(SEALED)

    @property
    def rubric(self) -> Path:
        return self.path(RUBRIC)


def labs_in(folder: Path) -> list[LabFiles]:
    """The labs whose source or sealed exercises lie in ``folder``, by number."""
    stems = {path.stem for path in folder.glob("*_*") if path.suffix in (SOURCE, SEALED) and STEM.fullmatch(path.stem)}
    chapter = FOLDER.fullmatch(folder.absolute().name)
    found = []
    for stem in stems:
        number = int(chapter[1]) if chapter else _chapter_inside(folder / f"{stem}{SEALED}")
        if number is not None:
            found.append(LabFiles(folder, stem, number))
    return sorted(found, key=lambda lab: (lab.number, lab.stem))


def _chapter_inside(sealed: Path) -> int | None:
    """Of a folder that is not called for its chapter, to which somebody copied a lab."""
    try:
        return unseal(sealed).chapter
    except SealedError:
        return None


def all_labs(root: Path | None = None) -> list[LabFiles]:
    """Every lab below the course's labs/, by chapter and number."""
    labs = (root or course_root()) / "labs"
    folders = [path for path in labs.glob("*_*") if path.is_dir() and FOLDER.fullmatch(path.name)]
    return [lab for folder in sorted(folders) for lab in labs_in(folder)]


def find_lab(name: str) -> LabFiles:
    """For ``07/1``, ``7.1``, ``07/where_the_memory_goes``, ``where_the_memory_goes`` or the path of one of its files.

    The working directory comes before the course's labs/. Raises ``NoSuchLab``.
    """
    path = Path(name)
    if path.suffix in (SOURCE, NOTEBOOK, SEALED) and _is_file(path):
        for lab in labs_in(path.parent):
            if lab.stem == path.stem:
                return lab
    known = [*labs_in(Path.cwd()), *all_labs()]
    for lab in known:
        if _names(name, lab):
            return lab
    names = list(dict.fromkeys(f"{lab.name} ({lab.slug})" for lab in known))
    near = difflib.get_close_matches(name.rpartition("/")[2], [lab.slug for lab in known], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise NoSuchLab(f"there is no lab {name!r}{hint}; there is: {', '.join(names) or 'none'}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except ValueError:  # a zero byte in it
        return False


def _names(name: str, lab: LabFiles) -> bool:
    if name in (lab.slug, lab.stem):
        return True
    found = re.fullmatch(r"([0-9]{1,3})[/.](\w+)", name)
    return bool(found) and int(found[1]) == lab.chapter and found[2] in (str(lab.number), lab.slug, lab.stem)
