# Everything but test-newest runs in .venv, which the first target that needs it sets up. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.stamp
NEWEST := .venv-newest
MAKEFLAGS += --no-print-directory
# processes that the tests are shared by, a file each at a time; WORKERS=0 runs them in one, as a debugger needs
WORKERS ?= 2
PYTEST := -m pytest -q -rs -n $(WORKERS) --dist loadfile

.PHONY: help train test test-pages test-newest coverage mutants crash check lint types base docs format clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

train: $(STAMP)  ## train, then evaluate; ARGS="--config local" passes options on
	@$(VENV_PYTHON) train.py $(ARGS)

test: $(STAMP)  ## run the unit tests; ARGS="-k search" passes options on
	@OMP_NUM_THREADS=1 $(VENV_PYTHON) $(PYTEST) $(ARGS)

test-pages: $(STAMP)  ## look at pages in a headless Chromium, if there is one: all tests of tests/test_browser.py
	@OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -q -rs -m "slow or not slow" tests/test_browser.py

test-newest:  ## the same with the newest versions of all but torch, installed anew in .venv-newest
	@rm -rf $(NEWEST)
	$(call set_up,$(NEWEST),"$$(grep '^torch==' constraints.txt)")
	@$(NEWEST)/bin/python .ci/versions.py
	@OMP_NUM_THREADS=1 $(NEWEST)/bin/python $(PYTEST) $(ARGS)

coverage: $(STAMP)  ## branches of the package that the unit tests run, in their own process: at least 95 %
	@OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -q --cov=tinyzero_astar --cov-branch --cov-fail-under=95 \
	  --cov-report=term-missing:skip-covered $(ARGS)

mutants: $(STAMP)  ## plant mistakes in a copy, see which test catches each; ARGS="-k sign" chooses
	@OMP_NUM_THREADS=1 $(VENV_PYTHON) -m tests.mutants $(ARGS)

crash: $(STAMP)  ## kill runs at random moments, fill their disk, cut its power; ARGS="--kills 10" passes options on
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(VENV_PYTHON) -m benchmarks.crash $(ARGS)

check:  ## lint, types, tests; CI runs these and test-newest
	@$(MAKE) lint types
	@$(MAKE) test

lint: $(STAMP)  ## ruff: rules and format, changes nothing
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .

types: $(STAMP)  ## mypy, strict, on the package
	@$(VENV_PYTHON) -m mypy

base: $(STAMP)  ## make the embedded base model anew
	@$(VENV_PYTHON) -m recipes.embedded_base.make_base $(ARGS)

docs: $(VENV)/.docs  ## build the site in build/site, open build/site/index.html; fails on a broken link
	@NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs build --strict --quiet

format: $(STAMP)  ## let ruff sort imports, fix what it can and format
	@$(VENV_PYTHON) -m ruff check --fix --quiet --exit-zero .
	@$(VENV_PYTHON) -m ruff format .

clean:  ## remove caches and build products; keeps .venv and runs/
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .coverage $(NEWEST)
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	$(call set_up,$(VENV),-c constraints.txt)
	@touch $@

$(VENV)/.docs: $(STAMP)
	@$(VENV_PYTHON) -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[docs]' >&2
	@touch $@

# $(call set_up,FOLDER,WHICH): an environment with what `.[dev]` asks for; WHICH tells pip the versions.
define set_up
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed and '$(PYTHON)' is not that: name one, as in 'make train PYTHON=python3.12'." >&2; exit 1; }
	@echo "Setting up $1 takes some minutes the first time: pip downloads PyTorch and other packages. On Linux that is PyTorch's" >&2
	@echo "CUDA build: 2.8 GB, 5 GB on disk. README.md says how to take the CPU build, a tenth of that." >&2
	@$(PYTHON) -m venv $1
	@$1/bin/python -m pip install --disable-pip-version-check $2 -e '.[dev]' >&2
endef
