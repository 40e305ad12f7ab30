"""vllm_flags: extra_args read as vLLM's own parser reads them."""

import pytest

from localai_clusters.vllm_flags import flags, is_on, json_of, number_of, value_of, words_of


@pytest.mark.parametrize(
    "arguments",
    [
        ("--kv-cache-dtype", "fp8"),
        ("--kv-cache-dtype=fp8",),
        ("--kv_cache_dtype", "fp8"),
        ("--kv_cache_dtype=fp8", "--seed", "1"),
        ("--kv-cache-dtype", "auto", "--kv-cache-dtype", "fp8"),
    ],
)
def test_a_flag_in_every_spelling_and_the_last_of_several(arguments):
    assert value_of(arguments, "--kv-cache-dtype") == "fp8"


@pytest.mark.parametrize(
    ("arguments", "on"),
    [
        (("--enforce-eager",), True),
        (("--enforce_eager", "--seed", "1"), True),
        (("--no-enforce-eager",), False),
        (("--enforce-eager", "--no-enforce-eager"), False),
        (("--no-enforce-eager", "--enforce-eager"), True),
        ((), False),
        (("--enforce-eagerly",), False),
    ],
)
def test_a_switch_is_as_it_was_last_set(arguments, on):
    assert is_on(arguments, "--enforce-eager") is on


def test_a_negative_number_is_a_value_and_not_a_flag():
    assert list(flags(("--max-num-seqs", "-1", "--seed", "-0.5", "-q", "awq"))) == [
        ("--max-num-seqs", ["-1"]),
        ("--seed", ["-0.5"]),
        ("--quantization", ["awq"]),
    ]


def test_several_words_belong_to_one_flag():
    arguments = ("--lora-modules", "a=/x", "b=/y", "--enable-lora")
    assert words_of(arguments, "--lora-modules") == ["a=/x", "b=/y"]
    assert words_of(arguments, "--enable-lora") == []
    assert words_of(arguments, "--seed") is None
    assert value_of(arguments, "--enable-lora") is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *[("4", 4), ("0.5", 0.5), ("-1", -1), ("8k", 8000), ("8K", 8192), ("2.5m", 2.5e6), ("1G", 1 << 30)],
        *[(text, 7) for text in ("many", None, "", "k", "inf", "nan", "1e400", "1e12", "9e307T", "0x10")],
    ],
)
def test_a_number_or_the_default(text, number):
    assert number_of(("--cpu-offload-gb", text) if text else (), "--cpu-offload-gb", 7) == number


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (("--compilation-config", '{"mode": 0}'), {"mode": 0}),
        (
            ("--compilation-config.mode", "0", "--compilation-config.pass.fuse=true"),
            {"mode": 0, "pass": {"fuse": True}},
        ),
        (("--compilation-config", '{"mode": 3}', "--compilation_config.mode", "0"), {"mode": 0}),
        (("--compilation-config.mode", "0", "--compilation-config.mode.deep", "1"), {"mode": {"deep": 1}}),
        (("--compilation-config", "{broken"), {}),
        (("--compilation-config", "3"), {}),
        (("--compilation-config",), {}),
        ((), {}),
    ],
)
def test_json_whole_or_key_by_key(arguments, value):
    assert json_of(arguments, "--compilation-config") == value


def test_odd_words_do_not_stop_it():
    assert list(flags(("", "-", "--", "=", "-x", "--=", "--a=b=c"))) == [
        ("--", ["="]),
        ("-x", []),
        ("--", [""]),
        ("--a", ["b=c"]),
    ]
