"""The views in a real JupyterLab, driven in a real Chromium: real servers are started, looked at and stopped from it.

Screenshots go to $LAC_SCREENSHOTS, else build/screenshots.
"""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from browser import JupyterLab, Notebook, chromium, write_notebook
from leftovers_of import assert_nothing_left, leftovers_of
from playwright.sync_api import Locator, expect

from localai_clusters.launch.run import runs_dir

REPOSITORY = Path(__file__).parent.parent
STUDENT_NOTEBOOKS = sorted([*REPOSITORY.glob("course/*.ipynb"), *REPOSITORY.glob("labs/*/*.ipynb")])
# A cell with one of these starts processes: a notebook is run up to it.
STARTS = re.compile(r"\b(serve|try_out|sweep|live|attempt|up|record|watch|measure\w*)\(")
MAX_MODEL_LEN = 1016  # by which the runs of these tests are known
SECONDS_TO_READY, SECONDS_TO_GO = 90_000, 10.0
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory):
    lab = JupyterLab(tmp_path_factory.mktemp("jupyter"))
    yield lab
    lab.stop()


@pytest.fixture
def open_notebook(jupyter, browser):
    opened = []

    def open_it(name: str, theme: str = "light") -> Notebook:
        jupyter.theme(theme)
        opened.append(Notebook(jupyter, browser, name))
        return opened[-1]

    yield open_it
    for notebook in opened:
        notebook.close()


@pytest.fixture
def panel_notebook(jupyter, request):
    plan = f"lac.ServePlan(tensor_parallel_size=2, max_model_len={MAX_MODEL_LEN}, port=0, master_port=0)"
    cells = (f"import localai_clusters as lac\n\nplan = {plan}", "panel = lac.console(plan)\npanel")
    return write_notebook(jupyter.root / f"{request.node.name}.ipynb", *cells).name


def newest_run() -> str:
    """The run of the panel's plan that was started last."""
    for run in sorted(runs_dir().iterdir(), reverse=True):
        spec = run / "run.json"
        if spec.exists() and json.loads(spec.read_text())["plan"]["max_model_len"] == MAX_MODEL_LEN:
            return run.name
    raise AssertionError("the panel started no run")


def panel_of(notebook: Notebook) -> Locator:
    panel = notebook.page.locator(".lac-console")
    expect(panel).to_have_count(1)
    return panel


def start(panel: Locator) -> None:
    panel.get_by_role("button", name="Start").click()
    ready = panel.get_by_role("group", name=re.compile("node 0")).get_by_text("● ready")
    expect(ready).to_have_count(2, timeout=SECONDS_TO_READY)
    expect(panel.get_by_role("status")).to_contain_text("running", timeout=SECONDS_TO_READY)


def test_start_watch_ask_and_stop(open_notebook, panel_notebook):
    notebook = open_notebook(panel_notebook)
    notebook.run_all()
    panel = panel_of(notebook)
    expect(panel.get_by_role("status")).to_contain_text("stopped")
    expect(panel.get_by_role("button", name="Stop")).to_be_disabled()
    panel.get_by_role("button", name="Start").click()
    steps = panel.get_by_role("progressbar", name=re.compile("start of rank"))
    expect(steps).to_have_count(2, timeout=30_000)
    notebook.screenshot("starting-light")
    expect(panel.get_by_text("● ready")).to_have_count(2, timeout=SECONDS_TO_READY)

    bars = panel.get_by_role("group", name="memory of each rank").get_by_role("img")
    expect(bars).to_have_count(2, timeout=20_000)
    for rank in (0, 1):
        expect(bars.nth(rank)).to_have_attribute("aria-label", re.compile(rf"rank {rank}: weights \d+\.\d, KV cache"))
    blocks = panel.get_by_role("progressbar", name="KV blocks in use")
    expect(blocks).to_have_count(1)

    prompt = panel.get_by_label("Prompt")
    prompt.fill("Count: 1, 2, 3, <b>4</b>,")
    prompt.press("Enter")
    answer = panel.get_by_role("log", name="answer")
    expect(answer).to_contain_text("Count: 1, 2, 3, <b>4</b>,")
    expect(answer).to_contain_text(re.compile(r"\d\d+ chunks, first after"), timeout=60_000)
    notebook.screenshot("serving-light")
    expect(panel.get_by_role("button", name="Send")).to_be_enabled(timeout=60_000)
    expect(panel.get_by_text(re.compile(r"\d+ tokens generated"))).to_have_count(1)

    panel.get_by_text("Logs").click()
    panel.get_by_label("Log of", exact=True).select_option("rank 1")
    expect(panel.get_by_role("log", name="log of rank 1")).to_contain_text("INFO")
    notebook.screenshot("logs-light")

    run = newest_run()
    panel.get_by_role("button", name="Stop").click()
    expect(panel.get_by_role("status")).to_contain_text("stopped", timeout=20_000)
    assert_nothing_left(run)
    expect(panel.get_by_text("■ ended")).to_have_count(2)
    expect(panel.get_by_role("button", name="Start")).to_be_enabled()
    assert notebook.problems() == []


def test_a_restarted_kernel_leaves_nothing(open_notebook, panel_notebook):
    notebook = open_notebook(panel_notebook, "dark")
    notebook.run_all()
    panel = panel_of(notebook)
    start(panel)
    expect(panel.get_by_role("group", name="memory of each rank")).to_have_count(1, timeout=20_000)
    notebook.screenshot("serving-dark")
    run = newest_run()
    assert len(leftovers_of(run)["processes"]) >= 3, "agent and ranks are seen while they live"
    notebook.restart_kernel()
    assert_nothing_left(run, SECONDS_TO_GO)


def cells_before_a_start(path: Path) -> int:
    """How many code cells of a notebook come before the first that starts a server."""
    code = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    return next((number for number, source in enumerate(code) if STARTS.search(source)), len(code))


@pytest.mark.parametrize("path", STUDENT_NOTEBOOKS, ids=lambda path: path.stem)
def test_a_students_notebook_opens_and_begins(open_notebook, jupyter, path):
    for file in path.parent.glob("*"):
        if file.suffix in (".ipynb", ".sealed"):
            shutil.copy(file, jupyter.root / file.name)
    notebook = open_notebook(path.name)
    cells = min(6, cells_before_a_start(path))
    assert cells >= 1, "the first cell of all starts a server"
    notebook.run_first(cells)
    notebook.screenshot(path.stem)
    assert notebook.problems() == []
