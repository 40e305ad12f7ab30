"""One record to its grade: every outcome with its reason, lateness, evidence, what needs a hand."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from localai_clusters.checkpoint import Checkpoint, digest_of, read, to_json
from localai_clusters.checkpoint.building import from_json
from localai_clusters.grading import grade as grading
from localai_clusters.grading.grade import FAILED, grade_content, grade_file, grade_record
from localai_clusters.grading.results import OUTCOMES, Graded
from localai_clusters.grading.rubric import Rubric
from localai_clusters.grading.rubric_file import read_rubric

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.grade import made_record

ROOT = Path(__file__).parents[1]
REAL = ROOT / "tests" / "records" / "cpu_2_cores_float32_tp1_tp2_pp2.json"
CHAPTER = read_rubric(ROOT / "course" / "07_vllm_distributed_serving.rubric.yaml")
CONFIRMED = {"outcome": "confirmed", "reason": "288 tokens"}


def rubric(**changes: Any) -> Rubric:
    """Two points for serving, and what the test is about."""
    served = {"id": "served", "title": "It served", "points": 2.0, "kind": "served"}
    about = {"rubric": 1, "lab": "vllm_distributed_serving", "chapter": 7, "criteria": [served]}
    return Rubric.model_validate({**about, **changes})


def grade(record: Checkpoint | None = None, replay: dict | None = None, **changes: Any) -> Graded:
    found = rubric(**changes)
    return grade_record(record or read(REAL), "a.json", {found.lab: found}, replay)


def changed(**fields: Any) -> Checkpoint:
    """The real record with other top-level fields, and a digest that fits."""
    plain = {**json.loads(REAL.read_text(encoding="utf-8")), **fields}
    plain["digest"] = digest_of(from_json(plain))
    return from_json(plain)


def test_a_run_through_without_own_work_gets_most_but_not_all_points():
    found = grade_record(read(REAL), "a.json", {CHAPTER.lab: CHAPTER}, CONFIRMED)
    assert (found.outcome, found.points, found.possible) == ("graded", 16.0, 18.0)
    assert [result.id for result in found.criteria if result.points < result.possible] == ["constraints"]
    assert found.flags == ()


def test_own_sentences_bring_the_rest():
    said = [
        {"kind": "other", "sentence": "My laptop ran on battery and was slower.", "source": "student"},
        {"kind": "other", "sentence": "Two cores are what this machine has.", "source": "student"},
    ]
    plain = json.loads(REAL.read_text(encoding="utf-8"))
    found = grade_record(changed(constraints=plain["constraints"] + said), "a.json", {CHAPTER.lab: CHAPTER}, CONFIRMED)
    assert (found.outcome, found.points) == ("graded", 18.0)


def test_without_replay_the_chapters_record_waits_for_a_hand():
    found = grade_record(read(REAL), "a.json", {CHAPTER.lab: CHAPTER})
    assert (found.outcome, found.points) == ("needs a hand", 15.0)
    assert found.reason == "1 criterion to mark: The model says what is recorded"


def test_a_refuted_replay_costs_its_points_and_is_flagged():
    replay = {"outcome": "refuted", "reason": "token 3 is not what the model says"}
    found = grade_record(read(REAL), "a.json", {CHAPTER.lab: CHAPTER}, replay)
    assert (found.outcome, found.points) == ("graded", 15.0)
    assert [flag.kind for flag in found.flags] == ["replay"]
    assert found.replay == replay


def test_graded():
    found = grade()
    assert (found.outcome, found.reason, found.points, found.possible) == ("graded", "2 of 2 points", 2.0, 2.0)
    assert (found.student, found.lab) == ("s123", "vllm_distributed_serving")
    assert found.submitted_at == "2026-11-23T11:51:01Z"


def test_a_record_that_contradicts_itself_needs_a_hand_and_keeps_its_points():
    plain = json.loads(REAL.read_text(encoding="utf-8"))
    plain["answers"] = {"q": 1}
    found = grade(from_json(plain))
    assert (found.outcome, found.points) == ("needs a hand", 2.0)
    assert found.reason.startswith("it contradicts itself: digest: it is not the digest of this content")


def test_a_lab_without_a_rubric_needs_a_hand():
    found = grade(lab="another_lab")
    assert (found.outcome, found.points, found.possible) == ("needs a hand", None, 0.0)
    assert found.reason == ("there is no rubric for lab vllm_distributed_serving of chapter 7 (there are: another_lab)")
    assert "of chapter 7 (there are: vllm_distributed_serving)" in grade(chapter=8).reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evidence": "cuda"}, "it is cpu evidence and the rubric asks for cuda: run the lab on such a machine"),
        ({"nodes": 2}, "it ran on 1 node and the rubric asks for 2"),
    ],
)
def test_below_the_evidence_level(changes, words):
    found = grade(**changes)
    assert (found.outcome, found.reason, found.points, found.possible) == ("below the evidence level", words, 0.0, 2.0)
    assert found.criteria[0].status == "full"  # what it would have been worth is still there to see


@pytest.mark.parametrize("level", ["dry-run", "cpu"])
def test_as_much_evidence_as_asked_for_is_enough(level):
    assert grade(evidence=level).outcome == "graded"


LATE = {"per_day": "25%", "at_most": "60%", "refused_after_days": 4}


@pytest.mark.parametrize(
    ("deadline", "late", "points", "words"),
    [
        ("2026-11-23 11:51:01 +00:00", LATE, 2.0, ""),
        ("2026-11-23 12:51:01 +01:00", LATE, 2.0, ""),
        ("2026-11-23 11:51:00 +00:00", LATE, 1.5, "1 day late: 25% of 2 points lost"),
        ("2026-11-22 11:51:01 +00:00", LATE, 1.5, "1 day late: 25% of 2 points lost"),
        ("2026-11-22 11:51:00 +00:00", LATE, 1.0, "2 days late: 50% of 2 points lost"),
        ("2026-11-20 12:00:00 +00:00", LATE, 0.8, "3 days late: 60% of 2 points lost"),
        ("2026-11-19 12:00:00 +00:00", LATE, 0.8, "4 days late: 60% of 2 points lost"),
        ("2026-11-18 12:00:00 +00:00", LATE, 0.0, "5 days late: nothing counts after 4 days"),
        ("2026-11-18 12:00:00 +00:00", None, 2.0, "5 days late, which costs nothing"),
    ],
)
def test_lateness(deadline, late, points, words):
    found = grade(deadline=deadline, late=late)
    assert (found.points, found.late) == (points, words)
    assert found.criteria[0].points == 2.0


def test_texts_to_mark_are_named():
    texts = [
        {"id": name, "title": f"Answer {name}", "points": 1.0, "kind": "text", "answer": name} for name in ("p", "q")
    ]
    found = grade(changed(answers={"p": "yes", "q": "no"}), criteria=texts)
    assert (found.outcome, found.points, found.possible) == ("needs a hand", 0.0, 2.0)
    assert found.reason == "2 criteria to mark: Answer p; Answer q"


@pytest.mark.parametrize(
    ("content", "outcome", "reason"),
    [
        (b"", "unreadable", "the file is empty"),
        (b"{", "unreadable", "the file ends too early, in line 1: it was cut short"),
        (b"\xff", "unreadable", "not UTF-8 at byte 0"),
        (b"[]", "unreadable", "a checkpoint is one JSON object, this is something else"),
        (b'{"schema_version": 1}', "unreadable", "record_id: this field is missing (and other fields are wrong)"),
        (b" " * (16 * 2**20 + 1), "unreadable", "larger than a checkpoint may be (16,777,216 bytes)"),
        (b'{"schema_version": 99}', "too new", "this file is version 99; this program reads up to 2"),
    ],
)
def test_what_is_no_record(content, outcome, reason):
    found, record = grade_content(content, "x/a.json", {})
    assert (found.outcome, found.file, found.points, record) == (outcome, "x/a.json", None, None)
    assert found.reason.startswith(reason)
    assert found.outcome in OUTCOMES


def test_a_file_that_is_not_there(tmp_path):
    found, record = grade_file(tmp_path / "a.json", "a.json", {})
    assert (found.outcome, found.reason, record) == ("unreadable", "cannot be read: No such file or directory", None)


@pytest.mark.parametrize("part", ["verify", "parse"])
def test_what_the_grader_did_not_foresee_fails_one_file_and_says_so(monkeypatch, part):
    def broken(*_):
        raise RecursionError("\x1b[2Jdeep")

    monkeypatch.setattr(grading, part, broken)
    found, _ = grade_content(REAL.read_bytes(), "a.json", {CHAPTER.lab: CHAPTER})
    assert found.outcome == ("needs a hand" if part == "verify" else "unreadable")
    assert found.reason == f"{FAILED} (RecursionError: deep): please report this"


def test_a_file_that_takes_too_much_memory_is_unreadable(monkeypatch):
    def broken(*_):
        raise MemoryError

    monkeypatch.setattr(grading, "parse", broken)
    assert "take more memory" in grade_content(b"{}", "a.json", {})[0].reason


def test_a_grade_survives_json():
    record = from_json(made_record(json.loads(REAL.read_text()), "s1", random.Random(1)))
    flagged = record.model_copy(update={"versions": record.versions.model_copy(update={"torch": "1.0"})})
    for each in (record, flagged):
        found = grade_record(each, "ä/b.json", {CHAPTER.lab: CHAPTER}, CONFIRMED)
        assert Graded.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found.flags


def test_the_largest_record_that_may_be_is_graded_in_seconds(tmp_path):
    """64 runs, 1,024 prompts and 8,192 answers: nothing in a grading may be quadratic in what a student hands in."""
    plain = json.loads(REAL.read_text(encoding="utf-8"))
    run, said, text = plain["runs"][1], plain["observed"]["completions"][0], plain["data"]["prompts"][0]
    plain["runs"] = [{**run, "run_id": f"r{n}"} for n in range(64)]
    plain["data"]["prompts"] = [{**text, "text": f"{n}", "token_ids": None} for n in range(1024)]
    plain["observed"]["completions"] = [
        {**said, "run_id": f"r{n % 64}", "prompt_index": n % 1024, "token_ids": [n % 7] * 9, "logprobs": None}
        for n in range(8192)
    ]
    plain["observed"]["comparisons"] = [
        {"run_a": "r0", "run_b": f"r{n % 64}", "prompt_index": n % 1024, "tokens_equal": True} for n in range(8192)
    ]
    plain["preflight"] = plain["preflight"][:1] * 4096
    plain["constraints"] = plain["constraints"][:1] * 256
    record = from_json(plain)
    found, _ = grade_content(to_json(record).encode(), "a.json", {CHAPTER.lab: CHAPTER})
    assert found.outcome == "needs a hand"
    assert len(json.dumps(found.to_dict())) < 100_000


def twice(text: str, member: str) -> str:
    assert member in text
    return text.replace(member, f"{member} {member}", 1)


@pytest.mark.parametrize("lacking", ["", '"nccl": null,', '"nvidia_smi": null'])
@pytest.mark.parametrize(
    "member",
    [
        '"student": "s123",',
        '"tensor_parallel_size": 2,',
        '"OMP_NUM_THREADS": "2",',
        '"kind": "cpu",',
        '"check": "heads",',
    ],
)
def test_a_field_that_stands_twice_is_found_in_a_record_that_is_whole_otherwise(member, lacking):
    """And where another one is left out, so that the number of fields is right."""
    text = REAL.read_text(encoding="utf-8")
    if lacking:
        assert lacking in text
        text = text.replace(lacking, "", 1).replace("],\n    \n  }", "]\n  }")
        assert grade_content(text.encode(), "a.json", {})[1] is not None
    found, record = grade_content(twice(text, member).encode(), "a.json", {})
    assert record is None and "stands twice in one object" in found.reason
