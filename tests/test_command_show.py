"""What explain-command shows in a terminal, in a notebook and as JSON; its exit codes; and hostile texts."""

import html.parser
import io
import json
import random
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

import localai_clusters.command as command
from localai_clusters.cli import main
from localai_clusters.command import explain_command
from localai_clusters.command.show import show, visible

COMMANDS = Path(__file__).parent / "commands"
CHAPTER = (COMMANDS / "chapter_two_nodes.sh").read_text()
SECRET = "hf_SuperSecretSuperSecret123"


def run(*arguments: str, stdin: str | bytes | None = None):
    result = CliRunner().invoke(main, ["explain-command", *arguments], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def commands_in(text: str) -> list[str]:
    """The blocks to paste, as a person would copy them."""
    return [block.split("\n", 1)[1].strip("\n") for block in re.split(r"\n(?=# (?:With|In))", text)[1:]]


# The terminal


def test_the_parts_are_underlined_and_numbered():
    lines = str(explain_command("A=1 vllm serve m \\\n  --port 8001")).splitlines()
    at = lines.index("  A=1 vllm serve m \\")
    assert lines[at + 1 : at + 4] == ["  1── 2───────── 3", "    --port 8001", "    4──────────"]
    assert any(re.match(r"4 +--port 8001 +port of the OpenAI API", line) for line in lines)


def test_no_line_of_prose_is_wider_than_the_terminal():
    assert max(map(len, str(explain_command(CHAPTER)).splitlines())) <= 80


def test_commands_to_paste_are_whole_lines_without_a_frame():
    long = "vllm serve m --chat-template '" + "x" * 200 + "'"
    report = explain_command(long)
    shown = commands_in(str(report))
    assert shown == [printed for way in report.servers[0].ways for printed in way.commands]
    assert any(len(line) > 200 for block in shown for line in block.splitlines())


def test_what_is_shown_of_the_chapters_command():
    text = str(explain_command(CHAPTER))
    places = [text.index(words) for words in
              ("This does not work", "1───", "PyTorch's launcher", "What is wrong", "✗", "Type this instead",
               "Replace HEAD_NODE_IP", "# With this library, on node 0", "# With this library, on node 1",
               "# With vLLM alone, on node 0")]  # fmt: skip
    assert places == sorted(places)


def test_no_colour_when_piped_and_some_in_a_terminal():
    assert "\x1b" not in str(explain_command(CHAPTER))
    assert "\x1b" not in run("-", stdin=CHAPTER).output
    file = io.StringIO()
    show(explain_command(CHAPTER), Console(file=file, force_terminal=True, color_system="standard", width=80))
    assert "\x1b[" in file.getvalue()


# The verb


@pytest.mark.parametrize(
    ("arguments", "stdin", "code"),
    [
        (["vllm serve m --host 127.0.0.1"], None, 0),
        (["vllm serve m"], None, 0),  # it works; that it is not safe is said
        (["vllm serve m --swap-space 4"], None, 1),
        (["-"], CHAPTER, 1),
        ([], CHAPTER, 1),
        (["--file", str(COMMANDS / "chapter_one_node.sh")], None, 1),
        (["--file", str(COMMANDS / "underscores.sh")], None, 0),
        ([""], None, 2),
        (["ls -l"], None, 2),
        ([], "", 2),
        (["-"], "x" * 1_000_001, 2),
        (["--file", "/no/such/file"], None, 2),
        (["--file", "/"], None, 2),
        (["vllm serve m", "--file", str(COMMANDS / "underscores.sh")], None, 2),
        (["-"], b"vllm serve m --served-model-name \xff\xfe\x00", 0),
    ],
)
def test_exit_codes(arguments, stdin, code):
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == code, result.output
    assert result.output.strip()


def test_json_holds_all_of_it():
    report = json.loads(run("--json", CHAPTER).output)
    assert report["works"] is False and report["reason"] == ""
    assert report["text"] == CHAPTER
    assert report["servers"][0]["plan"]["pipeline_parallel_size"] == 2
    assert {"severity", "code", "message", "fix", "start", "end", "blocks"} == report["findings"][0].keys()
    first = report["parts"][0]
    assert CHAPTER[first["start"] : first["end"]] == first["text"] == "torchrun"
    assert [way["name"] for way in report["servers"][0]["ways"]] == ["localai-clusters", "vllm"]
    assert json.loads(run("--json", "ls").output)["works"] is None


def test_the_library_has_it_by_its_name():
    assert command.explain_command is explain_command
    assert "explain_command" in dir(command)


# The notebook


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html_is_well_formed_and_holds_the_commands():
    report = explain_command(CHAPTER)
    tags = Tags()
    tags.feed(report._repr_html_())
    assert tags.open == []
    text = "".join(tags.text)
    for way in report.servers[0].ways:
        for printed in way.commands:
            assert printed in text
    assert "script" not in tags.seen


# Hostile texts


@pytest.mark.parametrize("text", [f"vllm serve m --hf-token {SECRET}", f"HF_TOKEN={SECRET} vllm serve m",
                                  f"docker run -e HF_TOKEN={SECRET} --gpus all vllm/vllm-openai m",
                                  f"hf auth login --token {SECRET}\nvllm serve m",
                                  f"vllm serve m --api-key {SECRET}", f"export VLLM_API_KEY={SECRET}\nvllm serve m",
                                  f"vllm serve m --api-key={SECRET} {SECRET}x",
                                  f"docker run --env=OPENAI_API_KEY={SECRET} --gpus all vllm/vllm-openai m",
                                  f"bash -c 'vllm serve m --api-key {SECRET}'",
                                  f"vllm serve m --api-key {SECRET} --api-key {SECRET}2 --tp {SECRET}"])  # fmt: skip
def test_no_secret_is_shown_again(text):
    report = explain_command(text)
    for shown in (str(report), report._repr_html_(), json.dumps(report.to_dict())):
        assert SECRET not in shown
    assert len(report.text) == len(text)


@pytest.mark.parametrize(
    "value", ["\x1b[31mred", "\x1b]0;title\x07", "a\x00b", "\u202etxt.exe", "\x9b31m", "a\rb", "\u2066x"]
)
def test_nothing_steers_the_terminal_or_turns_the_text(value):
    for text in (f"vllm serve {value}", f"vllm serve m --served-model-name '{value}'",
                 f"A={value} vllm serve m --x{value}", f"{value} vllm serve m"):  # fmt: skip
        report = explain_command(text)
        for shown in (str(report), report._repr_html_(), run(text).output):
            assert not set(shown) & set("\x1b\x00\x07\x9b\r\u202e\u2066")


def test_what_is_visible_is_as_long_as_the_text():
    text = "a\x1b\x00\u202e\tb\n\u200b🙂é\ud800"
    assert len(visible(text)) == len(text)
    assert visible("a\x1b\tb") == "a␛ b"


@pytest.mark.parametrize(
    "value", ["<script>alert(1)</script>", "'><img src=x onerror=alert(1)>", '" onmouseover="x', "&lt;"]
)
def test_html_is_escaped(value):
    for text in (f"vllm serve '{value}'", f'vllm serve m --x "{value}"', f"A='{value}' vllm serve m # {value}",
                 f"docker run --name '{value}' --gpus all vllm/vllm-openai m"):  # fmt: skip
        tags = Tags()
        tags.feed(explain_command(text)._repr_html_())
        assert tags.seen <= {"div", "p", "b", "pre", "span", "sup", "table", "tr", "td", "code", "br"}


def test_huge_sizes_are_refused_and_not_computed_with():
    for flag in ("-tp", "-pp", "-dp", "--nnodes", "--node-rank", "--port", "--max-model-len", "--data-parallel-size"):
        for value in ("999999999999", "9" * 5000, "-1", "1e9", "0x10"):
            report = explain_command(f"CUDA_VISIBLE_DEVICES=0 docker run --gpus 3 vllm/vllm-openai m {flag} {value}")
            assert len(str(report)) < 100_000
            report = explain_command(f"CUDA_VISIBLE_DEVICES=0 torchrun --nproc-per-node {value} -m "
                                     f"localai_clusters.serving.rank --model m {flag} {value}")  # fmt: skip
            assert len(str(report)) < 100_000


PIECES = [
    "\\\n", " ", "\n", "'", '"', "`", "$(", "${", "\x00", "\x1b[31m", "<script>", "“", "–", "\u00a0", "\u202e", "9",
    "1e999", "--port", "--nnodes", "--node-rank", "docker", "run", "--gpus", '"device=0,1"', ":::", "-e", "A=",
    "=b", "&&", "|", ";", "<<EOF", "#", "%%bash", "ssh h '", 'bash -c "', "--api-key", "--model", "--", "torchrun",
    "vllm", "serve", "python", "-m", "ray", "start", "nan", "inf", "--dtype", "{}", "<y>", "...", "-O",
    "localai-clusters", "sudo", "--data-parallel-size", "--entrypoint", "--network", "host", "\ud800", "🙂",
    "--nproc_per_node", "gpu", "--rdzv-endpoint", "h:1", "-1", "0", "--tp", "-tp=2",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(150))
def test_a_broken_command_is_never_a_crash_and_what_is_printed_for_it_is_right(seed):
    draw, texts = random.Random(seed), [path.read_text() for path in sorted(COMMANDS.glob("*.sh"))]
    text = draw.choice(texts)
    for _ in range(draw.randrange(1, 8)):
        at = draw.randrange(len(text) + 1)
        text = text[:at] + draw.choice(["", " ", *PIECES]) + text[at + draw.randrange(20) :]
    report = explain_command(text)
    assert "\x1b" not in str(report) and "<script" not in report._repr_html_()
    assert json.loads(json.dumps(report.to_dict()))
    assert all(0 <= part.start < part.end <= len(text) for part in report.parts)
    assert all(0 <= found.start <= found.end <= len(text) for found in report.findings)
    for server in report.servers:
        for way in server.ways:
            again = explain_command("\n\n".join(way.commands))
            assert {found.severity for found in again.findings} <= {"fill in", "unsafe", "advice", "note"}, way.commands
            assert again.plans or server.plan is None
