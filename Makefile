# Two commands are enough: `make demo` and `make test`. Either one first builds .venv, and later runs reuse it.
#
#   make test PYTHON=python3.13         builds .venv with another Python
#   make test TORCH='torch==2.14.*'     puts another torch into it

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Empty means: find one. The first of NAMES that really runs (a shim may exist and fail), is 3.11 or newer and can make
# environments; one that the pinned torch has builds for goes before a newer one.
PYTHON ?=
NAMES := python3 python3.11 python3.12 python3.13 python3.14 python
USABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, int(sys.argv[1])))
FIND_PYTHON = for newest in 14 99; do for name in $(NAMES); do \
	if "$$name" -c '$(USABLE)' $$newest >/dev/null 2>&1; then echo "$$name"; exit; fi; done; done

# Installed before anything else, so that nothing below chooses another one.
TORCH ?= torch==2.13.0

# A torch that was asked for by name replaces another one; the default replaces nothing.
TORCH_ASKED := $(if $(filter file,$(origin TORCH)),,$(TORCH))

.DEFAULT_GOAL := help
.PHONY: help demo test slow lint format types wheel clean distclean FORCE

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) ## Fit a first network, and leave the run in runs/demo
	$(BIN)/bnn-pyro demo --out runs/demo

# One process a core, each with its share of threads (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

test: $(STAMP) ## Run the tests, except the slow ones
	$(PYTEST) -m "not slow"

slow: $(STAMP) ## Run the slow tests
	$(PYTEST) -m slow

lint: $(STAMP) ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## Repair style and formatting where that can be done safely
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## Check types
	$(BIN)/mypy

wheel: $(STAMP) ## Build the source archive and the wheel into dist/
	$(BIN)/python -m build --no-isolation

clean: ## Remove builds and caches
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove the environments as well
	rm -rf $(VENV) .venv-arviz1

# Runs every time, and returns at once where the environment is good: its Python runs, it was made in this folder, by the
# Python that was asked for (if one was), and nothing it was installed from has changed since.
$(STAMP): FORCE
	@set -e; \
	identity='import sys; print(sys.base_prefix, sys.version_info[:3])'; \
	made_here() { \
		$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
		&& grep -qF '$(CURDIR)/$(BIN)/python' $(BIN)/pip 2>/dev/null; \
	}; \
	as_asked() { \
		[ -z '$(PYTHON)' ] || [ "$$($(BIN)/python -c "$$identity")" = "$$('$(PYTHON)' -c "$$identity" 2>&1)" ]; \
	}; \
	installed() { \
		[ $(STAMP) -nt pyproject.toml ] && [ -x $(BIN)/bnn-pyro ] \
		&& { [ -z '$(TORCH_ASKED)' ] || [ '$(TORCH_ASKED)' = "$$(cat $(STAMP))" ]; }; \
	}; \
	if made_here && as_asked; then \
		if installed; then exit 0; fi; \
	else \
		python='$(PYTHON)'; \
		[ -n "$$python" ] || python=$$($(FIND_PYTHON)); \
		if [ -z "$$python" ]; then \
			echo 'make: found no Python 3.11 or newer that runs and has venv (tried: $(NAMES)).' \
				'Install one, or name it: make test PYTHON=/path/to/python3' >&2; \
			exit 1; \
		fi; \
		if ! "$$python" -c '$(USABLE)' 99 >/dev/null 2>&1; then \
			echo "make: PYTHON=$$python does not run, is older than 3.11 or has no venv. Name another one." >&2; \
			exit 1; \
		fi; \
		echo "Making $(VENV) with $$python ($$("$$python" -V))"; \
		rm -rf $(VENV); \
		"$$python" -m venv $(VENV); \
	fi; \
	rm -f $(STAMP); \
	echo 'Installing $(TORCH), then bnn_pyro and what it needs'; \
	$(BIN)/python -m pip install --disable-pip-version-check '$(TORCH)'; \
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'; \
	echo '$(TORCH)' > $(STAMP)

FORCE:
