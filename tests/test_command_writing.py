"""command/writing.py: what is printed is what a shell passes on."""

import random
import subprocess

import pytest

from localai_clusters.command.reading import read
from localai_clusters.command.writing import fill, in_shell, paste

PIECES = ["a", " ", "'", '"', "\\", "$", "`", "$HOME", "$(id)", "\n", "\t", "!", "*", "~/", "é", "\x1b", "\x7f", "\x01",
          "{", "}", "#", "-", "=", "\\'", "\\n", "\u0085", "\r", "模"]  # fmt: skip


def in_bash(text: str, **environment: str) -> list[str]:
    script = f"set -- {text}\nprintf '%s\\0' \"$@\""
    found = subprocess.run(
        ["bash", "-c", script], capture_output=True, check=True, env={"LANG": "C.UTF-8", **environment}
    )
    return found.stdout.decode().split("\0")[:-1]


def some_words(seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(PIECES, k=draw.randrange(5))).replace("~/", "~") for _ in range(8)]


@pytest.mark.parametrize("seed", range(12))
def test_bash_passes_on_what_was_meant(seed):
    words = some_words(seed)
    assert in_bash(" ".join(map(in_shell, words))) == words
    assert in_bash(paste(["x", *words])) == ["x", *words]


@pytest.mark.parametrize("seed", range(12))
def test_our_own_reading_passes_on_what_was_meant(seed):
    words = ["x", *some_words(seed)]
    (command,) = read(" ".join(map(in_shell, words))).commands
    assert [word.text for word in command.words] == words


def test_what_only_the_users_shell_knows_is_left_to_it():
    assert in_bash(in_shell('a "$NAME" $OTHER', {"$NAME"}), NAME="x y", OTHER="no") == ['a "x y" $OTHER']
    assert in_bash(in_shell("$(echo 1 2)", {"$(echo 1 2)"}), PATH="/usr/bin:/bin") == ["1 2"]
    assert in_bash(in_shell("~/a b"), HOME="/home/me") == ["/home/me/a b"]


def test_no_line_of_a_command_to_paste_holds_an_escape():
    assert "\x1b" not in paste(["vllm", "serve", "\x1b[31m"])


@pytest.mark.parametrize(
    ("text", "filled"),
    [("<head-node-ip>", "HEAD_NODE_IP"), ("<ip>:29500", "IP:29500"), ("[your model]", "YOUR_MODEL"),
     ("{{ model }}", "MODEL"), ("[::1]", "[::1]"), ("a<b", "a<b"), ("/x", "/x")],
)  # fmt: skip
def test_placeholders_become_names_that_a_shell_leaves_alone(text, filled):
    assert fill(text) == filled
    assert in_shell(filled) == filled or not filled.isidentifier()
