"""command/reading.py, words.py: shell text into words, with their places, whatever a paste holds."""

import random
import shlex
import subprocess

import pytest

from localai_clusters.command.reading import read


def words(text: str) -> list[list[str]]:
    return [[word.text for word in command.words] for command in read(text).commands]


def oddities(text: str) -> list[str]:
    return [oddity.name for oddity in read(text).oddities]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vllm serve m", [["vllm", "serve", "m"]]),
        ("vllm \\\n  serve\\\n  m", [["vllm", "serve", "m"]]),
        ("a \\\r\n b\r\nc", [["a", "b"], ["c"]]),
        ("a 'b c' \"d e\" f\\ g", [["a", "b c", "d e", "f g"]]),
        ("a $'b\\n\\x41\\u00e9'", [["a", "b\nAé"]]),
        ('a "b\\"c\\\\d\\$e\\f"', [["a", 'b"c\\d$e\\f']]),
        ("a''b \"\" ''", [["ab", "", ""]]),
        ("a # comment\nb", [["a"], ["b"]]),
        ("a#b '#c'", [["a#b", "#c"]]),
        ("a && b || c; d | e & f", [["a"], ["b"], ["c"], ["d"], ["e"], ["f"]]),
        ("a > out.log 2>&1 &", [["a"]]),
        ("a 2>/dev/null < in >> out b", [["a", "b"]]),
        ("a &> log", [["a"]]),
        ("cat <<EOF\nvllm serve no\nEOF\nb", [["cat"], ["b"]]),
        ("a <<'END' b\nx\nEND", [["a", "b"]]),
        ("a --x=<head-node-ip> <your model>", [["a", "--x=<head-node-ip>", "<your model>"]]),
        ("a '<b>' \"$C\" ${D} ${E:-f}", [["a", "<b>", "$C", "${D}", "f"]]),
        ("A=b\nc $A ${A}d '$A'", [["c", "b", "bd", "$A"]]),
        ("export A=b C='d e'\nc $A \"$C\"", [["export", "A=b", "C=d e"], ["c", "b", "d e"]]),
        ("a $(nvidia-smi -L | wc -l) `hostname`", [["a", "$(nvidia-smi -L | wc -l)", "`hostname`"]]),
        ("a <<< b", [["a"]]),
        ("(a b)", [["a", "b"]]),
        ("a ~/b", [["a", "~/b"]]),
    ],
)
def test_words(text, expected):
    assert [found for found in words(text) if found] == expected


@pytest.mark.parametrize(
    "text",
    [
        "$ vllm serve m",
        "  $ vllm serve m",
        "root@host:~# vllm serve m",
        "me@host:~/dir$ vllm serve m",
        "(venv) me@host:/x$ vllm serve m",
        "(base) [me@host dir]$ vllm serve m",
        "(venv) $ vllm serve m",
        "# vllm serve m",
        "!vllm serve m",
        "%%bash\nvllm serve m",
        "```bash\nvllm serve m\n```",
        ">>> vllm serve m",
        "In [3]: vllm serve m",
        "PS C:\\Users\\me> vllm serve m",
        "❯ vllm serve m",
        "$ vllm \\\n$   serve \\\n$ m",
        "$ vllm \\\n>   serve \\\n> m",
    ],
)
def test_prompts_are_no_words(text):
    assert words(text) == [["vllm", "serve", "m"]]


def test_a_comment_is_no_root_prompt_if_there_is_a_command():
    assert words("# vllm serve a\nvllm serve b") == [["vllm", "serve", "b"]]


@pytest.mark.parametrize(
    ("text", "oddity"),
    [
        ("vllm serve m \\ \n  -tp 2", "space-after-backslash"),
        ("vllm serve m \\  # two\n  -tp 2", "comment-after-backslash"),
        ("vllm serve m\n  -tp 2", "missing-backslash"),
        ("vllm serve m \\\n\n  -tp 2", "missing-backslash"),
        ("vllm serve m \\\n # why\n  -tp 2", "missing-backslash"),
        ("vllm serve m `\n  -tp 2", "other-shell"),
        ("vllm serve m ^\r\n  -tp 2", "other-shell"),
        ("vllm serve “m” -tp 2", "typographic-quotes"),
        ("vllm serve m –tp 2".replace("tp", "-tp"), "long-dash"),
        ("vllm\u00a0serve m -tp 2", "odd-space"),
        ("vllm serve\u200b m -tp 2", "odd-space"),
        ("vllm serve ... m -tp 2", "ellipsis"),
    ],
)
def test_what_a_shell_would_take_otherwise_is_read_as_meant_and_noted(text, oddity):
    assert [word.lstrip("-") for word in words(text)[0]] == ["vllm", "serve", "m", "tp", "2"]
    assert oddities(text) == [oddity]


def test_a_long_dash_before_a_word_is_two_dashes():
    assert words("vllm serve m —port 1 –host h") == [["vllm", "serve", "m", "--port", "1", "--host", "h"]]


def test_a_quote_that_is_never_closed_is_an_ordinary_sign():
    assert oddities("vllm serve it's \"m") == ["unclosed-quote", "unclosed-quote"]
    assert len(words("vllm serve it's \"m")[0]) == 4


def test_places_are_those_of_the_text():
    text = "A=1 vllm serve 'my model' \\\n  --port=8000"
    (command,) = read(text).commands
    assert [text[word.start : word.end] for word in command.words] == ["vllm", "serve", "'my model'", "--port=8000"]
    value = command.words[-1].piece(7)
    assert text[value.start : value.end] == "8000"
    assert [(name, text[value.start : value.end]) for name, value in command.assignments] == [("A", "1")]


def test_what_only_the_users_shell_knows_is_told():
    (command,) = read("X=1\nvllm serve $MODEL --port ${PORT} --seed $X --host $(hostname -I)").commands[1:]
    assert [word.unknown for word in command.words if word.unknown] == [("$MODEL",), ("${PORT}",), ("$(hostname -I)",)]


def test_words_agree_with_bash():
    """Texts without variables, from a seed, as bash splits them."""
    draw = random.Random(7)
    pieces = ["a", "bc", "--x=1", "'q r'", '"s t"', "\\ ", "\\'", "''", '"a\\"b"', "é", ".", "/", "x'y z'w", "$'t\\n'"]
    for _ in range(40):
        text = (
            " ".join("".join(draw.choices(pieces, k=draw.randrange(1, 4))) for _ in range(6)) + " z"
        )  # a blank escaped at the end of a line is noted instead
        script = f"set -- {text}\nprintf '%s\\0' \"$@\""
        bash = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout.decode().split("\0")[:-1]
        assert [word.text for command in read(f"x {text}").commands for word in command.words][1:] == bash, text


@pytest.mark.parametrize("text", ["vllm serve 'a b' c", "a \"b c\" 'd' e\\ f"])
def test_words_agree_with_shlex(text):
    assert words(text) == [shlex.split(text)]


@pytest.mark.parametrize(
    "unit",
    ["'", '"', "$(", "${", "`", "“", "\\", "<", "<a", "\n", "<<E\n", "$", "(", "#", "'\"", "a=", "$'", "\\\n", "&", "-",
     "x ", "–", "\u00a0", "$A", "A=$A ", "`\n", "root@a:~# "],
)  # fmt: skip
def test_the_work_grows_with_the_length_and_no_faster(unit):
    """Steps are counted, not seconds: each may look at characters once more, but not at all of the rest."""
    text = (unit * 20_000)[:20_000]
    counted = Counted(text)
    read(counted)
    assert counted.looks < 60 * len(text)


class Counted(str):
    """A text that counts how many of its characters are looked at one by one."""

    looks = 0

    def __getitem__(self, key):
        self.looks += 1
        return super().__getitem__(key)
