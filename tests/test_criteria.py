"""Each kind of criterion over a record: full, part and no points, and a reason that a student can act on."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from pydantic_core import to_jsonable_python
from test_checkpoint_example import altered, example, fields
from test_checkpoint_versions import ADDED, EXERCISES

from localai_clusters.checkpoint import Checkpoint, build, prompt, verify
from localai_clusters.grading import rubric as r
from localai_clusters.grading.criteria import ADVICE, KINDS, Evidence, mark, number_in
from localai_clusters.grading.own_prompts import is_drawn, own_prompts
from localai_clusters.grading.results import BY_HAND, FULL, NONE, PART, CriterionResult
from localai_clusters.prompts import prompts_for

TP1 = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1}
TP2, PP2, TP4 = {"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}, {"tensor_parallel_size": 4}


def marked(kind: str, record: Checkpoint | None = None, replay: dict | None = None, **params: Any) -> CriterionResult:
    criterion = r.KINDS[kind](id="a", title="A", points=2, kind=kind, **params)
    record = example() if record is None else record
    return mark(criterion, Evidence(record, tuple(verify(record)), replay))


def changed(change: Callable[[dict[str, Any]], None]) -> Checkpoint:
    plain = copy.deepcopy(to_jsonable_python(fields()))
    change(plain)
    return build(**plain)


def check(result: CriterionResult, status: str, points: float | None, *words: str) -> None:
    assert (result.status, result.points) == (status, points), result
    for each in words:
        assert each in result.reason, result.reason


def test_every_kind_has_a_function_and_advice():
    assert set(KINDS) == set(ADVICE) == set(r.KINDS.values())


def test_points_are_rounded_to_hundredths():
    record = changed(lambda plain: plain["answers"].update(q="wrong"))
    result = marked("recorded", record, fields=["versions.python", "versions.cuda", "versions.nccl"])
    check(result, PART, 0.67)


def test_who_loses_points_is_told_what_to_do():
    assert marked("served", run=TP4).reason == (
        "no run with TP=4 is recorded. Serve that plan and give the server to record(servers=[...])"
    )
    assert marked("served", run=TP4, advice="Ask Ada.").reason.endswith("is recorded. Ask Ada.")
    assert "Ask Ada" not in marked("served", run=TP2, advice="Ask Ada.").reason


def test_a_reason_is_safe_to_print():
    check_name = "he\x1b[2Jads\u202e\n"
    record = altered("preflight[0].check", check_name)
    verdict = record.preflight[0].model_copy(update={"verdict": "fail", "message": "\x1b]0;x\x07é" * 500})
    record = record.model_copy(update={"preflight": (verdict,)})
    result = marked("refused", record)
    assert result.status == FULL and "heads" in result.reason
    assert result.reason.isprintable() and len(result.reason) <= 600


# consistent


def test_a_record_that_agrees_with_itself():
    check(marked("consistent"), FULL, 2.0)


def test_a_record_that_contradicts_itself():
    check(marked("consistent", altered("evidence.ranks", 4)), NONE, 0.0, "1 contradiction", "evidence.ranks: it says 4")


# served


def test_served():
    check(marked("served", run=TP2), FULL, 2.0, "run tp2 served on 2 ranks after 10.4 s")
    check(marked("served", run={"tensor_parallel_size": "2+"}), FULL, 2.0)
    check(marked("served", run={**TP1}), FULL, 2.0, "run tp1 served on 1 rank ")


def test_a_run_that_never_became_ready_did_not_serve():
    def change(plain):
        plain["runs"][1] |= {"seconds_to_ready": None, "seconds_serving": None}

    check(marked("served", changed(change), run=TP2), NONE, 0.0, "run tp2 (TP=2) never became ready")


def test_ranks_that_are_missing_did_not_serve():
    record = changed(lambda plain: plain["runs"][1]["ranks"].pop())
    check(marked("served", record, run=TP2), NONE, 0.0, "run tp2 served, and 1 of its ranks are listed")


@pytest.mark.parametrize("wanted", [{"nnodes": 2}, {"dtype": "bfloat16"}, {"model": "opt"}, {"quantization": "awq"}])
def test_a_run_is_found_by_all_that_the_rubric_says(wanted):
    check(marked("served", run={**TP2, **wanted}), NONE, 0.0, "no run with TP=2")


# answered


def test_answered():
    check(marked("answered", run=TP2, prompts=2), FULL, 2.0, "2 prompts of 2 answered")
    check(marked("answered", run=TP2, prompts=4), PART, 1.0, "2 prompts of 4 answered")
    check(marked("answered", run=TP2, prompts=2, tokens=49), NONE, 0.0, "0 prompts of 2 answered with 49 tokens")
    check(marked("answered", run=TP4), NONE, 0.0, "no run with TP=4")


def test_one_prompt_asked_twice_is_one_prompt():
    def change(plain):
        plain["data"]["prompts"] = [plain["data"]["prompts"][0]] * 2

    check(marked("answered", changed(change), run=TP2, prompts=2), PART, 1.0, "1 prompt of 2")


def test_an_answer_to_no_prompt_does_not_count():
    def change(plain):
        for completion in plain["observed"]["completions"]:
            completion["prompt_index"] = 7

    check(marked("answered", changed(change), run=TP2, prompts=2), NONE, 0.0)


def with_prompts(texts: list[str]) -> Checkpoint:
    def change(plain):
        plain["data"]["prompts"] = [to_jsonable_python(prompt(text, form="chat")) for text in texts]
        said = plain["observed"]["completions"][0]
        plain["observed"]["completions"] = [{**said, "run_id": "tp2", "prompt_index": i} for i in range(len(texts))]
        plain["observed"]["comparisons"] = []

    return changed(change)


LAB = "vllm_distributed_serving"


def test_own_prompts_count_and_others_do_not():
    own = prompts_for("s123", LAB)
    check(marked("answered", with_prompts(own), run=TP2, own=True), FULL, 2.0, "4 of 4 prompts drawn for s123 answered")
    check(marked("answered", with_prompts(own[:2]), run=TP2, own=True), PART, 1.0, "2 of 4 prompts drawn for s123")
    check(marked("answered", with_prompts(["Hello"] * 4), run=TP2, own=True), NONE, 0.0, "0 of 4 prompts")


def test_own_prompts_beyond_the_first_count_too():
    check(marked("answered", with_prompts(prompts_for("s123", LAB, 8)), run=TP2, own=True, prompts=8), FULL, 2.0)


def test_somebody_elses_prompts_are_for_a_person_to_judge():
    other = prompts_for("s999", LAB)
    result = marked("answered", with_prompts(other), run=TP2, own=True)
    check(result, BY_HAND, None, "0 of 4 prompts drawn for s123 answered; 4 prompts with words that are not", "another")


def test_another_course_key_is_for_a_person_to_judge(monkeypatch):
    record = with_prompts(prompts_for("s123", LAB, key="ours"))
    assert marked("answered", record, run=TP2, own=True).status == BY_HAND
    monkeypatch.setenv("LAC_COURSE_KEY", "ours")
    assert marked("answered", record, run=TP2, own=True).status == FULL


def test_prompts_of_ones_own_making_are_not_somebody_elses():
    found = own_prompts(
        "s123", LAB, [*prompts_for("s123", LAB), "What is a transformer? Answer in one sentence.", "Hi"]
    )
    assert (len(found.own), found.foreign, found.first_answered) == (4, frozenset(), 4)
    assert is_drawn("What is a tower? Answer in one sentence.")
    assert not is_drawn("What is a tower? Answer in one sentence. ") and not is_drawn("x" * 10**6)


# same-tokens


def test_same_tokens():
    check(
        marked("same-tokens", run=TP2, reference=TP1), FULL, 2.0, "2 of 2 prompts have the same tokens in tp2 and tp1"
    )
    check(marked("same-tokens", run=TP2, reference=TP1, prompts=4), PART, 1.0, "asked for: 4")
    check(marked("same-tokens", run=TP2, reference=TP4), NONE, 0.0, "no run with TP=4")
    check(marked("same-tokens", run=TP2, reference=TP2), NONE, 0.0, "answered no prompt in common")


def parted(plain: dict[str, Any]) -> None:
    plain["observed"]["comparisons"] = []
    for completion in plain["observed"]["completions"]:
        if completion["run_id"] == "tp2" and completion["prompt_index"] == 1:
            completion["token_ids"][-1] += 1


def test_tokens_that_part_count_in_part():
    params = {"run": TP2, "reference": TP1}
    check(marked("same-tokens", changed(parted), **params), PART, 1.0, "1 of 2 prompts")
    check(marked("same-tokens", changed(parted), **params, at_least=0.5), FULL, 2.0)
    check(marked("same-tokens", changed(parted), **params, at_least=0.8), PART, 1.25)


def test_no_tokens_are_not_the_same_tokens():
    def change(plain):
        for completion in plain["observed"]["completions"]:
            completion |= {"token_ids": [], "logprobs": []}

    check(marked("same-tokens", changed(change), run=TP2, reference=TP1), NONE, 0.0, "no prompt in common")


# memory


def weights(run: int, rank: int, **figures: int | None) -> Callable[[dict[str, Any]], None]:
    return lambda plain: plain["runs"][run]["ranks"][rank]["memory"]["weights_bytes"].update(figures)


def test_memory_measured():
    check(marked("memory-measured", run=TP2), FULL, 2.0, "the weights of 2 of 2 ranks are as predicted")
    lacking = changed(weights(1, 1, measured=None))
    check(marked("memory-measured", lacking, run=TP2), PART, 1.0, "1 of 2 ranks", "rank 1's weights were not measured")
    unknown = changed(weights(1, 0, predicted=None))
    check(marked("memory-measured", unknown, run=TP2), PART, 1.0, "rank 0's weights were not predicted")
    off = changed(weights(1, 1, measured=400_000_000))
    check(marked("memory-measured", off, run=TP2), PART, 1.0, "rank 1 held 400,000,000 bytes, predicted")
    check(marked("memory-measured", off, run=TP2, tolerance=0.5), FULL, 2.0)
    check(marked("memory-measured", run=TP4), NONE, 0.0, "no run with TP=4")


def test_memory_spread():
    check(marked("memory-spread", run=TP2), FULL, 2.0, "the largest rank of tp2 held 1.00 times")
    uneven = changed(weights(1, 1, measured=600_000_000))
    check(marked("memory-spread", uneven, run=TP2), NONE, 0.0, "held 2.01 times", "at most 1.2 times is asked for")
    check(marked("memory-spread", run=TP1), NONE, 0.0, "does not say what each of several ranks held")
    check(marked("memory-spread", changed(weights(1, 1, measured=None)), run=TP2), NONE, 0.0, "does not say")
    check(marked("memory-spread", changed(weights(1, 1, measured=0)), run=TP2), NONE, 0.0, "does not say")


# load


def test_load_tested():
    check(
        marked("load-tested", run=TP2, concurrency=16, requests=64), FULL, 2.0, "64 requests, 16 at a time: 512.0 tok"
    )
    check(marked("load-tested", run=TP2, concurrency=32), NONE, 0.0, "1 requests, 32 at a time, are asked for")
    check(marked("load-tested", run=PP2), NONE, 0.0, "no load test of it is recorded")
    check(marked("load-tested", run=TP4), NONE, 0.0, "no run with TP=4")


def test_requests_that_failed():
    failed = changed(lambda plain: plain["observed"]["load"][0].update(failed_requests=4))
    check(marked("load-tested", failed, run=TP2), NONE, 0.0, "4 failed")
    check(marked("load-tested", failed, run=TP2, failed=0.1), FULL, 2.0)


def test_sweep():
    split = {"splits": [TP1, TP2]}
    check(marked("sweep", **split, concurrency=[16]), PART, 1.0, "1 of 2 splits", "TP=1, PP=1 lacks 16 at a time")
    check(marked("sweep", splits=[TP2], concurrency=[16]), FULL, 2.0)
    check(marked("sweep", splits=[TP2], concurrency=[1, 16]), NONE, 0.0, "TP=2 lacks 1 at a time")


# refused


def test_refused_by_preflight():
    check(marked("refused"), NONE, 0.0, "no plan (any plan) that was refused or failed is recorded")
    failed = altered("preflight[0].verdict", "fail")
    check(marked("refused", failed), FULL, 2.0, "preflight refused it: heads: 12 heads")
    check(marked("refused", failed, check="heads", run=TP2), FULL, 2.0)
    check(marked("refused", failed, check="ports"), NONE, 0.0, "no plan (any plan) that the check 'ports' refused")
    check(marked("refused", failed, run=TP4), NONE, 0.0)


def test_a_launch_that_failed():
    def change(plain):
        plain["runs"][1] |= {"seconds_to_ready": None, "seconds_serving": None}

    check(marked("refused", changed(change), run=TP2), FULL, 2.0, "run tp2 was launched and did not serve")
    check(marked("refused", changed(change), run=TP2, check="heads"), NONE, 0.0)


# facts and words


def test_recorded():
    check(
        marked("recorded", fields=["versions.vllm", "machine.memory_bytes", "data.weights_sha256"]), FULL, 2.0, "3 of 3"
    )
    result = marked("recorded", fields=["versions.vllm", "versions.nccl", "observed.nvidia_smi", "machine.gpus"])
    check(result, PART, 0.5, "1 of 4 facts are recorded; versions.nccl, observed.nvidia_smi, machine.gpus")


def test_constraints_of_the_students_own():
    check(marked("constraints"), FULL, 2.0, "1 sentence of your own with 5 words or more")
    check(marked("constraints", sentences=2), PART, 1.0, "asked for: 2")
    check(marked("constraints", words=6), NONE, 0.0, "0 sentences")

    def twice(plain):
        plain["constraints"] += [plain["constraints"][-1]]

    check(marked("constraints", changed(twice), sentences=2), PART, 1.0)


@pytest.mark.parametrize(
    ("given", "unit", "number"),
    [
        (273, "MiB", 273.0), (273.5, "MiB", 273.5), ("273", "MiB", 273.0), (" 273 MiB ", "MiB", 273.0),
        ("273mib", "MiB", 273.0), ("1,234.5", "", 1234.5), ("12,345,678", "B", 12345678.0), ("273,5", "MiB", 273.5),
        ("1e3", "", 1000.0), ("-2", "", -2.0), ("2 GiB", "MiB", None), ("two", "", None), ("", "", None),
        (True, "", None), ("nan", "", None), ("inf", "", None), ("9" * 400, "", None), ("1,23,4", "", None),
        (10**18, "", 1e18),
    ],
)  # fmt: skip
def test_a_number_as_students_write_it(given, unit, number):
    assert number_in(given, unit) == number


def answered(value: Any) -> Checkpoint:
    return changed(lambda plain: plain["answers"].update(q=value))


def test_a_number_that_is_expected():
    params = {"answer": "q", "expected": 100.0, "unit": "MiB"}
    check(marked("number", answered(104), **params), FULL, 2.0, "104 MiB, within 5%")
    check(marked("number", answered("96 MiB"), **params), FULL, 2.0)
    check(marked("number", answered(106), **params), NONE, 0.0, "106 MiB is too large")
    check(marked("number", answered(10), **params), NONE, 0.0, "10 MiB is too small")
    check(marked("number", answered("much"), **params), NONE, 0.0, "the answer q is not a number")
    check(marked("number", answered(True), **params), NONE, 0.0, "the answer q is not a number")
    check(marked("number", **params), NONE, 0.0, "the answer q is not there")


def test_a_wrong_number_does_not_give_the_right_one_away():
    assert "100" not in marked("number", answered(7), answer="q", expected=100.0).reason


def test_a_number_that_the_record_itself_measured():
    params = {"answer": "q", "measured": "weights_bytes", "unit": "MiB", "run": TP2, "rank": 1}
    check(marked("number", answered(284.2), **params), FULL, 2.0)
    check(marked("number", answered(568.4), **params), NONE, 0.0, "too large")
    check(marked("number", answered(1), **{**params, "rank": 2}), NONE, 0.0, "does not hold the figure")
    resident = {**params, "measured": "resident_bytes"}
    check(marked("number", answered(1347), **resident), FULL, 2.0)


def test_a_choice():
    params = {"answer": "q", "right": ["TP=2"], "half": ["tp"]}
    check(marked("choice", answered(" tp=2 "), **params), FULL, 2.0)
    check(marked("choice", answered("TP"), **params), PART, 1.0, "half right")
    check(marked("choice", answered("PP\x1b"), **params), NONE, 0.0, "is not it")
    check(marked("choice", **params), NONE, 0.0, "the answer q is not there")


@pytest.mark.parametrize(
    ("given", "right", "fits"),
    [(True, True, True), (1, True, False), ("true", True, False), (1, "1", True), (2, 2, True)],
)
def test_a_choice_is_the_same_or_not(given, right, fits):
    assert (marked("choice", answered(given), answer="q", right=[right]).status == FULL) is fits


def test_a_text_waits_for_a_person():
    text = marked("text", answered("It was not worth it"), answer="q", words=5, guide="names the all-reduce")
    check(text, BY_HAND, None, "a text of 5 words to be read: names the all-reduce")
    check(marked("text", answered("No"), answer="q", words=5), NONE, 0.0, "has 1 word; asked for: 5")
    check(marked("text", answered(5), answer="q"), NONE, 0.0)
    check(marked("text", answer="q"), NONE, 0.0)


def test_replayed():
    check(marked("replayed"), BY_HAND, None, "grade --replay")
    check(marked("replayed", replay={"outcome": "confirmed", "reason": "96 tokens"}), FULL, 2.0, "confirmed: 96 tokens")
    check(marked("replayed", replay={"outcome": "refuted", "reason": "no"}), NONE, 0.0, "refuted: no")
    check(marked("replayed", replay={"outcome": "not replayable", "reason": "no"}), BY_HAND, None, "not replayable: no")


# What labs observe (version 2)


def lab_record(**observed):
    return example(observed={**fields()["observed"], **ADDED, **observed}, exercises=EXERCISES)


@pytest.mark.parametrize(
    ("exercise", "status", "points", "said"),
    [
        ("kv_bytes", FULL, 2.0, "right after 2 tries and 1 hint"),
        ("worth_it", BY_HAND, None, "a text to be read"),
        ("blocks", NONE, 0.0, "the exercise blocks was not tried"),
        ("split", NONE, 0.0, "wrong, after 1 try and 0 hints"),
        ("none", NONE, 0.0, "the exercise none was not tried"),
    ],
)
def test_an_exercise_counts_as_its_check_said(exercise, status, points, said):
    check(marked("exercise", lab_record(), exercise=exercise), status, points, said)


def test_a_solution_that_was_looked_up_is_worth_what_the_rubric_says():
    looked_up = example(exercises=[{"id": "a", "status": "right", "attempts": 1, "solution_shown": True}])
    check(marked("exercise", looked_up, exercise="a"), NONE, 0.0, "its solution had been looked up")
    check(marked("exercise", looked_up, exercise="a", after_solution="50%"), PART, 1.0)


def test_an_experiment_must_have_failed_and_with_repaired_its_repair_served():
    record = lab_record()
    check(marked("broken", record, failure="heads-not-divisible", repaired=True), FULL, 2.0, "heads; run tp2 served")
    check(marked("broken", record, failure="killed-rank"), FULL, 2.0, "lost while serving after 2.5 s: rank-killed")
    check(marked("broken", record, failure="killed-rank", repaired=True), PART, 1.0, "it was not repaired")
    check(marked("broken", record, failure="killed-rank", how="launch failed"), NONE, 0.0, "asked for: launch failed")
    check(marked("broken", record, failure="port-taken"), NONE, 0.0, "port-taken: no such experiment is recorded")


def test_watching_must_have_lasted_and_covered_every_rank_or_the_server():
    record = lab_record()
    check(marked("watched", record, quantity="kv-blocks", run=TP2, samples=3), FULL, 2.0, "of the server watched")
    check(marked("watched", record, quantity="kv-blocks", run=TP2, samples=4), NONE, 0.0)
    check(marked("watched", record, quantity="resident", run=TP2, samples=1), PART, 1.0, "resident of 1 rank watched")
    check(marked("watched", record, quantity="gpu", run=TP2), NONE, 0.0, "gpu was not watched over time")
    check(marked("watched", record, quantity="kv-blocks", run=TP4), NONE, 0.0, "no run with TP=4")


def test_traffic_is_counted_by_the_settings_of_the_link():
    slower = ADDED["traffic"][0] | {"delay_ms": 20.0}
    check(marked("traffic", lab_record(), run=TP2, settings=2), PART, 1.0, "with 1 setting of the link; asked for: 2")
    check(marked("traffic", lab_record(traffic=[*ADDED["traffic"], slower]), run=TP2, settings=2), FULL, 2.0)
    nothing = ADDED["traffic"][0] | {"output_tokens": 0}
    check(marked("traffic", lab_record(traffic=[nothing])), NONE, 0.0)
