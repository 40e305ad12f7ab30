"""A rubric's file: YAML to a Rubric, and every mistake in it with its line."""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from localai_clusters.grading.rubric import KINDS, Criterion, Late, Rubric, RunFilter

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_MISTAKES = 50
_KNOWN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "timestamp"))


class RubricError(ValueError):
    """A rubric that cannot be used: one line per mistake, each with the file and its line."""


@dataclass(frozen=True, slots=True)
class Mistake:
    line: int  # from 1
    sentence: str


def read_rubric(path: Path | str) -> Rubric:
    """The rubric in a YAML file. ``RubricError`` lists every mistake as ``FILE:LINE: what is wrong``."""
    rubric, mistakes = read_rubric_or_mistakes(path)
    if rubric is None:
        said = [f"{path}:{mistake.line}: {mistake.sentence}" for mistake in mistakes[:MAX_MISTAKES]]
        if len(mistakes) > MAX_MISTAKES:
            said.append(f"{path}: and {len(mistakes) - MAX_MISTAKES} more mistakes")
        raise RubricError("\n".join(said))
    return rubric


def read_rubric_or_mistakes(path: Path | str) -> tuple[Rubric | None, list[Mistake]]:
    """The rubric in a YAML file, or its mistakes by line. ``RubricError`` if there is no such file."""
    try:
        with open(path, "rb") as file:
            return parse_rubric(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise RubricError(f"{path}: cannot be read: {error.strerror}") from None


def read_rubrics(paths: Iterable[Path | str]) -> dict[str, Rubric]:
    """Rubrics by lab. ``RubricError`` has the mistakes of all files, and names two files that are for one lab."""
    found: dict[str, Rubric] = {}
    files: dict[str, Path | str] = {}
    wrong: list[str] = []
    for path in paths:
        try:
            rubric = read_rubric(path)
        except RubricError as error:
            wrong.append(str(error))
            continue
        if rubric.lab in found:
            wrong.append(f"{path} is for lab {rubric.lab}, and so is {files[rubric.lab]}: give one of the two")
        found[rubric.lab], files[rubric.lab] = rubric, path
    if wrong:
        raise RubricError("\n".join(wrong))
    return found


def parse_rubric(content: bytes) -> tuple[Rubric | None, list[Mistake]]:
    """The rubric, or its mistakes by line."""
    mistakes: list[Mistake] = []
    root = _composed(content, mistakes)
    value = _plain(root, mistakes)
    if mistakes:
        return None, _sorted(mistakes)
    if not isinstance(value, dict):
        return None, [Mistake(1, "a rubric is a mapping that begins with `rubric: 1`")]
    rubric = None
    try:
        rubric = Rubric.model_validate(value)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        # pydantic calls a list whose items are wrong too short as well
        within = {each["loc"][:1] for each in errors if len(each["loc"]) > 1}
        mistakes = [_mistake(root, e) for e in errors if e["type"] != "too_short" or e["loc"] not in within]
    mistakes += _contradictions(value, root)
    return (None, _sorted(mistakes)) if mistakes else (rubric, [])


def _sorted(mistakes: list[Mistake]) -> list[Mistake]:
    return sorted(dict.fromkeys(mistakes), key=lambda mistake: mistake.line)


def _composed(content: bytes, mistakes: list[Mistake]) -> yaml.Node | None:
    """The document's nodes, not yet values; None where a mistake was found."""
    if len(content) > MAX_BYTES:
        mistakes.append(Mistake(1, f"larger than a rubric may be ({MAX_BYTES:,} bytes)"))
        return None
    try:
        text = content.decode("utf-8-sig")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:  # PyYAML takes minutes for thousands
                mistakes.append(Mistake(line, f"nested deeper than {MAX_DEPTH} levels"))
                return None
            if isinstance(event, yaml.AliasEvent):  # aliases of aliases grow without bound when they are followed
                mistakes.append(Mistake(line, f"*{event.anchor}: write it out, aliases are not read"))
        return None if mistakes else yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        mistakes.append(Mistake(content.count(b"\n", 0, error.start) + 1, "not UTF-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = error.problem or error.context or "it cannot be read"
        if "'\\t'" in said:
            said = "a tab stands where YAML wants spaces"
        mistakes.append(Mistake(mark.line + 1 if mark else 1, f"not YAML: {said}"))
    except (yaml.YAMLError, ValueError) as error:  # a character that YAML does not allow
        line = content[: getattr(error, "position", 0)].count(b"\n") + 1
        mistakes.append(Mistake(line, f"not YAML: {str(error).splitlines()[0]}"))
    return None


def _plain(node: yaml.Node | None, mistakes: list[Mistake]) -> Any:
    """Python values of a composed document; a key that stands twice is a mistake."""
    if isinstance(node, yaml.MappingNode):
        found: dict[Any, Any] = {}
        for key, item in node.value:
            line = key.start_mark.line + 1
            name = _plain(key, mistakes) if isinstance(key, yaml.ScalarNode) else None
            if not isinstance(name, str):
                said = repr(key.value) if isinstance(key, yaml.ScalarNode) else "what stands here"
                mistakes.append(Mistake(line, f"{said} is no name of a field"))
            elif name in found:
                mistakes.append(Mistake(line, f"{name!r} stands twice here"))
            else:
                found[name] = _plain(item, mistakes)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, mistakes) for item in node.value]
    if node is None:
        return None
    if node.tag not in _KNOWN_TAGS:
        mistakes.append(Mistake(node.start_mark.line + 1, f"a rubric holds plain values, not {node.tag}"))
        return None
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except (ValueError, OverflowError) as error:  # 2026-13-45, or a number of thousands of digits
        mistakes.append(Mistake(node.start_mark.line + 1, f"{node.value[:60]!r}: {error}"))
        return None


def _contradictions(value: dict, root: yaml.Node) -> Iterator[Mistake]:
    """What pydantic does not see; the rubric may have other mistakes besides."""
    criteria = value.get("criteria")
    seen: dict[str, int] = {}
    for number, criterion in enumerate(criteria if isinstance(criteria, list) else []):
        if not isinstance(criterion, dict):
            continue
        name = criterion.get("id")
        if isinstance(name, str):
            line = _line(root, ("criteria", number, "id"))
            if name in seen:
                yield Mistake(line, f"the id {name} is that of line {seen[name]} too")
            seen.setdefault(name, line)
        right, half = criterion.get("right"), criterion.get("half")
        if isinstance(right, list) and isinstance(half, list) and (both := [each for each in half if each in right]):
            yield Mistake(_line(root, ("criteria", number, "half")), f"{both[0]!r} is among `right` too")
    if value.get("late") and not value.get("deadline"):
        yield Mistake(_line(root, ("late",)), "late says what lateness costs, and there is no deadline")


def _mistake(root: yaml.Node, details: dict[str, Any]) -> Mistake:
    loc, kind, context = details["loc"], details["type"], details.get("ctx", {})
    # A discriminated union puts the kind's name into the path, which no YAML node has.
    path = tuple(
        part for i, part in enumerate(loc) if not (i >= 2 and loc[i - 2] == "criteria" and isinstance(part, str))
    )
    name = ".".join(str(part) for part in path if not isinstance(part, int)) or "the rubric"
    if kind == "extra_forbidden":
        fields = _fields_at(loc)
        near = difflib.get_close_matches(str(path[-1]), fields, n=1)
        meant = f"did you mean {near[0]}?" if near else f"it can have {', '.join(fields)}"
        return Mistake(_line(root, path), f"{path[-1]} is not known here; {meant}")
    if kind == "missing":
        return Mistake(_line(root, path[:-1]), f"{path[-1]} is missing")
    if kind == "union_tag_not_found":
        return Mistake(_line(root, path), f"kind is missing; it can be {', '.join(KINDS)}")
    if kind == "union_tag_invalid":
        near = difflib.get_close_matches(str(context.get("tag")), KINDS, n=1)
        meant = f"did you mean {near[0]}?" if near else f"it can be {', '.join(KINDS)}"
        return Mistake(_line(root, (*path, "kind")), f"there is no kind {context.get('tag')!r}; {meant}")
    said = re.sub("tuple", "list", details["msg"].removeprefix("Value error, ").removeprefix("Input "), flags=re.I)
    said = said.removesuffix(" after validation, not 0")
    if kind in ("model_type", "model_attributes_type"):
        said = "should be a mapping"
    given = details["input"]
    found = "nothing" if given is None else repr(given) if isinstance(given, str | list | dict) else str(given)
    found = found if len(found) <= 60 else f"{found[:57]}..."
    return Mistake(_line(root, path), f"{name}: {said[0].lower()}{said[1:]}; found {found}")


def _fields_at(loc: tuple) -> list[str]:
    """The names that may stand where ``loc`` ends."""
    if loc[:1] == ("criteria",) and len(loc) >= 4:
        model = KINDS.get(loc[2], Criterion)
        return list(RunFilter.model_fields if len(loc) > 4 else model.model_fields)
    return list(Late.model_fields if loc[:1] == ("late",) else Rubric.model_fields)


def _line(root: yaml.Node, path: tuple) -> int:
    """The line, from 1, of what ``path`` leads to, or of the last part of it that is there."""
    node, line = root, root.start_mark.line
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, item) for key, item in node.value if key.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return line + 1
