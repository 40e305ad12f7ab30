"""Gradescope's results.json: one submission, a test per criterion.

Format: https://gradescope-autograders.readthedocs.io/en/latest/specs/ (section "Output format").
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localai_clusters.checkpoint import plain_text
from localai_clusters.grading.exports.files import replaced
from localai_clusters.grading.results import BY_HAND, FULL, Graded

LONGEST_OUTPUT = 4000  # characters of one text


def write_gradescope(path: Path, graded: list[Graded], metadata: Path | None = None) -> None:
    """``graded`` are the files of one submission, ``metadata`` Gradescope's submission_metadata.json of it."""
    found = results(graded, submitters(metadata) if metadata else ())
    with replaced(path) as file:
        json.dump(found, file, indent=2, ensure_ascii=True, sort_keys=True)
        file.write("\n")


def submitters(metadata: Path) -> list[str]:
    """Who handed it in, as mail addresses; nobody if the file does not say.

    Format: https://gradescope-autograders.readthedocs.io/en/latest/submission_metadata/
    """
    try:
        users = json.loads(metadata.read_text(encoding="utf-8"))["users"]
        mails = [user["email"] for user in users]
    except (OSError, ValueError, TypeError, LookupError):
        return []
    return [mail for mail in mails if isinstance(mail, str) and mail]


def results(graded: list[Graded], handed_in_by: Sequence[str] = ()) -> dict[str, Any]:
    """What a student sees is plain text; the flags are for the instructor alone (``extra_data``)."""
    counted = next((one for one in graded if one.counts), None)
    if counted is None:
        said = [f"{one.file}: {one.outcome}: {one.reason}" for one in graded] or ["no *.json was handed in"]
        return {"score": 0.0, "output": shown("\n".join(said)), "output_format": "text", "visibility": "visible"}
    others = [one for one in graded if one.file != counted.file]
    lines = [f"{counted.file}: {counted.outcome}: {counted.reason}", counted.late]
    lines += [f"not counted: {one.file}: {one.reason}" for one in others]
    return {
        "score": counted.points or 0.0,
        "output": shown("\n".join(line for line in lines if line)),
        "output_format": "text",
        "visibility": "visible",
        "tests": [
            {
                "name": shown(result.title),
                "number": str(place),
                "score": result.points or 0.0,
                "max_score": result.possible,
                "output": shown(result.reason),
                "output_format": "text",
                "visibility": "visible",
                **({} if result.status == BY_HAND else {"status": "passed" if result.status == FULL else "failed"}),
            }
            for place, result in enumerate(counted.criteria, 1)
        ],
        "extra_data": {
            "file": shown(counted.file),
            "outcome": counted.outcome,
            "flags": [
                *(shown(flag.sentence) for one in graded for flag in one.flags),
                *another_student(counted, handed_in_by),
            ],
        },
    }


def another_student(counted: Graded, handed_in_by: Sequence[str]) -> list[str]:
    """A flag if the record is of none of those who handed it in. Ids and mail addresses may differ in all but this."""
    ids = {mail.casefold() for mail in handed_in_by} | {mail.partition("@")[0].casefold() for mail in handed_in_by}
    if not ids or (counted.student or "").casefold() in ids:
        return []
    return [shown(f"the record is {counted.student}'s; it was handed in by {', '.join(handed_in_by)}")]


def shown(text: str) -> str:
    """Safe text of a bounded length, its line breaks kept."""
    return "\n".join(plain_text(line) for line in text.split("\n"))[:LONGEST_OUTPUT]
