"""The program and what launches it."""

from collections.abc import Iterator

from localai_clusters.command.findings import ADDS_UP, FILL_IN, NOTE, REMOVED, WRONG, Finding
from localai_clusters.command.launch import DEMO, MODULE, OFF, OURS, SERVE, Launch
from localai_clusters.command.launchers import MODULE_NAMES
from localai_clusters.command.tables import data


def check_launcher(launch: Launch) -> Iterator[Finding]:
    """What the command is started with, if not by hand."""
    if not launch.serves or not launch.launcher:
        return
    start, end = launch.launched[0].start, launch.launched[-1].end
    if launch.launcher == "torch.distributed.launch":
        yield Finding(NOTE, "deprecated-launcher", "torch.distributed.launch is torchrun's predecessor and deprecated",
                      "torchrun", start, end)  # fmt: skip
    elif not launch.is_torchrun:
        message = f"vLLM cannot be started by {launch.launcher}: it starts its own processes, one per GPU"
        yield Finding(WRONG, "launcher", message, f"leave {launch.launcher} out: vllm serve starts them", start, end)
        return
    if launch.program in (SERVE, MODULE, DEMO):
        each = launch.launcher_args.text("--nproc-per-node") or "1"
        message = (
            f"torchrun starts this program once per rank ({each} on each node), and each is a whole server: each takes "
            "the port for itself and starts ranks of its own on the same GPUs"
        )
        fix = "vllm serve, which starts its own ranks, or localai-clusters serve, whose ranks torchrun starts"
        yield Finding(WRONG, "server-per-rank", message, fix, start, end)


def check_program(launch: Launch) -> Iterator[Finding]:
    if not launch.named:
        return
    start, end = launch.named[0].start, launch.named[-1].end
    name = launch.named[-1].text
    if launch.program == DEMO:
        old = data("old.toml")["modules"]["vllm.entrypoints.api_server"]
        message = f"vllm.entrypoints.api_server does not exist since vLLM {old['gone']}: {old['why']}"
        yield Finding(REMOVED, "removed-module", message, "vllm serve MODEL", start, end)
        if name.endswith(".py"):
            message = f"{name} is a path into vLLM's source; an installed vLLM is not started by file"
            yield Finding(NOTE, "source-file", message, "vllm serve MODEL", start, end)
    elif launch.program == MODULE and name != MODULE_NAMES[1]:
        message = "vllm.entrypoints.openai.api_server still starts, but is deprecated"
        yield Finding(NOTE, "deprecated-module", message, "vllm serve MODEL", start, end)
    if launch.program == MODULE and (headless := launch.args.last("--headless")):
        message = (
            "this module never looks at --headless and starts a server on every node; the ranks of the other nodes "
            "then fail"
        )
        yield Finding(WRONG, "headless-ignored", message, "vllm serve MODEL --headless", headless.start, headless.end)


def check_words(launch: Launch) -> Iterator[Finding]:
    """The words that are no flags: the model, and what is too many."""
    if not launch.serves:
        return
    for word in launch.truths:
        switch = launch.before(word)
        name = switch.name if switch else "the switch before it"
        off = word.text.lower() in OFF
        fix = f"--no-{name[2:]}" if off and switch and f"--no-{name[2:]}" in switch.flag.names else name
        if off and fix == name:
            fix = f"leave {name} out"
        message = f"{name} is a switch and takes no value: vLLM refuses {word.text!r}"
        yield Finding(WRONG, "takes-no-value", message, fix, word.start, word.end)
    for word in launch.strays:
        if (
            launch.container
            and launch.container.starts_serve
            and word.text in ("serve", "vllm", "python3", "python", "-m")
        ):
            message = f"the image starts vllm serve by itself, so {word.text!r} is taken for the model"
            yield Finding(WRONG, "stray-word", message, "leave it out", word.start, word.end)
        elif launch.program == SERVE and len(launch.named) == 1 and not launch.container and word is launch.strays[0]:
            message = (
                f"{word.text!r} is not one of vllm's commands" if word != launch.named[0] else "the verb is missing"
            )
            yield Finding(WRONG, "stray-word", message, "vllm serve MODEL", word.start, word.end)
        else:
            message = f"nothing says what {word.text!r} is; vLLM refuses it"
            yield Finding(
                WRONG, "stray-word", message, "leave it out, or name the flag it belongs to", word.start, word.end
            )
    if launch.model is None:
        if launch.program != OURS:
            yield Finding(
                NOTE, "no-model", "no model is named: vLLM serves its default, Qwen/Qwen3-0.6B", "vllm serve MODEL"
            )
        return
    flag = launch.args.last("--model")
    by_position = flag is None or flag.value != launch.model
    if launch.program == MODULE and by_position and launch.container is None:
        message = "this module ignores a model that is given without --model, and serves Qwen/Qwen3-0.6B"
        yield Finding(
            WRONG, "model-ignored", message, f"--model {launch.model.text}", launch.model.start, launch.model.end
        )
    if launch.program == SERVE and flag is not None and launch.container is None and not by_position:
        message = "vllm serve takes the model as its first word; --model still works and is announced to go"
        yield Finding(NOTE, "model-flag", message, "vllm serve MODEL", flag.start, flag.end)


def unset(name: str, start: int, end: int, written: str) -> Finding:
    message = f"{written} is not set in what was pasted; the command works where your shell has it"
    return Finding(NOTE, "variable-not-set", message, f"export {name}=...", start, end)


def to_fill_in(text: str, name: str, start: int, end: int) -> Finding:
    where = {
        "--master-addr": "the address of node 0 that the other nodes reach; on node 0: ip -4 addr",
        "--host": "an address of this machine (ip -4 addr), or 127.0.0.1 for this machine only",
        "--model": "a Hugging Face id (Qwen/Qwen3-0.6B) or a folder with config.json",
    }
    hint = where.get(name, "your own value")
    if "TOKEN" in name:
        hint = "nothing here: hf auth login once, or HF_TOKEN in the shell's environment"
    message = f"{text} stands for something of yours"
    if "<" in text:
        message += "; a shell reads < and > as files"
    return Finding(FILL_IN, "placeholder", message, f"{text}: {hint}", start, end)


def contradiction(code: str, message: str, fix: str, start: int = 0, end: int = 0) -> Finding:
    return Finding(ADDS_UP, code, message, fix, start, end)
