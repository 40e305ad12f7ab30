"""A rank whose random numbers are its own: what tests/test_launch.py puts out of step. Run by torchrun."""

import os
import sys

from localai_clusters.serving.rank import main

sys.argv += ["--seed", os.environ["RANK"]]
main()
