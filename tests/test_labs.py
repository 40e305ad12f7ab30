"""Every lab through the command line, as CI and a student run it: with its solutions, and untouched. Both are graded.

One run of each; both need the real servers, so that this file takes some minutes.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from leftovers_of import assert_nothing_left

from localai_clusters import checkpoint
from localai_clusters.authoring import read_source
from localai_clusters.exercises.text import Text
from localai_clusters.exercises.where import LabFiles, all_labs
from localai_clusters.grading.grade import grade_file
from localai_clusters.grading.results import BY_HAND, FULL, Graded
from localai_clusters.grading.rubric_file import read_rubric

CLI = str(Path(sys.executable).with_name("localai-clusters"))
# Untouched, a lab has nothing to answer with; fewer servers show as well that it runs to its end.
SHORTER = {"07/2": ("-p", "layouts=tp1,tp2"), "07/4": ("-p", "delays_ms=0 2")}
SECONDS = 240  # a run takes a third of it when nothing else runs


@dataclass(frozen=True)
class Ran:
    """What a run of a lab came to."""

    files: LabFiles
    done: subprocess.CompletedProcess
    said: dict
    notebook: nbformat.NotebookNode
    record: checkpoint.Checkpoint
    graded: Graded


def ran(files: LabFiles, folder: Path, *options: str) -> Ran:
    student = f"ci-lab-{files.chapter}-{files.number}{''.join(options)}"
    output = folder / f"{student}.ipynb"
    options = (*options, *(() if "--solved" in options else SHORTER.get(files.name, ())))
    command = [CLI, "lab", files.name, "--ci", "-p", f"student={student}", "-o", str(output), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.stdout, done.stderr
    said = json.loads(done.stdout)
    path = Path(said["checkpoints"][0]["path"])
    try:
        rubric = read_rubric(files.rubric)
        graded, record = grade_file(path, path.name, {rubric.lab: rubric})
        return Ran(files, done, said, nbformat.read(output, as_version=4), record, graded)
    finally:
        for written in said["checkpoints"]:
            Path(written["path"]).unlink(missing_ok=True)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()


@pytest.fixture(scope="module", params=all_labs(), ids=lambda files: files.slug)
def lab(request) -> LabFiles:
    return request.param


@pytest.fixture(scope="module")
def solved(lab, tmp_path_factory) -> Ran:
    return ran(lab, tmp_path_factory.mktemp("solved"), "--solved")


@pytest.fixture(scope="module")
def untouched(lab, tmp_path_factory) -> Ran:
    return ran(lab, tmp_path_factory.mktemp("untouched"))


def test_there_are_the_four_labs_of_chapter_7():
    assert [files.name for files in all_labs()][:4] == ["07/1", "07/2", "07/3", "07/4"]


@pytest.mark.timeout(SECONDS)
def test_with_its_solutions_every_check_is_right(solved):
    assert solved.done.returncode == 0, solved.done.stderr
    exercises = read_source(solved.files).exercises
    wanted = {name: "by-hand" if isinstance(exercise, Text) else "right" for name, exercise in exercises.items()}
    assert {each["id"]: each["status"] for each in solved.said["exercises"]} == wanted
    assert {outcome.id: outcome.status for outcome in solved.record.exercises} == wanted
    assert all(outcome.attempts == 1 and not outcome.solution_shown for outcome in solved.record.exercises)


@pytest.mark.timeout(SECONDS)
def test_untouched_it_runs_to_its_end_and_nothing_is_wrong(untouched):
    assert untouched.done.returncode == 0, untouched.done.stderr
    exercises = list(read_source(untouched.files).exercises)
    assert {each["id"]: each["status"] for each in untouched.said["exercises"]} == dict.fromkeys(exercises, "not-tried")
    assert [(each.id, each.status, each.attempts) for each in untouched.record.exercises] == [
        (name, "not-tried", 0) for name in exercises
    ]
    assert not set(untouched.record.answers) & set(exercises)


def test_both_records_agree_with_themselves_and_are_of_this_lab(lab, solved, untouched):
    for run in (solved, untouched):
        assert (run.record.chapter, run.record.lab) == (lab.chapter, lab.slug)
        assert [finding for finding in checkpoint.verify(run.record) if finding.severity == "wrong"] == []


def test_the_solved_record_gets_every_point_that_needs_no_person(solved):
    lost = [f"{each.id}: {each.reason}" for each in solved.graded.criteria if each.status not in (FULL, BY_HAND)]
    assert lost == []


def test_the_untouched_record_gets_fewer_and_is_told_why(solved, untouched):
    def points(graded: Graded) -> float:
        return sum(each.points or 0 for each in graded.criteria)

    assert points(untouched.graded) < points(solved.graded)
    assert all(each.reason for each in untouched.graded.criteria)
    texts = {each.id for each in solved.graded.criteria if each.status == BY_HAND and "a text of" in each.reason}
    assert not texts & {each.id for each in untouched.graded.criteria if each.status == BY_HAND}


def test_nothing_of_its_servers_is_left(solved, untouched):
    for run in (solved, untouched):
        for served in run.record.runs:
            assert_nothing_left(served.run_id)


def test_no_output_holds_an_error(solved, untouched):
    for run in (solved, untouched):
        kinds = {output["output_type"] for cell in run.notebook.cells for output in cell.get("outputs", ())}
        assert "error" not in kinds and "execute_result" in kinds
