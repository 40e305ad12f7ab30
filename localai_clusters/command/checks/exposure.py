"""Who can reach the server, which secrets the command shows, whose code it runs."""

import re
from collections.abc import Iterator

from localai_clusters.command.checks.split import place
from localai_clusters.command.deployment import Deployment, placeholder
from localai_clusters.command.findings import UNSAFE, Finding
from localai_clusters.command.launch import OURS, RANK, Launch
from localai_clusters.command.secret import secrets
from localai_clusters.plan import is_loopback

KEY_COVERS = "it guards /v1 and little else: /invocations, /metrics and others answer without it"


def has_key(launch: Launch) -> bool:
    variable = launch.variable("VLLM_API_KEY")
    return launch.args.last("--api-key") is not None or (variable is not None and variable.text != "")


def in_own_network(launch: Launch) -> bool:
    """Whether a container's own network stands between the server and the machine's."""
    return launch.container is not None and "host" not in [word.text for word in launch.container.values("--network")]


def check_listening(d: Deployment) -> Iterator[Finding]:
    launch, host = d.first, d.host
    if launch.program == OURS or in_own_network(launch) or launch.args.last("--uds") or has_key(launch):
        return  # localai-clusters serve makes a key; a container's ports are check_ports'
    if launch.program == RANK and host is None:
        return
    address = host.value.text if host and host.value else None
    if address is not None and (is_loopback(address) or placeholder(host.value, "--host")):
        return
    said = (
        "without --host vLLM listens on all networks"
        if address is None
        else f"--host {address}: other machines can reach it"
    )
    message = f"{said}, and nobody is asked for a key: whoever finds the port can use the model"
    fix = f'--host 127.0.0.1, or a key: export VLLM_API_KEY="$(openssl rand -hex 32)" ({KEY_COVERS})'
    yield Finding(UNSAFE, "open-to-all", message, fix, *(place(host) if host else _program(launch)))


def _program(launch: Launch) -> tuple[int, int]:
    return launch.named[0].start, launch.named[-1].end


def check_secrets(d: Deployment) -> Iterator[Finding]:
    for launch in d.launches:
        for secret in secrets(launch):
            if secret.kind == "key":
                message = (
                    "the API key is on the command line: every user of the machine sees it in ps, and the shell's "
                    "history keeps it"
                )
                fix = 'export VLLM_API_KEY="$(openssl rand -hex 32)", and no --api-key'
                yield Finding(UNSAFE, "key-in-clear", message, fix, secret.start, secret.end)
            elif secret.kind == "token" and not placeholder(secret.word, "HF_TOKEN"):
                message = (
                    "a Hugging Face token is in the command: whoever sees it can use your account; revoke it if it was "
                    "shown to others"
                )
                fix = "hf auth login, once, and no token here" + (
                    " (-v ~/.cache/huggingface:/root/.cache/huggingface)" if launch.container else ""
                )
                yield Finding(UNSAFE, "token-in-clear", message, fix, secret.start, secret.end)
            elif secret.kind == "other":
                message = "a secret is in the command, and stays in the shell's history"
                yield Finding(
                    UNSAFE, "secret-in-clear", message, "a file that only you can read", secret.start, secret.end
                )


def check_remote_code(d: Deployment) -> Iterator[Finding]:
    given = d.first.meant.last("--trust-remote-code")
    if given is None or given.negated:
        return
    model = d.first.model.text if d.first.model else "the model"
    revision = d.first.meant.text("--revision")
    message = f"runs Python code that comes with {model}, as you, on this machine"
    fix = "leave it out: vLLM knows most models by itself"
    if not re.fullmatch("[0-9a-f]{40}", revision or ""):
        fix += "; if it must be, read the code and pin it: --revision COMMIT"
    yield Finding(UNSAFE, "trust-remote-code", message, fix, *place(given))
