"""Exercises that check an answer, hint at it and explain it.

    from localai_clusters.exercises import Check, Choice, Number, Several, Text

Each is a definition without a student: what is asked, how an answer is judged, the hints and the solution. ``open_lab``
(opened.py) binds the definitions of a lab to one notebook and counts what the student did.
"""

from localai_clusters import lazy

_WHERE = {
    "Number": "number",
    "Choice": "choice",
    "Several": "choice",
    "Text": "text",
    "Check": "checked",
    "Exercise": "exercise",
    "Lab": "opened",
    "open_lab": "opened",
}
__all__ = [*_WHERE]
__getattr__, __dir__ = lazy.names(__name__, _WHERE)
