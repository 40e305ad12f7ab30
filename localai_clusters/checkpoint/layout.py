"""The pieces of a page for a person: tables, grids and lines, of text that was made plain."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .summary import count, plain_text

MOST_ROWS = 32  # of any list; a page is to be read


def cell(text: str, longest: int = 40, style: str = "") -> Text:
    return Text(plain_text(text, longest), style)


def table(*columns: str) -> Table:
    """A table of the house; a column that begins with > stands to the right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for column in columns:
        right = column.startswith(">")
        table.add_column(
            Text(column.removeprefix(">")),
            justify="right" if right else "left",
            # a number that breaks into two lines reads as two
            no_wrap=column not in ("run", "on"),
        )
    return table


def grid(columns: int = 2) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(columns):
        grid.add_column()
    return grid


def heading(console: Console, title: str) -> None:
    console.print()
    line(console, Text(title, "bold underline"))


def line(console: Console, text: Text, indent: int = 0) -> None:
    console.print(Padding(text, (0, 0, 0, indent)), highlight=False)


def body(console: Console, table: Table) -> None:
    console.print(Padding(table, (0, 0, 0, 2)), highlight=False)


def more(console: Console, number: int, noun: str) -> None:
    if number > 0:
        line(console, Text(f"and {count(number, f'more {noun}')}", "dim"), indent=4)
