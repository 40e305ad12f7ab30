# What there is to do here, one target each. `make` alone lists them.
STUDENT ?= $(or $(USER),student)
PYTEST_ARGS ?=
BENCH_ARGS ?=
STARTUP_ARGS ?=
SOAK_ARGS ?=
LOCK_ARGS ?=
NOTEBOOKS = $(wildcard course/*.ipynb labs/*/*.ipynb)

.DEFAULT_GOAL := help
.PHONY: help setup run lab test browser lint soak bench startup lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-7s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: ## make or update .venv (nothing to do: 0.01 s)
	@bash setup.sh

run: setup ## run chapter 7 headless and write its checkpoint (STUDENT=name)
	.venv/bin/localai-clusters lab 07 -p "student=$(STUDENT)"

# No popup that asks about news, and no look-up of newer versions: a class room may be offline.
lab: setup ## open chapter 7 in JupyterLab
	@.venv/bin/jupyter labextension disable @jupyterlab/apputils-extension:announcements >/dev/null 2>&1
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/jupyter lab \
	  --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate course/07_vllm_distributed_serving.ipynb

# Lint first: it takes a second. Exit code 5: nothing of that kind was asked for with -k or a file's name.
test: lint browser ## lint, then the tests (PYTEST_ARGS="-k plan -x")
	@status=0; \
	.venv/bin/python -m pytest -n auto --dist loadfile -m "not alone and not extended" $(PYTEST_ARGS) || [ $$? = 5 ] || status=1; \
	.venv/bin/python -m pytest -m "alone and not extended" $(PYTEST_ARGS) || [ $$? = 5 ] || status=1; \
	exit $$status

# The labs are tested in a real browser; as root on Debian or Ubuntu it is installed here.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && { apt-get install -qq --no-install-recommends chromium >/dev/null 2>&1 \
	  || { apt-get update -qq && apt-get install -qq --no-install-recommends chromium >/dev/null; }; }; } \
	  || { echo "the tests need Chromium: sudo apt-get install chromium" >&2; exit 1; }

lint: setup ## ruff, and notebooks committed without output
	.venv/bin/ruff check localai_clusters tests bench
	$(if $(NOTEBOOKS),.venv/bin/nbstripout --verify $(NOTEBOOKS))

soak: setup ## the tests that CI leaves out, and 50 kills drawn from a seed: 20 minutes (SOAK_ARGS="--seed 7 --count 200")
	.venv/bin/python -m pytest -m extended $(PYTEST_ARGS)
	.venv/bin/python tests/kills.py --count 50 $(SOAK_ARGS)

bench: setup ## measure serving against plain vLLM (BENCH_ARGS="--split tp --rounds 1")
	.venv/bin/python -m bench.serve_ratio --markdown $(BENCH_ARGS)

startup: setup ## where the seconds of a start go (STARTUP_ARGS=--imports)
	.venv/bin/python -m bench.startup $(STARTUP_ARGS)

lock: ## write requirements/*.txt anew from pyproject.toml (LOCK_ARGS=--upgrade)
	@bash setup.sh --lock $(LOCK_ARGS)

clean: ## remove .venv, .tools and caches; what students recorded stays
	rm -rf .venv .tools .pytest_cache .ruff_cache build *.egg-info
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
