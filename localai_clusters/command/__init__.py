"""Commands that people paste, read and explained: what each part means, what is wrong with it, what to type instead.

Nothing is ever run. ``explain_command(text)`` gives a ``CommandReport``.
"""

from localai_clusters import lazy

_WHERE = {"explain_command": "explaining", "CommandReport": "report"}
__all__ = [*_WHERE]
__getattr__, __dir__ = lazy.names(__name__, _WHERE)
