"""Errors that a notebook shows as their message: what a student reads is the cause, not our stack."""


class PlainError(Exception):
    """Base of the errors that a user can cause. IPython asks an exception how it wants to be shown."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]
