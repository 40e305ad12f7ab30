"""How a verdict, a hint, a solution and a question look: text, and HTML that follows JupyterLab's theme."""

import html
from dataclasses import dataclass

from localai_clusters.exercises.exercise import BY_HAND, NOT_TRIED, RIGHT, WRONG, Status
from localai_clusters.lab import VERDICT_MIME

# Okabe and Ito's colours, which the colour-blind tell apart; a word says the same beside each.
MARKS: dict[str, tuple[str, str, str]] = {
    RIGHT: ("✓", "Right", "#009E73"),
    WRONG: ("✗", "Not right yet", "#D55E00"),
    NOT_TRIED: ("…", "Not tried yet", "#999999"),
    BY_HAND: ("✎", "For a person to mark", "#0072B2"),
    "hint": ("→", "Hint", "#E69F00"),
    "solution": ("=", "Solution", "#56B4E9"),
    "question": ("?", "Exercise", "#CC79A7"),
}


@dataclass(frozen=True, slots=True)
class Note:
    """A few lines below a heading. ``kind`` is a status, or hint, solution or question."""

    kind: str
    heading: str
    lines: tuple[str, ...]

    def __str__(self) -> str:
        mark, word, _ = MARKS[self.kind]
        return "\n".join([f"{mark} {word}: {self.heading}", *(f"  {line}" for line in self.lines if line)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        mark, word, colour = MARKS[self.kind]
        lines = "".join(f"<div>{html.escape(line)}</div>" for line in self.lines if line)
        head = f"<b><span aria-hidden='true'>{mark}</span> {word}</b>: {html.escape(self.heading)}"
        style = f"border-left:4px solid {colour};padding:2px 0 2px 10px;margin:2px 0"
        return f"<div role='status' style='{style}'><div>{head}</div>{lines}</div>"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ``check`` says: ``status`` is right, wrong, not-tried or by-hand."""

    id: str
    status: Status
    sentence: str
    next: str = ""
    question: tuple[str, ...] = ()  # what is asked and what an answer looks like, as long as there is none

    def _note(self) -> Note:
        return Note(self.status, self.id, (*self.question, self.sentence, self.next))

    def __str__(self) -> str:
        return str(self._note())

    __repr__ = __str__

    def _repr_mimebundle_(self, **_) -> dict[str, object]:
        said = {"id": self.id, "status": self.status, "sentence": self.sentence}
        return {"text/plain": str(self), "text/html": self._note()._repr_html_(), VERDICT_MIME: said}


@dataclass(frozen=True, slots=True)
class Help:
    """A hint or a solution, below what ``check`` said last: a cell shows its last line alone, and that is this one."""

    note: Note
    verdict: Verdict | None = None

    def __str__(self) -> str:
        return "\n".join(map(str, filter(None, (self.verdict, self.note))))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return (self.verdict._note()._repr_html_() if self.verdict else "") + self.note._repr_html_()

    def _repr_mimebundle_(self, **_) -> dict[str, object]:
        said = self.verdict._repr_mimebundle_() if self.verdict else {}
        return {**said, "text/plain": str(self), "text/html": self._repr_html_()}
