"""Runs a chapter's notebook without a browser (papermill), strictly: an unknown or ill-typed parameter is an error."""

import ast
import difflib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localai_clusters.errors import PlainError

CHECKPOINT_MIME = "application/vnd.localai-clusters.checkpoint+json"
VERDICT_MIME = "application/vnd.localai-clusters.verdict+json"  # of an exercise
KERNEL = "python3"  # jupyter_client runs it with the Python that runs this


class LabFailed(PlainError, RuntimeError):
    """A notebook was run and did not do what it should; the message names the cell and its error."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One variable of a notebook's parameters cell. ``default`` is Python source."""

    name: str
    type: str
    default: str
    help: str


@dataclass(frozen=True, slots=True)
class Result:
    """The executed notebook, the checkpoints that it wrote with what each proves, what each ``check`` said last."""

    notebook: Path
    checkpoints: tuple[tuple[Path, str], ...]
    verdicts: tuple[Mapping[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        checkpoints = [{"path": str(path), "proves": proves} for path, proves in self.checkpoints]
        found = {"notebook": str(self.notebook), "checkpoints": checkpoints}
        return {**found, "exercises": [dict(verdict) for verdict in self.verdicts]} if self.verdicts else found


def course_root() -> Path:
    """The course's checkout: the folder above this package, or the working directory outside a checkout."""
    above = Path(__file__).resolve().parent.parent
    return above if (above / "course").is_dir() else Path.cwd()


def find_notebook(name: str) -> Path:
    """The notebook for ``07``, ``7``, its full name or its path. ``ValueError`` lists what there is."""
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name)
    notebooks = sorted((course_root() / "course").glob("*.ipynb"))
    wanted = name.zfill(2) if name.isdigit() else name
    for notebook in notebooks:
        if notebook.stem == wanted or notebook.stem.partition("_")[0] == wanted:
            return notebook
    known = ", ".join(notebook.stem for notebook in notebooks) or "none"
    raise ValueError(f"there is no lab {name!r}; there is: {known}")


def parameters_of(notebook: Path) -> list[Parameter]:
    """The variables of the parameters cell, in order, typed by their annotations."""
    from jsonschema import ValidationError
    from papermill import inspect_notebook

    try:
        found = inspect_notebook(_literally(notebook)).values()
    except ValidationError as error:
        raise ValueError(f"{notebook} is not a notebook: {error.message}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{notebook} is not a notebook: {error}") from error
    return [
        Parameter(p["name"], _type_of(p["inferred_type_name"], p["default"]), p["default"], p["help"] or "")
        for p in found
    ]


def _type_of(annotation: str, default: str) -> str:
    if annotation not in ("None", "", None):
        return annotation
    try:
        return type(ast.literal_eval(default)).__name__
    except (ValueError, SyntaxError):  # an expression: Path("x")
        return "str"


def parse_parameters(notebook: Path, given: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` texts as values of the notebook's own types. ``ValueError`` lists the known parameters."""
    known = {parameter.name: parameter for parameter in parameters_of(notebook)}
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r} is not NAME=VALUE; for example -p student=s123")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            listed = "\n".join(f"  {p.name}: {p.type} = {p.default}" for p in known.values())
            raise ValueError(f"{notebook.stem} has no parameter {name!r}{hint}\nIt has:\n{listed}")
        values[name] = _convert(known[name], value)
    return values


def _convert(parameter: Parameter, text: str) -> Any:
    try:
        match parameter.type:
            case "int":
                return int(text)
            case "float":
                return float(text)
            case "bool":
                return {"true": True, "false": False}[text.lower()]
            case _:
                return text
    except (ValueError, KeyError):
        article = "an" if parameter.type[0] in "aeiou" else "a"
        expected = f"{article} {parameter.type} (default {parameter.default})"
        raise ValueError(f"parameter {parameter.name} is {expected}, not {text!r}") from None


def run(
    notebook: Path, parameters: dict[str, Any], output: Path | None = None, folder: Path | None = None
) -> Result:
    """Execute ``notebook`` with a progress bar, in ``folder`` (its own). Raises ``LabFailed`` if a cell fails or no
    checkpoint was written."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    output = output or course_root() / "runs" / f"{notebook.stem}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.ipynb"
    if output.resolve() == notebook.resolve():
        raise ValueError(f"{output} is the notebook itself; name another file for the executed one")
    output.parent.mkdir(parents=True, exist_ok=True)
    settings = {"parameters": parameters, "kernel_name": KERNEL, "progress_bar": True, "cwd": folder or notebook.parent}
    settings["kernel_manager_class"] = _kernel_manager(output.absolute().with_suffix(".kernel.log"))
    try:
        executed = papermill.execute_notebook(_literally(notebook), _literally(output), **settings)
    except papermill.PapermillExecutionError as error:
        message = f"cell [{error.exec_count}] of {notebook.name} failed: {_reason(error)}\nexecuted notebook: {output}"
        raise LabFailed(message) from None
    except DeadKernelError:
        message = f"the Python that ran {notebook.name} was killed or crashed\nexecuted notebook: {output}"
        raise LabFailed(message) from None
    found = tuple((Path(data["path"]), data["proves"]) for data in _shown(executed, CHECKPOINT_MIME))
    if not found:
        raise LabFailed(f"{notebook.name} ran to its end and wrote no checkpoint\nexecuted notebook: {output}")
    verdicts = {data["id"]: data for data in _shown(executed, VERDICT_MIME)}
    return Result(output, found, tuple(verdicts.values()))


def _literally(path: Path) -> str:
    """``path`` for papermill, which takes braces in it for a template."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _kernel_manager(log: Path):
    """A kernel manager whose kernel writes its own complaints to ``log``: interrupted, it prints tracebacks."""
    from jupyter_client import AsyncKernelManager

    class LoggingKernelManager(AsyncKernelManager):
        async def _async_start_kernel(self, **options):
            with open(log, "ab") as stderr:
                await super()._async_start_kernel(**options, stderr=stderr)

        start_kernel = _async_start_kernel

    return LoggingKernelManager


def _reason(error) -> str:
    value = str(error.evalue).strip()
    return f"{error.ename}: {value}" if value else error.ename


def _shown(executed, mime: str) -> Iterator[Mapping[str, str]]:
    """What ``recording.Recorded`` and ``exercises.notes.Verdict`` left in the outputs."""
    for cell in executed.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {}).get(mime)
            if data:
                yield data
