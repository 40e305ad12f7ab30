"""Chapter 7 as `make run` runs it: papermill, three real servers, one checkpoint. And what stops it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from leftovers_of import assert_nothing_left, leftovers_of, newest_run

from localai_clusters import checkpoint
from localai_clusters.lab import course_root, find_notebook
from localai_clusters.prompts import prompts_for

CLI = str(Path(sys.executable).with_name("localai-clusters"))


def lab(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess:
    return subprocess.run([CLI, "lab", "07", *arguments], capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """(the finished process, the executed notebook, its checkpoint's path)"""
    output = tmp_path_factory.mktemp("lab") / "executed.ipynb"
    done = lab("-p", "student=ci-chapter-07", "-p", "max_tokens=16", "-o", str(output), "--json")
    assert done.returncode == 0, done.stderr
    path = Path(json.loads(done.stdout)["checkpoints"][0]["path"])
    yield done, nbformat.read(output, as_version=4), path
    path.unlink()
    if not any(path.parent.iterdir()):
        path.parent.rmdir()


def test_it_writes_a_valid_checkpoint_from_two_real_ranks(executed):
    record = checkpoint.read(executed[2])
    assert not [finding for finding in checkpoint.verify(record) if finding.severity == "wrong"]
    assert (record.student, record.chapter) == ("ci-chapter-07", 7)
    assert (record.evidence.ranks, record.evidence.level) == (2, "cpu")
    plans = [run.plan for run in record.runs]
    assert [(p.tensor_parallel_size, p.pipeline_parallel_size) for p in plans] == [(1, 1), (2, 1), (1, 2)]
    assert all(run.seconds_to_ready > 0 for run in record.runs)
    assert {constraint.kind for constraint in record.constraints} >= {"model-size", "backend", "available-memory"}


def test_every_split_gave_the_tokens_of_the_unsplit_model(executed):
    compared = checkpoint.read(executed[2]).observed.comparisons
    assert len(compared) == 8
    assert all(comparison.tokens_equal for comparison in compared)


def test_the_prompts_are_the_students_and_hold_what_replay_needs(executed):
    prompts = checkpoint.read(executed[2]).data.prompts
    assert [prompt.text for prompt in prompts] == prompts_for("ci-chapter-07", "vllm_distributed_serving")
    assert all(prompt.form == "chat" and prompt.token_ids for prompt in prompts)


def test_memory_was_predicted_and_measured_on_every_rank(executed):
    for run in checkpoint.read(executed[2]).runs:
        for rank in run.ranks:
            assert rank.memory.weights_bytes.predicted == rank.memory.weights_bytes.measured
            assert rank.memory.resident_bytes > rank.memory.kv_cache_bytes.measured


def test_no_home_directory_and_no_secret_is_recorded(executed):
    text = executed[2].read_text()
    assert str(Path.home()) + "/" not in text
    assert "TOKEN" not in json.dumps([run["environment"] for run in json.loads(text)["runs"]])


def test_checkpoint_show_and_verify_take_it(executed):
    shown = subprocess.run([CLI, "checkpoint", "show", str(executed[2])], capture_output=True, text=True)
    assert shown.returncode == 0 and "ci-chapter-07" in shown.stdout
    verified = subprocess.run([CLI, "checkpoint", "verify", str(executed[2])], capture_output=True, text=True)
    assert verified.returncode == 0 and "gave the same" in verified.stdout
    tampered = executed[2].with_name("tampered.json")
    tampered.write_text(executed[2].read_text().replace('"ci-chapter-07"', '"someone-else"', 1))
    try:
        refuted = subprocess.run([CLI, "checkpoint", "verify", str(tampered)], capture_output=True, text=True)
        assert refuted.returncode == 1 and "digest" in refuted.stdout
    finally:
        tampered.unlink()


def test_the_refusals_that_the_chapter_shows_are_shown(executed):
    shown = json.dumps([cell.get("outputs", []) for cell in executed[1].cells], ensure_ascii=False)
    assert "9 attention heads cannot be shared equally by 2" in shown
    assert "--nnodes 2 x --nproc-per-node 8 = 16 ranks, but the split needs tensor 8 x pipeline 1 = 8" in shown


def test_what_is_shown_is_shown_once(executed):
    """rich prints by itself into a notebook where it is not told to leave that."""
    for cell in executed[1].cells:
        if "lac.explain_command(" in cell.source or cell.source.startswith("lac.preflight("):
            assert [output.output_type for output in cell.outputs] == ["execute_result"], cell.source


def test_nothing_of_its_runs_is_left(executed):
    for run in checkpoint.read(executed[2]).runs:
        assert_nothing_left(run.run_id, seconds=0)


def test_the_committed_notebook_holds_no_outputs():
    notebook = nbformat.read(find_notebook("07"), as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "studnet=s1"], "did you mean student?"),
        (["-p", "max_tokens=many"], "parameter max_tokens is an int"),
        (["-p", "student"], "NAME=VALUE"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(arguments, words):
    done = lab(*arguments, timeout=30)
    assert (done.returncode, words in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr


def test_a_parameter_that_a_cell_refuses_names_the_cell(tmp_path):
    done = lab("-p", "tensor_parallel_size=0", "-o", str(tmp_path / "out.ipynb"), timeout=60)
    assert done.returncode == 1
    assert "tensor_parallel_size is 0; it must be a whole number of at least 1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "signum",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.extended), signal.SIGKILL],
    ids=lambda s: s.name,
)
def test_a_lab_that_is_stopped_leaves_nothing(signum, tmp_path):
    before = newest_run()
    command = [CLI, "lab", "07", "-p", "student=ci-stopped", "-o", str(tmp_path / "out.ipynb")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while newest_run() == before or not leftovers_of(newest_run())["processes"]:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    time.sleep(2)
    os.kill(process.pid, signum)
    _, errors = process.communicate(timeout=20)
    assert_nothing_left(newest_run())
    assert "Traceback" not in errors
    assert not (course_root() / "checkpoints" / "ci-stopped").exists()
