"""Failures on purpose are real, say who failed first and why, and leave nothing behind."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from leftovers_of import assert_nothing_left

import localai_clusters as lac
from localai_clusters.breaking.attempting import NothingFailed
from localai_clusters.breaking.killing import CannotKill
from localai_clusters.breaking.logs import log_tails
from localai_clusters.breaking.views import Telling, duration, shortened, telling_html
from localai_clusters.launch.run import runs_dir
from localai_clusters.models import find
from localai_clusters.server import ServerError

FREE = {"port": 0, "master_port": 0, "max_model_len": 512}
TWO = lac.ServePlan(tensor_parallel_size=2, **FREE)
NINE_HEADS = lac.ServePlan(model="smollm2-135m-published", tensor_parallel_size=2, **FREE)
NOWHERE = "192.0.2.77"  # TEST-NET-1: no machine's address
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


def runs() -> set[str]:
    return {path.name for path in runs_dir().iterdir()} if runs_dir().exists() else set()


def test_what_preflight_refuses_is_refused_in_milliseconds_and_starts_nothing():
    before = runs()
    tried = lac.attempt(NINE_HEADS, "heads-not-divisible")
    assert runs() == before
    assert (tried.how, tried.cause, tried.failed) == ("refused by preflight", "heads", True)
    assert tried.preflight_seconds < 5
    failure = tried.failure()
    assert (failure.name, failure.how, failure.cause) == ("heads-not-divisible", "refused by preflight", "heads")
    assert (failure.plan, failure.run_id, failure.rank) == (NINE_HEADS, None, None)
    assert "9 attention heads" in failure.message and "9 attention heads" in str(tried)
    with pytest.raises(NothingFailed, match="for_real=True"):
        tried.tail()


def test_a_plan_that_passes_is_no_failure():
    tried = lac.attempt(lac.ServePlan(**FREE))
    assert (tried.how, tried.failed, tried.cause) == ("passes preflight", False, "")
    assert "nothing to object to" in str(tried)
    with pytest.raises(NothingFailed, match="passes preflight"):
        tried.failure()


def test_only_the_named_checks_are_passed_over():
    before = runs()
    tried = lac.attempt(NINE_HEADS.with_(nproc_per_node=1), for_real=True, skip_checks=["world size"])
    assert tried.how == "refused by preflight" and runs() == before
    with pytest.raises(ValueError, match="there is no check hands"):
        lac.attempt(NINE_HEADS, for_real=True, skip_checks=["hands"])


def test_a_model_that_is_nowhere_is_refused_and_not_raised():
    tried = lac.attempt(lac.ServePlan(model="/no/such/folder", **FREE), for_real=True)
    assert (tried.how, tried.cause) == ("refused by preflight", "model")


def test_a_changed_model_has_another_config_and_the_same_weights():
    original = find("smollm2-135m").path
    folder = Path(lac.changed_model(quantization_config=AWQ, rope_theta=None, without=["tokenizer.json"]))
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"] == AWQ and "rope_theta" not in config
    assert "quantization_config" not in json.loads((original / "config.json").read_text()), "the original was changed"
    assert (folder / "model.safetensors").samefile(original / "model.safetensors")
    assert not (folder / "tokenizer.json").exists()
    with pytest.raises(ValueError, match=r"has no file nothing\.json; it has .*config\.json"):
        lac.changed_model("smollm2-135m", without=["nothing.json"])


def test_a_changed_model_goes_with_the_process_and_the_original_stays():
    code = "import localai_clusters as lac; print(lac.changed_model('smollm2-135m'))"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert "lac-model-" in made and not os.path.exists(made)
    assert (find("smollm2-135m").path / "model.safetensors").stat().st_size > 100 << 20


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (lambda: lac.ServePlan(quantization="awq", **FREE), "the checkpoint is not quantized"),
        (lambda: lac.ServePlan(model=changed(AWQ), quantization="gptq", **FREE), "the checkpoint is awq"),
        (
            lambda: lac.ServePlan(model=changed(GPTQ, intermediate_size=1408), tensor_parallel_size=2, **FREE),
            "704, which is not a multiple of the group size 128",
        ),
    ],
    ids=["asked of plain weights", "another method", "a group on two ranks"],
)
def test_quantization_that_does_not_match_is_refused(plan, words):
    tried = lac.attempt(plan())
    assert tried.how == "refused by preflight"
    assert words in "".join(verdict.message for verdict in tried.report.failed if verdict.check == "quantization")


def changed(quantization: dict, **config) -> str:
    return lac.changed_model("smollm2-135m", quantization_config=quantization, **config)


def test_torchrun_with_a_taken_port_fails_before_a_rank_begins():
    with socket.create_server(("127.0.0.1", 0)) as holder:
        tried = lac.attempt(TWO.with_(master_port=holder.getsockname()[1]), "master-port-taken", for_real=True)
        assert_nothing_left_but_port(tried.run, holder.getsockname()[1])
    assert (tried.how, tried.cause, tried.rank) == ("launch failed", "port-master", None)
    assert "EADDRINUSE" in tried.failure().message
    assert not list(tried.run.dir.glob("rank*.log"))


def assert_nothing_left_but_port(run, port: int) -> None:
    from leftovers_of import leftovers_of

    left = leftovers_of(run.id)
    assert [held for held in left.pop("ports") if held != port] == []
    assert not any(left.values()), left


def test_one_node_that_would_wait_for_another_machine_is_refused():
    tried = lac.attempt(lac.ServePlan(master_addr=NOWHERE, **FREE))
    assert tried.cause == "master address" and "--master-addr 127.0.0.1" in str(tried)


@pytest.mark.extended
def test_a_node_that_waits_for_a_wrong_address_is_given_up():
    plan = TWO.with_(nnodes=2, master_addr=NOWHERE, master_port=29631)
    assert lac.attempt(plan).cause == "master address"
    tried = lac.attempt(plan, "master-address", for_real=True, node_rank=1, seconds=5)
    assert (tried.how, tried.rank) == ("launch failed", None)
    assert tried.said.startswith("not ready after 5 s; rank 1: not started yet")
    assert NOWHERE in tried.said
    assert 5 <= tried.failure().seconds < 20
    assert_nothing_left(tried.run)


@pytest.mark.extended
def test_nine_heads_past_preflight_fail_on_a_rank_and_are_explained():
    tried = lac.attempt(NINE_HEADS, "heads-not-divisible", for_real=True)
    assert (tried.how, tried.cause) == ("launch failed", "tp-heads"), str(tried)
    assert tried.rank in (0, 1) and tried.rank in tried.by_themselves
    assert "must be divisible by tensor parallel size (2)" in tried.said
    failure = tried.failure()
    assert failure.run_id == tried.run.id and failure.seconds > tried.preflight_seconds
    assert [told.who.partition(":")[0] for told in tried.tellings()] == ["preflight", "launch"]
    assert lac.explain_log(tried).best.id == "tp-heads"
    assert lac.explain_log(tried).first_rank == f"rank {tried.rank}", "torchrun's first may be one that only followed"
    assert any("divisible" in line for tail in tried.tail(9).tails for line in tail.lines)
    assert_nothing_left(tried.run)


@pytest.mark.extended
def test_a_mystery_is_one_ranks_own_failure_and_the_others_echo_it():
    unknown = lac.mystery("s123", TWO)
    assert (unknown.kind, unknown.first_rank) == ("port-taken", 0)
    logs = {tail.name: "\n".join(tail.lines) for tail in unknown.tail(4).tails}
    assert "Address already in use" in logs["rank0.log"] and "ending: rank 0" in logs["rank1.log"]
    assert unknown.kind not in str(unknown)
    assert_nothing_left(unknown.run)


@pytest.mark.extended
def test_a_killed_rank_is_told_to_the_client_and_named():
    with lac.serve(TWO) as server:
        with pytest.raises(CannotKill, match="no rank 2; this server has the ranks 0, 1"):
            lac.kill_rank(server, 2)
        with pytest.raises(CannotKill, match="SIGKILL, SIGTERM, SIGSTOP"):
            lac.kill_rank(server, 1, signal_name="SIGFPE")
        loss = lac.kill_rank(server, 1)
        assert_nothing_left(server.run, seconds=0)
        with pytest.raises(ServerError):
            server.complete("Hello")
        with pytest.raises(CannotKill, match="has stopped"):
            lac.kill_rank(server, 0)
    assert loss.tokens_before >= 8 and "error" in loss.client_got
    assert "rank 1 was killed by SIGKILL" in loss.launcher_said
    failure = loss.repaired(server).failure()
    assert (failure.how, failure.cause, failure.rank) == ("lost while serving", "SIGKILL", 1)
    assert failure.run_id == failure.repaired_run_id == server.run.id
    assert server.last_memory is not None, "a record of this server would lack its memory"


def test_who_is_no_server_cannot_lose_a_rank():
    with pytest.raises(CannotKill, match="takes a server"):
        lac.kill_rank("server", 1)


def test_the_ends_of_logs_are_counted_and_long_lines_shortened(tmp_path):
    (tmp_path / "rank0.log").write_text("\n".join(["first", "", *map(str, range(20)), "x" * 999]))
    (tmp_path / "node0.log").write_text("")
    (tmp_path / "rank1.log").write_bytes(b"\xff\x1b[0;36m<b>\x1b[0m\n")
    shown = log_tails(tmp_path, 2)
    assert [(tail.name, tail.total, len(tail.lines)) for tail in shown.tails] == [
        ("node0.log", 0, 0), ("rank0.log", 22, 2), ("rank1.log", 1, 1),
    ]  # fmt: skip
    assert "the last 2 of 22 lines" in str(shown) and max(map(len, str(shown).splitlines())) < 250
    assert "\x1b" not in str(shown) and "<b>\n" not in shown._repr_html_() and "&lt;b&gt;" in shown._repr_html_()


def test_what_somebody_said_is_escaped():
    page = telling_html("<i>", [Telling("<i>", 0.5, "<script>", ("<fix>",), "<why>")])
    assert not any(tag in page for tag in ("<i>", "<script>", "<fix>", "<why>"))
    assert (duration(0.0071), duration(8.44)) == ("7 ms", "8.4 s")
    assert len(shortened("x" * 1000)) < 240
