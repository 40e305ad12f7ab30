"""The views without a browser: what they say of what was seen, escaping, text in place of widgets, threads that end."""

import json
import subprocess
import sys
import threading
import time

import pytest

import localai_clusters as lac
from localai_clusters.launch import journal
from localai_clusters.launch.run import STEPS, Run
from localai_clusters.observe import MIB
from localai_clusters.plan import ServePlan
from localai_clusters.widgets import logs, pages, views
from localai_clusters.widgets.seen import (
    ENDED,
    FAILED,
    PATH,
    READY,
    RUNNING,
    STARTING,
    STOPPED,
    WAITING,
    RankSeen,
    Seen,
)
from localai_clusters.widgets.session import ConsoleError, session_of

HOSTILE = "<script>alert('x')</script>"
ESCAPED = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;"
REFUSED = ServePlan(model="smollm2-135m-published", tensor_parallel_size=2)  # 9 heads on 2 ranks: preflight says no


def rank(number: int = 0, **fields) -> RankSeen:
    known = {"node": "node 0 (here)", "state": READY, "step": READY, "done": 1.0, "device": "CPU core 0",
             "layers": "layers 0 to 29", "weights": 100 * MIB, "kv_cache": 50 * MIB, "held": 400 * MIB,
             "limit": 8192 * MIB}  # fmt: skip
    return RankSeen(rank=number, **known | fields)


def seen(*ranks: RankSeen, **fields) -> Seen:
    known = {"title": "model, TP=2", "state": RUNNING, "message": "", "tensor_parallel_size": 2}
    return Seen(ranks=ranks or (rank(0), rank(1)), **known | fields)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("lac-", "watch"))]


# Pages


ALL_PAGES = [pages.status_html, pages.cluster_html, pages.memory_html, pages.blocks_html]


@pytest.mark.parametrize("page", ALL_PAGES)
def test_what_a_log_or_a_plan_says_is_text(page):
    hostile = rank(node=HOSTILE, step=HOSTILE, device=HOSTILE, layers=HOSTILE, heads=HOSTILE)
    shown = page(seen(hostile, title=HOSTILE, state=FAILED, message=HOSTILE, kv_used=1, kv_blocks=2))
    assert shown and "<script" not in shown
    if page in (pages.status_html, pages.cluster_html):
        assert ESCAPED in shown


@pytest.mark.parametrize("state", [RUNNING, STARTING, STOPPED, FAILED])
def test_a_state_is_a_word_too(state):
    assert f"</span> {state}" in pages.status_html(seen(state=state))
    assert pages.status_text(seen(state=state, message="why")) == f"model, TP=2: {state} (why)"


def test_the_map_groups_ranks_by_node():
    shown = pages.cluster_html(seen(rank(0), rank(1, node="node 1 (there)"), rank(2, node="node 1 (there)")))
    assert shown.count("role='group'") == 2 and shown.count("<b>rank ") == 3
    assert pages.cluster_text(seen(rank(0), rank(1, node="node 1 (there)"))).splitlines() == [
        "  node 0 (here)",
        "    rank 0: ready, CPU core 0, layers 0 to 29, weights 100.0 MiB, KV cache 50.0 MiB",
        "  node 1 (there)",
        "    rank 1: ready, CPU core 0, layers 0 to 29, weights 100.0 MiB, KV cache 50.0 MiB",
    ]


def test_a_start_has_a_bar_for_each_rank_and_a_ready_rank_has_none():
    shown = pages.cluster_html(seen(rank(0, state=STARTING, step="importing vLLM", done=0.25), rank(1)))
    assert shown.count("role='progressbar'") == 1 and "aria-valuenow='25'" in shown
    assert "importing vLLM" in shown


def test_weights_before_the_start_are_said_to_be_expected():
    before = rank(state=WAITING, step=WAITING, weights=None, weights_predicted=137 * MIB, kv_cache=None, held=None)
    assert "weights 137.0 MiB expected" in pages.cluster_text(seen(before))


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({}, (100, 50, 250)),
        ({"held": 120 * MIB}, (100, 20, 0)),  # no token has touched most of the KV cache
        ({"held": 60 * MIB}, (60, 0, 0)),
        ({"kv_cache": None}, (100, 0, 300)),
    ],
)
def test_the_parts_of_a_bar_are_all_that_is_held(fields, parts):
    of = rank(**fields)
    assert pages.parts_of(of) == tuple(part * MIB for part in parts)
    assert sum(pages.parts_of(of)) == of.held


def test_a_rank_that_is_gone_has_no_bar():
    assert pages.parts_of(rank(held=None)) is None
    shown = pages.memory_html(seen(rank(0), rank(1, held=None)))
    assert shown.count("role='img'") == 1 and "rank 0: weights 100.0, KV cache 50.0, the rest 250.0 MiB" in shown
    assert pages.memory_html(seen(rank(held=None))) == pages.memory_text(seen(rank(held=None))) == ""


def test_bars_of_gpus_are_drawn_against_the_gpus_memory():
    on_gpu = pages.memory_html(seen(rank(held=4096 * MIB), on_gpu=True))
    assert "of 8,192" in on_gpu and "on each GPU" in on_gpu
    assert "of 8,192" not in pages.memory_html(seen(rank(held=4096 * MIB)))


def test_blocks_in_use():
    told = seen(kv_used=3, kv_blocks=12, kv_block_tokens=128, running=2, waiting=1, generated=1234)
    text = "3 of 12 KV blocks of 128 tokens in use; 2 requests running, 1 waiting; 1,234 tokens generated"
    assert pages.blocks_text(told) == text and text in pages.blocks_html(told)
    assert "aria-valuenow='25'" in pages.blocks_html(told)
    assert pages.blocks_text(seen()) == pages.blocks_html(seen()) == ""


def test_every_step_on_the_path_is_one_that_ranks_report():
    assert set(PATH) < set(STEPS) and list(PATH) == [step for step in STEPS if step in PATH]


# Logs


def test_the_end_of_a_log_has_no_colours_and_not_our_own_looks(tmp_path):
    log = tmp_path / "rank0.log"
    looks = 'INFO: 127.0.0.1 - "GET /metrics/?name HTTP/1.1" 200 OK\n'
    log.write_text("first\n" * 50 + f"\x1b[32mINFO\x1b[0m {HOSTILE}\n\n" + looks * 200 + "last")
    assert logs.tail(log, 2) == f"INFO {HOSTILE}\nlast"
    assert logs.tail(tmp_path / "none") == ""


def test_a_log_of_any_length_is_read_from_its_end(tmp_path):
    log = tmp_path / "rank0.log"
    log.write_bytes(b"\xff" * 5_000_000 + b"\nlast")
    begun = time.monotonic()
    assert logs.tail(log, 1) == "last" and len(logs.tail(log)) <= logs.MOST_BYTES + 8
    assert time.monotonic() - begun < 2


# Without a front end


def test_importing_the_package_imports_no_widgets_and_no_matplotlib():
    code = "import sys, localai_clusters; assert not {'ipywidgets', 'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_a_front_end_a_view_is_text_and_html(monkeypatch):
    for name in [name for name in views.os.environ if name == "JPY_SESSION_NAME" or name.startswith("VSCODE_")]:
        monkeypatch.delenv(name)
    panel = lac.console(ServePlan(tensor_parallel_size=2))
    assert set(panel._repr_mimebundle_()) == {"text/plain", "text/html"}
    assert str(panel).splitlines()[0] == "smollm2-135m, TP=2: stopped"
    assert ".start() launches it" in str(panel)
    assert "weights 136.8 MiB expected" in panel._repr_html_()
    assert threads() == []


def test_with_a_front_end_a_view_is_its_widget_beside_them(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "lab.ipynb")
    bundle = lac.console(ServePlan())._repr_mimebundle_()
    assert set(bundle) == {views.WIDGET, "text/plain", "text/html"}
    assert bundle[views.WIDGET]["model_id"]
    assert threads() == []


def test_papermill_runs_past_a_panel_and_keeps_its_text(tmp_path, monkeypatch):
    import nbformat
    import papermill

    for name in [name for name in views.os.environ if name == "JPY_SESSION_NAME" or name.startswith("VSCODE_")]:
        monkeypatch.delenv(name)
    cells = ["import localai_clusters as lac", "lac.console(lac.ServePlan(tensor_parallel_size=2))"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=kernel)
    nbformat.write(notebook, tmp_path / "in.ipynb")
    done = papermill.execute_notebook(str(tmp_path / "in.ipynb"), str(tmp_path / "out.ipynb"), progress_bar=False)
    (output,) = done.cells[1].outputs
    assert set(output.data) == {"text/plain", "text/html"}
    assert output.data["text/plain"].startswith("smollm2-135m, TP=2: stopped")


@pytest.mark.parametrize("what", [None, 3, "smollm2-135m", ...])
def test_what_is_no_plan_and_no_server_is_said(what):
    with pytest.raises(ConsoleError, match=r"lac\.ServePlan"):
        lac.console(what)


# A life: refused, given up, ended by itself


def test_a_plan_that_is_refused_fails_with_preflights_words_and_leaves_no_thread():
    panel = lac.console(REFUSED)
    start, stop = (panel.widget.children[0].children[number] for number in (0, 1))
    assert (start.disabled, stop.disabled) == (False, True)
    start.click()
    with pytest.raises(ConsoleError, match="9 attention heads"):
        panel.wait(seconds=30)
    panel.session.settle()
    assert panel.state == FAILED and threads() == []
    status = panel.widget.children[1].value
    assert "✗</span> failed" in status and "9 attention heads" in status
    assert (start.disabled, stop.disabled) == (False, True)
    panel.stop()  # harmless
    assert panel.state == FAILED


def test_a_question_without_a_server_is_answered_so():
    panel = lac.console(REFUSED)
    assert panel.ask("Hello?") == "" and "no server is running" in panel.chat.note
    assert panel.chat._send is None
    box = panel.chat.widget.children[0].children
    assert box[1].disabled
    panel.chat._message(box[0], {"event": "submit"}, [])
    panel.chat.ask("", wait=True)
    assert "no server is running" in panel.chat.note


def test_a_launch_is_given_up_at_once_and_leaves_nothing(tmp_path):
    from leftovers_of import assert_nothing_left

    plan = ServePlan(tensor_parallel_size=2, port=0, master_port=0, max_model_len=256)
    panel = lac.console(plan)
    panel.start()
    assert lac.console(plan).session is panel.session, "the cell run again finds the same launch"
    deadline = time.monotonic() + 60
    while (panel.server is None or not any(r.step for r in panel.server.ranks())) and time.monotonic() < deadline:
        time.sleep(0.05)
    run = panel.server.run
    panel.stop()
    assert panel.state == STOPPED and threads() == []
    assert_nothing_left(run)
    assert session_of(plan) is not panel.session, "what has ended is not found again"
    assert {r.state for r in panel.session.look().ranks} <= {ENDED, FAILED, WAITING}


# What is seen of a run's own files


@pytest.fixture
def run(tmp_path):
    """A run's folder as its ranks write it, and no process."""
    made = Run.__new__(Run)
    made.plan, made.dir, made.nodes = ServePlan(tensor_parallel_size=2), tmp_path, None
    made.node_ranks = range(1)
    return made


def test_how_far_a_rank_is_comes_from_what_it_wrote(run):
    for step in ("python", "import", "rendezvous"):
        journal.append(run.dir / "rank1.jsonl", rank=1, pid=1, step=step, cpus=[2, 3])
    from localai_clusters.widgets.seen import rank_seen

    first, second = run.ranks()
    known = {"plan": run.plan, "shape": None, "size": None, "server": None, "sample": None, "live": True}
    assert rank_seen(first, **known).state == WAITING
    there = rank_seen(second, **known)
    assert (there.state, there.step, there.done) == (STARTING, "joining the process group", 3 / len(PATH))
    assert there.device == "CPU cores 2, 3"
    journal.append(run.dir / "rank1.jsonl", rank=1, pid=1, step="failed", error="x")
    assert rank_seen(run.ranks()[1], **known).state == FAILED
    assert rank_seen(second, **known | {"live": False}).state == ENDED
    assert json.loads((run.dir / "rank1.jsonl").read_text().splitlines()[0])["step"] == "python"
