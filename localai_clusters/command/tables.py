"""All flags of vLLM, torchrun, docker and this library, from the data files beside this module."""

import difflib
import functools
import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True)
class Flag:
    """``takes`` is how many values: "0", "1", "?" (none or one), "+" (one or more)."""

    names: tuple[str, ...]
    kind: str  # switch, text, integer, number, tokens (12, 12k), "tokens or auto", json
    takes: str = "1"
    choices: tuple[str, ...] = ()
    deprecated: bool = False

    @property
    def name(self) -> str:
        """Its first long form that does not negate: ``--tensor-parallel-size``."""
        long = (name for name in self.names if name.startswith("--") and not name.startswith("--no-"))
        return next(long, self.names[0])


@dataclass(frozen=True)
class Table:
    """All flags of one program."""

    flags: tuple[Flag, ...]
    underscores: bool = False  # --a_b is --a-b
    dotted: bool = False  # --config.key value
    unknown_takes: str = ""  # what a flag that is not in the table takes; "": whatever follows that is no flag
    short: frozenset[str] = frozenset()  # one-letter switches that can be written together: -it
    by_name: dict[str, Flag] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_name.update({name: flag for flag in self.flags for name in flag.names})

    def find(self, name: str) -> tuple[Flag | None, tuple[str, ...]]:
        """The flag that ``name`` is or begins, and else what it could be the beginning of."""
        if name in self.by_name:
            return self.by_name[name], ()
        if not name.startswith("--") or len(name) < 4:
            return None, ()
        begun = [other for other in self.by_name if other.startswith(name)]
        if len({id(self.by_name[other]) for other in begun}) == 1:
            return self.by_name[begun[0]], ()
        return None, tuple(begun[:6])

    def nearest(self, name: str) -> str | None:
        """The flag that ``name`` most likely was to be, if there is one."""
        return _nearest(name[:60], tuple(self.by_name))


@functools.lru_cache(1024)
def _nearest(name: str, known: tuple[str, ...]) -> str | None:
    return next(iter(difflib.get_close_matches(name, known, 1, 0.75)), None)


@functools.cache
def data(name: str) -> dict[str, Any]:
    text = files("localai_clusters.command").joinpath("data", name).read_text(encoding="utf-8")
    return tomllib.loads(text) if name.endswith(".toml") else json.loads(text)


@functools.cache
def vllm_table() -> Table:
    return Table(_flags(data("vllm_flags.json")["flags"]), underscores=True, dotted=True)


@functools.cache
def torchrun_table() -> Table:
    return Table(_flags(data("torchrun_flags.json")["flags"]))


@functools.cache
def our_table() -> Table:
    """``localai-clusters serve``: what belongs to a plan is named and typed as vLLM and torchrun have it."""
    names = (
        "--model --tensor-parallel-size --pipeline-parallel-size --dtype --max-model-len --gpu-memory-utilization "
        "--kv-cache-memory-bytes --quantization --host --port --nnodes --node-rank --master-addr --master-port "
        "--api-key"
    )
    whole = Flag(("",), "integer")
    changed = {"--max-model-len": whole, "--kv-cache-memory-bytes": whole, "--dtype": Flag(("",), "text")}
    plan = [
        Flag(
            (name, *(short for short in vllm_table().by_name[name].names if short in ("-tp", "-pp", "-q"))),
            changed.get(name, vllm_table().by_name[name]).kind,
            choices=("auto", "bfloat16", "float16", "float32") if name == "--dtype" else (),
        )
        for name in names.split()
    ]
    more = [Flag(("--nproc-per-node",), "integer"), Flag(("--rdzv-backend",), "text", choices=("static", "c10d")),
            Flag(("--skip-check",), "text"), Flag(("--on-nodes",), "switch", "0"), Flag(("--json",), "switch", "0"),
            Flag(("-h", "--help"), "switch", "0")]  # fmt: skip
    return Table((*plan, *more))


@functools.cache
def docker_table() -> Table:
    """``docker run``: its switches, and short names; everything else takes one value."""
    switches = ("--rm", "--init", "--privileged", "--read-only", "--no-healthcheck", "--oom-kill-disable", "--help",
                "--sig-proxy", "--disable-content-trust")  # fmt: skip
    both = {"--interactive": "-i", "--tty": "-t", "--detach": "-d", "--publish-all": "-P", "--quiet": "-q"}
    valued = {"--publish": "-p", "--volume": "-v", "--env": "-e", "--workdir": "-w", "--user": "-u", "--memory": "-m",
              "--hostname": "-h", "--label": "-l", "--attach": "-a", "--cpu-shares": "-c"}  # fmt: skip
    long = ("--gpus", "--runtime", "--ipc", "--shm-size", "--env-file", "--entrypoint", "--name", "--restart",
            "--device", "--ulimit", "--mount")  # fmt: skip
    flags = [Flag((name,), "switch", "0") for name in switches]
    flags += [Flag((short, name), "switch", "0") for name, short in both.items()]
    flags += [Flag((short, name), "text") for name, short in valued.items()]
    flags += [Flag((name,), "text") for name in long] + [Flag(("--network", "--net"), "text")]
    return Table(tuple(flags), unknown_takes="1", short=frozenset("itdPq"))


def _flags(rows: Iterable[dict[str, Any]]) -> tuple[Flag, ...]:
    return tuple(
        Flag(
            tuple(row["names"]),
            row["kind"],
            "0" if row["kind"] == "switch" else row.get("takes", "1"),
            tuple(row.get("choices", ())),
            row.get("deprecated", False),
        )
        for row in rows
    )


def known_model(name: str) -> dict[str, Any] | None:
    """Published facts of a well-known model, by its id."""
    return data("models.toml").get(name.rstrip("/"))
