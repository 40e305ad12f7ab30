#!/usr/bin/env bash
# Gradescope runs this once, as root, when it builds the autograder's image. Grading needs no vLLM and no torch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python3 -m pip --version >/dev/null 2>&1 || { apt-get update && apt-get install -y --no-install-recommends python3-pip; }
python3 -m venv --help >/dev/null 2>&1 || apt-get install -y --no-install-recommends python3-venv
python3 -m pip install --quiet uv || python3 -m pip install --quiet --break-system-packages uv
python3 -m uv venv --quiet --python 3.11 venv   # uv fetches Python 3.11 where the image has another one
python3 -m uv pip install --quiet --python venv/bin/python -r requirements.txt
