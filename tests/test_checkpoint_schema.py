"""The committed JSON Schema is the code's, and says what the code accepts."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from test_checkpoint_example import example
from test_checkpoint_store import mutated

from localai_clusters.checkpoint import CheckpointError, read, schema, to_json
from localai_clusters.checkpoint.json_schema import COMMITTED, schema_text

RECORD = to_json(example())


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(COMMITTED.read_text(encoding="utf-8")))


def accepts(record: dict, tmp_path: Path) -> bool:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    try:
        read(path)
    except CheckpointError:
        return False
    return True


def objects(node):
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, dict | list):
            yield from objects(child)


def test_the_committed_schema_is_the_code_s():
    assert COMMITTED.read_text(encoding="utf-8") == schema_text(), (
        "run python -m localai_clusters.checkpoint and commit the file"
    )


def test_the_module_writes_the_schema(tmp_path):
    target = tmp_path / "new" / "schema.json"
    command = [sys.executable, "-m", "localai_clusters.checkpoint", target]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    assert target.read_text(encoding="utf-8") == schema_text()


def test_it_is_a_schema_of_draft_2020_12():
    Draft202012Validator.check_schema(schema())
    assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_no_object_is_open_and_nothing_is_unbounded():
    seen = set()
    for node in objects(schema()):
        kind = node.get("type")
        if kind == "object":
            assert "additionalProperties" in node
            if "properties" in node:
                assert node["additionalProperties"] is False
            else:
                assert "maxProperties" in node
        elif kind == "array":
            assert "maxItems" in node
        elif kind == "string":
            assert {"maxLength", "pattern", "enum", "const"} & node.keys(), node
        elif kind in ("integer", "number"):
            assert {"maximum", "const", "enum"} & node.keys(), node
        seen.add(kind)
    assert {"object", "array", "string", "integer", "number"} <= seen


def test_fields_are_described():
    rank = schema()["$defs"]["Rank"]["properties"]
    assert "until it was stopped in the normal way" in rank["exit_code"]["description"]


@pytest.mark.parametrize(
    ("path", "value", "good"),
    [
        ("student", "a.b-c_d", True),
        ("student", ".a", False),
        ("student", "", False),
        ("chapter", "7", False),
        ("chapter", None, False),
        ("schema_version", 1, True),
        ("schema_version", 3, False),
        ("created_at", "2026-13-01T00:00:00Z", False),
        ("created_at", "2026-11-23T10:45:00+00:00", False),
        ("evidence", {"level": "cpu", "nodes": 1}, False),
        ("evidence.more", 1, False),
        ("data.weights_sha256", {"a": "0" * 63}, False),
        ("runs.0.environment", {"A B": "x"}, False),
        ("runs.0.environment", {"A": None}, False),
        ("runs.0.ranks.0.layers", [0, 1, 2], False),
        ("runs.0.ranks.0.layers", None, True),
        ("runs.0.seconds_to_ready", 3, True),
        ("runs.0.seconds_to_ready", False, False),
        ("runs.0.plan.gpu_memory_utilization", 1.1, False),
        ("answers", {"a": True, "b": 1, "c": 0.5, "d": "x"}, True),
        ("answers", {"a": []}, False),
        ("answers", {"": 1}, False),
        ("answers", {"a": 2**70}, False),
        ("answers", {"a": "x" * 16_385}, False),
        ("observed", {}, True),
        ("observed.completions.0.logprobs", None, True),
        ("observed.load.0.itl_p99_s", None, True),
        ("observed.load.0.itl_p99_s", 0.5, True),
        ("observed.load.0.itl_p99_s", -1.0, False),
        ("observed.completions.0.token_ids", [-1], False),
        ("constraints", [{"kind": "mood", "sentence": "", "source": "student"}], False),
    ],
)
def test_schema_and_code_agree_on(validator, tmp_path, path, value, good):
    record = json.loads(RECORD)
    *parents, last = path.split(".")
    node = record
    for name in parents:
        node = node[int(name) if isinstance(node, list) else name]
    node[last] = value
    assert validator.is_valid(record) is good
    assert accepts(record, tmp_path) is good


def test_schema_and_code_agree_on_records_mutated_by_chance(validator, tmp_path):
    good = 0
    for seed in range(1000, 1060):
        record = mutated(json.loads(RECORD), random.Random(seed))
        if "Infinity" in json.dumps(record):
            continue  # not JSON at all
        verdict = accepts(record, tmp_path)
        assert validator.is_valid(record) is verdict, seed
        good += verdict
    assert 5 < good < 50
