"""ServePlan: what to serve and how to split it, in vLLM's and torchrun's own words; from it, each node's command.

Pure data: nothing here looks at the machine or at the model's files.
"""

import ipaddress
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

RANK_MODULE = "localai_clusters.serving.rank"
DTYPES = ("auto", "bfloat16", "float16", "float32")
RENDEZVOUS = ("static", "c10d")  # torchrun's backends that need no service of their own
ANY_FREE_PORT = 0
MASTER_PORT = 29500  # torchrun's default
MAX_RANKS = 4096  # far above any real job; a slip of the keyboard must not make a list of a billion ranks
# What rank_args() writes itself. Given once more, argparse would take the last one and the plan would be wrong.
OWN_FLAGS = frozenset(
    "--model --tensor-parallel-size -tp --pipeline-parallel-size -pp --dtype --max-model-len --gpu-memory-utilization "
    "--kv-cache-memory-bytes --quantization -q --host --port --distributed-executor-backend --api-key".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServePlan:
    """One vLLM server over ``nnodes x nproc_per_node`` torchrun ranks.

    ``nproc_per_node`` is worked out from the split when it is not given. ``kv_cache_memory_bytes`` is
    per rank. ``port`` and ``master_port`` may be 0: any free port, chosen at launch. ``extra_args`` go
    to vLLM as they stand. Raises ``ValueError`` for a value that no machine could run (a size of 0, an
    unknown dtype); whether the numbers fit together and fit this machine is preflight's question.
    """

    model: str = "smollm2-135m"
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    nnodes: int = 1
    nproc_per_node: int | None = None
    dtype: str = "auto"
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    quantization: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    master_addr: str = "127.0.0.1"
    master_port: int = MASTER_PORT
    rdzv_backend: str = "static"
    extra_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_text("model", self.model)
        for name in ("tensor_parallel_size", "pipeline_parallel_size", "nnodes"):
            check_size(name, getattr(self, name))
        for name in ("nproc_per_node", "max_model_len", "kv_cache_memory_bytes"):
            if getattr(self, name) is not None:
                check_size(name, getattr(self, name))
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; it can be {', '.join(DTYPES)}")
        if self.rdzv_backend not in RENDEZVOUS:
            raise ValueError(f"rdzv_backend is {self.rdzv_backend!r}; it can be {' or '.join(RENDEZVOUS)}")
        share = self.gpu_memory_utilization
        if share is not None and not (is_number(share) and 0 < share <= 1):
            raise ValueError(f"gpu_memory_utilization is {share!r}; it is a share, above 0 and up to 1 (0.9)")
        for name in ("port", "master_port"):
            check_port(name, getattr(self, name))
        if self.port == self.master_port != ANY_FREE_PORT:
            raise ValueError(f"port and master_port are both {self.port}; the server and torchrun need one each")
        for name in ("host", "master_addr", *(["quantization"] if self.quantization is not None else [])):
            check_text(name, getattr(self, name))
        check_extra_args(self.extra_args)
        object.__setattr__(self, "extra_args", tuple(self.extra_args))
        if self.nproc_per_node is None:
            share, rest = divmod(self.split_size, self.nnodes)
            if rest:
                raise ValueError(
                    f"tensor_parallel_size {self.tensor_parallel_size} x pipeline_parallel_size "
                    f"{self.pipeline_parallel_size} = {self.split_size} ranks do not divide over {self.nnodes} nodes"
                )
            object.__setattr__(self, "nproc_per_node", share)
        for ranks in (self.split_size, self.world_size):
            if ranks > MAX_RANKS:
                raise ValueError(f"the plan has {ranks} ranks; at most {MAX_RANKS} can be planned")

    @property
    def split_size(self) -> int:
        """Ranks that the split needs: tensor parallel size x pipeline parallel size."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def world_size(self) -> int:
        """Ranks that torchrun starts: nodes x processes per node."""
        return self.nnodes * self.nproc_per_node

    def with_(self, **changes: Any) -> "ServePlan":
        """A copy with ``changes``; ``nproc_per_node`` follows the split again unless it is among them."""
        if {"tensor_parallel_size", "pipeline_parallel_size", "nnodes"} & changes.keys():
            changes.setdefault("nproc_per_node", None)
        return replace(self, **changes)

    def rank_args(self) -> list[str]:
        """``vllm serve``'s flags for this plan, the same on every rank."""
        flags = {
            "--model": self.model,
            "--tensor-parallel-size": self.tensor_parallel_size,
            "--pipeline-parallel-size": self.pipeline_parallel_size,
            "--dtype": self.dtype,
            "--max-model-len": self.max_model_len,
            "--gpu-memory-utilization": self.gpu_memory_utilization,
            "--kv-cache-memory-bytes": self.kv_cache_memory_bytes,
            "--quantization": self.quantization,
            "--host": self.host,
            "--port": self.port,
        }
        given = [text for flag, value in flags.items() if value is not None for text in (flag, str(value))]
        return [*given, *self.extra_args]

    def argv(self, node_rank: int = 0, module: str = RANK_MODULE) -> list[str]:
        """torchrun's argv for one node, ``torchrun`` first; ``module`` is what each rank runs."""
        self.check_node_rank(node_rank)
        return [
            "torchrun",
            f"--nnodes={self.nnodes}",
            f"--nproc-per-node={self.nproc_per_node}",
            *self.rendezvous(node_rank),
            "-m",
            module,
            *self.rank_args(),
        ]

    def rendezvous(self, node_rank: int) -> list[str]:
        """torchrun's flags by which the nodes meet.

        With c10d torchrun ignores ``--node-rank`` and numbers the nodes itself, in the order of their addresses as
        texts (``torch/distributed/elastic/rendezvous/dynamic_rendezvous.py``): the server could be on any of them.
        Only node 0's address is ever used, so the others give a name that sorts as they are meant to.
        """
        if self.rdzv_backend == "static":
            return [
                f"--node-rank={node_rank}",
                f"--master-addr={self.master_addr}",
                f"--master-port={self.master_port}",
            ]
        return [
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={self.master_addr}:{self.master_port}",
            f"--rdzv-id=localai-clusters-{self.master_port}",
            f"--rdzv-conf=is_host={'true' if node_rank == 0 else 'false'}",
            f"--local-addr={self.master_addr if node_rank == 0 else f'~node{node_rank:04d}'}",
        ]

    def check_node_rank(self, node_rank: int) -> None:
        if isinstance(node_rank, bool) or not isinstance(node_rank, int) or not 0 <= node_rank < self.nnodes:
            raise ValueError(
                f"node_rank is {node_rank}; with --nnodes {self.nnodes} it runs from 0 to {self.nnodes - 1}"
            )

    def node_ranks(self, node_rank: int) -> range:
        """The ranks of one node."""
        return range(node_rank * self.nproc_per_node, (node_rank + 1) * self.nproc_per_node)

    def commands(self) -> list[str]:
        """One command per node, to paste into a shell. Any free port (0) becomes the default one: nodes must agree."""
        plan = self
        for field in fields(self):
            if field.name in ("port", "master_port") and getattr(self, field.name) == ANY_FREE_PORT:
                plan = replace(plan, **{field.name: field.default})
        return [paste(plan.argv(node_rank)) for node_rank in range(self.nnodes)]

    def serve_command(self, node_rank: int, verb: str = "serve") -> str:
        """``localai-clusters VERB`` for one node's share, to paste into a shell there."""
        self.check_node_rank(node_rank)
        words = ["localai-clusters", *verb.split()]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("extra_args", "nproc_per_node") and value not in (None, field.default):
                words += [f"--{field.name.replace('_', '-')}", str(value)]
        words += ["--node-rank", str(node_rank)]
        return paste([*words, *(["--", *self.extra_args] if self.extra_args else [])])

    def ranks(self) -> Iterator[tuple[int, int, int]]:
        """(rank, pipeline parallel rank, tensor parallel rank), in vLLM's order: tensor parallel innermost."""
        for rank in range(self.split_size):
            yield rank, rank // self.tensor_parallel_size, rank % self.tensor_parallel_size

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"extra_args": list(self.extra_args)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ServePlan":
        known = {field.name for field in fields(cls)}
        unknown = sorted(data.keys() - known)
        if unknown:
            raise ValueError(f"a plan has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return cls(**data | {"extra_args": tuple(data.get("extra_args", ()))})

    @property
    def is_loopback(self) -> bool:
        """Whether the server can be reached from this machine only."""
        return is_loopback(self.host)

    @property
    def served_name(self) -> str:
        """The name that requests give the model: the first of vLLM's ``--served-model-name``, else ``model``."""
        for number, argument in enumerate(self.extra_args):
            flag, _, value = argument.partition("=")
            if flag.replace("_", "-") == "--served-model-name":
                return value or next(iter(self.extra_args[number + 1 :]), self.model)
        return self.model

    @property
    def label(self) -> str:
        """``TP=2``, ``PP=2``, ``TP=2 x PP=2`` or ``TP=1``."""
        tensor, pipeline = self.tensor_parallel_size, self.pipeline_parallel_size
        if pipeline == 1:
            return f"TP={tensor}"
        return f"PP={pipeline}" if tensor == 1 else f"TP={tensor} x PP={pipeline}"


def paste(argv: list[str]) -> str:
    """``argv`` as text for a shell, one flag and its value to a line."""
    lines: list[str] = []
    for word in argv:
        is_verb = len(lines) == 1 and not lines[0].startswith("-")  # serve, after localai-clusters
        if lines and not word.startswith("-") and (is_verb or (lines[-1].startswith("-") and " " not in lines[-1])):
            lines[-1] += " " + shlex.quote(word)
        else:
            lines.append(shlex.quote(word))
    return " \\\n    ".join(lines)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_size(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
    if value >= 1 << 63:
        raise ValueError(f"{name} is a number of {value.bit_length()} bits; it must be less than 2**63")


def check_port(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise ValueError(f"{name} is {value!r}; a port is a whole number from 1 to 65535, or 0 for any free one")


def check_text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {value!r}; it must be a text that is not empty")
    if value.startswith("-") or any(ord(character) < 32 for character in value):
        raise ValueError(f"{name} is {value!r}; it must not begin with '-' or hold control characters")


def check_extra_args(value: Any) -> None:
    example = "it holds vLLM's flags as strings: ('--seed', '1')"
    if not isinstance(value, (tuple, list)) or not all(isinstance(argument, str) for argument in value):
        raise ValueError(f"extra_args is {value!r}; {example}")
    if value and not value[0].startswith("-"):
        raise ValueError(f"{value[0]!r} is not a flag; a model is given as --model {value[0]}")
    for argument in value:
        if "\0" in argument:
            raise ValueError(f"extra_args holds {argument!r}; no command can be given a null character")
        flag = argument.partition("=")[0].replace("_", "-")
        if flag in OWN_FLAGS:
            raise ValueError(
                f"extra_args holds {flag}, which is set otherwise; use the option of that name, if there is one"
            )
