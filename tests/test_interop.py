"""What a course uploads elsewhere: the Gradescope autograder, laid out as Gradescope does, and a GitHub workflow."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GRADESCOPE = ROOT / "interop" / "gradescope"
RUBRIC = ROOT / "course" / "07_vllm_distributed_serving.rubric.yaml"
EXAMPLE = next(iter(sorted((ROOT / "tests" / "records").rglob("*.json"))))
# What an image without vLLM does not have; a grader that imports one of these fails there.
HEAVY = "torch vllm transformers numpy gguf aiohttp httpx huggingface_hub papermill jupyterlab pyroute2 pynvml openai"


def run(*command: str | Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def autograder(tmp_path) -> Path:
    """/autograder as Gradescope makes it: source/ from the zip, run_autograder beside it, submission/ and results/."""
    at = tmp_path / "autograder"
    packed = run(sys.executable, GRADESCOPE / "pack.py", RUBRIC, "-o", tmp_path / "upload.zip", cwd=tmp_path)
    assert packed.returncode == 0, packed.stderr
    with zipfile.ZipFile(tmp_path / "upload.zip") as archive:
        archive.extractall(at / "source")
    for name in ("submission", "results"):
        (at / name).mkdir()
    shutil.copy(at / "source" / "run_autograder", at)
    (at / "run_autograder").chmod(0o755)
    return at


def graded(at: Path) -> dict:
    """results.json of a run without the packages that the image does not have."""
    blocker = at / "blocker"
    blocker.mkdir()
    for name in HEAVY.split():
        (blocker / f"{name}.py").write_text("raise ImportError('not in the image')\n")
    python = at / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{blocker}" exec {sys.executable} -P "$@"\n')
    python.chmod(0o755)
    answer = run(at / "run_autograder", env={**os.environ, "LAC_PYTHON": str(python), "HOME": str(at)}, cwd="/")
    assert answer.returncode == 0, answer.stderr
    return json.loads((at / "results" / "results.json").read_text())


def test_the_autograder_grades_a_submission_where_nothing_heavy_is_installed(autograder):
    shutil.copy(EXAMPLE, autograder / "submission" / "07.json")
    found = graded(autograder)
    assert found["tests"] and found["score"] == pytest.approx(sum(test["score"] for test in found["tests"]))
    assert {test["name"] for test in found["tests"]} >= {"The record agrees with itself"}
    assert found["extra_data"]["flags"] == []


@pytest.mark.parametrize(
    ("email", "flagged"), [("{}@uni.edu", False), ("{}", False), ("eve@uni.edu", True)], ids=["mail", "id", "another"]
)
def test_a_record_of_somebody_else_is_flagged_for_the_instructor(autograder, email, flagged):
    shutil.copy(EXAMPLE, autograder / "submission" / "07.json")
    student = json.loads(EXAMPLE.read_text())["student"]
    about = {"id": 123456, "users": [{"email": email.format(student), "id": 1234, "name": "Student"}]}
    (autograder / "submission_metadata.json").write_text(json.dumps(about))
    found = graded(autograder)
    said = [f"the record is {student}'s; it was handed in by eve@uni.edu"]
    assert found["extra_data"]["flags"] == (said if flagged else [])
    assert "eve@" not in json.dumps(found["tests"]) + found["output"]


@pytest.mark.parametrize("content", [None, "{"])
def test_the_autograder_tells_a_student_what_is_wrong_with_what_was_handed_in(autograder, content):
    if content:
        (autograder / "submission" / "07.json").write_text(content)
    found = graded(autograder)
    assert found["score"] == 0.0
    assert ("unreadable" if content else "no *.json") in found["output"]


def test_the_zip_is_the_same_each_time_and_holds_no_course_key_by_itself(tmp_path):
    for name in ("a.zip", "b.zip"):
        assert run(sys.executable, GRADESCOPE / "pack.py", RUBRIC, "-o", tmp_path / name).returncode == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = archive.namelist()
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
    assert {"setup.sh", "run_autograder", "requirements.txt", "rubric.yaml"} <= set(names)
    assert modes["run_autograder"] & 0o111 and modes["setup.sh"] & 0o111
    assert "course_key" not in names and not [name for name in names if "__pycache__" in name]


def test_a_rubric_with_a_mistake_is_not_packed(tmp_path):
    (tmp_path / "r.yaml").write_text("rubric: 1\nlab: x\n")
    answer = run(sys.executable, GRADESCOPE / "pack.py", tmp_path / "r.yaml", "-o", tmp_path / "x.zip")
    assert answer.returncode == 1 and "chapter is missing" in answer.stderr
    assert not (tmp_path / "x.zip").exists()


def test_the_autograders_requirements_are_the_locks_own():
    lock = (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
    wanted = [line for line in (GRADESCOPE / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert set(wanted) <= set(lock)


def test_the_workflows_commands_exist_and_put_nothing_of_a_users_into_a_script():
    workflow = yaml.safe_load((ROOT / "interop" / "github-actions" / "grade.yml").read_text())
    scripts = [step["run"] for step in workflow["jobs"]["grade"]["steps"] if "run" in step]
    assert not [script for script in scripts if "${{" in script]
    for script in scripts:
        words = script.split()
        if words[0].endswith("localai-clusters"):
            usage = run(Path(sys.executable).with_name("localai-clusters"), words[1], "--help").stdout
            flags = re.findall(r"(?<!\S)--[a-z-]+", script)
            assert flags == [flag for flag in flags if flag in usage], usage
        else:
            assert (ROOT / words[0]).exists()
