"""grade: a folder of records to grades."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click

from localai_clusters.cli.verbs import DOES_NOT_HOLD, HOLDS, UNDECIDED, as_json, main, stop

RUBRICS = ("course/*.rubric.yaml", "labs/*/*.rubric.yaml")  # below the course's folder
A_PATH = click.Path(path_type=Path)


@main.command()
@click.argument("folder", type=A_PATH, required=False, metavar="DIR")
@click.option("--rubric", "rubric_files", type=A_PATH, multiple=True, help="May be repeated. Default: the course's.")
@click.option("--check-rubric", type=A_PATH, metavar="FILE", help="Say what is wrong in a rubric, and stop.")
@click.option(
    "--take",
    type=click.Choice(["best", "latest"]),
    default="best",
    show_default=True,
    help="Which of a student's records of a lab counts.",
)
@click.option("--course-key-file", type=A_PATH, metavar="FILE", help="Holds the course's key. Default: LAC_COURSE_KEY.")
@click.option("--replay", is_flag=True, help="Put the recorded tokens through the recorded model.")
@click.option("--replay-model", multiple=True, help="A folder or id with recorded weights; repeatable.")
@click.option("--csv", "csv_", type=A_PATH, metavar="FILE", help="Write a row per file, a column per criterion.")
@click.option("--html", type=A_PATH, metavar="FILE", help="Write one page with plots and every reason.")
@click.option("--gradescope", type=A_PATH, metavar="FILE", help="Write Gradescope's results.json of one submission.")
@click.option("--submitted-by", type=A_PATH, metavar="FILE", help="Gradescope's submission_metadata.json, to compare.")
@click.option("--canvas", type=A_PATH, nargs=2, metavar="ROSTER FILE", help="Fill in the CSV that Canvas exported.")
@click.option("--moodle", type=A_PATH, nargs=2, metavar="ROSTER FILE", help="Fill in the CSV that Moodle exported.")
@click.option("--column", metavar="NAME", help="Of the roster: where the grades go. Default: the rubric's title.")
@click.option("--fresh", is_flag=True, help="Read every file again, whatever an earlier grading left.")
@click.option("--processes", type=click.IntRange(1, 64), help="That read files. Default: one per core.")
@as_json
def grade(
    json_: bool,
    folder: Path | None,
    rubric_files: tuple[Path, ...],
    check_rubric: Path | None,
    take: str,
    course_key_file: Path | None,
    replay: bool,
    replay_model: tuple[str, ...],
    csv_: Path | None,
    html: Path | None,
    gradescope: Path | None,
    submitted_by: Path | None,
    canvas: tuple[Path, Path] | None,
    moodle: tuple[Path, Path] | None,
    column: str | None,
    fresh: bool,
    processes: int | None,
) -> None:
    """Grade every checkpoint file in a folder.

    A file is only ever read, never run. Exit code 0: every file was graded, though some may need a hand; 1: some file
    is unreadable, too new, or below the evidence level that the rubric asks for.

    \b
    Example:  localai-clusters grade checkpoints --html grades.html
              localai-clusters grade checkpoints --canvas roster.csv canvas.csv --column "Chapter 7 (1234)"
    """
    from localai_clusters.grading.exports.as_json import write_json
    from localai_clusters.grading.exports.gradescope import write_gradescope
    from localai_clusters.grading.exports.table import show_table
    from localai_clusters.grading.folder import grade_folder
    from localai_clusters.grading.replayed_folder import grade_replayed
    from localai_clusters.grading.results import GRADED, NEEDS_A_HAND
    from localai_clusters.grading.rubric_file import read_rubrics
    from localai_clusters.signals import as_interrupt

    if check_rubric is not None:
        sys.exit(check(check_rubric, json_))
    if folder is None:
        stop("grade what? Type the folder that the checkpoint files are in: localai-clusters grade DIR", UNDECIDED)
    rubrics = read_rubrics(rubric_files or course_rubrics())
    with as_interrupt(), progress() as (on_progress, say), told_to_gradescope(gradescope):
        grading = partial(grade_replayed, replay=replayer(replay_model, say)) if replay else grade_folder
        book = grading(
            folder,
            rubrics,
            take=take,
            key=read_key(course_key_file),
            processes=processes,
            fresh=fresh,
            on_progress=on_progress,
            on_wait=lambda: say("waiting for another grading of this folder"),
        )
    with book:
        if gradescope:
            write_gradescope(gradescope, list(book.results()), submitted_by)
        write_exports(book, csv_, html, {"canvas": canvas, "moodle": moodle}, column)
        if json_:
            write_json(sys.stdout, book)
        else:
            from rich.console import Console

            show_table(book, Console())
        done = all(entry.outcome in (GRADED, NEEDS_A_HAND) for entry in book.entries)
    sys.exit(HOLDS if done else DOES_NOT_HOLD)


@contextlib.contextmanager
def told_to_gradescope(path: Path | None) -> Iterator[None]:
    """A submission without a record is a result too, for the student who handed it in."""
    from localai_clusters.grading.exports.gradescope import write_gradescope
    from localai_clusters.grading.pool import GradingError

    try:
        yield
    except GradingError:
        if path:
            write_gradescope(path, [])
        raise


def write_exports(
    book,
    csv: Path | None,
    html: Path | None,
    rosters: dict[str, tuple[Path, Path] | None],
    column: str | None,
) -> None:
    """The files that were asked for, each whole or not at all."""
    from localai_clusters.grading.exports.lms import write_lms
    from localai_clusters.grading.exports.page import write_page
    from localai_clusters.grading.exports.spreadsheet import write_csv

    if csv:
        write_csv(csv, book.results(), book.rubrics)
    if html:
        write_page(html, book.folder.name or str(book.folder), book.results, book.rubrics)
    titles = [rubric.title or lab for lab, rubric in book.rubrics.items()]
    if any(rosters.values()) and len(titles) > 1:
        raise ValueError(f"a roster takes the grades of one lab, and there are {len(titles)}; --rubric FILE")
    for system, paths in rosters.items():
        if paths:
            filled, unknown = write_lms(paths[1], system, paths[0], column or titles[0], book.students())
            click.echo(f"{paths[1]}: {filled} students filled in", err=True)
            if unknown:
                click.echo(f"not in {paths[0]}: {', '.join(unknown)}", err=True)


def replayer(models: tuple[str, ...], say: Callable[[str], None]) -> Callable:
    """``replay`` with the models that are looked at beside the built-in ones and the local cache's."""
    from localai_clusters.grading.replay import replay

    return lambda records: [found.to_dict() for found in replay(records, models=models, on_progress=say)]


def check(path: Path, as_json_: bool) -> int:
    """Show a rubric's mistakes, or what it asks for."""
    from localai_clusters.grading.exports.rubric_summary import summary
    from localai_clusters.grading.rubric_file import read_rubric_or_mistakes

    rubric, mistakes = read_rubric_or_mistakes(path)
    if as_json_:
        plain = [{"line": mistake.line, "sentence": mistake.sentence} for mistake in mistakes]
        click.echo(json.dumps({"holds": not mistakes, "mistakes": plain}, indent=2))
    elif rubric is None:
        click.echo("\n".join(f"{path}:{mistake.line}: {mistake.sentence}" for mistake in mistakes))
    else:
        from rich.console import Console

        Console().print(summary(rubric))
    return DOES_NOT_HOLD if mistakes else HOLDS


def course_rubrics() -> list[Path]:
    """The rubrics that lie beside the course's chapters and labs."""
    from localai_clusters.lab import course_root

    found = [path for pattern in RUBRICS for path in sorted(course_root().glob(pattern))]
    if not found:
        raise ValueError(f"there is no rubric in {course_root()} ({' or '.join(RUBRICS)}); give one with --rubric FILE")
    return found


def read_key(path: Path | None) -> str | None:
    """The first line of the key's file; None without one."""
    if path is None:
        return None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None
    if not key or "\n" in key:
        raise ValueError(f"{path} must hold the course's key on one line")
    return key


@contextlib.contextmanager
def progress() -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """(on_progress, say): a bar and a line on stderr if that is a terminal, and nothing otherwise."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield (lambda done, total: None), (lambda text: None)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("grading", total=None)

        def on_progress(done: int, total: int) -> None:
            bar.update(task, description="grading", completed=done, total=total)

        yield on_progress, lambda text: bar.update(task, description=text)
