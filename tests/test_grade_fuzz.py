"""Records that nobody would write: each gets an outcome and a reason, every export can hold them, nothing crashes.

FUZZ_EXAMPLES=50000 python -m pytest tests/test_grade_fuzz.py      # more than CI takes the time for
"""

import copy
import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localai_clusters.checkpoint import Checkpoint, CheckpointError, digest_of, plain_text, store
from localai_clusters.checkpoint.building import from_json
from localai_clusters.grading.copies import copies
from localai_clusters.grading.fingerprint import Fingerprint, fingerprint
from localai_clusters.grading.grade import FAILED, grade_content
from localai_clusters.grading.journal import Head, head_of, line_of
from localai_clusters.grading.results import BY_HAND, FULL, NONE, OUTCOMES, PART, UNREADABLE, Graded
from localai_clusters.grading.rubric import Rubric
from localai_clusters.grading.rubric_file import parse_rubric, read_rubric

ROOT = Path(__file__).parents[1]
REAL = (ROOT / "tests" / "records" / "cpu_2_cores_float32_tp1_tp2_pp2.json").read_bytes()
CHAPTER = read_rubric(ROOT / "course" / "07_vllm_distributed_serving.rubric.yaml")
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "1000"))
SEEN: Counter[str] = Counter()  # how many came to what, over all examples


def every_kind() -> dict[str, Rubric]:
    """A rubric with a criterion of every kind, so that each meets every record."""
    plain = CHAPTER.model_dump(mode="json", exclude_unset=True)
    run = {"tensor_parallel_size": [2, 64]}
    more = [
        {"kind": "sweep", "splits": [run, {}], "concurrency": [8]},
        {"kind": "refused"},
        {"kind": "number", "answer": "q", "expected": 2.0},
        {"kind": "number", "answer": "q", "measured": "kv_cache_bytes", "unit": "MiB"},
        {"kind": "choice", "answer": "q", "right": ["a", True, 3]},
        {"kind": "text", "answer": "q"},
    ]
    plain["criteria"] += [{"id": f"x{n}", "title": each["kind"], "points": 1.0, **each} for n, each in enumerate(more)]
    plain |= {"deadline": "2026-11-20T00:00:00Z", "late": {"per_day": 0.1, "at_most": 0.5}}
    return {CHAPTER.lab: Rubric.model_validate(plain)}


RUBRICS = every_kind()
TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["", "\0", "\x1b[2J", "\u202e", "=1+1", "@SUM(A1)", "<script>alert(1)</script>", "</td>", "\r\n", "\ud800",
         "é" * 300, "x" * 300_000, "../../etc/passwd", "{{7*7}}", "1e999", "NaN", "2026-11-23T11:51:01Z", "0" * 64,
         "s123", "🏳️‍🌈", "',\"", "1123-115007-2414be", "%s%n", "\u2028", "cuda", "dry-run"]
    ),
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0, -1, 1, 2, 2**31, 2**53, 2**63 - 1, 2**63, 10**400, 1e-320, -0.0, 1.5, True, False]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


DAMAGES = ["flip", "insert", "delete", "repeat", "cut"]
SOUP = st.text(alphabet='{}[]",:0123456789.eE+-\\ntrufalsn \x00\u202e', max_size=200)
YAML_BYTES = list(b"\n\t :-[]{}#&*!|>'\"%@`~0a\\\xff")


def places(node: Any, at: tuple = ()) -> list[tuple]:
    found = [at] if at else []
    for key, item in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        found += places(item, (*at, key))
    return found


PLAIN = json.loads(REAL)
PLACES = places(PLAIN)
MUTATION = st.tuples(
    st.sampled_from(["set", "delete", "add", "swap", "nudge", "repeat", "clear"]),
    st.integers(0, len(PLACES) - 1),
    st.integers(0, len(PLACES) - 1),
    VALUES,
    TEXTS,
)


def mutate(plain: dict, kind: str, place: int, other: int, value: Any, name: str) -> None:
    """One change; one that does not fit what earlier ones have left changes nothing."""
    try:
        *above, last = PLACES[place]
        node = plain
        for part in above:
            node = node[part]
        if kind == "set":
            node[last] = value
        elif kind == "delete":
            del node[last]
        elif kind == "add" and isinstance(node, dict):
            node[name] = value
        elif kind == "swap":
            source = plain
            for part in PLACES[other]:
                source = source[part]
            node[last] = copy.deepcopy(source)
        elif kind == "nudge" and isinstance(node[last], int | float):
            node[last] = type(node[last])(node[last] * 3 + 1)
        elif kind == "repeat" and isinstance(node[last], list):
            node[last] = (node[last] * 3)[:2000]
        elif kind == "clear" and isinstance(node[last], list | dict | str):
            node[last] = type(node[last])()
    except (LookupError, TypeError, OverflowError):
        return


def strictly(content: bytes) -> Checkpoint | None:
    """The record as the slow, strict reading sees it."""
    try:
        return from_json(store._strict_json(store._decode(content)))
    except CheckpointError:
        return None


def judge(content: bytes) -> Graded:
    """Grade a file's bytes, and hold what comes out against all that may be relied on."""
    quick = store._quickly(content, store._outside_strings(content))
    assert quick is None or repr(quick) == repr(strictly(content))
    graded, record = grade_content(content, "folder/ä.json", RUBRICS, key="k")
    assert graded.outcome in OUTCOMES and graded.reason.strip(), graded
    assert FAILED not in graded.reason, graded.reason
    assert graded.reason.isprintable() and len(graded.reason) < 3000
    assert (record is None) == (graded.outcome in (UNREADABLE, "too new"))
    assert graded.points is None or 0 <= graded.points <= graded.possible <= 30
    for result in graded.criteria:
        assert result.status in (FULL, PART, NONE, BY_HAND) and result.reason.strip()
        assert result.reason.isprintable() and len(result.reason) < 1000
        assert (result.points is None) == (result.status == BY_HAND)
        assert result.points is None or 0 <= result.points <= result.possible
    for flag in graded.flags:
        assert flag.kind and all(plain_text(text) == text for text in (flag.sentence, *flag.evidence))
    mark = fingerprint(record, graded.file, "k") if record else None
    line = line_of(Head.of("x.json", [1, 2], graded, mark), graded)
    assert head_of(line).mark == mark
    assert Graded.from_dict(json.loads(line.partition(b"\t")[2])) == graded
    if mark:
        other = Fingerprint.from_json(["other.json", "another student", *mark.to_json()[2:]])
        found = copies([mark, other])
        assert all(flag.sentence.isprintable() for flags in found.values() for flag in flags)
    exported(graded, record)
    SEEN[graded.outcome] += 1
    return graded


def exported(graded: Graded, record: Checkpoint | None) -> None:
    """What every export makes of it."""
    import csv

    from localai_clusters.grading.exports import gradescope, spreadsheet

    criteria = list(spreadsheet.columns_of(RUBRICS))
    cells = spreadsheet.row(graded, criteria)
    file = io.StringIO()
    csv.writer(file).writerow(cells)
    assert next(csv.reader(io.StringIO(file.getvalue()))) == cells
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)
    result = gradescope.results([graded])
    json.dumps(result, allow_nan=False).encode()
    assert isinstance(result["score"], int | float)


settings.register_profile(
    "grade",
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,  # CI tries the same ones each time
    database=None,
    suppress_health_check=list(HealthCheck),
)
FUZZ = settings.get_profile("grade")
TIMEOUT = pytest.mark.timeout(300 + EXAMPLES)


@TIMEOUT
@FUZZ
@given(st.lists(MUTATION, min_size=1, max_size=4), st.booleans())
def test_a_record_with_fields_changed_is_graded_or_refused(mutations, digest_fits):
    plain = copy.deepcopy(PLAIN)
    for each in mutations:
        mutate(plain, *each)
    if digest_fits:
        try:
            plain["digest"] = digest_of(from_json(plain))
        except (ValueError, TypeError):
            digest_fits = False
    judge(json.dumps(plain).encode())


@TIMEOUT
@settings(FUZZ, max_examples=max(EXAMPLES // 3, 100))
@given(
    st.lists(
        st.tuples(st.sampled_from(DAMAGES), st.floats(0, 1), st.binary(max_size=12)),
        min_size=1,
        max_size=4,
    )
)
def test_a_file_with_bytes_changed_is_graded_or_refused(changes):
    content = bytearray(REAL)
    for kind, where, some in changes:
        at = int(where * (len(content) - 1)) if content else 0
        if kind == "flip":
            content[at : at + len(some)] = some
        elif kind == "insert":
            content[at:at] = some * 50
        elif kind == "delete":
            del content[at : at + 7 * len(some)]
        elif kind == "repeat":
            content[at:at] = content[at : at + 2000]
        else:
            del content[at:]
    judge(bytes(content))


@TIMEOUT
@settings(FUZZ, max_examples=max(EXAMPLES // 3, 100))
@given(st.binary(max_size=200) | SOUP.map(str.encode))
def test_any_bytes_are_graded_or_refused(content):
    judge(content)


@TIMEOUT
@settings(FUZZ, max_examples=max(EXAMPLES // 5, 100))
@given(st.lists(st.tuples(st.integers(0, 10_000), st.sampled_from(YAML_BYTES)), max_size=6))
def test_a_rubric_with_bytes_changed_is_one_or_has_mistakes_with_lines(changes):
    content = bytearray((ROOT / "course" / "07_vllm_distributed_serving.rubric.yaml").read_bytes())
    for at, byte in changes:
        content[at % len(content)] = byte
    rubric, mistakes = parse_rubric(bytes(content))
    assert (rubric is None) == bool(mistakes)
    assert all(1 <= mistake.line <= content.count(b"\n") + 2 and mistake.sentence for mistake in mistakes)


def test_the_examples_met_records_and_refusals():
    if not SEEN:
        pytest.skip("the examples were not run")
    assert SEEN["needs a hand"] > EXAMPLES / 20 and SEEN[UNREADABLE] > EXAMPLES / 20, SEEN
    print(f"{SEEN.total():,} examples: {dict(SEEN.most_common())}")
