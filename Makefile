# `make run` and `make test` do everything on a fresh machine with Python 3.11 or later, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= smollm2-135m
# torch first, and alone: the version that the tests run with, and without a GPU its CPU build rather than gigabytes of
# CUDA. Where your package index keeps the CPU build under another address, name it: make run TORCH_INDEX=...
TORCH ?= torch==2.13.0
TORCH_FLAGS := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: run test test-all lint format docs setup setup-dev wheels clean

run: setup
	$(BIN)/decodery pull $(MODEL)
	$(BIN)/decodery race --model $(MODEL)

test: setup-dev
	$(BIN)/ruff format --check src tests benchmarks experiments
	$(BIN)/ruff check src tests benchmarks experiments
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

# The tests, and those that take long: every family of models, and every method with every pair of settings.
test-all: test
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "all_families or all_pairs"

lint: setup-dev
	$(BIN)/ruff format --check src tests benchmarks experiments
	$(BIN)/ruff check src tests benchmarks experiments
	$(BIN)/mypy

format: setup-dev
	$(BIN)/ruff format src tests benchmarks experiments
	$(BIN)/ruff check --fix src tests benchmarks experiments

# The documentation as a site, in site/index.html.
docs: setup-dev
	$(BIN)/python -m mkdocs build --strict

# A wheel with the native decoder compiled for every set of instructions of this machine's kind of processor.
wheels: setup
	$(PIP) "build>=1.2"
	$(BIN)/python -m build --wheel

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_FLAGS) "$(TORCH)"
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed pyproject.toml
	$(PIP) --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
