"""How grades are spread: counts per tenth of the points, and per criterion. Data for the page and the terminal."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from localai_clusters.grading.results import BY_HAND, FULL, NONE, PART, Graded
from localai_clusters.grading.rubric import Rubric

BINS = 10


@dataclass(frozen=True, slots=True)
class CriterionSpread:
    """Of one criterion: how many students have how much of it."""

    title: str
    full: int
    part: int
    none: int
    by_hand: int
    mean_share: float | None  # of its points, over those that are marked


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of one lab: the students whose record counts."""

    lab: str
    title: str
    students: int
    possible: float
    bins: tuple[int, ...]  # students with 0-10 %, 10-20 %, ... 90-100 % of the points
    mean: float | None
    median: float | None
    criteria: tuple[CriterionSpread, ...]


def distributions(students: Iterable[Graded], rubrics: Mapping[str, Rubric]) -> list[Distribution]:
    """One per lab that has a record; ``students`` are the records that count."""
    points: dict[str, list[float]] = {lab: [] for lab in sorted(rubrics)}
    statuses: dict[tuple[str, str], Counter[str]] = {}
    shares: dict[tuple[str, str], list[float]] = {}
    for one in students:
        if one.lab not in points or one.points is None:
            continue
        points[one.lab].append(one.points)
        for result in one.criteria:
            key = (one.lab, result.id)
            statuses.setdefault(key, Counter())[result.status] += 1
            if result.points is not None:
                shares.setdefault(key, []).append(result.points / result.possible)
    return [one_lab(rubrics[lab], lab, reached, statuses, shares) for lab, reached in points.items() if reached]


def one_lab(rubric: Rubric, lab: str, reached: list[float], statuses: dict, shares: dict) -> Distribution:
    bins = [0] * BINS
    for value in reached:
        bins[min(int(value / rubric.possible * BINS), BINS - 1)] += 1
    spread = []
    for criterion in rubric.criteria:
        counts, marked = statuses.get((lab, criterion.id), Counter()), shares.get((lab, criterion.id))
        mean = statistics.fmean(marked) if marked else None
        each = (counts[status] for status in (FULL, PART, NONE, BY_HAND))
        spread.append(CriterionSpread(criterion.title, *each, mean))
    return Distribution(
        lab, rubric.title or lab, len(reached), rubric.possible, tuple(bins), statistics.fmean(reached),
        statistics.median(reached), tuple(spread),
    )  # fmt: skip
