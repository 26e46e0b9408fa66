# `make test` and `make demo` work from a fresh clone: the environment is made on first use.
#
#   make PYTHON=python3.12 test     another interpreter (used only when .venv is created)
#   make WORKERS=8 test             more pytest processes
#   make GPU_PYTHON=python3 check-gpu    an interpreter that has the dependencies; no .venv is made

PYTHON  ?= python3
WORKERS ?= 2

BIN    := .venv/bin
STAMP  := .venv/.installed
OLDEST := .venv-oldest

GPU_PYTHON ?= $(BIN)/python

# Exits with status 1 on an interpreter that is too old.
CHECK_VERSION := import sys; sys.exit(sys.version_info < (3, 11))

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-oldest coverage lint format docs check-site bench check-gpu dist clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

venv: $(STAMP)  ## create .venv and install the package with its dev extra

# A .venv without pip is what is left when the venv module could not finish; make it again.
$(STAMP): pyproject.toml
	@if ! test -x $(BIN)/pip; then \
	  command -v $(PYTHON) >/dev/null || \
	    { echo "error: '$(PYTHON)' not found; choose one with: make PYTHON=/path/to/python" >&2; exit 1; }; \
	  $(PYTHON) -c '$(CHECK_VERSION)' || \
	    { echo "error: Python 3.11 or newer is needed, but $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	           "choose another with: make PYTHON=python3.12" >&2; exit 1; }; \
	  echo "$(PYTHON) -m venv .venv"; $(PYTHON) -m venv .venv; \
	fi
	@$(BIN)/python -c '$(CHECK_VERSION)' || \
	  { echo "error: Python 3.11 or newer is needed, but .venv has $$($(BIN)/python --version 2>&1);" \
	         "delete .venv and choose another with: make PYTHON=python3.12" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## train a small model, sample, score; results in runs/demo
	$(BIN)/sde-models demo --out runs/demo

# One thread per process: the workers already fill the cores.
test: lint docs  ## lint, types, docs, and every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

coverage: $(STAMP)  ## every test, and the lines and branches that none of them runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --cov --cov-report=term

# Made anew when the declared versions change, since newer packages already there would be kept.
$(OLDEST)/.installed: pyproject.toml | $(STAMP)
	$(BIN)/python -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check --quiet uv
	$(OLDEST)/bin/uv pip install --python $(OLDEST)/bin/python --resolution lowest-direct -e '.[dev]'
	@touch $@

test-oldest: $(OLDEST)/.installed  ## every test with the lowest versions that pyproject.toml declares
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n $(WORKERS)

lint: $(STAMP)  ## ruff and mypy, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sde_models

format: $(STAMP)  ## apply ruff's fixes and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The variable silences the theme's announcement about MkDocs 2, which `mkdocs<2` leaves without force.
docs: $(STAMP)  ## run the tutorials and build the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

check-site: docs  ## open every page of the documentation in Chromium (Debian: apt install chromium)
	cd tools/pages && npm ci --no-audit --no-fund --loglevel=error
	node tools/pages/check_site.mjs site

bench: $(STAMP)  ## measure what solvers cost and give, compared with other libraries; about an hour
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e '.[bench]'
	$(BIN)/python benchmarks/samplers.py
	$(BIN)/python benchmarks/step_control.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/likelihood.py
	$(BIN)/python benchmarks/calibration.py
	$(BIN)/python benchmarks/density.py
	$(BIN)/python benchmarks/score_matching.py
	$(BIN)/python benchmarks/fokker_planck.py
	$(BIN)/python benchmarks/training_overhead.py

check-gpu: $(if $(filter $(BIN)/%,$(GPU_PYTHON)),$(STAMP))  ## tests and a benchmark on a GPU with CUDA; at most eight minutes
	PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(GPU_PYTHON) benchmarks/check_gpu.py

dist: $(STAMP)  ## build wheel and source archive, check them, and try them in an empty environment
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e '.[dist]'
	rm -rf dist build *.egg-info
	$(BIN)/python -m build  # the wheel is built from the source archive
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python .ci/try_package.py dist/*.whl

clean:  ## remove what builds and tests leave; keeps .venv and runs/
	rm -rf site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov
	rm -f .coverage .coverage.*
	find . -name __pycache__ -type d -not -path './.venv*/*' -prune -exec rm -rf {} +
