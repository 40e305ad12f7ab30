"""Reading vLLM's own flags out of a plan's extra_args, as vLLM's parser reads them, without importing vLLM.

``--flag value``, ``--flag=value`` and ``--flag_name`` are the same to it (vllm/utils/argparse_utils.py,
FlexibleArgumentParser); of a flag given twice the last counts; ``--no-flag`` turns a switch off. A flag that takes
JSON may also be given key by key: ``--flag.key value``. Abbreviations (``--enforce``), which argparse takes too, are
not recognized.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

SHORT = {"-tp": "--tensor-parallel-size", "-pp": "--pipeline-parallel-size", "-dp": "--data-parallel-size",
         "-q": "--quantization", "-cc": "--compilation-config"}  # fmt: skip
LARGEST = 1e12  # more tokens, requests or GiB than that nobody means
MULTIPLES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def flags(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(flag, the words that follow it up to the next flag), as given; a flag in vLLM's spelling, with dashes."""
    flag, words = None, []
    for argument in arguments:
        if is_flag(argument):
            if flag is not None:
                yield flag, words
            name, equals, value = argument.partition("=")
            name, dot, key = name.partition(".")
            flag = SHORT.get(name, name.replace("_", "-")) + dot + key
            words = [value] if equals else []
        elif flag is not None:
            words.append(argument)
    if flag is not None:
        yield flag, words


def is_flag(argument: str) -> bool:
    """Whether argparse takes ``argument`` for a flag: a dash and then no number (``-1`` is a value)."""
    return len(argument) > 1 and argument[0] == "-" and not re.fullmatch(r"-\d+|-\d*\.\d+", argument)


def words_of(arguments: Sequence[str], flag: str) -> list[str] | None:
    """Every word that the last ``flag`` was given; None where it is not among ``arguments``."""
    return next((words for name, words in reversed(list(flags(arguments))) if name == flag), None)


def value_of(arguments: Sequence[str], flag: str) -> str | None:
    """The value of ``flag``; None where it is absent or has none."""
    words = words_of(arguments, flag)
    return words[0] if words else None


def number_of(arguments: Sequence[str], flag: str, default: float) -> float:
    """The value of ``flag`` as a number, ``8k`` and ``8K`` included (vllm/utils/argparse_utils.py, human_readable_int);
    ``default`` where it is absent or no number (what vLLM then says, it says)."""
    text = (value_of(arguments, flag) or "").strip()
    times = MULTIPLES.get(text[-1:], 1)
    try:
        number = float(text.removesuffix(text[-1:]) if times > 1 else text) * times
    except ValueError:
        return default
    return number if abs(number) < LARGEST else default


def is_on(arguments: Sequence[str], flag: str) -> bool:
    """Whether a switch is on: ``--flag`` was given, and no ``--no-flag`` after it."""
    off = flag.replace("--", "--no-", 1)
    last = next((name for name, _ in reversed(list(flags(arguments))) if name in (flag, off)), off)
    return last == flag


def json_of(arguments: Sequence[str], flag: str) -> dict[str, Any]:
    """The JSON object of ``flag``: of all its ``--flag.key value`` together, or else as it was last given whole."""
    dotted: dict[str, Any] = {}
    for name, words in flags(arguments):
        if words and name.startswith(f"{flag}."):
            *path, last = name.removeprefix(f"{flag}.").split(".")
            inner = dotted
            for key in path:
                if not isinstance(inner.get(key), dict):
                    inner[key] = {}
                inner = inner[key]
            inner[last] = parsed(words[0])
    whole = parsed(value_of(arguments, flag) or "")
    return dotted or (whole if isinstance(whole, dict) else {})


def parsed(text: str) -> Any:
    """``text`` as JSON, or itself where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
