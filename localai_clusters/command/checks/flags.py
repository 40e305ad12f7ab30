"""Flags that do not exist, never did, or cannot have the value they were given."""

from collections.abc import Iterator

from localai_clusters.command.checks.program import contradiction, to_fill_in
from localai_clusters.command.checks.values import check_number
from localai_clusters.command.deployment import placeholder
from localai_clusters.command.findings import NOTE, REMOVED, WRONG, Finding
from localai_clusters.command.flags import Given
from localai_clusters.command.launch import OFF, OURS, Launch, own_flags
from localai_clusters.command.tables import data, our_table, torchrun_table, vllm_table

SAME_AS_DEFAULT = {"--enable-chunked-prefill": "chunked prefill", "--enable-prefix-caching": "prefix caching"}


def check_torchrun_flags(launch: Launch) -> Iterator[Finding]:
    if not launch.serves or not launch.is_torchrun:
        return
    for given in launch.launcher_args.given:
        if given.problem:
            yield _problem(given, "torchrun", torchrun_table().nearest(given.name))
        elif given.name in ("--nnodes", "--nproc-per-node", "--node-rank", "--master-port"):
            yield from check_number(
                given, given.name, ("gpu", "auto", "cpu", "xpu") if given.name == "--nproc-per-node" else ()
            )
        if given.flag and (found := placeholder(given.value, given.name)):
            yield to_fill_in(found, given.name, given.value.start, given.value.end)


def check_flags(launch: Launch) -> Iterator[Finding]:
    """Every flag of the server: known, once known, or never."""
    if not launch.serves:
        return
    old = data("old.toml")
    own = {given.start for given in own_flags(launch)} if launch.program == OURS else set()
    for given in launch.args.given:
        if given.start in own:
            if given.problem:
                yield _problem(given, "localai-clusters serve", our_table().nearest(given.name))
            continue
        if given.problem == "unknown-flag" and (gone := old["flags"].get(given.name)):
            yield _removed(given, gone)
        elif given.problem in ("unknown-flag", "ambiguous-flag"):
            yield _unknown(given, old)
        elif given.problem:
            yield _problem(given, "vLLM", None)
        elif given.flag and given.flag.deprecated:
            yield Finding(NOTE, "deprecated-flag", f"{given.name} is announced to go", "", given.start, given.end)
        elif given.flag and not given.negated and (feature := SAME_AS_DEFAULT.get(given.name)):
            message = f"{feature} is on by itself, where the model allows it"
            yield Finding(NOTE, "default", message, f"leave {given.name} out", given.typed.start, given.typed.end)


def check_repeats(launch: Launch) -> Iterator[Finding]:
    """The same flag twice: the last one counts."""
    if not launch.serves:
        return
    for table in (launch.args.given, launch.launcher_args.given):
        seen: dict[str, Given] = {}
        for given in table:
            if given.problem or "." in given.name or given.name in ("--middleware", "--skip-check"):
                continue
            earlier = seen.get(given.name)
            seen[given.name] = given
            if earlier is None:
                continue
            before, after = _shown(earlier), _shown(given)
            if before == after:
                yield Finding(
                    NOTE, "given-twice", f"{given.name} is given twice", "leave one out", given.start, given.end
                )
            else:
                message = f"{given.name} is given twice, as {before} and as {after}; the last one counts"
                yield contradiction("given-twice", message, f"{after}, once", given.start, given.end)


def check_pairs(launch: Launch) -> Iterator[Finding]:
    """Flags that need another, or exclude one (vllm/entrypoints/launchers/cli_args.py, validate_parsed_serve_args)."""
    if not launch.serves:
        return
    last = launch.args.last
    if (auto := last("--enable-auto-tool-choice")) and not auto.negated and not last("--tool-call-parser"):
        message = "--enable-auto-tool-choice needs --tool-call-parser, which says how this model calls tools"
        yield Finding(WRONG, "needs", message, "--tool-call-parser hermes (or the model's own)", auto.start, auto.end)
    if (outputs := last("--enable-log-outputs")) and not outputs.negated and not last("--enable-log-requests"):
        yield Finding(WRONG, "needs", "--enable-log-outputs needs --enable-log-requests", "--enable-log-requests",
                      outputs.start, outputs.end)  # fmt: skip
    if (headless := last("--headless")) and (count := last("--api-server-count")) and count.value.text not in ("0",):
        yield contradiction("needs", "--headless means no API server, and --api-server-count asks for some",
                            "leave --api-server-count out", headless.start, headless.end)  # fmt: skip
    if config := last("--config"):
        message = "what that file sets is not known here; the command line wins where both say something"
        yield Finding(NOTE, "config-file", message, "", config.start, config.end)
    modules, enabled = last("--lora-modules"), last("--enable-lora")
    if modules and not enabled:
        yield Finding(WRONG, "needs", "--lora-modules needs --enable-lora", "--enable-lora", modules.start, modules.end)


def _problem(given: Given, program: str, nearest: str | None) -> Finding:
    place = given.start, given.end
    if given.problem == "missing-value":
        return Finding(WRONG, "missing-value", f"{given.typed.text} needs a value", f"{given.name} VALUE", *place)
    if given.problem == "takes-no-value":
        value = given.value.text
        off = value.lower() in OFF
        fix = (
            f"--no-{given.name[2:]}"
            if off and given.flag and f"--no-{given.name[2:]}" in given.flag.names
            else given.name
        )
        return Finding(WRONG, "takes-no-value", f"{given.name} is a switch; {program} refuses ={value}", fix, *place)
    if given.problem == "single-dash":
        message = f"{given.typed.text} has one dash; {program} takes long flags with two"
        return Finding(WRONG, "single-dash", message, given.name, *place)
    if given.problem == "quoted-together":
        message = "flag and value stand in one pair of quotes, so they are one word, which is no flag"
        return Finding(WRONG, "quoted-together", message, given.detail, *place)
    if given.problem == "ambiguous-flag":
        message = f"{given.typed.text} could be the beginning of several flags"
        return Finding(WRONG, "unknown-flag", message, f"one of {given.detail}", *place)
    fix = f"{nearest}?" if nearest else "leave it out"
    return Finding(WRONG, "unknown-flag", f"{program} has no {given.typed.text}", fix, *place)


def _removed(given: Given, gone: dict) -> Finding:
    since = f"since {gone['gone']} (vLLM {gone['had']} had it)" if gone.get("had") else "since before 0.9"
    message = f"vLLM has no {given.name} {since}: {gone['why']}"
    if gone.get("rename") and not gone.get("drop_value"):
        fix = " ".join([gone["rename"], *(value.text for value in given.values)])
    elif given.value is not None and (by := gone.get("replace")) is not None and by.get(given.value.text):
        fix = " ".join(by[given.value.text])
    else:
        fix = "leave it out"
    return Finding(REMOVED, "removed-flag", message, fix, given.start, given.end)


def _unknown(given: Given, old: dict) -> Finding:
    name, place = given.name, (given.start, given.end)
    if package := old["packages"].get(name):
        message = f"{name} is not vLLM's; it is there where the package {package} is installed"
        return Finding(WRONG, "unknown-flag", message, f"leave it out, or install {package}", *place)
    if same := old["foreign"].get(name):
        value = f" {given.value.text}" if given.value else ""
        return Finding(WRONG, "unknown-flag", f"vLLM has no {name}; other servers do", f"{same}{value}", *place)
    if given.problem == "ambiguous-flag":
        return _problem(given, "vLLM", None)
    short_named = given.typed.text.startswith("-") and not given.typed.text.startswith("--")
    nearest = vllm_table().nearest(name) or (vllm_table().nearest("-" + name) if short_named else None)
    return Finding(WRONG, "unknown-flag", f"vLLM 0.32 has no {given.typed.text}",
                   f"{nearest}?" if nearest else "leave it out", *place)  # fmt: skip


def _shown(given: Given) -> str:
    """What was given, if it may be said again."""
    if given.name in ("--api-key", "--hf-token"):
        return "another" if given.values else "nothing"
    if given.negated or not given.values:
        return given.typed.text
    return " ".join(value.text for value in given.values)
