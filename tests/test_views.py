"""What shows things: tables, the picture of a split, the progress line, the agreement of two splits, the doctor."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from localai_clusters import comparison, doctor, picture
from localai_clusters.launch.run import Rank
from localai_clusters.machine import Machine
from localai_clusters.models import BUILT_IN
from localai_clusters.observe import MIB, RankMemory
from localai_clusters.plan import ServePlan
from localai_clusters.preflight.report import FAIL, PASS, Report, Verdict
from localai_clusters.progress import ProgressLine, startup_text
from localai_clusters.server import Completion
from localai_clusters.sizing import rank_sizes
from localai_clusters.tables import MemoryTable, Table, as_text

HOSTILE = "<script>alert('x')</script>"
ESCAPED = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;"


# Tables


def test_text_columns_are_aligned():
    assert as_text(("rank", "MiB"), [("0", "1.0"), ("1", "100.0")]).splitlines() == [
        "rank    MiB",
        "0       1.0",
        "1     100.0",
    ]


def test_a_row_that_is_too_short_is_an_error():
    with pytest.raises(ValueError):
        as_text(("a", "b"), [("1", "2"), ("1", "2", "3")])


def test_html_of_a_table_escapes_every_cell():
    page = Table(HOSTILE, (HOSTILE, "b"), ((HOSTILE, '"&'),))._repr_html_()
    assert "<script" not in page
    assert page.count(ESCAPED) == 3
    assert "&quot;&amp;</td>" in page


def test_a_table_of_no_rows():
    table = Table("t", ("a", "b"), ())
    assert str(table) == repr(table) == "t\na  b"
    assert ">a</th>" in table._repr_html_() and "<td" not in table._repr_html_()


def memory_of(rank: int, **fields) -> RankMemory:
    known = {
        "weights_predicted": 2 * MIB,
        "weights_measured": 3 * MIB,
        "kv_cache_predicted": None,
        "kv_cache_measured": 5 * MIB,
        "resident": 7 * MIB,
        "resident_peak": 11 * MIB,
    }
    return RankMemory(rank=rank, **known | fields)


def test_memory_is_predicted_beside_measured_in_mib():
    lines = str(MemoryTable("TP=2", (memory_of(0), memory_of(1, resident=None)))).splitlines()
    assert lines[0] == "Memory per rank, TP=2, in MiB"
    assert lines[2].split() == ["0", "2.0", "3.0", "–", "5.0", "7.0", "11.0"]
    assert lines[3].split() == ["1", "2.0", "3.0", "–", "5.0", "–", "11.0"]


def test_memory_has_a_column_for_the_gpu_where_there_is_one():
    assert "on the GPU" not in str(MemoryTable("TP=1", (memory_of(0),)))
    table = MemoryTable("TP=1", (memory_of(0, gpu=13 * MIB),))
    assert str(table).splitlines()[1].endswith("on the GPU")
    assert ">13.0</td>" in table._repr_html_()


# The picture of a split


def test_the_picture_has_a_box_for_each_rank_with_its_share():
    split = picture.split_map(ServePlan(tensor_parallel_size=2, pipeline_parallel_size=2, dtype="float32"))
    lines = str(split).splitlines()
    assert lines[0] == "smollm2-135m, TP=2 x PP=2, float32"
    assert [line.split(":")[0].strip() for line in lines if "rank " in line] == ["rank 0", "rank 1", "rank 2", "rank 3"]
    assert "layers 0 to 14, 6 of 12 heads, 2 of 4 KV heads, 768 of 1536 MLP columns" in lines[1]
    assert "layers 15 to 29" in str(split)
    assert str(split).count("all-reduce") == 2 and str(split).count("hidden states") == 1
    page = split._repr_html_()
    assert page.count("<b>rank ") == 4 and page.count("⟷ all-reduce") == 2 and page.count("↓") == 1


def test_one_rank_has_nobody_to_talk_to():
    split = picture.split_map(ServePlan())
    for shown in (str(split), split._repr_html_()):
        assert "all-reduce" not in shown and "hidden states" not in shown


def test_html_of_the_picture_escapes_the_models_name():
    plan, shape = ServePlan(model=HOSTILE), BUILT_IN["smollm2-135m"].shape
    page = picture.SplitMap(plan, shape, tuple(rank_sizes(plan, shape)))._repr_html_()
    assert "<script" not in page and ESCAPED in page


@pytest.fixture
def model_folder(tmp_path):
    """A folder with a config.json to which the test adds."""
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64,
        "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 128, "max_position_embeddings": 128,
    }  # fmt: skip

    def write(**more) -> str:
        (tmp_path / "config.json").write_text(json.dumps(config | more))
        return str(tmp_path)

    return write


def test_a_local_folder_has_a_picture(model_folder):
    assert "layers 0 to 1, 4 of 4 heads" in str(picture.split_map(ServePlan(model=model_folder())))


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"num_local_experts": 8}, "mixture-of-experts"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized"),
        ({"vision_config": {}}, "vision"),
    ],
)
def test_a_model_whose_bytes_are_not_predicted_has_no_picture(model_folder, more, kind):
    with pytest.raises(ValueError, match=rf"the bytes of such a model \({kind}\) are not predicted"):
        picture.split_map(ServePlan(model=model_folder(**more)))


def test_a_model_that_is_not_here_has_no_picture():
    with pytest.raises(ValueError, match="no-such-org/no-such-model is not on this machine"):
        picture.split_map(ServePlan(model="no-such-org/no-such-model"))


# The progress line


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_pipe_gets_a_line_for_each_change_and_none_for_the_passing_of_time():
    stream = io.StringIO()
    line = ProgressLine(stream)
    for text in ("  1 s  rank 0: a", "  2 s  rank 0: a", "  3 s  rank 0: b", "100 s  rank 0: b"):
        line(text)
    line.done("ready after 3.2 s")
    assert stream.getvalue() == "  1 s  rank 0: a\n  3 s  rank 0: b\nready after 3.2 s\n"


def test_a_pipe_gets_sentences_that_have_no_time():
    stream = io.StringIO()
    line = ProgressLine(stream)
    for text in ("downloading org/name", "it has files  and more", "de-quantizing", "de-quantizing"):
        line(text)
    assert stream.getvalue() == "downloading org/name\nit has files  and more\nde-quantizing\n"


def test_a_terminal_has_one_line_rewritten_in_place_and_cut_to_its_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    line = ProgressLine(stream)
    line("x" * 50)
    line.done("ready")
    assert stream.getvalue() == "\r\x1b[2K" + "x" * 19 + "\r\x1b[2Kready\n"


def test_the_startup_text_says_that_other_nodes_are_waited_for():
    plan = ServePlan(tensor_parallel_size=2, nnodes=2, master_addr="10.0.0.1")
    assert startup_text([Rank(0, None, None, {}, {}), Rank(1, None, None, {}, {})], 1, plan) == (
        "  1 s  waiting until all 2 nodes have joined at 10.0.0.1:29500"
    )


def test_the_startup_text_says_where_each_rank_is():
    ranks = [Rank(0, 7, "weights", {}, {}), Rank(1, None, None, {}, {}), Rank(2, 9, "a later version's", {}, {})]
    assert startup_text(ranks, 6.7) == (
        "  7 s  rank 0: loading its weights · rank 1: not started yet · rank 2: not started yet"
    )


# Did two splits say the same?


def answer(prompt: str, ids, logprobs) -> Completion:
    return Completion(prompt, "text", tuple(ids), tuple(logprobs), "length", 0.1)


def test_splits_that_agree():
    first = [answer("p", [1, 2], [-0.5, -0.25]), answer("q", [3], [-1.0])]
    second = [answer("p", [1, 2], [-0.5, -0.75]), answer("q", [3], [-1.0])]
    agreed = comparison.agreement(first, second, "TP=1 and TP=2")
    assert agreed.holds and agreed.differences == (None, None)
    lines = str(agreed).splitlines()
    assert lines[0] == "TP=1 and TP=2"
    assert lines[2].split() == ["p", "2", "all", "equal", "5.0e-01"]
    assert lines[3].split()[-1] == "0.0e+00"


@pytest.mark.parametrize(("ids", "place"), [([1, 9, 3], 1), ([9, 2, 3], 0), ([1, 2], 2), ([1, 2, 3, 4], 3), ([], 0)])
def test_splits_that_part(ids, place):
    first = [answer("p", [1, 2, 3], [-0.1, -0.1, -0.1])]
    second = [answer("p", ids, [-0.2] + [-5.0] * 3)]
    agreed = comparison.agreement(first, second)
    assert not agreed.holds and agreed.differences == (place,)
    assert f"part at token {place + 1}" in str(agreed)


def test_log_probabilities_are_compared_up_to_where_the_answers_part():
    first = [answer("p", [1, 2, 3], [-0.5, -0.5, -0.5])]
    second = [answer("p", [1, 9, 3], [-0.75, -9.0, -9.0])]
    assert str(comparison.agreement(first, second)).split()[-1] == "2.5e-01"


def test_answers_to_different_prompts_are_not_compared():
    p, q = answer("p", [1], [-0.1]), answer("q", [1], [-0.1])
    for other in ([q], [], [p, p]):
        with pytest.raises(ValueError, match="different prompts"):
            comparison.agreement([p], other)


def test_html_of_the_agreement_escapes_prompts():
    same = [answer(HOSTILE, [1], [-0.1])]
    page = comparison.agreement(same, same, HOSTILE)._repr_html_()
    assert "<script" not in page and page.count(ESCAPED) == 2


# The doctor


def machine(name: str) -> Machine:
    return Machine.from_json((Path(__file__).parent / "machines" / f"{name}.json").read_text())


def diagnosis(of: str, *statuses: str) -> doctor.Diagnosis:
    reports = [Report(ServePlan(), (Verdict("devices", status, "4 ranks [/bold] and 2 cores"),)) for status in statuses]
    return doctor.Diagnosis(machine(of), tuple(reports))


def printed(thing) -> str:
    stream = io.StringIO()
    Console(file=stream, width=80).print(thing)
    return stream.getvalue()


def test_a_machine_holds_if_one_split_can_be_served():
    assert diagnosis("linux_cpu_2_cores_24gb", FAIL, PASS).ok
    assert not diagnosis("linux_cpu_2_cores_24gb", FAIL, FAIL).ok


def test_the_doctor_shows_the_machine_and_what_stops_a_split():
    text = printed(diagnosis("linux_cpu_2_cores_24gb", PASS, FAIL))
    assert "2 cores for this process" in text and "none answers" in text
    assert "can be served" in text and "4 ranks [/bold] and 2 cores" in text
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 80


def test_the_doctor_lists_every_gpu():
    text = printed(diagnosis("made_up_linux_nvidia_8_a100_80gb", PASS))
    assert text.count("NVIDIA A100-SXM4-80GB, 79 GiB free") == 8
    assert "570.124.06" in text


def test_the_doctor_shows_a_hostile_host_name_as_it_is():
    hostile = replace(machine("made_up_linux_nvidia_1_t4"), hostname="[red]x[/blue]")
    assert "[red]x[/blue]" in printed(doctor.Diagnosis(hostile, ()))


def test_the_doctors_json_holds_the_machine_and_every_split():
    data = json.loads(json.dumps(diagnosis("made_up_linux_nvidia_1_t4", PASS, FAIL).to_dict()))
    assert data["ok"] is True
    assert Machine.from_json(json.dumps(data["machine"])) == machine("made_up_linux_nvidia_1_t4")
    assert [(split["split"], split["ok"]) for split in data["splits"]] == [("TP=1", True), ("TP=1", False)]


def test_this_machine_is_examined_for_every_split():
    found = doctor.examine_machine()
    assert [report.plan.label for report in found.reports] == ["TP=1", "TP=2", "PP=2", "TP=4", "TP=2 x PP=2"]
    assert found.machine.cores == Machine.now().cores
