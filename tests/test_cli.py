"""cli.py: verbs that start nothing, what they print and their exit codes; and no traceback, whatever is typed."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from test_checkpoint_example import example

from localai_clusters import __version__
from localai_clusters.checkpoint import write
from localai_clusters.cli import main
from localai_clusters.launch.run import runs_dir

FREE = ("--port", "0", "--master-port", "0")
CHAPTER = "07_vllm_distributed_serving"


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """No look-ups in the network, and no API key from outside."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def refused(code: int, *arguments: str) -> str:
    """What ``arguments`` are refused with on stderr."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stderr
    return result.stderr


def verbs(command: click.Command = main, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = command.commands if isinstance(command, click.Group) else {}
    return [path, *(found for name, verb in below.items() for found in verbs(verb, (*path, name)))]


# Help


def test_the_verbs_are_those_that_users_were_told_of():
    assert {"doctor", "preflight", "serve", "lab", "checkpoint"} <= {path[0] for path in verbs() if path}
    assert ("checkpoint", "verify") in verbs()


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_every_verb_has_help_with_an_example_that_names_it(verb):
    for flag in ("--help", "-h"):
        result = run(*verb, flag)
        assert result.exit_code == 0
        assert re.search(rf"Example:\s+localai-clusters {' '.join(verb)}", result.output)


@pytest.mark.parametrize(
    "verb",
    [verb for verb in verbs() if verb not in ((), ("checkpoint",), ("course",), ("nodes",), ("nodes", "exec"))],
    ids=" ".join,
)
def test_every_verb_has_json(verb):
    assert "--json" in run(*verb, "--help").output


def test_version():
    assert __version__ in run("--version").output


# doctor, preflight


def test_doctor_answers_with_0_here():
    result = run("doctor")
    assert result.exit_code == 0
    assert "can be served" in result.output and socket.gethostname() in result.output


def test_doctor_as_json():
    data = json.loads(run("doctor", "--json").stdout)
    assert data["ok"] is True and data["machine"]["hostname"] == socket.gethostname()


def test_a_plan_that_holds():
    result = run("preflight", "-tp", "1", *FREE)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "smollm2-135m, TP=1: can be launched" in result.output
    assert "\x1b" not in result.output


def test_a_plan_that_does_not_hold():
    result = run("preflight", "--model", "smollm2-135m-published", "--tensor-parallel-size", "2", *FREE)
    assert result.exit_code == 1
    assert "9 attention heads" in result.output and "--tensor-parallel-size 1" in result.output


@pytest.mark.parametrize(("tensor", "code"), [("1", 0), ("3", 1)])
def test_preflight_as_json_has_the_same_exit_code(tensor, code):
    result = run("preflight", "-tp", tensor, "--json", *FREE)
    data = json.loads(result.stdout)
    assert (result.exit_code, data["ok"]) == (code, code == 0)
    assert data["plan"]["tensor_parallel_size"] == int(tensor)


def test_every_flag_reaches_the_plan():
    plan = json.loads(
        run(
            "preflight", "--model", "org/name", "-tp", "2", "-pp", "3", "--dtype", "float16", "--max-model-len", "128",
            "--gpu-memory-utilization", "0.5", "--kv-cache-memory-bytes", "1000", "-q", "awq", "--host", "::1",
            "--port", "1234", "--nnodes", "3", "--nproc-per-node", "2", "--master-addr", "10.0.0.9", "--master-port",
            "4321", "--rdzv-backend", "c10d", "--json", "--", "--seed", "1",
        ).stdout
    )["plan"]  # fmt: skip
    assert plan == {
        "model": "org/name", "tensor_parallel_size": 2, "pipeline_parallel_size": 3, "dtype": "float16",
        "max_model_len": 128, "gpu_memory_utilization": 0.5, "kv_cache_memory_bytes": 1000, "quantization": "awq",
        "host": "::1", "port": 1234, "nnodes": 3, "nproc_per_node": 2, "master_addr": "10.0.0.9", "master_port": 4321,
        "rdzv_backend": "c10d", "extra_args": ["--seed", "1"],
    }  # fmt: skip


def test_an_api_key_is_taken_from_the_environment_and_shown_nowhere(monkeypatch):
    arguments = ("preflight", "--host", "0.0.0.0", *FREE)
    assert "an API key that is made and shown once" in " ".join(run(*arguments, "--json").output.split())
    monkeypatch.setenv("VLLM_API_KEY", "planted-key")
    result = run(*arguments)
    assert "with the API key" in run(*arguments, "--json").output
    assert result.exit_code == 0 and "planted-key" not in result.output + run(*arguments, "--json").output
    assert "planted-key" not in run("preflight", "--help").output


def test_a_port_in_use_names_this_process():
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        result = run("preflight", "--port", str(port), "--master-port", "0")
    assert result.exit_code == 1
    assert f"(pid {os.getpid()})" in result.output


# What cannot be a plan


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-tp", "0"], "tensor_parallel_size is 0"),
        (["-pp", "-1"], "pipeline_parallel_size is -1"),
        (["-tp", "two"], "not a valid integer"),
        (["-tp", "1.5"], "not a valid integer"),
        (["-tp", "9" * 30], "tensor_parallel_size is a number of 100 bits"),
        (["-tp", "9" * 5000], "not a valid integer"),
        (["-pp", "1000000000"], "at most 4096"),
        (["--max-model-len", "9" * 400], "max_model_len is a number"),
        (["--kv-cache-memory-bytes", "0"], "kv_cache_memory_bytes is 0"),
        (["--gpu-memory-utilization", "nan"], "gpu_memory_utilization is nan"),
        (["--gpu-memory-utilization", "1e999"], "gpu_memory_utilization is inf"),
        (["--dtype", "int8"], "it can be auto, bfloat16, float16, float32"),
        (["--port", "70000"], "port is 70000"),
        (["--port", "29500"], "port and master_port are both 29500"),
        (["--nnodes", "2"], "do not divide over 2 nodes"),
        (["--model", ""], "model is ''"),
        (["--model", "a\nb"], r"model is 'a\nb'"),
        (["--model=--x"], "model is '--x'"),
        (["--host", "\x1b[31m"], "host is"),
        (["-q", ""], "quantization is ''"),
        (["--no-such-flag"], "No such option"),
        (["Qwen/Qwen3-0.6B"], "--model Qwen/Qwen3-0.6B"),
        (["--", "--seed", "1", "--port", "9"], "--port"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
@pytest.mark.parametrize("verb", ["preflight", "serve"])
def test_bad_values_are_one_message_and_exit_code_2(verb, arguments, words):
    message = refused(2, verb, *arguments)
    assert words in message
    assert len(message) < 6000


@pytest.mark.parametrize(
    "model",
    ["[/bold]", "[red]x", "<script>", "../../etc/passwd", "/dev/null", "/dev/zero", "~", "/", "a" * 5000, "a/b/c/d",
     "\udcff", "ünïcode", "%s%n", "smollm2-135", "{}", "x" * 200 + "/y", "'; rm -rf /; '", "file:///etc", "."],
)  # fmt: skip
def test_a_model_that_is_none_is_refused_whatever_its_name(model):
    result = run("preflight", "--model", model, *FREE)
    assert result.exit_code in (1, 2)
    assert len(result.output) < 8000
    json_ = run("preflight", "--model", model, "--json", *FREE)
    assert json_.exit_code in (1, 2)
    if json_.stdout:
        assert json.loads(json_.stdout)["ok"] is False


@pytest.mark.parametrize("host", ["a" * 64, "a" * 5000, "..", "no such host", "ünï", "\udcff", "1.2.3", "[::1]", "%"])
def test_a_host_that_is_none_is_no_traceback(host):
    assert run("preflight", "--host", host, *FREE).exit_code in (0, 1, 2)
    assert run("preflight", "--master-addr", host, "--port", "0").exit_code in (0, 1, 2)


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["checkpoint"], ["checkpoint", "nonsense"], ["lab"]])
def test_bad_usage_is_exit_code_2(arguments):
    assert "Usage" in run(*arguments).output
    assert run(*arguments).exit_code == 2


# serve, where it starts nothing


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-tp", "3", *FREE], 1, "4 KV heads"),
        (["--model", "smollm2-135m-published", "-tp", "2", *FREE], 1, "9 attention heads"),
        (["--host", "192.0.2.77", *FREE], 1, "is not an address of this machine"),
        (["--kv-cache-memory-bytes", str(1 << 50), *FREE], 1, "memory: "),
        (["-tp", "2", "--nnodes", "2", *FREE], 1, "--master-addr"),
        (["-tp", "2", "--nnodes", "2", "--node-rank", "2"], 2, "it runs from 0 to 1"),
        (["-tp", "2", "--on-nodes"], 2, "localai-clusters nodes up"),
        (["-tp", "2", "--nnodes", "2", "--on-nodes", "--node-rank", "1"], 2, "leave one of them out"),
    ],
    ids=["TP=3", "nine heads", "foreign host", "memory", "loopback meeting", "third of two nodes", "no nodes", "both"],
)
def test_serve_refuses_before_anything_starts(arguments, code, words, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert words in refused(code, "serve", *arguments)
    assert not runs_dir().exists()


# lab


def test_a_labs_parameters_are_listed():
    lines = run("lab", "7", "--list-parameters").stdout.splitlines()
    assert lines[0].startswith('student: str = "student"')
    listed = json.loads(run("lab", "07", "--list-parameters", "--json").stdout)
    assert [parameter["name"] for parameter in listed] == [line.partition(":")[0] for line in lines]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-lab"], CHAPTER),
        (["course"], CHAPTER),
        (["07", "-p", "studnet=x"], "did you mean student?"),
        (["07", "-p", "max_tokens=many"], "parameter max_tokens is an int"),
        (["07", "-p", "student"], "'student' is not NAME=VALUE"),
        (["07", "-p"], "requires an argument"),
    ],
)
def test_a_lab_that_cannot_be_run_is_exit_code_2(arguments, words):
    assert words in refused(2, "lab", *arguments)


def test_a_file_that_is_no_notebook_is_exit_code_2(tmp_path):
    path = tmp_path / "bad.ipynb"
    path.write_text("{}")
    assert "is not a notebook" in refused(2, "lab", str(path))


def test_an_output_that_cannot_be_written_is_exit_code_2(tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in refused(2, "lab", "07", "-o", str(tmp_path / "file" / "x.ipynb"))


def test_a_lab_that_fails_is_exit_code_1(tmp_path):
    path = tmp_path / "tiny.ipynb"
    cell = {"cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "outputs": [], "source": "1 / 0"}
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": [cell]}))
    message = refused(1, "lab", str(path), "-o", str(tmp_path / "executed.ipynb"))
    assert "of tiny.ipynb failed: ZeroDivisionError: division by zero" in message
    assert (tmp_path / "executed.ipynb").is_file()


# checkpoint


@pytest.fixture
def record(tmp_path) -> Path:
    return write(example(), tmp_path)


def test_a_checkpoint_is_shown_to_a_person_and_as_json(record):
    shown = run("checkpoint", "show", str(record))
    assert (shown.exit_code, "\x1b" in shown.output) == (0, False)
    assert run("checkpoint", "show", str(record), "--json").stdout == record.read_text()


def test_a_checkpoint_that_holds_and_one_that_was_changed(record):
    assert run("checkpoint", "verify", str(record)).exit_code == 0
    data = json.loads(record.read_text())
    data["student"] = "somebody-else"
    record.write_text(json.dumps(data))
    result = run("checkpoint", "verify", str(record), "--json")
    assert (result.exit_code, json.loads(result.stdout)["holds"]) == (1, False)
    assert run("checkpoint", "verify", str(record)).exit_code == 1


@pytest.mark.parametrize("verb", ["show", "verify"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b"NaN"])
def test_what_is_no_checkpoint_is_exit_code_2(tmp_path, verb, content):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    refused(2, "checkpoint", verb, str(path))
    refused(2, "checkpoint", verb, str(tmp_path))


# As a process


def test_a_reader_that_leaves_early_gets_no_traceback():
    code = "from localai_clusters.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "doctor", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.wait(timeout=60)


def test_bytes_that_are_no_text_are_no_traceback():
    code = "from localai_clusters.cli import main; main()"
    command = [sys.executable.encode(), b"-c", code.encode(), b"preflight", b"--model", b"\xff\xfe"]
    answer = subprocess.run(command, capture_output=True, timeout=60)
    assert answer.returncode in (1, 2)
    assert b"Traceback" not in answer.stderr


def test_help_is_quick_to_say_because_nothing_heavy_is_imported():
    code = (
        "import sys\nfrom localai_clusters.cli import main\nmain(['--help'], standalone_mode=False)\n"
        "print(*{'torch', 'vllm', 'transformers', 'papermill'} & sys.modules.keys(), file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stderr.strip() == ""
