"""verify: every contradiction is found, by name, and nothing else is reported."""

import pytest
from pydantic_core import to_jsonable_python
from test_checkpoint_example import altered, example, fields, plan

from localai_clusters.checkpoint import (
    Checkpoint,
    Finding,
    build,
    verify,
    what_it_proves,
)


def plain_fields() -> dict:
    return to_jsonable_python(fields())


def found(checkpoint: Checkpoint, severity: str) -> list[str]:
    return [f.field for f in verify(checkpoint) if f.severity == severity]


TP2, PP2 = "runs[1].ranks", "runs[2].ranks"


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("evidence.level", "cuda", "evidence.level"),
        ("evidence.level", "dry-run", "evidence.level"),
        ("evidence.nodes", 2, "evidence.nodes"),
        ("evidence.ranks", 4, "evidence.ranks"),
        ("runs[0].ranks[0].device.kind", "cuda", "evidence.level"),
        ("versions.vllm", None, "versions.vllm"),
        ("versions.torch", " ", "versions.torch"),
        ("versions.python", "", "versions.python"),
        ("runs[2].run_id", "tp2", "runs"),
        ("preflight[0].run_id", "tp9", "preflight[0].run_id"),
        ("observed.load[0].run_id", "tp9", "observed.load[0].run_id"),
        ("observed.completions[0].run_id", "x", "observed.completions[0].run_id"),
        ("observed.comparisons[0].run_b", "x", "observed.comparisons[0].run_b"),
        ("runs[1].plan.tensor_parallel_size", 4, "runs[1].plan"),
        ("runs[1].plan.nproc_per_node", 1, "runs[1].plan"),
        ("runs[1].ranks", [], TP2),
        ("runs[0].plan", plan(2), "runs[0].ranks"),
        ("runs[0].argv", [["a"], ["b"]], "runs[0].argv"),
        (f"{TP2}[1].rank", 0, f"{TP2}[1].rank"),
        (f"{TP2}[1].rank", 2, f"{TP2}[1].rank"),
        (f"{TP2}[1].node_rank", 1, f"{TP2}[1].node_rank"),
        (f"{TP2}[1].local_rank", 0, f"{TP2}[1].local_rank"),
        (f"{TP2}[1].tensor_parallel_rank", 0, f"{TP2}[1].tensor_parallel_rank"),
        (f"{PP2}[1].pipeline_parallel_rank", 0, f"{PP2}[1].pipeline_parallel_rank"),
        (f"{PP2}[1].layers", [16, 30], PP2),
        (f"{PP2}[1].layers", [14, 30], PP2),
        (f"{PP2}[1].layers", [15, 15], PP2),
        (f"{PP2}[1].layers", [15, 31], PP2),
        (f"{PP2}[0].layers", [1, 15], PP2),
        (f"{TP2}[1].layers", [0, 29], TP2),
        (f"{TP2}[1].kv_cache_blocks", 363, TP2),
        ("created_at", "2026-11-23T10:40:25Z", "created_at"),
        ("created_at", "2026-11-22T10:45:00Z", "created_at"),
        ("runs[0].started_at", None, "runs[0].started_at"),
        ("runs[0].seconds_to_ready", 0, "runs[0].seconds_to_ready"),
        ("runs[0].seconds_to_ready", None, "runs[0].seconds_serving"),
        ("data.prompts[0].text", "What?", "data.prompts[0].sha256"),
        ("observed.completions[0].prompt_index", 2, "observed.completions[0].prompt_index"),
        ("observed.completions[0].token_ids", [], "observed.completions[0].token_ids"),
        ("observed.completions[0].logprobs", [-1], "observed.completions[0].logprobs"),
        (
            "observed.completions[0].logprobs",
            [0.001] * 48,
            "observed.completions[0].logprobs",
        ),
        ("observed.completions[1].token_ids[20]", 1, "observed.comparisons[0]"),
        ("observed.comparisons[0].tokens_equal", False, "observed.comparisons[0]"),
        ("observed.comparisons[0].first_difference", 3, "observed.comparisons[0]"),
        ("observed.comparisons[0].prompt_index", 5, "observed.comparisons[0]"),
        ("observed.load[0].output_tokens", 0, "observed.load[0].output_tokens"),
        ("observed.load[0].requests", 0, "observed.load[0].requests"),
        ("observed.load[0].seconds", 0, "observed.load[0].seconds"),
        ("observed.load[0].failed_requests", 65, "observed.load[0].failed_requests"),
        (
            "observed.load[0].output_tokens_per_second",
            530.0,
            "observed.load[0].output_tokens_per_second",
        ),
        ("constraints[0].kind", "other", "constraints"),
        ("constraints[1].sentence", " ", "constraints"),
        ("constraints", [], "constraints"),
    ],
)
def test_a_contradiction_is_found(path, value, field):
    assert field in found(altered(path, value), "wrong")


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (f"{TP2}[1].memory.weights_bytes.measured", 400_000_000, TP2),
        (f"{TP2}[1].memory.weights_bytes.measured", 100_000_000, TP2),
        ("runs[0].ranks[0].layers", None, "runs[0].ranks"),
        ("data.weights_sha256", {}, "data.weights_sha256"),
        ("preflight[0].verdict", "fail", "preflight[0]"),
    ],
)
def test_what_deserves_a_look_is_a_note_and_nothing_is_wrong(path, value, field):
    checkpoint = altered(path, value)
    assert found(checkpoint, "note") == [field]
    assert found(checkpoint, "wrong") == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("created_at", "2026-11-23T10:40:31Z"),  # a second lost in rounding
        ("observed.load[0].output_tokens_per_second", 508.0),
        ("observed.completions[0].logprobs", None),
        (f"{TP2}[1].memory.weights_bytes.measured", 310_000_000),
        (f"{TP2}[1].memory.weights_bytes.predicted", None),
        (f"{TP2}[1].exit_code", -9),
        ("preflight[0].verdict", "unknown"),
        ("answers", {}),
    ],
)
def test_what_may_well_be_is_not_reported(path, value):
    assert verify(altered(path, value)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"student": "s124"},
        {"answers": {}},
        {"digest": "0" * 64},
        {"constraints": ()},
    ],
)
def test_a_changed_field_shows_in_the_digest(change):
    changed = example().model_copy(update=change)
    assert verify(changed)[0].field == "digest"


def test_a_secret_in_the_environment_is_found():
    checkpoint = example()
    run = checkpoint.runs[0].model_copy(update={"environment": {"HF_TOKEN": "x"}})
    changed = checkpoint.model_copy(update={"runs": (run, *checkpoint.runs[1:])})
    assert "runs[0].environment" in found(changed, "wrong")


def test_a_launch_that_failed_on_purpose_may_be_planned_wrong():
    made = plain_fields()
    failed = made["runs"][1]
    failed |= {
        "run_id": "tp3",
        "plan": plan(2) | {"tensor_parallel_size": 3},
        "seconds_to_ready": None,
        "seconds_serving": None,
    }
    for rank in failed["ranks"]:
        rank |= {
            "exit_code": 1,
            "layers": None,
            "tensor_parallel_rank": None,
            "pipeline_parallel_rank": None,
            "kv_cache_blocks": None,
        }
    made["runs"] = [failed]
    made["observed"], made["preflight"] = {}, []
    findings = verify(build(**made))
    assert findings == [
        Finding(
            "runs[0].plan",
            "note",
            "the split needs 3 ranks, torchrun starts 2 (nnodes 1 x nproc_per_node 2)",
        )
    ]
    assert what_it_proves(build(**made)) == ("Up to 2 ranks started, and no server became ready.")


def failed_run(*ranks: int) -> Checkpoint:
    """One run of two ranks that never became ready, with these ranks listed."""
    made = plain_fields()
    failed = made["runs"][1] | {"seconds_to_ready": None, "seconds_serving": None}
    failed["ranks"] = [failed["ranks"][number] for number in ranks]
    made["evidence"]["ranks"] = len(ranks)
    return build(**made | {"runs": [failed], "observed": {}, "preflight": []})


def test_a_rank_of_a_failed_run_may_be_missing_but_not_stand_twice():
    assert verify(failed_run(1)) == []
    assert found(failed_run(1, 1), "wrong") == ["runs[0].ranks[1].rank"]


def test_a_failed_run_has_no_more_ranks_than_its_world():
    assert "runs[0].ranks" in found(failed_run(0, 1, 1), "wrong")


def test_a_stage_without_layers_is_found():
    made = plain_fields()
    run = made["runs"][2]
    run["ranks"][1]["layers"] = [15, 15]
    made |= {"runs": [run], "observed": {}, "preflight": []}
    assert found(build(**made), "wrong") == ["runs[0].ranks"]


def test_two_runs_of_one_split_are_told_apart():
    made = plain_fields()
    made["runs"][2] = made["runs"][1] | {"run_id": "pp2"}
    assert "TP=2 (tp2) and TP=2 (pp2) gave the same 96 tokens as TP=1." in what_it_proves(build(**made))


def dry_run() -> dict:
    made = plain_fields()
    for run in made["runs"]:
        run |= {"started_at": None, "seconds_to_ready": None, "seconds_serving": None}
        run["ranks"] = []
    made["evidence"] = {"level": "dry-run", "nodes": 0, "ranks": 0}
    made["observed"] = {}
    made["versions"]["vllm"] = None
    return made


def test_a_dry_run_holds_and_proves_no_serving():
    checkpoint = build(**dry_run())
    assert verify(checkpoint) == []
    assert what_it_proves(checkpoint) == ("A dry run: 3 plans checked, no rank was started.")


def test_output_of_a_dry_run_is_found():
    observed = plain_fields()["observed"]
    wrong = found(build(**{**dry_run(), "observed": observed}), "wrong")
    assert "observed.completions[0]" in wrong
    assert "observed.load[0]" in wrong


def test_four_ranks_of_two_nodes_hold():
    made = plain_fields()
    run = made["runs"][1]
    run["plan"] |= {"pipeline_parallel_size": 2, "nnodes": 2}
    run["argv"] *= 2
    template = run["ranks"][0]
    run["ranks"] = [
        template
        | {
            "rank": n,
            "node_rank": n // 2,
            "local_rank": n % 2,
            "tensor_parallel_rank": n % 2,
            "pipeline_parallel_rank": n // 2,
            "layers": [0, 15] if n < 2 else [15, 30],
            "device": {"kind": "cuda", "name": "NVIDIA H200", "gpu_index": n % 2},
        }
        for n in range(4)
    ]
    made["evidence"] = {"level": "cuda", "nodes": 2, "ranks": 4}
    made["versions"] |= {"cuda": "13.0", "driver": "580.65"}
    checkpoint = build(**made)
    wrong = [f for f in verify(checkpoint) if f.severity == "wrong"]
    assert wrong == []
    assert what_it_proves(checkpoint) == (
        "Real vLLM 0.32.0 served smollm2-135m-tp4 on up to 4 GPU ranks of 2 nodes "
        "(TP=1, TP=2 PP=2, PP=2). TP=2 PP=2 and PP=2 gave the same 96 tokens as TP=1."
    )


def test_what_the_example_proves():
    assert what_it_proves(example()) == (
        "Real vLLM 0.32.0 served smollm2-135m-tp4 on up to 2 CPU ranks of 1 node "
        "(TP=1, TP=2, PP=2). TP=2 and PP=2 gave the same 96 tokens as TP=1."
    )


def test_runs_that_part_are_said_to_part():
    made = plain_fields()
    made["observed"]["completions"][1]["token_ids"][20] = 1
    made["observed"]["comparisons"][0] |= {
        "tokens_equal": False,
        "first_difference": 20,
    }
    assert what_it_proves(build(**made)).endswith(
        "PP=2 gave the same 96 tokens as TP=1. TP=2 parted from TP=1 on 1 of 2 prompts, first after 20 equal tokens."
    )


def test_a_record_that_contradicts_itself_proves_nothing():
    assert what_it_proves(altered("evidence.ranks", 8)) == (
        "It proves nothing, for it holds 1 contradiction. The first is "
        "evidence.ranks: it says 8, the largest run has 2."
    )


def test_many_comparisons_take_no_long_time():
    made = plain_fields()
    completion, comparison = (made["observed"][kind][0] for kind in ("completions", "comparisons"))
    made["observed"]["completions"] = [completion] * 4000
    made["observed"]["comparisons"] = [comparison] * 8000
    findings = verify(build(**made))  # quadratic, it would take minutes
    assert len(findings) == 8000
