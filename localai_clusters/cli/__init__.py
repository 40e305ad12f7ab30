"""``localai-clusters VERB``: a thin function per verb. Exit code 0: it holds; 1: it does not; 2: undecided."""

from localai_clusters.cli.verbs import main

__all__ = ["main"]
