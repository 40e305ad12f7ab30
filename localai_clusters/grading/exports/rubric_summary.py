"""A rubric for the eyes of who wrote it."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from localai_clusters.grading.rubric import Rubric


def summary(rubric: Rubric) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    table.add_column("points", justify="right")
    for name in ("kind", "criterion", "title"):
        table.add_column(name, overflow="fold")
    for criterion in rubric.criteria:
        table.add_row(f"{criterion.points:g}", criterion.kind, criterion.id, Text(criterion.title))
    table.add_row(f"{rubric.possible:g}", "", "", "in all")
    evidence = f"evidence: {rubric.evidence} or more"
    if rubric.nodes:
        evidence += f", on {rubric.nodes} nodes or more"
    return Group(
        Text(f"{rubric.title or rubric.lab} (chapter {rubric.chapter}, lab {rubric.lab}): no mistakes"),
        Text(evidence),
        Text(f"deadline: {deadline(rubric)}"),
        table,
    )


def deadline(rubric: Rubric) -> str:
    if rubric.deadline is None:
        return "none"
    said = f"{rubric.deadline:%Y-%m-%d %H:%M} UTC"
    late = rubric.late
    if late is None:
        return f"{said}; being late costs nothing"
    said += f"; each day begun costs {late.per_day:.0%}, at most {late.at_most:.0%}"
    return said + (f"; nothing counts after {late.refused_after_days} days" if late.refused_after_days else "")
