"""One program that a paste would start, with all that is around it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from localai_clusters.command.flags import Given, Parsed
from localai_clusters.command.reading import Command
from localai_clusters.command.words import Word

SERVE, MODULE, DEMO, OURS, RANK = "vllm serve", "openai.api_server", "api_server", "localai-clusters serve", "rank"
SERVERS = (SERVE, MODULE, DEMO, OURS, RANK)
VLLM_IMAGE = re.compile(r"(?:^|/)vllm-openai(?:-\w+)*(?:[:@]|$)")
OFF = ("false", "0", "no", "off")  # what people write after a switch
NOTHING = Parsed()


@dataclass(frozen=True, slots=True)
class Container:
    """``docker run`` and its like. ``starts_serve``: the image runs ``vllm serve`` by itself."""

    engine: Word
    args: Parsed
    image: Word | None
    starts_serve: bool

    @property
    def is_vllms(self) -> bool:
        """Whether the image is vLLM's own, whose entrypoint is ``vllm serve``."""
        return self.image is not None and VLLM_IMAGE.search(self.image.text) is not None

    def values(self, name: str) -> list[Word]:
        return [given.value for given in self.args.given if given.name == name and given.value is not None]


@dataclass(frozen=True, slots=True)
class Launch:
    """One program that a paste would start."""

    program: str  # one of SERVERS, or "ray", "client", "compose", "other server", "other"
    named: tuple[Word, ...]  # the words that name it
    args: Parsed = NOTHING
    meant: Parsed = NOTHING  # args with misspelt flags and those of other servers under the names they have here
    model: Word | None = None
    strays: tuple[Word, ...] = ()  # words that the program does not know what to do with
    truths: tuple[Word, ...] = ()  # "true" and the like after a switch
    launcher: str = ""
    launched: tuple[Word, ...] = ()  # the words that name the launcher
    launcher_args: Parsed = NOTHING
    container: Container | None = None
    environment: Mapping[str, Word] | None = None
    wrappers: tuple[Word, ...] = ()
    command: Command | None = None
    not_exported: Mapping[str, Word] | None = None  # set on a line of its own: the program does not see it

    @property
    def serves(self) -> bool:
        return self.program in SERVERS

    @property
    def is_torchrun(self) -> bool:
        return self.launcher in ("torchrun", "torch.distributed.launch")

    @property
    def start(self) -> int:
        return min(word.start for word in (*self.launched, *self.named))

    def before(self, word: Word) -> Given | None:
        """The flag that stands before ``word``."""
        return max((given for given in self.args.given if given.end <= word.start), key=lambda g: g.end, default=None)

    def variable(self, name: str) -> Word | None:
        return (self.environment or {}).get(name)


def own_flags(launch: Launch) -> tuple[Given, ...]:
    """Those of ``localai-clusters serve`` itself, without what follows ``--``."""
    return tuple(
        given for given in launch.args.given if not launch.args.rest or given.start < launch.args.rest[0].start
    )
