# Each target sets itself up in .venv: nothing but Python 3.11 or newer, pip and make is needed.
#     make demo      the whole system, from a dataset to a served adapter, on this machine
#     make test      the tests (make test TESTS=tests/unit/train takes a part)
#     make chaos     every kill, every damage: the long part of tests/chaos too
#     make lint      ruff, pyright and the import layers
#     make bench     every measured claim (make bench BENCH=data takes one)
#     make lock      write constraints.txt anew from the newest versions that pyproject.toml allows
#     make clean     remove what the other targets made, but for stores of artifacts
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
TESTS ?=
BENCH ?= $(filter-out __init__ _%,$(patsubst bench/%.py,%,$(wildcard bench/*.py)))
BIN := $(VENV)/bin
LOCK := build/lock
# Held back when locking: the torch that vllm and ray[llm] of today are built for.
HELD := torch==2.13.0

# pip works on the venv from outside, so that the venv need not bootstrap one first. Bytecode is written for the modules
# that are imported, a third of all: compiling the rest would double the installation.
PIP_INTO = $(PYTHON) -m pip --disable-pip-version-check -qq --python
IMPORTED_1 = deepspeed, bitsandbytes, peft, tensorboardX, transformers.models.llama.modeling_llama
IMPORTED_2 = ray.data, ray.serve, ray.train, openai, typer, rich.progress
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: demo test chaos lint bench lock clean

demo: $(VENV)/.runtime
	@$(BIN)/loraforge demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(TESTS)

chaos: $(VENV)/.dev
	LORAFORGE_CHAOS=1 $(BIN)/python -m pytest tests/chaos

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache --no-logo

bench: $(VENV)/.bench
	@for name in $(BENCH); do echo "== bench.$$name"; $(BIN)/python -m bench.$$name || exit 1; done

# What a developer has holds what a user has.
$(VENV)/.runtime: | $(if $(wildcard $(VENV)/.dev),$(VENV)/.dev)
$(VENV)/.runtime: pyproject.toml constraints.txt
	$(call install,.)
$(VENV)/.dev: pyproject.toml constraints.txt
	$(call install,.[dev])
	@touch $(VENV)/.runtime
$(VENV)/.bench: pyproject.toml constraints.txt
	$(call install,.[bench])
	@touch $(VENV)/.runtime

define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"$(PYTHON) is {sys.version.split()[0]}; needed: 3.11 or newer (make PYTHON=python3.12)")'
@echo "Installing $(1) into $(VENV) (a minute or two; quiet but for errors) ..."
@test -x $(BIN)/python || $(PYTHON) -m venv --without-pip $(VENV)
@$(PIP_INTO) $(BIN)/python install --no-compile -c constraints.txt pip -e '$(1)'
@test -e $(VENV)/.runtime || { $(BIN)/python -c "import $(IMPORTED_1)" & $(BIN)/python -c "import $(IMPORTED_2)" & wait; } >/dev/null 2>&1
@touch $@
endef

# A version is exact without its local part (+cpu), so that one file serves every kind of machine.
lock:
	rm -rf $(LOCK) && $(PYTHON) -m venv --without-pip $(LOCK)
	$(PIP_INTO) $(LOCK)/bin/python install --no-compile '$(HELD)' -e '.[dev,bench]'
	{ sed -n '/^#/p' constraints.txt; $(PIP_INTO) $(LOCK)/bin/python freeze --exclude-editable | sed 's/+cpu$$//'; } >$(LOCK)/constraints.txt
	mv $(LOCK)/constraints.txt constraints.txt
	rm -rf $(LOCK)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
