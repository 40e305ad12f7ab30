"""diagnose/signatures: each one finds its own example, no other one claims it, and what is said has its numbers."""

import re

import pytest

from localai_clusters.diagnose import explain_text
from localai_clusters.diagnose.catalogue import CAUSE, ECHO, NOISE, STAGE, SYMPTOM, signature, signatures
from localai_clusters.diagnose.numbers import CALL, FUNCTIONS, worked_out

ALL = {known.id: known for known in signatures()}
ANSWERS = [name for name, known in ALL.items() if known.kind in (CAUSE, SYMPTOM)]
LEAST_OF_A_START = 42  # the least weight of a cause for which a server does not start
HOLE = re.compile(r"\{(\w+)\}")


@pytest.mark.parametrize("name", ANSWERS)
def test_a_signature_answers_for_its_own_example(name):
    known = ALL[name]
    assert known.example, f"{name} has no example"
    for example in known.example:
        report = explain_text(example + "\n")
        assert report.best is not None, example
        assert report.best.cause == known.cause, f"{report.best.id} claims it"
        assert report.best.id == name or ALL[report.best.id].weight >= known.weight


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_says_why_and_what_to_type(name):
    report = explain_text(ALL[name].example[0] + "\n")
    assert report.best.title and report.best.why and report.best.fixes
    for text in (report.best.title, report.best.why, *report.best.fixes):
        assert not HOLE.search(text), f"a number is missing in {text!r}"
    assert report.best.evidence


@pytest.mark.parametrize("known", ALL.values(), ids=list(ALL))
def test_a_text_asks_only_for_numbers_that_a_line_can_give(known):
    given = {name for line in known.lines for name in line.names}
    for call in known.numbers:
        parts = CALL.fullmatch(call)
        assert parts and parts["function"] in FUNCTIONS, call
        given.add(parts["name"])
    for text in (known.title, *known.why, *known.fix):
        assert set(HOLE.findall(text)) <= given, text


@pytest.mark.parametrize("known", ALL.values(), ids=list(ALL))
def test_a_signature_has_its_source_and_its_words(known):
    assert known.source
    assert re.fullmatch(r"[a-z0-9-]+", known.id)
    assert known.lines
    if known.kind in (CAUSE, SYMPTOM):
        assert known.title and known.cause
    if known.kind == STAGE:
        assert known.order and known.title
    assert known.applies in ("any", "cuda", "rocm", "cpu")


def test_a_cause_outweighs_a_symptom_and_echoes_weigh_nothing():
    assert all(known.weight == 0 for known in ALL.values() if known.kind in (ECHO, NOISE, STAGE))
    of_starts = [known for known in ALL.values() if known.kind == CAUSE and known.weight >= LEAST_OF_A_START]
    symptoms = [known for known in ALL.values() if known.kind == SYMPTOM]
    assert min(known.weight for known in of_starts) > max(known.weight for known in symptoms)
    others = {known.cause for known in ALL.values() if known.kind == CAUSE} - {known.cause for known in of_starts}
    assert others == {"client-request", "served-model-name"}  # a server that runs and refuses a request


@pytest.mark.parametrize("name", [name for name in ANSWERS if ALL[name].frames])
def test_a_line_that_needs_its_traceback_is_not_claimed_without(name):
    last = ALL[name].example[0].strip().splitlines()[-1]
    report = explain_text(last + "\n")
    assert report.best is None or report.best.id != name


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"id": "a", "kind": "reason", "lines": ["something long"]}, "kind is reason"),
        ({"id": "a", "lines": ["{x}"]}, "nothing of 6 letters"),
        ({"id": "a", "lines": ["something {x:float} long"]}, "is no hole"),
        ({"id": "a", "line": ["something long"]}, "unknown keys line"),
    ],
)
def test_a_signature_that_is_not_well_formed_is_named(entry, words):
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        signature(entry, "plan.toml: ")
    assert str(caught.value).startswith("plan.toml: a: ")


@pytest.mark.parametrize(
    ("call", "found", "result"),
    [
        ("fits = divisor(heads, tp)", {"heads": "40", "tp": "3"}, "2"),
        ("fits = divisor(heads, tp)", {"heads": "9", "tp": "2"}, "1"),
        ("fits = divisor(heads, tp)", {"heads": "0", "tp": "2"}, None),
        ("fits = divisor(heads, tp)", {"tp": "2"}, None),
        ("fits = half(n)", {"n": "1,024"}, "512"),
        ("fits = after(port)", {"port": "29500"}, "29501"),
        ("fits = share(free, total)", {"free": "10.31", "total": "79.14"}, "0.10"),
        ("fits = quotient(have, 1000)", {"have": "11040"}, "11"),
        ("fits = times(tp, pp)", {"tp": "2", "pp": "4"}, "8"),
    ],
)
def test_numbers_that_the_log_does_not_say(call, found, result):
    assert worked_out((call,), found).get("fits") == result
