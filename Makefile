# `make demo` and `make test` need Python 3.11 or later and make; everything else goes into .venv.

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODE := splitgym agents train.py tests benchmarks profiles traces

.PHONY: demo test venv lint format wheel-check bench clean

demo: $(STAMP)
	$(BIN)/python train.py --demo

test: lint wheel-check
	$(BIN)/python -m pytest -n 2

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: install it, or set PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check $(wildcard $(CODE))
	$(BIN)/ruff format --check $(wildcard $(CODE))
	$(BIN)/mypy splitgym agents

format: $(STAMP)
	$(BIN)/ruff check --fix $(wildcard $(CODE))
	$(BIN)/ruff format $(wildcard $(CODE))

wheel-check: $(STAMP)
	$(BIN)/python tests/wheel_check.py

bench: $(STAMP)
	for script in $(filter-out benchmarks/harness.py benchmarks/designs%.py benchmarks/routing.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
