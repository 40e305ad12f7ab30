"""From a pasted text to a report on it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from localai_clusters.command.checks import DEPLOYMENT_CHECKS, LAUNCH_CHECKS
from localai_clusters.command.correcting import corrected
from localai_clusters.command.deployment import deployments
from localai_clusters.command.findings import FILL_IN, NOTE, SEVERITIES, WRONG, Finding
from localai_clusters.command.launch import Launch
from localai_clusters.command.launchers import launches
from localai_clusters.command.meaning import parts
from localai_clusters.command.reading import MAX_CHARACTERS, MAX_COMMANDS, MAX_WORDS, Reading, read
from localai_clusters.command.report import CommandReport
from localai_clusters.command.secret import hidden, without

FINDINGS_SHOWN = 100
SERVERS_SHOWN = 20
ODDITIES = {
    "typographic-quotes": ("typographic quotes, as web pages make them: a shell takes them for letters",
                           "\" or ' in their place"),
    "long-dash": ("a long dash, as web pages and word processors make it: no program takes it for a flag's --", "--"),
    "odd-space": ("a space that is none to a shell (it came with the copying)", "delete it and type a space"),
    "space-after-backslash": ("a blank after the backslash: the line is not continued, and the command ends here",
                              "nothing after the \\"),
    "comment-after-backslash": ("a comment after the backslash: the line is not continued, and the command ends here",
                                "nothing after the \\"),
    "missing-backslash": ("the line does not end in a backslash, so the command ends here and its flags are lost",
                          "\\ at the end of the line"),
    "ellipsis": ("... stands for something that was left out", "what belongs there"),
    "unclosed-quote": ("this quote is never closed: a shell waits for more", "the closing quote"),
    "other-shell": ("this continues a line in PowerShell or cmd; bash wants a backslash", "\\"),
}  # fmt: skip


def explain_command(text: str) -> CommandReport:
    """What a pasted torchrun, vllm, python -m vllm..., docker or localai-clusters command means, what is wrong with it,
    and the commands that work. ``text`` may hold several commands; it is only read. Raises ``TypeError`` for no text.
    """
    if not isinstance(text, str):
        raise TypeError(f"explain_command reads a text, not {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        return CommandReport("", reason=f"{len(text):,} characters; a command has at most {MAX_CHARACTERS:,}")
    reading = read(text)
    if reading.is_too_long:
        return CommandReport("", reason=f"more than {MAX_COMMANDS} commands, or {MAX_WORDS} words in one of them")
    found = launches(reading, text)
    serving = [launch for launch in found if launch.serves]
    shown = hidden(text, found)
    if not serving:
        return CommandReport(
            shown, parts(found, reading.commands, shown), reason=without(found)(_no_server(text, found))
        )
    servers = deployments(found)
    blotted = without(found)
    findings = _sorted(_findings(text, reading, found, servers), blotted)
    mended = (corrected(server) for server in servers[:SERVERS_SHOWN])
    return CommandReport(
        shown,
        parts(found, reading.commands, shown),
        findings,
        tuple(
            replace(
                server,
                assumed=tuple(map(blotted, server.assumed)),
                left_out=tuple(map(blotted, server.left_out)),
                reason=blotted(server.reason),
            )
            for server in mended
        ),
    )


def _no_server(text: str, found: list[Launch]) -> str:
    if not text.strip():
        return "there is no text"
    kinds = {launch.program for launch in found}
    names = ", ".join(dict.fromkeys(launch.named[-1].text[:40] for launch in found if launch.named))[:120]
    if "compose" in kinds:
        return "docker compose takes its command from a file, which is not read here; paste the container's command"
    if "client" in kinds:
        return f"{names} is one of vLLM's commands that serve nothing"
    if "ray" in kinds:
        return "ray start makes a cluster and serves nothing; paste the vllm command that goes with it"
    if "other server" in kinds:
        return f"{names} is another program than vLLM"
    return (
        f"no command here starts a vLLM server (there is {names})" if names else "no command here starts a vLLM server"
    )


def _findings(text: str, reading: Reading, found: list[Launch], servers: list) -> Iterator[Finding]:
    seen: dict[str, int] = {}
    for oddity in reading.oddities:
        seen[oddity.name] = seen.get(oddity.name, 0) + 1
    for oddity in {oddity.name: oddity for oddity in reversed(reading.oddities)}.values():
        message, fix = ODDITIES[oddity.name]
        more = seen[oddity.name] - 1
        message += f" (here and in {more} more place{'s' * (more > 1)})" if more else ""
        yield Finding(
            FILL_IN if oddity.name == "ellipsis" else WRONG, oddity.name, message, fix, oddity.start, oddity.end
        )
    if "\r\n" in text:
        message = "lines end as Windows ends them; saved as a script, bash would stumble over each"
        yield Finding(NOTE, "crlf", message, "sed -i 's/\\r$//' FILE", 0, 0)
    for launch in found[:SERVERS_SHOWN]:
        for check in LAUNCH_CHECKS:
            yield from check(launch)
    for server in servers[:SERVERS_SHOWN]:
        for check in DEPLOYMENT_CHECKS:
            yield from check(server)


def _sorted(findings: Iterable[Finding], blotted: Callable[[str], str]) -> tuple[Finding, ...]:
    """The worst first, each once, with no secret in what is said."""
    found = (replace(one, message=_short(blotted(one.message)), fix=_short(blotted(one.fix))) for one in findings)
    order = sorted(dict.fromkeys(found), key=lambda finding: (SEVERITIES.index(finding.severity), finding.start))
    return tuple(order[:FINDINGS_SHOWN])


def _short(text: str) -> str:
    """What a user typed can be in a message, and can be long."""
    return text if len(text) <= 600 else text[:597] + "..."
