"""command/tables.py, flags.py, values.py: the flags of vLLM and torchrun are those that are installed, read alike."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from localai_clusters.cli import main
from localai_clusters.command import explain_command
from localai_clusters.command.flags import meant, parse
from localai_clusters.command.reading import read
from localai_clusters.command.tables import data, docker_table, our_table, torchrun_table, vllm_table
from localai_clusters.command.values import takes_value, tokens, whole_number

# vllm serve's command lines, and whether its own parser takes them: asked of it below.
COMMAND_LINES = [
    "m", "m -tp 2", "m -tp=2", "m --tensor-parallel-size=2", "m --tensor_parallel_size 2", "m --tensor-parallel 2",
    "m -tp two", "m -tp 2.0", "m -tp", "m -tp2", "m -pp 2 -n2 -r 0 --master-addr h", "m --tp 2", "m --dp 2",
    "m --data-parallel-s 2",
    "m --max-model-len 32k", "m --max-model-len 32K", "m --max-model-len 1.5K", "m --max-model-len auto",
    "m --max-model-len -1", "m --max-model-len 32,768", "m --max-model-len abc", "m --max-num-batched-tokens 8k",
    "m --max-num-seqs 8k", "m --gpu-memory-utilization 0.9", "m --gpu-memory-utilization 90%",
    "m --dtype half", "m --dtype float", "m --dtype fp16", "m --dtype BFloat16", "m --kv-cache-dtype fp8",
    "m --kv-cache-dtype int3", "m --enforce-eager", "m --enforce-eager true", "m --enforce-eager=true",
    "m --no-enforce-eager", "m --no-enable-chunked-prefill", "m --enable-chunked-prefill false", "m --no-headless",
    "m --headless", "m --trust-remote-code", "m extra", "m --swap-space 4", "m --disable-log-requests",
    "m --worker-use-ray", "m --task embed", "m --runner pooling", "m --guided-decoding-backend outlines",
    "m -language-model-only", "m -dtype half", "m '--port 8000'", "m --port 8000", "m --port eight", "m --port",
    "m --limit-mm-per-prompt '{\"image\": 2}'", "m --limit-mm-per-prompt image=2", "m --limit-mm-per-prompt.image 2",
    "m --compilation-config.mode 3", "m -cc.mode=3", "m -O3", "m -O 2", "m -O=1", "m --optimization-level 3",
    "m --hf-overrides '{\"a\": 1}'", "m --kv-transfer-config x", "m --served-model-name a b c", "m --served-model-name",
    "m --api-key k1 k2", "m --lora-modules a=b --enable-lora", "m --max-lora-rank 16", "m --max-lora-rank 15",
    "m --enable-auto-tool-choice", "m --enable-auto-tool-choice --tool-call-parser hermes", "m --enable-log-outputs",
    "m --seed -1", "m --seed 1.5", "m --hf-token", "m --hf-token t", "--model m", "--model=m -tp 2", "m --model m2",
    "-tp 2 m", "-tp 2 --model m", "--enforce-eager m", "m --omni", "m --tensor-paralel-size 2", "m --host 0.0.0.0",
    "m --uvicorn-log-level loud", "m --block-size 16", "m --block-size 7x", "m --distributed-executor-backend mp",
    "m --generation-config vllm", "m --middleware a --middleware b", "m --gpu_memory_utilization=0.9", "",
    "m --enable-expert-parallel -dp 2", "m --load-format safetensors", "m --speculative-config '{\"model\": \"x\"}'",
    "m --num-speculative-tokens 5", "m --kv-cache-memory-bytes 1G", "m -pp 2 --nnodes 2 --node-rank 0 --master-addr h",
]  # fmt: skip


def corrected(line: str) -> list[str]:
    """What to type instead, according to us."""
    (server,) = explain_command(f"vllm serve {line}").servers
    return [word.text for word in read(server.ways[-1].commands[0]).commands[-1].words][2:]


CORRECTED = [corrected(line) for line in COMMAND_LINES]


@pytest.fixture(scope="module")
def installed() -> dict:
    """What the installed vLLM and torchrun say, from one process that imports them."""
    asked = json.dumps([*(shlex.split(line) for line in COMMAND_LINES), *CORRECTED])
    script = Path(__file__).with_name("vllm_flags_of.py")
    answer = subprocess.run([sys.executable, script], input=asked, capture_output=True, text=True, check=True)
    return json.loads(answer.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["vllm_flags.json", "torchrun_flags.json"])
def test_the_flags_are_those_of_the_installed_version(installed, name):
    """After an upgrade: .venv/bin/python tests/vllm_flags_of.py --write, and read the difference."""
    kept, found = data(name), installed[name]
    assert kept["version"] == found["version"]
    names = {flag["names"][0]: flag for flag in found["flags"]}
    assert {flag["names"][0] for flag in kept["flags"]} == names.keys()
    assert [flag for flag in kept["flags"] if flag != names[flag["names"][0]]] == []
    assert kept.keys() == found.keys() and all(kept[key] == found[key] for key in kept)


def test_a_command_line_is_refused_where_vllms_own_parser_refuses_it(installed):
    blocked = {line: explain_command(f"vllm serve {line}") for line in COMMAND_LINES}
    ours = {line: [found.message for found in report.findings if found.blocks] for line, report in blocked.items()}
    theirs = dict(zip(COMMAND_LINES, installed["refusals"][: len(COMMAND_LINES)], strict=True))
    assert {line: (ours[line], theirs[line]) for line in ours if bool(ours[line]) != bool(theirs[line])} == {}


def test_what_is_printed_instead_is_taken_by_vllms_own_parser(installed):
    refusals = installed["refusals"][len(COMMAND_LINES) :]
    assert [(argv, refused) for argv, refused in zip(CORRECTED, refusals, strict=True) if refused] == []


# Facts about flags


def test_nothing_that_is_said_to_be_gone_is_there():
    old, there = data("old.toml"), vllm_table().by_name
    assert old["flags"].keys() & there.keys() == set()
    assert old["variables"].keys() & set(data("vllm_flags.json")["variables"]) == set()
    for flag, values in old["values"].items():
        assert values.keys() & set(data("vllm_flags.json")["values"][flag]) == set()


def test_what_is_to_be_typed_instead_of_an_old_flag_is_there():
    old, there = data("old.toml"), vllm_table().by_name
    named = {entry["rename"].split(".")[0] for entry in old["flags"].values() if "rename" in entry}
    named |= {word for e in old["flags"].values() for by in e.get("replace", {}).values() for word in by[::2]}
    named |= set(old["foreign"].values())
    assert named <= there.keys()
    assert old["foreign"].keys() & there.keys() == set()


def test_flags_that_are_explained_are_there():
    meanings = data("meanings.toml")
    assert meanings["vllm"].keys() <= vllm_table().by_name.keys()
    assert meanings["launcher"].keys() <= torchrun_table().by_name.keys()
    assert len(meanings["vllm"]) >= 60


def test_this_librarys_own_flags_are_those_of_its_serve():
    theirs = {name for option in main.commands["serve"].params for name in option.opts if name.startswith("-")}
    assert theirs - our_table().by_name.keys() == set()
    assert {name for name in our_table().by_name if name not in ("-h", "--help")} <= theirs


# Parsing


def given(text: str, table=None) -> list[tuple]:
    found = parse(read(f"x {text}").commands[0].words[1:], table or vllm_table())
    return [(one.name, [value.text for value in one.values], one.problem) for one in found.given]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-tp=2", [("--tensor-parallel-size", ["2"], "")]),
        ("--max_model_len 1", [("--max-model-len", ["1"], "")]),
        ("--no-enforce-eager", [("--enforce-eager", [], "")]),
        ("--tensor-par 2", [("--tensor-parallel-size", ["2"], "")]),
        ("--data-par 2", [("--data-par", ["2"], "ambiguous-flag")]),
        ("--served-model-name a b --seed 1", [("--served-model-name", ["a", "b"], ""), ("--seed", ["1"], "")]),
        ("--seed -1", [("--seed", ["-1"], "")]),
        ("--compilation-config.mode 3", [("--compilation-config.mode", ["3"], "")]),
        ("-O3", [("--optimization-level", ["3"], "")]),
        ("--port", [("--port", [], "missing-value")]),
        ("--port --seed 1", [("--port", [], "missing-value"), ("--seed", ["1"], "")]),
        ("'--port 1'", [("--port", [], "quoted-together")]),
        ("-dtype half", [("--dtype", ["half"], "single-dash")]),
        ("--headless=1", [("--headless", ["1"], "takes-no-value")]),
        ("--swap-space 4", [("--swap-space", ["4"], "unknown-flag")]),
        ("-=1", [("-", ["1"], "unknown-flag")]),
    ],
)
def test_parse_as_argparse_does(text, expected):
    assert given(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-it -p 1:2 --rm i a -p", [("--interactive", []), ("--tty", []), ("--publish", ["1:2"]), ("--rm", [])]),
        ("-p1:2 -eA=b i", [("--publish", ["1:2"]), ("--env", ["A=b"])]),
        ("--gpus=all --shm-size 1g i", [("--gpus", ["all"]), ("--shm-size", ["1g"])]),
        ("--cap-add X --sysctl=a=b i", [("--cap-add", ["X"]), ("--sysctl", ["a=b"])]),
    ],
)
def test_parse_as_docker_does(text, expected):
    found = parse(read(f"x {text}").commands[0].words[1:], docker_table(), stop_at_positional=True)
    assert [(one.name, [value.text for value in one.values]) for one in found.given] == expected
    assert found.positionals[0].text == "i"


def test_torchrun_stops_at_the_program():
    found = parse(read("x --nnodes=1 -m mod --nnodes 3").commands[0].words[1:], torchrun_table(), True)
    assert (found.text("--nnodes"), [word.text for word in found.rest]) == ("1", ["--nnodes", "3"])


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("--tp 2", "--tensor-parallel-size", ["2"]),
        ("--tensor-paralel-size 2", "--tensor-parallel-size", ["2"]),
        ("-dtype half", "--dtype", ["half"]),
        ("--dist-init-addr h:1", "--master-addr", ["h"]),
        ("--completely-else 2", "--completely-else", ["2"]),
        ("--omni", "--omni", []),
    ],
)
def test_what_was_meant(text, name, values):
    found = parse(read(f"x {text}").commands[0].words[1:], vllm_table())
    first = next(iter(meant(found.given)))
    assert (first.name, [value.text for value in first.values]) == (name, values)


# Values


@pytest.mark.parametrize(
    ("text", "value"),
    [("12", 12), ("12k", 12000), ("12K", 12288), ("1.5k", 1500), ("1.5K", None), ("1.5", None), ("k", None), ("", None),
     ("-1", None), ("1e3", None), ("9" * 400, None)],
)  # fmt: skip
def test_tokens_as_vllm_reads_them(text, value):
    assert tokens(text) == value


@pytest.mark.parametrize(("text", "value"), [("7", 7), (" 7", 7), ("-7", -7), ("1_000", 1000), ("7.0", None),
                                             ("١", 1), ("9" * 301, None), ("", None), ("--", None)])  # fmt: skip
def test_whole_numbers_as_int_reads_them(text, value):
    assert whole_number(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [("number", "1e-1", True), ("number", "0.9.1", False), ("json", "[" * 100_000, False), ("json", "{}", True),
     ("json", "{'a': 1}", False), ("text", "", True)],
)  # fmt: skip
def test_what_a_flag_takes(kind, text, expected):
    assert takes_value(kind, text) is expected
