"""Grades as one page that needs no network: plots, each student's criteria with reasons, finding and sorting.

The page allows no script and no style but its own (a Content-Security-Policy with their hashes), so that even a text
that escaped the escaping could not run.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from localai_clusters.checkpoint import plain_text
from localai_clusters.grading.exports.distribution import distributions
from localai_clusters.grading.exports.files import replaced
from localai_clusters.grading.results import OUTCOMES, Graded
from localai_clusters.grading.rubric import Rubric


def write_page(path: Path, name: str, results: Callable[[], Iterable[Graded]], rubrics: Mapping[str, Rubric]) -> None:
    """``results()`` gives every file's grade, one at a time, and is called once per part of the page."""
    outcomes, flagged, counting = Counter(), 0, 0
    for one in results():
        outcomes[one.outcome] += 1
        flagged += bool(one.flags)
        counting += one.counts
    style, script = asset("page.css"), asset("page.js")
    template = environment().from_string(asset("page.html.j2"))
    with replaced(path) as page:
        stream = template.stream(
            name=plain_text(name),
            files=outcomes.total(),
            students=counting,
            outcomes=[(outcome, outcomes[outcome]) for outcome in OUTCOMES],
            flagged=flagged,
            distributions=distributions((one for one in results() if one.counts), rubrics),
            graded=results(),
            style=Markup(style),  # ours, and hashed
            script=Markup(script),
            style_hash=digest(style),
            script_hash=digest(script),
        )
        stream.enable_buffering(64)
        page.writelines(stream)


def environment() -> Environment:
    found = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=without_control
    )
    found.filters["slug"] = lambda text: text.replace(" ", "-")
    return found


def without_control(value: Any) -> Any:
    """Every text that is put in, on one line and without what moves the cursor or the reading direction."""
    return plain_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """As a Content-Security-Policy names the one script or style that may run (CSP level 2, hash-source)."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
