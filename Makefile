## Targets. Each one installs what it needs; Python 3.11 or newer, pip and make must be there.
##
##   make install     install Loraforge into .venv
##   make demo        the full flow on this machine: three adapters trained, served and questioned
##   make test        the tests and the ten slowest of them (TESTS=tests/unit/train for a part)
##   make chaos       the tests that kill processes and damage files, the long ones included
##   make lint        ruff, pyright and the import layers
##   make bench       every benchmark (BENCH=data for one)
##   make wheel-demo  build the wheel, install it into an empty environment, run the demo there
##   make lock        rewrite constraints.txt with the newest versions that pyproject.toml allows
##   make clean       delete what the other targets made, except stores
##
## Variables: PYTHON=python3.12 chooses the interpreter, VENV=.venv the environment's folder.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
TESTS ?=
BENCH ?= $(filter-out __init__ _%,$(patsubst bench/%.py,%,$(wildcard bench/*.py)))
BIN := $(VENV)/bin
LOCK := build/lock
WHEEL := build/wheel-demo
# `make lock` does not go beyond this torch: vllm and ray[llm] are built for it.
HELD := torch==2.13.0

# pip runs outside the environment that it fills, so the environment needs no pip of its own at first.
# --no-compile and the imports after it write bytecode only for modules that are used, a third of
# all: compiling the rest would double the time of an installation.
PIP_INTO = $(PYTHON) -m pip --disable-pip-version-check -qq --python
IMPORTED_1 = deepspeed, bitsandbytes, peft, tensorboardX, transformers.models.llama.modeling_llama
IMPORTED_2 = ray.data, ray.serve, ray.train, openai, typer, rich.progress
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help install demo test chaos lint bench wheel-demo lock clean

help:
	@sed -n 's/^## \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

install: $(VENV)/.runtime

demo: $(VENV)/.runtime
	@$(BIN)/loraforge demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest --durations=10 $(TESTS)

chaos: $(VENV)/.dev
	LORAFORGE_CHAOS=1 $(BIN)/python -m pytest --durations=10 tests/chaos

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache --no-logo

bench: $(VENV)/.bench
	@for name in $(BENCH); do echo "== bench.$$name"; $(BIN)/python -m bench.$$name || exit 1; done

# The demo runs as a user would run it: nothing of this repository is importable, and the folder it
# starts in has packages of our names that must not be imported.
wheel-demo:
	$(check_python)
	rm -rf $(WHEEL) && mkdir -p $(addprefix $(WHEEL)/folder/,jobs pipelines serve_app)
	@for package in $(WHEEL)/folder/*; do echo 'raise ImportError(__file__)' >$$package/__init__.py; done
	$(PYTHON) -m pip --disable-pip-version-check wheel -q --no-deps -w $(WHEEL)/dist .
	$(PYTHON) -m venv --without-pip $(WHEEL)/venv
	$(PIP_INTO) $(WHEEL)/venv/bin/python install --no-compile -c constraints.txt $(WHEEL)/dist/*.whl
	cd $(WHEEL)/folder && env -u PYTHONPATH ../venv/bin/loraforge demo

# The environment of a developer has everything that the environment of a user has.
$(VENV)/.runtime: | $(if $(wildcard $(VENV)/.dev),$(VENV)/.dev)
$(VENV)/.runtime: pyproject.toml setup.py constraints.txt
	$(call install,.)
$(VENV)/.dev: pyproject.toml setup.py constraints.txt
	$(call install,.[dev])
	@touch $(VENV)/.runtime
$(VENV)/.bench: pyproject.toml setup.py constraints.txt
	$(call install,.[bench])
	@touch $(VENV)/.runtime

define check_python
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"$(PYTHON) is {sys.version.split()[0]}; needed: 3.11 or newer (make PYTHON=python3.12)")'
endef

define install
$(check_python)
@echo "Installing $(1) into $(VENV): a minute or two, silent unless it fails ..."
@test -x $(BIN)/python || $(PYTHON) -m venv --without-pip $(VENV)
@$(PIP_INTO) $(BIN)/python install --no-compile -c constraints.txt pip -e '$(1)'
@test -e $(VENV)/.runtime || { $(BIN)/python -c "import $(IMPORTED_1)" & $(BIN)/python -c "import $(IMPORTED_2)" & wait; } >/dev/null 2>&1
@touch $@
endef

# Versions are written without their local part (+cpu), so one file serves every kind of machine.
lock:
	rm -rf $(LOCK) && $(PYTHON) -m venv --without-pip $(LOCK)
	$(PIP_INTO) $(LOCK)/bin/python install --no-compile '$(HELD)' -e '.[dev,bench,s3,gcs]'
	{ sed -n '/^#/p' constraints.txt; $(PIP_INTO) $(LOCK)/bin/python freeze --exclude-editable | sed 's/+cpu$$//'; } >$(LOCK)/constraints.txt
	mv $(LOCK)/constraints.txt constraints.txt
	rm -rf $(LOCK)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
