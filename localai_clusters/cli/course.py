"""course: for who writes labs and hands them out."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from localai_clusters.cli.verbs import DOES_NOT_HOLD, HOLDS, as_json, main


@main.group()
def course() -> None:
    """Write labs and hand them out.

    Example:  localai-clusters course build 07/1
    """


@course.command()
@click.argument("labs", nargs=-1, metavar="[LAB]...")
@click.option("--check", "only_check", is_flag=True, help="Write nothing; exit code 1 if a file is stale.")
@as_json
def build(json_: bool, labs: tuple[str, ...], only_check: bool) -> None:
    """Make the students' notebooks and the sealed exercises from the labs' sources.

    All of them, or those named. A mistake in a source is told with its line, and nothing of that lab is written.

    Example:  localai-clusters course build --check
    """
    from localai_clusters.authoring.building import build as build_one
    from localai_clusters.authoring.building import stale
    from localai_clusters.authoring.source import SourceError
    from localai_clusters.exercises.where import all_labs, find_lab

    found = [find_lab(name) for name in labs] or [each for each in all_labs() if each.source.is_file()]
    if not found:
        raise ValueError("there is no source of a lab here; a lab is built in the course's checkout")
    states, wrong = {}, False
    for files in found:
        if not files.source.is_file():
            raise ValueError(f"{files.source} is not there: a lab is built from its source, in a checkout")
        try:
            names = stale(files) if only_check else build_one(files)
            states[files.stem] = {"holds": not (only_check and names), "files": names, "mistakes": []}
            said = f"not what the source builds: {', '.join(names)}" if only_check else f"wrote {', '.join(names)}"
            said = f"{files.name} {files.slug}: {said if names else 'up to date'}"
        except SourceError as error:
            mistakes = [{"line": mistake.line, "sentence": mistake.sentence} for mistake in error.mistakes]
            states[files.stem] = {"holds": False, "files": [], "mistakes": mistakes}
            said = str(error)
        wrong = wrong or not states[files.stem]["holds"]
        if not json_:
            click.echo(said)
    if json_:
        click.echo(json.dumps({"holds": not wrong, "labs": states}, indent=2))
    sys.exit(DOES_NOT_HOLD if wrong else HOLDS)


@course.command("new-lab")
@click.argument("chapter")
@click.argument("name")
@click.option("--title", help="In words. Default: from NAME.")
@as_json
def new_lab(json_: bool, chapter: str, name: str, title: str | None) -> None:
    """Begin a lab: a source and a rubric that run as they are, to be changed.

    Example:  localai-clusters course new-lab 07 my_idea
    """
    from localai_clusters.authoring.scaffold import new_lab as begin

    files = begin(chapter, name, title)
    if json_:
        wrote = [str(path) for path in (files.source, files.rubric, files.notebook, files.sealed)]
        click.echo(json.dumps({"lab": files.name, "files": wrote}, indent=2))
        return
    click.echo(f"wrote {files.source}\n      {files.rubric}\n      {files.notebook}\n      {files.sealed}")
    click.echo(f"next: edit the source, then  localai-clusters course build {files.name}")
    click.echo(f"      and run it             localai-clusters lab {files.name} --solved")


@course.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("labs.zip"), show_default=True)
@as_json
def release(json_: bool, output: Path) -> None:
    """Make the students' archive: notebooks, sealed exercises and the library; no solutions, no rubric with answers.

    Example:  localai-clusters course release -o labs.zip
    """
    from localai_clusters.authoring.archive import release as make

    made = make(output)
    if json_:
        click.echo(json.dumps({**asdict(made), "path": str(made.path)}, indent=2))
        return
    click.echo(f"{made.path}: {made.files} files, {made.bytes / 2**20:.1f} MiB, sha256 {made.sha256}")
    click.echo(f"unpacked, it is a folder {made.folder}/ with its own README.md")
