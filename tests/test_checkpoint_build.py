"""build: what it fills in, what it removes, and what it refuses."""

import json
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError
from test_checkpoint_example import altered, completions, example, fields

from localai_clusters.checkpoint import (
    CheckpointError,
    Figure,
    build,
    canonical_json,
    compare,
    digest_of,
    scrub_arguments,
    scrub_environment,
    shorten_home,
    to_json,
    utc,
    verify,
)
from localai_clusters.checkpoint.building import digest_holds


def test_id_time_and_digest_are_filled_in():
    made = fields()
    del made["created_at"]
    before = utc()
    checkpoint = build(**made)
    assert uuid.UUID(checkpoint.record_id).version == 4
    assert before <= checkpoint.created_at <= utc()
    assert checkpoint.digest == digest_of(checkpoint)
    assert build(**made).record_id != checkpoint.record_id


def test_utc_writes_whole_seconds():
    moment = datetime(2026, 11, 23, 10, 45, 0, 987_654, tzinfo=UTC).timestamp()
    assert utc(moment) == "2026-11-23T10:45:00Z"


def test_canonical_json_has_no_white_space_sorted_keys_and_no_digest():
    checkpoint = example(answers={"b": "é", "a": 0.5})
    text = canonical_json(checkpoint).decode()
    assert '"answers":{"a":0.5,"b":"é"}' in text
    assert "digest" not in json.loads(text)
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_the_digest_covers_every_top_level_field():
    same = {"record_id": str(uuid.uuid4())}
    original = example(**same)
    changes = {
        "student": "s124",
        "chapter": 8,
        "lab": "other",
        "created_at": "2026-11-23T10:46:00Z",
        "evidence": {"level": "cpu", "nodes": 1, "ranks": 1},
        "runs": [],
        "constraints": [],
        "preflight": [],
        "answers": {},
        "observed": {},
        "record_id": str(uuid.uuid4()),
    }
    digests = {example(**{**same, name: new}).digest for name, new in changes.items()}
    assert len(digests | {original.digest}) == len(changes) + 1


@pytest.mark.parametrize("seconds", [1e-7, 2.5, 1e16])
def test_a_digest_holds_however_its_numbers_are_written_and_for_no_other_content(seconds):
    record = build(**{**fields(), "answers": {"a": seconds, "b": "é \u2028 \x7f \\ \" / <"}})
    assert digest_holds(record)
    assert not digest_holds(record.model_copy(update={"student": "somebody-else"}))
    assert not digest_holds(record.model_copy(update={"digest": "0" * 64}))


def test_a_load_without_inter_token_latency_has_the_digest_it_had_before_there_was_one():
    text = canonical_json(example()).decode()
    assert '"load":[{"concurrency":16,' in text and "itl_p50_s" not in text + to_json(example())
    given = altered("observed.load[0].itl_p50_s", 0.02)
    assert '"itl_p50_s":0.02' in canonical_json(given).decode() and verify(given) == []


def test_to_json_is_stable_and_keeps_lists_of_numbers_on_one_line():
    checkpoint = example(answers={"q": "[\n  1,\n  2\n]"})
    text = to_json(checkpoint)
    assert to_json(checkpoint) == text
    assert '"layers": [15, 30]' in text
    assert json.loads(text) == checkpoint.model_dump(mode="json")


def test_secrets_and_the_home_directory_do_not_reach_the_record(monkeypatch):
    monkeypatch.setenv("HOME", "/home/maria")
    secret = "s3cr3t-hf_abcdefghijklmnop"
    made = fields()
    made["runs"][0]["environment"] = {
        "HF_TOKEN": secret,
        "VLLM_API_KEY": secret,
        "NCCL_PASSWORD": secret,
        "VLLM_a_Secret": secret,
        "AWS_PROFILE": secret,
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_CACHE_ROOT": "/home/maria/.cache/vllm",
        "VLLM_PLUGIN_URL": f"http://maria:{secret}@127.0.0.1/x",
    }
    made["runs"][0]["argv"] = [
        ["vllm", "serve", "/home/maria/m", "--api-key", secret, secret, "--port=80"],
    ]
    made["runs"][1]["argv"] = [[f"VLLM_API_KEY={secret}", f"--hf-token={secret}", f"--url=http://u:{secret}@h"]]
    made["data"]["folder"] = "/home/maria/models/m"
    made["preflight"][0]["message"] = "'/home/maria' is full"
    text = to_json(build(**made))
    assert secret not in text
    assert "maria" not in text
    assert '"~/models/m"' in text
    assert '"VLLM_HOST_IP": "127.0.0.1"' in text
    assert '"--port=80"' in text
    assert '"http://127.0.0.1/x"' in text


def test_prompts_and_completions_are_kept_word_for_word(monkeypatch):
    monkeypatch.setenv("HOME", "/home/maria")
    made = fields()
    said = "my home is /home/maria"
    made["observed"]["completions"] = [c.model_copy(update={"text": said}) for c in completions("tp1")]
    assert build(**made).observed.completions[0].text == said


def test_build_of_what_build_made_changes_nothing():
    once = example()
    again = build(**once.model_dump(exclude={"digest"}))
    assert again == once


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("/home/maria", "~"),
        ("/home/maria/x y", "~/x y"),
        ("A=/home/maria:/home/maria/b", "A=~:~/b"),
        ("file:///home/maria/b", "file://~/b"),
        ("/home/maria2/x", "/home/maria2/x"),
        ("/home/maria.old", "/home/maria.old"),
        ("/mnt/home/maria/x", "/mnt/home/maria/x"),
        ("~/home/maria", "~/home/maria"),
    ],
)
def test_shorten_home(monkeypatch, text, short):
    monkeypatch.setenv("HOME", "/home/maria/")
    assert shorten_home(text) == short


def test_a_linked_home_is_shortened_by_both_its_names(monkeypatch, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert shorten_home(f"{tmp_path}/home/a {tmp_path}/disk/b") == "~/a ~/b"


def test_the_root_directory_is_no_home(monkeypatch):
    monkeypatch.setenv("HOME", "/")
    assert shorten_home("/usr/bin and /") == "/usr/bin and /"


def test_scrub_environment_keeps_by_allow_list_sorted():
    environ = {"OMP_NUM_THREADS": "1", "PATH": "/bin", "HF_HUB_OFFLINE": "1"}
    kept = scrub_environment(environ)
    assert list(kept.items()) == [("HF_HUB_OFFLINE", "1"), ("OMP_NUM_THREADS", "1")]


def test_scrub_arguments_keeps_flags_that_only_sound_secret():
    argv = ["--max-num-batched-tokens", "2048", "--tokenizer", "x", "--ssl-keyfile=k"]
    assert scrub_arguments(argv) == argv


def test_compare_finds_where_two_runs_part():
    said = completions("tp1", "tp2")
    tokens = said[1].token_ids
    said[1] = said[1].model_copy(update={"token_ids": (*tokens[:17], 9, *tokens[18:])})
    said[3] = said[3].model_copy(update={"token_ids": said[3].token_ids[:5]})
    parted, shorter = compare(said, "tp1", "tp2")
    assert (parted.tokens_equal, parted.first_difference) == (False, 17)
    assert (shorter.tokens_equal, shorter.first_difference) == (False, 5)
    assert compare(said, "tp1", "pp2") == []
    assert [c.tokens_equal for c in compare(said, "tp1", "tp1")] == [True, True]


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("student", ".hidden", "student: should be 1 to 64 of"),
        ("student", "a/b", "student: should be 1 to 64 of"),
        ("student", "s1\n", "student: should be 1 to 64 of"),
        ("student", "a" * 65, "student: should be 1 to 64 of"),
        ("chapter", "7", "chapter: should be a valid integer"),
        ("chapter", True, "chapter: should be a valid integer"),
        ("chapter", 100, "chapter: should be less than or equal to 99; found 100"),
        ("lab", "../x", "lab: should be 1 to 64 of"),
        ("created_at", "2026-11-23 10:45", "created_at: should be a time in UTC"),
        ("created_at", "2026-02-30T10:45:00Z", "is not a day of the calendar"),
        ("evidence.level", "gpu", "evidence.level: should be 'dry-run'"),
        ("runs[1].plan.dtype", None, "runs[1].plan.dtype: should be a valid string"),
        ("runs[0].seconds_to_ready", float("nan"), "seconds_to_ready: should be a fin"),
        ("runs[0].seconds_to_ready", float("inf"), "seconds_to_ready: should be"),
        ("runs[0].seconds_to_ready", -1, "seconds_to_ready: should be greater than"),
        ("runs[0].ranks[0].layers", [0], "runs[0].ranks[0].layers"),
        ("runs[0].ranks[0].kv_cache_blocks", 2**63, "kv_cache_blocks: should be"),
        ("runs[0].environment", {"VLLM_X": 1}, "runs[0].environment.VLLM_X: should"),
        ("runs[0].argv", [[1]], "runs[0].argv[0][0]: should be a valid string"),
        ("answers", {"q": None}, "answers.q: should be a text of up to"),
        ("answers", {"q": 2**70}, "answers.q: should be a text of up to"),
        ("answers", {"bad key": 1}, 'answers["bad key"]: its name should be 1 to 64'),
        ("data.prompts[0].sha256", "AB" * 32, "should be 64 hexadecimal digits"),
        ("data.folder", "\ud800", "data.folder: should be a valid string"),
        ("machine.surprise", 1, "machine.surprise: the record has no such field"),
    ],
)
def test_a_field_that_does_not_fit_is_named(path, value, expected):
    with pytest.raises(CheckpointError) as caught:
        altered(path, value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named():
    made = fields()
    del made["versions"]["python"]
    with pytest.raises(CheckpointError, match=r"^versions\.python: this field is missi"):
        build(**made)


def test_compare_takes_each_run_s_first_answer():
    said = completions("tp1", "tp2")
    again = said[1].model_copy(update={"token_ids": (1,)})
    assert [c.tokens_equal for c in compare([*said, again], "tp1", "tp2")] == [True, True]


def test_a_list_stops_at_its_first_wrong_item():
    with pytest.raises(CheckpointError) as caught:
        altered("observed.completions[0].token_ids", ["a"] * 1000)
    assert caught.value.__cause__.error_count() == 1


def test_a_record_does_not_change():
    checkpoint = example()
    with pytest.raises(ValidationError):
        checkpoint.student = "other"
    assert isinstance(checkpoint.runs, tuple)
    assert isinstance(checkpoint.runs[0].argv[0], tuple)


def test_models_are_strict_where_python_code_fills_them():
    with pytest.raises(ValidationError):
        Figure(predicted="1")


def test_importing_the_record_imports_no_torch():
    code = "import sys, localai_clusters.checkpoint; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    loaded = set(ran.stdout.split())
    assert "pydantic" in loaded
    assert loaded.isdisjoint({"torch", "vllm", "transformers", "numpy"})
