"""From what was observed to a Checkpoint: cleaned, checked, dated and digested."""

import contextlib
import hashlib
import json
import re
import time
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from .fields import EXPECTED
from .privacy import scrub_arguments, scrub_environment, shorten_home
from .record import (
    SCHEMA_VERSION,
    Checkpoint,
    CheckpointError,
    Prompt,
)

_SORTED = msgspec.json.Encoder(order="sorted")
_NUMBERS = re.compile(r"\[\n\s+(-?\d[\d.eE+-]*(?:,\n\s+-?\d[\d.eE+-]*)*)\n\s+\]")
_ANSWER = "should be a text of up to 16,384 characters, a number up to 1e18, true or false"
# Hashed or replayed word for word: nothing in them may be rewritten.
_VERBATIM = {("data", "prompts"), ("observed", "completions")}


def build(**fields: Any) -> Checkpoint:
    """A Checkpoint from its fields, which may be models of `record` or plain dicts.

    Fills `record_id`, `created_at` (now) and `digest`. Drops from each run's
    environment and argv what `privacy` says must not leave the machine, and writes
    the home directory as ~ everywhere but in prompts and completions.

    Raises:
        CheckpointError: the first field that does not fit, and what would.
    """
    fields = {
        "schema_version": SCHEMA_VERSION,
        "record_id": str(uuid.uuid4()),
        "created_at": utc(),
        **fields,
        "digest": "0" * 64,
    }
    try:
        plain = to_jsonable_python(fields)
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise CheckpointError(f"a field cannot be written as JSON: {error}") from error
    draft = from_json(_without_private_parts(plain))
    return draft.model_copy(update={"digest": digest_of(draft)})


def from_json(value: Any) -> Checkpoint:
    """The Checkpoint in a parsed JSON value. CheckpointError names what is wrong.

    The value is checked where it lies: pydantic's own JSON parser would copy the
    input into every error, and a hostile file of 4 MB then takes 3 GB.
    """
    try:
        return Checkpoint.model_validate(value)
    except ValidationError as error:
        raise CheckpointError(_first_error(error)) from error


def canonical_json(checkpoint: Checkpoint) -> bytes:
    """The bytes under the digest: everything but the digest, in UTF-8, keys sorted,
    no white space, no NaN, and floats as Python's `repr` writes them."""
    return json.dumps(
        _undigested(checkpoint),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    ).encode()


def digest_of(checkpoint: Checkpoint) -> str:
    """What the record's `digest` should be."""
    return hashlib.sha256(canonical_json(checkpoint)).hexdigest()


def digest_holds(checkpoint: Checkpoint) -> bool:
    """Whether the record's `digest` is that of its content.

    msgspec writes the canonical JSON in a third of the time, but for numbers with an exponent (1e-7, not 1e-07):
    where its text has another digest, the canonical one decides.
    """
    with contextlib.suppress(ValueError, OverflowError):  # a lone surrogate, a number of more than 64 bits
        if hashlib.sha256(_SORTED.encode(_undigested(checkpoint))).hexdigest() == checkpoint.digest:
            return True
    return digest_of(checkpoint) == checkpoint.digest


def _undigested(checkpoint: Checkpoint) -> dict[str, Any]:
    return checkpoint.model_dump(mode="json", exclude={"digest"})


def to_json(checkpoint: Checkpoint) -> str:
    """The file's text: fields in the schema's order, lists of numbers on one line."""
    text = json.dumps(
        checkpoint.model_dump(mode="json"),
        indent=2,
        ensure_ascii=False,
        allow_nan=False,
    )
    # A JSON string holds no raw line break, so the pattern only meets real lists.
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def prompt(text: str, *, form: str = "text", token_ids: Iterable[int] | None = None) -> Prompt:
    """A Prompt with its sha256."""
    return Prompt(
        text=text,
        sha256=text_sha256(text),
        form=form,
        token_ids=None if token_ids is None else tuple(token_ids),
    )


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def utc(seconds: float | None = None) -> str:
    """A time as the record writes it; `seconds` since 1970, now when left out."""
    moment = datetime.fromtimestamp(time.time() if seconds is None else seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _without_private_parts(value: Any, at: tuple[str, ...] = ()) -> Any:
    if at in _VERBATIM:
        return value
    if isinstance(value, dict):
        if at == ("runs", "environment") and _all_text(value.values()):
            return scrub_environment(value)
        return {name: _without_private_parts(item, (*at, name)) for name, item in value.items()}
    if isinstance(value, list):
        if at == ("runs", "argv") and _all_text(value):
            return scrub_arguments(value)
        return [_without_private_parts(item, at) for item in value]
    return shorten_home(value) if isinstance(value, str) else value


def _all_text(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _first_error(error: ValidationError) -> str:
    """One line for the first wrong field."""
    first, *others = error.errors(include_url=False)
    loc, complaint = first["loc"], _complaint(first)
    if loc[-1:] == ("[key]",):
        loc, complaint = loc[:-1], f"its name {complaint}"
    elif loc[:1] == ("answers",) and len(loc) > 2:
        # pydantic tried each kind of answer and names the one it tried last
        loc, complaint = loc[:2], f"{_ANSWER}; found {_quoted(first['input'])}"
    more = " (and other fields are wrong)" if others else ""
    return f"{_field(loc)}: {complaint}{more}"


def _field(loc: tuple[int | str, ...]) -> str:
    """("runs", 0, "plan") as runs[0].plan; a name from the file is only quoted."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z0-9_-]{1,64}", part):
            path += f".{part}"
        else:
            path += f"[{_quoted(part)}]"
    return path.lstrip(".") or "the record"


def _complaint(error: dict) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "this field is missing"
    if kind == "extra_forbidden":
        return "the record has no such field"
    message = error["msg"].removeprefix("Input ").removeprefix("Value error, ")
    if context.get("pattern") in EXPECTED:
        message = f"should be {EXPECTED[context['pattern']]}"
    elif kind in ("model_type", "dict_type"):
        message = "should be an object"
    elif kind in ("tuple_type", "too_long", "too_short"):
        message = re.sub("tuple", "list", message, flags=re.IGNORECASE)
    return f"{message[0].lower()}{message[1:]}; found {_quoted(error['input'])}"


def _quoted(value: Any) -> str:
    """A value of unknown origin, short, on one line, in plain ASCII."""
    if isinstance(value, dict | list | tuple):
        noun = "field" if isinstance(value, dict) else "item"
        kind = "an object" if isinstance(value, dict) else "a list"
        return f"{kind} of {len(value):,} {noun}{'' if len(value) == 1 else 's'}"
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."
