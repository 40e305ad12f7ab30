"""What is found in a command: where, how bad, why, and what to type."""

from dataclasses import dataclass

WRONG = "wrong"  # it is refused, or does something else than it says
REMOVED = "removed"  # it existed once
ADDS_UP = "does not add up"  # numbers that contradict each other
FILL_IN = "fill in"  # only the user can know
UNSAFE = "unsafe"
ADVICE = "advice"
NOTE = "note"
SEVERITIES = (WRONG, REMOVED, ADDS_UP, FILL_IN, UNSAFE, ADVICE, NOTE)
BLOCKING = frozenset((WRONG, REMOVED, ADDS_UP, FILL_IN))


@dataclass(frozen=True, slots=True)
class Finding:
    """``start`` and ``end`` are the place in the text that was given; both 0: it is about the whole."""

    severity: str
    code: str
    message: str
    fix: str = ""
    start: int = 0
    end: int = 0

    @property
    def blocks(self) -> bool:
        """Whether the command does not work as it stands."""
        return self.severity in BLOCKING
