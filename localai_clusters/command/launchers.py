"""Which program a command starts, through which launcher, inside which container, with which flags and variables."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from localai_clusters.command.flags import Parsed, is_flag, meant, parse
from localai_clusters.command.launch import DEMO, MODULE, OFF, OURS, RANK, SERVE, VLLM_IMAGE, Container, Launch
from localai_clusters.command.reading import Command, Reading, read, set_by
from localai_clusters.command.tables import docker_table, our_table, torchrun_table, vllm_table
from localai_clusters.command.words import ASSIGNMENT, Word

VLLM_VERBS = ("chat", "complete", "bench", "run-batch", "collect-env", "launch", "snapshot", "preload",
              "download-kernels", "--version", "-v", "--help", "-h")  # fmt: skip
OTHER_SERVERS = ("lmdeploy", "sglang", "ollama", "llama-server", "text-generation-launcher", "trl", "tritonserver")
LAUNCHERS = ("torchrun", "deepspeed", "mpirun", "mpiexec", "accelerate", "horovodrun")
CONTAINERS = ("docker", "podman", "nvidia-docker", "nerdctl")
WRAPPERS = frozenset(
    "sudo env nohup time exec command nice ionice timeout stdbuf numactl taskset srun uv uvx conda mamba micromamba "
    "poetry pipenv pixi setsid unbuffer caffeinate builtin kubectl singularity apptainer then do else if ! {".split()
)
SHELLS = ("bash", "sh", "zsh", "dash", "ksh", "eval", "ssh", "tmux", "screen", "pdsh", "watch")
PYTHON = re.compile(r"(?:python|pypy)(?:\d(?:\.\d+)?)?(?:\.exe)?")
TRUTHS = ("true", "1", "yes", "on", *OFF)
MAX_DEPTH = 8  # commands inside commands


def launches(reading: Reading, source: str) -> list[Launch]:
    """Every program that the commands of ``reading`` start, in order; ``source`` is the text they were read from."""
    return list(_launches(reading, source, {}, 0))


def _launches(reading: Reading, source: str, exported: Mapping[str, Word], depth: int) -> Iterator[Launch]:
    exported, unexported = dict(exported), {}
    for command in reading.commands:
        first = command.words[0].text if command.words else ""
        if not command.words:
            for name, value in set_by(command):
                if name in exported:
                    exported[name] = value
                elif name not in reading.used:  # what the text looks up itself was for the text
                    unexported[name] = value
            continue
        if first in ("export", "setenv", "%env", "declare", "typeset", "set", "readonly", "local"):
            for word in command.words[1:]:
                if word.text in unexported:
                    exported[word.text] = unexported.pop(word.text)
            exported |= {name: value for name, value in set_by(command)}
            continue
        if first == "read":
            exported |= {word.text: replace(word, unknown=(word.text,)) for word in command.words[-1:]}
            continue
        for found in _peel(command.words, exported | dict(command.assignments), source, depth):
            yield replace(found, command=found.command or command, not_exported=dict(unexported))


def _peel(words: Sequence[Word], env: Mapping[str, Word], source: str, depth: int) -> Iterator[Launch]:
    """What ``words`` start, with wrappers (sudo, nohup, ssh ...) taken off."""
    if not words:
        return
    name = _base(words[0])
    if depth > MAX_DEPTH:
        yield Launch("other", (words[0],), environment=env)
    elif name in SHELLS:
        yield from _shell(words, env, source, depth)
    elif name in WRAPPERS:
        rest = _first_known(words)
        inside = dict(env)
        for word in words[1 : len(words) - len(rest)]:
            if assignment := ASSIGNMENT.match(word.text):
                inside[assignment[0][:-1]] = word.piece(len(assignment[0]))
        wrappers = tuple(words[: len(words) - len(rest)])
        if not rest:
            yield Launch("other", tuple(words[:1]), environment=env)
        for found in _peel(rest, inside, source, depth + 1):
            yield replace(found, wrappers=(*wrappers, *found.wrappers))
    elif name in CONTAINERS:
        yield from _container(words, env, source, depth)
    elif name in LAUNCHERS:
        yield from _launcher(name, words[:1], words[1:], env, source, depth)
    elif PYTHON.fullmatch(name):
        yield from _python(words, env, source, depth)
    elif name == "vllm":
        yield _vllm(words, env)
    elif name in ("localai-clusters", "localai_clusters"):
        yield _ours(words, env)
    elif name == "ray":
        yield Launch("ray", tuple(words[:2]), parse(words[2:], docker_table()), environment=env)
    elif name in OTHER_SERVERS:
        yield Launch("other server", tuple(words[:1]), environment=env)
    elif name in ("docker-compose", "podman-compose"):
        yield Launch("compose", tuple(words[:1]), environment=env)
    else:
        yield Launch("other", tuple(words[:1]), environment=env)


def _base(word: Word) -> str:
    """``/usr/bin/vllm`` is vllm, and so is $(which vllm)."""
    if found := re.fullmatch(r"[$`]\(?(?:which|command -v) ([\w.-]+)[)`]", word.text):
        return found[1]
    return word.text.rsplit("/", 1)[-1]


def _is_known(word: Word) -> bool:
    name = _base(word)
    return (
        name in WRAPPERS
        or name in SHELLS
        or name in CONTAINERS
        or name in LAUNCHERS
        or name in ("vllm", "ray", "localai-clusters", *OTHER_SERVERS)
        or bool(PYTHON.fullmatch(name))
    )


def _first_known(words: Sequence[Word]) -> Sequence[Word]:
    """From the first program on that is known: a wrapper's own flags need no table of their own."""
    for at in range(1, len(words)):
        if _is_known(words[at]) and not (_base(words[at]) == "vllm" and words[at - 1].text.startswith("-")):
            return words[at:]
    return ()


def _shell(words: Sequence[Word], env: Mapping[str, Word], source: str, depth: int) -> Iterator[Launch]:
    """``bash -c 'text'``, ``ssh host text``, ``tmux new -d 'text'``: what is inside."""
    script = next((word for word in words[1:] if word.quoted and re.search(r"\s", word.text)), None)
    if script is None:
        rest = _first_known(words)
        found = (
            list(_peel(rest, env, source, depth + 1)) if rest else [Launch("other", tuple(words[:1]), environment=env)]
        )
    else:
        inside = source[script.start + 1 : script.end - 1]
        exact = inside == script.text
        reading = read(script.text, script.start + 1 if exact else 0)
        if not exact:
            reading = _placed(reading, script)
        found = list(_launches(reading, source, env, depth + 1))
    for launch in found:
        yield replace(launch, wrappers=(words[0], *launch.wrappers))


def _placed(reading: Reading, place: Word) -> Reading:
    """``reading`` with every word at ``place``: escapes keep it from being told where each stands."""

    def put(word: Word) -> Word:
        return replace(word, start=place.start, end=place.end, plain=False)

    return Reading(
        tuple(
            Command(tuple(map(put, c.words)), tuple((name, put(value)) for name, value in c.assignments), c.end)
            for c in reading.commands
        ),
        tuple(replace(oddity, start=place.start, end=place.end) for oddity in reading.oddities),
    )


def _container(words: Sequence[Word], env: Mapping[str, Word], source: str, depth: int) -> Iterator[Launch]:
    verb = next((at for at in range(1, len(words)) if not words[at].text.startswith("-")), None)
    if verb is None or words[verb].text not in ("run", "exec", "create", "container", "compose"):
        yield Launch("other", tuple(words[:2]), environment=env)
        return
    if words[verb].text == "compose":
        yield Launch("compose", tuple(words[: verb + 1]), environment=env)
        return
    if words[verb].text == "container":
        verb += 1
    args = parse(words[verb + 1 :], docker_table(), stop_at_positional=True)
    image = args.positionals[0] if args.positionals else None
    if verb < len(words) and words[verb].text == "exec":
        for found in _peel(args.rest, env, source, depth + 1):
            yield replace(found, wrappers=(*words[:2], *found.wrappers))
        return
    inside = _container_variables(args, env)
    entrypoint = args.last("--entrypoint")
    entry = [entrypoint.value] if entrypoint and entrypoint.value and entrypoint.value.text else []
    ours = image is not None and VLLM_IMAGE.search(image.text) is not None
    rest = [*entry, *args.rest]
    program = rest and _is_known(rest[0])
    container = Container(words[0], args, image, starts_serve=not entry and (ours or not program))
    engine = tuple(words[: verb + 1])
    if not container.starts_serve:
        for found in _peel(rest, inside, source, depth + 1) if rest else [Launch("other", engine, environment=env)]:
            yield replace(found, container=container)
        return
    looks_like_vllm = ours or any(word.text == "serve" or is_flag(word) for word in args.rest[:3])
    if image is None or not looks_like_vllm:
        yield Launch("other", engine, environment=env)
        return
    strays, rest = _said_again(args.rest)
    found = _serve(SERVE, (image,), rest, inside)
    yield replace(found, container=container, strays=(*strays, *found.strays))


def _container_variables(args: Parsed, outside: Mapping[str, Word]) -> dict[str, Word]:
    """A container has none of the variables outside it, unless they are passed on."""
    found = {}
    for given in args.given:
        if given.name == "--env" and given.value and (assignment := ASSIGNMENT.match(given.value.text)):
            found[assignment[0][:-1]] = given.value.piece(len(assignment[0]))
        elif given.name == "--env" and given.value:  # -e NAME: passed on as it is outside
            name = given.value.text
            found[name] = outside.get(name) or replace(given.value, text=f"${name}", unknown=(f"${name}",))
    return found


def _said_again(words: Sequence[Word]) -> tuple[tuple[Word, ...], Sequence[Word]]:
    """The words that name the program which the image starts already, and the rest."""
    texts = [word.text for word in words[:4]]
    for again in (["vllm", "serve"], ["serve"], ["python3", "-m", MODULE_NAMES[0]], ["python", "-m", MODULE_NAMES[0]]):
        if texts[: len(again)] == again:
            return tuple(words[: len(again)]), words[len(again) :]
    return (), words


def _launcher(
    name: str, named: Sequence[Word], words: Sequence[Word], env: Mapping[str, Word], source: str, depth: int
) -> Iterator[Launch]:
    """torchrun and its like, with what they start."""
    if name not in ("torchrun", "torch.distributed.launch"):
        rest = _first_known((*named, *words))
        script = next((word for word in words if _script(word.text)), None)
        if script is not None and not rest:
            rest = words[words.index(script) :]
        start = list(_peel(rest, env, source, depth + 1)) if rest and rest[0] != script else []
        if script is not None and not start:
            start = [_serve(_script(script.text), (script,), rest[1:], env)]
        for found in start or [Launch("other", tuple(named), environment=env)]:
            yield replace(found, launcher=name, launched=tuple(named))
        return
    args = parse(words, torchrun_table(), stop_at_positional=True)
    if not args.positionals:
        found = Launch("other", tuple(named), environment=env)
    elif any(given.name == "--module" for given in args.given):
        found = _module(args.positionals, args.rest, env)
    elif any(given.name == "--no-python" for given in args.given) or _is_known(args.positionals[0]):
        inner = list(_peel((*args.positionals, *args.rest), env, source, depth + 1))
        found = inner[0] if inner else Launch("other", tuple(named), environment=env)
    else:
        script = _script(args.positionals[0].text)
        found = _serve(script, args.positionals, args.rest, env) if script else None
        found = found or Launch("other", args.positionals, environment=env)
    yield replace(found, launcher=name, launched=tuple(named), launcher_args=args)


MODULE_NAMES = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.launchers.api_server.entry")
MODULES = {
    MODULE_NAMES[0]: MODULE,
    MODULE_NAMES[1]: MODULE,
    "vllm.entrypoints.api_server": DEMO,
    "localai_clusters.serving.rank": RANK,
}


def _script(text: str) -> str:
    """The server that a Python file is: vllm/entrypoints/api_server.py, wherever it lies."""
    if re.search(r"(?:^|/)openai/api_server\.py$", text):
        return MODULE
    return DEMO if re.search(r"(?:^|/)api_server\.py$", text) else ""


def _python(words: Sequence[Word], env: Mapping[str, Word], source: str, depth: int) -> Iterator[Launch]:
    at = 1
    while at < len(words) and is_flag(words[at]) and words[at].text not in ("-m", "-c"):
        at += 2 if words[at].text in ("-W", "-X") else 1
    if at < len(words) and words[at].text == "-m" and at + 1 < len(words):
        module = words[at + 1].text
        if module in ("torch.distributed.run", "torch.distributed.launch"):
            name = "torchrun" if module.endswith("run") else "torch.distributed.launch"
            yield from _launcher(name, words[: at + 2], words[at + 2 :], env, source, depth)
        elif module in ("vllm.entrypoints.cli.main", "vllm.scripts", "vllm"):
            yield _vllm((words[at + 1], *words[at + 2 :]), env)
        else:
            yield _module(words[: at + 2], words[at + 2 :], env)
    elif at < len(words) and _script(words[at].text):
        yield _serve(_script(words[at].text), words[: at + 1], words[at + 1 :], env)
    elif at < len(words) and _base(words[at]) in ("vllm", "localai-clusters", "torchrun"):
        yield from _peel(words[at:], env, source, depth + 1)
    else:
        yield Launch("other", tuple(words[: at + 1]), environment=env)


def _module(named: Sequence[Word], words: Sequence[Word], env: Mapping[str, Word]) -> Launch:
    module = named[-1].text
    if module in MODULES:
        return _serve(MODULES[module], named, words, env)
    kind = "other server" if module.startswith(("sglang", "lmdeploy", "fastchat")) else "other"
    return Launch(kind, tuple(named), environment=env)


def _vllm(words: Sequence[Word], env: Mapping[str, Word]) -> Launch:
    verb = words[1].text if len(words) > 1 else ""
    if verb == "vllm":  # uv run --with vllm vllm serve
        return _vllm(words[1:], env)
    if verb in VLLM_VERBS or not verb:
        return Launch("client", tuple(words[:2]), environment=env)
    if verb == "serve":
        return _serve(SERVE, words[:2], words[2:], env)
    misspelt = re.fullmatch(r"serv\w{0,5}|start|run|launch\w*", verb)  # vllm server, vllm run
    found = _serve(SERVE, words[:1], words[2:] if misspelt else words[1:], env)
    return replace(found, strays=((words[1],) if misspelt else (words[0],)) + found.strays)


def _serve(program: str, named: Sequence[Word], words: Sequence[Word], env: Mapping[str, Word]) -> Launch:
    """A server of vLLM's: its flags, and which of the other words is the model."""
    args = parse(words, vllm_table())
    before = {word.start: words[at - 1] for at, word in enumerate(words) if at}
    switches = {given.typed.start for given in args.given if given.flag and given.flag.takes == "0"}
    truths, positionals = [], []
    for word in (*args.positionals, *args.rest):
        previous = before.get(word.start)
        after_switch = previous is not None and previous.start in switches
        (truths if after_switch and word.text.lower() in TRUTHS else positionals).append(word)
    flag = _meant(args).last("--model")
    model = flag.value if flag else None
    if model is None and positionals:
        model = positionals.pop(0)
    return Launch(program, tuple(named), args, _meant(args), model, tuple(positionals), tuple(truths), environment=env)


def _meant(args: Parsed) -> Parsed:
    return replace(args, given=tuple(meant(args.given)))


def _ours(words: Sequence[Word], env: Mapping[str, Word]) -> Launch:
    if len(words) < 2 or words[1].text not in ("serve", "preflight"):
        return Launch("client", tuple(words[:2]), environment=env)
    own = parse(words[2:], our_table())
    more = parse(own.rest, vllm_table())
    given = (*own.given, *more.given)
    model = own.last("--model")
    args = Parsed(given, own.positionals, own.rest)
    return Launch(OURS, tuple(words[:2]), args, args, model.value if model else None, own.positionals, environment=env)
