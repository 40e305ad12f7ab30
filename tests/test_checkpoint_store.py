"""Checkpoint files: whole whatever happens while writing, and read with suspicion."""

import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import threading
import time
import uuid
from pathlib import Path

import pytest
from test_checkpoint_example import example

from localai_clusters.checkpoint import (
    Checkpoint,
    CheckpointError,
    build,
    path_of,
    read,
    to_json,
    write,
)
from localai_clusters.checkpoint.store import MAX_BYTES, MAX_DEPTH

SAME_FILE = {"record_id": "0d9a7c1e-5b8f-4f6e-9a53-1f2e3d4c5b6a"}


def file_with(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "checkpoint.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def complaint(path: Path | str) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isascii()
    return message


def as_dict() -> dict:
    return json.loads(to_json(example()))


# Writing


def test_what_is_written_is_read_back(tmp_path):
    checkpoint = example()
    path = write(checkpoint, tmp_path)
    assert read(path) == checkpoint
    assert path.read_text(encoding="utf-8") == to_json(checkpoint)


def test_the_file_is_named_for_what_it_holds(tmp_path):
    path = write(example(**SAME_FILE), str(tmp_path))
    name = "07-vllm_distributed_serving-20261123T104500Z-0d9a7c1e.json"
    assert path == tmp_path / "s123" / name
    assert [entry.name for entry in path.parent.iterdir()] == [name]


def test_a_file_is_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        path = write(example(), tmp_path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_killed_while_writing_leaves_the_old_file_or_the_new_one(tmp_path):
    versions = [example(**SAME_FILE, answers={"v": "x" * 9000, "n": n}) for n in (0, 1)]
    path = write(versions[0], tmp_path)
    chance = random.Random(7)
    seen, left = set(), 0
    for _ in range(60):
        writer = os.fork()
        if writer == 0:
            for turn in range(1, 10_000):
                write(versions[turn % 2], tmp_path)
            os._exit(0)
        time.sleep(chance.uniform(0, 0.02))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        found = read(path)
        assert found in versions
        seen.add(found.answers["n"])
        left += len(list(path.parent.iterdir())) > 1
    assert seen == {0, 1}, "no kill came after a write: the test is too quick"
    assert left, "no kill came during a write: the test is too slow"


def test_writers_at_once_leave_one_whole_file(tmp_path):
    versions = [example(**SAME_FILE, answers={"n": n}) for n in range(4)]
    fork = multiprocessing.get_context("fork")

    def write_often(checkpoint: Checkpoint) -> None:
        for _ in range(15):
            write(checkpoint, tmp_path)

    writers = [fork.Process(target=write_often, args=(v,)) for v in versions]
    for writer in writers:
        writer.start()
    path = path_of(versions[0], tmp_path)
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            assert read(path) in versions
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_is_said_and_leaves_the_old_file(tmp_path, monkeypatch, step):
    old, new = (example(**SAME_FILE, answers={"n": n}) for n in (0, 1))
    path = write(old, tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(CheckpointError, match="no room for the checkpoint"):
        write(new, tmp_path)
    monkeypatch.undo()
    assert read(path) == old
    assert os.listdir(path.parent) == [path.name]


def test_a_file_too_large_for_the_disk_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CheckpointError, match="no room for the checkpoint"):
            write(example(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path / "s123") == []


def test_an_interrupt_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(example(), tmp_path)
    assert os.listdir(tmp_path / "s123") == []


def test_what_a_killed_writer_left_an_hour_ago_is_removed(tmp_path):
    folder = tmp_path / "s123"
    folder.mkdir()
    old, young = folder / ".a.json.12.tmp", folder / ".b.json.34.tmp"
    for left in (old, young):
        left.write_text("{")
    os.utime(old, (time.time() - 7200,) * 2)
    write(example(), tmp_path)
    assert (old.exists(), young.exists()) == (False, True)


def test_a_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write(example(), tmp_path / "checkpoints")


def test_a_record_larger_than_read_accepts_is_not_written(tmp_path):
    text = [{"text": "x" * 250_000, "sha256": "0" * 64}] * 70
    data = {"model": "m", "source": "folder", "prompts": text}
    with pytest.raises(CheckpointError, match="16,777,216"):
        write(example(data=data), tmp_path)
    assert not (tmp_path / "s123").exists()


# Reading


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "the file is empty"),
        (" \n\t", "the file is empty"),
        ("[]", "one JSON object"),
        ('"text"', "one JSON object"),
        ("null", "one JSON object"),
        ("{}", "schema_version: this field is missing"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8 at byte 0"),
        (b'{"student": "\xe9"}', "not UTF-8 at byte 13"),
        ("\ufeff{}", "not JSON at line 1"),
        ("{'a': 1}", "not JSON at line 1, column 2"),
        ('{"a": 1,}', "not JSON at line 1"),
        ('{"a": 1} {"b": 2}', "not JSON at line 1, column 10"),
        ('{"a": 1, "a": 1}', 'the field "a" stands twice'),
        ('{"b": [{"a\\u001b": 1, "a\\u001b": 2}]}', 'field "a\\u001b" stands twice'),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ('{"a": %s}' % ("1" * 5000), "a number that is far too long"),
        ('{"schema_version": "1"}', 'whole number from 1; found "1"'),
        ('{"schema_version": true}', "whole number from 1; found true"),
        ('{"schema_version": 1.0}', "whole number from 1; found 1.0"),
        ('{"schema_version": 0}', "whole number from 1; found 0"),
        ('{"schema_version": null}', "schema_version: this field is missing"),
        (
            '{"schema_version": 3, "new": []}',
            "this file is version 3; this program reads up to 2: update with `git pull",
        ),
        ('{"schema_version": 1}', "record_id: this field is missing"),
        ('{"schema_version": 1, "\\u001b[2J": 1}', "(and other fields are wrong)"),
        ("{" + ",".join(f'"{n}":0' for n in range(4097)) + "}", "4,096 fields"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, expected):
    message = complaint(file_with(tmp_path, content))
    assert expected in message
    assert str(tmp_path) in message


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("student", "a/b", "student: should be 1 to 64 of"),
        ("digest", "0" * 63, "digest: should be 64 hexadecimal"),
        ("chapter", 7.0, "chapter: should be a valid integer"),
        ("runs.1.plan.nnodes", 0, "runs[1].plan.nnodes: should be greater than or eq"),
        ("runs.0.ranks.0.layers", "ab", "runs[0].ranks[0].layers: should be a valid"),
        ("runs.0.seconds_to_ready", 1e999, "seconds_to_ready: should be a finite"),
        ("runs.0.seconds_to_ready", "1", "seconds_to_ready: should be a valid number"),
        ("observed.completions", {}, "observed.completions: should be a valid list"),
        ("answers", {"q": [1]}, "answers.q: should be a text of"),
        ("answers", {"q": "\ud800"}, "answers.q: should be a text of"),
        ("data.folder", "\ud800", "data.folder: should be a valid string"),
        ("runs.0.seconds_to_ready", 10**400, "seconds_to_ready: should be"),
        ("runs", [[]] * 5000, "runs[0]: should be"),
        ("versions.\x1b[2J\nname", 1, 'versions["\\u001b[2J\\nname"]: the record has'),
        ("machine", [], "machine: should be an object; found a list of 0 items"),
        (
            "constraints",
            [{"kind": "other", "sentence": "", "source": "library"}] * 257,
            "constraints: list should have at most 256 items",
        ),
        ("versions.vllm", "\x1b[2J" * 100, "versions.vllm: string should have at most 256"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, path, value, expected):
    record = as_dict()
    *parents, last = path.split(".")
    node = record
    for name in parents:
        node = node[int(name) if isinstance(node, list) else name]
    node[last] = value
    text = json.dumps(record).replace("Infinity", "1e999")
    message = complaint(file_with(tmp_path, text))
    assert expected in message
    assert len(message) < 600


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    text = to_json(example()).rstrip()
    for end in range(1, len(text), 997):
        message = complaint(file_with(tmp_path, text[:end]))
        assert "cut short" in message or "not JSON" in message or "UTF-8" in message


def test_a_record_cut_after_a_member_is_said_to_be_cut_short(tmp_path):
    text = to_json(example())
    message = complaint(file_with(tmp_path, text[: text.index('"chapter"')]))
    assert "it was cut short" in message


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":', '["\\"[",'])
def test_deep_nesting_is_refused_before_it_is_parsed(tmp_path, opening):
    deep = opening * 200_000
    assert f"nested deeper than {MAX_DEPTH}" in complaint(file_with(tmp_path, deep))


def test_one_level_more_than_the_limit_is_refused(tmp_path):
    most = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert "one JSON object" in complaint(file_with(tmp_path, most))
    assert "nested deeper" in complaint(file_with(tmp_path, f"[{most}]"))
    assert "nested deeper" in complaint(file_with(tmp_path, f'["\\\\",{most}]'))


def test_brackets_inside_text_are_not_nesting(tmp_path):
    checkpoint = example(answers={"q": '[{"\\' * 500})
    assert read(write(checkpoint, tmp_path)) == checkpoint


@pytest.mark.timeout(30)
def test_a_file_over_the_limit_is_refused_unread(tmp_path):
    path = file_with(tmp_path, "")
    os.truncate(path, 200 * MAX_BYTES)  # 3.2 GB, none of it on the disk
    assert "16,777,216 bytes" in complaint(path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "item",
    ["[]", '"a"', '{"a":0}', "9", '"\\"\\\\"', '{"token_ids":["a","b"],"x":{}}'],
)
def test_a_large_hostile_list_is_refused(tmp_path, item):
    items = ",".join([item] * (2_000_000 // len(item)))
    text = '{"schema_version":1,"runs":[@],"answers":{"a":[@]}}'.replace("@", items)
    complaint(file_with(tmp_path, text))


@pytest.mark.timeout(5)
def test_a_fifo_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in complaint(tmp_path / "fifo")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("missing.json", "No such file"),
        ("nul\0byte", "cannot be read"),
        ("x" * 300, "File name too long"),
        ("line\nbreak", "No such file"),
        ("loop", "symbolic links"),
    ],
)
def test_what_is_no_readable_file_is_named(tmp_path, path, expected):
    (tmp_path / "loop").symlink_to("loop")
    assert expected in complaint(tmp_path / path)
    assert expected in complaint(str(tmp_path / path))


def test_missing_optional_fields_read_as_their_default(tmp_path):
    record = as_dict()
    assert record["versions"].pop("cuda", "absent") is None
    assert read(file_with(tmp_path, json.dumps(record))).digest == record["digest"]


def mutated(record: dict, chance: random.Random) -> dict:
    """The record with one place, chosen by chance, changed, removed or added to."""
    places = []

    def walk(node):
        for key, item in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(item, dict | list):
                walk(item)

    walk(record)
    node, key = chance.choice(places)
    values = [None, True, 0, -1, 2**64, 1.5, 1e999, "", "\0", "x" * 300_000, [], {}]
    match chance.randrange(4):
        case 0:
            node[key] = chance.choice(values)
        case 1:
            del node[key]
        case 2 if isinstance(node, dict):
            node[chance.choice(["", "new", "\x1b[2J", "9" * 5000])] = node[key]
        case _:
            other, other_key = chance.choice(places)
            node[key] = json.loads(json.dumps(other[other_key]))
    return record


def test_a_mutated_record_is_a_checkpoint_or_an_error(tmp_path):
    text = to_json(example())
    outcomes = {"read": 0, "refused": 0}
    for seed in range(300):
        record = mutated(json.loads(text), random.Random(seed))
        path = file_with(tmp_path, json.dumps(record))
        try:
            found = read(path)
        except CheckpointError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, seed
            outcomes["refused"] += 1
        else:
            assert json.loads(to_json(found)).keys() == json.loads(text).keys()
            outcomes["read"] += 1
    assert min(outcomes.values()) > 30, outcomes


def test_flipped_bytes_are_a_checkpoint_or_an_error(tmp_path):
    content = to_json(example()).encode()
    chance = random.Random(3)
    for _ in range(300):
        changed = bytearray(content)
        changed[chance.randrange(len(changed))] = chance.randrange(256)
        path = file_with(tmp_path, bytes(changed))
        try:
            read(path)
        except CheckpointError as error:
            assert "\n" not in str(error)


def test_students_files_are_not_committed_and_the_schema_is(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    ours = Path(__file__).parents[1] / "checkpoints" / ".gitignore"
    (folder / ".gitignore").write_bytes(ours.read_bytes())
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    paths = {
        "checkpoints/README.md": False,
        "checkpoints/reference/07-x.json": False,
        "checkpoints/schema/checkpoint-v1.schema.json": False,
        "checkpoints/s123/07-x.json": True,
        "checkpoints/schema/07-x.json": True,
        "checkpoints/reference/.07-x.json.12.tmp": True,
        "checkpoints/07-x.json": True,
    }
    ran = subprocess.run(
        ["git", "check-ignore", "--no-index", *paths],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert set(ran.stdout.split()) == {p for p, ignored in paths.items() if ignored}


def test_reading_is_quick_enough_for_a_class(tmp_path):
    path = write(example(), tmp_path)
    started = time.process_time()
    for _ in range(50):
        read(path)
    # Issue 5 wants 10,000 graded in 10 s on two cores: 2 ms each; this is a guard.
    assert (time.process_time() - started) / 50 < 0.02


def test_threads_may_write_at_once(tmp_path):
    records = [example(record_id=str(uuid.UUID(int=n << 96, version=4))) for n in range(8)]
    threads = [threading.Thread(target=write, args=(r, tmp_path)) for r in records]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {read(path).record_id for path in (tmp_path / "s123").iterdir()}
    assert found == {record.record_id for record in records}


def test_a_rebuilt_record_keeps_its_file(tmp_path):
    first = example()
    second = build(**{**first.model_dump(exclude={"digest"}), "answers": {}})
    assert path_of(first, tmp_path) == path_of(second, tmp_path)
