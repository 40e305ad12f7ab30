"""What is wrong with a model, in one sentence for the person who named it."""

from localai_clusters.errors import PlainError


class ModelError(PlainError, ValueError):
    """A model cannot be used; the message says what is wrong and what to type instead."""

    __module__ = "localai_clusters.models"  # its public name: a traceback that a student sees shows it
