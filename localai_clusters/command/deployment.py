"""The server that one or several commands (a node each) would make: its split, its nodes, its addresses."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from localai_clusters.command.flags import Given
from localai_clusters.command.launch import MODULE, OURS, SERVE, Launch
from localai_clusters.command.values import whole_number
from localai_clusters.command.words import PLACEHOLDER, Word
from localai_clusters.plan import MAX_RANKS

VLLM_MODEL, OUR_MODEL = "Qwen/Qwen3-0.6B", "smollm2-135m"  # vllm/config/model.py; cli/plan.py
VLLM_MASTER_PORT = 29501  # vllm/config/parallel.py
BRACED = re.compile(r"(?:\[[A-Za-z][\w -]*\]|\{\{?\s*[A-Za-z][\w .-]*\s*\}?\})")
YOURS = re.compile(r"(?i)(?:.*[/_.-])?your[_-][\w.-]+|.*(?:_here|-here)$|(?:/|\./)?path/to(?:/.*)?|x{3,}|\.{3}|…")
CROSSED_OUT = re.compile(r"(?:(?:\d{1,3}|[xX*]{1,3})\.){3}(?:\d{1,3}|[xX*]{1,3})")
SHOUTED = re.compile(r"[A-Z][A-Z0-9]*(?:[_-][A-Z0-9]+)*")
MODEL_WORDS = ("model", "model_name", "model_id", "model_tag", "model_path", "model-name", "model-id", "model-path")


@dataclass(frozen=True, slots=True)
class Number:
    """A number of the command: as given, as read, or as it is when nothing is given."""

    value: int
    given: Given | None = None
    unknown: str = ""  # the text that only the user can make a number of

    @property
    def is_given(self) -> bool:
        return self.given is not None and not self.unknown


@dataclass(frozen=True, slots=True)
class Deployment:
    """``launches`` has one entry per node that the paste holds a command for."""

    launches: tuple[Launch, ...]
    tensor: Number
    pipeline: Number
    data: Number
    nnodes: Number
    nproc: Number | None  # None: not torchrun, or as many as there are devices
    node_ranks: tuple[Number, ...]
    by_ray: tuple[Launch, ...] = ()  # the paste's `ray start` commands

    @property
    def first(self) -> Launch:
        """Node 0's command, if it is there."""
        return next((launch for launch, rank in zip(self.launches, self.node_ranks, strict=True) if rank.value == 0),
                    self.launches[0])  # fmt: skip

    @property
    def model(self) -> str:
        """The model's name; the program's own if none is given."""
        launch = self.first
        if launch.model is not None and launch.model.text:
            return launch.model.text
        return OUR_MODEL if launch.program == OURS else VLLM_MODEL

    @property
    def split_size(self) -> int:
        return self.tensor.value * self.pipeline.value

    def given(self, name: str) -> Given | None:
        """A flag of torchrun or vLLM that says where nodes meet or which they are."""
        launch = self.first
        found = launch.launcher_args.last(name) if launch.is_torchrun else None
        return found or launch.meant.last(name)

    @property
    def master(self) -> tuple[str | None, Number]:
        """Where the nodes meet: the address, if it is given, and the port."""
        endpoint, default = self.given("--rdzv-endpoint"), 29500 if self.is_ours else VLLM_MASTER_PORT
        port = _number(self.given("--master-port"), default)
        if endpoint and endpoint.value:
            address, _, after = endpoint.value.text.rpartition(":")
            if not address:
                return endpoint.value.text, port
            return address, Number(whole_number(after) or port.value, endpoint)
        address = self.given("--master-addr")
        return (address.value.text if address and address.value else None), port

    @property
    def is_ours(self) -> bool:
        return self.first.is_torchrun or self.first.program == OURS

    @property
    def host(self) -> Given | None:
        return self.first.meant.last("--host")

    @property
    def port(self) -> Number:
        return _number(self.first.meant.last("--port"), 8000)

    @property
    def uses_ray(self) -> bool:
        return bool(self.by_ray) or self.first.meant.text("--distributed-executor-backend") == "ray"


def deployments(launches: Sequence[Launch]) -> list[Deployment]:
    """The servers that ``launches`` make; commands for several nodes of one server are put together."""
    found: list[Deployment] = []
    ray: list[Launch] = []
    for launch in launches:
        if launch.program == "ray" and any(word.text == "start" for word in launch.named):
            ray.append(launch)
        if not launch.serves:
            continue
        single = _of((launch,), tuple(ray))
        if found and _belong_together(found[-1], single):
            found[-1] = _of((*found[-1].launches, launch), found[-1].by_ray)
        else:
            found.append(single)
    return found


def _of(launches: tuple[Launch, ...], ray: tuple[Launch, ...]) -> Deployment:
    launch = launches[0]
    nodes_in = launch.launcher_args if launch.is_torchrun else launch.meant
    nnodes = _nnodes(nodes_in.last("--nnodes"))
    nproc = None
    if launch.is_torchrun or launch.meant.last("--nproc-per-node"):
        nproc = _number(nodes_in.last("--nproc-per-node"), 1 if launch.is_torchrun else 0)
        if nproc.unknown or not nproc.value:
            nproc = None
    return Deployment(
        launches,
        _number(launch.meant.last("--tensor-parallel-size"), 1),
        _number(launch.meant.last("--pipeline-parallel-size"), 1),
        _number(launch.meant.last("--data-parallel-size"), 1),
        nnodes,
        nproc,
        tuple(
            _number((one.launcher_args if one.is_torchrun else one.meant).last("--node-rank"), 0) for one in launches
        ),
        ray,
    )


def _number(given: Given | None, default: int) -> Number:
    if given is None or given.value is None:
        return Number(default)
    value = whole_number(given.value.text)
    if value is None or abs(value) > 1 << 63:
        return Number(default, given, given.value.text)
    return Number(value, given)


def _nnodes(given: Given | None) -> Number:
    """torchrun also takes a range of nodes, 1:4; the larger number is what is planned for."""
    if (
        given is not None
        and given.value is not None
        and (span := re.fullmatch(r"(\d{1,6}):(\d{1,6})", given.value.text))
    ):
        return Number(int(span[2]), given)
    return _number(given, 1)


def _belong_together(one: Deployment, other: Deployment) -> bool:
    """Whether ``other`` is a further node of ``one``."""
    a, b = one.first, other.first
    if (a.program, a.launcher) != (b.program, b.launcher) and {a.program, b.program} != {SERVE, MODULE}:
        return False
    many = max(one.nnodes.value, other.nnodes.value)
    if min(one.nnodes.value, other.nnodes.value) < 2 or len(one.launches) >= min(many, MAX_RANKS):
        return False
    same_model = (a.model.text if a.model else None) == (b.model.text if b.model else None)
    return same_model or other.node_ranks[0].value not in {rank.value for rank in one.node_ranks}


def placeholder(word: Word | None, name: str = "") -> str:
    """What in ``word`` the writer left for the reader to fill in; ``name`` is the flag or variable it is for."""
    if word is None or not word.text or len(word.text) > 300:
        return ""
    text = word.text
    if name.endswith(("--chat-template", "-config", "-kwargs")) or (text[0] in "{[" and '"' in text):
        return ""
    if found := PLACEHOLDER.search(text):
        return found[0]
    if BRACED.fullmatch(text) or YOURS.fullmatch(text):
        return text
    if CROSSED_OUT.fullmatch(text) and re.search(r"[xX*]", text):
        return text
    if _is_address(name) and SHOUTED.fullmatch(text) and not text.isdigit():
        return text
    if name == "--model" and (
        text.lower() in MODEL_WORDS or ("_" in text and "/" not in text and SHOUTED.fullmatch(text))
    ):
        return text
    if re.fullmatch(r"hf_(?:x{3,}|\.{2,}|your.*|token|\*+)|token|<?secret>?", text, re.IGNORECASE) and "TOKEN" in name:
        return text
    return ""


def _is_address(name: str) -> bool:
    return name in ("--host", "--master-addr", "--rdzv-endpoint", "--data-parallel-address", "--local-addr") or (
        name.endswith(("_IP", "_ADDR", "_HOST"))
    )
