"""From what was read to a plan, and to commands that work, node by node."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from localai_clusters.command.deployment import Deployment, placeholder
from localai_clusters.command.launch import OURS
from localai_clusters.command.values import takes_value, tokens
from localai_clusters.command.wanted import (
    NODE_0,
    Wanted,
    copies_of,
    host_of,
    master_of,
    options_of,
    port_of,
    wanted_of,
)
from localai_clusters.command.ways import Way, docker_way, our_way, variables_of, vllm_way
from localai_clusters.command.words import Word
from localai_clusters.command.writing import fill
from localai_clusters.models import BUILT_IN
from localai_clusters.plan import ServePlan

# What a server of this library has no use for: one copy of the model, one API process on rank 0.
ONLY_VLLM = ("--data-parallel", "--dp-", "--api-server-count", "--grpc", "--uds")
DTYPES = {"half": "float16", "float": "float32"}


@dataclass(frozen=True, slots=True)
class Server:
    """A server that the text was meant to start. ``plan`` is None when this library cannot serve it: ``reason``."""

    plan: ServePlan | None
    ways: tuple[Way, ...]
    reason: str = ""
    fill_in: tuple[tuple[str, str], ...] = ()  # (what to replace, by what)
    assumed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "plan": self.plan.to_dict() if self.plan else None,
            "reason": self.reason,
            "fill_in": [{"replace": text, "by": hint} for text, hint in self.fill_in],
            "assumed": list(self.assumed),
            "left_out": list(self.left_out),
            "ways": [{"name": way.name, "note": way.note, "commands": list(way.commands)} for way in self.ways],
        }


def corrected(deployment: Deployment) -> Server:
    wanted = wanted_of(deployment)
    plan, reason = _plan(wanted)
    prefix = variables_of(wanted)
    ways = [our_way(wanted, plan, prefix)] if plan is not None else []
    if plan is None or wanted.model not in BUILT_IN:  # a name that only this library knows
        ways.append(vllm_way(wanted, prefix))
    if wanted.first.container is not None and wanted.first.container.image is not None:
        ways.append(docker_way(wanted))
    text = "\n".join(command for way in ways for command in way.commands)
    return Server(
        plan, tuple(ways), reason, tuple(_to_fill_in(wanted, text)), wanted.split.assumed, tuple(wanted.left_out)
    )


def _plan(wanted: Wanted) -> tuple[ServePlan | None, str]:
    d, split = wanted.deployment, wanted.split
    if copies_of(wanted) > 1:
        return None, "this library serves one copy of a model; several (--data-parallel-size) are vLLM's own business"
    given: dict[str, Any] = {
        "model": wanted.model,
        "tensor_parallel_size": split.tensor,
        "pipeline_parallel_size": split.pipeline,
        "nnodes": split.nnodes,
        "host": host_of(wanted),
        "port": port_of(wanted),
        "dtype": DTYPES.get(wanted.value("--dtype") or "", wanted.value("--dtype") or "auto"),
        "quantization": wanted.value("--quantization"),
    }
    if (length := wanted.value("--max-model-len")) is not None:
        given["max_model_len"] = tokens(length)
    if (size := wanted.value("--kv-cache-memory-bytes")) is not None:
        given["kv_cache_memory_bytes"] = tokens(size)
    if (share := wanted.value("--gpu-memory-utilization")) is not None and takes_value("number", share):
        given["gpu_memory_utilization"] = float(share)
    given["master_addr"], given["master_port"] = master_of(wanted, given["port"])
    if "c10d" in (d.first.launcher_args.text("--rdzv-backend"), wanted.value("--rdzv-backend")):
        given["rdzv_backend"] = "c10d"
    given["extra_args"] = _extra_args(wanted)
    try:
        return ServePlan(**{name: value for name, value in given.items() if value is not None}), ""
    except ValueError as error:
        return None, str(error)


def _extra_args(wanted: Wanted) -> tuple[str, ...]:
    launch = wanted.first
    if launch.program == OURS:
        more = [given for given in launch.args.given if launch.args.rest and given.start >= launch.args.rest[0].start]
        if not any(given.problem for given in more):
            return tuple(word.text for word in launch.args.rest)
    return tuple(word for name, words in options_of(wanted) for word in words if not name.startswith(ONLY_VLLM))


def _to_fill_in(wanted: Wanted, text: str) -> Iterator[tuple[str, str]]:
    """What in the printed commands the user has to replace, and by what."""
    words: list[tuple[str, Word | None]] = [("--model", wanted.first.model)]
    words += [
        (given.name, value)
        for given in (*wanted.first.args.given, *wanted.first.launcher_args.given)
        for value in given.values
    ]
    words += list((wanted.first.environment or {}).items())
    hints = {
        "--model": "a Hugging Face id or a folder",
        "--master-addr": "node 0's address that the other nodes reach; there: ip -4 addr",
        "--host": "an address of this machine",
    }
    seen = set()
    if NODE_0 in text:
        seen.add(NODE_0)
        yield NODE_0, hints["--master-addr"]
    for name, word in words:
        found = placeholder(word, name)
        shown = fill(found) if found else ""
        if shown and shown not in seen and shown in text:
            seen.add(shown)
            yield shown, hints.get(name, f"your own value for {name}")
