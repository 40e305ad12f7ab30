"""explain-log, from a shell and from Python: what may be given, what is shown, and the exit code."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from localai_clusters.cli import main
from localai_clusters.diagnose import explain_text
from localai_clusters.diagnose.runs import explain_log
from localai_clusters.launch import journal

LOGS = Path(__file__).parent / "logs"
HEADS = "ValueError: Total number of attention heads (9) must be divisible by tensor parallel size (2).\n"
HEALTHY = "INFO:     Application startup complete.\n"
NEW = "ValueError: something that nobody has seen\n"


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "localai-clusters" / "runs"


def explain(*arguments: str, stdin: bytes | None = None):
    return CliRunner().invoke(main, ["explain-log", *arguments], input=stdin)


@pytest.mark.parametrize(("text", "code"), [(HEALTHY, 0), (HEADS, 1), (NEW, 2), ("", 2)])
def test_the_exit_code_says_whether_something_failed_and_was_explained(tmp_path, text, code):
    path = tmp_path / "server.log"
    path.write_text(text)
    assert explain(str(path)).exit_code == code
    assert explain("-", stdin=text.encode()).exit_code == code


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.log"], "no file and no run is called nothing.log"),
        ([""], "the log's name is empty"),
        (["last"], "no run was started yet"),
        (["-", "a.log"], "- is standard input and stands alone"),
        (["x" * 5000], "no file"),
    ],
)
def test_what_is_not_there_is_one_line(arguments, words):
    answer = explain(*arguments)
    assert answer.exit_code == 2
    assert words in answer.stderr and len(answer.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [(bytes(4096), "is not a text file"), (b"\x28\xb5\x2f\xfd12", "zstd -dc"), (b"PK\x03\x0412", "unzip -p")],
)
def test_what_is_no_text_is_one_line(tmp_path, data, words):
    path = tmp_path / "server.log"
    path.write_bytes(data)
    answer = explain(str(path))
    assert answer.exit_code == 2
    assert words in answer.stderr and len(answer.stderr.splitlines()) == 1


def test_a_log_that_may_not_be_read_is_one_line(tmp_path):
    path = tmp_path / "server.log"
    path.write_text(HEADS)
    path.chmod(0)
    command = [sys.executable, "-m", "localai_clusters", "explain-log", str(path)]
    if os.geteuid() == 0:  # which reads everything but for this
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (answer.returncode, "Permission denied" in answer.stderr) == (2, True), answer.stderr


def test_a_compressed_log_and_one_of_another_encoding_are_read(tmp_path):
    for name, data in (("a.log.gz", gzip.compress(HEADS.encode())), ("b.log", HEADS.encode("utf-16"))):
        (tmp_path / name).write_bytes(data)
        assert explain(str(tmp_path / name)).exit_code == 1


def test_json_is_the_whole_report(tmp_path):
    path = tmp_path / "server.log"
    path.write_text("\n" + HEADS)
    data = json.loads(explain(str(path), "--json").stdout)
    cause = data["causes"][0]
    assert (data["status"], cause["cause"], cause["confidence"]) == ("explained", "tp-heads", "high")
    assert cause["evidence"] == [{"file": "server.log", "line": 2, "rank": "", "text": HEADS.strip()}]
    assert "--tensor-parallel-size 1" in cause["fixes"]


@pytest.fixture
def run(runs) -> Path:
    """A run's folder as the launcher leaves it: the agent's log, the ranks' logs and journals, the guard's events."""
    folder = runs / "1123-120000-abcdef"
    folder.mkdir(parents=True)
    (folder / "node0.log").write_text("W1123 12:00:01.1 1 torch/distributed/run.py:1] Setting OMP_NUM_THREADS\n")
    (folder / "rank0.log").write_text(
        "INFO 11-23 12:00:02 [core.py:1] Initializing a V1 LLM engine (v0.32.0) with config: x\n"
    )
    (folder / "rank1.log").write_text(
        "INFO 11-23 12:00:02 [core.py:1] Initializing a V1 LLM engine (v0.32.0) with config: x\n"
    )
    journal.append(folder / "rank0.jsonl", rank=0, pid=9, step="import")
    return folder


@pytest.mark.parametrize("name", ["last", "1123-120000-abcdef", "1123-1200"])
def test_a_run_is_found_by_its_id(run, name):
    (run / "rank1.log").write_text(HEADS)
    answer = explain(name)
    assert answer.exit_code == 1
    assert "rank1.log:1, rank 1" in answer.stdout
    assert "failed first: rank 1" in answer.stdout


def test_what_a_rank_said_in_its_journal_counts(run):
    journal.append(run / "rank1.jsonl", rank=1, pid=9, step="failed", error=HEADS.strip())
    report = explain_log(run.name)
    assert (report.best.cause, report.first_rank) == ("tp-heads", "rank 1")


def test_what_one_rank_heard_of_another_is_the_other_ones(run):
    lost = f"rank 0 on node 0 (host) failed: ValidationError: 1 validation error\n  {HEADS}"
    journal.append(run / "rank1.jsonl", rank=1, pid=9, step="failed", lost=lost)
    report = explain_log(run.name)
    assert (report.best.cause, report.first_rank) == ("tp-heads", "rank 0")


@pytest.mark.parametrize(
    ("lost", "cause"),
    [
        ("rank 3 on node 1 (far) is gone: its process ended", "rank-killed"),
        ("rank 3 on node 1 (far) is out of reach: the network between the nodes does not answer", "nccl-no-route"),
        ("rank 3 on node 1 (far) is stopped or stuck: its connection is open, and nothing was heard for 5 s",
         "engine-hang"),
        ("rank 3 has not been heard of for 60 s", "rendezvous-timeout"),
    ],
)  # fmt: skip
def test_a_rank_of_another_machine_is_known_by_what_was_heard_of_it(run, lost, cause):
    journal.append(run / "rank0.jsonl", rank=0, pid=9, step="failed", lost=lost)
    report = explain_log(run.name)
    assert (report.best.cause, report.first_rank) == (cause, "rank 3")


@pytest.mark.parametrize(
    ("event", "cause"), [({"event": "oom-kill"}, "oom-host"), ({"event": "stopped-process", "pid": 9}, "rank-stopped")]
)
def test_what_the_guard_saw_counts(run, event, cause):
    journal.append(run / "guard.jsonl", **event)
    assert explain_log("last").best.cause == cause


def test_the_newest_run_is_the_last(runs, run):
    newer = runs / "0101-000000-abcdef"  # of the next year
    newer.mkdir()
    (newer / "node0.log").write_text(HEALTHY)
    os.utime(run, (1, 1))
    assert explain_log("last").status == "no failure"


def test_an_unknown_run_is_told_with_those_there_are(run):
    with pytest.raises(ValueError, match=run.name):
        explain_log("1123-999999-ffffff")


def test_anything_that_means_a_log_is_taken(tmp_path, run):
    path = tmp_path / "server.log"
    path.write_text(HEADS)
    (run / "rank1.log").write_text(HEADS)
    server = type("Server", (), {"run": type("Run", (), {"dir": run})()})()
    for log in (path, str(path), [path], tmp_path, HEADS + "\n", run, run.name, server, server.run):
        assert explain_log(log).best.cause == "tp-heads", log


@pytest.mark.parametrize("log", [None, 7, b"bytes", object()])
def test_what_means_no_log_is_refused(log):
    with pytest.raises(ValueError, match="a log is a path"):
        explain_log(log)


def test_a_folder_without_logs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there are no logs in"):
        explain_log(tmp_path)


def shown(report, **options) -> str:
    console = Console(width=80, record=True, file=open(os.devnull, "w"), **options)  # noqa: SIM115
    console.print(report)
    return console.export_text(styles=bool(options))


@pytest.mark.parametrize("name", sorted(path.stem for path in LOGS.glob("made_up_*.log")))
def test_a_report_fits_a_terminal_and_says_what_to_type(name):
    report = explain_log(LOGS / f"{name}.log")
    text = shown(report)
    assert max(map(len, text.splitlines())) <= 80
    assert all(line == line.rstrip() for line in text.splitlines())
    assert "\x1b" not in text
    for fix in report.best.fixes if report.best else report.hints:
        assert " ".join(fix.split()) in " ".join(text.split())


def test_colour_is_for_terminals_only(tmp_path):
    path = tmp_path / "server.log"
    path.write_text(HEADS)
    assert "\x1b" not in explain(str(path)).stdout
    assert "\x1b[1m" in shown(explain_text(HEADS), force_terminal=True)


HOSTILE = "RuntimeError: \x1b]0;owned\x07\x1b[2J\u202e<script>alert(1)</script> [bold]{x}[/bold] & CUDA out of memory"


def test_what_a_log_says_reaches_neither_terminal_nor_page_as_code():
    report = explain_text(HOSTILE + "\n")
    assert "<script>" not in report._repr_html_() and "&lt;script&gt;" in report._repr_html_()
    text = shown(report)
    assert not set(text) & {"\x1b", "\x07", "\u202e"}
    assert "[bold]{x}[/bold]" in text
    assert not set(json.dumps(report.to_dict(), ensure_ascii=False)) & {"\x1b", "\x07", "\u202e"}


@pytest.mark.parametrize(
    "name", ["x; rm -rf ~", "$(id)", "`id`", "a | sh", "--index-url=evil", "a\u202eb", "a && b", "'a'"]
)
def test_a_log_puts_no_command_of_its_own_into_what_to_type(name):
    said = "This modeling file requires the following packages that were not found in your environment: {}. Run"
    assert "pip install einops flash_attn" in explain_text(said.format("einops, flash_attn") + "\n").best.fixes
    for fix in explain_text(said.format(name) + "\n").best.fixes:
        assert name not in fix and "rm -rf" not in fix and "evil" not in fix


def test_a_page_has_every_part_in_order():
    page = explain_text(HEADS)._repr_html_()
    assert page.index("do not divide") < page.index("must be divisible") < page.index("--tensor-parallel-size 1")


def test_explaining_a_log_needs_neither_torch_nor_vllm_nor_numpy(tmp_path):
    import subprocess

    path = tmp_path / "server.log"
    path.write_text(HEADS)
    script = (
        "import sys; from pathlib import Path; from localai_clusters.diagnose import explain_files\n"
        f"assert explain_files([Path({str(path)!r})]).best.cause == 'tp-heads'\n"
        "print([name for name in ('torch', 'vllm', 'numpy') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert answer.stdout.strip() == "[]", answer.stderr
