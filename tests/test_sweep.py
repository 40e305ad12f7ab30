"""sweeping.py, sweep_result.py, decode_time.py and the two verbs: arithmetic on made-up loads, then real ranks."""

import csv
import io
import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from leftovers_of import assert_nothing_left

import localai_clusters as lac
from localai_clusters.bench import Load, Spread
from localai_clusters.cli import main
from localai_clusters.decode_time import NoMessages
from localai_clusters.plan import ServePlan
from localai_clusters.sweep_result import NotMeasured, Row, Sweep
from localai_clusters.sweeping import on_cores, splits

ONE, TWO, STAGES = ServePlan(), ServePlan(tensor_parallel_size=2), ServePlan(pipeline_parallel_size=2)


def load(many: int, rate: float, between: float | None = 0.02) -> Load:
    return Load(many, 2 * many, 100, 100 / rate, Spread(0.1, 0.2), between and Spread(between, 0.03))


def made_up(rounds: int = 1, **changes) -> Sweep:
    rows = (
        Row("TP=1", ONE, loads={1: [load(1, 40), load(1, 50), load(1, 42)][:rounds], 16: [load(16, 400)]}),
        Row("TP=2", TWO, loads={1: [load(1, 30)], 16: [load(16, 500)]}),
        Row("TP=5", ServePlan(tensor_parallel_size=5), reason="heads: 12 do not divide"),
    )
    return Sweep(rows, (1, 16), rounds, **changes)


# What was measured


def test_the_best_split_depends_on_the_load():
    found = made_up()
    assert (found.best(1), found.best(16)) == ("TP=1", "TP=2")
    assert found.ratio("TP=2", 16) == pytest.approx(1.25)
    assert found.itl("TP=1", 1) == 0.02
    assert found.tokens_per_second("TP=5", 1) is None


def test_figures_are_medians_over_rounds_with_their_spread():
    figures = made_up(rounds=3).figures("TP=1", 1)
    assert figures.tokens_per_second == pytest.approx(42)
    assert figures.spread == pytest.approx(10 / 42)
    assert made_up().figures("TP=1", 1).spread is None


def test_what_was_not_swept_is_said_with_what_was():
    found = made_up()
    with pytest.raises(NotMeasured, match="it ran 1, 16"):
        found.best(4)
    with pytest.raises(NotMeasured, match="it has TP=1, TP=2, TP=5"):
        found.itl("PP=2", 1)


def test_a_split_that_failed_stands_in_the_table_with_its_reason():
    text, page = str(made_up()), made_up()._repr_html_()
    assert "TP=5: heads: 12 do not divide" in text and "TP=5: heads: 12 do not divide" in page
    assert "1.25x" in text
    assert "Ctrl-C" in str(made_up(interrupted=True)) and "Ctrl-C" not in text
    assert "±" in str(made_up(rounds=3))


def test_as_data():
    data = json.loads(json.dumps(made_up().to_dict()))
    assert data["best"] == {"1": "TP=1", "16": "TP=2"}
    assert data["splits"][2]["reason"] and data["splits"][2]["figures"] == {}
    rows = list(csv.DictReader(io.StringIO(made_up().to_csv())))
    assert [row["split"] for row in rows] == ["TP=1", "TP=1", "TP=2", "TP=2", "TP=5", "TP=5"]
    assert rows[3]["tokens_per_second"] == "500.0" and rows[5]["tokens_per_second"] == ""


def test_figures_leave_out_what_was_not_measured():
    assert "TP=5" not in str(made_up().throughput())
    assert "TP=2" not in str(made_up().latency("TP=1"))


def test_times_far_apart_are_drawn_on_a_logarithmic_scale():
    assert "logarithmic" not in made_up().latency().svg
    slow = Row("TP=4", ServePlan(tensor_parallel_size=4), loads={1: [load(1, 4, 0.25)]})
    assert "logarithmic" in Sweep((*made_up().rows, slow), (1, 16)).latency().svg


# What can be swept


def test_splits_are_read_from_words():
    cases = splits("tp1, tp1@1,PP2,tp2pp2", ONE.with_(dtype="float32"))
    assert [case.name for case in cases] == ["TP=1", "TP=1 on 1 core", "PP=2", "TP=2 x PP=2"]
    assert cases[1].cores == 1 and cases[3].plan.world_size == 4 and cases[0].plan.dtype == "float32"


@pytest.mark.parametrize("word", ["2", "tp", "tp2x", "dp2", "tp2@", "@1"])
def test_a_word_that_is_no_split_is_named(word):
    with pytest.raises(ValueError, match="is no split; write tp2"):
        splits(f"tp1,{word}")


@pytest.mark.parametrize(
    ("plans", "options", "message"),
    [
        ([], {}, "needs plans"),
        ([ONE, ONE], {}, "are called TP=1; give them names"),
        ([TWO, ServePlan(model="smollm2-135m-published")], {}, "one model"),
        ([ONE], {"concurrency": ()}, "concurrency is empty"),
        ([ONE], {"concurrency": (0,)}, "concurrency is 0"),
        ([ONE], {"rounds": 0}, "rounds is 0"),
        ([ONE], {"max_tokens": 1.5}, "max_tokens is 1.5"),
        ([ONE], {"longest": "x"}, "longest is 'x'"),
        ([ServePlan(tensor_parallel_size=2, nnodes=2)], {}, "on one node"),
    ],
)
def test_what_cannot_be_swept_is_said_before_anything_starts(plans, options, message):
    with pytest.raises(ValueError, match=message):
        lac.sweep(plans, **options)


def test_cores_are_limited_for_what_is_started_and_given_back():
    before = os.sched_getaffinity(0)
    code = "import os; print(len(os.sched_getaffinity(0)))"
    with on_cores(1):
        inside = int(subprocess.check_output([sys.executable, "-c", code]))
    assert inside < max(2, len(before)) and os.sched_getaffinity(0) == before


def test_the_name_is_the_function_also_when_its_module_is_loaded():
    import localai_clusters.sweeping  # noqa: F401

    assert callable(lac.sweep) and callable(lac.communication)


# The model of a token's time


def test_the_model_gives_back_what_it_was_made_from():
    model = lac.DecodeTime.fit(alone=0.030, split=0.022, messages=0.001)
    assert (model.work, model.fixed) == (pytest.approx(0.018), pytest.approx(0.012))
    assert (model.seconds(1), model.seconds(2)) == (pytest.approx(0.030), pytest.approx(0.022))
    four = lac.DecodeTime.fit(alone=0.030, split=0.012 + 0.018 / 4 + 0.001, messages=0.001, ranks=4)
    assert four.work == pytest.approx(0.018)


def test_larger_weights_gain_more_and_never_as_much_as_there_are_ranks():
    model = lac.DecodeTime(fixed=0.012, work=0.018, messages=0.001)
    larger = model.larger_for(1.5)
    assert model.speedup(2, larger) == pytest.approx(1.5)
    assert model.speedup(2) < 1.5 < model.speedup(2, 1000) < 2
    with pytest.raises(ValueError, match="ask for less than 2"):
        model.larger_for(2)


def test_one_rank_has_no_messages_to_measure():
    with pytest.raises(NoMessages, match="sends nothing"):
        lac.communication(ONE)


# The verbs


def test_several_numbers_after_one_option():
    result = CliRunner().invoke(main, ["sweep", "--concurrency", "1", "4", "16", "--splits", "tp1,tpx"])
    assert result.exit_code == 2 and "'tpx' is no split" in result.output  # the numbers were read


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--concurrency", "0"], "whole numbers from 1"),
        (["--concurrency", "many"], "whole numbers from 1"),
        (["--plot", "figure.jpg"], "saved as .svg, .png or .txt"),
        (["--plot", "no/such/folder/figure.svg"], "is no folder"),
        (["--splits", ","], "needs plans"),
    ],
)
def test_bad_usage_is_said_with_what_to_type(arguments, said):
    result = CliRunner().invoke(main, ["sweep", *arguments])
    assert result.exit_code == 2 and said in result.output


def test_bench_of_a_server_that_is_not_there():
    result = CliRunner().invoke(main, ["bench", "--url", "http://127.0.0.1:9", "--concurrency", "1"])
    assert result.exit_code == 2 and "the load test of http://127.0.0.1:9 failed" in result.output


def test_every_second_round_goes_backwards():
    said: list[str] = []
    plans = [ServePlan(tensor_parallel_size=5), ServePlan(tensor_parallel_size=7)]  # both are refused at once
    found = lac.sweep(plans, (1, 4), rounds=2, on_progress=said.append)
    order = [text.partition("] ")[2] for text in said if text.endswith("starting")]
    assert order == [f"round {n}, TP={size}: starting" for n, size in ((1, 5), (1, 7), (2, 7), (2, 5))]
    bars = [text.count("#") for text in said]
    assert bars == sorted(bars)
    assert "12 attention heads" in str(found) and not found.servers
    with pytest.raises(NotMeasured, match="no split was measured"):
        found.best(1)


# Real ranks


@pytest.fixture(scope="module")
def interrupted():
    """TP=5 is refused; TP=2 is measured with one request at a time; then somebody presses Ctrl-C."""

    def press(text: str) -> None:
        said.append(text)
        if "2 requests at a time" in text:
            raise KeyboardInterrupt

    said: list[str] = []
    plans = [ServePlan(tensor_parallel_size=5, max_model_len=256), ServePlan(tensor_parallel_size=2, max_model_len=256)]
    found = lac.sweep(plans, (1, 2), requests=2, max_tokens=4, prompts=["What is a rank?"], on_progress=press)
    return found, said


@pytest.mark.extended
def test_a_refused_split_does_not_keep_the_others_from_being_measured(interrupted):
    found, said = interrupted
    assert "12 attention heads" in found.reason("TP=5")
    assert found.best(1) == "TP=2" and found.figures("TP=2", 1).ttft > 0
    assert any("[" in text and "TP=2: rank 0" in text for text in said)


@pytest.mark.extended
def test_an_interrupt_keeps_what_was_measured_and_leaves_nothing(interrupted):
    found, _ = interrupted
    assert found.interrupted and found.tokens_per_second("TP=2", 2) is None
    assert found.to_dict()["best"] == {"1": "TP=2"}
    server = found.servers[0]
    assert len(server.loads) == 1 and server.loads[0].output_tokens == 8  # the warm-up is not kept
    assert len(server.completions) == 1 and server.last_memory is not None
    assert len(found.places("TP=2")) == 2 and "rank 1: " in str(found.where())
    with pytest.raises(NotMeasured, match=r"TP=5 was not served: .*12 attention heads"):
        found.places("TP=5")
    assert not server.is_running()
    assert_nothing_left(server.run.id)


@pytest.mark.extended
def test_messages_of_the_real_ranks_and_what_they_are_of_a_token(interrupted):
    found, _ = interrupted
    told = lac.communication(TWO)
    assert told.cost.all_reduces == 61
    assert told.seconds == pytest.approx(61 * told.all_reduce_seconds)
    rows = told.collectives()
    assert {row.operation for row in rows} == {"all-reduce"} and 1152 in {row.message_bytes for row in rows}
    table = str(lac.where_it_goes(found, {"TP=2": told}))
    assert "61" in table and "TP=5" not in table
