"""diagnose/records.py: who wrote a line, when and at which level, from what stands in front of it."""

from pathlib import Path

import pytest

from localai_clusters.diagnose.records import owner_of, record, texts


@pytest.mark.parametrize(
    ("line", "process", "level", "text"),
    [
        ("ValueError: no", "", "", "ValueError: no"),
        ("(EngineCore_DP0 pid=9) ERROR 11-23 12:02:11 [core.py:700] no", "EngineCore_DP0", "ERROR", "no"),
        ("(Worker_TP1 pid=9) INFO 11-23 12:02:11 [gpu_worker.py:77] hello", "rank 1", "INFO", "hello"),
        ("(VllmWorker rank=3 pid=9) ERROR 11-23 12:02:11 [x.py:1] no", "rank 3", "ERROR", "no"),
        ("(Worker_PP1_TP0 pid=9) ERROR 11-23 12:02:11 [x.py:1] no", "Worker_PP1_TP0", "ERROR", "no"),
        ("(VllmWorkerProcess pid=55) ERROR 11-25 08:17:34 utils.py:229] no", "VllmWorkerProcess 55", "ERROR", "no"),
        ("(RayWorkerWrapper pid=67, ip=10.1.0.7) ERROR 06-25 15:28:30 worker_base.py:148] no",
         "RayWorkerWrapper 67 on 10.1.0.7", "ERROR", "no"),
        ("(EngineCore pid=9) INFO 11-23 17:59:26 [core.py:1] [shutdown] bye", "EngineCore", "INFO", "[shutdown] bye"),
        ("[rank1]: Traceback (most recent call last):", "rank 1", "", "Traceback (most recent call last):"),
        ("[default3]:RuntimeError: no", "rank 3", "", "RuntimeError: no"),
        ("[rank0]:[E1123 12:00:00.1 NCCL.cpp:632] [Rank 0] Watchdog", "rank 0", "ERROR", "[Rank 0] Watchdog"),
        ("W1123 17:24:48.279000 12365 torch/distributed/run.py:874] Setting", "", "WARNING", "Setting"),
        ("node0:30:31 [1] NCCL INFO Bootstrap : Using eth0", "", "INFO", "NCCL INFO Bootstrap : Using eth0"),
        ("node0:30:31 [1] misc/socket.cc:484 NCCL WARN no", "", "", "misc/socket.cc:484 NCCL WARN no"),
        ("vllm-1  | INFO 11-23 12:02:11 [x.py:1] hello", "", "INFO", "hello"),
        ("2026-11-23T12:00:00.123456789Z stderr F [rank2]: no", "rank 2", "", "no"),
        ("[pod/vllm-0/server] KeyError: 'x'", "", "", "KeyError: 'x'"),
        ("Nov 23 12:00:00 gpu01 vllm[991]: (APIServer pid=991) OSError: no", "APIServer", "", "OSError: no"),
        ("7: RuntimeError: no", "rank 7", "", "RuntimeError: no"),
        ("[1,5]<stderr>: RuntimeError: no", "rank 5", "", "RuntimeError: no"),
        ("INFO:     Application startup complete.", "", "INFO", "Application startup complete."),
        ("> > RuntimeError: no", "", "", "RuntimeError: no"),
        ("2024-09-04 12:00:00.123 | ERROR    | engine:run:12 - no", "", "ERROR", "engine:run:12 - no"),
        ("2024-09-04 12:00:00,123 - ERROR - no", "", "ERROR", "no"),
        ("ERROR:root:no", "", "ERROR", "no"),
        ("│ RuntimeError: no │", "", "", "RuntimeError: no"),
        ("", "", "", ""),
    ],
)  # fmt: skip
def test_who_wrote_a_line_and_at_which_level(line, process, level, text):
    found = record("log", 1, line)
    assert (found.process, found.level, found.text.strip()) == (process, level, text)


def test_clocks_of_different_forms_can_be_compared():
    lines = [
        "INFO 11-23 12:00:01 [x.py:1] a", "[rank0]:[E1123 12:00:02.5 a.cpp:1] b", "2026-11-23T12:00:03.1Z stdout F c",
        "ERROR 11-24 00:00:00 [x.py:1] d",
    ]  # fmt: skip
    times = [record("log", 1, line).time for line in lines]
    assert times == sorted(times) and None not in times
    assert record("log", 1, "no clock").time is None


def test_a_line_without_words_of_its_own_is_its_files_owners():
    assert record("log", 1, "KeyError", "rank 4").process == "rank 4"
    assert record("log", 1, "[rank1]: KeyError", "rank 4").process == "rank 1"
    assert record("log", 1, "(APIServer pid=7) KeyError", "rank 4").process == "rank 4"


@pytest.mark.parametrize(
    ("line", "inside"),
    [
        ("plain", ["plain"]),
        ('{"log":"one\\n","stream":"stderr","time":"2026-11-23T12:00:00Z"}', ["2026-11-23T12:00:00Z one"]),
        ('{"level":"error","message":"Traceback\\n  File x\\nKeyError: 1"}', ["Traceback", "  File x", "KeyError: 1"]),
        ("Traceback\\n  File\\n x\\nKeyError: 1", ["Traceback", "  File", " x", "KeyError: 1"]),
        ('{"no": "words"}', ['{"no": "words"}']),
        ("{not json}", ["{not json}"]),
        ("[1, 2]", ["[1, 2]"]),
        ('{"log": 7}', ["7"]),
    ],
)
def test_lines_inside_a_line(line, inside):
    assert texts(line) == inside


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("runs/1/rank3.log", "rank 3"),
        ("torchrun/none_x/attempt_0/2/stderr.log", "rank 2"),
        ("node0.log", ""),
        ("frank12.txt", ""),
        ("rank_07.out", "rank 7"),
    ],
)
def test_who_wrote_a_file(path, owner):
    assert owner_of(Path(path)) == owner
