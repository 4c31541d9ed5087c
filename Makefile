# Everything runs in .venv, which the first target that needs it sets up. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.stamp
MAKEFLAGS += --no-print-directory

.PHONY: help train test mutants check lint types base format clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

train: $(STAMP)  ## train, then evaluate; ARGS="--config local" passes options on
	@$(VENV_PYTHON) train.py $(ARGS)

test: $(STAMP)  ## run the unit tests; ARGS="-k search" passes options on
	@OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -q $(ARGS)

mutants: $(STAMP)  ## plant mistakes in a copy, see which test catches each; ARGS="-k sign" chooses
	@OMP_NUM_THREADS=1 $(VENV_PYTHON) -m tests.mutants $(ARGS)

check:  ## what CI runs: lint, types, tests
	@$(MAKE) lint types
	@$(MAKE) test

lint: $(STAMP)  ## ruff: rules and format, changes nothing
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .

types: $(STAMP)  ## mypy, strict, on the package
	@$(VENV_PYTHON) -m mypy

base: $(STAMP)  ## make the embedded base model anew
	@$(VENV_PYTHON) -m recipes.embedded_base.make_base $(ARGS)

format: $(STAMP)  ## let ruff sort imports, fix what it can and format
	@$(VENV_PYTHON) -m ruff check --fix --quiet --exit-zero .
	@$(VENV_PYTHON) -m ruff format .

clean:  ## remove caches and build products; keeps .venv and runs/
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed and '$(PYTHON)' is not that: name one, as in 'make train PYTHON=python3.12'." >&2; exit 1; }
	@echo "Setting up $(VENV): the first time this downloads PyTorch and takes some minutes." >&2
	@$(PYTHON) -m venv $(VENV)
	@$(VENV_PYTHON) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
