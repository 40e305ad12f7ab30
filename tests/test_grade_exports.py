"""Exports of grades: spreadsheets that run nothing, Gradescope's format, an LMS's roster, a page of its own script."""

import base64
import csv
import hashlib
import html.parser
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from localai_clusters.grading.exports.distribution import distributions
from localai_clusters.grading.exports.files import replaced
from localai_clusters.grading.exports.gradescope import results, write_gradescope
from localai_clusters.grading.exports.lms import RosterError, write_lms
from localai_clusters.grading.exports.page import write_page
from localai_clusters.grading.exports.spreadsheet import write_csv
from localai_clusters.grading.results import (
    BELOW_EVIDENCE,
    BY_HAND,
    FULL,
    GRADED,
    NEEDS_A_HAND,
    NONE,
    PART,
    UNREADABLE,
    CriterionResult,
    Flag,
    Graded,
)
from localai_clusters.grading.rubric import Rubric

RUBRIC = Rubric.model_validate(
    {
        "rubric": 1,
        "lab": "serving",
        "chapter": 7,
        "criteria": [
            {"id": "tp", "title": "Served with TP=2", "points": 4, "kind": "served"},
            {"id": "load", "title": "Load <tested>", "points": 2, "kind": "load-tested"},
            {"id": "why", "title": "Explained", "points": 1, "kind": "text", "answer": "why"},
        ],
    }
)
RUBRICS = {"serving": RUBRIC}
HOSTILE = ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "=cmd|'/C calc'!A0"]
MARKUP = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b[31m"


def graded(student: str = "s1", load: float = 1.0, **changes) -> Graded:
    status = {0.0: NONE, 1.0: PART, 2.0: FULL}[load]
    criteria = (
        CriterionResult("tp", "Served with TP=2", 4.0, 4.0, FULL, "run r1 served"),
        CriterionResult("load", "Load <tested>", load, 2.0, status, "half of it. Call server.bench()"),
        CriterionResult("why", "Explained", None, 1.0, BY_HAND, "a text to be read"),
    )
    found = Graded(
        f"{student}/07.json", student, "serving", NEEDS_A_HAND, "to be marked by hand: Explained", 4 + load, 7.0,
        criteria, (), "2026-11-23T10:00:00Z", counts=True,
    )  # fmt: skip
    return replace(found, **changes)


def unreadable(name: str = "broken.json", reason: str = "not JSON") -> Graded:
    return Graded(name, None, None, UNREADABLE, reason, None, 0.0)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# CSV


def test_csv_has_a_column_per_criterion_its_status_and_the_points_possible(tmp_path):
    one = graded()
    write_csv(tmp_path / "g.csv", [one, unreadable()], RUBRICS)
    possible, first, second = table(tmp_path / "g.csv")
    assert (possible["file"], possible["points"], possible["tp"], possible["why"]) == ("points possible", "7", "4", "1")
    assert (first["student"], first["points"], first["counts"], first["outcome"]) == ("s1", "5", "yes", NEEDS_A_HAND)
    assert [first[name] for name in ("tp", "tp status", "load", "load status", "why", "why status")] == [
        "4", FULL, "1", PART, "", BY_HAND,
    ]  # fmt: skip
    assert (second["file"], second["points"], second["outcome"], second["tp"]) == ("broken.json", "", UNREADABLE, "")


def test_csv_of_several_labs_names_the_lab_in_the_column(tmp_path):
    other = RUBRIC.model_copy(update={"lab": "memory"})
    write_csv(tmp_path / "g.csv", [graded()], {"serving": RUBRIC, "memory": other})
    row = table(tmp_path / "g.csv")[1]
    assert (row["serving:tp"], row["memory:tp"]) == ("4", "")


@pytest.mark.parametrize("text", HOSTILE)
def test_no_cell_begins_a_formula(tmp_path, text):
    flag = Flag("copy", text)
    write_csv(tmp_path / "g.csv", [graded(reason=text, late=text, flags=(flag,))], RUBRICS)
    for row in csv.reader(io.StringIO((tmp_path / "g.csv").read_text())):
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)


def test_csv_keeps_a_row_whole_when_a_file_name_holds_a_line_break(tmp_path):
    write_csv(tmp_path / "g.csv", [unreadable('a\nb\r\n=1,".json')], RUBRICS)
    assert len(table(tmp_path / "g.csv")) == 2


# Gradescope


def test_gradescope_results_have_a_test_per_criterion(tmp_path):
    one = graded()
    write_gradescope(tmp_path / "results.json", [one, unreadable()])
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["score"] == 5.0
    assert [(test["score"], test["max_score"], test.get("status")) for test in found["tests"]] == [
        (4.0, 4.0, "passed"),
        (1.0, 2.0, "failed"),
        (0.0, 1.0, None),
    ]
    assert "not counted: broken.json: not JSON" in found["output"]
    assert found["output_format"] == "text"  # Gradescope escapes it


def test_gradescope_shows_a_flag_to_the_instructor_only():
    one = graded(flags=(Flag("copy", "shared with s2"),))
    found = results([one])
    assert found["extra_data"]["flags"] == ["shared with s2"]
    assert "s2" not in json.dumps({key: value for key, value in found.items() if key != "extra_data"})


@pytest.mark.parametrize("handed_in", [[], [unreadable()]])
def test_gradescope_gets_a_score_of_0_and_a_reason_where_nothing_could_be_read(handed_in):
    found = results(handed_in)
    assert found["score"] == 0.0
    assert found["output"] in ("no *.json was handed in", "broken.json: unreadable: not JSON")


def test_gradescope_gives_nothing_below_the_evidence_level():
    one = graded(outcome=BELOW_EVIDENCE, points=0.0)
    assert results([one])["score"] == 0.0


# Canvas and Moodle

CANVAS = """\
Student,ID,SIS User ID,SIS Login ID,Section,Chapter 6 (11)
Points Possible,,,,,10
"Ada, L.",901,u1,S1@uni.example,A,9
"Bob, M.",902,u2,s9@uni.example,A,8
"""
MOODLE = """\
First name,ID number,Email address
Ada,s1,ada@uni.example
Bob,s9,bob@uni.example
"""


def test_canvas_roster_is_filled_in_and_otherwise_kept(tmp_path):
    (tmp_path / "roster.csv").write_text("\ufeff" + CANVAS, encoding="utf-8")
    out = tmp_path / "canvas.csv"
    filled, unknown = write_lms(out, "canvas", tmp_path / "roster.csv", "Chapter 7 (12)", [graded(), graded("s2")])
    assert (filled, unknown) == (1, ["s2"])
    possible, ada, bob = table(out)
    assert (possible["Chapter 7 (12)"], ada["Chapter 7 (12)"], bob["Chapter 7 (12)"]) == ("7", "5", "")
    assert (ada["Student"], ada["SIS Login ID"], ada["Chapter 6 (11)"]) == ("Ada, L.", "S1@uni.example", "9")


def test_moodle_roster_gets_the_grade_and_the_reasons(tmp_path):
    (tmp_path / "roster.csv").write_text(MOODLE)
    filled, unknown = write_lms(tmp_path / "m.csv", "moodle", tmp_path / "roster.csv", "Grade", [graded()])
    ada, bob = table(tmp_path / "m.csv")
    assert (filled, unknown, ada["Grade"], bob["Grade"]) == (1, [], "5", "")
    assert ada["Feedback comments"] == "Load <tested>: half of it. Call server.bench(); Explained: a text to be read"
    assert bob["Feedback comments"] == ""


def test_an_existing_column_is_filled_in_its_place(tmp_path):
    (tmp_path / "roster.csv").write_text(CANVAS)
    write_lms(tmp_path / "c.csv", "canvas", tmp_path / "roster.csv", "Chapter 6 (11)", [graded()])
    assert [row["Chapter 6 (11)"] for row in table(tmp_path / "c.csv")] == ["7", "5", "8"]


@pytest.mark.parametrize("content", [b"", b"name,mark\nx,1\n", b"\xff\xfe"])
def test_a_roster_of_another_kind_is_refused_by_name(tmp_path, content):
    (tmp_path / "roster.csv").write_bytes(content)
    with pytest.raises(RosterError, match=r"roster\.csv .*export it"):
        write_lms(tmp_path / "c.csv", "canvas", tmp_path / "roster.csv", "x", [graded()])
    assert not (tmp_path / "c.csv").exists()


# The page


class Tags(html.parser.HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


def page(tmp_path: Path, *all_graded: Graded, name: str = "course") -> str:
    write_page(tmp_path / "p.html", name, lambda: iter(all_graded), RUBRICS)
    return (tmp_path / "p.html").read_text()


def test_the_page_escapes_what_a_student_wrote_wherever_it_stands(tmp_path):
    flag = Flag(MARKUP, MARKUP, (MARKUP,), (MARKUP,))
    criterion = CriterionResult("tp", MARKUP, 1.0, 4.0, PART, MARKUP)
    text = page(
        tmp_path,
        graded(MARKUP, file=MARKUP, reason=MARKUP, late=MARKUP, flags=(flag,), criteria=(criterion,)),
        unreadable(MARKUP, MARKUP),
        name=MARKUP,
    )
    found = Tags(text)
    assert found.tags.count("script") == 1
    assert "img" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert "\x1b" not in text


def test_the_page_allows_its_own_script_and_style_and_no_network(tmp_path):
    text = page(tmp_path, graded())
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    for tag in ("script", "style"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S)[1]
        hashed = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{hashed}'" in policy.replace("&#39;", "'")
    assert "default-src 'none'" in policy
    assert not [value for name, value in Tags(text).attributes if name in ("src", "href")]


def test_the_page_says_for_every_file_its_outcome_and_every_reason(tmp_path):
    text = page(tmp_path, graded(), unreadable())
    for words in ("run r1 served", "half of it. Call server.bench()", "a text to be read", "broken.json", "not JSON"):
        assert words in text
    assert "1 student, of 7 points: mean 5.0, median 5.0" in text


def test_the_page_of_nothing_readable_is_still_a_page(tmp_path):
    assert "unreadable" in page(tmp_path, unreadable())


def test_the_distribution_counts_students_by_tenths_and_criteria_by_status():
    counting = [graded("a", 0.0), graded("b", 2.0), graded("c", 2.0), replace(graded("d"), points=7.0)]
    (found,) = distributions(counting, RUBRICS)
    assert (found.students, found.bins) == (4, (0, 0, 0, 0, 0, 1, 0, 0, 2, 1))
    load = found.criteria[1]
    assert (load.full, load.part, load.none, load.by_hand, load.mean_share) == (2, 1, 1, 0, 0.625)
    assert found.criteria[2].mean_share is None


# Whole or not at all, and the same bytes each time


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "grades.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError), replaced(path) as file:
        file.write("half of it")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["grades.csv"]


def test_the_same_grades_give_the_same_bytes(tmp_path):
    both = [graded(), graded("s2", 2.0, flags=(Flag("copy", "x", ("y",), ("z",)),), outcome=GRADED)]
    for name in ("a", "b"):
        write_csv(tmp_path / f"{name}.csv", both, RUBRICS)
        write_page(tmp_path / f"{name}.html", "x", lambda: iter(both), RUBRICS)
        write_gradescope(tmp_path / f"{name}.json", both)
    for suffix in ("csv", "html", "json"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
