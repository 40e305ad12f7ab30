"""The kinds of value a checkpoint may hold, each with its bound.

A record comes from a machine we do not control, so every string, list and number
has a limit here, and `EXPECTED` says each pattern in words for error messages.
"""

from datetime import datetime
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field, Strict

LARGEST_INTEGER = 2**63 - 1  # what every JSON reader with 64-bit integers can hold
MAX_RUNS = 64
MAX_NODES = 256
MAX_RANKS = 2048
MAX_PROMPTS = 1024
MAX_COMPLETIONS = 8192
MAX_TOKENS = 32_768  # per completion or prompt
MAX_POINTS = 512  # per timeline

STUDENT = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$"
SLUG = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
IDENTIFIER = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"
SHA256 = r"^[0-9a-f]{64}$"
UUID4 = r"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
UTC_TIME = (
    r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$"
)

EXPECTED = {
    STUDENT: "1 to 64 of A-Z a-z 0-9 . _ - and no dot at the start",
    SLUG: "1 to 64 of A-Z a-z 0-9 _ - with a letter or digit first",
    IDENTIFIER: "1 to 64 of A-Z a-z 0-9 . _ - with a letter or digit first",
    VARIABLE: "the name of an environment variable",
    SHA256: "64 hexadecimal digits in lower case",
    UUID4: "a random UUID (version 4) in lower case",
    UTC_TIME: "a time in UTC such as 2026-11-23T10:45:00Z",
}


def _is_a_day(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text} is not a day of the calendar") from error
    return text


Item = TypeVar("Item")
# A tuple, so that a record cannot change; a list is taken for one. It stops at its
# first wrong item: a file of a million wrong ones must not make a million errors.
Several = Annotated[tuple[Item, ...], Strict(False), Field(fail_fast=True)]

Student = Annotated[str, Field(pattern=STUDENT)]
Slug = Annotated[str, Field(pattern=SLUG)]
Identifier = Annotated[str, Field(pattern=IDENTIFIER)]
Variable = Annotated[str, Field(pattern=VARIABLE)]
Sha256 = Annotated[str, Field(pattern=SHA256)]
Uuid4 = Annotated[str, Field(pattern=UUID4)]
UtcTime = Annotated[
    str,
    Field(pattern=UTC_TIME, json_schema_extra={"format": "date-time"}),
    AfterValidator(_is_a_day),
]

Name = Annotated[str, Field(max_length=256)]
PathText = Annotated[str, Field(max_length=4096)]
Sentence = Annotated[str, Field(max_length=4096)]
Argument = Annotated[str, Field(max_length=8192)]
Answer = Annotated[str, Field(max_length=16_384)]
Passage = Annotated[str, Field(max_length=262_144)]

Whole = Annotated[int, Field(ge=0, le=LARGEST_INTEGER)]
Positive = Annotated[int, Field(ge=1, le=LARGEST_INTEGER)]
AnyInteger = Annotated[int, Field(ge=-LARGEST_INTEGER - 1, le=LARGEST_INTEGER)]
# Below 2**63, so that an integer too large is refused and not rounded to a float.
AnyNumber = Annotated[float, Field(ge=-1e18, le=1e18)]
Chapter = Annotated[int, Field(ge=0, le=99)]
Bytes = Whole
TokenId = Annotated[int, Field(ge=0, le=2**32 - 1)]
ExitCode = Annotated[int, Field(ge=-255, le=255)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Rate = Annotated[float, Field(ge=0, le=1e12)]
Share = Annotated[float, Field(ge=0, le=1)]
# vLLM's temperature has no upper limit of its own; 100 is far past any use.
Temperature = Annotated[float, Field(ge=0, le=100)]
# A record may claim any finite number here; `verify` says that it must be <= 0.
Logprob = Annotated[float, Field(ge=-1e6, le=1e6)]
