"""show: readable at any width, and deaf to what the file says about the terminal."""

import io

import pytest
from pydantic_core import to_jsonable_python
from rich.console import Console
from test_checkpoint_example import TEXTS, altered, example, fields

from localai_clusters.checkpoint import Checkpoint, build, plain_text, show


def page(checkpoint: Checkpoint, width: int = 80, **options) -> str:
    out = io.StringIO()
    show(checkpoint, Console(file=out, width=width, **options))
    return out.getvalue()


def squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_page_fits_the_terminal(width):
    assert max(map(len, page(example(), width).splitlines())) <= width


@pytest.mark.parametrize("width", [80, 120])
def test_the_page_tells_what_matters(width):
    text = squeezed(page(example(), width))
    for part in (
        "Chapter 7, vllm_distributed_serving student s123",
        "TP=2 and PP=2 gave the same 96 tokens as TP=1.",
        "TP=2 2 cores 0; 1 float32 10.4 s 21.2 s stopped 512 16",
        "PP=2 0 0-14 284.2 284.2 256.0 255.8 1,346.9 364",
        "What is tensor parallelism?",
        "Tensor parallelism splits each weight matrix",
        "the same tokens as TP=1",
        "134 million parameters",
        "My laptop was on battery. (the student)",
        "Preflight: 1 of 2 checks passed",
        "warn cores (TP=2) 2 ranks take both cores",
        "memory-share 0.5",
        "vLLM 0.32.0, torch 2.13.0+cpu",
        "Nothing in it contradicts itself.",
        "A digest shows consistency, not honesty",
    ):
        assert part in text, part
    assert "12 heads and 4 KV heads" not in text  # a check that passed


def test_the_digest_stands_whole():
    checkpoint = example()
    assert checkpoint.digest in page(checkpoint)


def test_what_does_not_hold_is_listed():
    text = squeezed(page(altered("evidence.ranks", 8)))
    assert "wrong evidence.ranks: it says 8, the largest run has 2" in text
    assert "Nothing in it contradicts itself" not in text
    assert "It proves nothing" in text


HOSTILE = "\x1b[2J\x1b]0;owned\x07[red]x[/red] [link=file:///]y :smile: \u202egnp\x9b1m\nz"


def test_hostile_text_stays_text_everywhere():
    """Put it into every free text of the record at once."""

    def poisoned(node, name=""):
        if isinstance(node, dict):
            return {key: poisoned(item, key) for key, item in node.items()}
        if isinstance(node, list):
            return [poisoned(item, name) for item in node]
        return HOSTILE if name in free_texts else node

    free_texts = (
        "text name cpu_model os vllm torch python model folder dtype sentence check message slowest-split finish_reason"
    ).split()
    poison = build(**poisoned(to_jsonable_python(fields())))
    plain = page(poison, width=200, force_terminal=True, color_system=None)
    for bad in ("\x1b[2J", "\x1b]", "\x07", "\x9b", "\u202e", "😄"):
        assert bad not in plain, bad
    assert plain.count("[red]x[/red] [link=file:///]y :smile:") > 8


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a\nb\tc\r\nd", "a b c d"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\x00\x08\x7fb", "a b"),
        ("a\u2028b\u200bc", "a b c"),
        ("naïve 中文 😀", "naïve 中文 😀"),
        ("[bold]", "[bold]"),
        ("\ud800", ""),
        ("\x1b[", "["),
    ],
)
def test_plain_text(text, plain):
    assert plain_text(text) == plain


def test_plain_text_is_cut():
    assert plain_text("abc def ghi", 8) == "abc def…"
    assert plain_text("abc", 3) == "abc"


def test_long_outputs_are_shortened():
    text = squeezed(page(altered("observed.completions[0].text", TEXTS[0] * 50)))
    assert len(text) < 6000
    assert "…" in text


def test_long_lists_are_cut_and_counted():
    checks = [{"check": "c", "verdict": "warn", "message": "m"}] * 1000
    text = squeezed(page(example(preflight=checks)))
    assert "and 968 more checks" in text


def test_gpus_are_named_without_guessing():
    made = to_jsonable_python(fields())
    made["machine"]["gpus"] = [{"name": "NVIDIA H200", "memory_bytes": 150 * 2**30}]
    ranks = made["runs"][1]["ranks"]
    for index, rank in enumerate(ranks):
        rank["device"] = {"kind": "cuda", "name": "NVIDIA H200", "gpu_index": index}
    ranks[1]["device"]["gpu_index"] = None
    ranks[1]["exit_code"] = -9
    text = squeezed(page(build(**made), 120))
    assert "TP=2 2 GPUs 0; ? float32 10.4 s 21.2 s exit -9" in text
    assert "NVIDIA H200 (150.0 GiB)" in text


def test_markup_in_a_table_stays_text():
    assert "[b]f[/b]" in page(altered("runs[0].plan.dtype", "[b]f[/b]"))


def test_a_record_with_hardly_anything_is_shown():
    bare = {key: fields()[key] for key in ("student", "chapter", "lab", "versions", "machine")}
    evidence = {"level": "dry-run", "nodes": 0, "ranks": 0}
    data = {"model": "m", "source": "folder"}
    text = squeezed(page(build(**bare, evidence=evidence, data=data)))
    assert "wrong constraints: none of the kind model-size is stated" in text


def test_a_completion_of_no_known_run_is_shown():
    checkpoint = altered("observed.completions[0].run_id", "ghost")
    assert "ghost" in page(checkpoint)
    assert "(no such prompt)" in page(altered("observed.completions[0].prompt_index", 9))
