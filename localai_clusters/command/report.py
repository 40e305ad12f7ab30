"""A command explained: its parts, what is wrong with it, and the commands that work."""

from dataclasses import asdict, dataclass
from typing import Any

from localai_clusters.command.correcting import Server
from localai_clusters.command.findings import NOTE, UNSAFE, Finding
from localai_clusters.command.meaning import Part
from localai_clusters.plan import ServePlan


@dataclass(frozen=True, slots=True)
class CommandReport:
    """``text`` is what was given, with secrets blotted out; places in it are those of the parts and findings.

    ``reason`` says why the text cannot be judged; then there is nothing else.
    """

    text: str
    parts: tuple[Part, ...] = ()
    findings: tuple[Finding, ...] = ()
    servers: tuple[Server, ...] = ()
    reason: str = ""

    @property
    def works(self) -> bool | None:
        """Whether the command would work as it stands; None if that cannot be said."""
        if self.reason:
            return None
        return not any(finding.blocks for finding in self.findings)

    @property
    def plans(self) -> tuple[ServePlan, ...]:
        return tuple(server.plan for server in self.servers if server.plan is not None)

    @property
    def title(self) -> str:
        if self.reason:
            return f"This cannot be judged: {self.reason}"
        if not self.works:
            return "This does not work as it stands"
        return "This works as it stands" + (", but is not safe" if self.is_unsafe else "")

    @property
    def is_unsafe(self) -> bool:
        return any(finding.severity == UNSAFE for finding in self.findings)

    def severities(self) -> dict[int, str]:
        """For each part's number, from 1 on, how bad the worst that is said of it is; notes do not count."""
        worst: dict[int, str] = {}
        for finding in reversed(self.findings):
            for number, part in enumerate(self.parts, 1):
                if finding.severity != NOTE and part.start < finding.end and finding.start < part.end:
                    worst[number] = finding.severity
        return worst

    def to_dict(self) -> dict[str, Any]:
        return {
            "works": self.works,
            "reason": self.reason,
            "text": self.text,
            "parts": [asdict(part) for part in self.parts],
            "findings": [asdict(finding) | {"blocks": finding.blocks} for finding in self.findings],
            "servers": [server.to_dict() for server in self.servers],
        }

    def __str__(self) -> str:
        from localai_clusters.command.show import as_text

        return as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from localai_clusters.command.page import as_html

        return as_html(self)
