"""Figures: the same bytes for the same data, readable without colours and without eyes, escaped; a table as text."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from localai_clusters import plot_words, plots

HOSTILE = "<script>alert('x')</script> $x_1$ & more"
SVG = "{http://www.w3.org/2000/svg}"


def throughput(**options) -> plots.Figure:
    series = {"TP=1": [(4, 150), (1, 40), (2, 79)], "TP=2": [(1, 43), (2, None), (4, 170.25)]}
    return plots.lines("Throughput", series, x="requests", y="tokens/s", **options)


def memory(**options) -> plots.Figure:
    ranks = {"rank 0": {"weights": 134.25, "KV cache": 512}, "rank 1": {"weights": 134.25, "KV cache": None}}
    return plots.bars("Memory", ranks, y="MiB", **options)


def blocks() -> plots.Figure:
    points = [(0, 0), (1.5, 8), (3, 2)]
    return plots.steps("Blocks", {"in use": points}, y="blocks", levels={"all": 10}, marks=[(1.5, "request sent")])


FIGURES = [throughput, lambda: throughput(log_x=True, log_y=True), memory, lambda: memory(stacked=False), blocks]


@pytest.mark.parametrize("make", FIGURES)
def test_the_same_data_give_the_same_bytes(make):
    assert make().svg == make().svg


@pytest.mark.parametrize("make", FIGURES)
def test_svg_has_words_for_who_does_not_see_it_and_the_pages_text_colour(make):
    figure = make()
    root = ET.fromstring(figure.svg)
    assert root.tag == f"{SVG}svg" and root.get("role") == "img"
    names = {root.find(f"{SVG}{tag}").get("id"): root.find(f"{SVG}{tag}").text for tag in ("title", "desc")}
    assert set(root.get("aria-labelledby").split()) == set(names)
    assert list(names.values()) == [figure.title, figure.summary]
    assert "currentColor" in figure.svg and plots.INK not in figure.svg
    assert not re.search(r"(fill|stroke): #(000000|ffffff|fff|000)\b", re.sub(r"<text[^>]*>[^<]*", "", figure.svg))


def test_the_background_is_the_pages_own():
    patches = [element.get("style", "") for element in ET.fromstring(throughput().svg).iter(f"{SVG}path")]
    assert not any(re.search("fill: #(?!none)", style) and "stroke" not in style for style in patches)


def test_two_figures_of_one_page_share_no_id():
    ids = [re.findall(r'\bid="([^"]+)"', figure.svg) for figure in (throughput(), blocks(), memory())]
    flat = [name for of_one in ids for name in of_one]
    assert flat and len(flat) == len(set(flat))


@pytest.mark.parametrize("make", [throughput, memory])
def test_series_differ_by_more_than_their_colour(make):
    svg = make().svg
    assert "stroke-dasharray" in svg if make is throughput else "<pattern" in svg


def test_hostile_names_are_text():
    figure = plots.lines(HOSTILE, {HOSTILE: [(1, 2)], "b": [(1, 3)]}, x=HOSTILE, y=HOSTILE, levels={HOSTILE: 2.5})
    page = figure._repr_html_()
    assert "<script" not in page
    texts = ["".join(element.itertext()) for element in ET.fromstring(figure.svg).iter(f"{SVG}text")]
    assert any("<script>" in text and "$x_1$" in text for text in texts)


def test_text_of_lines_is_a_table_in_the_order_of_x():
    assert str(throughput()).splitlines() == [
        "Throughput",
        "requests  TP=1   TP=2",
        "1           40     43",
        "2           79      –",
        "4          150  170.2",
    ]
    assert "TP=1: from 40 at 1 to 150 at 4, lowest 40, highest 150" in throughput().summary


def test_text_of_bars_has_sums_only_of_stacks():
    lines = str(memory()).splitlines()
    assert lines[1].split()[-1] == "together"
    assert lines[2].split() == ["rank", "0", "134.2", "512", "646.2"]
    assert lines[3].split() == ["rank", "1", "134.2", "–", "134.2"]
    assert "together" not in str(memory(stacked=False))


def test_text_of_a_timeline_holds_each_value_until_the_next():
    figure = plots.steps("t", {"a": [(0, 1), (2, 3)], "b": [(1, 5)]})
    assert list(figure.rows) == [("0", "1", "–"), ("1", "1", "5"), ("2", "3", "5")]
    assert "Marked: at 1.5: request sent." in blocks().summary and "Level all: 10." in blocks().summary
    assert str(blocks()).endswith("at 1.5: request sent")


def test_a_long_timeline_is_thinned_in_its_table_and_says_so():
    figure = plots.steps("t", {"a": [(number, number) for number in range(500)]})
    assert len(figure.rows) <= plot_words.MOST_ROWS + 1 and figure.rows[-1][0] == "499"
    assert re.search(r"\d+ of 500 points", str(figure))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: plots.lines("t", {"a": [(1, "x")]}), "a, y: 'x' is no number"),
        (lambda: plots.lines("t", {"a": [3]}), "a: 3 is no pair"),
        (lambda: plots.lines("t", {"a": [(None, 3)]}), "no finite number"),
        (lambda: plots.lines("t", {"a": [(0, 3)]}, log_x=True), "logarithmic"),
        (lambda: plots.bars("t", {"a": {"b": -1}}), "cannot be negative"),
        (lambda: throughput().save("figure.gif"), ".svg, .png or .txt"),
    ],
)
def test_what_cannot_be_drawn_is_said(make, says):
    with pytest.raises(plots.PlotError, match=re.escape(says)):
        make()


@pytest.mark.parametrize("make", [lambda: plots.lines("t", {}), lambda: plots.lines("t", {"a": []}),
                                  lambda: plots.bars("t", {}), lambda: plots.bars("t", {"a": {"b": float("nan")}}),
                                  lambda: plots.steps("t", {"a": [(0, 0)]})])  # fmt: skip
def test_nothing_to_draw_is_an_empty_figure(make):
    assert ET.fromstring(make().svg) is not None and str(make()).startswith("t")


def test_a_figure_is_saved_as_what_the_name_says(tmp_path):
    figure = throughput()
    saved = ET.parse(figure.save(tmp_path / "a.svg")).getroot()
    assert "prefers-color-scheme" in saved.find(f"{SVG}style").text
    assert figure.save(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert figure.save(tmp_path / "a.txt").read_text() == f"{figure}\n"


def test_neither_pyplot_nor_a_setting_of_matplotlib_is_touched():
    code = (
        "import matplotlib, sys; matplotlib.rcParams['font.size'] = 23\n"
        "from localai_clusters import plots; plots.lines('t', {'a': [(1, 2)]}).svg\n"
        "assert matplotlib.rcParams['font.size'] == 23 and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
