"""diagnose/template.py: a message with holes, as a pattern that cannot backtrack badly."""

import re

import pytest

from localai_clusters.diagnose.template import template


@pytest.mark.parametrize(
    ("text", "line", "groups"),
    [
        ("divisible by {tp:int}", "must be divisible by 8.", {"tp": "8"}),
        ("divisible by {tp:int}", "must be DIVISIBLE by 1,024", {"tp": "1,024"}),
        ("needed ({size:num} GiB", "needed (16.25 GiB", {"size": "16.25"}),
        ("module named '{name:word}'", "No module named 'vllm.engine'", {"name": "vllm.engine"}),
        ("Loading {what} failed", "Loading all of it failed", {"what": "all of it"}),
        ("{CUDA|HIP} out of memory", "HIP out of memory", {}),
        ("{kind:CUDA|HIP} out of memory", "HIP out of memory", {"kind": "HIP"}),
        ("proc(s): {{{...}: -9}}", "proc(s): {'EngineCore': -9}", {}),
        ("waiting {...} clients", "waiting  for 2 clients", {}),
        ("exitcode      : {code:int}", "exitcode : 3", {"code": "3"}),
        (
            "Connect to {address:word} failed : {error}",
            "Connect to 10.0.0.1<7> failed : No route",
            {"address": "10.0.0.1<7>", "error": "No route suffix"},
        ),
        ("{model} is not a folder", "ab/c is not a folder", {"model": "prefix ab/c"}),
    ],
)
def test_a_template_finds_its_line_and_the_numbers_in_it(text, line, groups):
    assert template(text).search(f"prefix {line} suffix") == groups


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("^Killed$", "it was Killed"),
        ("^Killed$", "Killed by nobody"),
        ("divisible by {tp:int}", "divisible by two"),
        ("{CUDA|HIP} out of memory", "host out of memory"),
        ("(a.c) or so", "(abc) or so"),
        ("Failed {a} to start", "Failed to start"),
        ("HIP error:", "a friendship error: nobody came"),
        ("Failed {a} to start", f"Failed {'x' * 400} to start"),
    ],
)
def test_a_template_does_not_find_another_line(text, line):
    assert template(text).search(line) is None


def test_the_first_and_the_last_words_are_held_to_their_places():
    assert template("^Killed$").search("  Killed ") == {}


@pytest.mark.parametrize("text", ["Failed {a} and {b} then {c}", "{a} to {b}, {c:word} failed", "x{...}y{...}failed"])
def test_the_literal_is_in_every_line_that_matches(text):
    one = template(text)
    line = re.sub(r"\{[^}]*\}", "w", text)
    assert one.search(line) is not None
    assert one.literal in line.lower().encode()


@pytest.mark.parametrize(
    "text", ["Failed {a} and {b} {c} {d} then", "{...} error: {...} error: {...}", "{a}-{b}-{c}-failed"]
)
def test_a_long_line_is_searched_in_a_time_that_does_not_explode(text):
    one = template(text)
    for line in ("Failed and then " * 500, "error" * 1600, "-" * 8000, "a" * 8000):
        one.search(line)  # the file's time limit is what fails
