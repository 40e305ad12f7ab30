"""``python -m localai_clusters``: the command, where no script is installed."""

from localai_clusters.cli import main

if __name__ == "__main__":
    main(prog_name="localai-clusters")
