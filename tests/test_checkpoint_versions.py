"""Versions of the record: files of version 1 stay readable, and what version 2 added is written, checked and shown."""

import hashlib
import io
import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from rich.console import Console
from test_checkpoint_example import example, fields, plan

from localai_clusters import checkpoint
from localai_clusters.checkpoint import CheckpointError, build, digest_of, read, show, store, verify, write
from localai_clusters.checkpoint.json_schema import COMMITTED, schema
from localai_clusters.observed import Collective, ExerciseOutcome, Failure, Timeline, Traffic
from localai_clusters.plan import ServePlan
from localai_clusters.recording import record

VERSION_1 = sorted(Path(__file__).parent.glob("records/**/*.json"))
SCHEMA_1 = COMMITTED.with_name("checkpoint-v1.schema.json")
ADDED = {
    "timelines": [
        {"run_id": "tp2", "rank": None, "quantity": "kv-blocks", "unit": "blocks", "capacity": 364,
         "seconds": [11.0, 11.5, 12.0], "values": [0, 180, 3]},
        {"run_id": "tp2", "rank": 1, "quantity": "resident", "unit": "bytes", "seconds": [11.0], "values": [1 << 30]},
    ],
    "traffic": [
        {"run_id": "tp2", "layout": "TP=2", "rate_mbit": 10.0, "delay_ms": 5.0, "output_tokens": 48, "seconds": 31.0,
         "bytes_sent": [16_000_000], "predicted_bytes_per_token": 140_544},
    ],
    "failures": [
        {"name": "heads-not-divisible", "how": "refused by preflight", "cause": "heads", "message": "9 heads",
         "seconds": 0.004, "plan": plan(2), "repaired_run_id": "tp2"},
        {"name": "killed-rank", "how": "lost while serving", "cause": "rank-killed", "message": "rank 1 died",
         "rank": 1, "seconds": 2.5, "run_id": "20261123-104500-abcd"},
    ],
    "collectives": [
        {"layout": "TP=2", "operation": "all-reduce", "message_bytes": 1152, "seconds": 3.8e-6,
         "bytes_per_second": 3e8},
    ],
}  # fmt: skip
EXERCISES = [
    {"id": "kv_bytes", "status": "right", "attempts": 2, "hints": 1},
    {"id": "worth_it", "status": "by-hand", "attempts": 1},
    {"id": "blocks", "status": "not-tried"},
    {"id": "split", "status": "wrong", "attempts": 1, "solution_shown": True},
]


def version_2(**observed):
    return example(observed={**fields()["observed"], **ADDED, **observed}, exercises=EXERCISES)


def page(of) -> str:
    out = io.StringIO()
    show(of, Console(file=out, width=100))
    return out.getvalue()


# Version 1


@pytest.mark.parametrize("path", VERSION_1, ids=lambda path: path.stem)
def test_a_file_of_version_1_is_read_holds_and_is_written_as_it_was(path, tmp_path):
    old = read(path)
    assert old.schema_version == 1
    assert old.digest == digest_of(old)
    assert not [finding for finding in verify(old) if finding.severity == "wrong"]
    assert write(old, tmp_path).read_bytes() == path.read_bytes()


def test_the_schema_of_version_1_does_not_change():
    assert hashlib.sha256(SCHEMA_1.read_bytes()).hexdigest() == (
        "9fbabe55466357461674817cce5d063916d48f97b6b396aaf41fafffae9f89e6"
    )
    validator = Draft202012Validator(json.loads(SCHEMA_1.read_text()))
    assert len(VERSION_1) >= 7
    for path in VERSION_1:
        assert validator.is_valid(json.loads(path.read_text())), path


@pytest.mark.parametrize("name", ["exercises", *ADDED])
@pytest.mark.parametrize("large", [False, True], ids=["read quickly", "read strictly"])
def test_version_1_has_no_field_of_version_2(name, large, tmp_path, monkeypatch):
    if large:
        monkeypatch.setattr(store, "QUICK_BYTES", 0)
    plain = json.loads(VERSION_1[0].read_text())
    if name == "exercises":
        plain[name] = EXERCISES
    else:
        plain["observed"][name] = ADDED[name]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(CheckpointError, match=f"the record: should not be of version 1, which has no {name}"):
        read(path)


# Version 2


def test_what_was_observed_comes_back_from_the_file(tmp_path):
    made = version_2()
    assert made.schema_version == 2
    assert verify(made) == []
    path = write(made, tmp_path)
    assert read(path) == made
    Draft202012Validator(schema()).validate(json.loads(path.read_text()))
    assert "timelines" not in json.loads(write(example(), tmp_path).read_text())["observed"]


def test_what_was_observed_is_shown():
    text = " ".join(page(version_2()).split())
    for part in (
        "Exercises: 1 of 4 right, as the notebook saw it",
        "right kv_bytes 2 attempts, 1 hint",
        "wrong split 1 attempt, solution shown",
        "heads-not-divisible refused by preflight heads 4 ms TP=2",
        "killed-rank lost while serving rank-killed 2.5 s -",
        "TP=2 10 Mbit/s, 5 ms 1.5 333,333 140,544",
        "TP=2 all-reduce 1,152 3.8 300",
        "TP=2, server, kv-blocks ▁▄▁ 0 to 180 blocks of 364",
        "TP=2, rank 1, resident █ 1,024 to 1,024 MiB",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("kind", "changes", "field", "sentence"),
    [
        ("timelines", {"values": [0, 1]}, "observed.timelines[0]", "3 times for 2 values"),
        ("timelines", {"seconds": [2.0, 1.0, 3.0]}, "observed.timelines[0].seconds", "not in order"),
        ("timelines", {"values": [0, 365, 0]}, "observed.timelines[0].values", "365 blocks of 364 that there can be"),
        ("timelines", {"run_id": "x"}, "observed.timelines[0].run_id", "there is no run x"),
        ("traffic", {"run_id": "x"}, "observed.traffic[0].run_id", "there is no run x"),
        ("traffic", {"bytes_sent": [7_000_000, 2]}, "observed.traffic[0].bytes_sent", "of 2 nodes; the plan has 1"),
        ("traffic", {"bytes_sent": [10_000]}, "observed.traffic[0]", "carry 6,746,112 bytes of payload"),
        ("failures", {"repaired_run_id": "x"}, "observed.failures[0].repaired_run_id", "there is no run x"),
    ],
)
def test_what_contradicts_itself_is_found(kind, changes, field, sentence):
    first, *others = ADDED[kind]
    found = verify(version_2(**{kind: [first | changes, *others]}))
    assert [finding.field for finding in found] == [field]
    assert sentence in found[0].sentence


def test_an_exercise_stands_there_once():
    (finding,) = verify(example(exercises=EXERCISES[:1] * 2))
    assert finding.sentence == "kv_bytes stands there 2 times"


def test_secrets_and_the_home_directory_are_kept_out_of_what_was_observed(monkeypatch):
    monkeypatch.setenv("HOME", "/home/maria")
    failure = ADDED["failures"][1] | {"message": "No such file: /home/maria/models/x/config.json"}
    made = version_2(failures=[failure])
    assert made.observed.failures[0].message == "No such file: ~/models/x/config.json"
    assert b"maria" not in checkpoint.canonical_json(made)


# Without a server


def test_refused_plans_alone_are_a_dry_run(tmp_path):
    refused = Failure(
        "heads-not-divisible", "refused by preflight", "heads", "9 heads on 2 ranks: no", 0.004,
        plan=ServePlan(model="smollm2-135m-published", tensor_parallel_size=2),
    )  # fmt: skip
    made = record(
        student="s1",
        chapter=7,
        lab="break_it",
        failures=[refused],
        timelines=[Timeline("none", 0, "resident", "bytes", ((0.5, 1), (1.0, 2)))],
        traffic=[Traffic("none", "TP=2", 5, 1.0, (1, 2))],
        collectives=[Collective("TP=2", "all-reduce", 1152, 4e-6)],
        exercises=[ExerciseOutcome("a", "right", 3, attempts=1)],
        folder=tmp_path,
    ).checkpoint
    assert (made.evidence.level, made.evidence.ranks, made.runs) == ("dry-run", 0, ())
    assert (made.data.model, made.data.source) == ("smollm2-135m-published", "built-in")
    (failure,) = made.observed.failures
    assert (failure.plan.tensor_parallel_size, failure.plan.max_model_len) == (2, 8192)
    assert made.observed.timelines[0].seconds == (0.5, 1.0)
    wrong = {finding.field for finding in verify(made)}
    assert wrong == {"observed.timelines[0].run_id", "observed.traffic[0].run_id"}  # of runs that are not there
    assert {constraint.kind for constraint in made.constraints} == {"model-size", "backend", "available-memory"}


def test_a_record_of_nothing_is_refused():
    with pytest.raises(ValueError, match="needs the servers that ran"):
        record(student="s1", chapter=7, lab="l")


def test_build_writes_the_newest_version():
    assert build(**fields()).schema_version == checkpoint.SCHEMA_VERSION == 2
