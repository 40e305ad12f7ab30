"""CUDA_VISIBLE_DEVICES: which GPUs it leaves, and what is wrong with it.

Rules: CUDA Programming Guide, "CUDA Environment Variables" (the list ends at the first identifier that is not valid;
an empty one leaves nothing); torch/cuda/__init__.py, _parse_visible_devices (the first identifier decides whether all
are indices, GPU UUIDs or MIG UUIDs; one named twice leaves nothing); vllm/platforms/cuda.py,
device_control_id_to_physical_device_id (an index is a plain number, a UUID is written whole). Of GPUs in MIG mode
CUDA shows a process one instance, and no other GPU beside it (MIG User Guide, "Device Enumeration").
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from localai_clusters.machine.facts import Gpu, MigDevice

NAME = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class VisibleGpus:
    """``gpus`` in CUDA's order: local rank 0 takes the first. A MIG instance is a Gpu with the instance's memory."""

    gpus: tuple[Gpu, ...]
    problem: str = ""  # what of the setting is not used, and why
    stops_vllm: bool = False  # which looks every identifier up, also those that CUDA passes over


def visible_gpus(setting: str | None, gpus: Sequence[Gpu]) -> VisibleGpus:
    """What ``setting`` leaves of ``gpus``; None: it is not set. Never raises, whatever the setting."""
    if setting is None:
        return VisibleGpus(_enumerated([_first_instance(gpu) for gpu in gpus]))
    if not setting.strip():
        return VisibleGpus((), f"{NAME} is set and empty, which hides every GPU")
    identifiers = [identifier.strip() for identifier in setting.split(",")]
    kind = next((kind for kind in ("GPU-", "MIG-") if identifiers[0].startswith(kind)), "")
    chosen: list[Gpu] = []
    for position, identifier in enumerate(identifiers):
        found = _find(identifier, kind, gpus)
        if isinstance(found, str):
            lost = len(identifiers) - position - 1
            also = f", nor are the {lost} after it" if lost > 1 else ", nor is the one after it" * lost
            problem = f"{NAME}={_short(setting)}: {found}; it is not used{also}"
            stops_vllm = any(not _is_number(one) for one in identifiers if isinstance(_find(one, kind, gpus), str))
            return VisibleGpus(_enumerated(chosen), problem, stops_vllm)
        if found in chosen:
            return VisibleGpus((), f"{NAME}={_short(setting)} names {_short(identifier)} twice, which hides every GPU")
        chosen.append(found)
    return VisibleGpus(_enumerated(chosen))


def _find(identifier: str, kind: str, gpus: Sequence[Gpu]) -> Gpu | str:
    """The GPU, or why there is none."""
    shown = _short(identifier) or "nothing"
    if not kind:
        if not (identifier.isascii() and identifier.isdigit() and len(identifier) < 10):
            return f"{shown} is no index of a GPU"
        found = next((gpu for gpu in gpus if gpu.index == int(identifier)), None)
        there = ", ".join(str(gpu.index) for gpu in gpus) or "none"
        return _first_instance(found) if found else f"there is no GPU {shown} (there are: {there})"
    if not identifier.startswith(kind):
        return f"{shown} is no {kind.rstrip('-')} UUID, as the first one is"
    if kind == "MIG-":
        instances = [(gpu, instance) for gpu in gpus for instance in gpu.mig_devices or ()]
        found = next((_as_gpu(gpu, instance) for gpu, instance in instances if instance.uuid == identifier), None)
    else:
        found = next((_first_instance(gpu) for gpu in gpus if gpu.uuid == identifier), None)
        if not found and any((gpu.uuid or "").startswith(identifier) for gpu in gpus):
            return f"{shown} is only the beginning of a UUID, and vLLM looks for all of it (nvidia-smi -L)"
    return found or f"{shown} is not on this machine (nvidia-smi -L)"


def _is_number(identifier: str) -> bool:
    return identifier.removeprefix("-").isdecimal()


def _first_instance(gpu: Gpu) -> Gpu:
    return _as_gpu(gpu, gpu.mig_devices[0]) if gpu.mig_devices else gpu


def _as_gpu(gpu: Gpu, instance: MigDevice) -> Gpu:
    memory = {"memory_bytes": instance.memory_bytes, "memory_free_bytes": instance.memory_free_bytes}
    return replace(gpu, name=instance.name, mig_devices=(instance,), **memory)


def _enumerated(chosen: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """What CUDA shows a process of them: one MIG instance, or the GPUs that are not in MIG mode."""
    instances = [gpu for gpu in chosen if gpu.mig_devices]
    return tuple(instances[:1] or (gpu for gpu in chosen if gpu.mig_devices is None))


def _short(text: str) -> str:
    """``text`` from outside, for a line on a terminal."""
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return printable if len(printable) <= 60 else printable[:57] + "..."
