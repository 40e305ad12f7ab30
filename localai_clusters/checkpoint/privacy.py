"""What must not leave the student's machine: secrets, and the home directory's name."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

KEPT_PREFIXES = (
    "CPU_VISIBLE_MEMORY_NODES",
    "CUDA_DEVICE_ORDER",
    "CUDA_VISIBLE_DEVICES",
    "GLOO_",
    "HF_HUB_OFFLINE",
    "KMP_",
    "MASTER_ADDR",
    "MASTER_PORT",
    "NCCL_",
    "OMP_",
    "TORCH_NCCL_",
    "TORCHINDUCTOR_",
    "TRANSFORMERS_OFFLINE",
    "VLLM_",
)
SECRET_PARTS = ("KEY", "TOKEN", "SECRET", "PASSWORD")
REMOVED = "[removed]"

# In a flag the whole word counts: --max-num-batched-tokens is no secret.
_SECRET_WORDS = {part.lower() for part in SECRET_PARTS}
_URL_USER = re.compile(r"(?<=://)[^/@\s]+@")


def scrub_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that shape a run, by an allow-list of prefixes, sorted by name.

    A name that holds KEY, TOKEN, SECRET or PASSWORD is dropped whatever its prefix.
    """
    return {name: shorten_home(_URL_USER.sub("", value)) for name, value in sorted(environ.items()) if may_record(name)}


def may_record(name: str) -> bool:
    """Whether an environment variable of this name may stand in a checkpoint."""
    secret = any(part in name.upper() for part in SECRET_PARTS)
    return name.startswith(KEPT_PREFIXES) and not secret


def scrub_arguments(argv: Iterable[str]) -> list[str]:
    """A command with the values of --api-key and its like replaced by "[removed]"."""
    kept: list[str] = []
    follows_secret = False
    for argument in argv:
        name, equals, _ = argument.partition("=")
        if argument.startswith("-"):
            follows_secret = _names_secret(name) and not equals
        elif follows_secret:
            kept.append(REMOVED)
            continue
        secret = equals and _names_secret(name)
        kept.append(f"{name}={REMOVED}" if secret else shorten_home(_URL_USER.sub("", argument)))
    return kept


def shorten_home(text: str) -> str:
    """The text with the home directory written ~, wherever it stands in it."""
    for home in _homes():
        text = re.sub(rf"(?<![\w.~-]){re.escape(home)}(?![\w.-])", "~", text)
    return text


def _names_secret(name: str) -> bool:
    return not _SECRET_WORDS.isdisjoint(re.split(r"[^a-z]+", name.lower()))


def _homes() -> list[str]:
    """The home directory's names, longest first; / is no home worth hiding."""
    try:
        home = str(Path.home())
    except RuntimeError:  # neither $HOME nor an entry for this user
        return []
    names = {home.rstrip("/"), os.path.realpath(home)}
    return sorted(names - {"", "/"}, key=len, reverse=True)
