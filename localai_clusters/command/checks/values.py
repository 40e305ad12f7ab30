"""Values that a flag cannot have, and what was most likely meant."""

import difflib
from collections.abc import Iterator

from localai_clusters.command.checks.program import to_fill_in
from localai_clusters.command.deployment import placeholder
from localai_clusters.command.findings import ADVICE, REMOVED, WRONG, Finding
from localai_clusters.command.flags import Given
from localai_clusters.command.launch import Launch
from localai_clusters.command.tables import data
from localai_clusters.command.values import takes_value, whole_number

ONE_AND_MORE = ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size", "--nnodes",
                "--max-num-seqs", "--nproc-per-node")  # fmt: skip
KINDS = {"integer": "a whole number", "number": "a number", "tokens": "a whole number, or one with a unit (12k, 12K)",
         "tokens or auto": "a number of tokens (4096, 32k), or auto", "json": "JSON"}  # fmt: skip
DTYPE_SLIPS = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "f16": "float16", "f32": "float32",
               "16": "float16", "torch.float16": "float16", "torch.bfloat16": "bfloat16"}  # fmt: skip


def check_values(launch: Launch) -> Iterator[Finding]:
    if not launch.serves:
        return
    for given in launch.args.given:
        if given.flag is None or given.problem or not given.values:
            continue
        for value in given.values:
            if found := placeholder(value, given.name):
                yield to_fill_in(found, given.name, value.start, value.end)
            elif value.unknown or value.text == "":
                continue
            elif "." not in given.name:
                yield from _value(given, value.text, value.start, value.end)
    if launch.model is not None and not launch.args.last("--model"):
        if found := placeholder(launch.model, "--model"):
            yield to_fill_in(found, "--model", launch.model.start, launch.model.end)
        elif launch.model.text == "":
            yield Finding(
                WRONG,
                "wrong-type",
                "the model's name is empty",
                "vllm serve MODEL",
                launch.model.start,
                launch.model.end,
            )
    for given in launch.args.given:
        for value in given.values:
            if given.attached and not value.quoted and value.text.startswith("~/"):
                message = "a shell turns ~ into your home folder only at the beginning of a word, not after ="
                yield Finding(WRONG, "tilde", message, f"{given.name} {value.text}", value.start, value.end)


def _value(given: Given, text: str, start: int, end: int) -> Iterator[Finding]:
    flag, name, place = given.flag, given.name, (start, end)
    if name == "--dtype" and text not in flag.choices:
        slip = DTYPE_SLIPS.get(text.lower()) or (text.lower() if text.lower() in flag.choices else None)
        if slip is None and text in ("half", "float"):
            slip = {"half": "float16", "float": "float32"}[text]
        known = ", ".join(flag.choices)
        yield Finding(
            WRONG, "not-a-choice", f"there is no dtype {text!r}: {known}", f"--dtype {slip or 'auto'}", *place
        )
    elif flag.choices and text not in flag.choices:
        near = nearest_of(text, flag.choices)
        message = f"{name} cannot be {text!r}: {', '.join(flag.choices[:12])}{' ...' if len(flag.choices) > 12 else ''}"
        yield Finding(WRONG, "not-a-choice", message, f"{name} {near or flag.choices[0]}", *place)
    elif not takes_value(flag.kind, text):
        yield Finding(
            WRONG, "wrong-type", f"{name} takes {KINDS[flag.kind]}, not {text!r}", _repaired(given, text), *place
        )
    elif name == "--gpu-memory-utilization" and not 0 < float(text) <= 1:
        percent = 1 < float(text) <= 100
        message = f"{name} is a share of each GPU's memory, above 0 and up to 1, not {text}"
        yield Finding(WRONG, "out-of-range", message, f"{name} {float(text) / 100 if percent else 0.92:g}", *place)
    elif name == "--quantization":
        yield from _quantization(text, place)
    elif name in ("--tool-call-parser", "--reasoning-parser") and text not in data("vllm_flags.json")["values"][name]:
        known = data("vllm_flags.json")["values"][name]
        near = nearest_of(text, known)
        message = f"this vLLM has no parser {text!r}"
        yield Finding(
            WRONG, "not-a-choice", message, f"{name} {near}?" if near else f"one of {', '.join(known[:8])} ...", *place
        )
    elif name in ("--port", "--master-port") or name in ONE_AND_MORE or name == "--node-rank":
        yield from check_number(given, name)
    elif (
        name == "--distributed-executor-backend"
        and text not in ("mp", "ray", "uni", "external_launcher")
        and "." not in text
    ):
        yield Finding(
            WRONG,
            "not-a-choice",
            f"there is no backend {text!r}: mp, ray, uni, external_launcher",
            f"{name} mp",
            *place,
        )


def _quantization(text: str, place: tuple[int, int]) -> Iterator[Finding]:
    known = data("vllm_flags.json")["values"]["--quantization"]
    gone = data("old.toml")["values"]["--quantization"].get(text)
    if text in known or text == "None":
        return
    if gone is not None:
        since = f"since {gone['gone']} ({gone['had']} had it)" if gone else "since before 0.9"
        message = f"vLLM itself has no quantization {text!r} {since}"
        yield Finding(
            REMOVED,
            "removed-value",
            message,
            "a checkpoint quantized as awq, gptq or fp8, and no --quantization",
            *place,
        )
        return
    near = nearest_of(text.lower().replace("_", "-"), known) or nearest_of(text.lower(), known)
    message = f"there is no quantization {text!r}: {', '.join(known[:6])} ..."
    fix = (
        f"--quantization {near}, or leave it out: the checkpoint says it"
        if near
        else "leave it out: the checkpoint says it"
    )
    yield Finding(WRONG, "not-a-choice", message, fix, *place)


def nearest_of(text: str, known) -> str | None:

    return next(iter(difflib.get_close_matches(text[:60], list(known), 1, 0.6)), None)


def check_number(given: Given, name: str, words: tuple[str, ...] = ()) -> Iterator[Finding]:
    value = given.value
    if value is None or value.unknown or value.text in words or placeholder(value, name):
        return
    number = whole_number(value.text)
    if number is None:
        if name == "--nnodes" and value.text.replace(":", "").isdigit():
            return
        yield Finding(
            WRONG, "wrong-type", f"{name} takes a whole number, not {value.text!r}", f"{name} 1", value.start, value.end
        )
    elif "port" in name and not 1 <= number <= 65535 and not (number == 0 and given.flag.kind == "integer"):
        yield Finding(
            WRONG,
            "out-of-range",
            f"a port is from 1 to 65535, not {value.text[:20]}",
            f"{name} 8000",
            value.start,
            value.end,
        )
    elif (name in ONE_AND_MORE and number < 1) or (name == "--node-rank" and number < 0):
        least = 1 if name in ONE_AND_MORE else 0
        yield Finding(
            WRONG,
            "out-of-range",
            f"{name} must be at least {least}, not {value.text[:20]}",
            f"{name} {least}",
            value.start,
            value.end,
        )
    elif "port" in name and 0 < number < 1024:
        yield Finding(
            ADVICE, "low-port", f"only root may listen on port {number}", f"{name} 8000", value.start, value.end
        )


def _repaired(given: Given, text: str) -> str:
    name = given.name
    digits = text.replace(",", "").replace("_", "").replace(" ", "")
    if given.flag.kind in ("integer", "tokens", "tokens or auto") and whole_number(digits) is not None:
        return f"{name} {digits}"
    if given.flag.kind == "number" and text.endswith("%") and takes_value("number", text[:-1]):
        return f"{name} {float(text[:-1]) / 100:g}"
    if given.flag.kind == "integer" and takes_value("number", text) and len(text) < 20:
        return f"{name} {int(float(text))}" if abs(float(text)) < 1 << 53 else f"{name} NUMBER"
    if given.flag.kind == "json":
        return f'{name} \'{{"key": "value"}}\''
    return f"{name} NUMBER"


def mended_value(given: Given, text: str) -> str | None:
    """``text`` if the flag can have it, what was meant if that is plain, else None."""
    if text == "" or "." in given.name:
        return text or None
    if placeholder(given.value, given.name):
        open_ended = given.flag.kind == "text" and not given.flag.choices
        return text if open_ended and given.name not in data("vllm_flags.json")["values"] else None
    wrong = [finding for finding in _value(given, text, 0, 1) if finding.blocks]
    if not wrong:
        return text
    fixed = wrong[0].fix.partition(",")[0].removesuffix("?").split(" ")
    if len(fixed) != 2 or fixed[0] != given.name or fixed[1] in ("1", "NUMBER") or "-parser" in given.name:
        return None
    again = [finding for finding in _value(given, fixed[1], 0, 1) if finding.blocks]
    return None if again else fixed[1]
