"""Errors that a notebook shows as their message: what a student reads is the cause, not our stack."""

import json


class PlainError(Exception):
    """Base of the errors that a user can cause. IPython asks an exception how it wants to be shown."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


def server_words(text: str) -> str:
    """vLLM's own words in the body of an error answer, else the body as it came."""
    try:
        return json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return text[:500]
