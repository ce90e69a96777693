# `make quickstart` and `make test` need nothing done before them: each sets up .venv by itself.
# Another interpreter: `make test PYTHON=python3.12`. More arguments for pytest: `make test ARGS="-k npo -x"`.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
# Written last, so an interrupted installation is taken up again; older than its inputs, it is repeated.
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install quickstart test check format clean distclean

help:
	@echo "make quickstart   install, then unlearn from a small model and write its report (minutes, no GPU)"
	@echo "make test         install, then run the tests (without those marked slow)"
	@echo "make check        formatting, lint and types, as CI runs them"
	@echo "make format       let ruff format and mend what it can"
	@echo "make clean        remove caches and build outputs; runs/ and .venv stay"
	@echo "make distclean    clean, and remove .venv"

install: $(STAMP)

# torch stands in the same command, so that no other version is taken on the way.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "error: $(PYTHON) was not found; install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: UnlearnKit needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	    "name a newer one: make PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) has no venv module; on Debian and Ubuntu: sudo apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt \
	  $$(grep '^torch==' constraints.txt) -e ".[dev]"
	@touch $@

quickstart: $(STAMP)
	$(BIN)/unlearnkit quickstart

test: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "not slow" $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find unlearnkit tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
