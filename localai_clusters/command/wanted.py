"""What a server is to be: a deployment's flags, each as it was meant and in a form that vLLM takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from localai_clusters.command.checks.values import mended_value
from localai_clusters.command.deployment import Deployment
from localai_clusters.command.flags import Given, parse
from localai_clusters.command.launch import OFF, OURS, Launch
from localai_clusters.command.mending import Split, mended
from localai_clusters.command.reading import read
from localai_clusters.command.tables import data, vllm_table
from localai_clusters.command.values import whole_number
from localai_clusters.command.words import Word
from localai_clusters.command.writing import CONTROL, fill
from localai_clusters.plan import MASTER_PORT, OWN_FLAGS, is_loopback

NODE_0 = "NODE0_ADDRESS"
# How ranks are started and where they meet, which each way of starting says by itself; and secrets.
PLACEMENT = frozenset(
    "--model --tensor-parallel-size --pipeline-parallel-size --nnodes --node-rank --master-addr --master-port "
    "--headless --distributed-executor-backend --nproc-per-node --rdzv-backend --skip-check --on-nodes --json "
    "--api-key --hf-token".split()
)
PLAN_FLAGS = frozenset(OWN_FLAGS) - {"--distributed-executor-backend", "--api-key"}


@dataclass(slots=True)
class Wanted:
    """What the server is to be, by flag: the words that follow it. Secrets are not in it."""

    deployment: Deployment
    split: Split
    model: str
    options: dict[str, list[str]] = field(default_factory=dict)  # flag -> the words to write, the flag among them
    unknown: set[str] = field(default_factory=set)
    left_out: list[str] = field(default_factory=list)

    @property
    def first(self) -> Launch:
        return self.deployment.first

    def value(self, name: str) -> str | None:
        words = self.options.get(name)
        if words is None:
            return None
        return words[1] if len(words) > 1 else words[0].partition("=")[2]


def wanted_of(deployment: Deployment) -> Wanted:
    wanted = Wanted(deployment, mended(deployment), deployment.model)
    launch = wanted.first
    if launch.model is not None and launch.model.text:
        wanted.model = _model(launch.model.text)
        wanted.unknown |= set(launch.model.unknown)
    off = {launch.before(word) for word in launch.truths if word.text.lower() in OFF}
    for given in launch.meant.given:
        for name, words, unknown in _mended_flag(given, given in off):
            _keep(wanted, name, words, unknown)
    _pair(wanted)
    return wanted


def _pair(wanted: Wanted) -> None:
    """Flags that need another get it, or go where only the user can know it (checks/flags.py, check_pairs)."""
    given = wanted.options
    if given.get("--enable-auto-tool-choice") == ["--enable-auto-tool-choice"] and "--tool-call-parser" not in given:
        _keep(wanted, "--enable-auto-tool-choice", [], ())
        del given["--enable-auto-tool-choice"]
    for flag, needed in (("--enable-log-outputs", "--enable-log-requests"), ("--lora-modules", "--enable-lora")):
        if flag in given and given[flag] != [f"--no-{flag[2:]}"]:
            given[needed] = [needed]
    if "--headless" in given:
        given.pop("--api-server-count", None)


def _model(text: str) -> str:
    """A name that can be one; what begins like a flag or holds control characters is left to the user."""
    return "MODEL" if text.startswith("-") or CONTROL.search(text) or not text.strip() else fill(text)


def _keep(wanted: Wanted, name: str, words: list[str], unknown: Sequence[str]) -> None:
    if not words:
        wanted.left_out.append(name)
        return
    if name == "--model":
        wanted.model = _model(words[-1].removeprefix("--model="))
    key = name if name != "--middleware" else " ".join(words)
    wanted.options.pop(key, None)  # the last one counts, and stands where the last one stood
    wanted.options[key] = words
    wanted.unknown |= set(unknown)


def _mended_flag(given: Given, off: bool) -> Iterator[tuple[str, list[str], tuple[str, ...]]]:
    """(flag, the words to write, what is unknown in them); no words: it is left out."""
    unknown = tuple(part for value in given.values for part in value.unknown)
    values = [value.text for value in given.values]
    name = given.name
    if given.problem in ("unknown-flag", "ambiguous-flag"):
        yield from _renamed(given, values, unknown)
        return
    if given.problem == "quoted-together":
        words = [word for command in read(given.detail).commands for word in command.words]
        for inner in parse(words, vllm_table()).given:
            if not inner.problem:
                yield from _mended_flag(inner, off)
        return
    if given.problem == "missing-value" or given.flag is None or (given.flag.takes in "1+" and not values):
        yield given.typed.text, [], ()
        return
    if given.problem == "takes-no-value":
        off = off or values[0].lower() in OFF
        values = []
    if given.flag.takes == "0":
        negative = f"--no-{name[2:]}"
        if given.negated or off:
            yield name, [negative] if negative in given.flag.names else [], ()
        else:
            yield name, [name], ()
        return
    kept = [_kept(given, value) for value in given.values]
    if any(text is None for text in kept):
        yield f"{name} {' '.join(values)}"[:80], [], ()
        return
    kept = [text if '"' in text else fill(text) for text in kept]
    if given.typed.text == "-O":
        yield name, [f"-O{kept[0]}"], unknown
    elif given.attached:
        yield name, [f"{name}={kept[0]}"], unknown
    else:
        yield name, [name, *kept], unknown


def _renamed(
    given: Given, values: list[str], unknown: tuple[str, ...]
) -> Iterator[tuple[str, list[str], tuple[str, ...]]]:
    """A flag that vLLM no longer has, as what took its place, if something did."""
    gone = data("old.toml")["flags"].get(given.name, {})
    words = gone.get("replace", {}).get(values[0] if values else "", [])
    if gone.get("rename") and not gone.get("drop_value"):
        yield gone["rename"], [gone["rename"], *values], unknown
    elif words:
        for flag, value in zip(words[::2], words[1::2], strict=True):
            yield flag, [flag, value], ()
    else:
        yield given.typed.text, [], ()


def _kept(given: Given, value: Word) -> str | None:
    """The value to write; one that only the user's shell knows stays as it is, if it can be what the flag takes."""
    if value.unknown:
        return value.text if given.flag.kind in ("text", "json") or value.text in value.unknown else None
    return mended_value(given, value.text)


def copies_of(wanted: Wanted) -> int:
    """Data parallel size."""
    return max(1, whole_number(wanted.value("--data-parallel-size") or "") or 1)


def host_of(wanted: Wanted) -> str:
    host = wanted.value("--host")
    if not host or wanted.first.container is not None:
        return "127.0.0.1"
    return host


def port_of(wanted: Wanted) -> int:
    port = wanted.value("--port")
    return int(port) if port and port.isdigit() and int(port) <= 65535 else 8000


def master_of(wanted: Wanted, port: int) -> tuple[str, int]:
    """Where nodes meet: what was given, if other nodes can reach it."""
    address, number = wanted.deployment.master
    address = wanted.value("--master-addr") or address
    if wanted.value("--master-port") and not number.is_given:
        meeting = int(wanted.value("--master-port"))
    else:
        meeting = number.value if number.is_given and 0 <= number.value <= 65535 else MASTER_PORT
    address = fill(address) if address else None
    if wanted.split.nnodes > 1 and (address is None or is_loopback(address) or address in ("0.0.0.0", "::")):
        address = NODE_0
    if meeting == port and meeting != 0:
        meeting = MASTER_PORT if port != MASTER_PORT else MASTER_PORT + 1
    master = wanted.deployment.given("--master-addr") or wanted.deployment.given("--rdzv-endpoint")
    if master is not None and master.value is not None:
        wanted.unknown |= set(master.value.unknown)
    return address or "127.0.0.1", meeting


def options_of(wanted: Wanted) -> Iterator[tuple[str, list[str]]]:
    """vLLM's flags that are neither the plan's nor about where ranks run."""
    for name, words in wanted.options.items():
        if name not in PLACEMENT and name not in PLAN_FLAGS and name.split(".")[0] not in PLAN_FLAGS:
            yield name, words


def had_key(launch: Launch) -> bool:
    """Whether the command asks clients for a key, and so its correction has to."""
    key = launch.variable("VLLM_API_KEY")
    return launch.args.last("--api-key") is not None or (key is not None and launch.program != OURS and key.text != "")
