"""diagnose/matching.py and screening.py: logs whose cause is known, and logs that want to be read wrongly.

tests/logs/: recorded from vLLM 0.32 on CPU ranks and cut to what matters, each named for its case; ``made_up_...`` are
written from the messages in vLLM's, torch's and NCCL's sources, for what needs GPUs or several machines.
"""

import json
import re
from pathlib import Path

import pytest

from localai_clusters.diagnose import explain_files, explain_text
from localai_clusters.diagnose.catalogue import signatures
from localai_clusters.diagnose.matching import EXCEPTION, FRAME, MOST_KEPT, scan
from localai_clusters.diagnose.reading import Block
from localai_clusters.diagnose.report import DONT_KNOW, EXPLAINED, NO_FAILURE
from localai_clusters.diagnose.screening import MOST_ALIKE, STRIDE, TROUBLE_WORDS, Screen, screened
from localai_clusters.diagnose.template import SHORTEST_LITERAL

LOGS = Path(__file__).parent / "logs"
LABELS = json.loads((LOGS / "labels.json").read_text(encoding="utf-8"))
ANSWERS = {"unknown": DONT_KNOW, "no-failure": NO_FAILURE}


@pytest.mark.parametrize("name", LABELS)
def test_a_log_is_explained_by_its_cause(name):
    label, path = LABELS[name], LOGS / f"{name}.log"
    report = explain_files([path])
    assert report.status == ANSWERS.get(label["cause"], EXPLAINED)
    assert (report.best.cause if report.best else label["cause"]) == label["cause"]
    assert (report.best.id if report.best else "") == label["signature"]
    assert report.first_rank == label["first"]
    lines = path.read_text(encoding="utf-8").splitlines()
    for evidence in (*(report.best.evidence if report.best else ()), *report.last):
        assert evidence.text[:60] in lines[evidence.line - 1].replace("\\n", "\n")


def test_every_log_has_a_label_and_none_names_this_machine():
    assert {path.stem for path in LOGS.glob("*.log")} == set(LABELS)
    for path in LOGS.glob("*.log"):
        assert not re.search(r"/root/|/tmp/h|site-packages/\.\.|pyenv", path.read_text(encoding="utf-8")), path.name


def block(*lines: str) -> Block:
    return Block(1, "".join(f"{line}\n" for line in lines).encode())


def screen_of(*lines: str) -> list[tuple[int, bytes]]:
    return [(number, line) for number, line, _ in Screen().interesting(block(*lines))]


def test_lines_that_say_nothing_are_passed_over():
    usual = ["a line of no meaning", "INFO:     10.0.0.1:1 - GET /ping 200", "| 0  A100  On | 00:1B.0 | 0 |"]
    assert screen_of(*usual, "ValueError: x", *usual) == [(4, b"ValueError: x")]


def test_lines_that_are_alike_are_looked_at_often_but_not_for_ever():
    lines = [f"RuntimeError: {number}" for number in range(MOST_ALIKE + 50)]
    assert len(screen_of(*lines)) == MOST_ALIKE + 1


@pytest.mark.parametrize("at", range(2 * STRIDE))
def test_no_template_is_missed_wherever_it_stands_in_a_line(at):
    for known in signatures():
        for one in known.templates:
            wanted = screened(b"." * at + one.literal + b" and more")
            assert wanted is not None and one.text in {other.text for other in wanted}


def test_words_of_trouble_are_long_enough_to_be_found():
    assert min(len(word) for word in TROUBLE_WORDS) >= SHORTEST_LITERAL


@pytest.mark.parametrize(
    ("line", "function"),
    [
        ('  File "/x/vllm/v1/worker/gpu_worker.py", line 12, in load_model', "load_model"),
        ("/x/vllm/worker.py:494, in Worker.execute_model(self, request)", "Worker.execute_model"),
        ("│ /x/vllm/worker.py:12 in init_device │", "init_device"),
        ("  /x/vllm/v1/engine/core_client.py(160): __init__", "__init__"),
        ("INFO 11-23 12:00:00 [core.py:12] in time", None),
        ("see worker.py for more", None),
    ],
)
def test_frames_of_tracebacks(line, function):
    found = FRAME.search(line)
    assert (found and found["function"]) == function


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("ValueError: no", "ValueError"),
        ("torch.OutOfMemoryError: CUDA", "torch.OutOfMemoryError"),
        ("AssertionError", "AssertionError"),
        ("api_server.py: error: unrecognized", "error: "),
        ("raise ValueError(x)", None),
        ("An Error: in a sentence", None),
        ("errors: 3", None),
    ],
)
def test_what_is_an_exception(line, what):
    found = EXCEPTION.match(line)
    assert (found and found["what"]) == what


TRACEBACK = """\
{p}Traceback (most recent call last):
{p}  File "/x/vllm/v1/worker/gpu_model_runner.py", line 1, in {function}
{p}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB.
"""


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        ("load_model", "oom-weights"),
        ("initialize_kv_cache", "oom-kv-cache"),
        ("profile_run", "oom-warmup"),
        ("capture_model", "oom-warmup"),
        ("execute_model", "oom-serving"),
        ("something_else", "oom-device-unspecified"),
    ],
)
def test_the_traceback_tells_at_which_stage_memory_ran_out(function, cause):
    assert explain_text(TRACEBACK.format(p="", function=function)).best.cause == cause


BF16 = "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your T4 GPU has 7.5."


def test_tracebacks_of_several_ranks_are_kept_apart():
    lines = [TRACEBACK.format(p=f"[rank{rank}]: ", function=name).splitlines() for rank, name in
             enumerate(("load_model", "execute_model"))]  # fmt: skip
    mixed = "\n".join(line for both in zip(*lines, strict=True) for line in both)
    report = explain_text(mixed + "\n")
    assert [cause.cause for cause in report.causes] == ["oom-weights", "oom-serving"]
    assert [cause.rank for cause in report.causes] == ["rank 0", "rank 1"]


def test_an_earlier_traceback_does_not_explain_a_later_error():
    later = "Traceback (most recent call last):\n" + '  File "/x/y.py", line 1, in serve\n' + f"{BF16}\n"
    report = explain_text(TRACEBACK.format(p="", function="load_model") + later)
    assert [cause.cause for cause in report.causes] == ["bf16-unsupported", "oom-weights"]
    again = later.replace(BF16, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 7.00 GiB.")
    assert explain_text(again).best.cause == "oom-device-unspecified"


def test_a_setting_is_no_failure_whatever_its_name():
    text = (
        "INFO 05-11 08:17:48 api.py:473] args: Namespace(enable_lora=False, speculative_config=None, "
        "chat_template='no chat template', quantization='CUDA out of memory', error='Segmentation fault')\n"
        "INFO:     Application startup complete.\n"
    )
    assert explain_text(text).status == NO_FAILURE


def test_a_warning_is_no_cause_and_an_error_of_the_same_words_is():
    said = "[Errno 24] Too many open files"
    assert explain_text(f"WARNING 11-23 12:00:00 [a.py:1] {said}\n").status == DONT_KNOW
    assert explain_text(f"ERROR 11-23 12:00:00 [a.py:1] {said}\n").best.cause == "open-files"
    assert explain_text(f"/x/a.py:1: UserWarning: {said}\n").status == DONT_KNOW


def test_a_flood_of_errors_is_counted_and_not_kept():
    lines = [f"[rank{number % 4}]: RuntimeError: NCCL error: unhandled system error" for number in range(3000)]
    findings = scan([("log", "", [block(*lines)])])
    assert len([match for match in findings.matches if match.signature.id == "nccl-system"]) <= 4 * MOST_KEPT
    assert explain_text("\n".join(lines) + "\n").best.count >= 100


def test_a_log_of_one_endless_line_is_searched_too():
    text = (
        "x" * 300_000
        + " ValueError: Total number of attention heads (9) must be divisible by tensor parallel size (2)."
    )
    assert explain_text(text).best.cause == "tp-heads"


def test_redrawn_bars_and_endless_lines_do_not_move_the_numbers_of_those_below():
    text = "first\n" + " 10%\r 20%\r 30%\n" + "x" * 20_000 + f"\n{BF16}\n"
    assert explain_text(text).best.evidence[0].line == 4


def test_a_log_of_one_file_per_rank_is_ordered_by_its_clocks(tmp_path):
    times = {0: "12:00:09", 1: "12:00:03", 2: "12:00:05"}
    for rank, time in times.items():
        (tmp_path / f"rank{rank}.log").write_text(f"ERROR 11-23 {time} [worker.py:1] {BF16}\n")
    report = explain_files(sorted(tmp_path.iterdir()))
    assert report.first_rank == "rank 1"
    assert [evidence.rank for evidence in report.best.evidence] == ["rank 1", "rank 2", "rank 0"]
