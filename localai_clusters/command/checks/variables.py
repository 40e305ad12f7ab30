"""Variables around the command."""

from collections.abc import Iterator

from localai_clusters.command.checks.program import contradiction, to_fill_in, unset
from localai_clusters.command.deployment import placeholder
from localai_clusters.command.findings import NOTE, Finding
from localai_clusters.command.launch import Launch
from localai_clusters.command.tables import data
from localai_clusters.command.words import NAME


def check_variables(launch: Launch) -> Iterator[Finding]:
    if not launch.serves:
        return
    known, gone = data("vllm_flags.json")["variables"], data("old.toml")["variables"]
    own = launch.command is not None
    for name, value in (launch.environment or {}).items():
        if name in gone:
            old = gone[name]
            message = f"vLLM does not read {name} since {old['gone']} ({old['had']} did): {old['why']}"
            yield Finding(NOTE, "variable-not-read", message, "leave it out", value.start, value.end)
        elif name.startswith("VLLM_") and name not in known and own:
            message = f"vLLM 0.32 does not read {name}"
            yield Finding(NOTE, "variable-not-read", message, "leave it out", value.start, value.end)
        if found := placeholder(value, name):
            yield to_fill_in(found, name, value.start, value.end)
    for name, value in (launch.not_exported or {}).items():
        if name in data("meanings.toml")["variables"] or name in known:
            message = f"{name} is set on a line of its own without export: the program does not see it"
            yield contradiction("not-exported", message, f"export {name}={value.text}", value.start, value.end)
    yield from _unset(launch)


def _unset(launch: Launch) -> Iterator[Finding]:
    """What only the user's shell knows, once each."""
    words = [value for given in (*launch.args.given, *launch.launcher_args.given) for value in given.values]
    words += [launch.model] if launch.model else []
    if launch.container:
        words += [given.value for given in launch.container.args.given if given.value]
        words += [launch.container.image] if launch.container.image else []
    words += list((launch.environment or {}).values())
    seen: set[str] = set()
    for word in words:
        for written in word.unknown:
            name = NAME.search(written)
            if not written.startswith("$") or written.startswith("$(") or written in seen or name is None:
                continue
            seen.add(written)
            if name[0] not in ("HOME", "USER", "PWD", "HOSTNAME"):
                yield unset(name[0], word.start, word.end, f"${name[0]}")
