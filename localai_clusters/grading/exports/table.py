"""A gradebook in the terminal."""

from collections import Counter
from itertools import islice

from rich.console import Console
from rich.table import Table
from rich.text import Text

from localai_clusters.checkpoint import plain_text
from localai_clusters.grading.folder import Gradebook
from localai_clusters.grading.results import OUTCOMES, Graded

ROWS = 200  # laid out at a time: rich holds all of a table in memory, several times over


def show_table(book: Gradebook, console: Console) -> None:
    """Every file with its reason and flags, then how many came to what."""
    widest = max(map(len, (entry.student or "" for entry in book.entries)), default=7)
    results, first = book.results(), True
    while rows := list(islice(results, ROWS)):
        table = Table(box=None, pad_edge=False, show_header=first, expand=True)
        table.add_column("student", overflow="fold", width=min(max(widest, 7), 20))
        table.add_column("points", justify="right", width=9)
        table.add_column("outcome", overflow="fold", width=12)
        table.add_column("file", overflow="fold", ratio=2)
        table.add_column("reason", overflow="fold", ratio=3)
        for graded in rows:
            table.add_row(*map(Text, cells(graded)), style="" if graded.counts else "dim")
        console.print(table)
        first = False
    console.print(Text(summary(book)))


def cells(graded: Graded) -> tuple[str, ...]:
    points = "" if graded.points is None else f"{graded.points:g} / {graded.possible:g}"
    flags = (
        f"FLAG {flag.kind}: {flag.sentence} ({'; '.join((*flag.evidence, *flag.others))})" for flag in graded.flags
    )
    said = "; ".join(each for each in (graded.reason, graded.late, *flags) if each)
    return tuple(map(plain_text, (graded.student or "", points, graded.outcome, graded.file, said)))


def summary(book: Gradebook) -> str:
    counts = Counter(entry.outcome for entry in book.entries)
    said = [f"{counts[outcome]:,} {outcome}" for outcome in OUTCOMES if counts[outcome]]
    if len(book.counting) < len(book.entries):
        said.append(f"{len(book.counting):,} count, the others are dim")
    if book.others:
        said.append(f"{book.others:,} files that are no *.json were left alone")
    return "; ".join(said)
