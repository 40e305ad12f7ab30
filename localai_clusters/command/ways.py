"""The commands that start a server: with this library, with vLLM alone, in a container; one for each node."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from localai_clusters.command.checks.exposure import in_own_network
from localai_clusters.command.secret import SECRET_NAME, TOKENS
from localai_clusters.command.tables import data
from localai_clusters.command.wanted import (
    PLACEMENT,
    PLAN_FLAGS,
    Wanted,
    copies_of,
    had_key,
    host_of,
    master_of,
    options_of,
    port_of,
)
from localai_clusters.command.writing import fill, in_shell, paste
from localai_clusters.plan import ServePlan, is_loopback

NEW_KEY = 'export VLLM_API_KEY="$(openssl rand -hex 32)"'
NODES_SHOWN = 16
MOST_GPUS = 64  # that a list of devices is written out for
PASSED_ON = re.compile(r"(?:NCCL|GLOO|CUDA|HF|TRANSFORMERS|PYTORCH|TORCH|OMP|MKL|UCX|HSA|ROCR|HIP|TOKENIZERS|LD)_\w+")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to start the server: a text to paste for each node."""

    name: str  # localai-clusters, vllm, docker
    commands: tuple[str, ...]
    note: str = ""


def our_way(wanted: Wanted, plan: ServePlan, prefix: Mapping[str, str]) -> Way:
    commands = []
    for node in range(min(plan.nnodes, NODES_SHOWN)):
        words = shlex.split(plan.serve_command(node).replace(" \\\n", " "))
        command = line_of(prefix, words, wanted.unknown)
        commands.append(f"{NEW_KEY}\n{command}" if had_key(wanted.first) and node == 0 else command)
    makes_key = not plan.is_loopback and not had_key(wanted.first)
    return Way("localai-clusters", tuple(commands), "it makes an API key and shows it once" if makes_key else "")


def line_of(prefix: Mapping[str, str], words: Sequence[str], unknown: set[str]) -> str:
    """``words`` as a command, with the variables of ``prefix`` before it."""
    assignments = [f"{name}={in_shell(value, unknown)}" for name, value in prefix.items()]
    rows = [" ".join(assignments[at : at + 3]) for at in range(0, len(assignments), 3)]
    return " \\\n    ".join([*rows, paste(words, unknown)])


def variables_of(wanted: Wanted) -> dict[str, str]:
    """The variables around the command that still mean something, without secrets."""
    launch, found = wanted.first, {}
    environment = {**(launch.not_exported or {}), **(launch.environment or {})}
    known = data("vllm_flags.json")["variables"]
    for name, value in environment.items():
        if SECRET_NAME.fullmatch(name) or not (name in known or PASSED_ON.fullmatch(name)):
            continue
        found[name] = fill(value.text)
        wanted.unknown |= set(value.unknown)
    _show_enough(found, wanted.split.nproc * copies_of(wanted), wanted.unknown)
    return found


def _show_enough(environment: dict[str, str | None], ranks: int, unknown: set[str]) -> None:
    """CUDA_VISIBLE_DEVICES with a GPU for each of this machine's ranks, none of them twice."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None or any(part in visible for part in unknown):
        return
    shown = list(dict.fromkeys(part for part in re.split(r"[,\s]+", visible) if part and part != "-1"))
    if not shown or ranks > MOST_GPUS:
        del environment["CUDA_VISIBLE_DEVICES"]
    else:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(shown if len(shown) >= ranks else map(str, range(ranks)))


def _vllm_words(wanted: Wanted, node: int, host: str | None) -> list[str]:
    split, port = wanted.split, port_of(wanted)
    words = [wanted.model]
    if split.tensor > 1:
        words += ["--tensor-parallel-size", str(split.tensor)]
    if split.pipeline > 1:
        words += ["--pipeline-parallel-size", str(split.pipeline)]
    if split.nnodes > 1:
        address, meeting = master_of(wanted, port)
        words += ["--nnodes", str(split.nnodes), "--node-rank", str(node)]
        words += ["--master-addr", address, "--master-port", str(meeting)]
        words += ["--headless"] if node else []
    for name, given in wanted.options.items():
        if name in PLAN_FLAGS - PLACEMENT - {"--host", "--port"}:
            words += given
    words += ["--host", host] if host else []
    words += ["--port", str(port)] if port != 8000 else []
    return words + [word for _, given in options_of(wanted) for word in given]


def vllm_way(wanted: Wanted, prefix: Mapping[str, str]) -> Way:
    host = host_of(wanted)
    needs_key = had_key(wanted.first) or not (is_loopback(host) or wanted.value("--uds"))
    commands = []
    for node in range(min(wanted.split.nnodes, NODES_SHOWN)):
        words = ["vllm", "serve", *_vllm_words(wanted, node, None if wanted.value("--uds") else host)]
        command = line_of(prefix, words, wanted.unknown)
        commands.append(f"{NEW_KEY}\n{command}" if needs_key and node == 0 else command)
    return Way("vllm", tuple(commands))


def docker_way(wanted: Wanted) -> Way:
    container, ranks = wanted.first.container, wanted.split.nproc * copies_of(wanted)
    own_network = in_own_network(wanted.first)
    host, key = wanted.value("--host"), had_key(wanted.first)
    if own_network:
        host = None if host is None or is_loopback(host) else host
    else:
        host = host or "127.0.0.1"
        key = key or not is_loopback(host)
    words = [container.engine.text.rsplit("/", 1)[-1], "run", *_container_flags(wanted, ranks, key)]
    for name, value in _container_variables(wanted, ranks, key).items():
        words += ["--env", name if value is None else f"{name}={value}"]
    words += [] if container.is_vllms else ["--entrypoint", "vllm"]
    image = [fill(container.image.text), *([] if container.is_vllms else ["serve"])]
    wanted.unknown |= set(container.image.unknown)
    commands = []
    for node in range(min(wanted.split.nnodes, NODES_SHOWN)):
        inside = paste([*image, *_vllm_words(wanted, node, host)], wanted.unknown)
        command = f"{paste(words, wanted.unknown)} \\\n    {inside}"
        commands.append(f"{NEW_KEY}\n{command}" if key and node == 0 else command)
    return Way("docker", tuple(commands))


def _container_flags(wanted: Wanted, ranks: int, key: bool) -> list[str]:
    """The container's own flags: those given, corrected, and those that are missing."""
    container, own_network, words = wanted.first.container, in_own_network(wanted.first), []
    seen = set()
    for given in container.args.given:
        value = given.value.text if given.value else None
        if given.name in ("--env", "--entrypoint") or not re.match("--?[A-Za-z]", given.typed.text):
            continue
        if given.name == "--publish" and value is not None:
            if not own_network:
                continue
            value = _published(value, str(port_of(wanted)), key, known=not given.value.unknown)
        elif given.name == "--gpus" and value is not None:
            value = _gpus(value, ranks)
        wanted.unknown |= set(given.value.unknown) if given.value else set()
        seen.add(given.name)
        if given.flag is None and given.attached:  # as it was written: docker has many more than are known here
            words.append(f"{given.typed.text}={value}")
        else:
            words += [given.name if given.flag else given.typed.text, *([] if value is None else [value])]
    if not seen & {"--gpus", "--device", "--runtime", "--privileged"} and "cpu" not in container.image.text.lower():
        words += ["--gpus", "all"]
    if ranks > 1 and not seen & {"--ipc", "--shm-size"}:
        words += ["--ipc", "host"]
    if wanted.split.nnodes > 1 and own_network and "--network" not in seen:
        words += ["--network", "host"]
    return words


def _container_variables(wanted: Wanted, ranks: int, key: bool) -> dict[str, str | None]:
    """The variables inside the container; None: passed on from the shell, as secrets are."""
    environment: dict[str, str | None] = {}
    for name, value in (wanted.first.environment or {}).items():
        if name.startswith("VLLM_") and name not in data("vllm_flags.json")["variables"]:
            continue
        if SECRET_NAME.fullmatch(name):
            environment["HF_TOKEN" if name in TOKENS else name] = None
        else:
            environment[name] = fill(value.text)
            wanted.unknown |= set(value.unknown)
    _show_enough(environment, ranks, wanted.unknown)
    return environment | ({"VLLM_API_KEY": None} if key else {})


def _published(value: str, port: str, key: bool, known: bool) -> str:
    """``-p`` for this machine only unless a key is asked for, and leading to where the server listens."""
    parts = value.rsplit(":", 2) if not value.startswith("[") else [value]
    if not known or (len(parts) == 1 and not value.isdigit()):
        return value
    outside = parts[-2] if len(parts) > 1 else parts[-1]
    address = parts[0] if len(parts) == 3 else ("" if key else "127.0.0.1")
    return ":".join(part for part in (address, outside, port) if part)


def _gpus(value: str, ranks: int) -> str:
    if value.isdigit() and int(value) < ranks:
        return str(ranks)
    listed = re.fullmatch(r"\"?device=([^\"]*)\"?", value)
    return f'"device={listed[1]}"' if listed and "," in listed[1] else value
