"""For who writes labs: from one source to the student's notebook, the solved one and the sealed exercises.

    labs/07_.../1_where_the_memory_goes.py ──▶ .ipynb    what a student opens; no solutions
                                           ├─▶ .sealed   the exercises, not in clear
                                           └─▶ (solved)  made when CI runs it, never kept
"""

from localai_clusters import lazy

_WHERE = {
    "read_source": "source",
    "build": "building",
    "stale": "building",
    "new_lab": "scaffold",
    "release": "archive",
}
__all__ = [*_WHERE]
__getattr__, __dir__ = lazy.names(__name__, _WHERE)
