"""diagnose/ranking.py and explaining.py: the first cause among its echoes, how sure it is, and when not to answer."""

import pytest

from localai_clusters.diagnose import explain_text
from localai_clusters.diagnose.report import DONT_KNOW, EXPLAINED, NO_FAILURE

OUT_OF_MEMORY = "[rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.16 GiB."
WATCHDOG = "[rank{rank}]:[E1123 12:10:31.1 ProcessGroupNCCL.cpp:690] [Rank {rank}] Watchdog caught "
WATCHDOG += "collective operation timeout"
LOST = "[rank{rank}]: RuntimeError: [/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:41822"
WRAPPER = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
HEADS = "ValueError: Total number of attention heads (9) must be divisible by tensor parallel size (2)."
NEW = "ValueError: something that nobody has seen"
SERVES = "INFO:     Application startup complete."


def cause_of(*lines: str) -> str | None:
    best = explain_text("\n".join(lines) + "\n").best
    return best and best.cause


@pytest.mark.parametrize("echoes", [[WATCHDOG], [LOST], [WRAPPER], [WATCHDOG, LOST, WRAPPER]])
@pytest.mark.parametrize("first", [True, False])
def test_a_cause_is_named_wherever_its_echoes_stand(echoes, first):
    said = [echo.replace("{rank}", str(rank)) for echo in echoes for rank in (0, 1, 2)]
    lines = [OUT_OF_MEMORY, *said] if first else [*said, OUT_OF_MEMORY]
    report = explain_text("\n".join(lines) + "\n")
    assert report.best.cause == "oom-device-unspecified"
    assert report.first_rank == "rank 3"
    assert len(report.causes) == 1


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ([WATCHDOG.replace("{rank}", "0"), WRAPPER], "nccl-timeout"),
        ([LOST.replace("{rank}", "0"), WRAPPER], "gloo-connection"),
        (["  exitcode  : -9 (pid: 12)", LOST.replace("{rank}", "0")], "oom-host"),
        (["  exitcode  : -11 (pid: 12)", LOST.replace("{rank}", "0")], "segfault"),
        (["  exitcode  : -15 (pid: 12)"], None),
        (
            ["a:1:2 [0] x.cc:1 NCCL WARN Cuda failure 2 'out of memory'", "NCCL error: unhandled cuda error"],
            "nccl-cuda",
        ),
    ],
)
def test_a_symptom_answers_where_nothing_better_does(lines, cause):
    assert cause_of(*lines) == cause


def test_a_symptom_is_less_sure_than_a_cause():
    assert explain_text(HEADS + "\n").best.confidence == "high"
    assert explain_text("  exitcode  : -9 (pid: 12)\n").best.confidence == "medium"
    assert explain_text(LOST + "\n").best.confidence == "low"


def test_of_two_causes_the_first_is_named_first_and_the_other_is_shown():
    other = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    report = explain_text(f"OSError: [Errno 24] Too many open files\n{HEADS}\n{other}\n")
    assert [cause.cause for cause in report.causes] == ["tp-heads", "open-files"]


@pytest.mark.parametrize(
    "line",
    [WRAPPER, NEW, "ERROR 11-23 12:00:00 [a.py:1] it failed", "Traceback (most recent call last):"],
)
def test_what_only_says_that_something_failed_is_not_guessed_at(line):
    report = explain_text(line + "\n")
    assert (report.status, report.causes) == (DONT_KNOW, ())
    assert report.last[0].text in line
    assert any("VLLM_LOGGING_LEVEL=DEBUG" in hint for hint in report.hints)


@pytest.mark.parametrize(
    "symptom", [LOST, WATCHDOG.replace("timeout", "operation"), "ray.exceptions.RayActorError: died"]
)
def test_what_follows_from_an_error_that_nobody_knows_is_no_answer(symptom):
    report = explain_text(f"[rank1]: {NEW}\n" + symptom.replace("{rank}", "0") + "\n")
    assert report.status == DONT_KNOW
    assert report.last[0].rank == "rank 1"


def test_the_last_errors_of_every_rank_are_shown_when_the_cause_is_not_known():
    lines = [f"[rank{rank}]: ValueError: new {number}" for number in range(5) for rank in (0, 1)]
    report = explain_text("\n".join(lines) + "\n")
    assert [(evidence.rank, evidence.text) for evidence in report.last] == [
        (f"rank {rank}", f"ValueError: new {number}") for rank in (0, 1) for number in (2, 3, 4)
    ]


@pytest.mark.parametrize(
    "lines",
    [
        [SERVES],
        [SERVES, 'INFO:     10.0.0.1:1 - "POST /v1/chat/completions HTTP/1.1" 200 OK'],
        ["WARNING 11-23 12:00:00 [a.py:1] Failed to import something optional", SERVES],
        ["ERROR 11-23 12:00:00 [a.py:1] a probe failed", SERVES],
    ],
)
def test_a_log_without_a_failure(lines):
    assert explain_text("\n".join(lines) + "\n").status == NO_FAILURE


def test_silence_is_no_sign_of_health():
    assert explain_text("a text that has nothing to do with it\n").status == DONT_KNOW


def test_an_empty_log_is_not_called_healthy():
    assert explain_text("").status == DONT_KNOW


def test_what_was_survived_is_no_cause():
    assert (
        explain_text(f"ERROR 11-23 12:00:00 [a.py:1] KeyError: 'layers.0.weight'\n{SERVES}\n").best.confidence != "high"
    )


def test_a_start_that_ends_without_an_error_is_told_by_its_last_stage():
    lines = [
        "INFO 11-23 12:00:00 [core.py:1] Initializing a V1 LLM engine (v0.32.0) with config: model='x'",
        "(Worker_TP0 pid=3) INFO 11-23 12:00:05 [parallel_state.py:1] world_size=2 rank=0 local_rank=0 "
        "distributed_init_method=tcp://127.0.0.1:4 backend=nccl",
    ]
    report = explain_text("\n".join(lines) + "\n")
    assert (report.status, report.best.cause, report.best.confidence) == (EXPLAINED, "engine-hang", "medium")
    assert "setting up their process group" in report.title
    assert any("NCCL_DEBUG=INFO" in fix for fix in report.best.fixes)
    weights = "(Worker_TP0 pid=3) INFO 11-23 12:00:09 [x.py:1] Starting to load model x..."
    assert "weights" in explain_text("\n".join([*lines, weights]) + "\n").title


VLLM_FRAME = '  File "/x/site-packages/vllm/v1/core/sched.py", line 7, in schedule'


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ([VLLM_FRAME, "    assert x", "AssertionError"], "vllm-bug"),
        ([VLLM_FRAME, "    return table[key]", "KeyError: 7"], "vllm-bug"),
        ([VLLM_FRAME, "    x.view(3)", "RuntimeError: shape '[3]' is invalid for input of size 1"], "vllm-bug"),
        ([VLLM_FRAME, "    raise ValueError(", "ValueError: a refusal that is new"], None),
        (['  File "/home/s/script.py", line 7, in main', "    x[7]", "KeyError: 7"], None),
        (['  File "/home/s/envs/vllm/lib/numpy/x.py", line 7, in f', "    x[7]", "KeyError: 7"], None),
    ],
)
def test_an_error_inside_vllm_is_told_from_a_refusal_and_from_the_users_own(lines, cause):
    assert cause_of("Traceback (most recent call last):", *lines) == cause


def test_torchruns_account_decides_between_ranks_that_say_the_same():
    said = [f"[rank{rank}]: {HEADS}" for rank in (0, 1)]
    table = [
        "Root Cause (first observed failure):",
        "[0]:",
        "  rank      : 1 (local_rank: 1)",
        "  exitcode  : 1 (pid: 9)",
    ]
    assert explain_text("\n".join(said) + "\n").first_rank == "rank 0"
    assert explain_text("\n".join([*said, *table]) + "\n").first_rank == "rank 1"
