"""A folder of files of unknown origin: each gets an outcome and a reason, whatever it is, and a kill loses nothing."""

import contextlib
import json
import os
import pty
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from localai_clusters.checkpoint import CheckpointError
from localai_clusters.checkpoint.building import from_json, to_json
from localai_clusters.grading import replayed_folder, worker
from localai_clusters.grading.folder import Gradebook, chosen, grade_folder
from localai_clusters.grading.journal import Journal
from localai_clusters.grading.pool import GradingError
from localai_clusters.grading.replayed_folder import grade_replayed
from localai_clusters.grading.results import Graded
from localai_clusters.grading.rubric_file import read_rubrics
from localai_clusters.grading.walk import MAX_DEPTH, find_files, opened, shown

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from bench.grade import made_record  # noqa: E402

REAL = json.loads((ROOT / "tests" / "records" / "cpu_2_cores_float32_tp1_tp2_pp2.json").read_text(encoding="utf-8"))
RUBRIC = ROOT / "course" / "07_vllm_distributed_serving.rubric.yaml"
RUBRICS = read_rubrics([RUBRIC])
# The verb as a process of its own, whether or not the package is installed.
GRADE = [sys.executable, "-c", "from localai_clusters.cli import grade, main; main()", "grade", "--rubric", str(RUBRIC)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LAC_COURSE_KEY", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> Path:
    found = tmp_path / "handed in"
    found.mkdir()
    return found


def text_of(student: str, seed: int = 0, **fields) -> str:
    plain = made_record(REAL, student, random.Random(f"{student} {seed}"))
    return to_json(from_json({**plain, **fields}))


def hand_in(path: Path, student: str, seed: int = 0, **fields) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text_of(student, seed, **fields), encoding="utf-8")
    return path


def results(folder: Path, **options) -> dict[str, Graded]:
    with grade_folder(folder, RUBRICS, **options) as book:
        return {graded.file: graded for graded in book.results()}


def reasons(folder: Path) -> dict[str, str]:
    return {name: graded.reason for name, graded in results(folder).items() if graded.outcome == "unreadable"}


@contextlib.contextmanager
def grading(folder: Path, **options) -> Iterator[Gradebook]:
    with grade_folder(folder, RUBRICS, **options) as book:
        yield book


def run(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [*GRADE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


# Which files


def test_every_file_below_is_graded_in_the_order_of_the_names(folder):
    for name in ("s2/b.json", "s2/a.JSON", "s1/deep/er/c.json", "d.json"):
        hand_in(folder / name, name[:2])
    (folder / "README.txt").write_text("not a record")
    with grading(folder) as book:
        found = [(graded.file, graded.outcome) for graded in book.results()]
        assert book.others == 1
    assert found == [(name, "needs a hand") for name in ("d.json", "s1/deep/er/c.json", "s2/a.JSON", "s2/b.json")]


@pytest.mark.parametrize("name", [".hidden.json", ".git/a.json", "a.json.tmp", "checkpoint-v1.schema.json", "a.ipynb"])
def test_what_is_no_record_is_left_alone(folder, name):
    hand_in(folder / name, "s1")
    hand_in(folder / "b.json", "s2")
    assert list(results(folder)) == ["b.json"]


def test_one_file_may_be_graded_alone(folder):
    hand_in(folder / "a.json", "s1")
    hand_in(folder / "b.json", "s2")
    assert list(results(folder / "b.json")) == ["b.json"]


@pytest.mark.parametrize("name", ["", "a.txt", "absent", "absent.json"])
def test_nothing_to_grade_is_said(folder, name):
    (folder / "a.txt").write_text("")
    with pytest.raises((GradingError, OSError)):
        grade_folder(folder / name, RUBRICS)


@pytest.mark.parametrize("options", [{"take": "worst"}, {"processes": 0}, {"processes": 65}])
def test_a_wrong_option_is_a_value_error(folder, options):
    with pytest.raises(ValueError):
        grade_folder(folder, RUBRICS, **options)


def test_links_are_not_followed(folder, tmp_path):
    secret = hand_in(tmp_path / "elsewhere" / "secret.json", "s9")
    hand_in(folder / "own.json", "s1")
    (folder / "link.json").symlink_to(secret)
    (folder / "loop.json").symlink_to("loop.json")
    (folder / "dangling.json").symlink_to("nowhere")
    (folder / "inner").symlink_to(secret.parent)
    (folder / "up").symlink_to("..")
    (folder / "note").symlink_to("nowhere")
    found = results(folder)
    assert {name for name, graded in found.items() if graded.student} == {"own.json"}
    assert set(found) == {"own.json", "link.json", "loop.json", "dangling.json", "inner", "up"}
    assert {graded.reason for name, graded in found.items() if name != "own.json"} == {"a link, which is not followed"}


def test_a_linked_folder_may_be_given(folder, tmp_path):
    hand_in(folder / "a.json", "s1")
    (tmp_path / "link").symlink_to(folder)
    assert results(tmp_path / "link")["a.json"].student == "s1"


def test_what_is_no_regular_file_is_named(folder):
    os.mkfifo(folder / "fifo.json")
    (folder / "folder.json").mkdir()
    hand_in(folder / "folder.json" / "inner.json", "s1")
    (folder / "short").symlink_to(folder)
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(folder)  # a socket's path may have 108 bytes
        try:
            server.bind("socket.json")
        finally:
            os.chdir(here)
        found = reasons(folder)
    assert found["fifo.json"] == "not a regular file"
    assert found["folder.json"] == "a folder, not a file"
    assert "No such device or address" in found["socket.json"]
    assert results(folder)["folder.json/inner.json"].student == "s1"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device files")
def test_a_device_is_refused(folder):
    os.mknod(folder / "zero.json", 0o666 | 0o020000, os.makedev(1, 5))
    assert "zero.json" in reasons(folder)


def test_folders_too_deep_are_named(folder):
    deep = folder.joinpath(*["d"] * (MAX_DEPTH + 2))
    hand_in(deep / "a.json", "s1")
    hand_in(folder / "b.json", "s1")
    assert set(reasons(folder).values()) == {f"more than {MAX_DEPTH} folders deep, not looked into"}


def test_files_and_folders_that_may_not_be_read_are_named(folder):
    closed, dark = hand_in(folder / "closed.json", "s1"), hand_in(folder / "dark" / "a.json", "s2").parent
    hand_in(folder / "open.json", "s3")
    closed.chmod(0)
    dark.chmod(0)
    folder.parent.chmod(0o777)
    command = [*GRADE, str(folder), "--json"]
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("no setpriv to take root's powers away")
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    dark.chmod(0o700)
    found = {each["file"]: each["reason"] for each in json.loads(answer.stdout)["results"]}
    assert found["closed.json"] == found["dark"] == "cannot be read: Permission denied"
    assert found["open.json"].startswith("1 criterion to mark")
    assert answer.returncode == 1


ODD = [
    b"new\nline.json", b"\x1b[2J\x1b]0;title\x07.json", "\u202egnp.json".encode(), b"\xff\xfe.json", b" .json",
    b"%s.json", b"-rf.json", b"'; drop table.json", "ä\u0308😀.json".encode(), b"<script>.json", b"=cmd.json",
    b"a\tb.json",
]  # fmt: skip


def test_odd_names_are_names(folder):
    for number, name in enumerate(ODD):
        Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_text(text_of(f"s{number}"), encoding="utf-8")
    found = results(folder)
    assert len(found) == len(ODD) and {graded.outcome for graded in found.values()} == {"needs a hand"}
    assert "\\xff\\xfe.json" in found
    for name in found:
        name.encode()  # any export can write it
    answer = run(folder)
    assert answer.returncode == 0 and "Traceback" not in answer.stderr
    assert "\x1b" not in answer.stdout and "\u202e" not in answer.stdout
    assert len(json.loads(run(folder, "--json").stdout)["results"]) == len(ODD)


def test_a_name_is_shown_as_text():
    assert shown("a/b.json") == "a/b.json"
    assert shown(os.fsdecode(b"\xe4.json")) == "\\xe4.json"


def test_a_file_that_becomes_a_link_before_it_is_opened_is_not_followed(folder, tmp_path):
    secret = hand_in(tmp_path / "elsewhere" / "a.json", "s9")
    for name in ("a.json", "inner/a.json"):
        hand_in(folder / name, "s1")
    names = find_files(folder).files
    (folder / "a.json").unlink()
    (folder / "a.json").symlink_to(secret)
    shutil.rmtree(folder / "inner")
    (folder / "inner").symlink_to(secret.parent)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        for name in names:
            with pytest.raises(OSError), opened(descriptor, name):
                pass
            graded, head = worker.grade_one(descriptor, name, RUBRICS, None, "k")
            assert (graded.outcome, graded.student, head.stamp) == ("unreadable", None, None)
    finally:
        os.close(descriptor)


def test_a_file_that_grows_while_it_is_read_is_named(folder, monkeypatch):
    path = hand_in(folder / "a.json", "s1")
    original = worker.content_of

    def growing(descriptor: int) -> bytes:
        content = original(descriptor)
        with path.open("a") as file:
            file.write(" ")
        return content

    monkeypatch.setattr(worker, "content_of", growing)
    descriptor = os.open(folder, os.O_RDONLY)
    graded, _ = worker.grade_one(descriptor, "a.json", RUBRICS, None, "k")
    os.close(descriptor)
    assert "changed while it was read, 3 times over" in graded.reason


def test_a_file_that_settles_is_read_again(folder, monkeypatch):
    path = hand_in(folder / "a.json", "s1")
    original, left = worker.content_of, [1]

    def growing_once(descriptor: int) -> bytes:
        content = original(descriptor)
        if left and left.pop():
            path.write_text(text_of("s2"), encoding="utf-8")
        return content

    monkeypatch.setattr(worker, "content_of", growing_once)
    descriptor = os.open(folder, os.O_RDONLY)
    graded, _ = worker.grade_one(descriptor, "a.json", RUBRICS, None, "k")
    os.close(descriptor)
    assert graded.student == "s2"


def test_code_beside_the_records_is_not_run(folder):
    """Grading from within the folder, where a student handed in modules with the names of Python's own."""
    for name in ("json", "gc", "resource", "localai_clusters", "yaml", "contextlib"):
        (folder / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\nraise SystemExit('ran')\n")
    hand_in(folder / "a.json", "s1")
    cli = str(Path(sys.executable).with_name("localai-clusters"))
    command = [sys.executable, "-P", *GRADE[1:], ".", "--json"]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert not (folder / "ran").exists(), cli


# What a file can do at worst


def test_a_file_that_ends_its_process_is_named_and_the_rest_is_graded(folder, monkeypatch):
    from localai_clusters.grading import pool

    for name in ("a", "b", "c", "d"):
        hand_in(folder / f"{name}.json", name)
    (folder / "deadly.json").write_text("{}")
    script = (
        "import os, signal; from localai_clusters.grading import worker; one = worker.grade_one\n"
        "def grade_one(folder, name, *rest):\n"
        "    if name == 'deadly.json': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return one(folder, name, *rest)\n"
        "worker.grade_one = grade_one; worker.main()\n"
    )
    monkeypatch.setattr(pool, "COMMAND", (sys.executable, "-c", script))
    found = results(folder, processes=2)
    assert found.pop("deadly.json").reason == "reading it ended the process that did (SIGKILL)"
    assert {graded.student for graded in found.values()} == {"a", "b", "c", "d"}


def test_a_process_that_cannot_start_is_said_once(folder, monkeypatch):
    from localai_clusters.grading import pool

    hand_in(folder / "a.json", "s1")
    monkeypatch.setattr(pool, "COMMAND", (sys.executable, "-c", "raise ImportError('no such thing')"))
    with pytest.raises(GradingError, match="cannot start: ImportError: no such thing"):
        grade_folder(folder, RUBRICS)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("limit_mib", [None, 500])
def test_a_file_made_to_take_memory_is_refused(folder, monkeypatch, limit_mib):
    """16 MiB that take 0.8 GiB to read; and where a process has less."""
    from localai_clusters.grading import pool

    if limit_mib:
        script = f"from localai_clusters.grading import worker; worker.MEMORY_BYTES = {limit_mib} << 20; worker.main()"
        monkeypatch.setattr(pool, "COMMAND", (sys.executable, "-c", script))
    items = ",".join(["[[[[[[[[[[[[[]]]]]]]]]]]]]"] * 620_000)
    (folder / "heavy.json").write_text(f'{{"schema_version":1,"runs":[{items}]}}')
    hand_in(folder / "light.json", "s1")
    found = results(folder, processes=1)
    assert found["heavy.json"].outcome == "unreadable"
    assert ("memory" in found["heavy.json"].reason) is bool(limit_mib)
    assert found["light.json"].student == "s1"


# Going on, and the same bytes


def as_json(folder: Path, *arguments: object, **environment: str) -> bytes:
    command = [*GRADE, str(folder), "--json", *map(str, arguments)]
    answer = subprocess.run(command, capture_output=True, timeout=240, env={**os.environ, **environment})
    assert answer.returncode in (0, 1), answer.stderr
    return answer.stdout


def hostile_class(folder: Path, count: int = 40) -> None:
    for number in range(count):
        hand_in(folder / f"s{number:03}" / "a.json", f"s{number:03}")
    stolen = json.loads((folder / "s001" / "a.json").read_text())
    (folder / "s002" / "copy.json").write_text(json.dumps({**stolen, "student": "s002"}))
    (folder / "s003" / "cut.json").write_text(text_of("s003")[:5000])
    (folder / "s004" / "new.json").write_text('{"schema_version": 12}')
    (folder / "s005" / "again.json").write_text(text_of("s005", seed=2))
    (folder / "s006" / "link.json").symlink_to("a.json")


def test_the_same_input_gives_the_same_bytes(folder):
    hostile_class(folder)
    ways = [("0", 1), ("1", 2), ("2", 5)]
    found = {as_json(folder, "--fresh", "--processes", count, PYTHONHASHSEED=seed) for seed, count in ways}
    found.add(as_json(folder))  # from the journal
    assert len(found) == 1
    assert b"shared-run" in next(iter(found))


def test_a_second_grading_reads_only_what_changed(folder, monkeypatch):
    for name in ("a", "b", "c"):
        hand_in(folder / f"{name}.json", name)
    first = results(folder)
    seen = []

    def spied(folder, files, *rest):
        seen.extend(name for name, _ in files)
        return graded_lines(folder, files, *rest)

    from localai_clusters.grading import folder as module

    graded_lines = module.graded_lines
    monkeypatch.setattr(module, "graded_lines", spied)
    assert results(folder) == first
    assert seen == []
    old = (folder / "b.json").stat()
    text = (folder / "b.json").read_text().replace('"b"', '"x"')
    (folder / "b.json").write_text(text)
    os.utime(folder / "b.json", ns=(old.st_atime_ns, old.st_mtime_ns))  # the size and the time are as they were
    (folder / "c.json").unlink()
    hand_in(folder / "d.json", "d")
    found = {name: graded.student for name, graded in results(folder).items()}
    assert found == {"a.json": "a", "b.json": "x", "d.json": "d"}
    assert seen == ["b.json", "d.json"]
    seen.clear()
    results(folder, fresh=True)
    assert seen == ["a.json", "b.json", "d.json"]


@pytest.mark.parametrize("change", ["rubric", "key", "replay"])
def test_other_rules_are_not_taken_for_the_earlier_ones(folder, change):
    hand_in(folder / "a.json", "s1")
    assert results(folder)["a.json"].points == 15.0
    if change == "rubric":
        lab, rubric = next(iter(RUBRICS.items()))
        fewer = rubric.model_copy(update={"criteria": rubric.criteria[:1]})
        with grade_folder(folder, {lab: fewer}) as book:
            assert next(book.results()).points == 1.0
    elif change == "key":
        assert results(folder, key="other")["a.json"].points == 13.0
    else:
        replays = {"a.json": {"outcome": "confirmed", "reason": "288 tokens"}}
        assert results(folder, replays=replays)["a.json"].points == 16.0
        assert results(folder)["a.json"].points == 15.0
    assert results(folder)["a.json"].points == 15.0


def journal_file(cache: Path) -> Path:
    (found,) = (cache / "localai-clusters" / "grading").glob("*.jsonl")
    return found


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "a line of another"])
def test_a_damaged_journal_is_not_believed(folder, cache, damage):
    for name in ("a", "b", "c"):
        hand_in(folder / f"{name}.json", name)
    first = results(folder)
    journal = journal_file(cache)
    content = journal.read_bytes()
    if damage == "cut":
        journal.write_bytes(content[:-700])
    elif damage == "noise":
        journal.write_bytes(content.replace(b"\t", b" ", 1))
    elif damage == "empty":
        journal.write_bytes(b"")
    else:
        journal.write_bytes(content + b'["a.json", null]\t{}\n')
    assert results(folder) == first
    assert results(folder) == first


def test_the_journal_does_not_grow_with_every_grading(folder, cache):
    hand_in(folder / "a.json", "s1")
    for number in range(8):  # looked at anew each time
        (folder / f"{number}.json").symlink_to("nowhere")
    sizes = []
    for _ in range(6):
        results(folder)
        sizes.append(journal_file(cache).stat().st_size)
    assert max(sizes) < 2 * sizes[0]
    assert journal_file(cache).stat().st_mode & 0o077 == 0  # grades are nobody else's business


def test_two_gradings_of_one_folder_wait_for_each_other(folder):
    hand_in(folder / "a.json", "s1")
    waited, done = threading.Event(), []
    journal = Journal(folder, "held")
    thread = threading.Thread(target=lambda: done.append(results(folder, on_wait=waited.set)))
    thread.start()
    assert waited.wait(20) and not done
    journal.close()
    thread.join(60)
    assert done[0]["a.json"].student == "s1"


def test_a_gradebook_stays_readable_while_others_grade(folder):
    hand_in(folder / "a.json", "s1")
    with grading(folder) as book:
        first = list(book.results())
        hand_in(folder / "b.json", "s2")
        with grade_folder(folder, {}) as other:  # other rules: the journal is begun anew
            assert len(list(other.results())) == 2
        assert list(book.results()) == first


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def two_thousand(tmp_path_factory) -> Path:
    """2,000 files, of 50 students."""
    folder = tmp_path_factory.mktemp("two thousand")
    texts = [text_of(f"s{number}") for number in range(50)]
    for number in range(2000):
        (folder / f"{number:04}.json").write_text(texts[number % 50], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(two_thousand, tmp_path_factory) -> bytes:
    """What an undisturbed grading of them prints."""
    found = as_json(two_thousand, XDG_CACHE_HOME=str(tmp_path_factory.mktemp("whole")))
    assert len(json.loads(found)["results"]) == 2000
    return found


def halfway(folder: Path, cache: Path, **options) -> tuple[subprocess.Popen, list[int]]:
    """A grading that is at work, and its processes."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    command = [*GRADE, str(folder), "--json", "--processes", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True, **options
    )
    wait_for(
        lambda: any(path.stat().st_size > 300_000 for path in cache.rglob("*.jsonl")) or process.poll() is not None
    )
    workers = [child.pid for child in psutil.Process(process.pid).children()]
    assert process.poll() is None and workers, "the grading was over before it could be stopped"
    return process, workers


def test_killed_halfway_it_goes_on_and_ends_with_the_same_bytes(two_thousand, whole, tmp_path):
    cache = tmp_path / "killed"
    process, workers = halfway(two_thousand, cache)
    os.kill(workers[0], signal.SIGSTOP)  # it can notice nothing by itself
    process.kill()
    process.communicate()
    wait_for(lambda: not alive(workers), 10)
    assert 50 < journal_file(cache).read_bytes().count(b"\n") < 2000
    assert as_json(two_thousand, XDG_CACHE_HOME=str(cache)) == whole


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_no_process_and_says_one_line(two_thousand, tmp_path, signum):
    process, workers = halfway(two_thousand, tmp_path / "interrupted", start_new_session=True)
    os.killpg(process.pid, signum)  # as a terminal does
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "localai-clusters: stopped\n")
    assert not alive(workers)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_full_disk_is_one_line_and_the_next_grading_goes_on(two_thousand, whole, tmp_path):
    cache = tmp_path / "small"
    cache.mkdir()
    room = 'mount -t tmpfs -o size=2m none {0} && {{ "$@"; code=$?; cp -a {0}/. {1}; exit $code; }}'
    kept = tmp_path / "kept"
    kept.mkdir()
    script = room.format(cache, kept)
    command = ["unshare", "-m", "sh", "-c", script, "sh", *GRADE, str(two_thousand), "--json"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.strip().endswith("No space left on device") and len(answer.stderr.splitlines()) == 1
    journal = journal_file(kept)
    assert journal.read_bytes().endswith(b"\n") and journal.stat().st_size > 500_000
    assert as_json(two_thousand, XDG_CACHE_HOME=str(kept)) == whole


# Which record counts


def test_the_best_record_counts_or_the_latest(folder):
    late = "2026-12-30T10:00:00Z"
    hand_in(folder / "s1" / "a.json", "s1")
    hand_in(folder / "s1" / "worse.json", "s1", 2, created_at=late, constraints=[], observed={})
    best, latest = results(folder), results(folder, take="latest")
    assert [name for name, graded in best.items() if graded.counts] == ["s1/a.json"]
    assert [name for name, graded in latest.items() if graded.counts] == ["s1/worse.json"]


def test_of_equal_records_the_later_one_counts(folder):
    times = {"a": "2026-11-24T10:00:00Z", "b": "2026-11-25T10:00:00Z", "c": "2026-11-23T12:00:00Z"}
    for number, (name, moment) in enumerate(times.items()):
        hand_in(folder / f"{name}.json", "s1", number, created_at=moment)
    with grading(folder) as book:
        assert [graded.file for graded in book.students()] == ["b.json"]


def test_somebody_elses_record_with_ones_name_on_it_does_not_take_ones_place(folder):
    for name in ("alice", "bob", "mallory"):
        hand_in(folder / name / "a.json", name)
    hand_in(folder / "mallory" / "b.json", "alice", 2, created_at="2026-12-30T10:00:00Z")
    with grading(folder, take="latest") as book:
        assert [graded.file for graded in book.students()] == ["alice/a.json", "bob/a.json", "mallory/a.json"]
        flagged = {graded.file: [flag.kind for flag in graded.flags] for graded in book.results() if graded.flags}
    assert flagged == {"mallory/b.json": ["folder"]}


def test_labs_count_apart_and_unreadable_files_never(folder):
    hand_in(folder / "a.json", "s1")
    hand_in(folder / "b.json", "s1", lab="another_lab")
    (folder / "c.json").write_text("")
    with grading(folder) as book:
        assert [graded.file for graded in book.students()] == ["a.json", "b.json"]
        assert chosen(book.entries, "best") == {0, 1}


# The verb


def test_exit_codes(folder, tmp_path):
    assert run(folder).returncode == 2  # nothing to grade
    hand_in(folder / "a.json", "s1")
    assert run(folder).returncode == 0
    (folder / "b.json").write_text("{")
    assert run(folder).returncode == 1
    assert run(tmp_path / "absent").returncode == 2
    assert run().returncode == 2
    assert run(folder, "--course-key-file", tmp_path / "absent").returncode == 2


def test_a_missing_folder_is_one_line(tmp_path):
    answer = run(tmp_path / "absent")
    assert answer.stderr == f"localai-clusters: {tmp_path / 'absent'}: No such file or directory\n"


def test_a_lab_that_asks_for_more_evidence_is_exit_1(folder, tmp_path):
    hand_in(folder / "a.json", "s1")
    rubric = tmp_path / "gpu.yaml"
    rubric.write_text(RUBRIC.read_text().replace("evidence: cpu", "evidence: cuda"))
    command = [*GRADE[:3], "grade", "--rubric", str(rubric), str(folder), "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 1
    assert json.loads(answer.stdout)["results"][0]["outcome"] == "below the evidence level"


def test_the_courses_own_rubrics_are_the_default(folder):
    hand_in(folder / "a.json", "s1")
    command = [*GRADE[:3], "grade", str(folder), "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert json.loads(answer.stdout)["rubrics"]["vllm_distributed_serving"] == 18.0


def test_the_key_may_stand_in_a_file(folder, tmp_path):
    hand_in(folder / "a.json", "s1")
    key = tmp_path / "key"
    key.write_text("the course's\n")
    flags = json.loads(run(folder, "--course-key-file", key, "--json").stdout)["results"][0]["flags"]
    assert [flag["kind"] for flag in flags] == ["default-key"]
    for content in (b"", b"two\nlines", b"\xff"):
        key.write_bytes(content)
        assert run(folder, "--course-key-file", key).returncode == 2
    assert "the course's" not in run(folder, "--course-key-file", tmp_path / "key").stdout


def test_piped_it_shows_no_progress(folder):
    hand_in(folder / "a.json", "s1")
    assert run(folder).stderr == ""


def test_on_a_terminal_it_shows_progress(folder):
    hand_in(folder / "a.json", "s1")
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    command = [*GRADE, str(folder), "--json"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=follower, timeout=60, env=environment)
    os.close(follower)
    said = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert "grading" in said and "1/1" in said
    assert json.loads(answer.stdout)["results"]


# With replay


def confirming(asked: list[list[str]], **outcomes: str):
    """In place of a model: every record is confirmed but those of ``outcomes``, by student."""

    def replay(records):
        asked.append([path for path, _ in records])
        return [
            {"outcome": outcomes.get(record.student, "confirmed"), "reason": "the model was not asked here"}
            for _, record in records
        ]

    return replay


def replayed(folder: Path, replay, **options) -> dict[str, tuple[str, float | None]]:
    with grade_replayed(folder, RUBRICS, replay, **options) as book:
        return {graded.file: (graded.outcome, graded.points) for graded in book.results()}


def test_a_replay_decides_its_criterion(folder):
    for name in ("a", "b"):
        hand_in(folder / f"{name}.json", name)
    (folder / "c.json").write_text("{")
    asked = []
    found = replayed(folder, confirming(asked, b="refuted"))
    assert found == {"a.json": ("graded", 16.0), "b.json": ("graded", 15.0), "c.json": ("unreadable", None)}
    assert asked == [["a.json", "b.json"]]


def test_a_replay_is_asked_for_once_per_record(folder):
    for name in ("a", "b"):
        hand_in(folder / f"{name}.json", name)
    asked = []
    first = replayed(folder, confirming(asked))
    assert results(folder)["a.json"].points == 15.0  # a grading without it in between
    assert replayed(folder, confirming(asked)) == first
    hand_in(folder / "b.json", "b", 2)
    replayed(folder, confirming(asked))
    replayed(folder, confirming(asked), fresh=True)
    assert asked == [["a.json", "b.json"], ["b.json"], ["a.json", "b.json"]]


def test_a_replay_that_was_killed_goes_on(folder, monkeypatch):
    monkeypatch.setattr(replayed_folder, "AT_ONCE", 2)
    for number in range(5):
        hand_in(folder / f"{number}.json", f"s{number}")
    asked: list[list[str]] = []

    def killed(records):
        if len(asked) == 2:
            raise KeyboardInterrupt
        return confirming(asked)(records)

    with pytest.raises(KeyboardInterrupt):
        replayed(folder, killed)
    asked.clear()
    assert {outcome for outcome, _ in replayed(folder, confirming(asked)).values()} == {"graded"}
    assert asked == [["4.json"]]


def test_a_file_that_changes_while_it_is_replayed_is_said(folder):
    path = hand_in(folder / "a.json", "s1")

    def replay(records):
        hand_in(path, "s2") if records[0] else None
        return confirming([])(records)

    with pytest.raises(CheckpointError, match=r"a\.json: it changed while it was replayed"):
        replayed(folder, replay)
