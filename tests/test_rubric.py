"""Rubrics: what an instructor may write, and that every mistake is named with its line."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_checkpoint_example import example

from localai_clusters.cli import grade as grade_verb  # noqa: F401  it adds itself
from localai_clusters.cli import main
from localai_clusters.grading.rubric import KINDS, Rubric
from localai_clusters.grading.rubric_file import MAX_BYTES, RubricError, parse_rubric, read_rubric, read_rubrics

COURSE = Path(__file__).parents[1] / "course"
GOOD = """\
rubric: 1
lab: vllm_distributed_serving
chapter: 7
criteria:
  - id: a
    title: It served
    points: 2
    kind: served
"""


def mistakes(text: str | bytes) -> list[tuple[int, str]]:
    rubric, found = parse_rubric(text.encode() if isinstance(text, str) else text)
    assert (rubric is None) == bool(found)
    return [(mistake.line, mistake.sentence) for mistake in found]


def rubric(text: str) -> Rubric:
    found, wrong = parse_rubric(text.encode())
    assert not wrong
    return found


def test_a_good_rubric_has_no_mistakes():
    found = rubric(GOOD)
    assert (found.lab, found.chapter, found.possible, found.evidence) == ("vllm_distributed_serving", 7, 2.0, "cpu")


@pytest.mark.parametrize("path", sorted(COURSE.glob("*.rubric.yaml")), ids=lambda path: path.stem)
def test_the_courses_rubrics_have_no_mistakes(path):
    found = read_rubric(path)
    assert 10 <= found.possible <= 20
    assert path.name.startswith(f"{found.chapter:02d}_{found.lab}")


# name -> (YAML after GOOD's first three lines or whole, line, words of the sentence)
AFTER = "rubric: 1\nlab: a\nchapter: 7\n"
WRONG = {
    "unknown field": (GOOD + "evidnce: cpu\n", 9, "evidnce is not known here; did you mean evidence?"),
    "unknown field of a criterion": (GOOD + "    run: {}\n    point: 2\n", 10, "point is not known here; did you mean"),
    "unknown size of a run": (GOOD + "    run: {tensor_parallel: 2}\n", 9, "did you mean tensor_parallel_size?"),
    "unknown kind": (GOOD.replace("kind: served", "kind: servd"), 8, "did you mean served?"),
    "no kind": (GOOD.replace("    kind: served\n", ""), 5, "kind is missing; it can be consistent, served"),
    "no points": (GOOD.replace("    points: 2\n", ""), 5, "points is missing"),
    "no criteria": (AFTER, 1, "criteria is missing"),
    "empty criteria": (AFTER + "criteria: []\n", 4, "criteria: list should have at least 1 item"),
    "criteria are a mapping": (AFTER + "criteria: {a: 1}\n", 4, "criteria: should be a valid list"),
    "a criterion is a word": (AFTER + "criteria:\n- served\n", 5, "should be a mapping; found 'served'"),
    "points as a text": (GOOD.replace("points: 2", "points: two"), 7, "points: should be a valid number; found 'two'"),
    "points as yes": (GOOD.replace("points: 2", "points: yes"), 7, "points: should be a valid number; found True"),
    "no points at all": (GOOD.replace("points: 2", "points: 0"), 7, "should be greater than 0"),
    "points without end": (GOOD.replace("points: 2", "points: .inf"), 7, "points: should be a finite number"),
    "another version": (GOOD.replace("rubric: 1", "rubric: 2"), 1, "rubric: should be 1; found 2"),
    "twice the same id": (GOOD + GOOD.partition("criteria:\n")[2], 9, "the id a is that of line 5 too"),
    "twice the same field": (GOOD + "lab: b\n", 9, "'lab' stands twice here"),
    "a size of zero": (GOOD + "    run: {nnodes: 0}\n", 9, "0 is not a size; write 2 for exactly 2, or 2+"),
    "a size that is a word": (GOOD + "    run: {nnodes: two}\n", 9, "'two' is not a size"),
    "a deadline that is a day": (GOOD + "deadline: 2026-12-14\n", 9, "write 2026-12-14 23:59 +01:00"),
    "a deadline without a zone": (GOOD + "deadline: 2026-12-14 23:59\n", 9, "has no time zone; write 2026-12-14 23:59"),
    "a deadline that is an hour": (GOOD + "deadline: 23:59\n", 9, "a number is not a time"),
    "a deadline in words": (GOOD + "deadline: next Monday\n", 9, "'next Monday' is not a time"),
    "a day that is none": (GOOD + "deadline: 2026-13-45\n", 9, "month must be in 1..12"),
    "late without a deadline": (GOOD + "late: {per_day: 10%}\n", 9, "there is no deadline"),
    "a share of 10": (GOOD + "deadline: 2026-12-14 23:59 Z\nlate: {per_day: 10}\n", 10, "write 10%; found 10"),
    "a share of 200 %": (GOOD + "deadline: 2026-12-14 23:59 Z\nlate: {per_day: 200%}\n", 10, "from 0% to 100%"),
    "an id with a space": (GOOD.replace("id: a", "id: a b"), 5, "id: string should match pattern"),
    "a field of the record that is none": (
        GOOD.replace("kind: served", "kind: recorded\n    fields: [versions.python, versions.vlm]"),
        9,
        "the record has no field 'versions.vlm'; there is python, os, vllm",
    ),
    "a field behind a list": (
        GOOD.replace("kind: served", "kind: recorded\n    fields: [runs.0]"),
        9,
        "the record has no field 'runs.0'",
    ),
    "a number without what it should be": (
        GOOD.replace("kind: served", "kind: number\n    answer: q"),
        5,
        "give one of the two",
    ),
    "bytes in seconds": (
        GOOD.replace("kind: served", "kind: number\n    answer: q\n    measured: weights_bytes\n    unit: s"),
        5,
        "unit must be B, KiB",
    ),
    "a choice both right and half right": (
        GOOD.replace("kind: served", "kind: choice\n    answer: q\n    right: [x, y]\n    half: [y]"),
        11,
        "'y' is among `right` too",
    ),
    "a choice that is a list": (
        GOOD.replace("kind: served", "kind: choice\n    answer: q\n    right: [[x]]"),
        10,
        "a choice is a word, a whole number, true or false",
    ),
    "an alias": ("a: &x 1\nb: *x\n", 2, "aliases are not read"),
    "a tag": (GOOD + "title: !!python/name:os.system\n", 9, "a rubric holds plain values"),
    "a tab": ("rubric: 1\n\tlab: a\n", 2, "a tab stands where YAML wants spaces"),
    "a bracket left open": (GOOD + "late: {per_day: 10%\n", 10, "not YAML"),
    "two documents": (GOOD + "---\n" + GOOD, 9, "not YAML"),
    "a name that is a number": (GOOD + "3: 4\n", 9, "'3' is no name of a field"),
    "a name that is a list": (GOOD + "? [a]\n: 4\n", 9, "is no name of a field"),
    "a list": ("- rubric\n", 1, "a rubric is a mapping that begins with `rubric: 1`"),
    "nothing": ("", 1, "a rubric is a mapping"),
    "too deep": (AFTER + "criteria: " + "[" * 40 + "]" * 40, 4, "nested deeper than 16 levels"),
    "a control character": ("rubric: 1\nlab: \x07\n", 2, "special characters are not allowed"),
    "a number without end": (AFTER + f"criteria: {'9' * 5000}\n", 4, "Exceeds the limit"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_named_with_its_line(case):
    text, line, words = WRONG[case]
    found = mistakes(text)
    assert any(at == line and words in sentence for at, sentence in found), found


def test_all_mistakes_are_named_at_once_in_the_order_of_their_lines():
    text = GOOD.replace("points: 2", "points: x").replace("served", "servd") + "lat: 1\ndeadline: 5\n" + "- 1\n"
    assert [line for line, _ in mistakes(text.replace("- 1\n", ""))] == [8, 9, 10]
    other = (
        "rubric: 1\nlab: a b\nchapter: 700\nevidence: gpu\nnodes: -1\ncriteria:\n- {id: a, kind: served}\n- {id: a}\n"
    )
    lines = [line for line, _ in mistakes(other)]
    assert lines == sorted(lines) and {2, 3, 4, 5, 7, 8} <= set(lines)


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"rubric: 1\nlab: \xe9\n", b"[" * 50_000, b"{a: " * 50_000, b"x" * (MAX_BYTES + 1), b"\0"],
)
def test_what_is_no_rubric_at_all_is_a_mistake_too(content):
    assert mistakes(content)


def test_a_byte_order_mark_is_no_mistake():
    assert parse_rubric(b"\xef\xbb\xbf" + GOOD.encode())[1] == []


@pytest.mark.parametrize(
    "written",
    ["2026-12-14 23:59 +01:00", "2026-12-14T23:59+01:00", "2026-12-14 22:59 Z", "2026-12-14T22:59:00Z"],
)
def test_a_deadline_is_the_same_moment_however_it_is_written(written):
    assert rubric(f"{GOOD}deadline: {written}\n").deadline == datetime(2026, 12, 14, 22, 59, tzinfo=UTC)


@pytest.mark.parametrize(("written", "share"), [("10%", 0.1), ("0.1", 0.1), ("12.5 %", 0.125), ("1", 1.0), ("0", 0.0)])
def test_a_share_may_be_written_in_percent(written, share):
    text = f"{GOOD}deadline: 2026-12-14 23:59 Z\nlate: {{per_day: {written}}}\n"
    assert rubric(text).late.per_day == pytest.approx(share)


@pytest.mark.parametrize(("size", "matching"), [("2", {2}), ("2+", {2, 3, 8}), ("'3+'", {3, 8}), ("1", {1})])
def test_a_size_is_exact_or_the_least(size, matching):
    criterion = rubric(f"{GOOD}    run: {{tensor_parallel_size: {size}}}\n").criteria[0]
    run = example().runs[0]
    runs = {
        n: run.model_copy(update={"plan": run.plan.model_copy(update={"tensor_parallel_size": n})})
        for n in (1, 2, 3, 8)
    }
    assert {n for n, each in runs.items() if criterion.run.matches(each)} == matching


def test_a_run_says_what_it_means():
    text = GOOD + "    run: {tensor_parallel_size: 2, pipeline_parallel_size: 2+, dtype: float32}\n"
    assert str(rubric(text).criteria[0].run) == "TP=2, PP=2 or more, dtype=float32"
    assert str(rubric(GOOD).criteria[0].run) == "any plan"


def test_a_rubric_that_was_passed_on_as_json_is_the_same():
    for path in COURSE.glob("*.rubric.yaml"):
        found = read_rubric(path)
        passed = json.loads(json.dumps(found.model_dump(mode="json", exclude_unset=True)))
        assert Rubric.model_validate(passed) == found
    text = GOOD + "    run: {nnodes: 2+}\ndeadline: 2026-12-14 23:59 +01:00\nlate: {per_day: 10%}\n"
    passed = rubric(text).model_dump(mode="json", exclude_unset=True)
    assert Rubric.model_validate(passed) == rubric(text)


def test_every_kind_has_a_name_of_its_own():
    assert len(KINDS) == 19
    assert {"served", "sweep", "refused", "number", "choice", "text", "replayed"} <= KINDS.keys()


def test_two_rubrics_of_one_lab_are_refused(tmp_path):
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(GOOD)
    with pytest.raises(RubricError, match=r"b\.yaml is for lab vllm_distributed_serving, and so is .*a\.yaml"):
        read_rubrics([tmp_path / "a.yaml", tmp_path / "b.yaml"])


def test_the_mistakes_of_all_rubrics_are_named(tmp_path):
    (tmp_path / "a.yaml").write_text("rubric: 1")
    (tmp_path / "b.yaml").write_text("- x")
    with pytest.raises(RubricError) as caught:
        read_rubrics([tmp_path / "a.yaml", tmp_path / "b.yaml", tmp_path / "c.yaml"])
    assert all(name in str(caught.value) for name in ("a.yaml:1:", "b.yaml:1:", "c.yaml: cannot be read: No such file"))


# The verb


def run(*arguments: object):
    return CliRunner().invoke(main, ["grade", *map(str, arguments)])


def test_check_rubric_shows_a_good_one(tmp_path):
    path = tmp_path / "rubric.yaml"
    path.write_text(GOOD + "deadline: 2026-12-14 23:59 +01:00\nlate: {per_day: 10%, refused_after_days: 3}\nnodes: 2\n")
    answer = run("--check-rubric", path)
    assert answer.exit_code == 0
    said = " ".join(answer.output.split())
    assert "no mistakes" in said and "2 served a It served" in said and "on 2 nodes or more" in said
    assert "2026-12-14 22:59 UTC; each day begun costs 10%, at most 100%; nothing counts after 3 days" in said


def test_check_rubric_names_each_mistake_by_file_and_line(tmp_path):
    path = tmp_path / "rubric.yaml"
    path.write_text(GOOD.replace("points", "point") + "lat: 1\n")
    answer = run("--check-rubric", path)
    assert answer.exit_code == 1
    lines = answer.output.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"{path}:{line}" for line in (5, 7, 9)]


def test_check_rubric_as_json(tmp_path):
    path = tmp_path / "rubric.yaml"
    path.write_text("lab: x\nlab: y\n")
    answer = run("--check-rubric", path, "--json")
    assert json.loads(answer.output) == {
        "holds": False,
        "mistakes": [{"line": 2, "sentence": "'lab' stands twice here"}],
    }
    assert answer.exit_code == 1


def test_check_rubric_of_no_file_is_undecided(tmp_path):
    answer = run("--check-rubric", tmp_path / "absent.yaml")
    assert answer.exit_code == 2
    assert "absent.yaml: cannot be read: No such file" in answer.output
