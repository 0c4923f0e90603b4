# Needs Python >= 3.11 and make; everything else goes into .venv, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Three on two cores: half the time of a test that starts processes, it waits.
PYTEST := $(BIN)/pytest --numprocesses 3 --dist worksteal

# Tests start hundreds of processes, which would each compile the house anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast test-faults check format

help:
	@echo "make demo         the whole journey on real videos; ends with demo/report.html"
	@echo "make test         every test, and of the fault tests a sample"
	@echo "make test-fast    the tests without Ray and DeepSpeed, under a minute"
	@echo "make test-faults  all tests that kill processes and damage files (SAMPLE=done: those that make test has left)"
	@echo "make check        ruff, mypy --strict, import-linter"
	@echo "make format       ruff format, and the fixes ruff is sure of"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: reelgpt needs Python 3.11 or newer, and $(PYTHON) is older; give another one as in: make PYTHON=python3.12 demo")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev,s3]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/reelgpt demo

test: $(INSTALLED)
	$(PYTEST) -m "not exhaustive"

test-fast: $(INSTALLED)
	$(PYTEST) -m "not ray and not deepspeed and not slow and not faults and not gpu and not exhaustive"

test-faults: $(INSTALLED)
	$(PYTEST) -m "faults$(if $(filter done,$(SAMPLE)), and exhaustive)"

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
