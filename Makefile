# Every target sets itself up: a fresh machine needs Python 3.11 or newer, make and pip.
# A stamp file under .venv says what is installed; it is made again when pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest
WORKERS ?= 2
OLDEST := $(VENV)/oldest

.PHONY: help demo test oldest examples slow doctest style format check docs clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

# $(BIN)/python is a link to the system's python, whose date says nothing: hence a stamp here too.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "graftlib needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	@echo "installing graftlib[demo] into $(VENV) (once)"
	$(PIP) install --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml
	@echo "installing graftlib[dev] into $(VENV) (once)"
	$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: $(VENV)/.made pyproject.toml
	@echo "installing graftlib[docs] into $(VENV) (once)"
	$(PIP) install --editable '.[docs]'
	@touch $@

demo: $(VENV)/.demo ## five ways to begin a slim network, on real digits; writes out/
	$(BIN)/python examples/demo.py $(ARGS)

test: $(VENV)/.dev ## tests and doctests, all but the slow ones and those of the experiments
	$(PYTEST) -n $(WORKERS) -m "not slow" --ignore tests/examples $(ARGS)

oldest: $(VENV)/.made ## the same on the oldest torch that pyproject.toml admits, in a virtual environment of its own
	@sed -nE 's/.*"(torch|torchvision)>=([0-9.]+)".*/\1==\2.*/p' pyproject.toml > $(OLDEST).txt
	PIP_CONSTRAINT=$(abspath $(OLDEST).txt) $(MAKE) test VENV=$(OLDEST)

examples: $(VENV)/.dev ## the tests of the experiments and benchmarks, and every short example
	$(PYTEST) -n $(WORKERS) -m "not slow" tests/examples $(ARGS)

slow: $(VENV)/.dev ## the tests that take minutes
	$(PYTEST) -m slow $(ARGS)

doctest: $(VENV)/.dev ## the examples in docstrings alone
	$(PYTEST) graftlib adapters examples/common $(ARGS)

style: $(VENV)/.dev ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: style test examples ## what a pull request must pass

docs: $(VENV)/.docs ## build the site into site/; warnings and unlisted public names are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict # --quiet would keep warnings from being counted
	$(BIN)/python .ci/check_reference.py site

clean: ## remove what the other targets made
	rm -rf $(VENV) out site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
