"""What each part of a command means, in a sentence."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from localai_clusters.command.flags import Given
from localai_clusters.command.launch import OURS, Launch
from localai_clusters.command.reading import Command
from localai_clusters.command.tables import data
from localai_clusters.command.words import Word

PARTS_SHOWN = 400
ROLES = {"image": "the image", "model": "the model to serve", "stray": "nothing here asks for it"}
KINDS = {"integer": "a whole number", "number": "a number", "tokens": "a number, 12k allowed", "text": "a value",
         "tokens or auto": "a number of tokens, or auto", "json": "JSON"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the text, ``start`` to ``end``, and what it means."""

    start: int
    end: int
    text: str
    meaning: str


def parts(launches: Sequence[Launch], commands: Sequence[Command], text: str) -> tuple[Part, ...]:
    """The parts of ``text`` in their order, none inside another; at most 400."""
    found = sorted(
        (part for launch in launches for part in _of(launch, text)), key=lambda part: (part.start, -part.end)
    )
    found += [part for command in commands for part in _settings(command, text)]
    kept: list[Part] = []
    for part in sorted(found, key=lambda part: (part.start, part.end)):
        if part.start < part.end and (not kept or part.start >= kept[-1].end):
            kept.append(part)
        if len(kept) >= PARTS_SHOWN:
            break
    return tuple(kept)


def _part(words: Sequence[Word | Given], text: str, meaning: str) -> Part:
    start, end = min(word.start for word in words), max(word.end for word in words)
    return Part(start, end, " ".join(text[start:end].replace("\\\n", " ").split()), meaning)


def _of(launch: Launch, text: str) -> Iterator[Part]:
    meanings = data("meanings.toml")
    programs = meanings["programs"]
    for word in launch.wrappers[:1]:
        yield _part([word], text, "runs what follows")
    if launch.container:
        container = launch.container
        yield _part([container.engine], text, programs["docker"])
        for given in container.args.given:
            yield _part(
                [given], text, _variable(given) or meanings["docker"].get(given.name, "an option of the container")
            )
        if container.image and container.starts_serve:
            whose = "it" if container.is_vllms else "it is taken for vLLM's, which"
            yield _part([container.image], text, f"the image; {whose} starts vllm serve by itself")
        elif container.image:
            yield _part([container.image], text, "the image")
    if launch.launched:
        yield _part(launch.launched, text, programs.get(launch.launcher, "starts several processes"))
        for given in launch.launcher_args.given:
            yield _part([given], text, meanings["launcher"].get(given.name, _plain(given, "torchrun")))
    if not launch.serves:
        if launch.named:
            meaning = programs["ray"] if launch.program == "ray" else _not_a_server(launch.program)
            yield _part(launch.named, text, meaning)
        return
    if not (launch.container and launch.container.starts_serve):
        yield _part(launch.named, text, programs[launch.program])
    for given in launch.args.given:
        meaning = meanings["vllm"].get(given.name.split(".")[0])
        if launch.program == OURS:
            meaning = meanings["ours"].get(given.name, meaning)
        if given.problem in ("unknown-flag", "ambiguous-flag") or (
            given.flag is None and given.problem != "quoted-together"
        ):
            meaning = "not a flag of this vLLM"
        yield _part([given], text, meaning or _plain(given, "vLLM"))
    if launch.model is not None:
        yield _part([launch.model], text, ROLES["model"])
    for word in (*launch.strays, *launch.truths):
        yield _part([word], text, ROLES["stray"])


def _plain(given: Given, program: str) -> str:
    if given.flag is None:
        return f"not an option of {program}"
    if given.flag.takes == "0":
        return f"a switch of {program}" + (", turned off" if given.negated else "")
    if given.flag.choices:
        more = " ..." if len(given.flag.choices) > 5 else ""
        return f"an option of {program}: {', '.join(given.flag.choices[:5])}{more}"
    many = " each" if given.flag.takes == "+" else ""
    return f"an option of {program}; takes {KINDS.get(given.flag.kind, 'a value')}{many}"


def _variable(given: Given) -> str:
    """What ``-e NAME=value`` is."""
    if given.name != "--env" or given.value is None:
        return ""
    return data("meanings.toml")["variables"].get(
        given.value.text.partition("=")[0], "a variable for the program inside"
    )


def _not_a_server(kind: str) -> str:
    return {
        "client": "one of vLLM's other commands; it serves nothing",
        "compose": "docker compose: its file says what runs, and is not read here",
        "other server": "another program than vLLM",
    }.get(kind, "not about serving; not judged")


def _settings(command: Command, text: str) -> Iterator[Part]:
    """``A=b`` before a command, or on a line of its own, or after export."""
    variables, known = data("meanings.toml")["variables"], data("vllm_flags.json")["variables"]
    for name, value in command.assignments:
        start = max(value.start - len(name) - 1, 0)
        meaning = variables.get(name) or ("a setting of vLLM" if name in known else "a variable")
        yield Part(start, max(value.end, start + len(name) + 1), text[start : value.end], meaning)
    first = command.words[0] if command.words else None
    if first is not None and first.text in ("export", "%env", "setenv"):
        for word in command.words[1:]:
            name = word.text.partition("=")[0]
            meaning = variables.get(name) or ("a setting of vLLM" if name in known else "a variable")
            yield _part([word], text, f"{meaning}; for every command after it")
